"""Other people's files: made here in the formats of others, converted, compared; and every way in which they can be wrong."""
import ast, sqlite3, sys, types
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from genesis.core import ConfigError, DataError, GenesisError
from genesis.data.detector import Z_SURFACE, from_positions, icecube86, read_geometry, toy_detector
from genesis.data.events import LABELS, Events, read_events, write_events
from genesis.data.formats import convert, find_format, from_csv, from_hdf5, from_numpy, light_ahead, to_csv, to_graphnet, to_numpy
from genesis.data.photons import from_prometheus
from genesis.data.pulses import from_graphnet, from_kaggle
from genesis.data.simulator import simulate_events

pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
DATA = Path(__file__).parents[2]/'shared'/'data'/'events'
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f'the example files of other projects are not at {DATA}')
PARTS = ('ptr', 'dom', 'charge', 'time', 'labels', 'kind')


@pytest.fixture(scope='module')
def events(): return simulate_events(12, seed=2, kind='mixed', energy=(1e3, 1e5), min_hits=20)


def pulses(ev, split=3):
    "Each hit as several pulses, shuffled, with gaps in the numbers of events."
    rng = np.random.default_rng(0); number = 5 + 4*np.arange(len(ev)); which = rng.permutation(np.repeat(np.arange(len(ev.dom)), split))
    late = rng.uniform(0, 500, len(which)); first = np.unique(which, return_index=True)[1]; late[first] = 0
    return number, number[ev.event[which]], which, ev.charge[which]/split, ev.time[which].astype(float) + late


def graphnet_tables(ev, **change):
    number, event, which, q, t = pulses(ev); d = ev.dom[which]; det = ev.detector
    y = ev.labels.astype(float); order = np.random.default_rng(1).permutation(len(ev))
    tables = dict(truth=dict(event_no=number[order], energy=y[order, 0], zenith=y[order, 1], azimuth=y[order, 2], position_x=y[order, 3], position_y=y[order, 4], position_z=y[order, 5],
                             pid=np.where(ev.kind == 1, 12, -14)[order], interaction_type=np.ones(len(ev))),
                  InIceDSTPulses=dict(event_no=event, charge=q, dom_time=t, dom_x=det.xyz[d, 0], dom_y=det.xyz[d, 1], dom_z=det.xyz[d, 2], string=det.string[d].astype(float), dom_number=det.dom[d].astype(float)))
    for name, columns in change.items(): tables[name] = None if columns is None else {**tables.get(name, {}), **columns}
    return {k: {c: x for c, x in v.items() if x is not None} for k, v in tables.items() if v is not None}


def to_sqlite(tables, path):
    with closing(sqlite3.connect(path)) as db:
        for name, columns in tables.items():
            db.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
            db.executemany(f'INSERT INTO "{name}" VALUES ({",".join("?"*len(columns))})', list(zip(*(np.asarray(v).tolist() for v in columns.values()))))
        db.commit()
    return path


def to_parquet(tables, folder, parts=2):
    "GraphNeT's merged layout: a folder for each table, several files in it."
    for name, columns in tables.items():
        (folder/name).mkdir(parents=True); n = len(next(iter(columns.values())))
        for i, rows in enumerate(np.array_split(np.arange(n), parts)): pq.write_table(pa.table({k: np.asarray(v)[rows] for k, v in columns.items()}), folder/name/f'{name}_{i}.parquet')
    return folder


