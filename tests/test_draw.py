"The generator of the page \"Draw one\" in a real browser: its pictures are Python's, and everybody can work it."
import functools
import http.server
import json
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, needs_browser
from drawn_noise import smooth_faces

from pttface.curation.card import set_hash
from pttface.dataset import FaceData
from pttface.diffusion import Run, generate, sample, sampled_denoiser, to_uint8, train, trajectory
from pttface.draw import write_generator
from pttface.export import export_run
from pttface.storage.files import BadInput, read_json, write_json
from pttface.training.config import RECIPES, Recipe
from pttface.training.samplers import Noise

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top / 'tools'))
import generator  # noqa: E402

CPU = dict(device='cpu', progress=False)
TOLD = Recipe('told', net_args=dict(ch=8, mults=(1, 2), blocks=1, attn=(8,), dropout=0., size=16), size=16, batch=16,
              lr=1e-2, beta2=.99, ema='power 0.10', labels=('pose', 'gender'), guidance=2., flip=False,
              report='640 images', grid='1M images', save='1h', precision='no')
GREY = replace(TOLD, name='grey', labels=(), guidance=1., parameterization='linear', sampler='ancestral', steps=12,
               net_args=TOLD.net_args | dict(in_ch=1))


def faces(channels=3, n=300):
    "Smooth pictures, brighter on the side that the pose names; no face looks right, and gender is in the colour."
    rng = np.random.default_rng(0)
    ims = smooth_faces(n, 5, 16).astype(int)
    pose, gender = rng.choice(['frontal', 'left'], n), rng.choice(['male', 'female'], n)
    ims[pose == 'left', :, :8] += 60
    ims[gender == 'male', ..., 0] += 50
    split = (np.arange(n) >= n - 20).astype(np.uint8)
    arrays = dict(images=ims.clip(0, 255).astype(np.uint8)[..., :channels], split=split,
                  key=np.arange(n).astype(str), pose=pose, gender=gender)
    return FaceData(arrays, dict(hash=set_hash(arrays), counts={}))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Two runs: guided and told labels; and grey, with fresh noise at each step."
    root = tmp_path_factory.mktemp('draw') / 'data'
    for r in (TOLD, GREY):
        train(faces(r.net_args.get('in_ch', 3)), r, root=root, budget='640 images', **CPU)
    return root


@pytest.fixture(scope='module')
def runtime():
    "The files of ONNX Runtime for browsers."
    try:
        return generator.runtime()
    except BadInput as e:
        pytest.skip(str(e))


def page():
    "The page as its notebook has it, before there is a generator."
    cells = json.loads((top / 'nbs/draw.ipynb').read_text(encoding='utf-8'))['cells']
    place = next(t for c in cells if (t := ''.join(c['source'])).startswith('<div id="draw-one"'))
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="images/favicon.svg"><link rel="stylesheet" href="styles.css">'
    return (f'<!doctype html><html lang="en"><head>{meta}{icon}<title>Draw one</title></head><body>'
            f'<main class="content"><h1>Draw one</h1>{place}</main></body></html>')


@pytest.fixture(scope='module')
def sites(root, runtime, tmp_path_factory):
    "Name of a run → folder of a site whose page draws from it."
    out = {}
    for name in ('told', 'grey'):
        out[name] = site = tmp_path_factory.mktemp(name)
        shutil.copytree(top / 'nbs/images', site / 'images')
        shutil.copy(top / 'nbs/styles.css', site)
        (site / 'draw.html').write_text(page(), encoding='utf-8')
        for _ in range(2):  # again: a site that has a generator gets the new one
            assert 'a generator in' in generator.add(site, root / 'runs' / name)
    return out


@pytest.fixture(scope='module')
def urls(sites):
    "Name of a run → where its page is served."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a):
            pass
    servers, out = [], {}
    for name, site in sites.items():
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        out[name] = f'http://127.0.0.1:{servers[-1].server_port}/draw.html'
    yield out
    for s in servers:
        s.shutdown()


@pytest.fixture(scope='module')
def browser():
    with Browser(patience=240) as b:
        yield b


def visit(browser, url):
    "Open the page; the one that is open already, with the network that it has fetched, is gone on with."
    if browser.page.url != url:
        browser.goto(url)


PIXELS = '''e => { const [w, h] = [e.width, e.height];
    return [h, w, [...e.getContext("2d").getImageData(0, 0, w, h).data].filter((_, i) => i % 4 < 3)] }'''


def pixels(browser, selector, i=0):
    "What a canvas shows, (H,W,3)."
    h, w, flat = browser.page.locator(selector).nth(i).evaluate(PIXELS)
    return np.array(flat, np.uint8).reshape(h, w, 3)


