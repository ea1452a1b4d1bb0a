"""Properties that hold for whatever comes from outside: pages, addresses, headers, lists, records, archives, runs.

A few examples of each, the same every time; `make fuzz` tries thousands. What was found stays as `@example`.
"""
import hashlib,html,io,ipaddress,json,math,os,re,signal,tarfile,zipfile
from contextlib import contextmanager
from dataclasses import asdict,fields,replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck,assume,example,given,settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from pttface.checks import LIMITS,Limits,check_number
from pttface.crawl import CrawlSettings
from pttface.dataset import FaceData,PackSettings
from pttface.download import DownloadSettings
from pttface.faces import FaceSettings
from pttface.net.http import Answer,Client,_head_reason,_wait,public
from pttface.policy import DIGITS64,OptOut,Robots,opted_out,read_optout,tagged,why_young
from pttface.ptt.parse import category,gated,parse_article,parse_index,posted,push_count
from pttface.ptt.urls import canonical,canonical_all,split_urls
from pttface.storage.files import (BadInput,Ledger,read_json,read_jsonl,read_npz,read_tar,same_settings,write_json,
                                   write_npz,write_tar)
from pttface.training.checkpoint import Checkpoints
from pttface.training.config import RECIPES,Budget,Recipe,read_recipe,recipe_record
from pttface.training.trainer import TrainingRun
from pttface.vision.images import Unusable,decode

