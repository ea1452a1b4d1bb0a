"The map of the faces: what survives on a plane, and a lasso that the curator follows, in a real JupyterLab too."
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ipywidgets import HTML
from scipy.spatial.distance import cdist
from traitlets import Any

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, needs_browser
from lab import jupyter_lab, needs_lab, write_notebook
from test_curator import lines, make, until, with_vectors

from pttface.curation import map as map_page
from pttface.curation.curator import _data_url
from pttface.curation.decisions import CurationSession
from pttface.curation.map import (COLOURS, NEUTRAL, FaceMap, MapCurator, label_colours, map_points, nearest_of,
                                  neighbour_layout, neighbours_kept, principal_axes)
from pttface.curation.quality import load_faces
from pttface.evaluation.features import load_protocol
from pttface.storage.files import BadInput, content_hash, write_npz

needs_scatter = pytest.mark.skipif(find_spec('jscatter') is None,
                                   reason='no jupyter-scatter: `pip install "pttface[map]"`')


def groups(n, d=32, k=4, seed=0):
    "Points in `k` groups that lie apart, and the group of each"
    rng = np.random.default_rng(seed)
    group = np.arange(n) % k
    return (8*rng.normal(size=(k, d))[group] + rng.normal(size=(n, d))).astype(np.float32), group


def with_groups(root, n=120, k=4):
    "Faces whose features lie in groups; the group of each"
    root = make(root, n)
    ims = load_faces(root)[1]
    feats, group = groups(n, k=k)
    write_npz(root/f'eval/real-{load_protocol().version}-{content_hash(ims)}.npz', features=feats)
    return root, group


class Plot(HTML):
    "Stands for the widget of jupyter-scatter: what is selected, and who listens"
    selection = Any()


class Scatter:
    "Stands for a plot of jupyter-scatter"
    def __init__(self):
        self.plot, self.coloured = Plot(selection=np.zeros(0, int)), []

    def show(self, buttons):
        return self.plot

    def color(self, by, map, **kw):
        assert set(by) == set(map) and list(map) == sorted(map)
        self.coloured.append(list(by))

    def selection(self, points):
        self.plot.selection = np.asarray(points, int)


@pytest.fixture
def on_a_map(monkeypatch):
    "Opens a curator with a map on a plot that stands for the real one"
    monkeypatch.setattr(map_page, 'load_scatter', lambda: None)
    monkeypatch.setattr(map_page, 'face_scatter', lambda *a: Scatter())
    return lambda root, **kw: MapCurator(root, **dict(per_page=20, outliers=False, progress=False) | kw)


def catch(c, faces):
    "A lasso round the points of these faces"
    at = {i: p for p, i in enumerate(c.places.which.tolist())}
    c.plot.selection = np.array([at[int(i)] for i in faces], np.uint32)


def ringed(c):
    "The faces that the map rings"
    return set(c.places.which[np.asarray(c.plot.selection, int)].tolist())


def test_principal_axes_are_those_of_the_singular_values():
    x = np.random.default_rng(0).normal(size=(60, 20))*np.linspace(3, .1, 20)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    xy, share = principal_axes(x)
    assert np.allclose(np.abs(xy), np.abs(u[:, :2]*s[:2])) and np.allclose(share, s[:2]**2/(s**2).sum())
    assert np.allclose(principal_axes(x[::-1])[0][::-1], xy), 'the sign does not depend on the order'
    assert principal_axes(x[:3])[0].shape == (3, 2) and np.isclose(principal_axes(x[:3])[1].sum(), 1)
    assert (principal_axes(np.ones((5, 4)))[1] == 0).all()


