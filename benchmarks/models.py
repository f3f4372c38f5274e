"""What a network costs: strings as tokens against DOMs as tokens, as a share of what the processor can do, in memory; and the optimiser and the average beside the usual ones.

Prints JSON lines: name, value, unit, reference, ratio. Choose rows by name (`python benchmarks/models.py mfu-fp32 ema-step --rounds 9`); all by default, some minutes. One thread, process time, everything side by side in one process:
each round measures every way once, the figures are medians over rounds. Networks have the default sizes (hidden 512, depth 8) on IceCube-86, for optimiser and average hidden 384, depth 6. A share of the processor is the FLOPs of the products of a step, over its time, over the best rate of a
large matrix product in the same round. Memory is the highest resident set while a batch of 32 passes forward and backward, less that before it, in a process of its own; what autograd keeps is counted too, without a clock.
`ema-step` compares with diffusers where it is installed.
"""
import argparse, json, os, subprocess, sys, threading, time

import numpy as np
import torch

from genesis.config import ModelConfig, TrainingConfig
from genesis.models.zoo import activation_bytes, count_flops, create_model
from genesis.training.ema import EMA
from genesis.training.setup import create_optimizer

GRID, BATCH = (86, 60), 32
SMALLER = dict(hidden=384, depth=6, heads=6) # some 17 million weights, for what only walks over weights


def network(name='dit', **sizes):
    torch.manual_seed(0)
    return create_model(ModelConfig(architecture=name, **sizes), GRID)


def inputs(n): return torch.randn(n, 3, 5160), torch.zeros(n), torch.randn(n, 18), torch.randn(n, 5160, 8)


def forward(net, args, bf16):
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16): return net(*args).float().pow(2).mean()


def passes(net, args, bf16):
    "Forward and backward of a batch."
    return lambda: forward(net, args, bf16).backward()


def clock(f):
    t = time.process_time()
    f()
    return time.process_time() - t


def gemm(dtype):
    "The best rate of a large matrix product just now [FLOP/s]: of two shapes, one square, one of the network's own."
    best = 0
    for n, k, m in ((1024, 1024, 1024), (2752, 512, 2048)):
        a, b = torch.randn(n, k, dtype=dtype), torch.randn(k, m, dtype=dtype)
        best = max(best, 2*n*k*m/min(clock(lambda: a @ b) for _ in range(8)))
    return best


def show(name, value, unit, reference, ratio):
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit=unit, reference=reference, ratio=float(f'{ratio:.4g}'))), flush=True)


def dense(name, bf16, rounds):
    "Cost of training an event, against a transformer over DOMs."
    strings, doms = passes(network('dit'), inputs(BATCH), bf16), passes(network('dit-dense'), inputs(1), bf16)
    strings()
    t = [(clock(strings)/BATCH, clock(doms)) for _ in range(rounds)]
    show(name, 1e3*np.median([a for a, _ in t]), 'ms/event', f'a token for every DOM: {np.median([b for _, b in t]):.3g} s/event; batch {BATCH} against 1, {rounds} rounds', np.median([b/a for a, b in t]))


def mfu(name, bf16, rounds):
    "A training step with its optimiser, as a share of the best matrix product."
    net = network()
    opt, run = create_optimizer(net, TrainingConfig()), passes(net, inputs(BATCH), bf16)
    flops = 3*count_flops(lambda: torch.no_grad()(net)(*inputs(1)))*BATCH
    def step(): run(); opt.step(); opt.zero_grad()
    step()
    t = [(clock(step), gemm(torch.bfloat16 if bf16 else torch.float32)) for _ in range(rounds)]
    show(name, np.median([flops/s/g for s, g in t]), 'of the best product', f'{np.median([g for _, g in t])/1e9:.0f} GFLOP/s; {1e3*np.median([s for s, _ in t])/BATCH:.0f} ms/event, best share {max(flops/s/g for s, g in t):.3f}, {rounds} rounds', np.median([flops/s/g for s, g in t]))


