"The schedule explorer: its sliders describe a config, its page needs no kernel and no network, and JupyterLab shows it alive."
import base64, json, re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from genesis.config import ExperimentConfig, TrainingConfig
from genesis.training import schedulers
from genesis.training.schedulers import SCHEDULERS, SchedulerExplorer, create_scheduler

START = TrainingConfig(scheduler='cosine', num_epochs=40, warmup_steps=100, weight_decay=0.3)


@pytest.fixture(scope='module')
def page(): return SchedulerExplorer(START, steps_per_epoch=50, seconds_per_step=0.1).page()


def test_the_sliders_are_the_config():
    explorer = SchedulerExplorer(START, steps_per_epoch=50)
    explorer.build()
    assert explorer.config == TrainingConfig(scheduler='cosine', num_epochs=40, warmup_ratio=0.05, weight_decay=0.3)
    for name in [None, *SCHEDULERS]:
        explorer.controls['scheduler'].value = name
        assert explorer.config.scheduler == name and ExperimentConfig(training=explorer.config).validate() == [] and not explorer.note.value
        shown = {k for k, w in explorer.controls.items() if w.layout.display != 'none'} - {'scheduler', 'learning_rate', 'num_epochs', 'warmup_ratio'}
        assert (len(shown) > 0) == (name is not None) and all(k.startswith(f'{name}_') for k in shown)
    explorer.controls['wsd_decay_ratio'].value = 0.5
    explorer.controls['num_epochs'].value = 60
    assert (explorer.config.wsd_decay_ratio, explorer.config.num_epochs) == (0.5, 60)


def test_every_slider_moves_the_picture():
    explorer = SchedulerExplorer(START, steps_per_epoch=20, seconds_per_step=0.1)
    explorer.build()
    def moves(control, value):
        before = explorer.picture.value; control.value = value
        return explorer.picture.value != before
    c = explorer.controls
    assert moves(c['learning_rate'], 1e-2) and moves(c['warmup_ratio'], 0.3) and moves(explorer.time, 5.)
    assert moves(c['cosine_t_max'], 10) and moves(c['cosine_restarts'], True) and moves(c['cosine_t_mult'], 2) and moves(c['cosine_min_lr'], 1e-3)
    assert moves(c['scheduler'], 'plateau') and moves(explorer.points[-1], 0.2) and moves(c['plateau_patience'], 2)
    drawn = explorer.losses
    assert len(drawn) == 40 and (drawn[0], drawn[-1]) == (1, 0.2)


def test_a_setting_that_cannot_be_is_said():
    explorer = SchedulerExplorer(START)
    explorer.build()
    explorer.controls['cosine_min_lr'].value = 0.5
    assert 'cosine_min_lr=0.5 lies above' in explorer.note.value
    explorer.controls['cosine_min_lr'].value = 0.
    assert not explorer.note.value


def test_recorded_losses_are_those_that_plateau_hears():
    losses = np.linspace(1, 0.2, 40)
    explorer = SchedulerExplorer(TrainingConfig(scheduler='plateau', num_epochs=40), losses=losses)
    explorer.build()
    assert np.array_equal(explorer.losses, losses) and explorer.drawing.layout.display == 'none'


def frames(page): return json.loads(re.search(r'const all = (\{.*?\}), box', page)[1])


def test_the_page_is_light_and_loads_nothing(page):
    assert len(page.encode()) < 250_000
    assert not re.search(r'https?:|//[\w-]+\.\w|@import|url\(|fetch\(|XMLHttpRequest|\bsrc="', page)
    assert frames(page).keys() == SCHEDULERS.keys() and page.count('<script') == page.count('</script>') == 1
    for name, shown in frames(page).items():
        pictures = {data for _, data in shown}
        assert len(pictures) == len(shown) >= 3, 'each value has a picture of its own'
        for data in pictures: assert Image.open(BytesIO(base64.b64decode(data))).mode == 'P'


def test_two_pages_do_not_share_an_id_and_text_stays_text(monkeypatch, page):
    monkeypatch.setattr(schedulers, '_variations', lambda epochs: {'step': [{'step_size': 5}]})
    evil = SchedulerExplorer(TrainingConfig(scheduler='</script><img src=x onerror="alert(1)">', num_epochs=9))
    assert '</script><img' not in evil.page()
    ids = [re.search('<div id="([^"]+)"', p)[1] for p in (page, evil.page(), evil.page())]
    assert len(set(ids)) == 3


