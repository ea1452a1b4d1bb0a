"What a notebook would illustrate badly: a board that moves, refuses or fails meanwhile, and a crawl that is killed."
import base64,json,multiprocessing,os,random,re,sqlite3,threading,time,zlib
from collections import Counter

import numpy as np
import pytest

from pttface.synthetic.board import make_board,serve
from pttface.app.cli import main
from pttface.crawl import CRAWL_PRESETS,CrawlSettings,crawl
from pttface.ptt.board_range import Links
from pttface.ptt.cache import PageStore,check_board
from pttface.ptt.parse import category,posted,push_count
from pttface.net.http import Blocked
from pttface.synthetic.server import Fault,Reply,faults,serving,some_faults
from pttface.storage.files import BadInput,locked,open_root

year = dict(since='2024-01-01', until='2024-12-31', rate=0, progress=False)

@pytest.fixture(scope='module')
def board():
    return make_board(n_photos=120, seed=4, n_articles=260)

@pytest.fixture(scope='module')
def small():
    return make_board(n_photos=90, seed=9, n_articles=160)

def outputs(root):
    return {f.name:f.read_bytes() for f in sorted((root/'links').rglob('image_links*'))}
def account(root):
    return {k:v for k,v in json.loads((root/'links/crawl.json').read_text()).items() if k != 'base_url'}

def test_all_is_found_and_nothing_asked_twice(board, tmp_path):
    with serve(board) as server:
        links = crawl(root=tmp_path, base_url=server.url, **year)
        asked = Counter(server.requests)
    truth = board.expect('2024-01-01', '2024-12-31')
    assert {r['url'] for r in links.rows} == {a['url'] for a in truth['articles'] if a['kind'] == 'post'}
    assert {u for r in links.rows for u in r['images']} == set(truth['urls'])
    c = links.audit['counts']
    known = [truth['counts'][k] for k in ('deleted','announcements','gone')]
    assert [c['deleted'], c['announcement'], c['removed']] == known
    assert c['rows'] == sum(c[k] for k in ('deleted','announcement','young','opt_out','articles','removed','failed'))
    assert max(asked.values()) == 1
    assert sum(asked.values()) <= c['pages'] + c['articles'] + c['removed'] + 30
    i = links.audit['index']
    assert i['complete'] and i['ascending'] and not i['moved'] and not i['short_pages'] + i['missing_pages']
    ids = [a.id for a in map(board.article, range(len(board))) if a.kind != 'deleted']
    inside = [o for o in ids if '2024-01-01' <= f'{posted(o):%Y-%m-%d}' <= '2024-12-31']
    assert (i['before'],i['after']) == (ids[ids.index(inside[0])-1], ids[ids.index(inside[-1])+1])

def test_a_month_on_four_thousand_pages_costs_its_pages_and_articles_and_thirty(tmp_path):
    big = make_board(n_photos=0, seed=2, since='2005-01-01', until='2026-06-30', n_articles=80_000)
    assert big.pages == 4000
    with serve(big) as server:
        february = dict(since='2024-02-01', until='2024-02-29', rate=0, progress=False)
        links = crawl(root=tmp_path, base_url=server.url, **february)
        c = links.audit['counts']
        assert links.asked == len(server.requests)
        assert links.asked <= c['pages'] + c['articles'] + c['removed'] + 30
    truth = big.expect('2024-02-01', '2024-02-29')
    assert len(links) == truth['counts']['articles'] > 200 and c['deleted'] == truth['counts']['deleted']

def test_the_result_does_not_depend_on_how_many_ask(small, tmp_path):
    with serve(small) as server:
        for workers in (1, 16):
            crawl(root=tmp_path/str(workers), base_url=server.url, workers=workers, **year)
    assert outputs(tmp_path/'1') == outputs(tmp_path/'16') and account(tmp_path/'1') == account(tmp_path/'16')

# ---- a board that lives

@pytest.mark.parametrize('seed', range(5))
def test_pages_that_move_at_any_moment_lose_nothing(tmp_path, seed):
    "Rows go, sometimes whole pages of them, new ones come, while the range is looked for, read, and read again"
    board,r = make_board(n_photos=40, seed=seed, n_articles=230),random.Random(seed)
    everything = board.rows
    board.show(everything[:215])
    moments = {r.randrange(2, 215) for _ in range(5)} | {r.randrange(2, 25)}
    lock = threading.Lock()
    def live(path, n):
        with lock:
            if len(server.requests) not in moments:
                return
            moments.discard(len(server.requests))
            rows = list(board.rows)
            del rows[(at := r.randrange(len(rows) - 60)):at + r.choice([1, 3, 20, 47])]
            board.show(rows + [int(i) for i in everything if i > rows[-1]][:4])
    with serve(board, faults=live) as server:
        links = crawl(root=tmp_path, base_url=server.url, **year)
    still = {a.id for a in map(board.article, map(int, board.rows)) if a.kind == 'post'}
    inside = {a['id'] for a in board.expect('2024-01-01', '2024-12-31')['articles']}
    assert len(board.rows) < 215 and inside & still <= {o['id'] for o in links.rows}
    assert links.audit['index']['moved']
    was = outputs(tmp_path)
    crawl(root=tmp_path, base_url=server.url, offline=True, **year)
    assert outputs(tmp_path) == was

