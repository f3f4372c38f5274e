"Muons from outside: where they enter, how far they come, what other people's files say of them, and that models which never saw one keep their events."
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from genesis.cli import main
from genesis.config import ExperimentConfig, override
from genesis.core import ConfigError, DataError, GenesisError
from genesis.data.anchor import anchor_events, read_anchor
from genesis.data.detector import C_VACUUM, icecube86, toy_detector
from genesis.data.events import KINDS, Events, line_of, read_events, residual_time, write_events
from genesis.data.formats import convert, to_csv, to_graphnet
from genesis.data.inspection import inspect
from genesis.data.light import ENERGY_LOSS, UPSTREAM, ThroughLight, energy_before, muon_losses, muon_photons, muon_range
from genesis.data.pulses import forget_labels
from genesis.data.simulator import Cylinder, crossing, entry_cylinder, isotropic_entries, sample_labels, simulate_events
from genesis.data.transforms import Conditioner, EventTransform
from genesis.evaluation.features import light_path
from genesis.generate import Generator
from genesis.models.source import PhotonDecoder, Slots, see
from genesis.training.setup import check_ancestor, read_model
from genesis.training.trainer import create_trainer

TRACK, THROUGH = KINDS.index('track'), KINDS.index('through')
CAN = Cylinder(x=10., y=-20., radius=500., bottom=-400., top=600.)
each = lambda n, seed: [np.random.default_rng((seed, i)) for i in range(n)]


# Lines through a cylinder

@pytest.mark.parametrize('start,way,enter,leave', [
    ((10, -20, 2000), (0, 0, -1), 1400, 2400),                  # along the axis
    ((10 + 499.9, -20, 2000), (0, 0, -1), 1400, 2400),          # along it, just inside the mantle
    ((10 + 500.1, -20, 2000), (0, 0, -1), np.nan, np.nan),      # and just outside
    ((-2000, -20, 0), (1, 0, 0), 1510, 2510),                   # through the middle
    ((-2000, 280, 0), (1, 0, 0), 2010 - 400, 2010 + 400),       # 300 m beside it: half the chord is 400 m
    ((-2000, 480, 0), (1, 0, 0), np.nan, np.nan),               # touches the mantle
    ((-2000, -20, 600), (1, 0, 0), np.nan, np.nan),             # slides along the lid
    ((10, -20, 100), (0, 0, 1), -500, 500),                     # starts inside
    ((10, -20, 600), (0, 0, -1), 0, 1000),                      # on the surface, moving in
    ((10, -20, 600), (0, 0, 1), -1000, 0),                      # on the surface, moving out
    ((10 - 500, -20, 0), (2**-.5, 0, 2**-.5), 0, 600*2**.5),    # from the mantle out of the lid
])
def test_lines_through_a_cylinder(start, way, enter, leave):
    found = crossing(CAN, [start], [way])
    np.testing.assert_allclose(np.ravel(found), (enter, leave), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5), st.floats(-3000, 3000))
def test_what_enters_is_found_again_from_anywhere_on_its_line(numbers, back):
    place, way = isotropic_entries(CAN, [numbers])
    np.testing.assert_allclose(np.linalg.norm(way), 1)
    enter, leave = crossing(CAN, place - back*way, way)
    if np.isnan(enter[0]): return                               # a chord of nothing at an edge
    assert abs(enter[0] - back) < 1e-5*max(1, abs(back)) + 1e-4 or leave[0] - enter[0] < 1


def test_an_isotropic_flux():
    place, way = isotropic_entries(CAN, np.random.default_rng(0).random((60_000, 5)))
    enter, chord = crossing(CAN, place, way)
    theorem = 2*CAN.radius*CAN.height/(CAN.radius + CAN.height)  # 4 V/S [Cauchy]
    assert abs(chord.mean() - theorem) < 4*chord.std()/len(chord)**.5
    on_lids = (np.abs(place[:,2] - CAN.top) < 1e-9) | (np.abs(place[:,2] - CAN.bottom) < 1e-9)
    share = CAN.radius/(CAN.radius + CAN.height)
    assert abs(on_lids.mean() - share) < 4*(share*(1-share)/len(chord))**.5
    cosine = -way[:,2]                                          # an average over zenith, weighed with the projected area
    grid = np.linspace(-1, 1, 4001)
    area = CAN.area(np.arccos(grid))
    second = np.trapezoid(area*grid**2, grid)/np.trapezoid(area, grid)
    assert abs((cosine**2).mean() - second) < 4*(cosine**2).std()/len(chord)**.5


