"""The packed set: batches a second against ImageFolder and DataLoader, load time, near duplicates among 55,000,
a page of the curator (DATA_N faces, 25,000 by default)."""
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))


def _row(what, value, unit='', peer=None, peer_value=None, ratio=None, n=None, spread=None):
    return dict(what=what, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, n=n, spread=spread)


def _spread(v):
    return float(np.subtract(*np.percentile(v, [75, 25]))/2/np.median(v)) if len(v) > 2 else None


def _faces(n, seed=0):
    "Smooth noise with the statistics of a small photo: the figures do not depend on what it shows"
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (512, 9, 9, 3), dtype=np.uint8)
    ims = np.stack([cv2.resize(base[i % 512], (64, 64), interpolation=cv2.INTER_CUBIC) for i in range(n)])
    return ims + rng.integers(0, 9, (n, 1, 1, 1), dtype=np.uint8)


def _hashes(n, seed=1):
    """Perceptual hashes as faces have them, all a little alike: of all pairs a third of a percent lie within 10 bits,
    as measured on drawn faces"""
    rng = np.random.default_rng(seed)
    def flip(h, p):
        return h ^ (rng.random((len(h), 64)) < p)
    bits = flip(flip(np.tile(rng.random(64) < .5, (200, 1)), .28)[rng.integers(0, 200, n)], .08)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0].copy()


def _rate(batches, n, batch):
    "Images a second over `n` batches, after a few to warm up"
    it = iter(batches)
    for _ in range(3):
        next(it)
    t = time.perf_counter()
    for _ in range(n):
        next(it)
    return n*batch/(time.perf_counter() - t)


def _folder(ims, root, batch, workers):
    "ImageFolder + DataLoader as in any tutorial, on the same faces as PNGs"
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2
    (root/'all').mkdir(parents=True)
    for i, im in enumerate(ims):
        cv2.imwrite(str(root/f'all/{i:05d}.png'), im[..., ::-1])
    to_float = v2.ToDtype(torch.float32, scale=True)
    tfm = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), to_float, v2.Normalize([.5]*3, [.5]*3)])
    return DataLoader(ImageFolder(root, tfm), batch, shuffle=True, num_workers=workers, drop_last=True,
                      persistent_workers=workers > 0)


def _epoch(loader):
    "Images a second over one pass"
    t = time.perf_counter()
    return sum(len(x) for x, _ in loader)/(time.perf_counter() - t)


def feed(tmp, n, batch, smoke):
    "Loading the packed set, and batches from it beside those of a folder of PNGs, in turns"
    from pttface.curation.card import set_hash
    from pttface.dataset import FaceData
    from pttface.storage.files import open_root, write_json, write_npz
    root = open_root(tmp/'run', create=True)
    ims, text = _faces(n), np.full(n, 'x')
    labels = dict.fromkeys(('article', 'pose', 'gender', 'month'), text)
    arrays = dict(images=ims, split=np.zeros(n, np.uint8), key=np.arange(n).astype(str), **labels)
    write_npz(root/'dataset/faces.npz', **arrays)
    write_json(root/'dataset/card.json', dict(settings={}, counts={}, hash=set_hash(arrays)))
    loads, ours, theirs = [], [], []
    for _ in range(1 if smoke else 5):
        t = time.perf_counter()
        data = FaceData.load(root)
        loads.append(time.perf_counter() - t)
    loader = _folder(ims[:300 if smoke else 4000], tmp/'png', batch, workers=0 if smoke else 2)
    for _ in range(1 if smoke else 5):
        ours.append(_rate(data.batches(batch), 5 if smoke else 200, batch))
        theirs.append(_epoch(loader))
    ratio = np.array(ours)/theirs
    return [_row('images/s', float(np.median(ours)), '1/s', 'ImageFolder + DataLoader(num_workers=2)',
                 float(np.median(theirs)), float(np.median(ratio)), len(ours), _spread(ratio)),
            _row(f'load {n//1000}k s', float(np.median(loads)), 's', n=len(loads), spread=_spread(loads))]


def dedupe(m, ims):
    "Near duplicates among `m` faces, one in fifty of them planted; all of those must be found"
    from pttface.dataset import duplicate_groups
    hashes, at = _hashes(m), np.arange(m) % len(ims)
    twins = np.arange(0, m - 1, 50)
    hashes[twins + 1], at[twins + 1] = hashes[twins], at[twins]
    many = ims[at]
    t = time.perf_counter()
    groups = duplicate_groups(hashes, many)
    took = time.perf_counter() - t
    assert (groups[twins] == groups[twins + 1]).all()
    return [_row(f'dedupe {m//1000}k s', took, 's', n=1)]


TURN = '''() => new Promise((done, fail) => {
  setTimeout(() => fail('the page did not turn'), 60000);
  const face = document.querySelector('.pf-face'), old = getComputedStyle(face).backgroundImage;
  const start = performance.now();
  document.querySelector('.pf-next').click();
  (function look() {
    if (getComputedStyle(face).backgroundImage == old) return setTimeout(look, 2);
    requestAnimationFrame(() => done(performance.now() - start));
  })()
})'''


@contextmanager
def curator_in_jupyterlab(tmp, root):
    "A browser in which JupyterLab shows the curator of `root`; `None` where one of them is missing."
    from browser import Browser, lacks
    from lab import jupyter_lab, needs_lab
    from test_curator import notebook
    if lacks or needs_lab.args[0]:
        yield None
        return
    notebook(tmp/'clean.ipynb', root)
    with jupyter_lab(tmp, tmp/'home') as lab, Browser() as b:
        b.goto(lab.address('clean.ipynb'))
        b.page.locator('.jp-Notebook .cm-content').first.click()
        b.wait("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'")
        b.key('Shift+Enter')
        b.wait("!!document.querySelector('[data-lm-suppress-shortcuts]')")
        yield b


def curator(tmp, n, turns):
    """Turning a page of the curator: in the kernel, decisions on disk included, and from click to picture in JupyterLab
    where there is a browser"""
    from pttface.curation.curator import Curator
    from test_curator import make
    root = make(tmp/'faces', n, _faces(256))
    c = Curator(root, outliers=False, progress=False)
    in_kernel, in_browser = [], []
    for _ in range(turns):
        t = time.perf_counter()
        c.next_button.click()
        in_kernel.append(1000*(time.perf_counter() - t))
    with curator_in_jupyterlab(tmp, root) as b:
        for _ in range(turns if b else 0):
            time.sleep(.3)
            in_browser.append(b.page.evaluate(TURN))
    rows = {'curator page, kernel': in_kernel, 'curator page, JupyterLab': in_browser}
    return [_row(what, float(np.median(ms)) if ms else None, 'ms', n=len(ms), spread=_spread(ms))
            for what, ms in rows.items()]


def bench(smoke=False):
    n, batch = (600, 64) if smoke else (int(os.environ.get('DATA_N', 25_000)), 64)
    with tempfile.TemporaryDirectory() as tmp:
        rows = feed(Path(tmp), n, batch, smoke) + dedupe(1500 if smoke else 55_000, _faces(n))
        return rows + curator(Path(tmp), 600 if smoke else 5000, 3 if smoke else 20)


if __name__ == '__main__':
    from pttface.display import Table
    print(Table(bench()))
