"The commands from outside: what works, and what each bad input says and leaves behind."
import json, os, resource, signal, subprocess, sys, time
from pathlib import Path

import h5py
import numpy as np
import pytest

from genesis.cli import main
from genesis.core import CheckpointError, DataError
from genesis.data.detector import toy_detector
from genesis.data.events import read_events, write_events
from genesis.data.simulator import simulate_events
from genesis.generate import Generator

SMALL = '--hidden 32 --depth 1 --heads 2 --batch-size 16 --device cpu --set training.use_tensorboard=false'.split()


@pytest.fixture(scope='module')
def events(): return simulate_events(80, detector=toy_detector(), seed=1, min_hits=4)


@pytest.fixture
def there(tmp_path, monkeypatch, events):
    "A folder with a file of toy events, as the working directory."
    monkeypatch.chdir(tmp_path)
    write_events(events, 'toy.h5')
    return tmp_path


def say(capsys, line, *more):
    "Run a command in this process; exit code and everything it said."
    try: code = main([*line.split(), *more])
    except SystemExit as e: code = e.code
    out = capsys.readouterr()
    return code, out.out + out.err


def dense(path, events, **change):
    "A file in the dense schema, with some datasets changed; None leaves one out."
    geo = {f'{k}pmt': events.detector.xyz[:, i].astype('f4') for i, k in enumerate('xyz')}
    with h5py.File(path, 'w') as f:
        for k, v in {**dict(input=events.dense(), label=events.labels, **geo), **change}.items():
            if v is not None: f[k] = v
    return path


def bad_file(kind, events):
    x, y = events.dense(), events.labels.copy()
    if kind == 'missing file': return 'toyy.h5'
    if kind == 'not HDF5': open('bad.h5', 'w').write('energy,zenith\n1,2\n')
    elif kind == 'truncated': open('bad.h5', 'wb').write(open('toy.h5', 'rb').read()[:3000])
    elif kind == 'missing dataset': dense('bad.h5', events, label=None)
    elif kind == 'wrong shape': dense('bad.h5', events, label=y[:, :4])
    elif kind == 'labels not finite': y[7, 0] = np.nan; dense('bad.h5', events, label=y)
    elif kind == 'negative charge': x[3, 0, 5] = -1; dense('bad.h5', events, input=x)
    elif kind == 'all empty': dense('bad.h5', events, input=0*x)
    elif kind == 'a folder': os.mkdir('bad.h5')
    return 'bad.h5'


@pytest.mark.parametrize('kind, message', [
    ('missing file', 'did you mean: toy.h5'), ('not HDF5', 'is not an HDF5 file'), ('truncated', 'damaged or incomplete'), ('missing dataset', "has no dataset 'label'"),
    ('wrong shape', "dataset 'label' has the wrong shape"), ('labels not finite', 'labels that are not finite\n  got: 1 events: 7'), ('negative charge', 'negative charges\n  got: 1 events: 3'),
    ('all empty', 'holds no hits'), ('a folder', 'an empty folder')])
def test_bad_data_is_refused_with_one_message(there, events, capsys, kind, message):
    before = set(os.listdir()) | {'bad.h5'}
    code, text = say(capsys, f'train --data-path {bad_file(kind, events)}', *SMALL)
    assert code in (2, 3) and message in text and 'Traceback' not in text
    assert set(os.listdir()) <= before, 'a refused training leaves nothing behind'


@pytest.mark.parametrize('flags, message', [
    ('--architecture dti', 'did you mean: dit'), ('--scheduler cosin', 'did you mean: cosine'), ('--heads 5', 'does not divide'), ('--batch-size 0', 'batch_size must be at least 1'),
    ('--set training.learning_rte=1', 'did you mean: training.learning_rate'), ('--set data.train_ratio=0.95', 'add up to 1'), ('--optimizer Adamm', 'did you mean: Adam'),
    ('--lr fast', 'training.learning_rate has the wrong type'), ('--config nowhere.yaml', 'no config file at nowhere.yaml'), ('--set diffusion.sampler=hun', 'did you mean: heun'), ('--device gpu', 'device')])
def test_bad_settings_exit_2(there, capsys, flags, message):
    code, text = say(capsys, 'train --data-path toy.h5', *SMALL, *flags.split())
    assert code == 2 and message in text and 'Traceback' not in text
    assert os.listdir() == ['toy.h5']


def test_all_problems_are_listed_at_once(there, capsys):
    code, text = say(capsys, 'train --data-path toyy.h5', *SMALL, '--heads', '5', '--batch-size', '0')
    assert code == 2 and 'toyy.h5' in text and 'does not divide' in text and 'batch_size' in text


