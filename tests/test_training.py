"Trainings that go wrong or are disturbed, and what they leave behind."
import contextlib, json, math, os, random, resource, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
import torch

from genesis.config import ExperimentConfig, override, save_config
from genesis.core import CheckpointError, ConfigError, Diverged, StorageError
from genesis.data.detector import from_positions, icecube86, toy_detector
from genesis.data.events import Events, read_events, write_events
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.spaces import create_space
from genesis.generate import Generator
from genesis.training.checkpointing import read_checkpoint
from genesis.training.guards import replay_incident
from genesis.training.logging import read_metrics, series
from genesis.training.runs import run_lock
from genesis.training.schedulers import SCHEDULERS, lr_curve
from genesis.training.trainer import Trainer, create_trainer


@pytest.fixture(scope='module')
def events(): return simulate_events(120, detector=toy_detector(), seed=2, min_hits=4) # of which 90 train: six steps an epoch


@pytest.fixture
def cfg(tmp_path, events):
    "A config of a tiny training in a folder of the test; directly on events, which is four times faster than in the space of light sources."
    write_events(events, tmp_path/'toy.h5')
    return override(ExperimentConfig(), {'experiment_name': 'run', 'diffusion.space': 'event', 'data.h5_path': tmp_path/'toy.h5', 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
        'training.num_epochs': 2, 'training.use_tensorboard': False, 'device': 'cpu', **{f'training.{k}_dir': tmp_path/k for k in ('output', 'checkpoint', 'log')}})


def weights(trainer): return {**trainer.model.state_dict(), **{f'ema {i}': m for i, m in enumerate(trainer.ema.mean)}}


def same(a, b): return all(torch.equal(x, b[k]) for k, x in a.items())


@pytest.mark.parametrize('scheduler', [None, *SCHEDULERS])
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
    assert [p.name for p in good.checkpoints.dir.glob('bad-*')] == [f'bad-step-{good.step+1:09d}']   # its weights were finite, their loss was not


def test_a_model_that_is_not_finite_generates_nothing(cfg, events):
    trainer = train(cfg, diffusion__space='latent')
    gen = Generator.from_checkpoint(trainer.checkpoints.dir)
    with torch.no_grad(): gen.space.model['prior'].out.bias.fill_(float('nan'))
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


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('moment', ['link', 'unlink', 'utime'])
def test_dying_on_the_way_to_the_lock_holds_nobody_off(tmp_path, monkeypatch, moment):
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(os, moment, lambda *a, **k: os._exit(9))
        with run_lock(tmp_path/'run', heartbeat=.01): time.sleep(20)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    with run_lock(tmp_path/'run'): assert json.loads((tmp_path/'run.lock').read_text())['pid'] == os.getpid()
    assert not (tmp_path/'run.lock').exists()


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
    none = {'data.train_ratio': 1.0, 'data.val_ratio': 0.0, 'data.test_ratio': 0.0}
    for needs in ({'training.scheduler': 'plateau'}, {'training.early_stopping': True}):
        with pytest.raises(ConfigError, match='need validation events'): create_trainer(override(cfg, {**none, **needs}))
    trainer = create_trainer(override(cfg, none))
    assert 'no events are left for validation' in caplog.text
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
    space = create_space(override(ExperimentConfig(), {'diffusion.space': 'event', 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2}), det, tf)
    with torch.no_grad(): space.model.out.weight.normal_()
    seen = []
    x = space.sample(torch.tensor(events.labels[:8]), range(8), steps=8, callback=lambda i, x, d: seen.append(d))
    hole = torch.tensor(~det.grid_mask)
    assert hole.sum() == 6 and not det.grid_mask.all()
    for d in seen: assert (d[:, 0, hole] == -1).all() and (d[:, 1:, hole] == 0).all()
    assert (x[:, 0, hole] == -1).all() and tf.decode(x.numpy(), events.labels[:8], det).n_hits.max() <= det.n_doms
    latent = create_space(override(ExperimentConfig(), {'model.hidden': 16, 'model.depth': 1, 'model.heads': 2}), det, tf)
    x = latent.sample(torch.tensor(events.labels[:8]), range(8), steps=4)
    assert (x[:, 0, hole] == -1).all() and (x[:, 0] > 0).any()


