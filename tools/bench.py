"Measure one thing: `python tools/bench.py NAME` prints a table and writes runs/bench/NAME.json."
import argparse
import os
import platform
import shutil
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
columns = ('what', 'value', 'unit', 'peer', 'peer_value', 'ratio', 'n', 'spread')


def machine():
    "The machine in a few words."
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    versions = f'Python {platform.python_version()}, torch {torch.__version__.partition("+")[0]}'
    return f'{os.cpu_count()} cores, {gpu}, {versions}'


def main():
    from pttface.display import Table
    from pttface.storage.files import write_json
    names = sorted(p.stem.removeprefix('bench_') for p in here.glob('bench_*.py'))
    p = argparse.ArgumentParser(prog='make bench WHAT=name', description=__doc__)
    p.add_argument('name', choices=names, help='what to measure')
    p.add_argument('--smoke', action='store_true',
                   help='the smallest run that shows that it works; its figures mean nothing and are not written')
    p.add_argument('--keep', action='store_true', help='keep the figures for the benchmarks page too')
    args = p.parse_args()
    bench = import_module(f'bench_{args.name}').bench
    rows = [{c: r.get(c) for c in columns} for r in (bench(smoke=True) if args.smoke else bench())]
    print(Table(rows))
    if args.smoke:
        return
    out = here.parent / 'runs/bench' / f'{args.name}.json'
    write_json(out, rows)
    print(f'written to {out.relative_to(here.parent)}')
    if not args.keep:
        return
    kept = here.parent / f'nbs/benchmarks/{args.name}.json'
    write_json(kept, dict(date=f'{date.today()}', machine=machine(), rows=rows))
    if out.with_suffix('.jpg').exists():
        shutil.copy(out.with_suffix('.jpg'), kept.parent)


if __name__ == '__main__':
    main()
