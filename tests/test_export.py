"What leaves: a model that draws as its run does, sets that other libraries read, and what must not leave."
import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pttface import diffusion, export
from pttface.app import cli
from pttface.curation.card import set_hash
from pttface.curation.formats import FORMATS, export_set, hidden, label_rows
from pttface.dataset import FaceData
from pttface.diffusion import Run, interpolate, sample, train, trajectory
from pttface.evaluation.model_card import licence
from pttface.evaluation.report import metric_row
from pttface.export import Model, export_run, load_model
from pttface.fid import evaluate
from pttface.storage.files import PERSONAL, BadInput, read_json, write_json, write_npz
from pttface.storage.hub import push
from pttface.training.standalone import standalone
from pttface.unet import UNet

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).parent))
from diffusion_worker import SMALL
from drawn_noise import smooth_faces

CPU = dict(device='cpu', progress=False)
GUIDED = replace(SMALL, name='guided', guidance=2., snapshots=4, report='256 images', save='1h')
STRONGER = replace(GUIDED, guidance=1., name='stronger', net='stronger', parameterization='linear', ema='decay 0.9',
                   steps=20, net_args=dict(widths=(8, 16), mid=16, heads=2), sampler='ancestral')


def faces(channels=3):
    "A set of 40 smooth pictures of 20 articles, whose addresses must not leave."
    ims = smooth_faces(40, 5, 16)[..., :channels]
    arrays = dict(images=ims, split=np.repeat([0, 1], [32, 8]), key=np.array([f'01_key_{i}' for i in range(40)]),
                  article=np.array([f'https://www.ptt.cc/bbs/Beauty/M.17{i//2:08d}.A.1A2.html' for i in range(40)]),
                  url=np.array([f'https://i.imgur.com/{i:07d}.jpg' for i in range(40)]), month=np.full(40, '01'),
                  sha256=np.array([f'{i:064x}' for i in range(40)]), gender=np.full(40, 'unknown'),
                  pose=np.array(['frontal', 'left', 'right', 'frontal']*10), score=np.full(40, np.nan, np.float32),
                  yaw=np.linspace(-40, 40, 40, dtype=np.float32))
    card = dict(counts=dict(train=32, heldout=8), hash=set_hash(arrays), age_screen='no age screen', duplicates=[],
                by=dict(pose=dict(frontal=20, left=10, right=10)),
                made_with=dict(faces=dict(detector='insightface'), crawl=dict(board='Beauty', since='2024-01-01')))
    return FaceData(arrays, card)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A root with a set and three runs: guided, the original's kind, and grey."
    root = tmp_path_factory.mktemp('export')/'data'
    data = faces().save(root)
    for r in (GUIDED, STRONGER):
        train(data, r, root=root, budget='256 images', **CPU)
    grey = replace(GUIDED, name='grey', net_args=GUIDED.net_args | dict(in_ch=1))
    train(faces(1), grey, root=root, budget='256 images', **CPU)
    return root


@pytest.fixture(scope='module')
def folder(root):
    "The guided run, exported with all that can be added here."
    return export_run(Run.open(root, 'guided'), root/'out/guided', diffusers=True, **CPU).path


def run_main(capsys, *argv):
    "Exit status and what was written to the error stream."
    status = cli.main([str(o) for o in argv])
    return status, capsys.readouterr().err.strip()


# A model draws as its run does

@pytest.mark.parametrize('name', ['guided', 'stronger', 'grey'])
def test_a_model_draws_what_its_run_draws(root, tmp_path, name, monkeypatch):
    run = Run.open(root, name)
    ways = [dict(), dict(seed=3, start=5), dict(sampler='heun', steps=4, churn=1.), dict(guidance=1),
            dict(size=24, steps=3), dict(sampler='ddim', steps=3, eta=.5), dict(clip=True, steps=3)]
    if run.recipe.guidance != 1:
        ways += [dict(guidance=3., steps=9), dict(interval=(.05, 5.), steps=9)]
    wanted = [sample(run, 3, **CPU, **w) for w in ways]
    export_run(run, tmp_path/'model', **CPU)
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('a pickle was opened'))
    model = load_model(tmp_path/'model')
    for way, ims in zip(ways, wanted):
        np.testing.assert_array_equal(sample(model, 3, **CPU, **way), ims, err_msg=str(way))
    assert model.shape == run.shape and wanted[0].shape[-1] == run.shape[0]


