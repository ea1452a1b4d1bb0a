"Colab's own versions stay, one ONNX Runtime that fits is chosen, and what the notebook does beside the stages."
import io
import json
import os
import re
import subprocess
import sys
import types
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

top = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(top / 'tools'), str(Path(__file__).parent)]
import colab_check
import colab_inside
from test_curator import make

from pttface.app import colab, doctor
from pttface.app.doctor import check_cv2, check_detector, detector_finding, insightface_installs
from pttface.storage.drive import Mirror
from pttface.storage.files import BadInput

CUDA, CPU = 'CUDAExecutionProvider', 'CPUExecutionProvider'


def pinned():
    "Colab's version of each package that pttface can come to import."
    lines = colab_check.pins(colab_check.PINS.read_text())
    return {re.sub(r'[-_.]+', '-', k).lower(): v for k, v in (o.split('==') for o in lines)}


def test_colab_meets_every_requirement_that_it_can():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(top / 'settings.ini', encoding='utf-8')
    there, against = pinned(), []
    for line in ini['DEFAULT']['requirements'].split('\n'):
        if not line.strip():
            continue
        r = Requirement(line)
        if r.name in there and not r.specifier.contains(there[r.name]):
            against.append(f'{r} and Colab has {there[r.name]}')
    assert against == [] and len(there) > 100
    for name in ('torch', 'numpy', 'pillow', 'protobuf', 'ipywidgets', 'ipython', 'ipykernel', 'opencv-python'):
        assert name in there


@pytest.mark.parametrize('cuda, there, runtime, installs', [
    ('12.8', {}, 'onnxruntime-gpu<1.27', True),
    ('12.1', {'onnxruntime-gpu': '1.31.1'}, 'onnxruntime-gpu<1.27', True),
    ('12.8', {'onnxruntime-gpu': '1.26.0'}, 'onnxruntime-gpu', False),
    ('13.0', {}, 'onnxruntime-gpu>=1.27', True),
    (None, {}, 'onnxruntime', True),
    (None, {'onnxruntime': '1.32.0'}, 'onnxruntime', False),
    ('12.8', {'onnxruntime': '1.32.0'}, 'onnxruntime-gpu<1.27', True),
])
def test_insightface_is_installed_beside_the_one_runtime_that_fits(cuda, there, runtime, installs):
    lines = insightface_installs(cuda, there)
    assert lines[0].startswith('install') and '--no-deps "insightface' in lines[0]
    assert (f'"{runtime}"' in lines[-1]) == installs
    removed = [o for o in lines if o.startswith('uninstall')]
    assert bool(removed) == ('onnxruntime' in there and cuda is not None)
    assert not any(re.search(r'torch|numpy|protobuf|pillow|--upgrade', o) for o in lines)
    held = insightface_installs(cuda, there | {'protobuf': '5.29.6', 'numpy': '2.1.3'})[-1]
    assert '"protobuf==5.29.6"' in held and '"numpy==2.1.3"' in held


@pytest.mark.parametrize('provider, built, there, cuda, state, words', [
    (CUDA, [CUDA, CPU], {'onnxruntime-gpu': '1.26.0'}, '12.8', 'ok', ''),
    (CPU, [CUDA, CPU], {'onnxruntime-gpu': '1.31.1'}, '12.8', 'fault', 'pip install "onnxruntime-gpu<1.27"'),
    (CPU, [CUDA, CPU], {'onnxruntime-gpu': '1.26.0'}, '12.8', 'fault', '[cuda,cudnn]<1.27'),
    (CPU, [CPU], {'onnxruntime': '1.32.0'}, '12.8', 'fault', 'uninstall'),
    (CPU, [CPU], {'onnxruntime': '1.32.0', 'onnxruntime-gpu': '1.31.1'}, '12.8', 'fault', 'onnxruntime-gpu<1.27'),
    (CPU, [CUDA, CPU], {'onnxruntime-gpu': '1.26.0'}, '13.0', 'fault', 'onnxruntime-gpu>=1.27'),
])
def test_the_remedy_fits_the_torch_that_is_there(provider, built, there, cuda, state, words):
    c = detector_finding(provider, built, True, cuda, there)
    assert c.state == state and words in c.mend and provider in c.found
    assert detector_finding(CPU, [CPU], False, None, {'onnxruntime': '1.32.0'}).state == 'ok'


