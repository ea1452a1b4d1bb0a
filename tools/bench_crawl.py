"""Crawl: requests to find a year, pages a second beside Scrapy on a loopback board, a year by the command.

The board takes 50 ms to answer each request of the comparison with Scrapy.
"""
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from peers import peer_python

from pttface.crawl import crawl,day_span,find_range
from pttface.ptt.board_range import BoardRange
from pttface.ptt.cache import Pages,board_client
from pttface.synthetic.board import make_board,serve

year = ('2024-01-01', '2024-12-31')


def spread(v):
    "Half the interquartile range as a share of the median."
    return float(np.subtract(*np.percentile(v, [75, 25])) / 2 / np.median(v)) if len(v) > 2 else None


def requests_to_find(year, articles):
    "Requests of the bisection for `year`, and of walking back from the newest page."
    board = make_board(n_photos=0, seed=2, since='2005-01-01', until='2026-06-30', n_articles=articles)
    with serve(board) as server, tempfile.TemporaryDirectory() as tmp:
        pages = Pages(Path(tmp) / 'pages.sqlite', server.url, board_client(rate=0))
        lo, hi = find_range(BoardRange(pages, 'Beauty', *day_span(f'{year}-01-01', f'{year}-12-31')))
    return pages.asked, board.pages - lo + 1


def _serve(pipe, board, latency):
    "Serve `board`, its pages written beforehand, until the pipe is closed."
    board = make_board(**board)
    for n in range(1, board.pages + 1):
        board.answer(f'/bbs/Beauty/index{n}.html')
    for i in range(len(board)):
        board.answer(board.article(i).path)
    with serve(board, latency=latency) as server:
        pipe.send(server.url)
        try:
            pipe.recv()
        except EOFError:
            pass


@contextmanager
def serving_apart(board, latency=0.):
    "A server in a process of its own, so that neither side shares its interpreter."
    ours, theirs = multiprocessing.Pipe()
    p = multiprocessing.get_context('spawn').Process(target=_serve, args=(theirs, board, latency))
    p.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        p.join(10)
        if p.is_alive():
            p.kill()


OURS = '''
import json, sys, time
from pttface.crawl import crawl
start = time.perf_counter()
url, root, since, until, workers = sys.argv[1:]
links = crawl('Beauty', since, until, root, base_url=url, rate=0, workers=int(workers), progress=False)
print(json.dumps(dict(pages=links.asked, seconds=time.perf_counter() - start)))
'''


def rate(*command):
    "Pages a second, by the last line that `command` prints."
    done = subprocess.run([str(o) for o in command], check=True, capture_output=True, text=True).stdout
    result = json.loads(done.splitlines()[-1])
    return result['pages'] / result['seconds'], result['pages']


def beside_scrapy(board, workers, repeats, smoke):
    "Pages a second of ours and of Scrapy, in turns, and the pages that each read."
    scrapy = peer_python('scrapy', 'scrapy>=2.11', make=not smoke)
    ours, theirs = [], []
    with serving_apart(board, .05) as url, tempfile.TemporaryDirectory() as tmp:
        known = crawl('Beauty', *year, Path(tmp) / 'known', base_url=url, rate=0, workers=workers, progress=False)
        cached = Pages(Path(tmp) / 'known/links/pages.sqlite', url)
        pages = find_range(BoardRange(cached, 'Beauty', *day_span(*year)))
        for i in range(repeats):
            ours.append(rate(sys.executable, '-c', OURS, url, Path(tmp) / f'{i}', *year, workers))
            if scrapy:
                spider = Path(__file__).parent / 'scrapy_spider.py'
                theirs.append(rate(scrapy, spider, url, *pages, workers, Path(tmp) / f'{i}.jsonl'))
    assert all(abs(n - len(known)) < .2 * len(known) + 30 for _, n in ours + theirs), (ours, theirs)
    return [r for r, _ in ours], [r for r, _ in theirs]


def whole_year(articles):
    "Seconds of `pttface crawl` for 2024 of a board with so many rows, and the articles and links it wrote."
    board = dict(n_photos=10 * articles, seed=3, n_articles=articles, since=year[0], until=year[1])
    with serving_apart(board) as url, tempfile.TemporaryDirectory() as tmp:
        start = time.perf_counter()
        run = 'import sys; from pttface.app.cli import main; sys.exit(main())'
        command = [sys.executable, '-c', run, 'crawl', 'Beauty', '--since', year[0], '--until', year[1],
                   '--root', f'{tmp}/root', '--base-url', url, '--rate', '0', '--no-progress']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        counts = json.loads(Path(f'{tmp}/root/links/crawl.json').read_text())['counts']
    return took, counts


def bench(smoke=False):
    "Rows for the table; WORKERS (16) and REPEATS (5) are settings."
    workers, repeats = int(os.environ.get('WORKERS', 16)), 1 if smoke else int(os.environ.get('REPEATS', 5))
    years = (2024,) if smoke else (2008, 2012, 2016, 2020, 2024)
    found = [requests_to_find(y, 8_000 if smoke else 80_000) for y in years]
    asked, walked = (float(np.median(v)) for v in zip(*found))
    board = dict(n_photos=200 if smoke else 20_000, seed=1, n_articles=60 if smoke else 3000)
    ours, theirs = beside_scrapy(board, workers, repeats, smoke)
    took, counts = whole_year(100 if smoke else 6200)
    peer = float(np.median(theirs)) if theirs else None
    ours_a_second = float(np.median(ours))
    year_line = f'a year: {counts["articles"]:,} articles, {counts["links"]:,} links, by the command'
    return [dict(what='requests to find a year', value=asked, unit='requests', peer='walk back from the newest page',
                 peer_value=walked, ratio=walked / asked, n=len(years), spread=spread([a for a, _ in found])),
            dict(what=f'pages/s, 50 ms latency, {workers} at a time', value=ours_a_second, unit='pages/s',
                 peer='Scrapy', peer_value=peer, ratio=peer and float(np.median(np.divide(ours, theirs))),
                 n=repeats, spread=spread(ours)),
            dict(what=year_line, value=took, unit='s', peer=None, peer_value=None, ratio=None, n=1, spread=None)]
