"What `status` says leads nobody to lose a run, and one damaged record hides nothing of the others."
import json
import shlex
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from pttface.app.status import changed_flags, command_line, pages_aside, status
from pttface.storage.files import open_root, write_json, write_jsonl, write_npz
from pttface.training.config import RECIPES, recipe_record

CARD = dict(counts=dict(faces=3, train=2, heldout=1), hash='142e85c20b79c8f6')


@pytest.fixture
def root(tmp_path, request):
    "A root in which everything is done"
    root = open_root(tmp_path / getattr(request, 'param', 'my data'), create=True)
    asked = dict(board='Beauty', since='2024-01-01', until='2024-12-31')
    write_json(root / 'links/crawl.json', dict(settings=asked, counts=dict(articles=3, distinct=4)))
    write_json(root / 'photos/download.json', dict(settings={}, counts=dict(links=4, kept=3), done=True))
    faces = dict(settings=dict(detector='mtcnn'), counts=dict(photos=3, kept=3), shards={})
    write_json(root / 'faces/faces.json', faces)
    write_json(root / 'dataset/card.json', CARD)
    write_npz(root / 'dataset/faces.npz', images=np.zeros((3, 8, 8, 3), np.uint8))
    add_run(root, 'edm')
    rows = [dict(metric='FID', value=9.1, n=100)]
    write_json(root / 'eval/report.json', dict(rows=rows, settings=dict(data=CARD['hash'])))
    return root


def add_run(root, name, data=CARD['hash'], step=2000, samples_of=2000, recipe='edm', **more):
    run = root / 'runs' / name
    settings = dict(name=recipe, lr=RECIPES[recipe].lr, lr_end=0.)
    write_json(run / 'recipe.json', dict(settings=settings, hash=dict(data=data), **more))
    write_jsonl(run / 'log.jsonl', [dict(images=step*128, seconds=43_200., lr=0., loss=.052)])
    write_json(run / 'checkpoints.json', [dict(file=f'checkpoint-{step:08d}.pt', step=step, sha256=f'{step:064d}')])
    (run / f'checkpoint-{step:08d}.pt').write_bytes(bytes(10))
    made_by = dict(n=24, images=step*128, step=samples_of, weights=f'{samples_of:064d}'[:16])
    if samples_of != step:
        made_by['weights'] = f'{samples_of:016d}'
    write_npz(run / 'samples.npz', images=np.zeros((1, 8, 8, 3), np.uint8), made_by=np.array(json.dumps(made_by)))
    return run


def states(s, stage):
    return {r['what'].split(':')[0]: r['state'] for r in s.rows if r['stage'] == stage}


@pytest.mark.parametrize('root', ['data', 'my data', "l'année $HOME", 'a;b', '"'], indirect=True)
def test_every_command_can_be_pasted_into_a_shell(root):
    s = status(root)
    assert s.next is None
    for r in s.rows:
        words = shlex.split(r['command'])
        assert words[0] == 'pttface' and words[words.index('--root') + 1] == str(root), r['command']


def test_a_run_of_another_data_set_is_never_removed(root):
    write_json(root / 'dataset/card.json', CARD | dict(hash='0'*16))
    add_run(root, 'edm-2', data='1'*16)
    s = status(root)
    commands = [r['command'] for r in s.rows]
    assert not any('--force' in c for c in commands)
    assert shlex.split(s.next)[2:] == ['--root', str(root), '--recipe', 'edm', '--name', 'edm-3']
    add_run(root, 'edm-3', data='0'*16)
    s = status(root)
    assert 'train' not in (s.next or '') and states(s, 'train') == {'edm': 'behind', 'edm-2': 'behind', 'edm-3': 'done'}


def test_the_budget_is_the_one_that_was_given(root):
    write_json(root / 'dataset/card.json', CARD | dict(hash='0'*16))
    add_run(root, 'edm', budget='160 epochs')
    words = shlex.split(status(root).next)
    assert words[words.index('--budget') + 1] == '160 epochs' and words[-1] == 'edm-2'
    add_run(root, 'mine', data='0'*16, recipe='tiny', budget='90s')
    command = next(r['command'] for r in status(root).rows if r['what'].startswith('mine') and r['stage'] == 'train')
    words = shlex.split(command)
    assert words[4:] == ['--recipe', 'tiny', '--budget', '90s', '--name', 'mine']


@pytest.mark.parametrize('content', ['', '{"settings": {"na', '[]', 'null', '{}', '{"settings": [], "hash": 3}',
                                     '\0'*40, '{"settings": {"name": "edm"}, "hash": null}', None])
