"""What the notebooks of evaluation would illustrate badly: agreement with clean-fid and SciPy, downloads and caches
that fail, false alarms, several processes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import linalg
from types import SimpleNamespace

from pttface import fid
from pttface.evaluation import features as ft
from pttface.evaluation.diagnostics import BANDS,detect_faces,distance_band
from pttface.evaluation.memorization import Originality,TrainingFaces,are_copies,copies_test,find_copies,small_pixels
from pttface.evaluation.metrics import Stats,kid,neighbours,prdc
from pttface.evaluation.samples import CheckpointRef,generate_cached
from pttface.fid import Watch,equally_good,evaluate,frechet_distance,sweep
from pttface.storage.files import BadInput,open_root
from drawn_noise import smooth_faces

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top/'tools'))


def textbook(a, b):
    root = linalg.sqrtm(a.sigma @ b.sigma)
    return float(((a.mu - b.mu)**2).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2*np.trace(root).real)


@pytest.mark.parametrize('decay', [0., 3., 8.])  # the deviations span this many orders of magnitude
@pytest.mark.parametrize('dim', [3, 160])
def test_equals_the_matrix_root(dim, decay):
    rng, scale = np.random.default_rng(dim), np.logspace(0, -decay, dim)
    mix = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    a, b = (Stats.of((rng.normal(size=(dim*9, dim))*scale + m) @ mix) for m in (0, .1))
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(90, 90)))[0]
    va, vb, mu = rng.random(90)**4, rng.random(90)**4, rng.normal(size=90)
    a, b = Stats(np.zeros(90), q*va @ q.T, 1000), Stats(mu, q*vb @ q.T, 1000)
    assert frechet_distance(a, b) == pytest.approx(mu @ mu + ((va**.5 - vb**.5)**2).sum(), rel=1e-9)
    va[30:] = vb[60:] = 0  # singular, with more pictures than features
    a, b = Stats(np.zeros(90), q*va @ q.T, 1000), Stats(mu, q*vb @ q.T, 1000)
    assert frechet_distance(a, b) == pytest.approx(mu @ mu + ((va**.5 - vb**.5)**2).sum(), rel=1e-6)


@pytest.mark.parametrize('decades', [2, 10, 14])
def test_known_distances_over_many_orders_of_magnitude(decades):
    """With B = T·A·T the optimal map is T, whatever the spectrum of A: the cross term is tr(A·T). SciPy's root agrees
    to 1e-6; ours is nearer."""
    rng, dim, sym = np.random.default_rng(decades), 120, lambda m: (m + m.T)/2
    q, r = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    for t in (sym(q*rng.uniform(.3, 3, dim) @ q.T), np.diag(rng.uniform(.3, 3, dim))):
        a = sym(r*np.logspace(0, -decades, dim) @ r.T)
        a, b = Stats(np.zeros(dim), a, 1000), Stats(rng.normal(size=dim)*.1, sym(t @ a @ t), 1000)
        want = b.mu @ b.mu + np.trace(a.sigma) + np.trace(b.sigma) - 2*np.trace(a.sigma @ t)
        assert frechet_distance(a, b) == pytest.approx(want, rel=1e-10)
        assert textbook(a, b) == pytest.approx(want, rel=1e-6)
        assert frechet_distance(a, a) < 1e-12*np.trace(a.sigma)


@pytest.mark.parametrize('decay', [3., 6., 8.])
def test_the_order_of_features_does_not_matter(decay):
    "Not even when those that vary most come last, which would cost the distance all but six digits."
    rng, scale = np.random.default_rng(0), np.logspace(0, -decay, 160)
    x, y = (rng.normal(size=(500, 160))*scale for _ in range(2))
    orders = (np.arange(160), np.arange(160)[::-1], rng.permutation(160))
    first, *others = (frechet_distance(Stats.of(x[:, i]), Stats.of(y[:, i])) for i in orders)
    assert others == pytest.approx([first]*2, rel=1e-10)


def test_features_that_repeat_or_stand_still():
    """Singular, with many more pictures than features: Cholesky may fail on it or just succeed, and the answer is that
    of the features that count."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 40)) @ rng.normal(size=(40, 40)), rng.normal(size=(900, 40)) + .1
    constant, repeated = (lambda z: np.c_[z, np.zeros((len(z), 7))]), (lambda z: np.c_[z, z]/2**.5)
    for f in (constant, repeated, lambda z: np.c_[z, z @ np.ones((40, 3))/120**.5]):
        a, b = Stats.of(f(x)), Stats.of(f(y))
        q = np.linalg.svd(f(np.eye(40)), full_matrices=False)[2].T  # spans all that can vary
        want = textbook(Stats.of(f(x) @ q), Stats.of(f(y) @ q))
        assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('n,m', [(20, 20), (20, 400), (400, 20)])
