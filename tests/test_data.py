"""Files of events: what is refused and with which words, that nothing half-written stays, and that what is written comes back."""
import errno, os, subprocess, sys, textwrap
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from genesis.core import ConfigError, DataError, GenesisError, StorageError
from genesis.data import simulator
from genesis.data.detector import from_positions, icecube86, match_doms, toy_detector
from genesis.data.events import Events, read_events, write_events
from genesis.data.formats import convert, from_prometheus
from genesis.data.simulator import simulate_events

TOY,IC = toy_detector(),icecube86()
PARTS = ('ptr', 'dom', 'charge', 'time', 'labels')
PROMETHEUS = Path(__file__).parents[2]/'shared'/'data'/'events'/'prometheus_ic86_nue_cc.parquet'


@pytest.fixture(scope='module')
def events(): return simulate_events(6, detector=TOY, seed=1)


@pytest.fixture
def files(tmp_path, events):
    "A sparse and a dense file of the same events."
    return {s: write_events(events, tmp_path/f'{s}.h5', s) for s in ('sparse', 'dense')}


def same(a, b, parts=PARTS): return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in parts)


def listing(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def edit(path, **change):
    "Replace datasets of a file; None removes one."
    with h5py.File(path, 'r+') as f:
        for k,v in change.items():
            if k in f: del f[k]
            if v is not None: f[k] = v
    return path


# ---- reading ------------------------------------------------------------------------------------------------------------

def test_missing_file_names_the_nearest(tmp_path, files):
    with pytest.raises(DataError, match=r'(?s)no data file at .*spars.h5.*nothing there.*did you mean: sparse.h5'): read_events(tmp_path/'spars.h5')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='(?s)no event files in .*an empty folder'): read_events(tmp_path/'empty')
    with pytest.raises(DataError, match='no data file'): read_events('/no/such/folder/events.h5')


@pytest.mark.parametrize('content', [b'', b'energy,zenith\n', b'PAR1' + bytes(100), b'\x89HDF'])
def test_not_hdf5(tmp_path, content):
    (tmp_path/'a.h5').write_bytes(content)
    with pytest.raises(DataError, match='is not an HDF5 file'): read_events(tmp_path/'a.h5')


@pytest.mark.parametrize('schema', ['sparse', 'dense'])
def test_truncated_at_any_length(tmp_path, files, schema):
    whole = files[schema].read_bytes(); cut = tmp_path/'cut.h5'
    for n in np.linspace(8, len(whole)-1, 60).astype(int):
        cut.write_bytes(whole[:n])
        with pytest.raises(DataError, match='damaged or incomplete'): read_events(cut)


@pytest.mark.parametrize('schema', ['sparse', 'dense'])
def test_flipped_bits_are_an_error_or_harmless(tmp_path, files, events, schema):
    whole = files[schema].read_bytes(); bad = tmp_path/'bad.h5'; rng = np.random.default_rng(0); refused = 0
    for _ in range(300):
        b = bytearray(whole); b[rng.integers(len(b))] ^= 1 << rng.integers(8); bad.write_bytes(b)
        try: read_events(bad)
        except DataError: refused += 1
    assert refused > 20


@pytest.mark.parametrize('schema,name,message', [('sparse', 'label', "has no dataset 'label'"), ('sparse', 'dom', "has no dataset 'dom'"), ('sparse', 'time', "has no dataset 'time'"), ('dense', 'input', "has no dataset 'input'"),
                                                 ('dense', 'label', "has no dataset 'label'"), ('dense', 'ypmt', "has no dataset 'ypmt'"), ('dense', 'xpmt', 'says nothing about its detector')])
def test_missing_dataset(files, schema, name, message):
    with pytest.raises(DataError, match=message): read_events(edit(files[schema], **{name: None}))


