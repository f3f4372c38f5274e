"""Files of other programs that are read by their content: tables of IceTray, i3cols, KM3NeT, NTSim, text of many spellings; and those that cannot be."""
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from genesis.core import ConfigError, DataError
from genesis.data.detector import Detector, get_detector
from genesis.data.events import LABELS, read_events, write_events
from genesis.data.formats import FORMATS, convert, find_format, from_csv, to_csv, to_graphnet
from genesis.data.icetray import from_hdfwriter, from_i3cols
from genesis.data.simulator import simulate_events
from genesis.data.water import charge_of_tot, from_ntsim


@pytest.fixture(scope='module')
def events(): return simulate_events(12, seed=2, kind='mixed', energy=(1e3, 1e5), min_hits=20)


def same(got, ev, time=0., atol=.05):
    for k in ('ptr', 'dom', 'kind'): assert np.array_equal(getattr(got, k), getattr(ev, k)), k
    np.testing.assert_allclose(got.charge, ev.charge, rtol=1e-4)
    np.testing.assert_allclose(got.time, ev.time + time, atol=atol)
    np.testing.assert_allclose(got.labels, ev.labels, rtol=1e-4, atol=2e-3)


def spaced(columns):
    "Rows whose columns lie 16 bytes apart, as hdfwriter makes them."
    columns = {k: np.asarray(v) for k, v in columns.items()}
    formats, offsets = [v.dtype for v in columns.values()], [16*i for i in range(len(columns))]
    rows = np.zeros(len(next(iter(columns.values()))), np.dtype(dict(names=list(columns), formats=formats, offsets=offsets, itemsize=16*len(columns))))
    for k, v in columns.items(): rows[k] = v
    return rows


