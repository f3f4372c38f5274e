"Trainings as a batch system treats them: warned, taken off the machine, started again, from scripts that the package wrote."
import json, os, random, re, signal, stat, subprocess, sys, time
from pathlib import Path

import pytest

from genesis.cli import main
from genesis.config import load_config, override, save_config
from genesis.core import ConfigError
from genesis.data.detector import toy_detector
from genesis.data.events import write_events
from genesis.data.simulator import simulate_events
from genesis.training.checkpointing import read_checkpoint
from genesis.training.logging import read_metrics, series
from genesis.training.setup import total_steps
from genesis.training.trainer import Trainer
from genesis.training.utils import SCRIPTS, create_training_script, estimate_training_time

TRAIN = [sys.executable, '-m', 'genesis_start', 'train', '--config', 'run.yaml', '--resume', 'auto']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).resolve().parents[1])}


@pytest.fixture
def there(tmp_path, monkeypatch):
    "A folder with events and the config of a training of some seconds."
    monkeypatch.chdir(tmp_path)
    write_events(simulate_events(200, detector=toy_detector(), seed=1, min_hits=4), 'toy.h5')
    cfg = override(load_config(Path(__file__).resolve().parents[1]/'configs'/'cosine_annealing.yaml'), {'experiment_name': 'run', 'diffusion.space': 'event', 'data.h5_path': 'toy.h5', 'data.batch_size': 16, 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8,
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


def test_exit_on_checkpoint(there, monkeypatch):
    "As HTCondor wants it: 85 after each checkpoint by the clock, the same arguments again, 0 at the end. Here the clock strikes every 60 steps."
    step = Trainer.train_step
    def ticking(self):
        if (self.step + 1) % 60 == 0: self.next_save = 0
        return step(self)
    monkeypatch.setattr(Trainer, 'train_step', ticking)
    codes = [inside([*TRAIN, '--exit-on-checkpoint', '85']) for _ in range(3)]
    assert codes == [85, 85, 0] and read_checkpoint('checkpoints/run')['step'] == total_steps(there)
    finished(there, inside)


def test_the_walltime(there):
    found = run([*TRAIN, '--walltime', '8s', '--epochs', '5000'])
    assert found.returncode == 75 and 'stopped by walltime' in found.stderr and read_checkpoint('checkpoints/run')['step'] > 0


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


SRUN = """#!/usr/bin/env bash
# a step of SLURM: so many tasks, each with its place; the first time they are warned while they train
while [[ "$1" == --* ]]; do shift; done
children=()
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & children+=($!); done
if [ ! -e warned ]; then
  touch warned
  for ((k = 0; k < 1200; k++)); do compgen -G 'checkpoints/*.lock' > /dev/null && break; sleep .05; done
  sleep .4; kill -USR1 "${children[@]}"
fi
worst=0
for child in "${children[@]}"; do wait "$child"; code=$?; if [ $code -gt $worst ]; then worst=$code; fi; done
exit $worst
"""


@pytest.fixture
def slurm(tmp_path):
    "Runs a script as sbatch would: what its directives ask for is in the environment, srun and scontrol are stand-ins."
    bin = tmp_path/'bin'; bin.mkdir()
    executable(bin/'srun', SRUN)
    executable(bin/'scontrol', '#!/usr/bin/env bash\necho "$@" >> requeued\n')
    def submit(script, job=7):
        asked = dict(re.findall(r'^#SBATCH --([\w-]+)=(\S+)$', script.read_text(), re.M))
        env = {**ENV, 'PATH': f'{bin}:{os.environ["PATH"]}', 'SLURM_JOB_ID': str(job), 'SLURM_CPUS_PER_TASK': asked['cpus-per-task'], 'SLURM_NTASKS': asked['ntasks']}
        return subprocess.run(['bash', script], capture_output=True, text=True, env=env, timeout=120)
    return submit


def test_the_slurm_script_requeues_and_finishes(there, slurm):
    script = create_training_script(there, 'job.sbatch', 'sbatch', hours=1.5, cpus=1)
    text = script.read_text()
    assert '#SBATCH --signal=USR1@300' in text and '#SBATCH --requeue' in text and '#SBATCH --time=1:30:00' in text and 'gres' not in text
    first = slurm(script)
    assert first.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n', first.stderr
    assert 0 < read_checkpoint('checkpoints/run')['step'] < 160
    again = slurm(script)
    assert again.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n', again.stderr
    finished(there, outside)


def test_slurm_starts_a_process_a_gpu(there, slurm):
    "All of them are warned, one saves, the job is queued again, and it ends with the bits of one that was not stopped."
    script = create_training_script(there, 'job.sbatch', 'sbatch', cpus=1, gpus=2)
    assert re.search(r'^#SBATCH --gres=gpu:2$', script.read_text(), re.M) and 'torchrun' not in script.read_text()
    first = slurm(script)
    assert first.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n' and 'Traceback' not in first.stderr, first.stderr
    assert 0 < read_checkpoint('checkpoints/run')['step'] < 160
    again = slurm(script)
    assert again.returncode == 0 and Path('requeued').read_text() == 'requeue 7\n', again.stderr
    steps = losses()[0][0]
    assert steps == sorted(set(steps)), 'one process writes'
    whole = slurm(create_training_script(override(there, {'experiment_name': 'whole'}), 'whole.sbatch', 'sbatch', cpus=1, gpus=2))
    a, b = (read_checkpoint(f'checkpoints/{name}') for name in ('run', 'whole'))
    assert whole.returncode == 0 and a['step'] == b['step'] and losses() == losses('whole') and all((a['model'][k] == v).all() for k, v in b['model'].items())


NAMES = ["it's", 'a "b" c', '$(touch hacked)', '`touch hacked` \\', '; touch hacked #', "''' %j *"]


@pytest.mark.parametrize('name', NAMES)
def test_any_name_can_be_scripted(there, slurm, tmp_path, monkeypatch, name):
    "Of an experiment, of a folder and of a script: words stay words, whichever program reads them. A stand-in for Python notes what it is asked for, and where."
    inside = tmp_path/name; (inside/'genesis').mkdir(parents=True); monkeypatch.chdir(inside)
    (inside/'warned').touch()   # srun warns nobody
    executable(inside/'python', f'#!{sys.executable}\nimport json, os, sys; json.dump([os.getcwd(), sys.argv[1:]], open("asked.json", "w"))\n')
    (inside/'genesis'/'__init__.py').touch(); (inside/'genesis'/'cli.py').write_text('import json, os\ndef main(argv): json.dump([os.getcwd(), ["-m", "genesis_start", *argv]], open("asked.json", "w"))\n')
    monkeypatch.setitem(ENV, 'PYTHONPATH', str(inside))
    cfg = override(there, {'experiment_name': name})
    with monkeypatch.context() as m:
        m.setattr(sys, 'executable', str(inside/'python'))
        made = {kind: create_training_script(cfg, f'{name}{end}', kind) for kind, end in SCRIPTS.items()}
    words = dict(re.findall(r'^\+?(\w+) = (.*)$', made['htcondor'].read_text(), re.M))
    assert words['initialdir'] == str(inside).replace('$', '$(DOLLAR)') and words['executable'].replace('$(DOLLAR)', '$') == str(inside/f'{name}.sh')
    assert re.fullmatch(r'[\w.-]+\.condor\.log', words['log']) and re.search(r'^#SBATCH --job-name=[\w.-]+$', made['sbatch'].read_text(), re.M)
    for kind, go in dict(bash=lambda p: run([p]), python=lambda p: run([sys.executable, p]), sbatch=slurm).items():
        done = go(made[kind])
        assert done.returncode == 0, done.stderr
        where, asked = json.loads((inside/'asked.json').read_text()); (inside/'asked.json').unlink()
        assert where == str(inside) and asked == ['-m', 'genesis_start', 'train', '--config', f'{made[kind]}.yaml', '--resume-from-checkpoint', 'auto']
        assert load_config(asked[4]).experiment_name == name
    assert not list(tmp_path.rglob('hacked'))


def test_an_experiment_with_a_strange_name_runs(there):
    script = create_training_script(override(there, {'experiment_name': NAMES[1] + NAMES[2], 'training.num_epochs': 1}), 'go.sh')
    assert run([script]).returncode == 0 and read_checkpoint(f'checkpoints/{NAMES[1]}{NAMES[2]}')['epoch'] == 1


@pytest.mark.parametrize('name', ['two\nlines', 'a\rb', 'bell\a', 'esc\x1b[0m'])
def test_a_name_that_cannot_be_printed_is_refused(there, tmp_path, name):
    before = sorted(tmp_path.rglob('*'))
    for kind in SCRIPTS:
        with pytest.raises(ConfigError): create_training_script(override(there, {'experiment_name': name}), 'go', kind)
        with pytest.raises(ConfigError, match='cannot be printed'): create_training_script(there, f'go-{name}', kind)
    assert sorted(tmp_path.rglob('*')) == before


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


def test_an_estimate_adds_up(there, monkeypatch):
    "Each piece is seen where it takes a known time at least, and the steps and the disk are those of the run. How near the whole is to the truth is measured in benchmarks/trainer.py."
    calls = {}
    def slowed(name, seconds):
        real, calls[name] = getattr(Trainer, name), 0
        def f(self, *a, **k): calls[name] += 1; time.sleep(seconds); return real(self, *a, **k)
        monkeypatch.setattr(Trainer, name, f)
    for name, seconds in dict(train_step=.02, look_at_events=.3, _load_data=.5).items(): slowed(name, seconds)
    cfg = override(there, {'training.panel_minutes': .005, 'training.num_epochs': 8, 'training.save_minutes': 1/60, 'training.log_interval': 50})
    guess = estimate_training_time(cfg)
    assert guess['panels'] >= 2 and guess['panel_seconds'] >= .3 and guess['startup_seconds'] >= .5 and guess['time_per_step_seconds'] >= .02
    assert guess['total_time_seconds'] > guess['startup_seconds'] + guess['total_steps']*guess['time_per_step_seconds'] + guess['panels']*guess['panel_seconds']
    calls.update(dict.fromkeys(calls, 0))
    Trainer(cfg, show=False).train()
    assert guess['total_steps'] == calls['train_step'] >= 80
    kept = sum(p.stat().st_size for p in Path('checkpoints/run').rglob('*') if p.is_file())
    assert .3 < kept/1e9/guess['disk_gb'] < 1.02, 'an upper bound, and not an idle one'