@pytest.mark.parametrize('schema,name,shape', [('dense', 'input', (6, 84)), ('dense', 'input', (6, 3, 84)), ('dense', 'input', (84, 6, 2)), ('dense', 'label', (6, 4)), ('dense', 'label', (5, 6)), ('dense', 'zpmt', (83,)), ('sparse', 'label', (6, 5)),
                                               ('sparse', 'event_ptr', ()), ('sparse', 'kind', (5,)), ('sparse', 'charge', (3, 2))])
def test_wrong_shape(files, schema, name, shape):
    with pytest.raises(DataError, match=rf"dataset '{name}' has the wrong shape"): read_events(edit(files[schema], **{name: np.ones(shape)}))


def test_arrays_that_do_not_fit(files, events):
    with pytest.raises(DataError, match='differ in length'): read_events(edit(files['sparse'], charge=np.ones(len(events.dom)+1)))
    with pytest.raises(DataError, match='pointer does not fit'): read_events(edit(files['sparse'], charge=events.charge, event_ptr=events.ptr[::-1]))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('schema', ['sparse', 'dense'])
def test_labels_that_are_not_finite(files, events, schema, value):
    labels = events.labels.copy(); labels[[1, 4], 2] = value
    with pytest.raises(DataError, match=r'(?s)labels that are not finite.*2 events: 1, 4'): read_events(edit(files[schema], label=labels))


def test_negative_charge(files, events):
    charge = events.charge.copy(); charge[0] = -1
    with pytest.raises(DataError, match=r'(?s)charges that are negative.*1 events: 0'): read_events(edit(files['sparse'], charge=charge))
    x = events.dense(); x[2, 0, 5] = -1
    with pytest.raises(DataError, match=r'(?s)negative charges.*1 events: 2.*channel_order'): read_events(edit(files['dense'], input=x))


def test_other_rules_on_hits(files, events):
    for change,message in ((dict(time=np.full_like(events.time, np.nan)), 'times that are not finite'), (dict(charge=events.charge*np.inf), 'charges that are not finite'), (dict(dom=events.dom+84), 'outside the detector'),
                           (dict(dom=events.dom*0), 'hit twice in one event'), (dict(label=events.labels*0), 'energies that are not positive')):
        path = edit(files['sparse'], **{k: getattr(events, {'label': 'labels'}.get(k, k)) for k in ('dom', 'charge', 'time', 'label')})
        with pytest.raises(DataError, match=message): read_events(edit(path, **change))


@pytest.mark.parametrize('empty', [0, np.inf, np.nan])
def test_all_empty(files, empty):
    with pytest.raises(DataError, match=r'(?s)holds no hits.*6 events, all empty'): read_events(edit(files['dense'], input=np.full((6, 2, 84), empty)))


def test_numbers_that_are_none(files):
    for value in (np.array([[b'a']*6]*6), np.ones((6, 6), complex)):
        with pytest.raises(DataError, match='does not hold numbers'): read_events(edit(files['sparse'], label=value))


@pytest.mark.parametrize('name', ['label', 'charge', 'event_ptr', 'xpmt'])
@pytest.mark.parametrize('link', ['soft', 'soft dangling', 'external', 'external dangling'])
def test_links_are_not_followed(files, name, link):
    target = {'soft': h5py.SoftLink('/time'), 'soft dangling': h5py.SoftLink('/nowhere'), 'external': h5py.ExternalLink('dense.h5', '/label'), 'external dangling': h5py.ExternalLink('none.h5', '/label')}[link]
    with pytest.raises(DataError, match='link|has no dataset'): read_events(edit(files['sparse'], **{name: target}))


