"Stopped and resumed schedules against the schedulers of torch, which never stopped: whatever is made first, and whatever the new config says."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from genesis.config import TrainingConfig
from genesis.training.schedulers import SCHEDULERS, create_scheduler, create_warmup_scheduler, lr_curve

RATE, EPOCHS, N = 3e-3, 12, 5   # steps an epoch
SETTINGS = dict(cosine={}, plateau=dict(plateau_patience=1, plateau_factor=.3), step=dict(step_size=3, step_gamma=.3), linear=dict(linear_start_factor=.7),
                exponential=dict(exponential_gamma=.9), polynomial={}, onecycle={}, wsd=dict(wsd_decay_ratio=.4))
LOSSES = [1., .9, .9, .95, .91, .9, .9, .85, .85, .85, .86, .85]


def config(name, **more): return TrainingConfig(**{**dict(scheduler=name, num_epochs=EPOCHS, learning_rate=RATE), **SETTINGS[name], **more})


def optimizer(kind=torch.optim.AdamW, rates=(RATE,)):
    return kind([dict(params=[torch.zeros(2, requires_grad=True)], lr=lr) for lr in rates])


def by_torch(name, c, rates=(RATE,)):
    "The rates of each step, by the scheduler of torch itself: (steps, groups)."
    opt, steps = optimizer(torch.optim.SGD, rates), c.num_epochs*N
    made = dict(cosine=lambda: lr_scheduler.CosineAnnealingLR(opt, steps), step=lambda: lr_scheduler.StepLR(opt, 3*N, .3), linear=lambda: lr_scheduler.LinearLR(opt, .7, 0., steps),
                exponential=lambda: lr_scheduler.ExponentialLR(opt, .9**(1/N)), polynomial=lambda: lr_scheduler.PolynomialLR(opt, steps, 2.),
                onecycle=lambda: lr_scheduler.OneCycleLR(opt, list(rates), steps, pct_start=.3, cycle_momentum=False, div_factor=25., final_div_factor=1e4),
                wsd=lambda: lr_scheduler.LambdaLR(opt, lambda k: max(0., min(1., (steps-k)/(.4*c.num_epochs*N)))),
                plateau=lambda: lr_scheduler.ReduceLROnPlateau(opt, factor=.3, patience=1, threshold=1e-4, min_lr=1e-6, eps=0.))[name]()
    out = []
    for k in range(steps):
        out.append([max(0., g['lr']) for g in opt.param_groups])
        opt.step()
        if name != 'plateau' and k+1 < steps: made.step()
        if name == 'plateau' and (k+1) % N == 0: made.step(LOSSES[k//N])
    return out


def walk(opt, schedule, first, last):
    out = []
    for k in range(first, last):
        out.append([g['lr'] for g in opt.param_groups])
        for p in (p for g in opt.param_groups for p in g['params']): p.grad = torch.ones_like(p)
        opt.step(); schedule.step()
        if (k+1) % N == 0 and k//N < len(LOSSES): schedule.step_metric(LOSSES[k//N])
    return out


def saved(opt, schedule): return opt.state_dict(), json.loads(json.dumps(schedule.state_dict(), allow_nan=False))


def resumed(order, c, state, note, rates=(RATE,), kind=torch.optim.AdamW):
    "An optimiser and a schedule that go on; `order` says which is made, or loaded, first."
    opt = optimizer(kind, rates)
    if order == 'schedule first': schedule = create_scheduler(opt, c, N); opt.load_state_dict(state)
    else: opt.load_state_dict(state); schedule = create_scheduler(opt, c, N)
    schedule.load_state_dict(note)
    return opt, schedule


def of_0_2(state, note):
    "The same as 0.2.0 wrote it."
    state = {**state, 'param_groups': [{k: v for k, v in g.items() if k != 'initial_lr'} for g in state['param_groups']]}
    note = {k: v for k, v in note.items() if k not in ('warmup', 'rise')}
    return state, {**note, 'plan': {k: v for k, v in note['plan'].items() if k not in ('learning_rate', 'warmup_steps', 'warmup_ratio')}}


@pytest.mark.parametrize('order', ['schedule first', 'state first'])
@pytest.mark.parametrize('name', SCHEDULERS)
@pytest.mark.parametrize('kind, rates', [(torch.optim.AdamW, (RATE,)), (torch.optim.SGD, (RATE,)), (torch.optim.AdamW, (RATE, RATE/10))])
@pytest.mark.parametrize('old', [False, True])
def test_a_resume_goes_on_as_torch_would_have(name, order, kind, rates, old):
    c, whole = config(name), by_torch(name, config(name), rates)
    if len(rates) == 1: assert lr_curve(c, N, LOSSES).tolist() == [row[0] for row in whole]
    for at in (1, 7, 20, 36, 59):
        opt = optimizer(kind, rates); schedule = create_scheduler(opt, c, N)
        used = walk(opt, schedule, 0, at)
        state, note = of_0_2(*saved(opt, schedule)) if old else saved(opt, schedule)
        opt, schedule = resumed(order, c, state, note, rates, kind)
        assert used + walk(opt, schedule, at, EPOCHS*N) == whole, at
        assert schedule.base == list(rates)


@pytest.mark.parametrize('order', ['schedule first', 'state first'])
@pytest.mark.parametrize('name', SCHEDULERS)
def test_a_resume_with_another_learning_rate_is_on_the_curve_of_that_rate(name, order):
    at = 42   # plateau has dropped by now
    for new in (1e-3, .1):
        opt = optimizer(); schedule = create_scheduler(opt, config(name), N); walk(opt, schedule, 0, at)
        opt, schedule = resumed(order, config(name, learning_rate=new), *saved(opt, schedule), rates=(new,))
        assert schedule.base == [new]
        rest = np.array(walk(opt, schedule, at, EPOCHS*N))[:, 0]
        whole = np.array(by_torch(name, config(name), (new,)))[:, 0]
        if name == 'plateau': np.testing.assert_allclose(rest, whole[at:], rtol=1e-14)   # drops of the old rate, times a ratio
        else: assert rest.tolist() == whole[at:].tolist()
        again = resumed(order, config(name, learning_rate=new), *saved(opt, schedule), rates=(new,))
        assert again[1].get_last_lr() == schedule.get_last_lr() and again[1].state_dict() == schedule.state_dict()


def test_plateau_never_falls_below_its_least_rate():
    c = config('plateau', plateau_min_lr=1e-3)
    opt = optimizer(); schedule = create_scheduler(opt, c, N); walk(opt, schedule, 0, 45)
    assert schedule.get_last_lr() == [1e-3]
    _, lower = resumed('schedule first', replace(c, learning_rate=2e-3), *saved(opt, schedule), rates=(2e-3,))
    assert lower.get_last_lr() == [1e-3]
    _, below = resumed('schedule first', replace(c, learning_rate=1e-4), *saved(opt, schedule), rates=(1e-4,))
    assert 0 < below.get_last_lr()[0] <= 1e-4


@pytest.mark.parametrize('at', [3, 6, 11, 40, 60])
@pytest.mark.parametrize('name', [None, 'cosine', 'linear', 'wsd', 'plateau', 'onecycle'])
@pytest.mark.parametrize('old', [False, True])
def test_a_prolonged_run_does_not_warm_up_again(name, at, old):
    warm = dict(onecycle_pct_start=.2) if name == 'onecycle' else dict(warmup_ratio=.2)
    c = config(name, **warm) if name else TrainingConfig(num_epochs=EPOCHS, learning_rate=RATE, **warm)
    long = replace(c, num_epochs=10*EPOCHS)
    opt = optimizer(); schedule = create_scheduler(opt, c, N); walk(opt, schedule, 0, at)
    for _ in range(3):   # and again
        before = schedule.get_last_lr()[0]
        opt, schedule = resumed('schedule first', long, *(of_0_2 if old else lambda *x: x)(*saved(opt, schedule)))
        now = schedule.get_last_lr()[0]
        if old and schedule.k > at: break   # 0.2.0 has forgotten what the run began with
        if at < 12: assert now >= .9*before      # the same rise
        else: assert now >= .6*RATE or name == 'plateau' and now == before
        rest = np.array(walk(opt, schedule, schedule.k, schedule.k + 5))[:, 0]
        if at >= 12 and name != 'plateau': assert (np.diff(rest) <= 0).all()
        if name != 'onecycle': assert schedule.warmup == 12
        else: assert schedule.rise == pytest.approx(12)


def test_a_warmup_that_comes_too_late_is_said(caplog):
    c = config('linear')
    opt = optimizer(); schedule = create_scheduler(opt, c, N); walk(opt, schedule, 0, 10)
    _, late = resumed('schedule first', replace(c, warmup_steps=30), *saved(opt, schedule))
    assert late.get_last_lr() == schedule.get_last_lr() and 'has no effect any more' in caplog.text
    c = config('linear', warmup_steps=30)
    opt = optimizer(); schedule = create_scheduler(opt, c, N); walk(opt, schedule, 0, 10)
    _, shorter = resumed('schedule first', replace(c, warmup_steps=11), *saved(opt, schedule))
    assert shorter.get_last_lr()[0] == lr_curve(config('linear'), N)[10]   # a wish is followed


def test_a_warmup_by_hand_is_kept_too():
    def make(opt): return create_warmup_scheduler(opt, create_scheduler(opt, config('cosine'), N), 8)
    opt = optimizer(); schedule = make(opt); walk(opt, schedule, 0, 20)
    state, note = saved(opt, schedule)
    for first in (True, False):
        other = optimizer()
        if first: other.load_state_dict(state)
        again = make(other)
        if not first: other.load_state_dict(state)
        again.load_state_dict(note)
        assert walk(other, again, 20, 60) == walk(opt, schedule, 20, 60) if first else again.get_last_lr() == [g['lr'] for g in state['param_groups']]
