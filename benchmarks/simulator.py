"""Events a second on one core, at the default spectrum, trigger included.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py

One JSON object a line. `value` is the median of several rounds in events per second of process time; the reference is the number to reach, the ratio says how far it is.
"""
import json, os, statistics, sys, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
from genesis.data.simulator import simulate_events

EVENTS, ROUNDS = 1500, 7
TARGETS = dict(cascades=('cascade', 2000), tracks=('track', 1000))


def rate(kind, seed):
    start = time.process_time()
    simulate_events(EVENTS, kind=kind, seed=seed)
    return EVENTS/(time.process_time()-start)


def main():
    rates = {name: [] for name in TARGETS}
    for kind, _ in TARGETS.values(): simulate_events(50, kind=kind)   # tables and imports are not counted: they are made once
    for r in range(ROUNDS):
        for name, (kind, _) in TARGETS.items(): rates[name].append(rate(kind, r))
    for name, (_, target) in TARGETS.items():
        value = statistics.median(rates[name])
        print(json.dumps(dict(name=name, value=round(value), unit='events/s/core', reference=target, ratio=round(value/target, 3))))
        print(f'{name}: {min(rates[name]):.0f} to {max(rates[name]):.0f} in {ROUNDS} rounds of {EVENTS} events', file=sys.stderr)


if __name__ == '__main__': main()
