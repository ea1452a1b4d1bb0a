"The docs site, offline: nbdev turns the notebooks into pages, smalldocs turns the pages into a site in _docs."
import ast
import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from PIL import Image

top = Path(__file__).resolve().parent.parent
site, extras = top / '_docs', top / 'tools/site'
number = re.compile(r'(?<!blob/main/nbs/)(?<![\w.-])\d\d_(?=\w+\.(?:ipynb|html))')
badge = 'https://colab.research.google.com/assets/colab-badge.svg'
first_screen = 420  # Pixels of text and code after which a picture would not be seen in a window of 1280 × 900

# Pages are made in processes of their own: these find tools/api.py, which nbdev asks for each entry
sys.path.insert(0, str(top / 'tools'))
os.environ['PYTHONPATH'] = os.pathsep.join(o for o in (str(top / 'tools'), os.environ.get('PYTHONPATH')) if o)
os.environ['PYTHONWARNINGS'] = 'ignore'


def words(markdown):
    "What a Markdown cell says last, without its marks: a line to describe the picture that follows."
    text = re.sub(r'<[^>]+>|!\[[^\]]*\]\([^)]*\)|^\s*(#+.*|```.*|\|.*)$', '', markdown, flags=re.M)
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'[`*_$]', '', text))
    last = [o.strip() for o in re.split(r'\n\s*\n', text) if o.strip()]
    return re.split(r'(?<=[.!?])\s+(?=[A-Z])', ' '.join(last[-1].split()))[-1].rstrip(':.') if last else ''


def describe(cells):
    "Give each picture among the outputs the words before it as its alternative text."
    caption = ''
    for c in cells:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            caption = words(source) or caption
        pictured = any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))
        if pictured and 'fig-alt' not in source:
            alt = json.dumps(caption or 'The picture that this cell makes', ensure_ascii=False)
            c['source'] = f'#| fig-alt: {alt}\n{source}'


def kinds(source):
    "The kinds of statement in a code cell; `None` where it is not plain Python."
    try:
        return {type(o) for o in ast.parse(source).body}
    except SyntaxError:
        return None


def fold(cells):
    "Fold what a reader may skip: cells of imports, and helpers that stand before the page's first heading."
    opening = True
    for c in cells:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            opening = opening and not re.search(r'^## ', source, re.M)
        if c['cell_type'] != 'code' or 'code-fold' in source or 'echo: false' in source or c.get('outputs'):
            continue
        found = kinds(source)
        if found and found <= {ast.Import, ast.ImportFrom}:
            c['source'] = f'#| code-fold: true\n#| code-summary: "Imports"\n{source}'
        elif found and opening and found <= {ast.FunctionDef, ast.Assign}:
            c['source'] = f'#| code-fold: true\n#| code-summary: "Set-up"\n{source}'


def page(text, up, original=''):
    "A notebook as the site wants it: names without numbers, links within the site, pictures described, imports folded."
    nb = json.loads(re.sub(r'"output-file: [^"]*",\s*', '', text))
    link = re.search(rf'\[!\[Open in Colab\]\({re.escape(badge)}\)\]\([^)\s"]+\)', original)
    if link and badge not in text:  # the cell of the title, which nbdev reads as metadata, held it
        at = next((i for i, c in enumerate(nb['cells']) if c['cell_type'] == 'markdown'), 0)
        nb['cells'].insert(at, dict(cell_type='markdown', id='open-in-colab', metadata={}, source=[link[0]]))
    describe(nb['cells'])
    fold(nb['cells'])
    for c in nb['cells']:  # an entry of the API above the page's first heading is a heading of the second level
        if c['cell_type'] == 'markdown' and re.search(r'^## ', ''.join(c['source']), re.M):
            break
        for o in c.get('outputs', []):
            for k, v in o.get('data', {}).items():
                o['data'][k] = re.sub(r'^### ', '## ', ''.join(v), flags=re.M) if k == 'text/markdown' else v
    text = number.sub('', json.dumps(nb, ensure_ascii=False))
    return text.replace(f'{get_config().doc_url.rstrip("/")}/', up).replace(badge, f'{up}images/colab.svg')


