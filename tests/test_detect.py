"""InsightFace's real code behind our interface, offline: on small ONNX graphs made here, and on a real SCRFD where
PTTFACE_INSIGHTFACE_MODELS names its folder.

Skipped where the extra is not installed. MTCNN's odd inputs are tested everywhere."""
import os
import pickle
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from pttface.vision.detect import MTCNN,cuda_advice,iou,kps_pose
from pttface.vision.detectors import load_detector
from pttface.synthetic.heads import draw_heads
from pttface.vision.insightface import InsightFace
from pttface.storage.files import BadInput

BOX,KPS = np.array([220,190,420,450.]),np.array([[275,280],[365,280],[320,340],[285,390],[355,390.]])

def save(path, inputs, outputs):
    "An ONNX graph that gives the arrays `outputs` whatever it is shown"
    onnx = pytest.importorskip('onnx')
    h,nh = onnx.helper,onnx.numpy_helper
    T = onnx.TensorProto
    values = {k:nh.from_array(v.astype(np.float32)) for k,v in outputs.items()}
    nodes = [h.make_node('Constant', [], [f'c_{k}'], value=v) for k,v in values.items()]
    nodes += [h.make_node('Identity', [f'c_{k}'], [k]) for k in outputs]
    shown = h.make_tensor_value_info('input', T.FLOAT, inputs)
    given = [h.make_tensor_value_info(k, T.FLOAT, v.shape) for k,v in outputs.items()]
    write_model(path, h.make_graph(nodes, 'g', [shown], given))

def write_model(path, graph):
    onnx = pytest.importorskip('onnx')
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 13)])
    model.ir_version = 8
    onnx.save(model, str(path))

