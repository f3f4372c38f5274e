"Trainings that go wrong or are disturbed, and what they leave behind."
import os, socket, json

import numpy as np
import pytest
import torch

from genesis.config import ExperimentConfig, override
from genesis.core import CheckpointError, ConfigError, Diverged
from genesis.data.detector import from_positions, icecube86, toy_detector
from genesis.data.events import Events, read_events, write_events
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.spaces import create_space
from genesis.generate import Generator
from genesis.training.trainer import create_trainer


@pytest.fixture(scope='module')
def events(): return simulate_events(120, detector=toy_detector(), seed=1, min_hits=4)


@pytest.fixture
def cfg(tmp_path, events):
    "A config of a tiny training in a folder of the test."
    write_events(events, tmp_path/'toy.h5')
    return override(ExperimentConfig(), {'experiment_name': 'run', 'data.h5_path': tmp_path/'toy.h5', 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
        'training.num_epochs': 2, 'training.use_tensorboard': False, 'device': 'cpu', **{f'training.{k}_dir': tmp_path/k for k in ('output', 'checkpoint', 'log')}})


def weights(trainer): return {**trainer.model.state_dict(), **{f'ema {i}': m for i, m in enumerate(trainer.ema.mean)}}


def same(a, b): return all(torch.equal(x, b[k]) for k, x in a.items())


@pytest.mark.parametrize('scheduler', [None, 'cosine', 'plateau', 'step', 'linear', 'exponential', 'polynomial'])
@pytest.mark.parametrize('stop', [1, 9])
def test_a_resume_at_any_step_ends_with_the_same_bits(cfg, scheduler, stop):
    cfg = override(cfg, {'training.scheduler': scheduler, 'training.plateau_patience': 0, 'training.learning_rate': 1e-2, 'model.dropout': 0.1})
    whole = create_trainer(cfg)
    whole.train()
    cut = create_trainer(override(cfg, {'experiment_name': 'cut'}))
    total, cut.total_steps = cut.total_steps, stop
    cut.train()
    assert stop < total
    resumed = create_trainer(override(cfg, {'experiment_name': 'cut', 'training.resume_from_checkpoint': 'auto'}))
    assert resumed.step == stop
    resumed.train()
    assert resumed.step == total and same(weights(whole), weights(resumed))
    assert resumed.scheduler.state_dict() == whole.scheduler.state_dict()


def test_divergence_leaves_the_last_good_checkpoint(cfg):
    good = create_trainer(cfg)
    good.train()
    bad = override(cfg, {'training.num_epochs': 20, 'training.learning_rate': 1e30, 'training.grad_clip_norm': 0, 'training.save_interval': 1, 'training.log_interval': 1000, 'training.resume_from_checkpoint': 'auto'})
    with pytest.raises(Diverged, match='not finite'): create_trainer(bad).train()
    newest = good.checkpoints.load_checkpoint()
    assert newest['step'] == good.step and all(torch.equal(v, newest['model'][k]) for k, v in good.model.state_dict().items())


def test_a_model_that_is_not_finite_generates_nothing(cfg, events):
    trainer = create_trainer(cfg)
    trainer.train()
    gen = Generator.load(trainer.checkpoints.dir)
    with torch.no_grad(): gen.space.model.out.bias.fill_(float('nan'))
    with pytest.raises(CheckpointError, match='not finite'): gen.sample(events, n=2)


def test_one_run_a_folder(cfg):
    trainer = create_trainer(cfg)
    lock = trainer.checkpoints.dir.with_name('run.lock')
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps(dict(host=socket.gethostname(), pid=os.getppid())))
    with pytest.raises(ConfigError, match=f'process {os.getppid()} on'): trainer.train()
    assert lock.exists() and not trainer.checkpoints.dir.exists()
    lock.write_text(json.dumps(dict(host=socket.gethostname(), pid=2**22 + 1)))   # its process is gone
    trainer.train()
    assert not lock.exists() and trainer.checkpoints.get_latest_checkpoint()


@pytest.mark.parametrize('key, value', [('seed', 7), ('data.batch_size', 4), ('data.train_ratio', 0.7), ('training.optimizer', 'SGD'), ('model.hidden', 32)])
def test_a_resume_with_other_settings_is_refused(cfg, key, value):
    create_trainer(cfg).train()
    other = {key: value, 'training.resume_from_checkpoint': 'auto', **({'data.val_ratio': 0.2} if 'ratio' in key else {})}
    with pytest.raises(CheckpointError, match=f'{key}={value}'): create_trainer(override(cfg, other))


def test_a_batch_is_never_larger_than_the_data(cfg, caplog):
    trainer = create_trainer(override(cfg, {'data.batch_size': 10**9}))
    assert trainer.batch_size == len(trainer.train_loader.events) and 'a batch holds all of them' in caplog.text
    trainer.train()
    assert trainer.epoch == trainer.step == 2


def test_no_validation_events_is_said(cfg, caplog):
    trainer = create_trainer(override(cfg, {'data.train_ratio': 1.0, 'data.val_ratio': 0.0, 'data.test_ratio': 0.0, 'training.scheduler': 'plateau'}))
    assert 'no events are left for validation: the plateau scheduler will never lower' in caplog.text
    trainer.train()
    assert trainer.history['val_loss'] == []


def test_the_detector_is_the_same_in_both_schemas(tmp_path):
    events = simulate_events(3, seed=1)
    prints = {read_events(write_events(events, tmp_path/f'{s}.h5', s)).detector.fingerprint for s in ('sparse', 'dense')}
    assert prints == {icecube86().fingerprint}


def test_holes_of_the_grid_stay_empty_in_sampling():
    "Strings of unequal length: a place without a DOM is never hit, and the network never sees it so."
    det = from_positions([[x, 0, -10*i] for x, n in ((0, 6), (50, 2), (100, 4)) for i in range(n)])
    rng = np.random.default_rng(0)
    n = rng.integers(3, 8, 40)
    dom = np.concatenate([np.sort(rng.choice(det.n_doms, k, replace=False)) for k in n])
    events = Events(np.cumsum([0, *n]), dom, rng.gamma(2, 1, len(dom)) + .1, rng.exponential(100, len(dom)) + 500, np.tile([[1e4, 1, 1, 0, 0, 0]], (40, 1)), det)
    tf = EventTransform.fit(events)
    space = create_space(override(ExperimentConfig(), {'model.hidden': 16, 'model.depth': 1, 'model.heads': 2}), det, tf)
    with torch.no_grad(): space.model.out.weight.normal_()
    seen = []
    x = space.sample(torch.tensor(events.labels[:8]), range(8), steps=8, callback=lambda i, x, d: seen.append(d))
    hole = torch.tensor(~det.grid_mask)
    assert hole.sum() == 6 and not det.grid_mask.all()
    for d in seen: assert (d[:, 0, hole] == -1).all() and (d[:, 1:, hole] == 0).all()
    assert (x[:, 0, hole] == -1).all() and tf.decode(x.numpy(), events.labels[:8], det).n_hits.max() <= det.n_doms


@pytest.mark.parametrize('n', [1, 2, 10])
def test_very_few_events(cfg, events, tmp_path, n):
    write_events(events[:n], tmp_path/'few.h5')
    cfg = override(cfg, {'data.h5_path': tmp_path/'few.h5', 'data.train_ratio': 1.0, 'data.val_ratio': 0.0, 'data.test_ratio': 0.0})
    trainer = create_trainer(cfg)
    trainer.train()
    assert len(Generator.load(trainer.checkpoints.dir).sample(events[:n])) == n
