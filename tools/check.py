"Everything CI checks, in the order of how soon it tells; ends with `N passed, N failed`."
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

top = Path(__file__).resolve().parent.parent
bin = Path(sys.executable).parent
env = {**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PTTFACE_BUDGET': '8s', 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore', 'PATH': f'{bin}{os.pathsep}{os.environ["PATH"]}'}
models = top.parent / 'shared/models/insightface/scrfd_500m'
if models.is_dir():
    env.setdefault('PTTFACE_INSIGHTFACE_MODELS', str(models))
results = []


def run(*cmd, timeout=1800):
    "Run a command at the top of the repository; its exit status and what it said."
    try:
        r = subprocess.run(cmd, cwd=top, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as e:
        return 124, f'{e.stdout or ""}\nstopped after {timeout} s'
    return r.returncode, r.stdout


def note(name, ok, said='', secs=0., n=1):
    "Record a check and say how it went; what a failed one said is shown."
    results.append((n if ok else 0, 0 if ok else 1))
    print(f'{"ok  " if ok else "FAIL"} {name}{f" ({secs:.0f} s)" if secs >= 1 else ""}' + ('' if ok else '\n' + re.sub('^', '     ', said.strip()[-6000:], flags=re.M)), flush=True)


def check(name, *cmd, **kw):
    start = time.time()
    rc, said = run(*cmd, **kw)
    note(name, rc == 0, said, time.time() - start)
    return said


def sources():
    "The bytes of every notebook and generated module."
    return {p.relative_to(top): p.read_bytes() for p in [*top.glob('nbs/**/*.ipynb'), *top.glob('pttface/**/*.py')] if '.ipynb_checkpoints' not in p.parts}


def generated():
    "The modules are what the notebooks export, and the notebooks are clean."
    before, start = sources(), time.time()
    said = ''.join(run(str(bin / c))[1] for c in ('nbdev-export', 'nbdev-clean'))
    after = sources()
    changed = sorted(str(p) for p in {*before, *after} if before.get(p) != after.get(p))
    note('export and clean leave no diff', not changed, f'{said}\nchanged: {", ".join(changed)}', time.time() - start)


def notebooks():
    "Each notebook runs from top to bottom, two at a time."
    paths = [p.relative_to(top) for p in sorted(top.glob('nbs/**/*.ipynb'))]
    paths = [p for p in paths if not any(part.startswith(('.', '_')) for part in p.parts)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda p: check(f'notebook {p}', str(bin / 'nbdev-test'), str(p), '--n-workers', '0'), paths))


def tests():
    "The pytest suite; every test counts."
    start = time.time()
    rc, said = run(sys.executable, '-m', 'pytest', '-q', '-x' if '--exitfirst' in sys.argv else '--tb=short', '--durations=8')
    count = {k: int(v) for v, k in re.findall(r'(\d+) (passed|failed|error)', said.splitlines()[-1] if said.strip() else '')}
    bad = count.get('failed', 0) + count.get('error', 0)
    note(f'pytest, {count.get("passed", 0)} tests', rc == 0, said, time.time() - start, n=count.get('passed', 0))
    if rc:
        results[-1] = (count.get('passed', 0), max(bad, 1))


start = time.time()
generated()
check('ruff', sys.executable, '-m', 'ruff', 'check', 'pttface', 'tools', 'tests', 'setup.py')
for p in sorted(top.glob('pttface/**/[!_]*.py')):
    module = '.'.join(p.relative_to(top/'pttface').with_suffix('').parts)
    check(f'import pttface.{module} in a fresh process', sys.executable, 'tools/imports.py', module)
check('README is current', sys.executable, 'tools/readme.py', '--check')
notebooks()
check('docs site', sys.executable, 'tools/docs.py')
tests()
passed, failed = (sum(o) for o in zip(*results))
print(f'{time.time() - start:.0f} s', flush=True)
print(f'{passed} passed, {failed} failed', flush=True)
sys.exit(bool(failed))
