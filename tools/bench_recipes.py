"""What lets `tiny` learn more in the same CPU minutes: ways to train it, each beside the one it was tried against.

MINUTES (2) of one core for each training. How many pictures that is comes from a way's own CPU seconds a picture
beside those of AdamW at its old settings, measured in turns; PACE (0.0167) are the seconds that those count as, so that
a busy machine changes nothing. First the ways one after another on heads, told apart by the loss of 500 held-out
pictures, which is the same for all; then the kept recipe, the old one and those that came near it, with several seeds
on heads and on fruit, told apart by KID and FD of 200 samples too, which are guided by the average after an eighth of
the pictures. What is done is kept in runs/bench/recipes-MINUTES: a bench that was cut off goes on from there, and one
that is whole only prints its table.
"""
import copy
import os
import shutil
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

top = Path(__file__).resolve().parent.parent
MINUTES, PACE = (float(os.environ.get(k, v)) for k, v in (('MINUTES', 2), ('PACE', .0167)))
WIDTHS = (.05, .10, .15)  # Averages that are measured; samples come from the second
SEEDS = dict(heads=3, fruit=2)  # Trainings of the kept recipe and of each finalist
OLD = dict(optimizer='adamw', lr=2e-3, schedule='cosine', uncertainty=False, batch=16,
           net_args=dict(ch=32, mults=(1, 2, 2, 2)))  # `tiny` of release 0.1.0
MUON = dict(optimizer='muon', lr=.016)
FIRST, AT, MIDDLE = 'AdamW, lr 0.002', 'Muon, lr 0.016', 'Muon, lr 0.012'
BEST = f'{MIDDLE}, inverse square root decay and uncertainty weighting'
WAYS = {  # Name: the way that it was tried against, and what differs from OLD
    FIRST: (None, {}),
    'AdamW, lr 0.004': (FIRST, dict(lr=4e-3)),
    'AdamW, patches of 2, 64 channels': (FIRST, dict(patch=2, net_args=dict(ch=64, mults=(1, 1, 1)))),
    'Muon, lr 0.002': (FIRST, dict(optimizer='muon', lr=2e-3)),
    'Muon, lr 0.004': ('Muon, lr 0.002', dict(optimizer='muon', lr=4e-3)),
    'Muon, lr 0.008': ('Muon, lr 0.004', dict(optimizer='muon', lr=8e-3)),
    AT: ('Muon, lr 0.008', MUON),
    MIDDLE: (AT, MUON | dict(lr=.012)),
    'Muon, lr 0.032': (AT, dict(optimizer='muon', lr=.032)),
    'Muon, lr 0.004, batch 8': ('Muon, lr 0.004', dict(optimizer='muon', lr=4e-3, batch=8)),
    'Muon, lr 0.008, batch 8': ('Muon, lr 0.008', dict(optimizer='muon', lr=8e-3, batch=8)),
    'Muon, lr 0.016, batch 8': (AT, MUON | dict(batch=8)),
    'Muon, lr 0.016, wider and shallower': (AT, MUON | dict(net_args=dict(ch=40, mults=(1, 2, 2)))),
    'Muon, lr 0.016, inverse square root decay': (AT, MUON | dict(schedule='inverse_sqrt')),
    'Muon, lr 0.016, uncertainty weighting': (AT, MUON | dict(uncertainty=True)),
    f'{MIDDLE}, inverse square root decay': (MIDDLE, MUON | dict(lr=.012, schedule='inverse_sqrt')),
    f'{MIDDLE}, uncertainty weighting': (MIDDLE, MUON | dict(lr=.012, uncertainty=True)),
    BEST: (MIDDLE, MUON | dict(lr=.012, schedule='inverse_sqrt', uncertainty=True)),
}
FINALISTS = (FIRST, MIDDLE, f'{MIDDLE}, inverse square root decay', f'{MIDDLE}, uncertainty weighting')  # Beside BEST


def recipe_of(changes, seed=0):
    "The recipe of a way, and what no recipe can say: patches."
    from pttface.training.config import Recipe, find_recipe
    known = {f.name for f in fields(Recipe)}
    net = find_recipe('tiny').net_args | OLD['net_args'] | changes.get('net_args', {})
    changes = {k: v for k, v in (OLD | changes).items() if k != 'net_args'}
    more = {k: changes.pop(k) for k in list(changes) if k not in known}
    return replace(find_recipe('tiny'), seed=seed, net_args=net, **changes), more