def test_the_cylinder_of_a_detector():
    can, xyz = entry_cylinder(icecube86()), icecube86().xyz
    assert np.hypot(xyz[:,0] - can.x, xyz[:,1] - can.y).max() == pytest.approx(can.radius - 60)
    assert (can.top - xyz[:,2].max(), xyz[:,2].min() - can.bottom) == pytest.approx((60, 60))
    published = entry_cylinder(icecube86(), 800, 1600)
    assert published.height == 1600 and published.radius == 800
    for bad in ((0, 100), (100, np.nan)):
        with pytest.raises(ConfigError, match='needs a size'): entry_cylinder(icecube86(), *bad)


# The simulator

def test_entries_lie_on_the_surface_and_point_inwards():
    labels = sample_labels(2000, np.random.default_rng(1), icecube86(), kind='through')
    events = Events(np.zeros(2001, int), [], [], [], labels, icecube86(), np.full(2000, THROUGH))
    enter, leave = crossing(entry_cylinder(icecube86()), labels[:,3:], events.direction)
    long = leave - enter > 1                                    # single precision forgets which side of an edge it was
    assert long.mean() > .99 and np.abs(enter[long]).max() < .05


def test_a_muon_arrives_with_the_energy_asked_for():
    energy = np.geomspace(20, 1e6, 400)
    losses = muon_losses(energy, each(400, 1), np.minimum(muon_range(energy) + 200, 3000))
    start = energy_before(energy, losses, 200.)
    assert (start > energy).all()
    # single losses before the entry, taken off one by one with ionisation in between as in 25 m steps
    a, _ = ENERGY_LOSS
    here = start.copy()
    from genesis.data.light import SEGMENT, _smooth
    smooth = _smooth(losses)[:,0]
    for k in range(8):
        here -= a*SEGMENT                                       # paid at the start of a segment
        inside = (losses.at >= k*SEGMENT) & (losses.at < (k+1)*SEGMENT)
        here *= np.exp(-smooth*SEGMENT)*np.where(inside, 1 - losses.share, 1).prod(1)
    np.testing.assert_allclose(here, energy, rtol=.02)          # the package pays a moment later: a step of ionisation apart
    np.testing.assert_allclose(energy_before(energy, losses, 0.), energy)


def test_stopping_muons_end_where_their_energy_is_spent():
    a, b = ENERGY_LOSS
    for energy in (50., 100., 200.):
        labels = sample_labels(300, np.random.default_rng(3), icecube86(), kind='through')
        labels[:,0] = energy
        way = ThroughLight(icecube86()).emit(labels, each(300, 2)).length - UPSTREAM
        assert way.mean() == pytest.approx(np.log1p(energy*b/a)/b, rel=.12, abs=15)
        assert way.max() < 1.3*np.log1p(energy*b/a)/b + 25
    # no light comes from beyond the end: a muon of 60 GeV that enters from above leaves the lower half dark
    can = entry_cylinder(icecube86())
    down = np.tile(np.array([[60., 0., 0., 40., 20., can.top]], np.float32), (200, 1))
    seen = simulate_events(labels=down, kind='through', seed=1)
    assert len(seen.dom) and seen.detector.xyz[seen.dom,2].min() > can.top - 60 - 231 - 250
    strong = down.copy()
    strong[:,0] = 1e5
    assert simulate_events(labels=strong[:5], kind='through', seed=1).detector.xyz[:,2].min() < -450


def test_no_shower_no_early_light_and_the_same_seed():
    events = simulate_events(120, kind='through', seed=4)
    assert (events.kind == THROUGH).all() and events.n_hits.min() >= 8
    assert residual_time(events).min() > -40                    # eight times the clock's 5 ns
    again = simulate_events(20, kind='through', seed=4, first=30)
    for name in ('dom', 'charge', 'time', 'labels'):
        np.testing.assert_array_equal(getattr(again, name), getattr(events[30:50], name))
    assert events.meta['entry'] == entry_cylinder(icecube86())._asdict()
    light = ThroughLight(icecube86())
    muon = light.emit(events.labels, each(120, 5))
    assert not muon.photons.any()                               # a muon neutrino's hadronic shower
    left = light_path(events.labels[events.event].astype(float), events.detector.xyz[events.dom], True)[0]
    assert .01 < (left < -20).mean() < .2                       # it has shone before it entered


