"Properties that hold for every architecture: what may not leak, what must start at zero, and that all of it can be trained, in any type and for any grid."
import dataclasses, json

import pytest
import torch
from torch import nn

from genesis.cli import main
from genesis.config import ModelConfig, from_dict
from genesis.core import ConfigError
from genesis.models.layers import lift
from genesis.models.zoo import ARCHITECTURES, activation_bytes, compare_architectures_table, count_flops, create_model, get_architecture_info, list_architectures, measure_architectures, model_summary

GRID = (5, 8)
each = pytest.mark.parametrize('name', ARCHITECTURES)
each_fusion = pytest.mark.parametrize('fusion', ['FiLM', 'SUM'])


def network(name, grid=GRID, fusion='FiLM', lifted=True, sizes={}, **more):
    torch.manual_seed(0)
    net = create_model(ModelConfig(architecture=name, fusion=fusion, **dict(dict(hidden=16, depth=2, heads=2, dom_width=8), **more)), grid, **sizes)
    return lift(net) if lifted else net


def inputs(n=3, grid=GRID, channels=3, n_cond=18, n_geometry=8, dtype=torch.float32):
    g, L = torch.Generator().manual_seed(1), grid[0]*grid[1]
    return tuple(torch.randn(shape, generator=g).to(dtype) for shape in ((n, channels, L), (n,), (n, n_cond), (n, L, n_geometry)))


def moved(net, args, dom):
    "Which DOMs of which string move when one DOM's input does: (strings, DOMs), True or False."
    x, *rest = args
    nudged = x.clone(); nudged[:, :, dom] += 1
    with torch.no_grad(): return (net(nudged, *rest) - net(x, *rest)).abs().amax((0, 1)).view(GRID) > 0


@each
@each_fusion
def test_starts_at_exactly_zero_and_wakes_up(name, fusion):
    net, args = network(name, fusion=fusion, lifted=False), inputs()
    assert net(*args).abs().max() == 0
    opt = torch.optim.SGD(net.parameters(), .5)
    for _ in range(4): # the last layer, then the gates, then what is behind them, then what steers only
        opt.zero_grad(); (net(*args) - args[0]).pow(2).mean().backward(); opt.step()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


@each
@each_fusion
def test_the_gradient_reaches_every_parameter(name, fusion):
    net = network(name, fusion=fusion)
    net(*inputs()).pow(2).mean().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@each
def test_each_fusion_steers_in_its_own_way(name):
    args = inputs()
    a, b = (network(name, fusion=f) for f in ('FiLM', 'SUM'))
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert count(b) < count(a)
    for net in (a, b): # noise level and labels matter, in both
        x, t, cond, geometry = args
        with torch.no_grad(): y, later, other = net(*args), net(x, t + 1, cond, geometry), net(x, t, cond + 1, geometry)
        assert (later - y).abs().max() > 1e-4 and (other - y).abs().max() > 1e-4
    steer = next(m for m in b.modules() if hasattr(m, 'film'))
    (scale, shift, gate), *_ = steer(torch.randn(3, 16))
    assert scale is None and gate.shape == shift.shape[-1:] # a gate that no event can close
    scale, shift, gate = next(m for m in a.modules() if hasattr(m, 'film'))(torch.randn(3, 16))[0]
    assert scale.shape == shift.shape == gate.shape and (gate[0] - gate[1]).abs().max() > 0


@pytest.mark.parametrize('name, reach', [('mlp', 0), ('cnn', 1 + 2), ('resnet', 4)])
def test_nothing_crosses_the_end_of_a_string(name, reach):
    net, args = network(name), inputs()
    pooled = [m.pool for m in net.blocks if m.pool is not None]
    if pooled: assert moved(net, args, 0).all(), 'what is pooled reaches every DOM'
    for p in pooled: nn.init.zeros_(p.weight)
    for string in range(GRID[0]):
        for dom in range(GRID[1]):
            expected = torch.zeros(GRID, dtype=bool)
            expected[string, max(0, dom - reach):dom + reach + 1] = True
            assert torch.equal(moved(net, args, GRID[1]*string + dom), expected), (string, dom)


