"What servers have been seen to send, and what a client must make of it."
import threading,time
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer

import pytest

from pttface.net.http import Client,RateLimiter,Refused,_route,public

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args):
        pass
    def do_GET(self):
        self.server.paths.append((self.path, time.monotonic()))
        self.wfile.write(self.server.answers[self.path.strip('/')])
        self.close_connection = True

@pytest.fixture
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.paths,server.answers = [],{'%E6%AD%A3': head(200, 'Content-Length: 5') + b'photo'}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

def head(status, *lines):
    return '\r\n'.join([f'HTTP/1.1 {status} X', 'Connection: close', *lines, '', '']).encode()

def get(server, answer, **kw):
    server.answers['a'] = answer
    with Client(allow_private=True, **dict(retries=0) | kw) as client:
        return client.get(f'http://127.0.0.1:{server.server_port}/a')

@pytest.mark.parametrize('lines, reason', [
    (['Content-Length: 5','Content-Length: 5'], ''), (['Content-Length: 5, 5'], ''),
    (['Content-Length: 5','Content-Length: 9'], 'bad_length'), (['Content-Length: five'], 'bad_length'),
    (['Content-Length: 5','Content-Encoding: br'], 'bad_encoding'),
    (['Content-Length: 5','Content-Encoding: zstd'], 'bad_encoding'),
    (['Content-Length: 5','Content-Encoding: identity'], '')])
def test_headers_that_say_what_follows(server, lines, reason):
    a = get(server, head(200, *lines) + b'photo')
    assert (a.reason, a.body) == (reason, b'' if reason else b'photo')

@pytest.mark.parametrize('status', [202, 204, 205, 300, 304])
def test_a_status_without_a_body_is_its_own_reason(server, status):
    assert get(server, head(status, 'Content-Length: 0')).reason == str(status)

@pytest.mark.parametrize('status', [520, 521, 522, 523, 524])
def test_what_cloudflare_says_of_a_server_behind_it_may_pass(server, status):
    assert get(server, head(status, 'Content-Length: 0')).transient

def test_an_address_in_raw_utf8_is_followed(server):
    a = get(server, 'HTTP/1.1 302 Found\r\nLocation: /正\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'.encode())
    assert a.body == b'photo' and a.final.endswith('/正')
    server.answers['%A5%BF'] = server.answers['%E6%AD%A3']
    a = get(server, b'HTTP/1.1 302 Found\r\nLocation: /\xa5\xbf\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
    assert a.body == b'photo', (a, server.paths)

@pytest.mark.parametrize('retries', [0, 1])
def test_retry_after_stops_those_who_wait_in_line(server, retries):
    server.answers |= {'busy':head(429, 'Retry-After: 1', 'Content-Length: 0'),
                       'b':head(200, 'Content-Length: 1') + b'b'}
    base = f'http://127.0.0.1:{server.server_port}/'
    with Client({'127.0.0.1':RateLimiter(10, 8)}, allow_private=True, retries=retries) as client:
        threads = [threading.Thread(target=client.get, args=(base + o,)) for o in ['busy'] + ['b']*5]
        for t in threads:
            t.start()
            time.sleep(.01)
        for t in threads:
            t.join()
    (first,start),*rest = server.paths
    assert first == '/busy' and len(rest) == 5 + retries
    # A busy machine can only make an answer later: the k-th request never comes before k intervals have passed
    waits = sorted(at - start for _,at in rest)
    assert [w for k,w in enumerate(waits) if w < .9 + .09*k] == []

@pytest.mark.parametrize('ip', '''64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b:1::808:808 ::7f00:1 ::808:808
    ::ffff:0:7f00:1
    ::ffff:0:808:808 fec0::1 ::ffff:7f00:1 2002:7f00:1:: fc00::1 fe80::1%eth0 ff02::1 :: ::1'''.split())
def test_what_leads_inside_is_not_public(ip):
    assert not public(ip)

@pytest.mark.parametrize('ip', ['8.8.8.8','::ffff:8.8.8.8','64:ff9b::808:808','2606:4700::1111','2002:808:808::'])
def test_what_leads_outside_is_public(ip):
    assert public(ip)

def test_ports_that_are_not_for_the_web_are_refused():
    client = Client(retries=0)
    for port in (22, 25, 6379, 1, 65535):
        assert client.get(f'https://photos.example.com:{port}/a.jpg').reason == 'bad_port'
    for port in ('', ':80', ':443', ':8080', ':8443'):
        assert _route(client, f'https://photos.example.com{port}/a.jpg')
    with pytest.raises(Refused):
        _route(Client(gateway='http://127.0.0.1:8000'), 'http://photos.example.com:22/a.jpg')
