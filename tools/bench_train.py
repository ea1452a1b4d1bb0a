"""A training step beside diffusers' example loop and denoising-diffusion-pytorch's Trainer, on one network.

The network is ours of the preset `tiny`, 32 px, batch 16. Each side lives in a process of its own and takes STEPS (8)
steps when it is told, in turns, ROUNDS (5) times. Then the full-size original, batch 4: which share of the matrix
multiplications of this machine its step reaches.
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

top = Path(__file__).resolve().parent.parent
STEPS, ROUNDS, BATCH = (int(os.environ.get(k, v)) for k, v in (('STEPS', 8), ('ROUNDS', 5), ('BATCH', 16)))
PEERS = {'diffusers': "diffusers' example loop", 'ddpm': "denoising-diffusion-pytorch's Trainer"}


def pictures(n=256, side=32):
    "Smooth noise: what a step costs does not depend on what it shows."
    import cv2
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(n)]
    return np.stack([cv2.resize(o, (side, side), interpolation=cv2.INTER_CUBIC) for o in coarse])


def face_data(ims):
    "All of `ims` to train on."
    from pttface.dataset import FaceData
    n = len(ims)
    return FaceData(dict(images=ims, split=np.zeros(n, np.uint8), key=np.arange(n).astype(str)), dict(hash='none'))


def network():
    "The same weights for everybody."
    from pttface.diffusion import make_net
    from pttface.training.config import RECIPES
    return make_net(RECIPES['tiny'])


def ours(folder, precision):
    from dataclasses import replace

    from pttface.diffusion import Run, make_trainer
    from pttface.storage.files import write_json
    from pttface.training.config import RECIPES, Budget, recipe_record
    data = face_data(pictures())
    r = replace(RECIPES['tiny'], batch=BATCH, precision=precision, optimizer='adamw')  # The peers' too
    write_json(Path(folder)/'recipe.json', dict(settings=recipe_record(r), sigma_data=.5))
    t = make_trainer(Run(folder), data, Budget.parse('1M images'))
    batches = data.batches(BATCH, 0, flip=True, device=t.accel.device)

    def steps(n):
        for _ in range(n):
            t.training_step(next(batches))
            t.update_clock()
        t.read_losses()
    return steps


def diffusers(folder, precision):
    "What examples/unconditional_image_generation does, with a DataLoader of picture files."
    import torch
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    acc = Accelerator(mixed_precision=precision)
    net = network()
    ema = EMAModel(net.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=.75)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(.95, .999), weight_decay=1e-6, eps=1e-8)
    tfm = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip(),
                              transforms.ToTensor(), transforms.Normalize([.5], [.5])])
    dl = DataLoader(ImageFolder(folder, tfm), BATCH, shuffle=True, num_workers=0)
    schedule = get_scheduler('cosine', optimizer=opt, num_warmup_steps=500, num_training_steps=100_000)
    noiser = DDPMScheduler(1000, beta_schedule='linear')
    net, opt, dl, schedule = acc.prepare(net, opt, dl, schedule)
    ema.to(acc.device)

    def endless():
        while True:
            yield from dl
    batches = endless()

    def steps(n):
        net.train()
        for _ in range(n):
            x = next(batches)[0]
            noise = torch.randn_like(x)
            t = torch.randint(0, 1000, (len(x),), device=x.device).long()
            with acc.accumulate(net):
                loss = torch.nn.functional.mse_loss(net(noiser.add_noise(x, noise, t), t/1000).float(), noise.float())
                acc.backward(loss)
                if acc.sync_gradients:
                    acc.clip_grad_norm_(net.parameters(), 1.)
                opt.step()
                schedule.step()
                opt.zero_grad()
            if acc.sync_gradients:
                ema.step(net.parameters())
            loss.detach().item()
    return steps


def ddpm(folder, precision):
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

    class Net(torch.nn.Module):  # what GaussianDiffusion must know of a network
        channels, out_dim, self_condition = 3, 3, False
        def __init__(self):
            super().__init__()
            self.net = network()
        def forward(self, x, t, x_self_cond=None):
            return self.net(x, t/1000)
    diffusion = GaussianDiffusion(Net(), image_size=32, timesteps=1000, sampling_timesteps=250)
    t = Trainer(diffusion, str(Path(folder)/'all'), train_batch_size=BATCH, train_lr=8e-5, train_num_steps=0,
                gradient_accumulate_every=1, ema_decay=.995, amp=precision != 'no', mixed_precision_type=precision,
                calculate_fid=False, save_and_sample_every=10**9, results_folder=str(Path(folder).parent/'results'))

    def steps(n):
        t.train_num_steps += n
        t.train()
    return steps


def serve(side, folder, precision):
    "Take so many steps as each line of the input says, and answer with the seconds."
    import contextlib
    answers, sys.stdout = sys.stdout, sys.stderr
    os.environ['TQDM_DISABLE'] = '1'
    steps = dict(ours=ours, diffusers=diffusers, ddpm=ddpm)[side](folder, precision)
    steps(2)
    for line in sys.stdin:
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            steps(int(line))
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(dict(s=seconds, mb=used.ru_maxrss/1024)), file=answers, flush=True)


def race(sides, steps, rounds):
    "Seconds of each round and MB at most of each side; sides are {name: (python, side, precision)}."
    env = {**os.environ, 'PYTHONPATH': str(top)}
    with tempfile.TemporaryDirectory() as d:
        import cv2
        (Path(d)/'in/all').mkdir(parents=True)
        for i, im in enumerate(pictures()):
            cv2.imwrite(f'{d}/in/all/{i:04d}.png', im)
        (Path(d)/'run').mkdir()
        logs = {k: open(f'{d}/{i}.log', 'w+') for i, k in enumerate(sides)}
        procs = {}
        for k, (py, side, precision) in sides.items():
            command = [str(py), __file__, side, f'{d}/run' if side == 'ours' else f'{d}/in', precision]
            procs[k] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=logs[k],
                                        text=True, env=env)
        got = {k: [] for k in sides}
        try:
            for _ in range(rounds):
                for k, p in procs.items():
                    print(steps, file=p.stdin, flush=True)
                    line = p.stdout.readline()
                    if not line:
                        logs[k].seek(0)
                        raise RuntimeError(f'{k}: {logs[k].read()[-2000:]}')
                    got[k].append(json.loads(line))
        finally:
            for k, p in procs.items():
                p.stdin.close()
                p.wait()
                logs[k].close()
    return {k: (np.array([o['s'] for o in v]), max(o['mb'] for o in v)) for k, v in got.items()}


def peak(dtype, n=2048, repeats=4):
    "Multiply-adds a second of one large matrix product."
    import torch
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    a @ b
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return n**3*repeats/(time.perf_counter() - start)


def full_size(smoke):
    "Rows: share of the speed of matrix products that a step of the full-size original reaches, and images a second."
    from dataclasses import replace

    import torch

    from pttface.diffusion import Run, make_trainer, to_float
    from pttface.storage.files import write_json
    from pttface.training.config import RECIPES, Budget, recipe_record
    from pttface.unet import gmacs
    rows, batch = [], 1 if smoke else 4
    for name, precision, dtype in (('fp32', 'no', torch.float32), ('bf16', 'bf16', torch.bfloat16)):
        r = RECIPES['original']
        small = dict(net_args=dict(widths=(16, 16, 16, 16), mid=16), size=16) if smoke else {}
        r = replace(r, precision=precision, batch=batch, **small)
        ims = pictures(8, r.size)
        data = face_data(ims)
        with tempfile.TemporaryDirectory() as d:
            write_json(Path(d)/'recipe.json', dict(settings=recipe_record(r), sigma_data=.5))
            t = make_trainer(Run(d), data, Budget.parse('1M images'), 'cpu')
            x = to_float(ims[:batch])
            share, rate = [], []
            t.training_step(x)
            for _ in range(1 if smoke else 3):
                top_speed = peak(dtype, 256 if smoke else 2048)
                start = time.perf_counter()
                t.training_step(x)
                took = time.perf_counter() - start
                rate.append(batch/took)
                top_speed = max(top_speed, peak(dtype, 256 if smoke else 2048))
                share.append(3*gmacs(t.net, r.size)*1e9*batch/took/top_speed)
        for what, unit, v in ((f'share of matmul peak {name}', 'share', share),
                              (f'full-size original images/s {name}', 'images/s', rate)):
            rows.append(dict(what=what, value=float(np.median(v)), unit=unit, n=len(v), spread=spread(v)))
    return rows


def spread(v):
    return float(np.subtract(*np.percentile(v, [75, 25]))/2/np.median(v)) if len(v) > 2 else None


def bench(smoke=False):
    "Rows `step images/s, defaults` and `…, equal precision` with both peers, `share of matmul peak`, `peak MB`."
    from peers import peer_python
    python = peer_python('train', 'diffusers>=0.35', 'denoising-diffusion-pytorch>=2.1', share=True, make=not smoke)
    steps, rounds = (1, 1) if smoke else (STEPS, ROUNDS)
    rows = []
    for what, precision in (('defaults', 'auto'), ('equal precision', 'no')):
        sides = {'ours': (sys.executable, 'ours', precision)}
        if python:
            sides |= {k: (python, k, 'no') for k in PEERS}
        took = race(sides, steps, rounds)
        for peer, label in PEERS.items():
            ratio = took[peer][0]/took['ours'][0] if python else None  # round by round
            rate = {k: steps*BATCH/float(np.median(v[0])) for k, v in took.items()}
            rows.append(dict(what=f'step images/s, {what}', value=rate['ours'], unit='images/s', peer=label,
                             peer_value=rate.get(peer), ratio=None if ratio is None else float(np.median(ratio)),
                             n=rounds, spread=None if ratio is None else spread(ratio)))
    for peer, label in PEERS.items():
        mb = took[peer][1] if python else None
        rows.append(dict(what='peak MB', value=took['ours'][1], unit='MB', peer=label, peer_value=mb,
                         ratio=mb and mb/took['ours'][1], n=1))
    return rows + full_size(smoke)


if __name__ == '__main__':
    serve(*sys.argv[1:])
