"""Simulating to disk: what a kill leaves, that nothing is redone, lost or doubled, and what is refused."""
import os, signal, subprocess, sys, time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from genesis.core import ConfigError, DataError
from genesis.data import simulator
from genesis.data.detector import from_positions, icecube86
from genesis.data.events import read_events
from genesis.data.light import CascadeLight, TrackLight
from genesis.data.simulator import produce_events, simulate_events

PARTS = ('ptr', 'dom', 'charge', 'time', 'labels', 'kind')
ORDER = dict(detector='toy', kind='mixed', seed=3)


def same(a, b): return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in PARTS)


def command(n, out, *more, **kw):
    line = [sys.executable, '-c', 'from genesis.cli import main; import sys; sys.exit(main())', 'simulate', '--events', str(n), '--detector', 'toy', '--kind', 'mixed', '--seed', '3', '--out', str(out), *map(str, more)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kw)


def group(pid):
    "Processes whose process group is `pid` and that still run."
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try: fields = (p/'stat').read_text().rpartition(')')[2].split()
        except OSError: continue
        if int(fields[2]) == pid and fields[0] not in 'ZX': found.append(int(p.name))
    return found


@pytest.mark.parametrize('workers', [1, 2])
def test_kills_lose_and_double_nothing(tmp_path, workers):
    out, rng, kills, kept = tmp_path/'many.h5', np.random.default_rng(workers), 0, {}
    for _ in range(40):
        run = command(12_000, out, '--workers', workers, start_new_session=True)
        try: run.communicate(timeout=60 if kills >= 4 else .2 + .8*kills*rng.random()) # the first comes before it can have finished, however fast the machine
        except subprocess.TimeoutExpired: pass
        else:
            assert run.returncode == 0
            break
        os.kill(run.pid, signal.SIGKILL); run.communicate(); kills += 1
        for p in tmp_path.glob('many.h5.parts/part-*.h5'):   # a shard that is there is never made again
            assert kept.setdefault(p.name, p.stat().st_mtime_ns) == p.stat().st_mtime_ns
    else: pytest.fail('never finished')
    assert kills and same(read_events(out), simulate_events(12_000, **ORDER))
    assert [p.name for p in tmp_path.iterdir()] == ['many.h5']


@pytest.mark.skipif(not Path('/proc').exists(), reason='looks for processes in /proc')
def test_workers_end_with_the_process_that_started_them(tmp_path):
    run = command(400_000, tmp_path/'many', '--workers', 2, start_new_session=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob('many/part-*'))) < 2 and time.monotonic() < until: time.sleep(.1)
    assert len(group(run.pid)) > 1
    os.kill(run.pid, signal.SIGKILL); run.communicate()
    until = time.monotonic() + 20
    while group(run.pid) and time.monotonic() < until: time.sleep(.1)
    assert not group(run.pid)


def test_interrupt_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    run = command(400_000, tmp_path/'many', '--workers', 2, start_new_session=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob('many/part-*'))) < 2 and time.monotonic() < until: time.sleep(.1)
    os.killpg(run.pid, signal.SIGINT)   # as Ctrl-C in a terminal: everyone gets it
    err = run.communicate(timeout=60)[1]
    assert run.returncode == 75 and 'the same command' in err and 'Traceback' not in err
    assert len(list(tmp_path.glob('many/part-*'))) >= 2


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads peak memory from /proc')
def test_memory_does_not_grow_with_the_number_of_events(tmp_path):
    "Peak memory of the process for 2,000 and for 12,000 events of IceCube-86, joined into one file."
    code = ('import sys; from genesis.data.simulator import produce_events; produce_events(int(sys.argv[1]), sys.argv[2], kind="mixed"); '
            'print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))')   # ru_maxrss would count the process that started it
    peak = [int(subprocess.run([sys.executable, '-c', code, str(n), str(tmp_path/f'{n}.h5')], capture_output=True, text=True, check=True).stdout)/1024 for n in (2000, 12_000)]
    assert peak[1] < 400 and peak[1] < peak[0] + 100, peak


