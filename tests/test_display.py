"The event display: one file that loads nothing else, whose data are those of the events, and that a browser can turn, play and ask."
import base64, html, json, logging, os, re, shutil

import numpy as np
import pytest

from genesis.core import ConfigError, DataError
from genesis.data.detector import toy_detector
from genesis.data.events import Events, write_events
from genesis.data.simulator import simulate_events
from genesis.display import LIMIT, EventDisplay, event_html, save_display, show
from genesis.plots import pick_events, show_event, show_events, time_span

EVIL = '</script><img src=x onerror="alert(1)"><!-- \u2028 & \' ]]>'
DTYPES = dict(dom='<u2', charge='<f4', time='<f4')


def payload(page): return json.loads(re.search('<script id="data"[^>]*>(.*?)</script>', page, re.S)[1])
def decode(text, dtype): return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope='module')
def real(): return simulate_events(40, seed=3, kind='mixed')


@pytest.fixture(scope='module')
def gen(real): return simulate_events(labels=real.labels, kind=real.kind, seed=4, min_hits=0)


def test_three_events_of_icecube_with_their_twins_are_light(real, gen, caplog):
    page = event_html(real, generated=gen)
    assert len(page.encode()) < LIMIT == 300_000
    brightest = np.argsort(-real.n_hits)[:3]
    assert len(event_html(real, brightest, gen).encode()) < LIMIT and not caplog.records


def test_a_heavy_display_says_so(caplog):
    from genesis.data.detector import icecube86
    det = icecube86(); n = det.n_doms
    full = Events(n*np.arange(6), np.tile(np.arange(n), 5), np.ones(5*n), np.arange(5*n) % 977, np.tile([1e3, 1, 1, 0, 0, 0], (5, 1)), det)
    with caplog.at_level(logging.WARNING, 'genesis'): event_html(full, range(5))
    assert 'fewer events' in caplog.text


def test_nothing_is_loaded(real, gen):
    page = event_html(real, generated=gen)
    assert not re.search(r'https?:|//[\w-]+\.\w|\bimport\b|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|\bsrc=', page)
    assert "default-src 'none'" in page and page.count('<script') == page.count('</script>') == 2
    assert re.findall(r'href="([^"]*)"', page) == ['data:,']


@pytest.mark.parametrize('twin', [False, True])
def test_what_comes_out_is_what_went_in(real, gen, twin):
    idx = [5, 0, 11]
    data = payload(event_html(real, idx, gen if twin else None))
    assert data['columns'] == (['truth', 'generated'] if twin else ['']) and len(data['events']) == 3
    for i, e in zip(idx, data['events']):
        for hits, source in zip(e['hits'], (real, gen)):
            one = source[i]
            for name, dtype in DTYPES.items(): np.testing.assert_array_equal(decode(hits[name], dtype), getattr(one, name))
        assert tuple(e['span']) == time_span(real[i])
        np.testing.assert_array_equal(np.float32(e['vertex']), real.labels[i, 3:])
    det = real.detector
    xyz = decode(data['xyz'], '<i2').reshape(-1, 3)*data['step'] + data['origin']
    assert np.abs(xyz-det.xyz).max() < .02
    np.testing.assert_array_equal(np.array(data['strings'])[decode(data['row'], '<u2')], det.string)
    np.testing.assert_array_equal(decode(data['dom'], '<u2'), det.dom)


def test_names_are_text(real):
    page = event_html(real, 0, title=EVIL)
    assert payload(page)['title'] == EVIL and '<img' not in page and '<!--' not in page
    assert page.count('</script>') == 2 and html.unescape(re.search('<title>(.*?)</title>', page)[1]) == EVIL


def test_placeholders_in_a_title_stay_text(real):
    page = event_html(real, 0, title='__DATA__ __TITLE__')
    assert payload(page)['title'] == '__DATA__ __TITLE__' and '<title>__DATA__ __TITLE__</title>' in page


def test_the_frame_holds_the_page_in_a_sandbox(real):
    frame = EventDisplay(real, 0, title=EVIL)._repr_html_()
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^<>]*></iframe>', frame)
    assert html.unescape(found[1]) == event_html(real, 0, title=EVIL)


def test_wrong_events_are_refused(real, gen):
    with pytest.raises(DataError, match='0 to 39'): event_html(real, 40)
    with pytest.raises(DataError, match='no events'): event_html(real[:0])
    with pytest.raises(DataError, match='row 0'): event_html(real, generated=gen[::-1])


def test_no_hits_and_one_dom_are_drawn_too():
    det = toy_detector()
    few = Events([0, 0, 1], [3], [1.], [250.], np.tile([1e3, 1, 1, 0, 0, 0], (2, 1)), det)
    data = payload(event_html(few, [0, 1]))
    assert [len(decode(e['hits'][0]['dom'], '<u2')) for e in data['events']] == [0, 1]
    assert all(e['span'][1] > e['span'][0] for e in data['events'])


