"""Twenty years of one board: folders as long crawls, downloads and looks for faces leave them, without that work.

What is drawn is what memory depends on: as many articles, links, rows and files, of the usual length, each with values
of its own. Pages hold what is read of them and little else, and tars are empty: nobody looks into those of a month that
is done.
"""
import hashlib
import json
import re
import zlib
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np

from pttface.ptt.parse import taipei
from pttface.storage.files import open_root

A, L, KEPT = 5342, 55_000, .45  # Articles and links a year, and the share of links that is kept


def lines(path, rows):
    "Write rows as a stage would."
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)


def code(*what):
    "64 hexadecimal digits of their own."
    return hashlib.sha256(repr(what).encode()).hexdigest()


def months_of_2005():
    "Label and first second of each month."
    for m in range(1, 13):
        when = datetime(2005, m, 1, tzinfo=taipei)
        yield f'{when:%Y%m}', int(when.timestamp())


def articles_of(start, month, n):
    "Rows of the list for one month; every fiftieth link was shown before."
    title = ['[正妹] 今天的咖啡廳', '[神人] 求這張圖的出處', '[廣告] 週末市集', '[正妹] 海邊 很多圖']
    for i in range(n):
        time = start + i*5000 + int(code(month, i)[:2], 16)
        url = f'https://www.ptt.cc/bbs/Beauty/M.{time}.A.{code(i)[:3].upper()}.html'
        ids = ['z' + code(month, i, k)[:6] for k in range(8 + i % 6)]
        if i % 5 == 4:
            ids[-1] = 'z' + code(month, i - 1, 0)[:6]
        images = [f'https://i.imgur.com/{o}.jpg' for o in dict.fromkeys(ids)]
        links = [dict(url=o, raw=o.replace('i.', '').removesuffix('.jpg'), origin='body', host='i.imgur.com')
                 for o in images]
        when = datetime.fromtimestamp(time, taipei)
        yield dict(date=f'{when:%m%d}', title=title[i % 4] + f' {code(i, 1)[:6]}', url=url, images=images,
                   id=url[30:-5], time=when.isoformat(), author=f'u{code(i, 2)[:8]}', pushes=i % 100, nrec=str(i % 100),
                   tag='正妹', links=links, skipped=[])


def make_lists(root, articles=A):
    "What a crawl of a year leaves."
    root = open_root(root, create=True)
    for month, start in months_of_2005():
        lines(root/f'links/monthly_jsonl/image_links_{month}.jsonl', articles_of(start, month, round(articles/12)))


def link_row(job, r, kept):
    "The ledger's row of a link, without its tar."
    sha, face = '00' + code(job['url'])[2:], r.uniform(100, 900, 4).round(1).tolist()
    return dict(url=job['url'], key=job['key'], article=job['article'], month=job['month'],
                status='kept' if kept else 'rejected', reason='' if kept else 'no_face',
                bytes=int(r.integers(40_000, 900_000)), sha256=sha, format='JPEG', width=int(r.integers(600, 2000)),
                height=int(r.integers(600, 2000)), sharpness=round(float(r.uniform(60, 900)), 2),
                face_score=round(float(r.random()), 4), face_box=face,
                face_sharpness=round(float(r.uniform(5, 900)), 2), phash=sha[:16])


