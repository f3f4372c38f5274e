"""The embedded simulator beside events in which every photon was followed, the same labels: ratios by distance, and what classifiers say.

    OMP_NUM_THREADS=1 python benchmarks/toy.py ../shared/data/ppc [--part test] [--seed 5]

One JSON object a line. Shells are around the vertex for cascades, around the track for tracks.
Of the two classifiers one sees the project's features, the other quantiles of times, charges and distances
and the charge along the axis; pairs of the same labels stay on one side of each split.
"""
import argparse, json, os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np

from genesis.data.events import KINDS, read_events, residual_time
from genesis.data.simulator import simulate_events
from genesis.evaluation.twosample import c2st

SHELLS = (0, 25, 50, 100, 200, 400, 900)
SHARES = (.1, .5, .9)


def geometry(events):
    "Of each hit: from the vertex along the direction of the event, and the distance from the vertex and from the axis [m]."
    way = events.detector.xyz[events.dom] - events.labels[events.event, 3:]
    along = (way*events.direction[events.event]).sum(1)
    square = (way*way).sum(1)
    return along, np.sqrt(square), np.sqrt(np.maximum(square - along**2, 0))


def by_distance(events):
    "For each shell: hits an event, charge a hit, quantiles of the residual time."
    _, distance, across = geometry(events)
    shell = np.searchsorted(SHELLS, across if events.kind[0] == KINDS.index('track') else distance) - 1
    late = residual_time(events)
    rows = []
    for s in range(len(SHELLS)-1):
        here = shell == s
        quantiles = np.quantile(late[here], SHARES) if here.any() else np.full(len(SHARES), np.nan)
        charge = events.charge[here].mean() if here.any() else np.nan
        rows.append([here.sum()/len(events), charge, *quantiles])
    return np.array(rows)


def features(events):
    "A table that is not the project's: (N, columns)."
    along, distance, across = geometry(events)
    late, string = residual_time(events), events.dom//60
    rows = []
    for i in range(len(events)):
        hits = slice(events.ptr[i], events.ptr[i+1])
        charge = events.charge[hits]
        if len(charge) < 2:
            rows.append(np.full(31, np.nan))
            continue
        pieces = np.log1p(np.histogram(along[hits], np.arange(-200, 1001, 100), weights=charge)[0])
        rows.append(np.concatenate([
            [len(charge), np.log10(charge.sum()), len(np.unique(string[hits])), (late[hits] < 50).sum()],
            np.quantile(late[hits], [.05, .1, .25, .5, .75, .9]),
            np.quantile(charge, [.5, .75, .9, 1]),
            np.quantile(distance[hits], [.25, .5, .9]),
            np.quantile(across[hits], [.5, .9]),
            pieces[:11], [np.abs(np.diff(pieces)).sum()]]))
    labels = np.column_stack([np.log10(events.labels[:, 0]), np.cos(events.labels[:, 1]), events.labels[:, 5]])
    return np.column_stack([np.array(rows), labels])


def compare(kind, folder, part, seed):
    real = read_events(Path(folder)/f'{kind}s_{part}.h5')
    toy = simulate_events(labels=real.labels, kind=kind, seed=seed, min_hits=8)
    print(json.dumps(dict(kind=kind, part=part, events=len(real), seed=seed,
                          hit_doms=round(float(toy.n_hits.mean()/real.n_hits.mean()), 3),
                          charge=round(float(toy.total_charge.mean()/real.total_charge.mean()), 3))))
    for low, high, true, made in zip(SHELLS, SHELLS[1:], by_distance(real), by_distance(toy)):
        pairs = {name: [round(float(t), 2), round(float(m), 2)]
                 for name, t, m in zip(('hits', 'charge_a_hit', 'late_10', 'late_50', 'late_90'), true, made)}
        print(json.dumps(dict(kind=kind, metres=[low, high], **pairs)))
    for name, tables in (('project', (real, toy)), ('other', (features(real), features(toy)))):
        found = c2st(*tables)
        print(json.dumps(dict(kind=kind, features=name, auc=round(found['auc'], 3), error=round(found['error'], 3))), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='where cascades_test.h5 and tracks_test.h5 are')
    parser.add_argument('--part', default='test')
    parser.add_argument('--seed', type=int, default=5)
    asked = parser.parse_args()
    for kind in ('cascade', 'track'): compare(kind, asked.folder, asked.part, asked.seed)


if __name__ == '__main__': main()
