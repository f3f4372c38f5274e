"Checkpoints under fire: killed at random moments, every disk call failing in turn, flipped bits, readers in the middle of a save. What loads afterwards is whole, and the messages help."
import errno, html, itertools, json, math, os, random, resource, shutil, signal, stat, subprocess, sys, threading, time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from safetensors.torch import load_file, save as save_tensors

from genesis import core
from genesis.config import ExperimentConfig, load_config
from genesis.core import CheckpointError, ConfigError, StorageError
from genesis.generate import Generator
from genesis.training.setup import build_model, read_model
from genesis.training import checkpointing
from genesis.training.checkpointing import (CheckpointManager, DamagedCheckpoint, create_checkpoint_manager, from_files, read_checkpoint, read_folder,
                                            to_files, validate_checkpoint)

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


class FaultyOs:
    "The `os` module, except that its k-th call that changes the disk goes wrong."
    disk = ('mkdir', 'makedirs', 'open', 'write', 'fsync', 'close', 'rename', 'replace', 'chmod', 'fdopen')

    def __init__(self, k, how): self.k,self.how,self.calls = k,how,[]

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.disk: return real
        def call(*args, **kw):
            self.calls.append(name)
            if len(self.calls) != self.k: return real(*args, **kw)
            if self.how == 'exit after': real(*args, **kw)
            if self.how == 'torn' and name == 'write': real(args[0], bytes(args[1])[:len(args[1])//2])
            if str(self.how).startswith('exit') or self.how == 'torn': os._exit(9)
            if name == 'close': real(*args)
            raise OSError(self.how, os.strerror(self.how))
        return call

    def __enter__(self):
        self.patches = [mock.patch.object(m, 'os', self) for m in (checkpointing, core)]
        for p in self.patches: p.start()
        return self

    def __exit__(self, *_):
        for p in self.patches: p.stop()


def in_child(f):
    "Run `f` in a fork that is never seen again; returns its exit status."
    pid = os.fork()
    if pid == 0:
        try: f(); os._exit(0)
        except BaseException: os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def payload(step, mark=''):
    "Without tensors, so that children stay clear of torch; large enough to be torn."
    return dict(step=step, text=f'{step}{mark}'*2000, scheduler=dict(step=step))


def assert_loads(manager, allowed):
    "The newest and the best load whole, and the newest is one of `allowed`."
    data = manager.load_checkpoint()
    found = next((a for a in allowed if data == dict(payload(*a), epoch=a[0])), None)
    assert found, f'{data["step"]} is none of {allowed}'
    assert manager.load_best_checkpoint()['text']
    return found


def litter(manager): return sorted(p.name for p in manager.dir.iterdir() if p.name.startswith('.') or p.name.startswith('bad-'))


# Saving step 3 as the best removes step 1; saving step 2 again replaces it
SCENES = dict(new=(payload(3), 3, [(2,), (3,)]), again=(payload(2, 'b'), 2, [(2,), (2, 'b')]))


def prepared(folder):
    m = CheckpointManager(folder, 'run', max_checkpoints=2)
    m.save_checkpoint(payload(1), 1, is_best=True); m.save_checkpoint(payload(2), 2)
    return m


def n_calls(folder, scene):
    data,epoch,_ = SCENES[scene]
    with FaultyOs(-1, 0) as counted: prepared(folder/'count').save_checkpoint(data, epoch, is_best=True)
    with FaultyOs(-1, 0) as before: prepared(folder/'count2')
    return len(counted.calls) - len(before.calls)


def save(manager, *args, wait=True, **kw):
    "Save and see to it that it is done: what a background save raises is raised here."
    manager.save_checkpoint(*args, wait=wait, **kw)
    if not wait: manager.wait()


@pytest.mark.parametrize('scene, error, wait', [('new', errno.ENOSPC, True), ('new', errno.EDQUOT, False), ('again', errno.EIO, True), ('again', errno.EIO, False)],
                         ids=lambda x: errno.errorcode.get(x, x) if type(x) is int else str(x))
def test_every_disk_call_fails_once(tmp_path, scene, error, wait, caplog):
    data,epoch,allowed = SCENES[scene]
    n = n_calls(tmp_path, scene)
    assert n > 20
    told = 0
    for k in range(1, n+1):
        m = prepared(tmp_path/str(k))
        with FaultyOs(k, error) as fault:
            try: save(m, data, epoch, is_best=True, wait=wait)
            except StorageError as e:
                told += 1
                assert m.failed is None  # told once
                assert os.strerror(error) in str(e) and str(m.dir) in str(e) and 'fix' in str(e) and e.exit_code == 4
            else: assert 'could not be removed' in caplog.text, f'call {k} ({fault.calls[-1]}) failed in silence'
        caplog.clear()
        assert_loads(m, allowed)
        assert not [name for name in litter(m) if name.startswith(('.tmp', 'bad-'))]
        m.save_checkpoint(payload(9), 9, is_best=True)
        assert_loads(m, [(9,)])
        assert not litter(m)
    assert told >= n-1  # a failed removal of an old checkpoint is only worth a warning


def test_everything_is_flushed_before_it_gets_its_name(tmp_path):
    "What a power cut leaves depends on the order: files, their folder, the name, the folder of the name."
    with FaultyOs(-1, 0) as fault: CheckpointManager(tmp_path/'new', 'run').save_checkpoint(dict(payload(1), config=dict(a=1)), 1)
    flush = 'open fsync close '
    assert ' '.join(fault.calls) + ' ' == f'makedirs {flush}'*2 + 'mkdir ' + 'open write fsync close '*3 + flush + 'rename ' + flush


@pytest.mark.parametrize('scene, how, wait', [(scene, how, True) for scene in SCENES for how in ('exit before', 'exit after', 'torn')] + [('again', 'exit after', False)])
def test_death_at_every_disk_call(tmp_path, scene, how, wait):
    data,epoch,allowed = SCENES[scene]
    outcomes = set()
    for k in range(1, n_calls(tmp_path, scene)+1):
        m = prepared(tmp_path/str(k))
        def die():
            with FaultyOs(k, how): save(m, data, epoch, is_best=True, wait=wait)
        assert in_child(die) == 9
        outcomes.add(assert_loads(m, allowed))
        m.save_checkpoint(payload(9), 9)
        assert_loads(m, [(9,)])
        assert not litter(m)
    assert outcomes == set(allowed)  # the save was hit before and after its point of no return


@pytest.mark.parametrize('wait', [True, False])
def test_kill_9_at_random_moments(tmp_path, wait):
    rng,m = random.Random(0),CheckpointManager(tmp_path, 'run', max_checkpoints=3)
    start = time.perf_counter()
    for _ in range(10): m.save_checkpoint(payload(0), 0, is_best=True)
    one_save = (time.perf_counter() - start)/10
    newest,mid_save = 0,0
    for _ in range(60):
        read,write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for step in itertools.count(newest+1):
                    m.save_checkpoint(payload(step), step, is_best=step % 5 == 0, wait=wait)
                    done = step if wait else step-1  # a save has waited for the one before it
                    if done > newest: os.write(write, b'%d\n' % done)
            finally: os._exit(1)
        os.close(write)
        with os.fdopen(read) as f:
            said = [int(f.readline()) for _ in range(rng.randint(0, 3))]
            time.sleep(rng.uniform(0, 1.5*one_save))
            os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
            said += [int(line) for line in f]
        mid_save += any(name.startswith('.tmp') for name in litter(m))
        step = m.load_checkpoint()['step']
        assert step >= max([newest, *said]), 'a checkpoint that was reported as saved is gone'
        assert_loads(m, [(step,)])
        newest = step
    assert newest > 60 and mid_save > 6, 'the kills missed the saves'
    assert not [p for p in m.dir.iterdir() if p.name.startswith('bad-')]


def test_readers_never_disturb_a_run_that_saves(tmp_path, caplog):
    m = CheckpointManager(tmp_path, 'run')
    m.save_checkpoint(payload(0), 0)
    pid = os.fork()
    if pid == 0:
        try:
            for step in range(1, 300): m.save_checkpoint(payload(step), step)
            os._exit(0)
        finally: os._exit(1)
    seen = []
    while os.waitpid(pid, os.WNOHANG) == (0, 0): seen.append(m.load_checkpoint()['step'])
    assert m.load_checkpoint()['step'] == 299 and seen == sorted(seen) and len(set(seen)) > 5
    assert not litter(m) and not caplog.text


def full(manager, step=5):
    "A checkpoint with everything that a trainer saves."
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3); opt = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 4)).sum().backward(); opt.step()
    return manager.save_checkpoint(dict(model=net.state_dict(), ema=net.state_dict(), optimizer=opt.state_dict(), step=step, config=dict(seed=1), card=dict(detector='toy')), 0)