@pytest.mark.parametrize('n', [1, 2, 10])
def test_very_few_events(cfg, events, tmp_path, n):
    write_events(events[:n], tmp_path/'few.h5')
    cfg = override(cfg, {'data.h5_path': tmp_path/'few.h5', 'data.train_ratio': 1.0, 'data.val_ratio': 0.0, 'data.test_ratio': 0.0})
    trainer = create_trainer(cfg)
    trainer.train()
    assert len(Generator.from_checkpoint(trainer.checkpoints.dir).sample(events[:n])) == n


class At:
    "A callback that does something after one step."
    def __init__(self, step, do): self.step, self.do = step, do
    def after_step(self, trainer):
        if trainer.step == self.step: self.do(trainer)


def train(cfg, *callbacks, **change):
    trainer = create_trainer(override(cfg, {k.replace('__', '.'): v for k, v in change.items()}), callbacks, show=False)
    trainer.train()
    return trainer


def same_runs(a, b): return same(weights(a), weights(b)) and a.history == b.history and a.scheduler.state_dict() == b.scheduler.state_dict()


# ---- the batch, however it is cut

def test_four_parts_of_eight_are_one_batch_of_32(cfg):
    runs = [train(cfg, experiment_name=f'b{b}', data__batch_size=b, training__gradient_accumulation_steps=n) for b, n in ((32, 1), (8, 4))]
    assert runs[0].batch_size == runs[1].batch_size == 32 and runs[0].total_steps == runs[1].total_steps
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters()): assert (a - b).abs().max() < 1e-6
    assert runs[0].history['train_loss'] == pytest.approx(runs[1].history['train_loss'], abs=1e-6)


@pytest.mark.parametrize('scheduler', [None, *SCHEDULERS])
def test_the_drawn_learning_rate_is_the_one_that_is_used(cfg, scheduler):
    "Each step's rate, under accumulation and with a stop in between."
    used = []
    class Watch:
        def before_fit(self, trainer):
            step = trainer.optimizer.step
            def note(*a, **k): used.append(trainer.optimizer.param_groups[0]['lr']); return step(*a, **k)
            trainer.optimizer.step = note
    cfg = override(cfg, {'data.batch_size': 8, 'training.gradient_accumulation_steps': 2, 'training.scheduler': scheduler, 'training.warmup_steps': 0 if scheduler == 'onecycle' else 3, 'training.num_epochs': 3, 'training.plateau_patience': 0})
    first = train(cfg, Watch(), At(7, lambda t: t.stop.ask('test')))
    last = train(cfg, Watch(), training__resume_from_checkpoint='auto')
    losses = [v for s, v in zip(last.history['val_step'], last.history['val_loss']) if s % last.steps_per_epoch == 0]
    assert len(used) == last.total_steps and used == list(lr_curve(cfg.training, last.steps_per_epoch, losses))


TWO = """
import sys, torch
from genesis.config import load_config
from genesis.training import create_trainer
trainer = create_trainer(load_config(sys.argv[1]), show=False)
trainer.train()
if trainer.world.main: print(trainer.world.size, trainer.step)
"""


def test_two_processes_are_one(cfg, tmp_path):
    one = train(cfg, training__scheduler='cosine')
    path = save_config(override(cfg, {'experiment_name': 'two', 'training.scheduler': 'cosine'}), tmp_path/'two.yaml')
    (tmp_path/'two.py').write_text(TWO)
    ran = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(tmp_path/'two.py'), str(path)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and ran.stdout.split() == ['2', str(one.step)], ran.stderr[-2000:]
    two = read_checkpoint(tmp_path/'checkpoint'/'two')
    for k, v in one.model.state_dict().items(): assert (v - two['model'][k]).abs().max() < 1e-5, k
    assert two['history']['lr'] == one.history['lr'] and two['history']['val_loss'] == pytest.approx(one.history['val_loss'], abs=1e-5)
    assert series(read_metrics(tmp_path/'log'/'two'), 'train/loss')[0] == one.history['step']


def test_a_loss_scaler_changes_nothing(cfg):
    "The path of fp16, on a CPU in full precision: scaled, unscaled, clipped."
    plain = train(cfg)
    trainer = create_trainer(override(cfg, {'experiment_name': 'scaled'}), show=False)
    trainer.scaler = torch.amp.GradScaler('cpu', init_scale=2.**12)
    trainer.train()
    for a, b in zip(plain.model.parameters(), trainer.model.parameters()): assert (a - b).abs().max() < 1e-6
    assert read_checkpoint(trainer.checkpoints.dir)['scaler']['scale'] == 2.**12