def hdfwriter(ev, path, repeat=1, index=True, streams=1, without=0, **tables):
    "Frames in order, some of them without pulses at the end; `repeat`: the numbers of events start again, as in a file that was merged."
    n, det = len(ev), ev.detector
    frames = n + without
    event = np.arange(frames) % -(-n//repeat)
    stream = (np.arange(frames)//-(-n//streams)).astype(np.int32)
    ids = lambda rows: dict(Run=np.full(len(rows), 21002, np.uint32), Event=event[rows].astype(np.uint32), SubEvent=np.zeros(len(rows), np.uint32), SubEventStream=stream[rows], exists=np.ones(len(rows), np.uint8))
    y = np.vstack([ev.labels.astype(float), np.zeros((without, 6))])
    pulses = dict(string=det.string[ev.dom].astype(np.int32), om=det.dom[ev.dom].astype(np.uint32), pmt=np.zeros(len(ev.dom), np.uint8), vector_index=np.zeros(len(ev.dom), np.uint32),
                  time=ev.time.astype(float) + 1e4, charge=ev.charge.astype(np.float32), width=np.full(len(ev.dom), np.nan))
    every = {**ids(np.arange(frames)), 'exists': (np.arange(frames) < n).astype(np.uint8)}
    ends = np.append(ev.ptr, np.full(without, ev.ptr[-1]))
    with h5py.File(path, 'w') as f:
        f['InIcePulses'] = spaced({**ids(ev.event), **pulses})
        if index: f['__I3Index__/InIcePulses'] = spaced({**every, 'start': ends[:-1].astype(np.uint64), 'stop': ends[1:].astype(np.uint64)})
        particle = dict(zip(LABELS, y.T)) | dict(length=np.full(frames, np.nan), pdg_encoding=np.where(np.append(ev.kind, np.zeros(without)) == 1, 12, -14).astype(np.int32))
        for name, change in ({'MCPrimary': {}} | tables).items():
            if change is not None: f[name] = spaced({**every, **particle, **change})
        f['I3MCWeightDict'] = spaced({**every, 'InteractionType': np.ones(frames), 'PrimaryNeutrinoEnergy': y[:, 0], 'PrimaryNeutrinoZenith': y[:, 1], 'PrimaryNeutrinoAzimuth': y[:, 2], 'PrimaryNeutrinoType': np.full(frames, 14.)})
    return path


@pytest.mark.parametrize('repeat', [1, 3])
@pytest.mark.parametrize('index', [True, False])
@pytest.mark.parametrize('streams', [1, 2])
def test_hdfwriter_comes_back_as_it_went(tmp_path, events, repeat, index, streams):
    path = hdfwriter(events, tmp_path/'a.h5', repeat, index, streams, without=2 if index else 0)
    report = convert(path, tmp_path/'o.h5', time_gauge='file'); got = read_events(tmp_path/'o.h5')
    assert report['format'] == 'hdfwriter' and report['pulses_in'] == len(events.dom) and report['events_in'] == 12
    same(got, events, 1e4)
    assert any(s.startswith('2 frames without') for s in got.meta['assumptions']) == index


def test_hdfwriter_truth(tmp_path, events):
    muon = dict(pdg_encoding=np.full(12, 13, np.int32), length=np.full(12, 400.))
    path = hdfwriter(events, tmp_path/'a.h5', MCPrimary=None, LineFit={}, MyMuon=muon)
    got = from_hdfwriter(path); assert got.missing == ('x', 'y', 'z') and any('I3MCWeightDict' in s for s in got.meta['assumptions'])  # a fit is not the truth
    got = from_hdfwriter(path, truth='MyMuon', time_gauge='file'); np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=2e-3); assert (got.kind == 2).all()
    with pytest.raises(DataError, match="no table of truth 'MyMuno'(.|\n)*did you mean: MyMuon"): convert(path, tmp_path/'o.h5', truth='MyMuno')


def test_hdfwriter_neutrinos_that_begin_far_away(tmp_path, events):
    "neutrino-generator's primaries begin where they enter the Earth; a nucleus in the atmosphere has no vertex in the ice."
    far, y = 5e6, events.labels.astype(float)
    begin = y[:, 3:] - far*events.direction.astype(float)
    change = dict(zip('xyz', begin.T)) | dict(length=np.full(12, far))
    got = from_hdfwriter(hdfwriter(events, tmp_path/'a.h5', MCPrimary=change), time_gauge='file')
    np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=3.)  # angles are known to 1e-7
    proton = change | dict(pdg_encoding=np.full(12, 2212, np.int32))
    got = from_hdfwriter(hdfwriter(events, tmp_path/'b.h5', MCPrimary=proton)); assert got.missing == ('x', 'y', 'z') and (got.kind == 0).all()


def test_hdfwriter_ice_top_upgrade_and_what_is_not_there(tmp_path, events):
    path = hdfwriter(events, tmp_path/'a.h5'); keep = events.dom != events.dom[0]
    with h5py.File(path, 'a') as f: rows = f['InIcePulses'][...]; rows['om'][~keep] = 61; f['InIcePulses'][...] = rows
    got = from_hdfwriter(path); assert any(s.startswith(f'{int((~keep).sum())} pulses of IceTop') for s in got.meta['assumptions']) and len(got.dom) == keep.sum()
    with h5py.File(path, 'a') as f: rows['string'][~keep] = 88; f['InIcePulses'][...] = rows
    with pytest.raises(DataError, match='not in icecube86(.|\n)*string 88, module 61(.|\n)*--detector'): from_hdfwriter(path)
    ic = events.detector
    wide = Detector('upgrade', np.vstack([ic.xyz, [[20., -60., -300.]]]), np.append(ic.string, 88), np.append(ic.dom, 61), np.append(ic.rde, 1.))
    got = from_hdfwriter(path, detector=wide); assert (got.dom == 5160).sum() == len(np.unique(events.event[~keep])) and got.charge.sum() == pytest.approx(events.charge.sum(), rel=1e-5)