def test_a_walk_back_that_is_cut_off_is_walked_again(tmp_path):
    board = make_board(n_photos=60, seed=5, n_articles=200)
    with serve(board) as server:
        crawl(root=tmp_path/'plain', base_url=server.url, **year)
        pages = len({p for p in server.requests if 'index' in p})
    n_index = lambda: sum('index' in p for p in server.requests)
    def live(path, n):
        if len(server.requests) == 60:
            board.show(np.delete(board.rows, range(20, 27)))
        if n_index() > pages + 6:
            return Fault('403')
    with serve(board, faults=live) as server, pytest.raises(BadInput, match='run again|wait a day'):
        crawl(root=tmp_path/'cut', base_url=server.url, **year)
    with serve(board) as server:
        links = crawl(root=tmp_path/'cut', base_url=server.url, **year)
        crawl(root=tmp_path/'fresh', base_url=server.url, **year)
    assert links.audit['index']['moved'] and links.audit['index']['complete']
    assert {r['id'] for r in links.rows} >= {r['id'] for r in Links.load(tmp_path/'fresh').rows}

def test_a_page_that_was_the_newest_is_read_again_when_it_has_grown(tmp_path):
    board = make_board(n_photos=40, seed=6, n_articles=180)
    everything,ever = board.rows,dict(since='2024-06-01', until='2199-12-31', rate=0, progress=False)
    with serve(board) as server:
        for n in (127, 128, 171, 180):
            board.show(everything[:n])
            server.clear()
            links = crawl(root=tmp_path, base_url=server.url, **ever)
        assert sum('.A' in p for p in server.requests) <= 9 and len(server.requests) < 20
    assert links.audit['index']['complete'] and not links.audit['index']['moved']
    posts = {a['id'] for a in board.expect('2024-06-01')['articles'] if a['kind'] == 'post'}
    assert {r['id'] for r in links.rows} == posts

def test_what_was_read_and_then_taken_off_the_index_stays(tmp_path):
    own = make_board(n_photos=60, seed=4, n_articles=130)
    ever = dict(since='2024-01-01', until='2199-12-31', rate=0, progress=False)
    with serve(own) as server:
        first = crawl(root=tmp_path, base_url=server.url, **ever)
        victim = first.rows[60]
        own.show([i for i in own.rows if own.article(int(i)).id != victim['id']])
        second = crawl(root=tmp_path, base_url=server.url, **ever)
    assert [r['id'] for r in second.rows] == [r['id'] for r in first.rows] and second.audit['index']['moved']
    again = second.rows[60]
    assert (again['images'],again['links'],again['time']) == (victim['images'],victim['links'],victim['time'])

# ---- a board that refuses, and pages that are none

def impatient(monkeypatch, **kw):
    import pttface.crawl as module
    quick = module.board_client
    monkeypatch.setattr(module, 'board_client', lambda *a: quick(*a, **dict(backoff=.001, retries=0) | kw))

def test_every_fault_leaves_its_reason_and_is_made_good_later(small, tmp_path, monkeypatch):
    impatient(monkeypatch, timeout=1.2, total=1.5, max_bytes=1_000_000)
    posts = [a for a in small.expect('2024-01-01', '2024-12-31')['articles'] if a['kind'] == 'post'][1::4]
    kinds = [k for k in faults if k not in ('placeholder','to_loopback','to_private_name','ipv6')]
    struck = {posts[i]['id']:k for i,k in enumerate(kinds)}
    with serve(small, faults={f'*{i}*':Fault(k, seconds=.05) for i,k in struck.items()}) as server:
        crawl(root=tmp_path/'faulty', base_url=server.url, workers=2, **year)
    # Without a second try, what comes next on a struck connection may fail too
    failures = Links.load(tmp_path/'faulty').audit['failures']
    failed = {f['url'].split('/')[-1][:-5]:f['reason'] for f in failures}
    reasons = {struck[i]:why for i,why in failed.items() if i in struck}
    http = {k:k[:3] for k in kinds if k[0].isdigit()}
    assert reasons == http | dict(
        loop='redirects', to_file='scheme', refused='connection_refused', html='gate_no_page', over18='gate_over18',
        empty='empty', bomb='gate_no_page', zipped='gate_no_page', gzip_lie='bad_encoding', drip='too_slow',
        slow_headers='too_slow', reset='reset', hang_up='reset', length_over='truncated', huge='too_large',
        endless='too_large', gibberish='reset')
    with serve(small) as server:
        crawl(root=tmp_path/'faulty', base_url=server.url, **year)
        asked = {p.split('/')[-1][:-5] for p in server.requests if '.A' in p}
        assert asked == {i for i,why in failed.items() if why != '404'}
        crawl(root=tmp_path/'fine', base_url=server.url, **year)
    gone,cut = (next(i for i,k in struck.items() if k == kind) for kind in ('404','truncated'))
    rest = [[r for r in Links.load(tmp_path/d).rows if r['id'] not in (gone, cut)] for d in ('faulty','fine')]
    assert rest[0] == rest[1]

