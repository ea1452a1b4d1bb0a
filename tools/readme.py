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


def only_output(cell):
    "A code cell's stored tables, as a Markdown cell."
    tables = [o.data['text/markdown'] for o in cell.outputs if 'text/markdown' in o.get('data', {})]
    return nbformat.v4.new_markdown_cell('\n\n'.join(tables))


def readme():
    "The text of README.md."
    nb = nbformat.read(top / 'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if shown(c)]
    nb.cells = [only_output(c) if 'echo: false' in c.source else c for c in nb.cells]
    for c in nb.cells:
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    text, res = MarkdownExporter().from_notebook_node(nb)
    if res.get('outputs'):
        raise SystemExit('index.ipynb has pictures among its stored outputs: link them as files instead')
    text = re.sub(r'(\]\(|src=")(?!https?:|#|/)(?:\./)?([^)"]+)', r'\1nbs/\2', text)
    text = re.sub(r'(\]\()nbs/\.\./', r'\1', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip()
    return f'<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n{text}\n'


if __name__ == '__main__':
    path, text = top / 'README.md', readme()
    if '--check' in sys.argv:
        sys.exit(None if path.read_text() == text else 'README.md is not what nbs/index.ipynb makes: run `make readme`')
    path.write_text(text)
