"What SECURITY.md promises: what a hostile link, file, archive, checkpoint or row cannot do, and that each has a test."
import ast,gzip,hashlib,io,json,pickle,re,subprocess,sys,tarfile,zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pttface.dataset import FaceData
from pttface.net.http import Client
from pttface.storage.files import BadInput,read_npz,read_tar,write_tar
from pttface.synthetic.server import Reply,png_header,serving
from pttface.training.checkpoint import Checkpoints
from pttface.vision.images import Unusable,decode
from pttface.vision.pictures import LARGEST,as_images,files_in

TOP = Path(__file__).parents[1]
SOURCES = [p for p in sorted((TOP/'pttface').glob('**/*.py')) if p.name != '_modidx.py']
PHOTO = cv2.imencode('.png', np.full((16, 16, 3), 90, np.uint8))[1].tobytes()


class Bomb:
    "Makes a file wherever it is unpickled."
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def calls(name):
    "Every call of `name` (as `torch.load`) in the package: file, line, arguments by name."
    for p in SOURCES:
        for node in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield p.name, node.lineno, {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_nothing_is_unpickled():
    loads = list(calls('torch.load'))
    assert len(loads) >= 4 and [o for o in loads if o[2].get('weights_only') != 'True'] == []
    arrays = list(calls('np.load'))
    assert arrays and [o for o in arrays if o[2].get('allow_pickle', 'False') != 'False'] == []
    for name in ('pickle.load', 'pickle.loads', 'eval', 'exec', 'os.system', 'os.popen', 'yaml.load', 'torch.jit.load'):
        assert list(calls(name)) == [], name
    assert [o for o in calls('subprocess.run') if 'shell' in o[2]] == []


@pytest.mark.parametrize('manifest', [True, False])
def test_a_checkpoint_runs_no_code(tmp_path, manifest, caplog):
    canary, file = tmp_path/'canary', tmp_path/'checkpoint-00000009.pt'
    good = Checkpoints(tmp_path).save(dict(step=3), 3)
    with zipfile.ZipFile(good) as z:
        parts = {o: z.read(o) for o in z.namelist()}
    with zipfile.ZipFile(file, 'w') as z:
        for name, body in parts.items():
            z.writestr(name, pickle.dumps(dict(step=9, ema=Bomb(canary)), 2) if name.endswith('data.pkl') else body)
    if manifest:
        row = dict(file=file.name, step=9, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), score=None)
        (tmp_path/'checkpoints.json').write_text(json.dumps([row]))
    assert Checkpoints(tmp_path).load()[0]['step'] == 3
    with pytest.raises(BadInput, match='holds no whole'):
        Checkpoints(tmp_path).load(file.name)
    assert not canary.exists()


def test_an_array_runs_no_code(tmp_path):
    canary = tmp_path/'canary'
    bomb = np.array([Bomb(canary)], dtype=object)
    np.savez(tmp_path/'a.npz', images=bomb)
    np.save(tmp_path/'a.npy', bomb)
    for read in (lambda: read_npz(tmp_path/'a.npz'), lambda: FaceData.from_npz(tmp_path/'a.npz'),
                 lambda: FaceData.from_npz(tmp_path/'a.npy')):
        with pytest.raises(BadInput):
            read()
    assert not canary.exists()


def test_members_of_an_archive_stay_where_they_are(tmp_path):
    inner, secret = tmp_path/'inner', tmp_path/'secret.png'
    inner.mkdir()
    secret.write_bytes(PHOTO)
    with tarfile.open(inner/'a.tar', 'w') as t:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f'other{kind.decode()}.png')
            info.type, info.linkname = kind, str(secret)
            t.addfile(info)
        for name in ('../out.png', f'{tmp_path}/absolute.png', 'in.png'):
            info = tarfile.TarInfo(name)
            info.size = len(PHOTO)
            t.addfile(info, io.BytesIO(PHOTO))
    with zipfile.ZipFile(inner/'a.zip', 'w') as z:
        z.writestr('../out.png', PHOTO)
        z.writestr('in.png', PHOTO)
    before = sorted(tmp_path.rglob('*'))
    for name in ('a.tar', 'a.zip'):
        assert [n for n, _ in files_in(inner/name) if n.startswith(('other', '..'))] == []
        assert len(FaceData.from_folder(inner/name, size=8)) == 1  # what there is has one hash
    assert sorted(tmp_path.rglob('*')) == before
    for key in ('../x', 'a/b', '', 'a.b', '\0'):
        with pytest.raises(BadInput, match='cannot be a key'):
            write_tar(tmp_path/'b.tar', [(key, dict(jpg=b''))])
    with tarfile.open(tmp_path/'c.tar', 'w') as t:
        info = tarfile.TarInfo('soft.jpg')
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        t.addfile(info)
    assert list(read_tar(tmp_path/'c.tar')) == []


