"""Many files as one: opened lazily, joined, shared by workers; and what is said where they do not belong together."""
import multiprocessing, subprocess, sys, textwrap, time
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from genesis.core import DataError, StorageError
from genesis.data.events import EventFiles, Events, concat_events, event_files, join_events, read_events, residual_time, write_events
from genesis.data.simulator import simulate_events
from test_data import PARTS, TOY, any_events, events, files, listing, same   # `events` and `files` are fixtures


def listing_names(folder): return [p.name for p in Path(folder).iterdir()]


# ---- many files as one --------------------------------------------------------------------------------------------------

@pytest.fixture
def shards(tmp_path, events):
    "The six events in a file of three, one without a hit, and one of two; a folder of these."
    folder = tmp_path/'shards'; folder.mkdir()
    for k,i in enumerate(([0, 1, 2], [3], [4, 5])): write_events(events[i], folder/f'part-{k}.h5')
    return folder


def test_event_files(tmp_path, shards):
    parts = [shards/f'part-{k}.h5' for k in range(3)]
    (shards/'notes.txt').write_text('no events'); (shards/'.part-9.h5').write_text('hidden'); (shards/'.part-9.h5-x.tmp').write_text('being written')
    for path in (shards, str(shards), shards/'*.h5', f'{shards}/part-?.h5', [parts[0], shards/'part-[12].h5'], parts): assert event_files(path) == parts
    odd = shards/'run[1].h5'; parts[0].rename(odd)
    assert event_files(odd) == [odd], 'a file that is there is no pattern'
    for path,message in (([], 'no files are named'), ([odd, shards], 'named twice'), (shards/'prt-*.h5', r'(?s)no files match .*did you mean: part-'), (tmp_path/'none'/'*.h5', 'no folder'),
                         (shards/'part-7.h5', 'did you mean: part-')):
        with pytest.raises(DataError, match=message): event_files(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ev=any_events(), data=st.data())
def test_however_files_are_cut_they_hold_the_same(tmp_path, ev, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ev)), max_size=3)))
    for p in tmp_path.glob('*.h5'): p.unlink()
    for k,(i,j) in enumerate(zip([0, *cuts], [*cuts, len(ev)])): write_events(ev[i:j], tmp_path/f'part-{k}.h5')
    files = EventFiles(tmp_path); whole = files.load()
    assert same(whole, ev, (*PARTS, 'kind')) and files.fingerprint == whole.fingerprint == ev.fingerprint == files.verify()
    idx = np.array(data.draw(st.lists(st.integers(0, len(ev)-1), max_size=8)), int)
    assert same(files[idx], ev[idx], (*PARTS, 'kind')) and (len(files), files.nbytes) == (len(ev), 12*len(ev.dom) + 33*len(ev) + 8)
    i,j = sorted(data.draw(st.lists(st.integers(0, len(ev)), min_size=2, max_size=2)))
    assert same(files.read(i, j), ev[i:j], (*PARTS, 'kind')) and same(concat_events(files.blocks(3)), ev, (*PARTS, 'kind'))


def test_join(tmp_path, shards, events):
    shards = [shards/f'part-{k}.h5' for k in (0, 1, 2)]
    out = join_events(shards, tmp_path/'sub'/'all.h5')
    assert same(read_events(out), events, (*PARTS, 'kind')) and EventFiles(out).fingerprint == events.fingerprint and read_events(out).meta == events.meta
    assert oct(out.stat().st_mode)[-3:] == oct(shards[0].stat().st_mode)[-3:] and listing_names(out.parent) == ['all.h5']
    with pytest.raises(DataError, match='one of the files to be joined'): join_events(shards, shards[1])


def test_opening_reads_no_hits(shards, events):
    read = []
    real = h5py.Dataset.__getitem__
    def note(self, part, **kw): read.append((self.name, part)); return real(self, part, **kw)
    with mock.patch.object(h5py.Dataset, '__getitem__', note):
        files = EventFiles(shards); files.fingerprint, repr(files), files.n_hits
        assert not {'/dom', '/charge', '/time'} & {n for n,_ in read}
        read.clear(); files.read(4, 5)
    n = events.n_hits[4]
    assert read == [(k, slice(0, n)) for k in ('/dom', '/charge', '/time')]


def in_worker(files, idx): return [getattr(files[idx], k).tobytes() for k in PARTS]


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_workers_read_the_same(shards, method):
    files = EventFiles(shards); files.load() # handles are open when the workers start
    want = in_worker(files, [5, 0, 3]); context = multiprocessing.get_context(method)
    with context.Pool(2) as pool: assert pool.starmap(in_worker, [(files, [5, 0, 3])]*6) == [want]*6
    assert in_worker(files, [5, 0, 3]) == want


def test_more_files_than_are_kept_open(tmp_path, events):
    for k in range(40): write_events(events[[k % 6]], tmp_path/f'{k:02d}.h5')
    files = EventFiles(tmp_path); idx = np.random.default_rng(0).permutation(40)
    assert same(files[idx], events[idx % 6]) and len(files._files) <= 16


