"Students: they walk in few steps where their teacher walks in many, need nobody once they are trained, and take no teacher that is not of their make."
import shutil

import numpy as np
import pytest
import torch

from genesis.config import ExperimentConfig, override
from genesis.core import CheckpointError, ConfigError
from genesis.data.detector import toy_detector
from genesis.data.events import write_events
from genesis.data.simulator import simulate_events
from genesis.diffusion.samplers import event_noise, n_calls, sampling
from genesis.diffusion.spaces import Straight, create_space
from genesis.generate import Generator
from genesis.training.setup import build_model, read_model, teach, validate_training_config
from genesis.training.trainer import create_trainer

SMALL = {'diffusion.light_width': 24, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'data.batch_size': 16, 'training.num_epochs': 2, 'training.learning_rate': 2e-3, 'training.panel_minutes': 0}


@pytest.fixture(scope='module', params=['event', 'latent'])
def taught(request, tmp_path_factory):
    "The config of a student, and its teacher, trained a little with hidden labels and guidance."
    d = tmp_path_factory.mktemp(request.param)
    write_events(simulate_events(120, detector=toy_detector(), kind='mixed', seed=1, min_hits=4), d/'e.h5')
    cfg = override(ExperimentConfig(), SMALL | {'diffusion.space': request.param, 'data.h5_path': d/'e.h5', 'training.output_dir': d, 'training.checkpoint_dir': d/'checkpoints', 'training.log_dir': d/'logs', 'experiment_name': 'teacher'})
    create_trainer(override(cfg, {'diffusion.label_dropout': .2, 'diffusion.guidance': 1.5, 'diffusion.sampler_steps': 6}), show=False).train()
    return override(cfg, {'diffusion.teacher': d/'checkpoints/teacher', 'diffusion.sampler_steps': 2, 'experiment_name': 'student'})


def network(space): return space.model['prior'] if 'prior' in dict(space.model.named_children()) else space.model
def batch_of(trainer): return trainer.train_loader.next(0)


def test_training_resumes_to_the_bit(taught):
    parts = create_trainer(taught, show=False).verify_resume(at=5, steps=9)
    assert all(parts.values()), parts


def test_a_student_needs_no_teacher(taught, tmp_path):
    trainer = create_trainer(taught, show=False); before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train(); folder = f'{taught.training.checkpoint_dir}/student'
    assert any(not torch.equal(v, trainer.model.state_dict()[k]) for k, v in before.items())
    assert set(trainer.diffusion.state_dict()) == set(create_space(taught, trainer.events.detector, trainer.transform).state_dict())
    shutil.copytree(folder, tmp_path/'alone'); saved = read_model(tmp_path/'alone')
    saved['config']['diffusion']['teacher'] = '/nowhere' # what is written there is not opened
    assert isinstance(build_model(saved)[0], Straight) and not any(k.endswith('null') for k in saved['ema'])
    g = Generator.from_checkpoint(tmp_path/'alone')
    made = g.sample(n=4, kind='track', seed=3)
    assert made.meta['network_calls'] == 2 and len(made) == 4
    with pytest.raises(ConfigError, match='without its teacher'): g.space.loss({'labels': torch.zeros(1, 6)})
    assert saved['card']['teacher'] == trainer.teacher


def test_only_what_walks_is_trained(taught):
    trainer = create_trainer(taught, show=False)
    still = {k: v.clone() for k, v in trainer.model.state_dict().items() if k.startswith(('decoder', 'encoder'))}
    ours = {id(p) for p in trainer.model.parameters()}
    assert {id(p) for g in trainer.optimizer.param_groups for p in g['params']} <= ours
    for _ in range(3): trainer.train_step()
    assert all(torch.equal(v, trainer.model.state_dict()[k]) for k, v in still.items()) and bool(still) == (taught.diffusion.space == 'latent')


def test_one_step_is_one_call(taught):
    space = build_model(read_model(taught.diffusion.teacher))[0].eval()
    student = create_space(taught, toy_detector(), build_model(read_model(taught.diffusion.teacher))[1]); teach(student, read_model(taught.diffusion.teacher)); student.eval()
    labels = torch.tensor(simulate_events(3, detector=toy_detector(), seed=5).labels); calls = []
    network(student).register_forward_hook(lambda *_: calls.append('student')); network(space).register_forward_hook(lambda *_: calls.append('teacher'))
    for sampler in ('euler', 'dpmpp_2m', 'heun', 'ddim'):
        for steps in (1, 2, 3, 4):
            calls.clear(); x = student.sample(labels, range(3), sampler=sampler, steps=steps)
            assert calls == ['student']*n_calls(sampler, steps, straight=True) and x.isfinite().all()
            assert torch.allclose(x[1:2], student.sample(labels[1:2], [1], sampler=sampler, steps=steps), atol=1e-3)
    assert n_calls('euler', 1, straight=True) == 1
    for wrong, says in ((dict(guidance=2.), 'built in'), (dict(sampler='ddpm'), 'fresh noise'), (dict(sampler='ddim', eta=.5), 'fresh noise'), (dict(levels='timesteps'), 'timesteps'), (dict(steps=0), 'at least 1'), (dict(sampler='eular'), 'euler')):
        with pytest.raises(ConfigError, match=says): student.sample(labels, range(3), **wrong)