def test_an_index_page_that_is_none_is_asked_for_again(board, tmp_path, monkeypatch):
    impatient(monkeypatch, retries=1)
    with serve(board, faults={'*/index9.html':['html']}) as server:
        crawl(root=tmp_path/'once', base_url=server.url, **year)
    with serve(board, faults={'*/index9.html':'html'}) as server:
        with pytest.raises(BadInput, match=r'index9.html cannot be read \(gate_no_page\): run again'):
            crawl(root=tmp_path/'ever', base_url=server.url, **year)
        first = set(server.requests)
    with serve(board) as server:
        crawl(root=tmp_path/'ever', base_url=server.url, **year)
        assert len(first) > 10 and len(first & set(server.requests)) <= 3 + 4
    assert outputs(tmp_path/'once') == outputs(tmp_path/'ever')

def test_passing_faults_change_nothing(small, tmp_path, monkeypatch):
    with serve(small) as server:
        crawl(root=tmp_path/'a', base_url=server.url, **year)
    passing = some_faults(.2, seed=1, seconds=.1, kinds=('429_wait','reset','hang_up','length_over'))
    with serve(small, faults=passing) as server:
        import pttface.crawl as module
        quick = module.board_client
        monkeypatch.setattr(module, 'board_client', lambda *a,**kw: quick(*a, backoff=.01, **kw))
        crawl(root=tmp_path/'b', base_url=server.url, **year)
        assert len(server.requests) > len(set(server.requests))
    assert outputs(tmp_path/'a') == outputs(tmp_path/'b')

@pytest.mark.parametrize('kind', ['over18','403'])
def test_a_board_that_refuses_stops_the_crawl_and_what_came_is_kept(small, tmp_path, kind, monkeypatch):
    import pttface.crawl as module
    quick = module.board_client
    monkeypatch.setattr(module, 'board_client', lambda *a,**kw: quick(*a, backoff=.001, retries=1, **kw))
    with serve(small, faults={'*':Fault(kind, after=60)}) as server:
        with pytest.raises(Blocked, match=f'in a row, {"gate_over18" if kind == "over18" else kind} at last'):
            crawl(root=tmp_path, base_url=server.url, **year)
        assert len(server.requests) < 90
        first = set(server.requests[:55])
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        assert not first & set(server.requests) - {'/robots.txt'}
    with serve(small) as server:
        crawl(root=tmp_path/'whole', base_url=server.url, **year)
    assert outputs(tmp_path) == outputs(tmp_path/'whole')

def test_robots_txt_is_honoured(small, tmp_path):
    with serve(small, robots='User-agent: *\nDisallow: /bbs/\n') as server:
        with pytest.raises(Blocked, match='keep out'):
            crawl(root=tmp_path/'r', base_url=server.url, **year)
        assert server.requests == ['/robots.txt']

def test_other_dates_need_force_and_take_the_pages_that_are_there(small, tmp_path):
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        half = year | dict(until='2024-06-30')
        with pytest.raises(BadInput, match="until='2024-12-31'"):
            crawl(root=tmp_path, base_url=server.url, **half)
        server.clear()
        crawl(root=tmp_path, base_url=server.url, force=True, **half)
        assert sum('/M.' in p or '/G.' in p for p in server.requests) == 0
        crawl(root=tmp_path/'other', base_url=server.url, **half)
    assert outputs(tmp_path) == outputs(tmp_path/'other')

def test_a_deleted_list_is_made_anew(small, tmp_path):
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        was = outputs(tmp_path)
        (tmp_path/'links/monthly_jsonl/image_links_03.jsonl').unlink()
        server.clear()
        crawl(root=tmp_path, base_url=server.url, **year)
    assert outputs(tmp_path) == was
    assert len(Links.load(tmp_path)) == len(was['image_links.jsonl'].splitlines())

