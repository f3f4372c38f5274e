"The log of a run: whole lines after any crash, no step twice after a resume, and mirrors that may break without stopping anything."
import errno, itertools, json, logging, os, random, resource, signal, sys, time, types
from unittest import mock

import numpy as np
import pytest
import torch

from genesis.core import ConfigError, DataError, StorageError, log
from genesis.training import logging as glog
from genesis.training.logging import create_logger, read_metrics, series

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def logger_in(folder, name='run', **kw): return create_logger(name, folder, **(dict(use_tensorboard=False, console=False) | kw))


def write_run(folder, steps, **kw):
    with logger_in(folder, **kw) as logger:
        for s in steps: logger.log_metrics({'loss': 1/(s+1), 'lr': 1e-4}, s)


def test_cut_at_every_byte_of_the_last_lines(tmp_path, caplog):
    write_run(tmp_path, range(8))
    file = tmp_path/'run'/'metrics.jsonl'
    whole = file.read_bytes()
    ends = [i+1 for i,b in enumerate(whole) if b == ord('\n')]
    for cut in range(ends[4], len(whole)+1):
        caplog.clear()
        file.write_bytes(whole[:cut])
        complete = sum(e <= cut for e in ends)
        found = read_metrics(file)['step']
        assert found in (list(range(complete)), list(range(complete+1)))  # a line may lack nothing but its end
        torn = cut not in ends and len(found) == complete
        assert torn == ('metrics.jsonl: dropped line' in caplog.text)
        if cut % 3: continue
        write_run(tmp_path, range(len(found), 10), resume_step=len(found)-1)
        assert read_metrics(file)['step'] == list(range(10))


@pytest.mark.parametrize('tail', [b'\0'*50, b'{"step": 5}x', b'[1]', b'{"step": 7, "time": 0.0, "lo'], ids=['zeros', 'glued', 'no record', 'torn'])
def test_a_spoilt_tail_is_dropped_and_said(tmp_path, tail, caplog):
    write_run(tmp_path, range(3))
    with open(tmp_path/'run'/'metrics.jsonl', 'ab') as f: f.write(tail)
    assert read_metrics(tmp_path/'run')['step'] == [0, 1, 2]
    assert 'metrics.jsonl: dropped line 4, torn' in caplog.text


def test_kill_9_while_appending(tmp_path, caplog):
    rng,steps = random.Random(0),0
    for _ in range(40):
        read,write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                logger = logger_in(tmp_path, resume_step=steps)
                for s in itertools.count(steps+1): logger.log_metrics({'loss': 0.1*s, 'text': s}, s); os.write(write, b'%d\n' % s)
            finally: os._exit(1)
        os.close(write)
        with os.fdopen(read) as f:
            said = [int(f.readline()) for _ in range(rng.randint(1, 20))]
            time.sleep(rng.uniform(0, 0.0005))
            os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
            said += [int(line) for line in f]
        found = read_metrics(tmp_path/'run')['step']
        assert found == list(range(1, len(found)+1)) and len(found) >= max(said)
        steps = len(found)
    assert steps > 100 and not caplog.text


def test_processes_do_not_mix_their_lines(tmp_path):
    logger = logger_in(tmp_path)
    pids = []
    for child in range(3):
        pids.append(os.fork())
        if pids[-1] == 0:
            for s in range(200): logger._write('metrics', {'step': s, 'x'*100: child})
            os._exit(0)
    for pid in pids: os.waitpid(pid, 0)
    logger.close()
    m = read_metrics(tmp_path/'run')
    assert sorted(m['step']) == sorted([*range(200)]*3)


def scalars(folder, tag='loss'):
    "What TensorBoard shows."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder)); events.Reload()
    return [(e.step, round(e.value, 6)) for e in events.Scalars(tag)]


