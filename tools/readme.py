"README.md from nbs/index.ipynb: the page without its hidden cells, with links that work at the repository's top."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

top = Path(__file__).resolve().parent.parent


def shown(cell):
    "Does the cell belong on the page?"
    return not re.search(r'^#\|\s*(hide|default_exp|eval: false)\s*$', cell.source, re.M)


def readme():
    "The text of README.md."
    nb = nbformat.read(top / 'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if shown(c)]
    nb.cells = [c if 'echo: false' not in c.source else nbformat.v4.new_markdown_cell('\n\n'.join(o.data['text/markdown'] for o in c.outputs if 'text/markdown' in o.get('data', {}))) for c in nb.cells]
    for c in nb.cells:
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    text, res = MarkdownExporter().from_notebook_node(nb)
    if res.get('outputs'):
        raise SystemExit('index.ipynb has pictures among its stored outputs: link them as files instead')
    text = re.sub(r'(\]\(|src=")(?!https?:|#|/)(?:\./)?([^)"]+)', lambda m: f'{m[1]}nbs/{m[2]}', text)
    text = re.sub(r'(\]\()nbs/\.\./', r'\1', text)
    return '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
    path, text = top / 'README.md', readme()
    if '--check' in sys.argv:
        sys.exit(None if path.read_text() == text else 'README.md is not what nbs/index.ipynb makes: run `make readme`')
    path.write_text(text)
