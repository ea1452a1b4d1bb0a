"What stands twice agrees, and what is installed is enough."
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

top = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(top / 'settings.ini', encoding='utf-8')
ini = ini['DEFAULT']
toml = tomllib.loads((top / 'pyproject.toml').read_text())


def test_metadata_agrees():
    p = toml['project']
    assert p['name'] == ini['lib_name']
    assert p['description'] == ini['description']
    assert p['requires-python'] == '>=' + ini['min_python']
    assert p['license'] == ini['license']
    assert p['urls'] == {'Repository': ini['git_url'], 'Documentation': ini['doc_url']}


def test_requirements_have_lower_bounds_only():
    reqs = [Requirement(r) for k in ('requirements', 'insightface_requirements', 'dev_requirements', 'bench_requirements') for r in ini[k].splitlines() if r.strip()]
    assert len(reqs) > 20
    assert [str(r) for r in reqs if [s.operator for s in r.specifier] != ['>=']] == []


def test_the_eleven_packages_of_the_mission():
    names = {Requirement(r).name for r in requires('pttface')}
    assert names >= {'torch', 'torchvision', 'requests', 'beautifulsoup4', 'opencv-python-headless', 'insightface', 'onnxruntime-gpu',
                     'matplotlib', 'ipywidgets', 'clean-fid', 'nbdev'}


def test_nbdev_is_for_developers_only():
    base = {Requirement(r).name for r in requires('pttface') if 'extra' not in r}
    assert not base & {'nbdev', 'jupytext', 'pytest', 'ruff', 'smalldocs'}


@pytest.mark.parametrize('argv, said', [
    (['trian'], "There is no command 'trian'"),
    (['download', '--root', 'no/such/folder'], 'is not a pttface folder'),
    (['crawl', 'Beauty', '--since', '2024-12-31', '--until', '2024-01-01', '--root', 'no/such/folder'], '2024-12-31'),
    (['crawl', 'Beauty', '--since', '2024-02-30', '--until', '2024-12-31', '--root', 'no/such/folder'], '2024-02-30'),
])
def test_faults_end_in_one_sentence_and_status_2(argv, said, tmp_path):
    r = subprocess.run([Path(sys.executable).parent / 'pttface', *argv], cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert r.returncode == 2, r.stderr
    assert said in r.stderr and r.stderr.count('\n') == 1 and 'Traceback' not in r.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_command_names_its_flags():
    from pttface.cli import COMMANDS, command, stage_parser
    for name in COMMANDS:
        f, first, example = command(name)
        text = stage_parser(f, name, first, example).format_help()
        assert f.__doc__.split()[0] in text and '--' in text
