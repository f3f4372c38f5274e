"The baselines: a density that is one, an estimate from some DOMs that holds for all, draws that follow the laws they were fitted by."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from genesis.evaluation.baselines import IndependentDOMs, NearestCopy, log_delay
from genesis.core import ConfigError, DataError
from genesis.data.detector import toy_detector
from genesis.data.events import KINDS, EventFiles, residual_time, write_events
from genesis.data.loaders import EventLoader
from genesis.data.simulator import simulate_events


@pytest.fixture(scope='module')
def events(): return simulate_events(600, detector=toy_detector(), kind='mixed', seed=1, min_hits=4)


@pytest.fixture(scope='module')
def alone(events): return IndependentDOMs(24).fit(events, steps=60)


@settings(max_examples=40, deadline=None)
@given(st.floats(.2, 9), st.floats(-1, 5), st.floats(2, 15))
def test_the_density_of_a_delay_is_one(k, r, jitter):
    scale = jitter*np.exp(r)
    mean, std = k*scale, (k*scale**2 + jitter**2)**.5
    t = np.linspace(-9*jitter, mean + 40*std, 200_000)
    p = log_delay(*(torch.broadcast_to(torch.tensor(v, dtype=torch.float64), t.shape) for v in (t, k, scale, jitter))).exp().numpy()
    total = np.trapezoid(p, t) if hasattr(np, 'trapezoid') else np.trapz(p, t)
    assert abs(total - 1) < 5e-3 and abs(((p*t).sum()/p.sum() - mean)/std) < 1e-2


def test_the_slope_of_a_delay_is_the_one_of_its_differences():
    v = [torch.tensor(x, dtype=torch.float64).repeat(5).requires_grad_() for x in (0., 1.3, 30., 4.)]
    with torch.no_grad(): v[0] += torch.tensor([-12., -1., 3., 40., 300.])
    assert torch.autograd.gradcheck(log_delay, v)


def test_some_doms_stand_for_all(events, alone):
    "The loss from 12 hits and 12 DOMs, averaged over draws, is that of all DOMs."
    loader = EventLoader(events, alone.transform, 32); batch, n = loader.next(0), len(alone.conditioner.mask)

    def losses(hits, doms, draws, seed):
        alone.n_hits, alone.n_doms = hits, doms; dice = torch.Generator().manual_seed(seed)
        with torch.no_grad(): return torch.stack([alone.loss(batch, dice) for _ in range(draws)])
    keep, alone.transform.min_hits = alone.transform.min_hits, 0 # the chance to be kept is no sum over DOMs
    try: every, some = losses(n, 40*n, 40, 0).mean(0), losses(12, 12, 1500, 1)
    finally: alone.transform.min_hits = keep; del alone.n_hits, alone.n_doms
    pull = (some.mean(0) - every)/(some.std(0)/1500**.5)
    assert some.std(0).median() > .1 and pull.abs().max() < 5, pull


def test_draws_follow_the_laws(events, alone):
    "Of one bright event, drawn often: hits, log charges and times of its brightest DOM are those that the network says."
    i = int(np.argmax(events.n_hits*(events.kind == 2))); labels, kind = events.labels[i:i+1], events.kind[i:i+1]
    made = alone.sample(np.repeat(labels, 3000, 0), kind='track', batch_size=200)
    from genesis.models.source import see
    with torch.no_grad():
        lab, c = torch.from_numpy(labels), alone.conditioner
        seen = see(lab, torch.tensor([True]), c.xyz); slots = torch.from_numpy(alone.detector.slots)
        h, logit, mean, width = (v[0, slots] for v in alone.net(seen, torch.arange(len(c.mask))[None], c.event(lab, torch.from_numpy(kind))))
    p = torch.sigmoid(logit).numpy(); hits = np.bincount(made.dom, minlength=len(p))
    pull = (hits - 3000*p)/np.sqrt(3000*p*(1-p) + 1e-9)
    assert p.sum() > 20 and .7 < pull[p > .01].std() < 1.3
    d = int(np.argmax(hits)); at = made.dom == d
    z = (np.log(made.charge[at]) - mean[d].item())/width[d].item()
    assert abs(z.mean()) < 5/at.sum()**.5 and abs(z.std() - 1) < .1
    edges = np.quantile(made.time[at], np.linspace(.05, .95, 10)) # mass between the deciles, by the density
    fine = torch.linspace(float(edges[0]), float(edges[-1]), 2000); q = torch.from_numpy(np.log(made.charge[at])[:200])
    with torch.no_grad(): density = torch.stack([alone.log_time(h[d].expand(2000, -1), v.expand(2000), fine - seen.t_geo[0, slots[d]], fine).exp() for v in q]).mean(0)
    mass = [density[(fine >= a) & (fine < b)].sum().item()*(fine[1]-fine[0]).item() for a, b in zip(edges, edges[1:])]
    assert np.abs(np.array(mass) - .1).max() < .035, mass