def test_resumed_twice_without_doubles(tmp_path):
    value = lambda s, life: s + life/8
    for life,(resume,end) in enumerate([(None, 70), (50, 90), (50, 120)]):
        logger = logger_in(tmp_path, use_tensorboard=True, resume_step=resume)
        for s in range(0 if resume is None else resume+10, end, 10):
            logger.log_metrics({'loss': value(s, life)}, s)
            if s % 20 == 0: logger.log_text('note', f'{life}', s); logger.log_metrics({'val_loss': 1.}, s)
        logger.close()
    m = read_metrics(tmp_path/'run')
    expected = [(s, value(s, 0 if s <= 50 else 2)) for s in range(0, 120, 10)]
    assert list(zip(*series(m, 'loss'))) == expected
    assert series(m, 'val_loss')[0] == list(range(0, 120, 20))
    assert scalars(tmp_path/'run') == expected
    notes = [json.loads(line) for line in (tmp_path/'run'/'records.jsonl').read_text().splitlines()]
    assert [(r['step'], r['text']) for r in notes] == [(0, '0'), (20, '0'), (40, '0'), (60, '2'), (80, '2'), (100, '2')]


def test_a_new_run_keeps_the_old_one(tmp_path):
    for steps in (3, 4, 5): write_run(tmp_path, range(steps))
    assert [len(read_metrics(tmp_path/name)['step']) for name in ('run.1', 'run.2', 'run')] == [3, 4, 5]


def test_a_full_disk_stops_nothing(tmp_path):
    "A limit on the size of files stands in for the full disk: the kernel cuts a line short."
    write_run(tmp_path, range(3), use_tensorboard=True)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            sys.stderr = open(tmp_path/'stderr', 'w', buffering=1)
            logger = logger_in(tmp_path, resume_step=2)
            size = (tmp_path/'run'/'metrics.jsonl').stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size+100, size+100))
            for s in range(3, 30): logger.log_metrics({'loss': 0.}, s)
            os._exit(logger.get_training_summary()['lines_lost'])
        finally: os._exit(255)
    lost = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    data = (tmp_path/'run'/'metrics.jsonl').read_bytes()
    assert data.endswith(b'}\n') and 20 < lost < 28
    assert read_metrics(tmp_path/'run')['step'] == list(range(30-lost))
    said = (tmp_path/'stderr').read_text()
    assert said.count('metrics.jsonl') == 1 and 'training goes on' in said and 'Traceback' not in said


