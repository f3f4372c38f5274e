"Thinning: photons are drawn where light can be, and the events are those that the decoder makes when it looks at every DOM."
import logging

import numpy as np
import pytest
import torch

from genesis.config import ExperimentConfig, override
from genesis.core import ConfigError
from genesis.data.detector import toy_detector
from genesis.data.events import KINDS
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.samplers import event_seeds
from genesis.diffusion.spaces import create_space
from genesis.generate import Generator

SMALL = {'diffusion.space': 'latent', 'diffusion.light_width': 24, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8}
TRACK, CASCADE = KINDS.index('track'), KINDS.index('cascade')


def small_space(steep=1., min_hits=4):
    "A space with random weights, whose decoder's light varies `steep` times as much as it would."
    events = simulate_events(150, detector=toy_detector(), kind='mixed', seed=1, min_hits=min_hits)
    torch.manual_seed(0)
    space = create_space(override(ExperimentConfig(), SMALL), events.detector, EventTransform.fit(events)).eval()
    with torch.no_grad():
        for layer in (space.model['decoder'].skip, space.model['decoder'].out): layer.weight *= steep
    return space, events


def drawn(space, events, thinned, at=slice(None)):
    labels, kind = torch.tensor(events.labels[at]), torch.tensor(events.kind[at]).long()
    seeds = event_seeds(3, range(len(events))[at])
    z = torch.stack([torch.randn(space.shape, generator=torch.Generator().manual_seed(s % 2**60)) for s in seeds])
    return space.photons(z, labels, seeds, kind, thinned=thinned)


def the_same(a, b):
    assert torch.equal(a[:, 0] > 0, b[:, 0] > 0)
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize('steep', [1., 3.])
def test_thinned_is_full_for_untrained_decoders(steep):
    space, events = small_space(steep)
    full, thinned = drawn(space, events, False), drawn(space, events, True)
    assert (full[:, 0] > 0).any(1).all()
    the_same(thinned, full)


@pytest.mark.parametrize('steep', [1., 3.])
def test_the_bound_holds(steep):
    "Where it does not, what is lost is less than a millionth of the hits."
    space, events = small_space(steep)
    for kind in (TRACK, CASCADE):
        which = torch.tensor(events.kind == kind)
        labels, kinds = torch.tensor(events.labels)[which], torch.full((int(which.sum()),), kind)
        event, decoder = space._event(labels, kinds), space.model['decoder']
        z = torch.randn(len(labels), *space.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            bright = decoder.brightness(z, event[2], event[1])
            exact = space._all_chances(event, decoder.event(event[1]), bright)
            bound = space.ceiling(kind).chance(labels, event[1], event[4], bright)
        assert ((exact - bound).clamp(min=0).sum()/exact.sum()).item() < 1e-6


def test_fewer_doms_are_looked_at(monkeypatch):
    model = Generator.from_checkpoint('icecube86', device='cpu')
    looks = []
    look = type(model.space)._look_at
    monkeypatch.setattr(type(model.space), '_look_at', lambda self, *a: looks.append(len(a[-1])) or look(self, *a))
    model.sample(n=16, seed=1, kind='track', steps=1, thinned=True)
    assert sum(looks)/16 < 5160/4


def test_the_packaged_model_makes_the_same_events():
    model = Generator.from_checkpoint('icecube86', device='cpu')
    how = dict(n=100, seed=11, steps=4)
    hits, differ = 0, 0
    for kind in ('track', 'cascade'):
        full, thinned = (model.sample(kind=kind, thinned=t, **how) for t in (False, True))
        sets = [set(zip(e.event.tolist(), e.dom.tolist())) for e in (full, thinned)]
        hits, differ = hits + len(sets[0]), differ + len(sets[0] ^ sets[1])
        if sets[0] == sets[1]: np.testing.assert_allclose(thinned.time, full.time, atol=.5)
    assert hits > 5000 and differ <= 2, (hits, differ) # a chance and a uniform number may be equal up to rounding


def test_batches_of_any_size_give_the_same_events():
    space, events = small_space()
    whole = drawn(space, events, True)
    the_same(torch.cat([drawn(space, events, True, slice(i, i + 7)) for i in range(0, 70, 7)]), whole[:70])


def test_a_ceiling_that_is_too_low_is_noticed(caplog):
    "No hit is lost in silence: events that exceed it are drawn from all DOMs, and that is said."
    space, events = small_space()
    full = drawn(space, events, False)
    for kind in (TRACK, CASCADE):
        ceiling = space.ceiling(kind)
        for bound in (ceiling.shower, ceiling.track, ceiling.noise): bound.worst = bound.worst - 4
    with caplog.at_level(logging.WARNING, logger='genesis'): thinned = drawn(space, events, True)
    assert any('broke the ceiling' in r.getMessage() for r in caplog.records)
    same = ((full[:, 0] > 0) == (thinned[:, 0] > 0)).all(1)
    assert same.float().mean() > .5 # nearly all events of this space have a DOM that is looked at


def test_events_beyond_the_ceiling_are_drawn_from_all_doms():
    space, events = small_space()
    events.labels[:5, 3] += 5000
    assert not space.ceiling(TRACK).covers(torch.tensor(events.labels[:5])).any()
    the_same(drawn(space, events, True, slice(0, 5)), drawn(space, events, False, slice(0, 5)))


def test_a_changed_decoder_gets_a_new_ceiling():
    space, _ = small_space()
    first = space.ceiling(TRACK)
    assert space.ceiling(TRACK) is first and space.ceiling(TRACK, thinned=False) is None
    with torch.no_grad(): space.model['decoder'].out.bias += .1
    assert space.ceiling(TRACK) is not first


def test_a_ceiling_is_made_when_it_pays():
    space, _ = small_space()
    doms = len(space.conditioner.mask)
    assert space.ceiling(TRACK, 10, None) is None
    assert space.ceiling(TRACK, 2**18//doms, None) is not None


def test_a_model_without_photons_has_nothing_to_thin():
    events = simulate_events(50, detector=toy_detector(), kind='track', seed=1, min_hits=4)
    config = override(ExperimentConfig(), {**SMALL, 'diffusion.space': 'event'})
    transform = EventTransform.fit(events)
    model = Generator(create_space(config, events.detector, transform), transform, events.detector, config, dict(generator='x', trained_steps=0))
    with pytest.raises(ConfigError, match='no photons to thin'): model.sample(events, thinned=True)
