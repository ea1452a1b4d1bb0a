"Faults that a page would illustrate badly: killed processes, cut shards, broken photos, an interrupted run."
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from pttface import faces as F
from pttface.curation.quality import load_faces
from pttface.dataset import pack
from pttface.vision import face_shards as shards
from pttface.vision.detect import Face
from pttface.synthetic.heads import draw_heads
from pttface.storage.files import (BadInput,dumps,locked,open_root,read_json,read_jsonl,read_npz,write_json,write_jsonl,
                                   write_npz,write_tar)


def jpeg(im):
    return cv2.imencode('.jpg', im[...,::-1])[1].tobytes()

@pytest.fixture(scope='module')
def photos():
    drawn = [dict(seed=i, size=(250,200), scale=.5) for i in range(6)]
    return [jpeg(h.im) for h in draw_heads(drawn, workers=1, progress=False)]

def png(im):
    return cv2.imencode('.png', im)[1].tobytes()

def record(key, photo):
    "One photo of a shard, with its metadata"
    return key,{'jpg':photo, 'json':dumps(dict(url=f'https://i.imgur.com/{key}.jpg')).encode()}

@pytest.fixture
def root(tmp_path, photos):
    root = open_root(tmp_path/'run', create=True)
    for m in ('01','02','03'):
        write_tar(root/f'photos/images_{m}_part_1.tar', [record(f'{m}{i:05d}', b) for i,b in enumerate(photos)])
    write_json(root/'photos/download.json', {})
    return root

def artefacts(root):
    return {p.name:p.read_bytes() for p in sorted((root/'faces').glob('*')) if p.is_file()}

def test_pool_gives_the_same_bytes(root, tmp_path):
    F.extract_faces(root, workers=1)
    alone = artefacts(root)
    assert {'faces.json','faces.jsonl','faces_01.npz','faces_02.npz','faces_03.npz'} == set(alone)
    for p in (root/'faces').glob('*'):
        p.unlink()
    F.extract_faces(root, workers=2)
    together = artefacts(root)
    rows = [json.loads(o) for o in alone['faces.jsonl'].splitlines()]
    assert len(rows) == 18 and sum(r['status'] == 'kept' for r in rows) == 18
    assert together['faces.jsonl'] == alone['faces.jsonl']
    for m in ('01','02','03'):
        z = read_npz(root/f'faces/faces_{m}.npz')
        assert z['im60'].shape == (6,60,60,3) and z['im64'].shape == (6,64,64,3)