def test_settings_are_never_mixed(small, tmp_path, monkeypatch):
    "Killed while other settings are written, the folder does not pass for the old settings' work"
    import pttface.ptt.board_range as module
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        was,write = outputs(tmp_path),module.write_jsonl
        def dies(path, rows):
            write(path, rows)
            raise KeyboardInterrupt
        monkeypatch.setattr(module, 'write_jsonl', dies)
        with pytest.raises(KeyboardInterrupt):
            crawl(root=tmp_path, base_url=server.url, settings=CrawlSettings(pushes=True), force=True, **year)
        monkeypatch.undo()
        server.clear()
        crawl(root=tmp_path, base_url=server.url, **year)
        assert not any('.A' in p for p in server.requests)
    assert outputs(tmp_path) == was

def test_another_server_is_another_board(small, tmp_path):
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
    with pytest.raises(BadInput, match="server='loopback' \\(now 'www.ptt.cc'\\)"):
        crawl(root=tmp_path, **year)

def test_offline_takes_what_is_in_the_cache_and_says_what_is_not(board, tmp_path):
    with serve(board) as server:
        crawl(root=tmp_path/'r', base_url=server.url, **year)
        may = dict(since='2024-05-01', until='2024-05-31', progress=False)
        crawl(root=tmp_path/'may', base_url=server.url, rate=0, **may)
        server.clear()
        crawl(root=tmp_path/'r', base_url=server.url, offline=True, force=True, **may)
        assert outputs(tmp_path/'r') == outputs(tmp_path/'may')
        other = dict(since='2023-12-25', until='2023-12-28', progress=False)
        why = r'none of its \d+ articles could be read \(\d+ not_cached\): run again without offline'
        with pytest.raises(BadInput, match=why):
            crawl(root=tmp_path/'r', base_url=server.url, offline=True, force=True, **other)
        assert not server.requests

def test_the_original_rule_loses_what_it_lost(board, tmp_path):
    with serve(board) as server:
        links = crawl(root=tmp_path, base_url=server.url, settings='original', **year)
    lost = {'no_header','no_footer'}
    posts = {a['id']:a for a in board.expect('2024-01-01', '2024-12-31')['articles'] if a['kind'] == 'post'}
    assert CRAWL_PRESETS['original'].framed and {a['quirk'] for a in posts.values()} >= lost
    for r in links.rows:
        post = posts[r['id']]
        body = [l['url'] for l in post['links'] if l['photo'] is not None and l['origin'] == 'body']
        assert r['images'] == ([] if post['quirk'] in lost else list(dict.fromkeys(body))), post
    assert links.audit['skipped']['no_frame'] and links.audit['skipped']['origin']

def test_a_page_that_breaks_the_reader_costs_one_article(small, tmp_path, monkeypatch):
    import pttface.ptt.board_range as module
    posts = [a['id'] for a in small.expect('2024-01-01', '2024-12-31')['articles'] if a['kind'] == 'post']
    parse,bad = module.parse_article,posts[7]
    bad_page = small.answer(f'/bbs/Beauty/{bad}.html').body
    monkeypatch.setattr(module, 'parse_article', lambda body: 1/0 if body == bad_page else parse(body))
    with serve(small) as server:
        links = crawl(root=tmp_path, base_url=server.url, **year)
        failures = [(f['url'].split('/')[-1],f['reason']) for f in links.audit['failures'] if f['reason'] != '404']
        assert failures == [(f'{bad}.html','unreadable')]
        monkeypatch.undo()
        server.clear()
        assert len(crawl(root=tmp_path, base_url=server.url, **year)) == len(links) + 1
        assert not any('.A' in p for p in server.requests)

def test_requests_bear_one_name_and_the_cookie(small, tmp_path):
    seen = set()
    def answer(path, headers):
        seen.add((headers.get('User-Agent'),headers.get('Cookie')))
        return Reply(404) if path == '/robots.txt' else small.answer(path)
    with serving(answer) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
    (agent,cookie), = seen
    assert agent.startswith('pttface/') and 'Mozilla' not in agent and cookie == 'over18=1'

# ---- the command

@pytest.fixture(scope='module')
def holes():
    "A board on which nobody wrote in July"
    b = make_board(n_photos=60, seed=4, n_articles=260)
    b.show([i for i in b.rows if b.article(int(i)).time.month != 7])
    return b

@pytest.mark.parametrize('dates,says', [
    (('2024-07-03', '2024-07-20'), r'from 2024-07-03 to 2024-07-20: the last before is of 2024-06-2\d, '
                                   r'the first after is of 2024-08-0\d$'),
    (('2031-01-01', '2031-12-31'), r'2031-12-31: the last before is of 2025-01-0\d$'),
    (('1999-01-01', '1999-12-31'), r'1999-12-31: the first after is of 2023-12-2\d$')])
