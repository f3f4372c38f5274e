"""Other people's files: made here in the formats of others, converted, compared; and every way in which they can be wrong."""
import ast, sqlite3, sys, types
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from genesis.core import ConfigError, DataError, GenesisError
from genesis.data.detector import from_positions
from genesis.data.events import LABELS, read_events, write_events
from genesis.data.formats import convert, find_format, from_numpy, to_csv, to_numpy
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
    assert from_kaggle(folder/'train', meta=False).missing == LABELS


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


def test_the_file_for_icetray_is_plain_old_python():
    import genesis.i3_to_genesis as module
    source = Path(module.__file__).read_text(); tree = ast.parse(source, feature_version=(3, 8))
    names = {a.name.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {'argparse', 'os', 'sys', 'tempfile', 'numpy', 'icecube'}