def ask(browser, **values):
    "Set controls of the page, the last one with an event, and wait for the picture; what it says. Others are reset."
    browser.page.evaluate('''values => {
        const root = document.getElementById("draw-one");
        root.reset();
        delete root.dataset.drawn;
        for (const [k, v] of Object.entries(values)) root.querySelector(`[name=${k}]`).value = v;
        const last = root.querySelector(`[name=${Object.keys(values).at(-1)}]`);
        last.dispatchEvent(new Event(last.type === "range" ? "input" : "change", {bubbles: true})) }''', values)
    browser.wait('document.getElementById("draw-one").dataset.drawn')
    return browser.eval('document.querySelector(".draw-status").textContent')


def apart(a, b):
    return np.abs(a.astype(int) - b).max()


# Pictures

@needs_browser
def test_the_browser_draws_what_python_draws(root, urls, browser, record_property):
    run = Run.open(root, 'told')
    browser.size(1280, 900)
    browser.goto(urls['told'])
    start = time.time()
    drawn = []
    for seed in (0, 7, 2**64 - 1):
        said = ask(browser, seed=str(seed), share=0)
        if seed == 0:
            record_property('seconds_to_first_picture', round(time.time() - start, 2))
        assert f'seed {seed} in' in said and browser.errors == []
        drawn.append(pixels(browser, '.draw-picture'))
        assert apart(drawn[-1], sample(run, 1, seed=seed, **CPU)[0]) <= 2, seed
    assert apart(drawn[0], drawn[1]) > 20 and np.std(drawn) > 10


@needs_browser
def test_pose_and_gender_are_asked_for(root, urls, browser):
    run = Run.open(root, 'told')
    visit(browser, urls['told'])
    values = browser.eval('''Object.fromEntries([...document.querySelectorAll("#draw-one select")]
        .map(e => [e.name, [...e.options].map(o => o.value)]))''')
    assert values == dict(pose=['', 'frontal', 'left'], gender=['', 'male', 'female']), 'only what was learned'
    any_head = sample(run, 1, seed=3, **CPU)[0]
    for asked in (dict(pose='left', gender=''), dict(pose='frontal', gender='female'), dict(pose='', gender='male')):
        assert 'seed 3' in ask(browser, seed='3', **asked)
        wanted = sample(run, 1, seed=3, **{k: v for k, v in asked.items() if v}, **CPU)[0]
        assert apart(pixels(browser, '.draw-picture'), wanted) <= 2, asked
        assert apart(wanted, any_head) > 2, 'labels make a difference'
    ask(browser, seed='3', pose='', gender='')
    assert apart(pixels(browser, '.draw-picture'), any_head) <= 2


@needs_browser
def test_the_slider_goes_from_one_seed_to_another(root, urls, browser):
    run = Run.open(root, 'told')
    visit(browser, urls['told'])
    d, a, b = sampled_denoiser(run, 'cpu'), Noise(4, [0], run.shape)(), Noise(9, [0], run.shape)()
    for share in (30, 100):
        angle = torch.tensor(share/100*torch.pi/2)
        wanted = to_uint8(generate(d, [0], run.shape, noise=lambda r=angle: r.cos()*a + r.sin()*b))[0]
        said = ask(browser, seed='4', second='9', share=share)
        assert f'{share} % of the way to seed 9' in said
        assert apart(pixels(browser, '.draw-picture'), wanted) <= 2
    assert apart(wanted, sample(run, 1, seed=9, **CPU)[0]) <= 2, 'the end of the way'


@needs_browser
def test_the_strip_shows_the_path_from_noise(root, urls, browser):
    visit(browser, urls['told'])
    ask(browser, seed='5', share=0)
    held, guesses, sigmas = trajectory(Run.open(root, 'told'), 0, frames=8, seed=5, device='cpu')
    assert browser.eval('document.querySelectorAll(".draw-held").length') == len(held) == 8
    for i in range(8):
        assert apart(pixels(browser, '.draw-held', i), held[i]) <= 2
        assert apart(pixels(browser, '.draw-guess', i), guesses[i]) <= 2
    titles = browser.eval('[...document.querySelectorAll(".draw-held")].map(e => parseFloat(e.title.slice(4)))')
    np.testing.assert_allclose(titles, sigmas, rtol=.06)
    noisy = [np.abs(np.diff(o.astype(int), axis=1)).mean() for o in held]
    assert noisy[0] > noisy[-1]


@needs_browser
def test_fresh_noise_and_grey_pictures_are_drawn_too(root, urls, browser):
    run = Run.open(root, 'grey')
    browser.goto(urls['grey'])
    assert browser.eval('document.querySelectorAll("#draw-one select").length') == 0
    for seed in (1, 2):
        ask(browser, seed=str(seed))
        shown = pixels(browser, '.draw-picture')
        assert apart(shown, sample(run, 1, seed=seed, **CPU)[0].repeat(3, -1)) <= 2
        assert shown.std() > 5 and browser.errors == []


