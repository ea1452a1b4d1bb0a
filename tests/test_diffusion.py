"What a page would illustrate badly: power cuts, damaged disks and several processes"
import errno
import json
import logging
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accelerate.tracking import GeneralTracker
from accelerate.utils import is_tensorboard_available

from pttface.diffusion import Run,make_trainer,sample,train
from pttface.training import trainer
from pttface.training.checkpoint import Checkpoints
from pttface.training.config import RECIPES,Budget,read_recipe,recipe_record
from pttface.training.trainer import TrainingMonitor,begin_run
from pttface.dataset import FaceData
from pttface.storage.files import BadInput,dumps,read_json

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
    if isinstance(o, dict):
        return {k2:v2 for k,v in o.items() for k2,v2 in flat(v, f'{at}/{k}').items()}
    if isinstance(o, list):
        return flat(dict(enumerate(o)), at)
    return {at:o}

def same(a, b):
    "Are two runs equal bit for bit: weights, averages, optimiser, log?"
    x,y = (flat(o.checkpoints.load()[0]) for o in (a, b))
    assert x.keys() == y.keys()
    for k in x.keys() - {'/seconds'}:
        assert torch.equal(x[k], y[k]) if isinstance(x[k], torch.Tensor) else x[k] == y[k], k
    timing = {'seconds','images_per_s','seconds_left','memory_mb'}
    logs = [[{k:v for k,v in r.items() if k not in timing} for r in run.log] for run in (a, b)]
    assert logs[0] == logs[1]

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')/'root'

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
    if damage == 'gone':
        file.unlink()
    else:
        flipped = raw[:9999] + bytes([raw[9999]^1]) + raw[10000:]
        file.write_bytes(dict(torn=raw[:len(raw)//2], flipped=flipped, empty=b'')[damage])
    with caplog.at_level(logging.WARNING):
        state,row = run.checkpoints.load()
    assert file.name in caplog.text and state['step'] < 15 and row['file'] != file.name

def test_all_damaged(tmp_path):
    c = Checkpoints(tmp_path)
    c.save(dict(step=1), 1)
    (tmp_path/'checkpoint-00000001.pt').write_bytes(b'nonsense')
    assert c.load() is None

def test_full_disk(tmp_path, monkeypatch):
    save,root = torch.save,tmp_path/'root'
    def full(state, path):
        if state['step'] < 6:
            return save(state, path)
        Path(path).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    message = 'step 6 could not be kept .No space left.*the last good checkpoint is checkpoint-00000003.pt'
    with pytest.raises(OSError, match=message):
        train(data(), SMALL, root=root, budget='192 images', device='cpu', progress=False)
    run = Run.open(root, 'small')
    assert [o.name for o in run.path.glob('*checkpoint-*')] == ['checkpoint-00000003.pt']
    assert run.checkpoints.load()[0]['step'] == 3

@pytest.mark.skipif(sys.platform != 'linux', reason='a limit on the size of files')
def test_refused_by_the_kernel(root, tmp_path):
    "PyTorch's own writer is cut off in the middle of a file; the run goes on once there is room"
    assert run_in_child(str(tmp_path/'root'), 'tight', at=6, how='limit') == 3
    run = Run.open(tmp_path/'root', 'tight')
    assert [o.name for o in run.path.glob('*checkpoint-*')] == ['checkpoint-00000003.pt']
    assert run.checkpoints.load()[0]['step'] == 3
    assert not list(run.path.glob('.*.tmp'))
    assert run_in_child(str(tmp_path/'root'), 'tight', budget='72 images') == 0
    assert run.checkpoints.load()[0]['step'] == 9

HASHES = {'original':'3c4ca137ccf3b0aa', 'edm':'b52096a86ed77a69', 'edm-t4':'9ae8faa3b2001b73',
          'tiny':'728f38d5779938e2', 'tiny-original':'cfdb29b884f13d50'}  # as release 0.1.0 wrote them

@pytest.mark.parametrize('name', HASHES)
def test_a_record_of_0_1_0_is_the_same_recipe(name, tmp_path):
    recipe = RECIPES[name]
    old = recipe_record(recipe)
    assert {'kind','spread','stairs'} <= old.keys() and not {'parameterization','stratified','per_epoch'} & old.keys()
    assert read_recipe(json.loads(dumps(old))) == recipe == read_recipe(json.loads(dumps(recipe)))
    many = FaceData(dict(images=np.zeros((300,4,4,3), np.uint8), split=np.zeros(300, int)), dict(hash='h'))
    path = begin_run(tmp_path/'root', many, recipe)
    assert read_json(path/'recipe.json')['hash'] == dict(recipe=HASHES[name], data='h')

def test_another_data_set(root, whole):
    other = data()
    other.card['hash'] = 'elsewhere'
    before = {o.name:o.stat().st_mtime_ns for o in whole.path.iterdir()}
    with pytest.raises(BadInput, match='drawn24.*elsewhere'):
        train(other, SMALL, root=root, name='whole', device='cpu', progress=False)
    assert before == {o.name:o.stat().st_mtime_ns for o in whole.path.iterdir()}

def test_two_processes(root):
    "One process from start to end, against two that stop half-way and one that finishes"
    worker = Path(__file__).parent/'diffusion_worker.py'
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':str(worker.parents[1])}
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--num_machines=1', '--mixed_precision=no',
              '--dynamo_backend=no']
    # --cpu starts one process, whatever it is told
    ways = {1:['--cpu', '--num_processes=1'], 2:['--multi_gpu', '--num_processes=2', '--main_process_port=0']}
    for name,n,stop in (('one',1,'0'), ('two',2,'48'), ('two',1,'0'), ('sampled',2,'sample')):
        command = [*launch, *ways[n], str(worker), str(root), name, stop]
        p = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert p.returncode == 0, p.stderr[-4000:]
        assert f'{n} processes' in p.stdout, p.stdout
    one,two = Run.open(root, 'one'),Run.open(root, 'two')
    np.testing.assert_allclose([r['loss'] for r in two.log], [r['loss'] for r in one.log], rtol=2e-3)
    assert [r['images'] for r in two.log] == [r['images'] for r in one.log]
    ims = [sample(o, 4, steps=5, device='cpu', progress=False).astype(int) for o in (one, two)]
    assert np.abs(ims[0]-ims[1]).max() <= 8
    shared = np.load(root/'sampled-2.npy')
    alone = sample(Run.open(root, 'sampled'), 5, steps=5, batch=2, start=1, device='cpu', progress=False)
    assert np.abs(shared.astype(int) - alone).max() <= 1, 'two processes draw other pictures than one'

class Book(GeneralTracker):
    name,requires_logging_directory,tracker = 'book',False,None
    def __init__(self):
        super().__init__()
        self.rows,self.config,self.pictures,self.done = [],None,[],False
    def store_init_configuration(self, values):
        self.config = values
    def log(self, values, step=None, **kw):
        self.rows.append((step, values))
    def log_images(self, values, step=None, **kw):
        self.pictures.append(values['samples'][0].shape)
    def finish(self):
        self.done = True

def test_trackers(tmp_path):
    book = Book()
    recipe = replace(SMALL, grid='32 images')
    run = train(data(), recipe, root=tmp_path/'root', budget='64 images', device='cpu', progress=False, trackers=[book])
    assert [s for s,_ in book.rows] == [2,4,6,8] == [r['step'] for r in run.log]
    assert book.config['lr'] == SMALL.lr and book.done
    assert book.rows[-1][1]['loss'] == run.log[-1]['loss'] and 'by_sigma/heldout/9' in book.rows[0][1]
    assert len(book.pictures) == 2
    if not is_tensorboard_available():
        with pytest.raises(BadInput, match='pip install tensorboard'):
            train(data(), SMALL, root=tmp_path/'root', trackers='tensorboard')

@pytest.mark.skipif(not is_tensorboard_available(), reason='needs tensorboard')
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    recipe = replace(SMALL, grid='32 images')
    run = train(data(), recipe, root=tmp_path/'root', budget='32 images', device='cpu', progress=False,
                trackers='tensorboard')
    events = EventAccumulator(str(next(run.path.rglob('events.out*')).parent)).Reload()
    assert [round(e.value, 5) for e in events.Scalars('loss')] == [round(r['loss'], 5) for r in run.log]
    assert events.Images('samples')

def test_live_figure(tmp_path, monkeypatch):
    "In a notebook one figure is shown, then replaced, and not at each report"
    import IPython.display
    shown = []
    class Handle:
        def update(self, fig):
            shown.append('replaced')
    def display(fig, display_id):
        shown.append('new')
        return Handle()
    monkeypatch.setattr(TrainingMonitor, 'shell', staticmethod(lambda: object()))
    monkeypatch.setattr(trainer, 'TrainingMonitor', lambda: TrainingMonitor(every=1e9))
    monkeypatch.setattr(IPython.display, 'display', display)
    monkeypatch.setenv('TQDM_DISABLE', '1')
    train(data(), SMALL, root=tmp_path/'root', budget='128 images', device='cpu', progress=True)
    assert shown == ['new','replaced']

def test_speeds(tmp_path):
    "Each way of running a step gives the same gradient, the fastest is chosen, and one that fails is left out"
    run = train(data(), SMALL, root=tmp_path/'root', budget='16 images', device='cpu', progress=False, speed='plain')
    t = make_trainer(run, data(), Budget.parse('64 images'), 'cpu')
    x0 = next(data().batches(8, 0))
    want = t.compute_gradients(x0)
    t.opt.zero_grad()
    took = t.find_fastest(x0, speeds=('plain','channels_last','magic'), repeats=1)
    assert set(took) == {'plain','channels_last'} and t.speed == next(iter(took))
    assert t.compute_gradients(x0) == pytest.approx(want, rel=1e-5)
    with pytest.raises(BadInput, match='choose one of auto, plain'):
        train(data(), SMALL, root=tmp_path/'root', device='cpu', speed='warp', budget='32 images')

def test_another_layout_on_resume(tmp_path):
    "Adam's fused step takes no notice of strides: they must be put right when the layout of the weights changes"
    still = replace(SMALL, net_args={**SMALL.net_args, 'dropout':0.})
    for name,speeds in dict(one=('plain',), two=('plain','channels_last')).items():
        for speed in speeds:
            def stop(t, row, last=speed == speeds[-1]):
                if row['images'] == 64 and not last:
                    raise KeyboardInterrupt
            try:
                train(data(), still, root=tmp_path/'root', name=name, budget='128 images', device='cpu', progress=False,
                      speed=speed, callback=stop)
            except KeyboardInterrupt:
                pass
    one,two = (Run.open(tmp_path/'root', o).checkpoints.load()[0] for o in ('one','two'))
    assert max((two['net'][k]-one['net'][k]).abs().max() for k in one['net']) < 1e-4

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(tmp_path):
    "Half precision, compiled: the loss falls as it does on a CPU"
    logs = []
    for precision,device,speed in (('no','cpu','plain'),('auto','cuda','compile')):
        recipe = replace(SMALL, precision=precision)
        run = train(data(), recipe, root=tmp_path/precision, budget='192 images', device=device, progress=False,
                    speed=speed)
        logs.append(run.log)
    np.testing.assert_allclose(*[[r['ema_loss'] for r in rows] for rows in logs], rtol=.15)

def test_a_network_that_float16_cannot_hold_is_asked_in_float32(whole, monkeypatch, caplog):
    real = Run.denoiser
    def loud(self, device=None):
        d = real(self, device)
        next(p for p in d.net.parameters() if p.dim() == 4).mul_(1e7)
        return d
    monkeypatch.setattr(Run, 'denoiser', loud)
    kw = dict(steps=3, device='cpu', progress=False)
    want = sample(whole, 3, **kw)
    monkeypatch.setattr('pttface.diffusion.half_type', lambda device: torch.float16)
    assert np.array_equal(sample(whole, 3, half=True, **kw), want)
    assert 'leaves the range of torch.float16' in caplog.text
    monkeypatch.setattr('pttface.diffusion.half_type', lambda device: None)
    caplog.clear()
    assert np.array_equal(sample(whole, 3, half=True, **kw), want) and not caplog.text

def test_ctrl_c_while_drawing(whole):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            sample(whole, 400, sampler='ancestral', steps=999, device='cpu', progress=False)
        assert torch.get_num_threads() == 2 and not [t for t in threading.enumerate() if t.name.startswith('beside')]
    finally:
        timer.cancel()
        torch.set_num_threads(threads)
