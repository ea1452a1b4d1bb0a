"""What bookkeeping holds in memory: bytes a link, a photo and an article, by the slope between two folders.

Bounds are for drawn rows of the length of real ones. A dict of a ledger's row takes 2,300 bytes.
"""
import gc
import random
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from pttface.crawl import crawl
from pttface.download import DownloadSettings, _fetch_twice, _to_ask, download, ledger_rows, plan
from pttface.faces import extract_faces
from pttface.storage.files import iter_jsonl, read_jsonl
from pttface.storage.rows import PackedRows
from pttface.storage.shards import MonthShard, drop_withdrawn, open_months, store_results, write_record, write_shards

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
from long_folders import make, make_pages

FEW, MANY = 1, 3  # Years of 240 articles


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Folders of two sizes, in which all is done"
    roots = {years: tmp_path_factory.mktemp(f'years{years}') for years in (FEW, MANY)}
    for years, root in roots.items():
        make(root, years, articles=240)
        make_pages(root)
    return roots


def peak_of(run):
    "Length of what `run` returns, and the most that was held meanwhile, bytes"
    gc.collect()
    tracemalloc.start()
    try:
        n = len(run())
        return n, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def slope(run, folders):
    "Bytes that one more row takes at the peak"
    for root in folders.values():
        run(root)
    (a, before), (b, after) = (peak_of(partial(run, root)) for root in folders.values())
    assert b > 2*a > 300
    return (after - before)/(b - a)


def test_a_link_takes_little_memory_when_a_download_goes_on(folders):
    def run(root):
        return download(root, gateway='http://127.0.0.1:9', progress=False).rows
    assert 0 < slope(run, folders) < 600


def test_a_photo_takes_little_memory_when_the_look_for_faces_goes_on(folders):
    def run(root):
        return extract_faces(root, workers=1).rows
    assert 0 < slope(run, folders) < 1200


def test_an_article_takes_little_memory_when_pages_are_read(folders):
    years = {root: k for k, root in folders.items()}
    def run(root):
        return crawl('Beauty', '2005-01-01', f'{2004 + years[root]}-12-31', root, offline=True, progress=False).rows
    assert 0 < slope(run, folders) < 7000


def test_rows_that_are_loaded_take_little_memory(folders):
    assert 0 < slope(lambda root: PackedRows(ledger_rows(root)), folders) < 400
    lists = 'links/image_links.jsonl'
    assert 0 < slope(lambda root: PackedRows(iter_jsonl(root/lists)), folders) < 1000


def test_what_is_to_be_fetched_takes_little_memory(folders, tmp_path):
    "A download that begins: all links are to be asked for, and none comes"
    def run(root):
        folder, todo = tmp_path/root.name, {}
        folder.mkdir(exist_ok=True)
        jobs, settings = plan(root), DownloadSettings()
        every = open_months(folder, jobs, settings)
        drop_withdrawn(every.values(), frozenset(), lambda m: todo.update({m: _to_ask(m, settings, (), False)}))
        _fetch_twice(todo, lambda todo: (o for o in ()), [*every.values()], 500, False)
        return [o for jobs in todo.values() for o in jobs.at]
    assert 0 < slope(run, folders) < 400


def test_packed_rows_are_the_rows(folders):
    rows = read_jsonl(folders[FEW]/'photos/ledger_200501.jsonl')
    packed = PackedRows(rows)
    assert packed == rows and [*reversed(packed)] == rows[::-1] and packed.nbytes < 250*len(rows)
    packed[3]['status'] = 'changed'
    assert packed[3] == rows[3], 'a row is a copy'
    assert not PackedRows() and PackedRows() == [] and PackedRows(rows[:5]) != rows[:6]


PHOTOS = dict(a=b'Ann', c=b'Cleo', d=b'Ann', f=b'Fay', h=b'Hope')


def jobs_of(month):
    return [dict(url=f'https://i.imgur.com/{month}{c}.jpg', key=f'{month}{i:05d}', title='',
                 article='https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html') for i, c in enumerate('abcdefgh')]


def result_of(job):
    photo = PHOTOS.get(job['url'][-5])
    if photo is None:
        return dict(status='failed', reason='404'), b''
    return dict(status='kept', reason='', sha256=f'hash of {photo.decode()}'), photo


def files_of(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.mark.parametrize('seed', range(20))
def test_a_month_may_be_forgotten_at_any_time(tmp_path, seed):
    "Photos come, are opted out and come again; a month is released, opened again or kept, and ends as the same files"
    def run(folder, forget):
        folder.mkdir()
        r = random.Random(seed)
        m = MonthShard(folder, '01', jobs_of('01'))
        for _ in range(12):
            job, what = r.choice(m.jobs), r.random()
            m.put(job, *(result_of(job) if what < .7 else (dict(status='refused', reason='opt_out'), b'')))
            if what > .8:
                write_shards([m], 2)
            m = forget(m, random.Random(what))
        write_shards([m], 2)
        return files_of(folder)
    def released(m, r):
        if r.random() < .5:
            m.release()
        return m
    def reopened(m, r):
        m.close()
        return MonthShard(m.folder, '01', jobs_of('01')) if r.random() < .5 else m
    want = run(tmp_path/'kept', lambda m, r: m)
    assert run(tmp_path/'released', released) == want
    assert run(tmp_path/'reopened', reopened) == want


def test_rows_that_do_not_count_stay_away_until_they_come_again(tmp_path):
    m = MonthShard(tmp_path, '01', jobs_of('01'))
    for job in m.jobs:
        m.put(job, *result_of(job))
    write_shards([m], 2)
    a, c = (m.jobs[i]['url'] for i in (0, 2))
    m.drop([a, c])
    m.release()
    assert not {a, c} & set(m.ledger.rows) and [j['url'] for j in m.todo(lambda r: False)] == [a, c]
    m.put(m.jobs[0], *result_of(m.jobs[0]))
    m.release()
    assert a in m.ledger.rows and c not in m.ledger.rows


def test_each_month_is_written_once(tmp_path, monkeypatch):
    "Years have many months: what is written when one is complete must not grow with those before it"
    months = [MonthShard(tmp_path, f'{i:02d}', jobs_of(f'{i:02d}')) for i in range(1, 13)]
    todo = {m: m.todo(lambda r: False) for m in months}
    finals, final = [], MonthShard.final
    monkeypatch.setattr(MonthShard, 'final', lambda self, *a: finals.append(self.name) or final(self, *a))
    order = [(m, j) for m in (months[1], months[0], *months[2:]) for j in m.jobs]
    results = ((m, j, result_of(j)) for m, j in order)
    assert len(list(store_results(results, todo, months, 2, lambda m, jobs: []))) == 96
    assert finals == [m.name for m in months] and all(m._ledger is None for m in months)
    monkeypatch.undo()
    (tmp_path/'download.json').write_text('{"settings": {}}')
    rows, record = write_record(tmp_path, {m.name: m for m in months}, DownloadSettings())
    assert record['done'] and record['counts'] == dict(links=96, duplicate=56, failed=36, kept=4) and len(rows) == 96
