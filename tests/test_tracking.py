"Photons followed by ppc: what it is told, what is made of its answers, and what happens when it lies, dies, or is none. A stand-in speaks its language; a real one is asked where PPC and PPC_ICE name it."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from genesis.cli import main
from genesis.core import ConfigError, DataError
from genesis.data.detector import Z_SURFACE, from_positions, icecube86, toy_detector
from genesis.data.events import KINDS, direction, read_events, residual_time
from genesis.data.losses import CUT, DENSITY, IONISATION, RADIATION, largest_electron, muon_trail
from genesis.data.tracking import SOURCES, event_sources, f2k_lines, geo_lines, open_ppc, produce_tracked, read_geo, read_photons, track_events

TOY = toy_detector()
STAND_IN = Path(__file__).with_name('ppc_stand_in.py')
TABLES = {'cfg.txt': '5 # oversize\n0.9 # efficiency\n0.45 # SAM\n0.9 # g\n', 'as.dat': '0.75\n0.3\n0.6\n', 'icemodel.dat': '1000 .05 .01 0\n2800 .05 .01 0\n',
          'icemodel.par': '0 0\n', 'wv.dat': '0 300\n', 'rnd.txt': '4294967118\n4294966893\n'}
FAST = dict(seed=1, energy=(500, 5000), min_hits=4)


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp('program')/'ppc'
    path.write_text(f'#!{sys.executable}\n{STAND_IN.read_text()}')
    path.chmod(0o755)
    return path


@pytest.fixture
def ice(tmp_path):
    folder = tmp_path/'ice'
    folder.mkdir()
    for name, text in TABLES.items(): (folder/name).write_text(text)
    return folder


@pytest.fixture
def ppc(program, ice, monkeypatch):
    monkeypatch.delenv('STAND_IN', raising=False)
    return open_ppc(program, ice, TOY)


# Losses

@pytest.mark.parametrize('energy', [30., 1000., 1e5])
def test_losses_of_each_kind_are_as_frequent_as_the_closed_forms_say(energy):
    n, length = 4000, 10.
    trail = muon_trail(energy, np.full(n, length), [np.random.default_rng([5, i]) for i in range(n)])
    for k, process in enumerate(RADIATION):
        seen = (trail.process == k).sum()
        due = n*length*DENSITY*process.b/process.mean(1.)*process.tail(CUT/energy)
        assert stats.poisson.cdf(seen, due) > 1e-4 and stats.poisson.sf(seen-1, due) > 1e-4, (process.name, seen, due)
    assert (trail.energy > CUT*(1 - 1e-6)).all() and (trail.energy < energy).all()
    assert np.isclose(np.bincount(trail.piece_muon, weights=trail.piece_length, minlength=n), length).all()


def test_the_spectrum_of_a_loss_is_the_published_one():
    n, energy = 4000, 2000.
    trail = muon_trail(energy, np.full(n, 10.), [np.random.default_rng([6, i]) for i in range(n)])
    for k, process in enumerate(RADIATION):
        share = trail.energy[trail.process == k]/energy
        above = lambda v: 1 - process.tail(np.clip(v, CUT/energy, 1))/process.tail(CUT/energy)
        assert stats.kstest(share, above).pvalue > 1e-4, process.name
    electrons = trail.energy[trail.process == len(RADIATION)]
    most = largest_electron(energy)
    def below(T):
        "The integral of (1 − T/Tmax + T²/2E²)/T² from the cut to T."
        return 1/CUT - 1/T - np.log(T/CUT)/most + (T - CUT)/(2*energy**2)
    assert stats.kstest(electrons, lambda T: below(T)/below(most)).pvalue > 1e-4


def test_a_muon_stops_where_the_mean_loss_says():
    "Below a few GeV hardly anything is radiated: range = energy over loss."
    trail = muon_trail(20., 1000., [np.random.default_rng(i) for i in range(400)])
    length = np.bincount(trail.piece_muon, weights=trail.piece_length)
    assert length.mean() == pytest.approx(20/(DENSITY*(IONISATION + 3.5e-4*10)), rel=.05)


# What ppc is told

