"What people type and how they stop it: impossible values, small terminals, closed pipes, full disks, signals."
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pttface import diffusion
from pttface.app import cli
from pttface.checks import LIMITS, check_numbers
from pttface.dataset import FaceData
from pttface.diffusion import Run, interpolate, sample, train, trajectory
from pttface.evaluation.samples import newest, read_samples
from pttface.storage.files import BadInput, dumps, write_npz
from pttface.training import trainer
from pttface.training.device import pick_device

sys.path.insert(0, str(Path(__file__).parent))
from diffusion_worker import SMALL, data

QUICK = dict(root='root', budget='16 images', device='cpu', progress=False)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A root with a data set and a run `a` of two steps."
    root = tmp_path_factory.mktemp('commands')/'root'
    ims = data()
    ims.card |= dict(counts={}, hash=None)
    arrays = ims.arrays | {k: np.full(24, '') for k in ('article', 'url', 'sha256')}
    from pttface.curation.card import set_hash
    FaceData(arrays, dict(counts=dict(train=20, heldout=4), hash=set_hash(arrays))).save(root)
    train(FaceData.load(root), SMALL, name='a', **QUICK | dict(root=root))
    return root


def run_main(capsys, *argv):
    "Exit status and what was written to the error stream."
    status = cli.main([str(o) for o in argv])
    return status, capsys.readouterr().err.strip()


IMPOSSIBLE = [
    ('sample', ['--n', '0'], 'n cannot be 0'), ('sample', ['--n', '-3'], 'n cannot be -3'),
    ('sample', ['--steps', '0'], 'steps cannot be 0'), ('sample', ['--batch', '-1'], 'batch cannot be -1'),
    ('sample', ['--seed', '-1'], 'seed cannot be -1'), ('sample', ['--seed', str(2**64)], 'seed cannot be'),
    ('sample', ['--device', 'gpu'], "no device 'gpu'"), ('sample', ['--device', 'cuda:77'], 'cuda:77'),
    ('sample', ['--device', ''], 'no device'), ('sample', ['--sampler', 'plms'], "no sampler 'plms'"),
    ('train', ['--batch', '0'], 'batch cannot be 0'), ('train', ['--lr', '0'], 'lr cannot be 0.0'),
    ('train', ['--lr', 'nan'], 'lr cannot be nan'), ('train', ['--lr=-1e-3'], 'lr cannot be'),
    ('train', ['--size', '4'], 'size cannot be 4'), ('train', ['--accumulate', '0'], 'accumulate cannot be 0'),
    ('train', ['--accumulate', '999'], 'batch of 256 cannot be cut into 999'),
    ('train', ['--budget', 'forever'], "'forever' is no budget"), ('train', ['--budget=-3h'], "'-3h' is no budget"),
    ('train', ['--recipe', 'edn'], "no preset 'edn'"), ('train', ['--speed', 'warp'], "no speed 'warp'"),
    ('train', ['--device', 'tpu'], "no device 'tpu'"), ('train', ['--trackers', 'excel'], "no tracker 'excel'"),
    ('train', ['--init', 'nobody'], 'is not a pttface folder'), ('train', ['--images', 'no/folder'], 'does not exist'),
    ('fid', ['--n', '0'], 'n cannot be 0'), ('fid', ['--seeds', '0'], 'seeds cannot be 0'),
    ('fid', ['--protocol', 'vgg'], "no protocol 'vgg'"), ('fid', ['--device', 'gpu'], "no device 'gpu'"),
    ('demo', ['--photos', '0'], 'photos cannot be 0'), ('demo', ['--budget', 'soon'], "'soon' is no budget"),
    ('demo', ['--recipe', 'x'], "no preset 'x'"), ('demo', ['--seed', '-5'], 'seed cannot be -5'),
    ('crawl', ['Beauty', '--workers', '0'], 'workers cannot be 0'),
    ('crawl', ['Beauty', '--rate', '-1'], 'rate cannot be -1.0'),
    ('download', ['--quality', '101'], 'quality cannot be 101'), ('download', ['--score', '2'], 'score cannot be 2.0'),
    ('download', ['--streams', '0'], 'streams cannot be 0'), ('faces', ['--workers', '-2'], 'workers cannot be -2'),
    ('faces', ['--batch', '0'], 'batch cannot be 0'), ('dataset', ['--heldout', '1'], 'heldout cannot be 1.0'),
    ('dataset', ['--distance', '65'], 'distance cannot be 65'), ('dataset', ['--alike', 'inf'], 'alike cannot be inf')]


