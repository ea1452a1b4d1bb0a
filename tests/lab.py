"A real JupyterLab on loopback for tests, with a notebook to open in it and a kernel that is this Python."
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

needs_lab = pytest.mark.skipif(find_spec('jupyterlab') is None, reason='no JupyterLab: `pip install jupyterlab`')


def write_notebook(path, *cells, kernel='python3'):
    "A notebook of code cells for the kernel of that name."
    empty = dict(cell_type='code', metadata={}, outputs=[], execution_count=None)
    made = [dict(empty, id=f'cell{i}', source=s) for i, s in enumerate(cells)]
    kernel = dict(display_name=kernel, language='python', name=kernel)
    Path(path).write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))


class Lab:
    "A running JupyterLab."
    def __init__(self, url, token):
        self.url, self.token = url, token

    def address(self, name):
        "Where a notebook opens, alone in the window."
        return f'{self.url}doc/tree/{name}?token={self.token}&reset'

    def ask(self, path, method='GET'):
        "What its REST interface answers."
        request = Request(f'{self.url}api/{path}', method=method, headers={'Authorization': f'token {self.token}'})
        with urlopen(request, timeout=60) as r:
            return json.load(r)

    def restart_kernels(self):
        "Kill the kernels and start them anew, as Kernel ▸ Restart does."
        for k in self.ask('kernels'):
            self.ask(f'kernels/{k["id"]}/restart', 'POST')


@contextmanager
def jupyter_lab(folder, home, patience=120, python=sys.executable, kernel=None):
    """Serve `folder`; everything Jupyter keeps goes to `home`. Yields a `Lab`.

    `python` has JupyterLab; the Python `kernel`, if given, runs the notebooks whose kernel is called `runtime`.
    """
    folders = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_RUNTIME_DIR='runtime', JUPYTER_DATA_DIR='data',
                   IPYTHONDIR='ipython', JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces')
    env = {**os.environ, 'TQDM_DISABLE': '1'} | {k: str(Path(home)/v) for k, v in folders.items()}
    flags = ['--no-browser', '--allow-root', '--port=0', '--ip=127.0.0.1', f'--ServerApp.root_dir={folder}',
             '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    quiet = Path(home)/'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false"}')
    if kernel:
        spec = dict(argv=[str(kernel), '-m', 'ipykernel_launcher', '-f', '{connection_file}'], language='python',
                    display_name='runtime')
        path = Path(home)/'data/kernels/runtime/kernel.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(spec))
    command = [str(python), '-m', 'jupyterlab', *flags]
    with open(Path(home)/'server.log', 'wb') as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        start, found = time.time(), []
        while not found:
            if server.poll() is not None or time.time() - start > patience:
                raise RuntimeError(f'JupyterLab did not start:\n{(Path(home)/"server.log").read_text()[-3000:]}')
            time.sleep(.2)
            found = [o for o in map(_read, (Path(home)/'runtime').glob('jpserver-*.json')) if o]
        yield Lab(found[0]['url'], found[0]['token'])
    finally:
        stop(server)


def stop(server, patience=20):
    "End a process that was started here; by force when it has not ended after so many seconds."
    server.terminate()
    try:
        server.wait(patience)
    except subprocess.TimeoutExpired:
        server.kill()


def _read(path):
    "The JSON of a file; nothing while it is being written"
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None
