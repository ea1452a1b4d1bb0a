"Nothing on Drive is lost: not with the local disk, not by a failed listing, not by two sessions, not by a full trash."
import ast
import errno
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from fake_drive import FakeDrive

from pttface.storage import drive
from pttface.storage.copies import copy_whole
from pttface.storage.drive import Mirror, merge_ledgers, needed_by
from pttface.storage.files import (JOURNAL, LOCK, BadInput, Ledger, dumps, note_removed, open_root, read_jsonl,
                                   remove, remove_tree, write_json, write_jsonl, write_tar)
from pttface.storage.shards import MonthShard, open_months, write_shards

LEDGER = 'photos/ledger_01.jsonl'


def rows(n, start=0):
    return [dict(url=f'https://i.imgur.com/{i}.jpg', status='failed', reason='404') for i in range(start, start + n)]


def contents(folder):
    "Bytes of each file that is not hidden"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and not p.name.startswith('.')}


@pytest.fixture
def remote(tmp_path):
    (tmp_path / 'MyDrive').mkdir()
    return tmp_path / 'MyDrive/pttface'


def filled(local):
    "A root with something of every stage"
    root = open_root(local, create=True)
    write_jsonl(root / LEDGER, rows(1000))
    write_tar(root / 'photos/images_01_part_1.tar', [('0100000', dict(jpg=b'\xff\xd8'))])
    for name in ('links/crawl.json', 'photos/download.json', 'faces/faces.json', 'dataset/card.json',
                 'runs/edm/recipe.json', 'eval/report.json'):
        write_json(root / name, dict(name=name))
    (root / 'links/pages.www_ptt_cc.sqlite').write_bytes(b'not a database')
    (root / 'runs/edm/checkpoint-00000100.pt').write_bytes(bytes(5000))
    return root


@pytest.fixture
def copied(tmp_path, remote):
    "A root, its mirror and what Drive has of it"
    mirror = Mirror(filled(tmp_path / 'data'), remote, wait=0)
    mirror.push()
    return mirror.local, mirror, contents(remote)


@pytest.mark.parametrize('vanished', ['', 'photos', LEDGER, 'pttface.json', 'runs/edm'])
@pytest.mark.parametrize('new', [False, True])
def test_what_is_lost_here_is_not_deleted_on_drive(copied, remote, vanished, new):
    root, mirror, before = copied
    path = root / vanished
    path.unlink() if path.is_file() else shutil.rmtree(path)
    if new:
        mirror = Mirror(root, remote, wait=0)
    assert mirror.push() == 0 and contents(remote) == before
    mirror.pull()
    assert contents(root) == contents(remote) == before
    assert mirror.push() == 0 and contents(remote) == before


def test_an_empty_folder_in_its_place_deletes_nothing(copied, remote):
    root, mirror, before = copied
    shutil.rmtree(root)
    root.mkdir()
    assert mirror.push() == 0 and contents(remote) == before
    assert mirror.pull() == len(before) and contents(root) == before


def test_a_ledger_that_begins_anew_overwrites_no_rows(copied, remote):
    root, mirror, before = copied
    shutil.rmtree(root)
    open_root(root, create=True)
    write_jsonl(root / LEDGER, rows(1, start=5000))
    write_json(root / 'links/crawl.json', dict(name='another'))
    mirror.push()
    urls = [r['url'] for r in read_jsonl(remote / LEDGER)]
    assert len(urls) == len(set(urls)) == 1001
    assert len(mirror.conflicts) == 1 and mirror.conflicts[0].read_bytes() == before['links/crawl.json']
    assert not (set(before) - set(contents(remote)))
    mirror.pull()
    assert len(read_jsonl(root / LEDGER)) == 1001 and not (root / 'conflicts').exists()


def test_a_ledger_alone_that_begins_anew_keeps_the_rows_on_drive(copied, remote):
    root, mirror, _ = copied
    (root / LEDGER).unlink()
    with Ledger(root / LEDGER, 'url') as ledger:
        ledger.append(rows(1)[0])
    mirror.push()
    assert len(read_jsonl(remote / LEDGER)) == 1000


def test_a_file_that_goes_between_two_tries_leaves_no_half_of_it(tmp_path):
    src, half = tmp_path/'checkpoint.pt', tmp_path/'.checkpoint-copy.pt.tmp'
    half.write_bytes(b'half')
    with pytest.raises(FileNotFoundError):
        copy_whole(src, tmp_path/'checkpoint-copy.pt')
    assert not half.exists()


