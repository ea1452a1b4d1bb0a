"A run is stepped away from its own samples where that helps, and only there"
import logging
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pttface import diffusion
from pttface.app import cli
from pttface.dataset import FaceData, own_card, own_set
from pttface.diffusion import Run, find_guide, sample, train
from pttface.evaluation import refine as page
from pttface.evaluation.features import Protocol
from pttface.evaluation.refine import check_step, own_weights, plan_copy, refine, refined, step_away, stepped, try_steps
from pttface.evaluation.samples import newest, read_samples
from pttface.export import export_run, load_model
from pttface.storage.files import BadInput, content_hash, read_json, write_json
from pttface.training.config import Recipe

CPU = dict(device='cpu', progress=False)
SMALL = Recipe('small', net_args=dict(ch=32, mults=(1,), blocks=1, attn=(), dropout=0., size=8), size=8, batch=16,
               lr=1e-2, flip=False, mean=-.4, beta2=.99, ema='power 0.10', report='1M images', grid='1M images',
               save='1m', precision='no', steps=4)
FIGURES = Protocol('FD-test', 'test', lambda ims: ims.reshape(len(ims), -1)[:, ::5].astype(np.float32)/60)
HOW = dict(samples=32, lr=3e-3, budget='64 images', n=40, protocol=FIGURES, **CPU)


def pictures(n, seed):
    "A bright square on a dark field, somewhere"
    rng = np.random.default_rng(seed)
    ims = rng.integers(0, 50, (n, 8, 8, 3))
    for im, (x, y) in zip(ims, rng.integers(0, 5, (n, 2))):
        im[y:y+3, x:x+3] += 170
    return ims.astype(np.uint8)


def faces(train=64, heldout=None):
    held = pictures(64, 1) if heldout is None else heldout
    ims = np.concatenate([pictures(train, 0), held])
    split = (np.arange(len(ims)) >= train).astype(np.uint8)
    arrays = dict(images=ims, split=split, key=np.arange(len(ims)).astype(str))
    return FaceData(arrays, dict(hash=content_hash(ims)))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('refine')/'root'
    train(faces(), SMALL, root=root, budget='640 images', name='alone', **CPU)
    train(faces(), replace(SMALL, guidance=2.), root=root, budget='640 images', name='guided', **CPU)
    return root


@pytest.fixture
def run(root, tmp_path):
    "A copy of a run without guidance, in a root of its own"
    return copied(root, tmp_path, 'alone')


def copied(root, tmp_path, name):
    shutil.copytree(root/'runs'/name, tmp_path/'data/runs'/name)
    (tmp_path/'data/pttface.json').write_text('{}')
    return Run.open(tmp_path/'data', name)


@pytest.fixture(scope='module')
def better(root, tmp_path_factory):
    "Faces whose held-out half a step of 2 draws exactly, so that this step is the right one"
    run = copied(root, tmp_path_factory.mktemp('better'), 'alone')
    base, plan = newest(run), plan_copy(run, 640, 32, 3e-3, '64 images', 20_002)
    own = own_weights(run, faces(), base, plan, None, **CPU)
    return faces(heldout=sample(stepped(base, lambda: own, 'own', 2.), 64, seed=99, **CPU))


def figures(weights, kids, error=.01):
    "A trial that knows its figures"
    def trial(way, w, faces, seed):
        return dict(way=way, weight=w, kid=kids[seed][weights.index(w)], error=error)
    trial.features = lambda way, w, seed: np.random.default_rng(0).normal(size=(20, 3))
    return trial


# The arithmetic, and the choice

def test_the_step_is_exact():
    rng = torch.Generator().manual_seed(0)
    theta, own = ([torch.randn(o, generator=rng) for o in ((3, 4), (5,))] for _ in range(2))
    for w in (0., .5, 1., 3.):
        for p, q, got in zip(theta, own, step_away(theta, own, w)):
            wanted = (1 + w)*p.double() - w*q.double()
            assert torch.allclose(got.double(), wanted, atol=2e-6)
    assert all(torch.equal(p, q) for p, q in zip(theta, step_away(theta, own, 0.)))
    with pytest.raises(ValueError):
        step_away(theta, own[:1], 1.)


