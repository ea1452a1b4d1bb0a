"What stands twice agrees, what is installed is enough, and modules import in one direction."
import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import numpy as np
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
    keys = ('requirements', 'insightface_requirements', 'export_requirements', 'map_requirements', 'dev_requirements',
            'bench_requirements')
    reqs = [Requirement(r) for k in keys for r in ini[k].splitlines() if r.strip()]
    assert len(reqs) > 20
    assert [str(r) for r in reqs if [s.operator for s in r.specifier] != ['>=']] == []


def test_the_eleven_packages_of_the_mission():
    names = {Requirement(r).name for r in requires('pttface')}
    assert names >= {'torch', 'torchvision', 'requests', 'beautifulsoup4', 'opencv-python-headless', 'insightface',
                     'onnxruntime-gpu', 'matplotlib', 'ipywidgets', 'clean-fid', 'nbdev'}


def test_nbdev_is_for_developers_only():
    base = {Requirement(r).name for r in requires('pttface') if 'extra' not in r}
    assert not base & {'nbdev', 'jupytext', 'pytest', 'ruff', 'smalldocs'}


# What a fresh Colab runtime brought in August 2026 (torchvision is the one that goes with that torch)
COLAB = {'torch': '2.11.0', 'torchvision': '0.26.0', 'numpy': '2.1.0', 'fastcore': '2.2.12', 'ipython': '7.34.0'}


def test_what_colab_brings_stays():
    "No requirement of pttface, at any depth, forbids the versions that Colab has, so pip leaves them alone."
    todo = [('pttface', '')]
    seen, against = set(), []
    while todo:
        package, extra = todo.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        try:
            reqs = requires(package) or []
        except PackageNotFoundError:
            continue
        for r in map(Requirement, reqs):
            if r.marker and not r.marker.evaluate({'extra': extra}):
                continue
            name = canonicalize_name(r.name)
            if name in COLAB and not r.specifier.contains(COLAB[name], prereleases=True) and name != package:
                against.append(f'{package} wants {r}')
            if name not in COLAB:
                todo += [(name, ''), *((name, e) for e in r.extras)]
    assert ('accelerate', '') in seen and len(seen) > 20
    assert against == []
    assert Requirement('python>=' + ini['min_python']).specifier.contains("3.13")


YEAR_BACKWARDS = ['crawl', 'Beauty', '--since', '2024-12-31', '--until', '2024-01-01', '--root', 'no/such/folder']
NO_SUCH_DAY = ['crawl', 'Beauty', '--since', '2024-02-30', '--until', '2024-12-31', '--root', 'no/such/folder']


def pttface(*argv, cwd=None, **env):
    "Run the command `pttface` in a process of its own."
    return subprocess.run([Path(sys.executable).parent / 'pttface', *argv], cwd=cwd, text=True, capture_output=True,
                          timeout=120, env={**os.environ, **env})


@pytest.mark.parametrize('argv, message', [
    (['trian'], "There is no command 'trian'"),
    (['download', '--root', 'no/such/folder'], 'is not a pttface folder'),
    (YEAR_BACKWARDS, '2024-12-31'),
    (NO_SUCH_DAY, '2024-02-30'),
])
def test_faults_end_in_one_sentence_and_status_2(argv, message, tmp_path):
    r = pttface(*argv, cwd=tmp_path)
    assert r.returncode == 2, r.stderr
    assert message in r.stderr and r.stderr.count('\n') == 1 and 'Traceback' not in r.stderr
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize('argv, message', [
    (['trian'], 'did you mean train?'), (['train', '--bugdet', '1h'], '--bugdet'),
    (['sample', '--n', 'many'], "'many'"), (['completion', 'csh'], "'csh'"),
])
def test_unknown_words_are_one_sentence(argv, message, tmp_path):
    r = pttface(*argv, cwd=tmp_path)
    assert r.returncode == 2 and message in r.stderr and r.stderr.count('\n') == 1 and not r.stdout


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
    first = 'next: pttface crawl Beauty --since 2024-01-01 --until 2024-12-31 --root data'
    assert r.returncode == 0 and r.stdout.rstrip().endswith(first)
    assert r.stdout == pttface('status', '--root', 'data', cwd=tmp_path).stdout


def test_colours_are_for_terminals_only(tmp_path):
    from pttface.storage.files import open_root
    open_root(tmp_path, create=True)
    plain = pttface('status', str(tmp_path)).stdout
    assert '\033[' not in plain
    assert '\033[' in pttface('status', str(tmp_path), FORCE_COLOR='1').stdout
    assert pttface('status', str(tmp_path), FORCE_COLOR='1', NO_COLOR='1').stdout == plain
    assert '\033[' not in pttface('--help').stdout and '\033[1m' in pttface('--help', FORCE_COLOR='1').stdout


def test_bash_completes_commands_and_flags(tmp_path):
    script = pttface('completion', 'bash').stdout
    setup = 'source /dev/stdin; COMP_WORDS=(pttface {}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _pttface; '
    ask = setup + 'echo "${{COMPREPLY[@]}}"'

    def completions(words):
        r = subprocess.run(['bash', '-c', ask.format(words)], input=script, text=True, capture_output=True)
        return r.stdout.split()

    assert completions('down') == ['download'] and completions('train --bud') == ['--budget']
    assert '--json' in completions('status --')