def test_lines_go_from_noise_to_where_the_teacher_arrives(taught):
    "The student learns from the very noise it will begin with, and from what its teacher, as configured, makes of the seed."
    trainer = create_trainer(taught, show=False); space, batch = trainer.diffusion, batch_of(trainer); n = len(batch['labels'])
    teacher, _, _, config = build_model(read_model(taught.diffusion.teacher)); teacher.eval()
    dice = space.draw(n, torch.Generator().manual_seed(0)); seen = {}
    follow = space.follow
    space.follow = lambda *a: seen.update(zip(('x0', 'sigma', 'noise'), a[1:])) or follow(*a)
    space.loss(batch, dice)
    ends = getattr(teacher, 'source', teacher.sample)(batch['labels'], dice['seeds'].tolist(), kind=batch['kind'], **sampling(config.diffusion))
    assert torch.equal(ends, seen['x0']) and sampling(config.diffusion)['guidance'] == 1.5
    top = space.process.sigma_max
    assert torch.allclose(seen['x0'] + top*seen['noise'], top*event_noise(dice['seeds'].tolist(), space.shape), atol=1e-4)
    many = space.draw(4000, torch.Generator().manual_seed(1))['sigma']
    assert abs((many == top).float().mean() - .5) < .03 and (many < top).any()


def test_a_batch_may_be_cut(taught):
    trainer = create_trainer(taught, show=False); space, batch = trainer.diffusion, batch_of(trainer); n = len(batch['labels'])
    dice = space.draw(n, torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = [space.loss(*({k: v[i:i+4] for k, v in d.items()} for d in (batch, dice)))[0] for i in range(0, n, 4)]
        assert torch.allclose(torch.cat(parts), space.loss(batch, dice)[0], atol=1e-4, rtol=1e-3)


def test_a_student_comes_closer(taught):
    "One call of the student is nearer to its teacher's events than one call of the teacher itself."
    trainer = create_trainer(override(taught, {'training.num_epochs': 40, 'experiment_name': 'longer', 'training.scheduler': 'cosine'}), show=False)
    batch = trainer.val_loader.batch(np.arange(len(trainer.val_loader.index))); seeds = range(len(batch['labels']))
    ends = trainer.diffusion.teach(batch['labels'], seeds, batch['kind'])
    walk = getattr(trainer.diffusion, 'source', trainer.diffusion.sample)
    def wrong(): return ((walk(batch['labels'], seeds, kind=batch['kind']) - ends)**2).mean().item()
    before = wrong(); trainer.train()
    assert wrong() < .6*before


def test_a_teacher_must_fit(taught, tmp_path):
    def refused(changes, error=ConfigError): 
        with pytest.raises(error) as e: create_trainer(override(taught, changes), show=False)
        return str(e.value)
    assert 'diffusion.space=' in refused({'diffusion.space': 'latent' if taught.diffusion.space == 'event' else 'event'})
    assert 'model.hidden=16, of the teacher 32' in refused({'model.hidden': 16}) and 'diffusion.sigma_max=30' in refused({'diffusion.sigma_max': 30.})
    assert 'no checkpoint at' in refused({'diffusion.teacher': tmp_path/'nothing'})
    (tmp_path/'folder').mkdir(); assert 'is not a checkpoint' in refused({'diffusion.teacher': tmp_path/'folder'})
    assert 'guidance' in refused({'diffusion.label_dropout': .1}) and 'fresh noise' in refused({'diffusion.sampler': 'ddpm'}) and 'objective=v' in refused({'diffusion.min_snr_gamma': 5.})
    moved = toy_detector(); moved = type(moved)('moved', moved.xyz + 1., moved.string, moved.dom, moved.rde)
    write_events(simulate_events(40, detector=moved, kind='mixed', seed=1, min_hits=4), tmp_path/'moved.h5')
    assert 'another detector' in refused({'data.h5_path': tmp_path/'moved.h5'}, CheckpointError)
    assert validate_training_config(taught) == []


def test_a_run_keeps_its_teacher(taught, tmp_path):
    run = override(taught, {'experiment_name': 'kept', 'training.num_epochs': 1}); create_trainer(run, show=False).train()
    again = override(run, {'training.resume_from_checkpoint': 'auto', 'training.num_epochs': 2})
    shutil.copytree(taught.diffusion.teacher, tmp_path/'teacher')
    create_trainer(override(again, {'diffusion.teacher': tmp_path/'teacher'}), show=False) # the same one elsewhere
    for other in (f'{taught.training.checkpoint_dir}/kept', None):
        with pytest.raises(CheckpointError, match='another teacher'): create_trainer(override(again, {'diffusion.teacher': other}), show=False)


def test_a_teacher_with_fresh_noise_is_refused(taught):
    saved = read_model(taught.diffusion.teacher); saved['config']['diffusion']['sampler'] = 'ddpm'
    student = create_space(taught, toy_detector(), build_model(saved)[1])
    with pytest.raises(ConfigError, match='no walk to make straight'): teach(student, saved)


def test_an_incident_of_a_student_is_replayed(taught, tmp_path):
    from genesis.training.guards import replay_incident
    trainer = create_trainer(override(taught, {'experiment_name': 'looked-at', 'training.use_amp': False}), show=False); trainer.train_step()
    folder = trainer.incident(); again = replay_incident(folder)
    assert again['losses'] == pytest.approx(again['noted']['losses'], rel=1e-4) and again['grad_norm'] > 0