def test_nothing_between_two_days_is_a_sentence_and_leaves_nothing(holes, tmp_path, capsys, dates, says):
    (tmp_path/'there').mkdir()
    with serve(holes) as server:
        for root in ('new','there'):
            args = ['crawl','Beauty','--since',dates[0],'--until',dates[1],'--root',str(tmp_path/root)]
            assert main([*args, '--base-url', server.url, '--rate', '0']) == 2
            err = [l for l in capsys.readouterr().err.splitlines() if l.startswith('pttface: ')]
            assert len(err) == 1 and re.search(says, err[0]), err
    assert not (tmp_path/'new').exists() and not list((tmp_path/'there').iterdir())

def test_nothing_new_leaves_the_old(holes, tmp_path, capsys):
    def artefacts():
        files = [f for f in (tmp_path/'links').rglob('*') if f.is_file() and f.name != 'pages.sqlite']
        return {f.name:f.read_bytes() for f in files}
    with serve(holes) as server:
        args = ['crawl','Beauty','--root',str(tmp_path),'--base-url',server.url,'--rate','0']
        assert main([*args, '--since', '2024-08-01', '--until', '2024-08-31', '--pushes']) == 0
        was = artefacts()
        assert main([*args, '--since', '2024-07-03', '--until', '2024-07-20', '--pushes', '--force']) == 2
        assert json.loads(was['crawl.json'])['settings']['pushes'] is True
    assert artefacts() == was

@pytest.mark.parametrize('url', ['127.0.0.1:8000', 'ftp://www.ptt.cc', 'https://', 'http://[::1'])
def test_an_address_that_is_none(tmp_path, capsys, url):
    assert main(['crawl','Beauty','--root',str(tmp_path/'r'),'--base-url',url]) == 2
    assert 'is not the address of a server' in capsys.readouterr().err and not (tmp_path/'r').exists()

# ---- kills

def _crawl(root, url):
    crawl(root=root, base_url=url, workers=2, **year)

def test_killed_at_twenty_moments(small, tmp_path):
    context,r = multiprocessing.get_context('forkserver'),random.Random(0)
    context.set_forkserver_preload(['pttface.crawl','pttface.synthetic.board','pttface.app.cli','pytest'])
    with serve(small, latency=.004) as server:
        crawl(root=tmp_path/'whole', base_url=server.url, **year)
        whole = Counter(server.requests)
        server.clear()
        for i in range(40):
            p = context.Process(target=_crawl, args=(tmp_path/'killed', server.url))
            p.start()
            seen,wait = len(server.requests),r.randint(1, 6)
            end = time.monotonic() + 20
            while p.is_alive() and (i >= 20 or len(server.requests) < seen + wait) and time.monotonic() < end:
                time.sleep(.002)
            done = not p.is_alive() and p.exitcode == 0
            p.kill()
            p.join()
            if done:
                break
        assert done and i == 20
        asked = Counter(o for o in server.requests if o != '/robots.txt')
    assert outputs(tmp_path/'killed') == outputs(tmp_path/'whole')
    assert account(tmp_path/'killed') == account(tmp_path/'whole')
    assert set(asked) == set(whole) - {'/robots.txt'}
    assert sum(asked.values()) - len(asked) <= 3*i

# ---- the page cache

def as_0_1_0_kept_it(root):
    "Turn the page cache under `root` into the `pages.jsonl` of release 0.1.0"
    with sqlite3.connect(root/'links/pages.sqlite') as con:
        pages = con.execute('SELECT * FROM pages').fetchall()
    with open(root/'links/pages.jsonl', 'w') as f:
        for i,(path,status,when,beside,body) in enumerate(pages):
            row = json.loads(beside)
            if 'snapshot' in row:
                row['witness'] = row.pop('snapshot')
            text = base64.b64encode(body) if i % 2 else base64.b85encode(zlib.compress(zlib.decompress(body)))
            f.write(json.dumps(row | dict(path=path, status=status, time=when, body=text.decode())) + '\n')
        f.write('{"path": "/bbs/Beauty/index1')
    (root/'links/pages.sqlite').unlink()

def test_the_cache_of_0_1_0_is_carried_over(small, tmp_path):
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        was,record = outputs(tmp_path),account(tmp_path)
        as_0_1_0_kept_it(tmp_path)
        old = (tmp_path/'links/pages.jsonl').read_bytes()
        server.clear()
        crawl(root=tmp_path, base_url=server.url, force=True, **year)
        assert set(server.requests) <= {'/robots.txt'} | {p for p in server.requests if 'index' in p}
        assert len(server.requests) <= 3
        (tmp_path/'links/crawl.json').unlink()
        crawl(root=tmp_path, base_url=server.url, offline=True, **year)
    assert outputs(tmp_path) == was and account(tmp_path) == record
    assert sorted(f.name for f in (tmp_path/'links').glob('pages*')) == ['pages.old.jsonl', 'pages.sqlite']
    assert (tmp_path/'links/pages.old.jsonl').read_bytes() == old

