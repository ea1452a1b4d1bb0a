"The packed set: batches a second against ImageFolder and DataLoader, load time, near duplicates among 55,000 (DATA_N faces, 25,000 by default)."
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np


def _row(what, value, unit='', peer=None, peer_value=None, ratio=None, n=None, spread=None):
    return dict(what=what, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, n=n, spread=spread)


def _faces(n, seed=0):
    "Smooth noise with the statistics of a small photo: the figures do not depend on what it shows"
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (512, 9, 9, 3), dtype=np.uint8)
    return np.stack([cv2.resize(base[i % 512], (64, 64), interpolation=cv2.INTER_CUBIC) for i in range(n)]) + rng.integers(0, 9, (n, 1, 1, 1), dtype=np.uint8)


def _rate(batches, n, batch):
    "Images a second over `n` batches, after a few to warm up"
    it = iter(batches)
    for _ in range(3): next(it)
    t = time.perf_counter()
    for _ in range(n): next(it)
    return n*batch/(time.perf_counter() - t)


def _folder(ims, root, batch, workers):
    "ImageFolder + DataLoader as in any tutorial, on the same faces as PNGs"
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2
    import torch
    (root/'all').mkdir(parents=True)
    for i, im in enumerate(ims): cv2.imwrite(str(root/f'all/{i:05d}.png'), im[..., ::-1])
    tfm = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([.5]*3, [.5]*3)])
    return DataLoader(ImageFolder(root, tfm), batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0)


def bench(smoke=False):
    from pttface.dataset import FaceData, _hash, duplicate_groups
    from pttface.store import open_root, write_json, write_npz
    n, batch = (600, 64) if smoke else (int(os.environ.get('DATA_N', 25_000)), 64)
    with tempfile.TemporaryDirectory() as tmp:
        root = open_root(Path(tmp)/'run', create=True)
        ims, text = _faces(n), np.full(n, 'x')
        arrays = dict(images=ims, split=np.zeros(n, np.uint8), key=np.arange(n).astype(str), article=text, pose=text, gender=text, month=text)
        write_npz(root/'dataset/faces.npz', **arrays)
        write_json(root/'dataset/card.json', dict(settings={}, counts={}, hash=_hash(arrays)))
        loads = []
        for _ in range(1 if smoke else 5):
            t = time.perf_counter()
            data = FaceData.load(root)
            loads.append(time.perf_counter() - t)
        ours = [_rate(data.batches(batch), 5 if smoke else 200, batch) for _ in range(1 if smoke else 5)]
        few = ims[:300 if smoke else 4000]
        loader = _folder(few, Path(tmp)/'png', batch, workers=0 if smoke else 2)
        theirs = []
        for _ in range(1 if smoke else 3):
            t = time.perf_counter()
            seen = sum(len(x) for x, _ in loader)
            theirs.append(seen/(time.perf_counter() - t))
        m = 1500 if smoke else 55_000
        rng = np.random.default_rng(1)
        hashes = rng.integers(0, 2**64, m, dtype=np.uint64)
        hashes[1::50] = hashes[::50][:len(hashes[1::50])]
        t = time.perf_counter()
        groups = duplicate_groups(hashes, data.images[np.arange(m) % n])
        dedupe = time.perf_counter() - t
    spread = lambda v: float(np.subtract(*np.percentile(v, [75, 25]))/2/np.median(v)) if len(v) > 2 else None
    ours_, theirs_ = float(np.median(ours)), float(np.median(theirs))
    return [
        _row('images/s', ours_, '1/s', 'ImageFolder + DataLoader(num_workers=2)', theirs_, ours_/theirs_, len(ours), spread(ours)),
        _row(f'load {n//1000}k s', float(np.median(loads)), 's', n=len(loads), spread=spread(loads)),
        _row(f'dedupe {m//1000}k s', dedupe, 's', n=len(np.unique(groups))),
    ]


if __name__ == '__main__':
    from pttface.show import Table
    print(Table(bench()))
