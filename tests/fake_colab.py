"A stand-in for Colab: `google.colab`, and a Drive that is slow, fails now and then and keeps a trash; its cells"
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

top = Path(__file__).resolve().parent.parent
real_open = builtins.open


class FakeColab:
    """Colab on a machine whose /content is `content`; its Drive is the folder MyDrive beside that.

    `counts` says what was asked of it; while `in_reach` is false, nothing on Drive can be reached.
    """
    def __init__(self, content, seed=0, capacity=15e9, mount_fails=False):
        self.content = Path(content).absolute()
        self.mine = self.content / 'drive/MyDrive'
        self.faults = random.Random(seed)
        self.in_reach, self.mount_fails = True, mount_fails
        self.counts = dict(calls=0, faults=0, mounts=0, flushes=0, released=0, offered=[], stopped=[])
        self._make_drive_unreliable()
        self.drive = FakeDrive(self.content.parent / 'MyDrive', capacity, counts=self.counts)
        self._add_modules()

    def _make_drive_unreliable(self):
        builtins.open = io.open = self.unreliable(real_open)
        os.replace, os.rename = self.unreliable(os.replace, 1), self.unreliable(os.rename, 1)
        os.scandir = self.unreliable(os.scandir)
        real_fsync = os.fsync
        os.fsync = lambda fd: real_fsync(fd)

    def unreliable(self, f, where=0):
        "A file operation that is slow under Drive, fails one time in twelve, and when a folder holds too many files."
        def wrapped(*a, **kw):
            p = a[where] if len(a) > where and isinstance(a[where], (str, os.PathLike)) else None
            if p is None or not str(p).startswith(str(self.mine)):
                return f(*a, **kw)
            self.counts['calls'] += 1
            time.sleep(.002)
            if not self.in_reach:
                raise OSError(errno.ENOTCONN, 'Transport endpoint is not connected', str(p))
            if self.faults.random() < 1/12:
                self.counts['faults'] += 1
                raise OSError(errno.EIO, 'Input/output error', str(p))
            folder = Path(p).parent
            new = f is real_open and 'w' in str(a[1:2]) and not Path(p).exists()
            if new and folder.is_dir() and len(os.listdir(folder)) >= 1000:
                raise OSError(errno.EIO, 'Too many files', str(p))
            return f(*a, **kw)
        return wrapped

    def mount(self, path, *a, **kw):
        self.counts['mounts'] += 1
        if self.mount_fails:
            raise ValueError('mount failed: credential propagation was unsuccessful')
        assert str(path) == str(self.content / 'drive') and not Path(path).exists(), 'mounted twice'
        self.mine.parent.mkdir(parents=True)
        os.symlink(self.content.parent / 'MyDrive', self.mine)

    def flush_and_unmount(self):
        self.counts['flushes'] += 1

    def _add_modules(self):
        google, colab = types.ModuleType('google'), types.ModuleType('google.colab')
        colab.drive = types.SimpleNamespace(mount=self.mount, flush_and_unmount=self.flush_and_unmount)
        colab.files = types.SimpleNamespace(download=self.counts['offered'].append)
        colab.runtime = types.SimpleNamespace(unassign=lambda: self.counts.update(released=1))
        google.__path__, colab.__path__, google.colab = [], [], colab
        for m in (google, colab):
            m.__spec__ = types.SimpleNamespace(name=m.__name__, submodule_search_locations=[], loader=None, origin=None,
                                               parent=m.__name__.rpartition('.')[0])
        sys.modules.update({'google': google, 'google.colab': colab})


def quick():
    """Save and report often in training, and download slowly enough to be cut off; call it before the notebook begins.

    With BOARD_PHOTOS, a file, the board's photos are drawn once for all sessions.
    """
    import pttface.app.colab as page
    from pttface.synthetic import board
    from pttface.training.config import RECIPES
    board.make_board = functools.partial(board.make_board, cache=os.environ.get('BOARD_PHOTOS'))
    RECIPES['tiny'] = dataclasses.replace(RECIPES['tiny'], save='1s', report='200 images')
    page.download = functools.partial(page.download, rate=15, streams=1)


def cells(content, budget='6s', keep='Drive'):
    "The notebook's code cells, with a small board, a short training and few samples."
    chosen = (("keep = 'auto'", f"keep = '{keep}'"), ("budget = ''", f"budget = '{budget}'"),
              ('photos, keep)', 'photos, keep, samples=12, seeds=2)'),
              ('Session(chosen)', f'Session(chosen, {str(content)!r}, every=.3, n_photos=40)'))
    for cell in json.loads((top / 'nbs/colab.ipynb').read_text())['cells']:
        source = ''.join(cell['source'])
        for text, instead in chosen:
            source = source.replace(text, instead)
        if cell['cell_type'] == 'code':
            yield source