def test_data_elsewhere_is_not_followed(tmp_path, files):
    with h5py.File(files['sparse'], 'r+') as f:
        del f['label']; layout = h5py.VirtualLayout((6, 6), 'f4'); layout[:] = h5py.VirtualSource('dense.h5', 'label', shape=(6, 6)); f.create_virtual_dataset('label', layout)
    with pytest.raises(DataError, match="'label' is a link to elsewhere"): read_events(files['sparse'])
    (tmp_path/'raw').write_bytes(np.ones((6, 6), 'f4').tobytes())
    with h5py.File(files['dense'], 'r+') as f: del f['label']; f.create_dataset('label', (6, 6), 'f4', external=[(str(tmp_path/'raw'), 0, 144)])
    with pytest.raises(DataError, match="'label' is a link to elsewhere"): read_events(files['dense'])


def test_indices_are_whole_numbers(files, events):
    for name,value in (('dom', events.dom+.5), ('dom', events.dom.astype('i8')+2**33), ('event_ptr', events.ptr*np.nan), ('kind', np.full(6, 250))):
        original = files['sparse'].read_bytes()
        with pytest.raises(DataError): read_events(edit(files['sparse'], **{name: value}))
        files['sparse'].write_bytes(original)


def test_attributes(files):
    for meta in ('{', '[1]', 5):
        with h5py.File(files['sparse'], 'r+') as f: f.attrs['meta'] = meta
        with pytest.raises(DataError, match='meta'): read_events(files['sparse'])


def test_a_detector_that_is_named(files, events):
    assert same(read_events(files['sparse'], 'toy'), events)
    with pytest.raises(ConfigError, match=r'(?s)unknown detector.*did you mean: icecube86'): read_events(files['sparse'], 'icecube')
    for path in files.values():
        with pytest.raises(DataError): read_events(path, 'icecube86')


def test_positions_that_are_not_finite(files):
    with pytest.raises(DataError, match=r'(?s)dense.h5.*positions that are not finite'): read_events(edit(files['dense'], xpmt=np.full(84, np.nan)))


# ---- the dense schema ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('order', ['charge_time', 'time_charge'])
@pytest.mark.parametrize('name', ['input', 'x'])
@pytest.mark.parametrize('q_empty,t_empty', [(0, 0), (0, np.inf), (0, np.nan), (np.nan, np.nan), (0, -np.inf)])
def test_no_hit_is_zero_infinite_or_nan(files, events, order, name, q_empty, t_empty):
    early = Events(events.ptr, events.dom, events.charge, np.where(np.arange(len(events.time)) % 7 == 0, 0, events.time), events.labels, TOY)
    x = early.dense(); none = x[:,0] == 0
    x[:,0][none],x[:,1][none] = q_empty,t_empty
    if order == 'time_charge': x = x[:,::-1]
    path = edit(files['dense'], **{'input': None, name: x})
    for said in ('auto', order):
        back = read_events(path, channel_order=said)
        assert same(back, early) and back.meta['channel_order'] == order
    assert (back.time == 0).sum() > 20, 'a first photon at t = 0 is a hit'


def test_a_wrong_channel_order_is_noticed(files):
    with pytest.raises(DataError, match='unknown channel order'): read_events(files['dense'], channel_order='time')
    with pytest.raises(DataError): read_events(edit(files['dense'], input=simulate_events(6, detector=TOY, seed=1).dense()*[[[1], [-1]]]), channel_order='time_charge')


# ---- round trips --------------------------------------------------------------------------------------------------------

f4 = dict(width=32, allow_nan=False, allow_infinity=False)

@st.composite
def any_events(draw):
    "Events in the toy detector with anything that the rules allow, empty events included."
    n = draw(st.integers(1, 5))
    doms = [sorted(draw(st.sets(st.integers(0, 83), max_size=12))) for _ in range(n)]
    if not any(doms): doms[0] = [draw(st.integers(0, 83))]
    H = sum(map(len, doms))
    charge = draw(hnp.arrays(np.float32, H, elements=st.floats(np.float32(1e-30), np.float32(1e30), **f4)))
    time = draw(hnp.arrays(np.float32, H, elements=st.floats(np.float32(-1e9), np.float32(1e9), **f4)))
    labels = draw(hnp.arrays(np.float32, (n, 6), elements=st.floats(0, 1, **f4)))*np.array([1e9, np.pi, 2*np.pi, 1e3, 1e3, 1e3], np.float32) + np.array([1, 0, 0, 0, 0, 0], np.float32)
    kind = draw(hnp.arrays(np.uint8, n, elements=st.integers(0, 2)))
    return Events(np.cumsum([0] + [len(d) for d in doms]), np.array(sum(doms, []), int), charge, time, labels, TOY, kind, draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=2)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ev=any_events())
