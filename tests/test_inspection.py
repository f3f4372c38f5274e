"""`inspect`: each broken rule is found, with the events that break it, and nothing in a file makes it fall over."""
import json

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from genesis.cli import main
from genesis.core import DataError
from genesis.data.detector import toy_detector
from genesis.data.events import read_events, write_events
from genesis.data.inspection import inspect
from genesis.data.simulator import simulate_events


@pytest.fixture(scope='module')
def events(): return simulate_events(40, detector=toy_detector(), seed=1, kind='mixed')


@pytest.fixture
def path(tmp_path, events): return write_events(events, tmp_path/'toy.h5')


def edit(path, name, where, value):
    with h5py.File(path, 'r+') as f:
        d = f[name]
        if d.ndim == 2: d[where[0], where[1]] = value
        else: d[f['event_ptr'][where]] = value
    return path


@pytest.mark.parametrize('name, where, value, rule', [
    ('charge', 7, -1, 'charge is negative'), ('charge', 7, np.nan, 'charge is not finite'), ('time', 7, np.inf, 'time is not finite'), ('dom', 7, 84, 'DOM index outside 0 to 83'),
    ('label', (7, 0), -5, 'energy is outside'), ('label', (7, 1), 4, 'zenith is outside'), ('label', (7, 2), 99, 'azimuth is outside'), ('label', (7, 4), np.nan, 'y is not finite'), ('label', (7, 5), 1e9, 'z is outside')])
def test_each_rule_names_its_event(path, name, where, value, rule):
    found = inspect(edit(path, name, where, value))
    assert [(r, e.tolist()) for r, e in found.errors if r.startswith(rule)] == [(next(r for r, _ in found.errors if r.startswith(rule)), [7])]
    with pytest.raises(DataError): read_events(path)
    assert not found.ok and rule in str(found) and json.loads(json.dumps(found.to_dict()))['errors']


def test_every_rule_at_once_and_across_files(tmp_path, path, events):
    write_events(events, tmp_path/'zero.h5')
    edit(edit(edit(path, 'charge', 3, -1), 'time', 30, np.nan), 'label', (9, 1), 7)
    found = dict(inspect([tmp_path/'zero.h5', path]).errors)
    assert {k.split()[0]: v.tolist() for k, v in found.items()} == {'charge': [43], 'time': [70], 'zenith': [49]}


def test_kinds_duplicates_and_early_light(path, events):
    with h5py.File(path, 'r+') as f:
        ptr = f['event_ptr'][...]; f['kind'][2] = 9; f['dom'][ptr[4]+1] = f['dom'][ptr[4]]
        early = int(np.flatnonzero(events.kind == 1)[5]); f['time'][ptr[early]] = -9000
    found = inspect(path); errors = dict(found.errors)
    assert errors['kind does not exist'].tolist() == [2] and errors['DOM is hit twice'].tolist() == [4]
    assert [e.tolist() for r, e in found.warnings if 'before it can' in r] == [[early]]


def test_pointer_that_does_not_fit(path):
    with h5py.File(path, 'r+') as f: f['event_ptr'][5] = 10**6
    found = inspect(path); assert not found.ok and any('pointer goes backwards' in r for r, _ in found.errors)


def test_dense_files_and_files_of_others(tmp_path, events):
    found = inspect(write_events(events, tmp_path/'d.h5', 'dense')); assert found.ok and found.n_hits == len(events.dom)
    with h5py.File(tmp_path/'d.h5', 'r+') as f: f['input'][6, 0, 3] = -2
    assert dict(inspect(tmp_path/'d.h5').errors)['charge is negative'].tolist() == [6]
    (tmp_path/'t.h5').write_text('no')
    with pytest.raises(DataError, match='not an HDF5 file'): inspect(tmp_path/'t.h5')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.integers(0, 7), st.integers(1, 40))
def test_no_damage_makes_it_fall_over(tmp_path, events, place, bit, length):
    path = write_events(events, tmp_path/'x.h5'); raw = bytearray(path.read_bytes()); at = int(place*(len(raw)-1))
    for i in range(at, min(at+length, len(raw))): raw[i] ^= 1 << bit
    path.write_bytes(raw)
    try: found = inspect(path)
    except DataError: return
    same = lambda: all(np.array_equal(getattr(read_events(path), k), getattr(events, k)) for k in ('ptr', 'dom', 'charge', 'time', 'labels', 'kind'))
    assert not found.ok or same()


def test_the_command(path, capsys, tmp_path):
    assert main(['inspect', str(path), '--json', str(tmp_path/'i.json'), '--png', str(tmp_path/'i.png')]) == 0
    assert 'all rules hold' in capsys.readouterr().out and json.loads((tmp_path/'i.json').read_text())['n_events'] == 40 and (tmp_path/'i.png').read_bytes()[:4] == b'\x89PNG'
    edit(path, 'charge', 3, -1); assert main(['inspect', str(path)]) == 3
    assert 'ERROR charge is negative or zero on a hit: 1 event, 3' in capsys.readouterr().out
