"""Memory of one, two and twenty years of one board: each stage goes on in a folder in which all is done.

Each step is a process of its own. What it found is kept in runs/bench/years, so a run that is cut off goes on.
"""
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from long_folders import make, make_pages

here = Path(__file__).resolve()
work = here.parents[1]/'runs/bench/years'
YEARS = (1, 2, 20)


def memory(field):
    "`VmRSS` or `VmHWM` of this process, MB."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(o.split()[1])/1024 for o in lines if o.startswith(field))


def again(run):
    "Run what has nothing left to do, and print how many rows it gave, CPU seconds, and MB before and at the peak."
    before, start = memory('VmRSS'), time.process_time()
    n = len(run())
    print(json.dumps(dict(rows=n, cpu=time.process_time() - start, before=before, peak=memory('VmHWM'))))


def resumed(root, years):
    "Go on with a download."
    from pttface.download import download
    again(lambda: download(root, gateway='http://127.0.0.1:9', progress=False).rows)


def looked(root, years):
    "Go on with the faces."
    from pttface.faces import extract_faces
    again(lambda: extract_faces(root, workers=1).rows)


def reread(root, years):
    "Crawl the cached pages once more."
    from pttface.crawl import crawl
    again(lambda: crawl('Beauty', '2005-01-01', f'{2004 + int(years)}-12-31', root, offline=True, progress=False).rows)


def made(root, years):
    "Make the folder anew."
    shutil.rmtree(root, ignore_errors=True)
    make(root, int(years))


STEPS = dict(make=made, resumed=resumed, looked=looked,
             pages=lambda root, years: make_pages(root), reread=reread)


def step(name, root, years):
    "What a step found, in this run or in one before."
    found = root.with_name(f'{years}_{name}.json')
    if not found.exists():
        r = subprocess.run([sys.executable, here, name, root, str(years)], capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-2000:])
        found.write_text(r.stdout.splitlines()[-1] if r.stdout else '{}')
    return json.loads(found.read_text())


def own(name, value, unit):
    "A row of the table."
    return dict(what=name, value=float(value), unit=unit, peer=None, peer_value=None, ratio=None, n=1, spread=None)


PARTS = dict(reread=('crawl', 'article'), resumed=('download', 'link'), looked=('faces', 'photo'))


def rows_of(found):
    "Rows for the table, from years → step → what it found: each folder, and what one more row takes."
    rows = []
    for name, (stage, what) in PARTS.items():
        seen = {years: o[name] for years, o in found.items() if name in o}
        for years, o in seen.items():
            rows += [own(f'{years}: {what}s', o['rows'], f'{what}s'),
                     own(f'{years}: peak memory of the {stage}', o['peak'], 'MB'),
                     own(f'{years}: CPU of the {stage}', o['cpu'], 's')]
        few, many = (seen[k] for k in (min(seen), max(seen)))
        per = (many['peak'] - few['peak'])/(many['rows'] - few['rows'])
        rows.append(own(f'memory of the {stage} a {what}', per*1e3, 'kB'))
    return rows


def bench(smoke=False):
    "Rows for the table: folders of so many years, in which each stage goes on."
    work.mkdir(parents=True, exist_ok=True)
    years = (1, 2) if smoke else YEARS
    return rows_of({k: {name: step(name, work/str(k), k) for name in STEPS} for k in years})


if __name__ == '__main__':
    STEPS[sys.argv[1]](*sys.argv[2:])