def same(a, b, time=.05):
    for k in ('ptr', 'dom', 'kind'): assert np.array_equal(getattr(a, k), getattr(b, k)), k
    np.testing.assert_allclose(a.charge, b.charge, rtol=1e-4); np.testing.assert_allclose(a.time, b.time, atol=time); np.testing.assert_allclose(a.labels, b.labels, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('write', [lambda t, p: to_sqlite(t, p/'many.db'), lambda t, p: to_parquet(t, p/'merged')])
def test_graphnet_comes_back_as_it_went(tmp_path, events, write):
    path = write(graphnet_tables(events), tmp_path); report = convert(path, tmp_path/'out.h5', time_gauge='file')
    assert report['format'] == 'graphnet' and report['pulses_in'] == 3*len(events.dom) and report['hits'] == len(events.dom) and report['events_in'] == 12
    got = read_events(tmp_path/'out.h5'); same(got, events)
    assert any('InIceDSTPulses' in s for s in got.meta['assumptions']) and got.detector.name == 'icecube86'


def test_graphnet_recorded_times_are_moved_to_the_interaction(tmp_path, events):
    tables = graphnet_tables(events); tables['InIceDSTPulses']['dom_time'] = tables['InIceDSTPulses']['dom_time'] + 10_000
    got = from_graphnet(to_sqlite(tables, tmp_path/'many.db'))
    assert np.median(np.abs(np.median(got.time) - np.median(events.time))) < 100 and 'interaction' in got.meta['assumptions'][-1]


def test_graphnet_events_without_pulses_and_pulses_without_events(tmp_path, events):
    tables = graphnet_tables(events); p = tables['InIceDSTPulses']; keep = p['event_no'] != 5
    tables['InIceDSTPulses'] = {k: v[keep] for k, v in p.items()}
    got = from_graphnet(to_sqlite(tables, tmp_path/'a.db'), time_gauge='file'); assert got.n_hits[0] == 0 and len(got) == 12
    tables = graphnet_tables(events); keep = tables['truth']['event_no'] != 5; tables['truth'] = {k: v[keep] for k, v in tables['truth'].items()}
    got = from_graphnet(to_sqlite(tables, tmp_path/'b.db'), time_gauge='file')
    assert len(got) == 11 and any('of events without truth were dropped' in s and not s.startswith('0 ') for s in got.meta['assumptions'])


def test_graphnet_labels_that_are_missing_stay_missing(tmp_path, events):
    got = from_graphnet(to_sqlite(graphnet_tables(events, truth=dict(energy=None, position_x=None, position_y=None, position_z=None)), tmp_path/'a.db'))
    assert got.missing == ('energy', 'x', 'y', 'z') and np.isnan(got.labels[:, 0]).all()
    write_events(got, tmp_path/'a.h5'); assert read_events(tmp_path/'a.h5').missing == got.missing
    with pytest.raises(DataError, match='energy'): got.need_labels('energy', what='training')


def rows(column, value, i=3): return lambda t: t[column].__setitem__(i, value)


@pytest.mark.parametrize('table, spoil, says', [
    ('InIceDSTPulses', rows('charge', np.nan), 'charge are not finite'), ('InIceDSTPulses', rows('dom_time', np.inf), 'dom_time are not finite'),
    ('InIceDSTPulses', rows('dom_x', np.nan), 'positions that are not finite'), ('InIceDSTPulses', rows('string', 99.), 'contradict their positions'),
    ('InIceDSTPulses', rows('dom_z', 5000.), 'not in icecube86|two places'), ('truth', rows('event_no', 5, 0), 'stand twice'), ('truth', rows('energy', -1.), 'energies that are not positive'),
    ('truth', rows('zenith', 9.), 'zenith'), ('truth', lambda t: t.pop('event_no'), "no column 'event_no'"), ('InIceDSTPulses', lambda t: t.update(dom_xx=t.pop('dom_x')), 'did you mean: dom_')])
def test_graphnet_bad_tables(tmp_path, events, table, spoil, says):
    tables = graphnet_tables(events); tables[table] = {k: np.array(v) for k, v in tables[table].items()}
    if table == 'truth' and says == 'stand twice': tables['truth']['event_no'][:2] = 5
    else: spoil(tables[table])
    with pytest.raises(DataError, match=says) as e: from_graphnet(to_sqlite(tables, tmp_path/'bad.db'))
    assert 'bad.db' in str(e.value)
    with pytest.raises(DataError): convert(tmp_path/'bad.db', tmp_path/'out.h5')
    assert not (tmp_path/'out.h5').exists()


def test_graphnet_pulse_maps_are_listed(tmp_path, events):
    tables = graphnet_tables(events); tables['SplitInIcePulses'] = tables['InIceDSTPulses']; path = to_sqlite(tables, tmp_path/'two.db')
    with pytest.raises(DataError, match='several pulse maps') as e: from_graphnet(path)
    assert 'InIceDSTPulses, SplitInIcePulses' in str(e.value)
    with pytest.raises(DataError, match="no pulse map 'SRTPulses'") as e: from_graphnet(path, 'SRTPulses')
    assert 'InIceDSTPulses, SplitInIcePulses' in str(e.value)
    same(from_graphnet(path, 'SplitInIcePulses', time_gauge='file'), simulate_events(12, seed=2, kind='mixed', energy=(1e3, 1e5), min_hits=20))


def kaggle(ev, folder):
    number, event, which, q, t = pulses(ev); shuffle = np.random.default_rng(3).permutation(5160); sensor = np.argsort(shuffle)
    (folder/'train').mkdir(parents=True); xyz = ev.detector.xyz[shuffle]
    (folder/'sensor_geometry.csv').write_text('sensor_id,x,y,z\n' + '\n'.join(f'{i},{x:.2f},{y:.2f},{z:.2f}' for i, (x, y, z) in enumerate(xyz)))
    order = np.argsort(event, kind='stable'); half = np.searchsorted(event[order], number[6])
    for k, r in ((1, order[:half]), (2, order[half:])):
        pq.write_table(pa.table(dict(sensor_id=pa.array(sensor[ev.dom[which[r]]], pa.int16()), time=pa.array(np.round(t[r]).astype(np.int64)), charge=pa.array(q[r], pa.float32()), auxiliary=pa.array(np.arange(len(r)) % 3 == 0), event_id=pa.array(event[r], pa.int64()))), folder/'train'/f'batch_{k}.parquet')
    pq.write_table(pa.table(dict(batch_id=np.repeat([1, 2], 6), event_id=number, first_pulse_index=0*number, last_pulse_index=0*number, azimuth=ev.labels[:, 2].astype(float), zenith=ev.labels[:, 1].astype(float))), folder/'train_meta.parquet')
    return folder


def test_kaggle(tmp_path, events):
    folder = kaggle(events, tmp_path/'k'); report = convert(folder/'train', tmp_path/'out.h5', time_gauge='file'); got = read_events(tmp_path/'out.h5')
    assert report['format'] == 'kaggle' and got.missing == ('energy', 'x', 'y', 'z') and report['pulses_in'] == 3*len(events.dom)
    assert np.array_equal(got.dom, events.dom) and np.abs(got.time - events.time).max() < .6
    np.testing.assert_allclose(got.labels[:, 1:3], events.labels[:, 1:3], rtol=1e-5)
    one = from_kaggle(folder/'train'/'batch_2.parquet', folder/'train_meta.parquet', folder/'sensor_geometry.csv', 'drop'); assert len(one) == 6 and one.charge.sum() < got[6:].charge.sum()
    (folder/'train_meta.parquet').unlink()
    with pytest.raises(DataError, match='no table of directions'): from_kaggle(folder/'train')
    assert from_kaggle(folder/'train', meta='none').missing == LABELS


@pytest.mark.parametrize('column, value, says', [('sensor_id', 9999, 'out of range'), ('charge', np.nan, 'not finite'), ('event_id', 10**6, 'lacks events of the batch')])
def test_kaggle_bad(tmp_path, events, column, value, says):
    folder = kaggle(events, tmp_path/'k'); path = folder/'train'/'batch_1.parquet'; t = {k: v.to_numpy(zero_copy_only=False).copy() for k, v in zip(pq.read_table(path).column_names, pq.read_table(path).columns)}
    t[column][0] = value; pq.write_table(pa.table(t), path)
    with pytest.raises(DataError, match=says): from_kaggle(folder/'train')


@pytest.mark.parametrize('write', [lambda e, p: to_csv(e, p/'tables'), lambda e, p: to_numpy(e, p/'events.npz')])
def test_tables_lose_nothing(tmp_path, events, write):
    for ev in (events, simulate_events(5, detector=from_positions([[0, 0, -20*i] for i in range(9)] + [[50, 0, -20*i] for i in range(4)]), min_hits=3, energy=(1e3, 1e5))):
        path = write(ev, tmp_path); convert(path, tmp_path/'out.h5'); got = read_events(tmp_path/'out.h5')
        assert all(np.array_equal(getattr(got, k), getattr(ev, k)) for k in PARTS) and np.array_equal(got.detector.xyz, ev.detector.xyz)


@pytest.mark.parametrize('empty', [0., np.inf, np.nan])
@pytest.mark.parametrize('swap', [False, True])
@pytest.mark.parametrize('name', ['input', 'x'])
def test_dense_files_of_every_convention(tmp_path, events, empty, swap, name):
    x = events.dense(); x[:, 1][x[:, 0] == 0] = empty; shuffle = np.random.default_rng(1).permutation(5160)
    with h5py.File(tmp_path/'d.h5', 'w') as f:
        f[name] = (x[:, ::-1] if swap else x)[:, :, shuffle]; f['label'] = events.labels
        for i, k in enumerate('xyz'): f[f'{k}pmt'] = events.detector.xyz[shuffle, i].astype('f4')
    report = convert(tmp_path/'d.h5', tmp_path/'out.h5'); got = read_events(tmp_path/'out.h5')
    assert np.array_equal(got.dom, events.dom) and np.array_equal(got.charge, events.charge) and np.array_equal(got.time, events.time)
    assert any(('time, then charge' if swap else 'charge, then time') in s for s in report['assumptions'])
    wrong = dict(channel_order='charge_time' if swap else 'time_charge')
    try: assert not np.array_equal(read_events(tmp_path/'d.h5', **wrong).charge, events.charge)   # overridable: the user is obeyed
    except DataError: pass


def test_dense_files_with_three_labels(tmp_path, events):
    with h5py.File(tmp_path/'d.h5', 'w') as f: f['x'], f['label'] = events.dense(), events.labels[:, :3]
    convert(tmp_path/'d.h5', tmp_path/'out.h5'); got = read_events(tmp_path/'out.h5')
    assert got.missing == ('x', 'y', 'z') and np.array_equal(got.labels[:, :3], events.labels[:, :3])


@pytest.mark.parametrize('name', ['graphnet', 'kaggle', 'hdf5', 'numpy'])   # half a table of text is a table; the notebook of photons damages its own files
def test_damaged_files(tmp_path, events, name):
    small = events[:4]
    path = dict(graphnet=lambda: to_sqlite(graphnet_tables(small), tmp_path/'f.db'), kaggle=lambda: kaggle(events, tmp_path/'k')/'train'/'batch_1.parquet', hdf5=lambda: write_events(small, tmp_path/'f.h5'), numpy=lambda: to_numpy(small, tmp_path/'f.npz'))[name]()
    whole = path.read_bytes(); assert find_format(path) == name
    for cut in (len(whole)//2, len(whole)-9):
        path.write_bytes(whole[:cut])
        with pytest.raises(GenesisError): convert(path, tmp_path/'out.h5')
        assert not (tmp_path/'out.h5').exists()


def test_options_that_mean_nothing_are_refused(tmp_path, events):
    write_events(events, tmp_path/'a.h5')
    with pytest.raises(ConfigError, match='pulse_map means nothing'): convert(tmp_path/'a.h5', tmp_path/'b.h5', pulse_map='X')
    with pytest.raises(DataError, match='nothing that can be converted'): convert((tmp_path/'empty').mkdir() or tmp_path/'empty', tmp_path/'b.h5')


def column(path, table, name, value):
    "Change a column of a table in an SQLite file."
    with closing(sqlite3.connect(path)) as db: db.execute(f'UPDATE {table} SET {name} = {value}'); db.commit()
    return path


@pytest.mark.parametrize('dtype', ['int32', 'float32', 'float64', 'object'])
def test_graphnet_numbers_of_any_type(tmp_path, events, dtype):
    tables = graphnet_tables(events); p = tables['InIceDSTPulses']
    for k in ('string', 'dom_number', 'event_no'): p[k] = p[k].astype(int).astype(dtype)
    tables['truth']['event_no'] = tables['truth']['event_no'].astype('float64'); tables['truth']['sim_type'] = np.array(['genie']*len(events))
    same(from_graphnet(to_parquet({k: {c: v.tolist() if v.dtype == object else v for c, v in t.items()} for k, t in tables.items()}, tmp_path/'p', 3), time_gauge='file'), events)


def test_graphnet_structs(tmp_path, events):
    "The older parquet layout: a row for each event, a structure for each table."
    t = graphnet_tables(events); truth, p = t['truth'], t['InIceDSTPulses']
    lists = lambda k: pa.array([p[k][p['event_no'] == n].tolist() for n in truth['event_no']], pa.large_list(pa.float64()))
    parts = dict(InIceDSTPulses={'event_no': pa.array(truth['event_no']), **{k: lists(k) for k in p if k != 'event_no'}}, truth={k: pa.array(v) for k, v in truth.items()})
    pq.write_table(pa.table({k: pa.StructArray.from_arrays(list(v.values()), names=list(v)) for k, v in parts.items()}), tmp_path/'old.parquet')
    report = convert(tmp_path/'old.parquet', tmp_path/'out.h5', time_gauge='file'); assert report['format'] == 'graphnet' and report['pulses_in'] == 3*len(events.dom)
    same(read_events(tmp_path/'out.h5'), events)
    with pytest.raises(DataError, match='no pulse map .SRT. |no pulse map'): from_graphnet(tmp_path/'old.parquet', 'SRT')


def test_graphnet_photons_as_structs(tmp_path):
    ev = simulate_events(5, seed=5, detector='toy', energy=(1e3, 1e5), min_hits=5); t = graphnet_photons(ev); truth, p = t['mc_truth'], t['total']
    lists = lambda k: pa.array([p[k][p['event_no'] == n].tolist() for n in truth['event_no']], pa.list_(pa.float64()))
    parts = dict(mc_truth={k: pa.array(v) for k, v in truth.items()}, total={'event_no': pa.array(truth['event_no']), **{k: lists(k) for k in p if k != 'event_no'}})
    pq.write_table(pa.table({k: pa.StructArray.from_arrays(list(v.values()), names=list(v)) for k, v in parts.items()}), tmp_path/'old.parquet')
    assert find_format(tmp_path/'old.parquet') == 'graphnet'; assert np.array_equal(from_graphnet(tmp_path/'old.parquet', detector='toy', time_gauge='file').dom, ev.dom)


ALL_TRUTH = ('energy', 'zenith', 'azimuth', 'position_x', 'position_y', 'position_z', 'pid')


@pytest.mark.parametrize('unknown', [-1, None])
def test_graphnet_rows_without_truth_are_dropped_and_counted(tmp_path, events, unknown):
    "Noise and measured events: their rows of truth are −1 or NULL."
    tables = graphnet_tables(events)
    noise = np.isin(tables['truth']['event_no'], [5, 17])  # the events 0 and 3
    for k in ALL_TRUTH: tables['truth'][k] = [unknown if n else v for v, n in zip(tables['truth'][k].tolist(), noise)]
    report = convert(to_sqlite(tables, tmp_path/'a.db'), tmp_path/'a.h5', time_gauge='file')
    same(read_events(tmp_path/'a.h5'), events[np.delete(np.arange(12), [0, 3])])
    lost = 3*int(events.n_hits[[0, 3]].sum())
    assert any(s.startswith('2 of 12 events were dropped') for s in report['assumptions']) and any(s.startswith(f'{lost} pulses of events with unknown truth') for s in report['assumptions'])
    for k in ALL_TRUTH: tables['truth'][k] = [unknown]*12
    convert(to_sqlite(tables, tmp_path/'b.db'), tmp_path/'b.h5', time_gauge='file')
    got = read_events(tmp_path/'b.h5')
    assert got.missing == LABELS and len(got) == 12 and np.array_equal(got.dom, events.dom) and (got.kind == 0).all()


def test_graphnet_labels_that_a_user_calls_unknown(tmp_path, events):
    tables = graphnet_tables(events); tables['truth']['energy'] = np.where(tables['truth']['event_no'] == 5, np.nan, tables['truth']['energy'])
    path = to_sqlite(tables, tmp_path/'a.db')
    assert len(from_graphnet(path, time_gauge='file')) == 11
    got = from_graphnet(path, time_gauge='file', missing='energy'); assert len(got) == 12 and got.missing == ('energy',) and np.isnan(got.labels[:, 0]).all()
    np.testing.assert_allclose(got.labels[:, 1:], events.labels[:, 1:], rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match='did you mean: zenith'): from_graphnet(path, missing='zenit')


def muons(events, length):
    "A third of the events become muons, whose position is the end of their track."
    tables = graphnet_tables(events); t = tables['truth']; muon = t['event_no'] % 3 == 0; end = t['event_no'] % 5 + 100.
    way = -np.stack([np.sin(t['zenith'])*np.cos(t['azimuth']), np.sin(t['zenith'])*np.sin(t['azimuth']), np.cos(t['zenith'])], 1)
    for i, k in enumerate('xyz'): t[f'position_{k}'] = t[f'position_{k}'] + np.where(muon, end*way[:, i], 0)
    t['pid'] = np.where(muon, 13*np.where(t['event_no'] % 2, 1, -1), t['pid'])
    if length: t['track_length'] = np.where(muon, end, -1.)  # GraphNeT pads the others
    return tables, np.isin(5 + 4*np.arange(len(events)), t['event_no'][muon])


def test_graphnet_position_of_a_muon_is_its_end(tmp_path, events):
    tables, muon = muons(events, True); got = from_graphnet(to_sqlite(tables, tmp_path/'a.db'), time_gauge='file'); assert 0 < muon.sum() < 12
    np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=2e-3)
    assert (got.kind[muon] == 2).all() and np.array_equal(got.kind[~muon], events.kind[~muon]) and any('track_length back along the track' in s for s in got.meta['assumptions'])
    tables, muon = muons(events, False); got = from_graphnet(to_sqlite(tables, tmp_path/'b.db'), time_gauge='file')
    same(got, events[~muon]); assert any(f'{muon.sum()} muons have no track_length' in s for s in got.meta['assumptions'])
    got = from_graphnet(tmp_path/'b.db', time_gauge='file', missing='x,y,z'); assert len(got) == 12 and got.missing == ('x', 'y', 'z')


def test_graphnet_muon_of_the_example(tmp_path, events):
    tables = graphnet_tables(events[:1]); tables['truth'] |= dict(pid=[13], position_x=[61.29], position_y=[-34.88], position_z=[100.], zenith=[0.], azimuth=[1.], track_length=[400.])
    got = from_graphnet(to_sqlite(tables, tmp_path/'a.db')); np.testing.assert_allclose(got.labels[0, 3:], [61.29, -34.88, 500], rtol=1e-5)
    tables['truth'].pop('track_length'); got = from_graphnet(to_sqlite(tables, tmp_path/'b.db')); assert got.missing == ('x', 'y', 'z') and got.labels[0, 1] == 0
    tables['truth'] |= dict(track_length=[-1.]); assert from_graphnet(to_sqlite(tables, tmp_path/'c.db')).missing == ('x', 'y', 'z')


def test_graphnet_ice_top_and_modules_of_many_pmts(tmp_path, events):
    tables = graphnet_tables(events); p = tables['InIceDSTPulses']; n = len(p['event_no']); pmt = np.arange(n) % 3
    more = {k: np.concatenate([v, v[:5]]) for k, v in p.items()}; more['dom_number'][-5:] = 61; more['dom_z'][-5:] = 1950.
    path = to_sqlite({**tables, 'InIceDSTPulses': more}, tmp_path/'top.db'); got = from_graphnet(path, time_gauge='file'); same(got, events)
    assert any(s.startswith('5 pulses of IceTop') for s in got.meta['assumptions'])
    tables['InIceDSTPulses'] = {**p, 'pmt_number': pmt, 'dom_x': p['dom_x'] + .1*(pmt-1)}
    got = from_graphnet(to_sqlite(tables, tmp_path/'pmt.db'), time_gauge='file'); same(got, events); assert any('PMTs' in s for s in got.meta['assumptions'])
    tables['InIceDSTPulses']['dom_x'] = p['dom_x'] + 9.*(pmt-1)
    with pytest.raises(DataError, match='two places'): from_graphnet(to_sqlite(tables, tmp_path/'far.db'))


def test_graphnet_null_and_text(tmp_path, events):
    with pytest.raises(DataError, match='charge are not finite'): from_graphnet(column(to_sqlite(graphnet_tables(events), tmp_path/'a.db'), 'InIceDSTPulses', 'charge', 'NULL'))
    with pytest.raises(DataError, match='string|sensor'): from_graphnet(column(to_sqlite(graphnet_tables(events), tmp_path/'b.db'), 'InIceDSTPulses', 'string', 'NULL'))
    with pytest.raises(DataError, match='energy does not hold numbers'): from_graphnet(column(to_sqlite(graphnet_tables(events), tmp_path/'c.db'), 'truth', 'energy', "'high'"))
    with pytest.raises(DataError, match='not whole numbers'): from_graphnet(column(to_sqlite(graphnet_tables(events), tmp_path/'d.db'), 'truth', 'event_no', 'event_no + .5'))
    got = from_graphnet(column(to_sqlite(graphnet_tables(events), tmp_path/'e.db'), 'truth', 'position_x', 'CASE WHEN event_no < 9 THEN NULL ELSE position_x END'), time_gauge='file')
    same(got, events[1:]); assert any('1 of 12 events were dropped, their truth is unknown (x of 1)' in s for s in got.meta['assumptions'])
    path = to_sqlite(graphnet_tables(events), tmp_path/'f.db')
    with closing(sqlite3.connect(path)) as db: db.execute('DELETE FROM InIceDSTPulses'); db.commit()
    with pytest.raises(DataError, match='no pulses'): from_graphnet(path)
    with pytest.raises(DataError, match="no table 'truth'"): from_graphnet(to_sqlite(graphnet_tables(events, truth=None), tmp_path/'g.db'))


def graphnet_photons(ev):
    "Photons as GraphNeT's tables of Prometheus have them: a global number for each sensor."
    number, event, which, q, t = pulses(ev, 1); d = ev.dom[which]; det = ev.detector; n = np.maximum(q.round().astype(int), 1); r = np.repeat(np.arange(len(n)), n)
    y = ev.labels.astype(float)
    return dict(mc_truth=dict(event_no=number, injection_energy=y[:, 0], injection_zenith=y[:, 1], injection_azimuth=y[:, 2], injection_position_x=y[:, 3], injection_position_y=y[:, 4], injection_position_z=y[:, 5],
                              injection_type=np.where(ev.kind == 1, 12, 14), injection_interaction_type=np.ones(len(ev))),
                total=dict(event_no=event[r], sensor_id=d[r], sensor_string_id=det.string[d][r].astype(float), sensor_pos_x=det.xyz[d[r], 0], sensor_pos_y=det.xyz[d[r], 1], sensor_pos_z=det.xyz[d[r], 2], t=t[r]))


def test_graphnet_photons_of_another_detector(tmp_path):
    det = from_positions([[60.*i, 35.*(i % 2), -12.*k] for i in range(6) for k in range(5+i)], 'ragged')
    ev = simulate_events(30, seed=5, kind='mixed', detector=det, energy=(1e3, 1e5), min_hits=5); to_csv(ev, tmp_path/'g')
    for write in (lambda t: to_sqlite(t, tmp_path/'p.db'), lambda t: to_parquet(t, tmp_path/'p')):
        convert(write(graphnet_photons(ev)), tmp_path/'o.h5', detector=tmp_path/'g'/'geometry.csv', time_gauge='file'); got = read_events(tmp_path/'o.h5')
        assert np.array_equal(got.dom, ev.dom) and np.array_equal(got.kind, ev.kind) and np.array_equal(got.detector.string, det.string)
        np.testing.assert_allclose(got.labels, ev.labels, rtol=1e-4, atol=1e-3); np.testing.assert_allclose(got.time, ev.time, atol=.05)
    alone = from_graphnet(tmp_path/'p.db', time_gauge='file'); assert alone.detector.n_doms == len(np.unique(ev.dom)) and 'others are missing' in alone.meta['assumptions'][0]
    with pytest.raises(DataError, match='no pulse map .totl.') as e: from_graphnet(tmp_path/'p.db', 'totl')
    assert 'total' in str(e.value)
    with pytest.raises(DataError, match='not in toy'): from_graphnet(tmp_path/'p.db', detector='toy')


def nubench(ev, charge=True, numbered=True):
    "Today's tables of Prometheus' events: the truth as Prometheus has it, directions of motion; pulses with a charge, or photons."
    number, event, which, q, t = pulses(ev, 2 if charge else 1); d = ev.dom[which]; det = ev.detector; y = ev.labels.astype(float)
    truth = dict(event_no=number, interaction=np.where(ev.kind == 1, 2, 1), initial_state_type=np.full(len(ev), 14), initial_state_energy=y[:, 0], initial_state_zenith=np.pi - y[:, 1], initial_state_azimuth=y[:, 2] - np.pi,
                 initial_state_x=y[:, 3], initial_state_y=y[:, 4], initial_state_z=y[:, 5], bjorken_x=0*y[:, 0], muon_zenith=0*y[:, 0])
    table = dict(event_no=event, sensor_pos_x=det.xyz[d, 0], sensor_pos_y=det.xyz[d, 1], sensor_pos_z=det.xyz[d, 2], t=t)
    if numbered: table |= dict(sensor_id=d, sensor_string_id=det.string[d].astype(float)) if charge else dict(sensor_id=det.dom[d] - 1, string_id=det.string[d])
    return dict(mc_truth=truth), {**table, **(dict(charge=q) if charge else {})}


@pytest.mark.parametrize('name, charge', [('merged_photons', True), ('photons', False)])
@pytest.mark.parametrize('numbered', [True, False])
@pytest.mark.parametrize('folder', [True, False])
def test_todays_tables_of_prometheus(tmp_path, events, name, charge, numbered, folder):
    truth, table = nubench(events, charge, numbered); tables = {**truth, name: table}
    path = to_parquet(tables, tmp_path/'p') if folder else to_sqlite(tables, tmp_path/'p.db')
    report = convert(path, tmp_path/'o.h5', time_gauge='file'); got = read_events(tmp_path/'o.h5'); assert report['format'] == 'graphnet'
    assert np.array_equal(got.dom, events.dom) and np.array_equal(got.ptr, events.ptr) and np.array_equal(got.kind, events.kind)
    np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=1e-3); np.testing.assert_allclose(got.time, events.time, atol=.05)
    np.testing.assert_allclose(got.charge, events.charge if charge else np.ones(len(events.dom)), rtol=1e-4)
    assert any('turned from where the neutrino goes' in s for s in got.meta['assumptions'])


