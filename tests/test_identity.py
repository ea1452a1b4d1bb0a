"""Identity: chips, vectors, people and the folder that holds them, on networks written here.

The real network is tested where PTTFACE_IDENTITY_MODEL names dlib's as an ONNX file."""
import os
from fnmatch import fnmatch

import cv2
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from tiny_onnx import block_means

from pttface.app.cli import run_safely
from pttface.curation.quality import quality_scores
from pttface.dataset import PackSettings, pack
from pttface.faces import extract_faces
from pttface.storage.drive import Mirror
from pttface.storage.files import BadInput, dumps, locked, open_root, read_jsonl, write_json, write_jsonl, write_tar
from pttface.synthetic.heads import draw_heads
from pttface.vision import identity as I
from pttface.vision.attributes import attribute_chip
from pttface.vision.detect import Face
from pttface.vision.detectors import load_detector
from pttface.vision.images import encode_jpeg

KPS = np.array([[80, 90], [120, 90], [100, 110], [85, 130], [115, 130]], np.float32)


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp('networks')
    for chip, o in I.CHIPS.items():
        (folder/f'{chip}.onnx').write_bytes(block_means(o.side))
    return folder


@pytest.fixture(scope='module')
def heads():
    "Two photos of each of four drawn people."
    return draw_heads([dict(seed=s, size=(200, 200), yaw=float(y), pitch=0., roll=0.) for s in (3, 8, 13, 21)
                       for y in (-1, 1)], workers=1, progress=False)


@pytest.fixture(scope='module')
def made(tmp_path_factory, heads):
    "A root with their faces; the second photo of one person is in the article of the next one's first."
    root = open_root(tmp_path_factory.mktemp('made')/'run', create=True)
    meta = [dumps(dict(url=f'https://i.imgur.com/{i}.jpg', sha256=f'{i:064d}',
                       article=f'https://www.ptt.cc/bbs/Beauty/M.170404000{(i + 1)//2}.A.E87.html')).encode()
            for i in range(len(heads))]
    write_tar(root/'photos/images_01_part_1.tar', [(f'01{i:05d}', dict(jpg=encode_jpeg(h.im), json=m))
                                                   for i, (h, m) in enumerate(zip(heads, meta))])
    write_json(root/'photos/download.json', dict(settings={}))
    extract_faces(root, workers=1)
    return root


@pytest.fixture
def root(made):
    yield made
    I.forget(made, identity=True)
    (made/'optout.txt').unlink(missing_ok=True)


def vectors_of(root):
    return dict(zip(I.load_identity(root)['key'].tolist(), I.load_identity(root)['vectors']))


@pytest.mark.parametrize('chip', I.CHIPS)
def test_the_network_sees_the_chip_as_it_was_trained(network, heads, chip):
    o = I.find_identity(str(network/f'{chip}.onnx'), chip)
    face = load_detector()(heads[0].im)[0]
    v, = I.Identity(o).embed([(heads[0].im, face)])
    seen = (I.identity_chip(heads[0].im, face.kps, o).astype(np.float32) - o.mean)*o.scale
    k = o.side//8
    n = o.side//k
    means = seen[:n*k, :n*k].reshape(n, k, n, k, 3).mean((1, 3)).transpose(2, 0, 1).ravel()
    assert np.allclose(v, means/np.linalg.norm(means) if o.unit else means, atol=1e-3)


def test_landmarks_lie_on_their_places(heads):
    grey = np.zeros((300, 300, 3), np.uint8)
    for p in KPS:
        cv2.circle(grey, tuple(map(int, p)), 2, (255, 255, 255), -1)
    chip = I.identity_chip(grey, KPS, I.CHIPS['arcface'])
    ys, xs = np.nonzero(chip[..., 0] > 60)
    near = cdist(I.ARCFACE, np.stack([xs, ys], 1)).min(1)
    assert near.max() < 5
    assert np.array_equal(I.identity_chip(grey, KPS, I.CHIPS['dlib']), attribute_chip(grey, KPS, 150, .25))


