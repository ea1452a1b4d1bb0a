"Everything about the package is in settings.ini; this reads it."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']


def lines(key):
    "The value of `key`, one entry a line."
    return [o for o in cfg[key].splitlines() if o.strip()]


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    author=cfg['author'], author_email=cfg['author_email'], keywords=cfg['keywords'].split(),
    url=cfg['git_url'], license=cfg['license'], python_requires='>=' + cfg['min_python'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['pttface', 'pttface.*']),
    install_requires=lines('requirements'),
    extras_require={k: lines(f'{k}_requirements') for k in ('insightface', 'gpu', 'export', 'map', 'dev', 'bench')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['pttface=pttface._modidx:d']},
)
