"Whom the pipeline leaves alone: every way of writing a thing, every encoding, twins, titles, robots.txt and tags."

import csv
from pathlib import Path

import pytest

from pttface.policy import (
    NO_AGE_SCREEN,
    OptOut,
    Robots,
    age_screen,
    article_codes,
    left_out,
    named_by,
    opted_out,
    read_optout,
    remember_addresses,
    remember_optout,
    tagged,
    why_young,
    young,
)

PHOTO = 'https://i.imgur.com/AbCdEf1.jpg'
ARTICLE = 'https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html'
SHA = 'abcdef0123456789' * 4
top = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    'written',
    [
        'https://i.imgur.com/AbCdEf1.jpg',
        'http://i.imgur.com/AbCdEf1.jpg',
        'i.imgur.com/AbCdEf1.jpg',
        '//i.imgur.com/AbCdEf1.jpg',
        'https://imgur.com/AbCdEf1',
        'http://www.imgur.com/AbCdEf1',
        'https://m.imgur.com/AbCdEf1',
        'imgur.com/AbCdEf1.png',
        'https://i.imgur.com/AbCdEf1l.jpg',
        'https://i.imgur.com/AbCdEf1.jpeg?1',
        'https://i.imgur.com/AbCdEf1.jpg#me',
        '"https://i.imgur.com/AbCdEf1.jpg"',
        '<https://i.imgur.com/AbCdEf1.jpg>',
        'HTTPS://I.IMGUR.COM/AbCdEf1.jpg',
        '「https://i.imgur.com/AbCdEf1.jpg」',
        'https://i.imgur.com/AbCdEf1.jpg,',
        'https://i.imgur.com/AbCdEf1.jpg\t# mine',
        'https://i.imgur.com/AbCdEf1.jpg   # mine',
        '  https://i.imgur.com/AbCdEf1.webp  ',
        'please remove https://imgur.com/AbCdEf1 thank you',
        SHA.upper(),
        'sha256:' + SHA,
    ],
)
def test_any_spelling_of_a_photo(written):
    out = OptOut(written)
    assert out.unknown == [] and opted_out(dict(url=PHOTO, sha256=SHA), out)
    assert not opted_out(dict(url='https://i.imgur.com/aBcDeF1.jpg', sha256='0' * 64), out)


@pytest.mark.parametrize(
    'written',
    [
        ARTICLE,
        ARTICLE.replace('https', 'http'),
        ARTICLE.replace('www.', ''),
        ARTICLE.replace('Beauty', 'beauty'),
        ARTICLE.replace('Beauty', 'BEAUTY') + '?x=1',
        ARTICLE + '#end',
        'M.1704040318.A.E87',
        'm.1704040318.a.e87',
        'M.1704040318.A.E87.html',
        f"'{ARTICLE}'",
        'www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html',
    ],
)
def test_any_spelling_of_an_article(written):
    out = OptOut(written)
    assert ARTICLE in out and opted_out(dict(url=PHOTO, article=ARTICLE), out)
    assert opted_out(dict(url=PHOTO, articles=['https://www.ptt.cc/bbs/Beauty/M.1700000000.A.000.html', ARTICLE]), out)
    assert ARTICLE.replace('E87', 'E88') not in out


@pytest.mark.parametrize(
    'url, written',
    [
        ('https://i.meee.com.tw/abc.jpg', 'http://i.meee.com.tw/abc.png?size=l'),
        ('https://pbs.twimg.com/media/Fabc_-1?format=jpg&name=orig', 'https://pbs.twimg.com/media/Fabc_-1.jpg:large'),
        ('https://example.com/%E6%AD%A3.jpg', 'https://www.example.com/正.jpg'),
        ('https://i.ibb.co/q1/head.jpg', 'i.ibb.co/q1/head.jpg'),
    ],
)
def test_spellings_on_other_hosts(url, written):
    assert named_by(url) == named_by(written) and url in OptOut(written)


