"Pictures without faces, for tests of figures that do not depend on what is shown."
import cv2
import numpy as np


def smooth_faces(n, seed, side=24):
    "Smooth coloured pictures, endlessly different."
    rng = np.random.default_rng(seed)
    ims = np.stack([cv2.GaussianBlur(rng.normal(size=(side, side, 3)), (0, 0), 3) for _ in range(n)])
    return np.rint(128 + 60*ims/ims.std()).clip(0, 255).astype(np.uint8)
