"A run distilled into two evaluations, either way: resumed, refused, drawn, exported, and turned with the mouse."
import inspect
import itertools
import re
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from diffusion_worker import SMALL, data

from pttface.app.cli import run_safely
from pttface.app.status import status
from pttface.dataset import FaceData
from pttface.diffusion import Run, evaluations, interpolate, sample, sampled_denoiser, to_float, train, trajectory
from pttface.distill import METHODS, QUICKER, Explorer, NewestOnly, distill, finisher
from pttface.evaluation.samples import newest, sample_to
from pttface.export import export_run, load_model
from pttface.fid import Watch
from pttface.storage.files import BadInput, read_json
from pttface.training.config import read_recipe, recipe_record, training_record
from pttface.training.consistency import consistency_loss, earlier_level, multistep, stage_at
from pttface.training.matching import end_loss
from pttface.training.onnx_graph import onnx_denoiser

STILL = dict(device='cpu', progress=False)
GUIDED = replace(SMALL, guidance=2., report='32 images')
TUNED = dict(method='consistency')


def taught(run, name=None, budget='64 images', **kw):
    return distill(run, data(), budget=budget, name=name, **STILL, **kw)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    root = tmp_path_factory.mktemp('distill')/'root'
    return train(data(), GUIDED, root=root, budget='64 images', **STILL)


@pytest.fixture(scope='module', params=METHODS)
def student(request, teacher):
    return taught(teacher, request.param, method=request.param)


@pytest.fixture(scope='module')
def matched(teacher):
    return taught(teacher)


@pytest.fixture(scope='module')
def tuned(teacher):
    return taught(teacher, 'tuned', **TUNED)


def test_the_function_is_imported_as_those_of_the_stages_are(teacher):
    import pttface.distill
    from pttface import distill as imported
    assert imported is pttface.distill and imported.Explorer is Explorer and 'distill' in dir(pttface)
    assert inspect.signature(imported).parameters.keys() == inspect.signature(distill).parameters.keys()
    with pytest.raises(BadInput, match='mid cannot be 0'):
        imported(teacher, data(), mid=0)


@pytest.mark.parametrize('how', [{}, TUNED | dict(targets='guided'), TUNED | dict(targets='data')])
def test_a_distillation_that_was_cut_ends_as_one_that_was_not(how, teacher, tmp_path):
    whole = taught(teacher, 'whole', root=tmp_path/'root', **how)

    def interrupt(t, row):
        if t.images == 32:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        taught(teacher, 'cut', root=tmp_path/'root', callback=interrupt, **how)
    assert Run.open(tmp_path/'root', 'cut').pinned()[0]['images'] == 32
    cut = taught(teacher, 'cut', root=tmp_path/'root', **how)
    states = [o.pinned()[0] for o in (whole, cut)]
    for part in ('net',) if how else ('net', 'own'):
        assert all(torch.equal(states[0][part][k], v) for k, v in states[1][part].items())
    assert [r['loss'] for r in whole.log] == [r['loss'] for r in cut.log]
    assert not all(torch.equal(p, q) for p, q in zip(whole.weights(), teacher.weights()))


def test_guided_targets_are_not_those_of_the_data(teacher, tuned, tmp_path):
    other = taught(teacher, root=tmp_path/'root', targets='data', **TUNED)
    assert not all(torch.equal(p, q) for p, q in zip(tuned.weights(), other.weights()))
    assert other.record['guidance'] == [2., .1, 2.] and other.record['init']['run'] == 'small'


def test_student_and_denoiser_begin_as_the_teacher_and_go_ways_of_their_own(teacher, matched, tmp_path):
    first = {}

    def look(t, row):
        first.update(own=[p.detach().clone() for p in t.module.own.parameters()],
                     times=[g.get('times', 1.) for g in t.opt.param_groups],
                     rates={g['lr'] for g in t.opt.param_groups})
    taught(teacher, root=tmp_path/'root', budget='8 images', lr=1e-9, callback=look)
    begun, n = Run.open(tmp_path/'root', 'small-distilled').weights(), len(teacher.weights())
    for weights in (begun[:n], begun[n:], first['own']):
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(weights, teacher.weights(), strict=True))
    assert first['times'] == [1., QUICKER, QUICKER]
    assert max(first['rates'])/min(first['rates']) == pytest.approx(QUICKER)
    state = matched.pinned()[0]
    assert state['net'].keys() == {f'nets.{i}.{k}' for i in range(2) for k in state['own']}
    for k, v in state['own'].items():
        ways = [v, *(state['net'][f'nets.{i}.{k}'] for i in range(2))]
        assert v.numel() <= 100 or not any(torch.equal(a, b) for a, b in itertools.combinations(ways, 2))
    assert matched.record['parameters'] == sum(o.numel() for o in matched.weights()) == 2*teacher.record['parameters']