many = int(os.environ.get('PTTFACE_FUZZ', 0))
settings.register_profile('pttface', max_examples=many or 15, derandomize=not many, deadline=None, database=None,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile('pttface')


@contextmanager
def bounded(seconds=20):
    "Interrupt what takes far too long: an expression that tries everything, a loop without an end."
    def late(*_):
        raise AssertionError(f'still at work after {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(f, *args, **kw):
    "What `f` returns, or the one error that it may raise."
    try:
        with bounded():
            return f(*args, **kw)
    except BadInput as e:
        assert str(e) and '\n' not in str(e)
        return e


@contextmanager
def folder():
    with TemporaryDirectory() as d:
        yield Path(d)


# ---- strategies

plain = st.characters(codec='utf-8', exclude_categories=('Cc', 'Cs', 'Cn', 'Co', 'Zl', 'Zp'))
words = st.text(plain, max_size=30)
letters = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'
imgur_ids = st.text(letters, min_size=7, max_size=7)
names = st.text(letters + '-_', min_size=1, max_size=12)
article_ids = st.builds('M.{}.A.{:03X}'.format, st.integers(10**9, 2*10**9), st.integers(0, 0xfff))
pieces = st.sampled_from(['https://', 'http://', 'i.imgur.com/', 'imgur.com/', 'a/', '.jpg', '.png', '[img]', '[/img]',
                          '%20', '&amp;', ',', '正', '，', '?a=', '#', '@', ':80', '[::1]', '//', '\\', '"', '(', ')',
                          ' ', 'pbs.twimg.com/media/', 'x.com', '.', '..', '\n', '\0', '１', '歲', '國小', '高中'])
texts = st.one_of(st.text(max_size=60), st.lists(st.one_of(pieces, st.text(max_size=6)), max_size=30).map(''.join))
long_texts = st.builds(lambda p, n, end: p*(n//len(p)) + end, st.one_of(pieces, st.text(min_size=1, max_size=5)),
                       st.integers(0, 20_000), texts)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda o: st.one_of(st.lists(o, max_size=4), st.dictionaries(st.text(max_size=9), o, max_size=4)), max_leaves=9)
records = st.one_of(
    st.binary(max_size=60), json_values.map(lambda o: json.dumps(o).encode()),
    st.dictionaries(st.sampled_from(['settings', 'hash', 'budget', 'file', 'step', 'sha256', 'score']), json_values,
                    max_size=5).map(lambda o: json.dumps(o).encode()))


def photo_urls():
    imgur = st.builds('https://i.imgur.com/{}.jpg'.format, imgur_ids)
    other = st.builds('https://{}.example.com/{}/{}.{}'.format, st.text('abcdefgh', min_size=1, max_size=5), names,
                      names, st.sampled_from(['jpg', 'png', 'webp', 'gif']))
    return st.one_of(imgur, other)


def mutated(data):
    "Bytes with a few of them cut, changed or put in."
    def change(edits):
        body = bytearray(data)
        for at, what, piece in edits:
            i = at % (len(body) + 1)
            if what == 'cut':
                del body[i:]
            elif what == 'set':
                body[i:i + len(piece)] = piece
            else:
                body[i:i] = piece
        return bytes(body)
    edit = st.tuples(st.integers(0, 10**6), st.sampled_from(['cut', 'set', 'set', 'put']),
                     st.binary(min_size=1, max_size=9))
    return st.lists(edit, min_size=1, max_size=4).map(change)


# ---- pages

tags = st.sampled_from(['div', 'span', 'a', 'b', 'br', 'p', 'table', 'script', 'style', 'main', 'body', 'title', 'svg'])
classes = st.sampled_from(['r-ent', 'title', 'author', 'date', 'nrec', 'r-list-sep', 'push', 'push-content', 'wide',
                           'board', 'btn-group-paging', 'article-meta-tag', 'article-meta-value', 'richcontent',
                           'warning-box', '__cf_email__', 'over18-notice', 'article-metaline'])
hrefs = st.one_of(st.builds('/bbs/Beauty/M.{}.A.E87.html'.format, st.integers(0, 10**30)), texts,
                  st.builds('/bbs/Beauty/index{}.html'.format, st.integers(0, 10**30)))


@st.composite
def fragments(draw, depth=3):
    tag, inside = draw(tags), draw(texts)
    if depth:
        inside += ''.join(draw(st.lists(fragments(depth - 1), max_size=3)))
    attributes = f' class="{" ".join(draw(st.lists(classes, max_size=2)))}"'
    attributes += draw(st.sampled_from(['', ' id="main-content"', f' href="{draw(hrefs)}"', ' data-cfemail="zz0"']))
    return f'<{tag}{attributes}>{inside}' + draw(st.sampled_from([f'</{tag}>', f'</{tag}>', '', '<!-- ', '</div>']))


pages = st.one_of(st.binary(max_size=200), fragments().map(lambda s: s.encode('utf-8', 'replace')),
                  st.builds(lambda n, tag: (f'<div id="main-content" class="r-ent"><{tag} class="title">'*n).encode(),
                            st.integers(0, 3000), tags))


def index_page(ids, number='index3.html'):
    rows = ''.join(f'<div class="r-ent"><div class="title"><a href="/bbs/B/{i}.html">t</a></div></div>' for i in ids)
    wide = ''.join(f'<a class="btn wide" href="/bbs/B/{o}">x</a>' for o in ('index1.html', number, 'index5.html', ''))
    return f'<div class="btn-group-paging">{wide}</div>{rows}'.encode()


@given(pages)
@example(index_page(['M.1704040318.A.E87'], 'index' + '9'*5000 + '.html'))
@example(index_page(['M.' + '9'*5000 + '.A.E87']))
@example(b'<div id="main-content">' + b'<div><span>'*900 + b'https://i.imgur.com/AbCdEf1.jpg')
@example(b'<div class="r-ent"><div class="title">' + b'<b><i>'*900)
@example(b'<div id="main-content" class="r-ent"><b class="title">'*1000)
@example(b'<div id="main-content"><i class="push"><b class="push-content">x'*1000)
def test_any_bytes_are_a_page(body):
    with bounded():
        index, page = parse_index(body), parse_article(body)
        assert gated(body) in ('', 'gate_over18')
    assert index.reason in ('', 'no_index') and page.reason in ('', 'no_content') and isinstance(index.number, int)
    assert index.span is None or index.span[0] <= index.span[1]
    for row in index.rows:
        assert set(row) == {'id', 'title', 'author', 'date', 'nrec'}
        assert row['id'] is None or outcome(posted, row['id'])
        n = push_count(row['nrec'])
        assert n is None or -100 <= n <= 999
        assert len(category(row['title'])) <= 20
    for origin, raw in page.links:
        assert origin in ('body', 'addition', 'push') and canonical_all(raw)


@given(st.lists(st.tuples(article_ids, words, names, st.sampled_from(['', '爆', 'X3', 'XX', '7', '42'])), max_size=20),
       st.integers(1, 10**6))
def test_an_index_page_says_what_was_written(rows, number):
    made = ''.join(f'<div class="r-ent"><div class="nrec"><span>{n}</span></div><div class="title">'
                   f'<a href="/bbs/B/{i}.html">{html.escape(t)}</a></div><div class="author">{a}</div></div>'
                   for i, t, a, n in rows)
    wide = [f'index{number - 1}.html' if number > 1 else '', f'index{number + 1}.html']
    paging = ''.join(f'<a class="btn wide" href="/bbs/B/{o}">x</a>' for o in ('index1.html', *wide, 'index.html'))
    found = parse_index(f'<div class="btn-group-paging">{paging}</div>{made}'.encode())
    assert (found.reason, found.number, found.last) == ('', number, False)
    said = [(r['id'], r['title'], r['author'], r['nrec']) for r in found.rows]
    assert said == [(i, t.strip(), a, n) for i, t, a, n in rows]


@given(st.lists(st.tuples(st.sampled_from(['body', 'addition', 'push']), photo_urls(), st.sampled_from(['text', 'a'])),
                max_size=30))
def test_no_link_of_an_article_is_lost_or_doubled(links):
    parts = {o: '' for o in ('body', 'addition', 'push')}
    for origin, url, how in links:
        shown = url if how == 'text' else f'<a href="{url}" rel="nofollow">{url}</a>'
        parts[origin] += f'<div class="push"><span class="push-content">: {shown}</span></div>' if origin == 'push' \
            else f'好看 {shown} 喔\n'
    page = (f'<div id="main-content">作者 x\n{parts["body"]}--\n※ 發信站: 批踢踢實業坊(ptt.cc)\n{parts["addition"]}'
            f'{parts["push"]}</div>').encode()
    want = [(o, url) for o in parts for p, url, _ in links if p == o]
    assert list(parse_article(page).links) == want


# ---- addresses

@given(st.one_of(texts, long_texts))
def test_any_text_gives_files_or_reasons(text):
    with bounded():
        raws = split_urls(text)
        for raw in [text, *raws]:
            for file, reason in canonical_all(raw):
                assert bool(file) != bool(reason)
                assert not file or file.startswith('https://') and file.isascii() and canonical(file) == (file, '')
    assert all(re.match('https?://', o, re.I) for o in raws)


@given(st.lists(photo_urls(), max_size=8), st.lists(st.sampled_from(
    ['看', '\n', ' ', '，', '[img]{}[/img]', '<{}>', '({})', '「{}」', '正妹{}正妹']), min_size=8, max_size=8))
def test_addresses_in_a_text_are_found_once_and_in_order(urls, around):
    text = ' '.join(a.format(u) if '{}' in a else a + u + '\n' for u, a in zip(urls, around))
    found = [o for raw in split_urls(text) for o in canonical_all(raw)]
    assert found == [(u, '') for u in urls]


# ---- HTTP

digits = st.one_of(st.integers(), st.floats(), st.integers(0, 10**5000)).map(lambda x: repr_of(x))


def repr_of(x):
    return f'{x:x}' if isinstance(x, int) and x > 10**4000 else str(x)


dates = st.datetimes().map(lambda t: f'{t:%a, %d %b} {t.year:04d} {t:%H:%M:%S}')
header_values = st.one_of(
    digits, texts, st.text('0123456789', max_size=6000), st.builds('{} {}'.format, dates, st.sampled_from(
        ['GMT', '-0000', '+0800', '+9999', '-9999', '', 'X', '+99999999999999999999'])))


@given(header_values)
@example('Mon, 01 Jan 0001 00:00:00 -0000')
@example('Mon, 01 Jan 0001 00:00:00 +2300')
@example('Mon, 01 Jan 2024 00:00:00 +' + '9'*30)
@example('nan')
@example('9'*5000)
def test_retry_after_is_seconds_or_nothing(value):
    with bounded():
        wait = _wait(Answer('https://x.com/', headers={'retry-after': value}))
    assert wait is None or wait >= 0


@given(st.one_of(header_values, st.lists(st.integers(0, 10**9).map(str), min_size=1, max_size=3).map(', '.join)),
       st.integers(0, 10**9), texts)
@example('9'*5000, 10, '')
@example('²', 10, '')
def test_content_length_is_believed_or_refused(length, cap, encoding):
    reason = _head_reason({'content-length': length, 'content-encoding': encoding}, cap, {'Accept-Encoding': 'gzip'})
    assert reason in ('', 'bad_length', 'too_large', 'bad_encoding')
    if re.fullmatch('[0-9]{1,99}', length):
        assert (reason == 'too_large') == (int(length) > cap)


hosts = st.one_of(st.ip_addresses().map(lambda a: f'[{a}]' if a.version == 6 else str(a)),
                  st.sampled_from(['localhost', '127.0.0.1', '10.0.0.1', '[::1]', 'example.com', '0', '①']))
places = st.one_of(texts, st.builds('{}://{}{}/{}'.format, st.sampled_from(['http', 'https', 'file', 'ftp', 'HTTP']),
                                    hosts, st.sampled_from(['', ':80', ':22', ':x', ':99999999']), names))
answers = st.tuples(st.integers(100, 599), st.dictionaries(
    st.sampled_from(['location', 'Retry-After', 'Content-Length', 'Content-Encoding', 'Content-Type', 'X-Robots-Tag']),
    st.one_of(places, header_values), max_size=4), st.binary(max_size=50))


class Reply(SimpleNamespace):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class FakeSession:
    "Answers in turn, and knows what it was asked."
    def __init__(self, answers):
        self.answers, self.asked, self.cookies = list(answers), [], ()

    def get(self, url, **_):
        self.asked.append(url)
        status, headers, body = self.answers[(len(self.asked) - 1) % len(self.answers)]
        raw = SimpleNamespace(stream=lambda *_, **__: iter([body]))
        return Reply(status_code=status, headers=headers, raw=raw, request=SimpleNamespace(headers={}))

    def close(self):
        pass


@given(places, st.lists(answers, min_size=1, max_size=4))
@example('https://x.com/a', [(302, {'location': 'http://127.0.0.1/'}, b'')])
@example('https://x.com/a', [(302, {'location': 'http://[::ffff:10.0.0.1]/'}, b'')])
@example('https://x.com/a', [(302, {'location': 'file:///etc/passwd'}, b'')])
def test_whatever_servers_say_there_is_an_answer_and_nothing_leads_inside(url, replies):
    session = FakeSession(replies)
    with bounded(), Client(session=session, retries=1, backoff=0, patience=0) as client:
        a = client.get(url)
    assert len(session.asked) <= 2*(client.redirects + 1)
    assert not a.ok or a.body and a.status < 300
    for where in session.asked:
        host = re.match(r'https?://(?:\[([^\]]*)\]|([^/:?#]*))', where, re.I)
        assert host
        try:
            inside = not public(host[1] or host[2])
        except ValueError:
            inside = host[2] == 'localhost'
        assert not inside


@given(st.ip_addresses())
def test_an_address_is_as_public_as_the_one_within_it(ip):
    if ip.version == 6:
        assert not (public(str(ip)) and (ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast))
        return
    assert public(str(ip)) == (ip.is_global and not ip.is_multicast)
    n = int(ip)
    for outer in (0xffff << 32 | n, 0x64ff9b << 96 | n):
        assert public(str(ipaddress.IPv6Address(outer))) == public(str(ip))
    if not ip.is_global:
        assert not public(str(ipaddress.IPv6Address(0x2002 << 112 | n << 80)))


robots_fields = ['User-agent:', 'user-agent :', 'Disallow:', 'Allow:', 'Crawl-delay:', 'Request-rate:', 'Sitemap:']
robots_values = ['', ' ', ' *', ' pttface', ' pttface/0.1', ' /', ' 1/', ' 1.2.3/4', ' ./.', ' 1/0', ' 0/1', ' inf',
                 ' nan', ' -1']
robots_lines = st.one_of(texts, st.builds('{}{}{}'.format, st.sampled_from(robots_fields),
                                          st.sampled_from(robots_values), texts))
robots_files = st.one_of(st.binary(max_size=200),
                         st.lists(robots_lines, max_size=12).map(lambda o: '\n'.join(o).encode()))


@given(robots_files, texts, st.sampled_from([200, 200, 200, 404, 503, 0]))
@example(b'User-agent: *\nRequest-rate: 1.2.3/4', '', 200)
@example(b'User-agent: *\nRequest-rate: ./.', '', 200)
@example(b'User-agent: *\nCrawl-delay: nan', '', 200)
@example(b'User-agent: *\nCrawl-delay: inf', '', 200)
@example(b'', 'A://[]', 200)
def test_any_robots_txt_is_obeyed_or_passed_over(body, path, status):
    with bounded():
        robots = Robots(body, status)
        assert robots.allows(path) in (True, False)
        assert 0 <= robots.delay < math.inf


@given(st.lists(names, min_size=1, max_size=4), st.lists(texts.map(lambda t: '# ' + re.sub(r'\s', ' ', t)), max_size=4),
       st.sampled_from(['*', 'pttface', 'PTTFACE', 'pttface/0.1']), st.sampled_from(['\n', '\r\n']))
def test_what_robots_txt_forbids_is_not_asked_for(paths, remarks, robot, end):
    lines = [*remarks, f'User-agent: {robot}', *(f'Disallow: /{p}/' for p in paths), *remarks]
    robots = Robots(end.join(lines).encode())
    assert not any(robots.allows(f'/{p}/a.jpg') for p in paths) and robots.allows('/~else')


@given(st.lists(st.one_of(texts, st.sampled_from(['googlebot: nofollow', 'max-snippet: 5', 'all'])), max_size=4),
       st.sampled_from(['noai', 'NoImageAI', ' noindex ', 'NONE']))
def test_a_tag_for_us_keeps_us_out(rules, tag):
    assert tagged({'x-robots-tag': ', '.join(rules)}) in (True, False)
    assert tagged({'x-robots-tag': ', '.join([*rules, f'pttface: {tag}'])})


# ---- opt-out lists

@given(st.one_of(st.binary(max_size=300), st.lists(st.one_of(texts, long_texts), max_size=5).map(
    lambda o: '\n'.join(o).encode('utf-8', 'replace'))), st.lists(records, max_size=4))
@example(b'', [b'[]'])
@example(b'', [b'{"sha256": 3}'])
@example(b'', [b'{"sha256": "ab", "phash": "xyz"}'])
@example(b'', [b'{"sha256": ["ab"]}'])
def test_any_list_can_be_read(body, rows):
    with folder() as d:
        (d/'optout.txt').write_bytes(body)
        (d/'optout_hashes.jsonl').write_bytes(b'\n'.join(rows))
        with bounded():
            out = read_optout(d)
            row = dict(url='https://i.imgur.com/AbCdEf1.jpg', phash='c3a59966c3a59966')
            assert opted_out(row, out) in (True, False)
        assert isinstance(out.warning(), str) and list(out) == sorted(out.words)


def wide(text):
    "In the full-width letters of an Asian keyboard"
    return ''.join(chr(ord(c) + 0xfee0) if '!' <= c <= '~' else c for c in text)


SPELL = [
    str, lambda u: u.replace('https://', 'http://'), lambda u: u.replace('https://', ''),
    lambda u: u.replace('https:', ''), lambda u: u.replace('https://', 'HTTPS://'), wide,
    lambda u: u.replace('/', '\\'), lambda u: quote(u, safe=''),
    lambda u: re.sub(r'^https://([^/]*)', lambda m: m[0].upper(), u), lambda u: u + '?size=large', lambda u: u + '#x',
    lambda u: re.sub(r'\.(jpg|png|webp|gif)$', '.jpeg', u), lambda u: re.sub(r'\.(jpg|png|webp|gif)$', '', u)]
WRAP = ['{}', '"{}"', '<{}>', '「{}」', '[img]{}[/img]', '[me]({})', '照片：{}', '{} # mine', '請刪除 {} 謝謝', '1. {}',
        '{},', '{}\u200b', '\ufeff{}', '  {}\t', '<a href="{}">x</a>', '{};', '（{}）', '- {}']
CODES = ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp950']


@given(photo_urls(), st.sampled_from(SPELL), st.sampled_from(WRAP), st.sampled_from(CODES), imgur_ids,
       st.sampled_from(['\n', '\r\n']))
@example('https://a.example.com/0/0.jpg', SPELL[2], '[img]{}[/img]', 'utf-8', '0000000', '\n')
def test_an_opted_out_photo_is_known_in_any_spelling(url, spell, wrap, code, other, end):
    line = wrap.format(spell(url))
    assume(line.encode(code, 'ignore').decode(code) in (line, line.lstrip('\ufeff')))
    another = f'https://i.imgur.com/{other}.jpg'
    with folder() as d:
        (d/'optout.txt').write_bytes(f'# list{end}{line}{end}'.encode(code, 'ignore'))
        out = read_optout(d)
    assert url in out and opted_out(dict(url=url), out)
    assert another == url or another not in out


def test_no_spelling_within_no_wrapping_is_missed():
    urls = 'https://a.example.com/-a/_0.webp', 'https://i.imgur.com/AbCdEf1.jpg'
    lines = [(u, wrap.format(spell(u))) for u in urls for spell in SPELL for wrap in WRAP]
    article = 'https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html'
    lines += [(article, wrap.format(spell(article))) for spell in SPELL[:-4] for wrap in WRAP]
    assert [(u, line) for u, line in lines if u not in OptOut(line)] == [] and len(lines) > 600


@given(article_ids, st.sampled_from(SPELL[:-4]), st.sampled_from(WRAP), st.sampled_from(['url', 'id', 'aid']),
       article_ids)
def test_an_opted_out_article_is_known_in_any_spelling(id, spell, wrap, how, other):
    url = f'https://www.ptt.cc/bbs/Beauty/{id}.html'
    if how == 'aid':
        n = int(id.split('.')[1]) << 12 | int(id[-3:], 16)
        written = '#' + ''.join(DIGITS64[n >> 6*i & 63] for i in reversed(range(8)))
    else:
        written = spell(url) if how == 'url' else id
    out = OptOut(wrap.format(written))
    assert url in out and opted_out(dict(article=url), out)
    assert other == id or f'https://www.ptt.cc/bbs/Beauty/{other}.html' not in out


@given(st.one_of(texts, long_texts), st.integers(0, 150), st.integers(1990, 2100))
def test_any_title_is_judged(title, age, year):
    with bounded():
        assert why_young(title, age, year) == '' or age >= 0
    assert why_young(f'[正妹] 16歲 {title}', 20, 2024)


# ---- settings and records

VALUES = {'int': st.integers(1, 10**6), 'float': st.floats(allow_nan=False, allow_infinity=False),
          'bool': st.booleans(), 'str': words, 'tuple': st.lists(words, max_size=3).map(tuple),
          'dict': st.dictionaries(names, st.one_of(
              st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers(), max_size=3).map(tuple)),
              max_size=3)}


def any_of(cls, **first):
    "Settings of a class, each field any value of its type."
    kind = {f.name: getattr(f.type, '__name__', f.type) for f in fields(cls)}
    return st.builds(cls, **{k: VALUES[v] for k, v in kind.items()} | first)


@given(st.one_of(*map(any_of, (CrawlSettings, DownloadSettings, FaceSettings, PackSettings))))
def test_settings_are_read_back_equal(s):
    with folder() as d:
        write_json(d/'a.json', dict(settings=s))
        assert same_settings(d/'a.json', s) and same_settings(d/'a.json', asdict(s))
        field, value = fields(s)[0].name, getattr(s, fields(s)[0].name)
        other = replace(s, **{field: not value if isinstance(value, bool) else -1 if value != -1 else -2})
        assert isinstance(outcome(same_settings, d/'a.json', other), BadInput)
        assert same_settings(d/'a.json', other, force=True) is False


@given(records)
@example(b'[]')
@example(b'{"settings": []}')
@example(b'{"settings": {"\\n": false}}')
@example(b'[' + b'9'*5000 + b']')
@example(b'['*100_000)
def test_any_record_is_compared_or_named(body):
    with folder() as d:
        (d/'a.json').write_bytes(body)
        assert isinstance(outcome(same_settings, d/'a.json', PackSettings()), (bool, BadInput))
        outcome(read_json, d/'a.json')
        outcome(read_jsonl, d/'a.json')
        assert all(isinstance(o, (dict, list, str, int, float, type(None))) for o in
                   read_jsonl(d/'a.json', skip_damaged=True))


@given(any_of(Recipe))
def test_a_recipe_is_read_back_equal(r):
    usual, idle = Recipe('any'), []  # What decides nothing without labels, or without levels, is not recorded then
    idle += [] if r.labels else ['label_dropout', 'label_guidance']
    idle += [] if r.levels else ['method']
    idle += [] if r.levels and r.method == 'consistency' else ['doublings', 'targets']
    want = replace(r, **{k: getattr(usual, k) for k in idle})
    assert read_recipe(json.loads(json.dumps(recipe_record(r)))) == want


@given(st.one_of(texts, st.builds('{} {}'.format, digits,
                                  st.sampled_from(['h', 'm', 's', 'images', 'k images', 'epochs']))))
@example('9'*400 + 'h')
@example('.' + '0'*400 + '1s')
def test_a_budget_ends(text):
    budget = outcome(Budget.parse, text)
    if isinstance(budget, Budget):
        assert 0 < budget.amount < math.inf and budget.spent(10**30, 1e300, 1) >= 1


rows = st.dictionaries(names, st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=8)


@given(rows, st.one_of(records, st.lists(records, max_size=4).map(b'\n'.join)))
@example({'a': {}}, b'{"key": []}\n')
@example({'a': {}}, b'{"key": {}}')
@example({'a': {}}, b'['*100_000 + b'\n')
@example({'a': {'x': '\ud800'}}, b'')
def test_a_ledger_keeps_every_row_whatever_was_there(rows, before):
    with folder() as d:
        (d/'l.jsonl').write_bytes(before)
        with Ledger(d/'l.jsonl') as ledger:
            for k, r in rows.items():
                ledger.append(dict(r, key=k))
        again = Ledger(d/'l.jsonl')
        assert all(json.dumps(again[k]) == json.dumps(dict(r, key=k)) for k, r in rows.items())
        again.compact()
        compacted = Ledger(d/'l.jsonl')
        assert json.dumps(compacted.rows) == json.dumps(again.rows)
        assert len(read_jsonl(d/'l.jsonl')) == len(again)


# ---- archives and arrays

def picture(i):
    return cv2.imencode('.png', np.full((8 + i % 3, 9, 3), (i, i*7 % 256, 40), np.uint8))[1].tobytes()


PNG = [picture(i) for i in range(12)]


@given(st.dictionaries(names, st.dictionaries(
    st.sampled_from(['jpg', 'json', 'txt']), st.binary(max_size=40), min_size=1), max_size=6))
def test_a_shard_gives_back_what_went_in(samples):
    with folder() as d:
        assert write_tar(d/'a.tar', samples.items()) == len(samples)
        assert list(read_tar(d/'a.tar')) == list(samples.items())


def tar_of(files, mode='w'):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        for name, body in files:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            t.addfile(info, io.BytesIO(body))
    return out.getvalue()


def zip_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, body in files:
            z.writestr(name, body)
    return out.getvalue()


def lying_zip():
    "A zip that says its member holds 4 GB."
    body = bytearray(zip_of([('a.png', PNG[0])]))
    at = body.rindex(b'PK\x01\x02')
    body[at + 24:at + 28] = b'\xff\xff\xff\xfe'
    return bytes(body)


ARCHIVES = {'a.tar': tar_of([(f'f/{i}.png', PNG[i]) for i in range(3)]),
            'a.tar.gz': tar_of([(f'f/{i}.png', PNG[i]) for i in range(3)], 'w:gz'),
            'a.tar.xz': tar_of([(f'f/{i}.png', PNG[i]) for i in range(3)], 'w:xz'),
            'a.zip': zip_of([(f'f/{i}.png', PNG[i]) for i in range(3)])}


@given(st.sampled_from(sorted(ARCHIVES)).flatmap(lambda k: st.tuples(st.just(k), mutated(ARCHIVES[k]))))
@example(('a.zip', lying_zip()))
@example(('a.tar', b''))
@example(('a.tar', ARCHIVES['a.tar.xz'][:-9] + bytes(9)))
def test_a_damaged_archive_gives_pictures_or_one_sentence(made):
    name, body = made
    with folder() as d:
        (d/name).write_bytes(body)
        data = outcome(FaceData.from_folder, d/name, size=8)
        if not isinstance(data, BadInput):
            assert data.images.shape[1:] == (8, 8, 3) and 1 <= len(data) <= 3
        if name.endswith('tar'):
            got = outcome(lambda: list(read_tar(d/name)))
            assert isinstance(got, BadInput) or len(got) <= 3


@given(st.lists(st.tuples(st.lists(names, min_size=1, max_size=3).map('/'.join), st.one_of(
    st.sampled_from(PNG), st.binary(max_size=20))), max_size=12, unique_by=lambda o: o[0]),
    st.sampled_from(['tar', 'tar.gz', 'zip']))
def test_every_file_of_an_archive_is_counted_once(files, form):
    with folder() as d:
        path = d/f'a.{form}'
        path.write_bytes(zip_of(files) if form == 'zip' else tar_of(files, 'w:gz' if form == 'tar.gz' else 'w'))
        data = outcome(FaceData.from_folder, path, size=8, heldout=.5)
    good = {b for _, b in files if b in PNG}
    if not good:
        assert isinstance(data, BadInput)
        return
    found = data.card['found']
    assert sorted(data.sha256) == sorted(hashlib.sha256(b).hexdigest() for b in good)
    others = sum(v for k, v in found.items() if k not in ('files', 'enlarged'))
    assert others + len(good) == found['files'] == len(files)


def npz_of(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy_of(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


IMAGES = np.arange(3*8*8*3, dtype=np.uint8).reshape(3, 8, 8, 3)


@given(st.one_of(mutated(npz_of(images=IMAGES)).map(lambda b: ('a.npz', b)), mutated(npy_of(IMAGES)).map(
    lambda b: ('a.npy', b)), st.binary(max_size=40).map(lambda b: ('a.npy', b))))
@example(('a.npy', npy_of(IMAGES).replace(b'(3, 8, 8, 3)', b'(3, 8, 8, 3' + b'9'*12 + b')')))
@example(('a.npy', b'\x93NUMPY\x01\x00v\x00' + b"{'descr': '|u1', 'fortran_order': False, 'shape': (9"
          b'99999999999,), }'.ljust(117) + b'\n'))
def test_a_damaged_array_gives_pictures_or_one_sentence(made):
    name, body = made
    with folder() as d:
        (d/name).write_bytes(body)
        data = outcome(FaceData.from_npz, d/name)
        assert isinstance(data, BadInput) or data.images.dtype == np.uint8 and len(data)
        if name == 'a.npz':
            outcome(read_npz, d/name)


kinds = st.one_of(stn.integer_dtypes(), stn.floating_dtypes(), stn.boolean_dtypes(),
                  stn.unicode_string_dtypes(max_len=2), st.just(np.dtype('u1')))


@given(stn.arrays(kinds, stn.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)),
       st.sampled_from(['.npz', '.npy']))
@example(np.zeros((0, 8, 8, 3), np.uint8), '.npy')
@example(np.zeros((3, 0, 5, 3), np.uint8), '.npz')
def test_any_array_is_pictures_or_one_sentence(array, form):
    with folder() as d:
        (d/f'a{form}').write_bytes(npy_of(array) if form == '.npy' else npz_of(images=array))
        data = outcome(FaceData.from_npz, d/f'a{form}')
    if not isinstance(data, BadInput):
        side = min(array.shape[1:3])
        assert data.images.shape == (len(array), side, side, data.images.shape[3]) and data.images.dtype == np.uint8
        assert len(data.train) + len(data.heldout) == len(array) > 0


@given(st.dictionaries(st.text('abcxyz', min_size=1, max_size=5), stn.arrays(st.one_of(
    stn.integer_dtypes(), stn.floating_dtypes()), stn.array_shapes(max_side=4)), max_size=4))
def test_arrays_are_read_back_equal(arrays):
    with folder() as d:
        write_npz(d/'a.npz', **arrays)
        found = read_npz(d/'a.npz')
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k], v, equal_nan=v.dtype.kind == 'f') for k, v in arrays.items())


PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
PHOTOS = [cv2.imencode(f'.{o}', PHOTO)[1].tobytes() for o in ('jpg', 'png', 'webp', 'bmp')]


@given(st.one_of(st.binary(max_size=60), *map(mutated, PHOTOS)))
def test_any_bytes_are_a_photo_or_a_reason(body):
    with bounded():
        try:
            pixels, form = decode(body, max_pixels=10**6)
        except Unusable as e:
            assert re.fullmatch('[a-z0-9_]+', str(e))
            return
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.size <= 3*10**6


# ---- runs

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "Bytes of a checkpoint, and its manifest."
    path = tmp_path_factory.mktemp('run')
    record = dict(settings=recipe_record(RECIPES['tiny']), hash='0'*16)
    file = Checkpoints(path).save(dict(step=3, ema=[[torch.arange(4.)]], record=record, best=None), 3)
    return file.read_bytes(), (path/'checkpoints.json').read_bytes()


files = st.sampled_from(['checkpoint-00000003.pt', '../x', '/', '', '.', '\0', 'checkpoint-9.pt'])
manifests = st.one_of(records, st.lists(st.fixed_dictionaries(
    {}, optional=dict(file=st.one_of(files, st.text(max_size=5)),
                      step=st.one_of(st.integers(), st.booleans(), st.text(max_size=2)), sha256=st.text(max_size=5),
                      score=json_values)), max_size=3).map(lambda o: json.dumps(o).encode()))