# ---- files that do not belong together, or are not what they were ---------------------------------------------------------

READERS = pytest.mark.parametrize('read', [read_events, EventFiles, lambda p: join_events(p, Path(p)/'sub'/'out.h5')], ids=['read_events', 'EventFiles', 'join_events'])

@READERS
def test_files_that_do_not_belong_together(shards, events, read):
    def swap(ev): write_events(ev, shards/'part-1.h5')
    other = simulate_events(2, seed=1, energy=(1e3, 1e4)); swap(other)
    with pytest.raises(DataError, match=r'(?s)different detectors.*icecube86.*part-1.h5.*toy.*part-0.h5'): read(shards)
    for k,v in (('light_model', 'other-light'), ('ice', 'other-ice'), ('absorption', 9.)):
        ev = events[:2]; ev.meta = {**events.meta, k: v}; swap(ev)
        with pytest.raises(DataError, match=rf'(?s)differ in {k.replace("_", " ")}.*{v}.*part-1.h5.*part-0.h5'): read(shards)
    labels = events.labels[:2].copy(); labels[:,0] = np.nan
    swap(Events(*(getattr(events[:2], k) for k in PARTS[:4]), labels, TOY, events.kind[:2], {**events.meta, 'missing': ['energy']}))
    with pytest.raises(DataError, match=r'(?s)with and without some labels.*energy in .*part-1.h5.*none as in .*part-0.h5'): read(shards)


@READERS
def test_a_damaged_shard_is_named(shards, events, read):
    path = shards/'part-2.h5'
    with h5py.File(path) as f: chunk = f['charge'].id.get_chunk_info(0)
    whole = bytearray(path.read_bytes()); whole[chunk.byte_offset + chunk.size//2] ^= 4; path.write_bytes(whole)
    before = listing(shards)
    with pytest.raises(DataError, match=r"part-2.h5: dataset 'charge' is damaged"): files = read(shards); files.load()
    (shards/'sub').exists() and (shards/'sub').rmdir()
    assert listing(shards) == before


@READERS
def test_ids_and_doms_in_a_shard(shards, events, read):
    path = shards/'part-2.h5'; ev = events[[4, 5]]; first = ev.n_hits[0]
    for name,at,value,message in (('dom', first+1, 84, r'(?s)part-2.h5.*outside the detector.*1 events: 1'), ('dom', first+1, ev.dom[first], r'(?s)part-2.h5.*hit twice.*1 events: 1'), ('label', (1, 1), 90., r'(?s)part-2.h5.*physical range: zenith.*1 events: 1'),
                                  ('xpmt', 3, np.nan, r'(?s)part-2.h5.*positions that are not finite')):
        write_events(ev, path)
        with h5py.File(path, 'r+') as f: f[name][at] = value
        with pytest.raises(DataError, match=message): files = read(shards); files.load()


def test_event_numbers_count_from_where_the_message_says(tmp_path):
    ev = simulate_events(30, detector=TOY, seed=3); path = write_events(ev, tmp_path/'a.h5')
    with h5py.File(path, 'r+') as f: f['charge'][ev.ptr[25]] = -1
    with pytest.raises(DataError, match=r'(?s)a.h5, counted from event 20: charges that are negative.*1 events: 5'): EventFiles(path).read(20, 30)
    assert same(EventFiles(path).read(0, 25), ev[:25])


def test_dense_files_are_not_lazy(files):
    with pytest.raises(DataError, match=r'(?s)dense.h5 is a dense file.*genesis convert'): EventFiles(files['dense'])
    with pytest.raises(DataError, match='dense.h5 is a dense file'): EventFiles(files['sparse'].parent)


def test_a_file_that_another_process_writes(tmp_path, files):
    code = 'import sys, h5py; f = h5py.File(sys.argv[1], "r+"); print("open", flush=True); sys.stdin.read()'
    writer = subprocess.Popen([sys.executable, '-c', code, str(files['sparse'])], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b'open\n'
        for read in (read_events, EventFiles):
            with pytest.raises(DataError, match=r'(?s)sparse.h5 is being written by another process.*wait'): read(files['sparse'])
    finally: writer.communicate()
    read_events(files['sparse'])


def test_a_file_that_changes_is_noticed(tmp_path, events):
    path = write_events(events, tmp_path/'a.h5'); files = EventFiles(path)
    write_events(events[::-1], path)
    with pytest.raises(DataError, match='a.h5 was changed since it was opened'): files.load()


def test_content_that_was_changed(shards, events):
    with h5py.File(shards/'part-1.h5', 'r+') as f: f['time'][0] += 1
    with pytest.raises(DataError, match=r'(?s)part-1.h5 is not what was written.*fingerprint'): EventFiles(shards).verify()
    with h5py.File(shards/'part-1.h5', 'r+') as f: del f.attrs['fingerprint']
    assert EventFiles(shards).fingerprint == EventFiles(shards).verify() == read_events(shards).fingerprint != events.fingerprint
    for value in ('not hexadecimal', 5):
        with h5py.File(shards/'part-1.h5', 'r+') as f: f.attrs['fingerprint'] = value
        with pytest.raises(DataError, match=r'part-1.h5: the attribute fingerprint'): EventFiles(shards)


def test_missing_labels_travel(tmp_path, events):
    labels = events.labels.copy(); labels[:,[0, 3, 4, 5]] = np.nan; names = ('energy', 'x', 'y', 'z')
    ev = Events(*(getattr(events, k) for k in PARTS[:4]), labels, TOY, None, dict(missing=list(names)))
    for k in range(3): write_events(ev[2*k:2*k+2], tmp_path/f'{k}.h5')
    write_events(ev, tmp_path/'dense', 'dense')
    kept = [ev[1:3], concat_events([ev, ev]), read_events(tmp_path), EventFiles(tmp_path), EventFiles(tmp_path)[[4, 1]], read_events(join_events(tmp_path, tmp_path/'sub'/'a.h5')), read_events(tmp_path/'dense', channel_order='charge_time')]
    for e in kept:
        assert e.missing == names
        with pytest.raises(DataError, match=r'(?s)training needs labels.*no energy'): e.need_labels('zenith', 'energy', what='training')
        e.need_labels('zenith', 'azimuth')
    with pytest.raises(DataError, match='residual time needs labels'): residual_time(ev)
    with pytest.raises(DataError, match='missing labels that are none'): Events(*(getattr(events, k) for k in PARTS), TOY, None, dict(missing=['energie']))


# ---- joining on a disk that fails, and under a kill -------------------------------------------------------------------------

def test_join_on_a_full_disk(tmp_path, shards, events):
    "A real limit on the size of files, in a process of its own; what was there stays."
    write_events(events, tmp_path/'all.h5'); before = listing(tmp_path/'shards') | {'all.h5': (tmp_path/'all.h5').read_bytes()}
    code = '''
        import resource, signal, sys
        from genesis.core import GenesisError
        from genesis.data.events import join_events
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),)*2)
        try: join_events(sys.argv[1], sys.argv[2])
        except GenesisError as e: print(e); sys.exit(e.exit_code)
    '''
    for size in (0, 3000, 9000):
        out = subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(shards), str(tmp_path/'all.h5'), str(size)], capture_output=True, text=True, timeout=120)
        assert out.returncode == 4 and 'could not write' in out.stdout and 'othing was changed' in out.stdout and not out.stderr, out.stdout + out.stderr
    assert listing(shards) | {'all.h5': (tmp_path/'all.h5').read_bytes()} == before and sorted(listing_names(tmp_path)) == ['all.h5', 'shards']


