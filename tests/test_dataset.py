"Faults and promises of the packed set: torn files, decisions, opt-out, a split that never moves, batches that resume."
import numpy as np
import pytest
import torch

from pttface.dataset import FaceData,PackSettings,duplicate_groups,held_out,near_pairs,pack
from pttface.store import BadInput,dumps,open_root,read_json,write_json,write_jsonl,write_npz

def article(i): return f'https://www.ptt.cc/bbs/Beauty/M.{1704040000 + i}.A.E87.html'

def make(root, n=60, extra=()):
    "A faces stage's artefacts, of noise; `extra` are indices repeated at the end, under a later article"
    root = open_root(root, create=True)
    rng = np.random.default_rng(0)
    ims = rng.integers(0, 255, (n,8,8,3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    hashes = [f'{h:016x}' for h in rng.integers(0, 2**63, n)]
    at = [*range(n), *extra]
    rows = [dict(key=f'01{k:05d}', month='01', status='kept', reason=None, row=k, url=f'https://i.imgur.com/{k}.jpg', article=article(k//2), sha256=f'{k:064x}', score=.9 + i/1000,
                 pose=('frontal','left','right')[i%3], gender=None, phash=hashes[i], face_sharpness=100. - k, side=200.) for k,i in enumerate(at)]
    rows.append(dict(key='0199999', month='01', status='dropped', reason='blurred', url='u', article='a', shard='s'))
    write_npz(root/'faces/faces_01.npz', key=np.array([r['key'] for r in rows[:-1]]), im64=ims[at], im60=ims[at][:,:60,:60])
    write_jsonl(root/'faces/faces.jsonl', rows)
    return root

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
    then = dict(zip(few.key.tolist(), few.split.tolist()))
    now = dict(zip(more.key.tolist(), more.split.tolist()))
    assert all(now[k] == s for k,s in then.items()) and 0 < few.split.sum() < 30
    for d in (few,more): assert not set(d.article[d.split == 0]) & set(d.article[d.split == 1])
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
    with open(root/'dataset/decisions.jsonl', 'w') as f:
        f.write(dumps(dict(key='0100007', drop=True)) + '\n' + dumps(dict(key='0100008', drop=True)) + '\n' + dumps(dict(key='0100008', drop=False)) + '\n{"key": "01000')
    data = pack(root)
    assert '0100007' not in data.key and '0100008' in data.key and len(data) == 59
    (root/'optout.txt').write_text(article(10) + '\n' + f'{3:064x}\n')
    data = pack(root)
    assert len(data) == 56 and article(10) not in data.article and '0100003' not in data.key
    assert len(pack(root, PackSettings(distance=4), force=True)) == 56

def test_filters_and_their_record(tmp_path):
    root = make(tmp_path/'run')
    data = pack(root, pose='left', score=.92)
    assert set(data.pose) == {'left'} and data.card['settings']['filters'] == dict(pose='left', score=.92)
    with pytest.raises(BadInput, match='filters'): pack(root)
    assert len(FaceData.load(root)) == len(data)

@pytest.mark.parametrize('kw,words', [(dict(pose='up'),"no pose 'up'"), (dict(gender='x'),"no gender 'x'"), (dict(month='13'),"month '13', only of 01"), (dict(score=3.),'not at 3.0'),
                                      (dict(settings=PackSettings(size=50)),'not at 50'), (dict(settings=PackSettings(heldout=1.)),'not be 1.0'), (dict(settings='best'),"no preset 'best'"),
                                      (dict(gender='male'),'No face is left: 60 faces')])
def test_bad_input(tmp_path, kw, words):
    root = make(tmp_path/'run')
    with pytest.raises(BadInput, match=words): pack(root, **kw)
    assert not (root/'dataset').exists()

def test_a_set_that_is_not_on_its_card(tmp_path):
    root = make(tmp_path/'run')
    pack(root)
    write_json(root/'dataset/card.json', read_json(root/'dataset/card.json') | dict(hash='0'*16))
    with pytest.raises(BadInput, match='its card says 0000'): FaceData.load(root)
    (root/'dataset/faces.npz').write_bytes((root/'dataset/faces.npz').read_bytes()[:9000])
    with pytest.raises(BadInput, match='damaged'): FaceData.load(root)

def test_batches(tmp_path):
    data = pack(make(tmp_path/'run'))
    n = len(data.train)
    def take(k, **kw):
        it = data.batches(7, seed=3, **kw)
        return [next(it) for _ in range(k)]
    whole = take(30)
    for k in (1,8,17): assert all(torch.equal(x, y) for x,y in zip(whole[k:], take(30 - k, start=k)))
    assert whole[0].is_contiguous() and whole[0].dtype == torch.float32
    flat = torch.cat(take(-(-n//7) + 1, flip=False))[:n]
    back = ((flat + 1)*127.5).round().byte().permute(0,2,3,1).numpy()
    assert sorted(o.tobytes() for o in back) == sorted(o.tobytes() for o in data.train)
    mirrored = [(x != y).any() for x,y in zip(torch.cat(whole), torch.cat(take(30, flip=False)))]
    assert .3 < np.mean(mirrored) < .7
    assert not torch.equal(whole[0], next(data.batches(7, seed=4)))
    assert data.at(32) is data.at(32) and data.at(32).images.shape[1:] == (32,32,3) and data.at(64) is data
