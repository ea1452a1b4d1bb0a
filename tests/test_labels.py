"Networks that are told labels: that they draw what is asked for, and that nothing else changes"
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from pttface.app.cli import main, sample_run
from pttface.curation.card import set_hash
from pttface.dataset import FaceData
from pttface.diffusion import GUIDES, Run, draw_noise, evaluations, make_net, sample, sampled_denoiser, train
from pttface.evaluation.samples import generate_cached, newest, read_samples
from pttface.storage.files import BadInput, read_json
from pttface.training.config import RECIPES, Recipe, read_recipe, recipe_record, training_record
from pttface.training.labels import label_columns

KW = dict(device='cpu', progress=False)
BOTH = 'pose', 'gender'
TOLD = Recipe('told', net_args=dict(ch=32, mults=(1,), blocks=1, attn=(), dropout=0., size=8), size=8, batch=64,
              lr=1e-2, mean=-.4, beta2=.99, ema='power 0.10', labels=BOTH, guidance=2., report='6400 images',
              grid='1M images', save='1m', precision='no')

def picture(pose, gender, rng):
    "A bright half on the side that the pose says, or a bright middle; red for a man, blue for a woman"
    im = rng.integers(0, 60, (8, 8, 3))
    at = dict(left=slice(0, 3), right=slice(5, 8), frontal=slice(3, 5))[pose]
    im[:, at, 0 if gender == 'male' else 2] += 190
    return im.astype(np.uint8)

def toy(n=300, rare=None, known=1.):
    "A set in which the labels decide the picture; the gender of a share of the faces is known"
    rng = np.random.default_rng(0)
    pose = rng.choice(['frontal', 'left', 'right'], n, p=[.4, .3, .3])
    gender = rng.choice(['male', 'female'], n)
    if rare:
        pose[pose == 'right'] = 'frontal'
        pose[:rare] = 'right'
    ims = np.stack([picture(p, g, rng) for p, g in zip(pose, gender)])
    split = (np.arange(n) >= n - 20).astype(np.uint8)
    told = np.where(rng.random(n) < known, gender, 'unknown')
    arrays = dict(images=ims, split=split, key=np.arange(n).astype(str), pose=pose, gender=told)
    return FaceData(arrays, dict(hash=set_hash(arrays), counts={}))

def seen_in(ims):
    "Pose and gender of each picture, by where it is bright and in which colour"
    bright = np.stack([ims[:, :, :3].mean((1, 2, 3)), ims[:, :, 5:].mean((1, 2, 3)), ims[:, :, 3:5].mean((1, 2, 3))], 1)
    pose = np.array(['left', 'right', 'frontal'])[bright.argmax(1)]
    return pose, np.where(ims[..., 0].mean((1, 2)) > ims[..., 2].mean((1, 2)), 'male', 'female')

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('labels')/'root'

@pytest.fixture(scope='module')
def run(root):
    "A run on a set in which the gender of four faces in five is known"
    return train(toy(known=.8), TOLD, root=root, budget='16k images', **KW)

@pytest.mark.parametrize('guide', GUIDES)
def test_pictures_have_what_was_asked_for(run, guide):
    right = []
    for pose in ('frontal', 'left', 'right'):
        for gender in ('male', 'female'):
            p, g = seen_in(sample(run, 25, pose=pose, gender=gender, guide=guide, steps=8, **KW))
            right.append(((p == pose).mean(), (g == gender).mean()))
    assert np.mean(right) >= .95 and np.min(right) >= .8, right

def test_one_label_leaves_the_other_open(run):
    p, g = seen_in(sample(run, 40, pose='left', steps=8, **KW))
    assert (p == 'left').mean() >= .95 and .2 < (g == 'male').mean() < .8
    p, g = seen_in(sample(run, 40, gender='male', guidance=1, steps=8, **KW))
    assert (g == 'male').mean() >= .95 and len(set(p)) == 3

def test_without_labels_it_draws_all(run):
    p, g = seen_in(sample(run, 60, steps=8, **KW))
    assert min((p == k).mean() for k in ('frontal', 'left', 'right')) > .08 and .2 < (g == 'male').mean() < .8

def test_a_guide_costs_one_evaluation(run):
    d = sampled_denoiser(run, 'cpu', guide='earlier', pose='left')
    assert evaluations(d) == 23 and d.denoiser.label is not None and d.guide.label is not None
    for guide in ('unlabelled', 'both'):
        d = sampled_denoiser(run, 'cpu', guide=guide, pose='left')
        told = d.denoiser.denoiser  # Inside what leads away from pictures without labels, above the interval
        assert evaluations(d) == 26 and told.label is not None and d.denoiser.guide.label is d.guide.label is None
        assert (d.guide.net is told.net) == (guide == 'unlabelled') and d.denoiser.guide.net is told.net
    assert evaluations(sampled_denoiser(run, 'cpu', guidance=1, pose='left')) == 18