def test_interpolation_trajectories_and_evaluation_take_a_model(root, folder):
    run, model = Run.open(root, 'guided'), load_model(folder)
    paths = [interpolate(o, 0, 5, n=4, device='cpu') for o in (model, run)]
    np.testing.assert_array_equal(*paths)
    for ours, theirs in zip(trajectory(model, 3, device='cpu'), trajectory(run, 3, device='cpu')):
        np.testing.assert_array_equal(ours, theirs)
    kw = dict(protocol=lambda x: x.reshape(len(x), -1)[:, ::97]/255., n=12, seeds=1, detector=None, **CPU)
    by_run, by_model = evaluate(run, faces(), **kw), evaluate(model, faces(), **kw)
    assert [r['value'] for r in by_run.rows] == [r['value'] for r in by_model.rows]
    assert by_run.settings['run'] == 'guided' and by_run.settings['weights'] == model.config['weights']
    assert by_model.settings['weights'] == model.config['weights']


def test_a_model_is_the_initial_point_of_a_training(root, folder, tmp_path):
    run = train(faces(), GUIDED, root=tmp_path/'data', budget='16 images', init=load_model(folder), **CPU)
    assert run.record['init']['weights'] == load_model(folder).config['weights']


def test_a_fresh_process_needs_only_the_folder(root, folder, tmp_path):
    wanted = sample(Run.open(root, 'guided'), 4, **CPU)
    shutil.copytree(folder, tmp_path/'elsewhere')
    code = ('from pttface import load_model, sample\nimport numpy as np, sys\n'
            'np.save("ims.npy", sample(load_model("elsewhere"), 4, device="cpu", progress=False))')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, timeout=120,
                   env=os.environ | dict(PYTHONPATH=str(top)))
    np.testing.assert_array_equal(np.load(tmp_path/'ims.npy'), wanted)


def test_the_guidance_that_was_chosen_and_another_average_are_exported(root, tmp_path):
    shutil.copytree(root/'runs/guided', tmp_path/'data/runs/guided')
    (tmp_path/'data/.pttface').touch()
    run = Run(tmp_path/'data/runs/guided')
    write_json(run.path/'guidance.json', dict(weight=1.5, low=.2, high=4.))
    model = export_run(run, tmp_path/'tuned', ema=.07, **CPU)
    r = model.recipe
    assert (r.guidance, r.guidance_low, r.guidance_high) == (1.5, .2, 4.)
    np.testing.assert_array_equal(sample(model, 2, **CPU), sample(run, 2, ema=.07, **CPU))
    assert model.config['average'] == 'power 0.07'
    assert model.config['weights'] != export_run(run, tmp_path/'plain', **CPU).config['weights']
    shutil.rmtree(run.path/'ema')
    shutil.rmtree(run.path/'guide', ignore_errors=True)
    unguided = export_run(run, tmp_path/'unguided', **CPU)
    assert 'guide.safetensors' not in unguided.config['files'] and unguided.recipe.guidance == 1
    np.testing.assert_array_equal(sample(unguided, 2, **CPU), sample(run, 2, **CPU))


def test_the_card_says_what_there_is_and_no_address(root, folder):
    text = (folder/'README.md').read_text()
    for part in ('non-commercial', 'Beauty', 'no age screen', 'Nothing was measured', 'Nobody has looked', '2 from'):
        assert part in text, part
    every = b''.join(o.read_bytes() for o in folder.rglob('*') if o.is_file())
    for secret in (b'ptt.cc', b'imgur', b'01_key', str(root).encode()):
        assert secret not in every
    assert 'insightface' not in licence(dict(made_with=dict(faces=dict(detector='mtcnn'))))
    assert Image.open(folder/'samples.png').size[0] >= 64


def told_faces(n=160):
    "A set in which the pose is known, and shows in the picture."
    rng = np.random.default_rng(0)
    pose, ims = rng.choice(['frontal', 'left'], n), smooth_faces(n, 6, 16).astype(int)
    ims[pose == 'left', :, :8] += 70
    arrays = dict(images=ims.clip(0, 255).astype(np.uint8), split=(np.arange(n) >= n - 16).astype(np.uint8),
                  key=np.arange(n).astype(str), pose=pose, gender=np.full(n, 'unknown'))
    return FaceData(arrays, dict(hash=set_hash(arrays), counts={}))


