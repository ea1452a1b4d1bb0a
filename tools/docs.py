"The docs site, offline: nbdev turns the notebooks into pages, smalldocs turns the pages into a site in _docs."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

top = Path(__file__).resolve().parent.parent
site = top / '_docs'
number = re.compile(r'(?<![\w.-])\d\d_(?=\w+\.(?:ipynb|html))')


os.environ['PYTHONWARNINGS'] = 'ignore'  # pages are made in a process of their own


def pages():
    "Process the notebooks, and lay them out under the names the pages will have."
    refresh_quarto_yml()
    proc = proc_nbs(n_workers=1)
    build = top / '_proc/_site_src'
    shutil.rmtree(build, ignore_errors=True)
    for p in Path(proc).rglob('*'):
        rel = p.relative_to(proc)
        if p.is_dir() or rel.parts[0].startswith('_') or rel.name.startswith('.') or rel.suffix == '.yml': continue
        to = build / rel.with_name(re.sub(r'^\d\d_', '', rel.name))
        to.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix == '.ipynb':
            up = '../' * (len(rel.parts) - 1)
            text = number.sub('', p.read_text()).replace(f'{get_config().doc_url.rstrip("/")}/', up)
            to.write_text(re.sub(r'"output-file: [^"]*",\s*', '', text))
        else: shutil.copyfile(p, to)
    return build


def config(build):
    "smalldocs reads one file of options: Quarto's, with the sidebar of the pages that are there."
    nbs = top / 'nbs'
    opts, more = (yaml.safe_load((nbs / o).read_text()) for o in ('_quarto.yml', 'nbdev.yml'))
    bar = yaml.safe_load(re.sub(number, '', (nbs / 'sidebar.yml').read_text()))['website']['sidebar']
    here = lambda o: o if 'href' not in o or (build / o['href']).exists() else None
    for s in bar['contents']:
        if 'contents' in s: s['contents'] = [o for o in s['contents'] if here(o)]
    bar['contents'] = [o for o in bar['contents'] if here(o)]
    opts['project'] = {**opts['project'], 'output-dir': str(site)}
    opts['website'] = {**more['website'], **opts['website'], 'sidebar': bar, 'site-url': get_config().doc_url}
    opts['website'].pop('repo-actions', None)
    opts['format'] = {'html': {'theme': {'light': 'cosmo', 'dark': 'darkly'}, 'css': 'styles.css', 'toc': True}}
    opts.pop('metadata-files', None)
    (build / '_quarto.yml').write_text(yaml.safe_dump(opts, allow_unicode=True, sort_keys=False))


def main():
    build = pages()
    config(build)
    shutil.rmtree(site, ignore_errors=True)
    r = subprocess.run([Path(sys.executable).parent / 'smalldocs', 'render', str(build)], text=True, capture_output=True)
    print(r.stdout + r.stderr)
    n = len(list(site.rglob('*.html')))
    if r.returncode or not n: sys.exit(r.returncode or 'no page was made')
    if broken := [o for o in (r.stdout + r.stderr).splitlines() if 'broken link' in o]: sys.exit(f'{len(broken)} broken links')
    print(f'{n} pages in {site.relative_to(top)}: open {site.relative_to(top)}/index.html')


if __name__ == '__main__': main()
