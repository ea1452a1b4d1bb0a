"The demo, stopped by Ctrl-C in every stage and started again, ends as usual and repeats nothing that was finished."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pttface.app import demo as module
from pttface.app.cli import main
from pttface.app.demo import check_optouts, find_leaks, optout_rows, photos_by_place, truth_of
from pttface.dataset import FaceData
from pttface.display import Picture
from pttface.storage.files import BadInput, open_root, read_json, read_jsonl, write_jsonl, write_tar
from pttface.synthetic.board import make_board

bin = Path(sys.executable).parent / 'pttface'
small = ['--photos', '60', '--samples', '12', '--budget', '6s', '--no-progress']

# What tells that a stage is at work, and what is finished by then
moments = [
    ('links/pages.*', []),
    ('photos/ledger_*.jsonl', []),  # the lists are made again when people have asked to be left out
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
    left_out = [line.split()[-2:] for line in output.splitlines() if 'left out everywhere' in line]
    assert len(left_out) == 3 and set(map(tuple, left_out)) == {('100.0', '%')}, output
    assert (root / 'optout.txt').exists() and (root / 'optout_hashes.jsonl').exists()
    seconds = read_json(root / 'demo.json')['seconds']
    assert {'crawl', 'download', 'faces', 'dataset', 'train', 'sample', 'fid'} <= set(seconds)
    links = read_jsonl(root / 'links/image_links.jsonl')
    assert len({r['id'] for r in links}) == len(links) > 5


def made_by_hand(root, board):
    "Artefacts as a demo leaves them, of the photos that may be shown and no pixel."
    truth = truth_of(board)
    rows = [dict(id=a['id'], url=a['url'], images=[u['url'] for u in a['links'] if u['photo'] is not None])
            for a in truth['articles'] if a['kind'] == 'post']
    write_jsonl(open_root(root, create=True) / 'links/image_links.jsonl', rows)
    article = {u: r['url'] for r in rows for u in r['images']}
    kept = [u for u, t in truth['urls'].items() if t['want'] == 'kept' and u in article]
    photos = [dict(key=f'{i:07d}', url=u, article=article[u], status='kept') for i, u in enumerate(kept)]
    write_jsonl(root / 'faces/faces.jsonl', photos)
    write_tar(root / 'photos/images_01_part_1.tar', [(r['key'], dict(json=json.dumps(r).encode())) for r in photos])
    arrays = {k: np.array([r[k] for r in photos]) for k in ('key', 'url', 'article')}
    arrays |= dict(images=np.zeros((len(photos), 8, 8, 3), np.uint8), split=np.zeros(len(photos), int))
    return FaceData(arrays, dict(hash='none'), root), photos


@pytest.fixture
def board():
    return make_board(160, seed=3, optouts=8)


def leaks_of(root, data, board, keys=()):
    left_out = truth_of(board)['left_out']
    return find_leaks(photos_by_place(root, data, keys), left_out), left_out


def test_nothing_leaks_where_all_is_left_out(tmp_path, board):
    data, photos = made_by_hand(tmp_path, board)
    leaks, left_out = leaks_of(tmp_path, data, board, [r['key'] for r in photos])
    assert leaks == dict(articles={}, photos={}, copies={}) and all(left_out.values())
    assert {r['right'] for r in optout_rows(leaks, left_out)} == {1}
    check_optouts(leaks, left_out)


@pytest.mark.parametrize('what', ['articles', 'photos', 'copies'])
@pytest.mark.parametrize('place', ['links', 'photos', 'faces', 'dataset', 'pictures'])
def test_a_leak_is_found_wherever_it_is(tmp_path, board, place, what):
    data, photos = made_by_hand(tmp_path, board)
    name = sorted(truth_of(board)['left_out'][what])[0]
    row = dict(key='9999999', status='kept', url='https://i.imgur.com/innocent.jpg', article='')
    row['article' if what == 'articles' else 'url'] = name
    if place == 'links':
        rows = read_jsonl(tmp_path / 'links/image_links.jsonl')
        more = dict(url=row['article'], images=[row['url']])
        write_jsonl(tmp_path / 'links/monthly_jsonl/image_links_05.jsonl', [*rows, more])
    if place == 'photos':
        write_tar(tmp_path / 'photos/images_02_part_1.tar', [('9999999', dict(json=json.dumps(row).encode()))])
    if place in ('faces', 'pictures'):
        write_jsonl(tmp_path / 'faces/faces.jsonl', [*photos, row])
    if place == 'dataset':
        for k in ('key', 'url', 'article'):
            data.arrays[k] = np.append(data.arrays[k], row[k])
    leaks, left_out = leaks_of(tmp_path, data, board, ['9999999'] if place == 'pictures' else [])
    if (place, what) == ('links', 'copies'):  # an address does not tell what it shows
        assert not any(leaks.values())
        return
    assert [*leaks[what]] == [name] and place in leaks[what][name]
    assert [r['right'] for r in optout_rows(leaks, left_out) if what in r['what']] == [1 - 1 / len(left_out[what])]
    with pytest.raises(BadInput, match=rf'1 of \d+ opted-out .* is in (faces, )?{place}'):
        check_optouts(leaks, left_out)


def test_the_demo_fails_when_something_leaks(tmp_path, board, monkeypatch, capsys):
    "The table and the picture are there, and the command ends in one sentence and exit status 2"
    root = tmp_path / 'demo'

    class Run:
        log = [dict(images=128, seconds=6.)]

    class Report:
        rows = []

    def stages(folder, settings, progress):
        data, photos = made_by_hand(folder, board)
        if leaky:
            row = dict(photos[0], url=sorted(truth_of(board)['left_out']['photos'])[0])
            write_jsonl(folder / 'faces/faces.jsonl', [*photos, row])
        return board, data, Run(), np.zeros((4, 8, 8, 3), np.uint8), Report()
    monkeypatch.setattr(module, 'run_stages', stages)
    monkeypatch.setattr(module, 'check_faces', lambda *a: [])
    monkeypatch.setattr(module, 'nearest_rows', lambda samples, train, folder: np.zeros(len(samples), int))
    monkeypatch.setattr(module, 'pipeline_picture', lambda *a, **kw: Picture(figsize=(1, 1)))
    for leaky, status in ((False, 0), (True, 2)):
        assert main(['demo', '--root', str(root), '--no-progress']) == status
        out, err = capsys.readouterr()
        assert ('opted-out photos left out everywhere' in out) != leaky
    assert err.startswith('pttface: 1 of ') and 'is in faces' in err and err.count('\n') == 1
    assert (root / 'report.png').exists() and 'opted-out photos' in (root / 'report.md').read_text()
