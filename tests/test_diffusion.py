"Noise processes and samplers against known distributions and against another implementation; guidance; what a trained model can be asked for."
import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from genesis.cli import main
from genesis.config import ExperimentConfig, override
from genesis.core import CheckpointError, ConfigError
from genesis.data.detector import toy_detector
from genesis.data.events import read_events, write_events
from genesis.data.simulator import simulate_events
from genesis.data.transforms import Conditioner, EventTransform
from genesis.diffusion.processes import DDPM, EDM, FlowMatching, NOISE_SCHEDULES, PREDICTS, convert, noise_schedule
from genesis.diffusion.samplers import LEVELS, SAMPLERS, event_noise, n_calls, noise_levels, run_sampler, starting_point, step_noise
from genesis.diffusion.spaces import EventSpace, create_space
from genesis.generate import Generator
from genesis.training.setup import validate_training_config
from genesis.training.trainer import create_trainer

F64 = torch.float64
OBJECTIVES = dict(epsilon='eps', sample='x0', v_prediction='v')   # theirs: ours


# A mixture of two Gaussians, whose denoiser and whose paths are known

WEIGHT, MU, SD = (torch.tensor(v, dtype=F64) for v in ([.3, .7], [-1.5, .8], [.3, .5]))


def mixture(x, sigma):
    s = sigma[:, None].double()
    v = SD**2 + s**2
    w = (WEIGHT.log() - (x - MU)**2/(2*v) - v.log()/2).softmax(1)
    return (w*(MU*s**2 + x*SD**2)/v).sum(1, keepdim=True)


def cdf(x, sigma): return sum(w*ndtr((x - m)/math.hypot(s, sigma)) for w, m, s in zip(WEIGHT.tolist(), MU.tolist(), SD.tolist()))


@pytest.mark.parametrize('sampler, order', [('euler', 1), ('ddim', 1), ('heun', 2), ('dpmpp_2m', 2), ('adaptive', 3)])
def test_order_of_convergence(sampler, order):
    "In one dimension a path keeps its quantile, so the end of every walk is known."
    grid = np.linspace(-6, 6, 400_001)
    start = torch.linspace(-30, 30, 25, dtype=F64)[:, None]
    goal = np.interp(cdf(start[:, 0].numpy(), 20.), cdf(grid, .05), grid)
    calls, errors = [], []
    for k in range(4):
        seen, n = [start], [0]
        def counted(x, sigma): n[0] += 1; return mixture(x, sigma)
        levels, tell = noise_levels(64*2**k, .05, 20.).double(), lambda i, x, d: seen.append(x)
        if sampler == 'adaptive': SAMPLERS[sampler](counted, start, levels, tell, tol=10.**(-3-k)); end = seen[-1]
        else: run_sampler(sampler, counted, start, levels, tell); end = seen[-2]   # the last step, to σ = 0, is not part of the path
        calls.append(n[0]); errors.append(np.sqrt(np.mean((end[:, 0].numpy() - goal)**2)))
    assert -np.polyfit(np.log(calls), np.log(errors), 1)[0] == pytest.approx(order, abs=.35), (calls, errors)


def test_stochastic_samplers_converge_to_the_distribution():
    "Kolmogorov–Smirnov at one in a million; the noise that the last level leaves would show."
    n, g = 40_000, torch.Generator().manual_seed(0)
    noise = lambda step: torch.randn(n, 1, generator=g, dtype=F64)
    for name, eta in (('ddpm', 0), ('ddim', .5)):
        x = starting_point(mixture, noise(-1), torch.tensor(20., dtype=F64))
        made = run_sampler(name, mixture, x, noise_levels(96).double(), noise=noise, eta=eta)[:, 0].numpy()
        assert np.abs(cdf(np.sort(made), 0.) - (np.arange(n) + .5)/n).max() < 2.7/math.sqrt(n), name