def test_events_whose_pulses_stand_in_another_map_are_not_empty_ones(tmp_path, events):
    "NuBench: one table of truth, and two maps that share the events."
    truth, table = nubench(events); first = table['event_no'] < 30; test = table['event_no'] >= 30
    path = to_sqlite({**truth, 'merged_photons': {k: v[first] for k, v in table.items()}, 'pulses_no_noise': {k: v[test] for k, v in table.items()}}, tmp_path/'nubench.db')
    with pytest.raises(DataError, match='several pulse maps') as e: convert(path, tmp_path/'o.h5')
    assert 'merged_photons, pulses_no_noise' in str(e.value) and '--pulse-map' in str(e.value)
    a, b = (from_graphnet(path, pulse_map=k, time_gauge='file') for k in ('merged_photons', 'pulses_no_noise'))
    assert (len(a), len(b)) == (7, 5) and np.array_equal(np.concatenate([a.dom, b.dom]), events.dom) and (a.n_hits > 0).all()
    assert any(s.startswith('5 events, whose pulses stand in another pulse map') for s in a.meta['assumptions'])


@needs_data
def test_the_light_of_real_files_lies_ahead():
    "Directions: the light tells where a particle went."
    for path in ('graphnet_oscnext_5events.db', 'graphnet_prometheus_parquet'):
        mean, error, n = light_ahead(from_graphnet(DATA/path)); assert n >= 5 and mean > error


