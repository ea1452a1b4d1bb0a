"""What tools/colab_check.py does inside the runtime it builds: `colab_inside.py packages`, `install`, `run NOTEBOOK`.

Needs only what Colab has; nbdev, which a runtime lacks, is not used here.
"""
import json
import re
import shlex
import subprocess
import sys
import types
from collections import defaultdict
from importlib.metadata import distributions
from itertools import combinations
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
DRIVER = TOP / 'nbs/colab.ipynb'
SOURCE = 'pttface @ git+https://github.com/pttface/pttface'
SKIPPED = re.compile(r'^#\|\s*(eval:\s*false|slow|cuda|network)\b', re.M)
COLAB_CUDA = '12.8'  # Colab's PyTorch is built for it; the same version from PyPI may be built for another
DRAWN_BY_7 = ('@jupyter-widgets/base', '@jupyter-widgets/controls', '@jupyter-widgets/output')


def name_of(distribution):
    "The name of a distribution as pip compares names."
    return re.sub(r'[-_.]+', '-', distribution.metadata['Name']).lower()


def code_cells(notebook):
    "The sources of a notebook's code cells."
    cells = json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def packages():
    "What is installed: version by name, and how many files each two distributions share."
    versions, owners = {}, defaultdict(set)
    for d in distributions():
        name = name_of(d)
        versions[name] = d.version
        for f in map(str, d.files or ()):
            if not f.startswith('..') and '__pycache__' not in f and not f.endswith('.pth'):
                owners[f].add(name)
    shared = defaultdict(int)
    for names in owners.values():
        for pair in combinations(sorted(names), 2):
            shared[' and '.join(pair)] += 1
    return dict(versions=versions, shared=shared)


def install_cells(cells):
    "The cells that install, with those above them that they need."
    last = max(i for i, source in enumerate(cells) if "'pip'" in source)
    return cells[:last + 1]


def install():
    "Run the driver's own install cells as Colab would, with this checkout in the place of GitHub."
    google, colab = types.ModuleType('google'), types.ModuleType('google.colab')
    google.__path__, colab.__path__, google.colab = [], [], colab
    sys.modules.update({'google': google, 'google.colab': colab})
    import torch
    from IPython.core.interactiveshell import InteractiveShell
    torch.version.cuda = COLAB_CUDA
    shell = InteractiveShell.instance()

    def pip(name, line, **_):
        assert name == 'pip', name
        line = line.replace(SOURCE, f'pttface @ {TOP.as_uri()}')
        print('pip', line, flush=True)
        subprocess.run([sys.executable, '-m', 'pip', *shlex.split(line)], check=True)

    shell.run_line_magic = pip
    for source in install_cells(code_cells(DRIVER)):
        r = shell.run_cell(source)
        if r.error_before_exec or r.error_in_exec:
            raise SystemExit(f'{r.error_before_exec or r.error_in_exec!r}')


def not_drawn(state):
    "Which widgets ipywidgets 7.7 cannot draw: another module than its own, or another version of its protocol."
    out = []
    for model in state.values():
        values = model.get('state', {})
        for part in ('model', 'view'):
            module, version = values.get(f'_{part}_module'), str(values.get(f'_{part}_module_version', ''))
            if module is not None and (module not in DRAWN_BY_7 or not re.match(r'[\^~]?1\.', version)):
                out.append(f'{values.get(f"_{part}_name")} of {module} {version}')
    return sorted(set(out))


def run(notebook):
    "Run a notebook under this runtime's kernel, as nbdev's tests would; what it draws must be drawn by ipywidgets 7.7."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(notebook, 4)
    for cell in nb.cells:
        if cell.cell_type == 'code' and (SKIPPED.search(cell.source) or 'import nbdev_export' in cell.source):
            cell.source = ''
    client = NotebookClient(nb, timeout=900, kernel_name='python3', store_widget_state=True,
                            resources={'metadata': {'path': str(Path(notebook).parent)}})
    client.execute()
    bad = not_drawn(client.widget_state)
    if bad:
        raise SystemExit(f'ipywidgets 7.7 draws nothing for {"; ".join(bad)}')
    print(f'{len(client.widget_state)} widgets')


if __name__ == '__main__':
    if sys.argv[1] == 'packages':
        print(json.dumps(packages()))
    elif sys.argv[1] == 'install':
        install()
    else:
        run(Path(sys.argv[2]).resolve())