def test_batches_change_nothing(network, heads):
    o, face = I.find_identity(str(network/'dlib.onnx'), 'dlib'), Face(np.zeros(4), KPS, 1.)
    pairs = [(h.im, face) for h in heads]
    assert np.allclose(I.Identity(o, batch=3).embed(pairs), I.Identity(o, batch=16).embed(pairs), atol=1e-5)
    assert I.Identity(o).embed([]).shape == (0, 0)


@pytest.mark.parametrize('args,words', [
    (('nowhere.onnx',), 'nowhere.onnx is not there'), (('buffalo_l', 'facenet'), 'choose one of arcface, dlib')])
def test_a_network_that_is_not_there(args, words):
    with pytest.raises(BadInput, match=words):
        I.find_identity(*args)


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path/'x.onnx').write_bytes(b'no network')
    with pytest.raises(BadInput, match='cannot be read as an ONNX network'):
        I.Identity(I.find_identity(str(tmp_path/'x.onnx')))


def test_people_of_a_folder(root, network):
    table = I.embed_faces(root, str(network/'arcface.onnx'), threshold=.6, progress=False)
    row = table.rows[0]
    assert (row['faces'], row['vectors'], row['people'], row['largest_group']) == (8, 8, 4, 2)
    assert row['in_several_articles'] == 4 and row['links_refused'] == 0
    assert list((root/'identity').iterdir()) == [root/'identity/vectors.npz'], 'nothing of it lies elsewhere'


def test_what_is_there_is_kept_and_another_network_begins_anew(root, network, monkeypatch):
    asked = []
    plain = I.Identity.embed
    monkeypatch.setattr(I.Identity, 'embed', lambda self, pairs: asked.extend(pairs) or plain(self, pairs))
    I.embed_faces(root, str(network/'arcface.onnx'), progress=False)
    first = vectors_of(root)
    I.embed_faces(root, str(network/'arcface.onnx'), threshold=.5, progress=False)
    assert len(asked) == 8 and I.load_identity(root)['network']['threshold'] == .5
    assert all(np.array_equal(v, first[k]) for k, v in vectors_of(root).items())
    I.embed_faces(root, str(network/'dlib.onnx'), 'dlib', progress=False)
    assert len(asked) == 16 and I.load_identity(root)['network']['chip'] == 'dlib'


def test_an_opted_out_photo_has_no_vector(root, network):
    I.embed_faces(root, str(network/'arcface.onnx'), progress=False)
    (root/'optout.txt').write_text('https://i.imgur.com/2.jpg')
    assert I.embed_faces(root, str(network/'arcface.onnx'), progress=False).rows[0]['vectors'] == 7
    assert '0100002' not in vectors_of(root)


def test_a_shard_that_is_gone_costs_its_vectors_and_nothing_else(root, network, caplog):
    rows = read_jsonl(root/'faces/faces.jsonl')
    try:
        write_jsonl(root/'faces/faces.jsonl', [r | dict(shard='images_09_part_1') if r['key'] == '0100000' else r
                                               for r in rows])
        assert I.embed_faces(root, str(network/'arcface.onnx'), progress=False).rows[0]['vectors'] == 7
        assert 'images_09_part_1.tar is not there' in caplog.text
    finally:
        write_jsonl(root/'faces/faces.jsonl', rows)


def test_the_set_is_split_by_person_where_people_are_known(root, network):
    every = PackSettings(distance=-1)
    plain = pack(root, settings=every)
    assert 'split_by' not in plain.card and 'split by' not in str(plain)
    I.embed_faces(root, str(network/'arcface.onnx'), threshold=.6, progress=False)
    data = pack(root, settings=every)
    assert data.card['split_by'] == 'article and person' and 'split by article and person' in str(data)
    assert data.card['people'] == dict(vectors=8, links_refused=0)
    side = dict(zip(data.key.tolist(), data.split.tolist()))
    assert len(side) == 8 and all(side[f'01{i:05d}'] == side[f'01{i + 1:05d}'] for i in range(0, 8, 2))
    assert not any('vector' in p.name or 'identity' in p.name for p in (root/'dataset').rglob('*'))
    I.forget(root, identity=True)
    assert 'split_by' not in pack(root, settings=every).card