def test_lines_say_where_and_whither():
    labels = np.array([[100, .3, 1., 10, 20, -300], [300, 2.5, 5., 0, 0, -250]], np.float32)
    sources = event_sources(labels, np.array([2, 1]), [np.random.default_rng(i) for i in range(2)], TOY)
    assert sources.energy[sources.event == 1].sum() == pytest.approx(300)
    u = direction(labels[:, 1], labels[:, 2])
    for angles in ('motion', 'origin'):
        lines, which = f2k_lines(sources, labels, angles)
        assert lines[0] == 'EM 1 1 0 0 0 0' and lines[-1] == 'EE' and (which >= 0).sum() == len(sources.event)
        for line, k in zip(lines, which):
            if k < 0: continue
            word = line.split()
            assert word[0] == 'TR' and word[3] == SOURCES[sources.name[k]]
            x, y, z, theta, phi, length, energy, t = map(float, word[4:])
            if angles == 'origin': theta, phi = np.radians(180 - theta), np.radians(phi + 180)
            went = np.array([np.sin(theta)*np.cos(phi), np.sin(theta)*np.sin(phi), np.cos(theta)])
            event = sources.event[k]
            assert np.allclose(went, u[event], atol=1e-5)
            assert np.allclose([x, y, z], labels[event, 3:] + u[event]*t*.299792458, atol=.01)
            assert (length > 0) == (word[3] == 'amu-')


def test_a_muon_is_followed_only_where_it_can_be_seen():
    outward = np.array([[1e6, np.pi/2, np.pi, 400, 0, -300], [1e6, np.pi/2, 0, 3000, 0, -300], [1e6, np.pi/2, np.pi, 3000, 0, -300]], np.float32)
    sources = event_sources(outward, np.full(3, 2), [np.random.default_rng(i) for i in range(3)], TOY)
    far = [np.linalg.norm(sources.at[sources.event == i] - outward[i, 3:], axis=1).max() for i in range(3)]
    assert far[0] < 800           # from the edge outwards
    assert 2000 < far[1] < 4000   # towards the detector, through it, and not farther
    assert far[2] == 0            # it never comes near


def test_geometry_there_and_back(tmp_path):
    det = icecube86()
    (tmp_path/'geo-f2k').write_text('\n'.join(geo_lines(det)))
    (tmp_path/'eff-f2k').write_text(''.join(f'{s} {d} 1.35\n' for s, d, e in zip(det.string, det.dom, det.rde) if e > 1))
    back = read_geo(tmp_path)
    assert np.abs(back.xyz - det.xyz).max() < 1e-3 and (back.string == det.string).all() and (back.dom == det.dom).all() and np.allclose(back.rde, det.rde)
    assert float((tmp_path/'geo-f2k').read_text().split()[4]) == pytest.approx(det.xyz[0, 2] - Z_SURFACE, abs=1e-3)


# What is made of its answers

def test_labels_and_losses_are_functions_of_seed_and_number(ppc):
    whole = track_events(ppc, 6, kind='mixed', seed=3, energy=(500, 5000), min_hits=0)
    part = track_events(ppc, 2, kind='mixed', seed=3, energy=(500, 5000), min_hits=0, first=2)
    assert (whole.labels[2:4] == part.labels).all() and (whole.kind[2:4] == part.kind).all()
    other = track_events(ppc, 6, kind='mixed', seed=4, energy=(500, 5000), min_hits=0)
    assert not (other.labels == whole.labels).all(1).any()
    assert not np.array_equal(track_events(ppc, 6, kind='mixed', seed=3, energy=(500, 5000), min_hits=0).time, whole.time)   # ppc's own dice are seeded by the clock


def test_a_ppc_without_a_clock_gives_the_same_again(program, ice, monkeypatch):
    monkeypatch.setenv('STAND_IN', 'deterministic')
    ppc = open_ppc(program, ice, TOY)
    assert 'number of the device' in ppc.about['dice']
    a, b = (track_events(ppc, 5, kind='mixed', **FAST) for _ in range(2))
    assert a.fingerprint == b.fingerprint


