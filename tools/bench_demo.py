"How long each stage of the demo takes on this machine, from nothing to the report, and the memory it needs."
import os
import shutil
import threading
from pathlib import Path
from time import monotonic

import psutil

from pttface.app.demo import DemoSettings, demo
from pttface.synthetic.heads import draw_heads
from pttface.storage.files import read_json

root = Path(__file__).resolve().parent.parent / 'runs/bench/demo'


def held(p):
    "Bytes of memory that a process holds, pages shared with others counted by share; 0 once it has ended."
    try:
        return getattr(p.memory_full_info(), 'pss', p.memory_info().rss)
    except psutil.Error:
        return 0


class Peak:
    "The most memory that this process and its children held at any one of the moments looked at."
    def __enter__(self):
        self.bytes = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        me = psutil.Process()
        while not self.stop.wait(3):
            self.bytes = max(self.bytes, sum(map(held, [me, *me.children(recursive=True)])))

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def bench(smoke=False):
    "Rows: seconds for each stage, and what the demo found. No peer does all of it."
    shutil.rmtree(root, ignore_errors=True)
    with Peak() as peak:
        table = demo(root, DemoSettings(photos=90, budget='6s', samples=16) if smoke else DemoSettings())
    secs = read_json(root / 'demo.json')['seconds']
    rows = [dict(what=k, value=round(v, 1), unit='s', n=1) for k, v in secs.items()]
    rows += [dict(what='all stages', value=round(sum(secs.values()), 1), unit=f's on {os.cpu_count()} cores', n=1)]
    rows += [dict(what='peak memory, all processes', value=round(peak.bytes/1e6), unit='MB', n=1)]
    n, start = (12 if smoke else 600), monotonic()
    draw_heads(n, seed=1, progress=False)
    rows += [dict(what=f'{n} photos of 400 × 500 px drawn', value=round(monotonic() - start, 1), unit='s', n=1)]
    wanted = ('photos judged', 'training images', 'FD-')
    for r in table.rows:
        if r['what'].startswith(wanted):
            rows.append(dict(what=r['what'], value=r['found'], unit=f'of {r["truth"]}' if r['truth'] else None, n=1))
    return rows