def test_the_whole_path_through_files(there, events, capsys):
    assert say(capsys, 'train --data-path toy.h5 --epochs 2 --lr 5e-3 --scheduler cosine --experiment-name a --seed 3', *SMALL)[0] == 0
    assert say(capsys, 'sample --checkpoint checkpoints/a --labels toy.h5 --output made.h5 --seed 5')[0] == 0
    assert say(capsys, 'sample --checkpoint checkpoints/a --labels toy.h5 --output again.h5 --seed 5 --batch-size 7')[0] == 0
    made, again = read_events('made.h5'), read_events('again.h5')
    assert len(made) == len(events) and (made.labels == events.labels).all() and (made.charge > 0).all() and np.isfinite(made.time).all()
    assert (made.ptr == again.ptr).all() and np.allclose(made.charge, again.charge, rtol=1e-2)
    code, text = say(capsys, 'evaluate toy.h5 made.h5 --out r.html --json r.json')
    assert code == 0 and '<html' in open('r.html').read(2000).lower()
    json.load(open('r.json'))


@pytest.mark.parametrize('mark', [0, np.inf, np.nan])
def test_training_on_the_dense_schema(there, events, capsys, mark):
    x = events.dense()
    x[:, 1][x[:, 0] == 0] = mark
    i, j = events.event[0], events.dom[0]
    x[i, 1, j] = 0   # a first hit at t = 0 stays a hit
    dense('dense.h5', events, input=x)
    back = read_events('dense.h5')
    assert (back.ptr == events.ptr).all() and back.time[0] == 0
    code, text = say(capsys, 'train --data-path dense.h5 --epochs 1', *SMALL)
    assert code == 0, text


def test_a_checkpoint_of_another_detector_is_refused(there, capsys):
    say(capsys, 'train --data-path toy.h5 --epochs 1 --experiment-name a', *SMALL)
    say(capsys, 'simulate --events 20 --out ic.h5')
    code, text = say(capsys, 'train --data-path ic.h5 --resume-from-checkpoint checkpoints/a', *SMALL)
    assert code == 3 and 'belongs to another detector' in text and 'toy' in text
    code, text = say(capsys, 'sample --checkpoint checkpoints/a --labels ic.h5')
    assert code == 3 and 'another detector' in text and not os.path.exists('generated.h5')


def test_a_new_run_leaves_the_old_one_alone(there, capsys):
    line = 'train --data-path toy.h5 --epochs 1 --experiment-name a'
    say(capsys, line, *SMALL)
    first = {p.name: p.stat().st_mtime_ns for p in (there/'checkpoints'/'a').iterdir()}
    assert say(capsys, line, *SMALL)[0] == 0
    assert {p.name: p.stat().st_mtime_ns for p in (there/'checkpoints'/'a.1').iterdir()} == first