@pytest.mark.parametrize('fault', ['short', 'error'])
def test_a_line_that_does_not_fit_is_taken_back(tmp_path, fault, caplog):
    logger = logger_in(tmp_path)
    logger.log_metrics({'loss': 1.}, 0)
    real = os.write
    def write(fd, data):
        n = real(fd, data[:len(data)//2])
        if fault == 'error': raise OSError(errno.EIO, os.strerror(errno.EIO))
        return n
    with mock.patch.object(glog.os, 'write', write):
        for s in (1, 2): logger.log_metrics({'loss': 1.}, s)
    logger.log_metrics({'loss': 1.}, 3); logger.close()
    assert (tmp_path/'run'/'metrics.jsonl').read_text().count('\n') == 2
    assert read_metrics(tmp_path/'run')['step'] == [0, 3] and logger.lost == 2
    assert [r.levelname for r in caplog.records].count('WARNING') == 1


def test_the_text_file_may_fail(tmp_path, capsys):
    logger = logger_in(tmp_path)
    text = next(h for h in logger._handlers if isinstance(h, glog._TextFile))
    text.stream.close(); text.stream = open('/dev/full', 'w') if os.path.exists('/dev/full') else pytest.skip('no /dev/full')
    for s in range(5): logger.log_metrics({'loss': 1.}, s)
    said = capsys.readouterr().err
    assert said.count('run.log cannot be written any more') == 1 and 'Traceback' not in said
    assert len(read_metrics(tmp_path/'run')['step']) == 5
    text.stream = None; logger.close()


class FakeWandb(types.ModuleType):
    "Remembers what it is told; `fail` is the verb that raises."
    def __init__(self, fail=None):
        super().__init__('wandb'); self.told,self.fail = [],fail
        self.config,self.summary,self.Image,self.Histogram = types.SimpleNamespace(update=self._verb('config')),{},np.shape,len
    def _verb(self, name):
        def f(*args, **kw):
            if name == self.fail: raise ConnectionError(f'{name}: the server\nis gone')
            self.told.append((name, args, kw))
        return f
    def init(self, **kw): self._verb('init')(**kw); return self
    def log(self, *args, **kw): self._verb('log')(*args, **kw)
    def finish(self): self._verb('finish')()


def test_wandb_hears_everything_and_keeps_its_id(tmp_path):
    with mock.patch.dict(sys.modules):
        ids = []
        for resume in (None, 1, None):
            fake = sys.modules['wandb'] = FakeWandb()
            with logger_in(tmp_path, use_wandb=True, wandb_project='icecube', wandb_entity='us', resume_step=resume) as logger:
                logger.log_metrics({'loss': 1.}, 5); logger.log_config({'a': 1}); logger.log_text('t', 'word'); logger.log_histogram('h', [1., 2.]); logger.log_image('i', np.zeros((2, 3)))
                assert logger.get_training_summary()['wandb_project'] == 'icecube'
            init = fake.told[0][2]
            assert (init['project'], init['entity'], init['name'], init['resume']) == ('icecube', 'us', 'run', 'allow')
            assert [name for name,*_ in fake.told] == ['init', 'log', 'config', 'log', 'log', 'finish']
            assert fake.told[1][1:] == (({'loss': 1.},), {'step': 5}) and fake.summary == {'t': 'word'}
            ids.append(init['id'])
    assert ids[0] == ids[1] != ids[2]  # a resumed run is the same run


@pytest.mark.parametrize('fail', ['init', 'log', 'config', 'finish'])
def test_a_broken_mirror_is_said_once(tmp_path, fail, capsys):
    with mock.patch.dict(sys.modules, wandb=FakeWandb(fail)):
        with logger_in(tmp_path, use_wandb=True) as logger:
            for s in range(5): logger.log_metrics({'loss': 1.}, s)
            logger.log_config({'a': 1})
    said = capsys.readouterr().err
    assert said.count('Weights & Biases') == 1 and f'{fail}: the server;is gone' in said
    assert read_metrics(tmp_path/'run')['step'] == list(range(5))


def test_absent_mirrors_are_said_at_the_start(tmp_path, capsys):
    with mock.patch.dict(sys.modules, {'wandb': None, 'torch.utils.tensorboard': None}):
        with logger_in(tmp_path, use_wandb=True, use_tensorboard=True) as logger: logger.log_metrics({'loss': 1.}, 0)
        summary = logger.get_training_summary()
    said = capsys.readouterr().err
    assert 'Weights & Biases is not available' in said and "'.[wandb]'" in said and 'TensorBoard is not available' in said
    assert summary['wandb_project'] is None and summary['tensorboard_log_dir'] is None
    assert read_metrics(tmp_path/'run')['step'] == [0]


def test_the_module_is_light():
    "TensorBoard and torch are imported by those who use them."
    code = 'import sys; import genesis.training.logging as l; l.create_logger("x", sys.argv[1], use_tensorboard=False).close(); print([m for m in ("tensorboard", "wandb", "matplotlib") if m in sys.modules])'
    import subprocess, tempfile
    with tempfile.TemporaryDirectory() as d: done = subprocess.run([sys.executable, '-c', code, d], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path/'file').write_text('')
    before = list(log.handlers)
    with pytest.raises(StorageError, match='log .* cannot be written\n.*\n.*choose another log_dir'): create_logger('run', tmp_path/'file'/'logs', use_tensorboard=False)
    assert log.handlers == before
    with pytest.raises(ConfigError, match='must name a folder'): create_logger('a/b', tmp_path)


def test_handlers_and_level_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(log, 'level', logging.ERROR)
    before,level = list(log.handlers),log.level
    logger = logger_in(tmp_path)
    log.warning('a damaged checkpoint')
    logger.close(); logger.close()
    assert (log.handlers, log.level) == (before, level)
    assert 'WARNING a damaged checkpoint' in (tmp_path/'run.log').read_text()


def test_console_shows_lines_only_if_asked_but_warnings_always(tmp_path, capsys):
    for console in (True, False):
        with logger_in(tmp_path, console=console) as logger: logger.log_metrics({'loss': 0.25}, 7); log.warning('careful')
        said = capsys.readouterr().err
        assert ('step 7  loss 0.25' in said) == console and 'careful' in said


def test_values_of_every_kind(tmp_path):
    with logger_in(tmp_path) as logger:
        logger.log_metrics({'f': torch.tensor(0.5), 'g': torch.tensor([2.5], requires_grad=True), 'h': np.float32(0.1), 'i': np.int64(3), 'b': True, 'nan': float('nan'), 'inf': -np.inf, 'file': 1, 'self': 2}, step=np.int64(4))
        logger.log_metrics({'f': 1})
        logger.log_epoch(3, {'loss': 0.5})
        for bad in ('x', None, [1, 2], torch.zeros(2)):
            with pytest.raises(ConfigError, match="'bad' is not a number"): logger.log_metrics({'good': 1, 'bad': bad})
    m = read_metrics(tmp_path/'run')
    assert m['step'] == [4, 5, 5] and m['f'] == [0.5, 1, None] and m['g'][0] == 2.5 and m['h'][0] == float(np.float32(0.1)) and m['i'][0] == 3 and m['b'][0] == 1
    assert np.isnan(m['nan'][0]) and m['inf'][0] == -np.inf and m['file'][0] == 1 and m['epoch/loss'][2] == 0.5 and 'good' not in m
    assert {len(v) for v in m.values()} == {3}
    history = json.loads(logger.save_metrics_history().read_text(), parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    assert history['nan'][0] == 'nan' and (tmp_path/'run_metrics.json').exists()


def test_summary(tmp_path):
    with logger_in(tmp_path, use_tensorboard=True) as logger:
        logger.log_metrics({'loss': 1.}, 10); logger.log_epoch(2, {})
        s = logger.get_training_summary()
    assert (s['experiment_name'], s['current_step'], s['current_epoch'], s['total_metrics_logged'], s['lines_lost']) == ('run', 10, 2, 2, 0)
    assert s['elapsed_time'] > 0 and s['log_dir'] == str(tmp_path) and s['tensorboard_log_dir'] == str(tmp_path/'run') and s['wandb_project'] is None


def test_tensorboard_has_pictures_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with logger_in(tmp_path, use_tensorboard=True) as logger:
        logger.log_image('grey', np.eye(4), 1); logger.log_image('rgba', np.zeros((4, 4, 4), np.uint8), 1); logger.log_histogram('h', torch.randn(100), 1)
        logger.log_histogram('empty', [float('nan')], 1); logger.log_text('t', 'word', 1); logger.log_hyperparameters({'lr': 1e-4})
    assert logger.lost == 0
    tags = EventAccumulator(str(tmp_path/'run')).Reload().Tags()
    assert set(tags['images']) == {'grey', 'rgba'} and tags['histograms'] == ['h'] and set(tags['tensors']) == {'t/text_summary', 'hyperparameters/text_summary'}


def test_reading_what_is_not_there(tmp_path):
    write_run(tmp_path, range(2))
    with pytest.raises(DataError, match='no metrics at .*\n.*\n.*did you mean: run'): read_metrics(tmp_path/'rum')
    with pytest.raises(DataError, match="no metric 'los'.*\n.*\n.*did you mean: loss"): series(read_metrics(tmp_path/'run'), 'los')


def test_the_summary_s_snippet(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    names = {}
    exec(compile("""
from genesis.training.logging import create_logger

logger = create_logger(
    experiment_name="my_experiment",
    use_tensorboard=True,
    use_wandb=True
)

logger.log_metrics({"loss": 0.5, "accuracy": 0.9}, step=100)
""", 'snippet', 'exec'), names)
    names['logger'].close()
    found = read_metrics(tmp_path/'logs'/'my_experiment')
    assert (found['step'], found['loss'], found['accuracy']) == ([100], [.5], [.9])
    assert caplog.text.count('Weights & Biases is not available') == 1 and list((tmp_path/'logs'/'my_experiment').glob('events.out.tfevents.*'))


def test_every_flipped_bit_of_a_line_is_noticed(tmp_path):
    write_run(tmp_path, range(3))
    file = tmp_path/'run'/'metrics.jsonl'
    whole = file.read_bytes()
    start, end = whole.index(b'\n')+1, whole.index(b'\n', whole.index(b'\n')+1)   # the second line
    known = {k: set(v) for k, v in read_metrics(file).items()}
    level = log.level; log.setLevel('CRITICAL')
    try:
        for bit in range(8*start, 8*end):
            bad = bytearray(whole); bad[bit//8] ^= 1 << bit%8
            file.write_bytes(bad)
            found = read_metrics(file)
            assert len(found['step']) == 2 and all(set(found[k]) <= v for k, v in known.items() if k in found), bit
    finally: log.setLevel(level)


def test_damage_in_the_middle_is_told_from_a_torn_end(tmp_path, caplog):
    write_run(tmp_path, range(5))
    file = tmp_path/'run'/'metrics.jsonl'
    file.write_bytes(file.read_bytes().replace(b'"step": 2', b'"step": 7'))
    assert read_metrics(file)['step'] == [0, 1, 3, 4] and 'dropped line 3, damaged since it was written' in caplog.text


def test_a_log_without_checksums_is_read_and_continued(tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'metrics.jsonl').write_text(''.join(json.dumps(dict(step=s, time=0., loss=1/(s+1))) + '\n' for s in range(4)))
    assert read_metrics(tmp_path/'run')['loss'] == [1., .5, 1/3, .25]
    write_run(tmp_path, [3, 4], resume_step=2)
    assert read_metrics(tmp_path/'run')['step'] == [0, 1, 2, 3, 4]
    assert all(b'"crc"' in line for line in (tmp_path/'run'/'metrics.jsonl').read_bytes().splitlines())


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_each_step_once_after_a_crash(tmp_path):
    "Killed at 80, resumed at 50."
    pid = os.fork()
    if pid == 0:
        try:
            logger = logger_in(tmp_path, use_tensorboard=True)
            for s in range(0, 81, 10): logger.log_metrics({'loss': float(s)}, s)
            logger._mirrors[0][1].writer.flush()
        finally: os._exit(9)
    os.waitpid(pid, 0)
    time.sleep(1.1)   # TensorBoard orders files by the second in their names
    with logger_in(tmp_path, use_tensorboard=True, resume_step=50) as logger:
        for s in range(60, 121, 10): logger.log_metrics({'loss': -float(s)}, s)
    assert [(e.step, e.value) for e in tensorboard(tmp_path/'run').Scalars('loss')] == [(s, float(s if s <= 50 else -s)) for s in range(0, 121, 10)]


def test_a_full_disk_silences_tensorboard_with_one_warning(tmp_path, capfd, caplog):
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            logger = logger_in(tmp_path, use_tensorboard=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
            for s in range(400): logger.log_metrics({'loss': 1., **{f'm{k}': 0. for k in range(20)}}, s)
            logger._mirrors and logger._mirrors[0][1].writer.flush()
            logger.close()
            os._exit(0)
        except BaseException: import traceback; traceback.print_exc(); os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    said = capfd.readouterr().err
    assert 'Traceback' not in said and said.count('TensorBoard failed and is dropped') == 1


def test_the_mode_of_wandb(tmp_path):
    fake = FakeWandb()
    told = []
    init = fake.init
    fake.init = lambda **kw: (told.append(kw.get('mode')), init(**{k: v for k, v in kw.items() if k != 'mode'}))[1]
    with mock.patch.dict(sys.modules, wandb=fake):
        for mode in ('offline', 'disabled', None): logger_in(tmp_path, f'run-{mode}', use_wandb=True, wandb_mode=mode).close()
        with pytest.raises(ConfigError, match='did you mean: offline'): logger_in(tmp_path, use_wandb=True, wandb_mode='ofline')
    assert told == ['offline', 'disabled', None]


def test_real_wandb_offline(tmp_path):
    pytest.importorskip('wandb', reason='the package wandb is not installed')
    with logger_in(tmp_path, use_wandb=True, wandb_mode='offline', wandb_project='test') as logger:
        logger.log_metrics({'loss': 1.}, 1)
        assert logger.get_training_summary()['wandb_project'] == 'test'
    assert list((tmp_path/'run'/'wandb').glob('offline-run-*/*.wandb'))


def test_model_and_summary_are_kept(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    net[1].requires_grad_(False)
    with logger_in(tmp_path, use_tensorboard=True) as logger:
        logger.log_model_info(net)
        path = logger.log_training_summary(dict(best=1.5, where=tmp_path))
    [record] = [json.loads(line) for line in (tmp_path/'run'/'records.jsonl').read_text().splitlines()]
    assert record['value'] == dict(name='Sequential', parameters=21, trainable=16, megabytes=84e-6, parts={'0': 16, '1': 5})
    assert json.loads(path.read_text()) == dict(best=1.5, where=str(tmp_path))
    assert {'model/text_summary', 'summary/text_summary'} <= set(tensorboard(tmp_path/'run').Tags()['tensors'])


def test_a_line_is_one_event_of_tensorboard(tmp_path):
    "With every value of the line, as single scalars would have been."
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    lines = {5: {'a': 1.5, 'b/c': float('nan'), 'n': 3, 'tiny': 1e-30}, 9: {'a': -np.inf, 'large': 1e30}, 11: {'a': 0.1}}
    with logger_in(tmp_path, use_tensorboard=True) as logger:
        for step, values in lines.items(): logger.log_metrics(values, step)
    [file] = (tmp_path/'run').glob('events.out.tfevents.*')
    assert [(e.step, len(e.summary.value)) for e in EventFileLoader(str(file)).Load() if e.summary.value] == [(5, 4), (9, 2), (11, 1)]
    found = tensorboard(tmp_path/'run')
    for tag in {k for values in lines.values() for k in values}:
        np.testing.assert_equal([(e.step, e.value) for e in found.Scalars(tag)], [(s, float(np.float32(v[tag]))) for s, v in lines.items() if tag in v])


class Remembers(glog.Sink):
    "A stranger's sink: it writes down what it is told."
    def __init__(self, run): self.run, self.told = run, []
    def scalars(self, values, step): self.told.append(('scalars', values, step))
    def text(self, tag, text, step): self.told.append(('text', tag, text, step))
    def image(self, tag, pixels, step): self.told.append(('image', tag, pixels.shape, step))
    def settings(self, tag, values): self.told.append(('settings', tag, values))
    def close(self): self.told.append(('close',))


def test_a_sink_from_outside(tmp_path, monkeypatch):
    "What it has no verb for, here histograms, `Sink` leaves out."
    made = []
    monkeypatch.setitem(glog.SINKS, 'mine', lambda run: made.append(Remembers(run)) or made[-1])
    with logger_in(tmp_path, sinks=['mine'], wandb_project='icecube') as logger:
        logger.log_metrics({'loss': 1.}, 5)
        logger.log_config({'a': 1})
        logger.log_text('t', 'word')
        logger.log_histogram('h', [1., 2.])
        logger.log_image('i', np.zeros((2, 3)))
    [sink] = made
    assert (sink.run.name, sink.run.folder, sink.run.resume_step, sink.run.wandb_project) == ('run', tmp_path/'run', None, 'icecube')
    heard = [('scalars', {'loss': 1.}, 5), ('settings', 'config', {'a': 1}), ('text', 't', 'word', 5), ('image', 'i', (2, 3, 3), 5), ('close',)]
    assert sink.told == heard
    assert glog.rebuild_mirrors(tmp_path/'run', use_tensorboard=False, sinks=['mine']) == 1
    assert made[1].told == [heard[1], heard[2], heard[0], heard[4]]  # images and histograms are not replayed


def test_a_sink_that_breaks_is_said_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(glog.SINKS, 'gone', lambda run: 1/0)
    monkeypatch.setitem(glog.SINKS, 'bare', lambda run: object())
    with logger_in(tmp_path, sinks=['gone', 'bare']) as logger:
        for s in range(3): logger.log_metrics({'loss': 1.}, s)
    said = capsys.readouterr().err
    assert said.count('gone is not available') == 1 and said.count('bare failed and is dropped') == 1
    assert read_metrics(tmp_path/'run')['step'] == [0, 1, 2]


def test_wrong_words_are_errors_before_anything_is_touched(tmp_path):
    write_run(tmp_path, range(3))
    before = list(log.handlers)
    for kw in (dict(sinks=['wandd']), dict(wandb_mode='ofline')):
        with pytest.raises(ConfigError, match='did you mean: (wandb|offline)'): logger_in(tmp_path, **kw)
    assert log.handlers == before and [p.name for p in tmp_path.iterdir() if p.is_dir()] == ['run']