def test_join_where_nothing_fits_or_can_be_written(tmp_path, shards):
    with mock.patch('shutil.disk_usage', return_value=mock.Mock(free=1000)), pytest.raises(StorageError, match=r'(?s)could not write .*all.h5.*nothing was changed'): join_events(shards, tmp_path/'all.h5')
    (tmp_path/'file').write_text('not a folder'); (tmp_path/'folder.h5').mkdir()
    for out in ('file/all.h5', 'folder.h5'):
        with pytest.raises(StorageError, match='could not write'): join_events(shards, tmp_path/out)
    assert sorted(listing_names(tmp_path)) == ['file', 'folder.h5', 'shards']


KILLED = '''
    import sys
    from genesis.data.events import join_events, read_events, write_events
    ev = read_events(sys.argv[1]); print('go', flush=True)
    while True: {job}
'''

@pytest.mark.parametrize('job', ['write_events(ev, sys.argv[2])', 'join_events(sys.argv[1], sys.argv[2])'])
def test_killed_while_writing(tmp_path, shards, events, job):
    target = tmp_path/'out'/'all.h5'; rng = np.random.default_rng(0); kills = seen = 0
    while kills < 5 or not seen and kills < 20: # on a busy machine the first ones come before there is a file
        p = subprocess.Popen([sys.executable, '-c', textwrap.dedent(KILLED.format(job=job)), str(shards), str(target)], stdout=subprocess.PIPE)
        p.stdout.readline(); time.sleep(rng.uniform(0, 1.)*(1 + kills/5)); p.kill(); p.communicate(); kills += 1
        if target.exists(): assert same(read_events(target.parent), events); seen += 1
    assert seen and same(read_events(join_events(shards, target)), events)


# ---- size -------------------------------------------------------------------------------------------------------------------

def test_a_median_event_takes_less_than_a_kilobyte(tmp_path):
    ev = simulate_events(3000, seed=5); typical = ev[np.argsort(ev.n_hits)[1000:2000]] # the middle third, around the median
    path = write_events(typical, tmp_path/'a.h5')
    with h5py.File(path) as f: geometry = sum(f[k].id.get_storage_size() for k in ('xpmt', 'ypmt', 'zpmt', 'string', 'dom_number', 'rde'))
    assert (path.stat().st_size - geometry)/len(typical) < 1000


def test_labels_that_are_a_group(files):
    with h5py.File(files['dense'], 'r+') as f: del f['label']; f.create_group('label')
    with pytest.raises(DataError, match="'label' is not a dataset"): read_events(files['dense'])
