"Loaders: the order of the data as a function, memory that is used again, files larger than the memory."
import os, subprocess, sys, textwrap

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from genesis.config import ExperimentConfig, override
from genesis.core import DataError
from genesis.data.detector import toy_detector
from genesis.data.events import EventFiles, Events, concat_events, write_events
from genesis.data.loaders import EventLoader, event_hash, split_events
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.training.trainer import create_trainer

TOY = toy_detector()
QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def events(): return simulate_events(1500, detector=TOY, seed=1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, events):
    path = tmp_path_factory.mktemp('shards')
    for i in range(3): write_events(events[500*i:500*(i+1)], path/f'{i}.h5')
    return path


@pytest.fixture(scope='module')
def loaders(events, folder):
    "The same split, held in memory, read from files, and read in windows."
    files, train = EventFiles(folder), split_events(events)[0]
    tf = EventTransform.fit(events, train)
    assert tf.to_dict() == EventTransform.fit(files, train).to_dict()
    make = lambda source, **kw: EventLoader(source, tf, 16, seed=7, index=train, window=20_000, **kw)
    return dict(memory=make(events), files=make(files), windows=make(files, hold=False), make=make, tf=tf, train=train, files_=files)


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# ---- the order is a function --------------------------------------------------------------------------------------------

def test_an_epoch_shows_each_event_once(loaders):
    l, n = loaders['memory'], len(loaders['train'])
    assert l.n_windows > 2 and l.n_blocks > 2
    for epoch in range(3): assert np.array_equal(np.sort(l.indices(epoch*n, n)), np.arange(n))
    assert not np.array_equal(l.indices(0, n), l.indices(n, n))


@QUICK
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6))
def test_what_comes_next_depends_on_nothing_but_seen(loaders, places):
    "Asked in any order, before and after anything else, from memory or files, the batch is the batch."
    fresh = loaders['make'](loaders['files_'], hold=False)
    for seen in places:
        want = loaders['memory'].next(seen)
        assert equal(want, loaders['files'].next(seen)) and equal(want, loaders['windows'].next(seen)) and equal(want, fresh.next(seen, reuse=True))
        assert np.array_equal(want['index'].numpy(), np.resize(want['index'].numpy(), 16))


@QUICK
@given(st.integers(0, 4000), st.sampled_from([1, 2, 4, 8, 16]))
def test_ranks_share_a_batch(loaders, seen, world):
    whole = loaders['memory'].next(seen)
    parts = [loaders['make'](loaders['files_'], hold=False, rank=r, world=world).next(seen) for r in range(world)]
    for r, p in enumerate(parts): assert equal(p, {k: v[r::world] for k, v in whole.items()})


@pytest.mark.parametrize('kw', [dict(rank=2, world=2), dict(rank=0, world=3), dict(rank=-1, world=2)])
def test_ranks_that_do_not_fit(loaders, kw):
    with pytest.raises(DataError, match='cannot share'): loaders['make'](loaders['files_'], **kw)


@pytest.mark.parametrize('kind', ['memory', 'files', 'windows'])
def test_iteration_shows_each_event_once_in_order(loaders, kind):
    assert np.array_equal(torch.cat([b['index'] for b in loaders[kind]]), np.arange(len(loaders['train'])))


def test_batches_are_the_events_of_the_files(loaders, events):
    b = loaders['windows'].next(300)
    again = loaders['tf'].decode(b['x'].numpy(), b['labels'].numpy(), TOY)
    want = events[loaders['train'][b['index'].numpy()]]
    assert np.array_equal(again.n_hits, want.n_hits) and np.allclose(again.total_charge, want.total_charge, rtol=1e-4)


# ---- splits -------------------------------------------------------------------------------------------------------------

@QUICK
@given(st.integers(0, 1400), st.integers(0, 1400), st.integers(0, 2**32), st.floats(0.05, 0.9))
def test_added_events_never_move_one(events, a, b, seed, train):
    "Whatever stands before or after it, an event stays in its split."
    some, ratios = slice(min(a, b), max(a, b)+100), (train, (1-train)/2, (1-train)/2)
    where = lambda labels: np.searchsorted(np.cumsum(ratios)[:2], event_hash(labels, seed), side='right')
    assert np.array_equal(where(events.labels)[some], where(events.labels[some]))
    try: parts = split_events(events[some], ratios, seed)
    except DataError: return
    for k, part in enumerate(parts): assert (where(events.labels[some])[part] == k).all()
    assert sum(map(len, parts)) == len(events.labels[some])


def test_a_file_that_is_added_moves_nothing(events, folder, tmp_path):
    before = split_events(EventFiles(folder))
    new = simulate_events(300, detector=TOY, seed=9)
    after = split_events(concat_events([new, events]))
    for a, b in zip(before, after): assert np.array_equal(a, b[b >= 300] - 300)


# ---- memory that is used again ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('keep', [lambda b: b['x'], lambda b: b['x'][3, 1], lambda b: b['x'].numpy(), lambda b: b['x'].numpy()[2:], lambda b: b['x'].detach(), lambda b: b['x'].view(-1)[5:], lambda b: b, lambda b: b['x'].untyped_storage(),
                                  lambda b: (b['x']*torch.ones(1, requires_grad=True)).sum()])