def test_what_a_stage_removes_is_removed_on_drive(copied, remote):
    root, mirror, before = copied
    remove(root / 'runs/edm/checkpoint-00000100.pt')
    (root / 'runs/edm/recipe.json').unlink()
    remove_tree(root / 'photos')
    Mirror(root, remote, wait=0).push()
    gone = set(before) - set(contents(remote))
    assert gone == {k for k in before if k.startswith('photos/')} | {'runs/edm/checkpoint-00000100.pt'}
    mirror = Mirror(root, remote, wait=0)
    assert mirror.pull() == 1 and (root / 'runs/edm/recipe.json').exists()


def test_what_was_removed_and_not_yet_copied_is_not_fetched_again(copied, remote):
    root, mirror, _ = copied
    remove(root / 'runs/edm/checkpoint-00000100.pt')
    assert mirror.pull() == 0
    mirror.push()
    assert not (remote / 'runs/edm/checkpoint-00000100.pt').exists()


def test_what_was_removed_and_made_again_replaces_what_drive_has(copied, remote):
    root, mirror, _ = copied
    remove_tree(root / 'photos')
    write_jsonl(root / LEDGER, rows(2))
    mirror.push()
    assert len(read_jsonl(remote / LEDGER)) == 2 and not mirror.conflicts


def test_a_removal_from_before_the_folders_met_deletes_nothing(copied, tmp_path, remote):
    root, mirror, before = copied
    remove(root / LEDGER)
    elsewhere = tmp_path / 'MyDrive/other'
    shutil.copytree(remote, elsewhere)
    other = Mirror(root, elsewhere, wait=0)
    other.push()
    assert (elsewhere / LEDGER).read_bytes() == before[LEDGER]


def test_a_file_that_another_session_wrote_is_not_removed(copied, remote):
    root, mirror, _ = copied
    (remote / 'runs/edm/checkpoint-00000100.pt').write_bytes(bytes(6000))
    remove(root / 'runs/edm/checkpoint-00000100.pt')
    mirror.push()
    assert (remote / 'runs/edm/checkpoint-00000100.pt').stat().st_size == 6000


def test_stages_note_what_they_remove(tmp_path):
    root = open_root(tmp_path / 'data', create=True)
    (root / JOURNAL).touch()
    folder = root / 'photos'
    folder.mkdir()
    (folder / 'images_01_part_9.tar').write_bytes(b'')
    job = dict(url='https://i.imgur.com/a.jpg', key='0100000', article='M.1')
    month = MonthShard(folder, '01', [job])
    month.put(job, dict(status='kept', reason='', sha256='0'), b'\xff\xd8')
    write_shards([month], 500)
    removed = [r['path'] for r in read_jsonl(root / JOURNAL)]
    assert removed == ['photos/images_01_part_9.tar', 'photos/spool_01.part']
    write_json(folder / 'download.json', dict(settings=dict(a=1)))
    open_months(folder, {}, dict(a=2), force=True)
    assert {'photos/ledger_01.jsonl', 'photos/images_01_part_1.tar'} <= {r['path'] for r in read_jsonl(root / JOURNAL)}


def failing_listing(monkeypatch, folder, times=99):
    "Listing `folder` fails with EIO"
    real, left = os.scandir, [times]

    def scandir(path='.'):
        if Path(path) == folder and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, 'Input/output error', str(path))
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)


@pytest.mark.parametrize('side', ['here', 'there'])
@pytest.mark.parametrize('sub', ['', 'photos', 'runs/edm'])
def test_a_listing_that_failed_is_no_empty_listing(copied, remote, monkeypatch, side, sub):
    root, mirror, before = copied
    write_jsonl(root / LEDGER, rows(1001))
    with monkeypatch.context() as m:
        failing_listing(m, (root if side == 'here' else remote) / sub)
        if side == 'here':
            with pytest.raises(BadInput, match='data.*: the local disk failed 6 times .Input/output error'):
                mirror.push()
        with pytest.raises(BadInput, match='failed 6 times .Input/output error'):
            mirror.pull()
    assert contents(remote) == before
    failing_listing(monkeypatch, remote / sub, times=2)
    assert mirror.pull() == 0 and mirror.push() == 1
    assert len(read_jsonl(remote / LEDGER)) == 1001