@needs_browser
def test_noise_is_numpys(urls, browser):
    "40,000 numbers of each key: the tail, and layers' edges, are among them."
    visit(browser, urls['told'])
    for seed, number in ((0, 0), (12345678901234567890, 3), (2**64 - 1, 2**32)):
        ours = browser.page.evaluate('''async ([seed, number]) => [...(await import("./draw/draw.js"))
            .normal(BigInt(seed), BigInt(number), 40000)]''', [str(seed), str(number)])
        philox = np.random.Philox(key=np.array([seed, number], np.uint64))
        wanted = np.random.Generator(philox).standard_normal(40000, np.float32)
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
        assert np.abs(wanted).max() > 3.66, 'the tail was drawn from'


# The page

@needs_browser
def test_the_button_draws_another_each_time(urls, browser):
    browser.goto(urls['told'])
    assert browser.eval('document.querySelector(".draw-still").getBoundingClientRect().width') > 100
    seen = set()
    for _ in range(2):
        browser.eval('delete document.getElementById("draw-one").dataset.drawn')
        browser.click('[name=one]')
        said = browser.wait('document.getElementById("draw-one").dataset.drawn')
        seen.add(browser.eval('document.querySelector("[name=seed]").value'))
        assert any(o in said for o in seen)
    assert len(seen) == 2 and browser.errors == []
    assert browser.eval('getComputedStyle(document.querySelector(".draw-still")).display') == 'none'
    label = browser.eval('document.querySelector(".draw-picture").getAttribute("aria-label")')
    assert re.search(r'from seed \d+', label)


@needs_browser
def test_the_last_wish_is_drawn_when_many_come_at_once(root, urls, browser):
    visit(browser, urls['told'])
    ask(browser, seed='0', share=0)
    browser.eval('''(() => { const e = document.querySelector("[name=seed]");
        for (let i = 1; i < 30; i++) { e.value = i; e.dispatchEvent(new Event("change", {bubbles: true})); } })()''')
    browser.wait('document.getElementById("draw-one").dataset.drawn === "seed 29"')
    assert apart(pixels(browser, '.draw-picture'), sample(Run.open(root, 'told'), 1, seed=29, **CPU)[0]) <= 2


@needs_browser
def test_tab_reaches_all_controls_and_each_has_a_name(urls, browser):
    browser.goto(urls['told'])
    reached = []
    for _ in range(12):
        browser.key('Tab')
        reached.append(browser.eval('document.activeElement.name || ""'))
    assert [o for o in reached if o][:6] == ['one', 'seed', 'second', 'share', 'pose', 'gender']
    names = browser.eval('''[...document.querySelectorAll("#draw-one :is(input, select)")].map(e =>
        e.labels[0].textContent.trim())''')
    assert len(names) == 5 and all(names)
    assert browser.eval('document.querySelector(".draw-status").getAttribute("aria-live")') == 'polite'
    browser.page.focus('[name=one]')
    browser.key('Enter')
    browser.wait('document.getElementById("draw-one").dataset.drawn')
    browser.page.focus('[name=share]')
    browser.key('ArrowRight')
    browser.wait('document.getElementById("draw-one").dataset.drawn.includes("5 % of the way")')


@needs_browser
@pytest.mark.parametrize('width', [320, 360, 1280])
def test_no_width_needs_a_sideways_scroll(urls, browser, width):
    browser.size(width, 740)
    visit(browser, urls['told'])
    for _ in range(2):
        assert browser.eval('document.documentElement.scrollWidth <= innerWidth')
        outside = browser.eval('''[...document.querySelectorAll("#draw-one *")].filter(e => {
            const r = e.getBoundingClientRect(); return r.width && (r.right > innerWidth || r.left < 0) })
            .map(e => e.className)''')
        assert outside == []
        ask(browser, seed='1')
    browser.size(1280, 900)


@needs_browser
@pytest.mark.parametrize('fault, message', [('draw/denoiser.onnx', 'denoiser.onnx cannot be loaded (404'),
                                            ('draw/generator.json', 'generator.json cannot be loaded (404')])
def test_what_cannot_be_fetched_is_said(urls, browser, fault, message):
    browser.page.route(f'**/{fault}', lambda route: route.fulfill(status=404, body=''))
    browser.goto(urls['told'])
    browser.click('[name=one]')
    said = browser.wait('''document.querySelector(".draw-failed .draw-status")?.textContent''', 60)
    browser.page.unroute(f'**/{fault}')
    assert message in said and 'reload' in said
    browser.goto('about:blank')


