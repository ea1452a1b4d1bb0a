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
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accelerate.tracking import GeneralTracker
from accelerate.utils import is_tensorboard_available
from threadpoolctl import threadpool_info,threadpool_limits

from pttface.diffusion import SAMPLERS,Denoiser,Run,evaluations,find_guide,generate,heun,karras_sigmas,make_trainer
from pttface.diffusion import sample,sampled_denoiser,train
from pttface.parallel import quick_threads
from pttface.training import trainer
from pttface.training.checkpoint import Checkpoints
from pttface.training.config import EARLIER,RECIPES,Budget,read_recipe,recipe_record,training_record
from pttface.training.ema import posthoc
from pttface.training.trainer import Trainer,TrainingMonitor,begin_run
from pttface.dataset import FaceData
from pttface.storage.files import BadInput,dumps,read_json,write_json

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
    for k in [k for k in x if not k.endswith('/seconds')]:
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

@pytest.mark.parametrize('changed', [{}, dict(schedule='inverse_sqrt', uncertainty=True)], ids=['plain','weighed'])
def test_muon_with_a_power_cut(root, changed):
    "The averages of its gradients are kept too, and what noise levels are weighed by; another optimizer is another run"
    muon = replace(SMALL, name='-'.join(['muon',*changed]), optimizer='muon', **changed)
    assert run_in_child(str(root), f'{muon.name}-whole', recipe=muon) == 0
    assert run_in_child(str(root), f'{muon.name}-cut', at=10, recipe=muon) == -9
    assert run_in_child(str(root), f'{muon.name}-cut', recipe=muon) == 0
    same(*(Run.open(root, name) for name in (f'{muon.name}-whole', f'{muon.name}-cut')))
    assert Run.open(root, f'{muon.name}-cut').recipe == muon
    with pytest.raises(BadInput, match="optimizer='muon' .now 'adamw'"):
        train(data(), replace(muon, optimizer='adamw'), root=root, name=f'{muon.name}-cut', device='cpu',
              progress=False)
    assert changed == {} or 'uncertainty' in Run.open(root, f'{muon.name}-cut').pinned()[0]


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
    recipe = replace(RECIPES[name], **EARLIER.get(name, {}))  # As it was then
    old = recipe_record(recipe)
    assert not {'optimizer','schedule','uncertainty'} & old.keys()
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
    want = float(t.compute_gradients(x0))
    t.opt.zero_grad()
    took = t.find_fastest(x0, speeds=('plain','channels_last','magic'), repeats=1)
    assert set(took) == {'plain','channels_last'} and t.speed == next(iter(took))
    assert float(t.compute_gradients(x0)) == pytest.approx(want, rel=1e-5)
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

def test_a_budget_of_images_says_where_fewer_threads_would_be_quicker(tmp_path, monkeypatch, caplog):
    def waits():
        time.sleep(.002*max(o['num_threads'] for o in threadpool_info() if o['user_api'] == 'blas')**2)
    monkeypatch.setattr(quick_threads, 'decompose', waits)
    with caplog.at_level(logging.WARNING), threadpool_limits(4, user_api='blas'):
        for budget, said in (('16 images', 1), ('16 images or 60s', 0)):
            monkeypatch.setattr(quick_threads, 'due', -1)
            caplog.clear()
            train(data(), SMALL, root=tmp_path/str(said), budget=budget, device='cpu', progress=False)
            assert caplog.text.count('OMP_NUM_THREADS=1') == said, budget


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


# Root mean square error at 8, 10, 12 and 20 steps, with a tenth to spare; UniPC-3 without its rules: .394 at 8
FEW_STEPS = dict(euler=(.30,.24,.21,.13), ddim=(.30,.24,.21,.13), heun=(.13,.08,.03,.03), dpm2m=(.175,.092,.058,.032),
                 unipc=(.175,.092,.058,.042))

@pytest.mark.parametrize('sampler', FEW_STEPS)
def test_few_steps(sampler):
    "On a mixture with its exact denoiser, against a thousand steps of Heun's method from the same noise"
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 16, generator=g, dtype=torch.float64)*.5
    def mixture(x, sigma, width=.05):
        var = width**2 + sigma**2
        share = (-torch.cdist(x, centres)**2/(2*var)).softmax(1)
        return (share @ centres)*sigma**2/var + x*width**2/var
    start = 80*torch.randn(200, 16, generator=g, dtype=torch.float64)
    truth = heun(mixture, start, karras_sigmas(1000))
    ends = [SAMPLERS[sampler](mixture, start, karras_sigmas(n)) for n in (8,10,12,20)]
    errors = [(o - truth).square().mean().sqrt().item() for o in ends]
    assert all(e < most for e,most in zip(errors, FEW_STEPS[sampler])), errors