def test_mixtures():
    both = simulate_events(200, kind='track+through', seed=1, detector='toy')
    assert set(both.kind) == {TRACK, THROUGH} and both.meta['kind'] == 'track+through'
    pure = simulate_events(200, kind='through', seed=1, detector='toy')
    np.testing.assert_array_equal(both[both.kind == THROUGH].charge, pure[both.kind == THROUGH].charge)
    rare = simulate_events(400, kind='track+track+track+through', seed=1, detector='toy')
    assert .17 < (rare.kind == THROUGH).mean() < .33
    assert set(simulate_events(100, kind='mixed', seed=1, detector='toy').kind) == {1, TRACK}
    twin = simulate_events(labels=both.labels, kind=both.kind, detector='toy', seed=2)
    assert twin.meta['kind'] == 'track+through'
    for bad, said in (('through+mixed', 'kind of event'), ('track+thruogh', 'did you mean: through')):
        with pytest.raises(ConfigError, match=said): simulate_events(5, kind=bad)
    with pytest.raises(ConfigError, match='given labels need given kinds'): simulate_events(labels=both.labels, kind='track+through', detector='toy')


def test_a_rare_event_takes_more_draws_than_a_common_one(monkeypatch):
    from genesis.data import simulator
    monkeypatch.setattr(simulator, '_ATTEMPTS', 4)
    labels = sample_labels(400, np.random.default_rng(0), toy_detector(), kind='through')
    seen = simulate_events(labels=labels, kind='through', detector='toy', seed=1)
    easy, hard = np.argsort(-seen.n_hits)[:40], np.flatnonzero(seen.n_hits == 7)[:1]
    once = simulate_events(labels=labels[np.r_[easy, hard]], kind='through', detector='toy', seed=1, min_hits=8)
    assert once.n_hits.min() >= 8
    dark = labels[:20].copy()
    dark[:,5] = 9e4
    with pytest.raises(ConfigError, match='hardly any event triggers'): simulate_events(labels=dark, kind='through', detector='toy', min_hits=8)


# Other people's files

def graphnet_file(path):
    "Five events of GraphNeT in IceCube-86: a muon from above, the same one sideways and past the detector, a starting track, a cascade far away."
    ic = icecube86()
    can = entry_cylinder(ic)
    # event, pid, zenith, azimuth, position (of a muon: its end), track_length
    truth = [(1, 13, 0., 0., (50., 0., -300.), 2000.),
             (2, 13, np.pi/2, 0., (-900., can.y, 0.), 3000.),
             (3, -13, np.pi/2, 0., (0., 5000., 0.), 6000.),
             (4, 14, .5, 1., (0., 0., 0.), 500.),
             (5, 12, .5, 1., (0., 0., 3000.), -1.)]
    doms = [10, 200, 3000]
    with closing(sqlite3.connect(path)) as db:
        db.execute('CREATE TABLE truth (event_no, pid, interaction_type, energy, zenith, azimuth, position_x, position_y, position_z, track_length)')
        db.executemany('INSERT INTO truth VALUES (?,?,?,?,?,?,?,?,?,?)', [(n, pid, 1, 1e4, z, a, *xyz, far) for n,pid,z,a,xyz,far in truth])
        db.execute('CREATE TABLE Pulses (event_no, charge, dom_time, dom_x, dom_y, dom_z, string, dom_number)')
        rows = [(n, 2., 7000. + 100*i, *map(float, ic.xyz[d]), int(ic.string[d]), int(ic.dom[d])) for n,*_ in truth for i,d in enumerate(doms)]
        db.executemany('INSERT INTO Pulses VALUES (?,?,?,?,?,?,?,?)', rows)
        db.commit()
    return can


