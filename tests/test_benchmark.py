"The benchmark: events that anybody makes the same, entries within a budget, rows that hold everything, and a door for events from elsewhere."
import json
from dataclasses import replace

import numpy as np
import pytest

from genesis.evaluation import benchmark
from genesis.evaluation.benchmark import (OPPONENTS, PARTS, SCHEMA, Scale, Task, entry_config, entry_names, judge, make_task, read_rows, results_table, run_entry,
                               train_entry, with_calls)
from genesis.cli import main
from genesis.config import DiffusionConfig, ExperimentConfig, override
from genesis.core import ConfigError, DataError, Stopped
from genesis.data.events import KINDS, EventFiles, read_events, write_events
from genesis.diffusion.samplers import n_calls

TOY = Task('toy', 'tracks in the toy detector', 'track', detector='toy', min_hits=4)
TINY = Scale('tiny', 500, 200, 4, 20, 2000, 1.)
SMALL = {'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'diffusion.light_width': 16, 'device': 'cpu'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bench')
    make_task(TOY, folder, TINY)
    return folder


@pytest.fixture(scope='module')
def floor(root): return run_entry(TOY, 'floor', root, TINY)


@pytest.fixture
def named(monkeypatch):
    "The toy task, to be named on the command line."
    monkeypatch.setitem(benchmark.TASKS, 'toy', TOY); monkeypatch.setitem(benchmark.SCALES, 'tiny', TINY)


def test_everybody_has_the_same_events(root, tmp_path):
    here, there, other = make_task(TOY, root, TINY), make_task(TOY, tmp_path, TINY), make_task(TOY, tmp_path, TINY, seed=1)
    a, b, c = (json.loads((p/'task.json').read_text())['fingerprints'] for p in (here, there, other))
    assert a == b and not set(a.values()) & set(c.values()) and set(a) == set(PARTS)


def test_copies_of_the_truth_share_labels_and_nothing_else(root):
    ev = {k: read_events(make_task(TOY, root, TINY)/f'{k}.h5') for k in PARTS}
    assert np.array_equal(ev['test'].labels, ev['twin'].labels) and not np.array_equal(ev['test'].n_hits, ev['twin'].n_hits)
    assert np.array_equal(ev['draws'].labels, np.repeat(ev['test'].labels[:4], 20, 0)) and np.array_equal(ev['draws'].labels, ev['draws_twin'].labels)
    assert all(e.n_hits.min() >= TOY.min_hits for e in ev.values()), 'a copy of an event that triggered has triggered'
    assert not {tuple(x) for x in ev['test'].labels.tolist()} & {tuple(x) for x in ev['train'].labels.tolist()}


def test_both_kinds_and_noise(tmp_path):
    home = make_task(replace(TOY, name='both', kind='mixed', noise=True), tmp_path, TINY)
    test, twin, draws = (read_events(home/f'{k}.h5') for k in ('test', 'twin', 'draws'))
    assert set(test.kind) == {KINDS.index('cascade'), KINDS.index('track')} and np.array_equal(test.kind, twin.kind) and np.array_equal(draws.kind, np.repeat(test.kind[:4], 20))
    assert all(e.meta['noise'] for e in (test, twin, draws)) and (test.time < -50).any()


def test_what_was_changed_or_is_another_task_is_refused(tmp_path):
    home = make_task(TOY, tmp_path, TINY)
    with pytest.raises(ConfigError, match='holds another task'): make_task(TOY, tmp_path, replace(TINY, train=501))
    write_events(read_events(home/'test.h5')[:-1], home/'test.h5')
    with pytest.raises(DataError, match='not what was made'): make_task(TOY, tmp_path, TINY)
    with pytest.raises(ConfigError, match='did you mean: cascades'): make_task('cascade', tmp_path)


def test_a_row_holds_everything(root, floor):
    on_disk = json.loads((root/'toy-tiny'/'rows'/'floor-seed42.json').read_text())
    assert on_disk == json.loads(json.dumps(floor, default=str)) and on_disk['schema'] == SCHEMA
    assert on_disk['n'] == dict(test=200, draws=80) and on_disk['data'] == {k: EventFiles(root/'toy-tiny'/f'{k}.h5').fingerprint for k in PARTS}
    assert (root/'toy-tiny'/'reports'/'floor-seed42.html').exists()
    m = on_disk['metrics']
    assert all(set(v) == {'value', 'error', 'floor', 'ratio', 'metric'} for v in m.values())
    missing = {title: key for title, (key, _) in benchmark.COLUMNS.items() if key not in m}
    assert not missing, 'the table asks for numbers that no report has'


def test_the_simulator_itself_stands_at_the_floor(floor):
    m = floor['metrics']
    assert abs(m['n_dom']['value'] - 1) < .15 and abs(m['c2st']['value'] - .5) < .12 and m['w1_n_dom']['value'] < .2


