"""The curator over 5,000 faces: scoring them, faces like a given one, and a map of all.

`bench_data` times the turning of its pages.

What the kernel does is in CPU milliseconds, what a browser shows by the clock; `CURATOR_BROWSER=off` leaves that out,
on a machine that is too busy for it to mean anything.
"""
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import bench_data
import numpy as np
from bench_data import TURN, curator_in_jupyterlab


def milliseconds(f, times):
    "CPU milliseconds of each of several calls with 0, 1, …"
    found = []
    for i in range(times):
        start = time.process_time()
        f(i)
        found.append(1000*(time.process_time() - start))
    return found


def with_features(root):
    "Leave features of all faces where the curator looks for them: those of a few, each a little changed."
    from pttface.curation.quality import load_faces
    from pttface.evaluation.features import cached_features, load_protocol
    from pttface.storage.files import content_hash, write_npz
    ims, rng = load_faces(root)[1], np.random.default_rng(0)
    few = cached_features(ims[:32], progress=False)
    feats = few[rng.integers(0, len(few), len(ims))] + .05*rng.normal(size=(len(ims), few.shape[1]))
    write_npz(root/f'eval/real-{load_protocol().version}-{content_hash(ims)}.npz', features=feats.astype(np.float32))


def in_jupyterlab(tmp, root, turns):
    "Milliseconds from click to picture of faces like one; nothing without JupyterLab and a browser"
    if os.environ.get('CURATOR_BROWSER') == 'off':
        return []
    found = []
    with curator_in_jupyterlab(tmp, root) as b:
        def shown(button):
            time.sleep(.3)
            return b.page.evaluate(TURN.replace('.pf-next', button))
        for _ in range(turns + 1 if b else 0):
            found.append(shown('.pf-more'))
            shown('.pf-return')
            shown('.pf-next')  # Another face is the first one there
    return found[1:]  # At first the kernel reads the features


def bench(smoke=False):
    from pttface.curation.curator import Curator
    from pttface.curation.map import MapCurator
    from pttface.curation.quality import quality_scores
    from test_curator import make
    n, turns, rows = 300 if smoke else 5000, 2 if smoke else 20, []
    def row(what, values, unit='CPU ms'):
        if values:
            spread = bench_data._spread(values)
            rows.append(dict(what=what, value=float(np.median(values)), unit=unit, n=len(values), spread=spread))
    with tempfile.TemporaryDirectory() as tmp:
        root = make(Path(tmp)/'run', n, bench_data._faces(n))
        with_features(root)
        scoring = milliseconds(lambda _: quality_scores(root, outliers=False, progress=False), 1)
        row('scoring all faces', [scoring[0]/1000], 'CPU s')
        row('opening the curator', milliseconds(lambda _: Curator(root, outliers=False, progress=False), 3))
        c = Curator(root, outliers=False, progress=False)
        row('directions of all faces, the first time', milliseconds(lambda _: c.session.feature_directions(), 1))
        row('the 200 nearest of a face', milliseconds(lambda i: c.session.nearest([7*i], 200), turns))
        def like(i):
            c.last = int(c.order[i])
            c.more_like_this()
        found = []
        for i in range(turns):
            found += milliseconds(lambda _, i=i: like(i), 1)
            c.back_to_all()
        row('more like this, kernel', found)
        for layout in ('neighbours', 'pca'):
            row(f'map of all faces, {layout}', milliseconds(lambda _, o=layout: c.session.face_map(layout=o), 3))
        if find_spec('jscatter'):
            opened = milliseconds(lambda _: MapCurator(root, outliers=False, progress=False), 3)
            row('opening the curator with a map', opened[1:])  # At first pandas is imported
        row('more like this, JupyterLab', in_jupyterlab(Path(tmp), root, turns), 'ms')
    return rows