@pytest.mark.parametrize('rate', [.01, .05, .5])
def test_rare_hits_come_at_their_rate(rate):
    "Noise around zero instead of around the mean would bring hits of 1 % by 12 % too often."
    def coin(x, sigma): return 2*torch.sigmoid(math.log(rate/(1 - rate)) + 2*x/sigma[:, None]**2) - 1
    even = torch.distributions.Normal(0., 1.).icdf((torch.arange(100_000) + .5)/100_000)[:, None]
    got = (run_sampler('heun', coin, starting_point(coin, even, torch.tensor(20.)), noise_levels(48)) > 0).float().mean().item()
    assert got == pytest.approx(rate, rel=.02)


# Step for step against diffusers

def vp(sigma): return 1/math.hypot(1, sigma)   # the signal of a DDPM at this level


@pytest.mark.parametrize('theirs', OBJECTIVES)
@pytest.mark.parametrize('name', ['ddpm', 'ddim', 'ddim eta', 'dpmpp_2m'])
@pytest.mark.parametrize('schedule', ['linear', 'scaled_linear', 'squaredcos_cap_v2'])
def test_each_step_is_that_of_diffusers(name, theirs, schedule, monkeypatch):
    diffusers = pytest.importorskip('diffusers', reason='diffusers is not installed (extra: oracles)')
    betas = dict(beta_start=1e-4, beta_end=2e-2, beta_schedule=schedule, prediction_type=theirs)
    if name == 'ddpm': oracle = diffusers.DDPMScheduler(clip_sample=False, variance_type='fixed_small', timestep_spacing='leading', **betas)
    elif name == 'dpmpp_2m': oracle = diffusers.DPMSolverMultistepScheduler(solver_order=2, algorithm_type='dpmsolver++', solver_type='midpoint', final_sigmas_type='zero', **betas)
    else: oracle = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing='leading', **betas)
    oracle.set_timesteps(timesteps=list(range(950, -1, -50))) if name == 'dpmpp_2m' else oracle.set_timesteps(20)   # all begin at 950: further up, their float32 loses what an ε means
    bar = oracle.alphas_cumprod.double()
    levels = torch.cat([((1 - bar)/bar).sqrt()[oracle.timesteps], torch.zeros(1, dtype=F64)]) if name != 'dpmpp_2m' else oracle.sigmas.double()
    noise, eta = step_noise(range(50), (1,)), .7 if name == 'ddim eta' else 0.
    ours = []
    start = levels[0]*event_noise(range(50), (1,)).double()
    run_sampler(name.split()[0], mixture, start, levels, lambda i, x, d: ours.append(x), lambda i: noise(i).double(), eta)
    x = start*vp(levels[0])
    for i, t in enumerate(oracle.timesteps):
        s = levels[i].expand(50)
        said = convert(mixture(x/vp(levels[i]), s), x/vp(levels[i]), s, 'x0', OBJECTIVES[theirs])
        more = {}
        if name == 'ddpm': monkeypatch.setattr('diffusers.schedulers.scheduling_ddpm.randn_tensor', lambda *_, **__: noise(i).double())
        if name == 'ddim eta': more = dict(eta=eta, variance_noise=noise(i).double())
        x = oracle.step(said, t, x, **more).prev_sample.double()
        assert (x - ours[i]*vp(levels[i+1])).abs().max() < 1e-5, i


@pytest.mark.parametrize('ours, theirs', dict(linear='linear', quadratic='scaled_linear', cosine='squaredcos_cap_v2', sigmoid='sigmoid').items())
def test_noise_schedules_are_those_of_diffusers(ours, theirs):
    diffusers = pytest.importorskip('diffusers', reason='diffusers is not installed (extra: oracles)')
    bar = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule=theirs).alphas_cumprod.double()
    assert torch.allclose(noise_schedule(ours)[:-1], bar[:-1], rtol=1e-4)   # theirs are float32; the last of the cosine is cut at another place


# Losses and objectives, on one DOM whose posterior is known