@given(manifests)
@example(b'[{"file": ".", "step": 9, "sha256": ""}]')
@example(b'[{"file": "\\u0000", "step": 9, "sha256": ""}]')
@example(b'['*100_000)
@example(b'[{"file": "checkpoint-00000003.pt", "step": 1, "sha256": "", "score": "a"}]')
def test_a_checkpoint_is_found_whatever_its_manifest_says(checkpoint, manifest):
    with folder() as d:
        (d/'checkpoint-00000003.pt').write_bytes(checkpoint[0])
        (d/'checkpoints.json').write_bytes(manifest)
        with bounded():
            state, row = Checkpoints(d).load()
            assert state['step'] == 3 and torch.equal(state['ema'][0][0], torch.arange(4.))
            saved = Checkpoints(d).save(state, 4)
            assert saved.exists() and Checkpoints(d).load()[1]['step'] == 4


@given(records)
@example(b'{"settings": {"size": []}}')
def test_a_record_is_found_in_the_checkpoint(checkpoint, record):
    with folder() as d:
        (d/'checkpoint-00000003.pt').write_bytes(checkpoint[0])
        (d/'recipe.json').write_bytes(record)
        run = TrainingRun(d)
        got = outcome(lambda: run.recipe)
        assert isinstance(got, Recipe)


