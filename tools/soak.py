"""Download many links from a server on this machine that has every fault it can have, and check that nothing is amiss.

`python tools/soak.py [--links 20000] [--minutes 10] [--smoke]` prints a table and writes runs/bench/soak.json;
it ends with status 1 when a link is lost or doubled, a sum is wrong, memory grows, or the time is over.
"""
import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

here = Path(__file__).resolve()
HOSTS = ('i.imgur.com', 'i.ibb.co', 'i.meee.com.tw', 'photos.example.com')
MONTHS, STRUCK = 12, .2
PASSES = ('429', '429_wait', '500', '502', '503', 'delay', 'reset', 'hang_up', 'length_over', 'gibberish', 'drip',
          'slow_headers')  # Faults that are over when one asks again


def address(i):
    "The address of link `i`; every hundredth shows the photo of the one before it, under another address."
    return f'https://{HOSTS[i % len(HOSTS)]}/soak{i:06d}.jpg'


def number(path):
    "The link that a path belongs to."
    return int(path.rsplit('/soak', 1)[1][:6])


@lru_cache(1)
def pool():
    "Small JPEGs, four of a portrait and twelve of a cup of coffee."
    import cv2
    import numpy as np
    from PIL import Image
    from skimage import data
    scenes, r = (data.astronaut()[:224, 112:336], *[data.coffee()[:224, :224]]*3), np.random.default_rng(0)
    out = []
    for k in range(16):
        side = 64 if k % 4 else 96
        im = cv2.resize(scenes[k % 4], (side, side), interpolation=cv2.INTER_AREA).astype(int)
        noisy = np.clip(im + r.integers(-5, 6, im.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, 'JPEG', quality=90)
        out.append(buffer.getvalue())
    return out


def photo(i):
    "What link `i` leads to: no two alike, but for the twins."
    i -= i % 100 == 99
    return pool()[i % 16] + b'%06d' % i


def fault_of(path, n):
    "The fault that a request meets: some links are struck, with each fault of the server in turn."
    from pttface.synthetic.server import Fault, faults
    if '/soak' not in path:
        return None
    i = number(path)
    if int.from_bytes(hashlib.sha256(b'%d' % i).digest()[:4], 'big') >= STRUCK*2**32:
        return None
    kind = sorted(faults)[i % len(faults)]
    return Fault(kind, times=1 if kind in PASSES else None, seconds=.02, size=4_000_000)


def serve():
    "Serve until standard input ends; `/told` gives how often each link was asked for, and what the trap was asked."
    from pttface.synthetic.server import Reply, serving
    box = []

    def answer(path, headers):
        if path == '/told':
            server = box[0]
            counts = Counter(number(p) for p in list(server.requests) if '/soak' in p)
            return Reply(200, json.dumps([dict(counts), server.trapped]).encode())
        if '/soak' not in path:
            return Reply(404, b'not here')
        return Reply(200, photo(number(path)), mime='image/jpeg')
    with serving(answer, faults=fault_of) as server:
        box.append(server)
        print(server.url, flush=True)
        sys.stdin.read()


def lists(root, n):
    "The lists of a crawl with `n` links; every fiftieth is shown by two articles."
    from pttface.storage.files import open_root, write_jsonl
    root, per = open_root(root, create=True), -(-n//MONTHS)
    for m in range(MONTHS):
        links = range(m*per, min((m + 1)*per, n))
        article = 'https://www.ptt.cc/bbs/Beauty/M.{}.A.E87.html'
        rows = [dict(date=f'{m + 1:02d}01', title='[正妹] 元旦', url=article.format(1704040318 + m*2_600_000 + k),
                     images=[address(i) for i in links[k::4]]) for k in range(4)]
        rows[-1]['images'] += [address(i) for i in links[::50]]
        write_jsonl(root/f'links/monthly_jsonl/image_links_{m + 1:02d}.jsonl', rows)


def get(url, root):
    "Download all of `root`, in this process; prints seconds, and the memory in MB by links done."
    import pttface.net.scheduler as module
    from pttface.download import DownloadSettings, Photos, download
    from pttface.storage.shards import MonthShard
    client, put, done, held = module.Client, MonthShard.put, [], []
    quick = dict(backoff=.01, total=1.5, timeout=1.)
    module.Client = lambda *a, **k: client(*a, **k | quick)

    def counted(self, *args, **kw):
        done.append(None)
        return put(self, *args, **kw)
    MonthShard.put = counted

    def watch():
        while True:
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            held.append((len(done), pages*os.sysconf('SC_PAGE_SIZE')/2**20))
            time.sleep(.25)
    threading.Thread(target=watch, daemon=True).start()
    begin = time.monotonic()
    settings = DownloadSettings(max_bytes=2_000_000)
    got = download(root, gateway=url, workers=4, streams=8, progress=False, settings=settings)
    seconds = time.monotonic() - begin
    print(json.dumps(dict(seconds=seconds, held=held, links=len(Photos.load(root)), counts=got.record['counts'])))


@contextmanager
def server():
    "A server in a process of its own; yields its address."
    p = subprocess.Popen([sys.executable, here, 'serve'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield p.stdout.readline().strip()
    finally:
        p.stdin.close()
        p.wait(20)


def once(url, root, seconds):
    "One download in a process of its own, within so many seconds."
    r = subprocess.run([sys.executable, here, 'get', url, root], capture_output=True, text=True, timeout=seconds)
    if r.returncode:
        raise SystemExit(f'the download failed:\n{r.stderr[-2000:]}')
    return json.loads(r.stdout.strip().splitlines()[-1])


def told(url):
    "How often each link was asked for, and what the trap was asked."
    import requests
    counts, trapped = requests.get(f'{url}/told', timeout=60).json()
    return {int(k): v for k, v in counts.items()}, trapped


def state(root):
    "Everything that a download has written."
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((Path(root)/'photos').iterdir())}


def problems(root, n, counts):
    "What is amiss with the photos of `root`, in words; nothing where all is well."
    from pttface.download import Photos
    from pttface.storage.files import read_tar
    rows, found = Photos.load(root).rows, []
    by_url = Counter(r['url'] for r in rows)
    if set(by_url) != {address(i) for i in range(n)}:
        found.append(f'{n - len(by_url)} links have no row')
    if (twice := sum(v > 1 for v in by_url.values())):
        found.append(f'{twice} links have two rows')
    if len({r['key'] for r in rows}) != len(rows):
        found.append('a key is given twice')
    if sum(v for k, v in counts.items() if k != 'links') != counts['links'] or counts['links'] != n:
        found.append(f'the sums differ: {counts}')
    tars = sorted((Path(root)/'photos').glob('*.tar'))
    held = [(k, json.loads(p['json'])['url']) for f in tars for k, p in read_tar(f)]
    kept = [(r['key'], r['url']) for r in rows if r['status'] == 'kept']
    if sorted(held) != sorted(kept):
        found.append(f'{len(held)} photos are in tars, and {len(kept)} are kept')
    for r in rows:
        i = number(r['url'])
        struck = fault_of(r['url'], 1)
        if struck is None or struck.kind in PASSES:
            if r['status'] == 'failed':
                found.append(f'{r["url"]} failed ({r["reason"]}), although its fault passes')
            elif r['sha256'] != hashlib.sha256(photo(i)).hexdigest():
                found.append(f'{r["url"]} is not what was sent')
        elif r['status'] == 'kept':
            found.append(f'{r["url"]} is kept, although its server only says {struck.kind}')
        elif r['status'] not in ('failed', 'refused') or not r['reason']:
            found.append(f'{r["url"]} is {r["status"]}, and its server says {struck.kind}')
    return found


def growth(held):
    "Memory in MB at a fifth of the links, at the end, and between them in bytes a link."
    total = held[-1][0]
    early = [m for k, m in held if k <= total/5]
    late = [m for k, m in held if k >= total*.9]
    start, end = max(early), max(late)
    return start, end, (end - start)*2**20/(total*.8)


def soak(n, seconds):
    "Rows of figures, and what is amiss."
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as root, server() as url:
        lists(root, n)
        first = once(url, root, seconds)
        asked, trapped = told(url)
        amiss = problems(root, n, first['counts'])
        was = state(root)
        again = once(url, root, max(1, end - time.monotonic()))
        more = told(url)[0]
        if problems(root, n, again['counts']):
            amiss.append('the second download spoils what is there')
        settled = [i for i in range(n) if more[i] > asked[i] and (f := fault_of(address(i), 1)) and f.kind not in PASSES
                   and f.kind in ('403', '404', 'html', 'empty', 'bomb', 'huge', 'placeholder')]
        if settled:
            amiss.append(f'{len(settled)} links were asked for again, although their answer was final')
        changed = [k for k, v in state(root).items() if was.get(k) != v and k.endswith('.tar')]
    if trapped:
        amiss.append(f'{len(trapped)} requests went to an address that no link may lead to')
    if changed:
        amiss.append(f'{len(changed)} tars were written again')
    start, peak, slope = growth(first['held'])
    if n >= 5000 and (slope > 10_000 or peak - start > 250):
        amiss.append(f'memory grew by {peak - start:.0f} MB, {slope:.0f} bytes a link')
    counts = first['counts']
    figures = dict(links=(n, 'links'), kept=(counts['kept'], 'links'), failed=(counts['failed'], 'links'),
                   requests=(sum(asked.values()), 'requests'), seconds=(first['seconds'], 's'),
                   speed=(n/first['seconds'], 'links/s'), second=(again['seconds'], 's'), early=(start, 'MB'),
                   peak=(peak, 'MB'), slope=(slope, 'bytes/link'), amiss=(len(amiss), 'faults'))
    words = dict(seconds='first download', speed='links a second', second='second download',
                 early='memory after a fifth of the links', peak='memory at the end', slope='growth between them')
    return [dict(what=words.get(k, k), value=v, unit=u, n=1) for k, (v, u) in figures.items()], amiss


def main():
    p = argparse.ArgumentParser(prog='make soak', description=__doc__.split('\n')[0])
    p.add_argument('--links', type=int, default=20_000, help='how many links')
    p.add_argument('--minutes', type=float, default=10, help='the most time for both downloads')
    p.add_argument('--smoke', action='store_true', help='200 links, and nothing is written')
    args = p.parse_args()
    from pttface.display import Table
    from pttface.storage.files import write_json
    try:
        rows, amiss = soak(200 if args.smoke else args.links, 60*args.minutes)
    except subprocess.TimeoutExpired:
        raise SystemExit(f'not done within {args.minutes:g} minutes') from None
    print(Table(rows))
    if not args.smoke:
        write_json(here.parents[1]/'runs/bench/soak.json', rows)
        print('written to runs/bench/soak.json')
    for sentence in amiss[:20]:
        print(f'amiss: {sentence}')
    sys.exit(bool(amiss))


if __name__ == '__main__':
    if sys.argv[1:2] == ['serve']:
        serve()
    elif sys.argv[1:2] == ['get']:
        get(*sys.argv[2:])
    else:
        main()