def test_the_doctor_builds_a_session_and_asks_it(monkeypatch):
    "A runtime that lists CUDA and answers on the CPU."
    built = []

    class Session:
        def __init__(self, model, options, providers):
            built.append(model)

        def get_inputs(self):
            return [types.SimpleNamespace(name='x', shape=['n', 48, 48, 3])]

        def run(self, names, feed):
            assert feed['x'].shape == (1, 48, 48, 3)

        def get_providers(self):
            return [CPU]

    runtime = types.ModuleType('onnxruntime')
    runtime.get_available_providers = lambda: ['TensorrtExecutionProvider', CUDA, CPU]
    runtime.SessionOptions, runtime.InferenceSession = types.SimpleNamespace, Session
    for name in ('onnxruntime', 'insightface'):
        module = runtime if name == 'onnxruntime' else types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(doctor, 'nvidia_card', lambda: 'Tesla T4')
    monkeypatch.setattr(doctor, 'torch_cuda', lambda: '12.8')
    monkeypatch.setattr(doctor, 'installed', lambda *names: {'onnxruntime-gpu': '1.31.1'})
    c = check_detector()
    assert Path(built[0]).is_file() and c.state == 'fault'
    assert CPU in c.found and c.mend == 'pip install "onnxruntime-gpu<1.27"'


def test_opencv_of_several_versions_is_a_fault_only_where_it_does_not_work():
    names = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
    colab_has = dict(zip(names, ('5.0.0.93', '5.0.0.93', '4.14.0.94')))
    c = check_cv2(colab_has, won='5.0.0')
    assert c.state == 'ok' and '5.0.0 is the one' in c.found
    assert check_cv2(colab_has, won='').state == 'fault' and check_cv2().state == 'ok'


def test_the_check_sees_what_an_installation_changes():
    before = dict(numpy='2.1.3', ipywidgets='7.7.1', protobuf='5.29.6')
    after = dict(numpy='2.1.3', ipywidgets='8.1.9', insightface='2.1')
    assert colab_check.changed(before, after) == ['ipywidgets was 7.7.1 and is now 8.1.9',
                                                  'protobuf was 5.29.6 and is now gone']
    assert colab_check.changed(before, before | dict(insightface='2.1')) == []
    shared = {'onnxruntime and onnxruntime-gpu': 290, 'opencv-python and opencv-python-headless': 40}
    there = {'opencv-python and opencv-python-headless': 40}
    assert colab_check.newly_shared(there, shared) == ['onnxruntime and onnxruntime-gpu share 290 files']
    message = 'ERROR: Could not find a version\nERROR: No matching distribution found for numba==0.61.2\n'
    assert colab_check.refused(message) == 'numba==0.61.2' and colab_check.refused('Read timed out') is None


