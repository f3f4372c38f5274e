"The snippets of the training package's summary run as they are written there, with `genesis.` in front of the imports; its YAML samples, commands, flags and names work."
import json, re, shlex
from pathlib import Path

import pytest
import torch

from genesis.cli import main
from genesis.config import ExperimentConfig, TrainingConfig, get_default_config, load_config, override
from genesis.core import ConfigError
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
    def short(self, config, *args, **kw):
        init(self, config, *args, **kw)
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
    assert trainer.step == 2 and trainer.model['prior'].blocks[0].attn.heads == 6 and len(trainer.model['prior'].blocks) == 6
    assert 'data.h5_path is not set: simulating 10000 cascades' in caplog.text
    assert [p.name for p in (tmp_path/'outputs').iterdir()] == ['simulated-icecube86-10000-seed42.h5']
    assert trainer.scheduler.get_last_lr()[0] < 1e-4


def execute(snippet, **names):
    exec(compile(snippet, 'snippet', 'exec'), names)
    return names


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A file of toy events in the working directory, and the flags of a tiny training."
    monkeypatch.chdir(tmp_path)
    write_events(simulate_events(60, detector=toy_detector(), seed=1, min_hits=4), 'data.h5')
    return '--hidden 16 --depth 1 --heads 2 --batch-size 16 --device cpu --set model.dom_width=8 --set training.use_tensorboard=false'


USAGE = """
from genesis.training import create_trainer
from genesis.config import get_default_config

config = get_default_config()
trainer = create_trainer(config)
trainer.train()
"""


def test_usage_of_the_trainer(two_steps, monkeypatch):
    import genesis.training.setup as setup
    simulate = setup.simulate_events
    monkeypatch.setattr(setup, 'simulate_events', lambda n, detector, **kw: simulate(40, detector=toy_detector(), min_hits=4, **kw))   # not 10,000
    assert execute(USAGE)['trainer'].step == 2


SCHEDULER = """
from genesis.training.schedulers import create_scheduler

scheduler = create_scheduler(optimizer, training_config)
"""


def test_usage_of_schedulers():
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=2e-4)
    scheduler = execute(SCHEDULER, optimizer=optimizer, training_config=TrainingConfig(scheduler='cosine'))['scheduler']
    for _ in range(100): scheduler.step()   # once an epoch, as the summary's trainer did
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


YAML = {'cosine': """
# Cosine annealing
training:
  scheduler: "cosine"
  cosine_t_max: 200
""", 'plateau': """
# Plateau scheduler
training:
  scheduler: "plateau"
  plateau_patience: 15
  plateau_factor: 0.5
  plateau_min_lr: 1e-6
""", 'step': """
# Step scheduler
training:
  scheduler: "step"
  step_size: 30
  step_gamma: 0.1
"""}


@pytest.mark.parametrize('name', YAML)
def test_yaml_samples(name, tmp_path):
    (tmp_path/'run.yaml').write_text(YAML[name])
    t = load_config(tmp_path/'run.yaml').training
    assert t.scheduler == name and (t.cosine_t_max, t.plateau_patience, t.plateau_min_lr, t.step_size) == (200 if name == 'cosine' else None, 15 if name == 'plateau' else 10, 1e-6, 30)


@pytest.mark.parametrize('name, epochs, expected', [('cosine_annealing', 200, dict(scheduler='cosine', cosine_t_max=200)), ('plateau', 300, dict(scheduler='plateau', plateau_patience=15, plateau_factor=.5, plateau_min_lr=1e-6, plateau_cooldown=5, eval_interval=100)),
    ('step', 150, dict(scheduler='step', step_size=50, step_gamma=.1)), ('linear', 200, dict(scheduler='linear', linear_start_factor=1., linear_end_factor=0.))])
def test_config_files(name, epochs, expected):
    t = load_config(README.parent/'configs'/f'{name}.yaml').training
    assert t.num_epochs == epochs and {k: getattr(t, k) for k in expected} == expected


LOGGER = """
from genesis.training.logging import create_logger

logger = create_logger(
    experiment_name="my_experiment",
    use_tensorboard=True,
    use_wandb=True
)

logger.log_metrics({"loss": 0.5, "accuracy": 0.9}, step=100)
"""


def test_usage_of_the_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WANDB_MODE', 'disabled')
    execute(LOGGER)['logger'].close()
    assert '"loss": 0.5, "accuracy": 0.9' in (tmp_path/'logs'/'my_experiment'/'metrics.jsonl').read_text()


CHECKPOINTS = """
from genesis.training.checkpointing import CheckpointManager

manager = CheckpointManager(
    checkpoint_dir="./checkpoints",
    experiment_name="my_experiment"
)

manager.save_checkpoint(checkpoint_data, epoch, is_best=True)
"""