def test_flipped_bits_are_caught(tmp_path):
    p,rng = full(CheckpointManager(tmp_path, 'run')),random.Random(0)
    files = sorted(p.iterdir())
    assert {f.name for f in files} == {'model.safetensors', 'ema.safetensors', 'optimizer.safetensors', 'optimizer.json', 'state.json', 'config.yaml', 'card.json', 'MANIFEST.json'}
    for f in files:
        good = f.read_bytes()
        for _ in range(100):
            bit = rng.randrange(8*len(good)); bad = bytearray(good); bad[bit//8] ^= 1 << bit%8
            f.write_bytes(bad)
            with pytest.raises(DamagedCheckpoint, match=f.name): read_folder(p)
        for bad in (b'', good[:-1], good + b'\0', good[:-8] + bytes(8)):
            f.write_bytes(bad)
            with pytest.raises(DamagedCheckpoint, match=f.name): read_folder(p)
        f.unlink()
        with pytest.raises(CheckpointError, match=f.name): read_checkpoint(p)
        f.write_bytes(good)
    read_folder(p)


def test_damaged_ones_are_named_set_aside_and_passed_over(tmp_path, caplog):
    m = CheckpointManager(tmp_path, 'run', max_checkpoints=9, save_best_only=False)
    paths = [full(m, step) for step in (1, 2, 3, 4)]
    (paths[3]/'MANIFEST.json').unlink()
    (paths[2]/'ema.safetensors').write_bytes(b'?')
    os.utime(paths[0]/'MANIFEST.json', (2e9, 2e9))  # the date says nothing
    assert m.load_checkpoint()['step'] == 2
    assert 'step-000000004 is damaged (no MANIFEST.json' in caplog.text and 'step-000000003 is damaged (ema.safetensors: 1 bytes)' in caplog.text
    assert litter(m) == ['bad-step-000000003', 'bad-step-000000004']
    again = full(m, 3); (again/'card.json').unlink()
    assert m.get_latest_checkpoint() == paths[1]
    assert litter(m) == ['bad-step-000000003', 'bad-step-000000003-2', 'bad-step-000000004']
    with pytest.raises(CheckpointError, match='no checkpoint at'): m.load_checkpoint('step-000000003')
    assert m.load_checkpoint('step-000000001')['step'] == 1 and read_checkpoint(tmp_path/'run')['step'] == 2


def test_a_folder_that_cannot_be_renamed_is_still_passed_over(tmp_path, caplog):
    m = prepared(tmp_path)
    (m.dir/'step-000000002'/'state.json').write_bytes(b'')
    def refuse(*_): raise PermissionError(errno.EACCES, 'Permission denied')
    with mock.patch.object(checkpointing.os, 'rename', refuse): assert_loads(m, [(1,)])
    assert 'state.json: 0 bytes' in caplog.text and 'could not be renamed (Permission denied)' in caplog.text and not litter(m)


@pytest.mark.parametrize('umask, wait', [(0o002, True), (0o022, False), (0o077, True)])
def test_modes_follow_the_umask(tmp_path, umask, wait):
    before = os.umask(umask)
    try:
        m = CheckpointManager(tmp_path/'new', 'run')
        p = full(m); save(m, dict(step=6), 6, is_best=True, wait=wait); m.save_training_summary(dict(loss=1))
    finally: os.umask(before)
    mode = lambda f: stat.S_IMODE(f.stat().st_mode)
    assert {mode(f) for f in [*p.iterdir(), m.dir/'best', m.dir/'summary.json']} == {0o666 & ~umask}
    assert {mode(f) for f in (p, m.dir, m.dir.parent)} == {0o777 & ~umask}


@pytest.mark.parametrize('wait', [True, False])
def test_disk_really_full(tmp_path, wait):
    "A limit on the size of files stands in for the full disk: the kernel itself cuts the write short."
    m = prepared(tmp_path)
    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        try: save(m, payload(3), 3, wait=wait)
        except StorageError as e: os._exit(e.exit_code)
    assert in_child(full_disk) == 4
    assert_loads(m, [(2,)])
    assert not litter(m)


def test_a_second_ctrl_c_leaves_nothing_behind(tmp_path):
    m = prepared(tmp_path)
    def interrupted(fd): raise KeyboardInterrupt
    with mock.patch.object(checkpointing.os, 'fsync', interrupted), pytest.raises(KeyboardInterrupt): m.save_checkpoint(payload(3), 3)
    assert_loads(m, [(2,)])
    assert not litter(m)


def test_training_goes_on_while_a_save_is_written(tmp_path):
    "The call returns before anything is on the disk, what it saves is a copy, and a second one waits for the first."
    m,gate,w = CheckpointManager(tmp_path, 'run'),threading.Event(),torch.ones(3, 4)
    def slow(fd): assert gate.wait(20); real(fd)
    real = os.fsync
    with mock.patch.object(checkpointing.os, 'fsync', slow):
        p = m.save_checkpoint(dict(model=dict(w=w, t=w.T, part=w[:,1:])), 1, wait=False)
        assert not p.exists() and m.failed is None
        w.zero_()
        second = threading.Thread(target=m.save_checkpoint, args=(dict(model=dict(w=w)), 2), kwargs=dict(wait=False)); second.start()
        second.join(.2)
        assert second.is_alive() and not p.exists()
        gate.set(); second.join()
        assert p.exists() and m.load_checkpoint()['step'] == 2  # loading waits as well
    saved = read_checkpoint(p)['model']
    assert saved['w'].eq(1).all() and saved['t'].shape == (4, 3) and saved['part'].shape == (3, 3)


def test_a_background_failure_is_raised_once_by_the_next_call(tmp_path, caplog):
    m = prepared(tmp_path)
    with FaultyOs(2, errno.ENOSPC):
        m.save_checkpoint(payload(3), 3, wait=False); m._join()
    assert isinstance(m.failed, StorageError) and 'No space left' in caplog.text
    with pytest.raises(StorageError, match='step-000000003'): m.save_checkpoint(payload(4), 4)
    assert m.failed is None
    m.save_checkpoint(payload(4), 4)
    assert_loads(m, [(4,)])


def test_a_program_that_ends_finishes_its_save(tmp_path):
    code = 'import sys; from genesis.training.checkpointing import CheckpointManager as M; M(sys.argv[1], "run").save_checkpoint(dict(text="x"*10**7), 1, wait=False)'
    subprocess.run([sys.executable, '-c', code, tmp_path], check=True)
    assert validate_checkpoint(tmp_path/'run'/'step-000000001') == []


def test_two_threads_and_two_managers(tmp_path):
    managers = [CheckpointManager(tmp_path, 'run', save_best_only=False, max_checkpoints=50, keep_best=2) for _ in range(2)]
    def work(k):
        for i in range(8): managers[k % 2].save_checkpoint(payload(10*k + i), i, metric_value=abs(10*k + i - 22), wait=i % 2 == 0)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    for m in managers: m.wait()
    assert [row['step'] for row in managers[0].list_checkpoints()] == [10*k + i for k in range(4) for i in range(8)]
    assert all(validate_checkpoint(row['path']) == [] for row in managers[0].list_checkpoints())
    assert managers[0].load_best_checkpoint()['step'] == 22 and not litter(managers[0])


def test_two_processes_in_one_folder_leave_it_whole(tmp_path):
    "A trainer's lock forbids it. If it happens all the same, a save may fail, and says so; nothing is half there."
    m = CheckpointManager(tmp_path, 'run', max_checkpoints=3)
    def work(offset):
        for i in range(40):
            try: m.save_checkpoint(payload(2*i + offset), i, metric_value=i % 7)
            except StorageError: pass
    pids = []
    for offset in (0, 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            try: work(offset); os._exit(0)
            finally: os._exit(1)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    m.save_checkpoint(payload(100), 100, is_best=True)
    assert_loads(m, [(100,)])
    assert not litter(m) and all(validate_checkpoint(row['path']) == [] for row in m.list_checkpoints())


@pytest.mark.parametrize('mode', ['min', 'max'])
@pytest.mark.parametrize('keep_best', [1, 3])
def test_the_best_are_those_with_the_best_numbers(tmp_path, mode, keep_best):
    m,rng,seen = CheckpointManager(tmp_path, 'run', mode=mode, keep_best=keep_best),random.Random(4),{}
    for step in range(60):
        seen[step] = rng.choice([None, math.nan, math.inf, -math.inf, rng.random(), rng.random(), rng.randrange(3)])
        m.save_checkpoint(dict(step=step), step, metric_value=seen[step], wait=step % 3 > 0)
        best = sorted((s for s,v in seen.items() if v is not None and math.isfinite(v)), key=lambda s: (seen[s] if mode == 'min' else -seen[s], -s))
        m.wait()
        rows = m.list_checkpoints()
        assert {row['step'] for row in rows} == {step, step-1} & set(seen) | set(best[:keep_best])
        assert [row['step'] for row in rows if row['is_best']] == best[:1]
    with pytest.raises(ConfigError, match='did you mean: max'): CheckpointManager(tmp_path, 'run', mode='maxi')


def test_who_says_so_knows_better_than_the_numbers(tmp_path):
    m = CheckpointManager(tmp_path, 'run')
    best = lambda: m.load_best_checkpoint()['step']
    m.save_checkpoint(dict(step=1), 1, metric_value=.1)
    m.save_checkpoint(dict(step=2), 2, is_best=True, metric_value=.5); assert best() == 2
    m.save_checkpoint(dict(step=3), 3, is_best=False, metric_value=.01); assert best() == 2
    m.save_checkpoint(dict(step=4), 4, is_best=True); assert best() == 4
    for step in (5, 6, 7): m.save_checkpoint(dict(step=step), step)
    assert best() == 4 and [row['step'] for row in m.list_checkpoints()] == [4, 6, 7]


def test_pruning_keeps_the_best_the_newest_and_the_fresh_one(tmp_path):
    steps = lambda m: [row['step'] for row in m.list_checkpoints()]
    m = CheckpointManager(tmp_path, 'a', save_best_only=False, max_checkpoints=1)
    for s in range(1, 8): m.save_checkpoint(dict(step=s), s, is_best=s == 3, metric_value=1/s)
    assert steps(m) == [3, 6, 7]  # never fewer than two to resume from
    assert [row['is_best'] for row in m.list_checkpoints()] == [True, False, False]
    assert m.list_checkpoints()[0]['metric_value'] == 1/3 and m.load_best_checkpoint()['step'] == 3
    m.save_checkpoint(dict(step=2), 2)
    assert steps(m) == [2, 3, 6, 7]
    m = CheckpointManager(tmp_path, 'b', cleanup_old_checkpoints=False)
    for s in range(10): m.save_checkpoint(dict(step=s), s)
    assert steps(m) == list(range(10))


def test_what_others_left_is_not_ours_to_remove(tmp_path):
    m = CheckpointManager(tmp_path, 'run')
    m.dir.mkdir()
    others = ['notes.txt', 'step-old', '.tmp-step-000000001-elsewhere-1', f'.tmp-step-000000001-{checkpointing.socket.gethostname()}-{os.getppid()}']
    for name in others: (m.dir/name).mkdir()
    dead = m.dir/f'.tmp-step-000000001-{checkpointing.socket.gethostname()}-{2**22+1}'; dead.mkdir()
    for s in range(5): m.save_checkpoint(dict(step=s), s)
    assert all((m.dir/name).exists() for name in others) and not dead.exists()


def test_cleaning_up_removes_checkpoints_only(tmp_path, caplog):
    m = CheckpointManager(tmp_path, 'run', cleanup_old_checkpoints=False)
    for s in range(6): m.save_checkpoint(dict(step=s), s, metric_value=s)
    CheckpointManager(tmp_path, 'other').save_checkpoint(dict(step=1), 1)
    newer = checkpointing.commit_folder(m.dir/'step-000000007', {}, dict(step=7))
    text = json.loads((newer/'MANIFEST.json').read_text()); text.pop('sha256'); text['version'] += 1
    (newer/'MANIFEST.json').write_text(checkpointing._seal(text))
    others = ['notes.txt', 'step-old', 'step-000000009', 'bad-step-000000001', 'summary.json']
    for name in others: (m.dir/name).mkdir(); (m.dir/name/'mine').touch()
    assert m.cleanup_checkpoints() == 3 and [row['step'] for row in m.list_checkpoints()] == [0, 4, 5]
    assert m.cleanup_all_checkpoints() == 3 and m.cleanup_all_checkpoints() == 0
    assert 'removed step-000000000, step-000000004, step-000000005' in caplog.text
    assert sorted(p.name for p in m.dir.iterdir()) == sorted([*others, newer.name]) and all((m.dir/name/'mine').exists() for name in others)
    assert read_checkpoint(tmp_path/'other')['step'] == 1


@dataclass
class Sub: sizes: tuple = (1, 2)

@dataclass
class Config: name: str = 'mine'; sub: Sub = field(default_factory=Sub)


def test_the_call_that_scripts_are_used_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 2); optimizer = torch.optim.AdamW(model.parameters()); epoch = 5
    model(torch.ones(1, 3)).sum().backward(); optimizer.step()
    checkpoint_data = {'epoch': epoch, 'global_step': 50, 'model_state_dict': model.state_dict(), 'optimizer_state_dict': optimizer.state_dict(),
                       'best_loss': np.float32(.5), 'config': Config(), 'metrics': {'loss': float('nan')}}

    manager = CheckpointManager(checkpoint_dir="./checkpoints", experiment_name="my_experiment")
    manager.save_checkpoint(checkpoint_data, epoch, is_best=True)

    best = manager.load_best_checkpoint()
    assert same(dict(best, config=0, metrics=0), dict(checkpoint_data, model_state_dict=dict(model.state_dict()), best_loss=.5, config=0, metrics=0, step=5))
    assert best['config'] == dict(name='mine', sub=dict(sizes=[1, 2])) and math.isnan(best['metrics']['loss'])
    torch.optim.AdamW(model.parameters()).load_state_dict(best['optimizer_state_dict'])
    info = manager.get_checkpoint_info(manager.get_latest_checkpoint())
    assert (info['epoch'], info['is_best'], info['config']['name'], info['versions']) == (5, True, 'mine', None)
    assert [info[f'has_{k}'] for k in ('model', 'ema', 'optimizer', 'scheduler')] == [True, False, True, False]


def test_a_config_comes_back_as_a_config(tmp_path):
    cfg = ExperimentConfig(experiment_name='mine'); cfg.training.checkpoint_dir = str(tmp_path); cfg.training.save_best_only,cfg.training.keep_best = True,2
    m = create_checkpoint_manager(cfg)
    assert (m.dir, m.keep, m.keep_best) == (tmp_path/'mine', 2, 2)
    assert load_config(m.save_checkpoint(dict(config=cfg), 1)/'config.yaml') == cfg


def test_names_are_text_in_html(tmp_path):
    m = CheckpointManager(tmp_path, '<b>run'); m.save_checkpoint(dict(step=1), 1, metric_value=math.nan)
    assert '<b>' not in m._repr_html_() and html.escape('<b>run') in m._repr_html_() and '<td>nan</td>' in m._repr_html_()
    assert '1 checkpoint, the newest at step 1' in repr(m) and '0 checkpoints)' in repr(CheckpointManager(tmp_path, 'none'))


def test_validation_names_everything_that_is_wrong(tmp_path):
    p = full(CheckpointManager(tmp_path, 'run'))
    assert validate_checkpoint(p) == []
    (p/'ema.safetensors').unlink(); (p/'card.json').write_bytes(b'')
    assert [x.split(';')[0] for x in validate_checkpoint(p)] == ['ema.safetensors: missing', 'card.json: 0 bytes']
    (p/'MANIFEST.json').write_text('{}')
    assert 'MANIFEST.json' in validate_checkpoint(p)[0] and 'is a file' in validate_checkpoint(p/'state.json')[0] and 'no checkpoint at' in validate_checkpoint(p/'x')[0]


def test_an_experiment_folder_falls_back_to_the_one_before(tmp_path, caplog, monkeypatch):
    m = CheckpointManager(tmp_path, 'run')
    full(m, 1); (full(m, 2)/'model.safetensors').write_bytes(b'')
    assert read_checkpoint(m.dir)['step'] == 1 and 'step-000000002 is damaged' in caplog.text
    monkeypatch.chdir(m.dir); assert read_checkpoint('.')['step'] == 1
    monkeypatch.chdir(m.dir/'step-000000001'); assert read_checkpoint('..')['step'] == read_checkpoint('.')['step'] == 1


def test_format_1_keeps_loading(tmp_path):
    "Written by the first release of this format: a trainer's checkpoint with a tiny network, and one of odd things."
    shutil.unpack_archive(Path(__file__).parent/'checkpoints'/'v1.tar.xz', tmp_path, filter='data')
    odd = CheckpointManager(tmp_path/'v1', 'odd').load_best_checkpoint()
    assert odd['epoch'] == 3 and CheckpointManager(tmp_path/'v1', 'odd').list_checkpoints()[0]['metric_value'] == 0.25
    assert all(same(v, torch.arange(6).reshape(2, 3).to(getattr(torch, k))) for k,v in odd['tensors'].items()) and len(odd['tensors']) == 10
    assert same(odd['nested'], {0: dict(exp_avg=torch.ones(2), step=torch.tensor(3.), betas=(0.9, 0.999)), 'empty': torch.zeros(0, 4)})
    assert same(odd['mean'], np.array([0.5, -1.])) and odd['best'] == math.inf and math.isnan(odd['worst']) and odd['words'] == ['ν', None, True]
    saved = read_checkpoint(tmp_path/'v1'/'trained')
    total = lambda state: float(sum(v.double().abs().sum() for v in state.values()))
    assert (saved['step'], saved['seen'], saved['history']['val_step']) == (4, 64, [4]) and len(saved['optimizer']['state']) == len(saved['model'])
    assert [total(saved[k]) for k in ('model', 'ema')] == pytest.approx([89.20389091747347, 89.03306945257282], rel=1e-9)
    gen = Generator.from_checkpoint(tmp_path/'v1'/'trained', 'cpu')
    assert gen.detector.name == 'toy' and total(gen.space.model.state_dict()) == pytest.approx(89.03306945257282, rel=1e-9)


def test_weights_of_another_network_are_refused(tmp_path):
    shutil.unpack_archive(Path(__file__).parent/'checkpoints'/'v1.tar.xz', tmp_path, filter='data')
    saved = read_model(tmp_path/'v1'/'trained'); key = next(iter(saved['ema'])); del saved['ema'][key]
    with pytest.raises(CheckpointError, match=f'do not fit(.|\n)*{key}(.|\n)*written by genesis'): build_model(saved)


def test_what_is_not_a_checkpoint_gets_advice(tmp_path):
    m = CheckpointManager(tmp_path, 'run')
    assert m.get_latest_checkpoint() is None and not m.dir.exists()
    with pytest.raises(CheckpointError, match='no checkpoint in .*run\n.*nothing was saved'): m.load_checkpoint()
    with pytest.raises(CheckpointError, match='marked as the best'): m.load_best_checkpoint()
    m.save_checkpoint(dict(step=1), 1)
    with pytest.raises(CheckpointError, match='did you mean: step-000000001'): m.load_checkpoint(m.dir/'step-00000001')
    (tmp_path/'model.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='genesis opens none'): m.load_checkpoint(tmp_path/'model.pth')
    with pytest.raises(CheckpointError, match='not a checkpoint'): read_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match='must name a folder'): CheckpointManager(tmp_path, 'a/b')
    for bad in (dict(model=object()), dict(model={'w': {1, 2}}), dict(f=print)):
        with pytest.raises(CheckpointError, match='cannot be saved'): m.save_checkpoint(dict(bad, step=2), 2)
    assert [row['step'] for row in m.list_checkpoints()] == [1] and not litter(m)


def test_a_promise_that_state_json_breaks(tmp_path):
    p = checkpointing.commit_folder(tmp_path/'run'/'step-000000001', {'state.json': json.dumps(dict(model={'$file': 'model.safetensors'})).encode()}, dict(step=1, epoch=1))
    with pytest.raises(CheckpointError, match='not what its state.json promises'): read_checkpoint(p)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    (tmp_path/'secret').write_bytes(b'x')
    p = CheckpointManager(tmp_path, 'run').save_checkpoint(dict(step=1), 1)
    manifest = checkpointing.read_manifest(p)
    manifest['files']['../../secret'] = dict(bytes=1, sha256=checkpointing._sum(b'x'))
    (p/'MANIFEST.json').write_text(checkpointing._seal(manifest))
    with pytest.raises(DamagedCheckpoint, match='secret: missing'): read_checkpoint(p)


leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
                 st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]).map(lambda dt: torch.ones(2, 3, dtype=dt)),
                 st.just(torch.tensor(2.)), st.just(np.float32([[1, 2], [3, 4]])), st.just(np.array(5)), st.just(torch.zeros(0, 4)), st.just(torch.arange(6).reshape(2, 3).T))
