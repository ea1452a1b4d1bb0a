"Files that must survive full disks, killed writers, other processes and foreign tars."
import errno,io,json,os,resource,signal,socket,subprocess,sys,tarfile,time
from pathlib import Path

import numpy as np
import pytest

from pttface.storage.shards import crops_of_rows
from pttface.storage import files
from pttface.storage.files import (JOURNAL,LOCK,MARKER,BadInput,Lease,Ledger,append_whole,atomic_path,dumps,locked,
                                   open_root,read_json,read_jsonl,read_npz,read_tar,remove,remove_tree,sweep,write_json,
                                   write_jsonl,write_npz,write_tar)

def full_after(n, code):
    "Run `code` in a process whose files may hold `n` bytes"
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    return subprocess.run([sys.executable, '-c', code], preexec_fn=limit, capture_output=True, text=True)

def test_a_full_disk_takes_no_row_apart(tmp_path):
    code = f'''
from pttface.storage.files import Ledger
ledger,errors = Ledger({str(tmp_path/'l.jsonl')!r}),0
for i in range(20):
    try:
        ledger.append(dict(key=str(i), text='x'*70))
    except OSError:
        errors += 1
print(errors, len(ledger))
'''
    errors,rows = map(int, full_after(1000, code).stdout.split())
    assert errors > 0 and errors + rows == 20
    assert len(read_jsonl(tmp_path/'l.jsonl')) == rows and (tmp_path/'l.jsonl').read_bytes().endswith(b'\n')

def test_append_whole_takes_back_a_short_write(tmp_path):
    class Full(io.FileIO):
        def write(self, data):
            return super().write(bytes(data[:5])) if len(data) > 5 else 0
    with Full(tmp_path/'f', 'ab') as f:
        with pytest.raises(OSError, match='of 12 bytes'):
            append_whole(f, b'x'*12)
    assert (tmp_path/'f').read_bytes() == b''

def test_reading_a_ledger_changes_nothing(tmp_path):
    path = tmp_path/'l.jsonl'
    with Ledger(path) as writer:
        writer.append(dict(key='a'))
        with open(path, 'ab') as f:
            f.write(b'{"key": "b", "te')
        assert len(Ledger(path)) == 1
        with open(path, 'ab') as f:
            f.write(b'xt": 1}\n')
    assert [r['key'] for r in read_jsonl(path)] == ['a','b']
    path.write_bytes(path.read_bytes() + b'{"key": "c"')
    with Ledger(path) as writer:
        writer.append(dict(key='d'))
    assert [r['key'] for r in read_jsonl(path)] == ['a','b','d']

def ended_pid():
    p = subprocess.Popen([sys.executable, '-c', ''])
    p.wait()
    return p.pid

def test_files_of_killed_writers_are_swept(tmp_path):
    code = f'''
import os, signal
from pttface.storage.files import atomic_path
with atomic_path({str(tmp_path/'a.npz')!r}) as p:
    p.write_bytes(bytes(99))
    os.kill(os.getpid(), signal.SIGKILL)
'''
    subprocess.run([sys.executable, '-c', code])
    assert len(list(tmp_path.glob('.a.npz.*.tmp'))) == 1
    old,new = tmp_path/'.b.npz.abcdefgh.tmp',tmp_path/'.c.npz.abcdefgh.tmp'
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    with atomic_path(tmp_path/'d.npz') as p:
        p.write_bytes(b'd')
    assert {o.name for o in tmp_path.iterdir()} == {'d.npz', new.name}
    with atomic_path(tmp_path/'d.npz') as p:
        assert sweep(tmp_path) == [] and p.exists()

def test_the_folder_is_synced(tmp_path, monkeypatch):
    synced,real = [],os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(os.readlink(f'/proc/self/fd/{fd}')) or real(fd))
    with atomic_path(tmp_path/'a') as p:
        p.write_bytes(b'a')
    assert synced[-1] == str(tmp_path) and len(synced) == 2

def test_one_writer_a_root(tmp_path):
    root = open_root(tmp_path/'root', create=True)
    code = f'''
import sys
from pttface.storage.files import locked
with locked({str(root)!r}, 'crawl'):
    print('in', flush=True)
    sys.stdin.read()
'''
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'in\n'
    with pytest.raises(BadInput, match=rf'`pttface crawl` \(process {p.pid} on {socket.gethostname()}, since 2'):
        with locked(root, 'download'):
            pass
    p.kill()
    p.wait()
    with locked(root, 'download'):
        assert json.loads((root/LOCK).read_text())['stage'] == 'download'
    assert not (root/LOCK).exists()
    p.stdin.close()
    p.stdout.close()