def test_outside_jupyter_there_are_no_widgets(monkeypatch):
    explorer = SchedulerExplorer(START)
    monkeypatch.setattr(explorer, 'page', lambda: '')
    assert set(explorer._repr_mimebundle_()) == {'text/html', 'text/plain'} and explorer.view is None
    monkeypatch.setattr(schedulers, 'in_jupyter', lambda: True)
    monkeypatch.delenv('IN_TEST', raising=False)
    assert 'application/vnd.jupyter.widget-view+json' in explorer._repr_mimebundle_()


@pytest.mark.parametrize('name', SCHEDULERS)
def test_a_resume_needs_no_replay(name):
    "However long the run was: the curve is not stepped at all when its plan is unchanged."
    import torch
    make = lambda c: create_scheduler(torch.optim.SGD([torch.zeros(1)], lr=1.), c, 10)
    config = TrainingConfig(scheduler=name, num_epochs=20, cosine_t_max=7, step_size=5)
    whole, resumed = make(config), make(config)
    for _ in range(123): whole.step()
    if name == 'plateau': whole.step_metric(1.)
    note, build, walked = json.loads(json.dumps(whole.state_dict())), resumed.build, []
    def watched(opt, **kept):
        curve = build(opt, **kept); go = curve.step
        curve.step = lambda *a: (walked.append(1), go(*a))
        return curve
    resumed.build = watched
    resumed.load_state_dict(note)
    assert not walked and resumed.state_dict() == whole.state_dict()
    longer = make(TrainingConfig(scheduler=name, num_epochs=30, cosine_t_max=7, step_size=5)); build = longer.build; longer.build = watched
    longer.load_state_dict(note)
    assert len(walked) == (0 if name == 'plateau' else 123), 'another plan: the new curve is walked'


# ---- in a browser, where there is one ---------------------------------------------------------------------

def test_the_page_moves_without_kernel_and_network(browser, page, tmp_path):
    other = SchedulerExplorer(TrainingConfig(scheduler='step', num_epochs=9))
    (tmp_path/'two.html').write_text(f'<!doctype html><meta charset="utf-8"><body>{page}{other.page()}')
    said, context = [], browser.new_context(offline=True)
    tab = context.new_page()
    tab.on('pageerror', lambda e: said.append(str(e))); tab.on('request', lambda r: said.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    tab.goto((tmp_path/'two.html').as_uri())
    first, second = tab.query_selector_all('div')
    source = lambda box: box.query_selector('img').get_attribute('src').removeprefix('data:image/png;base64,')
    assert source(first) == frames(page)['cosine'][0][1]
    untouched = source(second)
    first.query_selector('input').focus(); tab.keyboard.press('ArrowRight')
    assert source(first) == frames(page)['cosine'][1][1]
    first.query_selector('select').select_option('wsd')
    assert source(first) == frames(page)['wsd'][0][1] and first.query_selector('code').inner_text() == 'wsd_decay_ratio=0.1'
    assert source(second) == untouched and second.query_selector('select').input_value() == 'step'
    assert first.query_selector('img').evaluate('i => i.decode().then(() => i.naturalWidth)') > 300
    context.close()
    assert not said, said


def test_it_lives_in_jupyterlab(tab, lab):
    url = lab('from genesis.config import TrainingConfig\nfrom genesis.training.schedulers import SchedulerExplorer\n'
              'explorer = SchedulerExplorer(TrainingConfig(scheduler="cosine", num_epochs=40), steps_per_epoch=10)\nexplorer', 'print("now:", explorer.config.scheduler, explorer.config.step_size)')
    tab.goto(f'{url}/doc/tree/tiny.ipynb')
    tab.wait_for_selector('.jp-Notebook .jp-Cell'); tab.wait_for_selector('text=/ipykernel.*Idle/')
    tab.click('.lm-MenuBar-item >> text="Run"'); tab.click('.lm-Menu-item[data-command="runmenu:run-all"]')
    tab.wait_for_selector('text=/now: cosine/'); picture = tab.wait_for_selector('.widget-image')
    assert not tab.query_selector('[id^=schedule-]'), 'the widgets are shown, not the page'
    pixels = lambda: tab.evaluate('async i => [...new Uint8Array(await (await fetch(i.src)).arrayBuffer())].join()', picture)
    def changed(before):
        for _ in range(100):
            tab.wait_for_timeout(100)
            if pixels() != before: return pixels()
        pytest.fail('the picture did not change')
    before = pixels()
    tab.select_option('.widget-dropdown select', 'step')
    stepped = changed(before)
    handle = tab.locator('.widget-hslider', has_text='step_size').locator('.noUi-handle')
    handle.focus(); tab.keyboard.press('ArrowLeft')
    changed(stepped)
    tab.click('.jp-Notebook .jp-Cell:nth-child(2) .jp-InputArea-editor'); tab.keyboard.press('Shift+Enter')
    tab.wait_for_selector('text=/now: step 29/')