def test_convolutions_of_the_hybrid_stay_on_their_string():
    net, args = network('hybrid', kernel_sizes=(3,)), inputs()
    assert moved(net, args, 0).all()
    nn.init.zeros_(net.scatter.weight) # the tokens fall silent
    for dom in (7, 8): # the end of string 0, the start of string 1
        where = moved(net, args, dom).nonzero().tolist()
        assert where == ([[0, 5], [0, 6], [0, 7]] if dom == 7 else [[1, 0], [1, 1], [1, 2]])


@pytest.mark.parametrize('name', ['dit', 'dit-dense'])
def test_attention_reaches_every_dom(name):
    assert moved(network(name), inputs(), 13).all()


@each
@pytest.mark.parametrize('fusion', ['FiLM', 'SUM'])
def test_events_of_a_batch_know_nothing_of_each_other(name, fusion):
    net, args = network(name, fusion=fusion), inputs(7)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    with torch.no_grad():
        whole = net(*args)
        torch.testing.assert_close(net(*(a[order] for a in args)), whole[order], rtol=0, atol=1e-5)
        for n in (1, 2, 5): torch.testing.assert_close(net(*(a[:n] for a in args)), whole[:n], rtol=0, atol=1e-5)
        assert net(*(a[:0] for a in args)).shape == (0, 3, 40)
        wild = [a.clone() for a in args]; wild[0][1:] *= 1e3
        torch.testing.assert_close(net(*wild)[:1], whole[:1], rtol=0, atol=1e-5)


@each
@pytest.mark.parametrize('grid, sizes', [((24, 1), dict(channels=2, n_cond=5, n_geometry=1)), ((1, 1), {}), ((1, 30), dict(n_geometry=3)), ((86, 2), {})])
def test_any_grid(name, grid, sizes):
    x, *rest = inputs(2, grid, **sizes)
    y = network(name, grid, sizes=sizes)(x, *rest)
    assert y.shape == x.shape and y.isfinite().all() and y.abs().max() > 0


@each
@pytest.mark.parametrize('fusion', ['FiLM', 'SUM'])
def test_types(name, fusion):
    net, args = network(name, fusion=fusion), inputs()
    with torch.no_grad(): single, double = net(*args), network(name, fusion=fusion).double()(*inputs(dtype=torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4*double.abs().max().item())
    with torch.autocast('cpu', torch.bfloat16): short = net(*args)
    short.float().pow(2).mean().backward()
    assert short.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in net.parameters())
    assert (short.detach() - single).norm() < .05*single.norm() # eight bits: a step of 0.4 %, some of them after each other


@each
def test_no_python_depends_on_the_numbers(name):
    "What can be traced into one graph has no branch on data; what the graph gives for other data is what the network gives."
    net, args = network(name), inputs()
    graph = torch.export.export(net, args).module()
    other = tuple(torch.roll(a, 1, 0)*2 for a in args)
    with torch.no_grad(): torch.testing.assert_close(graph(*other), net(*other), rtol=0, atol=1e-5)


@each
def test_dropout_drops_in_training_only(name):
    net, args = network(name, dropout=.5), inputs()
    with torch.no_grad():
        assert not torch.equal(net(*args), net(*args))
        net.eval()
        assert torch.equal(net(*args), net(*args))


@pytest.mark.parametrize('fields, message', [
    (dict(architecture='cn'), 'did you mean: cnn'), (dict(architecture='dit-dens'), 'did you mean: dit-dense'), (dict(heads=3), 'do not divide a hidden width of 16\n  did you mean: 2'),
    (dict(architecture='resnet', kernel_size=4), 'did you mean: 5'), (dict(architecture='cnn', kernel_sizes=(3, 6)), 'did you mean: 7'), (dict(architecture='hybrid', kernel_sizes=(0,)), 'did you mean: 1'), (dict(fusion='SUMM'), 'did you mean: SUM')])
def test_what_cannot_be_built_says_so(fields, message):
    with pytest.raises(ConfigError) as e: create_model(ModelConfig(**dict(dict(hidden=16, heads=2), **fields)), GRID)
    assert message in str(e.value)