def test_hdfwriter_dark_and_absent(tmp_path, events):
    path = hdfwriter(events, tmp_path/'a.h5')
    with h5py.File(path, 'a') as f:
        rows = f['InIcePulses'][...]; rows['charge'][:2], rows['time'][2] = [0, np.nan], np.nan; f['InIcePulses'][...] = rows
        truth = f['MCPrimary'][...]; truth['exists'][5] = 0; f['MCPrimary'][...] = truth
    got = from_hdfwriter(path, time_gauge='file'); assert len(got) == 11 and len(got.dom) == len(events.dom) - 3 - events.n_hits[5]
    assert any('3 without charge or time' in s for s in got.meta['assumptions']) and any(s.startswith('1 of 12 events were dropped') for s in got.meta['assumptions'])
    got = from_hdfwriter(path, time_gauge='file', missing='energy,zenith,azimuth,x,y,z'); assert len(got) == 12 and got.missing == LABELS


def test_antares_needs_its_geometry(tmp_path, events):
    "The same tables with a counter of triggers; without an index of its own numbers, frames would merge."
    ids = dict(Run=np.full(6, 45978, np.uint32), Event=np.uint32([2, 2, 2, 2, 3, 3]), exists=np.ones(6, np.uint8), TriggerCounter=np.int32([7, 7, 8, 8, 9, 9]))
    pulses = dict(string=np.int8([1, 2, 1, 1, 3, 3]), om=np.uint8([75, 1, 75, 75, 2, 3]), vector_index=np.zeros(6, np.uint64), time=[9e3, 9.1e3, 9e3, 8e3, 9e3, 9e3], width=np.full(6, np.nan), charge=[1., 2, 3, -.2, 5, 6])
    index = dict(Run=np.full(3, 45978, np.uint32), Event=np.uint32([2, 2, 3]), exists=np.ones(3, np.uint8), TriggerCounter=np.full(3, -1, np.int32), start=np.uint64([0, 2, 4]), stop=np.uint64([2, 4, 6]))
    with h5py.File(tmp_path/'antares.h5', 'w') as f: f['CalibratedPulses'], f['__I3Index__/CalibratedPulses'] = spaced(ids | pulses), spaced(index)
    with pytest.raises(DataError, match='ANTARES(.|\n)*--detector'): convert(tmp_path/'antares.h5', tmp_path/'o.h5')
    rows = [f'{s},{o},{60*s},0,{-14.5*((o-1)//3) + .1*(o % 3)}' for s in range(1, 13) for o in range(1, 76)]
    (tmp_path/'antares.csv').write_text('string,om,x,y,z\n' + '\n'.join(rows))
    convert(tmp_path/'antares.h5', tmp_path/'o.h5', detector=tmp_path/'antares.csv'); got = read_events(tmp_path/'o.h5')
    assert got.n_hits.tolist() == [2, 1, 2] and got.charge.tolist() == [1, 2, 3, 5, 6] and got.missing == LABELS and got.detector.dom[got.dom[0]] == 75


