"""What a referee would check in the evaluation's figures: the published formulas, random subsets, errors, the power of
the search for copies, and input of every odd kind."""
import itertools
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from torch.nn import functional as F

from pttface import fid
from pttface.evaluation import distances
from pttface.evaluation import features as ft
from pttface.evaluation import metrics as mt
from pttface.evaluation.memorization import (Originality, TrainingFaces, are_copies, article_numbers, find_copies,
                                             plant_copies)
from pttface.evaluation.metrics import Stats, draw_rows, effective_rank, kid, mind, neighbours, prdc, vendi_score
from pttface.evaluation.report import FLOOR, Report, metric_row
from pttface.fid import MEASURES, Watch, all_samples_rows, equal_n_rows, evaluate, frechet_distance, standard_rows
from pttface.storage.files import BadInput, open_root, write_jsonl
from drawn_noise import smooth_faces


def published(a, b):
    "FID of features as the papers' programs compute it: NumPy's covariance, SciPy's root of the product."
    mu, nu, s, t = a.mean(0), b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((mu - nu)**2).sum() + np.trace(s) + np.trace(t) - 2*np.trace(linalg.sqrtm(s @ t)).real)


def made_features(n, seed, dim=48, shift=0., spread=1.):
    mix = np.random.default_rng(99).normal(size=(dim, dim))*np.arange(1, dim + 1)**-.6
    return (np.random.default_rng(seed).normal(size=(n, dim))*spread + shift) @ mix


@pytest.mark.parametrize('m, n', [(300, 900), (900, 300), (700, 700)])
def test_the_first_row_is_the_published_figure(m, n):
    from cleanfid.fid import fid_from_feats
    train, samples, held = made_features(m, 0), made_features(n, 1, shift=.1, spread=1.1), made_features(200, 2)
    rows, _ = standard_rows('FID (clean)', dict(train=train, held=held, samples=[samples]))
    size = f'{n}'
    assert rows[0]['metric'] == f'FID-{size} (clean)' and rows[0]['n'] == n and rows[0]['sd'] is None
    assert rows[0]['value'] == pytest.approx(published(train, samples), rel=1e-6)
    assert rows[0]['value'] == pytest.approx(float(fid_from_feats(samples, train)), rel=1e-6)
    again, _ = standard_rows('FID (clean)', dict(train=train[::-1], held=held, samples=[samples[::-1]]))
    assert again[0]['value'] == pytest.approx(rows[0]['value'], rel=1e-9)  # all of them, in whatever order
    course, _ = standard_rows('FID (course)', dict(train=train, held=held, samples=[samples]), 'heldout')
    assert course[0]['value'] == pytest.approx(published(held, samples), rel=1e-6)


def test_evaluate_puts_it_first_and_names_it():
    train, held, sets = smooth_faces(70, 0), smooth_faces(20, 1), [smooth_faces(90, s) for s in (2, 3)]

    def embed(x):
        return x[:, ::8, ::8].reshape(len(x), -1)/255
    data = SimpleNamespace(train=train, heldout=held)
    for reference, real in (('train', train), ('heldout', held)):
        p = ft.Protocol('FID (course)', 'custom', embed, None, reference)
        report = evaluate(sets, data, p, progress=False, detector=None)
        first = report.rows[0]
        assert first['what'] == 'FID-90 (course) of samples' and report.settings['reference'] == reference
        if len(real) > 27:
            assert first['value'] == pytest.approx(np.mean([published(embed(real), embed(o)) for o in sets]), rel=1e-4)
        assert first['sd'] > 0 and first['rank'] == pytest.approx(effective_rank(Stats.of(embed(real))))
        assert 'rank of reference' in str(report.table)
        assert report['FID (course) of samples'] == report['FID (course), equal N of samples']  # its name in 0.1.0
    empty = SimpleNamespace(train=train, heldout=held[:0])
    with pytest.raises(BadInput, match='compares with held-out faces, and 0 are held out'):
        evaluate(lambda n, s: pytest.fail('asked for samples before'), empty, p, progress=False, detector=None)


