"Other people's files and machines: file systems without locks, filters that are not installed, paths with variables, terminals of few letters, batch systems."
import errno, os, sqlite3, subprocess, sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from genesis import cli
from genesis.config import ExperimentConfig, override
from genesis.core import ConfigError, DataError, as_path
from genesis.data import events as events_module, pulses
from genesis.data.detector import toy_detector
from genesis.data.events import EventFiles, from_dense, join_events, read_events, write_events
from genesis.data.formats import convert, from_hdf5, to_graphnet
from genesis.data.pulses import SQLiteTables, from_graphnet
from genesis.data.simulator import simulate_events
from genesis.training import create_trainer
from genesis.training.setup import validate_training_config

DETECTOR = toy_detector()


@pytest.fixture(scope='module')
def events(): return simulate_events(40, detector=DETECTOR, seed=1, min_hits=4)


# ---- paths -----------------------------------------------------------------------------------------------------------------

def test_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('HOME', str(tmp_path/'me')); monkeypatch.setenv('RUNS', str(tmp_path/'runs')); monkeypatch.setenv('NO', '7'); monkeypatch.setenv('EMPTY', '')
    for text, meant in (('~', 'me'), ('~/x', 'me/x'), ('$RUNS/a', 'runs/a'), ('${RUNS}/a$NO', 'runs/a7'), ('$RUNS/${NO}b.h5', 'runs/7b.h5')): assert as_path(text) == tmp_path/meant
    assert as_path('a/b~c$') == Path('a/b~c$') and as_path(Path('$HOUSE/x')) == Path('$HOUSE/x') and as_path('5$') == Path('5$')
    for bad, word in (('$SCRTCH/ck', r'\$SCRTCH/ck has a variable that is not set(.|\n)*got: \$SCRTCH'), ('x/${A_B}', r'got: \$A_B'), ('$RUN/a', r'did you mean: \$RUNS'), ('$EMPTY/a', 'is empty'), ('~nobody-of-that-name/x', 'somebody unknown')):
        with pytest.raises(ConfigError, match=word): as_path(bad)
    (tmp_path/'$odd').mkdir(); assert as_path('$odd') == Path('$odd')   # it is really called so


def test_no_folder_is_ever_called_like_a_variable(tmp_path, monkeypatch, events, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('HOME', str(tmp_path/'me')); monkeypatch.setenv('RUNS', str(tmp_path/'runs'))
    small = ['--hidden', '16', '--depth', '1', '--heads', '2', '--epochs', '1', '--set', 'model.dom_width=8', '--set', 'diffusion.space=event', '--set', 'training.use_tensorboard=false', '--set', 'training.panel_minutes=0', '--device', 'cpu']
    assert cli.main(['simulate', '--events', '40', '--detector', 'toy', '--min-hits', '4', '--out=~/e.h5']) == 0
    assert cli.main(['convert', '~/e.h5', '$RUNS/f.h5']) == 0
    assert cli.main(['inspect', '${RUNS}/*.h5', '--json=$RUNS/found.json']) == 0
    assert cli.main(['train', '--data-path', '$RUNS/f.h5', '--checkpoint-dir=$RUNS/ck', '--log-dir=~/logs', '--output-dir', '$RUNS/out', '--experiment-name', 'a', *small]) == 0
    assert cli.main(['sample', '--checkpoint', '$RUNS/ck/a', '--labels', '~/e.h5', '--output=$RUNS/g.h5', '--num-events', '3', '--steps', '2']) == 0
    assert cli.main(['show', '$RUNS/g.h5', '--out=~/g.html', '--no-open']) == 0
    assert cli.main(['script', '--data-path', '$RUNS/f.h5', '--checkpoint-dir=$NOT_YET/ck', '--out=~/job.sh', *small]) == 0   # the job has it
    assert 'checkpoint_dir: $NOT_YET/ck' in (tmp_path/'me'/'job.sh.yaml').read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['me', 'runs']
    assert {'ck', 'f.h5', 'found.json', 'g.h5'} <= {p.name for p in (tmp_path/'runs').iterdir()} and {'e.h5', 'g.html', 'job.sh', 'logs'} <= {p.name for p in (tmp_path/'me').iterdir()}
    capsys.readouterr()
    for verb in (['train', '--data-path', '$NOWHERE/f.h5'], ['inspect', '$NOWHERE/f.h5'], ['sample', '--checkpoint', '$NOWHERE/x'], ['convert', '~/e.h5', '$NOWHERE/x.h5'], ['train', '--config=$NOWHERE/x.yaml']):
        assert cli.main(verb) == 2 and '$NOWHERE' in capsys.readouterr().err
    for key in ('data.h5_path', 'training.checkpoint_dir', 'training.log_dir', 'training.output_dir', 'training.resume_from_checkpoint', 'diffusion.teacher'):
        assert any(p.startswith(key) and '$NOWHERE' in p for p in validate_training_config(override(ExperimentConfig(), {key: '$NOWHERE/x'}))), key
    assert sorted(p.name for p in tmp_path.iterdir()) == ['me', 'runs']


# ---- locks -----------------------------------------------------------------------------------------------------------------

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, 524, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EIO, errno.EBADF]