def test_bf16_on_a_cpu(cfg):
    trainer = train(cfg, training__amp_dtype='bf16')
    assert trainer.dtype == torch.bfloat16 and all(math.isfinite(v) for v in trainer.history['train_loss'])
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_a_compiled_model_has_the_same_names(cfg, monkeypatch):
    compile, asked = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self: (asked.append(self), compile(self, backend='eager')))
    plain, compiled = (train(cfg, diffusion__space='latent', experiment_name=n, training__compile=n == 'compiled') for n in ('plain', 'compiled'))
    assert asked == [compiled.model['prior']] and list(compiled.model.state_dict()) == list(plain.model.state_dict())
    Generator.from_checkpoint(compiled.checkpoints.dir)


# ---- asked to stop

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_each_signal_ends_after_its_step_and_the_run_goes_on(cfg, number):
    whole = train(cfg)
    cut = train(cfg, At(5, lambda t: os.kill(os.getpid(), number)), experiment_name='cut')
    assert (cut.stopped, cut.step) == (signal.Signals(number).name, 5) and cut.checkpoints.load_checkpoint()['step'] == 5
    cut.train()   # the same object goes on
    assert cut.stopped is None and same_runs(whole, cut)


def test_a_stop_is_noticed_in_validation_and_the_look_is_taken_later(cfg):
    whole, where = train(cfg, training__eval_interval=4), []
    cut = create_trainer(override(cfg, {'experiment_name': 'cut', 'training.eval_interval': 4}), show=False)
    batch = cut.val_loader.batch
    def slow(*a, **k):
        if cut.step == 4 and not where: where.append(len(cut.history['val_step'])); os.kill(os.getpid(), signal.SIGTERM)
        return batch(*a, **k)
    cut.val_loader.batch = slow
    cut.val_loader.batch_size = 4   # several batches
    cut.train()
    assert (cut.stopped, cut.step, where, cut.history['val_step']) == ('SIGTERM', 4, [0], [])
    resumed = train(cfg, experiment_name='cut', training__eval_interval=4, training__resume_from_checkpoint='auto')
    assert same_runs(whole, resumed)


def test_a_stop_is_noticed_while_events_are_generated(cfg):
    trainer, calls = create_trainer(override(cfg, {'training.panel_minutes': 1e-4}), show=False), []
    sample = trainer.diffusion.sample
    def interrupted(*a, **k): trainer.stop.ask('test'); calls.append(trainer.step); return sample(*a, **k)
    trainer.diffusion.sample = interrupted
    trainer.train()
    assert trainer.stopped == 'test' and calls == [trainer.step] and trainer.panel is None


def test_the_walltime_ends_a_run(cfg):
    trainer = train(cfg, training__num_epochs=100_000, training__walltime='2s')
    assert trainer.stopped == 'walltime' and 0 < trainer.step == trainer.checkpoints.load_checkpoint()['step']


def test_a_second_signal_stops_at_once(cfg, monkeypatch):
    "But not the echo of the first."
    monkeypatch.setattr('genesis.training.runs.BURST', 60.) # a busy machine may take its time
    def twice(trainer): os.kill(os.getpid(), signal.SIGINT); time.sleep(.03); os.kill(os.getpid(), signal.SIGINT)
    trainer = create_trainer(cfg, [At(5, twice)], show=False)
    trainer.train()
    assert (trainer.stopped, trainer.step) == ('SIGINT', 5)
    monkeypatch.setattr('genesis.training.runs.BURST', .002)
    trainer = create_trainer(cfg, [At(5, twice)], show=False)
    with pytest.raises(KeyboardInterrupt): trainer.train()
    assert not trainer.checkpoints.dir.with_name('run.lock').exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_has_nothing_to_do(cfg, caplog):
    done = train(cfg)
    files = sorted((p, p.stat().st_mtime_ns) for p in done.checkpoints.dir.rglob('*'))
    with caplog.at_level('INFO'): again = train(cfg, training__resume_from_checkpoint='auto')
    assert f'run is complete: {done.step} of {done.step} steps' in caplog.text and again.history == done.history
    assert files == sorted((p, p.stat().st_mtime_ns) for p in done.checkpoints.dir.rglob('*'))
    longer = train(cfg, training__resume_from_checkpoint='auto', training__num_epochs=3)
    assert longer.step == done.step*3//2 and longer.history['train_loss'][0] == done.history['train_loss'][0]


# ---- exact resumes