def test_a_folder_that_cannot_be_told_from_a_file_is_an_error(tmp_path, monkeypatch):
    (tmp_path / 'a/b').mkdir(parents=True)
    real = os.walk
    monkeypatch.setattr(os, 'walk', lambda *a, **kw: [(d, [], ds + fs) for d, ds, fs in real(*a, **kw)])
    with pytest.raises(OSError, match='could not be listed'):
        drive.list_files(tmp_path)


@pytest.mark.parametrize('where', ['drive/MyDrive/pttface', 'drive/MyDrive/a/b/pttface', 'stick/pttface'])
def test_a_drive_that_is_not_mounted_is_an_error(tmp_path, where):
    mirror = Mirror(filled(tmp_path / 'data'), tmp_path / where, wait=0)
    for call in (mirror.pull, mirror.push, mirror.keeping().__enter__):
        with pytest.raises(BadInput, match='is not there: mount Drive'):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ['data']
    assert not list(tmp_path.glob('drive')) and not list(tmp_path.glob('stick'))


def test_a_drive_that_is_gone_later_is_an_error(copied, tmp_path, remote, monkeypatch):
    root, mirror, before = copied
    (tmp_path / 'MyDrive').rename(tmp_path / 'unmounted')
    for m in (mirror, Mirror(root, remote, wait=0)):
        write_jsonl(root / LEDGER, rows(1001))
        with pytest.raises(BadInput, match='is not there: mount Drive'):
            m.push()
    assert not (tmp_path / 'MyDrive').exists()
    (tmp_path / 'MyDrive').mkdir()
    with pytest.raises(BadInput, match='is gone, with the 11 files'):
        mirror.push()
    (tmp_path / 'MyDrive').rmdir()
    (tmp_path / 'unmounted').rename(tmp_path / 'MyDrive')
    assert mirror.push() == 1
    mirror._mount = str(tmp_path)
    with pytest.raises(BadInput, match='mount Drive'):
        mirror.push()


def test_a_drive_that_was_emptied_on_purpose_gets_everything_again(copied, remote):
    root, mirror, before = copied
    shutil.rmtree(remote)
    remote.mkdir()
    assert mirror.push() == len(before) and contents(remote) == before


def test_a_drive_that_goes_while_files_are_copied_is_not_made_anew(copied, tmp_path, remote, monkeypatch):
    root, mirror, _ = copied
    for name in ('a', 'b'):
        write_json(root / f'eval/{name}.json', {})
    real = drive.copy_whole

    def copy(*args):
        real(*args)
        (tmp_path / 'MyDrive').rename(tmp_path / 'unmounted')

    monkeypatch.setattr(drive, 'copy_whole', copy)
    with pytest.raises(BadInput, match='not there any more|Drive failed'):
        mirror.push()
    assert not (tmp_path / 'MyDrive').exists()


def test_another_drive_starts_afresh(copied, tmp_path, remote):
    root, mirror, before = copied
    other = Mirror(root, tmp_path / 'MyDrive/other', wait=0)
    assert other.push() == len(before) and contents(tmp_path / 'MyDrive/other') == before
    assert Mirror(root, remote, wait=0).push() == 0


def test_notes_that_are_damaged_or_lost_cost_nothing(copied, remote):
    root, mirror, before = copied
    for damaged in (b'', b'[]', b'{"files": {"a": 1}}'):
        mirror._notes.write_bytes(damaged)
        m = Mirror(root, remote, wait=0)
        m.push()
        assert contents(remote) == before and not m.conflicts and m.push() == 0


SESSION = '''
import sys
from pttface.storage.drive import Mirror
with Mirror({local!r}, {remote!r}).keeping():
    print('in', flush=True)
    sys.stdin.read()
'''


def test_a_second_session_is_refused_and_a_dead_one_is_not_waited_for(copied, tmp_path, remote):
    root, mirror, before = copied
    code = SESSION.format(local=str(tmp_path / 'b'), remote=str(remote))
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'in\n'
    write_jsonl(root / LEDGER, rows(1001))
    who = rf'another session \(process {p.pid} on {socket.gethostname()}, since 2'
    for call in (mirror.push, mirror.pull, mirror.keeping().__enter__):
        with pytest.raises(BadInput, match=who):
            call()
    p.kill()
    p.wait()
    assert mirror.push() == 1 and not (remote / LOCK).exists()
    p.stdin.close()
    p.stdout.close()