@pytest.mark.parametrize('command, flags, message', IMPOSSIBLE)
def test_what_cannot_be_is_one_sentence(command, flags, message, tmp_path, capsys):
    place = dict(status=[], doctor=[]).get(command, ['--root', tmp_path/'root'])
    status, err = run_main(capsys, command, *place, *flags)
    assert status == 2 and message in err and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_every_number_of_every_command_has_limits():
    "A flag that takes a number is checked, or is no number of things."
    free = {'yaw', 'ema'}  # A recipe's average is a text, so the flag has limits of its own
    for name in cli.COMMANDS:
        parser = cli.command(name)[1]
        numbers = {a.dest for a in parser._actions if a.type in (int, float)}
        assert numbers - LIMITS.keys() <= free, (name, numbers - LIMITS.keys())


@pytest.mark.parametrize('kw', [
    dict(n=0), dict(n=-3), dict(n=2.5), dict(n='4'), dict(n=True), dict(steps=0), dict(steps=-1), dict(batch=-1),
    dict(batch=0), dict(seed=-1), dict(seed=2**64), dict(seed=.5), dict(size=0), dict(start=-1), dict(device='gpu'),
    dict(device='cuda:77'), dict(device='meta'), dict(sampler='plms'), dict(sampler=3)])
def test_the_same_in_python_for_sample(root, kw):
    with pytest.raises(ValueError) as e:
        sample(Run.open(root, 'a'), **dict(n=2, steps=2, device='cpu', progress=False) | kw)
    assert isinstance(e.value, BadInput) and str(e.value).count('\n') == 0


@pytest.mark.parametrize('changes', [
    dict(batch=0), dict(batch=-8), dict(batch=2.5), dict(lr=0), dict(lr=float('nan')), dict(lr=-1), dict(lr_end=-1),
    dict(warmup=-1), dict(beta2=1), dict(clip=0), dict(augment=2), dict(steps=0), dict(seed=-1), dict(seed=2**64),
    dict(size=0), dict(std=0), dict(snapshots=-1), dict(net='vit'), dict(parameterization='vp'),
    dict(precision='int8'), dict(sampler='plms'), dict(budget='0h'), dict(report='often'), dict(save=''),
    dict(ema='median'), dict(ema='power'), dict(ema='power x'), dict(ema='power 0.5'), dict(ema=''),
    dict(net_args=dict(ch=8, in_ch=1)), dict(net_args=dict(channels=8)), dict(net_args=dict(ch=0)),
    dict(net_args=dict(ch=2))])
def test_the_same_in_python_for_recipes(changes, tmp_path):
    with pytest.raises(BadInput) as e:
        train(data(), replace(SMALL, **changes), **QUICK | dict(root=tmp_path/'root'))
    assert str(e.value).count('\n') == 0
    assert not list(tmp_path.rglob('recipe.json'))


@pytest.mark.parametrize('kw', [dict(device='gpu'), dict(device='cuda:77'), dict(accumulate=0), dict(accumulate=99),
                                dict(speed='warp'), dict(budget='soon'), dict(trackers='excel'), dict(name='../x')])
def test_the_same_in_python_for_train(kw, tmp_path):
    with pytest.raises(BadInput):
        train(data(), SMALL, **QUICK | dict(root=tmp_path/'root') | kw)
    assert not list(tmp_path.rglob('recipe.json'))


def test_a_seed_of_64_bits_is_a_seed(root, tmp_path):
    run = train(data(), replace(SMALL, seed=2**64 - 1), **QUICK | dict(root=tmp_path/'root'))
    a, b = (sample(run, 2, steps=2, seed=s, device='cpu', progress=False) for s in (2**64 - 1, 2**64 - 2))
    assert (a != b).any()
    with pytest.raises(BadInput, match='frames cannot be 0'):
        trajectory(run, frames=0, device='cpu')
    with pytest.raises(BadInput, match='b cannot be -1'):
        interpolate(run, 0, -1, device='cpu')