def test_a_person_of_two_genders_is_looked_at(root, network):
    I.embed_faces(root, str(network/'arcface.onnx'), threshold=9., progress=False)
    rows = read_jsonl(root/'faces/faces.jsonl')
    try:
        write_jsonl(root/'faces/faces.jsonl', [r | dict(gender=int(i == 5)) for i, r in enumerate(rows)])
        scores = quality_scores(root, outliers=False, progress=False)
        assert scores.key[scores.worst(1, 'gender_contradiction')].tolist() == ['0100005']
        assert (scores.of('gender_contradiction') > .5).sum() == 1
    finally:
        write_jsonl(root/'faces/faces.jsonl', rows)


def test_forgetting_is_by_name_and_leaves_nothing(root, network):
    assert run_safely('identity', ['--root', str(root), '--network', str(network/'arcface.onnx')])[0] == 0
    status, _, error = run_safely('forget', ['--root', str(root)])
    assert status == 2 and '--identity' in error and I.load_identity(root)
    status, said, _ = run_safely('forget', ['--root', str(root), '--identity'])
    assert status == 0 and said.startswith('8 vectors deleted') and not (root/'identity').exists()
    assert run_safely('forget', ['--root', str(root), '--identity'])[1].startswith('0 vectors')


def test_one_writer_at_a_time(root, network):
    with locked(root, 'faces'), pytest.raises(BadInput, match='is being written by `pttface faces`'):
        I.embed_faces(root, str(network/'arcface.onnx'), progress=False)


def test_no_copy_on_drive(root, network, tmp_path):
    I.embed_faces(root, str(network/'arcface.onnx'), progress=False)
    mirror = Mirror(root, tmp_path/'drive/run')
    (tmp_path/'drive').mkdir()
    mirror.push()
    copied = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()]
    assert any(fnmatch(p, '*faces.jsonl') for p in copied) and not any('identity' in p for p in copied)


def test_groups_cannot_chain_everybody():
    line = np.arange(200.)[:, None]*.5
    groups, refused = I.group_people(line, .6)
    assert np.bincount(groups).max() == 10 and refused == 19
    apart = np.repeat(np.arange(20.)*100, 10)[:, None] + np.random.default_rng(0).normal(0, .01, (200, 1))
    groups, refused = I.group_people(apart, .6)
    assert groups.max() == 19 and refused == 0
    bridge = np.r_[apart, [[50.]]]
    assert I.group_people(bridge, 51.)[1] > 0, 'the weakest links are the refused ones'
    assert I.group_people(bridge, 51.)[0][:200].max() == 19


@pytest.mark.parametrize('shape,groups', [((0, 0), 0), ((1, 4), 1), ((2, 4), 1)])
def test_small_sets(shape, groups):
    assert len(set(I.group_people(np.zeros(shape), .5)[0].tolist())) == groups


@pytest.mark.skipif(not os.environ.get('PTTFACE_IDENTITY_MODEL'), reason='PTTFACE_IDENTITY_MODEL names no network')
def test_the_real_network_tells_drawn_people_apart(heads):
    o = I.find_identity(os.environ['PTTFACE_IDENTITY_MODEL'], 'dlib')
    detect = load_detector()
    v = I.Identity(o).embed([(h.im, detect(h.im)[0]) for h in heads])
    d = cdist(v, v)
    same = d[np.arange(0, 8, 2), np.arange(1, 8, 2)]
    others = d[np.kron(np.eye(4), np.ones((2, 2))) == 0]
    assert v.shape == (8, 128) and same.max() < .2 < .3 < others.min()
