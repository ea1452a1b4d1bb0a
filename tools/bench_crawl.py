"Crawl: requests to find a year, and pages a second on a loopback board that takes 50 ms to answer."
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from pttface.board import make_board, serve
from pttface.crawl import Pages, Range, board_client, crawl, day


def spread(v):
    "Half the interquartile range as a share of the median."
    return float(np.subtract(*np.percentile(v, [75, 25])) / 2 / np.median(v)) if len(v) > 2 else None


def requests_to_find(year, articles):
    "Requests of the bisection for `year`, and of walking back from the newest page."
    board = make_board(n_photos=0, seed=2, since='2005-01-01', until='2026-06-30', n_articles=articles)
    with serve(board) as server, tempfile.TemporaryDirectory() as tmp:
        pages = Pages(Path(tmp) / 'pages.jsonl', server.url, board_client(rate=0))
        lo, hi = Range(pages, 'Beauty', day(f'{year}-01-01'), day(f'{year + 1}-01-01') - 1).find()
    return pages.asked, board.pages - lo + 1


def pages_a_second(board, workers, latency):
    "Pages read, parsed and kept a second by one crawl."
    with serve(board, latency=latency) as server, tempfile.TemporaryDirectory() as tmp:
        start = time.perf_counter()
        links = crawl('Beauty', '2024-01-01', '2024-12-31', Path(tmp) / 'root', base_url=server.url, rate=0, workers=workers, progress=False)
        return links.asked / (time.perf_counter() - start)


def bench(smoke=False):
    "Rows for the table; WORKERS (16) and REPEATS (5) are settings."
    workers, repeats = int(os.environ.get('WORKERS', 16)), 1 if smoke else int(os.environ.get('REPEATS', 5))
    years = (2024,) if smoke else (2008, 2012, 2016, 2020, 2024)
    found = [requests_to_find(y, 8_000 if smoke else 80_000) for y in years]
    asked, walked = (float(np.median(v)) for v in zip(*found))
    board = make_board(n_photos=200 if smoke else 2000, seed=1, n_articles=60 if smoke else 1500)
    rates = [pages_a_second(board, workers, .05) for _ in range(repeats)]
    return [dict(what='requests to find a year', value=asked, unit='requests', peer='walk back from the newest page', peer_value=walked, ratio=walked / asked,
                 n=len(years), spread=spread([a for a, _ in found])),
            dict(what=f'pages/s, 50 ms latency, {workers} at a time', value=float(np.median(rates)), unit='pages/s', peer=None, peer_value=None, ratio=None,
                 n=repeats, spread=spread(rates))]