RATE, PEAKS, WIDTH = .3, torch.tensor([-1., 1.2]), .25
PROCESSES = dict(edm=EDM(RATE), flow=FlowMatching(RATE), **{k: DDPM(RATE, objective=k) for k in ('eps', 'x0', 'v')}, snr=DDPM(RATE, objective='eps', min_snr_gamma=5.))


def one_dom(n, seed):
    g = torch.Generator().manual_seed(seed)
    hit = torch.rand(n, 1, generator=g) < RATE
    a = PEAKS[torch.randint(0, 2, (n, 1), generator=g)] + WIDTH*torch.randn(n, 1, generator=g)
    return torch.stack([torch.where(hit, 1., -1.), torch.where(hit, a, 0.)], 1), g


def perfect(process, x, sigma):
    "What a perfect network would say: log odds without the mask's own evidence, and the mean given a hit in the words of the objective."
    xa, s2, var = x[:, 1, :, None], sigma[:, None, None]**2, torch.tensor([0., WIDTH**2, WIDTH**2])
    mean = torch.tensor([0., *PEAKS])
    logw = torch.tensor([1 - RATE, RATE/2, RATE/2]).log() - (xa - mean)**2/(2*(var + s2)) - (var + s2).log()/2
    a = ((mean*s2 + xa*var)/(var + s2))[..., 1:]
    given_hit = (logw[..., 1:].softmax(-1)*a).sum(-1)
    return torch.stack([logw[..., 1:].logsumexp(-1) - logw[..., 0] - process.base_logit, convert(given_hit, x[:, 1], sigma, 'x0', process.predicts)], 1)


@pytest.mark.parametrize('name', PROCESSES)
def test_the_loss_is_least_at_the_exact_denoiser(name):
    "There the slope of the expected loss vanishes in every direction; a network that is off by a fifth is told so."
    process, n = PROCESSES[name], 200_000
    x0, g = one_dom(n, 0)
    sigma = torch.empty(n).uniform_(math.log(.1), math.log(5), generator=g).exp()
    noise = torch.randn(x0.shape, generator=g)
    x = x0 + sigma[:, None, None]*noise
    def pulls(off):
        f = (perfect(process, x, sigma)*off).requires_grad_()
        sum(part.sum() for part in process.loss(lambda *_: f, x0, sigma, noise)).backward()
        scale = f.grad.square().mean((0, 2), keepdim=True).sqrt()
        z = []
        for way in (torch.ones_like(x), x.tanh(), f.detach().tanh(), (1/sigma).clamp(max=1)[:, None, None].expand_as(x)):
            v = (f.grad/scale*way)[:, :, 0]
            z.append(v.mean(0)/v.std(0)*math.sqrt(n))
        return torch.stack(z).abs()
    assert pulls(1.).max() < 4.5 and pulls(.8).max(0).values.min() > 8


@pytest.mark.parametrize('a', PREDICTS)
def test_objectives_are_words_for_the_same(a):
    "A network that predicts a, read as one that predicts b, denoises alike."
    x, f, s = *torch.randn(2, 50, 1, dtype=F64), torch.logspace(-1.5, 1.5, 50, dtype=F64)
    for b in PREDICTS:
        (_, skip, out), (_, skip_b, out_b) = ([v[:, None] for v in PREDICTS[k](s)] for k in (a, b))
        there = convert(f, x, s, a, b)
        assert torch.allclose(skip*x + out*f, skip_b*x + out_b*there, atol=1e-9)
        assert torch.allclose(convert(there, x, s, b, a), f, atol=1e-7)


@pytest.mark.parametrize('schedule', NOISE_SCHEDULES)
@pytest.mark.parametrize('T', [2, 20, 1000, 5000])
def test_a_table_of_levels_rises_and_covers_the_event(schedule, T):
    table = DDPM(schedule=schedule, timesteps=T).table
    assert (table.diff() > 0).all() and table.isfinite().all() and table[0] > 0 and table[-1] > 20


# The space

@pytest.fixture(scope='module')
def events(): return simulate_events(120, detector=toy_detector(), seed=1, min_hits=4)