@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp950'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_encodings(tmp_path, code, end):
    (tmp_path / 'optout.txt').write_bytes(f'# 請勿使用{end}{PHOTO}  # 本人{end}{ARTICLE}{end}'.encode(code))
    out = read_optout(tmp_path)
    assert PHOTO in out and ARTICLE in out and out.unknown == []


def test_lines_that_name_nothing_are_reported_with_their_numbers(tmp_path, caplog):
    (tmp_path / 'optout.txt').write_text(
        f'{PHOTO}\nthe girl in red\n\n# remark\nhttps://www.ptt.cc/bbs/Beauty/index.html\n'
    )
    out = read_optout(tmp_path)
    assert [n for n, _ in out.unknown] == [2, 5]
    assert 'line 2' in caplog.text and 'line 5' in caplog.text
    assert not read_optout(tmp_path / 'nowhere') and read_optout(tmp_path / 'nowhere').warning() == ''


def test_twins_stay_out_for_good(tmp_path):
    out = OptOut(PHOTO)
    gone = dict(url=PHOTO, sha256=SHA, phash='c3a59966c3a59966')
    assert remember_optout(tmp_path, out, [gone, gone]) == 1 and remember_optout(tmp_path, out, [gone]) == 0
    equal, near, far = (
        dict(sha256=SHA),
        dict(sha256='0' * 64, phash='c3a59966c3a5996f'),
        dict(sha256='1' * 64, phash='3c5a669966c3a599'),
    )
    for o in (out, read_optout(tmp_path)):  # the list itself is gone: the hashes alone remain
        assert [opted_out(r, o) for r in (equal, near, far)] == [True, True, False]
    assert 'imgur' not in (tmp_path / 'optout_hashes.jsonl').read_text()


def test_titles_that_we_labelled():
    rows = list(csv.DictReader((top / 'nbs/titles.tsv').open(encoding='utf-8'), delimiter='\t'))
    wrong = [r['title'] for r in rows if young(r['title'], year=2024) != (r['young'] == '1')]
    assert len(rows) >= 300 and wrong == []


@pytest.mark.parametrize(
    'title',
    [
        '[正妹] 高一16歲',
        '[正妹] 十 六 歲'.replace(' ', ''),
        '[正妹] 19 歲',
        '[正妹] 滿18歲',
        '[正妹] 18y女大',
        '[正妹] 18歲混血',
        '[正妹] 景美國小',
        '[正妹] 明德國中',
        '[正妹] 升高中的暑假',
        '[正妹] 國三妹',
        '[正妹] 女高生',
        '[正妹] u17國手',
        '[正妹] 国高中生',
        '[正妹] 私立復興女中',
        '[正妹] 板橋高中',
        '[正妹] 内湖高工',
        '[正妹] 成功高中',
        '[正妹] 泰山高職',
        '[正妹] 18 years old',
    ],
)
def test_titles_that_name_minors(title):
    assert why_young(title)


@pytest.mark.parametrize(
    'title',
    [
        '[正妹] 可愛韓國小女生',
        '[正妹] 最高一級',
        '[正妹] 韓國二線女星',
        '[正妹] 美國三大選美',
        '[正妹] 身高一七二',
        '[正妹] 一百二十歲人瑞',
        '[正妹] 2018歲末',
        '[正妹] KTV女公關',
        '[正妹] 23歲但像高中生',
        '[正妹] 芳齡２０',
        '[正妹] 提升高中低音',
        '[正妹] 泰國一哥',
        '[正妹] 女中醫師',
    ],
)
def test_titles_that_name_none(title):
    assert why_young(title) == ''


def test_years_of_birth_need_the_year_of_the_article():
    assert young('[正妹] 民國95年次', year=2024) and young('[正妹] 2008年生', year=2024)
    assert (
        not young('[正妹] 民國95年次', year=2027)
        and not young('[正妹] 89年次', year=2024)
        and not young('[正妹] 2008年生')
    )
    assert left_out('[正妹] 06年次', year=2024) == 'young' and left_out('[正妹] 06年次', min_age=0, year=2024) == ''


