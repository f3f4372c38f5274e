"""What the trainer costs beside the computation: against loops written by hand, Lightning and Accelerate; what checkpoints cost; how good the estimate of a run is.

    OMP_NUM_THREADS=1 python benchmarks/trainer.py

Prints JSON lines: name, value, unit, reference, ratio; spreads go to stderr. One thread, process time (all threads count), a tiny network, so that microseconds can be seen.
Loops are compared step by step: after each step of one loop its hook takes the same step by other means, timed apart. So both see the same machine and each finds the caches as the other left them.
Figures are medians over stretches of 50 steps, of which each holds one log line; the first 60 steps of a session are not counted. No validation and no checkpoint falls into these steps.

- bare: batch, noise, network, loss, gradient, fused AdamW. Nothing else.
- hand: besides that clipping, a scheduler of torch, an average of the weights by `_foreach_lerp_`, and a test whether the step is finite. It writes and shows nothing.
  It ends with the weights of the trainer up to rounding (the trainer's optimiser divides the gradient by what clipping takes, the loop multiplies before), which is asserted.
- trainer: `Trainer.train()` with its defaults, but one average as the others have, where its default is two: besides that guards, log (JSON lines, text, TensorBoard), progress bar, hooks, clock of checkpoints, signals.
- Lightning: its Trainer with CSV log, progress bar, clipping, LambdaLR, `self.log` each step, EMAWeightAveraging.
- Accelerate: the loop of the scripts of diffusers: accumulate, clip, LambdaLR, EMAModel, tqdm with the loss by `.item()` each step. Neither it nor Lightning wraps the loader, which would cost them more.

`checkpoint-share` is what the training's thread pays for a save beside it, over `training.save_minutes`; `checkpoint-writer-share` is the processor time of the thread that writes.
`estimate-time` compares wall-clock times: `estimate_training_time` before a run of one epoch, and that run. Lightning, Accelerate and diffusers come with `pip install genesis[bench]`; what is absent is skipped.
"""
import contextlib, copy, json, logging, math, os, sys, tempfile, time, warnings

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
from tqdm import tqdm

from genesis.config import ExperimentConfig, override
from genesis.core import log
from genesis.data.events import write_events
from genesis.data.simulator import simulate_events
from genesis.training.setup import create_optimizer
from genesis.training.trainer import Trainer
from genesis.training.utils import estimate_training_time

LEAD, STRETCH, STEPS, ROUNDS = 60, 50, 300, 3
clock = time.process_time


class Screen:
    "A terminal that nobody looks at: progress bars are drawn, and seen by no one."
    def __init__(self): self.file = open(os.devnull, 'w')
    def isatty(self): return True
    def write(self, text): return self.file.write(text)
    def flush(self): self.file.flush()


def settings(folder, events, name, **more):
    "A config that writes below a folder and trains on events in it."
    path = f'{folder}/{events}.h5'
    return override(ExperimentConfig(), {'experiment_name': name, 'data.h5_path': path, 'device': 'cpu', **{f'training.{k}_dir': f'{folder}/{k}' for k in ('output', 'checkpoint', 'log')}, **more})


TINY = {'data.batch_size': 4, 'data.train_ratio': 1., 'data.val_ratio': 0., 'data.test_ratio': 0., 'model.hidden': 16, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8, 'training.num_epochs': 50, 'training.scheduler': 'cosine', 'training.ema_decay': .999}


class Bare:
    "Batch, noise, network, loss, gradient, optimiser: what every loop has to do. Starts where a trainer starts, and draws what it draws."
    def __init__(self, trainer):
        self.space, self.loader, self.total = copy.deepcopy(trainer.diffusion), copy.copy(trainer.train_loader), trainer.total_steps
        self.loader._x = None   # memory of its own
        self.optimizer, self.live = create_optimizer(self.space.model, trainer.config.training), list(self.space.model.parameters())
        self.generator, self.k, self.seeds = torch.Generator(), 0, []
        for trainer.step in range(LEAD + STEPS): self.seeds.append(trainer._seed())
        trainer.step = 0

    def batch(self): return self.loader.next(self.k*self.loader.batch_size, reuse=True)
    def random(self): return self.space.draw(self.loader.batch_size, self.generator.manual_seed(self.seeds[self.k]))

    def __call__(self):
        batch = self.batch()
        self.space.loss(batch, self.random())[0].mean().backward()
        self.optimizer.step(); self.optimizer.zero_grad()
        self.k += 1


class Hand(Bare):
    "Besides: clipping, schedule, averages, and a look whether it is finite."
    def __init__(self, trainer):
        super().__init__(trainer)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.total)
        self.means, self.decays = [[p.detach().clone() for p in self.live] for _ in trainer.ema.means], trainer.ema.decays
        self.start = {id(m): m.clone() for m in self.means[0]}

    def __call__(self):
        batch = self.batch()
        loss = self.space.loss(batch, self.random())[0].mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.live, 1.)
        if math.isfinite(loss + norm): self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        with torch.no_grad():
            for mean, d in zip(self.means, self.decays(self.k)): torch._foreach_lerp_(mean, self.live, 1-d)
        self.k += 1


