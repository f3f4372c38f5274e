"Training on: what a run takes from its ancestor, what it refuses, what stands still, and that a resume knows where it came from."
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from genesis.cli import main
from genesis.config import ExperimentConfig, given, load_config, override, save_config
from genesis.core import CheckpointError, ConfigError, DataError
from genesis.data.detector import Detector, toy_detector
from genesis.data.events import KINDS, read_events, write_events
from genesis.data.simulator import simulate_events
from genesis.data.transforms import EventTransform
from genesis.generate import Generator, export_model
from genesis.training.checkpointing import commit_folder, to_files
from genesis.training.guards import PhysicsLook, replay_incident
from genesis.training.setup import START_ON, build_model, model_words, read_model, start_on, start_on_recipe, validate_training_config
from genesis.training.trainer import create_trainer

NETWORK = {'diffusion.light_width': 24, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8}
QUICK = {'training.panel_minutes': 0, 'training.use_tensorboard': False, 'training.ema_snapshots': 0}


def folders(d): return {f'training.{k}_dir': d/k for k in ('output', 'checkpoint', 'log')}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with an ancestor in either space, and new events of brighter light."
    d = tmp_path_factory.mktemp('home')
    write_events(simulate_events(120, detector=toy_detector(), kind='mixed', seed=1, min_hits=4), d/'old.h5')
    new = simulate_events(60, detector=toy_detector(), kind='track', seed=2, min_hits=4, energy=(2e3, 5e5))
    write_events(replace(new, charge=new.charge*100), d/'new.h5')
    for space in ('latent', 'event'):
        more = {'diffusion.space': space, 'data.h5_path': d/'old.h5', 'experiment_name': space, 'training.num_epochs': 1, 'data.batch_size': 32, 'training.learning_rate': 2e-3}
        create_trainer(override(ExperimentConfig(), NETWORK | QUICK | folders(d) | more), show=False).train()
    return d


def on(home, space='latent', **more):
    "The config of a run that starts from an ancestor; __ stands for the dot."
    given = {'training.start_from': home/'checkpoint'/space, 'data.h5_path': home/'new.h5', 'experiment_name': f'on-{space}'}
    return override(ExperimentConfig(), QUICK | folders(home) | given | {k.replace('__', '.'): v for k, v in more.items()})


