"nbs/images/hero.jpg, the picture of the front page: noise becoming faces, from the run of a demo (`tools/hero.py runs/demo`)."
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pttface.app.demo import dissolve
from pttface.training.trainer import Run
from pttface.storage.files import read_json

top = Path(__file__).resolve().parent.parent
root = Path(sys.argv[1] if len(sys.argv) > 1 else top / 'runs/demo')
run = Run.open(root, read_json(root / 'demo.json')['settings']['recipe'])
film, side = dissolve(run, n=6, ncols=16), 96
sheet = np.concatenate([np.concatenate([np.asarray(Image.fromarray(im).resize((side, side), Image.BICUBIC)) for im in row], 1) for row in film], 0)
Image.fromarray(sheet).save(top / 'nbs/images/hero.jpg', quality=82, optimize=True, progressive=True)