@settings(max_examples=max(many//4, 15))
@given(st.data(), st.booleans())
def test_a_damaged_checkpoint_is_passed_over(checkpoint, data, named):
    body = data.draw(mutated(checkpoint[0]))
    with folder() as d:
        (d/'checkpoint-00000003.pt').write_bytes(body)
        if named:
            (d/'checkpoints.json').write_bytes(checkpoint[1])
        with bounded():
            found = Checkpoints(d).load()
        assert found is None or torch.equal(found[0]['ema'][0][0], torch.arange(4.))


# ---- numbers

anything = st.one_of(
    st.integers(), st.integers(-2**2000, 2**2000), st.floats(), st.booleans(), st.none(), st.text(max_size=5),
    st.binary(max_size=5), st.complex_numbers(), st.decimals(), st.fractions(), st.lists(st.integers(), max_size=2),
    stn.arrays(st.one_of(stn.floating_dtypes(), stn.integer_dtypes()),
               stn.array_shapes(max_dims=1, max_side=2, min_side=0)),
    stn.from_dtype(np.dtype('f4')), stn.from_dtype(np.dtype('i8')))


@given(st.sampled_from(sorted(LIMITS)), anything)
@example('share', b'1')
@example('n', 10**5000)
def test_a_number_is_within_its_limits_or_named(name, x):
    got = outcome(check_number, name, x)
    if got is None:
        assert math.isfinite(x) and LIMITS[name].allow(x) and not isinstance(x, (bool, str, bytes))
        assert not LIMITS[name].whole or x == int(x)
    else:
        assert name in str(got)


@given(st.sampled_from(sorted(LIMITS)), st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_what_the_limits_allow_is_taken(name, x):
    limits = LIMITS[name]
    x = int(x) if limits.whole else x
    assert (outcome(check_number, name, x) is None) == limits.allow(x)
    assert isinstance(limits, Limits) and str(limits)