def test_the_config_knows_it_before():
    bad = lambda **fields: from_dict({'model': fields}).validate()
    assert 'fusion' in bad(fusion='add')[0] and 'kernel_size must be odd' in bad(kernel_size=2)[0] and 'kernel_sizes must be odd' in bad(kernel_sizes=[3, 4])[0] and bad(kernel_sizes=[])
    assert bad(hidden=100) and not bad(hidden=100, architecture='cnn'), 'only attention has heads'
    assert from_dict({'model': {'kernel_sizes': '5, 7'}}).model.kernel_sizes == (5, 7)
    assert not bad(fusion='sum') and not from_dict({}).validate()


@each
def test_a_field_of_the_config_reaches_the_network(name):
    "Each field that a network takes changes it; all fields are taken by some network."
    count = lambda **f: model_summary(network(name, lifted=False, **f), measure=False)['total']
    other = dict(hidden=32, depth=3, dom_width=16, mlp_ratio=2., kernel_size=5, kernel_sizes=(3, 5, 11))
    takes = dict(dit='mlp_ratio', hybrid='mlp_ratio kernel_sizes', cnn='kernel_sizes', resnet='kernel_size', mlp='').get(name, 'mlp_ratio').split() + ['hidden', 'depth', 'dom_width']
    changed = [k for k, v in other.items() if count(**{k: v, 'depth': 3}) != count(depth=3) or (k == 'depth' and count(depth=3) != count())]
    assert sorted(changed) == sorted(takes)
    assert set(other) | {'architecture', 'heads', 'dropout', 'fusion'} == {f.name for f in dataclasses.fields(ModelConfig)}


def test_counts_against_arithmetic():
    S, D, H, w, d, C, G, K = 5, 8, 16, 8, 2, 3, 8, 18
    net = network('dit')
    found = model_summary(net, batch=2, repeats=1)
    steer = H*6*H + 6*H; block = steer + 3*H*H + 3*H + H*H + H + 2*4*H*H + 4*H + H
    assert found['parts']['blocks'] == d*block and found['total'] == sum(p.numel() for p in net.parameters())
    tokens = d*(S*(4 + 8)*H*H + 2*S*S*H + 6*H*H)
    doms = S*D*((C + G)*w + 3*w*w + w*C) + 2*S*D*w*H
    steering = 64*H + H*H + K*H + H*H + H*w + H*2*w
    assert found['flops_forward'] == 2*(tokens + doms + steering)
    assert all(p.grad is None for p in net.parameters()) and found['training_rate'] > 0
    x = torch.randn(10, 4)
    assert activation_bytes(nn.Linear(4, 6), lambda: nn.Linear(4, 6)(x).sum()) == 4*10*4
    assert count_flops(lambda: x @ x.T) == 2*10*10*4


def test_the_dense_one_costs_what_is_said():
    "The ratio of work at full size follows from counting, without running it: on the meta device."
    with torch.device('meta'):
        nets = [create_model(ModelConfig(architecture=k), (86, 60)) for k in ('dit', 'dit-dense')]
        args = torch.empty(1, 3, 5160), torch.empty(1), torch.empty(1, 18), torch.empty(1, 5160, 8)
        dit, dense = (count_flops(lambda: net(*args)) for net in nets)
    assert 4.5e9 < dit < 5.2e9 and 140 < dense/dit < 160


def test_comparison_and_command(tmp_path, capsys):
    assert set(get_architecture_info()) == set(list_architectures()) == set(ARCHITECTURES)
    assert get_architecture_info('DIT').keys() == {'description', 'strengths', 'weaknesses', 'best_for'}
    found = measure_architectures(ModelConfig(hidden=16, depth=1, heads=2), GRID, batch=2)
    assert 'dit-dense' not in found and len(compare_architectures_table(found).splitlines()) == 6
    assert main(f'models --hidden 16 --depth 1 --heads 2 --detector toy --architectures mlp dit-dense --json {tmp_path}/m.json'.split()) == 0
    told, written = capsys.readouterr().out, json.loads((tmp_path/'m.json').read_text())
    assert 'mlp ' in told and 'dit-dense ' in told and list(written) == ['mlp', 'dit-dense'] and written['mlp']['total'] > 0 and written['mlp']['best_for']
    assert main('models --architectures dti'.split()) == 2 and 'did you mean: dit' in capsys.readouterr().err
    assert main('models --heads 7'.split()) == 2
