"A stand-in for Google Drive: what is replaced or deleted there lands in a trash that counts against its 15 GB."
import errno
import os
from pathlib import Path

MONTH = 30*86_400  # Seconds that a file stays in the trash


class FakeDrive:
    "A folder whose replaced and deleted files count against `capacity` for 30 days of the clock `now`"
    def __init__(self, folder, capacity, setattr_=setattr, counts=None):
        self.folder, self.capacity, self.now = Path(folder).resolve(), capacity, 0.
        self.counts = {} if counts is None else counts
        self.counts['trash'] = 0
        self.trash, self.most = [], 0
        self.real = {k: getattr(os, k) for k in ('replace', 'rename', 'unlink', 'fsync')}
        for name in self.real:
            setattr_(os, name, getattr(self, name))
        setattr_(os, 'remove', self.unlink)

    def holds(self, path):
        return os.path.realpath(os.path.dirname(os.fspath(path))).startswith(str(self.folder))

    def throw_away(self, path):
        if self.holds(path) and os.path.isfile(path):
            self.trash.append((self.now, os.stat(path).st_size))
            self.counts['trash'] = self.trashed

    @property
    def trashed(self):
        "Bytes in the trash."
        self.trash = [(t, n) for t, n in self.trash if t > self.now - MONTH]
        return sum(n for _, n in self.trash)

    @property
    def used(self):
        "Bytes of files and trash."
        return self.trashed + sum(p.stat().st_size for p in self.folder.rglob('*') if p.is_file())

    def check(self):
        self.most = max(self.most, self.used)
        if self.most > self.capacity:
            raise OSError(errno.ENOSPC, 'No space left on device')

    def replace(self, src, dst, **kw):
        self.throw_away(dst)
        self.real['replace'](src, dst, **kw)

    def rename(self, src, dst, **kw):
        self.throw_away(dst)
        self.real['rename'](src, dst, **kw)

    def unlink(self, path, **kw):
        if not kw:
            self.throw_away(path)
        self.real['unlink'](path, **kw)

    def fsync(self, fd):
        self.real['fsync'](fd)
        if self.holds(os.readlink(f'/proc/self/fd/{fd}')):
            self.check()