@pytest.mark.parametrize('rc, output, word', [
    (0, 'Read timed out', 'ok'), (124, '', 'skip'), (1, 'pip: ReadTimeoutError: Read timed out.', 'skip'),
    (1, 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device', 'skip'),
    (1, 'ERROR: No matching distribution found for torch==2.11.0', 'FAIL'), (1, 'AssertionError', 'FAIL'),
])
def test_a_machine_without_network_or_room_is_no_failure(rc, output, word):
    assert colab_check.word_for(rc, output) == word


def test_the_check_sees_a_widget_that_7_7_does_not_draw():
    def model(name, module, version):
        return dict(state=dict(_model_name=name, _model_module=module, _model_module_version=version))

    controls = '@jupyter-widgets/controls'
    drawn = dict(a=model('ButtonModel', controls, '1.5.0'), b=model('LayoutModel', '@jupyter-widgets/base', '1.2.0'))
    assert colab_inside.not_drawn(drawn) == []
    other = dict(c=model('ButtonModel', controls, '2.0.0'), d=model('AnyModel', 'anywidget', '~0.9.21'))
    missing = ['AnyModel of anywidget ~0.9.21', f'ButtonModel of {controls} 2.0.0']
    assert colab_inside.not_drawn(drawn | other) == missing


@pytest.mark.parametrize('asked, test, check, line, status', [
    ('yes', '90 passed, 0 failed, 3 skipped', '12 passed, 0 failed, 1 skipped', '102 passed, 0 failed, 4 skipped', 0),
    ('yes', '90 passed, 0 failed, 3 skipped', '11 passed, 1 failed, 0 skipped', '101 passed, 1 failed, 3 skipped', 1),
    ('yes', '89 passed, 1 failed, 3 skipped', '12 passed, 0 failed, 0 skipped', '101 passed, 1 failed, 3 skipped', 1),
    ('no', '90 passed, 0 failed, 3 skipped', '11 passed, 1 failed, 0 skipped', '90 passed, 0 failed, 3 skipped', 0),
])
def test_ci_ends_in_one_line_for_both(tmp_path, asked, test, check, line, status):
    for name, text in (('chromium', ''), ('make', f'''case "$1" in test) said="{test}";; *) said="{check}";; esac
echo a line; echo "$said"; case "$said" in *" 0 failed"*) exit 0;; *) exit 1;; esac''')):
        (tmp_path / name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', 'COLAB_CHECK': asked}
    r = subprocess.run(['bash', top / '.ci/run'], env=env, capture_output=True, text=True)
    assert r.stdout.splitlines()[-1] == line and r.returncode == status


def test_the_check_runs_the_notebook_s_own_install_cells():
    cells = colab_inside.install_cells(colab_inside.code_cells(colab_inside.DRIVER))
    assert colab_inside.SOURCE in '\n'.join(cells) and 'insightface_installs' in cells[-1]
    assert len(cells) == 2 and 'import *' not in '\n'.join(cells)


def test_what_browses_shows_itself_without_what_ipywidgets_8_added(monkeypatch):
    from ipywidgets import Widget
    from pttface.display import browse
    monkeypatch.delattr(Widget, '_repr_mimebundle_')
    pages = browse(np.zeros((3, 8, 8, 3), np.uint8))
    shown = pages._repr_mimebundle_()
    assert shown['application/vnd.jupyter.widget-view+json']['model_id'] == pages.model_id
    assert 'image/png' in shown and not callable(getattr(pages, '_ipython_display_', None))


def photo(width, height):
    "A JPEG of noise."
    im = np.random.default_rng(0).integers(0, 255, (height//8, width//8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    f = io.BytesIO()
    Image.fromarray(im).save(f, 'JPEG')
    return f.getvalue()


@pytest.mark.parametrize('size, side, kept', [
    ((1600, 1200), 1024, (1024, 768)), ((640, 2048), 1024, (320, 1024)),
    ((1024, 512), 1024, (1024, 512)), ((1600, 1200), 0, (1600, 1200)),
])
def test_photos_are_kept_with_the_largest_side_that_was_chosen(size, side, kept):
    from pttface.download import DownloadSettings, Gate
    with Gate(DownloadSettings(max_side=side, score=-1., sharpness=0.), threads=1) as gate:
        measured, body = gate.look(photo(*size))
    assert Image.open(io.BytesIO(body)).size == kept
    assert (measured['width'], measured['height']) == size
    assert measured.get('resized') == (round(kept[0]/size[0], 4) if kept != size else None)


def test_a_download_of_before_goes_on_with_photos_as_they_came(tmp_path):
    chosen = colab.choose('ours')
    assert colab.download_settings(tmp_path, chosen).max_side == 1024
    assert colab.download_settings(tmp_path, colab.choose('ours', photos='drive')).max_side == 0
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/download.json').write_text(json.dumps(dict(settings=dict(score=.5))))
    assert colab.download_settings(tmp_path, chosen).max_side == 0


def test_a_folder_of_before_is_found(tmp_path):
    assert colab.folder_of(tmp_path, 'the original') == 'pttface-original'
    (tmp_path / 'pttface').mkdir()
    (tmp_path / 'pttface/choices.json').write_text(json.dumps(dict(road='the original')))
    assert colab.folder_of(tmp_path, 'the original') == 'pttface' == colab.folder_of(tmp_path, 'ours')


def accept(path):
    (Path(path) / 'MyDrive').mkdir(parents=True)


def test_photos_that_stay_here_do_not_go_to_drive_and_are_not_missed_later(tmp_path):
    first = colab.Session(colab.choose('ours', photos='local'), tmp_path / 'a', accept)
    for name in ('photos/images_01_part_0.tar', 'photos/ledger_01.jsonl', 'photos/download.json', 'faces/faces.json'):
        (first.root / name).parent.mkdir(exist_ok=True)
        (first.root / name).write_text(json.dumps(dict(done=True, counts=dict(kept=1))))
    first.close()
    on_drive = {p.relative_to(first.remote).as_posix() for p in first.remote.rglob('*') if p.is_file()}
    assert 'photos/ledger_01.jsonl' in on_drive and not any(o.endswith('.tar') for o in on_drive)
    assert not colab.photos_elsewhere(first.root)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'a/drive').rename(tmp_path / 'b/drive')
    later = colab.Session(colab.choose('ours', photos='local'), tmp_path / 'b', accept)
    assert colab.photos_elsewhere(later.root)


def test_a_decision_is_on_drive_when_the_click_returns(tmp_path):
    root, remote = make(tmp_path / 'here', 60), tmp_path / 'drive'
    session = types.SimpleNamespace(root=root, remote=remote, mirror=Mirror(root, remote))
    curator = colab.curate(session, False)
    curator.toggle(0)
    there = remote / 'dataset/decisions.jsonl'
    assert there.read_bytes() == (root / 'dataset/decisions.jsonl').read_bytes()
    assert '60 faces, 1 looked at, 1 dropped' == colab.pause(curator, False)
    curator.next_page()
    assert there.read_bytes() == (root / 'dataset/decisions.jsonl').read_bytes()
    with pytest.raises(colab.Pause, match='Stopped here for cleaning') as e:
        colab.pause(curator, True)
    assert e.value._render_traceback_() == [str(e.value)]


def test_a_drive_that_fails_loses_no_decision(tmp_path, monkeypatch):
    def fails(*a):
        raise OSError(5, 'Input/output error')

    root = make(tmp_path / 'here', 60)
    mirror = Mirror(root, tmp_path / 'drive')
    curator = colab.curate(types.SimpleNamespace(root=root, remote=tmp_path / 'drive', mirror=mirror), False)
    monkeypatch.setattr(mirror, 'push', fails)
    curator.toggle(0)
    assert curator.session.counts['dropped'] == 1 and (root / 'dataset/decisions.jsonl').stat().st_size


def test_a_forecast_takes_fewer_pictures_at_a_time_where_memory_is_short(monkeypatch):
    from pttface.app import forecast
    tried = []

    def step(recipe, batch, device):
        tried.append(batch)
        if batch > 1:
            raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return lambda _: None

    monkeypatch.setattr(forecast, 'training_step', step)
    assert forecast.training_pace('tiny', 16, device='cpu') > 0 and tried == [16, 4, 1]
    monkeypatch.setattr(forecast, 'training_step', lambda *a: lambda _: 1/0)
    with pytest.raises(ZeroDivisionError):
        forecast.training_pace('tiny', 16, device='cpu')


def test_forecasts_count_what_is_left(tmp_path):
    from pttface.app.forecast import expect_faces, expect_training, last_log_row
    (tmp_path / 'runs/tiny').mkdir(parents=True)
    (tmp_path / 'runs/tiny/log.jsonl').write_text('{"images": 6000, "seconds": 100}\n')
    left = expect_training(1000, 'tiny', '20 epochs', tmp_path)
    assert (left.seconds, last_log_row(tmp_path / 'runs/tiny/log.jsonl')['images']) == ((20000 - 6000)/60, 6000)
    assert expect_training(1000, 'tiny', '300s', tmp_path).seconds == 200
    (tmp_path / 'photos').mkdir()
    rows = [dict(key=f'{i}', url=f'{i}', status='kept' if i < 30 else 'rejected') for i in range(50)]
    (tmp_path / 'photos/ledger_01.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    assert expect_faces(tmp_path, seen=3.).seconds == 10


@pytest.mark.parametrize('photos, here, drive, message', [
    ('drive', 78e9, 9e9, 'Drive has 9.0 GB free'), ('resized', 78e9, 3e9, 'choose photos = local'),
    ('local', 5e9, 9e9, 'this machine has 5.0 GB free'),
])
def test_photos_that_do_not_fit_are_refused_before_they_are_asked_for(photos, here, drive, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        colab.room_for(12e9, photos, here, drive)
    assert len(colab.room_for(1e9, photos, here, drive)) == 2


def test_no_archive_takes_what_tells_people_apart(tmp_path):
    for name in ('links/image_links.jsonl', 'identity/vectors.npz', 'runs/edm/recipe.json', 'photos/images_01_1.tar'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'1')
    taken = [p.relative_to(tmp_path).as_posix() for p in colab.archived(tmp_path, tmp_path / 'runs/edm', True)]
    assert taken == ['links/image_links.jsonl', 'runs/edm/recipe.json']
    assert colab.archived(tmp_path, tmp_path / 'runs/edm', False) == [tmp_path / 'runs/edm/recipe.json']