def test_verify_resume_notices_what_is_not_restored(cfg, monkeypatch):
    trainer = create_trainer(override(cfg, {'training.scheduler': 'cosine'}), show=False)
    assert all(trainer.verify_resume().values())
    monkeypatch.setattr(type(trainer.scheduler), 'load_state_dict', lambda self, state: None)
    found = trainer.verify_resume()
    assert not found['schedule'] and not found['weights']
    monkeypatch.undo()
    monkeypatch.setattr(type(trainer.optimizer), 'load_state_dict', lambda self, state: None)
    assert not trainer.verify_resume()['optimiser']


@pytest.mark.parametrize('change', [dict(training__early_stopping=True, training__early_stopping_patience=1, training__eval_interval=2), dict(data__memory_gb=0), dict(data__batch_size=5, training__gradient_accumulation_steps=3),
    dict(training__ema_decay=0.9), dict(training__log_interval=5), dict(model__dropout=.2, training__amp_dtype='bf16')], ids=['early stopping', 'windows', 'parts', 'decay', 'log', 'bf16 and dropout'])
def test_verify_resume_at_every_step(cfg, change):
    trainer = create_trainer(override(cfg, {k.replace('__', '.'): v for k, v in change.items()}), show=False)
    for at in range(1, trainer.total_steps, 4): assert all(trainer.verify_resume(at, trainer.total_steps).values()), at


def test_a_resume_with_events_on_disk_instead_of_in_memory(cfg):
    whole = train(cfg)
    train(cfg, At(5, lambda t: t.stop.ask('test')), experiment_name='cut')
    assert same_runs(whole, train(cfg, experiment_name='cut', data__memory_gb=0, training__resume_from_checkpoint='auto'))


KILLS = int(os.environ.get('GENESIS_KILLS', 12)) # `make faults` asks for a hundred


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_kills(cfg):
    "kill -9 at random moments, again and again: each run ends as one in one piece, with the same log, and no checkpoint is ever unreadable."
    cfg = override(cfg, {'training.num_epochs': 6, 'training.save_interval': 2, 'training.log_interval': 4, 'training.scheduler': 'cosine', 'training.learning_rate': 1e-2})
    whole = train(cfg)
    log = lambda name: [tuple(series(read_metrics(whole.logger.log_dir/name), k)) for k in ('train/loss', 'eval/loss')]
    def attempt(name, kill_after=None):
        pid = os.fork()
        if pid == 0:
            try: train(cfg, experiment_name=name, training__resume_from_checkpoint='auto'); os._exit(0)
            except BaseException: import traceback; traceback.print_exc(); os._exit(1)
        def kill():
            with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL) # it was faster
        waiter = threading.Timer(kill_after or 600, kill); waiter.start()
        status = os.waitpid(pid, 0)[1]
        waiter.cancel(); waiter.join()
        return status
    began = time.monotonic()
    assert attempt('undisturbed') == 0
    long = time.monotonic() - began # on this machine, as busy as it is
    rng, kills, runs = random.Random(1), 0, 0
    while kills < KILLS:
        name = f'killed{runs}'
        while status := attempt(name, rng.uniform(.05, 1)*long): # a save comes after a sixth of it
            assert status == signal.SIGKILL
            kills += 1; long *= 1.005 # other jobs may come: no patience is too short for ever
        end = read_checkpoint(whole.checkpoints.dir.with_name(name))
        assert end['step'] == whole.step and same(whole.model.state_dict(), end['model']) and same(whole.ema.state_dict(), end['ema']) and end['history'] == whole.history
        assert log(name) == log('run')
        assert not list(whole.checkpoints.dir.with_name(name).glob('bad-*'))
        runs += 1


# ---- numbers that are not finite, and leaps

def poisoned(trainer, at, times=1):
    "Make the loss of a step not finite, so many times."
    loss, left = trainer.diffusion.loss, [times]
    def bad(batch, random=None):
        losses, info = loss(batch, random)
        if trainer.step == at and trainer.diffusion.training and left[0] > 0: left[0] -= 1; losses = losses*float('nan')
        return losses, info
    trainer.diffusion.loss = bad