tree = st.recursive(leaf, lambda sub: st.one_of(st.lists(sub, max_size=3), st.lists(sub, max_size=3).map(tuple), st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.just('$tensor')), sub, max_size=3)), max_leaves=12)


def same(a, b):
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_tensors_are_written_as_safetensors_writes_them(tmp_path):
    alike = {k: torch.randn(n, 3) for k,n in dict(b=2, a=5, ü=0).items()}
    assert bytes(to_files(dict(model=alike))['model.safetensors']) == save_tensors(alike)
    mixed = {str(dt): torch.arange(7).to(dt).reshape(1, 7) for dt in checkpointing._DTYPES} | {'__metadata__': torch.ones(2), '': torch.tensor(1)}
    p = CheckpointManager(tmp_path, 'run').save_checkpoint(dict(model=mixed), 1)
    assert same(read_checkpoint(p)['model'], mixed)
    found = load_file(p/'model.safetensors')
    assert all(same(found[str(dt)], mixed[str(dt)]) and found[str(dt)].data_ptr() % dt.itemsize == 0 for dt in checkpointing._DTYPES)
    for bad in (torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        with pytest.raises(CheckpointError, match='cannot be saved'): to_files(dict(model=dict(w=bad)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(['model', 'optimizer_state_dict', 'card', 'extra', 'step']), tree, max_size=4))
def test_any_tree_comes_back_exactly(data):
    assert same(from_files(to_files(data)), data)