def test_round_trip(tmp_path, ev):
    sparse = read_events(write_events(ev, tmp_path/'s.h5'))
    assert same(sparse, ev, (*PARTS, 'kind')) and sparse.meta == ev.meta and sparse.detector.fingerprint == TOY.fingerprint
    dense = read_events(write_events(ev, tmp_path/'d.h5', 'dense'), channel_order='charge_time')
    assert same(dense, ev) and np.array_equal(dense.detector.string, TOY.string)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ev=any_events(), schema=st.sampled_from(['sparse', 'dense']))
def test_convert_keeps_the_events(tmp_path, ev, schema):
    report = convert(write_events(ev, tmp_path/'a.h5', schema), tmp_path/'b.h5', channel_order='charge_time')
    assert same(read_events(tmp_path/'b.h5'), ev)
    assert (report['events'], report['hits'], report['empty_events']) == (len(ev), len(ev.dom), (ev.n_hits == 0).sum())


@pytest.mark.parametrize('seed', range(3))
def test_convert_orders_shuffled_doms(tmp_path, seed):
    ev = simulate_events(3, seed=seed); order = np.random.default_rng(seed).permutation(5160)
    with h5py.File(tmp_path/'a.h5', 'w') as f:
        f['input'],f['label'] = ev.dense()[:,:,order],ev.labels
        for i,k in enumerate('xyz'): f[f'{k}pmt'] = IC.xyz[order, i].astype('f4')
    shuffled = read_events(tmp_path/'a.h5')
    assert np.array_equal(match_doms(shuffled.detector.xyz[shuffled.dom], IC), order[shuffled.dom])
    report = convert(tmp_path/'a.h5', tmp_path/'b.h5')
    back = read_events(tmp_path/'b.h5')
    assert same(back, ev) and back.detector.name == 'icecube86' and np.array_equal(back.detector.string, IC.string) and np.array_equal(back.detector.rde, IC.rde)
    assert any('order' in a for a in report['assumptions']) and back.meta['assumptions'] == report['assumptions']


# ---- writing ------------------------------------------------------------------------------------------------------------

def failing(monkeypatch, call, code):
    def fail(*a, **kw): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize('schema', ['sparse', 'dense'])
def test_a_disk_that_fails_leaves_what_was_there(tmp_path, events, monkeypatch, call, code, schema):
    write_events(events[:2], tmp_path/'a.h5', schema); before = listing(tmp_path)
    with monkeypatch.context() as m:
        failing(m, call, code)
        for name in ('a.h5', 'new.h5'):
            with pytest.raises(StorageError, match=rf'(?s)could not write .*{name}.*{os.strerror(code)}.*nothing was changed'): write_events(events, tmp_path/name, schema)
    assert listing(tmp_path) == before
    assert same(read_events(write_events(events, tmp_path/'a.h5', schema)), events), 'the next attempt succeeds'


@pytest.mark.parametrize('job', ['write_events(ev, folder/"a.h5")', 'convert(folder/"small.h5", folder/"a.h5", "dense")'])
def test_a_full_disk(tmp_path, events, job):
    "A real limit on the size of files, in a process of its own."
    write_events(events, tmp_path/'small.h5'); before = listing(tmp_path)
    code = f'''
        import resource, signal, sys
        from pathlib import Path
        from genesis.core import StorageError
        from genesis.data.events import read_events, write_events
        from genesis.data.formats import convert
        folder = Path(sys.argv[1]); ev = read_events(folder/'small.h5')
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try: {job}
        except StorageError as e: print(e); sys.exit(e.exit_code)
    '''
    out = subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 4 and 'could not write' in out.stdout and not out.stderr, out.stdout + out.stderr
    assert listing(tmp_path) == before