@pytest.mark.parametrize(('host','pid','age','free'), [('elsewhere', 1, 0, False), ('elsewhere', 1, 3600, True),
                                                       ('here', 'ended', 0, True), ('here', 'mine', 0, True),
                                                       ('damaged', 1, 0, False), ('damaged', 1, 60, True)])
def test_locks_of_the_dead(tmp_path, host, pid, age, free):
    root = open_root(tmp_path/'root', create=True)
    pid = dict(ended=ended_pid(), mine=os.getpid()).get(pid, pid)
    host = socket.gethostname() if host == 'here' else host
    text = dumps(dict(stage='faces', host=host, pid=pid, time='then', born='1', id='00'))
    (root/LOCK).write_text('' if host == 'damaged' else text)
    os.utime(root/LOCK, (time.time() - age,)*2)
    if free:
        with locked(root, 'download'):
            pass
        assert not (root/LOCK).exists()
    else:
        with pytest.raises(BadInput, match='is being written by'), locked(root, 'download'):
            pass
        assert (root/LOCK).exists()

def parts(i):
    return {'jpg':bytes([i])*900, 'json':b'{"n": %d}' % i}

def test_any_flipped_bit_of_a_header_is_noticed(tmp_path):
    write_tar(tmp_path/'a.tar', [(f'{i:07d}', parts(i)) for i in range(4)])
    whole = list(read_tar(tmp_path/'a.tar'))
    body,rng = (tmp_path/'a.tar').read_bytes(),np.random.default_rng(0)
    with tarfile.open(tmp_path/'a.tar') as t:
        offsets = [m.offset for m in t]
    for n,at in enumerate(offsets):
        for bit in rng.integers(0, 257*8, 12):
            hurt = bytearray(body)
            hurt[at + bit//8] ^= 1 << bit % 8
            (tmp_path/'b.tar').write_bytes(hurt)
            last = f'{(n - 1)//2:07d}' if n else 'None'
            try:
                assert list(read_tar(tmp_path/'b.tar')) == whole and 154 <= bit//8 < 156  # behind the checksum
            except BadInput as e:
                assert f'damaged after {last}' in str(e)
        if at == offsets[-1]:
            break
        zeros = bytearray(body)
        zeros[at:at+1024] = bytes(1024)
        (tmp_path/'b.tar').write_bytes(zeros)
        with pytest.raises(BadInput, match='damaged after'):
            list(read_tar(tmp_path/'b.tar'))

def packed(path, names):
    with tarfile.open(path, 'w') as t:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith('/') else tarfile.REGTYPE
            info.size = 0 if name.endswith('/') else len(name)
            t.addfile(info, io.BytesIO(name.encode()))
    return path

def as_webdataset(path):
    import webdataset
    return [(Path(s['__key__']).name, {k:v for k,v in s.items() if k[0] != '_'})
            for s in webdataset.WebDataset(str(path), shardshuffle=False)]

@pytest.mark.parametrize('names', [
    ['./', './1.jpg', './1.json', './2.jpg', './2.json'],
    ['x/', 'x/y/', 'x/y/1.jpg', 'x/y/1.json', 'x/y/2.json'],
    ['._1.jpg', '1.jpg', '._1.json', '1.json', '.DS_Store', '2.jpg', '2.json'],
    ['README', '1.JPG', '1.json', '2.jpg', '3.json'],
    ['a/1.jpg', 'a/1.json', 'b/2.jpg', 'b/2.json']])
def test_tars_of_others_are_read_as_webdataset_reads_them(tmp_path, names):
    path = packed(tmp_path/'a.tar', names)
    assert list(read_tar(path)) == as_webdataset(path)

@pytest.mark.parametrize('names', [['a/1.jpg','b/1.jpg','a/1.json','b/1.json'],
                                   ['a/1.jpg','a/1.json','b/1.json','b/1.jpg'],
                                   ['1.jpg','2.jpg','1.json','2.json'], ['1.jpg','1.jpg']])
def test_two_photos_of_one_name_are_an_error(tmp_path, names):
    with pytest.raises(BadInput, match='damaged after 2?1?: .*1.* comes twice'):
        list(read_tar(packed(tmp_path/'a.tar', names)))

def test_crops_are_joined_by_key():
    rows = [dict(key=k, status='kept', row=i) for i,k in enumerate('abc')] + [dict(key='e', status='dropped')]
    ims = np.arange(3).reshape(3,1,1,1)
    moved = dict(key=np.array(['c','x','a']), im64=ims)
    assert crops_of_rows(moved, rows[:1] + rows[2:], 'f')[64].ravel().tolist() == [2,0]
    assert crops_of_rows(dict(im64=ims), rows, 'f')[64].ravel().tolist() == [0,1,2]
    with pytest.raises(BadInput, match='no crop of b .1 of 3'):
        crops_of_rows(dict(key=np.array(['c','x','a']), im64=ims), rows, 'f')

def refusing(code, only_over=False):
    "A call of `os` that a file system does not have, or only when the new name is taken"
    def call(*args, **kwargs):
        if only_over and not os.path.lexists(args[1]):
            return real_rename(*args, **kwargs)
        raise OSError(code, os.strerror(code))
    return call

real_rename = os.rename
CODES = [errno.EPERM, errno.ENOTSUP, errno.EEXIST, errno.EINVAL, errno.ENOSYS, errno.EACCES]

@pytest.mark.parametrize('code', CODES)
@pytest.mark.parametrize('calls', [('chmod',), ('fsync',), ('link',), ('replace',), ('rename',),
                                   ('chmod','fsync','link','symlink','replace','rename')])
def test_file_systems_that_refuse_a_call(tmp_path, monkeypatch, code, calls):
    root = open_root(tmp_path/'root', create=True)
    for name in calls:
        monkeypatch.setattr(os, name, refusing(code, only_over=name in ('rename','replace')))
    for i in range(3):
        write_json(root/'a.json', dict(i=i))
        write_jsonl(root/'a.jsonl', [dict(i=i)])
        write_npz(root/'a.npz', i=np.array(i))
        write_tar(root/'a.tar', [('0100000', dict(jpg=b'%d' % i))])
        with Ledger(root/'ledger.jsonl', sync=True) as ledger:
            ledger.append(dict(key=i))
            ledger.compact()
        with locked(root, 'download'):
            pass
    assert read_json(root/'a.json') == dict(i=2) and read_npz(root/'a.npz')['i'] == 2
    assert len(Ledger(root/'ledger.jsonl')) == 3
    assert {o.name for o in root.iterdir()} == {MARKER,'a.json','a.jsonl','a.npz','a.tar','ledger.jsonl'}

def test_a_rename_that_is_always_refused_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path/'a.json', 'old')
    monkeypatch.setattr(os, 'replace', refusing(errno.EEXIST))
    monkeypatch.setattr(os, 'rename', lambda src, dst: real_rename(src, dst) if '.old.tmp' in f'{src}{dst}' else
                        refusing(errno.EACCES)())
    with pytest.raises(OSError):
        write_json(tmp_path/'a.json', 'new')
    assert [o.name for o in tmp_path.iterdir()] == ['a.json'] and read_json(tmp_path/'a.json') == 'old'