def test_sheets_obey_the_rule_of_16_bits(tmp_path, monkeypatch):
    "Where the network predicts noise, bfloat16 at high noise makes every picture darker; reports never ask for that"
    net = dict(widths=(8,8,8,8), mid=8, heads=1, emb=8)
    recipe = replace(SMALL, net='stronger', net_args=net, parameterization='linear', stratified=False, precision='bf16')
    asked = []
    real = Denoiser.forward
    def forward(self, x, sigma, aug=None):
        def note(module, args, out):
            asked.append((float(torch.as_tensor(sigma).max()), out.dtype, torch.is_autocast_enabled('cpu')))
        hook = self.net.head.register_forward_hook(note)
        try:
            return real(self, x, sigma, aug)
        finally:
            hook.remove()
    run = train(data(), replace(recipe, grid='16 images'), root=tmp_path/'root', budget='16 images', device='cpu',
                progress=False)
    t = make_trainer(run, data(), Budget.parse('16 images'), 'cpu')
    t.losses = [1.]
    monkeypatch.setattr(Denoiser, 'forward', forward)
    t.make_report(dict(grad_norm=1., lr=1.), [next(data().batches(8, 0))], grid=True)
    assert {dtype for level,dtype,_ in asked if level > 1} == {torch.float32}
    assert {dtype for level,dtype,_ in asked if level <= 1} == {torch.bfloat16}

def test_the_best_checkpoint_is_the_one_that_was_measured(tmp_path):
    "A score stands beside the weights that it was measured with, though reports and checkpoints come at other times"
    recipe = replace(SMALL, report='40 images', save='24 images', ema='power 0.10')
    scores = {}
    def note(t, row):
        scores[t.step] = row['heldout_loss']
    run = train(data(), recipe, root=tmp_path/'root', budget='240 images', device='cpu', progress=False, callback=note)
    for row in run.checkpoints.rows:
        t = make_trainer(run, data(), Budget.parse('240 images'), 'cpu')
        t.restore(run.checkpoints.load(row['file'])[0])
        recent = [next(data().batches(8, 0))]
        assert row['score'] == pytest.approx(t.score(recent), rel=1e-4)
        assert row['step'] not in scores or row['score'] == scores[row['step']]

def test_figures_that_are_read_now_and_then(tmp_path, monkeypatch):
    "Reading the losses every few steps, as on a GPU, changes nothing; what diverged in between is never kept"
    recipe = replace(SMALL, report='24 images', save='40 images', ema='power 0.10')
    logs,real = {},Trainer.training_step
    def step(self, x0, every, spoilt):
        self.read_every = every
        row = real(self, x0)
        if self.step == spoilt:
            next(self.model.parameters()).register_hook(lambda g: g*np.nan)
        return row
    for every in (1, 7):
        monkeypatch.setattr(Trainer, 'training_step', lambda self, x0, every=every: step(self, x0, every, None))
        run = train(data(), recipe, root=tmp_path/f'{every}', budget='136 images', device='cpu', progress=False)
        logs[every] = [{k:r[k] for k in ('step','loss','grad_norm','lr','ema_loss')} for r in run.log]
        logs[every] += [row['score'] for row in run.checkpoints.rows]
    assert logs[1] == logs[7]
    monkeypatch.setattr(Trainer, 'training_step', lambda self, x0: step(self, x0, 100, 6))
    with pytest.raises(FloatingPointError, match='nan at step 6 .* the last good checkpoint is .*05.pt'):
        train(data(), recipe, root=tmp_path/'nan', budget='136 images', device='cpu', progress=False)
    [kept] = Run(tmp_path/'nan/runs'/recipe.name).checkpoints.rows
    assert kept['step'] == 5

def test_each_process_drops_out_other_features(tmp_path, monkeypatch):
    from accelerate import Accelerator
    run = train(data(), SMALL, root=tmp_path/'root', budget='16 images', device='cpu', progress=False)
    t,drawn = make_trainer(run, data(), Budget.parse('16 images'), 'cpu'),[]
    def loss(model, batch, rng):
        drawn.append((batch[1], torch.rand(4)))
        return torch.zeros(len(batch[0]), requires_grad=True)
    t.loss = loss
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 2))
    for rank in (0, 1):
        monkeypatch.setattr(Accelerator, 'process_index', property(lambda self, rank=rank: rank))
        t.compute_gradients(next(data().batches(8, 0)))
    (sigma,mask),(other_sigma,other_mask) = drawn
    assert not torch.equal(mask, other_mask)
    together = torch.stack([sigma, other_sigma], 1).flatten()
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 1))
    monkeypatch.setattr(Accelerator, 'process_index', property(lambda self: 0))
    t.compute_gradients(next(data().batches(8, 0)))
    assert torch.equal(drawn[-1][0], together), 'the noise levels of a batch depend on the number of processes'
    assert torch.equal(drawn[-1][1], mask), 'one process draws other features than before'

