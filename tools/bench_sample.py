"""Samples at equal quality: how many evaluations of a network each sampler needs to match 999 ancestral steps.

The network is the preset `tiny`, trained for TRAIN (20k images) on drawn heads. SAMPLES (300) pictures for each
sampler, from the same noise, in 16 bits where the machine has them. A match is a KID (against held-out heads) no more
than one standard error above that of the 999 steps. The network and its samples stay in runs/bench/sample, so a bench
that was cut off goes on from there.
"""
import os
from pathlib import Path

import numpy as np

top = Path(__file__).resolve().parent.parent
SAMPLES = int(os.environ.get('SAMPLES', 300))
TRAIN = os.environ.get('TRAIN', '20k images')
STEPS = dict(unipc=(6, 8, 10, 12, 15, 20), dpm2m=(8, 10, 12, 15, 18), heun=(6, 10), euler=(10, 20))
TRIED = [(sampler, n) for sampler, many in STEPS.items() for n in many]


class Counted:
    "A denoiser that counts how often it is asked."
    def __init__(self, d):
        self.d, self.asked = d, 0
    def __call__(self, x, sigma):
        self.asked += 1
        return self.d(x, sigma)


def drawn(d, sampler, steps, n, shape, batch=25):
    "Pictures 0 … n−1 with a sampler, a batch on each thread; how many evaluations each took."
    import torch

    from pttface.diffusion import SAMPLERS, linear_sigmas, sigmas_for, to_uint8
    from pttface.parallel import map_threads
    from pttface.training.samplers import Noise
    if sampler == 'ancestral':
        sigmas = linear_sigmas()[torch.linspace(999, 0, steps+1).round().long()].float()
    else:
        sigmas = sigmas_for(d, sampler, steps).float()
    def one(i, _):
        ask, noise = Counted(d), Noise(0, range(i, min(n, i+batch)), shape)
        with torch.no_grad():
            return to_uint8(SAMPLERS[sampler](ask, noise()*sigmas[0], sigmas, noise)), ask.asked
    out = map_threads(one, range(0, n, batch), torch.get_num_threads(), None)
    return np.concatenate([o for o, _ in out]), out[0][1]


def bench(smoke=False):
    "Row `evaluations to match the 999-step ancestral`, and KID by sampler and number of evaluations."
    import torch
    from bench_quality import face_data, pictures, recipe_of

    from pttface.diffusion import train
    from pttface.evaluation.metrics import kid
    from pttface.evaluation.features import features
    from pttface.evaluation.samples import newest
    from pttface.training.device import half_type
    from pttface.storage.files import read_npz, write_npz
    n, many = (12, 4) if smoke else (SAMPLES, 999)
    tried, budget = ([('unipc', 3), ('heun', 2)], '64 images') if smoke else (TRIED, TRAIN)
    ims = pictures('heads', 60 if smoke else 3000)
    root = top/f'runs/bench/sample{"-smoke" if smoke else ""}'
    run = train(face_data(ims, len(ims)*2//3), recipe_of('tiny'), root=root, budget=budget, device='cpu',
                progress=not smoke, force=smoke)
    d, size = run.denoiser('cpu'), run.recipe.size
    d.autocast = half_type(torch.device('cpu'))
    held = features(ims[len(ims)*2//3:], device='cpu')

    def score(sampler, steps):
        file = run.path/f'{newest(run).id[:12]}-{sampler}-{steps}-{n}.npz'
        if not file.exists():
            pics, asked = drawn(d, sampler, steps, n, (3, size, size))
            write_npz(file, images=pics, asked=np.array(asked))
        got = read_npz(file)
        return dict(sampler=sampler, asked=int(got['asked']), kid=kid(features(got['images'], device='cpu'), held))
    ref = score('ancestral', many)
    got = [score(*o) for o in tried]
    limit = ref['kid'][0] + ref['kid'][1]
    good = [o['asked'] for o in got if o['kid'][0] <= limit]
    rows = [dict(what='evaluations to match the 999-step ancestral', value=min(good, default=None), unit='evaluations',
                 peer='999-step ancestral', peer_value=ref['asked'], ratio=ref['asked']/min(good) if good else None,
                 n=n, spread=None)]
    for o in got:
        value, error = o['kid']
        what = f'KID, {o["sampler"]}, {o["asked"]} evaluations'
        rows.append(dict(what=what, value=value, unit='efficientnet features', peer='999-step ancestral',
                         peer_value=ref['kid'][0], ratio=ref['kid'][0]/value if value > 0 else None, n=n,
                         spread=error/abs(value)))
    return rows