def test_fewer_pictures_than_features(n, m):
    """Directions in which one set does not vary at all add nothing to the cross term: compare with the problem turned
    into the small space."""
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(n, 64)), rng.normal(size=(m, 64)) + .2
    q = np.linalg.qr((x if n < m else y).T)[0]  # spans the smaller set
    a, b, (p, r) = Stats.of(x), Stats.of(y), (Stats.of(x @ q), Stats.of(y @ q))
    cross = np.sqrt(np.linalg.eigvals(p.sigma @ r.sigma).real.clip(1e-30)).sum()
    want = ((a.mu - b.mu)**2).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2*cross
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_clean_fid_finds_the_same_on_the_same_pictures(tmp_path):
    "Random-weight Inception fed by clean-fid from PNG files and by us from arrays: the same distance."
    from cleanfid import fid as peer
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    net = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    net.fc = torch.nn.Linear(2048, 4)

    def embed(x):
        return net(x/128 - 1)
    sets = [smooth_faces(8, s) for s in (0, 1)]
    for k, ims in enumerate(sets):
        (tmp_path/str(k)).mkdir()
        for i, im in enumerate(ims):
            cv2.imwrite(str(tmp_path/str(k)/f'{i:03d}.png'), im[..., ::-1])
    with torch.no_grad():
        want = peer.compute_fid(str(tmp_path/'0'), str(tmp_path/'1'), custom_feat_extractor=embed, num_workers=0,
                                batch_size=4, device=torch.device('cpu'), verbose=False)
    protocol = ft.Protocol('FID', 'test', ft.clean_embed(embed))
    ours = [ft.features(o, protocol, device='cpu', batch=4) for o in sets]
    assert frechet_distance(*map(Stats.of, ours)) == pytest.approx(float(want), rel=1e-4)
    assert (ft.as_images(tmp_path/'0') == sets[0]).all()


def test_kid_and_prdc_against_plain_sums():
    from cleanfid.fid import kernel_distance
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(70, 9)), rng.normal(size=(70, 9)) + .4
    assert kid(a, b)[0] == pytest.approx(kernel_distance(a, b, num_subsets=1), rel=1e-4)
    d = np.linalg.norm(a[:, None] - b[None], axis=-1)
    ra, rb = (np.sort(np.linalg.norm(o[:, None] - o[None], axis=-1), 1)[:, 5] for o in (a, b))
    got = prdc(a, b, 5)
    assert got['precision'] == pytest.approx((d < ra[:, None]).any(0).mean())
    assert got['recall'] == pytest.approx((d < rb).any(1).mean())
    assert got['density'] == pytest.approx((d < ra[:, None]).sum()/5/70)
    assert got['coverage'] == pytest.approx((d.min(1) < ra).mean())
    assert (neighbours(a, b, 3)[1] == d.argsort(1)[:, :3]).all()


def test_copies_are_caught_and_fresh_draws_are_not():
    """One in twenty is handed out from training: caught every time. Fresh draws: at most as many alarms as a 1 % test
    may give."""
    alarms = caught = wrong = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        train, held, fresh = (rng.normal(size=(300, 24)).astype(np.float32) for _ in range(3))
        cheat = np.concatenate([fresh[15:], train[:15] + .02*rng.normal(size=(15, 24)).astype(np.float32)])
        faces = TrainingFaces(train, -train)
        fresh_ratio, cheat_ratio = faces.nearest(fresh).ratio, faces.nearest(cheat).ratio
        real = np.concatenate([faces.nearest(held).ratio, faces.ratio])
        alarms += copies_test(fresh_ratio, real) < .01
        caught += copies_test(cheat_ratio, real) < .01
        wrong += are_copies(fresh_ratio, real).sum() + (are_copies(cheat_ratio, real).sum() != 15)
    assert caught == 20 and alarms <= 2 and wrong == 0


