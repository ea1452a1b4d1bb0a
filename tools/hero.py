"Make nbs/images/hero.jpg, the picture of the front page, from the run of a demo: `python tools/hero.py runs/demo`."
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pttface.app.demo import denoising
from pttface.diffusion import Run
from pttface.storage.files import read_json

top = Path(__file__).resolve().parent.parent
root = Path(sys.argv[1] if len(sys.argv) > 1 else top / 'runs/demo')
run = Run.open(root, read_json(root / 'demo.json')['settings']['recipe'])
frames = denoising(run, n=6, ncols=16)
large = [[np.asarray(Image.fromarray(im).resize((96, 96), Image.BICUBIC)) for im in row] for row in frames]
sheet = np.concatenate([np.concatenate(row, 1) for row in large], 0)
Image.fromarray(sheet).save(top / 'nbs/images/hero.jpg', quality=82, optimize=True, progressive=True)
