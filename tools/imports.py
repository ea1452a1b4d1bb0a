"Import one module of the library in a fresh process in which what only developers install is missing."
import importlib
import sys

dev_only = {'nbdev', 'execnb', 'jupytext', 'pytest', 'skimage', 'webdataset', 'insightface', 'onnxruntime'}


class Refuse:
    "Makes an installed library look as if it were not."
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in dev_only:
            raise ModuleNotFoundError(f'No module named {name!r} (developers only)')


sys.meta_path.insert(0, Refuse())
importlib.import_module(f'pttface.{sys.argv[1]}')
