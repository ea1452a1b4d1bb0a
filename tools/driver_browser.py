"""The Colab notebook run whole in JupyterLab and Chromium, on a stand-in for Colab: `driver_browser.py FOLDER`.

From nothing; cut off in the download and in the training and run again; with a Drive that cannot be mounted, and with
one that goes out of reach. Writes a picture of each page and what was shown into FOLDER, and says what went wrong.
"""
import json
import shutil
import sys
import time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(top), str(top / 'tests')]
from browser import Browser, lacks  # noqa: E402
from fake_colab import cells  # noqa: E402
from lab import jupyter_lab, write_notebook  # noqa: E402

START = """import sys
sys.path[:0] = [{tests!r}]
from fake_colab import FakeColab, quick, real_open
colab = FakeColab({content!r}, {seed}, mount_fails={mount_fails})
get_ipython().run_line_magic = lambda name, line: None
quick()"""
END = "real_open(colab.content / 'ended', 'w').write('yes')"
LOSE = 'colab.in_reach = False'


def write(folder, content, seed, mount_fails=False, lost=''):
    "The notebook with the stand-in before it and a mark behind; Drive goes before the cell that holds `lost`."
    start = START.format(tests=str(top / 'tests'), content=str(content), seed=seed, mount_fails=mount_fails)
    between = [([LOSE] if lost and lost in s else []) + [s] for s in cells(content)]
    write_notebook(folder / 'driver.ipynb', start, *(s for o in between for s in o), END)


def run_all(b, lab):
    "Open the page and run all of it."
    b.goto(lab.address('driver.ipynb'))
    b.page.locator('.jp-Notebook .cm-content').first.click()
    for _ in range(300):
        if lab.ask('kernels'):
            break
        b.page.wait_for_timeout(200)
    b.wait("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'", 90)
    b.page.get_by_role('menuitem', name='Run', exact=True).click()
    b.page.get_by_text('Run All Cells', exact=True).click()


def wait_for(reached, lab, seconds=900):
    "Wait until `reached()`, or until the kernel has nothing to do; was it reached?"
    end, idle = time.monotonic() + seconds, 0
    while not reached() and idle < 50 and time.monotonic() < end:
        time.sleep(.2)
        idle = idle + 1 if all(k['execution_state'] == 'idle' for k in lab.ask('kernels')) else 0
    return reached()


def shown(b, lab, folder, name):
    "Save the page, and a picture of it; what failed in it."
    b.key('Control+s')
    b.page.wait_for_timeout(3000)
    b.size(1000, 12_000)
    b.eval("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    b.page.wait_for_timeout(3000)
    b.screenshot(folder / f'{name}.png')
    b.size(1280, 900)
    nb = lab.ask('contents/driver.ipynb')['content']
    (folder / f'{name}.json').write_text(json.dumps(nb, indent=1))
    outputs = [o for c in nb['cells'] if c['cell_type'] == 'code' for o in c['outputs']]
    return [f'{o["ename"]}: {o["evalue"]}' for o in outputs if o['output_type'] == 'error']


def main(folder):
    if lacks:
        raise SystemExit(lacks)
    folder = Path(folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    drive, content = folder / 'MyDrive', folder / 'content'
    drive.mkdir(parents=True)
    data = drive / 'pttface-drawn'
    ended = (content / 'ended').exists
    until = {'cut off in the download': lambda: any(p.stat().st_size > 2000 for p in data.glob('photos/ledger_*')),
             'cut off in the training': lambda: any(data.glob('runs/tiny/checkpoint-*.pt')),
             'run again': ended}
    amiss = []

    def session(name, reached, comes=True, **kw):
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        write(folder, content, len(name), **kw)
        start = time.monotonic()
        with jupyter_lab(folder, folder / 'home') as lab, Browser() as b:
            run_all(b, lab)
            far = wait_for(reached, lab)
            b.page.wait_for_timeout(1000)
            wrong = shown(b, lab, folder, name.replace(' ', '_'))
        shutil.rmtree(folder / 'home', ignore_errors=True)
        print(f'{name}: {time.monotonic() - start:.0f} s, {wrong or "nothing failed"}', flush=True)
        amiss.extend([] if far == comes else [f'{name}: came {"to its end" if far else "not so far"}'])
        return wrong

    for name, reached in until.items():
        amiss += session(name, reached)
    shutil.rmtree(drive)
    drive.mkdir()
    amiss += session('a drive that cannot be mounted', ended, mount_fails=True)
    said = session('a drive out of reach', ended, comes=False, lost='photos = download')
    amiss += [] if said and all(o.startswith('BadInput: ') for o in said) else [f'out of reach: {said}']
    print('\n'.join(amiss) or 'all as it should be')
    sys.exit(bool(amiss))


if __name__ == '__main__':
    main(*sys.argv[1:])
