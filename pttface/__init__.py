"A year of posts on PTT's Beauty board, turned into a face generator that says honestly how good it is."
from importlib.metadata import PackageNotFoundError, version

try: __version__ = version('pttface')
except PackageNotFoundError: __version__ = '0+unknown'