def test_each_evaluation_is_answered_by_a_network_of_its_own(matched):
    d = matched.denoiser('cpu')
    asked = []
    for i, net in enumerate(d.net.nets):
        net.register_forward_hook(lambda *args, i=i: asked.append(i))
    first, second = matched.recipe.levels
    x, levels = torch.randn(4, *matched.shape), torch.tensor([first, second, second, first])
    each = torch.cat([d(x[i:i+1], levels[i:i+1]) for i in range(4)])
    assert asked == [0, 1, 1, 0]
    assert torch.allclose(d(x, levels), each, atol=1e-5) and asked[4:] == [0, 1]
    assert matched.evaluations() == 2 and len(asked) == 6


def test_the_second_evaluation_learns_where_the_teacher_ends(teacher, tmp_path):
    pupil = taught(teacher, root=tmp_path/'root', budget='1000 images', lr=1e-3)
    d, t = pupil.denoiser('cpu'), sampled_denoiser(teacher, 'cpu')
    x = to_float(data().images)
    x = x + .3*torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        end = finisher(t, .3)(x)
        off = [end_loss(f(x, torch.full((len(x),), .3)), end).mean().item() for f in (d, teacher.denoiser('cpu'))]
    assert off[0] < .7*off[1], off


@pytest.mark.parametrize('sigma', [.01, .3, 5.])
def test_a_way_to_the_end_of_a_perfect_denoiser_is_its_picture(sigma):
    where = torch.rand(3, 1, 2, 2)
    asked = []

    def denoise(x, s, *told):
        asked.append((s.tolist(), told))
        return where
    end = finisher(denoise, sigma)(where + sigma*torch.randn(3, 1, 2, 2), None, 'label')
    assert torch.allclose(end, where, atol=1e-5) and len(asked) == 5
    assert all(told == (None, 'label') and len(s) == 3 for s, told in asked) and asked[0][0][0] == pytest.approx(sigma)


def test_a_matched_student_hears_of_its_teacher_and_not_of_the_pictures(teacher, matched, tmp_path):
    black = data()
    black.arrays['images'] = black.arrays['images']*0
    black = distill(teacher, black, root=tmp_path/'root', budget='64 images', **STILL)
    assert all(torch.equal(p, q) for p, q in zip(black.weights(), matched.weights()))
    other = train(data(), GUIDED, root=tmp_path/'root', budget='32 images', **STILL)
    other = taught(other, root=tmp_path/'root', name='other')
    assert not any(torch.equal(p, q) for p, q in zip(other.weights(), matched.weights()) if p.numel() > 100)


def test_a_batch_cut_into_parts_and_labels_are_matched_too(teacher, matched, tmp_path):
    parts = taught(teacher, root=tmp_path/'root', accumulate=4)
    assert all(torch.allclose(p, q, atol=1e-2) for p, q in zip(parts.weights(), matched.weights()))
    few = data().arrays
    arrays = dict(images=np.tile(few['images'], (9, 1, 1, 1)), split=np.tile(few['split'], 9), key=np.arange(216))
    pose = np.array(['frontal', 'left', 'right'])[np.arange(216) % 3]
    told = FaceData(arrays | dict(pose=pose), dict(hash='told216'))
    run = train(told, replace(GUIDED, name='told', labels=('pose',)), root=tmp_path/'root', budget='64 images', **STILL)
    pupil = distill(run, told, budget='32 images', **STILL)
    left, right = (sample(pupil, 2, pose=o, **STILL) for o in ('left', 'right'))
    assert not np.array_equal(left, right)