def months(n, seed, kinds=12, dim=6):
    "Features in the order of their months, each month around a place of its own."
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(0).normal(size=(kinds, dim))*20
    return np.concatenate([places[k] + rng.normal(size=(n//kinds, dim)) for k in range(kinds)])


def test_subsets_are_drawn_from_the_whole_year():
    train, samples = months(1200, 1), months(240, 2)
    x = dict(train=train, held=months(120, 3), samples=[samples[np.random.default_rng(4).permutation(240)]])
    rows, _ = all_samples_rows('FD', x)
    value = {r['metric']: r['value'] for r in rows if r['of'] == 'samples'}
    assert value['precision (all 240)'] > .85 and value['coverage (all 240)'] > .85
    first = prdc(train[:240], samples)  # what the first 240 faces, January and February, would say
    assert first['precision'] < .25
    same = all_samples_rows('FD', x)[0]
    assert same == rows  # seeded
    picked = draw_rows(np.arange(1000), 100)
    assert picked.max() > 900 and (np.diff(picked) > 0).all() and (draw_rows(np.arange(1000), 100) == picked).all()
    assert draw_rows(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]


def test_blurred_noise_has_the_colours_of_the_whole_year():
    year = np.zeros((4000, 8, 8, 3), np.uint8)
    year[2000:] = 200  # bright from July on
    assert 80 < fid.blurred_noise(year, 30).mean() < 120


def test_a_sweep_compares_with_all_faces_in_whatever_order():
    def embed(x):
        return x[:, ::12, ::12].reshape(len(x), -1)/255
    train, sets = smooth_faces(60, 0), {k: smooth_faces(20, k) for k in (1, 2)}
    p = ft.Protocol('FD', 'v1', embed)
    for faces in (train, train[::-1]):
        swept = fid.sweep(sets, SimpleNamespace(train=faces, heldout=faces[:9]), p, progress=False, device='cpu')
        for row, ims in zip(swept.rows, sets.values()):
            want = frechet_distance(*(Stats.of(embed(o)) for o in (train, ims)))
            assert row['value'] == pytest.approx(want, rel=1e-6)
    assert swept.label == 'FD-20'


def test_the_floor_knows_which_articles_were_held_out():
    "Faces of one article resemble each other, so that twenty articles say less than a hundred faces seem to."
    rng = np.random.default_rng(0)
    people, train = rng.normal(size=(20, 4)), rng.normal(size=(600, 4))
    held = np.repeat(people, 5, 0) + .05*rng.normal(size=(100, 4))
    x = dict(train=train, held=held, samples=[rng.normal(size=(100, 4))], noise=9 + rng.normal(size=(100, 4)))
    sd = {}
    for name, articles in (('faces', np.arange(100)), ('articles', np.repeat(np.arange(20), 5))):
        rows = equal_n_rows('FD', dict(x, held_articles=articles))
        sd[name] = next(r['sd'] for r in rows if r['metric'] == 'FD, equal N' and r['of'] == FLOOR)
    assert sd['articles'] > 1.5*sd['faces'] > 0
    data = SimpleNamespace(heldout=np.zeros(4), train=np.zeros(2), article=np.array(['x', 'a', '', 'a', '', 'y']),
                           split=np.array([0, 1, 1, 1, 1, 0]))
    held_numbers = article_numbers(data, 1)
    assert held_numbers[0] == held_numbers[2] and len(set(held_numbers)) == 3


@pytest.fixture
def small_blocks(monkeypatch):
    "Seven rows at a time, so that every comparison goes through many blocks."
    for module in (distances, mt):
        blocks = module.row_blocks
        monkeypatch.setattr(module, 'row_blocks', lambda n, columns, blocks=blocks: blocks(n, columns, 7*columns))


@pytest.fixture(params=['whole', 'in three threads', 'the last rows kept'])
def ways(request, monkeypatch):
    "Blocks in one thread and in three, and sets of which only the last rows meet each other once."
    threads = torch.get_num_threads()
    if request.param == 'in three threads':
        monkeypatch.setattr(distances, 'parts_of', lambda block, *_: [slice(*o) for o in itertools.pairwise(
            np.linspace(block.start, block.stop, 4).astype(int).tolist())])
        torch.set_num_threads(3)
    if request.param == 'the last rows kept':
        monkeypatch.setattr(distances, 'MOST_KEPT', 30)
    yield
    torch.set_num_threads(threads)


def test_blocks_change_nothing(small_blocks, ways):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 9)) + 40, rng.normal(size=(83, 9)) + 40.3  # far from zero, beside the distances
    d = np.linalg.norm(a[:, None] - b[None], axis=-1)
    dist, which = neighbours(a, b, 4)
    assert np.allclose(dist, np.sort(d, 1)[:, :4], atol=1e-3) and (which == d.argsort(1)[:, :4]).all()
    own = np.linalg.norm(a[:, None] - a[None], axis=-1) + np.diag([np.inf]*60)
    assert np.allclose(neighbours(a, a, 3, own=True)[0], np.sort(own, 1)[:, :3], atol=1e-3)
    ga, gb = rng.integers(0, 5, 60), rng.integers(0, 5, 83)
    apart = np.where(ga[:, None] == gb, np.inf, d)
    assert (neighbours(a, b, 3, groups=(ga, gb))[1] == apart.argsort(1)[:, :3]).all()
    flat = a.reshape(-1, 3, 3, 1)[:, :, ::-1].reshape(60, 9)
    both = np.concatenate([own, np.linalg.norm(a[:, None] - flat[None], axis=-1)], 1)
    mirrored = distances.MirroredDistances(a, (3, 3, 1))
    found = distances.nearest_rows(mirrored, 4, (np.arange(60), np.r_[:60, -np.ones(60, int)]))
    assert np.allclose(found[0], np.sort(both, 1)[:, :4], atol=1e-3)
    ra, rb = (np.sort(np.linalg.norm(o[:, None] - o[None], axis=-1), 1)[:, 5] for o in (a, b))
    got = prdc(a, b)
    want = dict(precision=(d <= ra[:, None]).any(0).mean(), recall=(d <= rb).any(1).mean(),
                density=(d <= ra[:, None]).sum()/5/83, coverage=(d.min(1) <= ra).mean())
    assert got == pytest.approx(want)


def test_kid_is_the_unbiased_estimate_of_all_pairs(small_blocks):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(47, 20)) + 1, rng.normal(size=(61, 20)) + 1.1

    def kernel(x, y):
        return (x @ y.T/20 + 1)**3
    within = [(kernel(o, o).sum() - np.trace(kernel(o, o)))/(len(o)*(len(o) - 1)) for o in (a, b)]
    assert kid(a, b)[0] == pytest.approx(sum(within) - 2*kernel(a, b).mean(), rel=1e-4)
    assert kid(a, a)[0] <= 0  # the same pictures twice: no more alike than that


def test_mind_is_the_sliced_distance_of_the_paper():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 30)), 1.3*rng.normal(size=(200, 30)) + .2
    u = np.random.default_rng(0).normal(size=(1000, 30))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    want = 3*30*np.mean((np.sort(u @ a.T) - np.sort(u @ b.T))**2)
    assert mind(a, b) == pytest.approx(want, rel=1e-4) and mind(b, a) == pytest.approx(want, rel=1e-4)
    assert mind(a, a) == 0 and mind(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert mind(a, np.concatenate([a, b])) == mind(np.concatenate([a, b]), a) > 0  # as many drawn from the larger one
    line = rng.normal(size=(500, 1))
    assert mind(line, line + 2) == pytest.approx(3*4, rel=1e-4)


def test_vendi_score_and_effective_rank_by_definition():
    rng = np.random.default_rng(0)
    for n, dim in ((30, 80), (80, 30)):
        x = rng.normal(size=(n, dim))
        k = x/np.linalg.norm(x, axis=1, keepdims=True)
        w = linalg.eigvalsh(k @ k.T/n)
        w = w[w > 1e-9]
        assert vendi_score(x) == pytest.approx(np.exp(-(w*np.log(w)).sum()), rel=1e-3)
        w = np.linalg.eigvalsh(np.cov(x.T))
        p = w[w > 1e-12*w.max()]/w.sum()
        assert effective_rank(Stats.of(x)) == pytest.approx(np.exp(-(p*np.log(p)).sum()), rel=1e-6)
    assert vendi_score(np.tile(x[:1], (9, 1))) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('blocks', [[10], [30], [50], [70, 5], [3, 70, 9], [20, 20, 20, 20], [64], [65]])
def test_statistics_do_not_depend_on_the_blocks(blocks):
    x = np.random.default_rng(0).normal(size=(sum(blocks), 64)) + 3
    s = Stats.of(np.split(x, np.cumsum(blocks)[:-1]))
    assert np.allclose(s.mu, x.mean(0)) and np.allclose(s.sigma, np.cov(x.T)) and s.n == len(x)
    assert s.trace == pytest.approx(np.trace(np.cov(x.T))) and (s.factor is None) == (len(x) > 64)


def test_authpct_is_the_published_one():
    rng = np.random.default_rng(0)
    train, fake = rng.normal(size=(90, 5)), rng.normal(size=(70, 5))
    between, real = (np.linalg.norm(train[:, None] - o[None], axis=-1) for o in (fake, train))
    np.fill_diagonal(real, np.inf)
    want = real.min(0)[between.argmin(0)] < between.min(0)  # as in dgm-eval
    near = TrainingFaces(train, -train, articles=np.repeat(np.arange(30), 3)).nearest(fake)
    assert (near.authentic == want).all() and (near.authentic_mirrored != want).any()


def test_photos_of_one_person_do_not_blunt_the_test():
    "Near copies, as unlike as two photos of one person are: flagged by held-out faces, and by other articles."
    rng = np.random.default_rng(0)
    photos = (rng.normal(size=(60, 1, 16)) + .25*rng.normal(size=(60, 5, 16))).reshape(300, 16)
    article, held = np.repeat(np.arange(60), 5), rng.normal(size=(200, 16))
    samples = np.concatenate([rng.normal(size=(180, 16)), photos[:100:5] + .25*rng.normal(size=(20, 16))])
    cases = {'held-out': (held, None), 'too few held out': (held[:9], article)}
    for faces, articles in cases.values():
        flagged = find_copies(photos, -photos, faces, samples, articles).copies
        assert flagged[180:].sum() >= 17 and flagged[:180].sum() <= 1
    among_all = TrainingFaces(photos, -photos).ratio
    assert are_copies(TrainingFaces(photos, -photos).nearest(samples).ratio, among_all)[180:].sum() < 9
    one_article = find_copies(photos, -photos, held[:0], samples, np.zeros(300, int))
    assert np.isfinite(one_article.real_ratio).all()


def test_planted_copies_show_what_the_test_can():
    train, held = smooth_faces(80, 0, 32), smooth_faces(40, 1, 32)
    kinds = plant_copies(train, 10)
    assert {len(v) for v in kinds.values()} == {10} and all(v.dtype == np.uint8 for v in kinds.values())
    assert {o.tobytes() for o in kinds['exact']} <= {o.tobytes() for o in train[:, :, ::-1]}

    def flat(x):
        return x[:, ::4, ::4].reshape(len(x), -1).astype(np.float32)
    data = SimpleNamespace(train=train, heldout=held)
    fresh = evaluate(smooth_faces(60, 2, 32), data, flat, progress=False, detector=None)
    power = {r['metric'].split(', ', 1)[1]: r['value'] for r in fresh.rows if r['of'] == 'planted copies'}
    assert power['exact, %'] == 100 and power['noise of 8 levels, %'] >= power['noise of 24 levels, %']
    assert power['a tenth of another, %'] >= power['three tenths of another, %'] and min(power.values()) < 100
    assert fresh.notes[-1].startswith('Not flagged: none of 60') and 'exact 100 %' in fresh.notes[-1]
    assert 'power' in fresh.pictures and 'No sample is a copy' not in str(fresh)
    stolen = np.concatenate([smooth_faces(50, 3, 32), train[:10]])
    report = evaluate(stolen, data, flat, progress=False, detector=None)
    assert report.notes[-1].startswith('Flagged: 10 of 60') and report['flagged as copies of samples'] == 10


def test_an_originality_without_planted_copies_has_no_power():
    x = np.random.default_rng(0).normal(size=(40, 4))
    found = Originality(dict(features=find_copies(x[:30], -x[:30], x[:0], x[30:])))
    assert found.power == {} and 'planted' not in found.verdict


# DINOv2

def test_dinov2_pictures_are_those_of_dgm_eval():
    from torchvision import transforms as tf
    ims = smooth_faces(3, 0, 50)
    resize = tf.Compose([tf.Resize((224, 224), tf.InterpolationMode.BICUBIC), tf.ToTensor(),
                         tf.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    want = torch.stack([resize(Image.fromarray(o)) for o in ims])
    assert torch.allclose(ft.dinov2_input(ims), want, atol=1e-6)


def test_dinov2_positions_are_shrunk_as_its_own_code_does():
    positions = torch.randn(1, 1 + 37*37, 6, generator=torch.Generator().manual_seed(0))
    w0 = h0 = 224//14 + .1
    patches = F.interpolate(positions[:, 1:].reshape(1, 37, 37, 6).permute(0, 3, 1, 2), mode='bicubic',
                            scale_factor=(w0/37., h0/37.))
    want = torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, 6)], 1)
    assert torch.allclose(ft.shrink_positions(positions), want, atol=1e-5)