@pytest.mark.parametrize(('age', 'free'), [(0, False), (100, False), (200, True)])
def test_a_session_on_another_machine_ends_when_it_is_silent(copied, remote, age, free):
    root, mirror, _ = copied
    lock = dict(stage='another session', host='3f2c1a', pid=1, time='2026-01-01 12:00:00', born='1', id='00',
                beat=int(time.time() - age))
    (remote / LOCK).write_text(dumps(lock))
    os.utime(remote / LOCK, (time.time() - age,)*2)
    if free:
        mirror.pull()
    else:
        with pytest.raises(BadInput, match=r'process 1 on 3f2c1a, since 2026.*if it has ended, this works in \d+ s'):
            mirror.pull()


def test_two_sessions_that_pushed_anyway_lose_nothing(copied, tmp_path, remote):
    root, mirror, before = copied
    second = Mirror(tmp_path / 'b', remote, wait=0)
    second.pull()
    for m, start in ((mirror, 2000), (second, 3000)):
        with Ledger(m.local / LEDGER, 'url') as ledger:
            for r in rows(500 if m is mirror else 3, start):
                ledger.append(r)
        write_json(m.local / 'dataset/card.json', dict(by=start))
        write_jsonl(m.local / 'optout_hashes.jsonl', [dict(sha256=f'{start}')])
        (m.local / 'runs/edm/checkpoint-00000200.pt').write_bytes(b'%d' % start*200)
    mirror.push()
    second.push()
    assert len({r['url'] for r in read_jsonl(remote / LEDGER)}) == 1503
    assert {r['sha256'] for r in read_jsonl(remote / 'optout_hashes.jsonl')} == {'2000', '3000'}
    aside = {p.name: p.read_bytes() for p in second.conflicts}
    assert json.loads(aside['card.json']) == dict(by=2000) and aside['checkpoint-00000200.pt'] == b'2000'*200
    mirror.pull()
    assert len({r['url'] for r in read_jsonl(root / LEDGER)}) == 1503
    third = Mirror(tmp_path / 'c', remote, wait=0)
    third.pull()
    assert len({r['url'] for r in read_jsonl(third.local / LEDGER)}) == 1503


def test_rows_that_contradict_each_other_are_both_kept(copied, remote):
    root, mirror, _ = copied
    for folder, reason in ((remote, 'theirs'), (root, 'ours')):
        write_jsonl(folder / LEDGER, [*rows(999), dict(rows(1000)[999], reason=reason)])
    mirror.push()
    assert read_jsonl(remote / LEDGER)[-1]['reason'] == 'ours'
    assert read_jsonl(mirror.conflicts[0])[-1]['reason'] == 'theirs'


def test_merged_ledgers_hold_each_key_once():
    ours = b'{"url": "a", "n": 1}\n{"url": "a", "n": 2}'
    theirs = b'{"url": "a", "n": 0}\n[1]\n{"url": "b", "shard": "x"}\n{"u'
    merged = [json.loads(o) for o in merge_ledgers(ours, theirs, 'url').splitlines()]
    assert merged == [dict(url='a', n=1), dict(url='a', n=2), dict(url='b')]
    assert merge_ledgers(ours, ours, 'url') == ours and merge_ledgers(b'', b'', 'url') == b''


def test_an_optout_is_never_lost(copied, remote):
    root, mirror, _ = copied
    (root / 'optout.txt').write_text('https://i.imgur.com/a.jpg\n')
    (remote / 'optout.txt').write_bytes('\ufeffhttps://i.imgur.com/b.jpg\r\n'.encode('utf-16-le'))
    mirror.pull()
    assert (root / 'optout.txt').read_text().splitlines() == [f'https://i.imgur.com/{o}.jpg' for o in 'ba']
    mirror.push()
    (remote / 'optout.txt').write_text('https://i.imgur.com/c.jpg\n')
    assert mirror.pull() == 1 and (root / 'optout.txt').read_text() == 'https://i.imgur.com/c.jpg\n'
    (root / 'optout.txt').write_text('https://i.imgur.com/d.jpg\n')
    assert mirror.pull() == 0 and mirror.push() == 1
    assert (remote / 'optout.txt').read_text() == 'https://i.imgur.com/d.jpg\n'


