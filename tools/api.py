"""What a page of the site says about a function or a class: its call, its docstring, and a table of its parameters.

The words are those of the docments, beside each parameter in the code: shape, unit and meaning. nbdev asks `ApiDoc`
for each entry (`renderer` in pyproject.toml), so this folder must be on Python's path when pages are made.
"""
import html
import inspect
import re
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from importlib import import_module

from fastcore.docments import docments, empty

NOTHING = (empty, None, type(None))


def type_words(
    anno,  # An annotation
) -> str:  # Such as `ndarray` or `float or None`
    "An annotation without modules and without bars, which would end a table's cell."
    if anno in NOTHING:
        return ''
    if isinstance(anno, str):
        text = anno
    elif isinstance(anno, type) and not hasattr(anno, '__args__'):
        text = anno.__name__
    else:
        text = str(anno)
    text = re.sub(r'\b(?:\w+\.)+(\w+)', r'\1', text).replace('NoneType', 'None')
    return re.sub(r'\s*\|\s*', ' or ', text)


def default_words(
    value,  # A default
) -> str:  # Such as `0.5` or `PackSettings()`
    "A default as one would type it; settings by the name of their class."
    if is_dataclass(value):
        return f'{type(value).__name__}()'
    text = getattr(value, '__name__', None) or repr(value)
    return text if len(text) <= 40 else f'{text[:37]}…'


def field_default(field):
    "The default of a dataclass field; `empty` where it has none."
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else empty


def params_of(
    sym,  # A function or a class
) -> dict:  # Name → (annotation, default, docment); `return` last
    "Parameters and what is returned, from docments; `self` is left out."
    try:
        found = docments(sym, full=True)
    except (OSError, TypeError, ValueError):
        return {}
    params = {k: (d.anno, d.default, d.docment or '') for k, d in found.items() if k not in ('self', 'cls')}
    if isinstance(sym, type) and is_dataclass(sym):
        defaults = {f.name: field_default(f) for f in fields(sym)}
        params = {k: (a, defaults.get(k, v), d) for k, (a, v, d) in params.items() if k != 'return'}
    return params


def call_line(
    name: str,     # As it is called
    params: dict,  # From `params_of`
) -> str:  # One line, or several that fit a page
    "How it is called, with its defaults."
    args = [k if v is empty else f'{k}={default_words(v)}' for k, (_, v, _) in params.items() if k != 'return']
    return textwrap.fill(f'{name}({", ".join(args)})', 68, subsequent_indent=' ' * 4, break_long_words=False,
                         break_on_hyphens=False)


def cell(
    s,  # What stands in it
) -> str:  # Fit for a Markdown table
    "Text of one cell: no bars, no line ends."
    return re.sub(r'\s+', ' ', str(s)).replace('|', r'\|').strip()


def code(
    s,  # A name, a type or a default
) -> str:  # As code that is not taken for a link to a function of that name
    "Inline code in HTML; nothing where there is nothing."
    return f'<code>{html.escape(cell(s))}</code>' if s else ''


def param_table(
    params: dict,  # From `params_of`
) -> str:  # A Markdown table; empty when nothing is known but the names
    "A line for each parameter and one for what is returned; a column only where there is something in it."
    if not any(doc or anno not in (empty, None) for anno, _, doc in params.values()):
        return ''
    rows = []
    for name, (anno, default, doc) in params.items():
        if name == 'return' and not (doc or type_words(anno)):
            continue
        shown = '**returns**' if name == 'return' else code(name)
        usual = '' if default is empty else code(default_words(default))
        rows.append((shown, code(type_words(anno)), usual, cell(doc)))
    heads = ('', 'type', 'default', 'what it is')
    keep = [i for i in range(len(heads)) if i == 0 or any(r[i] for r in rows)]
    lines = [[heads[i] for i in keep], ['---'] * len(keep), *([r[i] for i in keep] for r in rows)]
    return '\n'.join(f'| {" | ".join(o)} |' for o in lines)


def exported(
    sym,       # A symbol of the notebook
    url: str,  # Where nbdev says its source is; `None` where it does not know
):  # The same symbol of the exported module, or `sym`
    "A class that was defined in a cell has no file from which to read its comments: the one in the module has."
    found = re.search(r'/blob/[^/]+/pttface/([\w/]+)\.py', url or '')
    if not found or getattr(sym, '__module__', None) != '__main__' or not isinstance(sym, type):
        return sym
    try:
        module = import_module(f'pttface.{found[1].replace("/", ".")}')
    except ImportError:
        return sym
    return getattr(module, sym.__name__, sym)


def source_url(name):
    "Where the source of `name` is, as nbdev knows it; `None` without nbdev."
    try:
        from nbdev.doclinks import NbdevLookup
    except ImportError:
        return None
    return NbdevLookup().code(name)


class ApiDoc:
    "One entry of a page: heading, link to the source, call, docstring, table"

    def __init__(
        self,
        sym,                   # Function, class or method
        name: str = None,      # What to call it
        title_level: int = 3,  # Level of its heading
    ):
        if isinstance(sym, property):
            sym = sym.fget
        if isinstance(sym, partial):
            sym = sym.func
        self.level = title_level
        self.name = name or getattr(sym, '__qualname__', str(sym))
        module = getattr(sym, '__module__', '__main__')
        self.url = source_url(self.name if module == '__main__' else f'{module}.{self.name}')
        self.sym = exported(sym, self.url)
        self.doc = (inspect.getdoc(self.sym) or '').strip()

    def _repr_markdown_(self):
        source, call, doc, params = '', '', '', {}
        if self.url:
            source = f'[source]({self.url}){{target="_blank" style="float:right; font-size:smaller"}}\n\n'
        if callable(self.sym):
            params = params_of(self.sym)
            call = f'```python\n{call_line(self.name, params)}\n```\n\n'
        if not self.doc.startswith(f'{getattr(self.sym, "__name__", "")}('):
            doc = re.sub(r'^(.+)', r'*\1*', self.doc, count=1)
        heading = f'{"#" * self.level} {self.name}'
        return f'---\n\n{source}{heading}\n\n::: {{.api}}\n\n{call}{doc}\n\n{param_table(params)}\n\n:::\n'
