"Crops at other sizes than 60 and 64 px: which faces have them, how they stay up to date, and sets made of them."
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pttface import evaluate, sample, train
from pttface import faces as F
from pttface.app.cli import main
from pttface.app.status import faces_step
from pttface.dataset import FaceData, PackSettings, pack
from pttface.storage.files import BadInput, dumps, open_root, read_json, read_jsonl, read_npz, write_json, write_tar
from pttface.storage.shards import month_of
from pttface.synthetic.heads import draw_heads
from pttface.training.config import RECIPES, Recipe
from pttface.vision import crop_sizes
from pttface.vision.crop_sizes import cut_sizes, has_size, size_file

KW = dict(workers=1, attributes='off')
LARGE, SMALL = (400, 320), (150, 120)  # Photos, px high and wide: their squares are above and under 128 px


def jpeg(im):
    return cv2.imencode('.jpg', im[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()


@pytest.fixture(scope='module')
def photos():
    drawn = [dict(seed=i, size=SMALL if i == 2 else LARGE, scale=.5) for i in range(3)]
    return [jpeg(h.im) for h in draw_heads(drawn, workers=1, progress=False)]


def shard(root, month, photos, part=1):
    def record(i, photo):
        article = f'/bbs/Beauty/M.17000{month}{part}{i}.A.html'
        row = dict(url=f'https://i.imgur.com/{month}{part}{i}.jpg', article=article)
        return f'{month}{part}{i:04d}', {'jpg': photo, 'json': dumps(row).encode()}
    write_tar(root/f'photos/images_{month}_part_{part}.tar', [record(i, b) for i, b in enumerate(photos)])


@pytest.fixture(scope='module')
def extracted(tmp_path_factory, photos):
    root = open_root(tmp_path_factory.mktemp('extracted')/'run', create=True)
    for m in ('01', '02'):
        shard(root, m, photos if m == '01' else photos[1:])
    write_json(root/'photos/download.json', {})
    assert len(F.extract_faces(root, **KW).kept) == 5
    return root


@pytest.fixture
def root(tmp_path, extracted):
    "A root whose faces are cut at 60 and 64 px."
    return Path(shutil.copytree(extracted, tmp_path/'run'))


def contents(root):
    return {p.name: p.read_bytes() for p in sorted((root/'faces').glob('*')) if p.is_file()}


def test_a_size_added_later_is_the_one_cut_at_first(root):
    first = F.extract_faces(root, **KW)
    plain = contents(root)
    assert 'sizes' not in read_json(root/'faces/faces.json')
    F.extract_faces(root, sizes='60,64,128', **KW)
    later = contents(root)
    assert {k: v for k, v in later.items() if k in plain and k != 'faces.json'} == \
           {k: v for k, v in plain.items() if k != 'faces.json'}
    assert sorted(later.keys() - plain.keys()) == ['faces_01_128.npz', 'faces_02_128.npz']
    for p in (root/'faces').glob('*'):
        p.unlink()
    found = F.extract_faces(root, workers=2, attributes='off', sizes=128)
    again = contents(root)
    assert json.loads(again.pop('faces.json')) == json.loads(later.pop('faces.json'))
    assert again == later and [r['key'] for r in found.rows] == [r['key'] for r in first.rows]


def test_no_face_is_looked_for_again(root, monkeypatch):
    monkeypatch.setattr(F, 'face_rows', lambda *args: pytest.fail('a photo was looked at'))
    found = F.extract_faces(root, sizes=(96,), **KW)
    assert found.sizes == (60, 64, 96) and len(found.images(96)) > 0


def test_a_face_is_never_enlarged_and_keeps_its_smaller_crops(root, caplog):
    with caplog.at_level(logging.WARNING):
        found = F.extract_faces(root, sizes=128, **KW)
    large = [r for r in found.kept if r['side'] >= 128]
    assert 0 < len(large) < len(found.kept) and len(found.images(64)) == len(found.kept)
    assert found.images(128).shape == (len(large), 128, 128, 3)
    assert 'are under 128 px in their photos' in caplog.text and 'max_side' not in caplog.text
    counts = dict(faces=len(large), too_small=len(found.kept) - len(large))
    assert read_json(root/'faces/faces.json')['crops'] == {'128': counts}
    assert 'too small for 128 px' in str(found) and f', {len(large)} at 128 px' in faces_step(root).what
    with pytest.raises(BadInput, match=rf'has no crop of 128 px \({counts["too_small"]} of {len(found.kept)} faces'):
        found.images(128, found.kept)
    with pytest.raises(BadInput, match='of 60, 64 and 128 px, not of 96: run `pttface faces .*--sizes 60,64,96,128`'):
        found.images(96)


def test_a_crop_is_cut_from_the_photo(photos):
    row, crops = F.face_row(photos[0], F.load_detector('mtcnn'))
    im = F.decode(photos[0])[0]
    for size, crop in crops.items():  # from the row, as well as from what was found
        assert np.abs(F.crop_of_row(im, row, size).astype(int) - crop).mean() < .5
    enlarged = cv2.resize(crops[64], (128, 128), interpolation=cv2.INTER_CUBIC)
    assert F.sharpness(F.crop_of_row(im, row, 128)) > 1.3*F.sharpness(enlarged)


def test_an_opted_out_photo_has_no_crop_of_any_size(root):
    found = F.extract_faces(root, sizes=128, **KW)
    gone = next(r for r in found.kept if has_size(r, 128))
    (root/'optout.txt').write_text(gone['url'])
    F.extract_faces(root, **KW)
    assert [gone['key'] in read_npz(size_file(root, gone['month'], s))['key'] for s in (64, 128)] == [False, False]


def test_photos_that_come_later_are_cut_at_the_sizes_of_the_record(root, photos):
    F.extract_faces(root, sizes=128, **KW)
    before = read_npz(root/'faces/faces_01_128.npz')
    shard(root, '01', photos[:1], part=2)
    found = F.extract_faces(root, **KW)
    after = read_npz(root/'faces/faces_01_128.npz')
    assert len(after['key']) > len(before['key']) and set(before['key']) < set(after['key'])
    assert len(found.images(128)) == sum(has_size(r, 128) for r in found.kept)
    (root/'photos/images_02_part_1.tar').unlink()
    F.extract_faces(root, **KW)
    assert not (root/'faces/faces_02_128.npz').exists()


@pytest.mark.parametrize('broken', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'nonsense' + b[8:]])
def test_a_damaged_file_is_cut_again(root, broken):
    F.extract_faces(root, sizes=128, **KW)
    file = root/'faces/faces_01_128.npz'
    whole = file.read_bytes()
    file.write_bytes(broken(whole))
    F.extract_faces(root, **KW)
    assert file.read_bytes() == whole


def test_an_interrupted_run_goes_on_with_its_sizes(root, monkeypatch):
    def stop(shard, *args):
        if month_of(shard) == '02':
            raise KeyboardInterrupt
        return cut_shard(shard, *args)

    cut_shard = crop_sizes.cut_shard
    with monkeypatch.context() as m:
        m.setattr(crop_sizes, 'cut_shard', stop)
        with pytest.raises(KeyboardInterrupt):
            F.extract_faces(root, sizes=128, **KW)
    assert (root/'faces/faces_01_128.npz').exists() and not (root/'faces/faces_02_128.npz').exists()
    assert len(F.extract_faces(root, **KW).images(128)) > 0


def test_a_shard_that_cannot_be_read_is_told(root, caplog):
    found = F.Faces(root, read_jsonl(root/'faces/faces.jsonl'))
    tar = root/'photos/images_02_part_1.tar'
    whole = tar.read_bytes()
    tar.write_bytes(whole[:len(whole)//2])
    with caplog.at_level(logging.ERROR):
        assert cut_sizes(root, found.rows, (60, 64, 128), F.crop_of_row, F.FaceSettings()) > 0
    assert 'images_02_part_1.tar: nothing is cut at other sizes' in caplog.text
    tar.write_bytes(whole)
    assert cut_sizes(root, found.rows, (60, 64, 128), F.crop_of_row, F.FaceSettings()) > 0
    assert cut_sizes(root, found.rows, (60, 64, 128), F.crop_of_row, F.FaceSettings()) == 0


def test_max_side_is_named_where_it_cost_faces(root, caplog):
    write_json(root/'photos/download.json', dict(settings=dict(max_side=150)))
    small = [r for r in read_jsonl(root/'faces/faces.jsonl') if r['side'] < 128]
    (root/'photos/ledger_01.jsonl').write_text(dumps(dict(key=small[0]['key'], resized=.25)) + '\n')
    with caplog.at_level(logging.WARNING):
        F.extract_faces(root, sizes=128, **KW)
    assert '1 of them were larger before the download made the photos 150 px long (`max_side`)' in caplog.text


@pytest.mark.parametrize('sizes', ['64,large', '7', (64, 5000), [64.5], '', '60;64', -128, True])
def test_what_is_no_size_is_refused_before_anything_is_written(root, sizes):
    with pytest.raises(BadInput, match='size cannot be'):
        F.extract_faces(root, sizes=sizes, **KW)
    assert 'sizes' not in read_json(root/'faces/faces.json')


def test_a_set_of_large_faces(root):
    common = pack(root)
    with pytest.raises(BadInput, match='crops of 60 and 64 px, not of 128: run `pttface faces'):
        pack(root, settings=PackSettings(size=128), force=True)
    assert pack(root).hash == common.hash
    F.extract_faces(root, sizes=128, **KW)
    assert pack(root).hash == common.hash
    with pytest.raises(BadInput, match=r'size=64 \(now 128\)'):
        pack(root, settings=PackSettings(size=128))
    large = pack(root, settings=PackSettings(size=128), force=True)
    assert large.images.shape[1:] == (128, 128, 3) and large.size == 128 and large.card['settings']['size'] == 128
    assert set(large.key) <= set(common.key) and large.card['counts']['at least 128 px'] < large.card['counts']['faces']
    side = dict(zip(common.key.tolist(), common.split.tolist()))
    assert [side[k] for k in large.key.tolist()] == large.split.tolist()
    rows = {r['key']: r for r in read_jsonl(root/'faces/faces.jsonl')}
    crops = F.Faces(root, []).images(128, [rows[k] for k in large.key.tolist()])
    assert (large.side >= 128).all() and np.array_equal(large.images, crops)


def test_a_size_by_itself_packs_what_the_command_packs(root):
    F.extract_faces(root, sizes=128, **KW)
    assert main(['dataset', '--root', str(root), '--size', '128']) == 0
    card = root/'dataset/card.json'
    made, stamp = read_json(card), card.stat().st_mtime_ns
    assert pack(root, size=128).card == made == pack(root, size=np.int64(128), settings='default').card
    assert made['settings']['size'] == 128 and card.stat().st_mtime_ns == stamp  # the same set: nothing is written
    with pytest.raises(BadInput, match=r'size=128 \(now 60\)'):
        pack(root, size=60)
    small = pack(root, size=60, settings=PackSettings(size=128, distance=-1), force=True)
    assert small.size == 60 and (small.card['settings']['size'], small.card['settings']['distance']) == (60, -1)


@pytest.mark.parametrize('size', [7, 4097, 64.5, float('nan'), '64', True, pytest.param(10**5000, id='10**5000')])
def test_what_is_no_size_of_a_set_is_refused(root, size):
    with pytest.raises(BadInput, match='size cannot be .*: give a whole number from 8 to 4096'):
        pack(root, size=size)
    assert not (root/'dataset/card.json').exists()


def test_a_large_copy_goes_with_the_small_one_that_is_opted_out(root, photos):
    same = cv2.imdecode(np.frombuffer(photos[0], np.uint8), 1)
    copy = cv2.imencode('.jpg', cv2.resize(same, SMALL[::-1], interpolation=cv2.INTER_AREA))[1].tobytes()
    shard(root, '03', [copy])
    found = F.extract_faces(root, sizes=128, **KW)
    small = next(r for r in found.rows if r['month'] == '03')
    assert small['status'] == 'kept' and not has_size(small, 128)
    assert '0110000' in pack(root, settings=PackSettings(size=128)).key
    (root/'optout.txt').write_text(small['url'])
    assert '0110000' not in pack(root, settings=PackSettings(size=128)).key


def test_nothing_is_trained_on_enlarged_faces(root):
    F.extract_faces(root, sizes=128, **KW)
    data = pack(root)
    with pytest.raises(BadInput, match='edm-128 draws 128 px, and the set holds pictures of 64 px') as error:
        train(data, replace(RECIPES['edm-128'], batch=2), root=root, device='cpu', progress=False)
    assert '`pttface faces --sizes 60,64,128`' in str(error.value) and not (root/'runs').exists()


def test_train_sample_and_evaluate_at_128(root):
    F.extract_faces(root, sizes=128, **KW)
    few = pack(root, settings=PackSettings(size=128, distance=-1))
    arrays = {k: np.repeat(v, 4, 0) for k, v in few.arrays.items()} | dict(split=np.tile([0, 0, 1, 1], len(few)))
    data = FaceData(arrays, few.card, root)
    net = dict(ch=4, mults=(1, 1, 2), blocks=1, attn=(), dropout=0., size=128)
    recipe = Recipe('small-128', size=128, net_args=net, mean=RECIPES['edm-128'].mean, batch=2, ema='power 0.10',
                    budget='8 images', report='4 images', grid='8 images', save='1h', steps=2, precision='no')
    run = train(data, recipe, root=root, device='cpu', progress=False)
    drawn = sample(run, 4, device='cpu', progress=False)
    assert run.log[-1]['images'] == 8 and drawn.shape == (4, 128, 128, 3)
    seen = []

    def features(ims):
        seen.append(ims.shape[1:])
        return ims.reshape(len(ims), 16, -1).mean(2)/100

    kw = dict(protocol=features, detector=None, device='cpu', progress=False)
    report = evaluate(run, data, n=6, seeds=1, root=root, **kw)
    assert str(report) and set(seen) == {(128, 128, 3)}


def test_the_recipe_differs_from_edm_in_size_network_batch_and_noise():
    large, edm = RECIPES['edm-128'], RECIPES['edm']
    differ = {k for k in vars(edm) if getattr(large, k) != getattr(edm, k)}
    assert differ == {'name', 'size', 'net_args', 'batch', 'lr', 'mean', 'guidance_low', 'guidance_high'}
    assert large.guidance_high/edm.guidance_high == large.guidance_low/edm.guidance_low == 2
    assert np.exp(large.mean - edm.mean) == pytest.approx(2)


def test_the_command_takes_sizes_with_commas(root, capsys):
    flags = ['--root', str(root), '--workers', '1', '--attributes', 'off', '--sizes', '60,64,128', '--json']
    assert main(['faces', *flags]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(['dataset', '--root', str(root), '--size', '128']) == 0
    assert '128 × 128' in capsys.readouterr().out
    assert main(['dataset', '--root', str(root), '--size', '96', '--force']) == 2
    assert 'not of 96: run `pttface faces' in capsys.readouterr().err
