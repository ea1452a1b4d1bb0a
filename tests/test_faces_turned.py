"Photos that lie on their side or head, collages, faces of too few pixels, and runs in which every shard fails."
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from pttface.faces import FACE_PRESETS,FaceSettings,across_tiles,extract_faces,face_row,find_face
from pttface.storage.files import BadInput,dumps,open_root,read_json,read_jsonl,write_json,write_tar
from pttface.synthetic.heads import draw_head,draw_heads
from pttface.vision.detect import Face
from pttface.vision.detectors import load_detector
from pttface.vision.images import encode_jpeg


@pytest.fixture
def root(tmp_path):
    root = open_root(tmp_path/'run', create=True)
    heads = draw_heads([dict(seed=i, size=(250,200), scale=.5) for i in range(2)], workers=1, progress=False)
    for month in ('01','02'):
        photos = [(f'{month}{i:05d}', dict(jpg=encode_jpeg(h.im), json=dumps({}).encode())) for i,h in enumerate(heads)]
        write_tar(root/f'photos/images_{month}_part_1.tar', photos)
    write_json(root/'photos/download.json', {})
    return root

@pytest.mark.parametrize('workers', [1,2])
def test_all_shards_failed(root, workers):
    shards = sorted((root/'photos').glob('*.tar'))
    whole = [p.read_bytes() for p in shards]
    for p in shards:
        p.write_bytes(whole[0][:2000])
    with pytest.raises(BadInput, match='None of 2 shards gave faces. images_01_part_1: .*damaged.*images_02_part_1: '):
        extract_faces(root, workers=workers)
    assert read_jsonl(root/'faces/faces.jsonl') == []
    shards[1].write_bytes(whole[1])
    assert list(extract_faces(root, workers=workers).failed) == ['images_01_part_1']
    shards[0].write_bytes(whole[0])
    assert len(extract_faces(root, workers=workers)) == 4

@pytest.fixture(scope='module')
def detect():
    return load_detector('mtcnn')

@pytest.fixture(scope='module')
def heads():
    poses = [dict(seed=21 + i, size=(250,200)) for i in range(30)]
    return [h.im for h in draw_heads(poses, workers=1, progress=False)]

def encode_png(im):
    return cv2.imencode('.png', im[...,::-1])[1].tobytes()