def scrfd(folder):
    "A detector that finds one face, at `BOX`, in every square of 640 px"
    out = {}
    for s in (8,16,32):
        out[f'score_{s}'] = np.zeros((2*(640//s)**2,1))
    for s in (8,16,32):
        out[f'bbox_{s}'] = np.zeros((2*(640//s)**2,4))
    for s in (8,16,32):
        out[f'kps_{s}'] = np.zeros((2*(640//s)**2,10))
    at = (10*20 + 10)*2
    out['score_32'][at] = .9
    out['bbox_32'][at] = np.array([320-BOX[0], 320-BOX[1], BOX[2]-320, BOX[3]-320])/32
    out['kps_32'][at] = ((KPS - 320)/32).ravel()
    save(folder/'det.onnx', [1,3,'h','w'], out)

def turned_shape(folder, yaw):
    """A 68-point network whose head is InsightFace's mean shape, turned about the upright axis.

    Gives where its nose points in x."""
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
def photo():
    return np.random.default_rng(0).integers(0, 255, (640,640,3), dtype=np.uint8)

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

def scaled(path, inputs, weight, bias):
    "An ONNX graph that takes batches and gives `bias + weight·mean of the input`: each picture has its own answer"
    onnx = pytest.importorskip('onnx')
    h,T = onnx.helper,onnx.TensorProto
    const = [onnx.numpy_helper.from_array(np.asarray(v, np.float32)[None], k) for k,v in dict(w=weight, b=bias).items()]
    nodes = [
        h.make_node('ReduceMean', ['input'], ['m'], axes=[1,2,3], keepdims=1),
        h.make_node('Flatten', ['m'], ['f']),
        h.make_node('Mul', ['f','w'], ['s']),
        h.make_node('Add', ['s','b'], ['fc']),
    ]
    shown = h.make_tensor_value_info('input', T.FLOAT, ['n',*inputs])
    given = h.make_tensor_value_info('fc', T.FLOAT, ['n',len(bias)])
    write_model(path, h.make_graph(nodes, 'g', [shown], [given], const))

class CountedSession:
    "A network's session that notes how many pictures each run took"
    def __init__(self, session):
        self.session,self.runs = session,[]
    def get_inputs(self):
        return self.session.get_inputs()
    def run(self, names, feed):
        self.runs.append(len(feed['input']))
        return self.session.run(names, feed)

@pytest.mark.parametrize('batch', [1,2,8])
def test_faces_are_described_in_batches(folder, batch):
    scaled(folder/'genderage.onnx', [3,96,96], (0,1,.2), (0,0,.4))
    detect = InsightFace(models=str(folder), batch=batch)
    ims = [np.full((640,640,3), v, np.uint8) for v in (40,90,140,190,240)]
    faces = [detect.largest(im)[0] for im in ims]
    net = detect.app.models['genderage']
    net.session = counted = CountedSession(net.session)
    detect.describe(list(zip(ims, faces)))
    assert counted.runs == {1:[1]*5, 2:[2,2,1], 8:[5]}[batch]
    plain = [detect(im)[0] for im in ims]
    assert [(f.gender,f.age) for f in faces] == [(f.gender,f.age) for f in plain]
    assert len({f.age for f in faces}) == 5 and {f.gender for f in faces} == {0,1}

def test_networks_that_take_one_picture_at_a_time(folder, photo):
    save(folder/'genderage.onnx', [1,3,96,96], dict(fc=np.array([(.1,.9,.34)])))
    nose = turned_shape(folder, 30)
    detect = InsightFace(models=str(folder), batch=8)
    faces = [detect.largest(photo)[0] for _ in range(3)]
    assert all(f.age is None for f in faces)
    detect.describe([(photo, f) for f in faces])
    assert all((f.gender,f.age) == (1,34) for f in faces)
    assert all(abs(abs(f.yaw) - 30) < 1 and np.sign(f.yaw) == np.sign(nose) for f in faces)

def test_describing_what_fails_leaves_the_networks_whole(folder, photo):
    scaled(folder/'genderage.onnx', [3,96,96], (0,1,.2), (0,0,.4))
    detect = InsightFace(models=str(folder))
    session = detect.app.models['genderage'].session
    face = detect.largest(photo)[0]
    with pytest.raises(TypeError):
        detect.describe([(photo, face), (None, face)])
    assert detect.app.models['genderage'].session is session and detect(photo)[0].age is not None

@pytest.mark.parametrize('size', [0,100,-32])
def test_a_det_size_that_cannot_be(folder, size):
    with pytest.raises(BadInput, match='multiple of 32'):
        InsightFace(models=str(folder), det_size=size)

def test_settings_and_provider(folder, photo):
    d = InsightFace(models=str(folder), threshold=.95)
    assert d(photo) == [] and d.provider.endswith('ExecutionProvider')
    assert InsightFace(models=str(folder), min_face=400)(photo) == []
    again = InsightFace(models=str(folder)).redetect(photo, BOX + 5)
    assert iou(again.bbox, BOX) > .99 and InsightFace(models=str(folder)).redetect(photo, BOX + 300) is None
    assert d.provider in repr(d) and '640' in repr(d)

def test_real_scrfd_agrees_with_mtcnn():
    pytest.importorskip('insightface')
    where = os.environ.get('PTTFACE_INSIGHTFACE_MODELS')
    if not where:
        pytest.skip('PTTFACE_INSIGHTFACE_MODELS names no folder')
    path = Path(where)
    folder = path if list(path.glob('*.onnx')) else path/'scrfd_500m'
    detectors = [load_detector('insightface', models=str(folder)),load_detector('mtcnn')]
    poses = [(-35,0),(0,12),(35,-12)]
    drawn = [dict(seed=40 + i, yaw=y, pitch=0, roll=r, size=(250,200), scale=.5) for i,(y,r) in enumerate(poses)]
    for h in draw_heads(drawn, workers=1, progress=False):
        faces = [detect(h.im)[0] for detect in detectors]
        assert iou(faces[0].bbox, faces[1].bbox) > .6
        eye_distance = np.linalg.norm(h.eyes[1] - h.eyes[0])
        for detect,f in zip(detectors, faces):
            assert iou(detect.largest(h.im)[0].bbox, f.bbox) > .85
            assert iou(detect.redetect(h.im, f.bbox).bbox, f.bbox) > .6
            assert np.abs(f.kps[:2] - h.eyes).max() < .25*eye_distance
            assert np.sign(f.yaw)*(abs(f.yaw) > 15) == np.sign(h.yaw)

def test_insightface_missing_says_what_to_install():
    try:
        import insightface  # noqa: F401
    except ImportError:
        with pytest.raises(BadInput, match='pip install "pttface'):
            load_detector('insightface')

def test_cuda_advice():
    cuda,cpu = 'CUDAExecutionProvider','CPUExecutionProvider'
    assert cuda_advice([cpu], card=False) is None
    assert 'uninstall' in cuda_advice([cpu], card=True)
    assert 'cudnn' in cuda_advice([cuda,cpu], card=True, active=cpu)
    assert cuda_advice([cuda,cpu], card=True, active=cuda) is None

@pytest.mark.parametrize('shape', [(1,1,3),(5,400,3),(400,11,3),(12,12,3),(64,3000,3)])
def test_odd_photos_have_no_face(shape):
    assert MTCNN()(np.full(shape, 127, np.uint8)) == []

def test_the_largest_face_is_the_first_of_all():
    detect = MTCNN()
    drawn = [dict(seed=60 + i, size=(250,200), scale=s) for i,s in enumerate((.18,.3,.5,.6))]
    for h in draw_heads(drawn, workers=1, progress=False):
        for im in (h.im, np.pad(h.im, ((0,0),(0,250),(0,0)), mode='edge')):
            every,first = detect(im),detect.largest(im)
            assert bool(every) == bool(first) and (not every or iou(every[0].bbox, first[0].bbox) > .85)

@pytest.mark.parametrize('no_photo', [
    None,
    np.zeros((9,9,3)),
    np.zeros((9,9), np.uint8),
    np.zeros((0,9,3), np.uint8),
    np.zeros((9,9,4), np.uint8),
])
def test_what_is_no_photo_is_refused(no_photo):
    with pytest.raises(BadInput, match='A photo must be'):
        MTCNN()(no_photo)

def test_a_mirrored_face_has_the_mirrored_pose():
    mirrored = (KPS*[-1,1] + [640,0])[[1,0,2,4,3]] + [[0,6],[0,0],[9,0],[0,0],[0,0]]
    yaw,pitch,roll = kps_pose(mirrored)
    back = kps_pose((mirrored*[-1,1] + [640,0])[[1,0,2,4,3]])
    np.testing.assert_allclose((-yaw,pitch,-roll), back, atol=1e-6)

def test_who_told_and_whether_anybody_can(folder, photo):
    save(folder/'genderage.onnx', [1,3,96,96], dict(fc=np.array([(.1,.9,.34)])))
    detect = InsightFace(models=str(folder))
    faces = detect.largest(photo)
    assert detect.tells_age and all(f.attributes_by is None for f in faces)
    detect.describe([(photo, f) for f in faces])
    assert {f.attributes_by for f in faces} == {'insightface'} == {f.attributes_by for f in detect(photo)}
    silent = InsightFace(models=str(folder), attributes=False)
    assert not silent.tells_age and silent(photo)[0].age is None and silent(photo)[0].attributes_by is None