def test_number_of_workers_changes_nothing(tmp_path):
    with mock.patch.object(simulator, '_SHARD', 300):
        one = produce_events(1000, tmp_path/'one', workers=1, **ORDER)
    assert sorted(p.name for p in (tmp_path/'one').glob('*.h5')) == [f'part-{k:06d}.h5' for k in range(4)]
    assert same(one.load(), simulate_events(1000, **ORDER)) and same(read_events(tmp_path/'one'), one.load())
    two = produce_events(5000, tmp_path/'two.h5', workers=3, **ORDER)
    assert same(two.load(), simulate_events(5000, **ORDER)) and two.fingerprint == two.load().fingerprint


def test_another_production_is_refused(tmp_path):
    with mock.patch.object(simulator, '_SHARD', 50):
        produce_events(100, tmp_path/'a', **ORDER)
        with pytest.raises(ConfigError, match='another production') as e: produce_events(100, tmp_path/'a', **{**ORDER, 'seed': 4})
        assert 'seed: 3' in str(e.value) and 'seed: 4' in str(e.value)
        (tmp_path/'b').mkdir(); (tmp_path/'b'/'thesis.tex').write_text('precious')
        with pytest.raises(ConfigError, match='not a production'): produce_events(100, tmp_path/'b', **ORDER)
        assert [p.name for p in (tmp_path/'b').iterdir()] == ['thesis.tex']
        (tmp_path/'a'/'production.json').write_text('{"events": 1')
        with pytest.raises(DataError, match='production.json is damaged'): produce_events(100, tmp_path/'a', **ORDER)


@pytest.mark.parametrize('wrong, says', [
    (dict(kind='tracks'), 'did you mean: track'), (dict(workers=0), 'at least one worker'), (dict(energy=(10, 1)), '0 < lowest'), (dict(n=0), 'a positive integer'),
    (dict(threshold=-1), 'threshold'), (dict(detector='icecube87'), 'did you mean: icecube86'), (dict(min_hits=999), 'no event can ever trigger')])
def test_senseless_arguments_leave_nothing(tmp_path, wrong, says):
    call = {**dict(n=100, path=tmp_path/'x.h5'), **ORDER, **wrong}
    with pytest.raises(ConfigError, match=says): produce_events(**call)
    assert not list(tmp_path.iterdir())


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(['cascade', 'track', 'mixed']), st.integers(1, 40), st.integers(0, 30), st.integers(0, 2**40), st.booleans())
def test_an_event_is_a_function_of_seed_and_number(kind, n, first, seed, noise):
    whole = simulate_events(first+n, detector='toy', kind=kind, seed=seed, noise=noise)
    assert same(whole[first:], simulate_events(n, detector='toy', kind=kind, seed=seed, noise=noise, first=first))
    with mock.patch.object(simulator, '_PAIRS', 1): assert same(whole, simulate_events(first+n, detector='toy', kind=kind, seed=seed, noise=noise))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([CascadeLight, TrackLight]), st.integers(0, 2**32-1), st.floats(0, 9), st.floats(.3, 3))
def test_no_light_breaks_through_the_ceiling(cls, seed, log_energy, size):
    rng = np.random.default_rng(seed); ic = icecube86()
    det = from_positions(ic.xyz[rng.integers(0, ic.n_doms, 400)]*size + rng.uniform(-300, 300, 3), tol=.01)
    labels = np.column_stack([np.full(20, 10**log_energy), np.arccos(rng.uniform(-1, 1, 20)), rng.uniform(0, 7, 20), rng.uniform(-900, 900, (20, 3))]).astype(np.float32)
    light = cls(det); source = light.emit(labels, [np.random.default_rng([seed, i]) for i in range(20)])
    event, dom = (v.ravel() for v in np.indices((20, det.n_doms)))
    mu = sum(p.mu for p in light.expected(source, labels, event, dom))
    seen = mu > 1e-10   # 32 random bits cannot tell less light from darkness
    assert (mu <= light.ceiling(source, labels).ravel())[seen].all()


def test_saturation_and_threshold_only_change_charges():
    plain, bent, cut = (simulate_events(labels=simulate_events(30, seed=1).labels, seed=2, **kw) for kw in ({}, dict(saturation=True), dict(threshold=.25)))
    assert np.array_equal(plain.dom, bent.dom) and np.array_equal(plain.time, bent.time) and (bent.charge < plain.charge).all() and bent.charge.max() < 4000
    assert cut.charge.min() > .25 and set(zip(cut.event, cut.dom)) == {(e, d) for e, d, q in zip(plain.event, plain.dom, plain.charge) if q > .25}
