"""What looking at events costs: features a second on one core, and a whole report of 3,000 generated beside 3,000 true events.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py

One JSON object a line. `features`: `value` is the median of several rounds in events per second of process time, the reference the same features from a plain loop over events, `target` the number to reach.
`evaluate`: `value` is the process time in seconds of `evaluate` with a twin, trees, draws and training events, the reference what it may take. The ratio says how many times better than the reference.
"""
import json, os, statistics, sys, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np

from genesis.data.detector import C_VACUUM
from genesis.data.events import residual_time
from genesis.data.simulator import simulate_events
from genesis.evaluation.report import evaluate
from genesis.evaluation.features import ACAUSAL, TRIM, WINDOW, event_features
from genesis.evaluation.structure import draw_labels

EVENTS, ROUNDS, TARGET, SECONDS = 3000, 7, 20_000, 40.


def line(xyz, t):
    "Velocity of a line through hits, and how far from it they lie."
    dt, dr = t-t.mean(), xyz-xyz.mean(0)
    v = (dr*dt[:, None]).mean(0)/(dt*dt).mean() if (dt*dt).sum() > 1e-6 else np.full(3, np.nan)
    return v, ((dr - dt[:, None]*v)**2).sum(1)


def plain(one, res):
    "The features of one event, as one would write them down."
    q, t, xyz, string = one.charge.astype(float), one.time.astype(float), one.detector.xyz[one.dom], one.detector.string[one.dom]
    Q, order = q.sum(), np.argsort(t, kind='stable'); cog, seen = (q[:, None]*xyz).sum(0)/Q, np.cumsum(q[order])
    t10, t50, t90 = t[order[np.searchsorted(seen, np.array([.1, .5, .9])*Q).clip(0, len(q)-1)]]
    near = np.abs(t-t50) < WINDOW; _, far = line(xyz[near], t[near]); kept = np.argsort(far, kind='stable')[:int(np.ceil((1-TRIM)*near.sum()))]
    v, _ = line(xyz[near][kept], t[near][kept]); speed = np.linalg.norm(v)
    return [np.log10(1+Q), len(q), len(np.unique(string)), np.log10(1+q.max()), q.max()/Q, (q < 1.5).mean(), (string > 78).sum(), *cog, np.linalg.norm(cog-one.labels[0, 3:]), np.sqrt((q*((xyz-cog)**2).sum(1)).sum()/Q),
            t.min(), t10, t50, t90, np.ptp(t), res.mean(), res.std(), ((res > ACAUSAL) & (res < 75)).sum(), speed/C_VACUUM, -v[2]/speed]


def loop(events): return np.array([plain(one := events[i], residual_time(one)) for i in range(len(events))])


def seconds(f, *a, **k):
    start = time.process_time(); out = f(*a, **k)
    return time.process_time()-start, out


def say(name, value, unit, reference, ratio, **more): print(json.dumps(dict(name=name, value=round(value, 2), unit=unit, reference=round(reference, 2), ratio=round(ratio, 3), **more)), flush=True)


def main():
    real = simulate_events(EVENTS, kind='mixed', seed=1)
    few, (slow, by_hand) = real[:500], seconds(loop, real[:500])
    off = np.abs(np.stack(list(event_features(few).values()), 1) - by_hand)/np.abs(by_hand).clip(1)
    if not np.nanmax(off) < 1e-3: sys.exit(f'the two ways to compute features differ by {np.nanmax(off):.2g}')
    rates = [EVENTS/seconds(event_features, real)[0] for _ in range(ROUNDS)]
    value = statistics.median(rates)
    say('features', value, 'events/s/core', len(few)/slow, value*slow/len(few), target=TARGET)
    print(f'features: {min(rates):.0f} to {max(rates):.0f} in {ROUNDS} rounds of {EVENTS} events, {len(real.dom)/len(real):.0f} hits each', file=sys.stderr)
    twin, gen = (simulate_events(labels=real.labels, kind=real.kind, seed=s, min_hits=8) for s in (2, 3))
    labels, kind = draw_labels(40, 50, seed=4)
    draws = tuple(simulate_events(labels=labels, kind=kind, seed=s) for s in (5, 6, 7))
    took, report = seconds(evaluate, real, gen, twin, draws=draws, train=simulate_events(EVENTS, kind='mixed', seed=8))
    say('evaluate', took, 's', SECONDS, SECONDS/took, events=EVENTS, classifier=bool(np.isfinite(report['c2st']['value'])))


if __name__ == '__main__': main()