def test_a_file_that_had_stepped_aside_comes_back(tmp_path, monkeypatch):
    write_json(tmp_path/'a.json', 'old')
    name = f'.a.json.{files._machine()}-{ended_pid()}.old.tmp'
    (tmp_path/'a.json').rename(tmp_path/name)
    (tmp_path/f'.b.json.{files._machine()}-{ended_pid()}.x.tmp').touch()
    assert len(sweep(tmp_path)) == 1 and read_json(tmp_path/'a.json') == 'old'

@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_disk_that_fills_leaves_the_last_good_file(tmp_path, monkeypatch, code):
    write_json(tmp_path/'a.json', 'old')
    def full(fd):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError) as e:
        write_json(tmp_path/'a.json', 'new')
    assert e.value.errno == code
    assert [o.name for o in tmp_path.iterdir()] == ['a.json'] and read_json(tmp_path/'a.json') == 'old'

def test_a_file_larger_than_the_disk_leaves_the_last_good_one(tmp_path):
    write_npz(tmp_path/'a.npz', x=np.zeros(9))
    code = f'''
import numpy as np
from pttface.storage.files import write_npz
try:
    write_npz({str(tmp_path/'a.npz')!r}, x=np.ones(9999))
except OSError as e:
    print(e.errno)
'''
    assert full_after(5000, code).stdout.strip() == str(errno.EFBIG)
    assert [o.name for o in tmp_path.iterdir()] == ['a.npz'] and (read_npz(tmp_path/'a.npz')['x'] == 0).all()

def test_no_read_only_file_is_synced(tmp_path, monkeypatch):
    import fcntl
    flags = []
    def fsync(fd):
        if not os.path.isdir(f'/proc/self/fd/{fd}'):
            flags.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
    monkeypatch.setattr(os, 'fsync', fsync)
    write_json(tmp_path/'a.json', {})
    assert flags and os.O_RDONLY not in flags

def test_windows_is_never_asked_whether_a_process_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(files, '_WINDOWS', True)
    monkeypatch.setattr(os, 'kill', lambda *a: pytest.fail('on Windows this ends the process'))
    root = open_root(tmp_path/'root', create=True)
    left = root/f'.a.npz.{files._machine()}-{ended_pid()}.x.tmp'
    left.touch()
    assert sweep(root) == [] and sweep(root, old=-1) == [left.name]
    lock = dict(stage='faces', host=socket.gethostname(), pid=ended_pid(), time='then', born=None, id='00')
    for age,free in ((0, False), (3600, True)):
        (root/LOCK).write_text(dumps(lock))
        os.utime(root/LOCK, (time.time() - age,)*2)
        if free:
            with locked(root, 'download'):
                pass
        else:
            with pytest.raises(BadInput, match='if it has ended, this works in 600 s|in 599 s'), locked(root, 'x'):
                pass