def test_labels_guide_above_the_interval_and_nowhere_else(run):
    d, rng = sampled_denoiser(run, 'cpu', pose='left'), torch.Generator().manual_seed(0)
    x = torch.randn(2, *run.shape, generator=rng)
    told, plain, early = d.denoiser.denoiser, run.denoiser('cpu'), d.guide
    def asked(s):
        sigma = torch.tensor([s, s])
        return d(x*s, sigma), told(x*s, sigma), plain(x*s, sigma), early(x*s, sigma)
    for s in (.05, 10.01, 40.):
        got, a, _, _ = asked(s)
        assert torch.equal(got, a)
    for s in (2.01, 5., 10.):
        got, a, b, _ = asked(s)
        assert torch.allclose(got, (b + 3*(a - b)).clamp(-1, 1), atol=1e-5) and not torch.allclose(got, a, atol=1e-5)
    for s in (.1, 1., 2.):
        got, a, _, c = asked(s)
        assert torch.allclose(got, c + 2*(a - c), atol=1e-5)

def test_a_run_that_was_drawn_without_label_guidance_is_drawn_as_before(run):
    record = recipe_record(run.recipe)
    assert record['label_guidance'] == 3. and read_recipe(record) == run.recipe
    before = read_recipe({k: v for k, v in record.items() if k != 'label_guidance'})
    assert before == replace(run.recipe, label_guidance=1.)
    assert training_record(before) == training_record(run.recipe), 'it is the same training'
    assert 'label_guidance' not in recipe_record(replace(run.recipe, labels=()))

def test_a_checkpoint_is_not_changed_by_what_it_was_asked_for(run):
    ref = newest(run)
    plain = sample(ref, 3, **KW)
    assert not np.array_equal(sample(ref, 3, pose='left', **KW), plain)
    assert np.array_equal(sample(ref, 3, **KW), plain)

def test_samples_that_were_asked_for_are_kept_apart(run, tmp_path):
    ref = newest(run)
    ways = {}, dict(pose='left'), dict(pose='right'), {}
    sets = [generate_cached(sample, ref, 4, 0, tmp_path, **KW, **kw) for kw in ways]
    assert len(list(tmp_path.glob('drawn-*.npz'))) == 3
    assert np.array_equal(sets[0], sets[3]) and not np.array_equal(sets[0], sets[1])

def test_mirroring_exchanges_left_and_right(run):
    "A batch's codes agree with what its pictures show, though half of them are mirrored"
    data = toy()
    x, code = next(data.batches(200, 3, labels=BOTH))
    pose, gender = seen_in(((x.permute(0, 2, 3, 1) + 1)*127.5).numpy())
    columns = label_columns(BOTH)
    assert np.array_equal(pose, [columns[i][1] for i in code[:, :3].argmax(1)])
    assert np.array_equal(gender, [columns[3 + i][1] for i in code[:, 3:].argmax(1)])
    plain = next(data.batches(200, 3))
    assert torch.equal(x, plain), 'labels change nothing about the pictures'

def test_an_unknown_gender_counts_as_dropped():
    data = toy(known=.7)
    _, code = next(data.batches(280, 0, labels=BOTH))
    unknown = (data.gender[data.split == 0] == 'unknown').sum()
    assert (code[:, 3:].sum(1) == 0).sum() == unknown > 50 and (code[:, :3].sum(1) == 1).all()

def test_without_labels_nothing_is_new():
    "The same parameters, the same record, and the same random numbers"
    for recipe in RECIPES.values():
        assert recipe.labels == () and not {'labels', 'label_dropout'} & recipe_record(recipe).keys()
    tiny = RECIPES['tiny']
    plain, told = make_net(tiny), make_net(replace(tiny, labels=('pose',)))
    new = set(dict(told.named_parameters())) - set(dict(plain.named_parameters()))
    assert new == {'label.weight', 'label_map.weight'}
    x, code = torch.zeros(6, 3, 8, 8), torch.eye(5)[[0, 1, 2, 0, 1, 2]]
    a = draw_noise(x, torch.Generator().manual_seed(0), tiny)
    b = draw_noise((x, code), torch.Generator().manual_seed(0), replace(tiny, labels=BOTH))
    assert a[4] is None and b[4].shape == code.shape
    assert all(torch.equal(p, q) for p, q in zip(a[:3], b[:3]))

def test_cut_and_gone_on(root):
    short = replace(TOLD, report='640 images')
    def stop(t, row):
        if row['images'] == 640:
            raise KeyboardInterrupt
    whole = train(toy(), short, root=root, name='whole', budget='1280 images', **KW)
    with pytest.raises(KeyboardInterrupt):
        train(toy(), short, root=root, name='cut', budget='1280 images', callback=stop, **KW)
    cut = train(toy(), short, root=root, name='cut', budget='1280 images', **KW)
    a, b = (o.checkpoints.load()[0]['net'] for o in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a) and 'label.weight' in a

