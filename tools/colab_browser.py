"""The curator of a runtime with ipywidgets 7.7, driven by mouse and keys in classic Notebook 6.5 and Chromium.

`colab_browser.py RUNTIME [SCREENSHOT.png [PYTHON]]`; run by a Python that has pttface and Playwright. With
PYTHON, which has JupyterLab 3 or 4 and jupyterlab_widgets 1.1, the page is JupyterLab's.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

top = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(top), str(top / 'tests')]
from browser import Browser, lacks  # noqa: E402
from lab import jupyter_lab, stop, write_notebook  # noqa: E402
from test_curator import make  # noqa: E402

from pttface.curation.quality import load_faces  # noqa: E402
from pttface.evaluation.features import load_protocol  # noqa: E402
from pttface.storage.files import content_hash, write_npz  # noqa: E402

CODE = """from pttface.curation.curator import Curator
Curator({!r}, outliers=False, progress=False)"""
PICKED = "getComputedStyle(document.querySelector('.pf-at{}')).getPropertyValue('--pf-picked').trim() == '1'"
LABEL = "getComputedStyle(document.querySelector('.pf-at{}'), '::after').content.startsWith('\"{}')"
DROPPED = "document.querySelector('.pf-head').innerText.includes('{} dropped')"


def has_asked(message):
    "Is this what ipywidgets 7 says once it has asked a kernel without widgets for its widgets?"
    return 'Failed to fetch ipywidgets' in message.text


@contextmanager
def notebook_server(python, folder):
    "Classic Notebook of a runtime on loopback; yields its address and its token."
    home = Path(folder) / 'home'
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env |= {f'JUPYTER_{k}_DIR': str(home / k.lower()) for k in ('CONFIG', 'RUNTIME', 'DATA')} | {'TQDM_DISABLE': '1'}
    command = [python, '-m', 'notebook', '--no-browser', '--allow-root', '--ip=127.0.0.1', '--port=8899',
               '--NotebookApp.token=pttface', f'--notebook-dir={folder}']
    with open(Path(folder) / 'server.log', 'wb') as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        end = time.time() + 90
        found = []
        while not found and server.poll() is None and time.time() < end:
            time.sleep(.3)
            found = [p for p in (home / 'runtime').glob('nbserver-*.json') if p.stat().st_size]
        if not found:
            raise SystemExit(f'Notebook did not start:\n{(Path(folder) / "server.log").read_text()[-3000:]}')
        yield json.loads(found[0].read_text())['url'], 'pttface'
    finally:
        stop(server)


def look_for_more(b, screenshot):
    "Select two faces, one by key and one by mouse, see those like them, and go back: nothing is decided by that."
    b.eval("document.querySelector('.pf-at7').focus()")
    b.key('s')
    b.wait(PICKED.format(7))
    b.click('.pf-select')
    b.click('.pf-at9')
    b.wait(PICKED.format(9))
    b.click('.pf-select')
    b.wait("document.querySelector('.pf-more').innerText.includes('More like these 2')")
    b.click('.pf-more')
    b.wait("document.querySelector('.pf-return').offsetWidth > 0")
    for k, label in enumerate(('this', 'this', 'near')):
        b.wait(LABEL.format(k, label))
    if screenshot:
        b.screenshot(screenshot)
    b.eval("document.querySelector('.pf-at2').focus()")
    b.key('m')
    b.wait(f"!{LABEL.format(1, 'this')}")  # Only one face was given this time
    for _ in range(2):
        b.key('b')
    b.wait("document.querySelector('.pf-return').offsetWidth == 0")
    b.wait(DROPPED.format(2))
    b.eval("document.querySelector('.pf-at3').focus()")


def drive(b, decisions, screenshot):
    "Drop two faces, one by mouse and one by key, look for faces like others, and turn the page."
    b.wait("document.querySelectorAll('.pf-face').length == 50", 90)
    b.wait("getComputedStyle(document.querySelector('.pf-face')).backgroundImage.startsWith('url')")
    b.wait("!!document.querySelector('[data-lm-suppress-shortcuts]')")
    b.click('.pf-at3')
    b.wait(DROPPED.format(1))
    b.key('ArrowRight')
    b.key('x')
    b.wait(DROPPED.format(2))
    written = [json.loads(o) for o in decisions.read_text().splitlines()]
    assert len(written) == 2 and all(o['drop'] for o in written), written
    look_for_more(b, screenshot)
    assert len(decisions.read_text().splitlines()) == 2, 'looking for faces decides nothing'
    b.key('n')
    b.wait("document.querySelector('.pf-head').innerText.includes('50 looked at')")


def with_features(root):
    "Leave features where the curator looks for them, so that no kernel has to compute them"
    ims = load_faces(root)[1]
    feats = np.random.default_rng(0).normal(size=(len(ims), 64)).astype(np.float32)
    write_npz(root / f'eval/real-{load_protocol().version}-{content_hash(ims)}.npz', features=feats)


def in_classic_notebook(folder, python, decisions, screenshot):
    "The curator in classic Notebook 6.5 of the runtime."
    with notebook_server(python, folder) as (url, token), Browser(height=1000) as b:
        with b.page.expect_console_message(has_asked):  # ipywidgets asks a kernel that it joins for its widgets
            b.goto(f'{url}notebooks/a.ipynb?token={token}')
            b.wait('window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel')
            b.wait('Jupyter.notebook.kernel.is_connected()')
        b.eval('Jupyter.notebook.execute_cells([0])')  # Its answer comes after the answer to that
        b.wait("document.body.innerText.includes('ready to draw')")
        b.eval('Jupyter.notebook.execute_cells([1])')
        drive(b, decisions, screenshot)
        cells = b.eval('Jupyter.notebook.ncells()')
        assert cells == 2, f'a key of the curator reached the notebook: {cells} cells'


def in_jupyterlab(folder, python, decisions, screenshot, lab):
    "The curator in the JupyterLab of the Python `lab`, with the runtime as its kernel."
    with jupyter_lab(folder, Path(folder) / 'home', python=lab, kernel=python) as page, Browser(height=1000) as b:
        b.goto(page.address('a.ipynb'))
        editor = b.page.locator('.jp-Notebook .cm-content, .jp-Notebook .CodeMirror')
        for i, shown in enumerate(("document.body.innerText.includes('ready to draw')", 'true')):
            editor.nth(i).click()
            b.wait("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'")
            b.key('Shift+Enter')
            b.wait(shown)
        drive(b, decisions, screenshot)
        cells = b.page.locator('.jp-Notebook .jp-Cell').count()
        assert cells <= 3, f'a key of the curator reached the notebook: {cells} cells'


def main(runtime, screenshot=None, lab=None):
    if lacks:
        print(f'skipped: {lacks}')
        sys.exit(124)
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder) / 'root', 120)
        with_features(root)
        write_notebook(Path(folder) / 'a.ipynb', "print('ready', 'to', 'draw')", CODE.format(str(root)),
                       kernel='runtime' if lab else 'python3')
        python = Path(runtime).absolute() / 'bin/python'
        decisions = root / 'dataset/decisions.jsonl'
        if lab:
            in_jupyterlab(folder, python, decisions, screenshot, lab)
        else:
            in_classic_notebook(folder, python, decisions, screenshot)


if __name__ == '__main__':
    main(*sys.argv[1:])