def test_where_nothing_can_be_written(tmp_path, events):
    (tmp_path/'file').write_text('not a folder')
    with pytest.raises(StorageError, match='could not write'): write_events(events, tmp_path/'file'/'a.h5')
    (tmp_path/'folder.h5').mkdir()
    with pytest.raises(StorageError, match='could not write'): write_events(events, tmp_path/'folder.h5')
    with pytest.raises(GenesisError, match=r'(?s)unknown schema.*did you mean: dense'): write_events(events, tmp_path/'a.h5', 'dens')
    assert sorted(listing_names(tmp_path)) == ['file', 'folder.h5']


def listing_names(folder): return [p.name for p in Path(folder).iterdir()]


# ---- conversion ---------------------------------------------------------------------------------------------------------

def parquet(ev, path, base=1, depth=1948.07, truth=None, photons=None, more=None):
    "Events in the layout of Prometheus, through pyarrow; the arguments replace or (None) remove fields."
    pa = pytest.importorskip('pyarrow'); pq = pytest.importorskip('pyarrow.parquet')
    n = np.maximum(ev.charge.round().astype(int), 1); hit = np.repeat(np.arange(len(n)), n); late = np.arange(n.sum()) - np.repeat(np.cumsum(n)-n, n)
    counts = np.bincount(ev.event[hit], minlength=len(ev)); xyz = ev.detector.xyz[ev.dom[hit]] - [0, 0, depth]
    E,zen,az,x,y,z = ev.labels.T.astype(float)
    t = {f'initial_state_{k}': v for k,v in dict(energy=E, zenith=np.pi-zen, azimuth=az-np.pi, x=x, y=y, z=z-depth).items()} | (truth or {})
    p = dict(sensor_pos_x=xyz[:,0], sensor_pos_y=xyz[:,1], sensor_pos_z=xyz[:,2], string_id=ev.detector.string[ev.dom[hit]]-1+base, sensor_id=ev.detector.dom[ev.dom[hit]]-1+base, t=ev.time[hit].astype(float)+3*late) | (photons or {})
    lists = lambda d,k: {a: pa.ListArray.from_arrays(np.append(0, np.cumsum(k)).astype('i4'), pa.array(v)) for a,v in d.items() if v is not None}
    cols = dict(mc_truth={k: pa.array(v) for k,v in t.items() if v is not None} | (more or {}), photons=lists(p, counts))
    pq.write_table(pa.table({k: pa.StructArray.from_arrays(list(v.values()), names=list(v)) for k,v in cols.items()}), path)
    return path


@pytest.fixture(scope='module')
def few(): return simulate_events(5, seed=4, energy=(1e3, 1e4))


def photons_of(ev, k):
    n = np.maximum(ev.charge.round().astype(int), 1); dom = ev.dom[np.repeat(np.arange(len(n)), n)]
    return dict(string_id=ev.detector.string[dom], sensor_id=ev.detector.dom[dom], x=ev.detector.xyz[dom, 0], z=ev.detector.xyz[dom, 2]-1948.07)[k].copy()


def put(a, i, v): a = np.array(a, dtype=np.result_type(a, type(v))); a[i] = v; return a


@pytest.mark.parametrize('base', [0, 1])
@pytest.mark.parametrize('depth', [0, 1948.07])
def test_prometheus_round_trip(tmp_path, few, base, depth):
    back = from_prometheus(parquet(few, tmp_path/'a.parquet', base, depth))
    assert same(back, few, ('ptr', 'dom', 'time')) and np.array_equal(back.charge, np.maximum(few.charge.round(), 1)) and back.detector is IC
    np.testing.assert_allclose(back.labels, few.labels, rtol=1e-5, atol=2e-4)
    assert f'counted from {base}' in back.meta['assumptions'][1]


