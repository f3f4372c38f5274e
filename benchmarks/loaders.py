"""How fast batches are made: against dense HDF5 read event by event, against copying memory, and as a share of a training step.

Prints JSON lines: name, value, unit, reference, ratio. One thread, everything side by side in one process: each round measures every loader once, the figures are medians over rounds.
The dense file lies contiguous and uncompressed in the page cache, which is the fastest it can be read (compressed it takes several times longer).
Our cost grows with the hits of an event, that of a dense file does not: so the loaders are measured on events of which 98.2 % of the DOMs see nothing (a spectrum between E^-1 and E^-2), and `loader-vs-h5py-bright`
repeats the first line at the simulator's default spectrum, whose events have twice the hits.
"""
import json, tempfile, time
from pathlib import Path

import h5py
import numpy as np
import torch

from genesis.config import ExperimentConfig
from genesis.data.events import EventFiles, write_events
from genesis.data.loaders import EventLoader
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.diffusion.spaces import create_space
from genesis.training.setup import create_optimizer

BATCH, EVENTS, DENSE, ROUNDS = 64, 6000, 1000, 15


def write_dense(events, path):
    "The original's layout, as plain as HDF5 can be."
    with h5py.File(path, 'w', libver='latest') as f:
        f['input'], f['label'] = events.dense(), events.labels
        for i, k in enumerate('xyz'): f[f'{k}pmt'] = events.detector.xyz[:, i].astype(np.float32)
    return path


class DenseH5(torch.utils.data.Dataset):
    "The original's way: for each event open the file, read it, mend what is not finite, take logarithms, add the geometry, scale."
    def __init__(self, path):
        self.path = path
        with h5py.File(path, 'r') as f:
            self.n, self.geometry = len(f['input']), np.stack([f[f'{k}pmt'][...] for k in 'xyz'])
        self.shift, self.scale = np.zeros((5, 1), np.float32), np.ones((5, 1), np.float32)

    def __len__(self): return self.n

    def __getitem__(self, i):
        with h5py.File(self.path, 'r', swmr=True, libver='latest') as f: signal, label = f['input'][i], f['label'][i]
        for v in (*signal, label): v[~np.isfinite(v)] = 0
        signal[1] = np.log(1 + signal[1])
        x = (np.concatenate([signal, self.geometry]) - self.shift)/self.scale
        return torch.from_numpy(x[:2]), torch.from_numpy(x[2:]), torch.from_numpy(label), i


def forever(loader):
    while True: yield from loader


def clock(f, n):
    "Seconds a call."
    t = time.perf_counter()
    for _ in range(n): f()
    return (time.perf_counter() - t)/n


class Stream:
    "Batches as a training asks for them."
    def __init__(self, loader): self.loader, self.seen = loader, 0
    def __call__(self):
        self.loader.next(self.seen, reuse=True)
        self.seen += self.loader.batch_size


def training_step(events, transform):
    "One step of the default model on its default batch, and a loader for it."
    cfg = ExperimentConfig()
    loader = EventLoader(events, transform, cfg.data.batch_size)
    space = create_space(cfg, events.detector, transform)
    optimizer, batch = create_optimizer(space.model, cfg.training), loader.next(0)

    def step():
        space.loss(batch, torch.Generator().manual_seed(0))[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(space.model.parameters(), 1.)
        optimizer.step(); optimizer.zero_grad()
    return step, Stream(loader)


def show(name, value, unit, reference, ratio):
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit=unit, reference=reference, ratio=float(f'{ratio:.4g}'))), flush=True)


GAMMA = 1.6   # spectrum that leaves 98.2 % of the DOMs dark


def main():
    torch.set_num_threads(1)
    events, bright = simulate_events(EVENTS, seed=1, gamma=GAMMA), simulate_events(EVENTS, seed=1)
    transform = EventTransform.fit(events)
    with tempfile.TemporaryDirectory() as folder:
        dense = write_dense(events[:DENSE], Path(folder)/'dense.h5')
        files = EventFiles(write_events(events, Path(folder)/'events.h5'))
        h5 = forever(torch.utils.data.DataLoader(DenseH5(dense), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0)))
        source = np.random.default_rng(0).random((64, BATCH, 3, len(events.detector.grid_mask)), np.float32)
        target, turn = np.empty_like(source[0]), iter(np.tile(np.arange(64), 1000))
        step, few = training_step(events, transform)
        held, lazy = (Stream(EventLoader(files, transform, BATCH, hold=h)) for h in (True, False))
        many = Stream(EventLoader(bright, transform, BATCH))
        ways = dict(h5py=(lambda: next(h5), 1), bright=(many, 60), memcpy=(lambda: np.copyto(target, source[next(turn)]), 30), loader=(held, 60), windows=(lazy, 60), few=(few, 60))
        for f, _ in ways.values(): f()
        rounds = [{k: clock(f, n) for k, (f, n) in ways.items()} for _ in range(ROUNDS)]
        step()
        steps = [(clock(step, 1), clock(few, 60)) for _ in range(3)]
    t = {k: np.median([r[k] for r in rounds]) for k in ways}
    ratio = lambda a, b: np.median([r[a]/r[b] for r in rounds])
    hits = lambda ev: f'batches of {BATCH}, mean {len(ev.dom)/len(ev):.0f} hits an event'; about = hits(events)
    show('loader-vs-h5py', BATCH/t['loader'], 'events/s', f"dense HDF5 event by event, {BATCH/t['h5py']:.0f} events/s; {about}", ratio('h5py', 'loader'))
    show('loader-vs-h5py-bright', BATCH/t['bright'], 'events/s', f"dense HDF5 event by event, {BATCH/t['h5py']:.0f} events/s; {hits(bright)}", ratio('h5py', 'bright'))
    show('loader-vs-memcpy', BATCH/t['loader'], 'events/s', f"copying dense batches, {BATCH/t['memcpy']:.0f} events/s; {about}", ratio('memcpy', 'loader'))
    show('loader-windows', BATCH/t['windows'], 'events/s', f'events held in memory; {about}', ratio('loader', 'windows'))
    shares = [b/a for a, b in steps]
    show('loader-share-of-step', np.median(shares), 'of a step', f'{np.median([a for a, _ in steps]):.2f} s for a training step of the default model, batch {few.loader.batch_size}', 1/np.median(shares))


if __name__ == '__main__': main()