@pytest.mark.parametrize('first, second, chosen, measured', [
    ((.10, .101, .102), (.1,)*3, 0., [0.]),             # nothing is better
    ((.10, .095, .099), (.1,)*3, 0., [0.]),             # … by more than the error
    ((.10, .05, .08), (.1, .06, .09), 1., [0., 1.]),    # better on both halves
    ((.10, .08, .05), (.1, .12, .13), 0., [0., 2.]),    # better on one half only
    ((math.nan,)*3, (.1,)*3, 0., [0.])])                # no figure at all
def test_it_is_kept_only_where_both_halves_say_so(first, second, chosen, measured):
    weights, held = [0., 1., 2.], np.random.default_rng(1).normal(size=(30, 3))
    trial = figures(weights, {5: first, 6: second})
    tried, got, checked = try_steps(trial, ['alone'], weights, [held, held], lambda x: 0, 5)
    assert got == dict(alone=chosen) and [o['weight'] for o in checked] == measured
    assert len(tried) == 3 and all(0 <= o['recall'] <= 1 for o in checked)


def test_copies_are_counted_before_and_after():
    held = np.random.default_rng(1).normal(size=(30, 3))
    trial = figures([0., 1.], {6: (.1, .05)})
    rows = check_step(trial, 'alone', [0., 1.], held, lambda x: 3, 6)
    assert [o['copies'] for o in rows] == [3, 3]
    found = page.Refinement([], dict(alone=1.), rows, 20, (30, 30), {})
    assert 'Flagged as copies of training faces: 3 before, 3 after' in found.conclusion


# A real run

def test_the_right_step_is_found_and_kept(run, better, monkeypatch):
    found = refine(run, better, weights=(1, 2, 4), **HOW)
    assert found.chosen == dict(alone=2.) and found.kept, found
    assert found.checked[1]['kid'] < found.checked[0]['kid'] and found.faces == (32, 32)
    ref, base = refined(run), newest(run)
    own = torch.load(run.path/'refined/own.pt', weights_only=True)['weights']
    for p, q, got in zip(base.weights(), own, ref.weights()):
        assert torch.equal(got, p + 2*(p - q))
    assert ref.key != base.key and ref.step == base.step and ref.weight == 2
    assert not np.array_equal(sample(ref, 4, **CPU), sample(run, 4, **CPU))
    with pytest.raises(BadInput, match='is of the first average'):
        sample(ref, 4, ema=.1, **CPU)
    assert sorted(o.name for o in (run.path/'refined').iterdir() if not o.name.startswith('.')) == [
        'own.pt', 'refined.json', 'sweep.jsonl'], 'the copy is gone'
    monkeypatch.setattr(diffusion, 'sample', lambda *a, **k: pytest.fail('drawn again'))
    assert str(refine(run, better, weights=(1, 2, 4), **HOW)) == str(found)
    assert 'w = 2: on the other half' in str(found) and found.picture


def test_nothing_is_kept_where_nothing_helps(run, monkeypatch):
    monkeypatch.setattr(page, 'kid', lambda a, b: (.1, .01))
    found = refine(run, faces(), weights=(1, 2), **HOW)
    assert found.chosen == dict(alone=0.) and not found.kept and 'nothing is kept' in found.conclusion
    assert not (run.path/'refined/own.pt').exists() and (run.path/'refined/refined.json').exists()
    with pytest.raises(BadInput, match='keeps no refined weights'):
        refined(run)


def test_guided_or_not(root, tmp_path, monkeypatch):
    run = copied(root, tmp_path, 'guided')
    guide = [p.clone() for p in find_guide(run, 'cpu').parameters()]
    worth = {'alone': {0.: .3, 1.: .1, 2.: .2}, 'guided': {0.: .2, 1.: .15, 2.: .1}}
    monkeypatch.setattr(page.StepTrial, '__call__', lambda self, way, w, faces, seed: dict(
        way=way, weight=w, kid=worth[way][w], error=.01))
    found = refine(run, faces(), weights=(1, 2), **HOW)
    assert found.chosen == dict(alone=1., guided=2.)
    assert (refined(run).weight, refined(run, False).weight, refined(run, True).weight) == (2., 1., 2.)
    ref = refined(run)
    assert all(torch.equal(p, q) for p, q in zip(guide, find_guide(ref, 'cpu').parameters())), 'the guide stays'
    assert not np.array_equal(sample(ref, 2, **CPU), sample(ref, 2, guidance=1., **CPU))
    write_json(run.path/'guidance.json', dict(weight=3., low=.2, high=1.))
    with pytest.raises(BadInput, match='was refined with the guidance'):
        refined(run)
    assert refined(run, False).weight == 1.