def test_a_batch_that_is_kept_is_never_overwritten(loaders, keep):
    l = loaders['make'](loaders['files_'])
    batch = l.next(0, reuse=True); value = batch['x'].clone(); place = batch['x'].data_ptr(); kept = keep(batch); del batch
    for seen in range(16, 160, 16):
        b = l.next(seen, reuse=True)
        assert b['x'].data_ptr() != place and equal(b, l.next(seen))
    del kept, value


def test_memory_is_used_again_when_nobody_holds_it(loaders):
    l = loaders['make'](loaders['files_'])
    places = {l.next(seen, reuse=True)['x'].data_ptr() for seen in range(0, 320, 16)}
    assert len(places) == 1


def test_without_asking_nothing_is_used_again(loaders):
    l = loaders['memory']; a = l.next(0); a['x'].fill_(5)
    assert equal(l.next(0), loaders['windows'].next(0)) and (a['x'] == 5).all()


# ---- refusals -----------------------------------------------------------------------------------------------------------

def test_missing_labels_are_refused(events, loaders):
    labels = events.labels.copy(); labels[:, 3:] = np.nan
    nowhere = Events(events.ptr, events.dom, events.charge, events.time, labels, TOY, meta=dict(missing=['x', 'y', 'z']))
    for use in (lambda: EventTransform.fit(nowhere), lambda: EventLoader(nowhere, loaders['tf'])):
        with pytest.raises(DataError, match=r'(?s)x.*y.*z'): use()


def test_a_split_must_increase(events, loaders):
    with pytest.raises(DataError, match='increasing'): EventLoader(events, loaders['tf'], index=[3, 2])
    with pytest.raises(DataError, match='needs events'): EventLoader(events, loaders['tf'], index=[])


# ---- training -----------------------------------------------------------------------------------------------------------

def config(folder, tmp_path, **kw):
    return override(ExperimentConfig(), {'experiment_name': 'run', 'data.h5_path': str(folder), 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'training.num_epochs': 1,
        'training.use_tensorboard': False, 'device': 'cpu', **{f'training.{k}_dir': tmp_path/k for k in ('output', 'checkpoint', 'log')}, **{k.replace('__', '.'): v for k, v in kw.items()}})


def test_a_run_may_go_on_with_another_memory(folder, tmp_path):
    "Held in memory, read in windows, or one after the other: the same weights."
    whole = create_trainer(config(folder, tmp_path)); whole.train()
    assert whole.train_loader.hold
    part = create_trainer(config(folder, tmp_path, experiment_name='part', data__memory_gb=0)); total, part.total_steps = part.total_steps, 30
    assert not part.train_loader.hold
    part.train()
    for memory in (0, 4):
        rest = create_trainer(config(folder, tmp_path, experiment_name='part', data__memory_gb=memory, training__resume_from_checkpoint='auto'))
        while rest.step < total: rest.train_step()
        assert all(torch.equal(v, rest.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_the_card_says_where_the_events_come_from(folder, tmp_path):
    t = create_trainer(config(f'{folder}/*.h5', tmp_path)); card = t._state()['card']
    assert card['data']['fingerprint'] == EventFiles(folder).fingerprint and card['data']['events'] == 1500
    assert card['detector']['fingerprint'] == TOY.fingerprint


PEAK = textwrap.dedent('''
    import re, sys
    from pathlib import Path
    import torch
    from genesis.config import ExperimentConfig, override
    from genesis.training.trainer import create_trainer
    torch.set_num_threads(1)
    folder, out, memory = sys.argv[1:]
    peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])/1024 # ru_maxrss would count the parent's memory before exec
    cfg = override(ExperimentConfig(), {'experiment_name': 'run', 'data.h5_path': folder, 'data.memory_gb': memory, 'data.batch_size': 64, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
        'device': 'cpu', 'training.checkpoint_dir': out, 'training.log_dir': out, 'training.output_dir': out})
    before = peak()
    t = create_trainer(cfg)
    loader = t.train_loader
    for step in range(5): t.train_step()
    for seen in range(0, len(loader.index), 64): loader.next(seen, reuse=True)
    for _ in t.val_loader: pass
    print(t.events.nbytes/2**20, peak() - before)
''')


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='peak memory is read from /proc')
def test_memory_does_not_grow_with_the_files(tmp_path, events):
    "A whole epoch over files of 23 MB and of 185 MB of hits, with none of them allowed in memory."
    peaks = {}
    for k in (2, 16):
        folder = tmp_path/f'{k}'; folder.mkdir()
        many = concat_events([events]*10); many.labels[:, 0] *= np.linspace(1, 1.01, len(many)) # labels of their own, or the split is lumpy
        for i in range(k): write_events(many, folder/f'{i}.h5')
        run = subprocess.run([sys.executable, '-c', PEAK, folder, tmp_path/'out', '0'], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
        assert run.returncode == 0, run.stderr
        peaks[k] = [float(v) for v in run.stdout.split()]
        print(f'{k} files: {peaks[k][0]:.0f} MiB of hits, memory grew by {peaks[k][1]:.0f} MiB')
    (small, a), (large, b) = peaks[2], peaks[16]
    assert large > 7*small
    assert b - a < 60 + 0.1*(large - small), 'a window (50 MB) and the labels, not the hits'
