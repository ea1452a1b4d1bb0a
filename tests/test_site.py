"The docs site in a real browser: pages, links, pictures, search, headings, contrast, a phone's width, dark."
import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from browser import Browser, needs_browser

top = Path(__file__).resolve().parent.parent
site = top / '_docs'


class Links(HTMLParser):
    "What a page links to, shows and calls its parts."
    def __init__(self, path):
        super().__init__()
        self.links, self.images, self.ids, self.headings = [], [], set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a:
            self.ids.add(a['id'])
        if tag == 'a' and a.get('href'):
            self.links.append(a['href'])
        if tag in ('link', 'script') and (a.get('href') or a.get('src')):
            self.links.append(a.get('href') or a['src'])
        if tag == 'img':
            self.images.append((a.get('src', ''), a.get('alt')))
        if re.fullmatch('h[1-6]', tag) and a.get('id') != 'toc-title':
            self.headings.append(int(tag[1]))


@pytest.fixture(scope='session')
def built():
    "The site, built anew when a notebook, the sidebar or a style is younger than it."
    sources = [*top.glob('nbs/**/*.ipynb'), *top.glob('nbs/*.yml'), *top.glob('nbs/*.css'), *top.glob('tools/site/*'),
               top / 'tools/docs.py', top / 'tools/api.py']
    front = site / 'index.html'
    if not front.exists() or front.stat().st_mtime < max(p.stat().st_mtime for p in sources):
        r = subprocess.run([sys.executable, 'tools/docs.py'], cwd=top, text=True, capture_output=True, timeout=600)
        assert r.returncode == 0, r.stdout + r.stderr
    return {p.relative_to(site).as_posix(): Links(p) for p in sorted(site.rglob('*.html'))}


@pytest.fixture(scope='session')
def url(built):
    "The site, served."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a):
            pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def browser(url):
    with Browser() as b:
        yield b


def test_every_notebook_has_its_page_and_its_place_in_the_sidebar(built):
    bar = {urljoin('index.html', o) for o in built['index.html'].links}
    for p in sorted(top.glob('nbs/**/*.ipynb')):
        rel = p.relative_to(top / 'nbs')
        if any(o.startswith(('.', '_')) for o in rel.parts):
            continue
        name = rel.with_name(re.sub(r'^\d\d_', '', rel.stem) + '.html').as_posix()
        assert name in built, f'{rel} has no page'
        assert name in bar, f'{rel} is not in the sidebar'


def test_no_link_and_no_picture_is_broken(built):
    broken = []
    for name, page in built.items():
        for href in {*page.links, *(src for src, _ in page.images)}:
            where, part = urldefrag(href)
            if urlsplit(href).scheme in ('http', 'https', 'data', 'mailto'):
                continue
            to = unquote(urljoin(f'/{name}', where)).lstrip('/') if where else name
            if to.endswith('/') or not to:
                to += 'index.html'
            if not (site / to).exists():
                broken.append(f'{name}: {href}')
            elif part and to in built and unquote(part) not in built[to].ids:
                broken.append(f'{name}: {href} (no such part)')
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(built):
    for css in site.rglob('*.css'):
        assert 'googleapis' not in css.read_text(), css
    for name, page in built.items():
        assert [s for s, _ in page.images if urlsplit(s).scheme in ('http', 'https')] == [], name


def test_pictures_are_described_and_headings_in_order(built):
    for name, page in built.items():
        assert [i for i, (_, alt) in enumerate(page.images) if not alt] == [], f'{name}: pictures without words'
        assert page.headings[0] == 1 and page.headings.count(1) == 1, f'{name}: one title, first'
        jumps = [(a, b) for a, b in zip(page.headings, page.headings[1:]) if b > a + 1]
        assert jumps == [], f'{name}: headings leave out a level: {jumps}'


@needs_browser
def test_every_page_loads_without_a_word_on_the_console(built, url, browser):
    for name in built:
        browser.goto(url + name)
        assert browser.errors == [], name
        missing = browser.eval('[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)')
        assert missing == [], name
        assert browser.eval('document.title').strip()


@needs_browser
@pytest.mark.parametrize('query, lands', [
    ('level_eyes', '#level_eyes'), ('extract_faces', 'faces.html#extract_faces'), ('opt-out', 'html')])
def test_search_finds(url, browser, query, lands):
    browser.size(1280, 900)
    browser.goto(url)
    browser.click('.smalldocs-search input')
    browser.type(query)
    browser.wait(f'document.querySelector(".search-result")?.href.includes({lands!r})')  # once all of it is typed
    browser.key('Enter')
    browser.wait(f'location.href.includes({lands!r})')


def test_the_sidebar_shows_the_stages_first_and_folders_closed(built):
    def entries(name):
        text = (site / name).read_text(encoding='utf-8')
        bar = text[text.index('id="quarto-sidebar"'):text.index('id="quarto-margin-sidebar"')]
        links = re.findall(r'<a href="([^"]+)" class="sidebar-item-text', bar)
        sections = re.findall(r'class="collapse list-unstyled sidebar-section depth1( show)?"', bar)
        return links, sections

    links, sections = entries('index.html')
    stages = ['crawl', 'download', 'faces', 'dataset', 'unet', 'diffusion', 'fid']
    assert links[1:8] == [f'{stage}.html' for stage in stages]
    assert len(sections) >= 9 and sections == ['']*len(sections)
    assert entries('storage/files.html')[1].count(' show') == 1


