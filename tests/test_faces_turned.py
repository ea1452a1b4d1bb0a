"Photos that lie on their side or head, collages, faces of too few pixels, and runs in which every shard fails."
import numpy as np
import pytest
import skimage.data

from pttface.faces import FACE_PRESETS,FaceSettings,across_tiles,extract_faces,face_row,find_face
from pttface.storage.files import BadInput,dumps,open_root,read_json,read_jsonl,write_json,write_tar
from pttface.synthetic.heads import draw_head,draw_heads
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

def quarter(im, turned):
    "`im` turned clockwise by 0, 90, 180 or 270°"
    return np.ascontiguousarray(np.rot90(im, -turned//90))

@pytest.mark.parametrize('turned', [90,180,270])
def test_heads_on_their_side_or_head_come_out_upright(heads, detect, turned):
    kept = 0
    for im in heads:
        upright,row = find_face(im, detect),find_face(quarter(im, turned), detect)
        assert not upright.reason and upright.turned == 0
        if not row.reason:
            kept += 1
            assert abs((row.angle - turned - upright.angle + 180) % 360 - 180) < 10
        assert row.reason in (None,'no_face','not_upright')
    assert kept >= 25

def test_upright_photos_are_as_before(heads, detect):
    for im in heads[:12]:
        new,before = (face_row(encode_jpeg(im), detect, s) for s in (FaceSettings(), FaceSettings(sure=0.)))
        assert new[0] == before[0] and new[0]['turned'] == 0
        assert all((new[1][size] == before[1][size]).all() for size in (60,64))

def test_a_photograph_on_its_side(detect):
    photo = skimage.data.astronaut()
    for turned in (90,180,270):
        row,crops = face_row(encode_jpeg(quarter(photo, turned)), detect)
        assert row['status'] == 'kept' and row['turned'] == turned
        assert np.abs(crops[64].astype(int) - face_row(encode_jpeg(photo), detect)[1][64]).mean() < 12

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
