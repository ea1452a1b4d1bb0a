"""Sampling: how far each sampler is from where it would lead with ever more steps, and what more steps are worth.

The network is the preset `tiny`, trained for TRAIN (25k images, about ten CPU minutes) on drawn heads, with and without
its guidance. The error is the root mean square distance, in levels of 255, between the pictures of a sampler and those
of REFERENCE (250) steps of Heun's method from the same noise, in float32, over PAIRS (32) pictures. KID and FD-
efficientnet are of SAMPLES (300) pictures against held-out heads, for each sampler from the same noises. The network
and its pictures stay in runs/bench/sample, so a bench that was cut off goes on from there.

The same network is then distilled (page `distill`) for DISTIL (12k images) more, and drawn in two evaluations and in
one, beside the guided teacher with the steps of its recipe.
"""
import os
from pathlib import Path

import numpy as np

top = Path(__file__).resolve().parent.parent
SAMPLES = int(os.environ.get('SAMPLES', 300))
PAIRS = int(os.environ.get('PAIRS', 32))
REFERENCE = int(os.environ.get('REFERENCE', 250))
TRAIN = os.environ.get('TRAIN', '25k images')
DISTIL = os.environ.get('DISTIL', '12k images')
STEPS = dict(ddim=(10, 20, 40, 80, 160), heun=(5, 8, 10, 15, 20), dpm2m=(6, 8, 10, 12, 15, 18, 25, 36),
             unipc=(6, 8, 10, 12, 15, 18, 25, 36))
DRAWN = [('ddim', 18), ('ddim', 80), ('heun', 9), ('dpm2m', 8), ('dpm2m', 12), ('dpm2m', 18), ('unipc', 8),
         ('unipc', 12), ('unipc', 18), ('dpm2m', 80)]
NEAR = 1.  # Levels of 255


def drawn(d, sampler, steps, n, side, batch=16):
    "Pictures 0 … n−1 in [-1,1], a batch on each thread, (n,3,side,side) float32."
    import torch

    from pttface.diffusion import generate
    from pttface.parallel import map_threads
    def one(i, _):
        return generate(d, range(i, min(n, i+batch)), (3, side, side), sampler, steps)
    return torch.cat(map_threads(one, range(0, n, batch), torch.get_num_threads(), None)).numpy()


def kept(file, make):
    "An array that is made once."
    from pttface.storage.files import read_npz, write_npz
    if not file.exists():
        write_npz(file, x=make())
    return read_npz(file)['x']


def errors(d, folder, way, tried, pairs, reference, side):
    "Levels of 255 between each sampler's pictures and the reference's, by sampler and steps."
    d.autocast = None
    truth = kept(folder/f'{way}-heun-{reference}.npz', lambda: drawn(d, 'heun', reference, pairs, side))
    out = {}
    for sampler, steps in tried:
        ends = kept(folder/f'{way}-{sampler}-{steps}.npz', lambda o=(sampler, steps): drawn(d, *o, pairs, side))
        out[sampler, steps] = float(np.sqrt(((ends - truth)**2).mean())*127.5)
    return out


def distances(d, folder, way, tried, n, side, held):
    "KID with its error, and FD, by sampler and steps; in 16 bits where the machine has them."
    import torch

    from pttface.diffusion import to_uint8
    from pttface.evaluation.features import features
    from pttface.evaluation.metrics import Stats, kid
    from pttface.fid import frechet_distance
    from pttface.training.device import half_type
    d.autocast, ref, out = half_type(torch.device('cpu')), Stats.of(held), {}
    for sampler, steps in tried:
        ims = kept(folder/f'{way}-{sampler}-{steps}-{n}.npz',
                   lambda o=(sampler, steps): to_uint8(torch.from_numpy(drawn(d, *o, n, side))))
        feats = features(ims, device='cpu')
        out[sampler, steps] = *kid(feats, held), frechet_distance(Stats.of(feats), ref)
    return out


def row(what, value, unit, n, peer=None, peer_value=None, ratio=None, spread=None):
    return dict(what=what, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, n=n, spread=spread)