def test_what_cannot_be_distilled_is_one_sentence_before_any_work(teacher, matched):
    root = teacher.path.parents[1]
    linear = replace(SMALL, name='linear', net='stronger', net_args=dict(widths=(2, 2), mid=2, emb=4, heads=1),
                     parameterization='linear')
    linear = train(data(), linear, root=root, budget='8 images', **STILL)

    def stop(t, row):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(data(), GUIDED, root=root, name='half', budget='64 images', callback=stop, **STILL)
    before = sorted(o.name for o in (root/'runs').iterdir())
    for run, kw, words in ((linear, {}, "parameterization 'linear' and cannot be distilled"),
                           (Run.open(root, 'half'), {}, r'has not spent its budget \(32 images so far\)'),
                           (matched, {}, 'drawn in 2 evaluations already'),
                           (teacher, dict(mid=0.), 'mid cannot be 0'), (teacher, dict(mid='x'), "mid cannot be 'x'"),
                           (teacher, dict(doublings=0), 'doublings cannot be 0'),
                           (teacher, dict(method='magic'), 'choose one of matching, consistency'),
                           (teacher, dict(targets='data'), "targets cannot be given to matching: add method="),
                           (teacher, dict(targets='magic'), 'choose one of guided, data'),
                           (teacher, dict(lr=-1.), 'lr cannot be -1'), (teacher, dict(batch=999), 'at least 999'),
                           (teacher, dict(budget='soon'), 'is no budget')):
        with pytest.raises(BadInput, match=words):
            taught(run, 'new', **{**dict(budget='64 images'), **kw})
    assert sorted(o.name for o in (root/'runs').iterdir()) == before
    many = replace(GUIDED, name='many', net='experts', net_args=dict(bounds=(1.,), **GUIDED.net_args))
    many = train(data(), many, root=root, budget='64 images', **STILL)
    with pytest.raises(BadInput, match="many has several networks already"):
        taught(many, 'new')
    with pytest.raises(BadInput, match=re.escape("method='matching' (now 'consistency')")):
        taught(teacher, **TUNED)
    taught(teacher, 'stages', budget='8 images', **TUNED)
    with pytest.raises(BadInput, match=re.escape('doublings=3 (now 4)')):
        taught(teacher, 'stages', doublings=4, **TUNED)


def test_a_teacher_that_was_trained_further_is_noticed(teacher, tmp_path):
    other = train(data(), GUIDED, root=tmp_path/'root', budget='64 images', **STILL)

    def stop(t, row):
        raise KeyboardInterrupt
    hows = dict(matching={}, guided=TUNED, data=TUNED | dict(targets='data'))
    for name, how in hows.items():
        with pytest.raises(KeyboardInterrupt):
            taught(other, name, callback=stop, **how)
    other = train(data(), GUIDED, root=tmp_path/'root', budget='72 images', **STILL)
    for name in ('matching', 'guided'):
        with pytest.raises(BadInput, match='was begun with the weights'):
            taught(other, name, **hows[name])
    taught(other, 'data', **hows['data'])


def test_a_picture_is_the_same_in_any_batch_and_by_any_function(student):
    ims = sample(student, 6, **STILL)
    assert np.abs(ims.astype(int) - sample(student, 6, batch=1, **STILL)).max() <= 1
    assert np.abs(ims[3:].astype(int) - sample(student, 3, start=3, **STILL)).max() <= 1
    assert not np.array_equal(ims, sample(student, 6, seed=1, **STILL))
    once = sample(student, 6, steps=1, **STILL)
    assert not np.array_equal(ims, once) and student.evaluations(steps=1) == 1
    assert evaluations(student.denoiser('cpu')) == student.evaluations() == 2
    between = interpolate(student, 0, 5, 4, device='cpu')
    assert np.abs(between[[0, -1]].astype(int) - ims[[0, 5]]).max() <= 1
    assert trajectory(student, 3, device='cpu')[2].tolist() == pytest.approx(student.recipe.levels)


@pytest.mark.parametrize('kw, words', [(dict(steps=3), 'in 1 to 2 evaluations, not in 3'),
                                       (dict(sampler='heun'), "the sampler 'heun' needs a denoiser"),
                                       (dict(sampler='dpm2m'), "the sampler 'dpm2m' needs a denoiser"),
                                       (dict(guidance=2.), 'guidance=2 cannot be asked')])