def test_prometheus_keeps_empty_events(tmp_path, few):
    far = few.labels.copy(); far[2, 5] = 1500
    ev = simulate_events(labels=far, seed=1); assert ev.n_hits[2] == 0
    report = convert(parquet(ev, tmp_path/'a.parquet'), tmp_path/'a.h5')
    assert (report['events'], report['empty_events']) == (5, 1) and np.array_equal(read_events(tmp_path/'a.h5').n_hits, ev.n_hits)
    empty = simulate_events(labels=np.tile(far[2], (3, 1)))
    with pytest.raises(DataError, match=r'(?s)holds no photons.*3 events'): from_prometheus(parquet(empty, tmp_path/'b.parquet'))


def test_prometheus_in_other_detectors(tmp_path):
    ev = simulate_events(4, detector=TOY, seed=2); path = parquet(ev, tmp_path/'a.parquet')
    assert same(from_prometheus(path, TOY), ev, ('ptr', 'dom', 'time'))
    seen = from_prometheus(path)
    assert seen.detector.n_doms == len(np.unique(ev.dom)) and np.allclose(seen.detector.xyz[seen.dom], TOY.xyz[ev.dom] - [0, 0, 1948.07])
    with pytest.raises(DataError, match=r'(?s)of the sensors are not in icecube86.*pass the geometry'): from_prometheus(path, 'icecube86')
    with pytest.raises(ConfigError, match=r'(?s)unknown detector.*did you mean: icecube86'): from_prometheus(path, 'icecube')


def test_prometheus_in_a_water_detector(tmp_path):
    path = PROMETHEUS.parent/'orca_150_geometry.parquet'
    if not path.exists(): pytest.skip('the geometry of the water detector is not here')
    table = pytest.importorskip('pyarrow.parquet').read_table(path)
    orca = from_positions(np.stack([table[k].to_numpy() for k in 'xyz'], 1), 'orca150')
    ev = simulate_events(5, detector=orca, seed=1, energy=(1e2, 1e3))
    back = from_prometheus(parquet(ev, tmp_path/'a.parquet', base=0, depth=0), orca)
    assert same(back, ev, ('ptr', 'dom', 'time')) and back.detector is orca and orca.n_strings == 150
    convert(tmp_path/'a.parquet', tmp_path/'a.h5', detector=orca)
    assert len(read_events(tmp_path/'a.h5').detector.xyz) == 3300


def test_prometheus_kinds(tmp_path, few):
    pa = pytest.importorskip('pyarrow')
    lists = lambda v: pa.array(v)
    more = dict(final_state_type=lists([[11., -2000001006.], [13., -2000001006.], [12., -2000001006.], [-15., 211.], []]), final_state_energy=lists([[1e3, 10.]]*4 + [[]]),
                final_state_zenith=lists([[np.pi-z]*2 for z in few.labels[:4, 1].tolist()] + [[]]), final_state_azimuth=lists([[a+np.pi]*2 for a in few.labels[:4, 2].tolist()] + [[]]))
    ev = from_prometheus(parquet(few, tmp_path/'a.parquet', more=more))
    assert ev.kind.tolist() == [1, 2, 1, 0, 0] and 'differ by 0°' in ev.meta['assumptions'][-1]
    more['final_state_azimuth'] = lists([[a]*2 for a in few.labels[:4, 2].tolist()] + [[]])
    assert 'one of the two is wrong' in from_prometheus(parquet(few, tmp_path/'b.parquet', more=more)).meta['assumptions'][-1]