def pages():
    "Process the notebooks, and lay them out under the names the pages will have."
    refresh_quarto_yml()
    proc = proc_nbs(n_workers=1)
    build = top / '_proc/_site_src'
    shutil.rmtree(build, ignore_errors=True)
    for p in Path(proc).rglob('*'):
        rel = p.relative_to(proc)
        if p.is_dir() or rel.parts[0].startswith('_') or rel.name.startswith('.') or rel.suffix == '.yml':
            continue
        to = build / rel.with_name(re.sub(r'^\d\d_', '', rel.name))
        to.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix == '.ipynb':
            original = top / 'nbs' / rel
            original = original.read_text() if original.exists() else ''
            to.write_text(page(p.read_text(), '../' * (len(rel.parts) - 1), original))
        else:
            shutil.copyfile(p, to)
    (build / 'images').mkdir(exist_ok=True)
    for p in top.glob('nbs/images/*'):
        shutil.copyfile(p, build / 'images' / p.name)
    shutil.copyfile(extras / 'colab.svg', build / 'images/colab.svg')
    return build


def config(build):
    "smalldocs reads one file of options: Quarto's, with the sidebar of the pages that are there."
    nbs = top / 'nbs'
    opts, more = (yaml.safe_load((nbs / o).read_text()) for o in ('_quarto.yml', 'nbdev.yml'))
    bar = yaml.safe_load(re.sub(number, '', (nbs / 'sidebar.yml').read_text()))['website']['sidebar']
    made = lambda o: 'href' not in o or (build / o['href']).exists()
    for s in bar['contents']:
        if 'contents' in s:
            s['contents'] = [o for o in s['contents'] if made(o)]
    bar['contents'] = [o for o in bar['contents'] if made(o)]
    opts['project'] = {**opts['project'], 'output-dir': str(site)}
    opts['website'] = {**more['website'], **opts['website'], 'sidebar': bar, 'site-url': get_config().doc_url}
    opts['website'].pop('repo-actions', None)
    script = f'<script>{(extras / "search.js").read_text()}</script>'
    opts['format'] = {'html': {'theme': {'light': 'cosmo', 'dark': 'darkly'}, 'css': 'styles.css', 'toc': True,
                               'lang': 'en', 'include-after-body': [{'text': script}]}}
    opts.pop('metadata-files', None)
    (build / '_quarto.yml').write_text(yaml.safe_dump(opts, allow_unicode=True, sort_keys=False))


def formulas(text):
    "TeX as MathML, which browsers draw by themselves, instead of a script from elsewhere."
    if 'class="math' not in text:
        return text

    def made(m):
        display = 'block' if m[1] == 'display' else 'inline'
        return f'<span class="math {m[1]}">{convert(html.unescape(m[2]), display=display)}</span>'

    text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', made, text, flags=re.S)
    katex = 'cdn\\.jsdelivr\\.net/npm/katex'
    return re.sub(rf'<link[^>]*{katex}[^>]*>|<script[^>]*{katex}[^>]*></script>', '', text)


