"A training that memorises notices, keeps the averages of before, and its report repeats it"
import logging
from dataclasses import replace

import numpy as np
import pytest

from pttface.dataset import FaceData
from pttface.diffusion import sample, train
from pttface.evaluation.samples import lowest_heldout
from pttface.fid import evaluate
from pttface.training.config import Recipe
from pttface.training.overfitting import find_gap

KW = dict(device='cpu', progress=False)
SMALL = Recipe('small', net_args=dict(ch=32, mults=(1,), blocks=1, attn=(), dropout=0., size=8), size=8, batch=16,
               lr=1e-2, flip=False, mean=-.4, beta2=.99, ema='power 0.10', report='320 images',
               grid='1M images', save='1m', precision='no')

def few(n=16, heldout=32):
    "Pictures of which one says nothing about the next: what is learned of them is learned by heart"
    ims = np.random.default_rng(0).integers(0, 255, (n + heldout, 8, 8, 3)).astype(np.uint8)
    split = (np.arange(n + heldout) >= n).astype(np.uint8)
    return FaceData(dict(images=ims, split=split, key=np.arange(n + heldout).astype(str)), dict(hash='few'))

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('overfitting')/'root'

@pytest.fixture(scope='module')
def run(root):
    return train(few(), SMALL, root=root, budget='3840 images', **KW)

def test_it_notices_and_keeps_the_averages_of_before(run):
    gap = find_gap(run.log)
    said = [r for r in run.log if 'memorises' in r]
    assert gap and len(said) == 1 and said[0]['memorises']['images'] == gap['images']
    best = min(run.log, key=lambda r: r['heldout_loss'])
    assert gap['step'] == best['step'] and gap['epoch'] == best['images']/16
    kept = sorted(o.name for o in (run.path/'best').iterdir())
    assert kept == [f'ema-{best["step"]:08d}.pt'], 'one snapshot, that of the lowest held-out loss'
    assert any(o.get_label() == 'memorises' for o in run.curves().axes[0].lines)

def test_samples_of_before(run):
    before = lowest_heldout(run)
    ims = sample(before, 4, **KW)
    assert ims.shape == (4, 8, 8, 3) and not np.array_equal(ims, sample(run, 4, **KW))

def test_the_report_says_so(run):
    kw = dict(n=8, seeds=1, protocol=lambda ims: ims.mean((1, 2))/64, detector=None, **KW)
    assert any('the network memorises' in o for o in evaluate(run, few(), **kw).notes)
    assert not any('the network memorises' in o for o in evaluate(lowest_heldout(run), few(), **kw).notes)

def test_a_cut_training_says_it_once_too(root, run, caplog):
    opened = next(r for r in run.log if 'memorises' in r)['images']
    def stop(t, row):
        if row['images'] == opened:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(few(), SMALL, root=root, name='cut', budget='3840 images', callback=stop, **KW)
    assert caplog.text.count('memorises') == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cut = train(few(), SMALL, root=root, name='cut', budget='3840 images', **KW)
    assert 'memorises' not in caplog.text
    assert [r['heldout_loss'] for r in cut.log] == [r['heldout_loss'] for r in run.log]

def test_nothing_is_said_of_many_faces_or_without_held_out_ones(root, caplog):
    with caplog.at_level(logging.WARNING):
        many = train(few(n=600), replace(SMALL, batch=32), root=root, name='many', budget='1600 images', **KW)
        none = train(few(heldout=0), SMALL, root=root, name='none', budget='640 images', **KW)
    assert 'memorises' not in caplog.text
    assert (many.path/'best').exists() and not (none.path/'best').exists()
