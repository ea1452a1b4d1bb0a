"""Quality at equal cost, small, at 32 px, on drawn heads and on drawn fruit (nothing was tuned on those).

Ours (preset `tiny`, guided as the recipe says, plain, refined by `refine`, and distilled by `distill`) beside three
peers with as many parameters: the original's recipe, drawn by the same fast sampler with the clipping of DDPM's own
code; diffusers' unconditional example; and denoising-diffusion-pytorch's Trainer. Each peer gets the best of three
learning rates (LRS), found on heads with a fifth of the samples. Refining and distilling come after the training and
cost more than the others' minutes; their own minutes are rows of the table. Refining chooses on held-out pictures of
its own; both are done with one training of the first set, and not at all with MORE=''.

MINUTES (10) of two cores for each training, or SETS=heads,fruit:5:200 for other minutes and other than 500 samples for
one of the sets: how many pictures that is for each comes from its own CPU seconds a picture, measured in turns, so a
busy machine changes nothing. Each training has one thread, JOBS (2) run side by side. What is trained and drawn stays
in runs/bench/quality-MINUTES, so a bench that was cut off goes on from there; remove the folders to begin anew.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

top = Path(__file__).resolve().parent.parent
MINUTES = float(os.environ.get('MINUTES', 10))
JOBS = int(os.environ.get('JOBS', 2))
ASKED = [[*o.split(':'), '', ''] for o in os.environ.get('SETS', 'heads,fruit').split(',')]
SETS = {k: (float(m or MINUTES), int(n or 500)) for k, m, n, *_ in ASKED}  # Minutes of a training, samples
OURS = 'tiny'
PEERS = {'tiny-original': "the original's recipe, clipped, DPM++(2M)",
         'diffusers': "diffusers' unconditional example",
         'ddpm': "denoising-diffusion-pytorch's Trainer"}
THEIRS = ('diffusers', 'ddpm')     # Those that run under the peers' Python
LRS = (2e-4, 6e-4, 2e-3)           # Tried for each peer
MORE = tuple(filter(None, os.environ.get('MORE', 'refined,distilled').split(',')))  # What takes more than a training
WAYS = dict(guided={}, plain=dict(guidance=1.)) | {k: {} for k in MORE}  # To draw from ours; the first is the recipe's
TRAIN, SIZE = 2000, 32


def fruit(i):
    "Number `i` of the drawn tables."
    from pttface.synthetic.lighting import draw_scene
    cv2.setNumThreads(1)
    return draw_scene(i, (64, 64))


def pictures(kind, n, seed=0):
    "`n` drawn heads, or tables with fruit: drawn once and kept in runs/bench; others for each `seed`."
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from drawn import heads
    from pttface.storage.files import read_npz, write_npz
    first, path = seed*1_000_000, top/f'runs/bench/fruit-64-{n}{f"-{seed}" if seed else ""}.npz'
    if kind == 'heads':
        ims = heads(n, 64, seed)['images']
    else:
        if not path.exists():
            with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool:
                write_npz(path, images=np.stack(list(pool.map(fruit, range(first, first + n), chunksize=8))))
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


def picture_folder(kind, n):
    "The training pictures as files, which is what the peers read."
    folder = top/f'runs/bench/{kind}-{SIZE}-{n}'
    if not (folder/'.done').exists():
        (folder/'all').mkdir(parents=True, exist_ok=True)
        for i, im in enumerate(pictures(kind, n)[:n*2//3]):
            Image.fromarray(im).save(folder/f'all/{i:05d}.png')
        (folder/'.done').touch()
    return folder


def peers_python(make=True):
    from peers import peer_python
    return peer_python('train', 'diffusers>=0.35', 'denoising-diffusion-pytorch>=2.1', share=True, make=make)


def quiet_env():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(top), 'TQDM_DISABLE': '1'}


def run_alone(python, script, *args):
    "A process of its own; its output, or RuntimeError with the end of what it said."
    r = subprocess.run([str(python), str(script), *map(str, args)], capture_output=True, text=True, env=quiet_env())
    if r.returncode:
        raise RuntimeError(r.stderr[-2000:])
    return r.stdout


def cpu_per_image(names, ims, folder, rounds=5, steps=3):
    "CPU seconds an image of each contender's training step: medians of rounds taken in turns, one thread."
    import torch

    from pttface.diffusion import Run, make_trainer
    from pttface.storage.files import write_json
    from pttface.training.config import Budget, recipe_record
    torch.set_num_threads(1)
    took = {n: [] for n in names}
    peers = {n: subprocess.Popen([str(peers_python()), str(top/'tools/quality_peers.py'), 'cost', n, str(folder),
                                  str(rounds), str(steps)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True, env=quiet_env()) for n in names if n in THEIRS}
    with tempfile.TemporaryDirectory() as d:
        trainers = {}
        for n in names:
            if n in THEIRS:
                continue
            r = recipe_of(n)
            write_json(Path(d)/n/'recipe.json', dict(settings=recipe_record(r), sigma_data=.5))
            data = face_data(ims, len(ims))
            t = make_trainer(Run(Path(d)/n), data, Budget.parse('1M images'), 'cpu')
            trainers[n] = t, data.batches(r.batch, 0, flip=r.flip)
            t.training_step(next(trainers[n][1]))
        for _ in range(rounds):
            for n in names:
                if n in THEIRS:
                    print('go', file=peers[n].stdin, flush=True)
                    took[n].append(float(json.loads(peers[n].stdout.readline())))
                    continue
                trainer, batches = trainers[n]
                start = time.process_time()
                for _ in range(steps):
                    trainer.training_step(next(batches))
                took[n].append((time.process_time() - start)/steps/trainer.recipe.batch)
    for p in peers.values():
        p.stdin.close()
        p.wait(60)
    return {n: float(np.median(v)) for n, v in took.items()}


def learn(root, preset, kind, lr, seed, n, images):
    "Train one, with one thread; `spent.json` says how many CPU seconds that took, and that it is done."
    from pttface.diffusion import train
    from pttface.storage.files import write_json
    start = time.process_time()
    data = face_data(pictures(kind, n), n*2//3)
    recipe = recipe_of(preset, seed)
    recipe = replace(recipe, lr=lr, lr_end=recipe.lr_end*lr/recipe.lr) if lr else recipe
    run = train(data, recipe, root=root, budget=f'{images} images', device='cpu', progress=False, force=True)
    write_json(Path(root)/'spent.json', dict(seconds=time.process_time() - start, run=str(run.path.relative_to(root))))


def trained(root):
    from pttface.diffusion import Run
    from pttface.storage.files import read_json
    return Run(Path(root)/read_json(Path(root)/'spent.json')['run'])


def do_more(root, way, kind, n, judges):
    "Refine a training, or distil it; `WAY.json` says what it cost."
    from pttface.distill import distill
    from pttface.evaluation.refine import refine
    from pttface.storage.files import write_json
    start, quiet = time.process_time(), dict(device='cpu', progress=False)
    if way == 'distilled':
        data = face_data(pictures(kind, n), n*2//3)
        found = distill(trained(root), data, name=way, force=True, **quiet).path.name
    else:
        ims = pictures(kind, n)[:n*2//3]
        data = face_data(np.concatenate([ims, pictures(kind, judges, 1)]), len(ims))
        found = refine(trained(root), data, samples=1000 if judges > 50 else 16, n=min(100, judges),
                       weights=(0., .5, 1., 2.), half=True, **quiet).chosen
    write_json(Path(root)/f'{way}.json', dict(seconds=time.process_time() - start, found=found))


def draw_some(root, way, seed, start, n, steps):
    "Draw pictures `start` … `start+n−1`, with one thread, in 16 bits where those suffice (both were trained so)."
    from pttface.diffusion import Run, sample
    from pttface.evaluation.refine import refined
    from pttface.storage.files import read_json, write_npz
    begin = time.process_time()
    run, how = trained(root), WAYS.get(way, {})
    if way == 'distilled':
        run, steps = Run(run.path.parent/way), 0
    elif way == 'refined' and read_json(Path(root)/f'{way}.json')['found'].get('guided'):
        run = refined(run)
    if run.recipe.parameterization == 'linear':
        how = dict(sampler='dpm2m', steps=steps or 25, clip=True)
    elif steps:
        how = how | dict(steps=steps)
    ims = sample(run, n, seed=seed, start=start, batch=16, half=True, device='cpu', progress=False, **how)
    write_npz(Path(root)/f'{way}{start}.npz', images=ims, seconds=np.array(time.process_time() - begin))


class Contest:
    "The trainings and drawings of one set, each done once and kept in `folder`"

    def __init__(self, kind, folder, n, samples, seen, pool, steps=0):
        self.kind, self.folder, self.n, self.samples = kind, folder, n, samples
        self.seen, self.pool, self.steps = seen, pool, steps

    def home(self, who, lr, seed):
        return self.folder/f'{self.kind}-{who}-{lr:g}-{seed}'

    def learn(self, who, lr, seed):
        "Train `who` unless that has been done."
        d = self.home(who, lr, seed)
        if (d/'spent.json').exists():
            return
        if who in THEIRS:
            args = peers_python(), top/'tools/quality_peers.py', 'learn', who, picture_folder(self.kind, self.n), d
            run_alone(*args, lr, seed, self.seen[who])
        else:
            run_alone(sys.executable, __file__, 'learn', d, who, self.kind, lr, seed, self.n, self.seen[who])

    def draw(self, who, lr, seed, way, start, n):
        "Draw pictures `start` … unless that has been done."
        d = self.home(who, lr, seed)
        if (d/f'{way}{start}.npz').exists():
            return
        if who in THEIRS:
            run_alone(peers_python(), top/'tools/quality_peers.py', 'draw', who, d, seed, start, n)
        else:
            run_alone(sys.executable, __file__, 'draw', d, way, seed, start, n, self.steps)

    def more(self, who, lr, seed, way):
        "Refine or distil a training unless that has been done."
        d = self.home(who, lr, seed)
        if way in MORE and not (d/f'{way}.json').exists():
            run_alone(sys.executable, __file__, 'more', d, way, self.kind, self.n, min(self.samples, 300))

    def race(self, entries, samples):
        "Train and draw all `entries` (who, lr, seed, way), JOBS at a time."
        trainings = dict.fromkeys(o[:3] for o in entries)
        for jobs in ([self.pool.submit(self.learn, *o) for o in trainings],
                     [self.pool.submit(self.more, *o) for o in entries]):
            for job in jobs:
                job.result()
        part = min(samples, 100)
        jobs = [self.pool.submit(self.draw, *o, i, part) for o in entries for i in range(0, samples, part)]
        for job in jobs:
            job.result()

    def images(self, who, lr, seed, way, samples):
        from pttface.storage.files import read_npz
        starts = range(0, samples, min(samples, 100))
        return np.concatenate([read_npz(self.home(who, lr, seed)/f'{way}{i}.npz')['images'] for i in starts])

    def found(self, who, lr, seed, way):
        from pttface.storage.files import read_json
        return read_json(self.home(who, lr, seed)/f'{way}.json')['found']

    def seconds(self, who, lr, seed, way):
        "CPU seconds of the training, of what came after it, and of drawing all samples."
        from pttface.storage.files import read_json, read_npz
        d = self.home(who, lr, seed)
        drawn = [float(read_npz(d/f'{way}{i}.npz')['seconds']) for i in range(0, self.samples, min(self.samples, 100))]
        after = read_json(d/f'{way}.json')['seconds'] if way in MORE else 0
        return read_json(d/'spent.json')['seconds'], after, sum(drawn)


def scores(ims, real, floor, held):
    "KID, and the FD above that of other held-out pictures."
    from pttface.evaluation.features import features
    from pttface.evaluation.metrics import Stats, kid
    from pttface.fid import frechet_distance
    f = features(ims, device='cpu')
    bottom = frechet_distance(Stats.of(floor[:len(f)]), Stats.of(real))
    return kid(f, held)[0], frechet_distance(Stats.of(f), Stats.of(real)) - bottom


def bench(smoke=False):
    "Rows of KID and excess FD for each set beside each peer; a sheet: held-out, each peer's, ours."
    from pttface.diffusion import make_net
    from pttface.display import montage
    from pttface.evaluation.features import features
    from pttface.storage.files import read_json, write_json
    from pttface.training.config import find_recipe
    from pttface.unet import n_params
    sets = dict(heads=(.01, 10)) if smoke else SETS
    n, seeds, lrs = (150, [0], LRS[-1:]) if smoke else (3*TRAIN//2, [0, 1], LRS)
    peers = [p for p in PEERS if p not in THEIRS or peers_python(make=not smoke)]
    rows = []

    def add(what, ours, peer, peer_value, unit='', **kw):
        rows.append(dict(what=what, value=ours, unit=unit, peer=peer, peer_value=peer_value, ratio=peer_value/ours,
                         **kw))
    params = n_params(make_net(find_recipe(OURS)))
    for p in peers:
        theirs = (int(run_alone(peers_python(), top/'tools/quality_peers.py', 'size', p)) if p in THEIRS
                  else n_params(make_net(find_recipe(p))))
        add('parameters', params, PEERS[p], theirs)
    best_lr, lines = {}, []
    with ThreadPoolExecutor(JOBS) as pool:
        for kind, (m, samples) in sets.items():
            trial, first_set = min(samples, 100), not best_lr
            folder = top/f'runs/bench/quality-{"smoke" if smoke else f"{m:g}"}'
            if smoke:
                shutil.rmtree(folder, ignore_errors=True)
            ims = pictures(kind, n)
            if not (folder/'images.json').exists():
                rounds = (1, 1) if smoke else (15, 4)
                cost = cpu_per_image((OURS, *peers), ims[:100], picture_folder(kind, n), *rounds)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder/'images.json', {p: max(64, round(m*120/c)) for p, c in cost.items()})
            seen = read_json(folder/'images.json')
            contest = Contest(kind, folder, n, samples, seen, pool, 3 if smoke else 0)
            held = features(ims[n*2//3:], device='cpu')
            real, floor = held[:len(held)//2], held[len(held)//2:]
            if first_set:  # Which is heads
                contest.race([(p, lr, 0, '') for p in peers for lr in lrs], trial)
                tried = {(p, lr): scores(contest.images(p, lr, 0, '', trial), real, floor, held)[0]
                         for p in peers for lr in lrs}
                best_lr = {p: min(lrs, key=lambda lr, p=p: tried[p, lr]) for p in peers}
                for p in peers:
                    rows.append(dict(what=f'{kind}: best learning rate of {", ".join(f"{o:g}" for o in lrs)}',
                                     peer=PEERS[p], peer_value=best_lr[p]))
            entries = {p: [(p, best_lr[p], s, '') for s in seeds] for p in peers}
            entries |= {way: [(OURS, 0, s, way) for s in (seeds[:1] if way in MORE else seeds)]
                        for way in WAYS if first_set or way not in MORE}
            contest.race([o for v in entries.values() for o in v], samples)
            got = {k: np.array([scores(contest.images(*o, samples), real, floor, held) for o in v])
                   for k, v in entries.items()}
            spent = {k: np.mean([contest.seconds(*o) for o in v], 0)/60 for k, v in entries.items()}
            first = next(iter(WAYS))
            for i, what in enumerate(('KID', 'excess FD')):
                mean = {k: float(v[:, i].mean()) for k, v in got.items()}
                spread = {k: float(np.ptp(v[:, i])/2/abs(v[:, i].mean())) for k, v in got.items()}
                best = min(peers, key=mean.get)
                add(f'{kind}: {what}', mean[first], f'the best peer: {PEERS[best]}', mean[best], n=len(seeds),
                    spread=spread[first])
                for p in peers:
                    add(f'{kind}: {what}, {first}', mean[first], PEERS[p], mean[p], n=len(seeds), spread=spread[p])
                for way in [o for o in entries if o in WAYS and o != first]:
                    add(f'{kind}: {what}, {way}', mean[way], PEERS[best], mean[best], n=len(entries[way]),
                        spread=spread[way])
            for p in peers:
                add(f'{kind}: pictures seen in {m:g} minutes', seen[OURS], PEERS[p], seen[p], 'images')
                add(f'{kind}: CPU minutes of a training', spent[first][0], PEERS[p], spent[p][0], 'min')
                add(f'{kind}: CPU minutes of drawing {samples}', spent[first][2], PEERS[p], spent[p][2], 'min')
            for way in [o for o in MORE if o in entries]:
                add(f'{kind}: CPU minutes more, {way}', spent[way][1], 'the training', spent[way][0], 'min')
                add(f'{kind}: CPU minutes of drawing {samples}, {way}', spent[way][2], first, spent[first][2], 'min')
            for o in entries.get('refined', []):
                rows.append(dict(what=f'{kind}: w of refining, guided, seed {o[2]}', value=contest.found(*o)['guided']))
            lines += [ims[n*2//3:][:12]]
            ways = (*peers, *(o for o in reversed(WAYS) if o in entries))
            lines += [contest.images(*entries[k][0], samples)[:12] for k in ways]
    sheet = montage(np.concatenate(lines), ncols=len(lines[0]))
    picture = top/f'runs/bench/quality{"-smoke" if smoke else ""}.jpg'
    Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(picture, quality=90)
    return rows


if __name__ == '__main__':
    import torch
    torch.set_num_threads(1)
    what, root, *a = sys.argv[1:]
    if what == 'learn':
        learn(root, a[0], a[1], float(a[2]), *map(int, a[3:]))
    elif what == 'more':
        do_more(root, *a[:2], *map(int, a[2:]))
    else:
        draw_some(root, a[0], *map(int, a[1:]))