def height(text):
    "About how many pixels a stretch of a page takes."
    text = re.sub(r'<details.*?</details>', '<p>folded</p>', text, flags=re.S)
    code = sum(m[1].count('\n') * 22 + 70 for m in re.finditer(r'<pre.*?>(.*?)</pre>', text, re.S))
    text = re.sub(r'<pre.*?</pre>', '', text, flags=re.S)
    blocks = [re.sub(r'<[^>]+>', '', o).strip() for o in re.split(r'</(?:p|li|tr|h\d|summary)>', text)]
    return code + sum(20 + 28 * (1 + len(o) // 95) for o in blocks if o)


def thumbnail(data, name):
    "A picture of a page, small, as a file of the site; its path from the site's top."
    path = f'images/lead/{name.replace("/", "-")}.png'
    im = Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB')
    im.thumbnail((1640, 520))
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    im.save(site / path, optimize=True)
    return path


def first_picture(body):
    "The match of a page's first picture among the outputs (alternative text, data); `None` without one."
    return re.search(r'<img alt="([^"]*)" src="data:image/\w+;base64,([^"]+)"', body)


def first_text(body):
    "The match of a page's first table or longer value among the outputs; `None` without one."
    shown = []
    for m in re.finditer(r'<div class="cell-output[^>]*>(?!\s*<hr)', body):
        found = re.compile(r'<table.*?</table>|<pre.*?</pre>', re.S).search(body, m.end())
        if found and found.start() < m.end() + 250:
            shown.append(found)
    tables = [m for m in shown if m[0].startswith('<table')]
    values = [m for m in shown if 130 < height(m[0]) < 620]
    return next(iter(tables or values), None)


def lead(text, name, up):
    "Show a page's first result at its head too, when it comes so late that the first screen lacks it."
    begin = text.find('</header>', text.find('<main')) + len('</header>')
    body = text[begin:text.find('</main>')]
    early = re.search(r'<img(?![^>]*images/colab\.svg)', body)
    found = first_picture(body) or first_text(body)
    seen = [m for m in (found, early) if m and height(body[:m.start()]) < first_screen]
    if not found or seen:
        return text
    cells = list(re.finditer(r'<div id="(cell-[\w-]+)" class="cell">', body[:found.start()]))
    link = f'<a href="#{cells[-1][1]}">(below)</a>' if cells else ''
    if found.re.groups:
        shown = f'<img alt="{found[1]}" src="{up}{thumbnail(found[2], name)}">'
        caption = found[1]
    else:
        shown = found[0]
        before = re.search(r'<p>((?:(?!<p>).)*)</p>\s*$', body[:cells[-1].start()] if cells else '', re.S)
        caption = html.escape(words(html.unescape(re.sub(r'<[^>]+>', '', before[1])))) if before else ''
    figure = f'<figure class="first-result">{shown}<figcaption>{caption} {link}</figcaption></figure>'
    return f'{text[:begin]}{figure}{text[begin:]}'


def at_home():
    "Make each page whole by itself: the reader's own fonts, formulas as MathML, links only to parts that are there."
    for p in site.rglob('*.css'):
        text = p.read_text()
        if 'fonts.googleapis.com' in text:
            p.write_text(re.sub(r'@import url\([^)]*fonts\.googleapis\.com[^)]*\);?', '', text))
    texts = {}
    for p in site.rglob('*.html'):
        rel = p.relative_to(site)
        texts[p] = lead(formulas(p.read_text()), rel.with_suffix('').as_posix(), '../' * (len(rel.parts) - 1))
    ids = {p: set(re.findall(r'\bid="([^"]+)"', t)) for p, t in texts.items()}

    def linked(p, m):  # a name that nbdev knows, of which no page tells
        to = (p.parent / m[1]).resolve() if m[1] else p
        return m[3] if to in ids and m[2] not in ids[to] else m[0]

    for p, text in texts.items():
        p.write_text(re.sub(r'<a href="([^"#:]*)#([^"]+)">(<code>[^<]*</code>)</a>', lambda m, p=p: linked(p, m), text))


def generator():
    "Put the generator on its page where there are a run and Node; else the page keeps its still."
    from pttface.storage.files import BadInput
    shutil.copyfile(top / 'nbs/images/draw.png', site / 'images/draw.png')
    try:
        from generator import add
        print(add(site))
    except BadInput as e:
        print(f'draw.html shows a still: {e}')


def main():
    build = pages()
    config(build)
    shutil.rmtree(site, ignore_errors=True)
    smalldocs = Path(sys.executable).parent / 'smalldocs'
    r = subprocess.run([smalldocs, 'render', str(build)], text=True, capture_output=True)
    print(r.stdout + r.stderr)
    n = len(list(site.rglob('*.html')))
    at_home()
    if r.returncode or not n:
        sys.exit(r.returncode or 'no page was made')
    generator()
    if broken := [o for o in (r.stdout + r.stderr).splitlines() if 'broken link' in o]:
        sys.exit(f'{len(broken)} broken links')
    print(f'{n} pages in {site.relative_to(top)}: open {site.relative_to(top)}/index.html')


if __name__ == '__main__':
    main()