class TinyViT(torch.nn.Module):
    "A transformer with random weights in the place of timm's: patches of 14 px, positions for 518 px."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = torch.nn.Conv2d(3, 8, 14, 14)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 1 + 37*37, 8))
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.asked = None

    def set_input_size(self, size):
        self.asked = size
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + (size[0]//14)**2, 8))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.pos_embed)[:, 0]


@pytest.mark.parametrize('name, arch, label', [('dinov2', 'large', 'FD-DINOv2'),
                                               ('dinov2-b', 'base', 'FD-DINOv2 (ViT-B/14)')])
def test_dinov2_with_random_weights(name, arch, label, monkeypatch):
    net, asked = TinyViT(), []
    positions = net.pos_embed.data.clone()
    timm = ModuleType('timm')

    def create_model(which, **kw):
        asked.append((which, kw['pretrained'], kw['num_classes']))
        return net
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, 'timm', timm)
    ft._named.cache_clear()
    p, ims = ft.load_protocol(name, 'cpu'), smooth_faces(5, 0, 40)
    x = ft.features(ims, p, device='cpu', batch=2)
    assert asked == [(f'vit_{arch}_patch14_dinov2.lvd142m', True, 0)] and p.label == label and net.asked == (224, 224)
    assert torch.allclose(net.pos_embed, ft.shrink_positions(positions)) and not net.training
    with torch.inference_mode():
        assert np.allclose(x, net(ft.dinov2_input(ims)).numpy(), atol=1e-5)
    ft._named.cache_clear()