def make_ledgers(root):
    "What a download of all links leaves."
    from pttface.download import plan
    folder = Path(root)/'photos'
    for month, jobs in plan(root).items():
        rows, n = [], 0
        r = np.random.default_rng(zlib.crc32(month.encode()))
        for job in jobs:
            rows.append(link_row(job, r, r.random() < KEPT))
            if rows[-1]['status'] == 'kept':
                rows[-1]['shard'] = f'images_{month}_part_{n//500 + 1}.tar'
                n += 1
        lines(folder/f'ledger_{month}.jsonl', rows)
        for k in range(-(-n//500)):
            (folder/f'images_{month}_part_{k + 1}.tar').touch()


def face_row(photo, r):
    "The faces stage's row of a photo."
    box, kps = r.uniform(0, 1000, 4).round(2).tolist(), r.uniform(0, 1000, (5, 2)).round(2).tolist()
    yaw, pitch, roll, angle, side, x, y = r.uniform(-30, 900, 7).round(2).tolist()
    good = r.random() < .8
    return dict(key=photo['key'], month=photo['month'], status='kept' if good else 'dropped',
                reason=None if good else 'across_tiles', height=photo['height'], width=photo['width'],
                sharpness=photo['sharpness'], faces=1, bbox=box, kps=kps, score=photo['face_score'], yaw=yaw,
                pitch=pitch, roll=roll, pose='frontal', gender=None, age=None, angle=angle, centre=[x, y], side=side,
                second=True, face_sharpness=photo['face_sharpness'], phash=photo['phash'],
                **{k: photo[k] for k in ('url', 'article', 'sha256')}, shard=photo['shard'][:-4])


def make_faces(root):
    "What the look for faces leaves, but for the crops themselves."
    from pttface.storage.files import write_npz
    folder = Path(root)/'faces'
    for f in sorted((Path(root)/'photos').glob('ledger_*.jsonl')):
        month = f.stem.split('_')[1]
        r = np.random.default_rng(zlib.crc32(month.encode()))
        photos = [o for o in map(json.loads, open(f, encoding='utf-8')) if o['status'] == 'kept']
        rows = [face_row(o, r) for o in photos]
        kept = [o for o in rows if o['status'] == 'kept']
        for i, o in enumerate(kept):
            o['row'] = i
        lines(folder/f'rows_{month}.jsonl', rows)
        write_npz(folder/f'faces_{month}.npz', key=np.array([o['key'] for o in kept], 'U32'),
                  phash=np.array([o['phash'] for o in kept], 'U16'))


def record_faces(root):
    "The record that says that all is done."
    from dataclasses import asdict

    from pttface.faces import FaceSettings
    from pttface.storage.files import iter_jsonl, write_json
    from pttface.storage.shards import stamp_of
    n = Counter(o['shard'] for o in iter_jsonl(Path(root)/'faces/faces.jsonl'))
    shards = {o: dict(stamp=stamp_of(Path(root)/f'photos/{o}.tar'), photos=k) for o, k in n.items()}
    settings = dict(detector='mtcnn', attributes='off', **asdict(FaceSettings()))
    write_json(Path(root)/'faces/faces.json', dict(settings=settings, counts={}, failed={}, shards=shards))


def make_years(root, years):
    "The lists, ledgers and faces of the years after the first: its rows, with names, times and hashes of their own."
    root = Path(root)
    for k in range(1, years):
        for f in sorted(f for f in root.rglob('*_2005*') if f.is_file()):
            new = f.with_name(f.name.replace('_2005', f'_{2005 + k}'))
            if f.suffix == '.npz':
                with np.load(f) as z:
                    keys = [str(2005 + k) + o[4:] for o in z['key'].tolist()]
                    np.savez(new, key=np.array(keys, 'U32'), phash=z['phash'])
            else:
                new.write_bytes(shifted(f.read_bytes(), k))
    for parts, name in (('links/monthly_jsonl/*.jsonl', 'links/image_links.jsonl'),
                        ('faces/rows_*.jsonl', 'faces/faces.jsonl')):
        for f in sorted(root.glob(parts)):
            with open(root/name, 'ab') as whole:
                whole.write(f.read_bytes())


def shifted(text, k):
    "Rows of 2005 as rows of `k` years later."
    later = (datetime(2005 + k, 1, 1) - datetime(2005, 1, 1)).days*86_400
    text = re.sub(rb'M\.(\d{10})', lambda m: b'M.%d' % (int(m[1]) + later), text)
    text = re.sub(rb'"sha256": "..', b'"sha256": "%02x' % k, text)
    text = re.sub(rb'(": "|images_)2005(?=[-\d])', rb'\g<1>%d' % (2005 + k), text)
    return text.replace(b'imgur.com/z', b'imgur.com/%c' % (96 + k))


def article_page(row):
    "A page of the board with what is read of it."
    head = ''.join(f'<div class="article-metaline"><span class="article-meta-tag">{k}</span>'
                   f'<span class="article-meta-value">{v}</span></div>'
                   for k, v in (('作者', row['author']), ('標題', row['title']), ('時間', 'Mon Jan  1 00:31:58 2024')))
    body = ''.join(f'\n<a href="{o["raw"]}">{o["raw"]}</a>' for o in row['links'])
    foot = f'<span class="f2">※ 發信站: 批踢踢實業坊(ptt.cc), 來自: 1.1.1.1\n※ 文章網址: {row["url"]}\n</span>'
    return f'<html><div id="main-content" class="bbs-screen bbs-content">{head}{body}\n--\n{foot}</div></html>'


def index_page(n, last, rows):
    "An index page with what is read of it."
    entries = ''.join(
        f'<div class="r-ent"><div class="nrec"><span class="hl f3">{o["nrec"]}</span></div><div class="title">'
        f'<a href="/bbs/Beauty/{o["id"]}.html">{o["title"]}</a></div><div class="meta">'
        f'<div class="author">{o["author"]}</div><div class="date">{int(o["date"][:2]):2}/{o["date"][2:]}</div>'
        '</div></div>' for o in rows)
    def button(text, k):
        if 1 <= k <= last:
            return f'<a class="btn wide" href="/bbs/Beauty/index{k}.html">{text}</a>'
        return f'<a class="btn wide disabled">{text}</a>'
    paging = (f'<a class="btn wide" href="/bbs/Beauty/index1.html">最舊</a>{button("‹ 上頁", n - 1)}'
              f'{button("下頁 ›", n + 1)}<a class="btn wide" href="/bbs/Beauty/index.html">最新</a>')
    board = '<a class="board" href="/bbs/Beauty/index.html"><span class="board-label">看板 </span>Beauty</a>'
    return (f'<html><div id="topbar">{board}</div><div class="btn-group btn-group-paging">{paging}</div>'
            f'<div class="r-list-container">{entries}</div></html>')


def make_pages(root):
    "The cache of a crawl, from its lists."
    from pttface.ptt.cache import PageStore
    from pttface.storage.files import iter_jsonl
    root = Path(root)
    store = PageStore(root/'links/pages.sqlite')
    store.run('SELECT 1', write=True)
    store.run('BEGIN', write=True)
    listed = root/'links/image_links.jsonl'
    last = -(-sum(1 for _ in open(listed, 'rb'))//20)
    page, n = [], 1
    def write():
        body = index_page(n, last, page).encode()
        store.put(f'/bbs/Beauty/index{n}.html', 200, body, {})
        if n == last:
            store.put('/bbs/Beauty/index.html', 200, body, {})
    for row in iter_jsonl(listed):
        if len(page) == 20:
            write()
            page, n = [], n + 1
        page.append(row)
        store.put(f'/bbs/Beauty/{row["id"]}.html', 200, article_page(row).encode(), dict(title=row['title']))
    write()
    store.run('COMMIT', write=True)
    store.close()


def make(root, years, articles=A):
    "A folder of so many years."
    make_lists(root, articles)
    make_ledgers(root)
    make_faces(root)
    make_years(root, years)
    record_faces(root)