@pytest.mark.parametrize(
    'body, path, may',
    [
        (b'\xef\xbb\xbfUser-agent: *\nDisallow: /bbs/\n', '/bbs/Beauty/index.html', False),
        (b'User-agent: *\nDisallow: /bbs/*\n', '/bbs/Beauty/index.html', False),
        (b'User-agent: *\n\nDisallow: /bbs/\n', '/bbs/x', False),
        (b'User-agent: *\nDisallow: /bbs/\nAllow: /bbs/Beauty/\n', '/bbs/Beauty/i', True),
        (b'User-agent: *\nAllow: /bbs/\nDisallow: /bbs/Beauty\n', '/bbs/Beauty/i', False),
        (
            b'User-agent: pttface\nDisallow: /a\n\nUser-agent: *\nDisallow: /\n\nUser-agent: PTTFace\nDisallow: /b\n',
            '/b',
            False,
        ),
        (
            b'User-agent: pttface\nDisallow: /a\n\nUser-agent: *\nDisallow: /\n\nUser-agent: PTTFace\nDisallow: /b\n',
            '/c',
            True,
        ),
        (b'User-agent: pttface/0.1\nDisallow: /c\nUser-agent: *\nAllow: /\n', '/c', False),
        (b'User-agent: *\nDisallow: /*.jpg$\n', '/x/a.jpg', False),
        (b'User-agent: *\nDisallow: /*.jpg$\n', '/x/a.jpg?x', True),
        (b'User-agent: *\rDisallow: /bbs/\r', '/bbs/x', False),
        (b'User-agent: *\nDisallow:\n', '/bbs/x', True),
    ],
)
def test_robots(body, path, may):
    assert Robots(body).allows(path) == may


@pytest.mark.parametrize(
    'body, delay',
    [
        (b'User-agent: *\nCrawl-delay: 2.5\n', 2.5),
        (b'User-agent: *\nCrawl-delay: .5\n', 0.5),
        (b'User-agent: *\nRequest-rate: 1/2.5\n', 2.5),
        (b'User-agent: *\nRequest-rate: 10/1m\n', 6),
        (b'User-agent: *\nRequest-rate: 0.5/1\n', 2),
        (b'User-agent: *\nAllow: /\n', 0),
        (b'User-agent: *\nCrawl-delay: 1\nRequest-rate: 1/3\n', 3),
        (b'User-agent: x\nCrawl-delay: 9\n\nUser-agent: *\nCrawl-delay: 1\n', 1),
    ],
)
def test_the_pace_that_robots_ask_for(body, delay):
    assert Robots(body).delay == delay


@pytest.mark.parametrize(
    'status, may', [(404, True), (403, True), (410, True), (500, False), (503, False), (0, False)]
)
def test_robots_that_cannot_be_read(status, may):
    assert Robots(status=status).allows('/bbs/Beauty/index.html') == may


@pytest.mark.parametrize(
    'tag, out',
    [
        ('noai', True),
        ('pttface: noai', True),
        ('PTTFACE: NoImageAI', True),
        ('*: noindex', True),
        ('googlebot: noindex, noai', False),
        ('googlebot: noindex, pttface: noimageai', True),
        ('max-image-preview: large, noai', True),
        ('unavailable_after: 25 Jun 2030, none', True),
        ('googlebot: nofollow', False),
        ('nofollow', False),
        ('', False),
    ],
)
def test_tags_belong_to_the_robot_named_before_them(tag, out):
    assert tagged({'x-robots-tag': tag}) == out


@pytest.mark.parametrize('look, twin', [
    ('c3a59966c3a59966', True), ('c3a59966c3a59f66', True), ('96f0cc3396f0cc33', True),  # mirrored
    ('96f0cc3396f0cc30', True), ('3c5a669966c3a599', False)])
def test_what_looks_like_an_opted_out_photo(look, twin):
    out = OptOut('', [dict(sha256=SHA, phash='c3a59966c3a59966')])
    assert out.is_twin('0' * 64, look) == twin