def i3cols(ev, path, tree):
    "Items of i3cols; the tree has an outer neutrino, an inner one with less energy, and its products, a tau neutrino's regeneration among them."
    key, pulse = [('string', 'i4'), ('om', 'u4'), ('pmt', 'u1')], [('time', 'f8'), ('charge', 'f4'), ('width', 'f4'), ('flags', 'u1')]
    particle = [('id', [('majorID', 'u8'), ('minorID', 'i4')]), ('pdg_encoding', 'i4'), ('shape', 'u1'), ('pos', [(k, 'f8') for k in 'xyz']), ('dir', [('zenith', 'f8'), ('azimuth', 'f8')]), ('time', 'f8'), ('energy', 'f8'), ('length', 'f8')]
    y, det, two = ev.labels.astype(float), ev.detector, [('start', 'u8'), ('stop', 'u8')]

    def save(name, data, ends=None):
        (path/name).mkdir(parents=True); np.save(path/name/'data.npy', data)
        if ends is not None: np.save(path/name/'index.npy', np.array(list(zip(ends[:-1], ends[1:])), two))
    p = np.zeros(len(ev.dom), [('key', key), ('pulse', pulse)]); p['key']['string'], p['key']['om'], p['pulse']['time'], p['pulse']['charge'] = det.string[ev.dom], det.dom[ev.dom], ev.time + 1e4, ev.charge
    save('SRTInIcePulses', p, ev.ptr); save('I3EventHeader', np.zeros(len(ev), [('run_id', 'u4'), ('event_id', 'u4')]))

    def one(pdg, energy, place):
        a = np.zeros(len(ev), particle); a['pdg_encoding'], a['energy'], a['dir']['zenith'], a['dir']['azimuth'] = pdg, energy, y[:, 1], y[:, 2]
        for k, v in zip('xyz', np.broadcast_to(place, (len(ev), 3)).T): a['pos'][k] = v
        return a
    if not tree: save('MCPrimary', one(np.where(ev.kind == 1, 12, 14), y[:, 0], y[:, 3:])); return path
    members = [(-1, one(16, y[:, 0]*3, 5e5)), (0, one(15, y[:, 0]*2, 4e5)), (1, one(16, y[:, 0], 3e5)), (1, one(-2000001006, 9., 4e5)), (2, one(np.where(ev.kind == 1, 11, 13), y[:, 0]*.7, y[:, 3:])), (2, one(-2000001006, y[:, 0]*.3, y[:, 3:]))]
    flat = np.zeros((len(ev), len(members)), [('level', 'u1'), ('parent_idx', 'i2'), ('particle', particle)])
    for j, (parent, a) in enumerate(members): flat['parent_idx'][:, j], flat['particle'][:, j] = parent, a
    save('I3MCTree', flat.ravel(), len(members)*np.arange(len(ev) + 1))
    return path


def test_i3cols(tmp_path, events):
    report = convert(i3cols(events, tmp_path/'a', False), tmp_path/'a.h5', time_gauge='file'); got = read_events(tmp_path/'a.h5')
    assert report['format'] == 'i3cols' and np.array_equal(got.dom, events.dom)
    np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=2e-3); np.testing.assert_allclose(got.time, events.time + 1e4, atol=.05)
    got = from_i3cols(i3cols(events, tmp_path/'b', True), time_gauge='file'); np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=2e-3)
    index = np.load(tmp_path/'a'/'SRTInIcePulses'/'index.npy'); index['stop'][-1] += 5; np.save(tmp_path/'a'/'SRTInIcePulses'/'index.npy', index)
    with pytest.raises(DataError, match='does not fit its pulses'): from_i3cols(tmp_path/'a')
    (tmp_path/'b'/'I3MCTree'/'data.npy').write_bytes(b'\x93NUMPY')
    with pytest.raises(DataError, match='damaged'): from_i3cols(tmp_path/'b')


def ntsim(ev, path, seed):
    rng = np.random.default_rng(seed); mixed = lambda fields: [fields[i] for i in rng.permutation(len(fields))]
    uid, y = rng.permutation(9000)[:ev.detector.n_doms], ev.labels.astype(float)
    with h5py.File(path, 'w') as f:
        g = np.zeros(len(uid), mixed([('detector_uid', 'i4'), ('position', 'f8', (3,)), ('direction', 'f8', (3,)), ('radius', 'f8')])); g['detector_uid'], g['position'] = uid, ev.detector.xyz
        f['Header/geometry/Geometry'] = g
        for e in range(len(ev)):
            h = slice(ev.ptr[e], ev.ptr[e+1]); hits = np.zeros(h.stop - h.start, mixed([('uid', 'i8'), ('t_ns', 'f8'), ('phe', 'f8'), ('track_uid', 'i8')])); hits['uid'], hits['t_ns'], hits['phe'] = uid[ev.dom[h]], ev.time[h] + 100, ev.charge[h]
            p = np.zeros(1, mixed([('uid', 'i8'), ('pdgid', 'i8'), ('pos_m', 'f8', (3,)), ('t_ns', 'f8'), ('direction', 'f8', (3,)), ('Etot_GeV', 'f8')])); p['pdgid'], p['pos_m'], p['t_ns'], p['direction'], p['Etot_GeV'] = 13 if ev.kind[e] == 2 else 22, y[e, 3:], 100, ev.direction[e], y[e, 0]
            f[f'event_{e}/hits/Hits'], f[f'event_{e}/particles/Primary'] = hits, p
    return path


