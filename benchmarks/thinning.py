"""How often the ceiling of a decoder's light is broken, and what it saves: the packaged model's events from the thinned and from the full decoder.

Prints JSON lines: name, value, unit, reference, ratio (`python benchmarks/thinning.py --events 2000`). Nothing is counted that can be computed: a hit is lost where its uniform number lies between bound and chance, so Σ max(p − bound, 0) over Σ p is the expected share of lost hits, over all DOMs of all events.

`lost-hits-KIND`: that share. An event in which a DOM that is looked at exceeds the bound is drawn again from all DOMs; what is lost all the same is less than this number. `broken-events-KIND`: the share of events with any DOM above its bound, however dark.
`looks-KIND`: DOMs that are looked at per event, of all there are; first draws alone. `ceiling-seconds`: what it takes to make a ceiling, process time of one core.
"""
import argparse, json, time

import torch

from genesis.data.events import KINDS
from genesis.diffusion.samplers import event_seeds, sampling
from genesis.generate import Generator


def show(name, value, unit, reference, ratio):
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit=unit, reference=reference, ratio=float(f'{ratio:.4g}'))), flush=True)


@torch.no_grad()
def count(space, ceiling, labels, kind, seeds, how):
    "Sums over some events: hits that may be lost, hits, events with a broken bound, looks."
    z, event, decoder = space.source(labels, seeds, kind=kind, **how), space._event(labels, kind), space.model['decoder']
    about, bright = decoder.event(event[1]), decoder.brightness(z, event[2], event[1])
    bound, exact = ceiling.chance(labels, event[1], event[4], bright), space._all_chances(event, about, bright)
    over = (exact - bound).clamp(min=0)*space.conditioner.mask
    broken = (over > 1e-6*exact).any(1).sum()
    return torch.stack([over.double().sum(), exact.double().sum(), broken.double(), bound.double().sum()])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--events', type=int, default=1000, help='events of each kind (default 1000)')
    p.add_argument('--model', default='icecube86', help='a checkpoint, or the name of a packaged model (default icecube86)')
    p.add_argument('--seed', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(1)
    model = Generator.from_checkpoint(a.model, device='cpu')
    how = sampling(model.config.diffusion)
    for name in model.kinds:
        start = time.process_time()
        ceiling = model.space.ceiling(KINDS.index(name))
        took = time.process_time() - start
        show(f'ceiling-seconds-{name}', took, 's', 'process time, one thread; 2 s', took/2)
        labels, _ = model._find_labels(None, a.events, a.seed, name)
        sums = torch.zeros(4, dtype=torch.float64)
        for i in range(0, a.events, 8):
            at = slice(i, min(i + 8, a.events))
            some = torch.from_numpy(labels[at])
            sums += count(model.space, ceiling, some, torch.full((len(some),), KINDS.index(name)), event_seeds(a.seed, range(at.start, at.stop)), how)
        lost, hits, broken, looks = sums.tolist()
        about = f'{a.events} events, {hits:.0f} expected hits, seed {a.seed}'
        show(f'lost-hits-{name}', lost/hits, 'of hits', f'at most 1e-6; {about}', lost/hits/1e-6)
        show(f'broken-events-{name}', broken/a.events, 'of events', about, broken/a.events)
        show(f'looks-{name}', looks/a.events, 'DOMs/event', f'{int(model.space.conditioner.mask.sum())} DOMs; {about}', looks/a.events/model.space.conditioner.mask.sum().item())


if __name__ == '__main__': main()