@pytest.fixture
def lockless(monkeypatch):
    "A file system on which HDF5 gets this error when it asks for a lock."
    real = h5py.File
    def make(code):
        def opened(name, mode='r', *args, locking=None, **kw):
            if locking not in (False, 'false') and kw.get('driver') != 'core': raise BlockingIOError(code, f"Unable to synchronously open file (unable to lock file, errno = {code}, error message = '{os.strerror(code)}')")
            return real(name, mode, *args, locking=locking, **kw)
        monkeypatch.setattr(h5py, 'File', opened); events_module._unlocked.clear()
    return make


@pytest.mark.parametrize('code', NO_LOCKS)
def test_hdf5_without_locks_is_read_and_that_is_said_once(tmp_path, events, lockless, code, caplog):
    paths = [write_events(events[:20], tmp_path/'a.h5'), write_events(events[20:], tmp_path/'b.h5')]
    dense = write_events(events, tmp_path/'dense.h5', 'dense')
    lockless(code)
    assert read_events(paths[0]).fingerprint == events[:20].fingerprint and EventFiles(paths).load().fingerprint == events.fingerprint
    assert len(read_events(dense)) == len(from_hdf5(dense)) == 40
    assert cli.main(['inspect', str(paths[0])]) == 0
    convert(paths[0], tmp_path/'c.h5')
    said = [r for r in caplog.records if 'no file can be locked' in r.message]
    assert len(said) == 1 and os.strerror(code) in said[0].message


def test_a_file_that_is_locked_is_busy(tmp_path, events, lockless):
    path = write_events(events, tmp_path/'a.h5')
    lockless(errno.EAGAIN)
    with pytest.raises(DataError, match='(?s)being written by another process.*wait'): read_events(path)