def test_dull_samples_are_no_copies():
    "A generator that has only learned the mean is near to every training face, and a copy of none."
    train, held = smooth_faces(200, 0), smooth_faces(60, 1)
    dull = np.rint(128 + .3*(smooth_faces(150, 2) - 128.)).astype(np.uint8)
    data = SimpleNamespace(train=train, heldout=held)

    def pixels(x):
        return x[:, ::4, ::4].reshape(len(x), -1).astype(np.float32)/255
    report = evaluate(dull, data, pixels, progress=False, detector=None)
    assert report['flagged as copies of samples'] == 0 and 'do not share' not in report.notes[-1]
    stolen = np.concatenate([dull[:140], train[:10, :, ::-1]])
    caught = evaluate(stolen, data, pixels, progress=False, detector=None)
    assert caught['flagged as copies of samples'] == 10 and 'do not share' in caught.notes[-1]


def test_report_on_disk(tmp_path):
    root = open_root(tmp_path/'root', create=True)
    data = SimpleNamespace(train=smooth_faces(40, 0), heldout=smooth_faces(12, 1), hash='abc')

    def mean_colour(x):
        return x.mean((1, 2))
    sets = [smooth_faces(30, s) for s in (2, 3, 4)]
    sets[0][7] = sets[0][8]
    report = evaluate(sets, data, mean_colour, root=root, progress=False, detector=None)
    saved = json.loads((root/'eval/report.json').read_text())
    assert saved['rows'] == report.rows and saved['settings']['data'] == 'abc' and saved['settings']['sets'] == 3
    kinds = ('samples', 'real faces (floor)', 'blurred noise')
    assert {f'FD-mean_colour, equal N of {k}' for k in kinds} <= {r['what'] for r in report.rows}
    assert len({r['n'] for r in report.rows if r['metric'] == 'FD-mean_colour, equal N'}) == 1
    assert any('1 of 90 samples repeat' in o for o in report.notes)
    assert next(r for r in report.rows if r['metric'] == 'FD-mean_colour (N → ∞)')['sd'] > 0
    text = (root/'eval/report.md').read_text()
    for name in ('figures', 'nearest', 'originality', 'power', 'worst', 'histograms'):
        assert f']({name}.png)' in text and cv2.imread(str(root/f'eval/{name}.png')) is not None
    assert all(o in text for o in report.notes)


def test_no_held_out_faces_is_said_not_hidden():
    data = SimpleNamespace(train=smooth_faces(30, 0), heldout=smooth_faces(30, 1)[:0])
    report = evaluate(smooth_faces(20, 1), data, lambda x: x.mean((1, 2)), progress=False, detector=None)
    assert any('no floor' in o for o in report.notes)
    odd = SimpleNamespace(train=data.train, heldout=data.heldout, at=lambda side: data)
    with pytest.raises(BadInput, match='8, 8, 3.*24, 24, 3'):
        evaluate(np.zeros((9, 8, 9, 3), np.uint8), odd, progress=False)


def test_best_is_named_only_beyond_sampling_noise():
    rng = np.random.default_rng(0)
    same = sum(len(equally_good({k: rng.normal(43, .3, 3) for k in 'abcdef'})) == 1 for _ in range(200))
    assert same < 40  # six equal checkpoints: a lone winner is rare
    clear = equally_good({'a': [43, 43.2, 42.9], 'b': [40, 40.1, 40.2], 'c': [44, 44.1, 43.8]})
    assert clear == ['b'] and len(equally_good({'a': [1.], 'b': [2.]})) == 2
    with pytest.raises(BadInput, match='2 checkpoints'):
        sweep({'a': None}, None)


def test_weights_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    import hashlib
    there = tmp_path/'server.pt'
    there.write_bytes(b'w'*100_000)
    monkeypatch.setattr(ft, 'inception_url', there.as_uri())
    with pytest.raises(BadInput, match='cannot be had'):
        ft.inception_weights(tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())
    monkeypatch.setattr(ft, 'inception_sha256', hashlib.sha256(there.read_bytes()).hexdigest())
    path = ft.inception_weights(tmp_path/'cache')
    path.write_bytes(b'w'*10)  # torn
    assert ft.inception_weights(tmp_path/'cache').read_bytes() == there.read_bytes()
    there.unlink()
    assert ft.inception_weights(tmp_path/'cache') == path  # asked for once