def test_other_labels_are_another_training(root, run):
    with pytest.raises(BadInput, match='other labels of the same faces'):
        train(toy(known=.5), TOLD, root=root, budget='16k images', **KW)
    with pytest.raises(BadInput, match=r"labels=\['pose', 'gender'\] \(now None\)"):
        train(toy(known=.8), replace(TOLD, labels=()), root=root, budget='16k images', **KW)
    with pytest.raises(BadInput, match='label_dropout=0.15'):
        train(toy(known=.8), replace(TOLD, label_dropout=.1), root=root, budget='16k images', **KW)

def test_what_cannot_be_learned_is_refused_before_any_work(root, caplog):
    nothing = toy(known=0)
    with pytest.raises(BadInput, match=r'Too few of the 280 training faces have a gender \(male 0, female 0\)'):
        train(nothing, TOLD, root=root, name='none', **KW)
    del nothing.arrays['pose']
    with pytest.raises(BadInput, match='have a pose'):
        train(nothing, replace(TOLD, labels=('pose',)), root=root, name='none', **KW)
    with pytest.raises(BadInput, match="no label 'age': choose one of pose, gender"):
        train(toy(), replace(TOLD, labels=('age',)), root=root, name='none', **KW)
    with pytest.raises(BadInput, match='label_dropout cannot be 2'):
        train(toy(), replace(TOLD, label_dropout=2), root=root, name='none', **KW)
    with pytest.raises(BadInput, match="'stronger' cannot be told labels"):
        train(toy(), replace(RECIPES['tiny-original'], labels=('pose',)), root=root, name='none', **KW)
    assert not (root/'runs/none').exists()
    with caplog.at_level(logging.WARNING):
        few = train(toy(rare=30), replace(TOLD, flip=False), root=root, name='few', budget='64 images', **KW)
    assert 'pose right 30' in caplog.text
    assert read_json(few.path/'recipe.json')['labels']['pose']['right'] == 30
    with pytest.raises(BadInput, match="trained on 30 faces with pose='right', and at least 50 are needed"):
        sample(few, 1, pose='right', **KW)

def test_a_run_without_labels_says_so(root):
    plain = train(toy(), replace(TOLD, labels=()), root=root, name='plain', budget='64 images', **KW)
    for kw, words in ((dict(pose='left'), "without labels and cannot be asked for pose='left'"),
                      (dict(guide='both'), 'ask for a pose or a gender'), (dict(pose='up'), "no pose 'up'")):
        with pytest.raises(BadInput, match=words):
            sample(plain, 1, **kw, **KW)
        with pytest.raises(BadInput, match=words):
            sample_run(root, run='plain', n=1, progress=False, **kw)
    assert not list(plain.path.glob('samples*'))

def test_the_command(tmp_path, capsys):
    root = tmp_path/'root'
    toy(known=.9).save(root)
    flags = ['--root', str(root), '--name', 'typed', '--recipe', 'tiny', '--size', '8', '--budget', '64 images']
    assert main(['train', *flags, '--device', 'cpu', '--labels', 'age']) == 2
    assert "no label 'age'" in capsys.readouterr().err
    assert main(['train', *flags, '--device', 'cpu', '--labels', 'pose, gender']) == 0
    typed = Run.open(root, 'typed')
    assert typed.recipe.labels == BOTH
    asked = ['sample', '--root', str(root), '--run', 'typed', '--n', '2', '--device', 'cpu', '--steps', '2']
    assert main([*asked, '--pose', 'left', '--gender', 'female']) == 0 and main(asked) == 0
    ims, made = read_samples(typed.path/'samples-left-female.npz')
    plain, of_all = read_samples(typed.path/'samples.npz')
    assert (made['pose'], made['gender']) == ('left', 'female') and not {'pose', 'gender'} & of_all.keys()
    assert len(ims) == len(plain) == 2
    assert main([*asked, '--pose', 'up']) == 2 and "no pose 'up'" in capsys.readouterr().err

def test_labels_are_added_to_a_run_without(root):
    "What it had learned of pictures stays, and the labels are learned on top"
    plain = train(toy(), replace(TOLD, labels=()), root=root, name='before', budget='320 images', **KW)
    short = replace(TOLD, lr=1e-9)
    told = train(toy(), short, root=root, name='after', budget='64 images', init=plain, **KW)
    a, b = (dict(o.denoiser('cpu').net.named_parameters()) for o in (plain, told))
    assert set(b) - set(a) == {'label.weight', 'label_map.weight'}
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    assert told.record['init']['run'] == 'before'