def test_a_linear_network_can_be_refined(tmp_path):
    linear = replace(SMALL, name='linear', parameterization='linear', sampler='ancestral', steps=5)
    run = train(faces(), linear, root=tmp_path/'data', budget='64 images', **CPU)
    found = refine(run, faces(), weights=(1,), **HOW)
    assert len(found.tried) == 2 and all(math.isfinite(o['kid']) for o in found.tried)


# Interrupted, stale

def test_an_interrupted_refinement_goes_on(run, root, tmp_path, monkeypatch):
    whole = refine(run, faces(), weights=(1, 2), **HOW)
    own = read_json(run.path/'refined/refined.json')
    cut = copied(root, tmp_path/'cut', 'alone')
    step, real, drawn = diffusion.Trainer.training_step, diffusion.sample, []
    def stop_training(self, x0):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, x0)
    def stop_drawing(*a, **k):
        drawn.append(a[1])
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(*a, **k)
    with monkeypatch.context() as m:
        m.setattr(diffusion.Trainer, 'training_step', stop_training)
        with pytest.raises(KeyboardInterrupt):
            refine(cut, faces(), weights=(1, 2), **HOW)
    assert list((cut.path/'refined').glob('copy-*/runs/copy/checkpoint-*2.pt')), 'the training was saved'
    with monkeypatch.context() as m:
        m.setattr(diffusion, 'sample', stop_drawing)
        with pytest.raises(KeyboardInterrupt):
            refine(cut, faces(), weights=(1, 2), **HOW)
        assert drawn == [40, 40, 40], "its own samples are not drawn again"
        m.setattr(diffusion, 'sample', lambda *a, **k: drawn.append(a[1]) or real(*a, **k))
        found = refine(cut, faces(), weights=(1, 2), **HOW)
    assert found.tried == whole.tried and found.checked == whole.checked
    assert len(drawn) - 3 == 1 + len(found.checked), 'the first two figures were known'
    assert read_json(cut.path/'refined/refined.json')['own'] == own['own']


def test_a_run_that_went_on_must_be_refined_again(run, better):
    refine(run, better, weights=(2,), **HOW)
    assert refined(run).weight == 2
    train(faces(), SMALL, root=run.path.parents[1], budget='800 images', name='alone', **CPU)
    with pytest.raises(BadInput, match='was refined at step 40 and has gone on to step 50'):
        refined(run)
    again = refine(run, faces(), weights=(2,), **HOW)
    assert again.made_from['step'] == 50 and len(again.tried) == 2


def test_damaged_files_are_noticed(run, better, caplog):
    refine(run, better, weights=(2,), **HOW)
    own = run.path/'refined/own.pt'
    own.write_bytes(own.read_bytes()[:1000])
    with pytest.raises(BadInput, match='own.pt is missing or damaged'):
        refined(run)
    refine(run, better, weights=(2,), **HOW)
    assert refined(run).weight == 2, 'made anew'
    own.unlink()
    refine(run, better, weights=(2,), **HOW)
    assert refined(run).weight == 2
    with caplog.at_level(logging.WARNING):
        own.write_bytes(b'torn')
        refine(run, better, weights=(2, 3), **HOW)
    assert 'is damaged: the copy is to be trained again' in caplog.text and refined(run).weight == 2


# Bad input

@pytest.mark.parametrize('kw, message', [
    (dict(weights=(-1,)), 'weight cannot be -1'), (dict(weights=(math.nan,)), 'weight cannot be nan'),
    (dict(weights=(math.inf, 1)), 'weight cannot be inf'), (dict(weights=(0,)), 'at least one weight above 0'),
    (dict(weights=()), 'at least one weight above 0'), (dict(samples=10), '10 samples are fewer than a batch of 16'),
    (dict(samples=0), 'samples cannot be 0'), (dict(n=0), 'n cannot be 0'), (dict(n=5), '5 samples of each figure'),
    (dict(lr=0.), 'lr cannot be 0'), (dict(budget='a while'), "'a while' is no budget"),
    (dict(seed=-1), 'seed cannot be'), (dict(protocol='magic'), "no protocol 'magic'")])
