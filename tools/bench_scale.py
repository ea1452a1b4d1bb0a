"""Scale: what an article and a link cost, from boards of one, three and ten sizes; measured on pages and ledgers.

Each run is a process of its own. A ledger's rows are written here as a download leaves them, and then read by it. Last
comes a folder of twenty years, written by `bench_years`, in which each stage goes on.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_crawl import serving_apart, year
from bench_years import link_row, make, make_pages

here = Path(__file__).resolve()
TIMES = (1, 3, 10)


def own(name, value, unit, n):
    "A row of the table."
    return dict(what=name, value=float(value), unit=unit, peer=None, peer_value=None, ratio=None, n=n, spread=None)


def nbytes(folder):
    "Bytes on disk below a folder."
    return sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())


def measured(*command):
    "What a process of its own prints, with its CPU seconds, and the memory in MB before its work and at its peak."
    r = subprocess.run([sys.executable, here, *map(str, command)], capture_output=True, text=True, timeout=1500)
    if r.returncode:
        raise RuntimeError(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def memory(field):
    "`VmRSS` or `VmHWM` of this process, MB."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(o.split()[1])/1024 for o in lines if o.startswith(field))


def used():
    "CPU seconds of this process."
    return time.process_time()


def crawled(url, root):
    "Crawl a year in this process."
    from pttface.crawl import crawl
    before, start = memory('VmRSS'), used()
    links = crawl('Beauty', *year, root, base_url=url, rate=0, workers=8, progress=False)
    counts = json.loads((Path(root)/'links/crawl.json').read_text())['counts']
    print(json.dumps(dict(counts, requests=links.asked, cpu=used() - start, before=before, peak=memory('VmHWM'))))


def rows_of(root):
    "Write ledgers in which each link was looked at and turned down: a row as long as that of a kept photo."
    from pttface.download import plan
    from pttface.storage.files import write_jsonl
    r, n = np.random.default_rng(0), 0
    for month, jobs in plan(root).items():
        write_jsonl(Path(root)/f'photos/ledger_{month}.jsonl', (link_row(job, r, False) for job in jobs))
        n += len(jobs)
    print(json.dumps(dict(rows=n)))


def again(run):
    "Run a stage that has nothing left to do, in this process."
    before, start = memory('VmRSS'), used()
    n = len(run())
    print(json.dumps(dict(rows=n, cpu=used() - start, before=before, peak=memory('VmHWM'))))


def resumed(root):
    "Go on with a download."
    from pttface.download import download
    again(lambda: download(root, gateway='http://127.0.0.1:9', progress=False).rows)


def looked(root):
    "Go on with the faces."
    from pttface.faces import extract_faces
    again(lambda: extract_faces(root, workers=1).rows)


def reread(root, years):
    "Crawl the cached pages once more."
    from pttface.crawl import crawl
    again(lambda: crawl('Beauty', '2005-01-01', f'{2004 + int(years)}-12-31', root, offline=True, progress=False).rows)


def loaded(root):
    "Read the rows of the lists and of the ledgers, as a person does who wants to look at them."
    from pttface.crawl import Links
    from pttface.download import Photos
    again(lambda: [Links.load(root), Photos.load(root)])


def long(years):
    "Rows for the table: a folder of so many years, in which each stage goes on."
    with tempfile.TemporaryDirectory() as d:
        root = Path(d)/'root'
        make(root, years)
        ledgers, faces = measured('resumed', root), measured('looked', root)
        make_pages(root)
        crawl = measured('reread', root, years)
    name = f'{years} years'
    return [own(f'{name}: articles', crawl['rows'], 'articles', 1),
            own(f'{name}: links', ledgers['rows'], 'links', 1),
            own(f'{name}: photos looked at', faces['rows'], 'photos', 1),
            own(f'{name}: peak memory of the crawl', crawl['peak'], 'MB', 1),
            own(f'{name}: peak memory of that', ledgers['peak'], 'MB', 1),
            own(f'{name}: peak memory of the faces going on', faces['peak'], 'MB', 1)]


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
                 own(f'{k}×: peak memory of the crawl', crawl['peak'], 'MB', 1),
                 own(f'{k}×: disk of pages and links', crawl['disk'], 'MB', 1),
                 own(f'{k}×: CPU to go on with the ledgers', ledger['cpu'], 's', 1),
                 own(f'{k}×: peak memory of that', ledger['peak'], 'MB', 1),
                 own(f'{k}×: disk of the ledgers', ledger['disk'], 'MB', 1)]
    articles, links = [o['articles'] for o in crawls], [o['rows'] for o in ledgers]
    per = [('requests an article', articles, [o['requests'] for o in crawls], 1, 'requests'),
           ('CPU of the crawl an article', articles, [o['cpu'] for o in crawls], 1e3, 'ms'),
           ('memory of the crawl an article', articles, [o['peak'] for o in crawls], 1e3, 'kB'),
           ('disk of pages and links an article', articles, [o['disk'] for o in crawls], 1e3, 'kB'),
           ('CPU of the ledgers a link', links, [o['cpu'] for o in ledgers], 1e6, 'µs'),
           ('memory of the ledgers a link', links, [o['peak'] for o in ledgers], 1e3, 'kB'),
           ('disk of the ledgers a link', links, [o['disk'] for o in ledgers], 1e3, 'kB')]
    rows += [own(what, scale*slope(x, y), unit, len(TIMES)) for what, x, y, scale, unit in per]
    return rows + long(2 if smoke else 20)


if __name__ == '__main__':
    jobs = dict(crawled=crawled, rows_of=rows_of, resumed=resumed, looked=looked, reread=reread, loaded=loaded)
    jobs[sys.argv[1]](*sys.argv[2:])
