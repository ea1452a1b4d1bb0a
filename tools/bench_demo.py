"How long each stage of the demo takes on this machine, from nothing to the report."
import os
import shutil
from pathlib import Path

from pttface.demo import DemoSettings, demo
from pttface.store import read_json

root = Path(__file__).resolve().parent.parent / 'runs/bench/demo'


def bench(smoke=False):
    "Rows: seconds a stage, and what it came to. Peers: none, nobody else walks the whole road."
    shutil.rmtree(root, ignore_errors=True)
    table = demo(root, DemoSettings(photos=90, budget='6s', samples=16) if smoke else DemoSettings())
    secs = read_json(root / 'demo.json')['seconds']
    rows = [dict(what=k, value=round(v, 1), unit='s', n=1) for k, v in secs.items()]
    rows += [dict(what='the whole road', value=round(sum(secs.values()), 1), unit=f's on {os.cpu_count()} cores', n=1)]
    wanted = ('photos judged', 'training images', 'FD-')
    return rows + [dict(what=r['what'], value=r['found'], unit=f'of {r["truth"]}' if r['truth'] else None, n=1) for r in table.rows if r['what'].startswith(wanted)]