def test_a_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(BadInput, match="'cuda' is not here.*can use cpu"):
        pick_device('cuda')
    assert pick_device(torch.device('cpu')).type == 'cpu'
    with pytest.raises(BadInput, match='n cannot be'):
        check_numbers(n=float('inf'))


# Samples

def drawn_by(path):
    return read_samples(path)[1]


def test_one_file_never_holds_pictures_of_another_run(root, tmp_path, capsys, caplog):
    train(data(), replace(SMALL, seed=7), name='b', **QUICK | dict(root=root))
    same = ['--root', root, '--n', 4, '--steps', 2, '--device', 'cpu', '--out', tmp_path/'out.npz']
    pictures = {}
    for run in ('a', 'b', 'b', 'a'):
        assert run_main(capsys, 'sample', '--run', run, *same)[0] == 0
        ims, made_by = read_samples(tmp_path/'out.npz')
        assert made_by['weights'] == newest(Run.open(root, run)).id[:16] and made_by['step'] == 2
        want = sample(Run.open(root, run), 4, steps=2, device='cpu', progress=False)
        assert np.array_equal(ims, want)
        pictures[run] = ims
    assert not np.array_equal(pictures['a'], pictures['b']) and 'drawn again' in caplog.text


@pytest.mark.parametrize('flags', [['--steps', 3], ['--seed', 1], ['--sampler', 'heun'], ['--n', 5]])
def test_other_settings_are_other_pictures(flags, root, tmp_path, capsys):
    same = ['sample', '--root', root, '--run', 'a', '--n', 4, '--steps', 2, '--device', 'cpu']
    assert run_main(capsys, *same, '--out', tmp_path/'out.npz')[0] == 0
    first = (tmp_path/'out.npz').read_bytes()
    assert run_main(capsys, *same, '--out', tmp_path/'out.npz')[0] == 0
    assert (tmp_path/'out.npz').read_bytes() == first
    assert run_main(capsys, *same, *flags, '--out', tmp_path/'out.npz')[0] == 0
    assert run_main(capsys, *same, *flags, '--out', tmp_path/'fresh.npz')[0] == 0
    a, b = (read_samples(tmp_path/o) for o in ('out.npz', 'fresh.npz'))
    assert np.array_equal(a[0], b[0]) and a[1] == b[1]


def test_old_and_foreign_files(root, tmp_path, capsys, caplog):
    same = ['sample', '--root', root, '--run', 'a', '--n', 3, '--steps', 2, '--device', 'cpu']
    out, grey = tmp_path/'out.npz', np.full((3, 16, 16, 3), 9, np.uint8)
    old = dict(images=16, n=3, steps=2, sampler=None, seed=0)
    write_npz(out, images=grey, made_by=np.array(dumps(old)))
    assert run_main(capsys, *same, '--out', out)[0] == 0 and 'does not say which weights drew it' in caplog.text
    assert not np.array_equal(read_samples(out)[0], grey)
    write_npz(out, images=grey)
    status, err = run_main(capsys, *same, '--out', out)
    assert status == 2 and 'does not come from' in err and np.array_equal(np.load(out)['images'], grey)
    out.write_bytes(b'torn')
    assert run_main(capsys, *same, '--out', out)[0] == 0 and len(read_samples(out)[0]) == 3


def test_a_newer_checkpoint_means_new_samples(root, capsys):
    run = train(data(), SMALL, name='grows', **QUICK | dict(root=root))
    same = ['sample', '--root', root, '--run', 'grows', '--n', 2, '--steps', 2, '--device', 'cpu']
    assert run_main(capsys, *same)[0] == 0 and drawn_by(run.path/'samples.npz')['step'] == 2
    pinned = newest(run)
    before = sample(pinned, 2, steps=2, device='cpu', progress=False)
    train(data(), SMALL, name='grows', **QUICK | dict(root=root, budget='40 images'))
    assert np.array_equal(sample(pinned, 2, steps=2, seed=0, device='cpu', progress=False), before)
    assert run_main(capsys, *same)[0] == 0 and drawn_by(run.path/'samples.npz')['step'] == 5
    assert not np.array_equal(read_samples(run.path/'samples.npz')[0], before)


