"A small training that can be told to die; run by test_diffusion.py, alone or under `accelerate launch`"
import os,resource,signal,sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from pttface.dataset import FaceData
from pttface.diffusion import Run,sample,train
from pttface.training.config import Recipe
from pttface.training.trainer import Trainer

SMALL = Recipe('small', net_args=dict(ch=8, mults=(1,2), blocks=1, attn=(8,), dropout=.1, size=16), size=16, batch=8,
               lr=2e-3, beta2=.99, ema='power 0.10', report='16 images', grid='1M images', save='24 images',
               precision='no')

def data():
    y,x = np.mgrid[:16,:16]
    ims = np.stack([np.stack([(x*k)%256, (y*k*3)%256, (x*y+k*9)%256], -1) for k in range(1, 25)]).astype(np.uint8)
    arrays = dict(images=ims, split=np.repeat([0,1], [20,4]), key=np.arange(24).astype(str))
    return FaceData(arrays, dict(hash='drawn24'))

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def work(root, name, at=None, how='step', budget='192 images', recipe=SMALL, stop=None):
    "Train; at step `at` die, after the step or while the checkpoint is written; after `stop` images press Ctrl-C"
    torch.set_num_threads(1)
    training_step,save = Trainer.training_step,torch.save
    def dying_step(self, x0):
        row = training_step(self, x0)
        if how == 'step' and self.step == at:
            die()
        return row
    def dying_save(state, path):
        save(state, path)
        if state['step'] == at:
            os.truncate(path, os.path.getsize(path)//2)
            die()
    def limited_step(self, x0):
        if self.step == at-1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return training_step(self, x0)
    Trainer.training_step = limited_step if how == 'limit' else dying_step
    if how == 'save':
        torch.save = dying_save
    def interrupt(t, row):
        if t.images == stop:
            raise KeyboardInterrupt
    try:
        train(data(), recipe, root=root, name=name, budget=budget, device='cpu', progress=False, callback=interrupt)
    except KeyboardInterrupt:
        pass
    except OSError as e:
        sys.exit(3 if 'the last good checkpoint is checkpoint-00000003.pt' in str(e) else 4)

if __name__ == '__main__':
    still = Recipe(**{**SMALL.__dict__, 'net_args':{**SMALL.net_args, 'dropout':0.}})
    root,name,what = sys.argv[1:]
    if what == 'sample':
        work(root, name, recipe=still, budget='32 images', stop=0)
    else:
        work(root, name, recipe=replace(still, uncertainty=True), budget='96 images', stop=int(what))
    if os.environ.get('RANK', '0') == '0':
        print(PartialState().num_processes, 'processes')
    if what == 'sample':
        ims = sample(Run.open(root, name), 5, steps=5, batch=2, start=1, device='cpu', progress=False)
        if os.environ['RANK'] == '0':
            np.save(Path(root)/f"sampled-{os.environ['WORLD_SIZE']}.npy", ims)
