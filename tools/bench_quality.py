"""Quality at equal cost: the original's recipe against ours, small, at 32 px, on drawn heads and on drawn fruit (nothing was tuned on those).

MINUTES (10) of two cores for each training: how many pictures that is for each recipe comes from its own CPU seconds a picture, measured in
turns, so a busy machine changes nothing. Each training has one thread, two run side by side.
"""
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np

top = Path(__file__).resolve().parent.parent
MINUTES = float(os.environ.get('MINUTES', 10))
SETS = os.environ.get('SETS', 'heads,fruit').split(',')
OURS, PEER = 'tiny', 'tiny-original'
TRAIN, SIZE = 2000, 32


def fruit(i):
    "Number `i` of the drawn tables."
    from pttface.heads import draw_scene
    cv2.setNumThreads(1)
    return draw_scene(i, (64, 64))


def pictures(kind, n):
    "`n` drawn heads, or tables with fruit: drawn once and kept in runs/bench."
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from drawn import heads
    from pttface.store import read_npz, write_npz
    path = top/f'runs/bench/fruit-64-{n}.npz'
    if kind == 'heads': ims = heads(n, 64)['images']
    else:
        if not path.exists():
            with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool: write_npz(path, images=np.stack(list(pool.map(fruit, range(n), chunksize=8))))
        ims = read_npz(path)['images']
    return np.stack([cv2.resize(o, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for o in ims])


def face_data(ims, train):
    "The first `train` pictures to learn from, the others held out."
    from pttface.dataset import FaceData
    from pttface.store import content_hash
    return FaceData(dict(images=ims, split=(np.arange(len(ims)) >= train).astype(np.uint8), key=np.arange(len(ims)).astype(str)), dict(hash=content_hash(ims)))


def recipe_of(name, seed=0):
    "A preset that neither reports nor draws on the way: what is measured is the training."
    from pttface.recipe import find_recipe
    return replace(find_recipe(name), seed=seed, report='1000M images', grid='1000M images', save='10m')


def cpu_per_image(names, ims, rounds=5, steps=3):
    "CPU seconds an image of each preset's training step: medians of rounds taken in turns, one thread."
    import torch

    from pttface.diffusion import Budget, Run, Trainer
    from pttface.store import write_json
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        trainers = {}
        for n in names:
            r = recipe_of(n)
            write_json(Path(d)/n/'recipe.json', dict(settings=r, sigma_data=.5))
            data = face_data(ims, len(ims))
            t = Trainer(Run(Path(d)/n), data, Budget.parse('1M images'), 'cpu')
            trainers[n] = t, data.batches(r.batch, 0, flip=r.flip)
            t.take(next(trainers[n][1]))
        took = {n: [] for n in names}
        for _ in range(rounds):
            for n, (t, batches) in trainers.items():
                start = time.process_time()
                for _ in range(steps): t.take(next(batches))
                took[n].append((time.process_time() - start)/steps/t.recipe.batch)
    return {n: float(np.median(v)) for n, v in took.items()}


def job(preset, kind, seed, n, images, samples, steps, out):
    "Train one, draw from it, in a process of its own with one thread."
    import torch
    torch.set_num_threads(1)
    from pttface.diffusion import sample, train
    from pttface.store import write_npz
    ims = pictures(kind, n)
    with tempfile.TemporaryDirectory() as root:
        start = time.process_time()
        run = train(face_data(ims, n*2//3), recipe_of(preset, seed), root=root, budget=f'{images} images', device='cpu', progress=False)
        spent = time.process_time() - start
        write_npz(Path(out), images=sample(run, samples, steps=steps or None, seed=seed, device='cpu', progress=False), spent=np.array(spent))


def bench(smoke=False):
    "Rows `KID` and `excess FD` for each set of pictures, the original's recipe as the peer."
    from pttface.diffusion import make_net
    from pttface.distances import Stats, frechet_distance, kid
    from pttface.features import features
    from pttface.recipe import find_recipe
    from pttface.unet import n_params
    minutes, n, samples, seeds = (.01, 60, 10, [0]) if smoke else (MINUTES, 3*TRAIN//2, 500, [0, 1])
    size = {p: n_params(make_net(find_recipe(p))) for p in (OURS, PEER)}
    sets = {k: pictures(k, n) for k in (SETS[:1] if smoke else SETS)}
    cost = cpu_per_image((OURS, PEER), next(iter(sets.values()))[:100], *((1, 1) if smoke else (5, 3)))
    images = {p: max(64, round(minutes*120/c)) for p, c in cost.items()}
    rows = [dict(what='parameters', value=size[OURS], unit='', peer='preset original', peer_value=size[PEER], ratio=size[PEER]/size[OURS]),
            dict(what=f'pictures seen in {minutes:g} minutes', value=images[OURS], unit='images', peer='preset original', peer_value=images[PEER], ratio=images[OURS]/images[PEER])]
    out = top/'runs/bench/quality'
    out.mkdir(parents=True, exist_ok=True)
    def run(what):
        kind, preset, seed = what
        file = out/f'{kind}-{preset}-{seed}.npz'
        r = subprocess.run([sys.executable, __file__, preset, kind, *map(str, (seed, n, images[preset], samples, 3 if smoke else 0, file))], capture_output=True, text=True,
                           env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(top)})
        if r.returncode: raise RuntimeError(r.stderr[-2000:])
        with np.load(file) as f: return f['images'], float(f['spent'])
    todo = list(product(sets, (PEER, OURS), seeds))
    with ThreadPoolExecutor(2) as pool: got = dict(zip(todo, pool.map(run, todo)))
    for kind, ims in sets.items():
        held = features(ims[n*2//3:], device='cpu')
        real, floor = held[:len(held)//2], held[len(held)//2:]
        bottom = frechet_distance(Stats.of(floor), Stats.of(real))
        score = {}
        for preset, seed in product((OURS, PEER), seeds):
            f = features(got[kind, preset, seed][0], device='cpu')
            score.setdefault(preset, []).append((kid(f, held)[0], frechet_distance(Stats.of(f), Stats.of(real)) - bottom))
        for i, what in enumerate(('KID', 'excess FD')):
            ours, peer = (np.array(score[p])[:, i] for p in (OURS, PEER))
            rows.append(dict(what=what if kind == 'heads' else f'{what}, {kind}', value=float(ours.mean()), unit='efficientnet features', peer='preset original', peer_value=float(peer.mean()),
                             ratio=float(peer.mean()/ours.mean()), n=len(seeds), spread=float(np.ptp(ours)/2/abs(ours.mean()))))
    if not smoke:
        spent = {p: np.mean([v[1] for (_, q, _), v in got.items() if q == p])/60 for p in (OURS, PEER)}
        rows.append(dict(what='CPU minutes a training', value=spent[OURS], unit='min', peer='preset original', peer_value=spent[PEER], ratio=spent[PEER]/spent[OURS]))
    return rows


if __name__ == '__main__':
    a = sys.argv[1:]
    job(a[0], a[1], *map(int, a[2:7]), a[7])