def test_every_photon_is_in_a_hit(ppc):
    events, photons = track_events(ppc, 5, kind='mixed', photons=True, **FAST)
    event = np.repeat(np.arange(5), np.diff(photons.ptr))
    key, n = np.unique(event*TOY.n_doms + photons.dom, return_counts=True)
    assert (key == events.event*TOY.n_doms + events.dom).all()
    spread = np.sqrt(n/4.9)
    assert (np.abs(events.charge - n) < 6*spread + .5).all()
    first = np.full(TOY.n_doms*5, np.inf); np.minimum.at(first, event*TOY.n_doms + photons.dom, photons.time)
    assert np.abs(events.time - first[key]).max() < 6*5 and np.std(events.time - first[key]) == pytest.approx(5, rel=.3)   # the clock: 5 ns
    assert (photons.wavelength == 400.5).all() and np.allclose(photons.zenith, np.pi/2, atol=1e-3) and np.allclose(photons.azimuth, .25)
    assert set(photons.source[np.isin(event, np.flatnonzero(events.kind == 1))]) <= {SOURCES.index('hadr'), SOURCES.index('e-')}
    assert (events.n_hits >= 4).all() and events.meta['min_hits'] == 4


def test_light_comes_from_where_it_was_made(ppc):
    "A cascade lights the DOMs around its vertex, a muon those along its way: angles, heights and times are as meant."
    inside = np.array([[2000, 1.2, .5, 10, -5, -330]], np.float32)
    cascade = track_events(ppc, labels=inside, seed=1)
    assert np.linalg.norm(np.average(TOY.xyz[cascade.dom], axis=0, weights=cascade.charge) - inside[0, 3:]) < 30
    down = np.array([[500, 0, 0, 5, 5, -150]], np.float32).repeat(20, 0)
    track = track_events(ppc, labels=down, kind='track', seed=1)
    assert stats.spearmanr(TOY.xyz[track.dom, 2], track.time).statistic < -.5   # 20 muons downwards; the light itself is late by 100 ns
    assert np.median(residual_time(track)) > -10


def test_noise_saturation_and_threshold_are_those_of_the_toy(ppc):
    quiet = track_events(ppc, 3, **FAST)
    noisy = track_events(ppc, 40, seed=1, min_hits=0, noise=True, energy=(1, 2))
    rate = 560e-9*6000*TOY.n_doms
    assert noisy.n_hits.mean() == pytest.approx(rate, abs=4*np.sqrt(rate/40)) and noisy.meta['noise'] is True
    bent = track_events(ppc, labels=quiet.labels, seed=1, saturation=True, threshold=.8)
    assert (bent.charge > .8).all() and bent.charge.max() < 4000 and bent.meta['threshold'] == .8


def test_the_file_says_how_it_was_made(ppc, program, ice):
    about = track_events(ppc, 2, **FAST).meta['ppc']
    assert about['oversize'] == 5 and about['efficiency'] == .9 and about['angles'] == 'motion' and 'clock' in about['dice'] and about['build'] == 'CPU'
    assert about['acceptance'] == 'as.dat of the folder' and about['detector'] == TOY.fingerprint and about['tilt'] is False
    assert '/' not in json.dumps(about).replace('http://', '')   # no path of this machine
    set_here = open_ppc(program, ice, TOY, oversize=1, efficiency=.5, acceptance='hole-ice').about
    assert (set_here['oversize'], set_here['efficiency']) == (1, .5) and 'hole ice' in set_here['acceptance'] and set_here['tables'] != about['tables']
    assert (ice/'cfg.txt').read_text() == TABLES['cfg.txt'] and sorted(p.name for p in ice.iterdir()) == sorted(TABLES)   # the user's folder stays as it is


def test_a_curve_takes_the_place_of_none(program, ice, caplog):
    (ice/'as.dat').write_text('1\n')
    ppc = open_ppc(program, ice, TOY)
    assert 'hole ice' in ppc.about['acceptance'] and 'every photon that touches' in caplog.text
    assert len(ppc.written['as.dat'].split()) == 12 and ppc.written['as.dat'].split()[1] == '0.32813'
    assert 'as.dat' not in open_ppc(program, ice, TOY, acceptance='folder').written


def test_the_angles_of_f2000_are_found(program, ice, monkeypatch):
    monkeypatch.setenv('STAND_IN', 'degrees')
    ppc = open_ppc(program, ice, TOY)
    assert ppc.angles == 'origin'
    test_light_comes_from_where_it_was_made(ppc)


# Faults of the program

@pytest.mark.parametrize('fault, message', [
    ('sideways', 'reads angles or places in a way that is not known'), ('depth', 'hardly any light'), ('dark', 'hardly any light'), ('fewer', 'another detector|does not have')])
def test_a_ppc_that_reads_differently_is_found_before_anything_is_simulated(program, ice, monkeypatch, fault, message):
    monkeypatch.setenv('STAND_IN', fault)
    with pytest.raises(DataError, match=message): open_ppc(program, ice, TOY)


