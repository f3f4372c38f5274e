"The latent space: what is estimated from some DOMs holds for all, training resumes to the bit, and events come out as they were kept."
import numpy as np
import pytest
import torch

from genesis.config import ExperimentConfig, override
from genesis.core import ConfigError, DataError
from genesis.data.detector import toy_detector
from genesis.data.events import KINDS, write_events
from genesis.data.loaders import EventLoader
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.spaces import create_space
from genesis.generate import Generator
from genesis.models.source import Slots, choose_doms, choose_hits, see
from genesis.training.trainer import create_trainer

SMALL = {'diffusion.space': 'latent', 'diffusion.light_width': 24, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8}


@pytest.fixture(scope='module')
def made():
    "A space with random weights, its loader and transform; tracks and cascades in the toy detector."
    events = simulate_events(300, detector=toy_detector(), kind='mixed', seed=1, min_hits=4)
    tf = EventTransform.fit(events); torch.manual_seed(0)
    return create_space(override(ExperimentConfig(), SMALL), events.detector, tf), EventLoader(events, tf, 32), tf


def test_some_doms_stand_for_all(made):
    "The light term from 12 hits and 12 DOMs, averaged over draws, is that of all DOMs."
    space, loader, tf = made
    batch = loader.next(0); n = len(space.conditioner.mask)
    event = space._event(batch['labels'], batch['kind']); z = torch.randn(32, 1, 64, generator=torch.Generator().manual_seed(0))*event[3]

    def light(hits, doms, draws, seed):
        space.n_hits, space.n_doms = hits, doms; g = torch.Generator().manual_seed(seed)
        with torch.no_grad(): return torch.stack([space._nll(z, event, space._look(batch['x'], event, torch.rand(32, 2, generator=g))) for _ in range(draws)])
    keep, tf.min_hits = tf.min_hits, 0 # the chance to be kept is no sum over DOMs
    try: every, some = light(n, 40*n, 40, 0).mean(0), light(12, 12, 600, 1)
    finally: tf.min_hits = keep; del space.n_hits, space.n_doms
    pull = (some.mean(0) - every)/(some.std(0)/600**.5)
    assert some.std(0).median() > .5 and pull.abs().max() < 5, pull


def test_every_hit_counts_once_where_there_is_room():
    hit = torch.rand(50, 84, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 50)[:, None]
    place, w = choose_hits(hit, 84, torch.rand(50, 1))
    counted = torch.zeros(50, 84).scatter_add_(1, place, w)
    assert torch.equal(counted, hit.float())
    place, w = choose_hits(hit, 10, torch.rand(50, 1))
    assert torch.allclose(w.sum(1), hit.sum(1).float()) and (hit.gather(1, place) | (w == 0)).all()
    assert all(len(set(p[k > 0].tolist())) == (k > 0).sum() for p, k in zip(place, w))


def test_no_dom_is_drawn_where_there_is_none():
    chance = torch.rand(20, 60); chance[:, ::3] = 0
    place, w = choose_doms(chance, 500, torch.rand(20, 1))
    assert (place % 3 > 0).all() and w.isfinite().all()


def test_light_adds_up(made):
    space, loader, _ = made
    batch = loader.next(0); labels, cond, places, on, track = event = space._event(batch['labels'], batch['kind'])
    seen, light = (look := space._look(batch['x'], event, torch.rand(32, 2)))[:2]
    bright = torch.randn(32, 64); dark = torch.full_like(bright, -20.)
    shower, line = dark.clone(), bright.clone(); shower[:, -1], line[:, -1] = bright[:, -1], -20.
    mu = lambda b: space.model['decoder'].mu(light._replace(noise=torch.full_like(light.noise, -12.)), seen.emitted, b)[0].exp()
    assert torch.allclose(mu(bright), mu(shower) + mu(line), rtol=2e-3, atol=2e-5)
    assert (mu(line)[track == 0] < 1e-4).all() and (mu(line)[track > 0] > 1e-4).any()


def test_times_go_there_and_back(made):
    space, loader, tf = made
    batch = loader.next(0); seen = see(batch['labels'], batch['kind'] != 1, space.conditioner.xyz)
    b = batch['x'][:, 2]; hit = batch['x'][:, 0] > 0
    again = space._time(space._time(b, seen.lead), seen.lead, back=True)
    assert (again - b)[hit].abs().max() < 2e-3 and (seen.lead[batch['kind'] == 1] == 0).all() and seen.lead[batch['kind'] == 2].max() > 10


def test_an_event_is_the_same_in_any_batch_and_was_kept(made):
    space, loader, tf = made
    batch = loader.next(0)
    for how in ({}, dict(sampler='ddpm'), dict(sampler='heun')):
        x = space.sample(batch['labels'], range(32), steps=4, kind=batch['kind'], **how)
        one = space.sample(batch['labels'][5:6], [5], steps=4, kind=batch['kind'][5:6], **how)
        assert (one[0] - x[5]).abs().max() < 1e-3
        assert ((x[:, 0] > 0).sum(1) >= tf.min_hits).all() and tf.min_hits >= 4 and x.isfinite().all()
        assert (x[:, 1:].abs().sum(1)[x[:, 0] < 0] == 0).all()


