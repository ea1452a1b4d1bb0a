"What is built holds everything, and can be used where the repository is not."
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
sys.path.append(str(TOP/'tools'))
from package_check import build, install, missing, run, unpack  # noqa: E402


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist, and a wheel made from it."
    return build(tmp_path_factory.mktemp('dist'))


def test_nothing_is_missing(built, tmp_path):
    assert missing(*built) == []
    unpack(built[0], tmp_path)
    assert (tmp_path/'tests/test_package.py').exists() and (tmp_path/'nbs/titles.tsv').exists()


def test_the_wheel_works_without_the_repository(built, tmp_path):
    python = install(built[1], tmp_path/'venv')
    assert 'usage' in run(python.parent/'pttface', '--help', cwd=tmp_path)
    code = """
from pttface import crawl
from pttface.synthetic.board import make_board, serve
board = make_board(8, seed=1, workers=1)
with serve(board) as server:
    got = crawl('Beauty', since=board.day(0), until=board.day(-1), root='root', base_url=server.url, rate=0,
                progress=False)
print(len(got.rows) if hasattr(got, 'rows') else len(got))
"""
    assert int(run(python, '-c', code, cwd=tmp_path).split()[-1]) > 0
