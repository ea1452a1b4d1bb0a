"""Run the Colab notebook as Colab would, with a stand-in for `google.colab`: `driver_worker.py CONTENT [SECONDS]`.

Drive is a folder under CONTENT/drive whose file operations are slow and sometimes fail, and which keeps a trash. With
DRIVE_BYTES it is full at that size and before each stage, and whenever a cell stops for that, some room is made and the
cell is run again; with LOST it is out of reach from the cell that holds this text until a cell stops for that.
"""
import json
import os
import sys

from fake_colab import FakeColab, cells, quick, real_open

env = os.environ.get
colab = FakeColab(sys.argv[1], int(env('FAULT_SEED', 0)), float(env('DRIVE_BYTES', 15e9)), bool(env('MOUNT_FAILS')))
budget = sys.argv[2] if len(sys.argv) > 2 else '6s'
lost, counts, drive = env('LOST', ''), colab.counts, colab.drive

from IPython.core.interactiveshell import InteractiveShell  # noqa: E402

quick()
shell = InteractiveShell.instance()
shell.run_line_magic, asked = (lambda name, line: asked.append((name, line))), []
for source in cells(colab.content, budget, env('KEEP', 'Drive')):
    if env('UNTIL') and env('UNTIL') in source:
        break
    colab.in_reach = colab.in_reach and not (lost and lost in source)
    if 'DRIVE_BYTES' in os.environ and 'keeping' in source:
        drive.capacity = min(drive.capacity, drive.used + 1000)
    for attempt in range(12):
        r = shell.run_cell(source, silent=True)
        error = r.error_before_exec or r.error_in_exec
        if error is None:
            break
        counts['stopped'].append((source.splitlines()[0], f'{type(error).__name__}: {error}'))
        if colab.in_reach and 'Drive is full' not in str(error):
            sys.exit(f'{source.splitlines()[0]}: {error!r}')
        colab.in_reach, lost = True, ''
        drive.capacity = max(drive.capacity, drive.used + 4**attempt*20_000)
    else:
        sys.exit(f'{source.splitlines()[0]} did not come to its end')
    if source.startswith('session ='):
        print(shell.user_ns['session'], flush=True)
assert {o[0] for o in asked} == {'pip'} and 'pttface @' in asked[0][1] and 'insightface' in asked[1][1]
real_open(colab.content / 'counts.json', 'w').write(json.dumps(counts))