def test_usage_of_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = torch.nn.Linear(2, 2)
    data = dict(epoch=3, global_step=12, model_state_dict=net.state_dict(), optimizer_state_dict=torch.optim.AdamW(net.parameters()).state_dict(), best_loss=.5, config=get_default_config())
    manager = execute(CHECKPOINTS, checkpoint_data=data, epoch=3)['manager']
    best = manager.load_best_checkpoint()
    assert torch.equal(best['model_state_dict']['weight'], net.weight) and best['epoch'] == 3 and best['config']['training']['num_epochs'] == 100


UTILITIES = """
from genesis.training.utils import (
    setup_training_environment,
    validate_training_config,
    get_training_summary
)

env_info = setup_training_environment(config)
issues = validate_training_config(config)
summary = get_training_summary(config)
"""


def test_usage_of_utilities(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = execute(UTILITIES, config=get_default_config())
    assert found['issues'] == [] and found['env_info']['device'] in ('cpu', 'cuda')
    assert {'device', 'gpu_available', 'deterministic', 'python_version', 'pytorch_version', 'cuda_version', 'cpu_count', 'memory_gb'} <= set(found['env_info'])
    assert {'experiment_name', 'architecture', 'model_parameters', 'model_size_mb', 'training_epochs', 'estimated_total_steps', 'estimated_training_time_hours', 'batch_size', 'learning_rate', 'scheduler', 'optimizer',
            'mixed_precision', 'device', 'data_path', 'output_dir', 'checkpoint_dir', 'log_dir'} <= set(found['summary'])
    assert found['summary']['model_parameters'] > 30e6   # counted: 512 wide and 8 deep


FIELDS = """
num_epochs: int = 100
learning_rate: float = 2e-4
weight_decay: float = 0.01
optimizer: str = "AdamW"
scheduler: Optional[str] = None
cosine_t_max: Optional[int] = None
plateau_patience: int = 10
plateau_factor: float = 0.5
plateau_min_lr: float = 1e-6
step_size: int = 30
step_gamma: float = 0.1
linear_start_factor: float = 1.0
linear_end_factor: float = 0.0
"""


@pytest.mark.parametrize('line', FIELDS.strip().splitlines())
def test_fields_and_defaults(line):
    name, default = re.fullmatch(r'(\w+): .* = (.*)', line).groups()
    assert getattr(TrainingConfig(), name) == eval(default)


DIFFERENT_SCHEDULERS = """
# Cosine annealing
config.training.scheduler = "cosine"
config.training.cosine_t_max = 200

# Plateau scheduler
config.training.scheduler = "plateau"
config.training.plateau_patience = 15
config.training.plateau_factor = 0.5

# Step scheduler
config.training.scheduler = "step"
config.training.step_size = 30
config.training.step_gamma = 0.1
"""


def test_training_with_different_schedulers():
    config = get_default_config()
    for part in DIFFERENT_SCHEDULERS.split('\n\n'): execute(part, config=config); assert config.validate() == []
    assert config.training.scheduler == 'step'


COMMANDS = """
# Basic training
python train_new.py --data-path /path/to/data.h5

# With specific architecture and scheduler
python train_new.py \\
    --data-path /path/to/data.h5 \\
    --architecture dit \\
    --scheduler cosine \\
    --epochs 200

# Advanced options
python train_new.py \\
    --data-path /path/to/data.h5 \\
    --use-amp \\
    --use-wandb \\
    --wandb-project "icecube-diffusion"
"""


@pytest.mark.parametrize('command', COMMANDS.strip().replace('\\\n', ' ').split('\n\n'), ids=['basic', 'scheduler', 'advanced'])
def test_training_commands(command, toy, two_steps, monkeypatch, capsys):
    "`train_new.py` is `genesis train`."
    monkeypatch.setenv('WANDB_MODE', 'disabled')
    words = shlex.split(command.split('\n')[-1].replace('python train_new.py', 'train').replace('/path/to/data.h5', 'data.h5'))
    assert main([*words, *toy.split()]) == 0
    assert 'step 2:' in capsys.readouterr().out and json.loads(next(Path('logs').glob('*/records.jsonl')).read_text().splitlines()[0])['value']['use_wandb'] == ('--use-wandb' in words)


EXAMPLES = """
# Compare architectures
python example/training_example.py \\
    --data-path /path/to/data.h5 \\
    --compare-architectures

# Compare schedulers
python example/training_example.py \\
    --data-path /path/to/data.h5 \\
    --compare-schedulers \\
    --architecture dit
"""


@pytest.mark.parametrize('command', EXAMPLES.strip().replace('\\\n', ' ').split('\n\n'), ids=['architectures', 'schedulers'])
def test_comparing_commands(command, toy, two_steps, capsys):
    "`training_example.py` is `genesis compare`."
    words = shlex.split(command.split('\n')[-1].replace('python example/training_example.py', 'compare').replace('/path/to/data.h5', 'data.h5'))
    assert main([*words, *toy.split(), '--seeds', '1', '--output', 'found.json']) == 0
    found = json.loads(Path('found.json').read_text())
    assert ('dit' in found['runs']) == ('--compare-architectures' in words) and ('cosine' in found['runs']) == ('--compare-schedulers' in words)
    assert 'validation loss' in capsys.readouterr().out


FLAGS = """--config --hidden --depth --heads --batch-size --lr --optimizer --cosine-t-max --plateau-patience --plateau-factor --plateau-min-lr --step-size --step-gamma --experiment-name --output-dir
    --checkpoint-dir --log-dir --resume-from-checkpoint --debug --wandb-entity --device --seed --resume --early-stopping --early-stopping-patience --no-restore-best-weights --architecture --scheduler --epochs --use-amp
    --use-wandb --wandb-project --data-path"""


def test_every_flag_of_the_original_is_there(capsys):
    with pytest.raises(SystemExit): main(['train', '--help'])
    text = capsys.readouterr().out
    missing = [flag for flag in FLAGS.split() if not re.search(rf'{flag}\b', text)]
    assert not missing


@pytest.mark.parametrize('old, new', [('training.max_grad_norm', 'training.grad_clip_norm'), ('training.gamma', 'training.step_gamma'), ('model.num_heads', 'model.heads'), ('training.batch_size', 'data.batch_size')])
def test_names_of_the_original_are_understood(old, new, caplog):
    cfg = override(ExperimentConfig(), {old: 2})
    *sections, last = new.split('.')
    assert getattr(getattr(cfg, sections[0]), last) == 2 and f'{old} is called {new}' in caplog.text


def test_the_packages_names():
    import genesis.training as t
    for name in ('create_trainer', 'Trainer', 'create_scheduler', 'create_logger', 'CheckpointManager', 'setup_training_environment', 'validate_training_config', 'get_training_summary', 'create_training_script', 'monitor_training_performance',
                 'estimate_training_time', 'EarlyStopping'): assert getattr(t, name)


def test_all_names_at_once():
    names = {}
    exec('from genesis.training import *', names)
    import genesis.training as t
    assert set(dir(t)) <= names.keys() and names['create_checkpoint_manager'] is t.create_checkpoint_manager and not [k for k in names if k.startswith('_') and k != '__builtins__']


@pytest.mark.parametrize('words, epochs', [('', 20), ('--epochs 100', 100), ('--set training.num_epochs=100', 100), ('--set training.epochs=100', 100), ('--config short.yaml', 3), ('--config short.yaml --epochs 30', 30)])
def test_epochs_of_a_comparison(tmp_path, monkeypatch, capsys, words, epochs):
    "At most twenty, unless a number is asked for, also if it is the default's."
    import genesis.evaluation.compare as c
    monkeypatch.chdir(tmp_path)
    Path('short.yaml').write_text('training: {num_epochs: 3}')
    seen = []
    monkeypatch.setattr(c, 'compare_runs', lambda configs, *a: seen.extend(cfg.training.num_epochs for cfg in configs.values()))
    assert main(['compare', '--compare-schedulers', *words.split()]) == 0 and set(seen) == {epochs} and len(seen) > 5


def test_every_issue_at_once(tmp_path):
    from genesis.training.utils import validate_training_config
    (tmp_path/'file').write_text('')
    bad = override(ExperimentConfig(), {'model.heads': 7, 'data.batch_size': 0, 'training.num_epochs': 0, 'training.learning_rate': 0, 'training.weight_decay': -1, 'model.depth': 0, 'training.scheduler': 'cosin', 'training.optimizer': 'Adamm',
        'data.train_ratio': .95, 'model.architecture': 'dti', 'data.h5_path': tmp_path/'nothing.h5', 'training.log_dir': tmp_path/'file'/'logs', 'training.walltime': 'soon', 'training.warmup_steps': 5, 'training.warmup_ratio': .1, 'training.cosine_t_max': 0})
    found = validate_training_config(bad)
    for word in ('heads', 'batch_size', 'num_epochs', 'learning_rate', 'weight_decay', 'depth', 'scheduler', 'optimizer', 'ratio', 'architecture', 'h5_path', 'log_dir', 'walltime', 'set the same thing', 'cosine_t_max'): assert any(word in p for p in found), word
    assert len(found) == 15


def test_the_eight_lines_of_the_readme():
    [code] = re.findall(r'```python\n(.*?)```', README.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    names = {}
    exec(compile(code, 'README', 'exec'), names)
    assert len(names['light']) == len(names['error']) == 3


def test_the_twelve_lines_of_own_events(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads((README.parent/'nbs'/'tutorials'/'own_events.ipynb').read_text())
    [code] = [source for source in (''.join(c['source']) for c in book['cells']) if 'create_trainer' in source]
    code = code.removeprefix('#| eval: false\n')
    small = code.replace('simulate_events(4000,', 'simulate_events(40,').replace("'model.hidden': 128", "'model.hidden': 32").replace("'training.num_epochs': 5", "'training.num_epochs': 1")
    assert small != code and len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    exec(compile(small, 'own_events', 'exec'), names)
    assert len(names['truth']) == 3 and (tmp_path/'checkpoints'/'icecube_diffusion').is_dir()