def test_fid_draws_all_blocks_from_the_checkpoint_it_began_with(root, tmp_path):
    run = train(data(), SMALL, name='moves', **QUICK | dict(root=root))
    want = sample(run, 4, steps=2, device='cpu', progress=False)

    def draw(ref, n, **kw):
        ims = sample(ref, n, **kw)
        if not kw.get('start'):  # the training goes on after the first block
            train(data(), SMALL, name='moves', **QUICK | dict(root=root, budget='64 images'))
        return ims
    from pttface.evaluation.samples import generate_cached
    ims = generate_cached(draw, newest(run), 4, 0, tmp_path, block=2, steps=2, device='cpu', progress=False)
    assert np.array_equal(ims, want)


@pytest.mark.parametrize('threads', [1, 2])
def test_ctrl_c_while_drawing_keeps_what_was_drawn(threads, root, tmp_path, capsys, monkeypatch):
    same = ['sample', '--root', root, '--run', 'a', '--n', 20, '--steps', 2, '--batch', 2, '--device', 'cpu',
            '--out', tmp_path/'out.npz']
    real, calls, stop_after = diffusion.sample_batch, [], [8]

    def interrupted(d, index, shape, **kw):
        if len(calls) == stop_after[-1]:
            raise KeyboardInterrupt
        calls.append(list(index))
        return real(d, index, shape, **kw)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr(diffusion, 'sample_batch', interrupted)
        status, err = run_main(capsys, *same)
        assert status == 130 and 'goes on from here' in err
        drawn = {k for call in calls for k in call}
        assert len(drawn) == 16 and not (tmp_path/'out.npz').exists()
        calls.clear()
        stop_after.append(99)
        assert run_main(capsys, *same)[0] == 0
    finally:
        torch.set_num_threads(before)
    assert {k for call in calls for k in call} == set(range(20)) - drawn
    want = sample(Run.open(root, 'a'), 20, steps=2, batch=2, device='cpu', progress=False)
    assert np.array_equal(read_samples(tmp_path/'out.npz')[0], want)
    assert [o.name for o in tmp_path.iterdir()] == ['out.npz']


def test_each_sample_as_a_png(root, tmp_path, capsys):
    same = ['sample', '--root', root, '--steps', 2, '--device', 'cpu', '--out', tmp_path/'out.npz', '--n', 3]
    assert run_main(capsys, *same, '--run', 'a', '--png', tmp_path/'each')[0] == 0
    from PIL import Image
    files = sorted((tmp_path/'each').glob('*.png'))
    assert [o.name for o in files] == ['000000.png', '000001.png', '000002.png']
    assert np.array_equal([np.asarray(Image.open(o)) for o in files], read_samples(tmp_path/'out.npz')[0])
    train(data(), replace(SMALL, seed=9), name='c', **QUICK | dict(root=root))
    status, err = run_main(capsys, *same, '--run', 'c', '--png', tmp_path/'each')
    assert status == 2 and 'give an empty or new folder' in err
    assert run_main(capsys, *same, '--run', 'a', '--png', tmp_path/'each', '--n', 4)[0] == 0
    assert len(list((tmp_path/'each').glob('*.png'))) == 4


def test_a_run_stopped_before_its_first_report(tmp_path, capsys):
    recipe = replace(SMALL, report='1M images', save='10h')
    root = tmp_path/'root'
    real = trainer.Trainer.training_step

    def step(self, x0):
        if self.step == dict(none=0, two=2)[self.run.path.name]:
            raise KeyboardInterrupt
        return real(self, x0)
    for name in ('none', 'two'):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(trainer.Trainer, 'training_step', step)
            with pytest.raises(KeyboardInterrupt):
                train(data(), recipe, name=name, **QUICK | dict(root=root, budget='400 images'))
    same = ['sample', '--root', root, '--n', 2, '--steps', 2, '--device', 'cpu']
    status, err = run_main(capsys, *same, '--run', 'none')
    assert status == 2 and 'holds no whole checkpoint yet' in err and len(err.splitlines()) == 1
    assert run_main(capsys, *same, '--run', 'two')[0] == 0
    assert drawn_by(root/'runs/two/samples.npz')['images'] == 16
