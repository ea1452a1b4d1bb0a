"Download: images a second with and without the gates, what each gate costs, and the most memory it took."
import io
import os
import resource
import tempfile
import time
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image
from skimage import data

import pttface.download as module
from pttface.detect import load_detector, sharpness
from pttface.loopback import Reply, serving
from pttface.store import open_root, write_jsonl


def spread(v):
    "Half the interquartile range as a share of the median."
    return float(np.subtract(*np.percentile(v, [75, 25])) / 2 / np.median(v)) if len(v) > 2 else None


def photos(n, size=(1350, 1080)):
    "Photos of a portrait, each of other bytes."
    big, r = cv2.resize(data.astronaut(), size[::-1]), np.random.default_rng(0)
    for _ in range(n):
        buf = io.BytesIO()
        Image.fromarray(np.roll(big, r.integers(0, 100), 1)).save(buf, 'JPEG', quality=int(r.integers(85, 93)))
        yield buf.getvalue()


def seconds(pool, n, gates):
    "Seconds to download `n` links to the photos of `pool`."
    quick = lambda im, detect: dict(width=im.shape[1], height=im.shape[0], sharpness=1e9, face_score=1., face_box=None, face_sharpness=None, phash='')
    full, module.measure = module.measure, module.measure if gates else quick
    urls = [f'https://i.imgur.com/pic{i:05d}.jpg' for i in range(n)]
    body = lambda path, headers: Reply(200, pool[int(path[-9:-4]) % len(pool)] + path.encode(), mime='image/jpeg')
    try:
        with serving(body) as server, tempfile.TemporaryDirectory() as tmp:
            root = open_root(Path(tmp) / 'root', create=True)
            write_jsonl(root / 'links/monthly_jsonl/image_links_01.jsonl', [dict(url='https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html', title='', images=urls)])
            start = time.perf_counter()
            got = module.download(root, gateway=server.url, progress=False)
            assert len(got.kept) == n
            return time.perf_counter() - start
    finally: module.measure = full


def cost(f, pool, repeats):
    "Milliseconds a photo."
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        for o in pool: f(o)
        took.append((time.perf_counter() - start) / len(pool) * 1e3)
    return took


def bench(smoke=False):
    "Rows for the table; IMAGES (400) and REPEATS (5) are settings."
    n, repeats = (16, 1) if smoke else (int(os.environ.get('IMAGES', 400)), int(os.environ.get('REPEATS', 5)))
    cores, pool = os.cpu_count() or 1, list(photos(4 if smoke else 20))
    rows = []
    for gates in (False, True):
        v = [n / seconds(pool, n, gates) / cores for _ in range(repeats)]
        rows.append(dict(what=f'images/s/core, gates {"on" if gates else "off"}', value=float(np.median(v)), unit='images/s/core', n=repeats, spread=spread(v)))
    ims, detect = [module.decode(o)[0] for o in pool], load_detector('mtcnn')
    small = lambda im: imagehash.phash(Image.fromarray(cv2.resize(im, (128, 128), interpolation=cv2.INTER_AREA)))
    for what, f, over in (('decode', module.decode, pool), ('face', detect, ims), ('sharpness', sharpness, ims), ('perceptual hash', small, ims)):
        v = cost(f, over, repeats)
        rows.append(dict(what=f'gate: {what}', value=float(np.median(v)), unit='ms/photo', n=repeats, spread=spread(v)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(dict(what='peak memory of the whole process', value=peak, unit='MB', n=n, spread=None))
    return [dict(peer=None, peer_value=None, ratio=None) | r for r in rows]
