"A training in a cell of JupyterLab: its picture grows, the stop button ends it well."
import os, re

from genesis.data.detector import toy_detector
from genesis.data.events import write_events
from genesis.data.simulator import simulate_events
from genesis.training.checkpointing import read_checkpoint

CONFIG = """
from genesis.config import get_default_config, override
from genesis.training import create_trainer
config = override(get_default_config(), {'experiment_name': 'live', 'data.h5_path': 'toy.h5', 'data.batch_size': 16, 'model.hidden': 32, 'model.depth': 2, 'model.heads': 2, 'model.dom_width': 8, 'device': 'cpu',
                                         'training.num_epochs': 5000, 'training.log_interval': 5, 'training.learning_rate': 1e-3, 'training.panel_minutes': 0.05})
trainer = create_trainer(config)
"""


def test_a_training_lives_in_jupyterlab(tab, lab, tmp_path):
    write_events(simulate_events(200, detector=toy_detector(), seed=1, min_hits=4), tmp_path/'toy.h5')
    url = lab(CONFIG, 'history = trainer.train()', 'print("kept:", trainer.stopped, trainer.step, len(history["step"]))')
    said = []; tab.on('pageerror', lambda e: said.append(str(e)))
    tab.goto(f'{url}/doc/tree/tiny.ipynb')
    tab.wait_for_selector('.jp-Notebook .jp-Cell'); tab.wait_for_selector('text=/ipykernel.*Idle/')
    run = lambda k: (tab.click(f'.jp-Notebook .jp-Cell:nth-child({k}) .jp-InputArea-editor'), tab.keyboard.press('Shift+Enter'))
    run(1); run(2)
    cell = '.jp-Notebook .jp-Cell:nth-child(2)'
    seen, sizes = [], set()
    tab.wait_for_selector(f'{cell} .jp-OutputArea img')
    for _ in range(600):
        pictures = tab.query_selector_all(f'{cell} .jp-OutputArea img')
        assert len(pictures) <= 1, 'pictures are replaced, not collected'
        if pictures and (source := pictures[0].get_attribute('src')) not in seen: seen.append(source); sizes.add(tab.evaluate('i => i.naturalHeight', pictures[0]))
        if len(seen) >= 6 and len(sizes) >= 2: break
        tab.wait_for_timeout(100)
    assert len(seen) >= 6 and len(sizes) == 2, 'it grows, first without and then with generated events'
    if os.environ.get('SCREENSHOTS'): tab.screenshot(path=os.path.join(os.environ['SCREENSHOTS'], 'training.png'))
    tab.click('[data-command="notebook:interrupt-kernel"]')
    run(3)
    text = tab.wait_for_selector(r'text=/kept: \w+ \d+ \d+/').inner_text()
    if os.environ.get('SCREENSHOTS'): tab.screenshot(path=os.path.join(os.environ['SCREENSHOTS'], 'stopped.png'))
    stopped, step, lines = re.search(r'kept: (\w+) (\d+) (\d+)', text).groups()
    saved = read_checkpoint(tmp_path/'checkpoints'/'live')
    assert stopped == 'SIGINT' and saved['step'] == int(step) > 0 and len(saved['history']['step']) == int(lines) > 1
    assert not (tmp_path/'checkpoints'/'live.lock').exists() and not said
    assert 'KeyboardInterrupt' not in tab.inner_text('.jp-Notebook') and 'Traceback' not in tab.inner_text('.jp-Notebook')
