"Download: images a second beside img2dataset, what each gate costs, and how much memory ten thousand photos take."
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

here = Path(__file__).resolve()
name = 'https://i.imgur.com/pic{:05d}.jpg'


def spread(v):
    "Half the interquartile range as a share of the median."
    return float(np.subtract(*np.percentile(v, [75, 25])) / 2 / np.median(v)) if len(v) > 2 else None


def photos(n, size=(1350, 1080)):
    "JPEGs of a portrait at the size of a phone's picture."
    from skimage import data
    big, r = cv2.resize(data.astronaut(), size[::-1]), np.random.default_rng(0)
    for _ in range(n):
        buf = io.BytesIO()
        Image.fromarray(np.roll(big, r.integers(0, 100), 1)).save(buf, 'JPEG', quality=int(r.integers(85, 93)))
        yield buf.getvalue()


def serve():
    "Answer for every image host until standard input ends; `/begun` says when the first photo was asked for."
    from pttface.synthetic.server import Reply, serving
    pool, begun = list(photos(20)), []

    def answer(path, headers):
        if path == '/begun':
            first = min(begun)
            begun.clear()
            return Reply(200, str(first).encode())
        begun.append(time.monotonic())
        return Reply(200, pool[int(path[-9:-4]) % len(pool)] + path.encode(), mime='image/jpeg')
    with serving(answer) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def ours(url, n, gates, folder):
    "One download of ours: prints the clock at its end, CPU seconds, and memory in MB, its peak and every 0.2 s."
    import pttface.download
    from pttface.download import download
    from pttface.storage.files import open_root, write_jsonl
    quick = dict(sharpness=1e9, face_score=1., face_box=None, face_sharpness=None, phash='')
    if not gates:
        pttface.download.measure = lambda im, detect: dict(width=im.shape[1], height=im.shape[0], **quick)
    root = open_root(Path(folder) / 'root', create=True)
    write_jsonl(root / 'links/monthly_jsonl/image_links_01.jsonl',
                [dict(url='https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html', title='',
                      images=[name.format(i) for i in range(n)])])
    held, stop = [], threading.Event()

    def watch():
        while not stop.wait(.2):
            held.append(int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20)
    threading.Thread(target=watch, daemon=True).start()
    got = download(root, gateway=url, progress=False)
    end = time.monotonic()
    stop.set()
    assert len(got.kept) == n, got
    used = resource.getrusage(resource.RUSAGE_SELF)
    status = Path('/proc/self/status').read_text().splitlines()
    peak = next(int(o.split()[1]) / 1024 for o in status if o.startswith('VmHWM'))
    print(json.dumps(dict(end=end, cpu=used.ru_utime + used.ru_stime, peak=peak, held=held)))


theirs = '''
import json, resource, sys, time
from img2dataset import download
url, n, folder, cores = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with open(folder + '/list.txt', 'w') as f: f.writelines(f'{url}/i.imgur.com/pic{i:05d}.jpg\\n' for i in range(n))
if __name__ == '__main__':
    download(folder + '/list.txt', output_folder=folder + '/out', output_format='webdataset', resize_mode='no',
             skip_reencode=True, extract_exif=False, processes_count=cores, thread_count=16,
             number_sample_per_shard=-(-n // (2 * cores)))
    end = time.monotonic()
    both = [resource.getrusage(o) for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    import glob
    kept = sum(json.load(open(f))['successes'] for f in glob.glob(folder + '/out/*_stats.json'))
    assert kept == n, kept
    print(json.dumps(dict(end=end, cpu=sum(o.ru_utime + o.ru_stime for o in both))))
'''


