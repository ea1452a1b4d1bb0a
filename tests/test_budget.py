"Budgets: two units at once, more after the end, and steps that do not fit into memory at once."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pttface.dataset import FaceData
from pttface.storage.files import BadInput
from pttface.training.config import RECIPES, Budget, Recipe, lr_at
from pttface.training.trainer import Trainer, TrainingRun, begin_run, run_training

SMALL = Recipe('small', size=8, batch=8, lr=2e-3, lr_end=1e-5, ema='power 0.10', report='16 images', grid='10M images',
               save='1m', precision='no', guidance=1.)


def faces(n=24):
    ims = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return FaceData(dict(images=ims, split=np.repeat([0, 1], [n - 4, 4]), key=np.arange(n).astype(str)),
                    dict(hash='0123456789abcdef'))


def loss(model, batch, rng):
    x, = batch
    return (model(x) - x).square().mean((1, 2, 3))


def learn(root, budget, name='small', recipe=SMALL, callback=None, most=None, **kw):
    "Train a small network; with `most`, memory holds at most so many pictures."
    run = TrainingRun(begin_run(root, faces(), recipe, name))
    torch.manual_seed(0)
    trainer = Trainer(run, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1)),
                      loss, faces(), Budget.parse(budget), 'cpu', **kw)

    def refuse(module, args):
        if module.training and len(args[0]) > most:
            raise torch.OutOfMemoryError('out of memory')
    if most:
        trainer.model.register_forward_pre_hook(refuse)
    run_training(trainer, False, callback)
    return run, trainer


def final(run):
    return run.checkpoints.load()[0]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a['ema'][0], b['ema'][0]))


@pytest.mark.parametrize('text', ['20k images or', 'or 8m', '8m or 9m or 10m', '20k images or 3 epochs', '1e3s',
                                  'inf h', 'nan s', '0 images', '-1 epochs', '5', '5 h 3 m', '١٠'])
def test_what_is_no_budget(text):
    with pytest.raises(BadInput, match='is no budget'):
        Budget.parse(text)


def test_the_budget_that_is_spent_first_counts():
    both = Budget.parse('160 epochs or 12h')
    assert both.spent(80*100, 3600, 100) == .5 and both.spent(100, 6*3600, 100) == .5
    assert Budget.parse(' 20k  images or 8m ') == Budget(20_000, 'images', 480)


def test_more_after_the_end_does_not_jump(tmp_path):
    run, _ = learn(tmp_path, '160 images')
    assert run.log[-1]['lr'] < .02*SMALL.lr
    run, trainer = learn(tmp_path, '320 images')
    added = [r['lr'] for r in run.log if r['images'] > 160]
    assert added[0] < .6*SMALL.lr and max(added) <= SMALL.lr and added[-1] < .1*SMALL.lr
    assert [o['images'] for o in trainer.spent] == [160, 320]
    peak = max(lr_at(SMALL, p, begun=1/1.25) for p in np.linspace(.8, 1, 200))
    assert .4*SMALL.lr < peak <= .51*SMALL.lr


def test_a_cut_in_what_was_added_changes_nothing(tmp_path):
    def press(trainer, row):
        if row['images'] == 224 and not pressed:
            pressed.append(row)
            raise KeyboardInterrupt
    pressed = []
    learn(tmp_path/'whole', '160 images')
    whole, _ = learn(tmp_path/'whole', '320 images')
    learn(tmp_path/'cut', '160 images')
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path/'cut', '320 images', callback=press)
    cut, _ = learn(tmp_path/'cut', '320 images')
    assert equal(final(whole), final(cut)) and [r['lr'] for r in whole.log] == [r['lr'] for r in cut.log]


def test_a_budget_that_was_not_spent_is_only_stretched(tmp_path):
    def press(trainer, row):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, '160 images', callback=press)
    run, trainer = learn(tmp_path, '320 images')
    assert [o['images'] for o in trainer.spent] == [320]
    rates = [r['lr'] for r in run.log]
    assert rates == sorted(rates, reverse=True)


def test_a_checkpoint_without_an_account_of_its_budgets(tmp_path):
    run, _ = learn(tmp_path, '1600 images')
    state = final(run)
    del state['spent']
    run.checkpoints.save(state, state['step'])
    run, trainer = learn(tmp_path, '2000 images')
    assert [o['images'] for o in trainer.spent] == [1600, 2000]


@pytest.mark.parametrize('most', [1, 2, 3, 5, 7])
def test_a_step_that_does_not_fit_is_cut_and_gives_the_same(tmp_path, most):
    whole, _ = learn(tmp_path/'whole', '80 images')
    parts, trainer = learn(tmp_path/'parts', '80 images', most=most)
    assert -(-8//trainer.accumulate) <= most
    for x, y in zip(final(whole)['ema'][0], final(parts)['ema'][0]):
        assert torch.allclose(x, y, atol=1e-5)


def test_nothing_fits(tmp_path):
    with pytest.raises(MemoryError, match='not even one at a time fits'):
        learn(tmp_path, '80 images', most=.5)


@pytest.mark.parametrize('parts', [0, -1, 9, 'many', '0', 1.5, True, ''])
def test_parts_that_cannot_be(tmp_path, parts):
    with pytest.raises(BadInput):
        learn(tmp_path, '80 images', accumulate=parts)


@pytest.mark.parametrize('end', [161, 180, 320, 5000])
@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_goes_on_from_where_it_ended(name, end):
    for r in (RECIPES[name], replace(RECIPES[name], schedule='cosine')):
        rates = [lr_at(r, p, 10**9, begun=160/end) for p in np.linspace(160/end, 1, 4001)]
        before = lr_at(r, 1., 10**9)
        assert rates[0] == pytest.approx(before, abs=1e-12)
        assert max(np.abs(np.diff(rates))) < .01*r.lr and max(rates) <= r.lr
        if r.schedule == 'cosine':
            assert rates[-1] == pytest.approx(r.lr_end, abs=1e-12)
        else:
            assert (np.diff(rates) < 0).all() and rates[-1] == pytest.approx(before*(160/end)**.5)