def test_a_torn_shard_is_reported_and_the_others_finish(root):
    p = root/'photos/images_02_part_1.tar'
    whole = p.read_bytes()
    p.write_bytes(whole[:len(whole)*2//3])
    found = F.extract_faces(root, workers=1)
    assert list(found.failed) == ['images_02_part_1'] and 'damaged after 02' in found.failed['images_02_part_1']
    assert {r['month'] for r in found.kept} == {'01','03'} and len(found.kept) == 12
    assert 'shard not read' in str(found)
    p.write_bytes(whole)
    found = F.extract_faces(root, workers=1)
    assert not found.failed and len(found.kept) == 18
    assert [r['key'] for r in found.rows] == sorted(r['key'] for r in found.rows)

def test_broken_photos_drop_their_row(root, photos):
    header = b'\x89PNG\r\n\x1a\n' + b'\0'*50
    bad = [b'', b'<html>not found</html>', photos[0][:800], header, png(np.zeros((1,1,3), np.uint8)), photos[1]]
    records = [(f'01{i:05d}', {'jpg':b, 'json':b'{"url": '} if i else {'jpg':b}) for i,b in enumerate(bad)]
    write_tar(root/'photos/images_01_part_1.tar', records)
    rows = [r for r in F.extract_faces(root, workers=1).rows if r['month'] == '01']
    assert [r['status'] for r in rows] == ['dropped']*5 + ['kept']
    assert {r['reason'] for r in rows[:5]} <= {'unreadable','blurred','no_face'}
    assert rows[0]['reason'] == rows[1]['reason'] == 'unreadable'

class Fake:
    "A detector that returns the faces it was given"
    def __init__(self, *faces):
        self.faces = list(faces)
    def __call__(self, im, min_face=None):
        return self.faces
    def redetect(self, im, box):
        return None

@pytest.fixture(scope='module')
def noise():
    return np.random.default_rng(0).integers(0, 255, (200,200,3), dtype=np.uint8)

KPS = np.array([[80,90],[120,90],[100,110],[85,130],[115,130]], np.float32)

@pytest.mark.parametrize('face,reason', [
    (Face(np.array([60,60,140,160.]), np.full((5,2), np.nan), .9), 'no_landmarks'),
    (Face(np.array([60,60,140,160.]), None, .9), 'no_landmarks'),
    (Face(np.array([60,60,75,75.]), KPS, .9), 'face_too_small_before'),
    (Face(np.array([60,60,140,160.]), KPS, .9, age=17.), 'too_young'),
    (Face(np.array([60,60,140,160.]), KPS, .9, age=24.9), 'too_young'),
    (Face(np.array([60,60,140,160.]), KPS, .9, age=25.), None),
    (Face(np.array([-50,-60,260,240.]), KPS, .9), None),
])
def test_reasons(noise, face, reason):
    row,crops = F.face_row(png(noise), Fake(face))
    assert row['reason'] == reason and (crops is None) == (reason is not None)
    json.loads(dumps(row))
    assert 'NaN' not in dumps(row)

def test_too_small_after(noise):
    class Shrunk(Fake):
        def redetect(self, im, box):
            return Face(np.array([90,90,100,100.]), KPS*.96, .9, yaw=0., pitch=0., roll=0.)
    o = F.find_face(noise, Shrunk(Face(np.array([60,60,140,160.]), KPS, .9)))
    assert o.reason == 'face_too_small_after'

def test_a_detector_that_raises_drops_the_row(noise):
    class Broken:
        def __call__(self, im, min_face=None):
            raise ValueError('ONNX says no')
    row,_ = F.face_row(png(noise), Broken())
    assert row['reason'] == 'unreadable' and 'ONNX says no' in row['error']

def test_original_preset_falls_back_to_the_untouched_photo(noise):
    class Once(Fake):
        def __call__(self, im, min_face=None):
            return self.faces if im.shape == noise.shape else []
    f = Face(np.array([60,60,140,160.]), KPS + [[0,0],[0,14],[0,0],[0,0],[0,0]], .9)
    o = F.find_face(noise, Once(f), F.FACE_PRESETS['original'])
    assert o.view.shape == (240,240,3) and o.second is None and o.angle == 0
    np.testing.assert_allclose(o.M, np.eye(2,3))
    assert tuple(o.centre) == (100,110) and o.side == 150

def test_gender_folders(root):
    found = F.extract_faces(root, workers=1, png=True)
    pngs = sorted(p.relative_to(root/'faces/png').as_posix() for p in (root/'faces/png').rglob('*.png'))
    assert len(pngs) == len(found.kept) and all(p.startswith('Female/') for p in pngs)
    assert all(r['gender'] is None for r in found.kept)

def test_bad_input(root, tmp_path):
    with pytest.raises(BadInput, match="no preset 'best'"):
        F.extract_faces(root, settings='best')
    with pytest.raises(BadInput, match='no detector'):
        F.extract_faces(root, detector='haar', workers=1)
    for p in (root/'photos').glob('*.tar'):
        p.unlink()
    with pytest.raises(BadInput, match='0 shards'):
        F.extract_faces(root, workers=1)
    with pytest.raises(BadInput, match='not a pttface folder'):
        F.extract_faces(tmp_path, workers=1)
    assert not (root/'faces').exists()

def test_photos_are_decoded_as_the_gate_decodes_them(photos):
    whole = cv2.imdecode(np.frombuffer(photos[0], np.uint8), cv2.IMREAD_COLOR)[...,::-1]
    exif = Image.Exif()
    exif[0x0112] = 6
    def saved(im, form='JPEG', **kw):
        im.save(buf := io.BytesIO(), form, **kw)
        return buf.getvalue()
    pil = Image.fromarray(whole)
    detect = F.load_detector('mtcnn')
    want = F.face_row(saved(pil, quality=95), detect)[0]
    files = [
        saved(pil.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95),
        saved(pil.convert('CMYK'), quality=95),
        saved(pil, 'PNG'),
        saved(pil, 'WEBP', quality=95),
    ]
    for b in files:
        row,crops = F.face_row(b, detect)
        assert row['status'] == 'kept' and crops[60].shape == (60,60,3) and (row['height'],row['width']) == (250,200)
        np.testing.assert_allclose(row['centre'], want['centre'], atol=6)
    assert F.face_row(photos[0][:900], detect)[0]['error'] == 'truncated'

class Describing(Fake):
    "A detector that describes several faces together, and fails on a dark photo"
    batch = 3
    def __init__(self, *faces):
        super().__init__(*faces)
        self.asked = []
    def describe(self, pairs):
        self.asked.append(len(pairs))
        if any(im.max() < 200 for im,_ in pairs):
            raise ValueError('too dark')
        for _,f in pairs:
            f.age,f.gender,f.yaw = 30.,1,-33.

def test_faces_are_described_together_and_a_failing_one_apart(noise):
    face = lambda: Face(np.array([60,60,140,160.]), KPS, .9)
    class Fresh(Describing):
        def __call__(self, im, min_face=None):
            return [face()]
    detect = Fresh()
    rows = F.face_rows([png(noise)]*3, detect)
    assert detect.asked == [3]
    assert all(r['age'] == 30 and r['pose'] == 'left' and r['gender'] == 1 for r,_ in rows)
    rows = F.face_rows([png(noise), png(noise//2), png(noise)], detect)
    assert [r['reason'] for r,_ in rows] == [None,'unreadable',None] and 'too dark' in rows[1][0]['error']

def test_a_plain_callable_is_detector_enough(noise):
    seen = []
    def detect(im):
        seen.append(im.shape)
        return [Face(np.array([60,60,140,160.])*im.shape[0]/200, KPS*im.shape[0]/200, .9)]
    o = F.find_face(noise, detect)
    assert o.reason is None and len(seen) == 2 and o.second is not None

def test_the_square_may_leave_the_photo(noise):
    for box,kps in (((-60,-60,90,100),KPS - [85,95]), ((150,140,330,300),KPS + [100,90])):
        o = F.find_face(noise, Fake(Face(np.array(box, float), kps, .9)))
        assert o.reason is None and {s:c.shape for s,c in F.crops_of(noise, o).items()} == {60:(60,60,3), 64:(64,64,3)}

def test_an_empty_shard(root):
    write_tar(root/'photos/images_02_part_1.tar', [])
    found = F.extract_faces(root, workers=1)
    assert {r['month'] for r in found.rows} == {'01','03'} and not found.failed
    before = {p.name:p.stat().st_mtime_ns for p in (root/'faces').glob('*')}
    F.extract_faces(root, workers=1)
    assert {p.name:p.stat().st_mtime_ns for p in (root/'faces').glob('*')} == before

def test_new_shards_are_added(root, photos):
    F.extract_faces(root, workers=1)
    first = read_npz(root/'faces/faces_01.npz')
    stamps = (root/'faces/faces_02.npz').stat().st_mtime_ns
    write_tar(root/'photos/images_01_part_2.tar', [('0100009', {'jpg':photos[0], 'json':b'{}'})])
    found = F.extract_faces(root, workers=1)
    both = read_npz(root/'faces/faces_01.npz')
    assert both['key'].tolist() == first['key'].tolist() + ['0100009'] and (both['im64'][:6] == first['im64']).all()
    assert (root/'faces/faces_02.npz').stat().st_mtime_ns == stamps
    assert len(found.kept) == 19 and [r['row'] for r in found.kept if r['month'] == '01'] == list(range(7))

RUN = '''
import sys
from pttface.faces import extract_faces
if __name__ == '__main__': print(len(extract_faces(sys.argv[1], workers=2)))
'''

def children(pid):
    return [p.pid for p in psutil.Process(pid).children() if any('spawn_main' in o for o in p.cmdline())]

def start(root, tmp_path):
    script = tmp_path/'go.py'
    script.write_text(RUN)
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    return subprocess.Popen([sys.executable,str(script),str(root)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def test_a_killed_worker_changes_nothing_but_time(root, tmp_path):
    F.extract_faces(root, workers=1)
    want = read_jsonl(root/'faces/faces.jsonl')
    for p in (root/'faces').glob('*'):
        p.unlink()
    job = start(root, tmp_path)
    end = time.time() + 15
    while not (workers := children(job.pid)) and time.time() < end:
        time.sleep(.02)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    out,err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert out.strip() == '18' and read_jsonl(root/'faces/faces.jsonl') == want

@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    distributed = pytest.importorskip('distributed')
    folder = str(tmp_path_factory.mktemp('dask'))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1',
                                  local_directory=folder, silence_logs=50) as c:
        yield c

def fresh(root):
    for p in (root/'faces').glob('*'):
        p.unlink()

def same(root, want):
    "The record and the rows are the same bytes, the crops the same pixels"
    got = artefacts(root)
    assert got.keys() == want.keys() and all(got[k] == want[k] for k in got if not k.endswith('.npz'))
    for k in got:
        if k.endswith('.npz'):
            a,b = (np.load(io.BytesIO(o[k])) for o in (got, want))
            assert a.files == b.files and all((a[f] == b[f]).all() for f in a.files)

def test_dask_gives_what_this_process_gives(root, cluster):
    F.extract_faces(root, workers=1)
    want = artefacts(root)
    fresh(root)
    assert len(F.extract_faces(root, scheduler=cluster.scheduler_address)) == 18
    same(root, want)

def test_a_dask_worker_killed_in_the_middle(root, cluster, monkeypatch):
    F.extract_faces(root, workers=1)
    want,killed = artefacts(root),[]
    write_part = shards.write_part
    def first(*a):
        write_part(*a)
        if not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)
    monkeypatch.setattr(shards, 'write_part', first)
    fresh(root)
    F.extract_faces(root, scheduler=cluster.scheduler_address)
    assert killed
    same(root, want)

def test_a_shard_that_fails_is_tried_again_then_reported(root, monkeypatch):
    F.extract_faces(root, workers=1)
    want,calls = artefacts(root),[]
    real = shards.read_tar
    def flaky(until):
        def read(p):
            calls.append(p)
            if '_02_' in str(p) and 1 < sum('_02_' in str(o) for o in calls) <= until:
                raise OSError(5, 'Input/output error')
            return real(p)
        return read
    fresh(root)
    monkeypatch.setattr(shards, 'read_tar', flaky(2))
    assert not F.extract_faces(root, workers=1).failed
    same(root, want)
    fresh(root)
    calls.clear()
    monkeypatch.setattr(shards, 'read_tar', flaky(99))
    found = F.extract_faces(root, workers=1)
    assert list(found.failed) == ['images_02_part_1'] and len(found) == 12
    assert 'Input/output error' in found.failed['images_02_part_1']
    monkeypatch.setattr(shards, 'read_tar', real)
    assert not F.extract_faces(root, workers=1).failed
    same(root, want)

def test_interrupted_and_run_again(root, tmp_path):
    F.extract_faces(root, workers=1)
    want = read_jsonl(root/'faces/faces.jsonl')
    for p in (root/'faces').glob('*'):
        p.unlink()
    job = start(root, tmp_path)
    end = time.time() + 20
    while not list((root/'faces/parts').glob('images*')) and job.poll() is None and time.time() < end:
        time.sleep(.005)
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert not list(Path(root).rglob('*.tmp'))
    F.extract_faces(root, workers=1)
    assert read_jsonl(root/'faces/faces.jsonl') == want and not (root/'faces/parts').exists()

def test_a_doubtful_face_hides_no_sure_one():
    noise = np.random.default_rng(0).integers(0, 255, (200,200,3), dtype=np.uint8)
    lamp,small = Face(np.array([0,0,120,150.]), KPS, .51),Face(np.array([60,60,140,160.]), KPS, .99)
    for faces,original,ours in [([lamp,small], lamp, small), ([small], small, small), ([lamp], lamp, lamp)]:
        for settings,want in [(F.FACE_PRESETS['original'], original), (F.FaceSettings(), ours)]:
            o = F.first_look(noise, lambda im, faces=faces: list(faces), settings)
            assert o.faces[0] is want and len(o.faces) == len(faces) and not o.reason

def test_whole_pixels_repeat_the_border():
    im = np.random.default_rng(0).integers(0, 255, (40,30,3), dtype=np.uint8)
    for (x,y),side in [((15,20),10), ((0,0),25), ((30,40),25), ((-30,10),12), ((60,90),12), ((15.5,20.5),80.3)]:
        n = round(side)
        rows,cols = (np.clip(np.arange(n) + int(np.floor(c - side/2 + .5)), 0, d - 1) for c,d in ((y,40),(x,30)))
        assert (F.cut_pixels(im, (x,y), side) == im[rows][:,cols]).all()

def mean_colours(ims):
    return [im.mean((0,1)).round(3).tolist() for im in ims]

@pytest.mark.parametrize('change', ['turned round','some left out','numbers dealt anew'])
def test_rows_find_their_crops_by_key(root, change):
    found = F.extract_faces(root, workers=1)
    before = dict(zip([r['key'] for r in found.kept], mean_colours(found.images())))
    rows = found.rows[::-1] if change == 'turned round' else found.rows
    rows = rows[1::3] if change == 'some left out' else rows
    if change == 'numbers dealt anew':
        rows = [r | dict(row=5 - r['row']) for r in rows]
    write_jsonl(root/'faces/faces.jsonl', rows)
    for labelled,ims in (load_faces(root), (rows, F.Faces(root, rows).images(64))):
        assert mean_colours(ims) == [before[r['key']] for r in labelled]
    data = pack(root)
    assert mean_colours(data.images) == [before[k] for k in data.key]

def test_a_crop_of_another_photo_or_none_is_an_error(root, tmp_path):
    rows = F.extract_faces(root, workers=1).rows
    for change in (dict(phash='0'*16), dict(key='0109999')):
        changed = [rows[0] | change, *rows[1:]]
        readers = (lambda rows: F.Faces(root, rows).images(60), lambda rows: pack(root), lambda rows: load_faces(root))
        for read in readers:
            write_jsonl(root/'faces/faces.jsonl', changed)
            with pytest.raises(BadInput, match=r'faces_01.npz has no crop of .*1 of 6 are missing.*pttface faces'):
                read(changed)
        assert F.extract_faces(root, workers=1).rows == rows
    with pytest.raises(BadInput, match='is no face and has no crop'):
        F.Faces(root, rows).images(64, [rows[0] | dict(status='dropped')])
    with pytest.raises(BadInput, match='crops of 60 and 64 px, not of 50: run `pttface faces .* --sizes 50,60,64`'):
        F.Faces(root, rows).images(50)

@pytest.mark.parametrize('moment', ['write_jsonl','write_json'])
def test_killed_between_arrays_and_rows(root, photos, monkeypatch, moment):
    first = F.extract_faces(root, workers=1)
    old = dict(zip([r['key'] for r in first.kept], mean_colours(first.images())))
    order = [3,4,5,0,1,2]  # another photo bears each key
    write_tar(root/'photos/images_01_part_1.tar', [record(f'01{i:05d}', photos[k]) for i,k in enumerate(order)])
    new = old | {f'01{i:05d}':old[f'01{k:05d}'] for i,k in enumerate(order)}
    def killed(path, *args):
        raise KeyboardInterrupt
    monkeypatch.setattr('pttface.storage.shards.' + moment, killed)
    with pytest.raises(KeyboardInterrupt):
        F.extract_faces(root, workers=1)
    monkeypatch.undo()
    rows = [r for r in read_jsonl(root/'faces/faces.jsonl') if r['month'] == '01']
    if moment == 'write_jsonl':  # new arrays, old rows
        with pytest.raises(BadInput, match='6 of 6 are missing'):
            F.Faces(root, rows).images(64)
    else:
        assert mean_colours(F.Faces(root, rows).images(64)) == [new[r['key']] for r in rows]
    again = F.extract_faces(root, workers=1)
    assert mean_colours(again.images()) == [new[r['key']] for r in again.kept]

def test_a_part_whose_crops_do_not_fit_its_rows(root):
    shard = root/'photos/images_01_part_1.tar'
    rows,crops = shards.slice_faces(shard, 0, 6, F.face_rows, 'mtcnn', F.FaceSettings())
    with pytest.raises(BadInput, match='6 kept rows and 5 crops of 60 px'):
        shards.write_part(root/'faces', shard, rows, {60:crops[60][1:], 64:crops[64]})
    assert not (root/'faces').exists() or not list((root/'faces').rglob('*.npz'))

def test_a_file_without_keys_goes_by_its_rows(root):
    found = F.extract_faces(root, workers=1)
    before = mean_colours(found.images())
    for m in ('01','02','03'):
        arrays = read_npz(root/f'faces/faces_{m}.npz')
        write_npz(root/f'faces/faces_{m}.npz', **{k:v for k,v in arrays.items() if k.startswith('im')})
    assert mean_colours(F.Faces(root, found.rows).images()) == before

@pytest.mark.parametrize('stage', ['faces','dataset'])
def test_a_second_writer_is_refused_in_a_sentence(root, stage):
    if stage == 'dataset':
        F.extract_faces(root, workers=1)
    run = (lambda: F.extract_faces(root, workers=1)) if stage == 'faces' else (lambda: pack(root))
    with locked(root, 'download'), pytest.raises(BadInput, match='is being written by `pttface download`'):
        run()
    assert not (root/stage).exists()
    whole = len(run())
    assert whole and len(run()) == whole

def test_a_finished_set_is_read_beside_a_writer(root):
    F.extract_faces(root, workers=1)
    data = pack(root)
    with locked(root, 'crawl'):
        assert pack(root).hash == data.hash

class Aged(Fake):
    def __init__(self, age):
        super().__init__(Face(np.array([60,60,140,160.]), KPS, .9, age=age))

@pytest.mark.parametrize('age,min_age,words', [
    (None,20.,'no age screen'), (None,99.,'no age screen'), (None,0.,'no age screen'),
    (31.,20.,'faces that look under 25 are dropped'), (31.,0.,'no age screen'),
])
def test_an_age_screen_is_claimed_only_where_an_age_is_told(root, noise, monkeypatch, age, min_age, words):
    write_tar(root/'photos/images_01_part_1.tar', [record('0100000', png(noise))])
    for p in root.glob('photos/images_0[23]*'):
        p.unlink()
    monkeypatch.setattr(shards, 'load_detector', lambda *args, **kw: Aged(age))
    monkeypatch.setattr(shards, '_own', threading.local())
    found = F.extract_faces(root, workers=1, settings=F.FaceSettings(min_age=min_age))
    assert len(found) == 1 and found.age_screen == words and words in str(found) and words in found._repr_markdown_()
    assert read_json(root/'faces/faces.json')['age_screen'] == words
    data = pack(root)
    assert data.card['age_screen'] == words and words in str(data)

def test_older_records_say_what_their_rows_tell(root):
    found = F.extract_faces(root, workers=1)
    record = read_json(root/'faces/faces.json')
    write_json(root/'faces/faces.json', {k:v for k,v in record.items() if k != 'age_screen'})
    assert F.extract_faces(root, workers=1).age_screen == 'no age screen'
    assert pack(root).card['age_screen'] == 'no age screen'
    write_jsonl(root/'faces/faces.jsonl', [r | dict(age=30.) for r in found.rows])
    assert pack(root).card['age_screen'] == 'faces that look under 25 are dropped'

def test_explain_says_that_no_age_is_told(noise):
    title = lambda age: [a.get_title() for a in F.explain(noise, Aged(age)).axes][-1]
    assert 'no age screen' in title(None)
    assert 'age 31' in title(31.) and 'no age' not in title(31.)