def weights(trainer): return {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.mark.parametrize('space', ('latent', 'event'))
def test_a_run_has_the_weights_and_the_units_of_its_ancestor(home, space):
    trainer, saved = create_trainer(on(home, space), show=False), read_model(home/'checkpoint'/space)
    assert all(torch.equal(v, saved['ema'][k]) for k, v in weights(trainer).items())
    old, new = EventTransform.from_dict(saved['card']['transform']), trainer.transform
    for k in ('log_charge', 'delay', 'log_energy'): assert getattr(new, k)[:2] == getattr(old, k)[:2]
    brightest = np.log(trainer.events[np.sort(trainer.train_loader.index)].charge.max())
    assert new.log_charge[3] == pytest.approx(brightest) and new.log_charge[3] > old.log_charge[3] # room for brighter hits
    assert trainer.config.model.hidden == 32 and trainer.config.diffusion.space == space # taken over, not asked for


def test_what_was_not_set_comes_from_the_recipe(home):
    filled = start_on(on(home))
    recipe = start_on_recipe(60)
    assert filled.data.batch_size == recipe['data.batch_size'] and filled.training.num_epochs == recipe['training.num_epochs']
    assert start_on(filled) == filled and given(filled) > given(on(home))
    mine = start_on(on(home, training__num_epochs=3, training__learning_rate=2e-4, data__val_ratio=.1)) # two of these are the defaults
    assert (mine.training.num_epochs, mine.training.learning_rate) == (3, 2e-4)
    assert (mine.data.train_ratio, mine.data.test_ratio) == (.8, .1) # who sets one share has set all
    assert start_on(on(home, training__scheduler='onecycle')).training.warmup_ratio == 0
    passes = [start_on_recipe(n)['training.num_epochs'] for n in (20, *START_ON, 10**6)]
    assert passes == sorted(passes, reverse=True)


def test_a_short_config_stays_short_in_a_file(home, tmp_path):
    cfg = on(home, training__learning_rate=2e-4)
    again = load_config(save_config(cfg, tmp_path/'short.yaml'))
    assert again == cfg and given(again) == given(cfg)
    assert start_on(load_config(save_config(start_on(cfg), tmp_path/'long.yaml'))) == start_on(cfg)


def test_a_network_of_another_make_is_refused_with_both_values(home):
    with pytest.raises(ConfigError, match='model.hidden=512, of the ancestor 32'): create_trainer(on(home, model__hidden=512), show=False) # 512 is the default, but somebody asked for it
    with pytest.raises(ConfigError, match='diffusion.space=event, of the ancestor latent'): create_trainer(on(home, diffusion__space='event'), show=False)
    assert create_trainer(on(home, model__architecture='DiT', model__dropout=.1, diffusion__sampler_steps=4), show=False).config.diffusion.sampler_steps == 4


@pytest.mark.parametrize('space', ('latent', 'event'))
def test_training_on_resumes_to_the_bit(home, space):
    rates = {'prior': .5, 'decoder.time': 2.} if space == 'latent' else {'blocks': .5}
    frozen = 'encoder' if space == 'latent' else next(k for k, _ in build_model(read_model(home/'checkpoint'/space))[0].model.named_parameters())
    cfg = on(home, space, training__num_epochs=3, training__part_rates=rates, training__frozen=frozen, data__val_ratio=.2, data__train_ratio=.8, data__test_ratio=0,
             training__early_stopping=True, training__early_stopping_on='physics', training__physics_events=12, diffusion__sampler_steps=2)
    parts = create_trainer(cfg, show=False).verify_resume(at=3, steps=6)
    assert all(parts.values()), parts


def test_a_resumed_run_remembers_its_ancestor(home, tmp_path):
    cfg = override(on(home, training__num_epochs=2), folders(tmp_path))
    trainer = create_trainer(cfg, show=False); trainer.train(); ended = weights(trainer)
    told = trainer.card()['ancestor']
    assert told['step'] == read_model(home/'checkpoint'/'latent')['step'] and told['data']['events'] == 120
    resume = lambda **more: create_trainer(override(cfg, {'training.resume_from_checkpoint': 'auto'} | {k.replace('__', '.'): v for k, v in more.items()}), show=False)
    again = resume(training__num_epochs=3)
    assert again.step == trainer.step and all(torch.equal(v, ended[k]) for k, v in weights(again).items()) and again.card()['ancestor'] == told
    with pytest.raises(CheckpointError, match='another ancestor(.|\n)*got: icecube86(.|\n)*expected: .*latent'): resume(training__start_from='icecube86')
    other = commit_folder(tmp_path/'other', to_files({k: v for k, v in moved(read_model(home/'checkpoint'/'latent')).items()}), dict(step=9, epoch=0))
    with pytest.raises(CheckpointError, match='another ancestor(.|\n)*other, step 9'): resume(training__start_from=other)
    with pytest.raises(CheckpointError, match='other settings(.|\n)*frozen'): resume(training__frozen='prior')
    whole = load_config(trainer.checkpoints.get_latest_checkpoint()/'config.yaml')
    alone = create_trainer(override(whole, {'training.start_from': None, 'training.resume_from_checkpoint': 'auto'}), show=False) # the ancestor may be gone
    assert alone.card()['ancestor'] == told
    with pytest.raises(CheckpointError, match='it started from nothing'):
        create_trainer(override(on(home, experiment_name='latent', data__h5_path=home/'old.h5', seed=42, data__batch_size=32, training__resume_from_checkpoint='auto', data__train_ratio=.8, data__val_ratio=.1, data__test_ratio=.1), {}), show=False)


def moved(saved):
    "A model with other weights."
    return {k: saved[k] for k in ('config', 'card', 'detector')} | dict(ema={k: v + 1 if v.is_floating_point() else v for k, v in saved['ema'].items()}, step=9)


def test_the_ancestor_is_told_from_then_on(home, tmp_path, capsys):
    cfg = override(on(home, training__num_epochs=1), folders(tmp_path))
    trainer = create_trainer(cfg, show=False); trainer.train()
    model = export_model(tmp_path/'checkpoint'/'on-latent', tmp_path/'model')
    g = Generator.from_checkpoint(model)
    made = g.sample(n=2, steps=2)
    assert 'latent' in made.meta['ancestor'] and 'from' in repr(g) and g.kinds == ['track']
    assert main(['inspect', str(model)]) == 0 and f"step {trainer.card()['ancestor']['step']}" in capsys.readouterr().out
    third = create_trainer(override(cfg, {'training.start_from': model, 'experiment_name': 'third'}), show=False) # an exported model can be trained on too
    assert third.card()['ancestor']['ancestor'] == trainer.card()['ancestor']
    write_events(made, tmp_path/'made.h5')
    assert main(['inspect', str(tmp_path/'made.h5')]) == 0 and main(['show', str(tmp_path/'made.h5'), '--no-open', '--out', str(tmp_path/'made.html')]) == 0
    assert 'ancestor: none' in model_words('icecube86')


def test_frozen_parts_stand_still(home):
    trainer = create_trainer(on(home, training__frozen=['encoder', 'decoder.time'], training__part_rates='prior: .5'), show=False); before = weights(trainer)
    for _ in range(3): trainer.train_step()
    still = {k for k, v in weights(trainer).items() if torch.equal(v, before[k])}
    frozen = {k for k in before if k.startswith(('encoder.', 'decoder.time.'))}
    assert frozen and frozen <= still and any(k.startswith('prior.') for k in before.keys() - still) and any(k.startswith('decoder.') for k in before.keys() - still)
    assert all(torch.equal(a, b) for (k, b), a in zip(trainer.model.named_parameters(), trainer.ema.mean) if k in frozen)
    found = replay_incident(trainer.incident())
    assert found['grad_norm'] == pytest.approx(found['noted']['grad_norm'], rel=1e-4)


def test_rates_follow_the_schedule_in_proportion(home):
    rates = {'prior': .5, 'decoder': .25, 'decoder.time': 2.}
    trainer = create_trainer(on(home, training__part_rates=rates, training__warmup_ratio=.1, training__scheduler='cosine'), show=False)
    names = {id(p): k for k, p in trainer.model.named_parameters() if p.requires_grad}
    for _ in range(4):
        usual = trainer._rate
        for group in trainer.optimizer.param_groups:
            for p in group['params']:
                k = names[id(p)]
                factor = 2. if k.startswith('decoder.time.') else .25 if k.startswith('decoder.') else .5 if k.startswith('prior.') else 1.
                assert group['lr'] == pytest.approx(factor*usual, rel=1e-6)
        trainer.train_step()
    assert sum(len(g['params']) for g in trainer.optimizer.param_groups) == len(names)


def test_a_rate_moves_its_part_as_far_as_the_rate_itself(home):
    "Of a step of Adam, which is as long as the rate, half a rate is half a step; the clipping sees all gradients as one."
    def step(**more):
        trainer = create_trainer(on(home, training__weight_decay=0., training__scheduler='linear', training__grad_clip_norm=.1, **more), show=False)
        before = weights(trainer); trainer.train_step(); after = weights(trainer)
        return {k: after[k] - before[k] for k in before}
    whole, half = step(), step(training__part_rates={'prior': .5})
    for k in whole: assert torch.allclose(half[k], whole[k]*(.5 if k.startswith('prior.') else 1.), atol=1e-6), k


@pytest.mark.parametrize('more, says', [
    (dict(training__frozen='decodr'), 'did you mean: decoder'),
    (dict(training__frozen='decoder.tme'), 'did you mean: decoder.time'),
    (dict(training__part_rates={'priro': .5}), 'did you mean: prior'),
    (dict(training__frozen='model'), 'everything is frozen'),
    (dict(training__frozen='prior,decoder,encoder'), 'everything is frozen'),
    (dict(training__part_rates={'prior': 0}), 'must be positive'),
    (dict(training__early_stopping_on='physic'), 'loss, physics'),
])
def test_bad_settings(home, tmp_path, more, says):
    with pytest.raises(ConfigError, match=says): create_trainer(on(home, training__checkpoint_dir=tmp_path/'checkpoint', **more), show=False)
    assert not (tmp_path/'checkpoint').exists()


def test_bad_events(home, tmp_path):
    new = read_events(home/'new.h5')
    def fails(error, says, events):
        write_events(events, tmp_path/'bad.h5')
        with pytest.raises(error, match=says): create_trainer(on(home, data__h5_path=tmp_path/'bad.h5', training__checkpoint_dir=tmp_path/'checkpoint'), show=False)
        assert not (tmp_path/'checkpoint').exists()
    fails(DataError, 'too few events(.|\n)*19 events', new[:19])
    fails(DataError, 'never seen events of kind unknown', replace(new, kind=np.zeros(len(new), np.uint8)))
    ev = new.labels.copy(); ev[:, 0] *= 1e6
    fails(DataError, 'no event has a label energy(.|\n)*e\\+(.|\n)*units', replace(new, labels=ev))
    d = new.detector
    fails(CheckpointError, 'another detector(.|\n)*lie elsewhere', replace(new, detector=Detector('moved', d.xyz + 1., d.string, d.dom, d.rde)))


def test_labels_beyond_the_ancestors_are_named(home, tmp_path, caplog):
    new = read_events(home/'new.h5'); labels = new.labels.copy(); labels[:30, 0] = 50.
    write_events(replace(new, labels=labels), tmp_path/'dim.h5')
    create_trainer(on(home, data__h5_path=tmp_path/'dim.h5'), show=False)
    assert 'energy of 50 % of the events' in caplog.text and 'starting from' in caplog.text


def test_what_is_no_ancestor(home, tmp_path):
    with pytest.raises(CheckpointError, match='did you mean: icecube86'): start_on(on(home, training__start_from='icecube85'))
    with pytest.raises(CheckpointError, match='no checkpoint at'): start_on(on(home, training__start_from=tmp_path/'nothing'))
    (tmp_path/'file.pt').write_bytes(b'x')
    with pytest.raises(CheckpointError, match='is a file'): start_on(on(home, training__start_from=tmp_path/'file.pt'))
    saved = read_model(home/'checkpoint'/'latent'); saved['card']['transform']['wavelets'] = 3
    commit_folder(tmp_path/'newer', to_files({k: saved[k] for k in ('ema', 'config', 'card', 'detector', 'step')}), dict(step=1, epoch=0))
    with pytest.raises(CheckpointError, match='another version of genesis(.|\n)*wavelets'): create_trainer(on(home, training__start_from=tmp_path/'newer'), show=False)
    student = read_model(home/'checkpoint'/'latent'); student['config']['diffusion']['teacher'] = 'somebody'
    commit_folder(tmp_path/'student', to_files({k: student[k] for k in ('ema', 'config', 'card', 'detector', 'step')}), dict(step=1, epoch=0))
    with pytest.raises(CheckpointError, match='is a student'): start_on(on(home, training__start_from=tmp_path/'student'))
    assert any('start_from' in p for p in validate_training_config(on(home, training__start_from='icecube85')))
    assert any('both say' in p for p in on(home, diffusion__teacher='x').validate())


def test_the_best_is_chosen_by_physics(home, tmp_path):
    cfg = override(on(home, training__num_epochs=3, training__early_stopping_on='physics', training__physics_events=12, diffusion__sampler_steps=2, data__train_ratio=.8, data__val_ratio=.2, data__test_ratio=0), folders(tmp_path))
    trainer = create_trainer(cfg, show=False); history = trainer.train()
    assert len(history['val_physics']) == len(history['val_step']) == 3 and np.isfinite(history['val_physics']).all()
    best = trainer.checkpoints.load_best_checkpoint()
    assert best['step'] == history['val_step'][int(np.argmin(history['val_physics']))] and trainer.best_loss == min(history['val_physics'])
    assert trainer.look_at_physics() == history['val_physics'][-1] # the same weights, the same number
    with pytest.raises(ConfigError, match='too few validation events'): create_trainer(on(home, training__early_stopping_on='physics'), show=False)


def test_a_look_at_physics_knows_truth_from_noise():
    events = simulate_events(120, detector=toy_detector(), seed=5, min_hits=4); transform = EventTransform.fit(events)
    look = PhysicsLook(events[:60], 60)
    class Copy:
        "A space that generates given events, with charges multiplied."
        def __init__(self, events, factor):
            self.conditioner = type('', (), dict(mask=torch.ones(1)))
            self.training, self.events, self.factor = False, events, factor
        def eval(self): pass
        def train(self, _): pass
        def sample(self, labels, seeds, **_):
            x = torch.full((len(labels), 3, int(np.prod(events.detector.grid_shape))), -1.); e = replace(self.events, charge=self.events.charge*self.factor)
            a, b = transform.encode(e); grid = np.asarray(events.detector.slots)
            for k, v in enumerate((np.ones_like(a), a, b)): x[e.event, k, grid[e.dom]] = torch.from_numpy(v)
            return x
    value = lambda e, factor: np.mean(list(look(Copy(e, factor), transform).values()))
    assert value(events[:60], 1.) < .05 < value(events[:60], 1.5) < value(events[:60], 4.) # a copy; a little brighter; much brighter


def test_the_command(home, tmp_path, capsys):
    args = ['train', '--start-from', str(home/'checkpoint'/'latent'), '--data-path', str(home/'new.h5'), '--epochs', '1', '--experiment-name', 'mine', '--checkpoint-dir', str(tmp_path/'c'), '--log-dir', str(tmp_path/'l'), '--set', 'training.use_tensorboard=false']
    assert main(args) == 0
    assert json.loads((tmp_path/'c'/'mine'/(tmp_path/'c'/'mine'/'best').read_text().strip()/'card.json').read_text())['ancestor']['experiment'] == 'latent'
    assert main([*args, '--hidden', '48']) == 2 and 'of the ancestor 32' in capsys.readouterr().err
    script = tmp_path/'train.sh'
    assert main(['script', *args[1:5], '--out', str(script)]) == 0 and start_on(load_config(f'{script}.yaml')).model.hidden == 32 # the script leaves to the ancestor what is its own
    shutil.rmtree(tmp_path/'c')