def test_an_older_cache_does_not_replace_newer_pages(tmp_path):
    store = PageStore(tmp_path/'pages.sqlite')
    store.put('/a', 200, b'new', {})
    store.close()
    text = base64.b64encode(zlib.compress(b'old')).decode()
    rows = [dict(path=p, status=200, time=1704040318, body=text) for p in ('/a','/b')]
    (tmp_path/'pages.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    store = PageStore(tmp_path/'pages.sqlite')
    assert (store.body('/a'), store.body('/b'), len(store)) == (b'new', b'old', 2)

def _put_and_die(path, n):
    store = PageStore(path)
    for i in range(n):
        store.put(f'/bbs/Beauty/index{i}.html', 200, bytes(5000), {})
    os._exit(9)

def test_pages_that_were_put_outlive_the_process(tmp_path):
    context = multiprocessing.get_context('forkserver')
    for n in (1, 40):
        p = context.Process(target=_put_and_die, args=(tmp_path/'pages.sqlite', n))
        p.start()
        p.join()
        assert p.exitcode == 9
        store = PageStore(tmp_path/'pages.sqlite')
        assert len(store) == n and store.body('/bbs/Beauty/index0.html') == bytes(5000)
        store.close()
    assert [f.name for f in tmp_path.iterdir()] == ['pages.sqlite']

def test_a_store_that_is_closed_is_whole_in_one_file_even_while_another_reads(tmp_path):
    store,reader = PageStore(tmp_path/'pages.sqlite'),PageStore(tmp_path/'pages.sqlite')
    for i in range(20):
        store.put(f'/bbs/Beauty/index{i}.html', 200, bytes(5000), {})
        assert len(reader) == i + 1
    store.close()
    (tmp_path/'copy').mkdir()
    (tmp_path/'copy/pages.sqlite').write_bytes((tmp_path/'pages.sqlite').read_bytes())
    copy = PageStore(tmp_path/'copy/pages.sqlite')
    assert len(copy) == 20
    for o in (copy, reader):
        o.close()
    assert sorted(f.name for f in tmp_path.rglob('*') if f.is_file()) == ['pages.sqlite']*2

def test_threads_share_a_store(tmp_path):
    store = PageStore(tmp_path/'pages.sqlite')
    def work(k):
        for i in range(50):
            store.put(f'/bbs/Beauty/{k}/{i}', 200, f'{k} {i}'.encode(), dict(title=f'{k}'))
            assert store.body(f'/bbs/Beauty/{k}/{i}') == f'{k} {i}'.encode()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(store) == 400 and len(store.paths('Beauty')) == 400

def test_a_damaged_store_is_a_sentence(tmp_path):
    (tmp_path/'pages.sqlite').write_bytes(b'not a database' * 1000)
    with pytest.raises(BadInput, match='pages.sqlite is damaged .*: delete it and run the stage again'):
        len(PageStore(tmp_path/'pages.sqlite'))

# ---- the board's name

def test_the_board_is_called_as_its_pages_spell_it(small, tmp_path):
    def any_case(path, *args):
        return small.answer(path.replace('/bbs/beauty/', '/bbs/Beauty/'), *args)
    may = dict(since='2024-05-01', until='2024-05-31', rate=0, progress=False)
    with serving(any_case) as server:
        links = crawl('beauty', root=tmp_path/'a', base_url=server.url, **may)
        assert not [p for p in server.requests if 'beauty/M.' in p]
        server.clear()
        again = crawl('BEAUTY', root=tmp_path/'a', base_url=server.url, **may)
        assert not server.requests and again.rows == links.rows
        crawl('Beauty', root=tmp_path/'b', base_url=server.url, **may)
    assert links.audit['settings']['board'] == 'Beauty' and '/bbs/Beauty/' in links.rows[0]['url']
    assert outputs(tmp_path/'a') == outputs(tmp_path/'b')

def test_a_page_of_another_board_is_refused(small, tmp_path):
    def other(path, *args):
        return small.answer(path.replace('/bbs/C_Chat/', '/bbs/Beauty/'), *args)
    with serving(other) as server, pytest.raises(BadInput, match='is a page of Beauty'):
        crawl('C_Chat', root=tmp_path/'c', base_url=server.url, **year)
    assert not (tmp_path/'c').exists()

@pytest.mark.parametrize('name, ok', [
    ('C_Chat',True), ('Gossiping.tw',True), ('a-b.c_d',True), ('..',False), ('.a',False), ('a/b',False),
    ('看板',False)])
def test_names_of_boards(name, ok):
    if ok:
        assert check_board(name, 'https://www.ptt.cc', 2, 4) == 'www.ptt.cc'
        return
    with pytest.raises(BadInput, match='is not the name of a board'):
        check_board(name, 'https://www.ptt.cc', 2, 4)

# ---- two servers, one root

def test_pages_of_two_servers_never_mix(tmp_path):
    boards = [make_board(n_photos=30, seed=seed, n_articles=90) for seed in (21, 22)]
    with serve(boards[0]) as one, serve(boards[1]) as two:
        urls = [one.url, two.url]
        for i in (0, 1):
            crawl(root=tmp_path/str(i), base_url=urls[i], **year)
        for i in (0, 1, 0):
            crawl(root=tmp_path/'both', base_url=urls[i], force=True, **year)
            assert outputs(tmp_path/'both') == outputs(tmp_path/str(i))
        first = len([p for p in one.requests if '/M.' in p])
        crawl(root=tmp_path/'both', base_url=urls[0], force=True, **year)
        assert len([p for p in one.requests if '/M.' in p]) == first

# ---- who asks to be left out after a crawl

def links_of(root):
    return {u for r in Links.load(root).rows for u in r['images']}

def test_an_article_and_a_photo_that_are_opted_out_leave_the_lists(tmp_path):
    "At the next crawl, without a request; and what the article showed is not brought back by another one"
    board = make_board(n_photos=120, seed=4, n_articles=260, optouts=3)
    truth,obeyed = board.expect('2024-01-01', '2024-12-31'),board.expect_obeyed('2024-01-01', '2024-12-31')
    with serve(board) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        assert links_of(tmp_path) == set(truth['urls'])
        files = sorted(f.name for f in (tmp_path/'links/monthly_jsonl').iterdir())
        (tmp_path/'optout.txt').write_text(board.optout_list(), encoding='utf-16')
        server.clear()
        links = crawl(root=tmp_path, base_url=server.url, **year)
        assert not server.requests and links_of(tmp_path) == set(obeyed['urls']) | {
            u for u in obeyed['left_out']['copies']}
        was = outputs(tmp_path)
        crawl(root=tmp_path, base_url=server.url, **year)
        crawl(root=tmp_path, base_url=server.url, offline=True, **year)
        assert outputs(tmp_path) == was and not server.requests
    left_out = obeyed['left_out']
    assert len(left_out['articles']) == links.audit['counts']['opt_out'] > 0
    assert sorted(f.name for f in (tmp_path/'links/monthly_jsonl').iterdir()) == files
    everything = b''.join(f.read_bytes() for f in tmp_path.rglob('*') if f.is_file() and f.suffix != '.sqlite'
                          and f.name != 'optout.txt')
    assert not [o for o in left_out['articles'] | left_out['photos'] if o.encode() in everything]
    store = PageStore(tmp_path/'links/pages.sqlite')
    assert not [o for o in left_out['articles'] if store.about(o.removeprefix('https://www.ptt.cc'))]
    assert len(left_out['photos']) > len(board.asked) and any(board.copy_of)

def test_a_photo_of_an_opted_out_article_stays_out_when_another_shows_it_later(tmp_path):
    "The photo was never downloaded, its article is gone from the lists, and then somebody else posts its address"
    board = make_board(n_photos=60, seed=5, n_articles=200)
    ever = dict(since='2024-01-01', until='2199-12-31', rate=0, progress=False)
    everything = board.rows
    posts = [i for i in everything if board.article(int(i)).kind == 'post']
    first = next(board.article(int(i)) for i in posts if board.day(i) > '2024-01-02' and
                 any(l['photo'] is not None and l['origin'] == 'body' for l in board.article(int(i)).links))
    shown = next(l['url'] for l in first.links if l['photo'] is not None and l['origin'] == 'body')
    late = board.article(int(posts[-1]))
    late.links.append(dict(url=shown, raw=shown, origin='body', style='plain', photo=None))
    late.body.append(shown)
    with serve(board) as server:
        board.show(everything[everything < posts[-1]])
        crawl(root=tmp_path, base_url=server.url, **ever)
        assert shown in links_of(tmp_path)
        (tmp_path/'optout.txt').write_text(first.id)
        crawl(root=tmp_path, base_url=server.url, **ever)
        (tmp_path/'optout.txt').unlink()
        board.show(everything)
        links = crawl(root=tmp_path, base_url=server.url, **ever)
    assert late.id in {r['id'] for r in links.rows} and shown not in links_of(tmp_path)
    assert shown.encode() not in (tmp_path/'optout_hashes.jsonl').read_bytes()

def test_two_crawls_at_a_time(small, tmp_path):
    with serve(small) as server, locked(open_root(tmp_path, create=True), 'crawl'):
        with pytest.raises(BadInput, match=rf'`pttface crawl` .process {os.getpid()} on .+, since 20\d\d-'):
            crawl(root=tmp_path, base_url=server.url, **year)
        assert not server.requests and not (tmp_path/'links').exists()
    with serve(small) as server:
        crawl(root=tmp_path, base_url=server.url, **year)
        with locked(tmp_path, 'download'):
            assert len(crawl(root=tmp_path, base_url=server.url, **year)), 'a finished crawl is only read'

# ---- what boards know

@pytest.mark.parametrize('nrec, count', [
    ('', 0), ('3', 3), ('99', 99), ('100', 100), ('爆', 100), (' 爆 ', 100), ('X1', -10), ('x9', -90), ('XX', -100),
    ('Ｘ２', -20), ('１２', 12), (None, None), ('M', None), ('1a', None)])
def test_push_counts(nrec, count):
    assert push_count(nrec) == count

@pytest.mark.parametrize('title, tag', [
    ('[正妹] 夜市', '正妹'), ('Re: [神人] 夜市', '神人'), ('re:Re: [ 神人 ]夜市', '神人'), ('Fw: Re: 【帥哥】', '帥哥'),
    ('轉錄: [正妹] a', '正妹'), ('[正妹][神人]', '正妹'),
    ('［正妹］', '正妹'), ('(正妹) 夜市', ''), ('', ''), ('[]', ''),
    ('看 [正妹]', ''), ('[正妹', '')])
def test_categories(title, tag):
    assert category(title) == tag

def test_pushes_and_tags_are_rows_settings_and_flags(board, tmp_path, capsys):
    "Older records count as made without them; other values need --force, which asks for nothing that is there"
    with serve(board) as server:
        whole = crawl(root=tmp_path, base_url=server.url, **year)
        record = tmp_path/'links/crawl.json'
        old = json.loads(record.read_text())
        for k in ('min_pushes','tags'):
            del old['settings'][k]
        record.write_text(json.dumps(old))
        assert len(crawl(root=tmp_path, base_url=server.url, **year)) == len(whole)
        few = dict(settings=CrawlSettings(min_pushes=10, tags=('正妹','[帥哥]')))
        with pytest.raises(BadInput, match=r'min_pushes=None \(now 10\), tags=\[\] \(now'):
            crawl(root=tmp_path, base_url=server.url, **few, **year)
        listed = {r['id']:r for r in whole.rows}
        flags = ['--since','2024-01-01','--until','2024-12-31','--rate','0','--base-url',server.url,'--no-progress']
        more = ['--min-pushes','10','--tags','正妹','[帥哥]','--contact','me@example.org','--force']
        server.clear()
        assert main(['crawl','--root',str(tmp_path),*flags,*more]) == 0
        assert not any('/M.' in p for p in server.requests)
    links = Links.load(tmp_path)
    right = {i for i,r in listed.items() if r['pushes'] >= 10 and r['tag'] in ('正妹','帥哥')}
    assert {r['id'] for r in links.rows} == right and 0 < len(right) < len(listed)
    assert {r['nrec'] for r in listed.values()} >= {'','爆'} and min(r['pushes'] for r in listed.values()) < 0
    counts,full = links.audit['counts'],whole.audit['counts']
    assert counts['other_tag'] and counts['few_pushes'] and counts['rows'] == full['rows'] == sum(
        counts[k] for k in ('deleted','announcement','young','opt_out','other_tag','few_pushes','articles','removed'))
    assert full['albums'] == whole.audit['skipped'].get('album', 0) > 0 and 'albums' in str(whole)

def test_a_proxy_and_a_contact(small, tmp_path):
    "Whole addresses go to the proxy, and every request names whom to write to"
    seen = []
    def proxy_answer(path, headers):
        seen.append((path, headers['User-Agent']))
        return small.answer(path.split('board.example', 1)[1], 'over18' in headers.get('Cookie', ''))
    with serving(proxy_answer) as proxy:
        february = dict(since='2024-02-01', until='2024-02-29', rate=0, progress=False)
        how = dict(proxy=proxy.url, contact='me@example.org', **february)
        links = crawl(root=tmp_path, base_url='http://board.example', **how)
    assert len(links) and all(path.startswith('http://board.example/') for path,_ in seen)
    assert {agent.split('; ')[1] for _,agent in seen} == {'me@example.org)'}

@pytest.mark.parametrize('how, sentence', [
    (dict(proxy='proxy.example'), 'is not the address of a proxy'), (dict(contact='小明'), 'in ASCII'),
    (dict(settings=CrawlSettings(tags=('',))), 'at least one character'),
    (dict(settings=CrawlSettings(min_pushes=1000)), 'from -100'),
    (dict(proxy='http://proxy.example', session=object()), 'or give none')])
def test_settings_that_are_none(tmp_path, how, sentence):
    with pytest.raises(BadInput, match=sentence):
        crawl(root=tmp_path/'r', **year, **how)
    assert not (tmp_path/'r').exists()
