"""Numbers of other packages, where they define the same thing: jetnet for distances between samples, nt-summary-stats for what a sensor has seen.

Of jetnet, Wasserstein and Fréchet distance are the same up to how samples are drawn, and its estimator of the kernel distance with a kernel of our degree. Not compared is what is defined otherwise: `kpd` itself (degree 4 and
features over their maximum; here 3, and in units of their spread) and `cov_mmd` (the share of jets that are the nearest of another, by the energy mover's distance; here the share of true events with a generated one inside a ball of k neighbours).
Of nt-summary-stats, charge and first hit of a sensor are those of a hit, and its quantiles of time those of an event where its hits stand for pulses. Charge within a time of the first pulse, weighted mean and width of the times and skewness have no
partner here."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.linalg import sqrtm

from genesis.data.detector import Z_SURFACE, match_doms
from genesis.data.photons import from_prometheus
from genesis.data.pulses import merge_pulses
from genesis.data.simulator import simulate_events
from genesis.evaluation.features import event_features
from genesis.evaluation.metrics import _mmd, fpd, frechet, w1


def module(name, **names):
    m = ModuleType(name)
    m.__dict__.update(names)
    return m


@pytest.fixture
def jetnet(monkeypatch):
    "jetnet's metrics without what they need of jets alone: energyflow, its data sets, numba's compiler. So `pip install --no-deps jetnet` is enough."
    spec = importlib.util.find_spec('jetnet')
    if spec is None: pytest.skip('jetnet is not installed (extra: oracles)')
    plain = lambda *args, **_: args[0] if args else plain
    for m in (module('energyflow'), module('energyflow.emd', emds=None), module('numba', njit=plain, prange=range, set_num_threads=None),
              module('jetnet', utils=None), module('jetnet.datasets', JetNet=None)): monkeypatch.setitem(sys.modules, m.__name__, m)
    spec = importlib.util.spec_from_file_location('gen_metrics', Path(spec.origin).parent/'evaluation'/'gen_metrics.py')
    metrics = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, metrics)  # it looks for itself there
    spec.loader.exec_module(metrics)
    monkeypatch.setattr(metrics, 'linalg', module('linalg', sqrtm=lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), None)))  # SciPy 1.18 has no `disp`
    return metrics


@pytest.fixture
def ntss(): return pytest.importorskip('nt_summary_stats', reason='nt-summary-stats is not installed (extra: oracles)')


def correlated(n, seed, shift=0., width=1., d=6):
    "Points of a Gaussian whose columns have different widths and are correlated."
    A = np.tril(np.random.default_rng(7).normal(size=(d, d))) + 2*np.eye(d)
    return shift + width*np.random.default_rng(seed).normal(size=(n, d))@A.T, A


# ---- jetnet

class InOrder:
    "In place of jetnet's generator, which draws with replacement: every row once."
    def choice(self, n, size): return np.arange(size)


@pytest.mark.filterwarnings('ignore:Recommended number')
@pytest.mark.parametrize('n, m', [(400, 400), (400, 250)])
def test_w1_is_that_of_jetnet(jetnet, monkeypatch, n, m):
    monkeypatch.setattr(jetnet, 'rng', InOrder())
    x, y = (np.random.default_rng(s).gamma(2, 1+s, (k, 1, 3)) for s, k in ((0, n), (1, m)))
    size = min(n, m)
    mean, _ = jetnet.w1p(x, y, num_eval_samples=size, num_batches=1)
    assert mean.min() > .5 and [w1(x[:size, 0, j], y[:size, 0, j]) for j in range(3)] == pytest.approx(mean.tolist(), rel=1e-12)


def test_the_frechet_distance_of_two_samples_is_that_of_jetnet(jetnet):
    (x, _), (y, _) = correlated(900, 0), correlated(700, 1, .3, 1.2)
    theirs = jetnet._calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert theirs > 1 and frechet(x, y) == pytest.approx(theirs, rel=1e-8)


@pytest.mark.filterwarnings('ignore:Recommended number')
@pytest.mark.parametrize('shift, width', [(0., 1.3), (.5, 1.), (.4, 1.1)])
def test_the_frechet_distance_without_end_is_that_of_jetnet(jetnet, shift, width):
    n = 20_000
    (x, A), (y, _) = correlated(n, 0), correlated(n, 1, shift, width)
    (ours, error), (theirs, its) = fpd(x, y), jetnet.fpd(x, y, min_samples=n//8, max_samples=n, normalise=False)
    exact = len(A)*shift**2 + (width-1)**2*np.trace(A@A.T)
    assert abs(ours-theirs) < np.hypot(error, its) and abs(ours-exact) < 3*error < .3*exact, (ours, error, theirs, its, exact)


def test_the_kernel_distance_is_jetnets_estimator_at_our_degree(jetnet):
    (x, _), (y, _), (z, _) = correlated(800, 0), correlated(800, 1, .5), correlated(800, 2)
    for v in (y, z):
        theirs = jetnet._mmd_poly_quadratic_unbiased(x, v, degree=3)
        k = jetnet._poly_kernel_pairwise(x, v, 3)  # they let partners meet, we do not
        assert _mmd(x, v) == pytest.approx(theirs + 2*(k.mean() - k[~np.eye(len(k), dtype=bool)].mean()), rel=1e-9)
    assert _mmd(x, y) > 10*abs(_mmd(x, z))


# ---- nt-summary-stats

def pulses(n_events=6, n_doms=40, per_dom=4, seed=0):
    "event, DOM, charge, time of pulses, in no order."
    rng = np.random.default_rng(seed)
    n = n_events*n_doms*per_dom//2
    return rng.integers(0, n_events, n), rng.integers(0, n_doms, n), rng.gamma(2, .6, n), rng.uniform(-200, 4000, n)


@pytest.mark.parametrize('mode', ['minimal', 'standard', 'extended'])
def test_merged_pulses_have_the_charge_and_first_time_of_their_sensor(ntss, mode):
    event, dom, charge, time = pulses()
    ptr, hit, q, t = merge_pulses(event, dom, charge, time, 6, 40)
    first = dict(minimal=1, standard=3, extended=3)[mode]
    for i, h in enumerate(hit):
        mine = (event == np.searchsorted(ptr, i, 'right')-1) & (dom == h)
        stats = ntss.compute_summary_stats(time[mine], charge[mine], mode)
        assert (q[i], t[i]) == pytest.approx((stats[0], stats[first]), rel=1e-12)
    assert len(hit) == len(np.unique(event*40 + dom)) and ptr[-1] == len(hit) < len(event)


def test_photons_become_the_hits_that_the_sensors_saw(ntss, tmp_path):
    pa, pq = (pytest.importorskip(m, reason='pyarrow is not installed (extra: formats)') for m in ('pyarrow', 'pyarrow.parquet'))
    ev, rng = simulate_events(5, seed=3, energy=(1e3, 1e4), min_hits=10), np.random.default_rng(3)
    rows = []
    for e in ev:  # some photons a hit, later ones too, in no order
        i = rng.permutation(np.repeat(np.arange(len(e.dom)), rng.integers(1, 5, len(e.dom))))
        xyz = e.detector.xyz[e.dom[i]] - [0, 0, Z_SURFACE]
        rows.append(dict(zip(('sensor_pos_x', 'sensor_pos_y', 'sensor_pos_z'), xyz.T)) | dict(string_id=e.detector.string[e.dom[i]], sensor_id=e.detector.dom[e.dom[i]], t=e.time[i].astype(float) + rng.exponential(50, len(i))))
    truth = [{f'initial_state_{k}': v for k, v in zip(('energy', 'zenith', 'azimuth', 'x', 'y', 'z'), y)} for y in (ev.labels - [0, 0, 0, 0, 0, Z_SURFACE]).tolist()]
    pq.write_table(pa.table(dict(mc_truth=truth, photons=[{k: v.tolist() for k, v in r.items()} for r in rows])), tmp_path/'photons.parquet')
    got = from_prometheus(tmp_path/'photons.parquet')
    for e, row in zip(got, rows):
        where, stats = ntss.process_event(row)  # positions, in an order of its own
        dom = match_doms(where + [0, 0, Z_SURFACE], e.detector)
        order = dom.argsort()
        assert np.array_equal(dom[order], e.dom) and np.array_equal(stats[order, 0], e.charge) and stats[order, 3] == pytest.approx(e.time, rel=1e-6)


@pytest.mark.parametrize('kind', ['cascade', 'track'])
def test_times_of_shares_of_the_charge_are_those_of_one_sensor_that_saw_it_all(ntss, kind):
    ev = simulate_events(60, seed=4, kind=kind, energy=(200, 1e5), min_hits=1)
    f = event_features(ev)
    for i, e in enumerate(ev):
        s = ntss.compute_summary_stats(e.time.astype(float), e.charge.astype(float), 'extended')
        theirs = dict(t_first=s[3], t_10=s[10], t_median=s[6], t_90=s[13], t_span=s[4]-s[3], log_charge=np.log10(1+s[0]), n_dom=s[21], qmax_share=s[22])
        assert {k: f[k][i] for k in theirs} == pytest.approx(theirs, rel=1e-6)
    assert np.ptp(ev.n_hits) > 20
