"What a notebook would illustrate badly: a board that moves, refuses and dies under the crawl, and a crawl that is killed."
import json,multiprocessing,random,time
from collections import Counter

import numpy as np
import pytest

from pttface.board import make_board,serve
from pttface.crawl import Links,crawl
from pttface.fetch import Blocked
from pttface.loopback import Fault,some_faults
from pttface.store import BadInput

year = dict(since='2024-01-01', until='2024-12-31', rate=0, progress=False)

@pytest.fixture(scope='module')
def board(): return make_board(n_photos=120, seed=4, n_articles=260)

def outputs(root): return {f.name:f.read_bytes() for f in sorted((root/'links').rglob('image_links*'))}
def account(root): return {k:v for k,v in json.loads((root/'links/crawl.json').read_text()).items() if k != 'base_url'}

def test_all_is_found_and_nothing_asked_twice(board, tmp_path):
    with serve(board) as server:
        links = crawl(root=tmp_path, base_url=server.url, **year)
        asked = Counter(server.requests)
    truth = board.expect('2024-01-01', '2024-12-31')
    assert {r['url'] for r in links.rows} == {a['url'] for a in truth['articles'] if a['kind'] == 'post'}
    assert {u for r in links.rows for u in r['images']} == set(truth['urls'])
    c = links.audit['counts']
    assert (c['deleted'],c['announcement'],c['removed']) == tuple(truth['counts'][k] for k in ('deleted','announcements','gone'))
    assert c['rows'] == c['deleted'] + c['announcement'] + c['young'] + c['opt_out'] + c['articles'] + c['removed'] + c['failed']
    assert max(asked.values()) == 1
    assert sum(asked.values()) <= c['pages'] + c['articles'] + c['removed'] + 30
    assert links.audit['ascending'] and not links.audit['moved'] and not links.audit['short_pages']

def test_rows_that_slip_are_not_lost(tmp_path):
    board = make_board(n_photos=100, seed=5, n_articles=400)
    posts = {board.article(i).id for i in range(len(board)) if board.article(i).kind == 'post'}
    before = np.arange(len(board))
    def remove(path, n):
        asked = len(server.requests)
        if asked in (12, 16) and len(board.rows) > len(before) - 14:
            board.rows = np.delete(board.rows, slice(20, 27))
            board._page.cache_clear()
    with serve(board, faults=remove) as server: links = crawl(root=tmp_path, base_url=server.url, **year)
    assert len(board.rows) < len(before)
    inside = {a['id'] for a in board.expect('2024-01-01', '2024-12-31')['articles'] if a['kind'] == 'post'} & posts
    still = {board.article(int(i)).id for i in board.rows}
    assert inside & still <= {r['id'] for r in links.rows}
    assert links.audit['moved']

def test_passing_faults_change_nothing(board, tmp_path):
    with serve(board) as server: crawl(root=tmp_path/'a', base_url=server.url, **year)
    with serve(board, faults=some_faults(.2, seed=1, seconds=.1, kinds=('429_wait','reset','hang_up','length_over'))) as server:
        import pttface.crawl as module
        quick,module.board_client = module.board_client,lambda *a,**kw: quick(*a, backoff=.01, **kw)
        try: crawl(root=tmp_path/'b', base_url=server.url, **year)
        finally: module.board_client = quick
        assert len(server.requests) > len(set(server.requests))
    assert outputs(tmp_path/'a') == outputs(tmp_path/'b')

@pytest.mark.parametrize('kind', ['over18','403'])
def test_a_board_that_refuses_stops_the_crawl_and_what_came_is_kept(board, tmp_path, kind, monkeypatch):
    import pttface.crawl as module
    quick = module.board_client
    monkeypatch.setattr(module, 'board_client', lambda *a,**kw: quick(*a, backoff=.001, retries=1, **kw))
    with serve(board, faults={'*':Fault(kind, after=60)}) as server:
        with pytest.raises(Blocked, match=f'in a row, {"gate_over18" if kind == "over18" else kind} at last'): crawl(root=tmp_path, base_url=server.url, **year)
        assert len(server.requests) < 90
        first = set(server.requests[:55])
    with serve(board) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        assert not first & set(server.requests) - {'/robots.txt'}
    with serve(board) as server: crawl(root=tmp_path/'whole', base_url=server.url, **year)
    assert outputs(tmp_path) == outputs(tmp_path/'whole')

def test_robots_txt_is_honoured(board, tmp_path):
    with serve(board, robots='User-agent: *\nDisallow: /bbs/\n') as server:
        with pytest.raises(Blocked, match='keep out'): crawl(root=tmp_path/'r', base_url=server.url, **year)
        assert server.requests == ['/robots.txt']

def test_other_dates_need_force_and_take_the_pages_that_are_there(board, tmp_path):
    with serve(board) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        half = year | dict(until='2024-06-30')
        with pytest.raises(BadInput, match="until='2024-12-31'"): crawl(root=tmp_path, base_url=server.url, **half)
        server.clear()
        crawl(root=tmp_path, base_url=server.url, force=True, **half)
        assert sum('/M.' in p or '/G.' in p for p in server.requests) == 0
        crawl(root=tmp_path/'other', base_url=server.url, **half)
    assert outputs(tmp_path) == outputs(tmp_path/'other')

def test_a_deleted_list_is_made_anew(board, tmp_path):
    with serve(board) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        was = outputs(tmp_path)
        (tmp_path/'links/monthly_jsonl/image_links_03.jsonl').unlink()
        server.clear()
        crawl(root=tmp_path, base_url=server.url, **year)
    assert outputs(tmp_path) == was
    assert len(Links.load(tmp_path)) == len(was['image_links.jsonl'].splitlines())

def _crawl(root, url): crawl(root=root, base_url=url, workers=2, **year)

def test_killed_twenty_times(board, tmp_path):
    context,r = multiprocessing.get_context('forkserver'),random.Random(0)
    context.set_forkserver_preload(['pttface.crawl'])
    with serve(board, latency=.004) as server:
        crawl(root=tmp_path/'whole', base_url=server.url, **year)
        whole = Counter(server.requests)
        server.clear()
        for i in range(40):
            p = context.Process(target=_crawl, args=(tmp_path/'killed', server.url))
            p.start()
            seen,wait = len(server.requests),r.randint(3, 24)
            end = time.monotonic() + 20
            while p.is_alive() and (i >= 20 or len(server.requests) < seen + wait) and time.monotonic() < end: time.sleep(.002)
            done = not p.is_alive() and p.exitcode == 0
            p.kill()
            p.join()
            if done: break
        assert done and i >= 4
        asked = Counter(o for o in server.requests if o != '/robots.txt')
    assert outputs(tmp_path/'killed') == outputs(tmp_path/'whole')
    assert account(tmp_path/'killed') == account(tmp_path/'whole')
    assert set(asked) == set(whole) - {'/robots.txt'}
    assert sum(asked.values()) - len(asked) <= 3*i