def colours(x):
    return np.concatenate([x.mean((1, 2)), x.std((1, 2))], 1).astype(np.float32)


def test_copies_among_500_drawn_heads():
    "A generator that hands out 5 % of the training set, in the mirror and lighter, is caught; 500 fresh heads are not."
    from drawn import heads
    ims = heads(1100, 32)['images']
    train, held, fresh = ims[:500], ims[500:600], ims[600:]
    cheat = np.concatenate([fresh[:475], cv2.convertScaleAbs(train[:25, :, ::-1], alpha=1.04, beta=4)])
    found = {}
    for k, v in dict(fresh=fresh, cheat=cheat).items():
        pixels = map(small_pixels, (train, train[:, :, ::-1], held, v))
        found[k] = Originality(dict(pixels=find_copies(*pixels)))
    assert np.flatnonzero(found['cheat'].copies).tolist() == list(range(475, 500))
    assert (found['cheat'].near.index[475:] == np.arange(25)).all() and found['cheat'].near.flipped[475:].all()
    assert found['cheat'].p < 1e-6 and found['cheat'].verdict.startswith('Flagged: 25 of 500 samples')
    assert not found['fresh'].copies.any() and found['fresh'].p > .01
    assert found['fresh'].verdict.startswith('Not flagged: none of 500 samples')


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content)//2] ^= 1
    path.write_bytes(content)