def test_a_reader_that_leaves_early_is_no_fault(tmp_path):
    line = f'{Path(sys.executable).parent / "pttface"} completion bash | true; echo ${{PIPESTATUS[0]}}'
    r = subprocess.run(line, shell=True, executable='/bin/bash', text=True, capture_output=True)
    assert r.stdout.strip() in ('0', '141') and 'Traceback' not in r.stderr


# Which module may import which: a stage imports folders and earlier stages, a folder imports no stage.
STAGES = ['crawl', 'download', 'faces', 'dataset', 'unet', 'diffusion', 'distill', 'fid', 'export', 'draw']
SHARED = ['policy', 'parallel', 'display', 'checks']
FOLDERS = ['ptt', 'net', 'storage', 'vision', 'curation', 'training', 'evaluation', 'synthetic', 'app']


def library():
    "The package's modules: dotted name without `pttface.` → file, relative to the top of the repository."
    paths = [p.relative_to(top) for p in sorted(top.glob('pttface/**/*.py'))]
    paths = [p for p in paths if p.name not in ('__init__.py', '_modidx.py')]
    return {'.'.join(p.with_suffix('').parts[1:]): p for p in paths}


def imported(source, package, modules):
    "The `modules` that `source`, a module in `package`, imports anywhere in it."
    from pttface import _stages
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split('.')[:len(package.split('.')) + 1 - node.level] if node.level else []
            origin = '.'.join([*parts, *([node.module] if node.module else [])])
            names |= {origin} | {f'{origin}.{a.name}' for a in node.names}
    names = {n.removeprefix('pttface.') for n in names if n.startswith('pttface.')}
    return {_stages.get(n, n) for n in names} & set(modules)


def against_the_rule(module, other):
    "Why `module` may not import `other`; `None` where it may."
    home, place = module.partition('.')[0], other.partition('.')[0]
    if place == 'app' and home != 'app':
        return 'only app imports app'
    if place == 'synthetic' and home not in ('synthetic', 'app'):
        return 'only app imports the synthetic board'
    if home in STAGES and place in STAGES and STAGES.index(place) >= STAGES.index(home):
        return 'a stage imports earlier stages only'
    if home in FOLDERS and home not in ('synthetic', 'app') and place in STAGES:
        return 'a folder imports no stage'
    if home in SHARED and place in STAGES:
        return 'a shared page imports folders at most'
    return None


def circle(imports):
    "A chain of modules each of which imports the next, the last one being the first; `None` where there is none."
    done = set()

    def follow(module, chain):
        if module in chain:
            return [*chain[chain.index(module):], module]
        if module in done:
            return None
        found = next((c for o in sorted(imports.get(module, ())) if (c := follow(o, [*chain, module]))), None)
        done.add(module)
        return found

    return next((c for module in imports if (c := follow(module, []))), None)


@pytest.fixture(scope='module')
def imports():
    "Module → the modules of the package that it imports, inside functions too."
    modules = library()
    found = {}
    for name, path in modules.items():
        package = '.'.join(path.with_suffix('').parts[:-1])
        found[name] = imported((top / path).read_text(encoding='utf-8'), package, modules) - {name}
    return found


def test_every_module_has_its_place():
    places = {name.partition('.')[0] for name in library()}
    assert places == {*STAGES, *SHARED, *FOLDERS}


def test_imports_point_one_way(imports):
    paths = library()
    faults = [f'{paths[module]} imports pttface.{other}, but {reason}' for module, others in imports.items()
              for other in sorted(others) if (reason := against_the_rule(module, other))]
    assert faults == []


def test_no_module_imports_itself_by_way_of_others(imports):
    found = circle(imports)
    assert found is None, ' → '.join(found)


def test_the_rule_of_imports_finds_what_it_forbids():
    modules = ['crawl', 'faces', 'fid', 'ptt.parse', 'net.http', 'synthetic.heads', 'app.cli', 'policy', 'dataset']
    source = """
from ..crawl import crawl
from .http import Http
from pttface import pack
def late():
    import pttface.synthetic.heads
    from pttface.app import cli
    from pttface import policy
"""
    found = imported(source, 'pttface.net', modules)
    assert found == {'crawl', 'net.http', 'dataset', 'synthetic.heads', 'app.cli', 'policy'}
    allowed = [('faces', 'crawl'), ('faces', 'net.http'), ('app.cli', 'fid'), ('app.cli', 'synthetic.heads'),
               ('synthetic.heads', 'faces'), ('fid', 'policy'), ('net.http', 'ptt.parse'), ('policy', 'net.http')]
    forbidden = [('crawl', 'faces'), ('net.http', 'crawl'), ('policy', 'fid'), ('fid', 'app.cli'),
                 ('faces', 'synthetic.heads'), ('net.http', 'synthetic.heads'), ('synthetic.heads', 'app.cli')]
    assert [pair for pair in allowed if against_the_rule(*pair)] == []
    assert [pair for pair in forbidden if not against_the_rule(*pair)] == []
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) is None