@pytest.mark.parametrize('fault, message', [
    ('dies', 'ppc failed.*after event 1 of 3'), ('killed', 'SIGKILL'), ('cut', r'after event 1 of 3'), ('ends', 'ends after event 1 of 3'), ('talks', "something else after event 1"),
    ('stranger', 'string 99, DOM 3'), ('letters', 'cannot be read'), ('nan', 'not finite'), ('first', 'before any source|something else'), ('cuda', 'out of memory')])
def test_a_ppc_that_fails_leaves_nothing(ppc, tmp_path, monkeypatch, fault, message):
    monkeypatch.setenv('STAND_IN', fault)
    monkeypatch.setenv('TMPDIR', str(tmp_path)); monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(DataError, match='(?s)' + message): produce_tracked(ppc, 3, tmp_path/'events.h5', **FAST)
    assert [p.name for p in tmp_path.iterdir()] == ['ice']   # no file, no folder, no temporary folder


def test_lost_hits_are_said(ppc, monkeypatch, caplog):
    monkeypatch.setenv('STAND_IN', 'overflow')
    events = track_events(ppc, 2, **FAST)
    assert 'lost photons' in events.meta['assumptions'][0] and 'overflowed' in caplog.text


def test_what_is_no_ppc_is_refused(program, ice, tmp_path):
    with pytest.raises(ConfigError, match='(?s)no ppc at.*did you mean: ppc'): open_ppc(program.with_name('pcp'), ice, TOY)
    with pytest.raises(ConfigError, match='a folder'): open_ppc(tmp_path, ice, TOY)
    with pytest.raises(ConfigError, match='is not ppc'): open_ppc('/bin/true', ice, TOY)
    (tmp_path/'text').write_text('hello')
    with pytest.raises(ConfigError, match='cannot be run'): open_ppc(tmp_path/'text', ice, TOY)
    with pytest.raises(ConfigError, match='built for CPUs'): open_ppc(program, ice, TOY, gpus=[0])
    for wrong in (dict(oversize=1.5), dict(oversize=0), dict(efficiency=-1), dict(acceptance='hole')):
        with pytest.raises(ConfigError): open_ppc(program, ice, TOY, **wrong)


# Faults of the tables

def spoil(ice, name, text=None):
    (ice/name).unlink(missing_ok=True)
    if text is not None: (ice/name).write_text(text)


@pytest.mark.parametrize('name, text, message', [
    ('wv.dat', None, 'no wv.dat'), ('rnd.txt', 'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'), ('rnd.txt', '', 'empty file'), ('cfg.txt', '5\n0.9\n', 'cfg.txt is incomplete'),
    ('icemodel.dat', '1000 .05 .01\n', 'not a table'), ('icemodel.dat', '2800 .05 .01 0\n1000 .05 .01 0\n', 'makes no sense'),
    ('icemodel.dat', '100 .05 .01 0\n200 .05 .01 0\n', 'does not lie in the ice'), ('tilt.par', '1 0\n', 'only one of'), ('geo-f2k', 'a b c\n', 'not a list of DOMs')])
def test_tables_that_are_missing_damaged_or_of_another_ice(program, ice, name, text, message):
    spoil(ice, name, text)
    with pytest.raises(DataError, match=message): open_ppc(program, ice, TOY)


def test_another_geometry_in_the_folder(program, ice):
    lines = geo_lines(TOY)
    (ice/'geo-f2k').write_text('\n'.join(lines[:-1]))
    with pytest.raises(DataError, match='(?s)another detector than toy.*83 DOMs'): open_ppc(program, ice, TOY)
    words = lines[5].split(); words[2] = str(float(words[2]) + 30)
    (ice/'geo-f2k').write_text('\n'.join([*lines[:5], ' '.join(words), *lines[6:]]))
    with pytest.raises(DataError, match='(?s)in other places.*30.0 m away.*folder'): open_ppc(program, ice, TOY)
    assert open_ppc(program, ice, 'folder').detector.n_doms == 84
    (ice/'geo-f2k').write_text('\n'.join(lines))
    assert open_ppc(program, ice, TOY).detector is TOY
    with pytest.raises(ConfigError, match='no folder with the tables'): open_ppc(program, ice/'nowhere', TOY)
    tall = from_positions([[0, 0, -200 - i] for i in range(70)])
    with pytest.raises(DataError, match='would leave out DOMs'): open_ppc(program, ice, tall)