def test_light_behind_is_said(tmp_path, caplog):
    ev = simulate_events(60, seed=1, kind='track', min_hits=10); y = ev.labels.copy(); y[:, 1], y[:, 2] = np.pi-y[:, 1], (y[:, 2]+np.pi) % (2*np.pi)
    to_numpy(ev, tmp_path/'a.npz'); to_numpy(Events(ev.ptr, ev.dom, ev.charge, ev.time, y, ev.detector, ev.kind), tmp_path/'b.npz')
    assert not any('BEHIND' in s for s in convert(tmp_path/'a.npz', tmp_path/'a.h5')['assumptions'])
    assert any('BEHIND' in s for s in convert(tmp_path/'b.npz', tmp_path/'b.h5')['assumptions'])


# --- geometry files

def as_geo(det, lift=0.): return '### Metadata ###\nMedium:\tice\n### Modules ###\n' + '\n'.join(f'{x:.3f}\t{y:.3f}\t{z-lift:.3f}\t{s}\t{d}' for (x, y, z), s, d in zip(det.xyz, det.string, det.dom))


def test_icecube_is_recognised_whatever_its_file(tmp_path):
    ic = icecube86(); some = np.random.default_rng(0).permutation(5160)[:5050]
    (tmp_path/'any.geo').write_text(as_geo(ic, Z_SURFACE)); assert read_geometry(tmp_path/'any.geo') is ic
    table = dict(dom_x=ic.xyz[some, 0], dom_y=ic.xyz[some, 1], dom_z=ic.xyz[some, 2], string=ic.string[some], dom_number=ic.dom[some], rde=ic.rde[some])
    top = dict(dom_x=[0., 9.], dom_y=[0., 9.], dom_z=[1948., 1947.], string=[5, 5], dom_number=[61, 62], rde=[1., 1.])
    pq.write_table(pa.table({k: np.concatenate([v, top[k]]) for k, v in table.items()}), tmp_path/'seen.parquet'); assert read_geometry(tmp_path/'seen.parquet') is ic
    to_csv(simulate_events(2, detector='toy', min_hits=2), tmp_path/'t'); (tmp_path/'t'/'geometry.csv').rename(tmp_path/'icecube86.csv')   # a name proves nothing
    got = read_geometry(tmp_path/'icecube86.csv'); assert got.n_doms == 84 and np.array_equal(got.string, toy_detector().string)


