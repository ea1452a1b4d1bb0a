"""Scale: what an article and a link cost, from boards of one, three and ten sizes; measured on pages and ledgers.

Each run is a process of its own. A ledger's rows are written here as a download leaves them, and then read by it.
Memory is measured by `bench_years`, on folders of a year and of twenty.
"""
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_crawl import serving_apart, year

here = Path(__file__).resolve()
TIMES = (1, 3, 10)


def own(name, value, unit, n):
    "A row of the table."
    return dict(what=name, value=float(value), unit=unit, peer=None, peer_value=None, ratio=None, n=n, spread=None)


def nbytes(folder):
    "Bytes on disk below a folder."
    return sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())


def measured(*command):
    "What a process of its own prints, with its CPU seconds."
    r = subprocess.run([sys.executable, here, *map(str, command)], capture_output=True, text=True, timeout=1500)
    if r.returncode:
        raise RuntimeError(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def used():
    "CPU seconds of this process."
    return time.process_time()


def crawled(url, root):
    "Crawl a year in this process."
    from pttface.crawl import crawl
    start = used()
    links = crawl('Beauty', *year, root, base_url=url, rate=0, workers=8, progress=False)
    counts = json.loads((Path(root)/'links/crawl.json').read_text())['counts']
    print(json.dumps(dict(counts, requests=links.asked, cpu=used() - start)))


def rows_of(root):
    "Write ledgers in which each link was looked at and turned down: a row as long as that of a kept photo."
    from pttface.download import plan
    from pttface.storage.files import write_jsonl
    for month, jobs in plan(root).items():
        rows = []
        for j in jobs:
            sha = hashlib.sha256(j['url'].encode()).hexdigest()
            rows.append(dict(url=j['url'], key=j['key'], article=j['article'], month=month, status='rejected',
                             reason='no_face', bytes=412_345, sha256=sha, width=1080, height=1350, sharpness=231.52,
                             face_score=.31, face_box=[312.5, 240.25, 640., 655.75], face_sharpness=180.25,
                             phash=sha[:16], format='JPEG'))
        write_jsonl(Path(root)/f'photos/ledger_{month}.jsonl', rows)
    print(json.dumps(dict(rows=sum(map(len, plan(root).values())))))


def resumed(root):
    "Start a download that has nothing left to do, in this process."
    from pttface.download import download
    start = used()
    got = download(root, gateway='http://127.0.0.1:9', progress=False)
    print(json.dumps(dict(rows=len(got), cpu=used() - start)))


def one(articles):
    "A board of so many articles, crawled, and its ledgers read."
    board = dict(n_photos=10*articles, seed=5, n_articles=articles, since=year[0], until=year[1])
    with tempfile.TemporaryDirectory() as d:
        root = Path(d)/'root'
        with serving_apart(board) as url:
            crawl = measured('crawled', url, root)
        crawl['disk'] = nbytes(root/'links')/1e6
        measured('rows_of', root)
        ledgers = measured('resumed', root)
        ledgers['disk'] = nbytes(root/'photos')/1e6
    return crawl, ledgers


def slope(x, y):
    "Growth of `y` with `x`, by least squares."
    return float(np.polyfit(x, y, 1)[0])


def bench(smoke=False):
    "Rows for the table: each size, and what an article and a link add."
    base = 40 if smoke else 620
    rows, crawls, ledgers = [], [], []
    for k in TIMES:
        crawl, ledger = one(base*k)
        crawls.append(crawl)
        ledgers.append(ledger)
        rows += [own(f'{k}×: articles', crawl['articles'], 'articles', 1),
                 own(f'{k}×: links', ledger['rows'], 'links', 1),
                 own(f'{k}×: requests of the crawl', crawl['requests'], 'requests', 1),
                 own(f'{k}×: CPU of the crawl', crawl['cpu'], 's', 1),
                 own(f'{k}×: disk of pages and links', crawl['disk'], 'MB', 1),
                 own(f'{k}×: CPU to go on with the ledgers', ledger['cpu'], 's', 1),
                 own(f'{k}×: disk of the ledgers', ledger['disk'], 'MB', 1)]
    articles, links = [o['articles'] for o in crawls], [o['rows'] for o in ledgers]
    per = [('requests an article', articles, [o['requests'] for o in crawls], 1, 'requests'),
           ('CPU of the crawl an article', articles, [o['cpu'] for o in crawls], 1e3, 'ms'),
           ('disk of pages and links an article', articles, [o['disk'] for o in crawls], 1e3, 'kB'),
           ('CPU of the ledgers a link', links, [o['cpu'] for o in ledgers], 1e6, 'µs'),
           ('disk of the ledgers a link', links, [o['disk'] for o in ledgers], 1e3, 'kB')]
    return rows + [own(what, scale*slope(x, y), unit, len(TIMES)) for what, x, y, scale, unit in per]


if __name__ == '__main__':
    dict(crawled=crawled, rows_of=rows_of, resumed=resumed)[sys.argv[1]](*sys.argv[2:])