def test_unknown_labels_are_said_and_never_drawn(real):
    labels = real[:2].labels.copy(); labels[:, [0, 3, 4, 5]] = np.nan
    blind = Events(real[:2].ptr, real[:2].dom, real[:2].charge, real[:2].time, labels, real.detector, meta=dict(missing=['energy', 'x', 'y', 'z']))
    page = event_html(blind, 1, blind); e = payload(page)['events'][0]
    assert e['vertex'] is None and e['way'] is None and ['unknown:', 'energy, vertex'] in e['text'] and 'NaN' not in json.dumps(e)
    assert 'energy and vertex unknown' in e['name']


def test_show_writes_a_file_and_spreads_over_charge(real, gen, tmp_path, monkeypatch):
    write_events(real, tmp_path/'nu.h5'); write_events(gen, tmp_path/'gen.h5'); opened = []
    monkeypatch.setattr('webbrowser.open', lambda uri: opened.append(uri) or True)
    out = show(tmp_path/'nu.h5', 4, tmp_path/'gen.h5', out=tmp_path/'d.html')
    assert opened == [out.as_uri()]
    names = [e['name'] for e in payload(out.read_text())['events']]
    assert [int(re.match(r'event (\d+)', n)[1]) for n in names] == pick_events(real, 4).tolist()
    out = show(tmp_path/'nu.h5', 1, open_browser=False)
    assert out.name == 'nu.html' and len(opened) == 1
    shutil.rmtree(out.parent)


@pytest.mark.parametrize('view', ['side', 'top', '3d'])
def test_printed_pictures_have_the_same_views(real, gen, view):
    from matplotlib import pyplot as plt
    axes = show_events(real, gen, n=[7, 2], views=(view,))
    assert axes.shape == (2, 2) and {a.name for a in axes.flat} == {'3d' if view == '3d' else 'rectilinear'}
    balls = [c for c in axes[0, 1].collections if type(c).__name__ in ('PathCollection', 'Path3DCollection')][-1]
    if view != 'top': assert len(balls.get_offsets()) == gen.n_hits[7]
    with pytest.raises(ConfigError, match='does not fit these axes'): show_event(real, ax=axes[0, 0], view='side' if view == '3d' else '3d')
    plt.close('all')


def test_a_track_that_misses_is_drawn_without_its_way():
    det = toy_detector()
    far = Events([0, 0], [], [], [], [[1e3, 0, 0, 5000, 0, 0]], det, [2])
    e = payload(event_html(far, 0))['events'][0]
    assert e['way'] is None and e['vertex'][0] == 5000
    for view in ('side', '3d'): show_event(far, view=view)


# ---- in a browser, where there is one ---------------------------------------------------------------------

def browser_path(): return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: the display is not driven')
    if not browser_path(): pytest.skip('no Chromium on the PATH: the display is not driven')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=browser_path(), args=['--no-sandbox'])
        yield b
        b.close()


@pytest.fixture
def visit(browser, tmp_path):
    "Open a page; afterwards nothing may have been requested, logged or raised."
    said, pages = [], []
    def visit(page, **kw):
        path = tmp_path/f'{len(pages)}.html'; path.write_text(page)
        tab = browser.new_page(**(dict(viewport=dict(width=1100, height=640)) | kw)); pages.append(tab)
        tab.on('console', lambda m: said.append(m.text)); tab.on('pageerror', lambda e: said.append(str(e))); tab.on('dialog', lambda d: (said.append(d.message), d.dismiss()))
        tab.on('request', lambda r: said.append(r.url) if r.url != path.as_uri() and not r.url.startswith(('about:srcdoc', 'data:')) else None)
        tab.goto(path.as_uri()); tab.wait_for_timeout(200)
        return tab
    yield visit
    for tab in pages: tab.close()
    assert not said, said


def state(tab): tab.wait_for_timeout(120); return tab.evaluate('Object.assign({...display.cam}, display.state())')


def test_turn_zoom_pan_and_reset(visit, real, gen):
    tab = visit(event_html(real, generated=gen)); start = state(tab)
    picture = lambda k: tab.evaluate(f'display.panels[{k}].canvas.toDataURL()')
    before = picture(1)
    tab.mouse.move(250, 300); tab.mouse.down(); tab.mouse.move(350, 350, steps=4); tab.mouse.up(); turned = state(tab)
    assert turned['yaw'] != start['yaw'] and turned['pitch'] > start['pitch']
    assert picture(1) != before, 'the camera of the other panel is linked'
    tab.mouse.wheel(0, -300); zoomed = state(tab); assert zoomed['zoom'] > 1.1
    tab.keyboard.down('Shift'); tab.mouse.down(); tab.mouse.move(400, 350, steps=3); tab.mouse.up(); tab.keyboard.up('Shift')
    panned = state(tab); assert panned['x'] > zoomed['x'] and panned['yaw'] == zoomed['yaw']
    tab.click('text=top'); assert state(tab)['pitch'] == pytest.approx(np.pi/2)
    tab.click('text=reset'); assert {k: state(tab)[k] for k in ('yaw', 'pitch', 'zoom', 'x')} == {k: start[k] for k in ('yaw', 'pitch', 'zoom', 'x')}