class Beside:
    "Called after each step of a loop: takes the same step by other means; both are timed."
    def __init__(self, **others): self.others, self.times, self.last = others, {k: [] for k in ('loop', *others)}, clock()

    def __call__(self):
        self.times['loop'].append(clock() - self.last)
        for k, step in self.others.items():
            t = clock(); step(); self.times[k].append(clock() - t)
        self.last = clock()

    after_step = lambda self, trainer: self() if len(self.times['loop']) < LEAD + STEPS - 1 else (self(), trainer.stop.ask('the benchmark'))

    def means(self): # name → (stretches,) microseconds a step
        return {k: 1e6*np.array(v[LEAD:LEAD+STEPS]).reshape(-1, STRETCH).mean(1) for k, v in self.times.items()}


def ours(folder, name):
    "A session of the trainer, with the loop by hand and the bare one beside it."
    trainer = Trainer(settings(folder, 'toy', name, **TINY))
    hand = Hand(trainer)
    beside = Beside(hand=hand, bare=Bare(trainer))
    trainer.callbacks = [beside]
    with contextlib.redirect_stderr(Screen()): trainer.train()
    norm, off = (math.sqrt(sum(f(a, b).square().sum().item() for a, b in zip(trainer.ema.mean, hand.means[0]))) for f in (lambda a, b: a - hand.start[id(b)], lambda a, b: a - b))
    assert hand.k == trainer.step and off < 1e-3*norm, f'the loop by hand did not compute what the trainer computed: {off:.3g} apart after a way of {norm:.3g}'
    return beside.means()


def lightning(folder, name):
    "A session of Lightning, with the bare loop beside it."
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from lightning.pytorch.loggers import CSVLogger
    trainer = Trainer(settings(folder, 'toy', name, **TINY))
    mine, beside = Bare(trainer), Beside(bare=Bare(trainer))

    class Module(pl.LightningModule):
        def __init__(self): super().__init__(); self.space = mine.space
        def training_step(self, batch, i):
            loss = self.space.loss(batch, mine.random())[0].mean()
            self.log('loss', loss, prog_bar=True)
            mine.k += 1
            return loss
        def configure_optimizers(self):
            schedule = torch.optim.lr_scheduler.LambdaLR(mine.optimizer, lambda k: .5 + .5*math.cos(math.pi*k/mine.total))
            return dict(optimizer=mine.optimizer, lr_scheduler=dict(scheduler=schedule, interval='step'))

    class Hook(pl.Callback):
        def on_train_batch_end(self, *_): beside()

    class Batches:
        def __len__(self): return LEAD + STEPS
        def __iter__(self): return (mine.loader.next(k*mine.loader.batch_size, reuse=True) for k in range(len(self)))

    with warnings.catch_warnings(), contextlib.redirect_stdout(Screen()), contextlib.redirect_stderr(Screen()):
        warnings.simplefilter('ignore')
        for noisy in ('lightning.pytorch', 'lightning.fabric'): logging.getLogger(noisy).setLevel(logging.ERROR)
        fit = pl.Trainer(accelerator='cpu', devices=1, max_epochs=1, gradient_clip_val=1., logger=CSVLogger(folder, name=name), callbacks=[EMAWeightAveraging(decay=.999), Hook()], enable_model_summary=False, default_root_dir=folder)
        fit.fit(Module(), Batches())
    return beside.means()


def diffusers(folder, name):
    "A session of a loop as in the scripts of diffusers, with the bare loop beside it."
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    trainer = Trainer(settings(folder, 'toy', name, **TINY))
    mine, beside = Bare(trainer), Beside(bare=Bare(trainer))
    accelerator = Accelerator(cpu=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(mine.optimizer, lambda k: .5 + .5*math.cos(math.pi*k/mine.total))
    mine.space.forward = mine.space.loss
    space, optimizer, schedule = accelerator.prepare(mine.space, mine.optimizer, schedule)
    ema = EMAModel(mine.live, decay=.999)
    with tqdm(total=LEAD + STEPS, file=Screen()) as bar:
        beside.last = clock()
        for _ in range(LEAD + STEPS):
            with accelerator.accumulate(space):
                batch = mine.batch()
                loss = space(batch, mine.random())[0].mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients: accelerator.clip_grad_norm_(mine.live, 1.)
                optimizer.step(); schedule.step(); optimizer.zero_grad()
            if accelerator.sync_gradients: ema.step(mine.live); bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=schedule.get_last_lr()[0])
            mine.k += 1
            beside()
    return beside.means()