@pytest.mark.parametrize('seed', range(4))
def test_ntsim_columns_in_any_order(tmp_path, seed):
    ev = simulate_events(12, seed=3, kind='mixed', detector='toy', min_hits=5, energy=(1e3, 1e5))
    report = convert(ntsim(ev, tmp_path/'n.h5', seed), tmp_path/'o.h5'); assert report['format'] == 'ntsim'
    same(read_events(tmp_path/'o.h5'), ev)


def test_ntsim_problems_are_named(tmp_path):
    ev = simulate_events(3, seed=3, kind='track', detector='toy', min_hits=5, energy=(1e3, 1e5)); path = ntsim(ev, tmp_path/'n.h5', 0)
    with h5py.File(path, 'a') as f: hits = f['event_1/hits/Hits'][...]; hits['uid'][0] = 10**6; f['event_1/hits/Hits'][...] = hits
    with pytest.raises(DataError, match='not in the geometry(.|\n)*1000000'): from_ntsim(path)
    with h5py.File(path, 'a') as f: del f['event_1/hits/Hits']; f['event_2/hits/Noise'] = hits
    with pytest.raises(DataError, match='several pulse maps(.|\n)*Hits, Noise'): from_ntsim(path)
    got = from_ntsim(path, pulse_map='Hits'); assert got.n_hits[1] == 0 and len(got) == 3


# --- KM3NeT: its own public test files, where they are installed

def km3net_data():
    pytest.importorskip('km3io', reason='the extra km3net (km3io) is not installed')
    return Path(pytest.importorskip('km3net_testdata', reason="KM3NeT's test files (km3net_testdata) are not installed").__file__).parent/'data'


def test_km3net_offline_file():
    from genesis.data.water import from_km3net
    data = km3net_data(); path = data/'offline'/'mcv6.gsg_nue-CCHEDIS_1e4-1e6GeV.sirene.jte.jchain.aanet.1.root'; detx = data/'detx'/'KM3NeT_-00000001_20171212.detx'
    got = from_km3net(path, detector=detx); assert len(got) == 31 and got.detector.n_doms == 2070 and (got.kind == 1).all()
    assert got.labels[0, 0] == pytest.approx(211382.236) and got.labels[0, 3:] == pytest.approx([74.4, -588, 68.2], abs=1)
    assert got.labels[0, 1] == pytest.approx(np.arccos(.423), abs=2e-3)   # it moves downwards
    own = from_km3net(path); assert own.detector.n_doms == len(np.unique(own.dom)) and np.array_equal(own.ptr, got.ptr)   # from the hits' own positions
    true = from_km3net(path, 'mc_hits', detx); assert true.charge.sum() > 0 and true.meta['pulses'] > len(true.dom)
    with pytest.raises(DataError, match='did you mean: mc_hits'): from_km3net(path, 'mc_hit', detx)
    with pytest.raises(DataError, match='no offline file of KM3NeT'): from_km3net(data/'online'/'km3net_online.root')


