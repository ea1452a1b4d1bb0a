"Every address that an article names is an image or is skipped with a reason."
import time

import pytest

from pttface.crawl import article_row
from pttface.ptt.parse import parse_article
from pttface.ptt.urls import canonical,canonical_all,split_urls

def article(*lines):
    text = '\n'.join(lines)
    return (f'<div id="main-content">作者: x 看板: Beauty\n{text}\n--\n※ 發信站: 批踢踢實業坊(ptt.cc)\n</div>').encode()

def linked(address):
    "As PTT shows an address"
    shown = address.replace('&', '&amp;')
    return f'<a href="{shown}" target="_blank" rel="nofollow">{shown}</a>'

def row_of(*lines):
    return article_row(dict(id='M.1704040318.A.E87', title='t', author='x'), parse_article(article(*lines)), 'Beauty')

def test_no_link_of_an_article_vanishes():
    row = row_of('[img]' + linked('https://i.imgur.com/AbCdEf1.jpg[/img]'), linked('https://imgur.com/AbCdEf2,AbCdEf3'),
                 linked('https://imgur.com/AbCdEf4&AbCdEf5'), linked('https://圖片.台灣/a.jpg'),
                 linked('https://example.com.tw/正妹.jpg'), linked('https://example.com/x.avif'),
                 linked('https://example.com/x.heic'), linked('https://imgur.com/a/AbCdEf6,AbCdEf7'))
    imgur = [f'https://i.imgur.com/AbCdEf{i}.jpg' for i in range(1, 6)]
    assert row['images'] == [*imgur, 'https://xn--ldss64d.xn--kpry57d/a.jpg',
                             'https://example.com.tw/%E6%AD%A3%E5%A6%B9.jpg', 'https://example.com/x.avif']
    assert [s['reason'] for s in row['skipped']] == ['format','album','album']

def test_a_link_that_the_board_ends_at_a_chinese_name_goes_on():
    row = row_of(linked('https://example.com.tw/') + '正妹.jpg', linked('https://example.com.tw/page') + '好看',
                 linked('https://imgur.com/abc1234') + '好看的圖i.imgur.com/def5678.png',
                 linked('https://i.imgur.com/ghi9012.jpg') + '正妹.jpg')
    assert row['images'] == ['https://example.com.tw/%E6%AD%A3%E5%A6%B9.jpg', 'https://i.imgur.com/abc1234.jpg',
                             'https://i.imgur.com/def5678.png', 'https://i.imgur.com/ghi9012.jpg']
    assert [(s['url'],s['reason']) for s in row['skipped']] == [('https://example.com.tw/page','page')]

@pytest.mark.parametrize('text', [
    '[img]{}[/img]', '[IMG]{}[/IMG]', '[url={}]look[/url]', '[url]{}[/url]', '[img=300x200]{}[/img]', '![]({})', '<{}>',
    '[url="{}"]look[/url]', '[url=https://example.com/page][img]{}[/img][/url]', '"{}"', '（{}）', '看{}好看'])
def test_brackets_of_a_forum_are_no_part_of_an_address(text):
    for address in ('https://i.imgur.com/abc1234.png','i.imgur.com/abc1234.png','https://example.com/a/b.jpg'):
        found = [url for raw in split_urls(text.format(address)) for url,_ in canonical_all(raw) if url]
        assert found == ['https://' + address.removeprefix('https://')]

def test_ids_of_imgur_have_five_six_or_seven_letters():
    ids = {o:o for o in ('abcde','abcdes','abcdel','abcdef','abcdefg')} | {'abcdefgl':'abcdefg'}
    for written,id in ids.items():
        assert canonical(f'https://i.imgur.com/{written}.jpg') == (f'https://i.imgur.com/{id}.jpg','')
    for written in ('abcd','abcdefgx','abcdefghi'):
        assert canonical(f'https://i.imgur.com/{written}.jpg') == ('','page')

@pytest.mark.parametrize('glue', [',', '&', '&amp;', '%2C', ';', '+', ',,', '%20'])
def test_several_ids_in_one_address(glue):
    ids = ['abc1234','def56','ghi789']
    found = canonical_all('https://imgur.com/' + glue.join(ids))
    assert found == [(f'https://i.imgur.com/{o}.jpg','') for o in ids]
    assert canonical('https://imgur.com/' + glue.join(['x', *ids])) == found[0]
    assert canonical_all('https://imgur.com/' + glue.join(['x', *ids])) == [('','page'), *found]

def test_a_host_that_cannot_be_a_name_is_a_bad_address():
    for raw in ('https://看這裡/a.jpg', 'https://圖' + '片'*90 + '.台灣/a.jpg', 'https://圖..台灣/a.jpg'):
        assert canonical(raw) == ('','bad_url')

@pytest.mark.parametrize('piece', [
    ')', '%E3%80%91', '-', 'a-', ',', ',abc1234', '.jpg', '[', '[img]', '?a=b&', '/', '正', '.a'])
def test_a_long_address_takes_no_longer_than_its_length(piece):
    for start in ('https://i.imgur.com/abc1234.jpg','https://example.com/','https://'):
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            canonical((start + piece*100_000)[:100_000])
            times.append(time.perf_counter() - begin)
        assert min(times) < 1
        begin = time.perf_counter()
        split_urls((start + piece*100_000)[:100_000])
        assert time.perf_counter() - begin < 20
