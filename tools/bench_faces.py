"""Faces on drawn heads of known pose: geometry against the truth, reasons, speed against the original's rules.

FACES_N is the number of heads, 500 by default."""
import os
import time
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np


def _row(what, value, unit='', peer=None, peer_value=None, ratio=None, n=None, spread=None):
    return dict(what=what, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, n=n, spread=spread)


def _jpeg(im):
    return cv2.imencode('.jpg', im[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _bad(n):
    "Photos that must be dropped, with the reason"
    from pttface.synthetic.heads import draw_heads
    from pttface.synthetic.lighting import draw_scene
    rng = np.random.default_rng(0)
    grainy = lambda im: np.clip(im + rng.normal(0, 9, im.shape), 0, 255).astype(np.uint8)
    small = [dict(seed=9000 + i, scale=.1, pitch=0) for i in range(n)]
    blurred = [dict(seed=9500 + i, blur=4.) for i in range(n)]
    heads = draw_heads(small + blurred, progress=False)
    photos = [(_jpeg(grainy(h.im)), 'face_too_small_before') for h in heads[:n]]
    photos += [(_jpeg(h.im), 'blurred') for h in heads[n:]]
    photos += [(_jpeg(grainy(draw_scene(9900 + i))), 'no_face') for i in range(n)]
    return photos + [(photos[i][0][:300] if i % 2 else b'<html></html>', 'unreadable') for i in range(n)]


def _speed(photos, detect, presets, repeats):
    "Seconds a photo under each preset, measured in turn, and the rows found"
    from pttface.faces import face_row
    spent, rows = {k: [] for k in presets}, {}
    for _ in range(repeats):
        for name, settings in presets.items():
            t = time.process_time()
            rows[name] = [face_row(b, detect, settings)[0] for b in photos]
            spent[name].append((time.process_time() - t)/len(photos))
    return spent, rows


def _steps(photos, detect, settings):
    "Milliseconds a photo by step"
    from pttface import faces as F
    spent = Counter()

    def step(name, f, *args):
        t = time.process_time()
        got = f(*args)
        spent[name] += (time.process_time() - t)/len(photos)*1000
        return got
    for b in photos:
        im = step('decode', F.decode, b)[0]
        step('sharpness', F.sharpness, im)
        o = step('first look', F.first_look, im, detect, settings)
        if o.reason:
            continue
        step('second look', F.look_canvas if settings.canvas else F.redetect, im, o, detect)
        if not settings.canvas:
            step('second look', F.undo_rotation, o)
        F.place_square(im, o, settings)
        step('crops', F.crops_of, im, o, settings)
    spent['first look'] -= spent['sharpness']
    return spent


def _compared(what, spent, n):
    ours, theirs = (np.median(spent[k]) for k in ('default', 'original'))
    q = np.percentile(spent['default'], [25, 75])
    return _row(what, 1/ours, '1/s/core', 'preset original', 1/theirs, theirs/ours, n, (q[1] - q[0])/2/ours)


def _accuracy(heads, detect):
    "Rows of geometry against the truth"
    from pttface.faces import find_face,pose_of
    from pttface.vision.geometry import transform_points
    found = [(o, h) for h in heads if not (o := find_face(h.im, detect)).reason]
    eyes = np.array([transform_points(o.M, h.eyes) for o, h in found])
    line = eyes[:, 1] - eyes[:, 0]
    angle = np.abs(np.degrees(np.arctan2(line[:, 1], line[:, 0])))
    centres = [transform_points(o.M, h.bbox.reshape(2, 2).mean(0)) for o, h in found]
    off = np.array([np.hypot(*(centre - o.centre))/o.side for centre, (o, _) in zip(centres, found)])
    yaw = np.array([[o.face.yaw, h.yaw] for o, h in found])
    clear = yaw[np.abs(np.abs(yaw[:, 1]) - 20) > 5]
    return [
        _row('eye angle median deg', float(np.median(angle)), 'deg', n=len(found)),
        _row('eye angle p95 deg', float(np.percentile(angle, 95)), 'deg', n=len(found)),
        _row('centre within 5%', float((off < .05).mean()), 'share', n=len(found)),
        _row('yaw MAE deg', float(np.abs(yaw[:, 0] - yaw[:, 1]).mean()), 'deg', n=len(found)),
        _row('pose accuracy', float(np.mean([pose_of(a) == pose_of(b) for a, b in clear])), 'share', n=len(clear)),
        _row('detection rate', len(found)/len(heads), 'share', n=len(heads)),
    ]


def _agreement(rows):
    "The share of photos on which the two presets' boxes agree"
    from pttface.vision.detect import iou
    boxes = [(a.get('bbox'), b.get('bbox')) for a, b in zip(rows['default'], rows['original'])]
    agree = np.array([iou(np.array(a), np.array(b)) for a, b in boxes if a and b])
    return _row('boxes IoU>=0.9', float(np.mean(agree >= .9)), 'share', 'preset original', n=len(agree))


def _step_rows(photos, detect, presets):
    spent = {k: _steps(photos, detect, v) for k, v in presets.items()}
    peer = spent['original']
    return [_row(f'step {k}', v, 'ms', 'preset original', peer[k], peer[k]/max(v, 1e-6), len(photos))
            for k, v in spent['default'].items()]


def bench(smoke=False):
    from pttface.vision.detectors import load_detector
    from pttface.faces import FACE_PRESETS,face_row
    from pttface.synthetic.heads import draw_heads
    n = 10 if smoke else int(os.environ.get('FACES_N', 500))
    few, repeats = (5, 1) if smoke else (100, 5)
    cv2.setNumThreads(1)
    detect, heads = load_detector('mtcnn'), draw_heads(n, seed=60_000, progress=False)
    accuracy = _accuracy(heads, detect)
    reasons_right = [face_row(b, detect)[0]['reason'] == why for b, why in _bad(1 if smoke else 25)]
    photos = [_jpeg(h.im) for h in heads[:few]]
    spent, rows = _speed(photos, detect, FACE_PRESETS, repeats)
    lenient = {k: replace(v, sharpness=0.) for k, v in FACE_PRESETS.items()}
    enlarged = [cv2.resize(h.im, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for h in heads[:max(few//5, 2)]]
    large = [_jpeg(im) for im in enlarged]
    steps = _step_rows(photos, detect, lenient)
    return [
        *accuracy,
        _row('drop reasons right', float(np.mean(reasons_right)), 'share', n=len(reasons_right)),
        _compared('photos/s', spent, len(photos)),
        _agreement(rows),
        _compared('photos/s, 1200 x 1500', _speed(large, detect, lenient, repeats)[0], len(large)),
        *steps,
    ]


if __name__ == '__main__':
    from pttface.display import Table
    print(Table(bench()))