def in_a_fresh_process(code):
    "What `code` prints when it runs in a Python of its own."
    r = subprocess.run([sys.executable, '-c', code], cwd=top, text=True, capture_output=True, timeout=120)
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def test_import_pttface_costs_nothing():
    heavy = in_a_fresh_process('import sys, pttface; print(sorted({"torch", "cv2", "numpy"} & set(sys.modules)))')
    assert heavy == '[]'
    names = in_a_fresh_process('import pttface; print(*(n for n in pttface.__all__ if n in dir(pttface)))')
    assert names.split() == ['crawl', 'download', 'extract_faces', 'pack', 'FaceData', 'train', 'sample', 'evaluate',
                             'distill', 'export_run', 'load_model']


@pytest.mark.parametrize('first', ['', 'import pttface.crawl, pttface.download', 'from pttface.crawl import crawl'])
def test_the_stages_come_from_pttface_alone(first):
    stages = 'crawl, download, extract_faces, pack, train, sample, evaluate'
    line = f'from pttface import {stages}'
    assert line in (top / 'README.md').read_text(encoding='utf-8')
    code = f"""{first}
{line}
import inspect, pttface, pttface.crawl, pttface.download
from pttface.crawl import crawl as crawl_function
assert pttface.crawl.crawl is crawl_function and pttface.download.download.__name__ == 'download'
assert pttface.crawl.CrawlSettings and pttface.crawl is crawl
assert str(inspect.signature(crawl)) == str(inspect.signature(crawl_function)) and crawl.__doc__
print(*(inspect.signature(f) is not None and callable(f) for f in ({stages})))"""
    assert in_a_fresh_process(code).split() == ['True']*7


def test_an_unknown_name_is_an_attribute_error():
    import pttface as package
    with pytest.raises(AttributeError, match='no attribute'):
        getattr(package, 'no_such_stage')  # noqa: B009
    assert list(inspect.signature(package.crawl).parameters)[:3] == ['board', 'since', 'until']


# tools/api.py: what a page of the site says about a function

@dataclass(frozen=True)
class Sieve:
    "What a sieve lets through"
    mesh: float = .5          # Width of a hole, mm
    kinds: tuple = ('sand',)  # What may pass


def shake(
    heap: np.ndarray,              # Grains, (N,) in mm
    sieve: Sieve = Sieve(),        # The holes  # noqa: B008
    seconds: float | None = None,  # How long; until nothing falls by default
) -> np.ndarray:  # Grains that fell through, (M,)
    "Shake `heap` through a sieve."
    return heap[heap < sieve.mesh]


@pytest.fixture
def api(monkeypatch):
    monkeypatch.syspath_prepend(top / 'tools')
    return importlib.import_module('api')


def test_the_site_finds_its_renderer(api):
    module, name = toml['tool']['nbdev']['renderer'].split('.')
    assert (top / f'tools/{module}.py').exists() and isinstance(getattr(api, name), type)
    assert 'PYTHONPATH: tools' in (top / '.github/workflows/docs.yml').read_text()


def test_types_and_calls_in_plain_words(api):
    assert api.type_words(float | None) == 'float or None'
    types = [api.type_words(o) for o in (np.ndarray, dict[str, list], tuple[np.ndarray, int], 'FaceData')]
    assert types == ['ndarray', 'dict[str, list]', 'tuple[ndarray, int]', 'FaceData']
    assert api.call_line('shake', api.params_of(shake)) == 'shake(heap, sieve=Sieve(), seconds=None)'
    assert api.call_line('Sieve', api.params_of(Sieve)) == "Sieve(mesh=0.5, kinds=('sand',))"


def test_an_entry_has_a_table_of_parameters(api):
    table = api.param_table(api.params_of(shake)).splitlines()
    assert table[0] == '|  | type | default | what it is |'
    assert table[2] == '| <code>heap</code> | <code>ndarray</code> |  | Grains, (N,) in mm |'
    assert table[-1].startswith('| **returns** | <code>ndarray</code> |')
    entry = api.ApiDoc(shake)._repr_markdown_()
    assert '### shake' in entry and '*Shake `heap` through a sieve.*' in entry


def test_an_entry_of_a_class_in_a_folder_has_its_comments(api):
    cell_class = type('Mirror', (), {'__module__': '__main__'})
    url = 'https://github.com/pttface/pttface/blob/main/pttface/storage/drive.py#L40'
    from pttface.storage.drive import Mirror
    assert api.exported(cell_class, url) is Mirror


def test_lines_of_modules_are_short():
    "120 columns at most, but for the list of names that nbdev writes."
    wide = []
    for p in sorted((top / 'pttface').rglob('*.py')):
        if p.name == '_modidx.py':
            continue
        text = re.sub(r'^__all__ = \[.*?\]\n', lambda m: '\n'*m[0].count('\n'), p.read_text(), flags=re.M | re.S)
        wide += [f'{p.relative_to(top)}:{i}' for i, line in enumerate(text.splitlines(), 1) if len(line) > 120]
    assert wide == []