def test_locks_that_fail_in_the_system_itself(tmp_path, events):
    "flock and fcntl fail as they do on such a disk: everything is read, and files are joined."
    shim = tmp_path/'shim.c'
    shim.write_text('#define _GNU_SOURCE\n#include <errno.h>\n#include <fcntl.h>\n#include <stdarg.h>\n#include <stdlib.h>\n#include <dlfcn.h>\n'
                    'static int code(void) { return atoi(getenv("LOCK_ERRNO")); }\nint flock(int fd, int op) { errno = code(); return -1; }\n'
                    'static int any(const char *n, int fd, int cmd, void *p) { if (cmd == F_SETLK || cmd == F_SETLKW || cmd == F_GETLK) { errno = code(); return -1; } int (*f)(int, int, ...) = dlsym(RTLD_NEXT, n); return f(fd, cmd, p); }\n'
                    '#define FORWARD(NAME) int NAME(int fd, int cmd, ...) { va_list a; va_start(a, cmd); void *p = va_arg(a, void *); va_end(a); return any(#NAME, fd, cmd, p); }\nFORWARD(fcntl)\nFORWARD(fcntl64)\n')
    try: subprocess.run(['cc', '-shared', '-fPIC', '-o', tmp_path/'shim.so', shim, '-ldl'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError): pytest.skip('no C compiler here')
    write_events(events[:20], tmp_path/'a.h5'); write_events(events[20:], tmp_path/'b.h5'); to_graphnet(events, tmp_path/'g.db')
    code = ('import sys; from genesis.data.events import *; from genesis.data.pulses import from_graphnet; d = sys.argv[1]; a = EventFiles([d+"/a.h5", d+"/b.h5"]); '
            'join_events(a.paths, d+"/c.h5"); print(a.fingerprint, read_events(d+"/c.h5").fingerprint, len(from_graphnet(d+"/g.db")))')
    for number in (37, 95, 13, 524):
        found = subprocess.run([sys.executable, '-c', code, str(tmp_path)], env={**os.environ, 'LD_PRELOAD': str(tmp_path/'shim.so'), 'LOCK_ERRNO': str(number)}, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert found.stdout.split() == [events.fingerprint, events.fingerprint, '40'] and found.stderr.count('no file can be locked') == 1, found.stderr


def test_sqlite_that_somebody_writes_is_not_read_without_a_lock(tmp_path, events, monkeypatch):
    path = to_graphnet(events, tmp_path/'g.db')
    real = sqlite3.connect
    monkeypatch.setattr(pulses.sqlite3, 'connect', lambda *a, **k: real(*a, timeout=.1, **k))
    code = 'import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute("BEGIN EXCLUSIVE"); print("held", flush=True); sys.stdin.read()'
    writer = subprocess.Popen([sys.executable, '-c', code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b'held\n'
        with pytest.raises(DataError, match='(?s)busy.*wait'): SQLiteTables(path)
    finally: writer.communicate()
    assert len(from_graphnet(path)) == 40


@pytest.mark.parametrize('words', ['database is locked', 'disk I/O error', 'unable to open database file', 'locking protocol'])
def test_sqlite_without_locks(tmp_path, events, monkeypatch, words, caplog):
    path = to_graphnet(events, tmp_path/'g.db')
    real = sqlite3.connect
    class Lockless:
        def __init__(self, db): self.db = db
        def execute(self, *_): raise sqlite3.OperationalError(words)
        def close(self): self.db.close()
    monkeypatch.setattr(pulses.sqlite3, 'connect', lambda address, **kw: real(address, **kw) if 'immutable=1' in address else Lockless(real(address, **kw)))
    events_module._unlocked.clear()
    assert len(from_graphnet(path)) == 40 and caplog.text.count('no file can be locked') == 1
    Path(f'{path}-wal').write_bytes(b'x')   # somebody's last changes are not in the file yet
    with pytest.raises(DataError, match=words): SQLiteTables(path)


# ---- filters ---------------------------------------------------------------------------------------------------------------

def recompressed(path, code, name=b''):
    "The charges of a file, said to have gone through a filter; nothing here can undo it."
    with h5py.File(path, 'r+') as f:
        shape, dtype = f['charge'].shape, f['charge'].dtype
        del f['charge']
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE); plan.set_chunk(shape); plan.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        d = h5py.h5d.create(f.id, b'charge', h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape), plan)
        d.write_direct_chunk((0,), b'whatever', filter_mask=0)
    return path


@pytest.mark.parametrize('code, name', [(32001, 'blosc'), (32026, 'blosc2'), (32015, 'zstd'), (32004, 'lz4'), (32008, 'bitshuffle'), (307, 'bzip2'), (32013, 'zfp'), (31999, 'number 31999')])
def test_a_filter_that_is_absent_is_named(tmp_path, events, monkeypatch, code, name):
    path = recompressed(write_events(events, tmp_path/'a.h5'), code)
    monkeypatch.setitem(sys.modules, 'hdf5plugin', None)   # not importable
    monkeypatch.setattr(events_module.importlib.util, 'find_spec', lambda name: None)
    for read in (read_events, EventFiles, from_hdf5):
        with pytest.raises(DataError, match=rf"(?s)'charge' is compressed with a filter that is not installed.*{name} \({code}\).*hdf5plugin") as e: read(path)
        assert 'damaged' not in str(e.value)


def test_a_filter_that_hdf5plugin_brings(tmp_path, events):
    plugin = pytest.importorskip('hdf5plugin')
    path = write_events(events, tmp_path/'a.h5')
    with h5py.File(path, 'r+') as f:
        for kind, name in zip((plugin.Blosc, plugin.Blosc2, plugin.Zstd, plugin.LZ4, plugin.Bitshuffle), ('charge', 'time', 'dom', 'label', 'event_ptr')):
            values = f[name][...]; del f[name]; f.create_dataset(name, data=values, chunks=True, **kind())
    code = 'import sys; from genesis.data.events import read_events; print(read_events(sys.argv[1]).fingerprint)'
    assert subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, check=True).stdout.strip() == events.fingerprint


# ---- dense files -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mark', [-1, -9, -99, -999, -9999., -.5])
@pytest.mark.parametrize('order', ['charge_time', 'time_charge'])
@pytest.mark.parametrize('both', [True, False])
def test_a_negative_number_where_nothing_was_hit(tmp_path, events, mark, order, both):
    x = events.dense(); empty = x[:, 0] == 0
    x[:, 0][empty] = mark
    if both: x[:, 1][empty] = mark
    if order == 'time_charge': x = x[:, ::-1]
    found = from_dense(x, events.labels, DETECTOR)
    assert found.meta['channel_order'] == order and found.meta['no_hit_mark'] == mark
    for k in ('ptr', 'dom', 'charge', 'time'): np.testing.assert_array_equal(getattr(found, k), getattr(events, k))
    with h5py.File(tmp_path/'d.h5', 'w') as f: f['input'], f['label'] = x, events.labels
    marks = f'{mark:g}' if both else f'0 or {mark:g}'  # the times have theirs
    told = from_hdf5(tmp_path/'d.h5', DETECTOR).meta['assumptions']
    assert any(note.endswith(f'the marks in the file are {marks}') for note in told), told


def test_a_charge_below_zero_is_still_an_error(events):
    for values in ([-1.], [-1., -2.], [-1., -1.]):   # among zeros they mark nothing
        x = events.dense(); at = np.argwhere(x[:, 0] > 0)[:len(values)]
        for (i, j), v in zip(at, values): x[i, 0, j] = v
        with pytest.raises(DataError, match='negative charges'): from_dense(x, events.labels, DETECTOR)


@pytest.mark.parametrize('empty', [0., np.nan])
def test_charges_too_large_for_half_precision_are_kept_and_said(events, empty, caplog):
    big = events[:]; big.charge[[3, 50]] = 7e4, 3e5
    x = big.dense(); x[:, :, :][np.broadcast_to(x[:, :1] == 0, x.shape)] = empty
    with np.errstate(over='ignore'): half = x.astype(np.float16)
    assert np.isinf(half[:, 0]).sum() == 2
    found = from_dense(half, big.labels, DETECTOR, 'charge_time')
    np.testing.assert_array_equal(found.n_hits, events.n_hits)
    assert found.charge[[3, 50]].tolist() == [65504, 65504] and found.meta['charges_beyond_half_precision'] == 2 and '2 hits have more charge than half precision' in caplog.text


# ---- terminals, browsers, batch systems -----------------------------------------------------------------------------------

@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp437', 'koi8-r'])
def test_a_terminal_of_few_letters(tmp_path, events, encoding):
    write_events(events, tmp_path/'ν.h5')
    for verb in (['inspect', 'ν.h5'], ['convert', 'ν.h5', 'b.h5'], ['convert', 'ν.h6', 'b.h5'], ['train', '--help'], ['benchmark', '--list']):
        found = subprocess.run([sys.executable, '-c', 'import sys; from genesis.cli import main; sys.exit(main())', *verb], cwd=tmp_path, env={**os.environ, 'PYTHONIOENCODING': encoding}, capture_output=True)
        assert b'Traceback' not in found.stderr and found.returncode in (0, 3), found.stderr


def test_show_without_a_display(tmp_path, events, monkeypatch, capsys):
    path = write_events(events, tmp_path/'a.h5')
    for key in ('DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER'): monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr('webbrowser.open', lambda *a: pytest.fail('a browser was started'))
    assert cli.main(['show', str(path), '--out', str(tmp_path/'a.html')]) == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith('a.html') and 'no display here' in said.err and (tmp_path/'a.html').exists()


@pytest.mark.parametrize('name', ['w3m', 'lynx', 'links', 'www-browser'])
@pytest.mark.parametrize('asked', [True, False])
def test_a_browser_in_the_terminal_is_not_started(tmp_path, events, name, asked):
    "A text browser is all there is: as in a session over ssh."
    path = write_events(events, tmp_path/'a.h5')
    browser = tmp_path/name; browser.write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n'); browser.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER')} | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'TERM': 'xterm', **({'BROWSER': name} if asked else {})}
    code = 'import sys; from genesis.display import show; from genesis.cli import main; print(show(sys.argv[1], 1)); main(["show", sys.argv[1], "--out", "b.html"])'
    found = subprocess.run([sys.executable, '-c', code, str(path)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == 0 and 'a.html' in found.stdout and 'b.html' in found.stdout and not (tmp_path/'started').exists(), found.stderr


def test_a_batch_log_says_where_the_log_is_and_how_far_it_is(tmp_path, events, monkeypatch, capsys):
    write_events(events, tmp_path/'a.h5')
    cfg = override(ExperimentConfig(), {'experiment_name': 'run', 'diffusion.space': 'event', 'data.h5_path': tmp_path/'a.h5', 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
        'training.num_epochs': 3, 'training.log_interval': 1, 'training.use_tensorboard': False, 'device': 'cpu', **{f'training.{k}_dir': tmp_path/k for k in ('output', 'checkpoint', 'log')}})
    from genesis.training import trainer as module
    assert module._LINE == 600
    create_trainer(cfg).train()
    quiet = capsys.readouterr().err
    assert quiet.count(str(tmp_path/'log'/'run.log')) == 1 and 'every 10 minutes' in quiet and 'h left' not in quiet
    monkeypatch.setattr(module, '_LINE', 0.)
    more = create_trainer(override(cfg, {'experiment_name': 'more'}))
    more.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if 'h left' in line]
    assert len(lines) >= 5 and f'of {more.total_steps}: loss' in lines[-1] and 'validation' in lines[-1]
    create_trainer(override(cfg, {'experiment_name': 'silent'}), show=False).train()
    assert capsys.readouterr().err == ''