def test_a_model_of_a_run_with_labels_draws_what_is_asked_for(tmp_path):
    run = train(told_faces(), replace(GUIDED, name='told', labels=('pose',), flip=False), root=tmp_path/'data',
                budget='2k images', **CPU)
    model = export_run(run, tmp_path/'m', onnx=find_spec('onnx') is not None, diffusers=True, **CPU)
    model = load_model(model.path)
    ways = [dict(), dict(pose='left'), dict(pose='frontal', guide='unlabelled'), dict(pose='left', guide='earlier'),
            dict(pose='left', guidance=1)]
    for way in ways:
        np.testing.assert_array_equal(sample(model, 3, **CPU, **way), sample(run, 3, **CPU, **way), err_msg=str(way))
    paths = [interpolate(o, 0, 5, n=3, device='cpu', pose='left') for o in (model, run)]
    np.testing.assert_array_equal(*paths)
    assert (sample(model, 3, **CPU) != sample(model, 3, pose='left', **CPU)).any()
    for asked, message in [(dict(pose='right'), '0 faces with pose'), (dict(gender='male'), 'cannot be asked for')]:
        with pytest.raises(BadInput, match=message):
            sample(model, 1, **CPU, **asked)


def test_the_graph_of_a_run_with_labels_is_asked_for_them(tmp_path):
    pytest.importorskip('onnx', reason='onnx is in the extra `export`')
    pytest.importorskip('onnxruntime', reason='onnxruntime is in the extra `export`')
    from pttface.training.onnx_graph import onnx_denoiser
    run = train(told_faces(), replace(GUIDED, name='told', labels=('pose',), flip=False), root=tmp_path/'data',
                budget='512 images', **CPU)
    model = export_run(run, tmp_path/'m', onnx=True, **CPU)
    graphs = {k: onnx_denoiser(tmp_path/'m'/f'{k}.onnx') for k in ('denoiser', 'guide')}
    card = (tmp_path/'m/README.md').read_text()
    assert 'pose=frontal, pose=left, pose=right' in card and '`label` (N,3)' in card

    def denoise(x, sigma):  # As the card says
        x, levels, left = x.numpy(), np.full(len(x), float(sigma), np.float32), np.float32([[0, 1, 0]]*len(x))
        d = graphs['denoiser'](x, levels, left)
        if .1 <= sigma <= 2:
            g = graphs['guide'](x, levels, 0*left)
            d = g + 2*(d - g)
        elif 2 < sigma <= 10:
            u = graphs['denoiser'](x, levels, 0*left)
            d = (u + 3*(d - u)).clip(-1, 1)
        return torch.from_numpy(d)
    assert 'up to 10, the picture is `u + 3·(d − u)`' in card
    sigmas = diffusion.karras_sigmas(18).float()
    ims = diffusion.to_uint8(diffusion.dpm2m(denoise, diffusion.Noise(0, range(4), run.shape)()*sigmas[0], sigmas))
    assert np.abs(ims.astype(int) - sample(model, 4, pose='left', **CPU)).max() <= 1
    assert np.abs(ims.astype(int) - sample(model, 4, **CPU)).max() > 1


# What cannot, or must not, be exported

def test_what_cannot_be_exported_is_one_sentence(root, folder, tmp_path, capsys):
    (tmp_path/'file').touch()
    (tmp_path/'full').mkdir()
    (tmp_path/'full/a.txt').touch()
    at = ('--root', root, '--device', 'cpu', '--no-progress')
    for argv, message in [(('guided', tmp_path/'full'), '1 files already'), (('guided', tmp_path/'file'), 'is a file'),
                          (('nobody', tmp_path/'new'), "no run 'nobody'"),
                          (('guided', tmp_path/'new', '--ema', '.3'), '0.28'),
                          (('guided', tmp_path/'new', '--device', 'gpu'), "no device 'gpu'"), (('guided',), 'FOLDER')]:
        status, err = run_main(capsys, 'export', *argv, *(at if '--device' not in argv else at[:2]))
        assert status == 2 and message in err and '\n' not in err, err
    assert sorted(o.name for o in tmp_path.iterdir()) == ['file', 'full']