# Labels

def test_labels_that_cannot_be(ppc, monkeypatch):
    monkeypatch.setattr('genesis.data.tracking._ATTEMPTS', 3)
    good = np.array([[1000, 1, 1, 0, 0, -300]], np.float32)
    for column, value in ((0, -5), (0, np.nan), (1, 4.), (5, 1e7)):
        bad = good.repeat(3, 0); bad[1, column] = value
        with pytest.raises(DataError, match='1 events: 1'): track_events(ppc, labels=bad)
    with pytest.raises(DataError, match='wrong shape'): track_events(ppc, labels=good[:, :4])
    far = good.copy(); far[0, 3] = 5000
    with pytest.raises(ConfigError, match='(?s)hardly any event triggers.*5000'): track_events(ppc, labels=far, min_hits=4)
    assert track_events(ppc, labels=far).n_hits[0] == 0
    for wrong in (dict(n=0), dict(n=3, labels=good), dict(n=2, seed=1.5), dict(n=2, energy=(5, 1)), dict(n=2, kind='muon'), dict(n=2, min_hits=85)):
        with pytest.raises(ConfigError): track_events(ppc, **wrong)


# On disk

def test_shards_photons_and_a_file_that_is_there(ppc, tmp_path):
    out = tmp_path/'events.h5'
    files = produce_tracked(ppc, 7, out, kind='mixed', batch=3, photons=True, **FAST)
    events, photons = read_events(out), read_photons(tmp_path/'events.photons.h5')
    assert len(files) == 7 and photons.ptr.shape == (8,)
    event = np.repeat(np.arange(7), np.diff(photons.ptr))
    assert (np.unique(event*TOY.n_doms + photons.dom) == events.event*TOY.n_doms + events.dom).all()
    assert events.meta['ppc'] == ppc.about and sorted(p.name for p in tmp_path.iterdir()) == ['events.h5', 'events.photons.h5', 'ice']
    with pytest.raises(ConfigError, match='already there'): produce_tracked(ppc, 7, out, **FAST)
    with h5py.File(tmp_path/'events.photons.h5') as f: assert f.attrs['sources'].split(',') == list(SOURCES)
    with pytest.raises(DataError, match='not a file of photons'): read_photons(out)
    with pytest.raises(DataError, match='no file'): read_photons(tmp_path/'none.h5')


def test_a_folder_of_shards_in_two_processes(ppc, tmp_path, monkeypatch):
    monkeypatch.setenv('STAND_IN_LOG', str(tmp_path/'log'))
    labels = np.tile(np.array([[2000, 1, 1, 0, 0, -330]], np.float32), (6, 1))
    files = produce_tracked(ppc, None, tmp_path/'shards', labels=labels, kind=np.array([1, 2]*3), workers=2, batch=2, photons=True, seed=2)
    assert sorted(p.name for p in (tmp_path/'shards').iterdir()) == [*(f'part-00000{i}.h5' for i in range(3)), 'production.json']
    assert len(read_photons(tmp_path/'shards.photons.h5').ptr) == 7 and (read_events(tmp_path/'shards').kind == [1, 2]*3).all()
    assert set((tmp_path/'log').read_text().split()) <= {'0', '1'}   # random sequences: there are two multipliers
    again = produce_tracked(ppc, None, tmp_path/'shards', labels=labels, kind=np.array([1, 2]*3), workers=2, batch=2, photons=True, seed=2)
    assert len(again) == 6
    with pytest.raises(ConfigError, match='another production'): produce_tracked(ppc, None, tmp_path/'shards', labels=labels, kind='track', batch=2, photons=True, seed=2)


def test_it_goes_on_where_it_failed(ppc, program, ice, tmp_path, monkeypatch):
    from genesis.data import tracking
    calls, really = [], tracking.track_events
    def fails_late(ppc, *args, first, **kw):
        calls.append(first)
        if first == 4: monkeypatch.setenv('STAND_IN', 'dies')
        return really(ppc, *args, first=first, **kw)
    monkeypatch.setattr(tracking, 'track_events', fails_late)
    make = lambda: produce_tracked(ppc, 6, tmp_path/'a.h5', batch=2, photons=True, **FAST)
    with pytest.raises(DataError, match='ppc failed'): make()
    assert not (tmp_path/'a.h5').exists() and calls == [0, 2, 4]
    kept = [read_events(tmp_path/'a.h5.parts'/f'part-00000{i}.h5').fingerprint for i in (0, 1)]
    monkeypatch.delenv('STAND_IN'); monkeypatch.setattr(tracking, 'track_events', really)
    make()
    events = read_events(tmp_path/'a.h5')
    assert [events[i:i+2].fingerprint for i in (0, 2)] == kept and len(read_photons(tmp_path/'a.photons.h5').ptr) == 7


