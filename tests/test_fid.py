"What the notebooks features, distances and fid would illustrate badly: agreement with clean-fid and SciPy, downloads that fail, false alarms."
import cv2
import numpy as np
import pytest
import torch
from scipy import linalg
from types import SimpleNamespace

from pttface import features as ft
from pttface.distances import Stats, frechet_distance, kid, neighbours, prdc
from pttface.fid import TrainingFaces, are_copies, copies_test, equally_good, evaluate, sweep
from pttface.store import BadInput, open_root


def smooth_faces(n, seed, side=24):
    "Smooth coloured pictures, endlessly different."
    rng = np.random.default_rng(seed)
    ims = np.stack([cv2.GaussianBlur(rng.normal(size=(side, side, 3)), (0, 0), 3) for _ in range(n)])
    return np.rint(128 + 60*ims/ims.std()).clip(0, 255).astype(np.uint8)


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


@pytest.mark.parametrize('n,m', [(20, 20), (20, 400), (400, 20)])
def test_fewer_pictures_than_features(n, m):
    "Directions in which one set does not vary at all add nothing to the cross term: compare with the problem turned into the small space."
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(n, 64)), rng.normal(size=(m, 64)) + .2
    q = np.linalg.qr((x if n < m else y).T)[0]  # spans the smaller set
    a, b, (p, r) = Stats.of(x), Stats.of(y), (Stats.of(x @ q), Stats.of(y @ q))
    cross = np.sqrt(np.linalg.eigvals(p.sigma @ r.sigma).real.clip(1e-30)).sum()
    want = ((a.mu - b.mu)**2).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2*cross
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_clean_fid_finds_the_same_on_the_same_pictures(tmp_path):
    "Random-weight Inception under clean-fid's own road (PNG files) and under ours (arrays)."
    from cleanfid import fid as peer
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    net = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    net.fc = torch.nn.Linear(2048, 4)

    def embed(x): return net(x/128 - 1)
    sets = [smooth_faces(8, s) for s in (0, 1)]
    for k, ims in enumerate(sets):
        (tmp_path/str(k)).mkdir()
        for i, im in enumerate(ims): cv2.imwrite(str(tmp_path/str(k)/f'{i:03d}.png'), im[..., ::-1])
    with torch.no_grad():
        want = peer.compute_fid(str(tmp_path/'0'), str(tmp_path/'1'), custom_feat_extractor=embed, num_workers=0, batch_size=4,
                                device=torch.device('cpu'), verbose=False)
    ours = [ft.features(o, ft.Protocol('FID', 'test', ft.clean_embed(embed)), device='cpu', batch=4) for o in sets]
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
    "One in twenty is handed out from training: caught every time. Fresh draws: at most as many alarms as a 1 % test may give."
    alarms = caught = wrong = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        train, held, fresh = (rng.normal(size=(300, 24)).astype(np.float32) for _ in range(3))
        cheat = np.concatenate([fresh[15:], train[:15] + .02*rng.normal(size=(15, 24)).astype(np.float32)])
        known = TrainingFaces(train, -train)
        real = np.concatenate([known.nearest(held).ratio, known.own_ratio])
        alarms += copies_test(known.nearest(fresh).ratio, real) < .01
        caught += copies_test(known.nearest(cheat).ratio, real) < .01
        wrong += are_copies(known.nearest(fresh).ratio, real).sum() + (are_copies(known.nearest(cheat).ratio, real).sum() != 15)
    assert caught == 20 and alarms <= 2 and wrong == 0


def test_dull_samples_are_no_copies():
    "A generator that has only learned the mean is near to every training face, and a copy of none."
    train, held = smooth_faces(200, 0), smooth_faces(60, 1)
    dull = np.rint(128 + .3*(smooth_faces(150, 2) - 128.)).astype(np.uint8)
    report = evaluate(dull, SimpleNamespace(train=train, heldout=held), lambda x: x[:, ::4, ::4].reshape(len(x), -1).astype(np.float32)/255, progress=False)
    assert report['copies of samples'] == 0 and 'do not share' not in report.notes[-1]
    stolen = np.concatenate([dull[:140], train[:10, :, ::-1]])
    caught = evaluate(stolen, SimpleNamespace(train=train, heldout=held), lambda x: x[:, ::4, ::4].reshape(len(x), -1).astype(np.float32)/255, progress=False)
    assert caught['copies of samples'] == 10 and 'do not share' in caught.notes[-1]


def test_report_on_disk(tmp_path):
    import json
    root = open_root(tmp_path/'root', create=True)
    data = SimpleNamespace(train=smooth_faces(40, 0), heldout=smooth_faces(12, 1), hash='abc')

    def mean_colour(x): return x.mean((1, 2))
    sets = [smooth_faces(30, s) for s in (2, 3, 4)]
    sets[0][7] = sets[0][8]
    report = evaluate(sets, data, mean_colour, root=root, progress=False)
    saved = json.loads((root/'eval/report.json').read_text())
    assert saved['rows'] == report.rows and saved['settings']['data'] == 'abc' and saved['settings']['sets'] == 3
    assert {'FD-mean_colour of samples', 'FD-mean_colour of real faces (floor)', 'FD-mean_colour of blurred noise'} <= {r['what'] for r in report.rows}
    assert len({r['n'] for r in report.rows if r['metric'] == 'FD-mean_colour'}) == 1
    assert any('1 of 90 samples repeat' in o for o in report.notes)
    assert next(r for r in report.rows if r['metric'] == 'FD-mean_colour (N → ∞)')['sd'] > 0
    assert '![nearest](nearest.png)' in (root/'eval/report.md').read_text()
    assert cv2.imread(str(root/'eval/nearest.png')) is not None


def test_no_held_out_faces_is_said_not_hidden():
    data = SimpleNamespace(train=smooth_faces(30, 0), heldout=smooth_faces(30, 1)[:0])
    report = evaluate(smooth_faces(20, 1), data, lambda x: x.mean((1, 2)), progress=False)
    assert any('no floor' in o for o in report.notes)
    odd = SimpleNamespace(train=data.train, heldout=data.heldout, at=lambda side: data)
    with pytest.raises(BadInput, match='8, 9, 3.*24, 24, 3'): evaluate(np.zeros((9, 8, 9, 3), np.uint8), odd, progress=False)


def test_best_is_named_only_beyond_the_dice():
    rng = np.random.default_rng(0)
    same = sum(len(equally_good({k: rng.normal(43, .3, 3) for k in 'abcdef'})) == 1 for _ in range(200))
    assert same < 40  # six equal checkpoints: a lone winner is rare
    clear = equally_good({'a': [43, 43.2, 42.9], 'b': [40, 40.1, 40.2], 'c': [44, 44.1, 43.8]})
    assert clear == ['b'] and len(equally_good({'a': [1.], 'b': [2.]})) == 2
    with pytest.raises(BadInput, match='2 checkpoints'): sweep({'a': None}, None)


def test_weights_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    import hashlib
    there = tmp_path/'server.pt'
    there.write_bytes(b'w'*100_000)
    monkeypatch.setattr(ft, 'inception_url', there.as_uri())
    with pytest.raises(BadInput, match='cannot be had'): ft.inception_weights(tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())
    monkeypatch.setattr(ft, 'inception_sha256', hashlib.sha256(there.read_bytes()).hexdigest())
    path = ft.inception_weights(tmp_path/'cache')
    path.write_bytes(b'w'*10)  # torn
    assert ft.inception_weights(tmp_path/'cache').read_bytes() == there.read_bytes()
    there.unlink()
    assert ft.inception_weights(tmp_path/'cache') == path  # asked for once
