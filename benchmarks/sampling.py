"""What it costs to generate an event: the default way against a token for every DOM and 1,000 steps; what torch.compile buys; and how large batches should be.

Prints JSON lines: name, value, unit, reference, ratio. Choose rows by name (`python benchmarks/sampling.py sampling-vs-dense-ddpm --rounds 5`); all by default, some minutes. One thread, process time, everything side by side in one process; medians over rounds.
Networks have the default size (hidden 512, depth 8) on IceCube-86 and weights that no one trained: they cost the same. Calls and space are those of the default configuration; `-event` and `-latent` name the space.

`sampling-vs-dense-ddpm`: one call of the network times the calls of the sampler, for latent events with the photons added, against one call of dense attention (`dit-dense`, batch 1) times 1,000. The walk itself is not part of it; `batch-1` times whole events, everything included.
The dense network counts in fp32 or bf16, whichever is faster. In event space ours runs in bf16 (autocast around the network), with fp32 told beside it, which is what `genesis generate` does; the latent space always samples in fp32.
`sample-vs-0.2.0`: whole events of the packaged model, this build against 0.2.0 with its own, both in one run, tracks of the default spectrum, at the same number of calls; `sample-default-vs-0.2.0`: with the default of each. `dim-vs-0.2.0`: the latter for tracks of about 25 hits. `peak-memory`: what sampling adds to a process, the ceiling of its light included.
A ceiling of the light (`benchmarks/thinning.py`) is made before the clock starts. Where the time goes: `python -m cProfile -s tottime -m genesis.cli sample icecube86 …`, or `python -m cProfile -s tottime benchmarks/sampling.py batch-1`.
`compile`: forward and backward of a batch, and a call of the sampler's network, with the network compiled in place (as `training.compile` does) against without; both in fp32. Compiling itself is not counted, its time is told. `batch-1`: whole events one at a time, against the best batch.
"""
import argparse, functools, json, os, subprocess, sys, tempfile, time
from contextlib import contextmanager, nullcontext
from pathlib import Path

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


# Both builds make events in processes of their own, which answer with process times: one warm-up, then as many rounds as are asked for, in turn.
OLD = 'e2f5c16' # genesis 0.2.0
WORKER = """
import resource, sys, time
import numpy as np
import torch
torch.set_num_threads(1)
from genesis.data.events import KINDS
from genesis.generate import Generator
model, how, n = Generator.from_checkpoint(sys.argv[1], device='cpu'), eval(sys.argv[2]), int(sys.argv[3])
labels = np.load(sys.argv[4]) if sys.argv[4] else None
def run(seed): return model.sample(labels, n, seed=seed, kind='track', batch_size=32, **how)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if hasattr(model.space, 'ceiling'): model.space.ceiling(KINDS.index('track'))
run(0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024, flush=True)
for line in sys.stdin:
    start = time.process_time()
    events = run(int(line))
    print((time.process_time() - start)/n, events.n_hits.mean(), flush=True)
"""


@contextmanager
def builds():
    "Folders of the build of then, in a `git worktree` for a while, and of this one."
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        then = Path(folder)/'then'
        subprocess.run(['git', 'worktree', 'add', '--detach', '-q', str(then), OLD], cwd=here, check=True)
        try: yield then, here
        finally: subprocess.run(['git', 'worktree', 'remove', '--force', str(then)], cwd=here, check=True)


def worker(folder, how, n, labels=''):
    "A process that samples with the packaged model of a build; and what sampling a batch added to its peak memory [MiB]."
    command = [sys.executable, '-c', WORKER, str(folder/'genesis'/'pretrained'/'icecube86'), repr(how), str(n), str(labels)]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, float(process.stdout.readline())


def ask(process, seed):
    "Seconds an event, and hits an event."
    print(seed, file=process.stdin, flush=True)
    return [float(v) for v in process.stdout.readline().split()]


def dim_labels(n):
    "Labels of tracks with about 25 hits: those of low energy that are simulated so."
    events = simulate_events(12*n, detector=icecube86(), kind='track', seed=2, energy=(100, 3000))
    dim = np.flatnonzero((events.n_hits >= 18) & (events.n_hits <= 32))[:n]
    return events.labels[dim]


def against_then(name, how, rounds, n=32):
    "The packaged model of this build against that of 0.2.0; the new default, unless a number of steps is given."
    with builds() as (then, now), tempfile.TemporaryDirectory() as folder:
        labels = ''
        if name.startswith('dim'):
            np.save(labels := Path(folder)/'labels.npy', dim_labels(n))
            n = len(np.load(labels))
        (old, old_peak), (new, new_peak) = worker(then, {}, n, labels), worker(now, how, n, labels)
        times = np.array([[ask(old, seed), ask(new, seed)] for seed in range(1, rounds + 1)])
        for process in (old, new): process.stdin.close(), process.wait()
    (was, hits_then), (is_now, hits) = np.median(times, 0)
    about = f'0.2.0 with its own packaged model, {1e3*was:.3g} ms/event; {n} tracks, {hits:.0f} hits an event ({hits_then:.0f}); {how or "default"}, one thread, process time, interleaved, {rounds} rounds'
    if name == 'peak-memory': show(name, new_peak, 'MiB', f'0.2.0: {old_peak:.4g} MiB; added by the first {n} events, batch 32, each in a process of its own', new_peak/old_peak)
    else: show(name, 1e3*is_now, 'ms/event', about, np.median(times[:, 0, 0]/times[:, 1, 0]))


SAME = {'steps': 16} # the default of 0.2.0: 17 calls
ROWS = {'sample-vs-0.2.0': (against_then, SAME), 'sample-default-vs-0.2.0': (against_then, {}), 'dim-vs-0.2.0': (against_then, {}), 'peak-memory': (against_then, {}),
        'sampling-vs-dense-ddpm': (against_dense, None), 'sampling-vs-dense-ddpm-event': (against_dense, 'event'), 'sampling-vs-dense-ddpm-latent': (against_dense, 'latent'),
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