def test_a_bad_step_stops_before_the_weights_change_and_can_be_replayed(cfg, tmp_path):
    before = {}
    trainer = create_trainer(cfg, [At(7, lambda t: before.update({k: v.clone() for k, v in weights(t).items()}))], show=False)
    poisoned(trainer, 7, 9)
    with pytest.raises(Diverged, match='step 7: loss or gradient not finite') as e: trainer.train()
    assert trainer.step == 7 and same(before, weights(trainer))
    folder = trainer.checkpoints.dir/'incident-000000007'
    assert f'genesis replay {folder}' in str(e.value)
    found = replay_incident(folder)
    noted = found['noted']
    assert len(noted['events']) == 16 == len(set(noted['events'])) and not math.isfinite(noted['loss']) and noted['sigma'] == found['sigma']
    twin = train(cfg, At(7, lambda t: t.stop.ask('test')), experiment_name='twin')   # the same step, unpoisoned
    assert twin.train_step()[0].item() == pytest.approx(found['loss'], abs=1e-6) and math.isfinite(found['grad_norm'])


def test_a_bad_step_is_left_out(cfg, caplog):
    trainer = create_trainer(override(cfg, {'training.on_nonfinite': 'skip', 'training.log_interval': 4}), show=False)
    poisoned(trainer, 5)
    trainer.train()
    assert trainer.step == trainer.total_steps and trainer.counts['skipped'] == 1 and 'step 5: loss or gradient not finite, left out' in caplog.text
    assert all(math.isfinite(v) for v in trainer.history['train_loss']) and all(p.isfinite().all() for p in trainer.model.parameters())
    steps = {int(s['step']) for s in trainer.optimizer.state.values()}
    assert steps == {trainer.total_steps - 1}


def test_back_to_the_last_checkpoint(cfg, caplog):
    trainer = create_trainer(override(cfg, {'training.on_nonfinite': 'rollback', 'training.save_interval': 4, 'training.log_interval': 3}), show=False)
    poisoned(trainer, 6, 2)   # the incident takes the step once more
    trainer.train()
    assert trainer.counts['rollbacks'] == 1 and 'back to step 4' in caplog.text and trainer.step == trainer.total_steps
    steps = series(read_metrics(trainer.logger.dir), 'train/loss')[0]
    assert steps == sorted(set(steps)) == trainer.history['step']
    hopeless = create_trainer(override(cfg, {'experiment_name': 'hopeless', 'training.on_nonfinite': 'rollback', 'training.save_interval': 4}), show=False)
    poisoned(hopeless, 6, 99)
    with pytest.raises(Diverged, match='after 3 rollbacks'): hopeless.train()


def test_a_spike_is_said_or_stops(cfg, caplog):
    def spike(trainer):
        loss = trainer.diffusion.loss
        trainer.diffusion.loss = lambda batch, random=None: ((lambda l, i: (l*(1e4 if trainer.step == 70 and trainer.diffusion.training else 1), i))(*loss(batch, random)))
    cfg = override(cfg, {'training.num_epochs': 16, 'training.log_interval': 10, 'training.learning_rate': 1e-4})
    trainer = create_trainer(cfg, show=False); spike(trainer); trainer.train()
    assert trainer.counts['spikes'] == 1 and 'step 70: the loss is' in caplog.text
    trainer = create_trainer(override(cfg, {'experiment_name': 'strict', 'training.on_spike': 'stop'}), show=False); spike(trainer)
    with pytest.raises(Diverged, match='the loss leapt'): trainer.train()


def test_debug_mode_names_the_layer(cfg, caplog):
    cfg = override(cfg, {'diffusion.space': 'latent'})
    trainer = create_trainer(override(cfg, {'training.debug_mode': True, 'training.num_epochs': 50}), show=False)
    assert trainer.total_steps == 20
    with torch.no_grad(): trainer.model['prior'].blocks[0].mlp[0].weight.fill_(float('inf'))
    with pytest.raises(Diverged, match=r'blocks\.0\.mlp\.0'): trainer.train()
    assert 'debug_mode: 20 steps' in caplog.text
    fine = train(cfg, experiment_name='fine', training__debug_mode=True, training__num_epochs=50)
    assert fine.history['step'] == list(range(1, 21))


# ---- early stopping, callbacks, averages

def test_early_stopping_ends_with_the_best_weights(cfg, caplog):
    cfg = override(cfg, {'training.num_epochs': 40, 'training.learning_rate': .05, 'training.grad_clip_norm': 0, 'training.early_stopping': True, 'training.early_stopping_patience': 2, 'training.early_stopping_min_delta': .03})
    trainer = train(cfg)
    best = trainer.history['val_step'].index(round(trainer.early.best_epoch*trainer.steps_per_epoch))
    assert trainer.step < trainer.total_steps and len(trainer.history['val_loss']) >= best + 3 and 'early stopping' in caplog.text
    best = int(np.argmin(trainer.history['val_loss']))   # the lowest, which may have been no improvement that counts
    saved = trainer.checkpoints.load_best_checkpoint()
    assert saved['step'] == trainer.history['val_step'][best] and same(saved['ema'], trainer.model.state_dict())
    assert trainer.evaluate() == pytest.approx(trainer.history['val_loss'][best], abs=1e-6)