TINY = {'diffusion.space': 'event', 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'device': 'cpu'}
FORMULATIONS = [{'diffusion.formulation': 'edm'}, {'diffusion.formulation': 'flow'}, *({'diffusion.formulation': 'ddpm', 'diffusion.objective': o, 'diffusion.schedule': s} for o, s in (('v', 'cosine'), ('eps', 'linear'), ('x0', 'sigmoid')))]


def space_of(events, size=.5, **keys):
    "A space whose network says something, though nothing was learned."
    torch.manual_seed(0)
    space = create_space(override(ExperimentConfig(), {**TINY, 'diffusion.label_dropout': .3, **keys}), events.detector, EventTransform.fit(events))
    with torch.no_grad():
        for p in space.parameters(): p.add_(size*torch.randn(p.shape)/math.sqrt(max(p.shape[-1:], default=1)))
    return space


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('guidance', [1, 2])
def test_an_event_does_not_know_its_batch(events, sampler, guidance):
    space, labels = space_of(events), torch.tensor(events.labels[:5])
    how = dict(sampler=sampler, steps=6, guidance=guidance, eta=.6 if sampler == 'ddim' else 0)
    whole = space.sample(labels, range(5), **how)
    parts = torch.cat([space.sample(labels[i:j], range(i, j), **how) for i, j in ((0, 1), (1, 4), (4, 5))])
    assert (parts - whole).abs().max() < (1e-2 if sampler == 'adaptive' else 1e-3)   # rounding may lengthen an adaptive step
    assert (whole[1:] - whole[:-1]).abs().amax((1, 2)).min() > .5 and not torch.equal(whole, space.sample(labels, range(1, 6), **how))