@pytest.mark.parametrize('blank', ['8000000000000000', '0000000000000000', 'ffffffffffffffff', 'ffdfffffffffffff'])
def test_a_blank_photo_that_is_opted_out_takes_no_other_along(blank):
    out = OptOut('', [dict(sha256=SHA, phash=blank)])
    assert out.is_twin(SHA, blank) and not out.is_twin('0' * 64, blank)


def test_addresses_are_remembered_without_being_written(tmp_path):
    out = OptOut(ARTICLE)
    shown = [PHOTO, 'https://pbs.twimg.com/media/Fabc_-1?format=jpg&name=orig']
    assert remember_addresses(tmp_path, out, shown) == 2 and remember_addresses(tmp_path, out, shown) == 0
    for o in (out, read_optout(tmp_path)):
        assert all(u in o for u in (*shown, 'http://m.imgur.com/AbCdEf1')) and PHOTO.replace('1.jpg', '2.jpg') not in o
    text = (tmp_path / 'optout_hashes.jsonl').read_text()
    assert 'AbCdEf1' not in text and 'Fabc' not in text


def test_lines_are_reported_once_where_asked(tmp_path, caplog):
    (tmp_path / 'optout.txt').write_text('the girl in red\n')
    quiet = read_optout(tmp_path, report=False)
    assert not caplog.text and 'line 1' in quiet.warning()


def test_the_words_for_no_age_screen():
    assert age_screen(False, 20) == age_screen(True, 0) == NO_AGE_SCREEN == 'no age screen'
    assert age_screen(True, 18) == 'faces that look under 18 are dropped'
    assert age_screen(True, 20, 5) == 'faces that look under 25 are dropped'
    assert age_screen(True, 0, 5) == NO_AGE_SCREEN


@pytest.mark.parametrize('written', [
    f'照片：{PHOTO}', f'[我]({PHOTO})', f'[img]{PHOTO}[/img]', f'<a href="{PHOTO}">x</a>', f'\ufeff{PHOTO}',
    f'{PHOTO}\u200b', '<img src="//imgur.com/AbCdEf1">',
    f'https://web.archive.org/web/2024/{PHOTO}', PHOTO.replace(':', '%3A').replace('/', '%2F'), f'1. {PHOTO}',
    PHOTO.replace('/', '\\'), PHOTO.replace('://', ' :// '), f'https://example.com/?u={PHOTO}',
    'https://imgur.com/gallery/AbCdEf1', 'https://imgur.com/a/a-title-AbCdEf1', 'https://imgur.com/r/beauty/AbCdEf1',
    SHA[:32] + ' ' + SHA[32:], ':'.join(SHA[i:i + 2].upper() for i in range(0, 64, 2)), '0x' + SHA,
    SHA + '  photo.jpg'])
def test_an_address_among_other_things(written):
    out = OptOut(written)
    assert out.unknown == [] and opted_out(dict(url=PHOTO, sha256=SHA), out)
    assert not opted_out(dict(url='https://i.imgur.com/aBcDeF1.jpg', sha256='0' * 64), out)


@pytest.mark.parametrize('written', [
    '#1baPT-w7 (Beauty)', '文章代碼(AID): #1baPT-w7 (Beauty) [ptt.cc]', '＃1baPT-w7', 'Beauty #1baPT-w7',
    'https://moptt.tw/p/Beauty.M.1704040318.A.E87', 'beauty/M.1704040318.A.E87.html', '文章網址:' + ARTICLE,
    '/bbs/Beauty/M.1704040318.A.E87', 'Re: M.1704040318.A.E87.'])
def test_an_article_by_its_code_and_among_other_things(written):
    out = OptOut(written)
    assert ARTICLE in out and out.unknown == [] and ARTICLE.replace('E87', 'E88') not in out


@pytest.mark.parametrize(
    'line', ['#mine', '# please', '#1baPT-w', '#1baPT-w78', '#zbaPT-w7', 'a#1baPT-w7', '##########'])
def test_remarks_are_no_codes(line):
    assert not article_codes(line)