def test_callbacks_are_plain_objects_called_in_order(cfg):
    seen = []
    class Say:
        def __init__(self, name, order): self.name, self.order = name, order
        def before_fit(self, trainer): seen.append((self.name, 'before', trainer.step))
        def after_look(self, trainer): seen.append((self.name, 'look', trainer.step))
        def after_fit(self, trainer): seen.append((self.name, 'after', trainer.step))
    trainer = train(cfg, Say('second', 1), Say('first', 0), object())
    assert seen == [(n, w, s) for w, s in (('before', 0), ('look', 6), ('look', 12), ('after', 12)) for n in ('first', 'second')]


def test_the_best_and_the_newest_are_kept(cfg):
    trainer = train(cfg, training__num_epochs=8, training__learning_rate=.1, training__grad_clip_norm=0, training__keep_best=2, training__max_checkpoints=2)
    rows = trainer.checkpoints.list_checkpoints()
    losses = dict(zip(trainer.history['val_step'], trainer.history['val_loss']))
    assert {r['step'] for r in rows} >= {min(losses, key=losses.get), trainer.step} and len(rows) <= 4
    assert [r['step'] for r in rows if r['is_best']] == [min(losses, key=losses.get)]


# ---- disks

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_disk_that_is_full_for_a_while(cfg, tmp_path):
    "Saves fail in the middle of the run and succeed at its end: nothing is lost, and it is said."
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
            trainer = train(cfg, At(3, lambda t: limit(20_000)), At(9, lambda t: limit(resource.RLIM_INFINITY)), training__save_interval=2, training__log_interval=1000)
            ok = trainer.step == trainer.total_steps and trainer.counts['failed_saves'] >= 1 and trainer.checkpoints.load_checkpoint()['step'] == trainer.step
            os._exit(0 if ok else 3)
        except BaseException: import traceback; traceback.print_exc(); os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not list((tmp_path/'checkpoint'/'run').glob('.tmp-*'))


def test_a_last_save_that_fails_is_an_error(cfg, monkeypatch):
    trainer = create_trainer(cfg, show=False)
    def full(*a, **k): raise StorageError('the disk is full')
    monkeypatch.setattr(trainer.checkpoints, 'save_checkpoint', full)
    with pytest.raises(StorageError): trainer.train()
    assert trainer.step == trainer.total_steps and trainer.counts['failed_saves'] >= 1


# ---- what is left behind, and what is not believed

def test_a_gradient_of_an_interrupted_step_is_forgotten(cfg):
    "Ctrl-C twice within a step: the next call goes back to the last checkpoint."
    whole, cut = train(cfg, training__save_interval=4), create_trainer(override(cfg, {'experiment_name': 'cut', 'training.save_interval': 4}), show=False)
    step = cut.optimizer.step
    def half(*a, **k):
        step(*a, **k)
        if cut.step == 6: cut.optimizer.step = step; raise KeyboardInterrupt
    cut.optimizer.step = half
    with pytest.raises(KeyboardInterrupt): cut.train()
    assert cut.step == 6 and any(p.grad is not None for p in cut.model.parameters())
    cut.train()
    assert same_runs(whole, cut)


def test_another_way_from_an_earlier_checkpoint(cfg, caplog):
    "Later checkpoints of the way that was left do not come back by 'auto'."
    first = train(cfg, training__save_interval=4, training__max_checkpoints=9)
    early = first.checkpoints.dir/'step-000000004'
    train(cfg, At(8, lambda t: t.stop.ask('test')), training__resume_from_checkpoint=str(early), training__learning_rate=1e-3)
    assert create_trainer(override(cfg, {'training.resume_from_checkpoint': 'auto'}), show=False).step == 8
    left = sorted(p.name for p in first.checkpoints.dir.glob('left-*'))
    assert 'left-step-000000012' in left and 'way that the run did not take' in caplog.text and 'resuming with training.learning_rate=0.001' in caplog.text
    assert (first.checkpoints.dir/(first.checkpoints.dir/'best').read_text().strip()).is_dir()


