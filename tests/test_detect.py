"""InsightFace's real code behind our interface, offline: on small ONNX graphs made here, and on a real SCRFD where PTTFACE_INSIGHTFACE_MODELS names its folder.

Skipped where the extra is not installed. MTCNN's odd inputs are tested everywhere."""
import os
import pickle
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from pttface.detect import InsightFace,MTCNN,cuda_advice,kps_pose,load_detector,overlap
from pttface.heads import draw_heads
from pttface.store import BadInput

BOX,KPS = np.array([220,190,420,450.]),np.array([[275,280],[365,280],[320,340],[285,390],[355,390.]])

def save(path, inputs, outputs):
    "An ONNX graph that gives the arrays `outputs` whatever it is shown"
    onnx = pytest.importorskip('onnx')
    h,nh,T = onnx.helper,onnx.numpy_helper,onnx.TensorProto
    nodes = [h.make_node('Constant', [], [f'c_{k}'], value=nh.from_array(v.astype(np.float32))) for k,v in outputs.items()]
    nodes += [h.make_node('Identity', [f'c_{k}'], [k]) for k in outputs]
    graph = h.make_graph(nodes, 'g', [h.make_tensor_value_info('input', T.FLOAT, inputs)], [h.make_tensor_value_info(k, T.FLOAT, v.shape) for k,v in outputs.items()])
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 13)])
    model.ir_version = 8
    onnx.save(model, str(path))

def scrfd(folder):
    "A detector that finds one face, at `BOX`, in every square of 640 px"
    out = {}
    for s in (8,16,32): out[f'score_{s}'] = np.zeros((2*(640//s)**2,1))
    for s in (8,16,32): out[f'bbox_{s}'] = np.zeros((2*(640//s)**2,4))
    for s in (8,16,32): out[f'kps_{s}'] = np.zeros((2*(640//s)**2,10))
    at = (10*20 + 10)*2
    out['score_32'][at] = .9
    out['bbox_32'][at] = np.array([320-BOX[0], 320-BOX[1], BOX[2]-320, BOX[3]-320])/32
    out['kps_32'][at] = ((KPS - 320)/32).ravel()
    save(folder/'det.onnx', [1,3,'h','w'], out)

def turned_shape(folder, yaw):
    "A 68-point network whose head is InsightFace's mean shape, turned about the upright axis; gives where its nose points in x"
    mean = pickle.loads(files('insightface').joinpath('data/objects/meanshape_68.pkl').read_bytes())
    c,s = np.cos(np.radians(yaw)),np.sin(np.radians(yaw))
    p = (mean - mean.mean(0)) @ np.array([[c,0,s],[0,1,0],[-s,0,c]]).T
    p *= .5/np.abs(p).max()
    out = np.zeros((1,3309))
    out[0,-68*3:] = p.ravel()
    save(folder/'land.onnx', [1,3,192,192], dict(fc=out))
    return p[30,0] - p[[0,16],0].mean()

@pytest.fixture
def folder(tmp_path):
    pytest.importorskip('insightface')
    pytest.importorskip('onnxruntime')
    scrfd(tmp_path)
    return tmp_path

@pytest.fixture(scope='module')
def photo(): return np.random.default_rng(0).integers(0, 255, (640,640,3), dtype=np.uint8)

def test_box_and_landmarks_come_through(folder, photo):
    f, = load_detector('insightface', models=str(folder))(photo)
    np.testing.assert_allclose(f.bbox, BOX, atol=.01)
    np.testing.assert_allclose(f.kps, KPS, atol=.01)
    assert (f.gender,f.age) == (None,None) and abs(f.score - .9) < 1e-5
    np.testing.assert_allclose((f.yaw,f.pitch,f.roll), kps_pose(KPS), atol=.1)

@pytest.mark.parametrize('yaw', [-40,-15,0,15,40])
def test_pose_has_our_sign_and_scale(folder, photo, yaw):
    nose = turned_shape(folder, yaw)
    f, = InsightFace(models=str(folder))(photo)
    assert abs(abs(f.yaw) - abs(yaw)) < 1 and abs(f.pitch) < 1 and abs(f.roll) < 1
    assert yaw == 0 or np.sign(f.yaw) == np.sign(nose)

@pytest.mark.parametrize('out,gender,age', [((.1,.9,.34),1,34), ((.8,.2,.17),0,17)])
def test_gender_and_age(folder, photo, out, gender, age):
    save(folder/'genderage.onnx', [1,3,96,96], dict(fc=np.array([out])))
    f, = InsightFace(models=str(folder))(photo)
    assert (f.gender,f.age) == (gender,age)

def test_settings_and_provider(folder, photo):
    d = InsightFace(models=str(folder), threshold=.95)
    assert d(photo) == [] and d.provider.endswith('ExecutionProvider')
    assert InsightFace(models=str(folder), min_face=400)(photo) == []
    again = InsightFace(models=str(folder)).again(photo, BOX + 5)
    assert overlap(again.bbox, BOX) > .99 and InsightFace(models=str(folder)).again(photo, BOX + 300) is None

def test_real_scrfd_agrees_with_mtcnn():
    pytest.importorskip('insightface')
    where = os.environ.get('PTTFACE_INSIGHTFACE_MODELS')
    if not where: pytest.skip('PTTFACE_INSIGHTFACE_MODELS names no folder')
    path = Path(where)
    one,two = load_detector('insightface', models=str(path if list(path.glob('*.onnx')) else path/'scrfd_500m')),load_detector('mtcnn')
    for h in draw_heads([dict(seed=40 + i, yaw=y, pitch=0, roll=r, size=(250,200), scale=.5) for i,(y,r) in enumerate([(-35,0),(0,12),(35,-12)])], workers=1, progress=False):
        a,b = one(h.im)[0],two(h.im)[0]
        assert overlap(a.bbox, b.bbox) > .6
        size = np.linalg.norm(h.eyes[1] - h.eyes[0])
        for f in (a,b): assert np.abs(f.kps[:2] - h.eyes).max() < .25*size and np.sign(f.yaw)*(abs(f.yaw) > 15) == np.sign(h.yaw)

def test_insightface_missing_says_what_to_install():
    try: import insightface  # noqa: F401
    except ImportError:
        with pytest.raises(BadInput, match='pip install "pttface'): load_detector('insightface')

def test_cuda_advice():
    assert cuda_advice(['CPUExecutionProvider'], card=False) is None
    assert 'onnxruntime-gpu' in cuda_advice(['CPUExecutionProvider'], card=True)

@pytest.mark.parametrize('shape', [(1,1,3),(5,400,3),(400,11,3),(12,12,3),(64,3000,3)])
def test_odd_photos_have_no_face(shape): assert MTCNN()(np.full(shape, 127, np.uint8)) == []

@pytest.mark.parametrize('bad', [None, np.zeros((9,9,3)), np.zeros((9,9), np.uint8), np.zeros((0,9,3), np.uint8), np.zeros((9,9,4), np.uint8)])
def test_what_is_no_photo_is_refused(bad):
    with pytest.raises(BadInput, match='A photo must be'): MTCNN()(bad)

def test_a_mirrored_face_has_the_mirrored_pose():
    mirrored = (KPS*[-1,1] + [640,0])[[1,0,2,4,3]] + [[0,6],[0,0],[9,0],[0,0],[0,0]]
    yaw,pitch,roll = kps_pose(mirrored)
    back = kps_pose((mirrored*[-1,1] + [640,0])[[1,0,2,4,3]])
    np.testing.assert_allclose((-yaw,pitch,-roll), back, atol=1e-6)
