"Trainings as a batch system treats them: warned, taken off the machine, started again, from scripts that the package wrote."
import os, random, re, signal, stat, subprocess, sys, time
from pathlib import Path

import pytest

from genesis.cli import main
from genesis.config import load_config, override, save_config
from genesis.data.detector import toy_detector
from genesis.data.events import write_events
from genesis.data.simulator import simulate_events
from genesis.training.checkpointing import read_checkpoint
from genesis.training.logging import read_metrics, series
from genesis.training.utils import create_training_script

TRAIN = [sys.executable, '-m', 'genesis_start', 'train', '--config', 'run.yaml', '--resume', 'auto']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).resolve().parents[1])}


@pytest.fixture
def there(tmp_path, monkeypatch):
    "A folder with events and the config of a training of some seconds."
    monkeypatch.chdir(tmp_path)
    write_events(simulate_events(200, detector=toy_detector(), seed=1, min_hits=4), 'toy.h5')
    cfg = override(load_config(Path(__file__).resolve().parents[1]/'configs'/'cosine_annealing.yaml'), {'experiment_name': 'run', 'data.h5_path': 'toy.h5', 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
        'training.num_epochs': 16, 'training.cosine_t_max': 16, 'training.use_tensorboard': False, 'training.log_interval': 7, 'device': 'cpu'})
    save_config(cfg, 'run.yaml')
    return cfg


def run(command, **kw): return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120, **kw)


def losses(name='run'): return [series(read_metrics(f'logs/{name}'), k) for k in ('train/loss', 'eval/loss')]


def inside(command): return main(command[3:])
def outside(command): return run(command).returncode


def finished(cfg, start):
    "The end of the run, against one in one piece started the same way: another number of threads would add up in another order."
    end = read_checkpoint('checkpoints/run')
    found = losses()
    save_config(override(cfg, {'experiment_name': 'whole'}), 'whole.yaml')
    assert start([*TRAIN[:4], '--config', 'whole.yaml']) == 0
    whole = read_checkpoint('checkpoints/whole')
    assert end['step'] == whole['step'] and end['history'] == whole['history'] and found == losses('whole')
    assert all((end['model'][k] == v).all() for k, v in whole['model'].items())


def test_sigterm_at_random_moments(there):
    "Each time it ends with 75 and goes on where it was, to the same end as a run in one piece."
    rng, codes = random.Random(0), []
    while not codes or codes[-1] != 0:
        p = subprocess.Popen(TRAIN, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if len(codes) < 3:
            lock, end = Path('checkpoints/run.lock'), time.monotonic() + 60
            while not lock.exists() and p.poll() is None and time.monotonic() < end: time.sleep(.01)
            time.sleep(rng.uniform(.05, .3))
            p.send_signal(rng.choice([signal.SIGTERM, signal.SIGUSR1]))
        out, err = p.communicate(timeout=120)
        codes.append(p.returncode)
        assert p.returncode in (0, 75) and 'Traceback' not in err, err
        if p.returncode == 75: assert 'goes on' in err and not lock.exists()
    assert 75 in codes
    finished(there, outside)


def test_exit_on_checkpoint(there):
    "As HTCondor wants it: 85 after each checkpoint by the clock, the same arguments again, 0 at the end. In this process: a start costs nothing, so that many fit in."
    codes = []
    while not codes or codes[-1] == 85:
        codes.append(inside([*TRAIN, '--exit-on-checkpoint', '85', '--set', 'training.save_minutes=0.001']))
        assert len(codes) < 300
    assert codes[-1] == 0 and codes.count(85) == len(codes) - 1 >= 1
    finished(there, inside)


def test_the_walltime(there):
    found = run([*TRAIN, '--walltime', '8s', '--epochs', '5000'])
    assert found.returncode == 75 and 'stopped by walltime' in found.stderr and read_checkpoint('checkpoints/run')['step'] > 0


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_slurm_script_requeues_and_finishes(there, tmp_path):
    "With stand-ins for srun, which warns the first time as SLURM would, and scontrol."
    script = create_training_script(there, 'job.sbatch', 'sbatch', hours=1.5, cpus=1)
    text = script.read_text()
    assert '#SBATCH --signal=USR1@300' in text and '#SBATCH --requeue' in text and '#SBATCH --time=1:30:00' in text
    bin = tmp_path/'bin'; bin.mkdir()
    executable(bin/'srun', '''#!/usr/bin/env bash
"$@" & child=$!
if [ ! -e warned ]; then touch warned; while [ ! -e checkpoints/run.lock ]; do sleep .05; done; sleep .4; kill -USR1 $child; fi
wait $child
''')
    executable(bin/'scontrol', '#!/usr/bin/env bash\necho "$@" >> requeued\n')
    env = {**ENV, 'PATH': f'{bin}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '1'}
    first = subprocess.run(['bash', script], capture_output=True, text=True, env=env, timeout=120)
    assert first.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n', first.stderr
    assert 0 < read_checkpoint('checkpoints/run')['step'] < 160
    again = subprocess.run(['bash', script], capture_output=True, text=True, env=env, timeout=120)
    assert again.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n'
    finished(there, outside)


def test_the_condor_file(there):
    script = create_training_script(there, 'job.sub', 'htcondor', gpus=1, memory_gb=8)
    words = dict(re.findall(r'^\+?(\w+) = (.*)$', script.read_text(), re.M))
    assert words['checkpoint_exit_code'] == '85' and words['arguments'] == '--exit-on-checkpoint 85' and words['request_memory'] == '8 GB' and words['request_gpus'] == '1'
    assert os.access(words['executable'], os.X_OK) and run([words['executable'], '--epochs', '2']).returncode == 0


@pytest.mark.parametrize('kind, name', [('bash', 'go.sh'), ('python', 'go.py')])
def test_plain_scripts_run_by_themselves(there, kind, name):
    assert main(['script', '--type', kind, '--config', 'run.yaml', '--epochs', '2', '--out', name]) == 0
    found = run([f'./{name}'] if kind == 'bash' else [sys.executable, name])
    assert found.returncode == 0, found.stderr
    assert load_config(f'{name}.yaml').training.num_epochs == 2 and read_checkpoint('checkpoints/run')['epoch'] == 2


def test_a_script_of_an_unknown_kind(there, capsys):
    assert main(['script', '--type', 'slurm', '--config', 'run.yaml']) == 2 and 'one of bash, python, sbatch, htcondor' in capsys.readouterr().err
    assert not Path('train.sh').exists()


def test_replaying_what_is_no_incident(there, capsys):
    assert main(['train', '--config', 'run.yaml', '--epochs', '1']) == 0
    assert main(['replay', 'checkpoints/run']) == 3 and 'is not an incident' in capsys.readouterr().err
    assert main(['replay', 'nowhere']) == 3


def test_doctor_proves_the_resume_of_a_config(there, capsys):
    assert main(['doctor', '--resume', '--config', 'run.yaml']) in (0, 1)   # 1: something about the machine
    assert 'ok   run: equal to the last bit' in capsys.readouterr().out
