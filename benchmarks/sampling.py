"""What it costs to generate an event: the default way against a token for every DOM and 1,000 steps; what torch.compile buys; and how large batches should be.

Prints JSON lines: name, value, unit, reference, ratio. Choose rows by name (`python benchmarks/sampling.py sampling-vs-dense-ddpm --rounds 5`); all by default, some minutes. One thread, process time, everything side by side in one process; medians over rounds.
Networks have the default size (hidden 512, depth 8) on IceCube-86 and weights that no one trained: they cost the same. Calls and space are those of the default configuration; `-event` and `-latent` name the space.

`sampling-vs-dense-ddpm`: one call of the network times the calls of the sampler, for latent events with the photons added, against one call of dense attention (`dit-dense`, batch 1) times 1,000. The walk itself is not part of it; `batch-1` times whole events, everything included.
The dense network counts in fp32 or bf16, whichever is faster. In event space ours runs in bf16 (autocast around the network), with fp32 told beside it, which is what `genesis generate` does; the latent space always samples in fp32.
`compile`: forward and backward of a batch, and a call of the sampler's network, with the network compiled in place (as `training.compile` does) against without; both in fp32. Compiling itself is not counted, its time is told. `batch-1`: whole events one at a time, against the best batch.
"""
import argparse, functools, json, time
from contextlib import nullcontext

import numpy as np
import torch

from genesis.config import ExperimentConfig, from_dict
from genesis.data.detector import icecube86
from genesis.data.loaders import EventLoader
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.samplers import n_calls, sampling
from genesis.diffusion.spaces import create_space

STEPS = 1000 # of a DDPM
DEFAULT = ExperimentConfig()


@functools.cache
def some_events(): return simulate_events(64, seed=0, detector=icecube86())


def space(name, **model):
    "A space of this name with networks that nobody trained."
    torch.manual_seed(0)
    cfg = from_dict({'diffusion': {'space': name}, 'model': model})
    events = some_events()
    return create_space(cfg, events.detector, EventTransform.fit(events)).eval()


def labels(n): return torch.as_tensor(np.resize(some_events().labels, (n, 6)), dtype=torch.float32)


def call(space, n, bf16=False):
    "One call of the network, as a sampler makes it, for n events; conditions are computed beforehand."
    denoise, x, sigma = space.denoiser(labels(n), None, 1.), torch.randn(n, *space.shape), torch.ones(n)
    def run():
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16) if bf16 else nullcontext(): denoise(x, sigma)
    return run


def clock(f):
    t = time.process_time()
    f()
    return time.process_time() - t


def rounds_of(ways, rounds):
    "(rounds, ways) process times, interleaved, after a first time that does not count."
    for f in ways: f()
    return np.array([[clock(f) for f in ways] for _ in range(rounds)])


def show(name, value, unit, reference, ratio):
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit=unit, reference=reference, ratio=float(f'{ratio:.4g}'))), flush=True)


def against_dense(name, where, rounds):
    "The default sampler's event against 1,000 calls of dense attention."
    d = DEFAULT.diffusion
    where, n, calls = where or d.space, 32, n_calls(d.sampler, d.sampler_steps, d.guidance)
    ours, dense = space(where), space('event', architecture='dit-dense')
    ways = [call(dense, 1), call(dense, 1, bf16=True), call(ours, n)]
    if where == 'latent':
        z = torch.randn(n, *ours.shape)
        ways.append(lambda: ours.photons(z, labels(n), range(n)))
    else: ways.append(call(ours, n, bf16=True))
    t = np.median(rounds_of(ways, rounds), 0)
    other = STEPS*min(t[:2])
    if where == 'latent': event, how = (calls*t[2] + t[3])/n, f'{1e3*t[2]/n:.3g} ms in fp32, and photons {1e3*t[3]/n:.3g} ms'
    else: event, how = calls*t[3]/n, f'{1e3*t[3]/n:.3g} ms in bf16 (fp32 {1e3*t[2]/n:.3g} ms: ratio {other/(calls*t[2]/n):.0f})'
    show(name, 1e3*event, 'ms/event', f'{STEPS} calls of dense attention of {t[0]:.3g} s in fp32, {t[1]:.3g} s in bf16, the faster counts; {where} space: {calls} calls of {how}; batch {n} against 1, {rounds} rounds', other/event)


def step(space, n):
    "Forward and backward of a batch of n events."
    events = some_events()
    batch = EventLoader(events, EventTransform.fit(events), n).batch(np.arange(n))
    def run():
        space.train().loss(batch, torch.Generator().manual_seed(0))[0].mean().backward()
        space.zero_grad()
    return run


def compiled(name, _, rounds):
    "The same network plain and compiled in place, in training and in sampling."
    where, n = DEFAULT.diffusion.space, 32
    nets = [space(where), space(where)]
    nets[1].compile()
    for kind, make in (('sampling', call), ('training', step)):
        ways = [make(s, n) for s in nets]
        start = time.perf_counter()
        ways[1]()
        took = time.perf_counter() - start
        t = rounds_of(ways, rounds)
        show(f'{name}-{kind}', 1e3*np.median(t[:, 1])/n, 'ms/event', f'without, {1e3*np.median(t[:, 0])/n:.3g} ms/event; the first call, which compiles, takes {took:.0f} s; {where} space, batch {n}, fp32, {rounds} rounds', np.median(t[:, 0]/t[:, 1]))


def batches(name, _, rounds):
    "Whole events, from seed to photons: one at a time, and in the batch that is best."
    ours, how = space(DEFAULT.diffusion.space), sampling(DEFAULT.diffusion)
    sizes = 1, 8, 32
    t = rounds_of([lambda n=n: ours.sample(labels(n), range(n), **how) for n in sizes], rounds)/sizes
    cost = dict(zip(sizes, np.median(t, 0)))
    best = min(cost, key=cost.get)
    show(name, 1e3*cost[1], 'ms/event', f'batch {best}, the best of {", ".join(map(str, sizes))}: {1e3*cost[best]:.3g} ms/event; {DEFAULT.diffusion.space} space, {how["sampler"]}, {how["steps"]} steps, fp32, {rounds} rounds', np.median(t[:, sizes.index(best)]/t[:, 0]))


ROWS = {'sampling-vs-dense-ddpm': (against_dense, None), 'sampling-vs-dense-ddpm-event': (against_dense, 'event'), 'sampling-vs-dense-ddpm-latent': (against_dense, 'latent'),
        'compile': (compiled, None), 'batch-1': (batches, None)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('rows', nargs='*', metavar='ROW', help=f'which: {", ".join(ROWS)} (default all)')
    p.add_argument('--rounds', type=int, default=3, help='measurements of each way (default 3)')
    a = p.parse_args()
    torch.set_num_threads(1)
    if unknown := set(a.rows) - set(ROWS): p.error(f'unknown rows: {", ".join(sorted(unknown))}')
    for name in a.rows or ROWS: ROWS[name][0](name, ROWS[name][1], a.rounds)


if __name__ == '__main__': main()
