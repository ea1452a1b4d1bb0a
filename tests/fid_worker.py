"One process of an evaluation under `accelerate launch`: says how many pictures it saw itself."
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from pttface.evaluation.features import Protocol
from pttface.fid import evaluate
from pttface.storage.files import open_root


def faces(n, seed):
    rng = np.random.default_rng(seed)
    ims = np.stack([cv2.GaussianBlur(rng.normal(size=(24, 24, 3)), (0, 0), 3) for _ in range(n)])
    return np.rint(128 + 60*ims/ims.std()).clip(0, 255).astype(np.uint8)


def main():
    root, seen = Path(sys.argv[1]), []

    def embed(x):
        seen.append(len(x))
        return x.mean((1, 2))
    data = SimpleNamespace(train=faces(31, 0), heldout=faces(9, 1), hash='h')
    evaluate([faces(20, 2), faces(20, 3)], data, Protocol('FD', 'v1', embed), root=open_root(root), device='cpu',
             progress=False, detector=None)
    root.with_name(f'{root.name}-{os.environ.get("RANK", 0)}.json').write_text(json.dumps(sum(seen)))


if __name__ == '__main__':
    main()
