"Runs that lose a file, a disk, a terminal or their only user; pictures of one's own; machines without 64-bit floats."
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from pttface import diffusion
from pttface.app import cli
from pttface.dataset import FaceData
from pttface.diffusion import Denoiser, Run, make_denoiser, sample, train
from pttface.fid import evaluate
from pttface.storage.files import BadInput, read_json, write_json
from pttface.training import checkpoint
from pttface.training.config import RECIPES
from pttface.vision.pictures import as_images, files_in

sys.path.insert(0, str(Path(__file__).parent))
from diffusion_worker import SMALL, data

TOP = Path(__file__).parents[1]
STILL = dict(device='cpu', progress=False)


def trained(root, name='a', budget='72 images', **kw):
    return train(data(), SMALL, root=root, name=name, budget=budget, **STILL, **kw)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')/'root'
    trained(root)
    return root


@pytest.fixture
def root(finished, tmp_path):
    "A copy of a root with a run of nine steps, and checkpoints of six and nine."
    return Path(shutil.copytree(finished, tmp_path/'root'))


DAMAGE = {'gone': None, 'empty': b'', 'nonsense': b'{"a', 'binary': bytes(range(256)), 'null': b'null', 'list': b'[]',
          'dict': b'{}', 'number': b'3', 'rows of nonsense': b'[{"file": 3}, 7, {"step": 1}]',
          'rows of nothing there': b'[{"file": "checkpoint-00000099.pt", "step": 99, "sha256": "00", "score": null}]'}


def damage(path, how):
    if DAMAGE[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[how])


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_manifest_costs_nothing(how, root):
    run = Run.open(root, 'a')
    want, files = sample(run, 2, steps=2, **STILL), sorted(o.name for o in run.path.glob('checkpoint-*.pt'))
    damage(run.path/'checkpoints.json', how)
    assert np.array_equal(sample(Run.open(root, 'a'), 2, steps=2, **STILL), want)
    assert sorted(o.name for o in run.path.glob('checkpoint-*.pt')) == files
    trained(root, budget='80 images')
    rows = read_json(run.path/'checkpoints.json')
    assert rows[-1]['step'] == 10 and {'file', 'step', 'sha256', 'bytes', 'score'} <= rows[-2].keys()
    assert all((run.path/r['file']).exists() for r in rows if r['step'] < 11)


def test_a_checkpoint_newer_than_the_manifest_is_found(root):
    run = Run.open(root, 'a')
    write_json(run.path/'checkpoints.json', read_json(run.path/'checkpoints.json')[:1])
    assert run.checkpoints.load()[0]['step'] == 9
    rows = read_json(run.path/'checkpoints.json')
    write_json(run.path/'checkpoints.json', [r | dict(sha256='0'*64) for r in rows])
    assert run.checkpoints.load()[0]['step'] == 9


@pytest.mark.parametrize('how', [k for k in DAMAGE if not k.startswith('rows')])
def test_a_damaged_recipe_is_rebuilt_from_a_checkpoint(how, root):
    path = root/'runs/a/recipe.json'
    before = read_json(path)
    want = sample(Run.open(root, 'a'), 2, steps=2, **STILL)
    damage(path, how)
    assert np.array_equal(sample(Run.open(root, 'a'), 2, steps=2, **STILL), want)
    assert read_json(path) == before
    damage(path, how)
    with pytest.raises(BadInput, match='another name'):
        train(data(), replace(SMALL, lr=1e-3), root=root, name='a', budget='80 images', **STILL)
    damage(path, how)
    trained(root, budget='80 images')
    asked = dict(budget='80 images')  # The second time
    assert read_json(path) == before | asked and Run.open(root, 'a').checkpoints.load()[0]['step'] == 10


def test_a_checkpoint_without_a_copy_of_the_recipe_goes_on_too(root):
    "As release 0.1.0 wrote them."
    run = Run.open(root, 'a')
    state, row = run.checkpoints.load()
    state.pop('record')
    for o in run.path.glob('checkpoint*'):
        o.unlink()
    run.checkpoints.save(state, 9)
    before = read_json(run.path/'recipe.json')
    (run.path/'recipe.json').unlink()
    with pytest.raises(BadInput, match='no checkpoint there holds a copy.*goes on'):
        sample(Run.open(root, 'a'), 2, **STILL)
    with pytest.raises(BadInput, match='are of another network'):
        train(data(), replace(SMALL, net_args=SMALL.net_args | dict(ch=16)), root=root, name='a', **STILL)
    (run.path/'recipe.json').unlink()
    trained(root, budget='80 images')
    asked = dict(budget='80 images')  # The second time
    assert read_json(run.path/'recipe.json') == before | asked and run.checkpoints.load()[0]['step'] == 10