def once(url, n, cores, gates=False, peer=None):
    "One download, ours or a peer's, in its own process: images a second and core, images a CPU second, report"
    with tempfile.TemporaryDirectory() as tmp:
        script = Path(tmp) / 'theirs.py'
        script.write_text(theirs)
        call = [sys.executable, here, 'ours', url, n, int(gates), tmp]
        if peer:
            call = [peer, script, url, n, tmp, cores]
        env = os.environ | dict(NO_ALBUMENTATIONS_UPDATE='1', PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
        out = subprocess.run(list(map(str, call)), env=env, capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr[-2000:])
        got = json.loads(out.stdout.strip().splitlines()[-1])
    import requests
    seconds = got['end'] - float(requests.get(f'{url}/begun', timeout=9).text)
    return n / seconds / cores, n / got['cpu'], got


def cost(f, pool):
    "Milliseconds of CPU a photo."
    start = time.thread_time()
    for o in pool:
        f(o)
    return (time.thread_time() - start) / len(pool) * 1e3


def gate_rows(n, repeats):
    "What each part of the gate costs."
    from pttface.vision.detectors import load_detector
    from pttface.vision.images import decode, perceptual_hash, sharpness
    cv2.setNumThreads(1)
    pool = list(photos(n))
    ims, detect = [decode(o)[0] for o in pool], load_detector('mtcnn')
    parts = dict(decode=(decode, pool), face=(detect, ims), sharpness=(sharpness, ims), phash=(perceptual_hash, ims))
    took = {k: [] for k in parts}
    for f, over in parts.values():
        f(over[0])
    for _ in range(repeats):
        for k, (f, over) in parts.items():
            took[k].append(cost(f, over))
    return [dict(what=f'gate ms: {k}', value=statistics.median(v), unit='ms CPU/photo', n=repeats, spread=spread(v))
            for k, v in took.items()]


def memory_rows(url, n, cores):
    "The most memory of a long run, and how much of it came after the first tenth."
    *_, got = once(url, n, cores, gates=True)
    tenth = max(got['held'][:max(1, len(got['held']) // 10)])
    return [dict(what=f'peak MB, {n:,} photos, gates on', value=got['peak'], unit='MB', n=1),
            dict(what='of it after the first tenth', value=got['peak'] - tenth, unit='MB', n=1)]


def bench(smoke=False):
    "Rows for the table; IMAGES (600), REPEATS (5) and PHOTOS (10,000, for the memory) are settings."
    from peers import peer_python
    n, repeats = (24, 1) if smoke else (int(os.environ.get('IMAGES', 600)), int(os.environ.get('REPEATS', 5)))
    many, cores = 24 if smoke else int(os.environ.get('PHOTOS', 10_000)), os.cpu_count() or 1
    peer = peer_python('download', 'img2dataset>=1.47', make=not smoke)
    server = subprocess.Popen([sys.executable, str(here), 'serve'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    try:
        url, off = server.stdout.readline().strip(), []
        on, by = [], []
        for _ in range(repeats):
            off.append(once(url, n, cores))
            if peer:
                by.append(once(url, n, cores, peer=peer))
            on.append(once(url, n, cores, gates=True))
        rows = []
        for i, unit in enumerate(('images/s/core', 'images/CPU s')):
            v, w = [o[i] for o in off], [o[i] for o in by]
            median, other = statistics.median(v), statistics.median(w) if w else None
            rows.append(dict(what=f'{unit}, gates off', value=median, unit=unit, peer='img2dataset, not resized',
                             peer_value=other, ratio=median / other if w else None, n=repeats, spread=spread(v)))
        v = [o[0] for o in on]
        rows.append(dict(what='images/s/core, gates on', value=statistics.median(v), unit='images/s/core', n=repeats,
                         spread=spread(v)))
        rows += gate_rows(4 if smoke else 20, repeats) + memory_rows(url, many, cores)
    finally:
        server.stdin.close()
        server.wait()
    return [dict(peer=None, peer_value=None, ratio=None, spread=None) | r for r in rows]


if __name__ == '__main__':
    if sys.argv[1] == 'serve':
        serve()
    else:
        ours(sys.argv[2], int(sys.argv[3]), sys.argv[4] == '1', sys.argv[5])
