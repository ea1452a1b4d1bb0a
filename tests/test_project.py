"What stands twice agrees, and what is installed is enough."
import json
import os
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


# What a fresh Colab runtime brought in August 2026 (torchvision is the one that goes with that torch)
COLAB = {'torch': '2.11.0', 'torchvision': '0.26.0', 'numpy': '2.1.0', 'fastcore': '2.2.12', 'ipython': '7.34.0'}


def test_what_colab_brings_stays():
    "Nothing that installing pttface asks for, at any depth, forbids the versions that Colab has, so pip leaves them alone."
    todo, seen, against = [('pttface', '')], set(), []
    while todo:
        who, extra = todo.pop()
        if (who, extra) in seen:
            continue
        seen.add((who, extra))
        try:
            reqs = requires(who) or []
        except PackageNotFoundError:
            continue
        for r in map(Requirement, reqs):
            if r.marker and not r.marker.evaluate({'extra': extra}):
                continue
            name = canonicalize_name(r.name)
            if name in COLAB and not r.specifier.contains(COLAB[name], prereleases=True) and name != who:
                against.append(f'{who} wants {r}')
            if name not in COLAB:
                todo += [(name, ''), *((name, e) for e in r.extras)]
    assert ('accelerate', '') in seen and len(seen) > 20
    assert against == []
    assert Requirement('python>=' + ini['min_python']).specifier.contains("3.13")


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


def pttface(*argv, cwd=None, **env):
    return subprocess.run([Path(sys.executable).parent / 'pttface', *argv], cwd=cwd, text=True, capture_output=True, timeout=120, env={**os.environ, **env})


def test_help_of_every_command_is_a_page():
    from pttface.app.cli import COMMANDS, command
    for name, c in COMMANDS.items():
        f, p = command(name)
        text = p.format_help()
        assert f.__doc__.split()[0] in text and 'usage: pttface ' + name in text
        assert all(line in text for _, line in c.examples), name
        assert 'exit status' in text and '--json' in text and max(map(len, text.splitlines())) <= 110
        for _, line in c.examples:
            words = line.split(' > ')[0].replace("'", '').split()
            if words[:2] == ['pttface', name] and name not in ('train', 'completion'):
                p.parse_args(words[2:])


def test_the_commands_run_what_the_pages_describe():
    from pttface.app.cli import command
    ns = command('faces')[1].parse_args(['--root', 'R', '--preset', 'original', '--min-share', '.02', '--png'])
    assert (ns.root, ns.preset, ns.min_share, ns.png) == ('R', 'original', .02, True)
    ns = command('crawl')[1].parse_args(['Beauty', '--pushes', '--no-additions'])
    assert (ns.board, ns.pushes, ns.additions) == ('Beauty', True, False)


def test_unknown_words_are_one_sentence(tmp_path):
    for argv, said in ((['trian'], 'did you mean train?'), (['train', '--bugdet', '1h'], '--bugdet'), (['sample', '--n', 'many'], "'many'"), (['completion', 'csh'], "'csh'")):
        r = pttface(*argv, cwd=tmp_path)
        assert r.returncode == 2 and said in r.stderr and r.stderr.count('\n') == 1 and not r.stdout


def test_json_is_one_object_whatever_happens(tmp_path):
    r = pttface('status', 'no-such-root', '--json', cwd=tmp_path)
    o = json.loads(r.stdout)
    assert r.returncode == o['status'] == 2 and 'no-such-root' in o['error'] and o['result'] is None
    r = pttface('doctor', str(tmp_path), '--json')
    o = json.loads(r.stdout)
    assert r.returncode == o['status'] == (2 if any(c['state'] == 'fault' for c in o['result']['rows']) else 0)
    assert {'Python', 'packages', 'GPU', 'precision', 'disk'} <= {c['what'] for c in o['result']['rows']}
    assert list(tmp_path.iterdir()) == []


def test_status_of_an_empty_root_names_the_first_command(tmp_path):
    from pttface.storage.files import open_root
    open_root(tmp_path / 'data', create=True)
    r = pttface('status', 'data', cwd=tmp_path)
    assert r.returncode == 0 and r.stdout.rstrip().endswith('next: pttface crawl Beauty --since 2024-01-01 --until 2024-12-31 --root data')
    assert r.stdout == pttface('status', '--root', 'data', cwd=tmp_path).stdout


def test_colours_are_for_terminals_only(tmp_path):
    from pttface.storage.files import open_root
    open_root(tmp_path, create=True)
    plain, forced, refused = (pttface('status', str(tmp_path), **env).stdout for env in ({}, {'FORCE_COLOR': '1'}, {'FORCE_COLOR': '1', 'NO_COLOR': '1'}))
    assert '\033[' not in plain and '\033[' in forced and refused == plain
    assert '\033[' not in pttface('--help').stdout and '\033[1m' in pttface('--help', FORCE_COLOR='1').stdout


def test_bash_completes_commands_and_flags(tmp_path):
    script = pttface('completion', 'bash').stdout
    ask = 'source /dev/stdin; COMP_WORDS=(pttface {}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _pttface; echo "${{COMPREPLY[@]}}"'
    said = lambda words: subprocess.run(['bash', '-c', ask.format(words)], input=script, text=True, capture_output=True).stdout.split()
    assert said('down') == ['download'] and said('train --bud') == ['--budget'] and '--json' in said('status --')


def test_a_reader_that_leaves_early_is_no_fault(tmp_path):
    r = subprocess.run(f'{Path(sys.executable).parent / "pttface"} completion bash | true; echo ${{PIPESTATUS[0]}}', shell=True, executable='/bin/bash', text=True, capture_output=True)
    assert r.stdout.strip() in ('0', '141') and 'Traceback' not in r.stderr