def test_force_keeps_the_run_that_is_there(root):
    other = replace(SMALL, lr=1e-3)
    with pytest.raises(BadInput, match='what is there is kept under another name'):
        train(data(), other, root=root, name='a', budget='8 images', **STILL)
    want = sample(Run.open(root, 'a'), 2, steps=2, **STILL)
    train(data(), other, root=root, name='a', budget='8 images', force=True, **STILL)
    assert Run.open(root, 'a').recipe.lr == 1e-3
    assert np.array_equal(sample(Run.open(root, 'a-before-1'), 2, steps=2, **STILL), want)
    train(data(), SMALL, root=root, name='a', budget='8 images', force=True, **STILL)
    assert Run.open(root, 'a-before-2').recipe.lr == 1e-3


def test_a_log_with_a_damaged_line_stops_nothing(root):
    log = root/'runs/a/log.jsonl'
    log.write_bytes(log.read_bytes()[:-30] + b'\x00\x01\n')
    assert trained(root, budget='80 images').log[-1]['step'] == 10


# Two at once, and signals

WAIT = '''
import sys, time, torch
sys.path.insert(0, {tests!r})
from dataclasses import replace
from diffusion_worker import SMALL, data
from pttface.diffusion import train
def slow(trainer, report):
    print('step', trainer.step, flush=True)
    time.sleep(.05)
train(data(), replace(SMALL, report='8 images', save='10h'), root={root!r}, name='held', budget='1M images',
      device='cpu', progress=False, callback=slow)
'''


def start_training(root):
    code = WAIT.format(tests=str(TOP/'tests'), root=str(root))
    env = {**os.environ, 'PYTHONPATH': str(TOP), 'OMP_NUM_THREADS': '1'}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p = subprocess.Popen([sys.executable, '-c', code], text=True, env=env, **pipes)
    for _ in range(3):
        assert p.stdout.readline().startswith('step'), p.stderr.read()
    return p


