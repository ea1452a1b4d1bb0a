"Evaluation beside clean-fid, pytorch-fid and torch-fidelity, all with the same feature network (EfficientNet-Lite0, from its wheel)."
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# A Python that has the peers: python -m venv .venv-peers && .venv-peers/bin/pip install pytorch-fid torch-fidelity clean-fid torch …
PEERS = os.environ.get('PEERS_FID', '.venv-peers/bin/python')
IMAGES = int(os.environ.get('IMAGES', 400))  # for images/s
REPORT = int(os.environ.get('REPORT', 10_000))  # for the report
REPEATS = int(os.environ.get('REPEATS', 3))


def pictures(n, side=64, seed=0):
    import cv2
    rng = np.random.default_rng(seed)
    return np.stack([cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC) for _ in range(n)])


def timed(f, n=REPEATS):
    "Median seconds of `n` runs, and half the interquartile range as a share of it."
    s = []
    for _ in range(n):
        t = time.perf_counter()
        f()
        s.append(time.perf_counter() - t)
    return float(np.median(s)), float(np.subtract(*np.percentile(s, [75, 25]))/2/np.median(s)) if n > 2 else None


def worker(what, folder):
    "One measurement in a process of its own; prints JSON."
    import contextlib
    import io

    import torch
    out, files = io.StringIO(), sorted(str(p) for p in Path(folder).glob('*.png'))
    from pttface.features import features, load_protocol, square
    net = load_protocol(device='cpu').net

    class Net(torch.nn.Module):  # the same network, fed bytes or floats 0…1
        def forward(self, x, scale=1.): return net.extract_features((square((x*scale).permute(0, 2, 3, 1), 224, 'cpu') - 127)/128).mean((2, 3))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), torch.inference_mode():
        if what == 'ours':
            ims = np.stack([np.asarray(__import__('PIL.Image').Image.open(f)) for f in files])
            run = lambda: features(ims, device='cpu')
        elif what == 'clean-fid':
            from cleanfid.fid import get_folder_features
            run = lambda: get_folder_features(folder, Net(), num_workers=2, batch_size=32, device=torch.device('cpu'), custom_fn_resize=lambda x: x.astype(np.float32), verbose=False)
        elif what == 'pytorch-fid':
            from pytorch_fid.fid_score import get_activations

            class Four(Net):
                def forward(self, x): return [super(Four, self).forward(x, 255.)[:, :, None, None]]
            run = lambda: get_activations(files, Four(), batch_size=50, dims=1280, num_workers=2)
        elif what == 'torch-fidelity':
            from torch_fidelity.feature_extractor_base import FeatureExtractorBase
            from torch_fidelity.datasets import ImagesPathDataset
            from torch_fidelity.utils import get_featuresdict_from_dataset

            class Lite(FeatureExtractorBase):
                def __init__(self): super().__init__('lite0', ['1280'])
                @staticmethod
                def get_provided_features_list(): return ('1280',)
                def forward(self, x): return (Net.forward(self, x.float()),)
            fe = Lite()
            run = lambda: get_featuresdict_from_dataset(ImagesPathDataset(files), fe, 64, False, False, True)
        run()
        seconds, spread = timed(run)
    print(json.dumps(dict(rate=len(files)/seconds, spread=spread)))


def report_worker(n):
    "The whole report but the network: 2,048 random projections stand in for it."
    from types import SimpleNamespace

    from pttface.fid import evaluate
    ims = pictures(2*n + n//9, 16)
    proj = np.random.default_rng(0).normal(size=(768, 2048)).astype(np.float32)/28

    def projection(x): return np.maximum((x.reshape(len(x), -1)/127.5 - 1) @ proj, 0)
    t = time.perf_counter()
    evaluate(ims[:n], SimpleNamespace(train=ims[n:2*n], heldout=ims[2*n:]), projection, n=n, batch=500, progress=False)
    print(json.dumps(dict(seconds=time.perf_counter() - t, mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)))


def ask(python, *args):
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    r = subprocess.run([python, __file__, *map(str, args)], capture_output=True, text=True, env=env)
    if r.returncode: raise RuntimeError(f'{args}: {r.stderr[-800:]}')
    return json.loads(r.stdout.strip().splitlines()[-1])


def row(what, value, unit, peer=None, peer_value=None, better='higher', n=None, spread=None):
    ratio = None if peer_value is None else (value/peer_value if better == 'higher' else peer_value/value)
    return dict(what=what, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, n=n, spread=spread)


def distances(dim, repeats):
    "Seconds of one distance at `dim` features: ours, and the peers' SciPy matrix root."
    from scipy import linalg

    from pttface.distances import Stats, frechet_distance
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim+1)**-.6
    a, b = (Stats.of(rng.normal(size=(2*dim, dim))*scale + m) for m in (0, .05))
    ours, spread = timed(lambda: frechet_distance(a, b), repeats)
    t = time.perf_counter()
    root = linalg.sqrtm(a.sigma @ b.sigma)
    theirs = time.perf_counter() - t
    want = ((a.mu - b.mu)**2).sum() + np.trace(a.sigma + b.sigma) - 2*np.trace(root).real
    return [row('distance s', ours, f's, {dim} features', 'clean-fid, pytorch-fid, torch-fidelity (scipy sqrtm)', theirs, 'lower', repeats, spread),
            row('distance, relative difference', abs(frechet_distance(a, b) - want)/want, 'share', n=1)]


def bench(smoke=False):
    "Rows: features images/s and distance s with each peer, the report's time and memory."
    import cv2
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for i, im in enumerate(pictures(8 if smoke else IMAGES)): cv2.imwrite(f'{d}/{i:05d}.png', im)
        os.environ['REPEATS'] = '1' if smoke else str(REPEATS)
        ours = ask(sys.executable, 'features', 'ours', d)
        peers = ['clean-fid'] if smoke else ['clean-fid', 'pytorch-fid', 'torch-fidelity']
        for peer in peers:
            try: theirs = ask(PEERS if Path(PEERS).exists() and not smoke else sys.executable, 'features', peer, d)['rate']
            except RuntimeError as e: theirs, peer = None, f'{peer}: {str(e).splitlines()[-1][:60]}'
            rows.append(row('features images/s', ours['rate'], 'images/s', peer, theirs, 'higher', 8 if smoke else IMAGES, ours['spread']))
    rows += distances(64 if smoke else 2048, 1 if smoke else REPEATS)
    n = 60 if smoke else REPORT
    got = ask(sys.executable, 'report', n)
    return rows + [row(f'report s for {n:,} × {n:,}, network apart', got['seconds'], 's', n=1), row('peak MB', got['mb'], 'MB', n=1)]


if __name__ == '__main__':
    worker(*sys.argv[2:]) if sys.argv[1] == 'features' else report_worker(int(sys.argv[2]))
