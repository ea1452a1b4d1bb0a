"""The curator of a runtime with ipywidgets 7.7, driven by mouse and keys in classic Notebook 6.5 and Chromium.

`colab_browser.py RUNTIME [SCREENSHOT.png]`; run by a Python that has pttface and Playwright.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(top), str(top / 'tests')]
from browser import Browser, lacks  # noqa: E402
from lab import stop, write_notebook  # noqa: E402
from test_curator import make  # noqa: E402

CODE = """from pttface.curation.curator import Curator
Curator({!r}, outliers=False, progress=False)"""
DROPPED = "document.querySelector('.pf-head').innerText.includes('{} dropped')"


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


def drive(url, token, decisions, screenshot):
    "Drop two faces, one by mouse and one by key, and turn the page."
    with Browser(height=1000) as b:
        b.goto(f'{url}notebooks/a.ipynb?token={token}')
        b.wait('window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel')
        b.wait('Jupyter.notebook.kernel.is_connected()')
        b.eval('Jupyter.notebook.execute_all_cells()')
        b.wait("document.querySelectorAll('.pf-face').length == 50", 90)
        b.wait("getComputedStyle(document.querySelector('.pf-face')).backgroundImage.startsWith('url')")
        b.click('.pf-at3')
        b.wait(DROPPED.format(1))
        b.key('ArrowRight')
        b.key('x')
        b.wait(DROPPED.format(2))
        written = [json.loads(o) for o in decisions.read_text().splitlines()]
        assert len(written) == 2 and all(o['drop'] for o in written), written
        if screenshot:
            b.screenshot(screenshot)
        b.key('n')
        b.wait("document.querySelector('.pf-head').innerText.includes('50 looked at')")
        cells = b.eval('Jupyter.notebook.ncells()')
        assert cells == 1, f'a key of the curator reached the notebook: {cells} cells'


def main(runtime, screenshot=None):
    if lacks:
        print(f'skipped: {lacks}')
        sys.exit(124)
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder) / 'root', 120)
        write_notebook(Path(folder) / 'a.ipynb', CODE.format(str(root)))
        with notebook_server(Path(runtime).absolute() / 'bin/python', folder) as (url, token):
            drive(url, token, root / 'dataset/decisions.jsonl', screenshot)


if __name__ == '__main__':
    main(*sys.argv[1:])