@pytest.mark.parametrize('keys', FORMULATIONS, ids=lambda k: '-'.join(k.values()))
@pytest.mark.parametrize('size', [.5, 30])
def test_nothing_is_ever_not_a_number(events, keys, size):
    "With networks that exaggerate wildly, at the ends of every table of noise levels, through every sampler."
    space, labels = space_of(events, size, **keys), torch.tensor(events.labels[:3])
    for sampler in SAMPLERS:
        if sampler == 'adaptive' and size > 1: continue   # it refuses, after many tries
        for levels in LEVELS if 'ddpm' in keys.values() else ('quantiles', 'karras'):
            x = space.sample(labels, range(3), sampler, 3, guidance=3, levels=levels)
            assert x.isfinite().all() and set(x[:, 0, space.conditioner.mask].sign().unique().tolist()) <= {-1., 1.}, (sampler, levels)
    x0 = torch.stack([torch.ones(3, 84), torch.full((3, 84), 4.), torch.full((3, 84), -4.)], 1)
    table = space.process.table if space.process.table is not None else torch.tensor([space.process.sigma_min, 1., space.process.sigma_max])
    for s in (table[0], table[len(table)//2], table[-1]):
        losses, _ = space.loss(dict(x=x0, labels=labels, kind=torch.ones(3, dtype=torch.uint8), weight=torch.ones(3)), dict(sigma=s.repeat(3), noise=torch.randn(x0.shape)))
        assert losses.isfinite().all(), s


class Prior(torch.nn.Module):
    "A model that is right about DOMs whose log odds are a feature of the label."
    calls = 0
    def forward(self, x, t, cond, geometry):
        self.calls += 1
        return torch.cat([cond[:, :1, None].expand(-1, 1, x.shape[2]), torch.zeros_like(x[:, 1:])], 1)


def test_guidance_moves_events_as_its_formula_says(events):
    detector, tf = events.detector, EventTransform.fit(events)
    space = EventSpace(Prior(), EDM(.5), Conditioner(detector, tf), label_dropout=.1)
    labels = torch.tensor(events.labels[:1]).repeat(1500, 1)
    labels[:, 0] = 10**(tf.log_energy[0] - 2.*tf.log_energy[1])   # two standard deviations below the mean: log odds of −2
    with torch.no_grad(): space.model.null[0] = -3.
    for w, logit in ((0, -3.), (1, -2.), (2, -1.), (3.5, .5)):
        space.model.calls = 0
        rate = (space.sample(labels, range(1500), 'heun', 32, guidance=w)[:, 0] > 0).float().mean().item()
        assert rate == pytest.approx(1/(1 + math.exp(-logit)), rel=.03), w
        assert space.model.calls == n_calls('heun', 32, w) == 64*(1 if w == 1 else 2)


def test_hidden_labels_do_not_shine_through(events):
    space = space_of(events)
    labels, other = torch.tensor(events.labels[:8]), torch.tensor(events.labels[8:16])
    x, t, hidden = torch.randn(8, 3, 84), torch.zeros(8), torch.arange(8) % 2 == 0
    a, b = (space.network(l, hidden=hidden)(x, t) for l in (labels, other))
    assert torch.equal(a[hidden], b[hidden]) and ((a - b).abs().amax((1, 2)) > 1e-4)[~hidden].all()
    assert torch.pdist(space.null_geometry[space.conditioner.mask]).min() > .01   # but each DOM is somebody


def test_which_labels_are_hidden_depends_on_the_seed_alone(events):
    space, plain = space_of(events), space_of(events, **{'diffusion.label_dropout': 0.})
    draw = lambda s, n=4000: s.draw(n, torch.Generator().manual_seed(5))
    assert torch.equal(draw(space)['hidden'], draw(space)['hidden']) and draw(space)['hidden'].float().mean() == pytest.approx(.3, abs=.03)
    assert torch.equal(draw(space)['noise'], draw(plain)['noise']) and 'hidden' not in draw(plain) and 'hidden' not in draw(space.eval())


# Trained models

def config(folder, events, name, **keys):
    if not (folder/'toy.h5').exists(): write_events(events, folder/'toy.h5')
    return override(ExperimentConfig(), {**TINY, 'experiment_name': name, 'data.h5_path': folder/'toy.h5', 'data.batch_size': 16, 'training.num_epochs': 2, 'training.learning_rate': 5e-3,
        'training.use_tensorboard': False, **{f'training.{k}_dir': folder/k for k in ('output', 'checkpoint', 'log')}, **keys})


@pytest.fixture(scope='module')
def trained(tmp_path_factory, events):
    "A model that knows hidden labels, of a DDPM, and a plain one."
    folder = tmp_path_factory.mktemp('trained')
    for name, keys in dict(hidden={'diffusion.label_dropout': .4, 'diffusion.formulation': 'ddpm'}, plain={}).items(): create_trainer(config(folder, events, name, **keys), show=False).train()
    return folder


def test_the_null_label_is_learned_averaged_and_saved(trained, events):
    gen = Generator.from_checkpoint(trained/'checkpoint'/'hidden')
    assert gen.space.model.null.abs().max() > 1e-4   # it began at 0, and what is loaded is the average
    made = gen.sample(events[:4], seed=1, guidance=2, steps=5, sampler='ddim', eta=.5, levels='timesteps')
    assert {k: made.meta[k] for k in ('sampler', 'steps', 'guidance', 'eta', 'levels', 'network_calls')} == dict(sampler='ddim', steps=5, guidance=2, eta=.5, levels='timesteps', network_calls=12)
    assert gen.sample(events[:4], seed=1, steps=5).meta['network_calls'] == 6
    assert not np.array_equal(made.dense(), gen.sample(events[:4], seed=1, steps=5, sampler='ddim', eta=.5, levels='timesteps').dense())
    assert 'null' not in dict(Generator.from_checkpoint(trained/'checkpoint'/'plain').space.model.named_parameters())


@pytest.mark.parametrize('key, value', [('diffusion.label_dropout', .1), ('diffusion.objective', 'eps'), ('diffusion.schedule', 'linear')])
def test_a_resume_does_not_change_what_the_network_says(trained, events, key, value):
    base = {'diffusion.label_dropout': .4, 'diffusion.formulation': 'ddpm', 'training.resume_from_checkpoint': 'auto'}
    with pytest.raises(CheckpointError, match=f'{key}={value}'): create_trainer(config(trained, events, 'hidden', **{**base, key: value}), show=False)


@pytest.mark.parametrize('keys', FORMULATIONS[1:3], ids=lambda k: '-'.join(k.values()))
def test_hidden_labels_survive_a_stop_and_a_cut_batch(tmp_path, events, keys):
    keys = {**keys, 'diffusion.label_dropout': .4, 'training.ema_decay': .9}
    whole = create_trainer(config(tmp_path, events, 'whole', **keys), show=False)
    assert all(whole.verify_resume(at=5, steps=8).values())
    whole.train()
    parts = create_trainer(config(tmp_path, events, 'parts', **keys, **{'data.batch_size': 4, 'training.gradient_accumulation_steps': 4}), show=False)
    parts.train()
    assert np.allclose(parts.history['train_loss'], whole.history['train_loss'], rtol=1e-4)
    assert all(torch.allclose(p, q, atol=2e-4) for p, q in zip(parts.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize('model, flags, words', [
    ('plain', '--guidance 2', 'diffusion.label_dropout=0.1'), ('hidden', '--guidance -1', 'must not be negative'), ('hidden', '--sampler hein', 'did you mean: heun'), ('hidden', '--steps 0', 'at least 1 step'),
    ('hidden', '--levels karas', 'did you mean: karras'), ('plain', '--levels timesteps', 'need the table of a DDPM'), ('hidden', '--eta .5', 'only the sampler ddim'), ('hidden', '--sampler ddim --eta 2', 'between 0 and 1')])
def test_what_cannot_be_asked_for(trained, capsys, model, flags, words):
    out = trained/'refused.h5'
    assert main(f'sample --checkpoint {trained}/checkpoint/{model} --num-events 2 --device cpu --output {out} {flags}'.split()) == 2
    assert words in capsys.readouterr().err and not out.exists() and not out.with_name('refused.h5.parts').exists()


def test_the_command_line_says_how_events_were_made(trained, capsys):
    out = trained/'asked.h5'
    assert main(f'sample --checkpoint {trained}/checkpoint/hidden --num-events 3 --device cpu --output {out} --guidance 1.5 --sampler heun --steps 4 --levels karras'.split()) == 0
    meta = read_events(out).meta
    assert (meta['sampler'], meta['steps'], meta['guidance'], meta['levels'], meta['network_calls']) == ('heun', 4, 1.5, 'karras', 16)


@pytest.mark.parametrize('key, value, words', [('formulation', 'edn', 'did you mean: edm'), ('schedule', 'cosin', 'cosine?'), ('objective', 'epsilon', 'eps?'), ('sampler', 'dpmp_2m', 'did you mean: dpmpp_2m'), ('levels', 'karas', 'karras?'),
    ('guidance', 2, 'label_dropout'), ('label_dropout', 1, r'[0, 1)'), ('eta', .5, 'of the sampler ddim'), ('sampler_steps', 0, 'at least 1'), ('timesteps', 1, 'at least 2'), ('levels', 'timesteps', 'those of a DDPM')])
def test_a_config_that_cannot_be_sampled_is_refused_before_the_training(tmp_path, events, key, value, words):
    problems = validate_training_config(config(tmp_path, events, 'bad', **{f'diffusion.{key}': value}))
    assert len(problems) == 1 and words in problems[0]


def test_bad_numbers():
    with pytest.raises(ConfigError, match='0 < beta_start'): noise_schedule(beta_start=.1)
    with pytest.raises(ConfigError, match='at most 1000 steps'): noise_levels(1001, kind='timesteps', table=DDPM().table)
    with pytest.raises(ConfigError, match='needs noise'): run_sampler('ddpm', mixture, torch.zeros(1, 1), noise_levels(3))
