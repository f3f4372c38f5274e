"""`inspect`: each broken rule is found, with the events that break it, and nothing in a file makes it fall over."""
import json, re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from genesis.cli import main
from genesis.config import ExperimentConfig, override
from genesis.core import DataError
from genesis.data.detector import from_positions, toy_detector
from genesis.data.events import LABELS, EventFiles, read_events, write_events
from genesis.data.formats import FORMATS, convert, find_sources
from genesis.data.inspection import inspect
from genesis.data.photons import angle_doubts, doubts
from genesis.data.simulator import simulate_events
from genesis.training.setup import open_events


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


# ---- doubts: numbers that keep every rule and mean something else

REAL = Path(__file__).resolve().parents[1]/'../shared/data'


def labelled(events, **columns):
    y = events.labels.astype(float)
    for name, values in columns.items(): y[:, LABELS.index(name)] = values
    return replace(events, labels=y)


def scaled(events, factor): return labelled(events, **{k: factor*events.labels[:, 3+i].astype(float) for i, k in enumerate('xyz')})


def turned(events, f):
    zenith, azimuth = f(*events.labels[:, 1:3].astype(float).T)
    return labelled(events, zenith=zenith, azimuth=azimuth)


E = lambda e: e.labels[:, 0].astype(float)
WRONG = {
    'energies in TeV?': lambda e: labelled(e, energy=E(e)/1e3), 'energies in MeV?': lambda e: labelled(e, energy=1e3*E(e)), 'energies in eV?': lambda e: labelled(e[E(e) < 1e3], energy=1e9*E(e)[E(e) < 1e3]),
    'log10 of the energies?': lambda e: labelled(e, energy=np.log10(E(e))), 'natural logarithms of the energies?': lambda e: labelled(e, energy=np.log(E(e))),
    'charges in pe?': lambda e: replace(e, charge=50*e.charge), 'ends at 0.0': lambda e: replace(e, charge=e.charge/100),
    'times in ps?': lambda e: replace(e, time=1e3*e.time), 'times in µs?': lambda e: replace(e, time=e.time/1e3), 'times in tenths of ns?': lambda e: replace(e, time=10*e.time), 'times in s?': lambda e: replace(e, time=e.time/1e9),
    'vertices in km?': lambda e: scaled(e, 1e-3), 'vertices in cm?': lambda e: scaled(e, 100),
    'x and y of the vertices exchanged?': lambda e: labelled(e, x=e.labels[:, 4], y=e.labels[:, 3]), 'a depth below the surface?': lambda e: labelled(e, z=1948.07 - e.labels[:, 5].astype(float)),
    'z of the vertices upside down?': lambda e: labelled(e, z=-e.labels[:, 5]), 'another origin?': lambda e: labelled(e, x=e.labels[:, 3] + 700, z=e.labels[:, 5] - 300),
    'is the direction the one of motion?': lambda e: turned(e, lambda z, a: (np.pi - z, (a + np.pi) % (2*np.pi))), 'azimuth counted the other way round?': lambda e: turned(e, lambda z, a: (z, 2*np.pi - a)),
    'azimuth turned by 180°?': lambda e: turned(e, lambda z, a: (z, (a + np.pi) % (2*np.pi))), 'from north, clockwise?': lambda e: turned(e, lambda z, a: (z, (np.pi/2 - a) % (2*np.pi))),
    'zenith counted from below?': lambda e: turned(e, lambda z, a: (np.pi - z, a)), 'zenith and azimuth exchanged?': lambda e: turned(e[e.labels[:, 2] < np.pi], lambda z, a: (a, z)),
    'is the zenith a': lambda e: turned(e[e.labels[:, 1] < np.pi/2], lambda z, a: (np.cos(z), a)),
    'is time 0 that of the interaction': lambda e: replace(e, time=e.time - 1000), 'later than it could': lambda e: replace(e, time=e.time + 12_000)}


@pytest.fixture(scope='module')
def muons(): return simulate_events(200, kind='track', energy=(200, 1e6), seed=1)


@pytest.mark.parametrize('question', WRONG)
def test_a_mistake_is_asked_about_by_its_name(muons, question, tmp_path):
    events = WRONG[question](muons)
    found = doubts(events)
    assert len(found) == 1 and question in found[0], found
    shown = inspect(write_events(events, tmp_path/'odd.h5'))
    assert shown.ok and shown.doubts == found and [r for r, _ in shown.warnings if question in r]
    assert 'all rules hold' not in str(shown) and 'doubtful' in str(shown).splitlines()[-1] and json.loads(json.dumps(shown.to_dict()))['doubts'] == found


def test_light_that_comes_before_it_can_is_counted(muons):
    found, = doubts(WRONG['is the direction the one of motion?'](muons))
    early, of = re.match(r'light comes before it can in (\d+) of (\d+) events; ', found).groups()
    assert int(early) > 100 and of == '200' and found.endswith('is the direction the one of motion?')


@pytest.mark.parametrize('noise', [False, True])
@pytest.mark.parametrize('kind', ['cascade', 'track', 'mixed'])
@pytest.mark.parametrize('energy', [(200, 400), (200, 1e6), (5e5, 1e6)])
def test_no_false_alarm_on_what_is_right(kind, noise, energy):
    for detector in (None, toy_detector()):
        events = simulate_events(60, detector=detector, kind=kind, noise=noise, energy=energy, seed=7)
        for n in (1, 2, 5, 10, 60):
            assert doubts(events[:n]) == []
            assert doubts(replace(events[:n], kind=0*events.kind[:n])) == [], 'also where the kind is not known'