def test_what_another_session_has_changed_is_fetched(copied, tmp_path, remote):
    root, mirror, _ = copied
    second = Mirror(tmp_path / 'b', remote, wait=0)
    second.pull()
    write_json(second.local / 'dataset/card.json', dict(by='second'))
    remove(second.local / 'runs/edm/checkpoint-00000100.pt')
    second.push()
    assert mirror.pull() == 1 and json.loads((root / 'dataset/card.json').read_text()) == dict(by='second')


@pytest.mark.parametrize('names', [['checkpoint-{:08d}.pt'], ['checkpoint-a.pt', 'checkpoint-b.pt']])
def test_twelve_hours_of_checkpoints_leave_the_trash_empty(tmp_path, remote, monkeypatch, names):
    "A kilobyte stands for a megabyte: 15 MB of Drive, checkpoints of 0.8 MB every ten minutes."
    root = open_root(tmp_path / 'data', create=True)
    fake = FakeDrive(tmp_path / 'MyDrive', 15_000_000, monkeypatch.setattr)
    mirror, run = Mirror(root, remote, wait=0), root / 'runs/edm'
    run.mkdir(parents=True)
    with mirror.keeping(every=1e6):
        for i in range(12*6):
            fake.now = 600.*i
            (run / names[i % len(names)].format(i)).write_bytes(bytes([i])*800_000)
            write_json(run / 'checkpoints.json', list(range(i)))
            for old in sorted(run.glob('checkpoint-0*.pt'))[:-3]:
                remove(old)
            mirror.push()
    assert fake.trashed < 1000 and fake.most < 5*800_000
    assert contents(remote) == contents(root)


def test_a_file_that_steps_aside_comes_back(copied, tmp_path, remote, monkeypatch):
    root, mirror, before = copied
    path = remote / 'dataset/card.json'
    path.rename(path.with_name('.card.json.old.tmp'))
    path.with_name('.card.json.tmp').write_bytes(b'half')
    (remote / 'eval/.report.json.old.tmp').write_bytes(b'')
    (remote / 'eval/.other.json.gone.tmp').write_bytes(b'1')
    mirror.pull()
    assert contents(remote) == before and not [p for p in remote.rglob('.*')]


def test_an_empty_file_on_drive_replaces_nothing(copied, remote):
    root, mirror, before = copied
    (remote / 'dataset/card.json').write_bytes(b'')
    mirror.pull()
    assert contents(root) == before


def test_a_full_drive_leaves_what_it_has(copied, tmp_path, remote, monkeypatch):
    root, mirror, before = copied
    fake = FakeDrive(tmp_path / 'MyDrive', 0, monkeypatch.setattr)
    (root / 'runs/edm/checkpoint-00000100.pt').write_bytes(bytes(9000))
    with pytest.raises(BadInput, match='Drive is full; make room'):
        mirror.push()
    assert contents(remote) == before
    fake.capacity = 1e9
    assert mirror.pull() == 0 and mirror.push() == 1


def test_a_first_copy_that_was_cut_off_goes_on_as_ours(tmp_path, monkeypatch):
    root = open_root(tmp_path / 'a', create=True)
    (root / 'links').mkdir()
    with closing(sqlite3.connect(root / 'links/pages.sqlite')) as db, db:
        db.execute('CREATE TABLE pages (url TEXT)')
        db.execute('PRAGMA journal_mode=WAL')
    (root / 'photos').mkdir()
    (root / 'photos/images_01_part_1.tar').write_bytes(bytes(90_000))
    fake = FakeDrive(tmp_path / 'MyDrive', 50_000, monkeypatch.setattr)
    mirror = Mirror(root, tmp_path / 'MyDrive/pttface', wait=0)
    fake.folder.mkdir()
    with pytest.raises(BadInput, match='Drive is full'):
        mirror.push()
    fake.capacity = 1e9
    mirror.push()
    assert not (mirror.remote / 'conflicts').exists() and mirror.push() == 0
    assert (mirror.remote / 'photos/images_01_part_1.tar').stat().st_size == 90_000


def test_a_file_that_is_noted_after_a_copy_saw_it_gone_leaves_drive(copied, remote):
    root, mirror, _ = copied
    (root / 'runs/edm/checkpoint-00000100.pt').write_bytes(bytes(900))
    mirror.push()
    (root / 'runs/edm/checkpoint-00000100.pt').unlink()
    mirror.push()
    assert (remote / 'runs/edm/checkpoint-00000100.pt').exists()
    note_removed(root / 'runs/edm/checkpoint-00000100.pt')
    mirror.push()
    assert not (remote / 'runs/edm/checkpoint-00000100.pt').exists()