def test_a_damaged_run_hides_no_other(root, content):
    add_run(root, 'bad')
    add_run(root, 'fine')
    path = root / 'runs/bad/recipe.json'
    path.unlink() if content is None else path.write_text(content)
    s = status(root)
    runs = [r for r in s.rows if r['stage'] == 'train']
    assert sorted(r['state'] for r in runs) == ['damaged', 'done', 'done']
    bad = next(r for r in runs if r['state'] == 'damaged')
    assert 'delete' not in bad['what'] and '--force' not in bad['command'] and bad['command'].endswith('--name bad')
    assert s.next == bad['command'] and len([r for r in s.rows if r['stage'] == 'sample']) == 3


@pytest.mark.parametrize('name', ['links/crawl.json', 'photos/download.json', 'faces/faces.json', 'dataset/card.json',
                                  'eval/report.json', 'runs/edm/log.jsonl', 'runs/edm/checkpoints.json',
                                  'runs/edm/samples.npz', 'demo.json'])
@pytest.mark.parametrize('content', [b'', b'{"counts": ', b'[1, 2]', b'\xff\xfe\0', b'{"counts": 3, "rows": [{}]}'])
def test_no_damaged_record_hides_the_other_stages(root, name, content):
    (root / name).write_bytes(content)
    s = status(root)
    assert {r['stage'] for r in s.rows} == {'crawl', 'download', 'faces', 'dataset', 'train', 'sample', 'fid'}
    assert sum(r['state'] != 'done' for r in s.rows) <= 2
    assert str(s) and s._repr_markdown_()


def test_a_damaged_log_is_no_damaged_run(root):
    with open(root / 'runs/edm/log.jsonl', 'ab') as f:
        f.write(b'\xff\0{"images": ')
    assert status(root).next is None


def test_samples_of_an_older_checkpoint_say_so(root):
    add_run(root, 'edm', samples_of=1000)
    s = status(root)
    row = next(r for r in s.rows if r['stage'] == 'sample')
    assert row['state'] == 'behind'
    assert row['what'] == 'edm: 24 pictures, of an older checkpoint (step 1,000; the newest is of step 2,000)'
    assert shlex.split(s.next)[1] == 'sample'
    (root / 'runs/edm/checkpoints.json').write_text('')
    assert states(status(root), 'sample') == {'edm': 'done'}


def test_lines_of_the_optout_list_that_name_nothing_are_told(root):
    text = 'https://i.imgur.com/abc1234.jpg\r\n# a note\r\n紅色洋裝\r\n\r\nher'
    (root / 'optout.txt').write_bytes(text.encode('utf-16'))
    s = status(root)
    assert len(s.notes) == 1 and 'line 3 (' in s.notes[0] and 'line 5 (' in s.notes[0]
    assert s.notes[0] in str(s) and s.notes[0] in s._repr_markdown_()
    (root / 'optout.txt').write_text('https://i.imgur.com/abc1234.jpg\n')
    assert status(root).notes == []


def test_pages_of_other_servers_are_counted(root):
    folder = root / 'links'
    assert pages_aside(folder) == ''
    for name, n in (('pages', 7), ('pages.127_0_0_1_8000', 2), ('pages.www_ptt_cc', 3)):
        with closing(sqlite3.connect(folder / f'{name}.sqlite')) as con:
            con.execute('CREATE TABLE pages (path TEXT)')
            con.executemany('INSERT INTO pages VALUES (?)', [(str(i),) for i in range(n)])
            con.commit()
    write_jsonl(folder / 'pages.old.jsonl', [dict(path='/')])
    aside = '2 pages of 127_0_0_1_8000 put aside, 3 pages of www_ptt_cc put aside'
    assert pages_aside(folder) == aside and status(root).rows[0]['what'].endswith(aside)


def test_flags_that_are_none_are_left_out(tmp_path):
    assert command_line('train', tmp_path, recipe='edm', name=None) == f'pttface train --root {tmp_path} --recipe edm'


@pytest.mark.parametrize('changed', [{}, dict(batch=8), dict(lr=1e-3, seed=7), dict(size=48, batch=4)])
def test_flags_that_changed_a_recipe_are_said_again(changed):
    settings = recipe_record(replace(RECIPES['tiny'], **changed))
    assert changed_flags(settings) == changed
    assert changed_flags({k: v for k, v in settings.items() if k != 'name'}) == {}
    assert changed_flags(settings | dict(name='a recipe of my own')) == {}