def test_a_checkpoint_of_another_run_starts_a_folder_of_its_own(cfg):
    first = train(cfg)
    train(cfg, experiment_name='other', training__num_epochs=3)
    third = train(cfg, experiment_name='other', training__num_epochs=4, training__resume_from_checkpoint=str(first.checkpoints.dir))
    assert third.step == 24 and min(c['step'] for c in third.checkpoints.list_checkpoints()) > 12
    assert third.checkpoints.dir.with_name('other.1').is_dir()


def test_nothing_whole_is_an_error(cfg):
    done = train(cfg)
    for c in done.checkpoints.list_checkpoints(): (c['path']/'model.safetensors').write_bytes(b'x')
    for _ in range(2):
        with pytest.raises(CheckpointError, match='no checkpoint in .*run is whole.*\n.*bad-step-000000012'): train(cfg, training__resume_from_checkpoint='auto')
    assert train(cfg).step == done.step   # without a wish to resume, a new run


def test_a_spike_takes_back_the_checkpoints_after_it(cfg):
    trainer = create_trainer(override(cfg, {'training.num_epochs': 12, 'training.log_interval': 1, 'training.save_interval': 1, 'training.on_spike': 'rollback', 'training.max_rollbacks': 1, 'training.eval_interval': 1000}), show=False)
    loss, seen = trainer.diffusion.loss, []
    def leaping(batch, random=None):
        losses, info = loss(batch, random)
        if trainer.step == 60 and trainer.diffusion.training and not seen: seen.append(trainer.step); losses = losses*1e6
        return losses, info
    trainer.diffusion.loss = leaping
    trainer.train()
    assert trainer.counts['rollbacks'] == 1 and trainer.step == trainer.total_steps
    assert [p.name for p in trainer.checkpoints.dir.glob('bad-*')] == ['bad-step-000000060']


@pytest.mark.parametrize('policy', ['stop', 'rollback'])
def test_a_validation_that_is_not_finite(cfg, policy):
    trainer = create_trainer(override(cfg, {'training.on_nonfinite': policy, 'training.save_interval': 4}), show=False)
    evaluate, bad = trainer.evaluate, []
    def once():
        if trainer.step == 6 and (policy == 'stop' or not bad): bad.append(trainer.step); return math.nan
        return evaluate()
    trainer.evaluate = once
    if policy == 'rollback': trainer.train(); assert trainer.step == trainer.total_steps and trainer.counts['rollbacks'] == 1; return
    for _ in range(2):   # it is not forgotten
        with pytest.raises(Diverged, match='step 6: the validation loss is not finite'): trainer.train()


def test_left_out_steps_with_a_short_log_interval(cfg):
    "Nothing but bad steps from the first on: said, and the end after ten, although a log line has only two."
    trainer = create_trainer(override(cfg, {'training.on_nonfinite': 'skip', 'training.log_interval': 2, 'training.num_epochs': 5}), show=False)
    trainer.diffusion.loss = (lambda f: lambda batch, random=None: (f(batch, random)[0]*(float('nan') if trainer.diffusion.training else 1), f(batch, random)[1]))(trainer.diffusion.loss)
    with pytest.raises(Diverged, match='10 of the last 10 steps were not finite'): trainer.train()
    assert trainer.step == 10 and trainer.history['train_loss'] == []


def test_detect_anomaly_names_the_operation_and_leaves_no_trace(cfg):
    trainer = create_trainer(override(cfg, {'training.detect_anomaly': True}), show=False)
    loss = trainer.diffusion.loss
    def bad(batch, random=None):
        losses, info = loss(batch, random)
        return losses + (losses - losses.detach()).sqrt() if trainer.step == 3 and trainer.diffusion.training else losses, info   # the slope of √ at 0
    trainer.diffusion.loss = bad
    with pytest.raises(Diverged, match="Function '.*Backward0' returned nan"): trainer.train()
    assert not torch.is_anomaly_enabled() and (trainer.checkpoints.dir/'incident-000000003').is_dir()


def test_a_stop_in_the_very_last_validation(cfg):
    cfg.data.batch_size = 4   # several batches of validation events
    whole, cut = train(cfg), create_trainer(override(cfg, {'experiment_name': 'cut'}), show=False)
    batch = cut.val_loader.batch
    def last(*a, **k):
        if cut.step == cut.total_steps: os.kill(os.getpid(), signal.SIGTERM)
        return batch(*a, **k)
    cut.val_loader.batch = last
    cut.train()
    assert cut.step == cut.total_steps and not cut.ended
    resumed = train(cfg, experiment_name='cut', training__resume_from_checkpoint='auto')
    assert resumed.ended and same_runs(whole, resumed) and create_trainer(override(cfg, {'experiment_name': 'cut', 'training.resume_from_checkpoint': 'auto'}), show=False).ended