def test_imports_are_folded(built):
    for name in built:
        text = re.sub(r'<details.*?</details>', '', (site / name).read_text(encoding='utf-8'), flags=re.S)
        for code in re.findall(r'<code class="sourceCode python">(.*?)</code>', text, re.S):
            lines = [o for o in re.sub('<[^>]+>', '', code).splitlines() if o.strip()]
            if len(lines) > 1 and name not in ('index.html', 'colab.html'):
                assert not all(o.startswith(('import ', 'from ')) for o in lines), f'{name}: {lines}'


@needs_browser
def test_every_page_opens_with_what_it_does_and_a_result(built, url, browser):
    "In the first screen: the subtitle, and a picture or table on each page that has one among its results."
    browser.size(1280, 900)
    late = []
    for name in built:
        browser.goto(url + name)
        assert browser.eval('document.querySelector("main .description").getBoundingClientRect().bottom < 300'), name
        tops = browser.eval('''[...document.querySelectorAll(
            'main img:not([src*="colab.svg"]), .first-result, .cell-output table')]
            .filter(e => !e.closest('.api')).map(e => e.getBoundingClientRect().top)''')
        if tops and min(tops) > 700:
            late.append(f'{name}: first result at {min(tops):.0f} pixels')
    assert late == []


@needs_browser
def test_a_line_of_100_characters_needs_no_scroll_bar(built, url, browser):
    browser.size(1280, 900)
    wide = []
    for name in built:
        browser.goto(url + name)
        wide += browser.eval('''[...document.querySelectorAll('main pre')]
            .filter(e => e.scrollWidth > e.clientWidth + 1)
            .filter(e => Math.max(...e.textContent.split('\\n').map(
                line => [...line].reduce((n, c) => n + (c.codePointAt() < 0x2000 ? 1 : 2), 0))) <= 100)
            .map(e => document.title + ': ' + e.textContent.slice(0, 100))''')
    assert wide == []


@needs_browser
def test_no_page_is_wider_than_a_phone(built, url, browser):
    browser.size(390, 844)
    for name in built:
        browser.goto(url + name)
        wide = browser.eval('''[...document.querySelectorAll('main *')].filter(e => {
            const r = e.getBoundingClientRect();
            if (r.right <= innerWidth + 1 || !r.width) return false;
            for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
            return true}).map(e => e.tagName + '.' + e.className).slice(0, 5)''')
        assert wide == [], name
        assert browser.eval('document.documentElement.scrollWidth <= innerWidth'), name
    browser.click('.quarto-btn-toggle')
    browser.wait('document.querySelector("#quarto-sidebar").getBoundingClientRect().width > 100')


# WCAG's contrast of text and what is behind it, for everything that shows words of its own
CONTRAST = '''() => {
  const rgb = (s) => { const m = s.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => [.2126, .7152, .0722].reduce((s, k, i) => s + k * linear(c[i] / 255), 0);
  const behind = (e) => {
    const seen = [];
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      seen.push(c);
      if (c[3] === 1) break;
    }
    return seen.reverse().reduce((a, c) => over(c, a), [255, 255, 255, 1]);
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const s = getComputedStyle(e);
    if (!own || !e.getBoundingClientRect().width || s.visibility === 'hidden') continue;
    let faint = 1;
    for (let p = e; p; p = p.parentElement) faint *= +getComputedStyle(p).opacity;
    if (!faint) continue;
    const b = behind(e), ink = rgb(s.color);
    ink[3] *= faint;
    const [x, y] = [light(over(ink, b)), light(b)].sort((p, q) => q - p), ratio = (x + .05) / (y + .05);
    const size = parseFloat(s.fontSize), big = size >= 24 || (size >= 18.66 && +s.fontWeight >= 700);
    const name = `${e.tagName}.${e.className} "${e.textContent.trim().slice(0, 30)}"`;
    if (ratio < (big ? 3 : 4.5) - .01)
      poor.push(`${name} ${ratio.toFixed(2)} ${s.color} on ${b.slice(0, 3).map(Math.round)}`);
  }
  return poor; }'''


@needs_browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_words_can_be_read(url, browser, dark):
    browser.size(1280, 900)
    browser.dark(dark)
    for name in ('index.html', 'crawl.html', 'storage/files.html', 'benchmarks.html'):
        browser.goto(url + name)
        assert browser.eval(f'({CONTRAST})()') == [], name
    browser.dark(False)


@needs_browser
def test_dark_can_be_chosen_and_is_remembered(url, browser):
    browser.size(1280, 900)
    browser.goto(url)
    shade = 'getComputedStyle(document.body).backgroundColor'
    before = browser.eval(shade)
    browser.click('.quarto-color-scheme-toggle')
    browser.wait(f'{shade} != {before!r}')
    browser.goto(url + 'crawl.html')
    assert browser.eval(shade) != before
    browser.click('.quarto-color-scheme-toggle')
    browser.wait(f'{shade} == {before!r}')


@needs_browser
@pytest.mark.parametrize('width', [1280, 390])
def test_pictures_of_the_site(url, browser, width, tmp_path):
    "A screenshot is not empty: the front page has its picture above the fold."
    browser.size(width, 900)
    browser.goto(url)
    assert browser.eval('''(() => {
        const r = document.querySelector("main img[alt*=heads]").getBoundingClientRect();
        return r.top < 900 && r.width > .8*document.querySelector("main").clientWidth - 40})()''')
    assert browser.screenshot(tmp_path / 'front.png').stat().st_size > 30_000