@pytest.mark.parametrize('n', [4, 300, 5000])
def test_nearest_points_in_pieces_are_those_of_all_distances(n):
    x = np.random.default_rng(1).normal(size=(n, 3))
    k, some = min(10, n - 1), np.arange(0, n, max(1, n//200))
    distance = cdist(x[some], x)
    distance[range(len(some)), some] = np.inf
    near = nearest_of(x, k)
    assert near.shape == (n, k) and (near[some] == np.argsort(distance, 1)[:, :k]).mean() > .999
    assert (nearest_of(x, k, some) == near[some]).all()
    assert neighbours_kept(near, x[:, :3]) > .999 and neighbours_kept(near, x[:, ::-1]*-2) > .999


def test_the_layout_keeps_more_neighbours_than_two_axes_and_far_more_than_chance():
    x, group = groups(400)
    a, b = map_points(x, x), map_points(x, x, layout='pca')
    assert a.kept > 1.2*b.kept > 1.2*2*10/399
    there = nearest_of(a.xy, 10)
    assert (group[there] == group[:, None]).mean() > .98
    assert np.allclose(map_points(x, x).xy, a.xy)
    assert np.ptp(a.xy[:, 0]) >= .8*np.ptp(a.xy[:, 1]), 'it lies across'
    shuffled = neighbours_kept(nearest_of(x, 10), np.random.default_rng(0).permutation(a.xy))
    assert abs(shuffled - 10/399) < .015
    assert 'by chance' in repr(a) and 'variance' not in repr(a)
    assert f'{b.variance.sum():.0%} of the variance' in repr(b)


def test_faces_that_are_there_many_times_and_very_few_have_places_too():
    x, _ = groups(90)
    x[10:60] = x[3]
    assert np.isfinite(map_points(x, None).xy).all()
    for n in (3, 4, 12):
        m = map_points(x[:n], None)
        assert len(m) == n and m.k == min(10, n - 1) and np.isfinite(m.xy).all() and 0 <= m.kept <= 1
    far = neighbour_layout(nearest_of(x, 15), np.zeros((90, 2)))
    assert np.isfinite(far).all()


def test_what_cannot_be_drawn_is_one_sentence(tmp_path, monkeypatch):
    x, _ = groups(20)
    x[2:] = np.nan
    for bad, words in ((x, 'needs 3 faces or more, and there are 2'), (np.ones((9, 4)), 'All 9 faces have the same')):
        with pytest.raises(BadInput, match=words):
            map_points(bad, None)
    with pytest.raises(BadInput, match="no layout of a map 'tsne'"):
        map_points(x, None, layout='tsne')
    d = CurationSession(make(tmp_path/'two', 2), outliers=False, progress=False)
    monkeypatch.setattr(CurationSession, 'feature_directions', lambda _: pytest.fail('features were made'))
    for kw, words in ((dict(), 'needs 3 faces or more, and .* holds 2'), (dict(by='colour'), 'no way to compare'),
                      (dict(layout='x'), 'no layout')):
        with pytest.raises(BadInput, match=words):
            d.face_map(**kw)
    d = CurationSession(make(tmp_path/'more', 9), outliers=False, progress=False)
    with pytest.raises(BadInput, match='holds 0 identity vectors'):
        d.face_map('identity')


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jscatter', None)
    with pytest.raises(BadInput, match=r'needs the package jupyter-scatter .*pip install "pttface\[map\]"'):
        MapCurator(tmp_path/'nothing is read')
    with pytest.raises(BadInput, match='cannot be 9 px high'):
        MapCurator(tmp_path, height=9)


def test_a_lasso_shows_its_faces_alone_and_lets_go(tmp_path, on_a_map):
    root, group = with_groups(tmp_path/'run')
    c = on_a_map(root)
    assert ringed(c) == set(c.shown) and len(c.shown) == 20 and len(c.places) == 120
    c.next_page()
    before = c.shown.tolist()
    assert ringed(c) == set(before) and c.session.counts['looked_at'] == 20
    mine = np.flatnonzero(group == 2)
    catch(c, mine)
    assert set(c.order) == set(mine) == ringed(c) and c.pages == 2 and c.return_button.layout.display is None
    assert (np.diff(c.session.scores.of()[c.order]) <= 0).all(), 'worst first'
    c.faces[0].click()
    c.drop_shown()
    dropped = set(c.shown.tolist())
    assert {o['drop'] for o in lines(root)[20:]} == {True} and len({o['key'] for o in lines(root)[20:]}) == 20
    rows = {r['key']: i for i, r in enumerate(c.session.rows)}
    assert all(o['reason'] == c.session.scores.reason[rows[o['key']]] for o in lines(root)[20:])
    assert {i for i, o in zip(c.places.which.tolist(), c.scatter.coloured[-1]) if o == 'dropped'} == dropped
    c.undo_button.click()
    assert c.scatter.coloured[-1].count('dropped') == 1 and c.session.counts['dropped'] == 1
    catch(c, np.flatnonzero(group == 1)[:5])
    assert len(c.views) == 1 and len(c.order) == 5, 'another lasso takes the place of the first'
    c.return_button.click()
    assert c.shown.tolist() == before and ringed(c) == set(before) and c.page == 1 and not c.views
    catch(c, mine[:3])
    catch(c, [])
    assert c.shown.tolist() == before and not c.views and ringed(c) == set(before)
    catch(c, [])
    assert ringed(c) == set(before), 'a double click on nothing leaves all as it was'


def test_a_lasso_goes_with_more_like_this_filters_and_the_last_page(tmp_path, on_a_map):
    root, group = with_groups(tmp_path/'run')
    c = on_a_map(root)
    catch(c, np.flatnonzero(group == 3))
    c.more_button.click()
    assert len(c.views) == 2 and ringed(c) == set(c.order.tolist())
    catch(c, [4, 5])
    assert len(c.views) == 3 and c.order.tolist() == sorted([4, 5], key=lambda i: -c.session.scores.of()[i])
    c.next_button.click()
    assert len(c.views) == 2 and c.session.counts['looked_at'] == 2 and ringed(c) == set(c.order.tolist())
    c.filters['month'].value = '02'
    assert not c.views and ringed(c) == set(c.shown.tolist())
    catch(c, c.shown)
    assert not c.views, 'what the map was told is no lasso'
    n = len(c.scatter.coloured)
    c.show_page(1)
    assert len(c.scatter.coloured) == n, 'a page is turned without new colours'
    for by in COLOURS:
        c.colour.value = by
        assert len(c.scatter.coloured[-1]) == 120 and c.painted == c.scatter.coloured[-1]
    assert set(c.painted) == {'male', 'female', 'unknown'}


def test_a_map_by_identity_leaves_out_faces_without_a_vector(tmp_path, on_a_map):
    root = make(tmp_path/'run', 60)
    with_vectors(root, np.array([0]*9 + [1]*9 + list(range(2, 22))))
    c = on_a_map(root, by='identity')
    assert len(c.places) == 38 and '22 without a vector are not on it' in repr(c.places)
    assert len(c.scatter.coloured[-1]) == 38
    assert not c.views and len(c.shown) == 20 and ringed(c) == set(c.shown) & set(range(38)) != set(c.shown)
    catch(c, range(9))
    assert set(c.shown) == set(range(9))
    c.order = np.arange(55, 60)
    c.show_page(0)
    assert ringed(c) == set() and c.shown.tolist() == list(range(55, 60)) and len(c.views) == 1
    written = str([c.places.__dict__[k] for k in ('by', 'layout', 'kept', 'k', 'variance')])
    assert 'vectors' not in c.places.__dict__ and len(written) < 300


def test_labels_and_colours(tmp_path):
    d = CurationSession(make(tmp_path/'run'), outliers=False, progress=False)
    d.decide([0, 1])
    d.mark_reviewed([2])
    assert d.map_labels()[:4] == ['dropped', 'dropped', 'kept', 'not looked at']
    assert d.map_labels('pose')[:5] == ['dropped', 'dropped', d.rows[2]['pose'], d.rows[3]['pose'], d.rows[4]['pose']]
    with pytest.raises(BadInput, match="no way to colour a map 'age'"):
        d.map_labels('age')
    many = label_colours([f'l{i}' for i in range(12) for _ in range(20 - i)] + ['dropped', 'none'])
    loud = [k for k, v in many.items() if v not in NEUTRAL.values()]
    assert loud == [f'l{i}' for i in range(7)] and len({many[k] for k in loud}) == 7
    assert many['dropped'] == NEUTRAL['dropped'] and many['l9'] == NEUTRAL['other']
    xy = np.random.default_rng(0).normal(size=(120, 2))
    m = FaceMap(xy, np.arange(120), d.ims, 'features', 'pca', .5, 10, np.ones(2))
    for picture in (m.picture(), m.picture(d.map_labels('pose'), faces=0)):
        assert picture._repr_png_()[:4] == b'\x89PNG'


@needs_scatter
def test_the_real_widget_is_told_and_tells(tmp_path):
    root, group = with_groups(tmp_path/'run')
    c = MapCurator(root, per_page=20, outliers=False, progress=False)
    assert c.plot.points.shape == (120, 4) and c.plot.mouse_mode == 'lasso' and ringed(c) == set(c.shown)
    assert np.abs(c.plot.points[:, 1]).max() <= 1
    catch(c, np.flatnonzero(group == 1))
    c.drop_shown()
    shown = [o for o, _, _ in c.plot.legend_encoding['color']['values']]
    colours = {o: colour for o, colour, _ in c.plot.legend_encoding['color']['values']}
    code = c.plot.points[:, 2].astype(int)
    assert sorted(shown) == ['dropped', 'not looked at'] and np.bincount(code).tolist() == [20, 100]
    pale = [int(NEUTRAL['dropped'][k:k + 2], 16)/255 for k in (1, 3, 5)]
    assert np.allclose(c.plot.color[0][:3], pale) and np.allclose(colours['dropped'][:3], pale)
    c.undo_button.click()
    assert np.bincount(c.plot.points[:, 2].astype(int)).tolist() == [120]
    assert c.scatter._data['face'][0].startswith('data:image/jpeg;base64,')


LASSO = [(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -.8)]


def lasso(b, x, y, half):
    "Draw a square with the mouse"
    b.page.mouse.move(x - half, y - half)
    b.page.mouse.down()
    for dx, dy in LASSO:
        b.page.mouse.move(x + half*dx, y + half*dy, steps=5)
    b.page.mouse.up()


@needs_browser
@needs_lab
@needs_scatter
def test_a_lasso_in_jupyterlab(tmp_path):
    root, group = with_groups(tmp_path/'run', 400)
    write_notebook(tmp_path/'map.ipynb', 'from pttface.curation.map import MapCurator\n'
                                         f'MapCurator({str(root)!r}, outliers=False, progress=False)')
    d = CurationSession(root, outliers=False, progress=False)
    xy = d.face_map().xy
    xy = xy - (xy.min(0) + xy.max(0))/2
    mine = min(range(4), key=lambda k: xy[group == k, 1].mean())  # the group at the bottom
    middle = np.median(xy[group == mine], axis=0)
    with jupyter_lab(tmp_path, tmp_path/'home') as lab, Browser(1280, 1000) as b:
        b.goto(lab.address('map.ipynb'))
        b.page.locator('.jp-Notebook .cm-content').first.click()
        b.wait("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'")
        b.key('Shift+Enter')
        b.wait("document.querySelector('.jp-OutputArea canvas')?.getBoundingClientRect().width > 300")
        b.wait("document.body.innerText.includes('page 1 of 14') && document.body.innerText.includes('by chance')")
        b.wait("[...document.querySelectorAll('.jp-OutputArea')].some(o => o.innerText.includes('not looked at'))")
        box = b.eval("(r => [r.x, r.y, r.width, r.height])(document.querySelector('.jp-OutputArea canvas')"
                     ".getBoundingClientRect())")
        half = 1.1*max(np.abs(xy[:, 1]).max(), np.abs(xy[:, 0]).max()*320/800)
        reach = 1.15*np.abs(xy[group == mine] - middle).max()
        scale = box[3]/2/half  # px
        def at(place):
            return box[0] + box[2]/2 + scale*place[0], box[1] + box[3]/2 - scale*place[1]
        def caught():
            lasso(b, *at(middle), scale*reach)
            time.sleep(1)
            return b.eval("document.querySelector('.pf-return').offsetWidth > 0")
        until(caught, 120)  # The map does not listen before its points are drawn
        b.wait("document.body.innerText.includes('page 1 of 4')")
        if shots := os.environ.get('PTTFACE_SHOTS'):
            time.sleep(1)
            b.screenshot(f'{shots}/map.png')
        b.click('.pf-drop')
        until(lambda: len(lines(root)) == 30)
        numbers = {r['key']: i for i, r in enumerate(d.rows)}
        assert {group[numbers[o['key']]] for o in lines(root)} == {mine}, 'the curator showed the faces in the lasso'
        b.wait("[...document.querySelectorAll('.jp-OutputArea')].some(o => /not looked at/.test(o.innerText) && "
               "/Color[^]*dropped/.test(o.innerText))")
        b.click('.pf-undo')
        b.wait("/(^|\\s)0 dropped/.test(document.querySelector('.pf-head').innerText)")
        alone = int(np.argmax(np.sort(cdist(xy, xy), 1)[:, 1]))
        b.page.mouse.move(*at(xy[alone]), steps=5)
        face = _data_url(d.ims[alone], 85)[-80:]
        b.wait("[...document.querySelectorAll('.jp-OutputArea *')]"
               f".some(o => o.style.backgroundImage.includes('{face}'))")
        b.page.mouse.dblclick(box[0] + box[2] - 8, box[1] + box[3] - 8)
        b.wait("document.querySelector('.pf-return').offsetWidth == 0")
        b.wait("document.body.innerText.includes('page 1 of 14')")
        assert not [e for e in b.errors if 'favicon' not in e], b.errors
