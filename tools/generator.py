"""The generator of the page "Draw one": a trained run, in 16 bits, and the runtime for browsers, into a built site.

It takes the run named by the variable PTTFACE_GENERATOR (a run's folder, or one that `pttface export` made), else the
one that `make demo` trains. Without a run, or without Node's npm, the page keeps its still, which says how to build it.
"""
import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from pttface.diffusion import Run
from pttface.draw import write_generator
from pttface.export import draw_first, load_model
from pttface.storage.files import BadInput, atomic_path, write_json

top = Path(__file__).resolve().parent.parent
extras, DEMO = top / 'tools/site', top / 'runs/demo/runs/tiny'
# ONNX Runtime for browsers, as npm has it, and what its archive must hash to
VERSION = '1.30.0'
INTEGRITY = 'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
RUNTIME = ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm')  # Without GPU; the glue is in the first


def runtime(cache=top / 'build'):
    "The runtime's files, fetched with npm once; raises `BadInput` where there is no npm, or nothing that it reaches."
    folder = Path(cache) / f'onnxruntime-web-{VERSION}'
    files = [folder / o for o in RUNTIME]
    if all(o.exists() for o in files):
        return files
    npm = shutil.which('npm')
    if npm is None:
        raise BadInput('there is no npm: install Node.js 18 or newer')
    folder.mkdir(parents=True, exist_ok=True)
    try:
        r = subprocess.run([npm, 'pack', f'onnxruntime-web@{VERSION}', '--pack-destination', str(folder), '--silent'],
                           cwd=folder, text=True, capture_output=True, timeout=600)
    except subprocess.TimeoutExpired as e:
        raise BadInput(f'npm has not fetched onnxruntime-web {VERSION} in 10 minutes') from e
    archive = folder / f'onnxruntime-web-{VERSION}.tgz'
    if r.returncode or not archive.exists():
        raise BadInput(f'npm cannot fetch onnxruntime-web {VERSION}: {" ".join(r.stderr.split())[:200]}')
    unpack(archive, folder)
    archive.unlink()
    return files


def unpack(archive, folder):
    "Take the files of `RUNTIME` out of the archive; raises `BadInput` where it is not the one that is pinned."
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f'sha512-{digest}' != INTEGRITY:
        raise BadInput(f'{archive.name} is not the archive that tools/generator.py pins')
    with tarfile.open(archive) as tar:
        for name in RUNTIME:
            with atomic_path(folder / name) as p, tar.extractfile(f'package/dist/{name}') as source:
                p.write_bytes(source.read())


def find_run(path=None):
    "The run, or exported model, to draw from; raises `BadInput` where there is none."
    path = Path(path or os.environ.get('PTTFACE_GENERATOR') or DEMO)
    if (path / 'config.json').exists():
        return load_model(path)
    if not (path / 'recipe.json').exists():
        raise BadInput(f'there is no run {path}: `make demo` trains one, or PTTFACE_GENERATOR names one')
    return Run(path)


def controls(table):
    "A choice for each label that the network was told."
    out = []
    for label, values in table['labels'].items():
        options = ''.join(f'<option>{escape(o)}</option>' for o in values)
        words = f'<option value="">any</option>{options}'
        out.append(f'<label>{escape(label.capitalize())} <select name="{escape(label)}">{words}</select></label>')
    return '\n'.join(out)


def widget(table):
    "The form of the page."
    size = sum(table['files'].values()) / 1e6
    words = dict(size=f'{size:.0f}', run=escape(table['run']), parameters=f'{table["parameters"]:,}')
    form = Template((extras / 'draw.html').read_text(encoding='utf-8'))
    return form.substitute(labels=controls(table), **words).strip()


def place(text):
    "Where on the page the generator stands, or what is shown without one: (begin, end), or `None`."
    begin = re.search(r'<(div|form) id="draw-one"', text)
    if begin is None:
        return None
    depth = 0
    for m in re.compile(rf'<(/?){begin[1]}\b[^>]*>').finditer(text, begin.start()):
        depth += -1 if m[1] else 1
        if not depth:
            return begin.start(), m.end()
    return None


def add(site, path=None, cache=top / 'build'):
    "Put a generator into the built `site`; what was done, in a sentence. Raises `BadInput` where it cannot be."
    site = Path(site)
    page = site / 'draw.html'
    text = page.read_text(encoding='utf-8')
    found = place(text)
    if not found:
        raise BadInput(f'{page} has no place for a generator')
    run, files = find_run(path), runtime(cache)
    shutil.rmtree(site / 'draw', ignore_errors=True)
    table = write_generator(run, site / 'draw')
    for o in (*files, extras / 'draw.js', extras / 'draw.css'):
        shutil.copyfile(o, site / 'draw' / o.name)
    table['files'] |= {RUNTIME[1]: files[1].stat().st_size}
    write_json(site / 'draw/generator.json', table | dict(runtime=RUNTIME[0]))
    head = '<link rel="stylesheet" href="draw/draw.css">\n<script type="module" src="draw/draw.js"></script>\n'
    text = f'{text[:found[0]]}{widget(table)}{text[found[1]:]}'.replace(head, '')
    page.write_text(text.replace('</head>', f'{head}</head>', 1), encoding='utf-8')
    megabytes = sum(o.stat().st_size for o in (site / 'draw').iterdir()) / 1e6
    return f'a generator in {site.name}/draw.html, from the run {run.path.name}: {megabytes:.0f} MB'


def draw_still(path, run=None):
    "Write the picture that the page shows without a generator: 16 heads, twice as large."
    sheet = draw_first(find_run(run), 'cpu')
    sheet.resize([2 * o for o in sheet.size], Image.Resampling.BICUBIC).save(path, optimize=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--site', default=top / '_docs', help='the built site')
    p.add_argument('--run', help="a run's folder, or an exported one")
    p.add_argument('--still', help='write the picture of the page without a generator, and nothing else')
    args = p.parse_args()
    try:
        print(draw_still(args.still, args.run) or args.still if args.still else add(args.site, args.run))
    except BadInput as e:
        sys.exit(str(e))


if __name__ == '__main__':
    main()