def error_rows(way, d, found, pairs):
    "How many evaluations bring each sampler near its end, beside DDIM; then the error at each number of steps."
    from pttface.diffusion import evaluations
    asked = {o: evaluations(d, *o) for o in found}
    near = {}
    for (sampler, steps), error in found.items():
        if error <= NEAR:
            near.setdefault(sampler, asked[sampler, steps])
    rows = []
    for sampler in [k for k in near if k != 'ddim']:
        peer = near.get('ddim')
        rows.append(row(f'{way}: evaluations to within {NEAR:g} level, {sampler}', near[sampler], 'evaluations', pairs,
                        'DDIM', peer, peer and peer/near[sampler]))
    for (sampler, steps), error in found.items():
        rows.append(row(f'{way}: error, {sampler}, {asked[sampler, steps]} evaluations', error, 'levels of 255', pairs))
    return rows


def distance_rows(way, d, found, n):
    "KID and FD at each number of evaluations, beside those of the most."
    from pttface.diffusion import evaluations
    asked = {o: evaluations(d, *o) for o in found}
    most = max(found, key=asked.get)
    rows = []
    for o, (value, error, fd) in found.items():
        name = f'{o[0]}, {asked[o]} evaluations'
        peer = f'{most[0]}, {asked[most]} evaluations'
        rows.append(row(f'{way}: KID, {name}', value, 'efficientnet features', n, peer, found[most][0],
                        spread=error/abs(value)))
        rows.append(row(f'{way}: FD, {name}', fd, 'efficientnet features', n, peer, found[most][2]))
    return rows


def distilled_rows(student, teacher, folders, n, side, held):
    "KID and FD of a distilled run in two evaluations and in one, beside those of its guided teacher."
    from pttface.diffusion import evaluations, sampled_denoiser
    r, d = teacher.recipe, sampled_denoiser(teacher, 'cpu')
    usual = distances(d, folders[0], 'guided', [(r.sampler, r.steps)], n, side, held)[r.sampler, r.steps]
    peer = f'{r.sampler}, {evaluations(d, r.sampler, r.steps)} evaluations, guided'
    tried = [(student.recipe.sampler, 2), (student.recipe.sampler, 1)]
    found = distances(student.denoiser('cpu'), folders[1], 'distilled', tried, n, side, held)
    rows = []
    for (name, steps), (value, error, fd) in found.items():
        what = f'{name}, {steps} evaluations'
        rows.append(row(f'distilled: KID, {what}', value, 'efficientnet features', n, peer, usual[0], value/usual[0],
                        error/abs(value)))
        rows.append(row(f'distilled: FD, {what}', fd, 'efficientnet features', n, peer, usual[2], fd/usual[2]))
    return rows


def bench(smoke=False):
    "Rows of errors to the converged pictures, and of KID and FD, by sampler and number of evaluations."
    from bench_quality import face_data, pictures, recipe_of

    from pttface.diffusion import sampled_denoiser, train
    from pttface.distill import distill
    from pttface.evaluation.features import features
    n, pairs, reference, budget = (12, 4, 20, '256 images') if smoke else (SAMPLES, PAIRS, REFERENCE, TRAIN)
    more = '64 images' if smoke else DISTIL
    tried = [(k, o) for k, many in STEPS.items() for o in (many[:2] if smoke else many)]
    ims = pictures('heads', 60 if smoke else 3000)
    root = top/f'runs/bench/sample{"-smoke" if smoke else ""}'
    data, how = face_data(ims, len(ims)*2//3), dict(device='cpu', progress=not smoke, force=smoke)
    run = train(data, recipe_of('tiny'), root=root, budget=budget, **how)
    student = distill(run, data, budget=more, **how)
    folders = [o.path/o.checkpoints.rows[-1]['sha256'][:12] for o in (run, student)]
    folder, side = folders[0], run.recipe.size
    held, rows = features(ims[len(ims)*2//3:], device='cpu'), []
    for way, weight in (('plain', 1.), ('guided', run.recipe.guidance)):
        d = sampled_denoiser(run, 'cpu', guidance=weight)
        rows += error_rows(way, d, errors(d, folder, way, tried, pairs, reference, side), pairs)
        some = DRAWN[:3] if smoke else DRAWN
        rows += distance_rows(way, d, distances(d, folder, way, some, n, side, held), n)
    return rows + distilled_rows(student, run, folders, n, side, held)