def test_bad_input_is_refused_before_anything_is_drawn(run, kw, message, monkeypatch):
    monkeypatch.setattr(diffusion, 'sample', lambda *a, **k: pytest.fail('something was drawn'))
    with pytest.raises(BadInput, match=message):
        refine(run, faces(), **HOW | kw)
    assert not (run.path/'refined').exists()


def test_too_few_held_out_and_nothing_refined(run):
    with pytest.raises(BadInput, match='23 faces are held out: choosing how far to step needs at least 24'):
        refine(run, faces(heldout=pictures(23, 1)), **HOW)
    with pytest.raises(BadInput, match='has not been refined'):
        refined(run)


# The command, and what leaves

def run_main(capsys, *argv):
    status = cli.main([str(o) for o in argv])
    return status, capsys.readouterr().err.strip()


@pytest.fixture
def packed(run, better):
    "Its root with the set on disk"
    root = run.path.parents[1]
    ims, numbers = better.images, [f'{i:064x}' for i in range(len(better))]
    arrays = own_set(ims, numbers, numbers) | dict(split=better.split)
    FaceData(arrays, own_card(arrays, {}, {})).save(root)
    return root


def test_the_command_and_its_flag(packed, run, better, capsys, monkeypatch):
    monkeypatch.setattr(page, 'load_protocol', lambda *a: FIGURES)
    at = ('--root', packed, '--device', 'cpu', '--no-progress')
    few = ('--samples', 32, '--lr', '3e-3', '--budget', '64 images', '--n', 40)
    plain = ('sample', '--run', 'alone', '--n', 4, *at)
    for argv, message in [
            ((*plain, '--refined'), 'has not been refined: `pttface refine --name alone` does'),
            (('refine', '--name', 'nobody', *at), "no run 'nobody'"),
            (('refine', '--name', 'alone', '--weights', '1;2', *at), "'1;2' are no weights"),
            (('refine', '--name', 'alone', '--weights', '1,-2', *at), 'weight cannot be -2'),
            (('refine', '--name', 'alone', '--samples', 0, *at), 'samples cannot be 0')]:
        status, err = run_main(capsys, *argv)
        assert status == 2 and message in err and '\n' not in err, err
    assert cli.main([str(o) for o in ('refine', '--name', 'alone', '--weights', '1,2', *few, *at)]) == 0
    assert 'Alone, w = 2: on the other half' in capsys.readouterr().out
    assert run_main(capsys, *plain)[0] == 0 and run_main(capsys, *plain, '--refined')[0] == 0
    files = [read_samples(run.path/o) for o in ('samples.npz', 'samples-refined.npz')]
    assert files[0][1]['weights'] != files[1][1]['weights'] and files[1][1]['run'] == 'alone, refined 2'
    np.testing.assert_array_equal(files[1][0], sample(refined(run), 4, **CPU))
    status, err = run_main(capsys, *plain, '--refined', '--ema', '.1')
    assert status == 2 and 'not both' in err
    out = ('--out', run.path/'samples.npz')
    assert run_main(capsys, *plain, '--refined', *out)[0] == 0
    np.testing.assert_array_equal(read_samples(run.path/'samples.npz')[0], files[1][0])


def test_a_refined_run_is_exported(run, better, tmp_path):
    with pytest.raises(BadInput, match='has not been refined'):
        export_run(run, tmp_path/'too-early', refined=True, **CPU)
    refine(run, better, weights=(2,), **HOW)
    export_run(run, tmp_path/'model', refined=True, **CPU)
    model = load_model(tmp_path/'model')
    np.testing.assert_array_equal(sample(model, 3, **CPU), sample(refined(run), 3, **CPU))
    assert model.config['average'] == 'power 0.10, refined with w = 2'
    assert model.config['weights'] == refined(run).id[:16]
    with pytest.raises(BadInput, match='not both'):
        export_run(run, tmp_path/'both', ema=.1, refined=True, **CPU)
    with pytest.raises(BadInput, match='is an exported model'):
        refine(model, better, **HOW)