def test_an_anchor_for_graphnet(tmp_path, capsys):
    can = graphnet_file(tmp_path/'a.db')
    main(['convert', str(tmp_path/'a.db'), str(tmp_path/'a.h5'), '--anchor', 'entry', '--time-gauge', 'file', '--detector', 'icecube86'])
    told, events = capsys.readouterr().out, read_events(tmp_path/'a.h5')
    assert [KINDS[k] for k in events.kind] == ['through', 'through', 'track', 'track', 'cascade']
    times = events.time.reshape(5, 3)
    # from above: the vertex is 2000 m over the end, at z 1700; it enters through the lid
    np.testing.assert_allclose(events.labels[0,3:], (50, 0, can.top), atol=1e-2)
    np.testing.assert_allclose(times[0], 7000 + np.arange(3)*100 - (1700 - can.top)/C_VACUUM, atol=.01)
    # sideways at the height of the axis: from x = 2100 through the mantle
    np.testing.assert_allclose(events.labels[1,3:], (can.x + can.radius, can.y, 0), atol=1e-2)
    np.testing.assert_allclose(times[1,0], 7000 - (2100 - can.x - can.radius)/C_VACUUM, atol=.01)
    # past the detector, inside, and a cascade: as they were
    np.testing.assert_allclose(events.labels[2:,3:], [(6000, 5000, 0), (0, 0, 0), (0, 0, 3000)], atol=1e-2)
    np.testing.assert_allclose(times[2:], np.tile(7000 + np.arange(3)*100, (3, 1)))
    for said in ('2 tracks come from outside', '1 tracks start inside', '1 tracks never enter', '1 events that are not known to be tracks', 'energy of what comes from outside: as in the file'):
        assert said in told
    np.testing.assert_array_equal(events.labels[:,0], np.float32(1e4))
    # and where the energy is said to be unknown, it is
    convert(tmp_path/'a.db', tmp_path/'b.h5', anchor='entry', missing='energy', time_gauge='file', detector='icecube86')
    without = read_events(tmp_path/'b.h5')
    assert without.missing == ('energy',) and not any('energy of what' in note for note in without.meta['assumptions'])


def upstream(n=60, seed=5):
    "Muons of the simulator, labelled somewhere before their entry, as other people's files have them; and as they were."
    events = simulate_events(n, kind='through', seed=seed)
    back = np.random.default_rng(seed).uniform(1, 2500, n)
    labels = events.labels.astype(float)
    labels[:,3:] -= back[:,None]*events.direction
    return Events(events.ptr, events.dom, events.charge, events.time + (back/C_VACUUM)[events.event], labels, events.detector, np.full(n, TRACK)), events


@pytest.mark.parametrize('write,name', [(write_events, 'far.h5'), (to_csv, 'far')])
def test_an_anchor_brings_back_what_was_moved(tmp_path, write, name):
    far, events = upstream()
    write(far, tmp_path/name)
    report = convert(tmp_path/name, tmp_path/'near.h5', anchor='entry')
    near = read_events(tmp_path/'near.h5')
    np.testing.assert_allclose(near.labels, events.labels, atol=.02, rtol=1e-5)
    np.testing.assert_allclose(near.time, events.time, atol=.02)
    np.testing.assert_array_equal(near.kind, events.kind)
    assert any('60 tracks come from outside' in note for note in report['assumptions'])
    np.testing.assert_allclose(residual_time(near), residual_time(events), atol=.1)
    twice = convert(tmp_path/'near.h5', tmp_path/'again.h5', anchor='entry')
    np.testing.assert_array_equal(read_events(tmp_path/'again.h5').labels, near.labels)
    assert any('60 muons from outside had an anchor already' in note for note in twice['assumptions'])
    assert inspect(tmp_path/'near.h5').ok


def test_each_file_by_itself_and_all_together_count_alike(tmp_path):
    far, _ = upstream(20)
    for i in range(2): write_events(far[10*i:10*i+10], tmp_path/f'part{i}.h5')
    (tmp_path/'out').mkdir()
    each_file = convert([tmp_path/'part0.h5', tmp_path/'part1.h5'], tmp_path/'out', anchor='entry')
    assert each_file['events'] == 20
    together = convert([tmp_path/'part0.h5', tmp_path/'part1.h5'], tmp_path/'all.h5', anchor='entry')
    assert any('20 tracks come from outside' in note for note in together['assumptions'])
    assert (read_events(tmp_path/'all.h5').kind == THROUGH).all() and (read_events(tmp_path/'out'/'part1.h5').kind == THROUGH).all()