@pytest.fixture(scope='module')
def guided(root):
    return train(data(), replace(SMALL, guidance=2.), root=root, name='guided', budget='320 images', device='cpu',
                 progress=False)

KW = dict(device='cpu', progress=False)

def test_guidance(guided, whole, caplog):
    plain,default,strong = (sample(guided, 3, guidance=w, **KW) for w in (1, None, 3.))
    assert not np.array_equal(plain, default) and not np.array_equal(default, strong)
    assert np.array_equal(default, sample(guided, 3, guidance=2, interval=(.1, 2.), **KW))
    assert np.array_equal(plain, sample(replace_recipe(guided, guidance=1.), 3, **KW))
    d = sampled_denoiser(guided, 'cpu')
    assert evaluations(d) == 23 == guided.evaluations(2.)
    assert evaluations(sampled_denoiser(guided, 'cpu', guidance=1)) == 18 == guided.evaluations(1.)
    asked = []
    for net in (d.denoiser.net, d.guide.net):
        net.register_forward_hook(lambda *a: asked.append(1))
    generate(d, [0], (3,16,16))
    assert len(asked) == 23
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(sample(whole, 2, guidance=2., **KW), sample(whole, 2, **KW))
    assert caplog.text.count('sampling without guidance') == 1
    for bad in (-1., float('nan'), float('inf')):
        with pytest.raises(ValueError, match='is no weight'):
            sample(guided, 1, guidance=bad, **KW)

def replace_recipe(run, **changes):
    "The same run, as if its recipe had been another"
    class Other(Run):
        recipe = property(lambda self: replace(run.recipe, **changes))
    return Other(run.path)

def test_the_guide_is_an_eighth_of_the_run(guided):
    steps = sorted(int(f.stem[4:]) for f in (guided.path/'guide').glob('*.pt'))
    assert steps == [4,6,8,11,16,23,32], 'about √2 apart'
    kept = torch.load(guided.path/'guide/ema-00000006.pt', weights_only=True)['tracks'][0]
    for p,q in zip(find_guide(guided, 'cpu').net.parameters(), kept):
        assert torch.allclose(p, q.float(), atol=2e-3)

def test_a_chosen_guidance_is_the_default(guided):
    write_json(guided.path/'guidance.json', dict(weight=3., low=.2, high=1.))
    try:
        assert guided.guidance == (3., .2, 1.)
        assert np.array_equal(sample(guided, 2, **KW), sample(guided, 2, guidance=3., interval=(.2, 1.), **KW))
    finally:
        (guided.path/'guidance.json').unlink()

def test_an_old_record_has_no_guidance(guided, root):
    old = Run(root/'runs/old-record')
    record = read_json(guided.path/'recipe.json')
    record['settings'] = {k:v for k,v in record['settings'].items() if not k.startswith('guid')}
    write_json(old.path/'recipe.json', record)
    for o in guided.path.glob('checkpoint*'):
        (old.path/o.name).write_bytes(o.read_bytes())
    assert old.recipe.guidance == 1 and old.guidance is None
    assert np.array_equal(sample(old, 2, **KW), sample(guided, 2, guidance=1, **KW))
    data_set = data()
    begun = begin_run(root, data_set, replace(SMALL, guidance=2.), 'old-record')
    assert read_json(begun/'recipe.json') == record, 'the same weights, so the same run'

def test_guidance_is_no_part_of_the_training():
    assert [r.guidance for r in RECIPES.values()] == [1., 1.5, 1.5, 1.5, 1.5, 1.]
    assert training_record(RECIPES['tiny']) == training_record(replace(RECIPES['tiny'], guidance=1., guide_at=.5))

@pytest.mark.parametrize('times,widths', [([50], [.1]), ([90,100], [.1,.1]), (range(10, 200, 10), [.05]*19),
                                          ([4,6,8,11,16,23,32,40], [.1]*8), ([100]*2, [.05,.1])])
@pytest.mark.parametrize('width', [.03,.07,.1,.2,.27])
def test_shares_of_an_average_sum_to_one(times, widths, width):
    assert posthoc(list(times), widths, width).sum() == pytest.approx(1, abs=1e-9)