def test_another_ice_does_not_go_on_with_an_old_production(ppc, program, ice, tmp_path):
    produce_tracked(ppc, 2, tmp_path/'folder', batch=2, **FAST)
    (ice/'wv.dat').write_text('0 400\n')
    with pytest.raises(ConfigError, match='another production'): produce_tracked(open_ppc(program, ice, TOY), 2, tmp_path/'folder', batch=2, **FAST)


# The command

def say(capsys, *line):
    capsys.readouterr()
    try: code = main([str(word) for word in line])
    except SystemExit as e: code = e.code
    out, err = capsys.readouterr()
    return code, out + err


def test_the_command_follows_photons(program, ice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.delenv('STAND_IN', raising=False)
    how = ['simulate', '--engine', 'ppc', '--ppc', program, '--ice', ice, '--detector', 'toy', '--min-hits', 4, '--seed', 1]
    code, text = say(capsys, *how, '--events', 3, '--kind', 'track', '--energy', 500, 5000, '--out', 'a.h5', '--photons')
    assert code == 0 and 'angles: motion' in text and (tmp_path/'a.photons.h5').exists(), text
    code, text = say(capsys, *how, '--labels', 'a.h5', '--draws', 2, '--out', 'b.h5')
    a, b = read_events('a.h5'), read_events('b.h5')
    assert code == 0 and (b.labels == a.labels.repeat(2, 0)).all() and (b.kind == KINDS.index('track')).all(), text
    code, text = say(capsys, 'simulate', '--labels', 'a.h5', '--detector', 'toy', '--out', 'toy.h5', '--min-hits', 0)
    assert code == 0 and (read_events('toy.h5').labels == a.labels).all(), text
    for line, message in (([*how, '--labels', 'a.h5', '--events', 2], 'contradict'), ([*how, '--draws', 2], '--labels FILE'), ([*how[:3]], 'no --ppc PATH and no --ice FOLDER'),
                          ([*how, '--schema', 'dense'], 'sparse'), (['simulate', '--photons'], 'does not know'), ([*how, '--ppc', 'nowhere'], 'no ppc at'), ([*how, '--out', 'a.h5'], 'already there'),
                          ([*how, '--detector', 'icecube'], 'icecube86')):
        code, text = say(capsys, *line)
        assert code in (2, 3) and message in text and 'Traceback' not in text, text


def test_a_kill_leaves_whole_shards_and_no_program_running(program, ice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = [Path(sys.executable).with_name('genesis'), *f'simulate --engine ppc --ppc {program} --ice {ice} --detector toy --min-hits 4 --energy 500 5000 --events 40 --batch 2 --out a.h5'.split()]
    p = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts, end = tmp_path/'a.h5.parts', time.time() + 120
    while not list(parts.glob('part-*.h5')) and time.time() < end: time.sleep(.05)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 75 and 'goes on' in err, err
    done = [read_events(f) for f in sorted(parts.glob('part-*.h5'))]
    assert done and all(len(e) == 2 for e in done) and not (tmp_path/'a.h5').exists()
    assert str(program) not in subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert read_events('a.h5')[:2].fingerprint == done[0].fingerprint


# A real one

DATA = Path(__file__).resolve().parents[2]/'shared'/'data'/'ppc'


@pytest.mark.skipif(not (os.environ.get('PPC') and os.environ.get('PPC_ICE')), reason='PPC and PPC_ICE name no installed ppc and no ice')
def test_a_real_ppc_is_understood():
    ppc = open_ppc(os.environ['PPC'], os.environ['PPC_ICE'])
    ev = track_events(ppc, labels=np.array([[1000, 1., 1., 30, 20, -350]], np.float32), seed=1, min_hits=8)
    assert np.linalg.norm(np.average(ev.detector.xyz[ev.dom], axis=0, weights=ev.charge) - [30, 20, -350]) < 60
    assert (residual_time(ev) > -25).mean() > .99
