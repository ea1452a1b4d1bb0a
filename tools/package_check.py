"""Build the sdist and the wheel, install each into an empty environment, and use it from there.

`package_check.py [--borrow] [--python PYTHON]`. With `--borrow` the environments take what pttface requires from the
one that runs this, and nothing is fetched. Says what fails, and ends with status 1.
"""
import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

top = Path(__file__).resolve().parents[1]
SHIPPED = ('pttface', 'nbs', 'tests', 'tools', '.ci')  # Folders of which the sdist has every file
LEFT_OUT = {'__pycache__', '.ipynb_checkpoints', '.pytest_cache', '.hypothesis'}
TINY = ['--photos', '60', '--samples', '12', '--budget', '6s', '--no-progress']


def run(*cmd, cwd, timeout=900):
    "Run a command far from the repository; its output. Raises `SystemExit` with the end of it when it fails."
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')} | dict(TQDM_DISABLE='1')
    r = subprocess.run(list(map(str, cmd)), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    if r.returncode:
        raise SystemExit(f'{" ".join(map(str, cmd))} failed:\n{(r.stdout + r.stderr)[-3000:]}')
    return r.stdout


def build(out, python=sys.executable, source=top):
    "Build the sdist of `source`, and the wheel from the sdist; their paths."
    code = 'import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))'
    sdist = Path(out)/run(python, '-c', code, 'build_sdist', out, cwd=source).split()[-1]
    with tempfile.TemporaryDirectory() as d:
        unpack(sdist, d)
        wheel = Path(out)/run(python, '-c', code, 'build_wheel', out, cwd=d).split()[-1]
    return sdist, wheel


def unpack(sdist, folder):
    "The files of an sdist in `folder`."
    with tarfile.open(sdist) as t:
        for m in t:
            m.name = m.name.partition('/')[2]
            if m.name:
                t.extract(m, folder, filter='data')


def missing(sdist, wheel):
    "Files of the repository that are not in what is shipped."
    with tarfile.open(sdist) as t:
        shipped = {m.name.partition('/')[2] for m in t if m.isfile()}
    with zipfile.ZipFile(wheel) as z:
        installed = set(z.namelist())
    here = [p for name in SHIPPED for p in (top/name).rglob('*') if p.is_file() and not LEFT_OUT & set(p.parts)]
    names = [p.relative_to(top).as_posix() for p in here]
    names += ['Makefile', *(o.name for o in top.glob('*.md')), 'LICENSE', 'settings.ini', 'setup.py', 'pyproject.toml']
    gone = [f'{o} (sdist)' for o in names if o not in shipped]
    return gone + [f'{o} (wheel)' for o in names if o.startswith('pttface/') and o not in installed]


def install(package, venv, borrow=True, python=sys.executable):
    "An empty environment with `package` in it; its Python. `borrow`: what it requires comes from this environment."
    run(python, '-m', 'venv', *['--without-pip']*borrow, venv, cwd=top)
    inside = Path(venv)/'bin/python'
    pip = [inside, '-m', 'pip', 'install', '--quiet']
    if borrow:
        site = Path(run(inside, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])', cwd=venv).strip())
        (site/'borrowed.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
        pip = [sys.executable, '-m', 'pip', '--python', inside, 'install', '--quiet', '--no-deps', '--ignore-installed',
               '--no-build-isolation']
    run(*pip, package, cwd=venv)
    where = run(inside, '-c', 'import pttface; print(pttface.__file__)', cwd=venv).strip()
    if not Path(where).is_relative_to(Path(venv).resolve()):
        raise SystemExit(f'{where} was imported, not what was installed in {venv}')
    return inside


def main():
    p = argparse.ArgumentParser(prog='make package-check', description=__doc__.split('\n')[0])
    p.add_argument('--borrow', action='store_true', help='take the requirements from this environment')
    p.add_argument('--python', default=sys.executable, help='the Python of the empty environments')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        packages = build(d)
        if (gone := missing(*packages)):
            raise SystemExit('not shipped: ' + ', '.join(gone))
        for package in packages:
            venv = Path(d)/f'{package.suffix.strip(".")}-venv'
            python = install(package, venv, args.borrow, args.python)
            if not args.borrow:
                run(python, '-m', 'pip', 'check', cwd=d)
            assert 'usage' in run(venv/'bin/pttface', '--help', cwd=d)
            run(venv/'bin/pttface', 'demo', '--root', venv/'demo', *TINY, cwd=d)
            print(f'ok   {package.name}: installed, `pttface --help` and a tiny demo', flush=True)


if __name__ == '__main__':
    main()
