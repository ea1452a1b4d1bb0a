"Drawn heads: the same bytes from every process, and truth that is consistent with itself."
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from pttface.synthetic.heads import draw_group,draw_head,draw_heads
from pttface.synthetic.lighting import draw_scene
from pttface.storage.files import BadInput


def sha(im):
    return hashlib.sha256(im.tobytes()).hexdigest()

kws = [dict(seed=i, size=(160,128)) for i in (3,4,5,6)]

@pytest.fixture(scope='module')
def alone():
    return draw_heads(kws, workers=0, progress=False)

def test_same_bytes_in_any_pool(alone):
    for workers in (2, 3):
        assert [sha(h.im) for h in draw_heads(kws, workers=workers, progress=False)] == [sha(h.im) for h in alone]

def test_same_bytes_in_a_fresh_process(alone):
    code = '''
import hashlib
from pttface.synthetic.heads import draw_head
print(hashlib.sha256(draw_head(3, size=(160,128)).im.tobytes()).hexdigest())
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == sha(alone[0].im)

def test_pool_after_threads_of_cv2_does_not_hang():
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000,2000,3), np.float32), (0,0), 5)
    assert len(draw_heads(2, workers=2, progress=False)) == 2

@pytest.mark.parametrize('roll', [-15., 0., 12.])
@pytest.mark.parametrize('yaw', [-50., 0., 35.])
def test_eye_line_is_the_roll(yaw, roll):
    h = draw_head(8, size=(96,80), yaw=yaw, pitch=6., roll=roll)
    (x1,y1),(x2,y2) = h.eyes
    assert x1 < x2 and abs(np.degrees(np.arctan2(y2-y1, x2-x1)) - roll) < .3

def test_box_is_where_it_was_asked_for():
    h = draw_head(8, size=(200,160), scale=.5, centre=(.4,.55), yaw=20.)
    x1,y1,x2,y2 = h.bbox
    assert abs(y2-y1-100) < .01 and abs((x1+x2)/2-64) < .01 and abs((y1+y2)/2-110) < .01
    assert ((h.kps > [x1,y1]) & (h.kps < [x2,y2])).all()

def test_nose_follows_the_yaw_and_the_pitch():
    nose = {(y,p): draw_head(8, size=(96,80), yaw=y, pitch=p, roll=0.) for y,p in ((-30,0),(30,0),(0,-12),(0,12))}
    side = {k: (h.kps[2]-h.eyes.mean(0))/(h.bbox[3]-h.bbox[1]) for k,h in nose.items()}
    assert side[-30,0][0] < -.05 and side[30,0][0] > .05
    assert side[0,12][1] < side[0,-12][1]

def test_fixing_one_thing_leaves_the_others():
    a,b = draw_head(9, size=(96,80)),draw_head(9, size=(96,80), yaw=10.)
    assert a.look == b.look and a.pitch == b.pitch and a.roll == b.roll and b.yaw == 10

@pytest.mark.parametrize('size', [(16,16), (32,32), (47,61), (64,64), (333,257)])
def test_every_size(size):
    assert draw_head(1, size=size, scale=.8, centre=(.5,.5)).im.shape == (*size, 3)
    assert draw_scene(1, size).shape == (*size, 3)

def test_a_head_outside_the_picture_leaves_the_background():
    bg = np.full((96,80,3), 120, np.uint8)
    h = draw_head(1, size=(96,80), scale=.05, centre=(.5,-9.), background=bg)
    assert abs(float(h.im.mean())-120) < 3

def test_group_shares_one_photo():
    pair = [dict(seed=1, scale=.3, centre=(.7,.5)), dict(seed=2, scale=.3, centre=(.3,.5))]
    im,hs = draw_group(pair, seed=5, size=(160,128))
    assert all(h.im is im for h in hs) and hs[0].bbox[0] > hs[1].bbox[0]

@pytest.mark.parametrize('kw,words', [
    (dict(blur=-1), 'blur is -1 px'), (dict(size=(8,8)), '8 × 8 px'), (dict(scale=0), 'picture heights'),
    (dict(yaw=170), '±90°'), (dict(background='mars'), "'mars'")])
def test_bad_input(kw, words):
    with pytest.raises(BadInput, match=words.replace('(', r'\(')):
        draw_head(0, **kw)
