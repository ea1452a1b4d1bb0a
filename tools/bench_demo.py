"How long each stage of the demo takes on this machine, from nothing to the report."
import os
import tempfile
from pathlib import Path

from pttface.demo import DemoSettings, demo
from pttface.store import read_json


def bench(smoke=False):
    "Rows: seconds a stage. Peers: none, nobody else walks the whole road."
    with tempfile.TemporaryDirectory() as d:
        root = Path(d) / 'demo'
        demo(root, DemoSettings(photos=60, budget='5s', samples=16) if smoke else DemoSettings())
        secs = read_json(root / 'demo.json')['seconds']
    rows = [dict(what=f'{k}', value=round(v, 1), unit='s', n=1) for k, v in secs.items()]
    return rows + [dict(what='the whole road', value=round(sum(secs.values()), 1), unit=f's on {os.cpu_count()} cores', n=1)]