def test_without_timm_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    ft._named.cache_clear()
    with pytest.raises(BadInput, match='pip install timm'):
        ft.load_protocol('dinov2', 'cpu')


# While it trains

def watched(watch, path, images):
    trainer = SimpleNamespace(accel=SimpleNamespace(is_main_process=True), run=SimpleNamespace(path=path),
                              recipe=SimpleNamespace(size=16), averaged=lambda: None)
    watch(trainer, dict(images=images, epoch=1))
    return watch.rows[-1]


def test_a_watch_measures_mind_and_goes_on_with_what_a_run_has(tmp_path, monkeypatch):
    data = SimpleNamespace(train=smooth_faces(30, 0, 16), heldout=smooth_faces(9, 1, 16))
    monkeypatch.setattr(fid, 'generate', lambda d, index, shape, **kw: torch.zeros(len(index), *shape))

    def colours(x):
        return x.mean((1, 2))
    new, old, asked = (tmp_path/k for k in ('new', 'old', 'asked'))
    for folder in (new, old, asked):
        folder.mkdir()
    kw = dict(n=12, protocol=colours, device='cpu')
    row = watched(Watch(data, **kw), new, 100)
    grey = np.full((12, 16, 16, 3), 128, np.uint8)
    assert row['measure'] == 'mind' and row['distance'] == pytest.approx(
        mind(colours(grey), colours(draw_rows(data.train, 12))), rel=1e-3)
    write_jsonl(old/'watch.jsonl', [dict(images=50, epoch=1, distance=3., n=12)])  # of 0.1.0
    row = watched(Watch(data, **kw), old, 100)
    want = frechet_distance(Stats.of(colours(grey)), Stats.of(colours(draw_rows(data.train, 12))))
    assert row['measure'] == 'frechet' and row['distance'] == pytest.approx(want, rel=1e-6)
    assert watched(Watch(data, measure='mind', **kw), old, 200)['measure'] == 'mind'
    assert [json.loads(o).get('measure') for o in (old/'watch.jsonl').read_text().splitlines()] == [None, 'frechet',
                                                                                                    'mind']
    assert watched(Watch(data, measure='frechet', **kw), asked, 1)['measure'] == 'frechet'
    with pytest.raises(BadInput, match="no measure 'fid': use mind or frechet"):
        Watch(data, measure='fid')
    assert set(MEASURES) == {'mind', 'frechet'}


