"Evaluation beside clean-fid, pytorch-fid and torch-fidelity: the same pictures, the same network, the same run."
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from peers import peer_python

PEERS = ('clean-fid', 'pytorch-fid', 'torch-fidelity')
IMAGES = int(os.environ.get('IMAGES', 200))  # pictures of a round of images/s
REPORT = int(os.environ.get('REPORT', 10_000))  # pictures on either side of the report
ROUNDS = int(os.environ.get('ROUNDS', 5))
top = Path(__file__).resolve().parent.parent


def pictures(n, side=64, seed=0):
    import cv2
    rng = np.random.default_rng(seed)
    small = (rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(n))
    return np.stack([cv2.resize(o, (side, side), interpolation=cv2.INTER_CUBIC) for o in small])


def write_pngs(ims, folder):
    import cv2
    folder.mkdir()
    for i, im in enumerate(ims):
        cv2.imwrite(f'{folder}/{i:05d}.png', im[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return folder


def feature_net(kind):
    """A function of (N,3,H,W) floats 0…255 and its width: EfficientNet-Lite0 as we fold it, or 2,048 random
    projections, which cost next to nothing."""
    import torch

    from pttface.evaluation.features import load_protocol, square
    if kind == 'lite0':
        net = load_protocol(device='cpu').net

        def lite0(x):
            return net.extract_features((square(x.permute(0, 2, 3, 1), 224, 'cpu') - 127)/128).mean((2, 3))
        return lite0, 1280
    proj = torch.from_numpy(np.random.default_rng(0).normal(size=(768, 2048)).astype(np.float32)/28)
    return lambda x: ((x.permute(0, 2, 3, 1).flatten(1)/127.5 - 1) @ proj).relu(), 2048


class Ours:
    def __init__(self, kind):
        import torch

        from pttface import fid
        from pttface.evaluation.features import Protocol
        net, _ = feature_net(kind)
        self.fid = fid

        def embed(ims):
            return net(torch.from_numpy(ims).permute(0, 3, 1, 2).float())
        self.protocol = 'efficientnet' if kind == 'lite0' else Protocol('FD', 'custom', embed)

    def features(self, folder):
        from pttface.evaluation.features import features
        return features(folder, self.protocol, device='cpu')

    def distance(self, mu, a, mv, b):
        from pttface.evaluation.metrics import Stats
        return self.fid.frechet_distance(Stats(mu, a, 10**6), Stats(mv, b, 10**6))

    def report(self, real, fake):
        from types import SimpleNamespace

        from pttface.evaluation.features import as_images
        train = as_images(real)
        data = SimpleNamespace(train=train, heldout=pictures(max(6, len(train)//9), train.shape[1], 7))
        return self.fid.evaluate(fake, data, self.protocol, n=len(train), batch=500, device='cpu', progress=False,
                                 detector=None)


class CleanFid:
    def __init__(self, kind):
        import torch
        from cleanfid import fid
        self.fid, (net, _) = fid, feature_net(kind)

        class Net(torch.nn.Module):
            def forward(self, x):
                return net(x)
        self.net = Net()

    def features(self, folder):
        import torch
        return self.fid.get_folder_features(str(folder), self.net, num_workers=2, batch_size=32,
                                            device=torch.device('cpu'), custom_fn_resize=lambda x: x.astype(np.float32),
                                            verbose=False)

    def distance(self, mu, a, mv, b):
        return self.fid.frechet_distance(mu, a, mv, b)
    def report(self, real, fake):
        x, y = self.features(real), self.features(fake)
        return self.fid.fid_from_feats(x, y), self.fid.kernel_distance(x, y)


class PytorchFid:
    def __init__(self, kind):
        import torch
        from pytorch_fid import fid_score
        self.fid, (net, self.dims) = fid_score, feature_net(kind)

        class Net(torch.nn.Module):
            def forward(self, x):
                return [net(x*255)[:, :, None, None]]
        self.net = Net()

    def features(self, folder):
        files = sorted(Path(folder).glob('*.png'))
        return self.fid.get_activations(files, self.net, batch_size=50, dims=self.dims, num_workers=2)
    def distance(self, mu, a, mv, b):
        return self.fid.calculate_frechet_distance(mu, a, mv, b)
    def report(self, real, fake):
        stats = [(x.mean(0), np.cov(x, rowvar=False)) for x in map(self.features, (real, fake))]
        return self.distance(*stats[0], *stats[1])


class TorchFidelity:
    def __init__(self, kind):
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
        net, dims = feature_net(kind)

        class Net(FeatureExtractorBase):
            def __init__(self):
                super().__init__('net', [str(dims)])
            @staticmethod
            def get_provided_features_list():
                return (str(dims),)
            def forward(self, x):
                return (net(x.float()),)
        self.net, self.layer = Net(), str(dims)

    def features(self, folder):
        from torch_fidelity.datasets import ImagesPathDataset
        from torch_fidelity.utils import get_featuresdict_from_dataset
        files = ImagesPathDataset(sorted(str(p) for p in Path(folder).glob('*.png')))
        return get_featuresdict_from_dataset(files, self.net, 64, False, False, True)[self.layer].numpy()

    def distance(self, mu, a, mv, b):
        from torch_fidelity.metric_fid import fid_statistics_to_metric
        found = fid_statistics_to_metric(dict(mu=mu, sigma=a), dict(mu=mv, sigma=b), False)
        return found['frechet_inception_distance']

    def report(self, real, fake):
        import torch
        from torch_fidelity.metric_fid import fid_featuresdict_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_featuresdict_to_metric
        x, y = ({self.layer: torch.from_numpy(self.features(o))} for o in (real, fake))
        stats = [fid_featuresdict_to_statistics(o, self.layer) for o in (x, y)]
        kid = kid_featuresdict_to_metric(x, y, self.layer, kid_subset_size=min(1000, len(x[self.layer])))
        return fid_statistics_to_metric(*stats, False), kid


SIDES = {'ours': Ours, 'clean-fid': CleanFid, 'pytorch-fid': PytorchFid, 'torch-fidelity': TorchFidelity}


def worker(side, kind):
    "Do what each line of the standard input asks; answer with seconds, peak memory and a figure."
    import contextlib
    import warnings

    import torch
    warnings.filterwarnings('ignore')
    answers = os.fdopen(os.dup(1), 'w')
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, 'w'))
        for context in (contextlib.redirect_stdout(null), contextlib.redirect_stderr(null), torch.inference_mode()):
            stack.enter_context(context)
        it = SIDES[side](kind)
        loaded = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # torch started ldconfig, which shared its own
        for line in sys.stdin:
            what, *args = json.loads(line)
            if what == 'distance':
                with np.load(args[0]) as z:
                    args = [z[k] for k in ('mu', 'a', 'mv', 'b')]
            t = time.perf_counter()
            got = getattr(it, what)(*args)
            s = time.perf_counter() - t
            own, others = (resource.getrusage(o).ru_maxrss for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            mb = (own + (others if others > loaded else 0))/1024
            value = float(np.mean(got)) if isinstance(got, (float, np.ndarray, np.floating)) else None
            print(json.dumps(dict(s=s, mb=mb, value=value)), file=answers, flush=True)


class Worker:
    "A side in a process of its own, so that its memory is its own and rounds can be interleaved."
    def __init__(self, side, python, kind):
        env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(top), str(top/'tools')]), TQDM_DISABLE='1')
        self.log = tempfile.TemporaryFile('w+')
        self.p = subprocess.Popen([str(python), __file__, 'worker', side, kind], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=self.log, text=True, env=env)

    def ask(self, *what):
        self.p.stdin.write(json.dumps([str(o) for o in what]) + '\n')
        self.p.stdin.flush()
        answer = self.p.stdout.readline()
        if answer:
            return json.loads(answer)
        self.p.wait()
        self.log.seek(0)
        raise RuntimeError(f'{what}: {self.log.read()[-1500:]}')

    def __enter__(self):
        return self
    def __exit__(self, *a):
        self.p.stdin.close()
        self.p.wait()


def spread(v):
    return float(np.subtract(*np.percentile(v, [75, 25]))/2/np.median(v)) if len(v) > 2 else None


def row(what, ours, unit, peer=None, theirs=None, better='higher', n=None, key=lambda a: a['s'], per=None):
    "A row of the table from the answers of both sides; the ratio is the median of the rounds' own."
    f = (lambda a: per/a['s']) if per else key
    a, b = [f(o) for o in ours], [f(o) for o in theirs or []]
    ratio = float(np.median([x/y if better == 'higher' else y/x for x, y in zip(a, b)])) if b else None
    return dict(what=what, value=float(np.median(a)), unit=unit, peer=peer,
                peer_value=float(np.median(b)) if b else None, ratio=ratio, n=n or len(a), spread=spread(a))


def rounds(python, kind, jobs):
    """Each side in turn: side → what was asked → answers. A job is (rounds, warm up first?, what, arguments); all sides
    stay open, each in its process."""
    from contextlib import ExitStack
    got = {}
    with ExitStack() as stack:
        sides = {k: stack.enter_context(Worker(k, v, kind)) for k, v in python.items() if v}
        for n, warm, *job in jobs:
            if warm:
                for w in sides.values():
                    w.ask(*job)
            for _ in range(n):
                for k, w in sides.items():
                    got.setdefault(k, {}).setdefault(job[0], []).append(w.ask(*job))
    return got


def half_rows(ims):
    "Half precision: how much faster, and how much it changes the distance of blurred pictures."
    import cv2

    from pttface.evaluation.features import features
    from pttface.evaluation.metrics import Stats
    from pttface.fid import frechet_distance
    sets = [ims[::2], np.stack([cv2.GaussianBlur(o, (0, 0), 1) for o in ims[1::2]])]
    got, s = {}, {'float32': [], 'half': []}
    for _ in range(3):
        for p in s:
            t = time.perf_counter()
            got[p] = [features(o, device='cpu', precision=p) for o in sets]
            s[p].append(dict(s=time.perf_counter() - t))
    d = {k: frechet_distance(*map(Stats.of, v)) for k, v in got.items()}
    name = 'features images/s, half precision'
    speed = row(name, s['half'], 'images/s', 'ours in float32', s['float32'], per=len(ims))
    difference = abs(d['half']/d['float32'] - 1)
    return [speed, dict(what='distance in half precision, relative difference', value=difference, unit='share', n=1)]


def copies_rows(n):
    """Drawn heads, `n` of each: how many samples are flagged among those of which 5 % are copies, and among fresh ones,
    and how many of the copies that are planted at several strengths."""
    import cv2

    from drawn import heads
    from pttface.evaluation.features import features
    from pttface.evaluation.memorization import find_originality, plant_copies
    ims = heads(2*n + n//5, 48)['images']
    train, held, fresh = ims[:n], ims[n:n + n//5], ims[n + n//5:]
    k = max(1, n//20)
    cheat = np.concatenate([fresh[k:], cv2.convertScaleAbs(train[:k, :, ::-1], alpha=1.04, beta=4)])
    real, planted = [train, train[:, :, ::-1], held], plant_copies(train)
    real_features, planted_features = [features(o) for o in real], {what: features(o) for what, o in planted.items()}
    out = []
    for what, samples, expected in (('fresh', fresh, 0), ('5 % copies', cheat, k)):
        found = find_originality([*real_features, features(samples)], [train, held, samples],
                                 planted=(planted_features, planted))
        out += [dict(what=f'samples flagged among {n} drawn heads, {what}', value=int(found.copies.sum()),
                     unit=f'of {expected}', n=n),
                dict(what=f'p of the same, {what}', value=found.p, unit='p', n=n)]
    return out + [dict(what=f'planted copies flagged, {what}', value=100*share, unit='%', n=len(planted[what]))
                  for what, share in found.power.items()]


def write_stats(path, dim):
    "Means and covariances of two sets of `dim` features, for the distance alone."
    rng, scale = np.random.default_rng(0), np.arange(1, dim+1)**-.6
    x, y = (rng.normal(size=(2*dim, dim))*scale + m for m in (0, .05))
    np.savez(path, mu=x.mean(0), a=np.cov(x.T), mv=y.mean(0), b=np.cov(y.T))
    return path


def peer_rows(got, dim, many):
    "Distance and report with each peer."
    ours, rows = got['ours'], []
    for p in PEERS:
        theirs = got.get(p, {}).get('distance')
        rows.append(row('distance s', ours['distance'], f's, {dim} features', p, theirs, 'lower'))
    value = ours['distance'][0]['value']
    for p in PEERS:
        if p in got:
            difference = abs(value/got[p]['distance'][0]['value'] - 1)
            rows.append(dict(what='distance, relative difference', value=difference, unit='share', peer=p, n=1))
    name = 'report s for 10k' if many == 10_000 else f'report s for {many}'
    for p in PEERS:
        theirs = got.get(p, {}).get('report')
        rows += [row(name, ours['report'], 's, network apart', p, theirs, 'lower'),
                 row('peak MB', ours['report'], 'MB', p, theirs, 'lower', key=lambda a: a['mb'])]
    return rows


def bench(smoke=False):
    "Images/s and distance s with each peer, the report's time and memory, half precision, copies among drawn heads."
    made = peer_python('fid', 'clean-fid', 'pytorch-fid', 'torch-fidelity', share=True, make=not smoke)
    python = {'ours': sys.executable, **{p: made or (sys.executable if p == 'clean-fid' else None) for p in PEERS}}
    n, many = (8, 40) if smoke else (IMAGES, REPORT)
    dim, k = (64, 1) if smoke else (2048, ROUNDS)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        few = write_pngs(pictures(n), d/'few')
        got = rounds(python, 'lite0', [(k, True, 'features', few)])
        ours = got['ours']['features']
        rows = [row('features images/s', ours, 'images/s', p, got.get(p, {}).get('features'), per=n) for p in PEERS]
        real, fake = (write_pngs(pictures(many, 16, i), d/name) for i, name in enumerate(('real', 'fake')))
        jobs = [(k, not smoke, 'distance', write_stats(d/'stats.npz', dim)),
                (1 if smoke else 3, False, 'report', real, fake)]
        rows += peer_rows(rounds(python, 'projection', jobs), dim, many)
    return rows + half_rows(pictures(8 if smoke else 128)) + copies_rows(20 if smoke else 500)


if __name__ == '__main__':
    worker(*sys.argv[2:])
