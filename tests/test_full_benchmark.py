"Full events and their benchmark: files that are what their list says, nested choices of them, entries that say how many they learn from, rows that can be made again."
import hashlib
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from genesis.evaluation import full_benchmark
from genesis.evaluation.benchmark import SCHEMA, entry_config, results_table
from genesis.cli import main
from genesis.config import override
from genesis.core import ConfigError, DataError
from genesis.data import full
from genesis.data.events import KINDS, EventFiles, read_events, write_events
from genesis.data.full import FULL, chosen, full_events, full_files
from genesis.evaluation.full_benchmark import (FULL_TASKS, Entry, full_budget, full_config, full_entry, full_home, judge_full, learning_curve, learning_home,
                                    learning_table, run_full_entry, show_learning)

SMALL = {'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'diffusion.light_width': 16, 'diffusion.sampler_steps': 2, 'device': 'cpu'}


@pytest.fixture(scope='module')
def root(tmp_path_factory): return tmp_path_factory.mktemp('full')


@pytest.fixture(scope='module')
def floor(root): return run_full_entry('full-cascades', 'floor', root, seed=1)


# ---- the files

def test_every_file_is_what_the_list_says():
    files = full_files()
    assert {p.name for p in FULL.glob('*.h5')} == set(files)
    assert sum(p.stat().st_size for p in FULL.iterdir()) < 8e6
    for name, about in files.items():
        data, events = (FULL/name).read_bytes(), EventFiles(FULL/name)
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (about['sha256'], about['bytes'])
        assert (events.verify(), len(events), int(events.ptr[-1])) == (about['fingerprint'], about['events'], about['hits'])
        assert set(events.kind) == {KINDS.index(about['kind'].removesuffix('s'))} and np.diff(events.ptr).min() >= 8


def test_the_card_counts_as_the_files_do():
    card = (FULL/'README.md').read_text()
    for name, about in full_files().items():
        assert re.search(rf"`{name}` \| {about['events']:,} \| {about['hits']:,} \|", card), name
    assert 'LGPL' in card and 'Apache-2.0' in card and 'not** IceCube' in card


def test_no_label_is_learned_from_that_is_asked_for():
    for kind in ('tracks', 'cascades'):
        seen = {tuple(y) for y in full_events(kind, 'train').labels.tolist()}
        assert len(seen) == len(full_events(kind, 'train'))
        for part in {f['part'] for f in full_files().values() if f['kind'] == kind} - {'train'}:
            assert not seen & {tuple(y) for y in full_events(kind, part).labels.tolist()}, part


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(FULL, tmp_path/'files'); monkeypatch.setattr(full, 'FULL', tmp_path/'files')
    path = tmp_path/'files'/'cascades_test.h5'
    data = bytearray(path.read_bytes()); data[len(data)//2] ^= 1; path.write_bytes(data)
    with pytest.raises(DataError, match='cascades_test.h5 is not what comes with genesis'): full_events('cascades', 'test')
    path.unlink()
    with pytest.raises(DataError, match='no data file'): full_events('cascades', 'test')
    assert len(full_events('cascades')) == 675, 'the others are still there'
    (tmp_path/'files'/'MANIFEST.json').unlink()
    with pytest.raises(DataError, match='no data file'): full_events('cascades')


def test_what_there_is_not_is_named():
    with pytest.raises(ConfigError, match='did you mean: tracks'): full_events('track')
    with pytest.raises(ConfigError, match='expected: test, train'): full_events('cascades', 'draws')
    for n in (0, 676, -1):
        with pytest.raises(ConfigError, match='1 to 675'): full_events('cascades', 'train', n)


def test_choices_are_nested_and_belong_to_a_seed():
    for seed in range(3):
        rows = [set(chosen(2237, n, seed)) for n in (1, 100, 300, 1000, 2237)]
        assert all(a < b for a, b in zip(rows, rows[1:])) and rows[-1] == set(range(2237))
    assert len(set(chosen(2237, 100, 1)) & set(chosen(2237, 100, 2))) < 20, 'another seed, other events'
    assert np.array_equal(chosen(2237, 100, 1), chosen(2237, 100, 1))


def test_they_are_shipped():
    text = (FULL.parents[1]/'setup.py').read_text() if (FULL.parents[1]/'setup.py').exists() else pytest.skip('no checkout: what is installed has been tested above')
    assert "'full_simulation/*'" in text


# ---- entries

def test_names_say_how_many_full_events_are_learned_from():
    assert full_entry('icecube86+300', 'full-tracks') == Entry('icecube86', 300)
    assert full_entry('latent-dit-edm+all@9', 'full-cascades') == Entry('latent-dit-edm', 675, '9')
    assert full_entry('latent-dit+all', 'full-cascades').name == full_entry('latent-dit+675', 'full-cascades').name == 'latent-dit+675'
    assert full_entry('floor', 'full-tracks') == Entry('floor', 0)
    for task, name, words in (('full-cascades', 'icecube86+1000', 'only 675'), ('full-tracks', 'icecube86+200', 'no choice of 200'), ('full-tracks', 'x+al', 'did you mean: all'),
                              ('full-tracks', 'x+0', 'no choice of 0'), ('full-tracks', 'x+', 'cannot read'), ('full-tracks', 'a/b', 'cannot read'), ('full-track', 'x', 'did you mean: full-tracks')):
        with pytest.raises(ConfigError, match=words): full_entry(name, task)


def test_who_learns_must_say_from_how_many(root):
    for name in ('nearest', 'independent', 'latent-dit'):
        with pytest.raises(ConfigError, match=f'from how many full events shall {name} learn'): run_full_entry('full-cascades', name, root)
    for name in ('floor+100', 'toy+all'):
        with pytest.raises(ConfigError, match='does not learn'): run_full_entry('full-cascades', name, root)
    with pytest.raises(ConfigError, match='unknown entry'): run_full_entry('full-cascades', 'icecube68+300', root)


def test_a_packaged_model_is_trained_on_by_the_recipe_and_others_within_a_budget():
    on, new = (full_entry(f'{base}+300', 'full-tracks') for base in ('icecube86', 'latent-dit'))
    assert full_config(on).training.start_from == 'icecube86' and full_budget(on, full_config(on)).samples is None
    assert full_config(new).training.start_from is None and full_budget(new, full_config(new)).samples == 10_000
    assert full_config(full_entry('icecube86', 'full-tracks')) is None, 'as it comes it is not trained'
    assert full_budget(Entry('latent-dit', 1000), full_config(new)).samples == 25_000


# ---- folders, rows, curve

def test_the_folder_holds_the_files_of_the_package(root, tmp_path):
    home = full_home('full-tracks', root)
    for part in ('train', 'test', 'draws'): assert EventFiles(home/f'{part}.h5').verify() == full_events('tracks', part).fingerprint
    assert not (full_home('full-cascades', root)/'draws.h5').exists()
    other = full_home('full-cascades', tmp_path)
    write_events(read_events(other/'test.h5')[:-1], other/'test.h5')
    with pytest.raises(DataError, match='not the file of this task'): full_home('full-cascades', tmp_path)


def test_what_is_learned_from_lies_in_a_file(root):
    learn = learning_home('full-cascades', 100, root, seed=3)
    events = read_events(learn/'train.h5')
    assert events.fingerprint == full_events('cascades', 'train', 100, seed=3).fingerprint
    write_events(events[:50], learn/'train.h5') # somebody else's choice
    assert EventFiles(learning_home('full-cascades', 100, root, seed=3)/'train.h5').fingerprint == events.fingerprint


def test_the_floor_is_the_truth_beside_the_truth(floor):
    m = floor['metrics']
    assert floor['floor'] == 'other true events' and floor['learned']['events'] == 0 and floor['n'] == dict(test=150, draws=0)
    assert abs(m['c2st']['value'] - .5) < 4*m['c2st']['error'] and m['bias']['value'] is None and .5 < m['charge']['value'] < 2
    assert floor['schema'] == SCHEMA and set(floor['data']) == {'train', 'test'}


def test_rows_can_be_made_again(root, floor, tmp_path):
    first, again = (run_full_entry('full-cascades', 'nearest+100', folder, seed=2, page=False) for folder in (root, tmp_path))
    assert first['metrics'] == again['metrics'] and first['learned'] == again['learned'] and first['data'] == again['data']
    on_disk = json.loads((root/'full-cascades'/'rows'/'nearest+100-seed2.json').read_text())
    assert on_disk['metrics'] == json.loads(json.dumps(first['metrics'])) and on_disk['learned'] == dict(events=100, of=675, seed=2, fingerprint=full_events('cascades', 'train', 100, 2).fingerprint)
    assert first['metrics']['memorisation']['value'] < .1, 'a copy is found out'
    other = run_full_entry('full-cascades', 'nearest+100', root, seed=3, page=False)
    assert other['metrics'] != first['metrics'] and other['learned']['fingerprint'] != first['learned']['fingerprint']


def test_anybodys_events_get_a_row_on_the_curve(root, capsys, tmp_path):
    test = full_events('cascades', 'test')
    write_events(replace(test, charge=2*test.charge), tmp_path/'mine.h5')
    line = ['benchmark', 'full-cascades', '--out', str(root), '--seed', '1', '--events', str(tmp_path/'mine.h5')]
    assert main([*line, '--name', 'mine+300']) == 0
    row = json.loads((root/'full-cascades'/'rows'/'mine+300-seed1.json').read_text())
    assert row['learned']['events'] == 300 and row['metrics']['charge']['value'] == pytest.approx(2) and row['metrics']['n_dom']['value'] == 1
    assert main([*line, '--name', 'mine+200']) == ConfigError.exit_code
    write_events(test[::-1], tmp_path/'mine.h5')
    assert main([*line, '--name', 'turned']) == DataError.exit_code and not (root/'full-cascades'/'rows'/'turned-seed1.json').exists()
    with pytest.raises(ConfigError, match='no draws'): judge_full('full-cascades', 'mine', test, test, root)


def test_the_curve_joins_seeds_of_the_same_number_of_events(root, floor):
    for seed in (2, 3): run_full_entry('full-cascades', 'nearest+100', root, seed=seed, page=False)
    curve = learning_curve(root, 'full-cascades')
    assert list(curve['floor']) == [0] and len(curve['nearest'][100]) == 2
    values = [r['metrics']['c2st']['value'] for r in curve['nearest'][100]]
    text = learning_table(root, 'full-cascades')
    assert f'| nearest | 100 | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} |' in text and '150 test events' in text
    assert text.index('| floor |') < text.index('| nearest |')
    assert len(show_learning(root, 'full-cascades').axes) >= 3
    with pytest.raises(DataError, match='no results of full-tracks'): learning_curve(root, 'full-tracks')
    with pytest.raises(DataError, match='no results'): results_table(root)


def test_commands(root, floor, capsys, tmp_path):
    def say(line): code = main(['benchmark', *line.split()]); out = capsys.readouterr(); return code, out.out + out.err
    assert 'full-tracks' in say('--list')[1] and '+300' in say('--list')[1]
    code, text = say(f'full-cascades --out {tmp_path} --seed 1 2'); assert code == 0 and 'learn/300-seed2/train.h5' in text and (tmp_path/'full-cascades'/'learn'/'100-seed1'/'train.h5').exists()
    code, text = say(f'full-cascades --out {root} --table'); assert code == 0 and '| floor | none |' in text
    for line, words in (('full-cascades --scale demo --entry floor', 'are fixed'), ('full-cascades --data-seed 1 --entry floor', 'are fixed'), ('full-cascades --entry toy --set model.hidden=3', 'nothing to set'),
                        ('full-cascades --entry icecube86+1000', 'only 675'), ('full-cascades --entry nearest', 'nearest+300')):
        code, text = say(f'{line} --out {tmp_path}'); assert code == ConfigError.exit_code and words in text, text
    with pytest.raises(SystemExit): main(['benchmark', '--help'])
    assert 'icecube86+300' in capsys.readouterr().out


def test_a_model_from_nothing_learns_from_its_choice(root, monkeypatch):
    monkeypatch.setattr(full_benchmark, 'MINUTES', .05)
    config = override(entry_config('latent-mlp'), SMALL)
    row = run_full_entry('full-cascades', 'small+100', root, 5, config=config, device='cpu', page=False)
    assert row['learned']['events'] == 100 and 'ancestor' not in row and row['training']['minutes'] < .3 and row['sampling']['network_calls'] == 3
    run = root/'full-cascades'/'learn'/'100-seed5'/'runs'
    assert [p.name for p in run.iterdir()] == ['small-seed5']
    made = (run/'small-seed5'/'training.json').stat().st_mtime_ns
    again = run_full_entry('full-cascades', 'small+100', root, 5, config=config, device='cpu', page=False)
    assert (run/'small-seed5'/'training.json').stat().st_mtime_ns == made and again['metrics'] == row['metrics']


def test_a_model_that_is_trained_on_names_its_ancestor(root, monkeypatch):
    config = override(entry_config('latent-mlp'), SMALL)
    monkeypatch.setattr(full_benchmark, 'MINUTES', .05)
    run_full_entry('full-cascades', 'old+100', root, 6, config=config, device='cpu', page=False)
    old = root/'full-cascades'/'learn'/'100-seed6'/'runs'/'old-seed6'/'checkpoint'/'model'
    on = override(full_config(Entry('icecube86', 100)), {'training.start_from': str(old), 'training.num_epochs': 1})
    row = run_full_entry('full-cascades', 'on+300', root, 6, config=on, device='cpu', page=False)
    assert row['ancestor']['name'] == 'model' and row['training']['bound'] == 'config' and row['training']['whole'] and row['learned']['events'] == 300
    assert [p.name for p in (root/'full-cascades'/'learn'/'300-seed6'/'runs').iterdir()] == [f"on-from-{row['ancestor']['weights'][:8]}-seed6"], 'another ancestor has another folder'