def test_muons_go_to_graphnet_and_come_back(tmp_path):
    _, events = upstream(12)
    to_graphnet(events, tmp_path/'g.db')
    convert(tmp_path/'g.db', tmp_path/'back.h5', anchor='entry', time_gauge='file', detector='icecube86')
    back = read_events(tmp_path/'back.h5')
    np.testing.assert_array_equal(back.kind, events.kind)
    np.testing.assert_allclose(back.labels[:,3:], events.labels[:,3:], atol=.01)
    np.testing.assert_allclose(back.time, events.time, atol=.02)


def test_anchors_that_make_no_sense(tmp_path):
    far, _ = upstream(10)
    write_events(far, tmp_path/'far.h5')
    for anchor, said in (('entri', 'did you mean: entry'), ('entry:800', 'two numbers'), ('entry:800,-5', 'needs a size'), ('vertex:8,9', 'needs no cylinder')):
        with pytest.raises(ConfigError, match=said): convert(tmp_path/'far.h5', tmp_path/'x.h5', anchor=anchor)
    assert not (tmp_path/'x.h5').exists()
    assert read_anchor('vertex', far.detector) is None
    blind = Events(far.ptr, far.dom, far.charge, far.time, np.where([0, 0, 0, 1, 1, 1], np.nan, far.labels), far.detector, far.kind, {'missing': ['x', 'y', 'z']})
    with pytest.raises(DataError, match='an anchor needs labels'): anchor_events(blind)
    known = anchor_events(far, energy=np.full(10, 123.))
    assert (known.labels[:,0] == 123).all() and any('at the entry, as passed' in note for note in known.meta['assumptions'])


# Models

def test_the_condition_of_older_kinds_is_what_it_was():
    detector = toy_detector()
    conditioner = Conditioner(detector, EventTransform.blank(detector))
    labels = torch.tensor([[1e4, 1., 2., 3., 4., 5.]]*4)
    assert conditioner.event(labels, torch.arange(4, dtype=torch.uint8))[:,-1].tolist() == [0, -1, 1, 2]
    assert torch.equal(conditioner.event(labels, torch.arange(4)[:3].repeat(2)[:4])[:,:-1], conditioner.event(labels)[:,:-1])


def test_what_a_dom_sees_of_a_muon_from_outside():
    xyz = torch.tensor([[100., 0., 50.], [100., 0., -300.], [40., 30., 400.]])
    labels = torch.tensor([[1e4, 0., 0., 0., 0., 0.]]*3)           # it comes from above and passes the origin at time 0
    none, starting, whole = (see(labels[:1], torch.tensor([k]), xyz) for k in (0, 1, 2))
    for line, flag in ((0, False), (1, True)):                     # kinds by number or as yes and no: the same
        for a, b in zip(see(labels[:1], torch.tensor([line]), xyz), see(labels[:1], torch.tensor([flag]), xyz)): assert torch.equal(a, b)
    assert torch.equal(starting.t_geo[0,1], whole.t_geo[0,1])      # far behind the entry it makes no difference
    events = Events([0, 3], [0, 1, 2], [1, 1, 1], whole.t_geo[0].numpy(), labels[:1].numpy(), icecube86(), [THROUGH])
    events.detector = type(events.detector)('three', xyz.numpy(), [1, 2, 3], [1, 1, 1], np.ones(3))
    np.testing.assert_allclose(residual_time(events), 0, atol=.01)  # the same geometry as that of the data
    assert whole.t_geo[0,2] < -1000*(.4 - .17) < 0 < starting.t_geo[0,2]  # 400 m above the entry it had shone 1.1 µs earlier


def test_no_shower_at_the_entry():
    slots = Slots()
    on = slots.on(torch.tensor([0, 1, 2]))[:,0]
    assert on[0].tolist() == [0.]*63 + [1.] and on[1].tolist() == [1.]*64 and on[2].tolist() == [1.]*63 + [0.]
    assert torch.equal(slots.on(torch.tensor([False, True])), slots.on(torch.tensor([0, 1])))
    torch.manual_seed(0)
    decoder = PhotonDecoder(3, 18, (0., 1.), slots)
    labels, kinds = torch.tensor([[1e4, 0., 0., 0., 0., 0.]]*3), torch.tensor([0, 1, 2])
    light = decoder.light(see(labels, kinds, torch.randn(3, 3)*100), torch.arange(3).expand(3, -1), torch.randn(3, 18), kinds)
    assert (light.track[0] == -30).all() and (light.shower[2] == -30).all()
    assert (light.shower[:2] > -30).all() and (light.track[1:] > -30).all()