@pytest.mark.parametrize('change,message', [
    (dict(photons=dict(sensor_id=None)), r"'photons' has no field 'sensor_id'"), (dict(truth=dict(initial_state_energy=None, initial_state_energ=[1.]*5)), r'(?s)has no field .*did you mean: initial_state_energ'),
    (dict(photons=lambda ev: dict(string_id=put(photons_of(ev, 'string_id'), 5, 99))), r'(?s)ids of sensors contradict their positions.*string 99'), (dict(photons=lambda ev: dict(sensor_id=put(photons_of(ev, 'sensor_id'), 5, -3))), 'contradict'),
    (dict(photons=lambda ev: dict(sensor_id=photons_of(ev, 'sensor_id') + 2)), 'contradict'), (dict(photons=lambda ev: dict(string_id=photons_of(ev, 'string_id') + 2**40)), 'out of range'),
    (dict(photons=lambda ev: dict(sensor_pos_x=put(photons_of(ev, 'x'), 5, np.nan))), 'positions that are not finite'), (dict(photons=lambda ev: dict(sensor_pos_z=put(photons_of(ev, 'z'), 5, -np.inf))), 'positions that are not finite'),
    (dict(photons=lambda ev: dict(t=np.full(len(photons_of(ev, 'x')), np.nan))), 'times that are not finite'), (dict(truth=dict(initial_state_zenith=[90.]*5)), r'outside \[0, π\]'),
    (dict(truth=dict(initial_state_x=[0., 1., np.nan, 3., 4.])), r'(?s)labels that are not finite.*1 events: 2'), (dict(truth=dict(initial_state_energy=[0.]*5)), 'energies that are not positive'),
    (dict(truth=dict(initial_state_energy=['a']*5)), 'does not hold numbers'), (dict(truth=dict(initial_state_energy=[[1.]]*5)), 'holds lists')])
def test_prometheus_bad_content(tmp_path, few, change, message):
    change = {k: v(few) if callable(v) else v for k,v in change.items()}; path = parquet(few, tmp_path/'a.parquet', **change); before = listing(tmp_path)
    with pytest.raises(DataError, match=message) as e: convert(path, tmp_path/'a.h5')
    assert 'a.parquet' in str(e.value) and listing(tmp_path) == before