@needs_browser
def test_a_seed_that_is_none_and_a_browser_without_webassembly(urls, browser):
    browser.goto(urls['told'])
    for seed in ('minus one', '-1', '', '18446744073709551616'):
        browser.page.fill('[name=seed]', seed[:20])
        browser.eval('document.querySelector("[name=seed]").dispatchEvent(new Event("change"))')
        assert 'is no seed' in browser.eval('document.querySelector(".draw-status").textContent'), seed
    browser.eval('delete globalThis.WebAssembly')
    browser.click('[name=one]')
    said = browser.wait('''[...document.querySelectorAll(".draw-status")].map(e => e.textContent)
        .find(t => t.includes("WebAssembly"))''')
    assert 'this browser has no WebAssembly' in said


# What is built

def test_the_preset_tiny_is_small_enough(root, tmp_path):
    "The networks of a guided `tiny`, with the weights a training begins with."
    data = faces(n=64)
    images = data.images.repeat(2, 1).repeat(2, 2)
    arrays = dict(data.arrays, images=images)
    tiny = replace(RECIPES['tiny'], batch=2, guide_at=1.)
    run = train(FaceData(arrays, dict(hash=set_hash(arrays), counts={})), tiny, root=tmp_path / 'data',
                budget='8 images', **CPU)
    files = write_generator(run, tmp_path / 'out')['files']
    assert set(files) == {'denoiser.onnx', 'guide.onnx'} and 5e6 < sum(files.values()) <= 8e6


def test_a_folder_that_was_exported_gives_the_same_generator(root, tmp_path):
    run = Run.open(root, 'told')
    by_run, by_model = (write_generator(o, tmp_path / name) for o, name in
                        ((run, 'a'), (export_run(run, tmp_path / 'told', **CPU), 'b')))
    assert by_run == by_model
    for name in by_run['files']:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_what_must_not_leave_makes_no_generator(root, tmp_path):
    shutil.copytree(root, tmp_path / 'data')
    run = Run.open(tmp_path / 'data', 'told')
    rows = [dict(metric='flagged as copies', of='samples', value=3, n=50)]
    write_json(tmp_path / 'data/eval/report.json', dict(settings=dict(run='told'), rows=rows, found={}, notes=[]))
    with pytest.raises(BadInput, match='3 of 50 samples of told are flagged as copies'):
        write_generator(run, tmp_path / 'out')
    (run.path.parent.parent / 'eval/report.json').unlink()
    with pytest.raises(BadInput, match='There is no sampler'):
        write_generator(run, tmp_path / 'out', sampler='nobody')
    assert not (tmp_path / 'out').exists()


def test_without_a_run_or_node_the_still_stays(root, tmp_path, monkeypatch):
    (tmp_path / 'draw.html').write_text(page(), encoding='utf-8')
    with pytest.raises(BadInput, match='there is no run .*make demo'):
        generator.add(tmp_path, tmp_path / 'nobody')
    monkeypatch.setenv('PATH', '')
    with pytest.raises(BadInput, match='no npm'):
        generator.add(tmp_path, root / 'runs/told', cache=tmp_path / 'cache')
    assert (tmp_path / 'draw.html').read_text(encoding='utf-8') == page()
    assert 'make demo' in page() and 'make docs' in page() and 'images/draw.png' in page()
    assert not (tmp_path / 'draw').exists()


def test_the_place_of_the_generator_may_hold_more():
    nested = 'a <div id="draw-one" class="x"><div><p>b</p></div><div>c</div></div> d</div>'
    begin, end = generator.place(nested)
    assert nested[:begin] + nested[end:] == 'a  d</div>'
    assert generator.place('<div id="other"></div>') is None and generator.place('<div id="draw-one"><p>') is None


def test_an_archive_that_is_not_the_pinned_one_is_refused(tmp_path):
    (tmp_path / 'a.tgz').write_bytes(b'another')
    with pytest.raises(BadInput, match='not the archive that tools/generator.py pins'):
        generator.unpack(tmp_path / 'a.tgz', tmp_path)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['a.tgz']


def test_the_site_ships_all_it_fetches(sites):
    site = sites['told']
    table = read_json(site / 'draw/generator.json')
    shipped = {o.name for o in (site / 'draw').iterdir()}
    assert {*table['files'], table['runtime'], 'draw.js', 'draw.css', 'generator.json'} == shipped
    text = (site / 'draw.html').read_text(encoding='utf-8') + (site / 'draw/draw.js').read_text(encoding='utf-8')
    assert re.findall(r'(?:src|href)="https?://[^"]*|import\([^)]*https?:', text) == []
    assert [text.count(o) for o in ('"draw/draw.css', '"draw/draw.js', 'id="draw-one"')] == [1, 1, 1]
