"Checkpoints under fire: killed at random moments, every disk call failing in turn, flipped bits, readers in the middle of a save. What loads afterwards is whole, and the messages help."
import errno, itertools, json, os, random, resource, signal, stat, time
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from genesis import core
from genesis.core import CheckpointError, ConfigError, StorageError
from genesis.training import checkpointing
from genesis.training.checkpointing import CheckpointManager, DamagedCheckpoint, from_files, read_checkpoint, read_folder, to_files

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


class FaultyOs:
    "The `os` module, except that its k-th call that changes the disk goes wrong."
    disk = ('mkdir', 'open', 'write', 'fsync', 'close', 'rename', 'replace', 'chmod', 'fdopen')

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


@pytest.mark.parametrize('scene, error', [('new', errno.ENOSPC), ('new', errno.EDQUOT), ('again', errno.EIO)], ids=lambda x: errno.errorcode.get(x, x))
def test_every_disk_call_fails_once(tmp_path, scene, error, caplog):
    data,epoch,allowed = SCENES[scene]
    n = n_calls(tmp_path, scene)
    assert n > 20
    told = 0
    for k in range(1, n+1):
        m = prepared(tmp_path/str(k))
        with FaultyOs(k, error) as fault:
            try: m.save_checkpoint(data, epoch, is_best=True)
            except StorageError as e:
                told += 1
                assert os.strerror(error) in str(e) and str(m.dir) in str(e) and 'fix' in str(e) and e.exit_code == 4
            else: assert 'could not be removed' in caplog.text, f'call {k} ({fault.calls[-1]}) failed in silence'
        caplog.clear()
        assert_loads(m, allowed)
        assert not [name for name in litter(m) if name.startswith(('.tmp', 'bad-'))]
        m.save_checkpoint(payload(9), 9, is_best=True)
        assert_loads(m, [(9,)])
        assert not litter(m)
    assert told >= n-1  # a failed removal of an old checkpoint is only worth a warning


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('how', ['exit before', 'exit after', 'torn'])
def test_death_at_every_disk_call(tmp_path, scene, how):
    data,epoch,allowed = SCENES[scene]
    outcomes = set()
    for k in range(1, n_calls(tmp_path, scene)+1):
        m = prepared(tmp_path/str(k))
        def save():
            with FaultyOs(k, how): m.save_checkpoint(data, epoch, is_best=True)
        assert in_child(save) == 9
        outcomes.add(assert_loads(m, allowed))
        m.save_checkpoint(payload(9), 9)
        assert_loads(m, [(9,)])
        assert not litter(m)
    assert outcomes == set(allowed)  # the save was hit before and after its point of no return


def test_kill_9_at_random_moments(tmp_path):
    rng,m = random.Random(0),CheckpointManager(tmp_path, 'run', max_checkpoints=3)
    start = time.perf_counter()
    for _ in range(10): m.save_checkpoint(payload(0), 0, is_best=True)
    one_save = (time.perf_counter() - start)/10
    newest,mid_save = 0,0
    for _ in range(100):
        read,write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for step in itertools.count(newest+1):
                    m.save_checkpoint(payload(step), step, is_best=step % 5 == 0)
                    os.write(write, b'%d\n' % step)
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
    assert newest > 100 and mid_save > 10, 'the kills missed the saves'
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


@pytest.mark.parametrize('umask', [0o002, 0o022, 0o077])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        m = CheckpointManager(tmp_path/'new', 'run')
        p = full(m); m.save_checkpoint(dict(step=6), 6, is_best=True)
    finally: os.umask(before)
    mode = lambda f: stat.S_IMODE(f.stat().st_mode)
    assert {mode(f) for f in [*p.iterdir(), m.dir/'best']} == {0o666 & ~umask}
    assert {mode(f) for f in (p, m.dir, m.dir.parent)} == {0o777 & ~umask}


def test_disk_really_full(tmp_path):
    "A limit on the size of files stands in for the full disk: the kernel itself cuts the write short."
    m = prepared(tmp_path)
    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        try: m.save_checkpoint(payload(3), 3)
        except StorageError as e: os._exit(e.exit_code)
    assert in_child(save) == 4
    assert_loads(m, [(2,)])
    assert not litter(m)


def test_a_second_ctrl_c_leaves_nothing_behind(tmp_path):
    m = prepared(tmp_path)
    def interrupted(fd): raise KeyboardInterrupt
    with mock.patch.object(checkpointing.os, 'fsync', interrupted), pytest.raises(KeyboardInterrupt): m.save_checkpoint(payload(3), 3)
    assert_loads(m, [(2,)])
    assert not litter(m)


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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(['model', 'optimizer_state_dict', 'card', 'extra', 'step']), tree, max_size=4))
def test_any_tree_comes_back_exactly(data):
    assert same(from_files(to_files(data)), data)