def test_folders_that_fail_one_after_another_are_listed(tmp_path, monkeypatch):
    for i in range(40):
        (tmp_path / f'a/{i}').mkdir(parents=True)
        (tmp_path / f'a/{i}/file').write_bytes(b'1')
    real, failed = os.scandir, set()

    def scandir(path='.'):
        if path not in failed:
            failed.add(path)
            raise OSError(errno.EIO, 'Input/output error', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    mirror = Mirror(tmp_path / 'b', tmp_path / 'a', wait=0)
    assert len(mirror.files(tmp_path / 'a')) == 40 and len(failed) == 41


def test_what_does_not_fit_here_is_not_fetched(copied, tmp_path, remote, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('Usage', (), dict(free=100)))
    with pytest.raises(BadInput, match='0.0 GB are to be fetched'):
        Mirror(tmp_path / 'b', remote, wait=0).pull()
    assert not (tmp_path / 'b').exists()


@pytest.mark.parametrize(('stages', 'folders'), [('train', {'dataset', 'runs'}), (['crawl'], {'links'}),
                                                 (['sample', 'fid'], {'dataset', 'runs', 'eval'}),
                                                 ('download', {'links', 'photos'})])
def test_only_what_a_stage_needs_is_fetched(copied, tmp_path, remote, stages, folders):
    _, _, before = copied
    part = Mirror(tmp_path / 'b', remote, wait=0)
    part.pull(stages)
    assert {k.split('/')[0] for k in contents(part.local)} == folders | {'pttface.json'}
    assert part.push() == 0 and contents(remote) == before
    with part.keeping(stages=['dataset']):
        assert (part.local / LEDGER).exists()
        assert (part.local / 'photos/images_01_part_1.tar').exists() == ('photos' in folders)
    part.pull()
    assert contents(part.local) == contents(remote) == before


def test_an_unknown_stage_or_place_is_an_error(copied, tmp_path, remote):
    for call in (lambda: Mirror(tmp_path / 'b', remote).pull('training'), lambda: needed_by(['train', 'x'])):
        with pytest.raises(BadInput, match='There is no stage'):
            call()
    with pytest.raises(BadInput, match="no place 'cloud' for photos: use drive or resized or local"):
        Mirror(tmp_path / 'b', remote, photos='cloud')


def test_photos_may_stay_on_the_local_disk(tmp_path, remote):
    root = filled(tmp_path / 'data')
    mirror = Mirror(root, remote, wait=0, photos='local')
    mirror.push()
    assert set(contents(root)) - set(contents(remote)) == {'photos/images_01_part_1.tar'}
    assert mirror.pull() == 0 and mirror.push() == 0
    Mirror(root, remote, wait=0).push()
    other = Mirror(tmp_path / 'b', remote, wait=0, photos='local')
    other.pull()
    assert not list(other.local.glob('photos/*.tar')) and (other.local / LEDGER).exists()


def test_pages_of_another_server_are_copied_too(copied, remote):
    assert 'links/pages.www_ptt_cc.sqlite' in copied[2]


def test_what_a_session_notes_of_drive_survives_its_end(copied, remote, caplog):
    root, mirror, _ = copied
    with open(root / LEDGER, 'a') as f:
        f.write(dumps(rows(1, 7000)[0]) + '\n')
    mirror._write_notes = lambda: None
    mirror.push()
    with open(root / LEDGER, 'a') as f:
        f.write(dumps(rows(1, 7001)[0]) + '\n')
    later = Mirror(root, remote, wait=0)
    with caplog.at_level(logging.WARNING):
        assert later.push() == 1
    assert not later.conflicts and (remote / LEDGER).read_bytes() == (root / LEDGER).read_bytes()


@pytest.mark.parametrize('code', [errno.EPERM, errno.ENOTSUP, errno.EEXIST, errno.EINVAL])
def test_a_disk_that_refuses_calls_can_be_mirrored(copied, tmp_path, remote, monkeypatch, code):
    root, mirror, _ = copied
    real = os.rename

    def refuse(*args, **kwargs):
        if len(args) < 2 or isinstance(args[1], int) or os.path.lexists(args[1]):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    for name in ('chmod', 'fsync', 'replace', 'rename', 'truncate'):
        monkeypatch.setattr(os, name, refuse)
    for i in range(2):
        write_json(root / 'dataset/card.json', dict(i=i))
        (root / 'runs/edm/checkpoint-00000100.pt').write_bytes(bytes(4000 + i))
        mirror.push()
    remove(root / 'runs/edm/checkpoint-00000100.pt')
    mirror.push()
    Mirror(tmp_path / 'b', remote, wait=0).pull()
    assert contents(root) == contents(remote) == contents(tmp_path / 'b')


KEPT_OUT = {  # Deletions that are no removal of an artefact, and why
    'ptt.board_range': {"(folder / 'crawl.json').unlink": 'is written again at once',
                        'record.unlink': 'is written again at the end',
                        '(root / MARKER).unlink': 'nothing was made, so nothing was copied', 'root.rmdir': 'the same'}}
OUTSIDE = ('storage.', 'app.doctor', 'app.colab', 'synthetic.')  # What removes, and what works outside a root


def deletions(path):
    "Calls in a module that delete files"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if node.func.attr in ('unlink', 'rmtree', 'rmdir') or (owner, node.func.attr) == ('os', 'remove'):
                yield ast.unparse(node.func)


def test_no_stage_deletes_an_artefact_unnoted():
    "What is not noted stays on Drive for good, and is fetched again by the next session."
    top, unnoted = Path(drive.__file__).parent.parent, []
    for path in top.rglob('*.py'):
        module = '.'.join(path.relative_to(top).with_suffix('').parts)
        if not module.startswith(OUTSIDE):
            unnoted += [f'{module}: {o}' for o in deletions(path) if o not in KEPT_OUT.get(module, {})]
    assert not unnoted, 'use remove, remove_tree or note_removed of storage.files'


@pytest.mark.parametrize(('name', 'field'), [('ledger.jsonl', 'key'), ('photos/extra.jsonl', 'url'),
                                             ('photos/ledger_202401.jsonl', 'url')])
def test_a_ledger_of_any_name_is_never_overwritten_by_a_smaller_one(copied, tmp_path, remote, name, field):
    root, mirror, _ = copied
    write_jsonl(root / name, [{field: str(i), 'status': 'failed'} for i in range(100)])
    mirror.push()
    (root / name).unlink()
    write_jsonl(root / name, [{field: 'new', 'status': 'failed'}])
    mirror.push()
    assert len(read_jsonl(remote / name)) == 101
    other = Mirror(open_root(tmp_path / 'b', create=True), remote, wait=0)
    write_jsonl(other.local / name, [{field: 'newer', 'status': 'failed'}])
    other.push()
    assert len(read_jsonl(remote / name)) == 102
    mirror.pull()
    assert len(read_jsonl(root / name)) == 102


def test_rows_that_belong_to_other_files_are_kept_apart(copied, remote):
    root, mirror, _ = copied
    for folder, n in ((remote, 5), (root, 2)):
        write_jsonl(folder / 'faces/faces.jsonl', [dict(key=f'{n}{i}') for i in range(n)])
    mirror.push()
    assert len(read_jsonl(remote / 'faces/faces.jsonl')) == 2 and len(read_jsonl(mirror.conflicts[0])) == 5


def test_a_drive_that_answers_at_the_second_try_is_there(copied, remote, monkeypatch):
    root, mirror, _ = copied
    write_jsonl(root / LEDGER, rows(1001))
    asked, real = [], Path.is_dir

    def is_dir(path):
        asked.append(path)
        return False if path in (remote, remote.parent) and asked.count(path) == 1 else real(path)

    monkeypatch.setattr(Path, 'is_dir', is_dir)
    assert mirror.push() == 1


def test_optouts_of_two_sessions_count_in_both(copied, remote):
    root, mirror, _ = copied
    (root / 'optout.txt').write_text('https://i.imgur.com/a.jpg\n')
    mirror.push()
    (root / 'optout.txt').write_text('https://i.imgur.com/a.jpg\nhttps://i.imgur.com/ours.jpg\n')
    (remote / 'optout.txt').write_text('https://i.imgur.com/a.jpg\nhttps://i.imgur.com/theirs.jpg\n')
    mirror.push()
    for folder in (root, remote):
        lines = (folder / 'optout.txt').read_text().split()
        assert [o.split('/')[-1] for o in lines] == ['a.jpg', 'theirs.jpg', 'ours.jpg']
    assert mirror.push() == mirror.pull() == 0 and not mirror.conflicts