# Odd input: a sentence or a right figure

def flat(x):
    return x[:, ::6, ::6].reshape(len(x), -1).astype(np.float32)/255


ODD_FEATURES = {
    'constant': lambda x: np.ones((len(x), 7)),
    'zero': lambda x: np.zeros((len(x), 7)),
    'one number': lambda x: x.mean((1, 2, 3))[:, None],
    'half of them zero': lambda x: np.c_[flat(x), np.zeros((len(x), 40))],
    'huge': lambda x: 1e6*flat(x),
    'tiny': lambda x: 1e-6*flat(x),
    'more than pictures': lambda x: x.reshape(len(x), -1)/255,
    'logical': lambda x: flat(x) > .5,
}


@pytest.mark.parametrize('kind', ODD_FEATURES)
def test_odd_features_end_in_figures(kind, tmp_path):
    data = SimpleNamespace(train=smooth_faces(40, 0), heldout=smooth_faces(22, 1))
    root = open_root(tmp_path, create=True)
    report = evaluate(smooth_faces(30, 2), data, ODD_FEATURES[kind], root=root, progress=False, detector=None)
    first = report.rows[0]
    assert np.isfinite(first['value']) and first['value'] >= 0 and (tmp_path/'eval/report.json').exists()
    if kind in ('constant', 'zero'):
        assert first['value'] == 0 and first['rank'] == 0
    assert np.isfinite([r['value'] for r in report.rows]).all()


