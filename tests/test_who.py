"Who tells age and gender in the faces stage: chosen once, recorded, screened by, and never fetched twice in vain."
import logging
import subprocess
import threading

import numpy as np
import pytest

from pttface import faces as F
from pttface.app.cli import run_safely
from pttface.storage.files import BadInput, dumps, open_root, read_json, write_json, write_tar
from pttface.synthetic.heads import draw_heads
from pttface.vision import attributes as A
from pttface.vision import face_shards as shards
from pttface.vision.detect import MTCNN, Face
from pttface.vision.images import encode_jpeg

KPS = np.array([[80, 90], [120, 90], [100, 110], [85, 130], [115, 130]], np.float32)


class Guess:
    "Stands in for the networks: ages and genders in turn."
    name = 'free'
    answers = [(31., 0), (24.9, 0), (19., 1), (40., None)]

    def __init__(self):
        self.asked = 0

    def describe(self, pairs):
        self.asked += len(pairs)
        return [self.answers[(self.asked - len(pairs) + i) % 4] for i in range(len(pairs))]


@pytest.fixture
def root(tmp_path, heads):
    root = open_root(tmp_path/'run', create=True)
    meta = [dumps(dict(url=f'https://i.imgur.com/{i}.jpg')).encode() for i in range(4)]
    photos = [(f'01{i:05d}', dict(jpg=encode_jpeg(h.im), json=m)) for i, (h, m) in enumerate(zip(heads, meta))]
    write_tar(root/'photos/images_01_part_1.tar', photos)
    write_json(root/'photos/download.json', dict(settings={}))
    return root


@pytest.fixture(scope='module')
def heads():
    return draw_heads(4, seed=21, workers=1, progress=False)