def test_what_a_distilled_run_cannot_do_is_said(kw, words, student):
    with pytest.raises(BadInput, match=words):
        sample(student, 1, **STILL, **kw)


def test_the_recipe_travels_as_plain_json_and_old_ones_stay_what_they_were(student):
    settings = read_json(student.path/'recipe.json')['settings']
    of_matching = dict(method='matching', levels=[10., .3], sampler='multistep', net='experts')
    of_tuning = dict(doublings=3, targets='guided', levels=[80., .8], sampler='consistency')  # No `method`, as before
    expected, others = (of_matching, of_tuning)[::1 if student.recipe.method == 'matching' else -1]
    assert expected.items() <= settings.items() and settings['steps'] == 2
    assert not (others.keys() - expected.keys() - {'net'}) & settings.keys()
    assert read_recipe(settings) == student.recipe and student.guidance is None
    names = {'levels', 'doublings', 'targets', 'method'}
    assert not names & (recipe_record(SMALL).keys() | training_record(SMALL).keys())
    assert read_recipe(recipe_record(SMALL)) == SMALL


def test_an_export_draws_the_same(student, tmp_path):
    export_run(student, tmp_path/'model', **STILL)
    model = load_model(tmp_path/'model')
    for steps in (1, 2):
        assert np.array_equal(sample(model, 3, steps=steps, **STILL), sample(student, 3, steps=steps, **STILL))
    assert read_json(tmp_path/'model/config.json')['settings']['levels'] == [*student.recipe.levels]
    assert f'{student.recipe.sampler}, 2 steps' in (tmp_path/'model/README.md').read_text()


@pytest.mark.parametrize('labels', [(), ('pose',)])
def test_graph_and_pipeline_ask_the_network_of_each_noise_level(labels, teacher, tmp_path):
    pytest.importorskip('onnx')
    run = teacher
    few, told = data().arrays, data()
    if labels:
        arrays = dict(images=np.tile(few['images'], (9, 1, 1, 1)), split=np.tile(few['split'], 9), key=np.arange(216))
        pose = np.array(['frontal', 'left', 'right'])[np.arange(216) % 3]
        told = FaceData(arrays | dict(pose=pose), dict(hash='told216'))
        run = train(told, replace(GUIDED, labels=labels), root=tmp_path/'root', budget='64 images', **STILL)
    pupil = distill(run, told, root=tmp_path/'root', name='pupil', budget='64 images', **STILL)
    export_run(pupil, tmp_path/'model', onnx=True, diffusers=True, **STILL)
    d, graph = pupil.denoiser('cpu'), onnx_denoiser(tmp_path/'model/denoiser.onnx')
    sigma = torch.tensor([10., .3, .02, 3.])
    x = torch.randn(4, *pupil.shape)*sigma.view(-1, 1, 1, 1)
    code = torch.eye(4, 3) if labels else None
    with torch.no_grad():
        ours = d(x, sigma, label=code)
    theirs = graph(x.numpy(), sigma.numpy(), *([code.numpy()] if labels else []))
    assert np.abs(ours.numpy() - theirs).max() < 1e-4
    source = (tmp_path/'model/diffusers/unet/face_denoiser.py').read_text()
    assert 'class Experts' in source and 'pttface' not in source


def test_samples_on_disk_reports_and_watching(student, teacher, tmp_path):
    out = sample_to(sample, newest(student), 4, tmp_path/'some.npz', **STILL)
    assert np.array_equal(np.load(out)['images'], sample(student, 4, **STILL))
    watch = Watch(data(), n=6, protocol=lambda ims: ims.reshape(len(ims), -1)[:, ::50].astype(np.float32))
    how = dict(method=student.recipe.method)
    taught(teacher, f'watched-{student.recipe.method}', budget='32 images', callback=watch, **how)
    assert watch.rows and np.isfinite([o['distance'] for o in watch.rows]).all()
    assert np.isfinite(student.log[-1]['ema_loss']) and (student.path/'loss.png').exists()
    assert ('by_sigma' in student.log[-1]) == (student.recipe.method == 'consistency')


@pytest.mark.parametrize('how', [dict(method='matching'), dict(method='matching', mid=.4), dict(method='consistency'),
                                 dict(method='consistency', targets='data', doublings=2, mid=1.)])