def test_a_large_detector_is_read_quickly(tmp_path):
    import time
    xyz = np.array([[70.*(i % 35), 70.*(i//35), -30.*k] for i in range(1200) for k in range(20)]); start = time.perf_counter()
    det = from_positions(xyz); assert det.n_strings == 1200 and det.dom.max() == 20 and time.perf_counter()-start < 10
    assert (np.unique(det.string, return_index=True)[1] == np.arange(0, 24000, 20)).all()   # strings in the order of appearance


@pytest.mark.parametrize('name, text, says', [
    ('a.csv', 'string,dom,x,y,zz\n1,1,0,0,0', "no column 'z'.*did you mean: zz"), ('a.csv', 'x,y,z\n1,2,3\n1,2,nan', "'z' is not finite.*sensor 1"), ('a.csv', 'x,y,z\n1,2,3\n1,2', 'sensor 1 has another number of columns'),
    ('a.csv', 'x,y,z\n1,2,up', 'does not hold numbers'), ('a.csv', 'x,y,z', 'no sensors'), ('a.csv', '', 'is empty'), ('a.geo', '### Modules ###\n1 2 3 1 1\n1 2 x 1 2', 'does not hold numbers'),
    ('a.csv', 'string,dom,x,y,z\n1,1,0,0,0\n1,1,0,0,50', 'two places'), ('a.parquet', 'PAR1', 'damaged or no parquet'), ('b.csv', None, 'did you mean: .*csv')])
def test_bad_geometry(tmp_path, name, text, says):
    (tmp_path/'a.csv').write_text('x,y,z\n0,0,0')
    if text is not None: (tmp_path/name).write_text(text)
    with pytest.raises(DataError) as e: read_geometry(tmp_path/name)
    import re; assert re.search(says, str(e.value).replace('\n', ' ')), e.value


def test_geometry_of_many_spellings(tmp_path):
    for text in ('x;y;z\n0;0;0\n0;0;-5', 'name,x,y,z\ntop,0,0,0\nlow,0,0,-5', 'x\ty\tz\n0\t0\t0\n0\t0\t-5', '\ufeffx,y,z\r\n0,0,0\r\n0,0,-5\r\n', 'x y z\n0 0 0\n0 0 -5'):
        (tmp_path/'a.csv').write_text(text, encoding='utf-8'); got = read_geometry(tmp_path/'a.csv'); assert got.xyz.tolist() == [[0, 0, 0], [0, 0, -5]] and got.dom.tolist() == [1, 2]


# --- photons

def prometheus(ev, path, base=1, lift=0.):
    n = np.maximum(ev.charge.round().astype(int), 1); r = np.repeat(np.arange(len(n)), n); d = ev.dom[r]; ends = np.concatenate([[0], np.cumsum(np.bincount(ev.event[r], minlength=len(ev)))])
    lists = lambda v: pa.LargeListArray.from_arrays(ends, pa.array(v)); det = ev.detector; E, zen, az, x, y, z = ev.labels.T.astype(float)
    photons = dict(sensor_pos_x=lists(det.xyz[d, 0]), sensor_pos_y=lists(det.xyz[d, 1]), sensor_pos_z=lists(det.xyz[d, 2]-lift), string_id=lists(det.string[d]-1+base), sensor_id=lists(det.dom[d]-1+base), t=lists(ev.time[r].astype(float)))
    truth = {f'initial_state_{k}': pa.array(v) for k, v in dict(energy=E, zenith=np.pi-zen, azimuth=az-np.pi, x=x, y=y, z=z-lift).items()}
    pq.write_table(pa.table({k: pa.StructArray.from_arrays(list(v.values()), names=list(v)) for k, v in dict(mc_truth=truth, photons=photons).items()}), path)
    return path


@pytest.mark.parametrize('base', [0, 1])
def test_photons_of_any_geometry(tmp_path, events, base):
    got = from_prometheus(prometheus(events, tmp_path/'ic.parquet', base, Z_SURFACE)); assert np.array_equal(got.dom, events.dom) and got.detector is icecube86()
    np.testing.assert_allclose(got.labels, events.labels, rtol=1e-4, atol=1e-3)
    ev = simulate_events(9, detector='toy', seed=1, min_hits=5, energy=(1e3, 1e5)); (tmp_path/'toy.geo').write_text(as_geo(ev.detector))
    got = from_prometheus(prometheus(ev, tmp_path/'toy.parquet', base), tmp_path/'toy.geo'); assert np.array_equal(got.dom, ev.dom) and got.detector.n_doms == 84 and any(f'counted from {base}' in s for s in got.meta['assumptions'])
    (tmp_path/'ic.geo').write_text(as_geo(icecube86(), Z_SURFACE)); assert np.array_equal(from_prometheus(tmp_path/'ic.parquet', tmp_path/'ic.geo').dom, events.dom)


def test_photons_of_another_name(tmp_path, events):
    "What the structure of the photons is called is a setting of Prometheus, and stands in the file."
    table = pq.read_table(prometheus(events, tmp_path/'a.parquet', 1, Z_SURFACE)).rename_columns(['mc_truth', 'light'])
    made = {b'config_prometheus': b'{"photon propagator": {"name": "PPC", "photon field name": "light"}}'}
    two = table.append_column('raw_light', table['light'])
    pq.write_table(two.replace_schema_metadata(made), tmp_path/'said.parquet'); pq.write_table(table, tmp_path/'only.parquet'); pq.write_table(two, tmp_path/'two.parquet')
    for path, how in (('said', {}), ('only', {}), ('two', dict(pulse_map='raw_light'))):
        report = convert(tmp_path/f'{path}.parquet', tmp_path/'o.h5', **how); assert report['format'] == 'prometheus' and np.array_equal(read_events(tmp_path/'o.h5').dom, events.dom)
    with pytest.raises(DataError, match='several pulse maps') as e: convert(tmp_path/'two.parquet', tmp_path/'x.h5')
    assert 'light, raw_light' in str(e.value) and '--pulse-map' in str(e.value)
    with pytest.raises(DataError, match="no pulse map 'lihgt'(.|\n)*did you mean: light"): convert(tmp_path/'two.parquet', tmp_path/'x.h5', pulse_map='lihgt')


# --- many files

def test_many_files_as_one_or_one_by_one(tmp_path, events):
    (tmp_path/'p').mkdir(); parts = events[:5], events[5:]
    for i, ev in enumerate(parts): prometheus(ev, tmp_path/'p'/f'run_{i}.parquet', 1, Z_SURFACE)
    for src in (tmp_path/'p', str(tmp_path/'p'/'*.parquet'), [tmp_path/'p'/'run_0.parquet', tmp_path/'p'/'run_1.parquet']):
        report = convert(src, tmp_path/'one.h5'); got = read_events(tmp_path/'one.h5')
        assert report['events'] == 12 and np.array_equal(got.dom, events.dom) and report['photons_in'] == int(np.maximum(events.charge.round(), 1).sum())
    report = convert(tmp_path/'p', tmp_path/'shards'); assert report['events'] == 12 and sorted(p.name for p in (tmp_path/'shards').iterdir()) == ['run_0.h5', 'run_1.h5']
    assert np.array_equal(read_events(tmp_path/'shards').dom, events.dom)
    convert(tmp_path/'shards', tmp_path/'again.h5'); assert np.array_equal(read_events(tmp_path/'again.h5').dom, events.dom)
    convert(tmp_path/'shards', tmp_path/'dense', 'dense'); assert np.array_equal(read_events(tmp_path/'dense').dom, events.dom) and len(list((tmp_path/'dense').iterdir())) == 2
    (tmp_path/'d').mkdir(); [to_graphnet(ev, tmp_path/'d'/f'{i}.db') for i, ev in enumerate(parts)]
    convert(tmp_path/'d', tmp_path/'two.h5', time_gauge='file'); same(read_events(tmp_path/'two.h5'), events)
    with pytest.raises(ConfigError, match='sample'): convert(tmp_path/'p', tmp_path/'shards', sample=3)
    with pytest.raises(DataError, match='different formats'): convert([tmp_path/'p'/'run_0.parquet', tmp_path/'d'/'0.db'], tmp_path/'x.h5')


def test_many_files_of_different_sensors_need_a_detector(tmp_path):
    (tmp_path/'p').mkdir(); (tmp_path/'toy.geo').write_text(as_geo(toy_detector()))
    for i in range(2): prometheus(simulate_events(2, detector='toy', seed=i, min_hits=3, energy=(100, 200)), tmp_path/'p'/f'{i}.parquet')
    for dst in ('x.h5', 'folder'):
        with pytest.raises(DataError, match='detector') as e: convert(tmp_path/'p', tmp_path/dst)
        assert '--detector' in str(e.value)
    assert convert(tmp_path/'p', tmp_path/'x.h5', detector=tmp_path/'toy.geo')['events'] == 4


def test_kaggle_sensors_and_directions_in_any_order(tmp_path, events):
    folder = kaggle(events, tmp_path/'k'); head, *rows_ = (folder/'sensor_geometry.csv').read_text().splitlines()
    (folder/'sensor_geometry.csv').write_text('\n'.join([head, *np.random.default_rng(0).permutation(rows_)]))
    t = pq.read_table(folder/'train_meta.parquet'); far = {k: pa.array(np.asarray(t[k]) if k != 'event_id' else np.asarray(t[k]) + 10**7) for k in t.column_names}
    pq.write_table(pa.concat_tables([pa.table(far), t.take(np.random.default_rng(1).permutation(12))]), folder/'train_meta.parquet')
    report = convert(folder, tmp_path/'o.h5', time_gauge='file'); got = read_events(tmp_path/'o.h5'); assert report['format'] == 'kaggle' and np.array_equal(got.dom, events.dom)
    np.testing.assert_allclose(got.labels[:, 1:3], events.labels[:, 1:3], rtol=1e-5)
    assert convert(folder/'train', tmp_path/'s')['events'] == 12 and len(list((tmp_path/'s').iterdir())) == 2
    (folder/'train_meta.parquet').unlink(); assert convert(folder/'train', tmp_path/'n.h5', meta='none')['events'] == 12 and read_events(tmp_path/'n.h5').missing == LABELS
    (folder/'sensor_geometry.csv').write_text('\n'.join([head, rows_[0], *rows_]))
    with pytest.raises(DataError, match='sensor_id is double'): from_kaggle(folder/'train', meta='none')
    (folder/'sensor_geometry.csv').write_text('\n'.join([head, *rows_[:100]]))
    with pytest.raises(DataError, match='sensor_id out of range'): from_kaggle(folder/'train', meta='none')


# --- tables and dense files

def test_graphnet_file_written_here_is_read(tmp_path, events):
    report = convert(to_numpy(events, tmp_path/'a.npz'), tmp_path/'a.db'); assert report['schema'] == 'graphnet'
    same(from_graphnet(tmp_path/'a.db', time_gauge='file'), events, 1e-6)


def test_tables_with_numbers_of_their_own(tmp_path, events):
    "IceCube with strings and DOMs counted from 0, as its own table of the geometry has it."
    to_csv(events, tmp_path/'t'); text = (tmp_path/'t'/'hits.csv').read_text().splitlines(); ic = icecube86()
    (tmp_path/'t'/'hits.csv').write_text('\n'.join([text[0], *(','.join([e, str(int(s)-1), str(int(d)-1), q, t]) for e, s, d, q, t in (r.split(',') for r in text[1:]))]))
    (tmp_path/'t'/'geometry.csv').write_text('string,dom,x,y,z\n' + '\n'.join(f'{s-1},{d-1},{x},{y},{z}' for (x, y, z), s, d in zip(ic.xyz, ic.string, ic.dom)))
    got = from_csv(tmp_path/'t'); assert np.array_equal(got.dom, events.dom) and got.detector is ic


@pytest.mark.parametrize('hits, labels, says', [
    ('event,string,dom,charge,time\n0,1,1.5,2,3', 'event,energy\n0,1', 'not in icecube86'), ('event,string,dom,charge,time\n0,1,0,2,3', 'event,energy\n0,1', 'not in icecube86'), ('event,string,dom,charge,time', 'event,energy\n0,1', 'no hits'),
    ('event,string,dom,charge,time\n0,1,1,2,inf', 'event,energy\n0,1', "'time' of the hits is not finite"), ('event,string,dom,charge,time\n0,1,1,2,3', 'event,energy\n0,1\n0,2', 'stand twice'),
    ('event,string,dom,charge,time\n0,1,1,2,3', 'event,energy\n0,1\n1,', 'labels that are not finite'), ('event,string,dom,charge,time\n0,1,1,2,3', 'event,zenith\n0,4', 'zenith'), ('event,string,dom,charge,time\n0,1,1,2,3', 'evnt,energy\n0,1', 'did you mean: evnt')])
def test_bad_tables(tmp_path, hits, labels, says):
    (tmp_path/'hits.csv').write_text(hits); (tmp_path/'labels.csv').write_text(labels)
    with pytest.raises(DataError, match=says): convert(tmp_path, tmp_path/'o.h5')
    assert not (tmp_path/'o.h5').exists()


@pytest.mark.parametrize('change, says', [(dict(kind=np.zeros(3, int)), 'kind has the wrong shape'), (dict(geometry=np.zeros((4, 5))), 'geometry has the wrong shape'), (dict(label=np.zeros((2, 3))), 'label has the wrong shape'), (dict(dom=[1, 2]), "array 'dom' is wrong"),
                                          (dict(time=[np.nan]), 'not finite'), (dict(event=[7], label=np.ones((2, 6))), 'holds|dropped|no')])
def test_bad_arrays(tmp_path, change, says):
    np.savez(tmp_path/'a.npz', **{**dict(event=[0], string=[1], dom=[1], charge=[1.], time=[1.]), **change})
    if 'label' in change and 'event' in change: assert from_numpy(tmp_path/'a.npz').n_hits.tolist() == [0, 0]; return
    with pytest.raises(DataError, match=says): from_numpy(tmp_path/'a.npz')


def test_dense_hits_at_time_zero(tmp_path, events):
    x = events.dense(); e, d = 0, events.dom[3]; x[e, 1, d] = 0
    with h5py.File(tmp_path/'d.h5', 'w') as f: f['input'], f['label'] = x, events.labels
    kept, dropped = from_hdf5(tmp_path/'d.h5'), from_hdf5(tmp_path/'d.h5', no_hit='time')
    assert len(kept.dom) == len(events.dom) == len(dropped.dom) + 1 and any('1 hits at exactly 0 ns were dropped' in s for s in dropped.meta['assumptions'])
    assert any('no positions' in s for s in kept.meta['assumptions']) and any('marks in the file are 0' in s for s in kept.meta['assumptions'])
    with pytest.raises(ConfigError, match='did you mean: time'): from_hdf5(tmp_path/'d.h5', no_hit='tim')


@needs_data
def test_a_model_trains_on_another_detector(tmp_path):
    "ORCA-150: a water detector whose strings differ from IceCube's."
    from genesis.config import get_default_config, override
    from genesis.training import create_trainer
    convert(DATA/'graphnet_prometheus_parquet', tmp_path/'orca.h5', detector=DATA/'orca_150_geometry.parquet')
    got = read_events(tmp_path/'orca.h5'); assert len(got) == 15 and got.detector.n_doms == 3300 and (got.kind == 2).all() and (got.n_hits > 0).all()
    small = {'data.h5_path': str(tmp_path/'orca.h5'), 'data.batch_size': 4, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'training.num_epochs': 2, 'device': 'cpu', 'training.use_tensorboard': False,
             **{f'training.{k}_dir': str(tmp_path/k) for k in ('output', 'checkpoint', 'log')}}
    history = create_trainer(override(get_default_config(), small)).train()
    assert np.isfinite(history['train_loss']).all() and len(history['train_loss'])


@needs_data
def test_real_graphnet_files_agree():
    a, b = from_graphnet(DATA/'graphnet_oscnext_5events.db'), from_graphnet(DATA/'graphnet_oscnext_parquet')
    same(a, b, .1); assert a.n_hits.tolist() == [6, 8, 8, 10, 6] and (a.kind == 2).all()


# --- IceTray, as far as i3_to_genesis.py sees it

class Thing:
    def __init__(self, **kw): self.__dict__.update(kw)


class Key(tuple):
    string, om = property(lambda s: s[0]), property(lambda s: s[1])


class Tree(list):
    def children(self, p): return p.below


class Frame(dict):
    Stop = None


def fake_icecube(files):
    icecube = types.ModuleType('icecube'); icecube.dataio = types.ModuleType('icecube.dataio'); icecube.icetray = types.ModuleType('icecube.icetray'); icecube.dataclasses = types.ModuleType('icecube.dataclasses')
    icecube.dataio.I3File = lambda path: iter(files[path])
    icecube.icetray.I3Frame = Thing(Physics='P', DAQ='Q')
    icecube.dataclasses.I3RecoPulseSeriesMap = Thing(from_frame=lambda frame, name: frame[name])
    return {'icecube': icecube, **{f'icecube.{k}': getattr(icecube, k) for k in ('dataio', 'icetray', 'dataclasses')}}


def i3_frames(ev):
    det = ev.detector; gcd, frames = [], []
    g = Frame(I3Geometry=Thing(omgeo={Key((int(s), int(d))): Thing(position=Thing(x=x, y=y, z=z)) for s, d, (x, y, z) in zip(det.string, det.dom, det.xyz)} | {Key((1, 61)): Thing(position=Thing(x=0., y=0., z=1950.))})); g.Stop = 'G'
    c = Frame(I3Calibration=Thing(dom_cal={Key((int(s), int(d))): Thing(relative_dom_eff=float(r)) for s, d, r in zip(det.string, det.dom, det.rde)})); c.Stop = 'C'
    for i in range(len(ev)):
        one = ev[i]; E, zen, az, x, y, z = one.labels[0].astype(float); t0 = 9000. + 10*i; series = {}
        for d, q, t in zip(one.dom, one.charge, one.time): series[Key((int(det.string[d]), int(det.dom[d])))] = [Thing(charge=float(q)*.75, time=float(t)+t0), Thing(charge=float(q)*.25, time=float(t)+t0+50)]
        series[Key((1, 61))] = [Thing(charge=1., time=5.)]
        kind = 'NuMu' if one.kind[0] == 2 else 'NuE'; pos = Thing(x=x, y=y, z=z)
        below = [Thing(type=f'ParticleType.{"MuMinus" if kind == "NuMu" else "EMinus"}', pos=pos, time=t0, energy=E*.8, below=[]), Thing(type='ParticleType.Hadrons', pos=pos, time=t0, energy=E*.2, below=[])]
        inner = Thing(type=f'ParticleType.{kind}', energy=E, dir=Thing(zenith=zen, azimuth=az), pos=Thing(x=0, y=0, z=9e3), time=0., below=below)
        outer = Thing(type=f'ParticleType.{kind}', energy=E*1.1, dir=Thing(zenith=zen, azimuth=az), pos=Thing(x=0, y=0, z=9e5), time=-5., below=[inner])
        for split in ('NullSplit', 'InIceSplit'):
            f = Frame(InIceDSTPulses=series, I3MCTree=Tree([outer, inner, *below]), I3EventHeader=Thing(sub_event_stream=split)); f.Stop = 'P'; frames.append(f)
    return [g, c], frames


@pytest.fixture
def icetray(tmp_path, monkeypatch):
    def use(files):
        paths = {}
        for name, frames in files.items(): (tmp_path/name).write_bytes(b'i3'); paths[str(tmp_path/name)] = frames
        for k, v in fake_icecube(paths).items(): monkeypatch.setitem(sys.modules, k, v)
        from genesis import i3_to_genesis
        return lambda *a: i3_to_genesis.main([str(tmp_path/x) if x in files or x.endswith('.npz') else x for x in a])
    return use


def test_i3_files_come_out_whole(tmp_path, events, icetray, capsys):
    gcd, frames = i3_frames(events); run = icetray({'gcd.i3': gcd, 'a.i3': frames[:10], 'b.i3': frames[10:]})
    run('-g', 'gcd.i3', '-o', 'events.npz', 'a.i3', 'b.i3'); said = capsys.readouterr().out
    assert f'{len(events)} events' in said and f'{len(events)} pulses of IceTop' in said
    convert(tmp_path/'events.npz', tmp_path/'events.h5'); got = read_events(tmp_path/'events.h5')
    same(got, events, .01); assert np.array_equal(got.detector.rde, events.detector.rde) and any('I3MCTree' in s for s in got.meta['assumptions'])


def particle(kind, energy, place, below=(), zenith=1.):
    return Thing(type=f'ParticleType.{kind}', energy=energy, dir=Thing(zenith=zenith, azimuth=2.), pos=Thing(x=place[0], y=place[1], z=place[2]), time=0., below=list(below))


def flat(p): return [p, *(q for d in p.below for q in flat(d))]


ICE, EARTH, DEEP = (10., 20., -300.), (1e4, 0., -9e4), (5e5, 0., -4e6)


@pytest.mark.parametrize('tree, energy, kind', [
    # a tau neutrino's tau decays in the Earth, and the new neutrino interacts in the ice
    (lambda: particle('NuTau', 900., DEEP, [particle('TauMinus', 700., DEEP, [particle('NuTau', 300., EARTH, [particle('TauMinus', 200., ICE), particle('Hadrons', 100., ICE)]), particle('Hadrons', 400., EARTH)]), particle('Hadrons', 200., DEEP)]), 300., 'unknown'),
    # the same with a muon neutrino of the tau's decay, and twice regenerated
    (lambda: particle('NuTau', 900., DEEP, [particle('TauMinus', 700., DEEP, [particle('NuTau', 500., DEEP, [particle('TauMinus', 400., EARTH, [particle('NuMuBar', 50., EARTH, [particle('MuPlus', 30., ICE), particle('Hadrons', 20., ICE)])]), particle('Hadrons', 9., EARTH)])])]), 50., 'track'),
    # in the ice a tau decays to a neutrino that nothing happens to
    (lambda: particle('NuTau', 900., DEEP, [particle('TauMinus', 700., ICE, [particle('NuTau', 300., ICE), particle('Hadrons', 400., ICE)]), particle('Hadrons', 200., ICE)]), 900., 'unknown'),
    # a neutral current in the ice, whose neutrino interacts again far behind it
    (lambda: particle('NuE', 900., DEEP, [particle('NuE', 500., ICE, [particle('EMinus', 400., EARTH), particle('Hadrons', 100., EARTH)]), particle('Hadrons', 400., ICE)]), 900., 'cascade'),
    # a neutrino that is only copied, to a place near the detector
    (lambda: particle('NuMu', 900., DEEP, [particle('NuMu', 900., (0., 0., 0.), [particle('MuMinus', 700., ICE), particle('Hadrons', 200., ICE)])]), 900., 'track')])
def test_i3_the_neutrino_whose_products_are_in_the_ice(tree, energy, kind):
    from genesis.i3_to_genesis import interaction, kind_of
    everything = flat(tree()); neutrino, products = interaction(Tree(everything))
    assert neutrino.energy == energy and (products[0].pos.x, products[0].pos.z) == (ICE[0], ICE[2]) and kind_of(products) == ['unknown', 'cascade', 'track'].index(kind)


class PMT(Key):
    pmt = property(lambda s: s[2])


def test_i3_upgrade_strings_and_modules_of_many_pmts(tmp_path, icetray, capsys):
    "Strings 87 to 93 have more than 60 modules, and an entry for each PMT; IceTop's tanks stand on the strings up to 86."
    det = icecube86(); rng = np.random.default_rng(0); ring = .15*np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]); at = {(88, n): np.array([20., -60., -200. - 3*n]) for n in range(1, 111)}
    geo = {Key((int(s), int(d))): Thing(position=Thing(x=x, y=y, z=z)) for s, d, (x, y, z) in zip(det.string, det.dom, det.xyz)} | {Key((1, 61)): Thing(position=Thing(x=0., y=0., z=1950.)), Key((86, 64)): Thing(position=Thing(x=0., y=0., z=1950.))}
    geo |= {PMT((s, n, i)): Thing(position=Thing(x=x, y=y, z=z)) for (s, n), c in at.items() for i, (x, y, z) in enumerate(c + ring)}
    g, c, p = Frame(I3Geometry=Thing(omgeo=geo)), Frame(I3Calibration=Thing(dom_cal={k: Thing(relative_dom_eff=1.2 + .1*k.pmt) for k in geo if isinstance(k, PMT)})), Frame()
    series = {PMT((88, 75, 0)): [Thing(charge=1., time=50.)], PMT((88, 75, 3)): [Thing(charge=2., time=40.)], PMT((88, 12, 1)): [Thing(charge=4., time=60.)], Key((1, 61)): [Thing(charge=9., time=5.)], Key((5, 30)): [Thing(charge=1., time=70.)]}
    p |= dict(InIceDSTPulses=series, I3MCTree=Tree(flat(particle('NuE', 10., (0., 0., 0.), [particle('EMinus', 10., (0., 0., 0.))]))), I3EventHeader=Thing(sub_event_stream='InIceSplit'))
    for f, stop in ((g, 'G'), (c, 'C'), (p, 'P')): f.Stop = stop
    icetray({'gcd.i3': [g, c], 'a.i3': [p]})('-g', 'gcd.i3', '-o', 'e.npz', 'a.i3'); assert '1 pulses of IceTop' in capsys.readouterr().out
    got = from_numpy(tmp_path/'e.npz'); d = got.detector; assert d.n_doms == 5160 + 110
    hits = {(int(d.string[i]), int(d.dom[i])): (q, t) for i, q, t in zip(got.dom, got.charge, got.time)}
    assert hits == {(88, 75): (3, 40), (88, 12): (4, 60), (5, 30): (1, 70)}
    i = int(np.flatnonzero((d.string == 88) & (d.dom == 75))[0]); np.testing.assert_allclose(d.xyz[i], at[88, 75], atol=1e-4); assert d.rde[i] == pytest.approx(1.35)


def test_i3_problems_are_named(tmp_path, events, icetray):
    gcd, frames = i3_frames(events[:2]); run = icetray({'gcd.i3': gcd, 'a.i3': frames})
    for line, says in ((('-o', 'x.npz', 'a.i3'), 'no I3Geometry'), (('-g', 'gcd.i3', '-p', 'Nope', '-o', 'x.npz', 'a.i3'), 'Those seen: InIceDSTPulses'), (('-g', 'gcd.i3', '-o', 'x.npz', 'zzz.i3'), 'no file'), (('-g', 'gcd.i3', '-o', 'x.txt', 'a.i3'), 'must end in .npz')):
        with pytest.raises(SystemExit) as e: run(*line)
        assert says in str(e.value)
    assert not list(tmp_path.glob('x.*')) and not list(tmp_path.glob('*.tmp'))


def test_i3_without_truth(tmp_path, events, icetray):
    gcd, frames = i3_frames(events)
    for f in frames: del f['I3MCTree']
    icetray({'gcd.i3': gcd, 'a.i3': frames})('-g', 'gcd.i3', '-o', 'e.npz', 'a.i3')
    got = from_numpy(tmp_path/'e.npz'); assert got.missing == LABELS and len(got) == len(events)


def test_i3_with_truth_in_some_frames_only(tmp_path, events, icetray, capsys):
    gcd, frames = i3_frames(events)
    for f in frames[:6]: del f['I3MCTree']
    icetray({'gcd.i3': gcd, 'a.i3': frames})('-g', 'gcd.i3', '-o', 'e.npz', 'a.i3'); assert '3 events without a neutrino in I3MCTree were dropped' in capsys.readouterr().out
    same(from_numpy(tmp_path/'e.npz'), events[3:], .01)


def test_the_file_for_icetray_is_plain_old_python():
    import genesis.i3_to_genesis as module
    source = Path(module.__file__).read_text(); tree = ast.parse(source, feature_version=(3, 8))
    names = {a.name.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {'argparse', 'os', 'sys', 'tempfile', 'numpy', 'icecube'}