@pytest.mark.parametrize('sig', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_saves(sig, tmp_path):
    p = start_training(tmp_path/'root')
    try:
        with pytest.raises(BadInput, match=f'written by `pttface train` .process {p.pid} on .* since'):
            train(data(), replace(SMALL, report='8 images', save='10h'), root=tmp_path/'root', name='held',
                  budget='1M images', **STILL)
        trained(tmp_path/'root', 'beside', '8 images')
        p.send_signal(getattr(signal, sig))
        p.communicate(timeout=120)
    finally:
        p.kill()
    run = Run.open(tmp_path/'root', 'held')
    assert run.checkpoints.load()[0]['step'] >= 3
    assert len(sample(run, 1, steps=2, **STILL)) == 1
    assert not list(run.path.glob('.pttface.lock'))


def test_the_lock_of_a_dead_training_is_taken_over(tmp_path):
    p = start_training(tmp_path/'root')
    p.kill()
    p.communicate(timeout=60)
    recipe = replace(SMALL, report='8 images', save='10h')
    assert train(data(), recipe, root=tmp_path/'root', name='held', budget='16 images', **STILL).log


@pytest.mark.parametrize('sig, status', [('SIGTERM', 143), ('SIGHUP', 129), ('SIGINT', 130)])
def test_the_command_ends_with_a_sentence(sig, status, monkeypatch, capsys):
    def send():
        os.kill(os.getpid(), getattr(signal, sig))
        time.sleep(5)
    monkeypatch.setattr(cli, 'run_command', lambda name, rest: send())
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert cli.main(['train']) == status
    assert 'the same command again goes on' in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before
    assert cli.main(['dataset']) == status and 'begins again' in capsys.readouterr().err


def test_nohup_stays_nohup():
    code = '''
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from pttface.training.trainer import interrupt_between_steps
from pttface.app.cli import stoppable
with stoppable(), interrupt_between_steps() as pressed:
    os.kill(os.getpid(), signal.SIGHUP)
    print(pressed)
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=TOP, timeout=120)
    assert r.stdout.strip() == '[]', r.stderr


def test_a_pipe_that_closes_while_training_saves(tmp_path):
    def closed(t, row):
        if t.step == 4:
            raise BrokenPipeError(errno.EPIPE, 'Broken pipe')
    with pytest.raises(BrokenPipeError):
        trained(tmp_path/'root', callback=closed)
    assert Run.open(tmp_path/'root', 'a').checkpoints.load()[0]['step'] == 4


# Disks

class FullDisk:
    "`torch.save` as on a disk that fills in the middle of the file."
    def __init__(self, after):
        self.after, self.save = after, torch.save

    def __call__(self, state, f):
        if state['step'] < self.after:
            return self.save(state, f)
        if isinstance(f, io.FileIO):
            f.error = OSError(errno.ENOSPC, 'No space left on device')
        else:
            Path(f).write_bytes(b'half')
        raise RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0')


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, 'save', FullDisk(6))
    monkeypatch.setattr(cli, 'run_command', lambda name, rest: trained(tmp_path/'root', budget='192 images'))
    assert cli.main(['train']) == 2
    err = capsys.readouterr().err
    assert 'make room' in err and 'last good checkpoint is checkpoint-00000003.pt' in err and err.count('\n') == 1
    run = Run.open(tmp_path/'root', 'a')
    assert [o.name for o in run.path.glob('*checkpoint-*')] == ['checkpoint-00000003.pt']
    monkeypatch.undo()
    assert trained(tmp_path/'root', budget='80 images').checkpoints.load()[0]['step'] == 10


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_the_reason_of_a_full_disk_is_found():
    with pytest.raises(OSError) as e:
        checkpoint.write_state(dict(w=torch.ones(10)), '/dev/full')
    assert e.value.errno == errno.ENOSPC


@pytest.mark.parametrize('error, words', [
    (OSError(errno.ENOSPC, 'No space left on device', 'x'), 'make room'), (OSError(errno.EFBIG, 'big', 'x'), 'room'),
    (OSError(errno.EROFS, 'ro', 'x'), 'folder that can be written'), (NotADirectoryError(errno.ENOTDIR, 'n'), 'path'),
    (MemoryError('batch 8 does not fit'), 'batch 8 does not fit'), (FloatingPointError('The loss became nan'), 'nan'),
    (RuntimeError('CUDA out of memory. Tried to'), 'smaller --batch'), (KeyError('x'), None), (ValueError('x'), None)])
def test_faults_in_words(error, words):
    found = cli.fault_in_words(error)
    assert found is None if words is None else words in found and '\n' not in found


# Terminals and pipes

@pytest.mark.parametrize('env', [dict(PYTHONIOENCODING='ascii'), dict(PYTHONIOENCODING='cp950'),
                                 dict(PYTHONIOENCODING='latin1:strict'),
                                 dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')],
                         ids=['ascii', 'cp950', 'latin1', 'C'])
def test_any_terminal_shows_every_command(env, tmp_path):
    code = '''
import sys
from pttface.app.cli import COMMANDS, main
statuses = [main([])] + [main([o, '--help']) for o in COMMANDS]
statuses += [main(['status', '正妹…→']), main(['status', '正妹…→', '--json']), main(['completion', 'fish'])]
assert statuses == [0]*(1 + len(COMMANDS)) + [2, 2, 0], statuses
'''
    keep = {k: v for k, v in os.environ.items() if k not in ('LC_ALL', 'LANG', 'PYTHONUTF8', 'PYTHONIOENCODING')}
    (tmp_path/'code.py').write_text(code, encoding='utf-8')
    r = subprocess.run([sys.executable, '-X', 'utf8=0', 'code.py'], capture_output=True, timeout=240, cwd=tmp_path,
                       env=keep | env | dict(PYTHONPATH=str(TOP)))
    assert r.returncode == 0, r.stderr.decode('utf-8', 'replace')
    line = next(o for o in r.stdout.splitlines() if o.startswith(b'{'))
    assert '正妹…→' in json.loads(line.decode(env.get('PYTHONIOENCODING', 'ascii').partition(':')[0]))['error']


@pytest.mark.parametrize('argv', [[], ['--version'], ['completion', 'fish'], ['train', '--help'], ['status', 'nowhere'],
                                  ['doctor', '--json']])
def test_a_closed_pipe_ends_quietly(argv, tmp_path):
    read, write = os.pipe()
    os.close(read)
    code = 'import sys; from pttface.app.cli import main; sys.exit(main())'
    r = subprocess.run([sys.executable, '-c', code, *argv], stdout=write, stderr=subprocess.PIPE, timeout=240,
                       cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(TOP)))
    os.close(write)
    assert r.returncode == (2 if argv[:1] == ['status'] else 141)
    assert b'Traceback' not in r.stderr and b'Exception ignored' not in r.stderr


# Machines without 64-bit floats

class No64(TorchFunctionMode):
    "Refuse what Apple's GPUs refuse: a 64-bit float that is put on a device, or made there."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        devices = [o for o in (*args, *kwargs.values()) if isinstance(o, torch.device)]
        out = func(*args, **kwargs)
        placed = devices and isinstance(out, torch.Tensor) and out.dtype == torch.float64
        if placed or name == 'double':
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return out


@pytest.mark.parametrize('changes', [{}, dict(parameterization='linear', sampler='ancestral', augment=.1),
                                     dict(parameterization='linear', stratified=False, sampler='ddim')])
def test_no_64_bit_float_reaches_a_device(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, 'has_float64', lambda device: False)
    recipe = replace(SMALL, **changes)
    with No64():
        run = train(data(), recipe, root=tmp_path/'root', budget='16 images', **STILL)
        for sampler in diffusion.SAMPLERS:
            assert len(sample(run, 2, steps=3, sampler=sampler, **STILL)) == 2
        with pytest.raises(TypeError, match='MPS'):
            torch.ones(2, dtype=torch.float64).to(torch.device('cpu'))


def test_a_float32_table_of_noise_levels_is_as_good(monkeypatch):
    recipe = replace(RECIPES['tiny-original'], net_args=RECIPES['tiny-original'].net_args)
    double = make_denoiser(recipe, .5)
    monkeypatch.setattr(diffusion, 'has_float64', lambda device: False)
    single = make_denoiser(recipe, .5).to('cpu')
    sigma = torch.logspace(-2, 2, 50)
    assert (double.table.dtype, single.table.dtype) == (torch.float64, torch.float32)
    assert (double.scales(sigma)[3] - single.scales(sigma)[3]).abs().max() < .01
    with pytest.raises(BadInput, match="no parameterization 'vp'"):
        Denoiser(torch.nn.Identity(), 'vp')


# Pictures of one's own

def photos(folder, n=12, size=(40, 60), grey=False):
    rng = np.random.default_rng(0)
    for i in range(n):
        im = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)
        path = folder/('ab'[i % 2])/f'{i//2}.png'  # names that come twice
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), im[..., 0] if grey else im)
    return folder


def test_every_form_gives_the_same_set(tmp_path):
    folder = photos(tmp_path/'mine')
    (folder/'.DS_Store').write_bytes(b'x')
    (folder/'notes.txt').write_text('no picture')
    want = FaceData.from_folder(folder, size=32)
    assert want.images.shape == (12, 32, 32, 3) and want.card['skipped'] == dict(not_image=1)
    for form in ('tar', 'gztar', 'bztar', 'xztar', 'zip'):
        found = FaceData.from_folder(shutil.make_archive(tmp_path/'x', form, folder), size=32)
        assert sorted(found.sha256) == sorted(want.sha256)
        assert set(found.heldout.mean((1, 2, 3))) == set(want.heldout.mean((1, 2, 3)))
        assert len(as_images(shutil.make_archive(tmp_path/'x', form, folder))) == 12
    np.savez(tmp_path/'x.npz', labels=np.zeros((12, 3)), images=want.images)
    np.save(tmp_path/'x.npy', want.images.astype(np.float32)/255)
    for name in ('x.npz', 'x.npy'):
        assert np.array_equal(FaceData.from_npz(tmp_path/name).images, want.images)
        assert np.array_equal(as_images(tmp_path/name), want.images)


def test_nothing_is_squashed(tmp_path):
    y, x = np.mgrid[:64, :160]
    disc = (((y - 32)**2 + (x - 80)**2 < 20**2)*255).astype(np.uint8)
    for i in range(2):
        cv2.imwrite(str(tmp_path/f'{i}.png'), np.repeat(disc[..., None], 3, -1) + np.uint8(i))
    for ims in (FaceData.from_folder(tmp_path, size=64).images, as_images(tmp_path)):
        assert ims.shape[1:] == (64, 64, 3)
        on = ims[0, ..., 0] > 128
        assert abs(int(on.any(0).sum()) - int(on.any(1).sum())) <= 1
    wide = FaceData(dict(images=np.zeros((9, 8, 16, 3), np.uint8), split=np.zeros(9), key=np.arange(9)), dict(hash='w'))
    with pytest.raises(BadInput, match=r'square pictures .*not from \(9, 8, 16, 3\)'):
        train(wide, SMALL, root=tmp_path/'root', **STILL)


@pytest.mark.parametrize('make, words', [
    (lambda p: p.mkdir(), 'holds 0 files and 0 pictures'), (lambda p: p.write_bytes(b''), 'cannot be read as pictures'),
    (lambda p: p.write_bytes(b'%PDF'), 'cannot be read as pictures'), (lambda p: None, 'does not exist'),
    (lambda p: tarfile.open(p, 'w').close(), 'holds 0 files and 0 pictures')])
def test_what_is_no_folder_of_pictures_is_one_sentence(make, words, tmp_path):
    make(tmp_path/'mine')
    for read in (FaceData.from_folder, as_images):
        with pytest.raises(BadInput, match=words) as e:
            read(tmp_path/'mine')
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('ims, words', [
    (np.zeros((3, 8, 8, 2), np.uint8), 'Need pictures'), (np.zeros((3, 3, 8, 8), np.uint8), 'channels last'),
    (np.full((3, 8, 8, 3), 200.), 'from 200 to 200'), (np.full((3, 8, 8, 3), -.5), 'from -0.5'),
    (np.zeros((3, 8, 8, 3), np.int32), 'int32'), (np.zeros((3, 8, 8, 3), bool), 'bool'), (np.zeros(5), 'no pictures'),
    (np.zeros((3, 8, 8, 3), complex), 'complex'), (np.full((3, 8, 8, 3), np.nan), 'nan')])
def test_arrays_that_are_no_pictures(ims, words, tmp_path):
    np.save(tmp_path/'x.npy', ims)
    with pytest.raises(BadInput, match=words):
        FaceData.from_npz(tmp_path/'x.npy')


def test_a_tar_cut_short_is_named(tmp_path):
    path = Path(shutil.make_archive(tmp_path/'x', 'tar', photos(tmp_path/'mine')))
    whole = path.read_bytes()
    for cut in (1000, len(whole)//2):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match='x.tar is damaged after'):
            list(files_in(path))
    with tarfile.open(path.with_name('whole.tar'), 'w') as t:
        t.add(tmp_path/'mine')
        at = t.getmembers()[5].offset
    whole = path.with_name('whole.tar').read_bytes()
    path.write_bytes(whole[:at] + b'nonsense'*64 + whole[at + 512:])
    with pytest.raises(BadInput, match='x.tar is damaged after'):
        list(files_in(path))


def test_grey_pictures_from_end_to_end(tmp_path, capsys):
    mine, root = photos(tmp_path/'mine', 24, grey=True), tmp_path/'root'
    same = ['--root', root, '--device', 'cpu']
    flags = ['--images', mine, '--grey', '--recipe', 'tiny', '--size', 16, '--batch', 8, '--budget', '32 images']
    assert cli.main([str(o) for o in ['train', *same, *flags]]) == 0, capsys.readouterr().err
    run, faces = Run.open(root, 'tiny'), FaceData.load(root)
    assert run.recipe.net_args['in_ch'] == 1 and run.recipe.batch == 8 and faces.images.shape[1:] == (16, 16, 1)
    assert cli.main([str(o) for o in ['train', *same, *flags]]) == 0
    flags = ['--run', 'tiny', '--n', 4, '--steps', 2, '--png', tmp_path/'p']
    assert cli.main([str(o) for o in ['sample', *same, *flags]]) == 0
    assert cv2.imread(str(tmp_path/'p/000003.png'), cv2.IMREAD_UNCHANGED).shape == (16, 16)
    ims = sample(run, 8, steps=2, **STILL)
    assert ims.shape == (8, 16, 16, 1)

    def levels(x):
        return x.reshape(len(x), -1)[:, ::97].astype(np.float32)
    report = evaluate(run, faces, levels, n=8, seeds=1, detector=None, progress=False, device='cpu', steps=2)
    assert report.rows and faces.picture() is not None
    assert evaluate(ims, faces, levels, detector=None, progress=False).rows
    with pytest.raises(BadInput, match='in_ch=1, but the pictures have 3 channels'):
        train(data(), run.recipe, root=tmp_path/'other', **STILL)


def test_going_on_from_other_weights(tmp_path, capsys):
    first = trained(tmp_path/'root')
    kw = dict(root=tmp_path/'root', name='second', budget='8 images', **STILL)
    low = replace(SMALL, lr=1e-9, warmup=1e6)
    second = train(data(), low, init=first, **kw)
    assert read_json(second.path/'recipe.json')['init'] == dict(run='a', weights=first.weights_id())
    for p, q in zip(first.weights(), second.weights()):
        assert torch.allclose(p, q, atol=1e-5)
    assert train(data(), low, init=first, **kw | dict(budget='16 images')).checkpoints.load()[0]['step'] == 2
    assert train(data(), low, **kw | dict(budget='24 images')).checkpoints.load()[0]['step'] == 3
    with pytest.raises(BadInput, match="begun with init='a' .now 'second'."):
        train(data(), low, init=second, **kw)
    with pytest.raises(BadInput, match='do not fit this network'):
        train(data(), replace(low, net_args=SMALL.net_args | dict(ch=16)), init=first, **kw | dict(name='third'))
    assert not (tmp_path/'root/runs/third').exists()
