"The demo, stopped by Ctrl-C in every stage and started again, ends as usual and repeats nothing that was finished."
import signal
import subprocess
import sys
import time
from pathlib import Path

from pttface.storage.files import read_json, read_jsonl

bin = Path(sys.executable).parent / 'pttface'
small = ['--photos', '60', '--samples', '12', '--budget', '6s', '--no-progress']

# What tells that a stage is at work, and what is finished by then
moments = [
    ('links/pages.*', []),
    ('photos/ledger_*.jsonl', ['links/image_links.jsonl', 'links/crawl.json']),
    ('faces', ['links/image_links.jsonl', 'photos/download.json', 'photos/images_*.tar']),
    ('runs/*/log.jsonl', ['photos/images_*.tar', 'faces/faces.jsonl', 'dataset/faces.npz', 'dataset/card.json']),
    ('runs/*/samples.npz', ['dataset/faces.npz', 'runs/*/recipe.json', 'runs/*/checkpoint*']),
]


def start(root):
    return subprocess.Popen([bin, 'demo', '--root', root, *small], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stamps(root, patterns):
    return {p: p.stat().st_mtime_ns for o in patterns for p in root.glob(o)}


def test_ctrl_c_in_every_stage(tmp_path):
    root = tmp_path / 'demo'
    finished, stopped = [], 0
    for sign, done in moments:
        if list(root.glob(sign)):
            continue  # The last stop came late: this moment is over, and a new process looks like it
        p, end = start(root), time.time() + 120
        while p.poll() is None and not list(root.glob(sign)) and time.time() < end:
            time.sleep(.02)
        if p.poll() is None:
            p.send_signal(signal.SIGINT)
        output = p.communicate(timeout=60)[0]
        assert p.returncode in (0, 130) and 'Traceback' not in output, output
        stopped += p.returncode == 130
        finished.append((stamps(root, done), done))
    assert stopped >= 3, 'the demo was too quick to be stopped'
    p = start(root)
    output = p.communicate(timeout=240)[0]
    assert p.returncode == 0, output
    for before, done in finished:
        assert stamps(root, done) == before, f'{done} was made again'
    assert (root / 'report.png').stat().st_size > 10_000 and 'articles in range' in output
    seconds = read_json(root / 'demo.json')['seconds']
    assert {'crawl', 'download', 'faces', 'dataset', 'train', 'sample', 'fid'} <= set(seconds)
    links = read_jsonl(root / 'links/image_links.jsonl')
    assert len({r['id'] for r in links}) == len(links) > 5