def test_the_command_goes_on_where_status_says(how, tmp_path):
    root = tmp_path/'root'
    np.savez(tmp_path/'own.npz', images=data().images)
    faces = FaceData.from_npz(tmp_path/'own.npz').save(root)
    train(faces, GUIDED, root=root, budget='64 images', **STILL)

    def stop(t, row):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        distill(Run.open(root, 'small'), budget='64 images', callback=stop, **how, **STILL)
    step = next(r for r in status(root).rows if r['what'].startswith('small-distilled') and r['stage'] == 'train')
    words = shlex.split(step['command'])
    assert words[:2] == ['pttface', 'distill'] and '--run' in words
    rc, run, error = run_safely('distill', [*words[2:], '--device', 'cpu', '--no-progress'])
    assert (rc, error) == (0, None) and run.path.name == 'small-distilled' and run.log[-1]['images'] == 64
    for more, said in ((['--mid', '0'], 'mid cannot be 0'), (['--doublings', '0'], 'doublings cannot be 0'),
                       (['--run', 'nobody'], "no run 'nobody'"), (['--targets', 'x'], 'guided, data'),
                       (['--method', 'x'], 'matching, consistency'),
                       (['--targets', 'data'], 'cannot be given to matching')):
        rc, _, error = run_safely('distill', ['--root', str(root), '--run', 'small', *more])
        assert rc == 2 and said in error


def test_stages_and_levels():
    assert [stage_at(s, 3) for s in (0., .34, .7, 1., 1.2)] == [1, 2, 3, 3, 3]
    t = torch.logspace(-3, 2, 50)
    for stage in range(1, 13):
        r = earlier_level(t, stage)
        assert (r >= 0).all() and (r < t).all() and (r <= earlier_level(t, stage+1)).all()


def test_the_sampler_asks_once_at_each_level():
    asked = []

    def end(x, s):
        asked.append(float(s))
        return x*0
    def largest(x, e, s):
        asked.append(x.max().item())
    noise, levels = torch.ones(2, 1, 1, 1), torch.tensor([80., .8, .1, 0.])
    x = multistep(end, 80*noise, levels, lambda: noise, largest)
    assert asked == pytest.approx([80., 80., .8, .8, .1, .1]) and (x == 0).all()


def test_no_gradient_flows_through_the_earlier_point():
    w = torch.ones(1, requires_grad=True)

    def f(x, t):
        return w*x
    x0, t, eps = torch.ones(2, 1, 1, 1), torch.tensor([1., 2.]), torch.ones(2, 1, 1, 1)
    consistency_loss(f, x0, t, t/2, eps).sum().backward()
    both = sum(((x0 + t.view(-1, 1, 1, 1)*eps).mean((1, 2, 3)))/(t/2))  # d|w·x_t − end|/dw = x_t, over t − r
    assert w.grad.item() == pytest.approx(both.item(), rel=1e-2)


def test_only_the_newest_position_waits():
    gate, seen = threading.Event(), []

    def draw(k):
        gate.wait(20)
        seen.append(k)
        if k == 0:
            raise ValueError('the first fails')
    newest_only = NewestOnly(draw)
    for k in range(100):
        newest_only(k)
    gate.set()
    newest_only.wait()
    assert seen[-1] == 99 and len(seen) <= 2
    newest_only(7)
    newest_only.wait()
    assert seen[-1] == 7


def test_the_explorer_draws_between_samples(student):
    e = Explorer(student, device='cpu')
    ims = sample(student, 8, **STILL)
    for k, at in enumerate(((0., 0.), (1., 0.), (0., 1.), (1., 1.))):
        assert np.abs(e.picture(*at).astype(int) - ims[k]).max() <= 1
    first = e.image.value
    for x in np.linspace(.1, .5, 9):
        e.across.value = x
    e.show.wait()
    assert e.image.value != first and 'ms' in e.note.value
    e.across.value = 0.
    e.others.click()
    e.show.wait()
    assert np.abs(e.picture().astype(int) - ims[4]).max() <= 1 and '4 to 7' in e.note.value
    with pytest.raises(BadInput, match='start cannot be -1'):
        Explorer(student, start=-1)