def test_a_copy_is_found_out(root, floor):
    m = run_entry(TOY, 'nearest', root, TINY, page=False)['metrics']
    assert m['acausal']['value'] > .02 > floor['metrics']['acausal']['value'] and m['c2st']['value'] > floor['metrics']['c2st']['value'] + .1
    assert m['memorisation']['value'] < .1 and m['memorisation']['ratio'] > 5 and floor['metrics']['memorisation']['value'] == pytest.approx(1, abs=.2)


def test_anybodys_events_get_the_same_numbers(root, floor, named, monkeypatch, capsys):
    monkeypatch.chdir(root)
    sample, _ = benchmark._opponent('floor', TOY, root/'toy-tiny', TINY, 42)
    for part, gen in zip(('test', 'draws'), benchmark._asked(sample, root/'toy-tiny', 42)): write_events(gen, f'mine-{part}.h5')
    assert main(['benchmark', 'toy', '--scale', 'tiny', '--out', str(root), '--events', 'mine-test.h5', '--draws', 'mine-draws.h5', '--name', 'mine']) == 0
    assert 'toy, mine, seed 42' in capsys.readouterr().out
    row = json.loads((root/'toy-tiny'/'rows'/'mine-seed42.json').read_text())
    assert row['metrics'] == json.loads(json.dumps(floor['metrics'])) and row['command'].startswith('genesis benchmark toy')
    assert main(['benchmark', 'toy', '--scale', 'tiny', '--out', str(root), '--events', 'mine-draws.h5', '--name', 'wrong']) == DataError.exit_code
    assert main(['benchmark', 'toy', '--scale', 'tiny', '--out', str(root), '--events', 'mine-test.h5']) == ConfigError.exit_code
    assert not (root/'toy-tiny'/'rows'/'wrong-seed42.json').exists()


def test_events_alone_get_a_row_without_numbers_about_draws(root):
    test = read_events(root/'toy-tiny'/'twin.h5')
    row = judge(TOY, 'alone', test, None, root, TINY, page=False)
    assert row['n']['draws'] == 0 and row['metrics'].get('near', {}).get('value') is None and row['metrics']['n_dom']['value'] > 0


def test_a_model_is_trained_once_and_says_what_bound_it(root):
    config = override(entry_config('latent-mlp'), SMALL)
    a = run_entry(TOY, 'small@3', root, TINY, config=config, page=False)
    made = (root/'toy-tiny'/'runs'/'small-seed42'/'training.json').stat().st_mtime_ns
    b = run_entry(TOY, 'small@5', root, TINY, config=config, page=False)
    assert (root/'toy-tiny'/'runs'/'small-seed42'/'training.json').stat().st_mtime_ns == made and a['training'] == b['training']
    assert [r['sampling']['network_calls'] for r in (a, b)] == [3, 5] and a['metrics'] != b['metrics']
    assert a['training']['bound'] == 'samples' and .7*TINY.samples < a['training']['samples'] <= TINY.samples
    assert 'diffusion.space' not in a['config'] and a['config']['model.hidden'] == 16
    c = run_entry(TOY, 'again', root, TINY, checkpoint=root/'toy-tiny'/'runs'/'small-seed42'/'checkpoint'/'model', page=False)
    assert 'training' not in c and c['sampling']['network_calls'] == n_calls('dpmpp_2m', DiffusionConfig().sampler_steps)
    d = run_entry(TOY, 'small@3', root, replace(TINY), config=override(config, {'training.learning_rate': 1e-4}), page=False)
    assert d['metrics'] != a['metrics'], 'another config is another training'


def test_the_minutes_end_a_training(root, tmp_path):
    config = override(entry_config('latent-mlp'), SMALL)
    facts = train_entry(config, root/'toy-tiny', tmp_path/'a', replace(TINY, samples=1_000_000, minutes=.08))
    assert facts['bound'] == 'minutes' and 512 <= facts['samples'] < 100_000 and .01 <= facts['minutes'] < .2
    facts = train_entry(config, root/'toy-tiny', tmp_path/'b', replace(TINY, samples=1_000_000, minutes=1e-4)) # less than a single pass
    assert facts['bound'] == 'minutes' and not facts['whole'] and facts['samples'] < 512


def test_a_training_that_someone_stops_makes_no_row(root, tmp_path, monkeypatch):
    real = benchmark.create_trainer

    class Interrupt:
        def after_step(self, trainer):
            if trainer.step == 3: trainer.stop.ask('SIGINT')
    monkeypatch.setattr(benchmark, '_minutes_of_a_pass', lambda *a: 1e-9)
    monkeypatch.setattr(benchmark, 'create_trainer', lambda cfg, callbacks, show: real(cfg, [*callbacks, Interrupt()], show))
    with pytest.raises(Stopped, match='stopped by SIGINT'): train_entry(override(entry_config('latent-mlp'), SMALL), root/'toy-tiny', tmp_path, TINY)
    assert not (tmp_path/'training.json').exists()