def test_the_same_events_in_any_batch_from_files_and_again(events, alone, tmp_path):
    test = events[:20]
    a, b = alone.sample(test, seed=3), alone.sample(test, seed=3, batch_size=3)
    assert np.array_equal(a.dom, b.dom) and np.allclose(a.time, b.time, atol=.1) and not np.array_equal(a.n_hits, alone.sample(test, seed=4).n_hits)
    write_events(events, tmp_path/'e.h5')
    state = torch.random.get_rng_state()
    again = IndependentDOMs(24).fit(EventFiles(tmp_path/'e.h5'), steps=60)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(alone.net.parameters(), again.net.parameters()))


def test_kinds_are_not_mixed(events):
    copies = NearestCopy().fit(events)
    for k in ('cascade', 'track'):
        made = copies.sample(events.labels[:100], kind=k)
        own = events[events.kind == KINDS.index(k)]
        starts = {tuple(own.time[i:j]) for i, j in zip(own.ptr, own.ptr[1:])}
        assert all(tuple(made.time[i:j]) in starts for i, j in zip(made.ptr, made.ptr[1:])) and (made.kind == KINDS.index(k)).all()
    test = events[:50]; assert np.array_equal(copies.sample(test).charge, test.charge)
    with pytest.raises(DataError, match='no event to copy'): NearestCopy().fit(events[events.kind == 1]).sample(events.labels[:2], kind='track')


def test_events_that_would_not_have_been_kept_are_drawn_again():
    events = simulate_events(400, detector=toy_detector(), seed=2, min_hits=8, energy=(200, 1000))
    made = IndependentDOMs(24).fit(events, steps=40).sample(events)
    assert made.n_hits.min() >= 8


def test_noise_is_noise():
    "Hits before any light come out about as often as they went in, and none where there was none."
    def early(e): return (residual_time(e) < -100).mean()
    noisy, clean = (simulate_events(1500, kind='cascade', seed=3, noise=n, detector=toy_detector(), min_hits=4) for n in (True, False))
    for events in (noisy, clean):
        made = IndependentDOMs(24).fit(events, steps=250).sample(events[:600], seed=1)
        assert abs(early(made) - early(events)) < max(.5*early(events), 1e-3), (early(made), early(events))


def test_what_cannot_be_answered_is_said(events, alone):
    with pytest.raises(ConfigError, match='has not seen any events'): NearestCopy().sample(events)
    with pytest.raises(DataError, match='needs events'): NearestCopy().fit(events[[]])
    with pytest.raises(ConfigError, match='which kind'): alone.sample(events.labels[:2])
    with pytest.raises(DataError, match='no event'): alone.sample([[np.nan, 1, 1, 0, 0, 0]], kind='track')
    bare = simulate_events(20, detector=toy_detector(), min_hits=4); bare.labels[:, 0] = np.nan; bare.meta['missing'] = ['energy']
    with pytest.raises(DataError, match='lack'): NearestCopy().fit(bare)