def test_what_is_set_by_hand_is_looked_at(cfg):
    cfg.training.schedular, cfg.training.log_interval, cfg.data.batch_size = 'cosine', '7', 2.5
    with pytest.raises(ConfigError, match=r"(?s)batch_size.*2\.5.*log_interval.*'7'.*training\.schedular.*scheduler"): create_trainer(cfg)


def test_a_save_after_one_that_failed_in_the_background(cfg, monkeypatch):
    from genesis.training import checkpointing
    trainer = train(cfg)
    write = checkpointing._write_new
    def full(*a): monkeypatch.setattr(checkpointing, '_write_new', write); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpointing, '_write_new', full)
    trainer.step += 1
    trainer.save(wait=False)
    trainer.save()   # not the old error again
    assert trainer.counts['failed_saves'] == 1 and trainer.checkpoints.load_checkpoint()['step'] == trainer.step


@pytest.mark.parametrize('policy', ['stop', 'rollback'])
def test_a_guard_that_is_read_late(cfg, policy):
    "As on a GPU: the flag is read when the log is written, and before a look or a save; weights have not moved since the bad step."
    cfg = override(cfg, {'training.on_nonfinite': policy, 'training.save_interval': 5, 'training.log_interval': 1000, 'training.num_epochs': 3})
    before = {}
    trainer = create_trainer(cfg, [At(7, lambda t: before or before.update({k: v.clone() for k, v in t.model.state_dict().items()}))], show=False)
    trainer.guard.defer = True
    poisoned(trainer, 7, 2 if policy == 'rollback' else 99)
    if policy == 'rollback':
        trainer.train()
        assert trainer.step == trainer.total_steps and trainer.counts['rollbacks'] == 1
        return
    with pytest.raises(Diverged, match='step 7: loss or gradient not finite'): trainer.train()
    assert trainer.step == 7 and same(before, trainer.model.state_dict())
    assert [c['step'] for c in trainer.checkpoints.list_checkpoints()] == [5, 6]


@pytest.mark.parametrize('policy', ['stop', 'rollback'])
def test_a_bad_step_of_two_processes(cfg, tmp_path, policy):
    "One process meets it, both agree on what follows."
    save_config(override(cfg, {'training.on_nonfinite': policy, 'training.save_interval': 4}), tmp_path/'cfg.yaml')
    (tmp_path/'go.py').write_text(f'''
import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import poisoned
from genesis.config import load_config
from genesis.core import Diverged
from genesis.training.trainer import create_trainer
trainer = create_trainer(load_config({str(tmp_path/'cfg.yaml')!r}), show=False)
if trainer.world.rank == 1: poisoned(trainer, 6, 2)
try: trainer.train(); said = f'ended at {{trainer.step}} {{trainer.counts["rollbacks"]}}'
except Diverged as e: said = f'diverged at {{trainer.step}}'
os.write(1, f'{{said}}\\n'.encode())   # a whole line, or the two would mix
''')
    found = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', tmp_path/'go.py'], capture_output=True, text=True, timeout=120, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert sorted(found.stdout.split('\n'))[1:] == 2*(['diverged at 6'] if policy == 'stop' else ['ended at 12 1']), found.stderr[-3000:]
    assert (tmp_path/'checkpoint'/'run'/'incident-000000006').is_dir()


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD'])
@pytest.mark.parametrize('fused', [True, False])
def test_clipping_is_that_of_torch(cfg, optimizer, fused):
    "Also where the fused optimiser does the division."
    trainer = create_trainer(override(cfg, {'training.optimizer': optimizer, 'training.grad_clip_norm': .01, 'training.learning_rate': .1, 'training.weight_decay': 0}), show=False)
    trainer._gradients()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), .01)
    trainer.optimizer.step(); trainer._clear()
    wanted = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    twin = create_trainer(trainer.config, show=False)
    for g in twin.optimizer.param_groups: g['fused'] = fused
    assert twin.train_step()[1].item() == pytest.approx(norm.item(), rel=1e-6) and norm > .02
    moved = sum((v - create_trainer(trainer.config, show=False).model.state_dict()[k]).abs().sum() for k, v in wanted.items())
    off = sum((v - twin.model.state_dict()[k]).abs().sum() for k, v in wanted.items())
    assert off < 1e-4*moved
