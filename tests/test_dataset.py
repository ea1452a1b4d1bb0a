"Faults and promises of the packed set: torn files, decisions, opt-out, a split that never moves, batches that resume."
import json

import numpy as np
import pytest
import torch

from pttface.dataset import (FaceData,PackSettings,duplicate_groups,duplicate_pairs,held_out,mirrored_hashes,near_pairs,
                             pack,split_articles)
from pttface.storage.files import (BadInput,content_hash,dumps,open_root,read_json,read_jsonl,read_npz,write_json,
                                   write_jsonl,write_npz)
from pttface.synthetic.heads import draw_heads

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
                 article=article(k//2 if k < n else 1000 + k), sha256=f'{k:064x}', score=.9 + i/1000,
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
    crops = read_npz(root/'faces/faces_01.npz')
    write_npz(root/'faces/faces_01.npz', **crops | dict(key=np.array([f'01{500 + i:05d}' for i in range(60)])))
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
    assert set(card) == {'settings', 'source', 'counts', 'by_hand', 'duplicates', 'funnel', 'by', 'made_with', 'hash',
                         'age_screen'}

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
    (dict(settings=PackSettings(size=50)), 'not of 50: run `pttface faces'),
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

SIDES = {side: [article(i) for i in range(400) if held_out(article(i)) == side] for side in (False, True)}

def make_linked(root, *names):
    "A face for each of `names`, `(article, picture)` pairs: what has one picture is one picture"
    make(root, len(names))
    pictures = sorted({picture for _,picture in names})
    which = [pictures.index(picture) for _,picture in names]
    rows, arrays = read_jsonl(root/'faces/faces.jsonl'), dict(read_npz(root/'faces/faces_01.npz'))
    hashes = [r['phash'] for r in rows if r['status'] == 'kept']
    for row,(name,_),k in zip(rows, names, which):
        row |= dict(article=name, phash=hashes[k])
    write_jsonl(root/'faces/faces.jsonl', rows)
    write_npz(root/'faces/faces_01.npz', **arrays | {k: arrays[k][which] for k in ('im64', 'im60')})
    return root

def sides_of(data):
    out = {}
    for name,side in zip(data.article.tolist(), data.split.tolist()):
        out.setdefault(name, set()).add(side)
    return out

@pytest.mark.parametrize('first', [False, True])
def test_connected_articles_lie_on_one_side_whatever_the_chain(tmp_path, first):
    a = SIDES[first][0]
    b,c,d = [o for o in SIDES[not first] if o > a][:3]
    faces = [(a,'1'), (a,'a'), (b,'1'), (b,'2'), (b,'b'), (c,'2'), (c,'3'), (d,'3'), (d,'d')]
    data = pack(make_linked(tmp_path/'run', *faces, (SIDES[False][5],'x'), (SIDES[True][5],'y')))
    sides = sides_of(data)
    assert all(sides.get(o, {int(first)}) == {int(first)} for o in (a,b,c,d)) and len(data) == 8
    assert sides[SIDES[False][5]] == {0} and sides[SIDES[True][5]] == {1} and 'left_heldout' not in data.card

def test_training_wins_where_a_later_article_connects_two_sides(tmp_path):
    trained,held,other = SIDES[False][0],SIDES[True][0],SIDES[True][1]
    late = article(5000)
    old = [(trained,'1'), (trained,'2'), (held,'3'), (held,'4'), (other,'5')]
    assert sides_of(pack(make_linked(tmp_path/'run', *old))) == {trained: {0}, held: {1}, other: {1}}
    for root in ('run', 'fresh'):
        data = pack(make_linked(tmp_path/root, *old, (late,'1'), (late,'3'), (late,'6')))
        assert sides_of(data) == {trained: {0}, late: {0}, other: {1}}
        assert data.card['left_heldout'] == dict(faces=2, articles=[held])
        assert data.card['counts']['on one side'] == 6 and data.card['counts']['faces'] == 8

def test_an_older_article_that_comes_later_moves_nothing(tmp_path):
    for side in (False, True):
        packed = SIDES[side][-1]
        older = SIDES[not side][0]
        root = tmp_path/f'{side}'
        other = (SIDES[False][2],'9')
        pack(make_linked(root, (packed,'1'), (packed,'2'), other))
        assert sides_of(pack(make_linked(root, (packed,'1'), (packed,'2'), other, (older,'1'), (older,'3')))) == {
            packed: {int(side)}, older: {int(side)}, SIDES[False][2]: {0}}

def test_whatever_comes_no_side_changes_and_no_connected_two_differ():
    rng, names = np.random.default_rng(6), SIDES[False][:40] + SIDES[True][:40]
    names = sorted(names)
    edges = rng.integers(0, 80, (60,2))
    for known in (20, 40, 60):
        split = {}
        for n in (known, 80):
            links = {a: {names[j] for e in edges for i,j in (e, e[::-1]) if names[i] == a and max(i,j) < n and i != j}
                     for a in names[:n]}
            before, split = split, split_articles(links)
            assert all(split[a] == s or (s,split[a]) == (1,2) for a,s in before.items())
            assert not [a for a in links for b in links[a] if {split[a],split[b]} == {0,1}]

def test_faces_without_an_article_are_split_by_their_key(tmp_path):
    data = pack(make_linked(tmp_path/'run', *[(None,str(i).zfill(2)) for i in range(60)]))
    assert data.split.tolist() == [held_out(k) for k in data.key] and 0 < data.split.sum() < 20

def test_a_set_of_0_1_0_is_left_alone_unless_articles_are_connected(tmp_path):
    trained,held = SIDES[False][0],[o for o in SIDES[True] if o > SIDES[False][0]][0]
    for faces,changes in ([(trained,'1'), (held,'2')], False), ([(trained,'1'), (held,'1'), (held,'2')], True):
        root = make_linked(tmp_path/f'{changes}', *faces)
        data = pack(root)
        rows,card = read_jsonl(root/'faces/faces.jsonl'),dict(data.card)
        arrays = {k: v for k,v in data.arrays.items() if k not in ('url','sha256')}
        arrays['split'] = np.array([0,1], np.uint8)
        old = {k: arrays[k] for k in ('images','split','key')}
        card |= dict(source=content_hash(2, rows, [], []), hash=content_hash(*old.values()))
        write_npz(root/'dataset/faces.npz', **arrays)
        write_json(root/'dataset/card.json', card)
        stamp = (root/'dataset/card.json').stat().st_mtime_ns
        assert FaceData.load(root).hash == card['hash']
        assert (pack(root).hash != card['hash']) == changes
        assert ((root/'dataset/card.json').stat().st_mtime_ns != stamp) == changes

def change_colour(gain):
    return lambda im: np.clip(im*np.float32(gain), 0, 255).astype(np.uint8)

def to_grey(im):
    return np.repeat((im@np.float32([.299,.587,.114]))[...,None], 3, 2).astype(np.uint8)

CHANGES = dict(mirrored=lambda im: im[:,::-1], grey=to_grey, warm=change_colour([1.2,1,.75]),
               cold=change_colour([.75,.95,1.25]), washed=lambda im: (im*.7 + np.float32([76,36,48])).astype(np.uint8),
               mirrored_grey=lambda im: to_grey(im[:,::-1]))

def test_mirrored_grey_and_tinted_reposts_are_found_and_no_other():
    specs = [dict(size=(64,64), scale=.8, centre=(.5,.5))]*40
    heads = np.stack([h.im for h in draw_heads(specs, seed=70, workers=1, progress=False)])
    changed = [np.ascontiguousarray(f(im)) for im in heads[:10] for f in CHANGES.values()]
    ims = np.concatenate([heads, np.stack(changed)])
    group = duplicate_groups(mirrored_hashes(ims[:,:,::-1]), ims)
    assert (group[40:].reshape(10,-1) == group[:10,None]).all()
    assert len(set(group)) == 40 and not len(duplicate_pairs(mirrored_hashes(heads[:,:,::-1]), heads))

def forget_labels(root):
    "A set as 0.1.0 wrote it: addresses and hashes are in the faces' rows alone"
    arrays = read_npz(root/'dataset/faces.npz')
    write_npz(root/'dataset/faces.npz', **{k: v for k,v in arrays.items() if k not in ('url','sha256')})

@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('entry,gone', [
    ('https://i.imgur.com/3.jpg', ['0100003']), (article(5), ['0100010', '0100011']),
    (f'{7:064x}', ['0100007']), ('https://i.imgur.com/60.jpg', ['0100000'])])
def test_load_obeys_the_opt_out_list_without_a_new_pack(tmp_path, caplog, old, entry, gone):
    root = make(tmp_path/'run', extra=range(6))
    data = pack(root)
    if old:
        forget_labels(root)
    (root/'optout.txt').write_text('# nothing of ours\nhttps://i.imgur.com/other.jpg\n')
    assert len(FaceData.load(root)) == 60 and not caplog.records
    (root/'optout.txt').write_text(entry + '\n')
    fewer = FaceData.load(root)
    assert sorted(set(data.key) - set(fewer.key)) == gone and len(fewer) == 60 - len(gone)
    assert f'{len(gone)} of the 60 packed faces' in caplog.text and fewer.card['opted_out'] == len(gone)
    assert fewer.hash != data.hash and fewer.card['counts']['train'] == len(fewer.train)
    assert pack(root).hash == fewer.hash

def test_load_obeys_without_the_faces_rows_and_says_when_nobody_is_left(tmp_path):
    root = make(tmp_path/'run')
    data = pack(root)
    (root/'faces/faces.jsonl').unlink()
    (root/'optout.txt').write_text(f'https://i.imgur.com/3.jpg\n{9:064x}\n{article(10)}\n')
    assert sorted(set(data.key) - set(FaceData.load(root).key)) == ['0100003', '0100009', '0100020', '0100021']
    (root/'optout.txt').write_text('\n'.join(data.article.tolist()))
    with pytest.raises(BadInput, match='60 of 60'):
        FaceData.load(root)