def test_a_training_that_has_not_ended_waits_for_its_end(root, tmp_path):
    def stop(trainer, row):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        often = replace(GUIDED, report='64 images')
        train(faces(), often, root=tmp_path/'data', budget='256 images', name='cut', callback=stop, **CPU)
    run = Run(tmp_path/'data/runs/cut')
    with pytest.raises(BadInput, match='has not spent its budget.*--unfinished'):
        export_run(run, tmp_path/'out', **CPU)
    model = export_run(run, tmp_path/'out', unfinished=True, **CPU)
    np.testing.assert_array_equal(sample(model, 2, **CPU), sample(run, 2, **CPU))
    for o in run.path.glob('checkpoint*'):
        o.unlink()
    with pytest.raises(BadInput, match='no whole checkpoint yet'):
        export_run(run, tmp_path/'none', **CPU)


def report(root, copies, run='guided', weights=None):
    "Leave a report in `root`."
    rows = [metric_row('flagged as copies', 'samples', copies, 200), metric_row('FID', 'samples', 20, 200)]
    write_json(root/'eval/report.json', dict(settings=dict(run=run, weights=weights), rows=rows, found={},
                                             notes=['Flagged: some.' if copies else 'Not flagged: none of 200.']))


@pytest.fixture
def reported(root):
    "Reports are taken away again."
    yield root
    shutil.rmtree(root/'eval', ignore_errors=True)


@pytest.mark.parametrize('named', ['guided', None])
def test_copies_stay_unless_insisted(reported, tmp_path, named, capsys):
    report(reported, 3, named)
    argv = ['export', 'guided', tmp_path/'out', '--root', reported, '--device', 'cpu', '--no-progress']
    status, err = run_main(capsys, *argv)
    assert status == 2 and '3 of 200 samples' in err and '--despite-copies' in err and not (tmp_path/'out').exists()
    assert run_main(capsys, *argv, '--despite-copies')[0] == 0
    assert load_model(tmp_path/'out').config['flagged'] == [3, 200]
    report(reported, 3, 'stronger')
    assert export_run(Run.open(reported, 'guided'), tmp_path/'other', **CPU).config['flagged'] is None


def test_figures_of_other_weights_say_so(reported, tmp_path):
    run = Run.open(reported, 'guided')
    report(reported, 0, weights=run.weights_id())
    model = export_run(run, tmp_path/'same', **CPU)
    assert model.config['flagged'] == [0, 200] and 'other weights' not in (model.path/'README.md').read_text()
    report(reported, 0, weights='0'*16)
    model = export_run(run, tmp_path/'other', **CPU)
    assert model.config['flagged'] is None and 'other weights' in (model.path/'README.md').read_text()