def test_a_machine_of_the_same_name_is_another_one(tmp_path):
    root = open_root(tmp_path/'root', create=True)
    me = dict(stage='train', host=socket.gethostname(), boot='another', pid=ended_pid(), time='then', born='1', id='00')
    (root/LOCK).write_text(dumps(me))
    with pytest.raises(BadInput, match='is being written by `pttface train`'), locked(root, 'train'):
        pass
    os.utime(root/LOCK, (0, 0))
    with locked(root, 'train'):
        pass

def test_a_lock_is_renewed_and_its_loss_is_noticed(tmp_path):
    lock = Lease(tmp_path/LOCK, 'train', silent=.04)
    lock.take()
    os.utime(tmp_path/LOCK, (0, 0))
    for _ in range(500):
        if (tmp_path/LOCK).stat().st_mtime:
            break
        time.sleep(.01)
    assert (tmp_path/LOCK).stat().st_mtime and lock.mine
    (tmp_path/LOCK).unlink()
    lock.check()
    assert lock.mine
    lock.give_back()
    assert not (tmp_path/LOCK).exists() and not lock.mine

def test_a_lock_that_another_machine_took_over_is_lost(tmp_path):
    lock = Lease(tmp_path/LOCK, 'train')
    lock.take()
    other = dict(stage='train', host='elsewhere', pid=7, time='then', born='1', id='00')
    (tmp_path/LOCK).write_text(dumps(other))
    with pytest.raises(BadInput, match='process 7 on elsewhere, since then'):
        lock.check()
    lock.give_back()
    assert read_json(tmp_path/LOCK) == other

def test_only_what_is_removed_on_purpose_is_noted(tmp_path):
    root = open_root(tmp_path/'root', create=True)
    write_json(root/'a.json', {})
    remove(root/'a.json')
    assert not (root/JOURNAL).exists()
    (root/JOURNAL).touch()
    for name in ('b.json','runs/x/c.json','runs/x/d/e.json','f.json'):
        write_json(root/name, {})
    write_json(tmp_path/'g.json', {})
    remove(root/'b.json')
    remove(root/'b.json')
    remove(tmp_path/'g.json')
    remove_tree(root/'runs')
    remove_tree(root/'runs')
    (root/'f.json').unlink()
    assert [r['path'] for r in read_jsonl(root/JOURNAL)] == ['b.json','runs/x/c.json','runs/x/d/e.json']
    assert not (root/'runs').exists() and not (tmp_path/'g.json').exists()

def test_on_a_network_disk_files_are_cut_before_they_go(tmp_path, monkeypatch):
    root,sizes,real = open_root(tmp_path/'root', create=True),[],os.unlink
    monkeypatch.setattr(files, 'on_network_disk', lambda p: True)
    monkeypatch.setattr(os, 'unlink', lambda p: sizes.append(os.stat(p).st_size) or real(p))
    (root/'a.pt').write_bytes(bytes(99))
    remove(root/'a.pt')
    assert sizes == [0] and [o.name for o in root.iterdir()] == [MARKER]

def test_a_part_of_a_root_has_a_lock_of_its_own(tmp_path):
    root = open_root(tmp_path/'root', create=True)
    with locked(root, 'train', folder='runs/a'), locked(root, 'train', folder='runs/b'), locked(root, 'download'):
        with pytest.raises(BadInput, match=r'runs/a is being written by `pttface train`'):
            with locked(root, 'train', folder='runs/a'):
                pass
    with pytest.raises(FileNotFoundError):
        Lease(tmp_path/'nowhere'/LOCK, 'train').take()

def test_numbers_of_processes_come_again(tmp_path):
    "A process that began after a temporary file was written is not the one that wrote it."
    mine,parent = (tmp_path/f'.a.npz.{files._machine()}-{pid}.x.tmp' for pid in (os.getpid(), os.getppid()))
    for p in (mine, parent):
        p.touch()
    assert sweep(tmp_path) == [mine.name]
    os.utime(parent, (files._began(os.getppid()) - 60,)*2)
    assert sweep(tmp_path) == [parent.name]

def test_a_long_write_is_not_swept(tmp_path):
    with atomic_path(tmp_path/'a.npz') as p:
        os.utime(p, (time.time() - 3*86_400,)*2)
        assert sweep(tmp_path) == [] and p.exists()
        p.write_bytes(b'a')