def cli(line, **kw): return subprocess.Popen([Path(sys.executable).with_name('genesis'), *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def limit(size):
    def set_limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return set_limit


def test_a_full_disk_is_one_message_and_no_file(there):
    p = cli('simulate --events 2000 --detector toy --min-hits 4 --out big.h5', preexec_fn=limit(20_000))
    out, err = p.communicate(timeout=120)
    assert p.returncode == 4 and 'could not write' in err and 'Traceback' not in err
    assert os.listdir() == ['toy.h5']


def test_sigterm_saves_and_the_same_command_goes_on(there, capsys):
    line = ' '.join(['train --data-path toy.h5 --epochs 4000 --experiment-name a --resume-from-checkpoint auto', *SMALL])
    p = cli(line)
    end = time.time() + 120
    while not (there/'logs'/'a'/'metrics.jsonl').exists() and time.time() < end: time.sleep(0.2)
    time.sleep(1); p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 75 and '--resume-from-checkpoint auto goes on' in err
    folders = list((there/'checkpoints'/'a').glob('step-*'))
    assert folders and not list((there/'checkpoints'/'a').glob('.tmp*'))
    step = max(int(f.name[5:]) for f in folders)
    epochs = step//4 + 2   # 80 events split 8:1:1 make 4 or 5 steps of 16
    code, text = say(capsys, line.replace('--epochs 4000', f'--epochs {epochs}'))
    assert code == 0 and f'step {epochs*4}' in text or f'step {epochs*5}' in text


@pytest.mark.parametrize('verb', ['simulate', 'convert', 'train', 'sample', 'evaluate', 'demo', 'doctor'])
def test_help_comes_without_torch(verb):
    code = f'import sys, genesis.cli as c\ntry: c.main(["{verb}", "--help"])\nexcept SystemExit as e: sys.exit(e.code or ("torch" in sys.modules)*9)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=60).returncode == 0


def test_a_signal_before_the_training_ends_with_75_too(there, capsys, monkeypatch):
    "While the events are read or simulated there is nothing to save; the batch system may start the job again."
    monkeypatch.setattr('genesis.training.create_trainer', lambda *a: os.kill(os.getpid(), signal.SIGUSR1))
    code, text = say(capsys, 'train --data-path toy.h5 --experiment-name a', *SMALL)
    assert code == 75 and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL and not (there/'checkpoints').exists()


def test_a_generation_goes_on_after_a_kill(there, capsys):
    "Shards of a stream: killed, started again with the same command, and refused with another one."
    assert say(capsys, 'train --data-path toy.h5 --epochs 1 --experiment-name a', *SMALL)[0] == 0
    line = 'sample --checkpoint checkpoints/a --labels E^-2 --num-events 4500 --steps 2 --batch-size 250 --output many --seed 3'
    p, end = cli(line), time.time() + 120
    while not (there/'many'/'part-000000.h5').exists() and time.time() < end: time.sleep(.02)
    p.kill(); p.communicate(timeout=60)
    left = sorted(f.name for f in (there/'many').glob('part-*'))
    first = (there/'many'/left[0]).stat().st_mtime_ns
    code, text = say(capsys, line)
    assert code == 0 and '4,500 events' in text and len(left) < 3 and (there/'many'/left[0]).stat().st_mtime_ns == first
    many = read_events(there/'many')
    whole = Generator.from_checkpoint('checkpoints/a').sample('E^-2', 4500, seed=3, steps=2, batch_size=250)
    assert np.array_equal(many.labels, whole.labels) and np.array_equal(many.dom, whole.dom)
    code, text = say(capsys, line.replace('--steps 2', '--steps 3'))
    assert code == 2 and 'another production' in text and 'steps: 2' in text


def test_a_kind_may_be_asked_for(there, capsys):
    write_events(simulate_events(60, detector=toy_detector(), kind='mixed', seed=4, min_hits=4), 'both.h5')
    assert say(capsys, 'train --data-path both.h5 --epochs 1 --experiment-name both', *SMALL)[0] == 0
    line = 'sample --checkpoint checkpoints/both --num-events 3 --steps 2 --output some.h5'
    code, text = say(capsys, line)
    assert code == 2 and 'which kind of events' in text
    code, text = say(capsys, line + ' --kind trak')
    assert code == 2 and 'did you mean: track' in text
    assert say(capsys, line + ' --kind track')[0] == 0 and read_events('some.h5').kind.tolist() == [2, 2, 2]


def test_labels_for_a_generator(there, capsys, caplog):
    assert say(capsys, 'train --data-path toy.h5 --epochs 1 --experiment-name a', *SMALL)[0] == 0
    gen = Generator.from_checkpoint('checkpoints/a'); caplog.clear()
    events = read_events('toy.h5')
    assert all(lo <= x.min() and x.max() <= hi for (lo, hi), x in zip(gen.ranges.values(), events.labels.T)) and len(gen.ranges) == 6
    assert np.array_equal(gen.sample('toy.h5', 3, steps=2).charge, gen.sample(events[:3], steps=2).charge) and not caplog.text
    steep, flat = (gen.sample(spectrum, 400, steps=2).labels[:, 0] for spectrum in ('E^-3', None))
    lo, hi = gen.ranges['energy']
    assert np.median(steep) < 1.6*lo < np.median(flat) == pytest.approx(np.sqrt(lo*hi), rel=.5)   # E^-3: half of all below √2 of the lowest
    far = events.labels[:2].copy(); far[1, 5] = 9000.
    gen.sample(far, steps=2)
    assert 'z of 1 of 2 labels lies outside what the model was trained on' in caplog.text
    with pytest.raises(DataError, match='number 1'): gen.sample(np.where(far == 9000, np.nan, far), steps=2)
    with pytest.raises(DataError, match=r'\(N, 6\)'): gen.sample(far[:, :5])
    with pytest.raises(DataError, match=r'(?s)neither a spectrum nor a file.*toy.h5'): gen.sample('toi.h5')
    with pytest.raises(CheckpointError, match='DOMs here, .* in the checkpoint'): gen.sample(simulate_events(1, seed=1))
