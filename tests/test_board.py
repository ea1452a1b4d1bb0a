"The board says what is there, its photos are what they claim to be, and its server has exactly the faults asked for."
import hashlib
import html
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from pttface.synthetic.photos import fates,PhotoStore
from pttface.synthetic.board import make_board,serve
from pttface.synthetic.server import Fault,Reply,faults,serving,some_faults
from pttface.storage.files import BadInput

PHOTO = Reply(200, bytes(range(256))*40, mime='image/jpeg')


def raw(url, limit=1 << 18, wait=3., request=None):
    "Everything the server at `url` sends, and how the connection ended: closed, reset, limit or timeout"
    u = urlsplit(url)
    got, end = b'', 'closed'
    with socket.create_connection((u.hostname, u.port), timeout=wait) as s:
        s.sendall(request or f'GET {u.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'.encode())
        try:
            while part := s.recv(1 << 16):
                got += part
                if len(got) >= limit:
                    return got, 'limit'
        except ConnectionResetError:
            end = 'reset'
        except socket.timeout:
            end = 'timeout'
    return got, end


def parts(got):
    "Status, headers and body of a raw answer"
    head, _, body = got.partition(b'\r\n\r\n')
    first, *lines = head.decode('latin-1').split('\r\n')
    return int(first.split()[1]), {k.lower(): v for k, v in (o.split(': ', 1) for o in lines)}, body


@pytest.fixture(scope='module')
def server():
    seconds = dict(delay=.3, drip=.002, slow_headers=.002)
    planned = {f'/{k}': Fault(k, seconds=seconds.get(k, 2.)) for k in faults}
    with serving(lambda path, headers: PHOTO, faults=planned) as s:
        yield s


@pytest.fixture(scope='module')
def board():
    return make_board(n_photos=400, n_articles=200, seed=7, size=(96, 80))


# ---- faults, each one from outside

def test_without_a_fault(server):
    status, head, body = parts(raw(f'{server.url}/fine')[0])
    assert (status, body, head['content-type']) == (200, PHOTO.body, 'image/jpeg')


@pytest.mark.parametrize('kind', ['403', '404', '429', '500', '502', '503'])
def test_status(server, kind):
    status, head, _ = parts(raw(f'{server.url}/{kind}')[0])
    assert status == int(kind) and 'retry-after' not in head


def test_retry_after(server):
    status, head, _ = parts(raw(f'{server.url}/429_wait')[0])
    assert (status, head['retry-after']) == (429, '2')


@pytest.mark.parametrize('kind,where', [
    ('loop', '/loop'), ('to_file', 'file:///etc/passwd'), ('placeholder', '/i.imgur.com/removed.png')])
def test_redirects(server, kind, where):
    status, head, _ = parts(raw(f'{server.url}/{kind}')[0])
    assert (status, head['location']) == (302, where)


@pytest.mark.parametrize('kind,name', [('to_loopback', '127.0.0.1'), ('to_private_name', 'localhost')])
def test_the_trap_knows_who_came(server, kind, name):
    where = parts(raw(f'{server.url}/{kind}')[0])[1]['location']
    assert urlsplit(where).hostname == name and urlsplit(where).port != urlsplit(server.url).port
    server.trapped.clear()
    assert parts(raw(where)[0])[2] == b'the secret' and server.trapped == ['/secret']
    assert '/secret' not in server.requests


def test_refused(server):
    where = parts(raw(f'{server.url}/refused')[0])[1]['location']
    with pytest.raises(ConnectionRefusedError):
        raw(where)


def test_ipv6_only(server):
    if not server.url6:
        pytest.skip('no IPv6 on this machine')
    where = urlsplit(parts(raw(f'{server.url}/ipv6')[0])[1]['location'])
    assert where.hostname == '::1' and parts(raw(where.geturl())[0])[2] == PHOTO.body
    with pytest.raises(OSError):
        raw(f'http://127.0.0.1:{where.port}/ipv6')