def resident(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')


def peak(bf16):
    "Bytes an event: the highest resident set of a step less that before, and what autograd keeps."
    net = network()
    kept = [activation_bytes(net, lambda: forward(net, inputs(n), bf16)) for n in (1, 2)]
    passes(net, inputs(1), bf16)()
    net.zero_grad(set_to_none=True)
    args, done, highest = inputs(BATCH), threading.Event(), [0]
    def watch():
        while not done.wait(.01): highest[0] = max(highest[0], resident())
    before, watcher = resident(), threading.Thread(target=watch)
    watcher.start(); passes(net, args, bf16)(); done.set(); watcher.join()
    return (highest[0] - before)/BATCH, kept[1] - kept[0]


def memory(name, bf16, rounds):
    rows = [json.loads(subprocess.run([sys.executable, __file__, '--peak', str(int(bf16))], capture_output=True, text=True, check=True).stdout) for _ in range(min(rounds, 3))]
    value, target = np.median([r[0] for r in rows])/2**20, 25 if bf16 else 40
    show(name, value, 'MiB/event', f'{target} MiB; of it {rows[0][1]/2**20:.1f} are kept for the gradient, gradients {4*sum(p.numel() for p in network().parameters())/BATCH/2**20:.1f}; batch {BATCH}, from {min(r[0] for r in rows)/2**20:.1f} to {max(r[0] for r in rows)/2**20:.1f}', target/value)


def optimizer(name, _, rounds):
    "Fused AdamW as a training uses it, against torch's default of many small steps."
    nets = [network(**SMALLER), network(**SMALLER)]
    for net in nets:
        for p in net.parameters(): p.grad = torch.randn_like(p)
    ours, default = create_optimizer(nets[0], TrainingConfig()), torch.optim.AdamW(nets[1].parameters(), foreach=True)
    ours.step(); default.step()
    t = [(clock(ours.step), clock(default.step)) for _ in range(rounds)]
    show(name, 1e3*np.median([a for a, _ in t]), 'ms', f'AdamW(foreach=True), {1e3*np.median([b for _, b in t]):.1f} ms; {sum(p.numel() for p in nets[0].parameters())/1e6:.1f} M weights', np.median([b/a for a, b in t]))


def ema(name, _, rounds):
    "Our average of the weights against that of diffusers."
    try: from diffusers.training_utils import EMAModel
    except ImportError: print('ema-step needs diffusers', file=sys.stderr); return
    net = network(**SMALLER)
    ours, theirs = EMA(net, decay=.999), EMAModel(net.parameters(), decay=.999)
    steps = [ours.update, lambda: theirs.step(net.parameters())]
    for s in steps: s(); s()
    t = [[clock(s) for s in steps] for _ in range(rounds)]
    show(name, 1e3*np.median([a for a, _ in t]), 'ms', f"diffusers' EMAModel, {1e3*np.median([b for _, b in t]):.1f} ms; one average of {sum(p.numel() for p in net.parameters())/1e6:.1f} M weights", np.median([b/a for a, b in t]))


ROWS = {'dit-vs-dense': (dense, False), 'dit-vs-dense-bf16': (dense, True), 'mfu-fp32': (mfu, False), 'mfu-bf16': (mfu, True),
        'train-memory-fp32': (memory, False), 'train-memory-bf16': (memory, True), 'optimizer-step': (optimizer, None), 'ema-step': (ema, None)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('rows', nargs='*', metavar='ROW', help=f'which: {", ".join(ROWS)} (default all)')
    p.add_argument('--rounds', type=int, default=5, help='measurements of each way (default 5)')
    p.add_argument('--peak', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.peak is not None: print(json.dumps(peak(bool(a.peak)))); return
    if unknown := set(a.rows) - set(ROWS): p.error(f'unknown rows: {", ".join(sorted(unknown))}')
    for name in a.rows or ROWS: ROWS[name][0](name, ROWS[name][1], a.rounds)


if __name__ == '__main__': main()
