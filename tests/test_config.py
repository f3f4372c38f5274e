"What a person writes into a config or behind a flag is what is meant: text, numbers, durations."
import pytest
import yaml

from genesis.cli import parser, train_config
from genesis.config import ExperimentConfig, from_dict, load_config, override, save_config, seconds
from genesis.core import ConfigError


def at(cfg, key):
    for part in key.split('.'): cfg = getattr(cfg, part)
    return cfg


def written(tmp_path, key, value):
    *section, name = key.split('.')
    text = f'{name}: {value}\n'
    (tmp_path/'run.yaml').write_text(f'{section[0]}:\n  {text}' if section else text)
    return load_config(tmp_path/'run.yaml')


WORDS = ['2025_10', '2025-10-01', '2025-10-01 10:00:00', 'no', 'Off', 'yes', 'y', 'true', '010', '0x1f', '0b11', '1e3', '1_000', '10:00', '23:00:00', '190:20:30', '1.5', '.5', '1.', '.inf', '-.INF', '.nan', '=', '12e03', '+1', '-0', 'ν', '1:30:05.5', '"42"', "'010'"]


@pytest.mark.parametrize('word', WORDS)
@pytest.mark.parametrize('key', ['experiment_name', 'description', 'data.h5_path'])
def test_text_stays_text(tmp_path, key, word):
    meant = word.strip('"\'')
    cfg = written(tmp_path, key, word)
    assert at(cfg, key) == meant
    assert at(load_config(save_config(cfg, tmp_path/'again.yaml')), key) == meant
    assert at(from_dict(yaml.safe_load((tmp_path/'again.yaml').read_text())), key) == meant   # a config that we wrote is read by every YAML
    assert at(override(ExperimentConfig(), [f'{key}={meant}']), key) == meant


@pytest.mark.parametrize('key, word, meant', [
    ('seed', '010', 10), ('seed', '10_000', 10_000), ('seed', '0x1f', 31), ('seed', '9007199254740993', 2**53+1), ('seed', '9_007_199_254_740_993', 2**53+1), ('seed', '"7"', 7), ('data.batch_size', '1e2', 100), ('data.batch_size', '8.0', 8),
    ('training.learning_rate', '1e-4', 1e-4), ('training.learning_rate', '1E-4', 1e-4), ('training.learning_rate', '.001', 1e-3), ('training.save_minutes', '10:00', 10.), ('training.save_minutes', '10', 10.), ('training.save_minutes', '0', 0.),
    ('training.save_minutes', '1h', 60.), ('training.save_minutes', '90s', 1.5), ('training.panel_minutes', '01:30:00', 90.), ('training.panel_minutes', '2.5', 2.5), ('training.use_amp', 'no', False), ('training.use_amp', 'On', True),
    ('training.walltime', '23:00:00', '23:00:00'), ('training.walltime', '09:00:00', '09:00:00'), ('training.walltime', '90', '90'), ('training.walltime', '~', None), ('training.scheduler', 'null', None), ('training.scheduler', '', None),
    ('model.kernel_sizes', '[3, 05, 7]', (3, 5, 7)), ('training.ema_widths', '[0.1, 5e-2]', (.1, .05)), ('training.ema_widths', '[]', ())])
def test_numbers_and_durations_are_what_they_say(tmp_path, key, word, meant):
    found = at(written(tmp_path, key, word), key)
    assert found == meant and type(found) is type(meant)
    if word not in ('', '~') and word[0] not in '["': assert at(override(ExperimentConfig(), [f'{key}={word}']), key) == meant


@pytest.mark.parametrize('key, word', [('seed', '10:00'), ('seed', 'true'), ('seed', '2025-10-01'), ('data.batch_size', '1.5'), ('training.learning_rate', '10:00'), ('training.save_minutes', 'soon'), ('training.save_minutes', '.inf'),
                                       ('training.use_amp', '1'), ('training.use_amp', 'maybe'), ('training.num_epochs', '.nan'), ('model.kernel_sizes', '[3, a]')])
def test_what_is_no_number_is_refused_with_the_word_itself(tmp_path, key, word):
    with pytest.raises(ConfigError, match='has the wrong type') as e: written(tmp_path, key, word)
    assert word.strip('[]').split(', ')[-1] in str(e.value) and key in str(e.value)


def test_a_number_from_another_yaml_is_told_to_be_quoted():
    "Whoever reads a file with YAML itself has lost what was written."
    with pytest.raises(ConfigError, match='text stands in quotes: "82800"'): from_dict(yaml.safe_load('training:\n  walltime: 23:00:00'))


@pytest.mark.parametrize('text, value', [   # the forms of sbatch's --time
    ('30', 1800), ('30:15', 1815), ('2:30:15', 9015), ('23:00:00', 82800), ('1-12', 129600), ('1-12:30', 131400), ('1-12:30:15', 131415), ('0-0:0:1', 1), ('100:00:00', 360000), ('90m', 5400), ('1h30m', 5400), ('1h 30min', 5400), ('1.5h', 5400), ('2d', 172800), ('45s', 45),
    ('0', None), ('', None), ('1-', None), ('-1', None), ('1:2:3:4', None), ('h', None), ('1.2.3h', None), ('tomorrow', None), ('m30', None), ('1-12h', None), ('1e3', None), ('.', None)])
def test_durations(text, value): assert seconds(text) == value


def test_a_walltime_in_a_file_is_a_walltime(tmp_path):
    for text in ('23:00:00', '1-12:30', '90m', '90'): assert not [p for p in written(tmp_path, 'training.walltime', text).validate() if 'walltime' in p]
    assert [p for p in written(tmp_path, 'training.walltime', 'soon').validate() if 'walltime' in p]


def test_flags_are_words_too():
    a = parser().parse_args(['train', '--experiment-name', '010', '--walltime', '23:00:00', '--set', 'training.save_minutes=10:00', '--set', 'description=no'])
    cfg = train_config(a)
    assert (cfg.experiment_name, cfg.training.walltime, cfg.training.save_minutes, cfg.description) == ('010', '23:00:00', 10., 'no')