@pytest.mark.parametrize('name', ['model.safetensors', 'guide.safetensors'])
@pytest.mark.parametrize('fault', ['cut', 'gone', 'bit', 'other'])
def test_damaged_weights_are_an_error(folder, root, tmp_path, name, fault):
    shutil.copytree(folder, tmp_path/'m')
    path = tmp_path/'m'/name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    other = root/'runs/guided/recipe.json'
    path.write_bytes(dict(cut=data[:len(data)//2], bit=data, gone=b'', other=other.read_bytes())[fault])
    if fault == 'gone':
        path.unlink()
    with pytest.raises(BadInput, match=name) as e:
        load_model(tmp_path/'m')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('config, message', [
    (None, 'there is no config.json'), ('{', 'damaged'), ('[]', 'not of a model'), ('{"a": 1}', 'not of a model'),
    (dict(format=99), 'format 99'), (dict(version='9.9', format=2), '9.9')])
def test_a_config_that_is_none(folder, tmp_path, config, message):
    shutil.copytree(folder, tmp_path/'m')
    path = tmp_path/'m/config.json'
    if isinstance(config, dict):
        write_json(path, read_json(path) | config)
    elif config:
        path.write_text(config)
    else:
        path.unlink()
    with pytest.raises(BadInput, match=message):
        load_model(tmp_path/'m')


def test_an_export_that_is_stopped_leaves_nothing(root, tmp_path, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt
    monkeypatch.setattr(export, 'draw_first', stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(Run.open(root, 'guided'), tmp_path/'out/model', **CPU)
    assert list((tmp_path/'out').iterdir()) == []


# ONNX and diffusers

def test_onnx_graphs_draw_the_same_pictures(root, tmp_path):
    pytest.importorskip('onnx', reason='onnx is in the extra `export`')
    pytest.importorskip('onnxruntime', reason='onnxruntime is in the extra `export`')
    from pttface.training.onnx_graph import OPSET, onnx_denoiser
    import onnx
    run = Run.open(root, 'guided')
    model = export_run(run, tmp_path/'m', onnx=True, **CPU)
    graphs = {k: onnx_denoiser(tmp_path/'m'/f'{k}.onnx') for k in ('denoiser', 'guide')}
    assert [o.version for o in onnx.load(tmp_path/'m/denoiser.onnx').opset_import if not o.domain] == [OPSET]

    def denoise(x, sigma):  # As the card says
        levels = np.full(len(x), float(sigma), np.float32)
        d = graphs['denoiser'](x.numpy(), levels)
        if .1 <= sigma <= 2:
            g = graphs['guide'](x.numpy(), levels)
            d = g + 2*(d - g)
        return torch.from_numpy(d)
    noise = diffusion.Noise(0, range(5), run.shape)
    sigmas = diffusion.karras_sigmas(18).float()
    ims = diffusion.to_uint8(diffusion.dpm2m(denoise, noise()*sigmas[0], sigmas))
    assert np.abs(ims.astype(int) - sample(model, 5, **CPU)).max() <= 1
    assert 'denoiser.onnx' in (tmp_path/'m/README.md').read_text()
    stronger = export_run(Run.open(root, 'stronger'), tmp_path/'s', onnx=True, **CPU)
    assert (stronger.path/'denoiser.onnx').exists() and not (stronger.path/'guide.onnx').exists()


def test_without_onnx_there_is_one_sentence(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(BadInput, match='pttface\\[export\\]'):
        export_run(Run.open(root, 'guided'), tmp_path/'m', onnx=True, **CPU)
    assert not (tmp_path/'m').exists()


DIFFUSERS = '''
import sys, numpy as np
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], np.stack([np.asarray(o) for o in pipe(batch_size=4, seed=1).images]))
np.save(sys.argv[3], pipe(batch_size=2, start=7, guidance=1., num_inference_steps=5, output_type='np').images)
assert 'pttface' not in sys.modules
'''


@pytest.mark.parametrize('name', ['guided', 'stronger', 'grey'])
def test_diffusers_draws_the_same_pictures(root, tmp_path, name):
    python = top/'.venv-peers-train/bin/python'
    if not python.exists():
        pytest.skip('diffusers is in the peers of `make bench WHAT=train`, which are not installed')
    run = Run.open(root, name)
    model = export_run(run, tmp_path/'m', diffusers=True, **CPU)
    env = os.environ | dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path/'hf'), PYTHONPATH='')
    subprocess.run([python, '-c', DIFFUSERS, model.path/'diffusers', tmp_path/'a.npy', tmp_path/'b.npy'], check=True,
                   env=env, timeout=300, cwd=tmp_path)
    plain = sample(run, 2, start=7, guidance=1, steps=5, **CPU)
    for file, ims in (('a', sample(run, 4, seed=1, **CPU)), ('b', plain)):
        drawn = np.load(tmp_path/f'{file}.npy').reshape(ims.shape)
        assert np.abs(drawn.astype(int) - ims).max() <= 1


def test_the_files_for_diffusers_need_no_pttface(folder, tmp_path):
    for path in (folder/'diffusers').rglob('*.py'):
        text = path.read_text()
        assert 'pttface' not in text and 'import torch' in text
        compile(text, str(path), 'exec')
    text = standalone(diffusion.generate, diffusion.Guided, diffusion.Denoiser, UNet)
    code = "import sys\nsys.modules['pttface'] = None\n" + text + '''
net = UNet(ch=8, mults=(1,2), blocks=1, attn=(8,), size=16)
d = Denoiser(net).eval()
for s in SAMPLERS:
    assert generate(Guided(d, d), [3], (3,16,16), s, 3).shape == (1,3,16,16)
'''
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


# Sets

@pytest.fixture(scope='module')
def sets(root):
    "The set in the three forms, where they can be written here."
    try:
        import pyarrow  # noqa: F401
        forms = list(FORMATS)
    except ImportError:
        forms = ['imagefolder', 'webdataset']
    return {k: export_set(FaceData.load(root), root/'sets'/k, k) for k in forms}


def test_torchvision_reads_an_image_folder(sets):
    from torchvision.datasets import ImageFolder
    data = faces()
    for split, (name, n) in enumerate((('train', 32), ('test', 8))):
        back = ImageFolder(sets['imagefolder']/name, allow_empty=True)
        assert back.classes == ['frontal', 'left', 'right'] and len(back) == n
        for path, label in back.samples:
            i = int(Path(path).stem)
            np.testing.assert_array_equal(np.asarray(Image.open(path)), data.images[i])
            assert data.pose[i] == back.classes[label] and data.split[i] == split


def test_webdataset_reads_shards(sets):
    wds = pytest.importorskip('webdataset')
    data = faces()
    for name, split in (('train', 0), ('test', 1)):
        shard = str(sets['webdataset']/f'{name}-00000.tar')
        found = list(wds.WebDataset(shard, shardshuffle=False).decode('rgb8').to_tuple('png', 'json'))
        np.testing.assert_array_equal([im for im, _ in found], data.images[data.split == split])
        assert [o['pose'] for _, o in found] == data.pose[data.split == split].tolist()


def test_pyarrow_reads_parquet(sets):
    pq = pytest.importorskip('pyarrow.parquet', reason='pyarrow is in the extra `export`')
    table = pq.read_table(sets['parquet']/'train-00000.parquet')
    data = faces()
    assert table['pose'].to_pylist() == data.pose[:32].tolist() and table['score'].null_count == 32
    np.testing.assert_allclose(table['yaw'].to_numpy(), data.yaw[:32])
    assert len(set(table['article'].to_pylist())) == 16


@pytest.mark.parametrize('form', list(FORMATS))
def test_datasets_reads_all_three(sets, form, tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets', reason='🤗 datasets is not installed')
    ds = datasets.load_dataset(str(sets[form]), cache_dir=str(tmp_path))
    data = faces()
    assert {k: len(v) for k, v in ds.items()} == dict(train=32, test=8)
    image, pose = ('png', lambda r: r['json']['pose']) if form == 'webdataset' else ('image', lambda r: r.get('pose'))
    back = {np.asarray(r[image]).tobytes(): pose(r) for r in ds['train']}
    assert back == {im.tobytes(): p for im, p in zip(data.train, data.pose.tolist())}


def test_nothing_in_a_set_says_where_a_face_was(sets):
    for form, folder in sets.items():
        every = b''.join(o.read_bytes() for o in folder.rglob('*') if o.is_file())
        for secret in (b'ptt.cc', b'imgur', b'01_key', b'M.17', f'{3:064x}'.encode()):
            assert secret not in every, (form, secret)
        assert b'no age screen' in every
    names = hidden(['a', 'b', 'a'])
    assert names[0] == names[2] != names[1] and names != hidden(['a', 'b', 'a'])


def test_identity_vectors_leave_only_when_asked_for(tmp_path):
    data = faces().save(tmp_path/'data')
    with pytest.raises(BadInput, match='no identity vectors of these 40 faces'):
        label_rows(data, identity=True)
    vectors = np.eye(39, 8, dtype=np.float32)
    write_npz(tmp_path/'data'/PERSONAL/'vectors.npz', key=data.key[1:], sha256=data.sha256[1:], vectors=vectors,
              network=json.dumps(dict(chip='arcface')))
    assert 'identity' not in label_rows(data)[0]
    rows = label_rows(data, identity=True)
    assert rows[0]['identity'] is None and rows[3]['identity'] == vectors[2].tolist()
    export_set(data, tmp_path/'set', 'webdataset', identity=True)
    assert b'"identity"' in (tmp_path/'set/train-00000.tar').read_bytes()


def test_an_image_folder_comes_back_as_a_set(sets, tmp_path):
    back = FaceData.from_folder(sets['imagefolder']/'train', size=16)
    assert sorted(o.tobytes() for o in back.images) == sorted(o.tobytes() for o in faces().train)
    np.savez(tmp_path/'a.npz', images=faces().images)
    np.testing.assert_array_equal(FaceData.from_npz(tmp_path/'a.npz').images, faces().images)


def test_the_command_exports_sets(root, tmp_path, capsys):
    at = ('--root', root)
    assert run_main(capsys, 'export-data', tmp_path/'set', '--as', 'webdataset', *at) == (0, '')
    assert sorted(o.name for o in (tmp_path/'set').iterdir()) == ['README.md', 'test-00000.tar', 'train-00000.tar']
    for argv, message in [((tmp_path/'set',), '3 files already'), ((tmp_path/'x', '--as', 'zarr'), "'zarr'"),
                          ((tmp_path/'x', '--identity'), 'no identity vectors')]:
        status, err = run_main(capsys, 'export-data', *argv, *at)
        assert status == 2 and message in err and '\n' not in err
    status, err = run_main(capsys, 'export-data', tmp_path/'x', '--root', tmp_path)
    assert status == 2 and '\n' not in err and not (tmp_path/'x').exists()


def test_without_pyarrow_there_is_one_sentence(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(BadInput, match='pttface\\[export\\]'):
        export_set(FaceData.load(root), tmp_path/'x', 'parquet')
    assert not (tmp_path/'x').exists()


def test_the_readme_trains_on_pictures_of_ones_own(tmp_path, monkeypatch):
    pictures = pytest.importorskip('skimage.data')
    block = next(o for o in (top/'README.md').read_text().split('```') if 'FaceData.from_folder' in o)
    block = block.removeprefix('python\n')
    assert len([o for o in block.splitlines() if '=' in o]) == 3
    (tmp_path/'my-pictures').mkdir()
    for name in ('astronaut', 'coffee', 'chelsea', 'rocket'):
        im = getattr(pictures, name)()
        for k in range(8):
            Image.fromarray(im[20*k:20*k + 200, 15*k:15*k + 220]).save(tmp_path/f'my-pictures/{name}-{k}.png')
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(block.replace("'10m'", "'64 images', device='cpu'").replace('16)', "4, steps=3, device='cpu')"), made)
    assert made['ims'].shape == (4, 32, 32, 3) and made['ims'].dtype == np.uint8 and len(made['data']) == 32
    assert made['run'].path == Path('data/runs/tiny')


# The Hub

class Hub(http.server.BaseHTTPRequestHandler):
    "As much of the Hub as `push` asks for"
    private, refuses = True, False
    log: list = []
    files: dict = {}

    def log_message(self, *args):
        pass

    def answer(self, o, status=200):
        body = json.dumps(o).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.log.append(('GET', self.path, self.headers.get('Authorization')))
        self.answer(dict(id='me/faces', private=self.private, sha='0'*40, siblings=[], tags=[]))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.log.append(('POST', self.path, self.headers.get('Authorization')))
        here = f'http://{self.headers["Host"]}/me/faces'
        if self.refuses and self.path.endswith('/preupload/main'):
            return self.answer(dict(error='You have no right to do this'), 403)
        if self.path.endswith('/preupload/main'):
            files = json.loads(body)['files']
            modes = [dict(path=o['path'], uploadMode='regular', shouldIgnore=False) for o in files]
            return self.answer(dict(files=modes))
        if '/commit/' in self.path:
            rows = [json.loads(o) for o in body.splitlines() if o.strip()]
            self.files.update({r['value']['path']: base64.b64decode(r['value']['content']) for r in rows
                               if r['key'] == 'file'})
            return self.answer(dict(success=True, commitOid='1'*40, commitUrl=f'{here}/commit/1'))
        self.answer(dict(url=here, name='me/faces', private=json.loads(body or '{}').get('private')))


@pytest.fixture
def hub(monkeypatch):
    "A Hub on loopback, and its client."
    from huggingface_hub import HfApi
    handler = type('H', (Hub,), dict(log=[], files={}))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, HfApi(endpoint=f'http://127.0.0.1:{server.server_port}', token='hf_secret')
    server.shutdown()
    server.server_close()


@pytest.fixture
def good(reported, tmp_path):
    "A model that was measured and does not copy."
    run = Run.open(reported, 'guided')
    report(reported, 0, weights=run.weights_id())
    return export_run(run, tmp_path/'good', diffusers=True, **CPU).path


def test_a_model_goes_to_a_private_repository(good, hub):
    handler, api = hub
    assert 'Nothing was sent' in str(push(good, 'me/faces', api=api)) and handler.log == []
    sent = push(good, 'me/faces', network=True, api=api)
    files = {o.relative_to(good).as_posix(): o.read_bytes() for o in good.rglob('*') if o.is_file()}
    assert handler.files == files and 'commit/1' in str(sent)
    assert {a for *_, a in handler.log} == {'Bearer hf_secret'} and 'hf_secret' not in str(sent)


def test_a_public_repository_a_refusal_and_silence(good, hub, monkeypatch):
    from huggingface_hub import HfApi
    handler, api = hub
    handler.private = False
    with pytest.raises(BadInput, match='is public'):
        push(good, 'me/faces', network=True, api=api)
    handler.private, handler.refuses = True, True
    with pytest.raises(BadInput, match='The Hub did not take me/faces') as e:
        push(good, 'me/faces', network=True, api=api)
    assert '\n' not in str(e.value) and 'hf_secret' not in str(e.value)
    with pytest.raises(BadInput, match='The Hub did not take me/faces'):
        push(good, 'me/faces', network=True, api=HfApi(endpoint='http://127.0.0.1:9', token='hf_secret'))
    assert handler.files == {}


def test_data_copies_and_strangers_are_not_sent(good, reported, root, tmp_path, hub, capsys):
    handler, api = hub

    def refused(folder, message, repo='me/faces'):
        with pytest.raises(BadInput, match=message):
            push(folder, repo, network=True, api=api)
    for name in ('faces.npz', 'train/frontal/000000.png', 'train-00000.parquet', 'diffusers/unet/faces.npz', 'a.pt'):
        folder = tmp_path/name.replace('/', '_')
        shutil.copytree(good, folder)
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(b'pictures')
        refused(folder, 'data is not sent')
    linked = tmp_path/'linked'
    shutil.copytree(good, linked)
    (linked/'samples.png').unlink()
    (linked/'samples.png').symlink_to(root/'dataset/faces.npz')
    refused(linked, 'data is not sent')
    report(reported, 3)
    copies = export_run(Run.open(root, 'guided'), tmp_path/'copies', despite_copies=True, **CPU).path
    refused(copies, '3 of 200 samples')
    refused(root, 'holds no model')
    refused(root/'runs/guided', 'holds no model')
    refused(tmp_path/'nowhere', 'There is no folder')
    for repo in ('faces', 'a/b/c', 'https://huggingface.co/me/faces', ''):
        refused(good, 'OWNER/NAME', repo)
    assert handler.log == []
    assert run_main(capsys, 'push', good, 'me/faces') == (0, '')


def test_the_token_comes_from_where_people_keep_it(good, monkeypatch, tmp_path):
    from types import ModuleType
    from pttface.storage import hub as page
    monkeypatch.setenv('HF_TOKEN', 'from-the-environment')
    assert page.find_token() == 'from-the-environment'
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    with pytest.raises(BadInput, match='set HF_TOKEN'):
        push(good, 'me/faces', network=True)
    colab, userdata = ModuleType('google.colab'), ModuleType('google.colab.userdata')
    userdata.SecretNotFoundError = type('SecretNotFoundError', (Exception,), {})
    userdata.NotebookAccessError = type('NotebookAccessError', (Exception,), {})
    userdata.get, colab.userdata = {'HF_TOKEN': 'from-colab'}.get, userdata
    monkeypatch.setitem(sys.modules, 'google.colab', colab)
    monkeypatch.setitem(sys.modules, 'google.colab.userdata', userdata)
    assert page.find_token() == 'from-colab'

    def missing(name):
        raise userdata.SecretNotFoundError(name)
    userdata.get = missing
    with pytest.raises(BadInput, match='set HF_TOKEN'):
        page.find_token()


def test_a_model_says_what_it_is(folder):
    model = Model(folder)
    assert 'guided' in repr(model) and '256 images' in repr(model)
    with pytest.raises(BadInput, match='holds one average'):
        sample(model, 1, ema=.05, **CPU)
    with pytest.raises(BadInput, match='holds no checkpoint-1.pt'):
        model.weights(checkpoint='checkpoint-1.pt')
