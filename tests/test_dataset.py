"Faults and promises of the packed set: torn files, decisions, opt-out, a split that never moves, batches that resume."
import json

import numpy as np
import pytest
import torch

from pttface.dataset import FaceData,PackSettings,duplicate_groups,held_out,near_pairs,pack
from pttface.storage.files import BadInput,dumps,open_root,read_json,write_json,write_jsonl,write_npz

def article(i):
    return f'https://www.ptt.cc/bbs/Beauty/M.{1704040000 + i}.A.E87.html'

def make(root, n=60, extra=()):
    "A faces stage's artefacts, of noise; `extra` are indices repeated at the end, under a later article"
    root = open_root(root, create=True)
    rng = np.random.default_rng(0)
    ims = rng.integers(0, 255, (n,8,8,3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    hashes = [f'{h:016x}' for h in rng.integers(0, 2**63, n)]
    at = [*range(n), *extra]
    rows = [dict(key=f'01{k:05d}', month='01', status='kept', reason=None, row=k, url=f'https://i.imgur.com/{k}.jpg',
                 article=article(k//2 if i < n else 1000 + i), sha256=f'{k:064x}', score=.9 + i/1000,
                 pose=('frontal','left','right')[i%3], gender=None, phash=hashes[i], face_sharpness=100. - k,
                 side=200.) for k,i in enumerate(at)]
    rows.append(dict(key='0199999', month='01', status='dropped', reason='blurred', url='u', article='a', shard='s'))
    keys = np.array([r['key'] for r in rows[:-1]])
    write_npz(root/'faces/faces_01.npz', key=keys, im64=ims[at], im60=ims[at][:,:60,:60])
    write_jsonl(root/'faces/faces.jsonl', rows)
    return root

def write_decisions(root, *rows, torn=''):
    "What the curator writes, and perhaps a line cut short"
    (root/'dataset').mkdir(exist_ok=True)
    (root/'dataset/decisions.jsonl').write_text(''.join(dumps(r) + '\n' for r in rows) + torn)

def test_near_pairs_are_all_pairs():
    rng = np.random.default_rng(1)
    h = rng.integers(0, 2**64, 700, dtype=np.uint64)
    h[500:600] = h[:100] ^ (np.uint64(1) << rng.integers(0, 64, 100, dtype=np.uint64))
    want = {(i,j) for i in range(700) for j in range(i+1,700) if int(h[i] ^ h[j]).bit_count() <= 10}
    assert {tuple(map(int, o)) for o in near_pairs(h, 10, block=97)} == want and len(want) >= 100
    assert near_pairs(h[:0]).shape == (0,2)

def test_hash_alone_does_not_make_a_duplicate():
    ims = np.random.default_rng(2).integers(0, 255, (3,64,64,3), dtype=np.uint8)
    ims[2] = np.clip(ims[0]*.8 + 20, 0, 255)
    g = duplicate_groups(np.array([5,5,5], np.uint64), ims)
    assert g[0] == g[2] != g[1]

def test_the_best_of_a_group_stays_and_goes_with_its_first_article(tmp_path):
    data = pack(make(tmp_path/'run', extra=range(6)))
    assert len(data) == 60 and data.card['counts']['different'] == 60
    assert data.card['duplicates'] == [[f'01{i:05d}',f'01{60 + i:05d}'] for i in range(6)]
    assert all(k < '0100060' for k in data.key)

def test_split_never_moves(tmp_path):
    few,more = pack(make(tmp_path/'a', 60)),pack(make(tmp_path/'b', 300, extra=range(20)))
    before = dict(zip(few.key.tolist(), few.split.tolist()))
    after = dict(zip(more.key.tolist(), more.split.tolist()))
    assert all(after[k] == s for k,s in before.items()) and 0 < few.split.sum() < 30
    for d in (few,more):
        assert not set(d.article[d.split == 0]) & set(d.article[d.split == 1])
    assert [held_out(article(i)) for i in range(3)] == [held_out(article(i)) for i in range(3)]

def test_again_does_nothing(tmp_path):
    root = make(tmp_path/'run')
    a = pack(root)
    stamp = {p.name:p.stat().st_mtime_ns for p in (root/'dataset').glob('*')}
    assert pack(root).hash == a.hash and {p.name:p.stat().st_mtime_ns for p in (root/'dataset').glob('*')} == stamp
    (root/'dataset/faces.npz').unlink()
    assert pack(root).hash == a.hash

def test_decisions_and_opt_out_reach_what_is_packed(tmp_path):
    root = make(tmp_path/'run')
    pack(root)
    decided = [dict(key='0100007', drop=True), dict(key='0100008', drop=True), dict(key='0100008', drop=False)]
    write_decisions(root, *decided, torn='{"key": "01000')
    data = pack(root)
    assert '0100007' not in data.key and '0100008' in data.key and len(data) == 59
    (root/'optout.txt').write_text(article(10) + '\n' + f'{3:064x}\n')
    data = pack(root)
    assert len(data) == 56 and article(10) not in data.article and '0100003' not in data.key
    assert len(pack(root, settings=PackSettings(distance=4), force=True)) == 56

def test_settings_may_come_second_as_in_0_1_0(tmp_path):
    root = make(tmp_path/'run')
    assert pack(root, PackSettings(size=60)).size == 60
    assert pack(root, 'original', force=True).card['settings']['distance'] == -1
    data = pack(root, PackSettings(), None, None, None, None, True)
    assert data.size == 64 and data.card['settings']['filters'] == {}
    with pytest.raises(BadInput, match="no pose 'best'"):
        pack(root, 'best')

def test_a_decision_about_one_duplicate_is_about_all(tmp_path):
    root = make(tmp_path/'run', extra=range(6))
    write_decisions(root, dict(key='0100060', drop=True, reason='blurred'),
                    dict(key='0100009', drop=False, reason='blurred'))
    data = pack(root)
    assert not {'0100000', '0100060'} & set(data.key) and '0100009' in data.key and len(data) == 59
    assert data.card['by_hand'] == dict(looked_at=2, dropped=1, reasons=dict(blurred=1))
    assert data.card['counts']['not dropped by hand'] == 64
    (root/'optout.txt').write_text('https://i.imgur.com/1.jpg\n')
    data = pack(root)
    assert not {'0100001', '0100061'} & set(data.key) and data.card['counts']['not opted out'] == 64

def test_a_decision_survives_other_settings_a_filter_and_a_new_numbering(tmp_path):
    root = make(tmp_path/'run')
    pack(root)
    write_decisions(root, dict(key='0100007', sha256=f'{7:064x}', drop=True))
    for kw in (dict(settings=PackSettings(distance=4)), dict(month='01'), dict(settings='original')):
        assert '0100007' not in pack(root, force=True, **kw).key
    rows = [json.loads(o) for o in (root/'faces/faces.jsonl').read_text().splitlines()]
    write_jsonl(root/'faces/faces.jsonl', [r | dict(key=f'01{500 + i:05d}') for i, r in enumerate(rows)])
    data = pack(root, force=True)
    assert '0100507' not in data.key and len(data) == 59

def test_the_card_says_what_made_it(tmp_path):
    root = make(tmp_path/'run')
    write_json(root/'links/crawl.json', dict(settings=dict(since='2024-01-01')))
    write_jsonl(root/'links/image_links.jsonl', [dict(images=['a', 'b'])]*40)
    write_json(root/'photos/download.json', dict(settings=dict(score=.5)))
    card = pack(root, month='01').card
    counts = card['counts']
    assert card['made_with'] == dict(crawl=dict(since='2024-01-01'), download=dict(score=.5))
    assert card['settings']['filters'] == dict(month='01') and card['funnel']['links'] == 80
    assert counts['train'] + counts['heldout'] == counts['different'] == 60
    assert set(card) == {'settings', 'source', 'counts', 'by_hand', 'duplicates', 'funnel', 'by', 'made_with', 'hash'}

def test_newer_articles_move_nothing(tmp_path):
    rng, before = np.random.default_rng(5), {}
    for n in (0, 9, 40):
        data = pack(make(tmp_path/f'{n}', 200, extra=rng.integers(0, 200, n)))
        split = {k: s for k, s in zip(data.key.tolist(), data.split.tolist()) if int(k[2:]) < 200}
        assert split == (before or split) and len(split) == 200 and 0 < sum(split.values()) < 60
        before = split

def test_thousands_of_equal_hashes_fit_in_memory():
    rng = np.random.default_rng(3)
    ims = rng.integers(0, 255, (1200, 16, 16, 3), dtype=np.uint8)
    ims[1::2] = ims[::2]
    g = duplicate_groups(np.zeros(1200, np.uint64), ims)
    assert (g[1::2] == g[::2]).all() and len(set(g)) == 600

def test_pictures(tmp_path):
    data = pack(make(tmp_path/'run', extra=range(6)))
    assert data._repr_markdown_()
    for picture in (data.picture(), data.duplicates_picture()):
        assert picture._repr_png_()[:4] == b'\x89PNG'
    with pytest.raises(BadInput, match='0 groups'):
        pack(make(tmp_path/'none')).duplicates_picture()
    assert np.isnan(data.yaw).all() and np.allclose(data.side, 200)

@pytest.mark.parametrize('name,words', [('faces/faces_01.npz', 'damaged'), ('faces/faces.jsonl', 'line'),
                                        ('dataset/card.json', 'damaged')])
def test_a_file_cut_short_is_named(tmp_path, name, words):
    root = make(tmp_path/'run')
    pack(root)
    (root/'dataset/faces.npz').unlink()
    (root/name).write_bytes((root/name).read_bytes()[:-40])
    with pytest.raises(BadInput, match=words):
        pack(root)

def test_filters_and_their_record(tmp_path):
    root = make(tmp_path/'run')
    data = pack(root, pose='left', score=.92)
    assert set(data.pose) == {'left'} and data.card['settings']['filters'] == dict(pose='left', score=.92)
    with pytest.raises(BadInput, match='filters'):
        pack(root)
    assert len(FaceData.load(root)) == len(data)

@pytest.mark.parametrize('kw,words', [
    (dict(pose='up'), "no pose 'up'"), (dict(gender='x'), "no gender 'x'"),
    (dict(month='13'), "month '13', only of 01"), (dict(score=3.), 'not at 3.0'),
    (dict(settings=PackSettings(size=50)), 'not at 50'),
    (dict(settings=PackSettings(heldout=1.)), 'not be 1.0'), (dict(settings='best'), "no preset 'best'"),
    (dict(gender='male'), 'No face is left: 60 faces')])
def test_bad_input(tmp_path, kw, words):
    root = make(tmp_path/'run')
    with pytest.raises(BadInput, match=words):
        pack(root, **kw)
    assert not (root/'dataset').exists()

def test_a_set_that_is_not_on_its_card(tmp_path):
    root = make(tmp_path/'run')
    pack(root)
    write_json(root/'dataset/card.json', read_json(root/'dataset/card.json') | dict(hash='0'*16))
    with pytest.raises(BadInput, match='its card says 0000'):
        FaceData.load(root)
    (root/'dataset/faces.npz').write_bytes((root/'dataset/faces.npz').read_bytes()[:9000])
    with pytest.raises(BadInput, match='damaged'):
        FaceData.load(root)

def test_batches(tmp_path):
    data = pack(make(tmp_path/'run'))
    n = len(data.train)
    def take(k, **kw):
        it = data.batches(7, seed=3, **kw)
        return [next(it) for _ in range(k)]
    whole = take(30)
    for k in (1,8,17):
        assert all(torch.equal(x, y) for x,y in zip(whole[k:], take(30 - k, start=k)))
    assert whole[0].is_contiguous() and whole[0].dtype == torch.float32
    flat = torch.cat(take(-(-n//7) + 1, flip=False))[:n]
    back = ((flat + 1)*127.5).round().byte().permute(0,2,3,1).numpy()
    assert sorted(o.tobytes() for o in back) == sorted(o.tobytes() for o in data.train)
    mirrored = [(x != y).any() for x,y in zip(torch.cat(whole), torch.cat(take(30, flip=False)))]
    assert .3 < np.mean(mirrored) < .7
    assert not torch.equal(whole[0], next(data.batches(7, seed=4)))
    assert data.at(32) is data.at(32) and data.at(32).images.shape[1:] == (32,32,3) and data.at(64) is data
