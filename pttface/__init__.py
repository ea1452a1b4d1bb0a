"""Turn a year of posts on PTT's Beauty board into a face generator, and say honestly how good it is.

`from pttface import crawl, download, extract_faces, pack, train, sample, evaluate` gives the stages. Each is loaded
when it is first asked for, so `import pttface` costs nothing.
"""
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

try:
    __version__ = version('pttface')
except PackageNotFoundError:
    __version__ = '0+unknown'

_stages = dict(crawl='crawl', download='download', extract_faces='faces', pack='dataset', FaceData='dataset',
               train='diffusion', sample='diffusion', evaluate='fid', distill='distill',
               export_run='export', load_model='export')
__all__ = [*_stages]


class _CallableModule(ModuleType):
    "A stage's module that is called like the stage, since `crawl` and `download` name both"
    def __call__(self, *args, **kwargs): return self.__wrapped__(*args, **kwargs)


def callable_module(name, function):
    "Let the module `name` be called as its `function`, with its signature and docstring."
    module = sys.modules[name]
    module.__class__, module.__wrapped__, module.__doc__ = _CallableModule, function, function.__doc__


def __getattr__(name):
    if name not in _stages:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = import_module(f'.{_stages[name]}', __name__)
    return module if name == _stages[name] else getattr(module, name)


def __dir__(): return sorted([*globals(), *_stages])
