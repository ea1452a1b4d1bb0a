"Photos that lie on their side or head, collages, faces of too few pixels, and runs in which every shard fails."
import pytest

from pttface.faces import extract_faces
from pttface.storage.files import BadInput,dumps,open_root,read_jsonl,write_json,write_tar
from pttface.synthetic.heads import draw_heads
from pttface.vision.images import encode_jpeg


@pytest.fixture
def root(tmp_path):
    root = open_root(tmp_path/'run', create=True)
    heads = draw_heads([dict(seed=i, size=(250,200), scale=.5) for i in range(2)], workers=1, progress=False)
    for month in ('01','02'):
        photos = [(f'{month}{i:05d}', dict(jpg=encode_jpeg(h.im), json=dumps({}).encode())) for i,h in enumerate(heads)]
        write_tar(root/f'photos/images_{month}_part_1.tar', photos)
    write_json(root/'photos/download.json', {})
    return root

@pytest.mark.parametrize('workers', [1,2])
def test_all_shards_failed(root, workers):
    shards = sorted((root/'photos').glob('*.tar'))
    whole = [p.read_bytes() for p in shards]
    for p in shards:
        p.write_bytes(whole[0][:2000])
    with pytest.raises(BadInput, match='None of 2 shards gave faces. images_01_part_1: .*damaged.*images_02_part_1: '):
        extract_faces(root, workers=workers)
    assert read_jsonl(root/'faces/faces.jsonl') == []
    shards[1].write_bytes(whole[1])
    assert list(extract_faces(root, workers=workers).failed) == ['images_01_part_1']
    shards[0].write_bytes(whole[0])
    assert len(extract_faces(root, workers=workers)) == 4
