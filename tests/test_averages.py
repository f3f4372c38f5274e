"Averages of the weights: as exact in long runs as in short ones, whatever is stopped on the way, and each found by its width."
import math

import numpy as np
import pytest
import torch

from genesis.training.ema import EMA

torch.manual_seed(0)


class Walk:
    "A network whose weights are a function of the step."
    def __init__(self, dtype=torch.float32): self.net = torch.nn.Linear(3, 2).to(dtype)

    def to(self, k):
        t = torch.tensor(k/150_000, dtype=torch.float64)
        jitter = torch.tensor([math.sin(k*7.1), math.cos(k*3.3), math.sin(k*k % 97)])
        with torch.no_grad():
            self.net.weight.copy_((1 + .01*t + 1e-4*jitter).expand(2, 3) * torch.tensor([[1.], [-1e-3]]))
            self.net.bias.fill_(float(t))


def follow(walk, ema, first, last):
    for k in range(first, last): walk.to(k); ema.update()
    return ema


def exact(walk, ema, steps):
    "The same recursion in double precision."
    means = [[p.detach().double().numpy().copy() for p in ema.live] for _ in ema.bases]
    for k in range(steps):
        walk.to(k)
        live = [p.detach().double().numpy() for p in ema.live]
        for mean, d in zip(means, ema.decays(k)):
            for m, x in zip(mean, live): m *= d; m += (1-d)*x
    return means


def relative(found, true): return max(float(np.max(np.abs(f.double().numpy() - t)/np.maximum(np.abs(t).max(), 1e-30))) for a, b in zip(found, true) for f, t in zip(a, b))


@pytest.mark.parametrize('kw', [dict(), dict(widths=(.2,)), dict(decay=.9999), dict(decay=.99999)])
def test_a_long_average_is_the_exact_one(kw):
    walk = Walk()
    ema = follow(walk, EMA(walk.net, **kw), 0, 3_017)   # not at a join
    true = exact(walk, ema, 3_017)
    assert relative(ema.means, true) < 3e-7


def test_far_into_a_run_it_still_follows():
    "Weights move by 0.3 % after a million updates: one float a weight would not notice."
    walk, first, last = Walk(), 1_000_000, 1_001_001
    ema = EMA(walk.net)
    with torch.no_grad():
        for p in ema.live: p.fill_(1.)
    ema.load_state_dict(walk.net.state_dict(), first)
    with torch.no_grad():
        for p in ema.live: p.fill_(1.003)
    for _ in range(first, last): ema.update()
    for kept, mean in zip(np.prod([ema.decays(k) for k in range(first, last)], axis=0), ema.means):
        for m in mean: np.testing.assert_allclose(m.numpy(), np.float32(1.003) - (np.float32(1.003) - 1)*kept, atol=1.2e-7)


@pytest.mark.parametrize('cut', [1, 1024, 1087, 1088, 1100])
def test_a_stop_changes_no_bit(cut):
    walk = Walk()
    whole = follow(walk, EMA(walk.net), 0, 1300)
    half = follow(walk, EMA(walk.net), 0, cut)
    half.means, half.state_dict()   # to look does no harm
    state, others, parts = half.state_dict(), half.averages(1), half.parts()
    resumed = EMA(walk.net)
    resumed.load_state_dict(state, cut, others, .1, parts)
    assert all(torch.equal(a, b) for x, y in zip(half.means, resumed.means) for a, b in zip(x, y))
    follow(walk, resumed, cut, 1300)
    assert all(torch.equal(a, b) for x, y in zip(whole.means, resumed.means) for a, b in zip(x, y)) and whole.kept == resumed.kept


@pytest.mark.parametrize('n', [500, 1500])
def test_averages_are_found_by_their_width(n, caplog):
    walk = Walk()
    ema = follow(walk, EMA(walk.net, widths=(.1, .05)), 0, n)
    names = [k for k, _ in walk.net.named_parameters()]
    saved = dict(state=ema.state_dict(), n=n, others=ema.averages(1), width=.1, parts=ema.parts())
    for widths in ((.05, .1), (.05,), (.02, .05, .1)):
        other = EMA(walk.net, widths=widths)
        other.load_state_dict(**saved)
        for w, mean in zip(widths, other.means):
            true = ema.means[(.1, .05).index(w)] if w != .02 else None
            if true is not None: assert all(torch.equal(a, b) for a, b in zip(mean, true)), w
    assert 'no average of width 0.02 was kept: it starts from that of width 0.05' in caplog.text
    plain = EMA(walk.net, decay=.999)
    plain.load_state_dict(**saved)
    assert all(torch.equal(a, ema.state_dict()[k]) for k, a in zip(names, plain.mean))


def test_in_the_model_it_is_the_average():
    walk = Walk()
    ema = follow(walk, EMA(walk.net), 0, 1500)
    trained = [p.clone() for p in ema.live]
    with ema.applied(): assert all(torch.equal(p, m) for p, m in zip(ema.live, ema.mean))
    assert all(torch.equal(p, t) for p, t in zip(ema.live, trained))