def quarter(im, turned):
    "`im` turned clockwise by 0, 90, 180 or 270°"
    return np.ascontiguousarray(np.rot90(im, -turned//90))

@pytest.mark.parametrize('turned', [90,180,270])
def test_heads_on_their_side_or_head_come_out_upright(heads, detect, turned):
    kept = 0
    for im in heads:
        upright,row = find_face(im, detect),face_row(encode_jpeg(quarter(im, turned)), detect)[0]
        assert not upright.reason and upright.turned == 0
        assert row['reason'] in (None,'not_upright') and row['turned'] in (90,180,270)
        if not row['reason']:
            kept += 1
            assert row['turned'] == turned
            assert abs((row['angle'] - turned - upright.angle + 180) % 360 - 180) < 10
    assert kept >= 25

class Upside:
    "A detector that sees one face, whatever it is shown, of a score that depends on how the photo lies"
    def __init__(self, scores, kps, **attributes):
        self.scores,self.kps = scores,kps
        self.__dict__ |= attributes

    def __call__(self, im):
        corner = int(np.argmax([im[0,0,0], im[-1,0,0], im[-1,-1,0], im[0,-1,0]]))  # the bright corner
        box = np.array([60,60,140,160.])
        return [Face(box, self.kps, self.scores[corner])] if self.scores[corner] else []

    def redetect(self, im, box):
        return Face(np.array([48,48,144,144.]), self.kps - [4,14], max(self.scores))

KPS = np.array([[80,90],[120,90],[100,110],[85,130],[115,130]], float)

@pytest.mark.parametrize('scores,kps,kw,reason,turned', [
    ((.99,.6,.6,.6), KPS, {}, None, 0),
    ((.55,.99,.6,.6), KPS, {}, None, 90),
    ((0,0,.99,0), KPS, {}, None, 180),
    ((0,0,0,.9), KPS, {}, None, 270),
    ((0,0,0,0), KPS, {}, 'no_face', 0),
    ((.9,.3,.3,.3), KPS[[1,0,2,4,3]], {}, 'not_upright', 180),
    ((.72,.5,.5,.5), KPS, dict(sure_score=.7), None, 0),
    ((.6,.5,.74,.5), KPS, dict(sure_score=.7), None, 180),
])
def test_which_look_counts(scores, kps, kw, reason, turned):
    photo = np.random.default_rng(0).integers(0, 200, (200,200,3), dtype=np.uint8)
    photo[0,0] = 255
    row,crops = face_row(encode_png(photo), Upside(scores, kps, **kw))
    assert (row['reason'],row.get('turned', 0)) == (reason,turned) and (crops is None) == (reason is not None)
    assert reason != 'not_upright' or 'angle' in row

@pytest.mark.parametrize('turned', [60,120,200])
def test_heads_at_any_angle_are_level_or_dropped(heads, detect, turned):
    for im in heads[:6]:
        h,w = im.shape[:2]
        side = int(np.hypot(h, w))
        M = cv2.getRotationMatrix2D((w/2,h/2), -turned, 1)
        M[:,2] += [(side - w)/2,(side - h)/2]
        photo = cv2.warpAffine(im, M, (side,side), borderMode=cv2.BORDER_REPLICATE)
        upright,found = find_face(im, detect),find_face(photo, detect)
        assert found.reason in (None,'not_upright')
        assert found.reason or abs((found.angle - turned - upright.angle + 180) % 360 - 180) < 10

def test_upright_photos_are_as_before(heads, detect):
    "The rows are the same to the byte, and so are the crops"
    for im in heads[:12]:
        new,before = (face_row(encode_jpeg(im), detect, s) for s in (FaceSettings(), FaceSettings(sure=0., min_px=0.)))
        assert dumps(new[0]) == dumps(before[0])
        assert all((new[1][size] == before[1][size]).all() for size in (60,64))

def test_a_photograph_on_its_side(detect):
    photo = skimage.data.astronaut()
    for turned in (90,180,270):
        row,crops = face_row(encode_jpeg(quarter(photo, turned)), detect)
        assert row['status'] == 'kept' and row['turned'] == turned
        assert np.abs(crops[64].astype(int) - face_row(encode_jpeg(photo), detect)[1][64]).mean() < 12

@pytest.mark.parametrize('turned', [0,90,180,270])
def test_heads_as_scrfd_sees_them(heads, turned):
    "The same with SCRFD, where its networks are: PTTFACE_INSIGHTFACE_MODELS names their folder"
    pytest.importorskip('insightface')
    where = os.environ.get('PTTFACE_INSIGHTFACE_MODELS')
    if not where:
        pytest.skip('PTTFACE_INSIGHTFACE_MODELS names no folder')
    folder = Path(where) if list(Path(where).glob('*.onnx')) else Path(where)/'scrfd_500m'
    scrfd,kept = load_detector('insightface', models=str(folder)),0
    for im in heads[:12]:
        upright,found = find_face(im, scrfd),find_face(quarter(im, turned), scrfd)
        kept += found.reason is None
        assert found.reason in (None,'no_face','not_upright')
        if not found.reason:
            assert found.turned == turned and abs((found.angle - turned - upright.angle + 180) % 360 - 180) < 12
    assert kept >= 9

@pytest.mark.parametrize('across,gap', [(2,0),(3,0),(2,6)])
def test_a_grid_of_heads(heads, detect, across, gap):
    "The face that is kept lies within one tile, and no detection across tiles is looked at"
    tiles = [cv2.copyMakeBorder(im, 0, gap, 0, gap, cv2.BORDER_CONSTANT, value=(255,255,255)) for im in heads]
    grid = np.concatenate([np.concatenate(tiles[across*k:across*(k + 1)], 1) for k in range(across)])
    h,w = tiles[0].shape[:2]
    found = find_face(grid, detect)
    assert not found.reason
    for face in found.faces:
        x1,y1,x2,y2 = face.bbox + (face.bbox[2:] - face.bbox[:2]).repeat(2).reshape(2,2).T.ravel()*[.15,.15,-.15,-.15]
        assert x1//w == x2//w and y1//h == y2//h

def test_no_face_across_tiles(detect):
    one,other = (draw_head(seed, size=(250,200), yaw=0, pitch=0, roll=0, scale=.5, centre=(.5,.5)).im for seed in (3,8))
    tiles = np.concatenate([one[:,:100], other[:,100:]], 1)
    assert [find_face(im, detect).reason for im in (one, other, tiles)] == [None,None,'across_tiles']
    box = detect.largest(one)[0].bbox
    assert across_tiles(tiles, box) and not across_tiles(one, box)
    assert across_tiles(tiles.transpose(1,0,2), box[[1,0,3,2]])
    assert find_face(tiles, detect, FACE_PRESETS['original']).reason is None
    grid = np.concatenate([np.concatenate([one, other], 1), np.concatenate([other, one], 1)])
    assert find_face(grid, detect).reason is None

def test_a_square_of_too_few_pixels(detect):
    small = draw_head(3, size=(84,68), yaw=0, pitch=0, roll=0, scale=.4).im
    lenient = dict(sharpness=0., doubt=0.)
    found = find_face(small, detect, FaceSettings(**lenient))
    assert found.reason == 'face_too_small' and found.side < 64
    assert find_face(small, detect, FaceSettings(**lenient, min_px=0.)).reason is None
    assert FACE_PRESETS['original'].min_px == 0

def test_a_record_without_the_new_settings(root):
    rows = extract_faces(root, workers=1, settings=FaceSettings(min_px=0., sure=0.)).rows
    record = read_json(root/'faces/faces.json')
    for name in ('min_px','sure'):
        del record['settings'][name]
    write_json(root/'faces/faces.json', record)
    assert extract_faces(root, workers=1).rows == rows
    with pytest.raises(BadInput, match=r'min_px=0.0 \(now 80.0\)'):
        extract_faces(root, workers=1, settings=FaceSettings(min_px=80.))
