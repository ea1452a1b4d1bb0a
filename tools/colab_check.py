"""Install pttface as the Colab notebook does, beside the versions that Colab has, and run the notebooks there.

`colab_check.py [--python PYTHON] [--venv FOLDER] [--minutes M] [--jobs N]`. The last line is `N passed, N failed, N
skipped`.
Fails when a package that was there has another version afterwards, when two packages that were installed share files
(two ONNX Runtimes do), or when a notebook fails under Colab's kernel or shows a widget that ipywidgets 7.7 cannot draw.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

top = Path(__file__).resolve().parent.parent
PINS = top / 'tools/colab_pins.txt'
INSIDE = top / 'tools/colab_inside.py'
NOTEBOOKS = ['nbs/colab.ipynb', *sorted(str(p.relative_to(top)) for p in top.glob('nbs/0?_*.ipynb'))]
LIMITS = {'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PTTFACE_BUDGET': '8s', 'PTTFACE_PHOTOS': '90',
          'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore,error:Passing unrecognized arguments:DeprecationWarning',
          'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_WARN_SCRIPT_LOCATION': '1'}


def pins(text):
    "The lines `package==version` of a list, without its comments."
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith('#')]


def changed(before, after):
    "Sentences about packages that were there and now have another version, or are gone."
    names = [k for k in sorted(before) if after.get(k) != before[k]]
    return [f'{k} was {before[k]} and is now {after.get(k, "gone")}' for k in names]


def newly_shared(before, after):
    "Sentences about packages that share files now and did not before."
    return [f'{pair} share {n} files' for pair, n in sorted(after.items()) if pair not in before]


def runs(python):
    "Does this Python run? Its version as (3, 13); `None` where it does not."
    try:
        r = subprocess.run([python, '-c', 'import sys; print(*sys.version_info[:2])'], capture_output=True, text=True)
    except OSError:
        return None
    return tuple(map(int, r.stdout.split())) if r.returncode == 0 else None


class Check:
    "Commands run one after another, within a number of minutes in all, and how each went"
    def __init__(self, minutes):
        self.start, self.end = time.time(), time.time() + 60*minutes
        self.results, self.failures = [], []

    def run(self, *cmd):
        "Run a command; its exit status and output. 124: time was up."
        left = self.end - time.time()
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')} | LIMITS
        if left < 1:
            return 124, ''
        try:
            r = subprocess.run([str(c) for c in cmd], cwd=top, env=env, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, timeout=left)
        except subprocess.TimeoutExpired as e:
            output = e.stdout or ''
            return 124, output if isinstance(output, str) else output.decode(errors='replace')
        return r.returncode, r.stdout

    def note(self, name, word, output='', seconds=0.):
        "Print how a check went (`ok`, `FAIL` or `skip`), and why."
        self.results.append(word)
        print(f'{word:4} {name}' + (f' ({seconds:.0f} s)' if seconds >= 1 else ''), flush=True)
        if word == 'FAIL':
            self.failures.append(f'{name}: {(output.strip().splitlines() or [""])[-1][:200]}')
        if word != 'ok' and output:
            print(re.sub('^', '     ', output.strip()[-6000:], flags=re.M), flush=True)

    def step(self, name, *cmd, installs=False):
        "Run a command as a check; its output, or `None` when it failed or time was up. Does it need the network?"
        start = time.time()
        rc, output = self.run(*cmd)
        word = word_for(rc, output if installs else '')
        self.note(name, word, output or 'no time was left for it', time.time() - start)
        return output if rc == 0 else None

    def finish(self):
        "Print what failed and the last line; the exit status."
        for line in self.failures:
            print(f'failed: {line}', flush=True)
        print(f'{time.time() - self.start:.0f} s', flush=True)
        n = {word: self.results.count(word) for word in ('ok', 'FAIL', 'skip')}
        print(f'{n["ok"]} passed, {n["FAIL"]} failed, {n["skip"]} skipped', flush=True)
        return int(n['FAIL'] > 0)


def refused(output):
    "The requirement that pip could not meet, from its message; `None` when it says nothing of the kind."
    m = re.search(r'No matching distribution found for ([A-Za-z0-9._-]+==\S+)', output)
    return m[1] if m else None


LACKS = re.compile('Read timed out|ConnectionError|NewConnectionError|Max retries exceeded|Temporary failure|'
                   'Connection (?:reset|aborted|refused)|No space left on device|IncompleteRead')


def word_for(rc, output):
    "How a command went: `skip` where time was up, or where the network or the disk of this machine failed it."
    if rc == 0:
        return 'ok'
    return 'skip' if rc == 124 or LACKS.search(output) else 'FAIL'


def restored(check, venv, stamp):
    "Is there a runtime made of the same list? What was installed into it later is taken out again."
    made = venv / 'made_of.json'
    if not made.exists():
        return False
    record = json.loads(made.read_text())
    if record['stamp'] != stamp:
        return False
    later = sorted(set(state_of(check, venv)['versions']) - set(record['versions']))
    if later:
        check.run(venv / 'bin/python', '-m', 'pip', 'uninstall', '--quiet', '--yes', *later)
    now = state_of(check, venv)
    return now['versions'] == record['versions'] and not newly_shared(record['shared'], now['shared'])


def build(check, python, venv):
    "Make the runtime, or take the one that is there when it was made of the same list; is there one now?"
    wanted = pins(PINS.read_text())
    stamp = hashlib.sha256(f'{runs(python)} {wanted}'.encode()).hexdigest()
    if restored(check, venv, stamp):
        return True
    shutil.rmtree(venv, ignore_errors=True)
    rc, output = check.run(python, '-m', 'venv', venv)
    pip = [venv / 'bin/python', '-m', 'pip', 'install', '--quiet', '--no-compile']
    left = list(wanted)
    while rc == 0:
        rc, output = check.run(*pip, '--no-deps', *left)
        if rc == 0 or refused(output) not in left:
            break
        left.remove(refused(output))
        print(f'     left out, this Python cannot install it: {refused(output)}', flush=True)
        rc = 0
    if rc == 0:  # what torch brings and Colab has from elsewhere, above all CUDA's libraries
        torch = [o for o in left if o.startswith('torch')]
        rc, output = check.run(*pip, '--constraint', constraints(venv, left), *torch, 'jedi')
    if rc != 0:
        check.note('a runtime with the versions of Colab', word_for(rc, output), output)
        return False
    (venv / 'made_of.json').write_text(json.dumps(dict(stamp=stamp, **state_of(check, venv))))
    return True


def constraints(venv, wanted):
    "A file of constraints that holds every package of the list where it is."
    path = venv / 'constraints.txt'
    path.write_text('\n'.join(wanted))
    return path


def index_in_reach(check, python):
    "Can pip reach a package index from here?"
    folder = top / '.venv-colab-probe'
    rc, _ = check.run(python, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-cache-dir', '--dest', folder,
                      'tabulate==0.9.0')
    shutil.rmtree(folder, ignore_errors=True)
    return rc == 0


def state_of(check, venv):
    "What is installed in the runtime."
    rc, output = check.run(venv / 'bin/python', INSIDE, 'packages')
    if rc != 0:
        raise SystemExit(output)
    return json.loads(output.splitlines()[-1])


def check_all(check, python, venv, jobs):
    "Build, install, compare and run."
    start = time.time()
    if not build(check, python, venv):
        return
    major, minor = runs(python)
    check.note(f'a runtime with the versions of Colab, Python {major}.{minor}', 'ok', seconds=time.time() - start)
    before = state_of(check, venv)
    if check.step("the driver's install cells", venv / 'bin/python', INSIDE, 'install', installs=True) is None:
        return
    after = state_of(check, venv)
    said = changed(before['versions'], after['versions'])
    check.note('what was there has kept its version', 'FAIL' if said else 'ok', '\n'.join(said))
    said = newly_shared(before['shared'], after['shared'])
    check.note('nothing was installed over another package', 'FAIL' if said else 'ok', '\n'.join(said))
    loads = 'from insightface.app import FaceAnalysis; import onnxruntime'
    check.step('InsightFace can be loaded', venv / 'bin/python', '-c', loads)
    python = venv / 'bin/python'
    check.step('the curator in classic Notebook 6.5', sys.executable, top / 'tools/colab_browser.py', venv)
    with ThreadPoolExecutor(jobs) as pool:
        runs_of = [pool.submit(check.step, f'{p} in the runtime', python, INSIDE, 'run', p) for p in NOTEBOOKS]
    for o in runs_of:
        o.result()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--python', default=os.environ.get('PTTFACE_COLAB_PYTHON', sys.executable))
    parser.add_argument('--venv', type=Path, default=top / '.venv-colab')
    parser.add_argument('--minutes', type=float, default=30., help='when time is up, the rest is skipped')
    parser.add_argument('--jobs', type=int, default=2, help='notebooks at a time')
    args = parser.parse_args()
    check = Check(args.minutes)
    if runs(args.python) is None:
        raise SystemExit(f'{args.python} is no Python that runs')
    if index_in_reach(check, args.python):
        check_all(check, args.python, args.venv.absolute(), args.jobs)
    else:
        check.note('the Colab runtime', 'skip', 'no package index is in reach, so it cannot be built')
    sys.exit(check.finish())


if __name__ == '__main__':
    main()