@pytest.fixture
def auto(monkeypatch):
    "As on a user's machine: `auto` may ask the networks, which answer in turn."
    monkeypatch.delenv('PTTFACE_ATTRIBUTES', raising=False)
    monkeypatch.setattr(A, '_why_not', lambda retries=2: '')
    monkeypatch.setattr(shards, 'Attributes', Guess)
    monkeypatch.setattr(shards, '_own', threading.local())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No networks in the cache, and no connection; gives the commands that were run."
    asked = []

    def run(command, **kw):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, '', 'ERROR: no route to host')
    monkeypatch.delenv('PTTFACE_ATTRIBUTES', raising=False)
    monkeypatch.setenv('PTTFACE_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(A, '_unreachable', {})
    return asked


def extract(root, **kw):
    return F.extract_faces(root, workers=1, **kw)


def record(root):
    return read_json(root/'faces/faces.json')


def test_the_screen_has_a_margin_and_rows_say_who_told(root, auto):
    found = extract(root)
    assert [(r['age'], r['gender'], r['reason']) for r in found.rows] == [
        (31., 0, None), (24.9, 0, 'too_young'), (19., 1, 'too_young'), (40., None, None)]
    assert {r['attributes_by'] for r in found.rows} == {'free'}
    assert record(root)['settings']['attributes'] == 'free' and record(root)['settings']['age_margin'] == 5
    assert found.age_screen == record(root)['age_screen'] == 'faces that look under 25 are dropped'


@pytest.mark.parametrize('settings,dropped', [(dict(age_margin=0.), 1), (dict(min_age=0.), 0), (dict(min_age=34.), 3)])
def test_threshold_and_margin(root, auto, settings, dropped):
    assert extract(root, settings=F.FaceSettings(**settings)).counts.get('too_young', 0) == dropped


def test_the_original_asks_for_no_age_but_for_gender(root, auto):
    found = extract(root, settings='original', png=True)
    assert found.age_screen == 'no age screen' and len(found) == 4
    assert len(list((root/'faces/png/Male').rglob('*.png'))) == 1
    assert [r['gender'] for r in found.rows] == [0, 0, 1, None]


def test_a_run_goes_on_with_whoever_it_began(root, auto, monkeypatch):
    rows = extract(root, attributes='off').rows
    assert extract(root).rows == rows and record(root)['settings']['attributes'] == 'off'
    with pytest.raises(BadInput, match=r"attributes='off' \(now 'free'\)"):
        extract(root, attributes='free')
    assert extract(root, attributes='free', force=True).counts['too_young'] == 2
    monkeypatch.setenv('PTTFACE_ATTRIBUTES', 'off')
    (root/'faces/faces_01.npz').unlink()
    monkeypatch.setattr(shards, '_own', threading.local())
    assert extract(root).counts['too_young'] == 2
    assert extract(root, force=True).counts['too_young'] == 2, 'the same rules make nothing again'


def test_what_an_older_release_began_stays_without(root, auto):
    extract(root, attributes='off', settings=F.FaceSettings(age_margin=0.))
    old = record(root)
    for k in ('attributes', 'age_margin'):
        del old['settings'][k]
    write_json(root/'faces/faces.json', old)
    (root/'faces/faces_01.npz').unlink()
    found = extract(root)
    assert len(found) == 4 and found.age_screen == 'no age screen'
    assert not any('attributes_by' in r for r in found.rows)


def test_without_networks_one_sentence_and_one_try(root, offline, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        found = extract(root)
    said = [r.message for r in caplog.records if 'age screen' in r.message]
    assert len(said) == 1 and 'no route to host' in said[0] and 'pttface models' in said[0]
    assert found.age_screen == 'no age screen' and record(root)['settings']['attributes'] == 'off'
    extract(root)
    extract(root, force=True, settings=F.FaceSettings(sharpness=61.))
    assert len(offline) == 1


def test_a_lowest_age_that_nobody_can_tell_is_an_error(root, offline):
    with pytest.raises(BadInput, match='min_age has no effect.*attributes="off"'):
        extract(root, settings=F.FaceSettings(min_age=18.))
    with pytest.raises(BadInput, match='could not be fetched'):
        extract(root, attributes='free')
    assert not (root/'faces/faces.json').exists()
    assert len(extract(root, attributes='off', settings=F.FaceSettings(min_age=18.))) == 4


def test_networks_that_have_come_meanwhile_are_used(offline, monkeypatch):
    assert A.choose_attributes() == 'off'
    monkeypatch.setattr(A, 'missing_networks', lambda folder=None: [])
    assert A.choose_attributes() == 'free'


@pytest.mark.parametrize('attributes,words', [('best', 'There is no source of age and gender'),
                                              ('insightface', 'needs detector="insightface"')])
def test_wrong_answers_before_work(root, attributes, words):
    with pytest.raises(BadInput, match=words):
        extract(root, attributes=attributes)
    assert not (root/'faces').exists()


def test_the_machine_may_forbid_it(monkeypatch):
    monkeypatch.setenv('PTTFACE_ATTRIBUTES', 'off')
    assert A.choose_attributes() == 'off' and A.choose_attributes(needed=True) == 'off'


def test_the_wrapper_keeps_what_the_detector_offers():
    both = A.WithAttributes(MTCNN(), Guess())
    assert hasattr(both, 'redetect') and not hasattr(both, 'sure_score') and hasattr(both, 'largest')
    with pytest.raises(AttributeError):
        _ = both.__not_there__


def test_only_what_is_open_is_asked():
    told, open_ = (Face(np.array([60, 60, 140, 160.]), KPS, 1., age=a) for a in (50., None))
    both = A.WithAttributes(lambda im: [], Guess())
    both.describe([(None, told), (None, open_)])
    assert both.attributes.asked == 1 and (told.age, told.attributes_by) == (50., None)
    assert (open_.age, open_.gender, open_.attributes_by) == (31., 0, 'free')


def test_the_command(offline):
    status, _, error = run_safely('models', [])
    assert status == 2 and 'no route to host' in error
    status, table, _ = run_safely('models', ['--no-fetch'])
    assert status == 0 and [r['state'] for r in table.rows] == ['missing', 'missing'] and len(offline) == 1
