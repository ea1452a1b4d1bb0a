"What a page would illustrate badly: power cuts, damaged disks and several processes"
import errno
import logging
import multiprocessing as mp
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pttface.diffusion import Checkpoints,Run,sample,train
from pttface.store import BadInput

sys.path.insert(0, str(Path(__file__).parent))
from diffusion_worker import SMALL,data,work

CTX = mp.get_context('forkserver')
CTX.set_forkserver_preload(['pttface.diffusion', 'diffusion_worker'])

def run_in_child(*args, **kw):
    p = CTX.Process(target=work, args=args, kwargs=kw)
    p.start()
    p.join(60)
    assert p.exitcode is not None, 'the training hangs'
    return p.exitcode

def flat(o, at=''):
    if isinstance(o, dict): return {k2:v2 for k,v in o.items() for k2,v2 in flat(v, f'{at}/{k}').items()}
    if isinstance(o, list): return flat(dict(enumerate(o)), at)
    return {at:o}

def same(a, b):
    "Are two runs equal bit for bit: weights, averages, optimiser, log?"
    x,y = (flat(o.checkpoints.load()[0]) for o in (a, b))
    assert x.keys() == y.keys()
    for k in x.keys() - {'/seconds'}:
        assert torch.equal(x[k], y[k]) if isinstance(x[k], torch.Tensor) else x[k] == y[k], k
    strip = lambda rows: [{k:v for k,v in r.items() if k not in ('seconds','images_per_s')} for r in rows]
    assert strip(a.log) == strip(b.log)

@pytest.fixture(scope='module')
def root(tmp_path_factory): return tmp_path_factory.mktemp('runs')/'root'

@pytest.fixture(scope='module')
def whole(root):
    assert run_in_child(str(root), 'whole') == 0
    return Run.open(root, 'whole')

def test_ten_power_cuts(root, whole):
    steps = sorted(np.random.default_rng(0).choice(np.arange(1, 24), 10, replace=False).tolist())
    for i,at in enumerate(steps):
        assert run_in_child(str(root), 'cut', at=at if i%2 else at//3*3 or 3, how='step' if i%2 else 'save') in (-9, 0)
    assert run_in_child(str(root), 'cut') == 0
    cut = Run.open(root, 'cut')
    same(whole, cut)
    assert not list(cut.path.glob('checkpoint-*.pt.*')), 'a torn file was left'

@pytest.mark.parametrize('damage', ['torn','flipped','gone','empty'])
def test_damaged_checkpoint(root, whole, damage, caplog):
    name = f'damaged-{damage}'
    assert run_in_child(str(root), name, budget='120 images') == 0
    run = Run.open(root, name)
    file = run.path/run.checkpoints.rows[-1]['file']
    raw = file.read_bytes()
    if damage == 'gone': file.unlink()
    else: file.write_bytes(dict(torn=raw[:len(raw)//2], flipped=raw[:9999] + bytes([raw[9999]^1]) + raw[10000:], empty=b'')[damage])
    with caplog.at_level(logging.WARNING): state,row = run.checkpoints.load()
    assert file.name in caplog.text and state['step'] < 15 and row['file'] != file.name

def test_all_damaged(tmp_path):
    c = Checkpoints(tmp_path)
    c.save(dict(step=1), 1)
    (tmp_path/'checkpoint-00000001.pt').write_bytes(b'nonsense')
    assert c.load() is None

def test_full_disk(tmp_path, monkeypatch):
    save,root = torch.save,tmp_path/'root'
    def full(state, path):
        if state['step'] < 6: return save(state, path)
        Path(path).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='checkpoint 6 could not be written .* the last good one is checkpoint-00000003.pt'):
        train(data(), SMALL, root=root, budget='192 images', device='cpu', progress=False)
    run = Run.open(root, 'small')
    assert [o.name for o in run.path.glob('*checkpoint-*')] == ['checkpoint-00000003.pt'] and run.checkpoints.load()[0]['step'] == 3

def test_another_data_set(root, whole):
    other = data()
    other.card['hash'] = 'elsewhere'
    before = {o.name:o.stat().st_mtime_ns for o in whole.path.iterdir()}
    with pytest.raises(BadInput, match='drawn24.*elsewhere'): train(other, SMALL, root=root, name='whole', device='cpu', progress=False)
    assert before == {o.name:o.stat().st_mtime_ns for o in whole.path.iterdir()}

def test_two_processes(root):
    "One process from start to end, against two that stop half-way and one that finishes"
    worker = Path(__file__).parent/'diffusion_worker.py'
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':str(worker.parents[1])}
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_machines=1', '--mixed_precision=no', '--dynamo_backend=no']
    for name,n,stop in (('one',1,'0'), ('two',2,'48'), ('two',1,'0')):
        p = subprocess.run([*launch, f'--num_processes={n}', str(worker), str(root), name, stop], env=env, capture_output=True, text=True, timeout=200)
        assert p.returncode == 0, p.stderr[-2000:]
    one,two = Run.open(root, 'one'),Run.open(root, 'two')
    np.testing.assert_allclose([r['loss'] for r in two.log], [r['loss'] for r in one.log], rtol=2e-3)
    assert [r['images'] for r in two.log] == [r['images'] for r in one.log]
    ims = [sample(o, 4, steps=5, device='cpu', progress=False).astype(int) for o in (one, two)]
    assert np.abs(ims[0]-ims[1]).max() <= 8