@pytest.mark.parametrize('kind,has', [
    ('html', b'<!DOCTYPE html>'), ('over18', b'over18-notice'), ('zipped', b'PK\x03\x04')])
def test_other_bodies(server, kind, has):
    status, head, body = parts(raw(f'{server.url}/{kind}')[0])
    assert status == 200 and body.startswith(has) or has in body
    assert int(head['content-length']) == len(body)
    with pytest.raises(OSError):
        Image.open(io.BytesIO(body))


def test_empty_and_truncated(server):
    for kind, size in (('empty', 0), ('truncated', len(PHOTO.body)//2)):
        status, head, body = parts(raw(f'{server.url}/{kind}')[0])
        assert (status, head['content-length'], body) == (200, str(size), PHOTO.body[:size])


def test_bomb(server):
    _, _, body = parts(raw(f'{server.url}/bomb')[0])
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(body))
    assert len(body) < 100 and body[16:24] == (60_000).to_bytes(4, 'big')*2


def test_gzip_lie(server):
    _, head, body = parts(raw(f'{server.url}/gzip_lie')[0])
    assert head['content-encoding'] == 'gzip'
    with pytest.raises(zlib.error):
        zlib.decompress(body, 31)


def test_delay(server):
    t = time.monotonic()
    assert parts(raw(f'{server.url}/delay')[0])[2] == PHOTO.body
    assert .29 < time.monotonic() - t < 20


@pytest.mark.parametrize('kind', ['drip', 'slow_headers'])
def test_a_byte_at_a_time(kind):
    small = Reply(200, b'0123456789')
    with serving(lambda p, h: small, faults={'*': Fault(kind, seconds=.01)}) as server:
        u, sizes = urlsplit(server.url), []
        with socket.create_connection((u.hostname, u.port), timeout=3) as s:
            s.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
            while part := s.recv(4096):
                sizes.append(len(part))
    slow = sizes[1:] if kind == 'drip' else sizes[:-1]
    assert len(slow) >= 8 and sum(slow)/len(slow) < 3, sizes


def test_reset(server):
    got, end = raw(f'{server.url}/reset')
    _, head, body = parts(got)
    assert end == 'reset' and int(head['content-length']) == len(PHOTO.body) and 0 < len(body) < len(PHOTO.body)


def test_hang_up_and_gibberish(server):
    assert raw(f'{server.url}/hang_up') == (b'', 'closed')
    got, end = raw(f'{server.url}/gibberish')
    assert end == 'closed' and got and not got.startswith(b'HTTP')


@pytest.mark.parametrize('kind,says', [('length_over', 1000), ('length_under', -len(PHOTO.body)//2)])
def test_wrong_length(server, kind, says):
    got, end = raw(f'{server.url}/{kind}')
    _, head, body = parts(got)
    assert (end, body, int(head['content-length'])) == ('closed', PHOTO.body, len(PHOTO.body) + says)


def test_floods(server):
    for kind, length in (('huge', '200000000'), ('endless', None)):
        got, end = raw(f'{server.url}/{kind}', limit=1 << 20)
        assert end == 'limit' and parts(got)[1].get('content-length') == length


def test_every_fault_is_tested(server):
    "The list above is complete: each fault there is has been met by some test of this file"
    source = open(__file__).read()
    assert not [k for k in faults if f"'{k}'" not in source.replace(f"/{k}'", f"'{k}'")]


# ---- when a fault strikes

def test_times_after_and_lists():
    plan = {'/twice': Fault('503', times=2), '/turn': ['500', None, '404'], '/late': Fault('403', after=8)}
    with serving(lambda p, h: PHOTO, faults=plan) as server:
        ask = lambda path: requests.get(server.url + path).status_code
        assert [ask('/twice') for _ in range(3)] == [503, 503, 200]
        assert [ask('/turn') for _ in range(4)] == [500, 200, 404, 200]
        assert [ask('/late') for _ in range(3)] == [200, 403, 403]
        assert server.faulty == [('/twice', '503')]*2 + [('/turn', '500'), ('/turn', '404')] + [('/late', '403')]*2


def test_chance_does_not_depend_on_order_or_threads():
    paths = [f'/{i}.jpg' for i in range(60)]

    def struck(order):
        with serving(lambda p, h: PHOTO, faults=some_faults(.4, seed=3, kinds=('404', '503'))) as server:
            ask = lambda paths: [requests.get(server.url + p) for p in paths]
            threads = [threading.Thread(target=ask, args=(part,)) for part in (order[::2], order[1::2])]
            for t in threads:
                t.start()
            for t in threads:
                t.join(20)
            return sorted(server.faulty)

    a, b = struck(paths), struck(paths[::-1])
    assert a == b and 12 < len(a) < 36 and {k for _, k in a} == {'404', '503'}


def test_unknown_fault():
    with pytest.raises(BadInput, match='no fault'):
        Fault('earthquake')


# ---- the server itself

def test_one_connection_carries_many_requests(board):
    with serve(board) as server, socket.create_connection(('127.0.0.1', urlsplit(server.url).port), timeout=3) as s:
        f = s.makefile('rb')
        for i in range(1, 6):
            s.sendall(f'GET /bbs/Beauty/index{i}.html HTTP/1.1\r\nHost: x\r\nCookie: over18=1\r\n\r\n'.encode())
            assert f.readline().startswith(b'HTTP/1.1 200')
            size = 0
            while line := f.readline().strip():
                if line.lower().startswith(b'content-length'):
                    size = int(line.split()[1])
            assert b'r-ent' in f.read(size)
        assert server.requests == [f'/bbs/Beauty/index{i}.html' for i in range(1, 6)]


def test_it_stops_at_once_and_leaves_nothing_behind():
    planned = {'/drip': Fault('drip', seconds=9), '/delay': Fault('delay', seconds=60)}
    with serving(lambda p, h: PHOTO, faults=planned) as server:
        port = urlsplit(server.url).port
        socks = [socket.create_connection(('127.0.0.1', port)) for _ in range(3)]
        for s, path in zip(socks, ('/drip', '/delay', '')):
            if path:
                s.sendall(f'GET {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
        time.sleep(.2)
        t = time.monotonic()
    assert time.monotonic() - t < 8
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port), timeout=2)
    for s in socks:
        s.settimeout(2)
        while s.recv(1 << 16):
            pass
        s.close()


def test_loopback_only():
    with serving(lambda p, h: PHOTO) as server:
        assert urlsplit(server.url).hostname == '127.0.0.1'
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(('192.0.2.1', 9))
            except OSError:
                return
            mine = probe.getsockname()[0]
        if not mine.startswith('127.'):
            with pytest.raises(OSError):
                socket.create_connection((mine, urlsplit(server.url).port), timeout=1)


def test_a_port_that_is_taken():
    with serving(lambda p, h: PHOTO) as server, pytest.raises(BadInput, match='cannot be had'):
        with serving(lambda p, h: PHOTO, port=urlsplit(server.url).port):
            pass


def test_robots_and_gates(board):
    path = '/bbs/Beauty/index.html'
    with serve(board, robots='User-agent: *\nDisallow: /man/\n') as s:
        assert 'Disallow' in requests.get(f'{s.url}/robots.txt').text
        r = requests.get(s.url + path, allow_redirects=False)
        assert (r.status_code, r.headers['location']) == (302, '/ask/over18?from=%2Fbbs%2FBeauty%2Findex.html')
        assert 'r-ent' in requests.get(s.url + path, cookies=dict(over18='1')).text
    with serve(board, gate='script') as s:
        page = requests.get(s.url + path).text
        assert 'document.cookie' in page and 'r-ent' in page and 'over18-notice' not in page
        assert requests.get(f'{s.url}/robots.txt').status_code == 404
    with pytest.raises(BadInput, match='gate='), serve(board, gate='moat'):
        pass


# ---- pages and truth

def test_the_same_seed_is_the_same_board(board):
    again, other = (make_board(n_photos=400, n_articles=200, seed=s, size=(96, 80)) for s in (7, 8))
    pages = lambda b: hashlib.sha256(b''.join(b.answer(f'/bbs/Beauty/index{i}.html').body for i in range(1, b.pages+1))
                                     + b''.join(b.answer(b.article(i).path).body for i in range(len(b)))).hexdigest()
    assert pages(board) == pages(again) != pages(other)
    assert {board.photo(k).url for k in range(400)}.isdisjoint(other.photo(k).url for k in range(400))


def test_truth_and_pages_agree(board):
    seen = set()
    for row in board.expect()['articles']:
        a = board.article(row['i'])
        r = board.answer(a.path)
        assert r.status == (200 if a.kind in ('post', 'announcement') else 404), a
        page = html.unescape(r.body.decode())
        if r.status == 200:
            assert all(l['raw'] in page for l in row['links'])
            assert row['unseen'] == [u for u in row['unseen'] if u not in page]
        listing = html.unescape(board.answer(f'/bbs/Beauty/index{a.i//20 + 1}.html').body.decode())
        assert (a.path in listing) == (a.kind != 'deleted')
        seen |= {a.kind, a.quirk} | {l['style'] for l in a.links} | {l['origin'] for l in a.links}
    assert seen >= {'post', 'announcement', 'deleted', 'gone', 'long', 'forwarded', 'cf_email', 'joined', 'fullwidth',
                    'mobile', 'push', 'addition'}


def test_ids_ascend_and_pages_end(board):
    assert (board.times[1:] > board.times[:-1]).all()
    assert [board.answer(f'/bbs/Beauty/index{n}.html').status for n in (0, board.pages + 1)] == [404, 404]
    last, newest = (board.answer(f'/bbs/Beauty/index{n}.html').body.decode() for n in (board.pages, ''))
    assert 'r-list-sep' not in last and newest.count('r-ent') == last.count('r-ent') + len(board.pinned)


def test_the_first_in_range_is_kept(board):
    whole = board.expect()
    again = {u for u, f in whole['urls'].items() if f['want'] == 'duplicate'}
    assert again
    for u in again:
        assert list(whole['urls']).index(whole['urls'][u]['of']) < list(whole['urls']).index(u)
    posts = [a for a in whole['articles'][::-1] if a['kind'] == 'post']
    days = {l['url']: a['time'][:10] for a in posts for l in a['links'] if l['origin'] != 'push'}
    first_that_day = {(days[u], whole['urls'][u]['content']): u for u in reversed(whole['urls']) if u in days}
    urls = whole['urls']
    later = [u for u in urls if u in again & days.keys() and days[u] > days[urls[u]['of']]]
    u = next(u for u in later if first_that_day[days[u], urls[u]['content']] == u)
    alone = board.expect(days[u], days[u])['urls'][u]
    assert (urls[u]['want'], alone['want'], alone['content']) == ('duplicate', 'kept', urls[u]['content'])
    assert all(f['want'] in ('kept', 'rejected', 'duplicate', 'failed') for f in whole['urls'].values())


def test_ranges_add_up(board):
    last_days = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    spans = [(f'2024-{m:02}-01', f'2024-{m:02}-{d}') for m, d in enumerate(last_days, 1)]
    months = [board.expect(*span)['counts']['articles'] for span in spans]
    assert sum(months) == board.expect('2024-01-01', '2024-12-31')['counts']['articles']


def test_a_big_board_is_ready_at_once():
    t = time.monotonic()
    big = make_board(n_photos=800_000, n_articles=80_000, since='2010-01-01', until='2024-12-31')
    assert big.pages == 4000 and big.answer('/bbs/Beauty/index2000.html').status == 200 and time.monotonic() - t < 5


# ---- photos

def bytes_of(board, url):
    r = board.answer('/' + url.split('://')[1])
    return r.status, r.body


def test_what_each_photo_answers(board):
    digest = {}
    for k in range(board.n_photos):
        p = board.photo(k)
        if p.kind in ('removed', 'dead', 'missing'):
            status, body = bytes_of(board, p.url)
            assert (status, body[:1]) == {'removed': (302, b''), 'dead': (200, b'<'), 'missing': (404, b'<')}[p.kind]
        elif p.kind in ('duplicate', 'repeat', 'near_dup') and len(digest) < 24:
            of = board.photo(p.of)
            (_, mine), (_, its) = bytes_of(board, p.url), bytes_of(board, of.url)
            expected = dict(duplicate=(True, False), repeat=(True, True), near_dup=(False, False))
            assert (mine == its, p.url == of.url) == expected[p.kind]
            if p.kind == 'near_dup':
                assert hashlib.sha256(mine).hexdigest() not in digest.values()
            digest[k] = hashlib.sha256(mine).hexdigest()
    assert len(digest) == 24
    assert len(board.answer('/i.imgur.com/removed.png').body) == 503
    Image.open(io.BytesIO(board.answer('/i.imgur.com/removed.png').body)).load()


def test_imgur_ignores_the_extension_and_others_know_nothing(board):
    p = next(p for k in range(400) if (p := board.photo(k)).host == 'i.imgur.com' and p.kind == 'head')
    stem = p.url.rsplit('.', 1)[0]
    assert bytes_of(board, stem + '.webp') == bytes_of(board, p.url)
    assert bytes_of(board, stem.replace('i.imgur.com', 'i.meee.com.tw') + '.jpg')[0] == 404
    assert bytes_of(board, 'https://i.imgur.com/zzzzzzz.jpg')[0] == bytes_of(board, 'https://example.com/a')[0] == 404
    assert board.answer('/../../etc/passwd').status == 404


DRAW = '''
import sys
from pttface.synthetic.board import make_board
make_board(n_photos=120, n_articles=20, seed=2, size=(80, 64), workers=2, cache=sys.argv[1]).render(progress=False)
'''


@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT])
def test_drawing_goes_on_where_it_was_stopped(tmp_path, sig):
    path = tmp_path/'photos.sqlite'
    p = subprocess.Popen([sys.executable, '-c', DRAW, path], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and p.poll() is None and (not path.exists() or len(PhotoStore(path)) < 3):
        time.sleep(.02)
    p.send_signal(sig)
    assert p.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        for _ in range(250):
            os.killpg(p.pid, 0)
            time.sleep(.02)
    done = len(PhotoStore(path))
    board = make_board(n_photos=120, n_articles=20, seed=2, size=(80, 64), workers=1, cache=path)
    drawn = [k for k in range(120) if fates[str(board.photo_kind[k])].want in ('kept', 'rejected')]
    assert 3 <= done < len(drawn)
    assert board.render(progress=False) == len(drawn) - done and board.render(progress=False) == 0
    fresh = make_board(n_photos=120, n_articles=20, seed=2, size=(80, 64))
    for k in drawn[:6]:
        assert board.photo_bytes(k) == fresh.photo_bytes(k)


def test_drawing_beside_a_server_does_not_hang(tmp_path):
    board = make_board(n_photos=20, n_articles=20, seed=4, size=(80, 64), workers=2, cache=tmp_path)
    with serve(board) as s:
        stop = threading.Event()
        ask = lambda: [requests.get(f'{s.url}/robots.txt') for _ in iter(stop.is_set, True)]
        askers = [threading.Thread(target=ask) for _ in range(3)]
        for t in askers:
            t.start()
        done = []
        drawing = threading.Thread(target=lambda: done.append(board.render(progress=False)), daemon=True)
        drawing.start()
        drawing.join(30)
        stop.set()
        for t in askers:
            t.join(5)
    assert done and done[0] > 10


def test_a_file_that_holds_no_photos(tmp_path):
    (tmp_path/'photos.sqlite').write_text('not a database, but long enough to be taken for one'*20)
    with pytest.raises(BadInput, match='not a file of photos'):
        make_board(cache=tmp_path/'photos.sqlite')