def test_km3net_charge_of_time_over_threshold():
    km3io = pytest.importorskip('km3io', reason='the extra km3net (km3io) is not installed'); import awkward as ak
    hits = km3io.OfflineReader(str(km3net_data()/'offline'/'KM3NeT_00000049_00011291.mc.gsg_neutrinos.km3sim_sirene_merged.jterbr.jppmuon_jppshower_static.offline.v9.2.sample.root')).hits
    tot, charge = (ak.to_numpy(ak.flatten(getattr(hits, k))) for k in ('tot', 'a'))
    assert np.quantile(np.abs(charge_of_tot(tot)/charge - 1), .99) < .05   # a few hits were calibrated otherwise


def test_antares_of_seatray():
    path = km3net_data()/'seatray'/'antares.h5'
    with pytest.raises(DataError, match='several pulse maps(.|\n)*AafitFinalFitHitsUsed, CalibratedPulses'): from_hdfwriter(path)
    string, om = (v.ravel() for v in np.meshgrid(np.arange(1, 13), np.arange(1, 76), indexing='ij'))
    det = Detector('antares', np.stack([60.*(string % 4), 60.*(string//4), -14.5*((om-1)//3) + .3*(om % 3)], 1), string, om, np.ones(len(om)))
    got = from_hdfwriter(path, 'CalibratedPulses', detector=det); assert len(got) == 81 and got.meta['pulses'] == 13556   # fifteen numbers of events, eighty-one frames


def test_detx_of_every_version():
    data = km3net_data()/'detx'
    doms = {p: get_detector(data/p).n_doms for p in ('detx_v1.detx', 'detx_v2.detx', 'detx_v3.detx', 'detx_v4.detx', 'detx_v5.detx', 'km3net_offline.detx', 'orca_115strings_av20min17mhorizontal_18OMs_alt9mvertical_v2.detx')}
    assert list(doms.values()) == [6, 6, 6, 90, 108, 90, 2070]


def test_detx(tmp_path):
    pmts = [(.2, 0, 0), (-.2, 0, 0), (0, .2, 0), (0, -.2, 0), (0, 0, -.2), (0, 0, .2), (0.1, 0, -.15)]
    module = lambda i, z, head: f'{i} 7 {z} {head}7\n' + ''.join(f' {100*i+j} {50+a} {b} {10*z+c} {a} {b} {c} 0.5\n' for j, (a, b, c) in enumerate(pmts))
    for name, start, head in (('v1', '99 3\n', ''), ('v3', '# made by hand\n99 v3\n0 1\nUTM WGS84 32N 1 2 3\n3\n', ''), ('v5', '99 V5\n0 1\nUTM WGS84 32N 1 2 3\n3\n', '50 0 {z} 1 0 0 0 0 0 ')):
        (tmp_path/f'{name}.detx').write_text(start + '5 7 0 ' + head.format(z=0) + '0\n' + ''.join(module(i, z, head.format(z=10*z)) for i, z in ((11, 1), (12, 2))))
        det = get_detector(tmp_path/f'{name}.detx'); np.testing.assert_allclose(det.xyz, [[50, 0, 10], [50, 0, 20]], atol=1e-6); assert det.dom.tolist() == [1, 2] and det.string.tolist() == [7, 7]


# --- what stays unread says what is read

def injected(f):
    for k in ('initial', 'final_1', 'final_2', 'properties'): f[f'VolumeInjector0/{k}'] = [1.]


def siren(f): f.create_group('Events').attrs['form'] = json.dumps(dict(fields=['primary_momentum', 'vertex']))


def weights_only(f): f['I3MCWeightDict'] = spaced(dict(Run=[1], Event=[2], exists=[1], OneWeight=[3.]))


def some(f): f['some'] = [1.]


@pytest.mark.parametrize('make, says', [(injected, 'of LeptonInjector'), (siren, 'of SIREN'), (weights_only, 'none of its tables of IceTray holds pulses'), (some, 'an HDF5 file with some'), (None, 'a file that begins with')])
def test_files_without_a_reader(tmp_path, make, says):
    path = tmp_path/('f.h5' if make else 'f.i3.gz')
    if make is None: path.write_bytes(b'\x1f\x8b\x08' + bytes(20))
    else:
        with h5py.File(path, 'w') as f: make(f)
    with pytest.raises(DataError, match=says) as e: convert(path, tmp_path/'o.h5')
    text = str(e.value)
    assert all(name in text for name in FORMATS) and 'i3_to_genesis.py' in text
    assert ('without any hits' in text and 'where a particle goes' in text) == (make in (injected, siren))


# --- text

@pytest.mark.parametrize('how', ['bom', 'semicolon', 'tab', 'decimal comma', 'spaces', 'windows'])
@pytest.mark.parametrize('reader', ['pyarrow', 'numpy'])
def test_tables_as_spreadsheets_write_them(tmp_path, events, monkeypatch, how, reader):
    from genesis.data import tables
    if reader == 'numpy':
        def without(module, extra): raise ConfigError(f'{module} is not installed')
        monkeypatch.setattr(tables, 'require', without)
    else: pytest.importorskip('pyarrow')
    to_csv(events, tmp_path)
    for p in tmp_path.glob('*.csv'):
        text = p.read_text()
        if how in ('semicolon', 'decimal comma'): text = text.replace(',', ';')
        if how == 'decimal comma': text = text.replace('.', ',') if p.stem != 'geometry' else text
        text = {'bom': '\ufeff' + text, 'tab': text.replace(',', '\t'), 'spaces': text.replace(',', ', '), 'windows': text.replace('\n', '\r\n')}.get(how, text)
        p.write_text(text, newline='', encoding='utf-8')
    got = from_csv(tmp_path)
    for k in ('ptr', 'dom', 'charge', 'time', 'labels', 'kind'): assert np.array_equal(getattr(got, k), getattr(events, k)), k


def test_labels_that_a_user_calls_unknown(tmp_path, events):
    for path in (to_csv(events, tmp_path/'t'), write_events(events, tmp_path/'a.h5')):
        report = convert(path, tmp_path/'o.h5', missing='energy x'); got = read_events(tmp_path/'o.h5')
        assert got.missing == ('energy', 'x') and np.array_equal(got.dom, events.dom) and np.array_equal(got.labels[:, 1:3], events.labels[:, 1:3]) and report['events'] == 12
    with pytest.raises(ConfigError, match='did you mean: energy'): convert(tmp_path/'a.h5', tmp_path/'x.h5', missing='enrgy')


# --- folders

def test_a_folder_of_graphnet_beside_its_merged_one(tmp_path, events):
    from test_formats import graphnet_tables, to_parquet
    tables = graphnet_tables(events)
    to_parquet(tables, tmp_path/'out', 3); to_parquet(tables, tmp_path/'out'/'merged', 2)
    report = convert(tmp_path/'out', tmp_path/'o.h5', time_gauge='file'); assert report['events'] == 12; same(read_events(tmp_path/'o.h5'), events)
    (tmp_path/'db'/'merged').mkdir(parents=True)
    for i, part in enumerate((events[:5], events[5:])): to_graphnet(part, tmp_path/'db'/f'part_{i}.db')
    to_graphnet(events, tmp_path/'db'/'merged'/'merged.db')
    assert convert(tmp_path/'db', tmp_path/'p.h5', time_gauge='file')['events'] == 12 and find_format(tmp_path/'db') == 'graphnet'


@pytest.mark.parametrize('suffix', ['.h5', '.hdf5', '.hdf'])
def test_folders_are_read_by_all_whatever_the_suffix(tmp_path, events, suffix):
    for i, part in enumerate((events[:5], events[5:])): write_events(part, tmp_path/'d'/f'part_{i}{suffix}')
    assert convert(tmp_path/'d', tmp_path/'o.h5')['events'] == 12 and len(read_events(tmp_path/'d')) == 12
