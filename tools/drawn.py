"Drawn heads for tests and benches, cut as a packed face is: drawn once, kept in one file."
from pathlib import Path

import numpy as np

from pttface.synthetic.heads import draw_heads
from pttface.synthetic.photos import drawing_code
from pttface.storage.files import BadInput, read_npz, write_npz

home = Path(__file__).resolve().parent.parent / 'runs/bench'


def heads(n, side=64, seed=0, cache=home, workers=None, progress=False):
    """The first `n` heads of `seed` as a dict: `images` (n,side,side,3) uint8 RGB; `yaw`, `pitch`, `roll` (n,) degrees.

    Kept in `cache`/heads-SIDE-SEED.npz, which grows when more are asked for and is begun anew when the drawing has
    changed; `cache=None` keeps nothing.
    """
    path = None if cache is None else Path(cache) / f'heads-{side}-{seed}.npz'
    got, code = {}, drawing_code()
    if path and path.exists():
        try:
            got = read_npz(path)
        except BadInput:
            got = {}
        if str(got.pop('code', '')) != code:
            got = {}
    have = len(got['images']) if got else 0
    if have < n:
        wanted = [dict(seed=seed*1_000_000 + i, size=(side, side), scale=.8, centre=(.5, .5)) for i in range(have, n)]
        new = draw_heads(wanted, workers=workers, progress=progress)
        parts = {k: np.array([getattr(h, k) for h in new], np.float32) for k in ('yaw', 'pitch', 'roll')}
        parts = dict(images=np.stack([h.im for h in new]), **parts)
        got = {k: np.concatenate([got[k], v]) if have else v for k, v in parts.items()}
        if path:
            write_npz(path, code=np.array(code), **got)
    return {k: v[:n] for k, v in got.items()}
