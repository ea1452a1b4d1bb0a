"""Run the Colab notebook as Colab would, with a stand-in for `google.colab`: `driver_worker.py CONTENT [SECONDS]`.

Drive is a folder under CONTENT/drive whose file operations are slow and sometimes fail, and which keeps a trash. With
DRIVE_BYTES it is full at that size and before each stage, and whenever a cell stops for that, some room is made and the
cell is run again; with LOST it is out of reach from the cell that holds this text until a cell stops for that.
"""
import builtins
import dataclasses
import errno
import functools
import io
import json
import os
import random
import sys
import time
import types
from pathlib import Path

from fake_drive import FakeDrive

content = Path(sys.argv[1]).absolute()
budget = sys.argv[2] if len(sys.argv) > 2 else '6s'
mine = content / 'drive/MyDrive'
faults = random.Random(int(os.environ.get('FAULT_SEED', 0)))
counts = dict(calls=0, faults=0, mounts=0, flushes=0, released=0, offered=[], stopped=[])
lost = os.environ.get('LOST', '')
in_reach = True


def unreliable(f, where=0):
    "A file operation that is slow under Drive, fails one time in twelve, and when a folder holds too many files."
    def wrapped(*a, **kw):
        p = a[where] if len(a) > where and isinstance(a[where], (str, os.PathLike)) else None
        if p is None or not str(p).startswith(str(mine)):
            return f(*a, **kw)
        counts['calls'] += 1
        time.sleep(.002)
        if not in_reach:
            raise OSError(errno.ENOTCONN, 'Transport endpoint is not connected', str(p))
        if faults.random() < 1/12:
            counts['faults'] += 1
            raise OSError(errno.EIO, 'Input/output error', str(p))
        folder = Path(p).parent
        new = f is real_open and 'w' in str(a[1:2]) and not Path(p).exists()
        if new and folder.is_dir() and len(os.listdir(folder)) >= 1000:
            raise OSError(errno.EIO, 'Too many files', str(p))
        return f(*a, **kw)
    return wrapped


real_open = builtins.open
builtins.open = io.open = unreliable(real_open)
os.replace, os.rename = unreliable(os.replace, 1), unreliable(os.rename, 1)
os.scandir = unreliable(os.scandir)
os.fsync, real_fsync = (lambda fd: real_fsync(fd)), os.fsync
fake = FakeDrive(content.parent / 'MyDrive', float(os.environ.get('DRIVE_BYTES', 15e9)), counts=counts)


def mount(path, *a, **kw):
    assert str(path) == str(content / 'drive') and not Path(path).exists(), 'mounted twice'
    mine.parent.mkdir(parents=True)
    os.symlink(content.parent / 'MyDrive', mine)
    counts['mounts'] += 1


def refuse(path, *a, **kw):
    counts['mounts'] += 1
    raise ValueError('mount failed: credential propagation was unsuccessful')


def flush_and_unmount():
    counts['flushes'] += 1


google, colab = types.ModuleType('google'), types.ModuleType('google.colab')
mount_or_refuse = refuse if os.environ.get('MOUNT_FAILS') else mount
colab.drive = types.SimpleNamespace(mount=mount_or_refuse, flush_and_unmount=flush_and_unmount)
colab.files = types.SimpleNamespace(download=lambda path: counts['offered'].append(path))
colab.runtime = types.SimpleNamespace(unassign=lambda: counts.update(released=1))
google.__path__, colab.__path__, google.colab = [], [], colab
for m in (google, colab):
    m.__spec__ = types.SimpleNamespace(name=m.__name__, submodule_search_locations=[], loader=None, origin=None,
                                       parent=m.__name__.rpartition('.')[0])
sys.modules.update({'google': google, 'google.colab': colab})

from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from pttface.training.config import RECIPES  # noqa: E402

import pttface.app.colab as page  # noqa: E402

RECIPES['tiny'] = dataclasses.replace(RECIPES['tiny'], save='1s', report='200 images')
page.download = functools.partial(page.download, rate=15, streams=1)
shell = InteractiveShell.instance()
shell.run_line_magic, asked = (lambda name, line: asked.append((name, line))), []
top = Path(__file__).resolve().parent.parent
chosen = (("keep = 'auto'", f"keep = '{os.environ.get('KEEP', 'Drive')}'"), ("budget = ''", f"budget = '{budget}'"),
          ('photos, keep)', 'photos, keep, samples=12, seeds=2)'),
          ('Session(chosen)', f'Session(chosen, {str(content)!r}, every=.3, n_photos=40)'))
for i, cell in enumerate(json.loads((top / 'nbs/colab.ipynb').read_text())['cells']):
    if cell['cell_type'] != 'code':
        continue
    source = ''.join(cell['source'])
    for text, instead in chosen:
        source = source.replace(text, instead)
    if os.environ.get('UNTIL') and os.environ['UNTIL'] in source:
        break
    in_reach = in_reach and not (lost and lost in source)
    if 'DRIVE_BYTES' in os.environ and 'keeping' in source:
        fake.capacity = min(fake.capacity, fake.used + 1000)
    for attempt in range(12):
        r = shell.run_cell(source, silent=True)
        error = r.error_before_exec or r.error_in_exec
        if error is None:
            break
        counts['stopped'].append((source.splitlines()[0], f'{type(error).__name__}: {error}'))
        if in_reach and 'Drive is full' not in str(error):
            sys.exit(f'cell {i}: {error!r}')
        in_reach, lost = True, ''
        fake.capacity = max(fake.capacity, fake.used + 4**attempt*20_000)
    else:
        sys.exit(f'cell {i} did not come to its end')
    if source.startswith('session ='):
        print(shell.user_ns['session'], flush=True)
assert {o[0] for o in asked} == {'pip'} and 'pttface @' in asked[0][1] and 'insightface' in asked[1][1]
real_open(content / 'counts.json', 'w').write(json.dumps(counts))