def save_cost(folder, name, saves=3, **model):
    "What one save costs: seconds of the training's thread, of the writer's; bytes."
    trainer = Trainer(settings(folder, 'icecube', name, **{'data.batch_size': 2, 'training.use_tensorboard': False, **model}))
    trainer.train_step()   # the optimiser has its state now
    rows = []
    for trainer.step in range(1, saves+2):
        mine, all_ = time.thread_time(), clock()
        trainer.save(wait=False)
        mine = time.thread_time() - mine
        trainer.checkpoints.wait()
        rows.append((mine, clock() - all_ - mine))
    size = trainer.checkpoints.list_checkpoints()[-1]['size_mb']
    return *np.median(rows[1:], 0), size, f'{trainer.n_parameters/1e6:.1f} M parameters, {size:.0f} MB', 60*ExperimentConfig().training.save_minutes


def estimate(folder, rounds=3):
    "Estimated and true seconds of a run of one epoch, and seconds of a step, a round each."
    rows = []
    for r in range(rounds):
        cfg = settings(folder, 'icecube', f'epoch{r}', **{'data.batch_size': 16, 'model.hidden': 128, 'model.depth': 2, 'model.heads': 4, 'training.num_epochs': 1})
        guess = estimate_training_time(cfg)
        trainer = Trainer(cfg)
        with contextlib.redirect_stderr(Screen()):
            t = time.perf_counter(); trainer.train(); rows.append((guess['total_time_seconds'], time.perf_counter() - t, guess['time_per_step_seconds']))
    return np.array(rows)


def show(name, value, unit, reference, ratio):
    print(json.dumps(dict(name=name, value=float(f'{value:.4g}'), unit=unit, reference=reference, ratio=float(f'{ratio:.4g}'))), flush=True)


def note(name, x): print(f'{name}: quartiles {np.percentile(x, 25):.4g} to {np.percentile(x, 75):.4g}, {len(x)} values', file=sys.stderr, flush=True)


def sessions(folder):
    "Rounds of the loops, by turns: kind → name → (stretches,)."
    kinds, found = dict(ours=ours, lightning=lightning, diffusers=diffusers), {}
    for r in range(ROUNDS):
        for kind, run in list(kinds.items()):
            try: got = run(folder, f'{kind}{r}')
            except ModuleNotFoundError as e:
                if (e.name or '').split('.')[0] == 'genesis': raise
                print(f'{e.name} is not installed, so there is no comparison with {kind}: pip install genesis[bench]', file=sys.stderr); del kinds[kind]; continue
            for k, v in got.items(): found.setdefault(kind, {}).setdefault(k, []).append(v)
    return {kind: {k: np.concatenate(v) for k, v in rows.items()} for kind, rows in found.items()}


def main():
    torch.set_num_threads(1)
    log.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        write_events(simulate_events(400, detector='toy', seed=1, min_hits=4), f'{folder}/toy.h5')
        write_events(simulate_events(600, seed=1), f'{folder}/icecube.h5')

        found = sessions(folder)
        t = found['ours']
        over = t['loop'] - t['hand']; note('trainer-overhead', over)
        show('trainer-overhead', np.median(over), 'us/step', f"the same by hand, {np.median(t['hand']):.0f} us/step", np.median(t['loop']/t['hand']))
        more = {kind: x['loop'] - x['bare'] for kind, x in found.items()}
        for kind, name, words in (('lightning', 'trainer-vs-lightning', 'Lightning with all features'), ('diffusers', 'trainer-vs-accelerate-diffusers-style', 'Accelerate and EMAModel')):
            if kind not in more: continue
            note(f'{kind} over the bare loop', more[kind])
            show(name, np.median(more['ours']), 'us/step', f"{words}, {np.median(more[kind]):.0f} us/step; both over a bare loop of {np.median(t['bare']):.0f} us/step", np.median(more['ours'])/np.median(more[kind]))

        for name, model in (('', {}), ('-demo', {'model.hidden': 128, 'model.depth': 3, 'model.heads': 4, 'model.dom_width': 16})):
            mine, writer, size, words, every = save_cost(folder, f'save{name}', **model)
            show(f'checkpoint-share{name}', mine/every, 'of the time', f'{mine:.3g} s a save, every {every:.0f} s; {words}', mine/every)
            show(f'checkpoint-writer-share{name}', writer/every, 'of a core', f'{writer:.3g} s a save, every {every:.0f} s; {words}', writer/every)

        rows = estimate(folder)
        off = abs(rows[:, 0]/rows[:, 1] - 1); note('estimate-time', rows[:, 0]/rows[:, 1] - 1)
        show('estimate-time', np.median(off), 'of the time', f'a run of one epoch, {np.median(rows[:, 1]):.3g} s in steps of {1e3*np.median(rows[:, 2]):.0f} ms', np.median(rows[:, 0]/rows[:, 1]))


if __name__ == '__main__': main()