def patched(net_args, patch):
    "The network of `net_args` on squares of `patch` × `patch` pixels, each taken for one of more channels."
    import torch.nn.functional as F
    from torch import nn

    from pttface.unet import UNet

    class Patched(nn.Module):
        outer = ('net',)

        def __init__(self):
            super().__init__()
            self.in_ch = 3
            self.net = UNet(**net_args | dict(in_ch=3*patch**2, size=net_args['size']//patch))

        def forward(self, x, noise):
            return F.pixel_shuffle(self.net(F.pixel_unshuffle(x, patch), noise), patch)
    return Patched()


class Way:
    "A network, what trains it, and its averages."
    def __init__(self, changes, sigma_data, seed=0):
        import torch
        from pttface.diffusion import Denoiser
        from pttface.training.ema import EMA
        from pttface.training.optimizer import make_optimizer
        from pttface.training.uncertainty import RATE, Uncertainty
        from pttface.unet import UNet
        self.recipe, self.more = r, more = recipe_of(changes, seed)
        torch.manual_seed(seed)
        net = patched(r.net_args, more['patch']) if 'patch' in more else UNet(**r.net_args)
        self.d, self.net = Denoiser(net, 'edm', sigma_data), net
        inner = net.net if 'patch' in more else net
        self.opts = [make_optimizer(r.optimizer, self.d, inner, r.lr, r.beta2, r.decay, fused=True)]
        self.unsure = Uncertainty() if r.uncertainty else None
        if self.unsure:
            self.opts.append(torch.optim.Adam(self.unsure.parameters(), lr=RATE))
        self.peaks = [[g['lr'] for g in o.param_groups] for o in self.opts]
        self.ema, self.steps = EMA(net, f'power {" ".join(map(str, WIDTHS))}', r.batch), 0

    def step(self, x0, share):
        "A step on the batch `x0`, at `share` of the peak learning rate; its loss."
        import torch

        from pttface.diffusion import add_noise, draw_noise, loss_weight
        x0, sigma, eps, *_ = draw_noise(x0, None, self.recipe)
        with torch.autocast('cpu', torch.bfloat16):
            guess = self.d(add_noise(x0, sigma, eps), sigma)
        each = loss_weight(self.d, sigma)*(guess - x0).square().flatten(1).mean(1)
        loss = each.mean()
        if self.unsure:
            u = self.unsure(sigma)
            loss = (each/u.exp() + u).mean()
        for opt, peaks in zip(self.opts, self.peaks):
            for g, peak in zip(opt.param_groups, peaks):
                g['lr'] = peak*share
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.d.parameters(), self.recipe.clip)
        for opt in self.opts:
            opt.step()
            opt.zero_grad()
        self.steps += 1
        self.ema.update(self.net, self.steps)
        return each.mean().item()


def cost(changes, ims, sigma_data, rounds=8):
    "CPU seconds a picture of a way beside those of the old recipe, as a ratio of medians taken in turns."
    from pttface.diffusion import to_float
    ways, took = [Way({}, sigma_data), Way(changes, sigma_data)], []
    for _ in range(rounds + 1):
        took.append([])
        for way in ways:
            x, n = to_float(ims[:way.recipe.batch]), max(1, 32//way.recipe.batch)
            start = time.process_time()
            for _ in range(n):
                way.step(x, 1.)
            took[-1].append((time.process_time() - start)/n/way.recipe.batch)
    old, new = np.median(took[1:], 0)  # The first round warms up
    return float(new/old)


def heldout_loss(denoise, ims):
    "The loss on held-out pictures, each at a noise level of its own, the same for every way."
    import torch

    from pttface.diffusion import add_noise, draw_sigmas, loss_weight, to_float
    rng = torch.Generator().manual_seed(5)
    x, each = to_float(ims), []
    sigma, eps = draw_sigmas(len(x), rng=rng), torch.randn(x.shape, generator=rng)
    for part in torch.arange(len(x)).split(20):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            guess = denoise(add_noise(x[part], sigma[part], eps[part]), sigma[part])
        each.append(loss_weight(denoise, sigma[part])*(guess - x[part]).square().flatten(1).mean(1))
    return float(torch.cat(each).mean())


def draw(denoise, n):
    "`n` samples, in 16 bits."
    import torch

    from pttface.diffusion import sample_batch
    denoise.autocast = torch.bfloat16
    parts = [range(i, min(i + 16, n)) for i in range(0, n, 16)]
    return np.concatenate([sample_batch(denoise, o, (3, 32, 32), sampler='dpm2m', steps=18) for o in parts])


def learn(changes, ims, seed, minutes, samples, scores):
    "Train a way; a dict of what it reached."
    import torch

    from bench_quality import face_data
    from pttface.diffusion import Guided
    from pttface.training.config import lr_at
    n = len(ims)*2//3
    sigma_data = float((ims[:n].astype(np.float32)/127.5 - 1).std())
    ratio = cost(changes, ims, sigma_data) if changes else 1.
    total, way = round(minutes*60/PACE/ratio), Way(changes, sigma_data, seed)
    batches = face_data(ims, n).batches(way.recipe.batch, seed, flip=way.recipe.flip)
    images, early, start = 0, None, time.process_time()
    while images < total:
        torch.manual_seed(seed*1_000_003 + way.steps)
        way.step(next(batches), lr_at(way.recipe, images/total, images)/way.recipe.lr)
        images += way.recipe.batch
        if early is None and images >= total/8:
            early = [p.clone() for p in way.ema.tracks[1]]
    out = dict(images=images, ratio=ratio, seconds=time.process_time() - start)
    way.d.eval().requires_grad_(False)
    for i, width in enumerate(WIDTHS):
        way.ema.copy_to(way.net, i)
        out[f'loss at {width}'] = heldout_loss(way.d, ims[n:][:500])
    if samples:
        way.ema.copy_to(way.net, 1)
        guide = copy.deepcopy(way.d)
        for p, q in zip(guide.net.parameters(), early):
            p.copy_(q)
        out['KID'], out['excess FD'] = scores(draw(Guided(way.d, guide), samples))
    return out


class Kept:
    "Trainings of one length, each done once and kept in `folder`."
    def __init__(self, folder, minutes, n):
        self.folder, self.minutes, self.n, self.known = folder, minutes, n, {}

    def images(self, kind):
        from bench_quality import pictures
        if kind not in self.known:
            self.known[kind] = pictures(kind, self.n)
        return self.known[kind]

    def scores(self, kind):
        "A function of samples: their KID, and their FD above that of as many held-out pictures."
        from pttface.evaluation.features import features
        from pttface.evaluation.metrics import Stats, kid
        from pttface.fid import frechet_distance
        held = features(self.images(kind)[self.n*2//3:], device='cpu')
        real, floor = np.array_split(held, 2)

        def of(ims):
            f = features(ims, device='cpu')
            bottom = frechet_distance(Stats.of(floor[:len(f)]), Stats.of(real))
            return float(kid(f, held)[0]), float(frechet_distance(Stats.of(f), Stats.of(real)) - bottom)
        return of

    def get(self, name, kind='heads', seed=0, samples=0):
        "What a way reached, from the disk or by a training."
        from pttface.storage.files import read_json, write_json
        path = self.folder/f'{kind}-{name.replace(" ", "-")}-{seed}.json'
        if path.exists() and (not samples or 'KID' in read_json(path)):
            return read_json(path)
        if samples and (kind, 'scores') not in self.known:
            self.known[kind, 'scores'] = self.scores(kind)
        scores = self.known.get((kind, 'scores'))
        out = learn(WAYS[name][1], self.images(kind), seed, self.minutes, samples, scores)
        write_json(path, dict(name=name, kind=kind, seed=seed) | out)
        return read_json(path)


def bench(smoke=False):
    "A row a try: its held-out loss beside that of the way it was tried against; then the winner beside the old recipe."
    import torch
    torch.set_num_threads(1)
    minutes, n, samples, seeds = (.01, 60, 10, dict(heads=1)) if smoke else (MINUTES, 3000, 200, SEEDS)
    folder = top/f'runs/bench/recipes-{"smoke" if smoke else f"{minutes:g}"}'
    if smoke:
        shutil.rmtree(folder, ignore_errors=True)
    kept, rows = Kept(folder, minutes, n), []
    width = f'loss at {WIDTHS[1]}'
    for name, (against, _) in list(WAYS.items())[:3 if smoke else None]:
        mine = kept.get(name)
        theirs = kept.get(against) if against else dict()
        rows.append(dict(what=f'{name}: held-out loss', value=mine[width], peer=against, peer_value=theirs.get(width),
                         ratio=theirs[width]/mine[width] if against else None, n=1))
    for kind, several in seeds.items():
        best = [kept.get(BEST, kind, s, samples) for s in range(several)]
        for name in FINALISTS[:1 if smoke else None]:
            theirs = [kept.get(name, kind, s, samples) for s in range(several)]
            for what in (width, 'KID', 'excess FD'):
                a, b = (np.array([o[what] for o in got]) for got in (best, theirs))
                said = what if what != width else 'held-out loss'
                said = f'{kind}: {said}' + (f', beside {name}' if name != FIRST else '')
                rows.append(dict(what=said, value=a.mean(), peer=name, peer_value=b.mean(),
                                 ratio=b.mean()/a.mean(), n=several, spread=float(np.ptp(a)/2/abs(a.mean()))))
    return rows


if __name__ == '__main__':
    sys.exit('run me as: python tools/bench.py recipes')
