"Everything CI checks, quick checks first; the last line is `N passed, N failed, N skipped`."
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

top = Path(__file__).resolve().parent.parent
bin = Path(sys.executable).parent
env = {**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PTTFACE_BUDGET': '8s', 'PTTFACE_PHOTOS': '90',
       'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore', 'PATH': f'{bin}{os.pathsep}{os.environ["PATH"]}'}
models = top.parent / 'shared/models/insightface/scrfd_500m'
identity = top.parent / 'shared/models/identity/face_recognition.onnx'
if identity.is_file():
    env.setdefault('PTTFACE_IDENTITY_MODEL', str(identity))
if models.is_dir():
    env.setdefault('PTTFACE_INSIGHTFACE_MODELS', str(models))
results, failures = [], []


def run(*cmd, timeout=1800):
    "Run a command at the top of the repository; its exit status and output."
    try:
        r = subprocess.run(cmd, cwd=top, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           timeout=timeout)
    except subprocess.TimeoutExpired as e:
        return 124, f'{e.stdout or ""}\nstopped after {timeout} s'
    return r.returncode, r.stdout


def note(name, ok, output='', secs=0., counts=None):
    "Record a check and print how it went; the output of a failed one is shown. `counts`: passed, failed, skipped."
    results.append(counts or (int(ok), int(not ok), 0))
    print(f'{"ok  " if ok else "FAIL"} {name}' + (f' ({secs:.0f} s)' if secs >= 1 else ''), flush=True)
    if not ok:
        failures.append(name)
        print(re.sub('^', '     ', output.strip()[-6000:], flags=re.M), flush=True)


def check(name, *cmd, **kw):
    "Run a command as a check; it passes when its exit status is 0."
    start = time.time()
    rc, output = run(*cmd, **kw)
    note(name, rc == 0, output, time.time() - start)


def sources():
    "The bytes of every notebook and generated module."
    paths = [*top.glob('nbs/**/*.ipynb'), *top.glob('pttface/**/*.py')]
    return {p.relative_to(top): p.read_bytes() for p in paths if '.ipynb_checkpoints' not in p.parts}


def generated():
    "The modules are what the notebooks export, and the notebooks are clean."
    before, start = sources(), time.time()
    output = ''.join(run(str(bin / c))[1] for c in ('nbdev-export', 'nbdev-clean'))
    after = sources()
    changed = sorted(str(p) for p in {*before, *after} if before.get(p) != after.get(p))
    output += f'\nchanged: {", ".join(changed)}'
    note('export and clean leave no diff', not changed, output, time.time() - start)


def two_at_a_time(checks):
    "Make checks (name, command …), each printed as it ends."
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(check, *o) for o in checks]
    for job in jobs:
        job.result()


def imports():
    "Each module can be imported by itself."
    modules = ['.'.join(p.relative_to(top/'pttface').with_suffix('').parts)
               for p in sorted(top.glob('pttface/**/[!_]*.py'))]
    return [(f'import pttface.{m} in a fresh process', sys.executable, 'tools/imports.py', m) for m in modules]


def notebooks():
    "Each notebook runs from top to bottom."
    paths = [p.relative_to(top) for p in sorted(top.glob('nbs/**/*.ipynb'))]
    paths = [p for p in paths if not any(part.startswith(('.', '_')) for part in p.parts)]
    return [(f'notebook {p}', str(bin / 'nbdev-test'), str(p), '--n-workers', '0') for p in paths]


def tests():
    "The pytest suite in two processes; every test counts."
    start = time.time()
    how = '-x' if '--exitfirst' in sys.argv else '--tb=short'
    rc, output = run(sys.executable, '-m', 'pytest', '-q', '-rfEs', how, '-n', '2', '--dist', 'worksteal',
                     '--durations=8', timeout=3600)
    summary = output.splitlines()[-1] if output.strip() else ''
    count = {k: int(v) for v, k in re.findall(r'(\d+) (passed|failed|error|skipped)', summary)}
    passed, skipped = count.get('passed', 0), count.get('skipped', 0)
    failed = count.get('failed', 0) + count.get('error', 0)
    note(f'pytest, {passed} tests', rc == 0, output, time.time() - start, (passed, max(failed, int(rc != 0)), skipped))
    failures.extend(line[:300] for line in re.findall(r'^(?:FAILED|ERROR) .*', output, re.M))
    for line in re.findall(r'^(?:SKIPPED|[0-9.]+s (?:call|setup)) .*', output, re.M):
        print(f'     {line}', flush=True)


start = time.time()
generated()
check('ruff', sys.executable, '-m', 'ruff', 'check', 'pttface', 'tools', 'tests', 'setup.py')
two_at_a_time(imports())
check('README is current', sys.executable, 'tools/readme.py', '--check')
two_at_a_time([('docs site', sys.executable, 'tools/docs.py'), *notebooks()])
tests()
passed, failed, skipped = (sum(o) for o in zip(*results))
for line in failures:
    print(f'failed: {line}', flush=True)
print(f'{time.time() - start:.0f} s', flush=True)
print(f'{passed} passed, {failed} failed, {skipped} skipped', flush=True)
sys.exit(bool(failed))