def test_no_false_alarm_where_labels_are_missing(muons):
    for lack in (LABELS[3:], LABELS[:1], LABELS[1:3], ('energy', *LABELS[3:]), LABELS):
        y = muons.labels.copy(); y[:, [LABELS.index(k) for k in lack]] = np.nan
        assert doubts(replace(muons, labels=y, meta=dict(missing=list(lack)))) == []
    y = WRONG['is the direction the one of motion?'](muons).labels.copy(); y[:, 3:] = np.nan
    assert 'one of motion' in doubts(replace(muons, labels=y, meta=dict(missing=list(LABELS[3:]))))[0], 'the times say where a muon goes'
    assert doubts(muons[:0]) == []


def test_other_detectors_are_no_mistake():
    for pitch, spacing, n in ((20., 9., 60), (70., 30., 40), (240., 17., 40)):  # dense in water, sparse, next generation
        at = pitch*np.stack(np.meshgrid(*2*[np.arange(6) - 2.5]), -1).reshape(-1, 2)
        xyz = np.concatenate([np.column_stack([np.tile(p, (n, 1)), spacing*(np.arange(n) - n/2)]) for p in at])
        events = simulate_events(80, detector=from_positions(xyz, f'other-{pitch:g}'), kind='mixed', energy=(1e3, 1e5), seed=3)
        assert doubts(events) == [] and doubts(events[:8]) == []
        assert 'energies in TeV' in doubts(WRONG['energies in TeV?'](events))[0]
    small = from_positions(xyz/1e3, 'km'); assert 'positions in km' in doubts(replace(events, detector=small))[0]
    large = from_positions(xyz*100, 'cm'); assert 'positions in cm' in doubts(replace(events, detector=large))[0]


@pytest.mark.skipif(not REAL.is_dir(), reason='the real files are not there')
@pytest.mark.parametrize('name', ['ppc/cascades_test.h5', 'ppc/cascades_train.h5', 'ppc/tracks_draws.h5', 'ppc/tracks_test.h5', 'ppc/tracks_train.h5', 'events/prometheus_ic86_nue_cc.parquet',
                                  'events/graphnet_oscnext_5events.db', 'events/graphnet_oscnext_parquet', 'events/graphnet_prometheus_parquet'])
def test_no_false_alarm_on_real_files(name, tmp_path):
    if name.endswith('.h5'): events = EventFiles(REAL/name)
    else:
        reader, pieces = find_sources(REAL/name)
        events = FORMATS[reader](pieces[0])
    assert doubts(events) == []
    if name.endswith('.h5'): assert inspect(REAL/name).doubts == [] and 'all rules hold' in str(inspect(REAL/name))
    else: assert not [a for a in convert(REAL/name, tmp_path/'x.h5')['assumptions'] if 'doubtful' in a]


@pytest.mark.skipif(not REAL.is_dir(), reason='the real files are not there')
@pytest.mark.parametrize('question', ['energies in TeV?', 'times in ps?', 'vertices in km?', 'is the direction the one of motion?', 'charges in pe?'])
def test_mistakes_with_real_light_are_seen_too(question):
    events = EventFiles(REAL/'ppc/tracks_test.h5').load()
    assert question in doubts(WRONG[question](events))[0]


def test_angles_that_are_none(muons):
    y = muons.labels.astype(float)
    degrees = y*[1, 180/np.pi, 180/np.pi, 1, 1, 1]
    assert angle_doubts(y) == [] and angle_doubts(y[:0]) == []
    assert 'degrees' in angle_doubts(degrees)[0]
    assert 'azimuths up to 3' in angle_doubts(np.where(np.arange(6) == 2, degrees, y))[0]
    assert 'exchanged' in angle_doubts(y[:, [0, 2, 1, 3, 4, 5]])[0]
    assert 'cosines' in angle_doubts(np.where(np.arange(6) == 1, np.cos(y), y))[0]
    with pytest.raises(DataError, match='are the angles in degrees'): replace(muons, labels=degrees)


def test_degrees_in_a_file(path):
    with h5py.File(path, 'r+') as f: f['label'][:, 1:3] = np.degrees(f['label'][:, 1:3])
    found = inspect(path)
    assert not found.ok and 'are they in degrees?' in found.doubts[0] and 'zenith is outside' in str(found)


def test_training_and_conversion_ask_the_same(muons, tmp_path, caplog, capsys):
    odd = write_events(WRONG['energies in TeV?'](muons), tmp_path/'odd.h5')
    open_events(override(ExperimentConfig(), {'data.h5_path': odd}))
    assert 'are the energies in TeV?' in caplog.text
    caplog.clear()
    assert any('doubtful: ' in a and 'energies in TeV?' in a for a in convert(odd, tmp_path/'twice.h5')['assumptions']) and 'energies in TeV?' in caplog.text
    assert main(['inspect', str(odd)]) == 0 and 'all rules hold' not in capsys.readouterr().out
    caplog.clear()
    open_events(override(ExperimentConfig(), {'data.h5_path': write_events(muons, tmp_path/'good.h5')}))
    assert not caplog.text
