"The docs site, offline: nbdev turns the notebooks into pages, smalldocs turns the pages into a site in _docs."
import html
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

top = Path(__file__).resolve().parent.parent
site, extras = top / '_docs', top / 'tools/site'
number = re.compile(r'(?<![\w.-])\d\d_(?=\w+\.(?:ipynb|html))')
badge = 'https://colab.research.google.com/assets/colab-badge.svg'

os.environ['PYTHONWARNINGS'] = 'ignore'  # pages are made in a process of their own


def words(markdown):
    "What a Markdown cell says last, without its marks: a line to describe the picture that follows."
    text = re.sub(r'<[^>]+>|!\[[^\]]*\]\([^)]*\)|^\s*(#+.*|```.*|\|.*)$', '', markdown, flags=re.M)
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'[`*_$]', '', text))
    last = [o.strip() for o in re.split(r'\n\s*\n', text) if o.strip()]
    return re.split(r'(?<=[.!?])\s+(?=[A-Z])', ' '.join(last[-1].split()))[-1].rstrip(':.') if last else ''


def describe(cells):
    "Give each picture among the outputs the words before it as its alternative text."
    said = ''
    for c in cells:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            said = words(source) or said
        pictured = any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))
        if pictured and 'fig-alt' not in source:
            c['source'] = f'#| fig-alt: {json.dumps(said or "The picture that this cell makes", ensure_ascii=False)}\n{source}'
    return cells


def page(text, up):
    "A notebook as the site wants it: names without numbers, links within the site, pictures described, the badge at hand."
    text = number.sub('', text).replace(f'{get_config().doc_url.rstrip("/")}/', up).replace(badge, f'{up}images/colab.svg')
    nb = json.loads(re.sub(r'"output-file: [^"]*",\s*', '', text))
    describe(nb['cells'])
    for c in nb['cells']:  # an entry of the API above the page's first heading is a heading of the second level
        if c['cell_type'] == 'markdown' and re.search(r'^## ', ''.join(c['source']), re.M):
            break
        for o in c.get('outputs', []):
            for k, v in o.get('data', {}).items():
                o['data'][k] = re.sub(r'^### ', '## ', ''.join(v), flags=re.M) if k == 'text/markdown' else v
    return json.dumps(nb, ensure_ascii=False)


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
            to.write_text(page(p.read_text(), '../' * (len(rel.parts) - 1)))
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
    here = lambda o: o if 'href' not in o or (build / o['href']).exists() else None
    for s in bar['contents']:
        if 'contents' in s:
            s['contents'] = [o for o in s['contents'] if here(o)]
    bar['contents'] = [o for o in bar['contents'] if here(o)]
    opts['project'] = {**opts['project'], 'output-dir': str(site)}
    opts['website'] = {**more['website'], **opts['website'], 'sidebar': bar, 'site-url': get_config().doc_url}
    opts['website'].pop('repo-actions', None)
    opts['format'] = {'html': {'theme': {'light': 'cosmo', 'dark': 'darkly'}, 'css': 'styles.css', 'toc': True, 'lang': 'en',
                               'include-after-body': [{'text': f'<script>{(extras / "search.js").read_text()}</script>'}]}}
    opts.pop('metadata-files', None)
    (build / '_quarto.yml').write_text(yaml.safe_dump(opts, allow_unicode=True, sort_keys=False))


def formulas(text):
    "TeX as MathML, which browsers draw by themselves, instead of a script from elsewhere."
    if 'class="math' not in text:
        return text
    made = lambda m: f'<span class="math {m[1]}">{convert(html.unescape(m[2]), display="block" if m[1] == "display" else "inline")}</span>'
    text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', made, text, flags=re.S)
    return re.sub(r'<link[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>|<script[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*></script>', '', text)


def at_home():
    "Everything that a page needs is beside it: the reader's own fonts, formulas as MathML, and links only to parts that are there."
    for p in site.rglob('*.css'):
        text = p.read_text()
        if 'fonts.googleapis.com' in text:
            p.write_text(re.sub(r'@import url\([^)]*fonts\.googleapis\.com[^)]*\);?', '', text))
    texts = {p: formulas(p.read_text()) for p in site.rglob('*.html')}
    ids = {p: set(re.findall(r'\bid="([^"]+)"', t)) for p, t in texts.items()}
    def linked(p, m):  # a name that nbdev knows, of which no page tells
        to = (p.parent / m[1]).resolve() if m[1] else p
        return m[3] if to in ids and m[2] not in ids[to] else m[0]
    for p, text in texts.items():
        p.write_text(re.sub(r'<a href="([^"#:]*)#([^"]+)">(<code>[^<]*</code>)</a>', lambda m, p=p: linked(p, m), text))


def main():
    build = pages()
    config(build)
    shutil.rmtree(site, ignore_errors=True)
    r = subprocess.run([Path(sys.executable).parent / 'smalldocs', 'render', str(build)], text=True, capture_output=True)
    print(r.stdout + r.stderr)
    n = len(list(site.rglob('*.html')))
    at_home()
    if r.returncode or not n:
        sys.exit(r.returncode or 'no page was made')
    if broken := [o for o in (r.stdout + r.stderr).splitlines() if 'broken link' in o]:
        sys.exit(f'{len(broken)} broken links')
    print(f'{n} pages in {site.relative_to(top)}: open {site.relative_to(top)}/index.html')


if __name__ == '__main__':
    main()