def test_names_say_what_is_trained():
    for name in entry_names():
        if name in OPPONENTS: continue
        space, arch, formulation = name.split('-')
        cfg = entry_config(name)
        assert (cfg.diffusion.space, cfg.model.architecture, cfg.diffusion.formulation) == (space, arch, formulation) and not cfg.validate()
    assert entry_config('latent-dit@13').diffusion.sampler_steps == 12 and entry_config('event-dit').diffusion.formulation == ExperimentConfig().diffusion.formulation
    for bad in ('dit', 'latent', 'latent-dit@x', 'latent-dti', 'latent-dit-eddm'):
        with pytest.raises(ConfigError): entry_config(bad)
    guided = override(ExperimentConfig(), {'diffusion.label_dropout': .1, 'diffusion.guidance': 1.5})
    assert with_calls(guided, 10).diffusion.sampler_steps == 4
    with pytest.raises(ConfigError, match='cannot make 9'): with_calls(guided, 9)


def test_the_table_joins_seeds_and_puts_the_best_first(tmp_path):
    def row(entry, seed, auc, task='tracks', version='2.0'):
        value = lambda v: dict(value=v, error=.01, floor=None, ratio=None, metric='')
        return dict(schema=SCHEMA, task=task, scale='demo', entry=entry, seed=seed, n=dict(test=10, draws=4), budget=dict(samples=5, minutes=1.), data=dict(test='a'), metrics=dict(c2st=value(auc)),
                    training=dict(minutes=2., bound='samples', samples=5), sampling=dict(network_calls=3, cpu_ms=1.), made_with=dict(genesis=version))
    rows = tmp_path/'tracks-demo'/'rows'; rows.mkdir(parents=True)
    for r in (row('worse', 1, .8), row('better', 1, .6), row('better', 2, .64), row('other', 1, .5, 'mixed'), row('better', 3, .9, version='1.0')): (rows/f"{r['entry']}-{r['seed']}.json").write_text(json.dumps(r))
    text = results_table(tmp_path, 'tracks')
    assert '0.620 ± 0.028' in text and '0.800 ± 0.010' in text and text.index('better') < text.index('worse') and 'other' not in text and 'mixed' in results_table(tmp_path)
    assert '0.900 ± 0.010' in text and '| 2 | 2.0 |' in text and '| 1 | 1.0 |' in text, 'another version is another entry'
    (rows/'bad.json').write_text('{}')
    with pytest.raises(DataError, match='no row of this benchmark'): read_rows(tmp_path)
    with pytest.raises(DataError, match='no results'): results_table(tmp_path/'empty')


def test_a_trained_model_is_asked_in_other_ways(root, named, capsys):
    config = override(entry_config('latent-mlp'), SMALL)
    run_entry(TOY, 'asked', root, TINY, config=config, page=False)
    model = root/'toy-tiny'/'runs'/'asked-seed42'/'checkpoint'/'model'
    def say(line): code = main(['benchmark', 'toy', *line.split(), '--scale', 'tiny', '--out', str(root)]); out = capsys.readouterr(); return code, out.out + out.err
    assert say(f'--checkpoint {model} --name few --set diffusion.sampler_steps=3')[0] == 0
    assert json.loads((root/'toy-tiny'/'rows'/'few-seed42.json').read_text())['sampling']['network_calls'] == 4
    code, out = say(f'--checkpoint {model} --name other --set model.hidden=3'); assert code == 2 and 'only asked for events' in out and 'model.hidden' in out
    code, out = say('--name lost --set model.hidden=3'); assert code == 2 and 'nothing to set' in out


def test_commands(root, named, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def say(line): code = main(['benchmark', *line.split()]); out = capsys.readouterr(); return code, out.out + out.err
    assert 'latent-dit-edm' in say('--list')[1]
    assert say('')[0] == 2 and 'which task?' in say('')[1]
    code, text = say('toy --scale tiny --out here'); assert code == 0 and 'test.h5' in text
    code, text = say(f'toy --scale tiny --out {root} --entry floor --seed 1 2'); assert code == 0 and 'seed 1' in text and 'seed 2' in text
    code, text = say(f'toy --scale tiny --out {root} --table'); assert code == 0 and '| floor |' in text
    sets = ' '.join(f'--set {k}={v}' for k, v in SMALL.items() if k != 'device')
    code, text = say(f'toy --scale tiny --out {root} --entry latent-mlp@3 {sets} --name tuned --device cpu'); assert code == 0, text
    row = json.loads((root/'toy-tiny'/'rows'/'tuned-seed42.json').read_text())
    assert row['sampling']['network_calls'] == 3 and row['config']['diffusion.light_width'] == 16 and '--set model.hidden=16' in row['command']
