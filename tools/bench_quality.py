"""Quality at equal cost: the original's recipe against ours, small, at 32 px, on drawn heads and on drawn fruit.

(Nothing was tuned on those.) MINUTES (10) of two cores for each training, or SETS=heads,fruit:5 for other minutes for
one of the sets: how many pictures that is for each recipe comes from its own CPU seconds a picture, measured in turns,
so a busy machine changes nothing. Each training has one thread, two run side by side. What is trained and drawn stays
in runs/bench/quality-MINUTES, so a bench that was cut off goes on from there; remove the folders to begin anew.
"""
import os
import shutil
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
from PIL import Image

top = Path(__file__).resolve().parent.parent
MINUTES = float(os.environ.get('MINUTES', 10))
ASKED = [o.partition(':') for o in os.environ.get('SETS', 'heads,fruit').split(',')]
SETS = {k: float(m or MINUTES) for k, _, m in ASKED}
OURS, PEER = 'tiny', 'tiny-original'
TRAIN, SIZE = 2000, 32


def fruit(i):
    "Number `i` of the drawn tables."
    from pttface.synthetic.lighting import draw_scene
    cv2.setNumThreads(1)
    return draw_scene(i, (64, 64))


def pictures(kind, n):
    "`n` drawn heads, or tables with fruit: drawn once and kept in runs/bench."
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from drawn import heads
    from pttface.storage.files import read_npz, write_npz
    path = top/f'runs/bench/fruit-64-{n}.npz'
    if kind == 'heads':
        ims = heads(n, 64)['images']
    else:
        if not path.exists():
            with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool:
                write_npz(path, images=np.stack(list(pool.map(fruit, range(n), chunksize=8))))
        ims = read_npz(path)['images']
    return np.stack([cv2.resize(o, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for o in ims])


def face_data(ims, train):
    "The first `train` pictures to learn from, the others held out."
    from pttface.dataset import FaceData
    from pttface.storage.files import content_hash
    number = np.arange(len(ims))
    arrays = dict(images=ims, split=(number >= train).astype(np.uint8), key=number.astype(str))
    return FaceData(arrays, dict(hash=content_hash(ims)))


def recipe_of(name, seed=0):
    "A preset that neither reports nor draws on the way: what is measured is the training."
    from pttface.training.config import find_recipe
    return replace(find_recipe(name), seed=seed, report='1000M images', grid='1000M images', save='10m')


def cpu_per_image(names, ims, rounds=5, steps=3):
    "CPU seconds an image of each preset's training step: medians of rounds taken in turns, one thread."
    import torch

    from pttface.diffusion import Run, make_trainer
    from pttface.storage.files import write_json
    from pttface.training.config import Budget, recipe_record
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        trainers = {}
        for n in names:
            r = recipe_of(n)
            write_json(Path(d)/n/'recipe.json', dict(settings=recipe_record(r), sigma_data=.5))
            data = face_data(ims, len(ims))
            t = make_trainer(Run(Path(d)/n), data, Budget.parse('1M images'), 'cpu')
            trainers[n] = t, data.batches(r.batch, 0, flip=r.flip)
            t.training_step(next(trainers[n][1]))
        took = {n: [] for n in names}
        for _ in range(rounds):
            for n, (t, batches) in trainers.items():
                start = time.process_time()
                for _ in range(steps):
                    t.training_step(next(batches))
                took[n].append((time.process_time() - start)/steps/t.recipe.batch)
    return {n: float(np.median(v)) for n, v in took.items()}


def learn(root, preset, kind, seed, n, images):
    "Train one, with one thread; `spent.json` says how many CPU seconds that took, and that it is done."
    from pttface.diffusion import train
    from pttface.storage.files import write_json
    start = time.process_time()
    data = face_data(pictures(kind, n), n*2//3)
    run = train(data, recipe_of(preset, seed), root=root, budget=f'{images} images', device='cpu', progress=False,
                force=True)
    write_json(Path(root)/'spent.json', dict(seconds=time.process_time() - start, run=str(run.path.relative_to(root))))


def draw_some(root, seed, start, n, steps):
    "Draw pictures `start` … `start+n−1`, with one thread, in 16 bits where those suffice (both were trained so)."
    from pttface.diffusion import Run, sample
    from pttface.storage.files import read_json, write_npz
    run = Run(Path(root)/read_json(Path(root)/'spent.json')['run'])
    ims = sample(run, n, steps=steps or None, seed=seed, start=start, batch=16, half=True, device='cpu', progress=False)
    write_npz(Path(root)/f'{start}.npz', images=ims)


def bench(smoke=False):
    "Rows of KID and excess FD for each set, the original's recipe as the peer; a sheet of held-out, the peer's, ours."
    from pttface.diffusion import make_net
    from pttface.evaluation.metrics import Stats,kid
    from pttface.fid import frechet_distance
    from pttface.evaluation.features import features
    from pttface.training.config import find_recipe
    from pttface.display import montage
    from pttface.storage.files import read_json, read_npz, write_json
    from pttface.unet import n_params
    minutes, n, samples, seeds = (dict(heads=.01), 60, 10, [0]) if smoke else (SETS, 3*TRAIN//2, 500, [0, 1])
    size = {p: n_params(make_net(find_recipe(p))) for p in (OURS, PEER)}
    sets, seen = {k: pictures(k, n) for k in minutes}, {}
    folder = {k: top/f'runs/bench/quality-{"smoke" if smoke else f"{m:g}"}' for k, m in minutes.items()}
    if smoke:
        shutil.rmtree(folder['heads'], ignore_errors=True)
    rows = []

    def add(what, ours, peer, unit, ratio, **kw):
        rows.append(dict(what=what, value=ours, unit=unit, peer='preset original', peer_value=peer, ratio=ratio, **kw))
    add('parameters', size[OURS], size[PEER], '', size[PEER]/size[OURS])
    for k, d in folder.items():
        if not (d/'images.json').exists():
            cost = cpu_per_image((OURS, PEER), next(iter(sets.values()))[:100], *((1, 1) if smoke else (5, 3)))
            d.mkdir(parents=True, exist_ok=True)
            write_json(d/'images.json', {p: max(64, round(minutes[k]*120/c)) for p, c in cost.items()})
        seen[k] = o = read_json(d/'images.json')
        add(f'{k}: pictures seen in {minutes[k]:g} minutes', o[OURS], o[PEER], 'images', o[OURS]/o[PEER])
    def alone(file, *args):
        if file.exists():
            return
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(top)}
        r = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, env=env)
        if r.returncode:
            raise RuntimeError(r.stderr[-2000:])
    at = {o: folder[o[0]]/'-'.join(map(str, o)) for o in product(sets, (PEER, OURS), seeds)}
    part = min(samples, 100)
    starts = range(0, samples, part)
    with ThreadPoolExecutor(2) as pool:
        for kind in sets:
            mine = [(o, d) for o, d in at.items() if o[0] == kind]
            trainings = [pool.submit(alone, d/'spent.json', 'learn', d, preset, kind, seed, n, seen[kind][preset])
                         for (_, preset, seed), d in mine]
            for job in trainings:
                job.result()
            drawings = [pool.submit(alone, d/f'{i}.npz', 'draw', d, seed, i, part, 3 if smoke else 0)
                        for (_, _, seed), d in mine for i in starts]
            for job in drawings:
                job.result()
    got = {o: np.concatenate([read_npz(d/f'{i}.npz')['images'] for i in starts]) for o, d in at.items()}
    for kind, ims in sets.items():
        held = features(ims[n*2//3:], device='cpu')
        real, floor = held[:len(held)//2], held[len(held)//2:]
        bottom = frechet_distance(Stats.of(floor), Stats.of(real))
        score = {}
        for preset, seed in product((OURS, PEER), seeds):
            f = features(got[kind, preset, seed], device='cpu')
            excess = frechet_distance(Stats.of(f), Stats.of(real)) - bottom
            score.setdefault(preset, []).append((kid(f, held)[0], excess))
        for i, what in enumerate(('KID', 'excess FD')):
            ours, peer = (np.array(score[p])[:, i] for p in (OURS, PEER))
            add(f'{kind}: {what}', float(ours.mean()), float(peer.mean()), 'efficientnet features',
                float(peer.mean()/ours.mean()), n=len(seeds), spread=float(np.ptp(ours)/2/abs(ours.mean())))
    lines = [o[:12] for k, ims in sets.items() for o in (ims[n*2//3:], got[k, PEER, 0], got[k, OURS, 0])]
    sheet = montage(np.concatenate(lines), ncols=12)
    picture = top/f'runs/bench/quality{"-smoke" if smoke else ""}.jpg'
    Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(picture, quality=90)
    for k in () if smoke else sets:
        spent = {}
        for p in (OURS, PEER):
            seconds = [read_json(d/'spent.json')['seconds'] for (s, q, _), d in at.items() if (s, q) == (k, p)]
            spent[p] = np.mean(seconds)/60
        add(f'{k}: CPU minutes a training', spent[OURS], spent[PEER], 'min', spent[PEER]/spent[OURS])
    return rows


if __name__ == '__main__':
    import torch
    torch.set_num_threads(1)
    what, root, *a = sys.argv[1:]
    if what == 'learn':
        learn(root, a[0], a[1], *map(int, a[2:]))
    else:
        draw_some(root, *map(int, a))