def test_prometheus_bad_files(tmp_path, few):
    pa = pytest.importorskip('pyarrow'); import pyarrow.parquet as pq
    pq.write_table(pa.table(dict(event_no=[1], photon=[2.])), tmp_path/'other.parquet')
    with pytest.raises(DataError, match=r'(?s)has no pulse map.*tables event_no, photon'): from_prometheus(tmp_path/'other.parquet')
    whole = parquet(few, tmp_path/'a.parquet').read_bytes()
    for n in (4, 100, len(whole)//2, len(whole)-1):
        (tmp_path/'cut.parquet').write_bytes(whole[:n])
        with pytest.raises(DataError, match='damaged or incomplete'): from_prometheus(tmp_path/'cut.parquet')
    pq.write_table(pq.read_table(tmp_path/'a.parquet').slice(0, 0), tmp_path/'none.parquet')
    with pytest.raises(DataError, match='holds no events'): from_prometheus(tmp_path/'none.parquet')


def test_convert_knows_files_by_content(tmp_path, few, events):
    assert convert(parquet(few, tmp_path/'really.h5'), tmp_path/'a.h5')['format'] == 'prometheus'
    assert convert(write_events(events, tmp_path/'really.parquet', 'dense'), tmp_path/'b.h5')['format'] == 'hdf5'
    assert convert(write_events(events, tmp_path/'really.txt'), tmp_path/'c.h5', 'dense')['format'] == 'hdf5'
    assert same(read_events(tmp_path/'b.h5'), events) and same(read_events(tmp_path/'c.h5'), events)
    before = listing(tmp_path)
    for content,got in ((b'SQLite format 3\0', 'damaged or busy'), (b'x,y,z\n', '(?s)no format that can be converted.*x,y,z'), (b'', '(?s)no format that can be converted.*begins with')):
        (tmp_path/'odd').write_bytes(content)
        with pytest.raises(DataError, match=got): convert(tmp_path/'odd', tmp_path/'new.h5')
        (tmp_path/'odd').unlink()
    with pytest.raises(DataError, match=r'(?s)no data file at .*did you mean: really.txt'): convert(tmp_path/'realy.txt', tmp_path/'new.h5')
    with pytest.raises(ConfigError, match='the same file'): convert(tmp_path/'a.h5', tmp_path/'a.h5')
    with pytest.raises(ConfigError, match=r'(?s)unknown schema.*did you mean: sparse'): convert(tmp_path/'a.h5', tmp_path/'new.h5', 'spars')
    assert listing(tmp_path) == before


def test_the_ten_events(tmp_path):
    if not PROMETHEUS.exists(): pytest.skip('the ten fully simulated events are not here')
    report = convert(PROMETHEUS, tmp_path/'a.h5'); ev = read_events(tmp_path/'a.h5')
    assert (report['events'], report['hits'], report['charge']) == (10, len(ev.dom), 217214) and (ev.kind == 1).all()
    assert sorted(ev.n_hits) == [1, 17, 40, 56, 104, 147, 171, 267, 274, 1059]
    residual = ev.time - np.linalg.norm(ev.detector.xyz[ev.dom] - ev.labels[ev.event, 3:], axis=1)*1.35634/.299792458
    assert -11 < residual.min() < 0


# ---- simulator ----------------------------------------------------------------------------------------------------------

def test_events_do_not_depend_on_how_many_are_asked_for():
    whole = simulate_events(200, seed=3, detector=TOY)
    for n in (1, 7, 199): assert same(simulate_events(n, seed=3, detector='toy', kind='Cascade'), whole[:n])
    for pairs in (1, 10**6):
        with mock.patch.object(simulator, '_PAIRS', pairs): assert same(simulate_events(200, seed=3, detector=TOY), whole)
    labels = whole.labels
    twin = simulate_events(labels=labels, seed=3, detector=TOY)
    assert same(simulate_events(labels=labels[:50], seed=3, detector=TOY), twin[:50])
    both = np.intersect1d(whole.event*84 + whole.dom, twin.event*84 + twin.dom, return_indices=True)[1:]
    assert np.corrcoef(whole.charge[both[0]] % 1, twin.charge[both[1]] % 1)[0, 1] < .1, 'a twin with the same seed is another draw'


@pytest.mark.parametrize('kw,message', [(dict(n=0), 'positive integer'), (dict(n=-3), 'positive integer'), (dict(n=2.5), 'positive integer'), (dict(), 'positive integer'), (dict(n=3, kind='tracks'), r'(?s)unknown kind of event.*one of cascade.*did you mean: track'),
                                        (dict(n=3, energy=(10, 1)), 'makes no sense'), (dict(n=3, energy=(0, 1)), 'makes no sense'), (dict(n=3, energy=(1, np.inf)), 'makes no sense'), (dict(n=3, energy=5.), 'two numbers'), (dict(n=3, gamma=np.nan), 'spectral index'), (dict(n=3, seed='x'), 'seed must be an integer'), (dict(n=3, detector='icecube'), 'unknown detector'),
                                        (dict(n=3, detector=TOY, min_hits=85), 'no event can ever trigger'), (dict(n=3, labels=np.ones((2, 6))), 'contradict each other')])
def test_simulator_arguments(kw, message):
    with pytest.raises(ConfigError, match=message): simulate_events(**kw)


@pytest.mark.parametrize('labels,message', [(np.ones(6), 'wrong shape'), (np.ones((3, 5)), 'wrong shape'), (np.zeros((0, 6)), 'wrong shape'), (np.full((2, 6), np.nan), r'(?s)not finite.*2 events: 0, 1'), (np.zeros((2, 6)), 'not positive')])
def test_simulator_labels(labels, message):
    with pytest.raises(DataError, match=message): simulate_events(labels=labels)