def test_a_model_of_two_kinds_says_that_it_knows_no_other():
    generator, through = Generator.from_checkpoint('icecube86', 'cpu'), simulate_events(3, kind='through', seed=1)
    assert generator.kinds == ['cascade', 'track']
    for ask in (dict(labels=through), dict(labels=through.labels, kind='through'), dict(n=3, kind='through')):
        with pytest.raises(ConfigError) as error: generator.sample(**ask)
        assert 'no muons from outside' in str(error.value) and 'cascade or track' in str(error.value) and 'train it on' in str(error.value)


def test_a_model_of_tracks_can_be_trained_on_with_them_and_one_of_cascades_cannot():
    saved, events = read_model('icecube86'), simulate_events(64, kind='through', seed=1)
    check_ancestor(saved, events)
    saved['card']['data'] = saved['card']['data'] | {'kinds': ['cascade']}
    with pytest.raises(DataError, match='never seen events of kind through'): check_ancestor(saved, events)


def test_lines_of_kinds():
    assert line_of(np.arange(4)).tolist() == line_of(torch.arange(4)).tolist() == [0, 0, 1, 2]
    assert line_of(THROUGH) == 2
    assert issubclass(ConfigError, GenesisError)


# Trained

NETWORK = {'diffusion.light_width': 24, 'model.hidden': 32, 'model.depth': 1, 'model.heads': 2, 'model.dom_width': 8}
QUICK = {'training.panel_minutes': 0, 'training.use_tensorboard': False, 'training.ema_snapshots': 0, 'training.num_epochs': 1, 'data.batch_size': 16}


def trained(folder, name, events, **more):
    "The generator of a run over a few events."
    write_events(events, folder/f'{name}.h5')
    places = {f'training.{k}_dir': folder/k for k in ('output', 'checkpoint', 'log')}
    config = override(ExperimentConfig(), NETWORK | QUICK | places | {'data.h5_path': folder/f'{name}.h5', 'experiment_name': name} | more)
    create_trainer(config, show=False).train()
    return Generator.from_checkpoint(folder/'checkpoint'/name, 'cpu')


@pytest.mark.parametrize('space', ('latent', 'event'))
def test_trained_without_energies(tmp_path, space):
    events = forget_labels(simulate_events(80, detector='toy', kind='track+through', seed=1, min_hits=4), 'energy')
    generator = trained(tmp_path, 'blind', events, **{'diffusion.space': space})
    assert not generator.knows_energy and generator.kinds == ['track', 'through']
    made = generator.sample(events[:6], seed=1)
    assert made.missing == ('energy',) and np.isnan(made.labels[:,0]).all() and (made.kind == events.kind[:6]).all()
    told = np.where(np.arange(6) == 0, 1e5, made.labels[0])    # an energy is not looked at
    other = generator.sample(told[None], kind='track', seed=1)
    none = generator.sample(made.labels[:1], kind='track', seed=1)
    np.testing.assert_array_equal(other.charge, none.charge)
    assert 'no energies' in repr(generator.transform)
    with pytest.raises(DataError, match='labels that are no event'): generator.sample(np.where(np.arange(6) == 2, np.nan, made.labels), kind='track')


def test_trained_on_with_muons_from_outside(tmp_path):
    first = trained(tmp_path, 'first', simulate_events(80, detector='toy', kind='mixed', seed=1, min_hits=4))
    new = simulate_events(80, detector='toy', kind='track+through', seed=2, min_hits=4)
    with pytest.raises(ConfigError, match='no muons from outside'): first.sample(new)
    then = trained(tmp_path, 'then', new, **{'training.start_from': tmp_path/'checkpoint'/'first'})
    assert then.kinds == ['track', 'through'] and then.knows_energy
    made = then.sample(new[:8], seed=3)
    assert (made.kind == new.kind[:8]).all() and np.isfinite(made.time).all()
    free = then.sample(n=5, kind='through', seed=1)             # labels are drawn where muons enter
    enter, leave = crossing(entry_cylinder(toy_detector()), free.labels[:,3:], free.direction)
    assert np.abs(enter[leave - enter > 1]).max() < .05
    with pytest.raises(DataError, match='generation needs labels'):
        first.sample(forget_labels(new[:4], 'energy'))