def test_a_cascade_has_no_track(made):
    space, loader, _ = made
    batch = loader.next(0); z = space.source(batch['labels'], range(32), steps=4, kind=batch['kind'])
    cascade = batch['kind'] == KINDS.index('cascade')
    assert (z[cascade, :, :-1] == 0).all() and (z[~cascade, :, :-1] != 0).all() and (z[:, :, -1] != 0).all() and 5 < cascade.sum() < 27


def test_hidden_labels_stay_hidden():
    events = simulate_events(60, detector=toy_detector(), kind='track', seed=2, min_hits=4); tf = EventTransform.fit(events); torch.manual_seed(0)
    space = create_space(override(ExperimentConfig(), SMALL | {'diffusion.label_dropout': .3}), events.detector, tf)
    for p in space.model['prior'].parameters():
        if not p.any(): torch.nn.init.normal_(p, std=.1)
    x, labels = torch.randn(60, 1, 64), torch.tensor(events.labels); hidden = torch.arange(60) % 2 == 0
    one, other = (space.network(space._event(l, torch.tensor(events.kind)), hidden)(x, torch.zeros(60)) for l in (labels, labels.flip(0)))
    assert torch.equal(one[hidden], other[hidden]) and (one != other)[~hidden].flatten(1).any(1).all()
    guided = space.source(labels, range(60), steps=3, guidance=2., kind=torch.tensor(events.kind))
    assert guided.isfinite().all() and not torch.allclose(guided, space.source(labels, range(60), steps=3, kind=torch.tensor(events.kind)))
    with pytest.raises(ConfigError, match='label_dropout'): create_space(override(ExperimentConfig(), SMALL), events.detector, tf).sample(labels, range(60), guidance=2.)


@pytest.fixture
def cfg(tmp_path):
    write_events(simulate_events(120, detector=toy_detector(), kind='mixed', seed=1, min_hits=4), tmp_path/'e.h5')
    return override(ExperimentConfig(), SMALL | {'data.h5_path': tmp_path/'e.h5', 'data.batch_size': 16, 'training.num_epochs': 2, 'training.warmup_steps': 2, 'training.panel_events': 4, 'training.output_dir': tmp_path,
                                                'training.checkpoint_dir': tmp_path/'checkpoints', 'training.log_dir': tmp_path/'logs', 'experiment_name': 'run'})


def test_training_resumes_to_the_bit(cfg):
    trainer = create_trainer(cfg, show=False)
    parts = trainer.verify_resume(at=4, steps=8)
    assert all(parts.values()), parts


def test_parts_of_a_batch_are_the_batch(made):
    space, loader, _ = made
    batch, dice = loader.next(0), space.draw(32, torch.Generator().manual_seed(0))
    cut = [space.loss(*({k: v[i:i+8] for k, v in d.items()} for d in (batch, dice)))[0] for i in range(0, 32, 8)]
    assert torch.allclose(torch.cat(cut), space.loss(batch, dice)[0], atol=1e-4)


def test_a_generator_knows_kinds(cfg, caplog):
    create_trainer(cfg, show=False).train()
    g = Generator.from_checkpoint(f'{cfg.training.checkpoint_dir}/run')
    assert g.kinds == ['cascade', 'track']
    with pytest.raises(ConfigError, match="kind='cascade'"): g.sample(n=2)
    with pytest.raises(ConfigError, match='did you mean: track'): g.sample(n=2, kind='trak')
    with pytest.raises(DataError, match='one for each event'): g.sample(n=3, kind=[1, 2])
    assert g.sample(n=3, kind=[1, 2, 1]).kind.tolist() == [1, 2, 1] and g.sample(n=2, kind='track').kind.tolist() == [2, 2]
    true = simulate_events(4, detector=toy_detector(), kind='mixed', seed=5, min_hits=4)
    assert np.array_equal(g.sample(true).kind, true.kind)
    true.kind[:] = 0
    with pytest.raises(ConfigError, match='which kind'): g.sample(true)


def test_slots_read_what_they_hold():
    slots = Slots(n=7, length=10., first=-20.); f = torch.arange(7.)[None]
    assert torch.allclose(slots.read(f, torch.tensor([[-50., -20., -5., 0., 13., 40., 99.]])), torch.tensor([[0., 0., 1.5, 2., 3.3, 6., 6.]]), atol=2e-3)


def test_a_source_is_judged_by_doms_that_it_was_not_found_from(made):
    "Were they the same, it would make up for their chance: too much light in all others, a few per cent too many hits."
    space, loader, _ = made
    batch, g = loader.next(0), torch.Generator().manual_seed(0)
    space.n_doms = 16
    try:
        space.train(); dice = space.draw(32, g)
        other = lambda column: dice | dict(doms=torch.cat([torch.rand(32, 1, generator=g) if k == column else dice['doms'][:, k:k+1] for k in range(3)], 1))
        with torch.no_grad(): as_was, judged, found = (space.loss(batch, d)[1] for d in (dice, other(1), other(2)))
    finally: del space.n_doms; space.eval()
    assert torch.equal(as_was['source'], judged['source']) and not torch.equal(as_was['light'], judged['light'])
    assert not torch.equal(as_was['source'], found['source'])