def test_an_average_of_any_length(guided, root):
    "From snapshots that were kept for guidance, and from the checkpoint"
    same = sample(guided, 2, guidance=1, **KW)
    assert np.abs(sample(guided, 2, guidance=1, ema=.1, **KW).astype(int) - same).max() <= 2
    assert not np.array_equal(sample(guided, 2, guidance=1, ema=.2, **KW), same)
    with pytest.raises(BadInput, match='0.5 is no width'):
        sample(guided, 1, ema=.5, **KW)

def test_clipping(whole):
    linear = Denoiser(torch.nn.Conv2d(3, 3, 1).requires_grad_(False), 'linear')
    linear.net.forward = lambda x, noise: torch.zeros_like(x)
    seen = []
    def note(x, guess, sigma):
        seen.append(guess.abs().max().item())
    for clip in (False, True):
        generate(linear, [0], (3,4,4), 'ancestral', 20, clip=clip, callback=note)
    assert max(seen[:20]) > 5 and max(seen[20:]) == 1
    assert sample(whole, 2, clip=True, **KW).shape == (2,16,16,3)

def test_checkpoints_written_beside_the_training(tmp_path, monkeypatch, whole):
    "As on a GPU: what a thread writes is what the training was, and its errors are raised in the training"
    real = trainer.TrainingLoop.__init__
    def beside(self, *args):
        real(self, *args)
        self.writes_beside = True
    monkeypatch.setattr(trainer.TrainingLoop, '__init__', beside)
    run = train(data(), SMALL, root=tmp_path/'root', name='whole', budget='192 images', device='cpu', progress=False)
    same(whole, run)
    save = torch.save
    def full(state, path):
        if state['step'] < 6:
            return save(state, path)
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='No space left.*the last good checkpoint is checkpoint-00000003.pt'):
        train(data(), SMALL, root=tmp_path/'root', name='full', budget='192 images', device='cpu', progress=False)
    assert [o.name for o in (tmp_path/'root/runs/full').glob('*checkpoint-*')] == ['checkpoint-00000003.pt']

def test_a_run_is_swept_over_averages_and_weights(guided):
    from pttface.fid import sweep
    def mean_colour(ims):
        return ims.mean((1,2))/64
    kw = dict(protocol=mean_colour, n=8, seeds=2, **KW)
    averages = sweep(guided, data(), ema=[.07,.1,.2], **kw)
    assert [r['checkpoint'] for r in averages.rows] == ['0.07','0.1','0.2'] and averages.over == 'width of the average'
    weights = sweep(guided, data(), guidance=[1,2], **kw)
    assert weights.over == 'weight of the guidance' and weights.rows[0]['value'] != weights.rows[1]['value']
    assert len(weights.picture.axes[0].lines) > len(weights.rows)
    one = sweep({'guided':guided, 'plain':guided}, data(), guidance=1, **kw)
    assert one.over is None and one.rows[0]['value'] == one.rows[1]['value'] == weights.rows[0]['value']
    for bad in (dict(ema=[.05,.1], guidance=[1,2]), dict(ema=[.1,.5])):
        with pytest.raises(BadInput):
            sweep(guided, data(), **kw, **bad)
    with pytest.raises(BadInput, match='swept for one run'):
        sweep({'a':guided}, data(), ema=[.05,.1], **kw)

def test_the_command_draws_with_another_average_and_weight(guided, root, tmp_path):
    from pttface.app.cli import sample_run
    common = dict(root=root, run='guided', n=2, progress=False, device='cpu')
    got = {}
    for name,kw in dict(default={}, ema=dict(ema=.2), plain=dict(guidance=1.), clip=dict(clip=True)).items():
        got[name] = np.load(sample_run(out=str(tmp_path/f'{name}.npz'), **common, **kw))['images']
    assert np.array_equal(got['default'], sample(guided, 2, **KW))
    assert np.array_equal(got['ema'], sample(guided, 2, ema=.2, **KW))
    assert np.array_equal(got['plain'], sample(guided, 2, guidance=1., **KW))
    assert not np.array_equal(got['default'], got['plain'])
    with pytest.raises(ValueError, match='is no weight'):
        sample_run(out=str(tmp_path/'bad.npz'), guidance=-2., **common)

def test_a_compiled_model_that_cannot_be_asked_whether_it_is_true(tmp_path, monkeypatch):
    "torch 2.11 refuses that of a compiled module without a length"
    class Compiled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
        def forward(self, *args):
            return self.model(*args)
        def __len__(self):
            raise TypeError('Denoiser does not support len()')
    made = []
    monkeypatch.setattr(torch, 'compile', lambda model: made.append(Compiled(model)) or made[-1])
    train(data(), SMALL, root=tmp_path/'root', budget='32 images', device='cpu', progress=False, speed='compile')
    assert len(made) == 1