FAULTS = {
    'cut': lambda p: p.write_bytes(p.read_bytes()[:200]),
    'empty': lambda p: p.write_bytes(b''),
    'a byte flipped': flip_a_byte,
    'other rows': lambda p: np.savez(open(p, 'wb'), features=np.zeros((3, 6), np.float32)),
    'not numbers': lambda p: np.savez(open(p, 'wb'), features=np.full((9, 6), np.nan, np.float32)),
    'no features': lambda p: np.savez(open(p, 'wb'), other=np.zeros(3)),
    'text': lambda p: p.write_text('<html>404</html>'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_cache_is_made_anew(fault, tmp_path, caplog):
    calls = []

    def embed(x):
        calls.append(len(x))
        return colours(x)
    ims, p = smooth_faces(9, 0), ft.Protocol('FD', 'v1', embed)
    first = ft.cached_features(ims, p, tmp_path)
    entry, = tmp_path.iterdir()
    assert (ft.cached_features(ims, p, tmp_path) == first).all() and sum(calls) == 9
    FAULTS[fault](entry)
    assert (ft.cached_features(ims, p, tmp_path) == first).all() and sum(calls) == 18
    assert entry.name in caplog.text and (ft.cached_features(ims, p, tmp_path) == first).all() and sum(calls) == 18


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, caplog, monkeypatch):
    ims, p = smooth_faces(9, 0), ft.Protocol('FD', 'v1', colours)

    def full(*a, **k):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(ft, 'write_npz', full)
    assert ft.cached_features(ims, p, tmp_path).shape == (9, 6) and 'No space left' in caplog.text
    assert not list(tmp_path.iterdir())


def test_other_pictures_protocols_and_versions_have_other_entries(tmp_path):
    a, b = smooth_faces(9, 0), smooth_faces(9, 1)
    for ims, v in ((a, 'v1'), (b, 'v1'), (a, 'v2')):
        ft.cached_features(ims, ft.Protocol('FD', v, colours), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for i in range(12):
        ft.cached_features(smooth_faces(3, i), ft.Protocol('FD', 'v1', colours), tmp_path, 'samples')
    assert len(list(tmp_path.glob('samples-*'))) == 8 and len(list(tmp_path.glob('real-*'))) == 3
    assert ft.PROTOCOLS['inception'] is ft.PROTOCOLS['clean']


def test_bad_input_is_one_sentence(tmp_path, caplog):
    data, ims = SimpleNamespace(train=smooth_faces(20, 0), heldout=smooth_faces(9, 1)), smooth_faces(12, 2)

    def ask(samples, protocol=colours, d=data, **kw):
        return evaluate(samples, d, protocol, progress=False, **{'detector': None, **kw})
    for i in range(3):
        (tmp_path/f'{i}.txt').write_text('no picture')
    cases = [(ims[:1], 'Found 1 picture'), (ims[:5], '5 samples'), ([ims[0], ims[1, :9]], '2 sizes'),
             (ims.astype(float), 'float64 from'), (ims.astype(np.int64), 'int64 from'),
             (np.full((9, 24, 24, 3), np.nan), 'float64 from nan'), (tmp_path, '3 files and 0 pictures'),
             (tmp_path/'none', 'does not exist'), (ims[..., :2], 'Need pictures'),
             ([ims, ims[:, :9]], 'cannot be compared')]
    for samples, message in cases:
        with pytest.raises(BadInput, match=message):
            ask(samples)
    with pytest.raises(BadInput, match='pictures are not finite .the first is number 0'):
        ask(ims, lambda x: np.full((len(x), 3), np.nan))
    with pytest.raises(BadInput, match='all the same picture'):
        ask(ims, d=SimpleNamespace(train=ims[[0]*9], heldout=ims))
    with pytest.raises(BadInput, match='detector'):
        ask(lambda n, s: pytest.fail('asked for samples before'), detector='eigenfaces')
    with pytest.raises(BadInput, match='no protocol'):
        ask(lambda n, s: pytest.fail('asked for samples before'), 'vgg')
    with pytest.raises(BadInput, match='no precision'):
        ask(ims, 'efficientnet', precision='double')
    assert any('All 12 samples are the same picture' in o for o in ask(ims[[3]*12]).notes)
    assert any('12 pictures are fewer than 1728 features' in o for o in ask(ims, lambda x: x.reshape(len(x), -1)).notes)
    cv2.imwrite(str(tmp_path/'a.png'), ims[0])
    cv2.imwrite(str(tmp_path/'b.png'), ims[1])
    assert len(ft.as_images(tmp_path)) == 2 and '3 of 5 files' in caplog.text


def test_bands_and_detections():
    rng = np.random.default_rng(0)
    real = rng.normal(size=4000)
    shares = np.bincount(distance_band(rng.normal(size=4000), real), minlength=4)/4000
    assert np.allclose(shares, np.diff([0, *BANDS.values()]), atol=.03)
    assert (distance_band(real + 9, real) == 3).all()
    face = SimpleNamespace(yaw=None, pitch=None)
    report = detect_faces(smooth_faces(8, 0), lambda im, min_face: [face] if im[..., 0].mean() > 128 else [])
    assert 0 < report.found.sum() < 8 and len(report.yaw) == 0
    assert report.refused == pytest.approx(100*(~report.found).mean())
    turned = iter([SimpleNamespace(yaw=y, pitch=0.) for y in (-30, 0, 30, 31)])
    report = detect_faces(smooth_faces(4, 0), lambda im, min_face: [next(turned)], batch=4)
    assert report.poses == dict(frontal=25., left=25., right=50.) and report.refused == 0


def test_what_was_drawn_is_not_drawn_again(tmp_path):
    calls, stop = [], [3]

    def sample(ref, n, seed=0, start=0, **kw):
        calls.append((n, seed, start))
        if len(calls) in stop:
            raise KeyboardInterrupt
        return np.stack([smooth_faces(1, 1000*seed + start + i)[0] for i in range(n)])
    ref = CheckpointRef(SimpleNamespace(recipe=None), 'm', 'abc')

    def ask(n, seed=0, **kw):
        return generate_cached(sample, ref, n, seed, tmp_path, block=4, progress=False, device='cpu', **kw)
    with pytest.raises(KeyboardInterrupt):
        ask(10)
    assert calls == [(4, 0, 0), (4, 0, 4), (2, 0, 8)] and len(list(tmp_path.iterdir())) == 2
    ims = ask(10)
    assert calls[3:] == [(2, 0, 8)] and (ims == np.stack([smooth_faces(1, i)[0] for i in range(10)])).all()
    assert (ask(7) == ims[:7]).all() and len(calls) == 4
    assert (ask(12)[:10] == ims).all() and calls[4:] == [(4, 0, 8)]  # the last block was too short
    ask(4, seed=1)
    ask(4, steps=9)
    assert calls[5:] == [(4, 1, 0), (4, 0, 0)]
    sorted(tmp_path.iterdir())[0].write_bytes(b'torn')
    before = len(calls)
    assert (ask(10) == ims).all()
    assert (ask(4, seed=1) == np.stack([smooth_faces(1, 1000 + i)[0] for i in range(4)])).all()
    ask(4, steps=9)
    assert len(calls) == before + 1


def test_a_sweep_goes_on_where_it_stopped(monkeypatch, tmp_path):
    calls, stop = [], [4]

    def sample(ref, n, seed=0, start=0, **kw):
        calls.append((ref.name, seed))
        if len(calls) in stop:
            raise KeyboardInterrupt
        return smooth_faces(n, ord(ref.name) + 100*seed)
    monkeypatch.setattr(fid, '_sample', sample)
    root, p = open_root(tmp_path/'root', create=True), ft.Protocol('FD', 'v1', colours)
    data = SimpleNamespace(train=smooth_faces(40, 0), heldout=smooth_faces(9, 1), hash='h')
    refs = {k: CheckpointRef(None, k, k) for k in 'abc'}

    def ask(refs, **kw):
        return sweep(refs, data, p, n=20, seeds=2, root=root, progress=False, device='cpu', **kw)
    with pytest.raises(KeyboardInterrupt):
        ask(refs)
    first = ask(refs)
    assert calls == [('a', 0), ('a', 1), ('b', 0), ('b', 1), ('b', 1), ('c', 0), ('c', 1)]
    for o in (root/'eval/cache').glob('drawn-*'):
        o.unlink()
    assert ask(refs).rows == first.rows and len(calls) == 7  # neither drawn nor measured again
    more = ask({**refs, 'd': CheckpointRef(None, 'd', 'd')})
    assert calls[7:] == [('d', 0), ('d', 1)]
    assert more.rows[:3] == [{**r, 'good': q['good']} for r, q in zip(first.rows, more.rows)]
    assert json.loads((root/'eval/sweep.json').read_text())['rows'] == more.rows
    one_seed = sweep({'x': smooth_faces(20, 3), 'y': smooth_faces(20, 4)}, data, p, n=20, progress=False)
    assert 'nothing can be said' in one_seed.conclusion
    with pytest.raises(BadInput, match='give as many of each'):
        sweep({'x': smooth_faces(20, 3), 'y': smooth_faces(9, 4)}, data, p, n=20, progress=False)


def test_a_cpu_takes_small_batches():
    "Eight pictures at a time, a batch a core, however the device was named."
    sizes = []

    def embed(x):
        sizes.append(len(x))
        return colours(x)
    for device in ('cpu', torch.device('cpu')):
        ft.features(smooth_faces(20, 0), embed, device=device)
    assert sorted(sizes) == [4, 4, 8, 8, 8, 8]


def test_a_watch_knows_when_it_is_due():
    def trainer(images):
        return SimpleNamespace(images=images, seconds=0., n_train=100)
    w = Watch(None, every=3)
    assert [w.due(trainer(i)) for i in range(7)] == [True, False, False, True, False, False, True]
    w = Watch(None, every='2 epochs')
    assert [w.due(trainer(i)) for i in (50, 190, 210, 390, 410, 800)] == [False, False, True, False, True, True]
    with pytest.raises(BadInput, match='1 samples have no spread'):
        Watch(None, n=1)
    with pytest.raises(BadInput):
        Watch(None, every='5 fortnights')


def test_two_processes_find_what_one_finds(tmp_path):
    "`accelerate launch` with two processes: the same report, each picture seen once."
    env = dict(os.environ, PYTHONPATH=str(top), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    worker = str(Path(__file__).with_name('fid_worker.py'))
    for k in ('one', 'two'):
        open_root(tmp_path/k, create=True)
    how = dict(env=env, capture_output=True, text=True, timeout=300)
    one = subprocess.run([sys.executable, worker, str(tmp_path/'one')], **how)
    assert one.returncode == 0, one.stderr[-2000:]
    flags = ['--multi_gpu', '--num_processes=2', '--num_machines=1', '--mixed_precision=no', '--dynamo_backend=no',
             '--main_process_port=0']  # --cpu starts one process
    cmd = [sys.executable, '-m', 'accelerate.commands.launch', *flags, worker, str(tmp_path/'two')]
    two = subprocess.run(cmd, **how)
    assert two.returncode == 0, two.stderr[-2000:]
    a, b = (json.loads((tmp_path/k/'eval/report.json').read_text()) for k in ('one', 'two'))
    assert a == b
    seen = [json.loads((tmp_path/f'{k}.json').read_text()) for k in ('one-0', 'two-0', 'two-1')]
    assert seen[0] == seen[1] + seen[2] and min(seen) > 0