def test_members_that_swell_are_left_out(tmp_path, caplog):
    swollen = bytes(LARGEST + 1)
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('big.png', swollen)
        z.writestr('small.png', PHOTO)
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz', compresslevel=1) as t:
        for name, body in {'big.png': swollen, 'small.png': PHOTO}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            t.addfile(info, io.BytesIO(body))
    del swollen
    for name in ('a.zip', 'a.tar.gz'):
        assert (tmp_path/name).stat().st_size < LARGEST/50
        assert [n for n, _ in files_in(tmp_path/name)] == ['small.png']
    assert caplog.text.count('is left out') == 2


def test_pictures_of_too_many_pixels_are_not_decoded(tmp_path):
    bomb = png_header(60_000, 60_000)
    with pytest.raises(Unusable, match='too_many_pixels'):
        decode(bomb)
    (tmp_path/'bomb.png').write_bytes(bomb)
    for i in range(2):
        (tmp_path/f'{i}.png').write_bytes(cv2.imencode('.png', np.full((8, 8, 3), i, np.uint8))[1].tobytes())
    assert FaceData.from_folder(tmp_path, size=8).card['skipped'] == dict(too_many_pixels=1)
    assert len(as_images(tmp_path)) == 2


def test_an_answer_that_swells_is_cut():
    swollen = gzip.compress(bytes(50_000_000))
    reply = Reply(200, swollen, {'Content-Encoding': 'gzip'}, 'image/jpeg')
    assert len(swollen) < 100_000
    client = Client(allow_private=True, retries=0, max_bytes=10**6)
    with serving(lambda path, headers: reply) as server, client:
        a = client.get(f'{server.url}/a.jpg')
    assert (a.reason, a.body) == ('too_large', b'')


def test_proxies_of_the_environment_are_not_used():
    env = dict(http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9', ALL_PROXY='http://127.0.0.1:9')
    code = """
from pttface.net.http import Client
from pttface.synthetic.server import Reply, serving
with serving(lambda path, headers: Reply(200, b'photo')) as server, Client(allow_private=True, retries=0) as client:
    print(client.get(f'{server.url}/a.jpg').body)
"""
    env |= dict(PYTHONPATH=str(TOP))
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
    assert r.stdout.strip() == "b'photo'", r.stderr


def test_a_password_in_an_address_is_not_sent():
    for url in ('https://me:secret@photos.example.com/a.jpg', 'https://@photos.example.com/a.jpg', 'file:///etc/passwd',
                'ftp://photos.example.com/a.jpg', 'https://127.0.0.1/', 'https://[::1]/', 'http://localhost/'):
        with Client(retries=0) as client:
            assert client.get(url).reason in ('bad_url', 'scheme', 'private_address') and client.asked == 0


def test_every_claim_has_its_test():
    "SECURITY.md names a test behind each claim, or says that there is none."
    page = (TOP/'SECURITY.md').read_text(encoding='utf-8')
    claims = re.findall(r'^\| (?!What|---)(.*?) \| (.*?) \| (.*?) \|$', page, re.M)
    assert len(claims) >= 15
    for threat, _, proof in claims:
        named = re.findall(r'`([\w/]+\.(?:py|ipynb))(?:::(\w+))?`', proof)
        assert named or proof == 'none', threat
        for file, test in named:
            text = (TOP/file).read_text(encoding='utf-8')
            assert not test or f'def {test}(' in text, (file, test)