BAD_FEATURES = {
    'none': (lambda x: np.zeros((len(x), 0)), 'at least 1 number a picture'),
    'a number a picture': (lambda x: x.mean((1, 2, 3)), r'gave features \(\d+,\) for \d+ pictures'),
    'maps': (lambda x: x[:, ::8, ::8], 'gave features'),
    'one row for all': (lambda x: x.mean((0, 1, 2))[None], r'gave features \(1, 3\) for \d+ pictures'),
    'not numbers': (lambda x: np.full((len(x), 4), np.nan), 'not finite'),
    'infinite': (lambda x: np.full((len(x), 4), np.inf), 'not finite'),
}


@pytest.mark.parametrize('kind', BAD_FEATURES)
def test_bad_features_end_in_a_sentence(kind):
    data = SimpleNamespace(train=smooth_faces(20, 0), heldout=smooth_faces(9, 1))
    embed, message = BAD_FEATURES[kind]
    with pytest.raises(BadInput, match=message):
        evaluate(smooth_faces(12, 2), data, embed, progress=False, detector=None)


def test_identical_sets_are_at_zero_and_flagged():
    train = smooth_faces(60, 0)
    data = SimpleNamespace(train=train, heldout=smooth_faces(30, 1))
    for embed in (flat, lambda x: x.reshape(len(x), -1)/255.):
        report = evaluate(train, data, embed, progress=False, detector=None)
        name = report.rows[0]['what']
        assert report[name] == pytest.approx(0, abs=1e-6) and report[report.rows[1]['what']] == 0
        assert report['KID × 1000 of samples'] <= 0 and report['precision (all 60) of samples'] == 1
        assert report['coverage (all 60) of samples'] == 1 and report['flagged as copies of samples'] == 60