def test_time_is_shared_and_plays(visit, real, gen):
    idx = pick_events(real, 3); tab = visit(event_html(real, generated=gen))
    assert state(tab)['seen'] == [real.n_hits[idx[0]], gen.n_hits[idx[0]]]
    tab.evaluate("document.getElementById('time').value = 300; document.getElementById('time').dispatchEvent(new Event('input'))")
    (t0, t1), at = time_span(real[idx[0]]), .3
    now = t0-.03*(t1-t0) + at*1.38*(t1-t0)
    assert state(tab)['seen'] == [(s[idx[0]].time <= now).sum() for s in (real, gen)]
    tab.keyboard.press('End'); tab.click('#play'); playing = state(tab)
    assert playing['playing'] and playing['frac'] < .3
    assert state(tab)['frac'] > playing['frac']
    tab.keyboard.press('ArrowRight'); assert not state(tab)['playing']


def test_a_dom_says_who_it_is_on_both_sides(visit, real, gen):
    i = int(pick_events(real, 3)[2]); tab = visit(event_html(real, i, gen)); one = real[i]
    k = int(np.argmax(one.charge)); dom = int(one.dom[k])
    at = tab.evaluate(f'(() => {{ const p = display.panels[0], r = p.canvas.getBoundingClientRect(); return [r.left+p.sx[{dom}], r.top+p.sy[{dom}]]; }})()')
    tab.mouse.move(*at); seen = state(tab)['hover']; text = tab.inner_text('#tip')
    assert seen in one.dom and f'string {real.detector.string[seen]}, DOM {real.detector.dom[seen]}' in text
    assert f'at {one.time[list(one.dom).index(seen)]:.1f} ns' in text and 'truth: ' in text and 'generated: ' in text


def test_events_theme_and_names(visit, real):
    tab = visit(event_html(real, title=EVIL), color_scheme='dark')
    assert tab.inner_text('h1').split() == EVIL.split() and tab.query_selector('h1 img') is None and state(tab)['dark']
    tab.select_option('#event', '2'); assert state(tab)['now'] == 2
    tab.keyboard.press('Escape'); tab.evaluate('document.activeElement.blur()'); tab.keyboard.press('n'); assert state(tab)['now'] == 0
    tab.keyboard.press('d'); assert not state(tab)['dark']


def test_the_frame_lives_in_a_page_and_leaves_it_alone(visit, real):
    tab = visit(f'<body style="height:3000px">{EventDisplay(real, title=EVIL)._repr_html_()}</body>', viewport=dict(width=700, height=800))
    frame = tab.frames[1]; zoom = lambda: (tab.wait_for_timeout(150), frame.evaluate('display.cam.zoom'))[1]
    tab.mouse.move(300, 300); tab.mouse.wheel(0, 200)
    assert zoom() == 1 and tab.evaluate('scrollY') > 0, 'a page scrolls past a display that nobody touched'
    tab.evaluate('scrollTo(0, 0)'); tab.wait_for_timeout(100); tab.mouse.click(300, 300); tab.mouse.wheel(0, -200)
    assert zoom() > 1 and tab.evaluate('scrollY') == 0


def test_fingers_turn_it(visit, real):
    tab = visit(event_html(real, 0), has_touch=True, viewport=dict(width=390, height=780)); start = state(tab)
    touch = tab.context.new_cdp_session(tab)
    points = lambda *xy: dict(touchPoints=[dict(x=x, y=y, id=k) for k, (x, y) in enumerate(xy)])
    for kind, xy in (('touchStart', [(150, 400)]), ('touchMove', [(220, 420)]), ('touchEnd', [])): touch.send('Input.dispatchTouchEvent', dict(type=kind, **points(*xy)))
    assert state(tab)['yaw'] != start['yaw']
    for kind, xy in (('touchStart', [(150, 400), (200, 400)]), ('touchMove', [(130, 400), (220, 400)]), ('touchMove', [(110, 400), (240, 400)]), ('touchEnd', [])): touch.send('Input.dispatchTouchEvent', dict(type=kind, **points(*xy)))
    assert state(tab)['zoom'] > 1
