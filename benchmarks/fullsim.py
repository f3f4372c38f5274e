"""What an event costs: photons followed one by one by ppc, the embedded simulator, and the packaged generator, side by side on one core and on the same labels.

    OMP_NUM_THREADS=1 python benchmarks/fullsim.py --ppc PATH --ice FOLDER [--events 20] [--generator icecube86] [--kinds track cascade]

or with the environment's PPC and PPC_ICE. JSON lines: name, value, unit, reference, ratio. For each kind and slice of energy: `…-ppc`, `…-toy`, `…-generator` are events per second of process time (for ppc: of its own processes), the reference is ppc's, the ratio how many times faster.
All three get labels drawn once, without a trigger: energies log-uniform in the slice, vertices and directions as in the embedded simulator, so dim events count, too. The start of ppc, measured on an event without light, is not counted; neither are imports, loading the generator, and tabulating the ceiling of its light once (two seconds a kind). The generator runs in the batch given (default 64), repeated over the labels until a second has passed.
Following 10–100 TeV takes minutes an event: `--few` events are followed there (default 3), and `expected` tells the rate that the slice below it would give if the time grew with the energy; with `--few 0` that is all, and the line says `extrapolated`.
How bright a DOM is decides what ppc costs: `oversize` is told, as the tables have it or as `--oversize` sets it; 5 is 25 times cheaper than 1, and usual.
Without a ppc a line says so, and the other two are measured.
"""
import argparse, json, os, sys, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch

from genesis.core import GenesisError
from genesis.data.detector import icecube86
from genesis.data.simulator import sample_labels, simulate_events
from genesis.generate import Generator

SLICES = {'200GeV-1TeV': (200, 1e3), '1-5TeV': (1e3, 5e3), '10-100TeV': (1e4, 1e5)}


def say(name, value, reference, **more):
    ratio = round(value/reference, 1) if reference else None
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit='events/s/core', reference=reference and float(f'{reference:.4g}'), ratio=ratio, **more)), flush=True)


def own(): return time.process_time()


def children():
    "Process time of the programs that have ended."
    t = os.times()
    return t.children_user + t.children_system


def seconds_a_call(work, clock=own, at_least=1.):
    "Process time of `work()`, repeated until `at_least` has passed; a first time does not count."
    work()
    start, n = clock(), 0
    while clock() - start < at_least or not n:
        work()
        n += 1
    return (clock() - start)/n


class Followed:
    "Rates of an installed ppc."
    def __init__(self, a):
        from genesis.data.tracking import open_ppc, track_events
        self.ppc, self.track = open_ppc(a.ppc, a.ice, icecube86(), a.oversize), track_events
        far = np.array([[1., 0, 0, 0, 0, 5e3]], np.float32)
        self.start = seconds_a_call(lambda: track_events(self.ppc, labels=far), children, 0.)

    def rate(self, labels, kind):
        "Events a second, and hit DOMs an event."
        before = children()
        events = self.track(self.ppc, labels=labels, kind=kind, seed=1)
        spent = children() - before - self.start
        return len(labels)/max(spent, 1e-3), events.n_hits.mean()


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--ppc', default=os.environ.get('PPC'), help='the program (default: PPC of the environment)')
    p.add_argument('--ice', default=os.environ.get('PPC_ICE'), help='its tables (default: PPC_ICE of the environment)')
    p.add_argument('--oversize', type=int, help='radius of a DOM over its true one (default: as in cfg.txt)')
    p.add_argument('--events', type=int, default=20, help='events a slice (default 20)')
    p.add_argument('--few', type=int, default=3, help='events that ppc follows in the highest slice (default 3)')
    p.add_argument('--generator', default='icecube86', help='checkpoint, or the name of a packaged one (default icecube86)')
    p.add_argument('--batch', type=int, default=64, help='of the generator (default 64)')
    p.add_argument('--kinds', nargs='+', default=['track', 'cascade'], choices=('track', 'cascade'))
    return p.parse_args()


def open_followed(a):
    if not (a.ppc and a.ice):
        print(json.dumps(dict(name='ppc', skipped='no ppc: neither --ppc and --ice nor PPC and PPC_ICE are given')), flush=True)
        return None
    try: return Followed(a)
    except GenesisError as e:
        print(json.dumps(dict(name='ppc', skipped=str(e).splitlines()[0])), flush=True)
        return None


def main():
    a = arguments()
    torch.set_num_threads(1)
    detector, generator, followed = icecube86(), Generator.from_checkpoint(a.generator, 'cpu'), open_followed(a)
    oversize = followed.ppc.about['oversize'] if followed else None
    for kind in a.kinds:
        below = None
        for name, energy in SLICES.items():
            labels = sample_labels(a.events, np.random.default_rng(7), detector, energy)
            reference = None
            if followed:
                few = a.few if energy[0] >= 1e4 else a.events
                mean = float(labels[:few or None, 0].mean())
                expected = below and below[0]*below[1]/mean
                if few:
                    reference, hit = followed.rate(labels[:few], kind)
                    more = dict(events=few, hit_doms=round(float(hit), 1)) | (dict(expected=float(f'{expected:.3g}')) if expected else {})
                else: reference, more = expected, dict(extrapolated=True)
                say(f'{name}-{kind}-ppc', reference, reference, oversize=oversize, **more)
                below = reference, mean
            toy = np.resize(labels, (max(a.events, 200), 6))
            say(f'{name}-{kind}-toy', len(toy)/seconds_a_call(lambda: simulate_events(labels=toy, kind=kind, seed=1)), reference)
            many = np.resize(labels, (a.batch, 6))
            sample = lambda: generator.sample(many, batch_size=a.batch, seed=1, kind=kind, thinned=True)
            say(f'{name}-{kind}-generator', a.batch/seconds_a_call(sample), reference, model=a.generator)
    return 0


if __name__ == '__main__': sys.exit(main())