@pytest.mark.parametrize('form', [lambda o: o.astype(np.float32)/255, lambda o: o.astype(float)/255, list])
def test_floats_and_lists_are_the_pictures_they_hold(form):
    samples = form(smooth_faces(12, 2))
    data = SimpleNamespace(train=smooth_faces(20, 0), heldout=smooth_faces(9, 1))
    want = evaluate(smooth_faces(12, 2), data, flat, progress=False, detector=None)
    assert evaluate(samples, data, flat, progress=False, detector=None).rows == want.rows


def test_nested_folders_with_other_files(tmp_path):
    import cv2
    ims = smooth_faces(12, 2)
    for i, im in enumerate(ims):
        folder = tmp_path/f'part {i//5}'/'deep'
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder/f'{i:03d}.png'), im[..., ::-1])
    for name, body in (('notes.txt', b'text'), ('empty.png', b''), ('.hidden.png', b'x'), ('list.json', b'{}')):
        (tmp_path/name).write_bytes(body)
    data = SimpleNamespace(train=smooth_faces(20, 0), heldout=smooth_faces(9, 1))
    want = evaluate(ims, data, flat, progress=False, detector=None)
    assert evaluate(tmp_path, data, flat, progress=False, detector=None).rows == want.rows


def test_below_zero_is_reported_as_what_it_is():
    from pttface.evaluation.report import notes_on
    rows = [metric_row('FD (N → ∞)', 'samples', -.3, 500, .2), metric_row('FD (N → ∞)', FLOOR, .1, 500, .2)]
    notes = notes_on('FD', 5, 500, 500, [smooth_faces(3, 0)], 500, 0, rows)
    below, = [o for o in notes if 'below zero' in o]
    assert below.startswith('FD (N → ∞) of samples is -0.3')


def test_an_old_report_is_read(tmp_path):
    "Rows of 0.1.0 have no rank, and their distance at equal N has no other name."
    rows = [dict(what='FD-efficientnet of samples', metric='FD-efficientnet', of='samples', value=99., sd=2., n=32),
            dict(what='copies of samples', metric='copies', of='samples', value=0., sd=None, n=48)]
    report = Report(rows, ['No sample is a copy.'], {}, {})
    assert report['FD-efficientnet of samples'] == 99 and report['copies of samples'] == 0
    assert '99 ± 2' in str(report) and 'rank' not in str(report.table)


def test_photos_come_from_their_own_shards(tmp_path, monkeypatch):
    import cv2

    from pttface.app import demo
    from pttface.storage.files import write_tar
    (tmp_path/'photos').mkdir()
    png = cv2.imencode('.jpg', smooth_faces(1, 0)[0])[1].tobytes()
    for month in ('01', '02'):
        rows = []
        for part in (1, 2, 3):
            keys = [f'{month}{part:02d}{i:03d}' for i in range(2)]
            name = f'images_{month}_part_{part}.tar'
            write_tar(tmp_path/'photos'/name, [(k, dict(jpg=png, json=b'{}')) for k in keys])
            rows += [dict(key=k, status='kept', shard=name) for k in keys]
        write_jsonl(tmp_path/'photos'/f'ledger_{month}.jsonl', rows)
    opened, read_tar = [], demo.read_tar
    monkeypatch.setattr(demo, 'read_tar', lambda p: opened.append(p.name) or read_tar(p))
    photos = demo.kept_photos(tmp_path, ['0102001', '0202000', '0102000'])
    assert [o.shape for o in photos] == [(24, 24, 3)]*3
    assert opened == ['images_01_part_2.tar', 'images_02_part_2.tar']
