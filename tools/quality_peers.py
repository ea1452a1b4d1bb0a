"""Two peers of the quality bench as their authors run them, at our size: trained, kept and drawn from.

Runs under the Python of `.venv-peers-train`, which sees our packages behind its own. Both have networks of their own
with about as many parameters as `tiny`. Changed is what a small budget asks for: the learning rate is an argument, the
cosine of diffusers' example ends with the budget and rises over at most a tenth of it, nothing is drawn on the way.
"""
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

os.environ['TQDM_DISABLE'] = '1'
SIZE, BATCH, DRAWING_STEPS = 32, 16, 50


class DiffusersExample:
    "examples/unconditional_image_generation of diffusers: ε-prediction, linear β, AdamW, EMA of its own schedule."

    def __init__(self, folder, lr, steps):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torchvision import transforms
        from torchvision.datasets import ImageFolder
        down = ('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D')
        up = ('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D')
        self.net = UNet2DModel(sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=2,
                               block_out_channels=(32, 48, 48, 64), down_block_types=down, up_block_types=up,
                               norm_num_groups=16)
        self.ema = EMAModel(self.net.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=.75)
        self.noiser = DDPMScheduler(1000, beta_schedule='linear')
        if folder is None:
            return
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=lr, betas=(.95, .999), weight_decay=1e-6, eps=1e-8)
        self.schedule = get_scheduler('cosine', optimizer=self.opt, num_warmup_steps=min(500, steps//10),
                                      num_training_steps=steps)
        tfm = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE),
                                  transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                  transforms.Normalize([.5], [.5])])
        self.batches = self._endless(DataLoader(ImageFolder(folder, tfm), BATCH, shuffle=True, num_workers=0))

    @staticmethod
    def _endless(loader):
        while True:
            yield from loader

    def train(self, n):
        self.net.train()
        for _ in range(n):
            x = next(self.batches)[0]
            noise = torch.randn_like(x)
            t = torch.randint(0, 1000, (len(x),)).long()
            guess = self.net(self.noiser.add_noise(x, noise, t), t).sample
            loss = torch.nn.functional.mse_loss(guess.float(), noise.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.)
            self.opt.step()
            self.schedule.step()
            self.opt.zero_grad()
            self.ema.step(self.net.parameters())

    def weights(self):
        self.ema.copy_to(self.net.parameters())
        return self.net.state_dict()

    def load(self, weights):
        self.net.load_state_dict(weights)

    def draw(self, n, seed):
        from diffusers import DDIMPipeline, DDIMScheduler
        pipe = DDIMPipeline(self.net.eval(), DDIMScheduler.from_config(self.noiser.config))
        pipe.set_progress_bar_config(disable=True)
        ims = pipe(batch_size=n, num_inference_steps=DRAWING_STEPS, output_type='np',
                   generator=torch.Generator().manual_seed(seed)).images
        return (ims*255).round().astype(np.uint8)


class DdpmTrainer:
    "denoising-diffusion-pytorch: its Unet, GaussianDiffusion (v-prediction, sigmoid β) and Trainer at their defaults."

    def __init__(self, folder, lr, steps):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module
        module.cpu_count = lambda: 0  # Pictures are read in this process, so that their CPU time counts
        net = Unet(26, dim_mults=(1, 2, 4))
        self.diffusion = GaussianDiffusion(net, image_size=SIZE, timesteps=1000, sampling_timesteps=DRAWING_STEPS)
        if folder is None:
            return
        out = Path(folder).parent/'ddpm-results'
        self.trainer = Trainer(self.diffusion, str(folder), train_batch_size=BATCH, train_lr=lr, train_num_steps=0,
                               calculate_fid=False, save_and_sample_every=10**9, results_folder=str(out))

    @property
    def net(self):
        return self.diffusion.model

    def train(self, n):
        self.trainer.train_num_steps += n
        with contextlib.redirect_stdout(sys.stderr):
            self.trainer.train()

    def weights(self):
        return self.trainer.ema.ema_model.state_dict()

    def load(self, weights):
        self.diffusion.load_state_dict(weights)

    def draw(self, n, seed):
        torch.manual_seed(seed)
        with torch.inference_mode():
            ims = self.diffusion.eval().sample(batch_size=n)
        return (ims.permute(0, 2, 3, 1).clamp(0, 1)*255).round().numpy().astype(np.uint8)


SIDES = dict(diffusers=DiffusersExample, ddpm=DdpmTrainer)


def cost(side, folder, rounds, steps):
    "CPU seconds an image of a training step: the rounds' seconds, as JSON, one for each line of the input."
    peer = SIDES[side](folder, 2e-4, 1000)
    peer.train(2)
    for _ in range(rounds):
        if not sys.stdin.readline():
            return
        start = time.process_time()
        peer.train(steps)
        print(json.dumps((time.process_time() - start)/steps/BATCH), flush=True)


def learn(side, folder, out, lr, seed, images):
    "Train on `images` pictures and keep the averaged weights and what they cost."
    torch.manual_seed(seed)
    start, steps = time.process_time(), max(1, images//BATCH)
    peer = SIDES[side](folder, lr, steps)
    peer.train(steps)
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(peer.weights(), Path(out)/'weights.pt')
    (Path(out)/'spent.json').write_text(json.dumps(dict(seconds=time.process_time() - start)))


def draw(side, out, seed, start, n):
    "Draw `n` pictures from the averaged weights into `out`/START.npz."
    start_seconds = time.process_time()
    peer = SIDES[side](None, 0, 0)
    peer.load(torch.load(Path(out)/'weights.pt', weights_only=True))
    ims = np.concatenate([peer.draw(min(25, n - i), seed*100_000 + start + i) for i in range(0, n, 25)])
    np.savez(Path(out)/f'{start}.npz.part.npz', images=ims, seconds=time.process_time() - start_seconds)
    os.replace(Path(out)/f'{start}.npz.part.npz', Path(out)/f'{start}.npz')


def size(side):
    print(sum(p.numel() for p in SIDES[side](None, 0, 0).net.parameters()))


if __name__ == '__main__':
    torch.set_num_threads(1)
    what, side, *a = sys.argv[1:]
    if what == 'size':
        size(side)
    elif what == 'cost':
        cost(side, a[0], *map(int, a[1:]))
    elif what == 'learn':
        learn(side, a[0], a[1], float(a[2]), *map(int, a[3:]))
    else:
        draw(side, a[0], *map(int, a[1:]))
