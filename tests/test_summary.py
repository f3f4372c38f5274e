"The snippets of the training package's summary run as they are written there, with `genesis.` in front of the imports."
import re
from pathlib import Path

import pytest

from genesis.data.detector import toy_detector
from genesis.data.events import write_events
from genesis.data.loaders import EventLoader
from genesis.data.simulator import simulate_events
from genesis.training.trainer import Trainer

README = Path(__file__).resolve().parents[1]/'README.md'

BASIC = '''
from genesis.config import get_default_config
from genesis.training import create_trainer

# Load configuration
config = get_default_config()
config.data.h5_path = "/path/to/your/data.h5"

# Create trainer
trainer = create_trainer(config)

# Start training
trainer.train()
'''

ADVANCED = '''
from genesis.config import ExperimentConfig, ModelConfig, TrainingConfig
from genesis.training import create_trainer

# Create custom configuration
config = ExperimentConfig(
    experiment_name="custom_experiment",
    model=ModelConfig(
        architecture="dit",
        hidden=384,
        depth=6,
        heads=6
    ),
    training=TrainingConfig(
        num_epochs=150,
        learning_rate=1e-4,
        scheduler="cosine",
        cosine_t_max=150,
        use_amp=True
    )
)

# Train
trainer = create_trainer(config)
trainer.train()
'''


@pytest.fixture
def two_steps(monkeypatch, tmp_path):
    "Trainings end after two steps and validate on eight events, so that networks of full size can be tried; relative paths lie in a folder of the test."
    monkeypatch.chdir(tmp_path)
    init = Trainer.__init__
    def short(self, config):
        init(self, config)
        self.total_steps = 2
        if self.val_loader: self.val_loader = EventLoader(self.val_loader.events[:8], self.transform, 8)
    monkeypatch.setattr(Trainer, '__init__', short)


def run(snippet):
    names = {}
    exec(compile(snippet, 'snippet', 'exec'), names)
    return names['trainer']


def test_basic_training(two_steps, tmp_path):
    data = write_events(simulate_events(24, detector=toy_detector(), seed=1, min_hits=4), tmp_path/'data.h5')
    trainer = run(BASIC.replace('/path/to/your/data.h5', str(data)))
    assert trainer.step == 2 and (trainer.config.model.hidden, trainer.config.model.depth, trainer.config.training.num_epochs) == (512, 8, 100)
    assert trainer.checkpoints.get_latest_checkpoint().name == 'step-000000002'
    assert (tmp_path/'logs'/'icecube_diffusion'/'metrics.jsonl').exists()


def test_advanced_training_simulates_its_data_and_says_so(two_steps, tmp_path, caplog):
    trainer = run(ADVANCED)
    assert trainer.step == 2 and trainer.model.blocks[0].attn.heads == 6 and len(trainer.model.blocks) == 6
    assert 'data.h5_path is not set: simulating 10000 cascades' in caplog.text
    assert [p.name for p in (tmp_path/'outputs').iterdir()] == ['simulated-icecube86-10000-seed42.h5']
    assert trainer.scheduler.get_last_lr()[0] < 1e-4


def test_the_twelve_lines_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = [b for b in re.findall(r'```python\n(.*?)```', README.read_text(), re.S) if 'create_trainer' in b]
    small = code.replace('simulate_events(4000,', 'simulate_events(40,').replace("'model.hidden': 128", "'model.hidden': 32").replace("'training.num_epochs': 5", "'training.num_epochs': 1")
    assert small != code and len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    exec(compile(small, 'README', 'exec'), names)
    assert len(names['truth']) == 3 and (tmp_path/'checkpoints'/'icecube_diffusion').is_dir()
