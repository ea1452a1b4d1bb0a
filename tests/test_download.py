"What a notebook would illustrate badly: every fault a host can have, a killed download, and running again."
import hashlib,io,json,multiprocessing,os,random,shutil,signal,subprocess,sys,threading,time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

import pttface.net.http,pttface.storage.shards
from pttface.download import DownloadSettings,Photos,download,link_rot,regate
from pttface.synthetic.server import Fault,Reply,faults,serving
from pttface.synthetic.heads import draw_head
from pttface.vision.images import decode,encode_jpeg
from pttface.storage.files import BadInput,Ledger,content_hash,locked,open_root,read_jsonl,read_tar,write_jsonl
from pttface.storage.shards import MonthShard,write_shards

portrait = data.astronaut()[:256, 96:352].copy()
scene = cv2.resize(data.coffee(), (256,256))

def jpeg(im, seed):
    r = np.random.default_rng(seed)
    buf = io.BytesIO()
    noisy = np.clip(im.astype(int) + r.integers(-6, 7, im.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buf, 'JPEG', quality=90)
    return buf.getvalue()

def name(i):
    return f'https://i.imgur.com/pic{i:04d}.jpg'

def kind(i):
    for k,is_kind in dict(none=i % 5 == 3, blurred=i % 7 == 5, gone=i % 11 == 7).items():
        if is_kind:
            return k
    return 'face'

def photo_file(i):
    k = kind(i)
    if k == 'none':
        return jpeg(scene, i)
    if k == 'blurred':
        return cv2.imencode('.jpg', cv2.GaussianBlur(portrait, (0,0), 2.5+i/100))[1].tobytes()
    twin = i % 13 == 12 and kind(i-10) == 'face'
    return jpeg(portrait, i - 10 if twin else i)

def made(n):
    return {f'/i.imgur.com/pic{i:04d}.jpg':photo_file(i) for i in range(n) if kind(i) != 'gone'}

@pytest.fixture(scope='module')
def files():
    return made(60)

def answer(files):
    return lambda path,headers: Reply(200, files[path], mime='image/jpeg') if path in files else Reply(404, b'gone')

def listed(root, urls, months=2):
    "A crawl's lists, `urls` dealt out over so many months"
    open_root(root, create=True)
    per = -(-len(urls)//months)
    for m in range(months):
        rows = []
        for d,part in enumerate(np.array_split(urls[m*per:(m+1)*per], 4)):
            article = f'https://www.ptt.cc/bbs/Beauty/M.{1704040318+m*2_600_000+d}.A.E87.html'
            rows.append(dict(date=f'{m+1:02d}{d+1:02d}', title='[正妹] 元旦', url=article, images=[*map(str, part)]))
        write_jsonl(root/f'links/monthly_jsonl/image_links_{m+1:02d}.jsonl', rows)
    return root

def asked_for(server):
    "What was asked for besides robots.txt"
    return [p for p in server.requests if not p.endswith('/robots.txt')]

def state(root):
    return {f.name:f.read_bytes() for f in sorted((root/'photos').iterdir())}
def get(root, server, **kw):
    return download(root, gateway=server.url, progress=False, **kw)

def test_one_row_a_link_and_sums(files, tmp_path):
    urls = [name(i) for i in range(60)] + [name(3), name(0)]
    with serving(answer(files)) as server:
        photos = get(listed(tmp_path, urls), server)
        assert max(Counter(server.requests).values()) == 1 and '/i.imgur.com/robots.txt' in server.requests
        was = state(tmp_path)
        repeated = get(tmp_path, server)
        assert len(asked_for(server)) == 60
    assert state(tmp_path) == was and repeated.rows == photos.rows
    assert [r['url'] for r in photos.rows] == urls[:60]
    counts = photos.record['counts']
    assert sum(counts[k] for k in ('kept','rejected','duplicate','failed')) == counts['links'] == 60
    becomes = dict(none=('rejected','no_face'), blurred=('rejected','blurred'), gone=('failed','404'), face=('kept',''))
    for i,r in enumerate(photos.rows):
        if r['status'] == 'duplicate':
            assert r['of'] == photos.rows[i-10]['key']
        else:
            assert (r['status'],r['reason']) == becomes[kind(i)]
    assert any(r['status'] == 'duplicate' for r in photos.rows)
    kept = [(k,p) for f in sorted((tmp_path/'photos').glob('*.tar')) for k,p in read_tar(f)]
    assert [k for k,_ in kept] == [r['key'] for r in photos.kept]
    assert all(p['jpg'] == files['/i.imgur.com/' + json.loads(p['json'])['url'].rsplit('/', 1)[1]] for _,p in kept)

def test_months_apart_equal_months_together(files, tmp_path):
    urls = [name(i) for i in range(60)]
    with serving(answer(files)) as server:
        get(listed(tmp_path/'a', urls, 3), server)
        for m in ('03','01','02'):
            get(listed(tmp_path/'b', urls, 3), server, months=m)
    assert state(tmp_path/'a') == state(tmp_path/'b')

def test_shards_are_webdatasets(files, tmp_path):
    import webdataset
    with serving(answer(files)) as server:
        photos = get(listed(tmp_path, [name(i) for i in range(60)]), server, settings=DownloadSettings(shard=10))
    tars = sorted(map(str, (tmp_path/'photos').glob('*.tar')))
    assert len(tars) > 2
    keys = [s['__key__'] for s in webdataset.WebDataset(tars, shardshuffle=False).decode('rgb8')]
    assert keys == [r['key'] for r in photos.kept]

def test_what_is_missing_is_made_anew(files, tmp_path):
    with serving(answer(files)) as server:
        get(listed(tmp_path, [name(i) for i in range(60)]), server)
        was = state(tmp_path)
        (tmp_path/'photos/images_01_part_1.tar').unlink()
        server.clear()
        get(tmp_path, server)
        lost = len(asked_for(server))
        assert state(tmp_path) == was and 0 < lost < 30
        (tmp_path/'photos/ledger_02.jsonl').unlink()
        get(tmp_path, server)
    assert state(tmp_path) == was

def test_opting_out_later(files, tmp_path, monkeypatch):
    monkeypatch.setattr('pttface.policy.TWIN_BITS', -1)  # these photos are one portrait; their twins have a test below
    with serving(answer(files)) as server:
        photos = get(listed(tmp_path, [name(i) for i in range(60)]), server)
        article,url = photos.rows[0]['article'],photos.kept[20]['url']
        sha = photos.kept[30]['sha256']
        (tmp_path/'optout.txt').write_text(f'{article}\n{url}\n{sha}\n')
        server.clear()
        after = get(tmp_path, server)
        asked = len(asked_for(server))
    out = [r for r in after.rows if r['reason'] == 'opt_out']
    meant = lambda r: r['article'] == article or r['url'] == url or r.get('sha256') == sha
    assert {r['url'] for r in out} == {r['url'] for r in photos.rows if meant(r)}
    assert not {r['key'] for r in out} & {k for f in (tmp_path/'photos').glob('*.tar') for k,_ in read_tar(f)}
    assert asked <= 2

def test_failed_links_are_tried_when_it_makes_sense(files, tmp_path):
    urls = [name(i) for i in range(12)]
    with serving(answer(files), faults={'*pic0000*':Fault('503'), '*pic0001*':Fault('403')}) as server:
        first = get(listed(tmp_path, urls), server)
        assert [r['reason'] for r in first.rows[:2]] == ['503','403']
    with serving(answer(files)) as server:
        second = get(tmp_path, server)
        assert [r['status'] for r in second.rows[:2]] == ['kept','failed'] and len(asked_for(server)) == 1
        third = get(tmp_path, server, retry_failed=True)
        assert third.rows[1]['status'] == 'kept'

want = {
    '403':'failed 403', '404':'failed 404', '429':'failed 429', '429_wait':'failed 429', '500':'failed 500',
    '502':'failed 502', '503':'failed 503', 'loop':'failed redirects', 'to_loopback':'refused private_address',
    'to_private_name':'refused private_address', 'to_file':'refused scheme', 'refused':'refused private_address',
    'ipv6':'refused private_address', 'placeholder':'failed removed', 'html':'failed not_image',
    'over18':'failed not_image', 'empty':'failed empty', 'truncated':'failed truncated',
    'bomb':'failed too_many_pixels', 'zipped':'failed not_image', 'gzip_lie':'failed bad_encoding', 'delay':'kept ',
    'drip':'failed too_slow', 'slow_headers':'failed too_slow', 'reset':'failed reset', 'hang_up':'failed reset',
    'length_over':'failed truncated', 'length_under':'failed truncated', 'huge':'failed too_large',
    'endless':'failed too_large', 'gibberish':'failed reset',
}

def test_every_fault_leaves_its_row(files, tmp_path, monkeypatch):
    assert set(want) == set(faults)
    quick(monkeypatch, backoff=.01, retries=1, total=1.5, timeout=1.)
    names = {k:f'https://i.imgur.com/{k}.jpg' for k in want}
    pool = {f'/i.imgur.com/{k}.jpg':files['/i.imgur.com/pic0000.jpg'] for k in want}
    pool['/i.imgur.com/removed.png'] = b'\x89PNG'
    struck = {f'*/{k}.jpg':Fault(k, seconds=.04, size=40_000_000) for k in want}
    with serving(answer(pool), faults=struck) as server:
        start = time.monotonic()
        photos = get(listed(tmp_path, list(names.values()), 1), server, streams=8)
        assert time.monotonic() - start < 30
        assert not getattr(server, 'trapped', None)
    assert {k:f'{r["status"]} {r["reason"]}' for k,r in zip(names, photos.rows)} == want

def test_bad_input(files, tmp_path):
    listed(tmp_path, [name(0)])
    with pytest.raises(BadInput, match="no month '13'"):
        download(tmp_path, months='13')
    with pytest.raises(BadInput, match="no preset 'best' for the download"):
        download(tmp_path, settings='best')
    with pytest.raises(BadInput, match='workers=0'):
        download(tmp_path, workers=0)
    with pytest.raises(BadInput, match='pttface crawl'):
        download(open_root(tmp_path/'new', create=True))
    assert not (tmp_path/'photos').exists()
    with serving(answer(files)) as server:
        get(tmp_path, server)
        with pytest.raises(BadInput, match='sharpness=60.0 .now 80.0.'):
            get(tmp_path, server, settings=DownloadSettings(sharpness=80.))

def quick(monkeypatch, **kw):
    "Clients that give up soon"
    import pttface.net.scheduler as module
    client = module.Client
    monkeypatch.setattr(module, 'Client', lambda *a,**k: client(*a, **k | kw))

def test_a_dead_host_costs_little(files, tmp_path, monkeypatch):
    quick(monkeypatch, backoff=.01, give_up_after=.2, connect=1)
    asked,ask = Counter(),pttface.net.http._hop
    monkeypatch.setattr(pttface.net.http, '_hop', lambda client,url: asked.update([url]) or ask(client, url))
    with serving(answer(files), faults={'*':'delay'}) as server:
        dead = server.closed.replace('http://', 'https://')
    urls = [f'{dead}/{i}.jpg' for i in range(300)]
    sentence = r'None of the links of 01, 02 could be fetched \(300 connection_refused\)'
    with pytest.raises(BadInput, match=sentence):
        download(listed(tmp_path, urls), allow_private=True, rate=0, progress=False)
    photos = Photos.load(tmp_path)
    assert Counter(r['reason'] for r in photos.rows) == {'connection_refused':300}
    assert len(asked) < 250 and photos.record['counts']['failed'] == 300

def test_what_was_written_with_http_may_be_asked_so(files, tmp_path):
    with serving(answer(files)) as server:
        secure = server.url.replace('http://', 'https://')
        urls = [f'{secure}/i.imgur.com/pic{i:04d}.jpg' for i in range(6)]
        listed(tmp_path, urls, 1)
        lists = tmp_path/'links/monthly_jsonl/image_links_01.jsonl'
        raw = {u:u.replace('https', 'http') for u in urls[:5]}
        links = lambda r: [dict(url=u, raw=raw.get(u, u)) for u in r['images']]
        write_jsonl(lists, [r | dict(links=links(r)) for r in read_jsonl(lists)])
        photos = download(tmp_path, allow_private=True, rate=0, progress=False)
        assert len(asked_for(server)) == 5
    over = [('kept','http')]*3 + [('rejected','http'),('kept','http'),('failed',None)]
    assert [(r['status'],r.get('over')) for r in photos.rows] == over
    assert photos.rows[5]['reason'] == 'tls'

def test_thresholds_later_equal_thresholds_at_first(files, tmp_path):
    loose,urls = dict(score=.5, sharpness=2.),[name(i) for i in range(8, 32)]
    roots = dict(a={}, b=dict(keep_rejected=True), c=loose, d=loose | dict(keep_rejected=True))
    with serving(answer(files)) as server:
        for k,kw in roots.items():
            get(listed(tmp_path/k, urls), server, settings=DownloadSettings(shard=4, **kw))
        was = state(tmp_path/'b')
        server.clear()
        judged = regate(tmp_path/'b', **loose)
        assert state(tmp_path/'b') == state(tmp_path/'d') and judged.record['done'] and not asked_for(server)
        regate(tmp_path/'b')
        assert state(tmp_path/'b') == was
        missed = regate(tmp_path/'a', **loose)
        absent = {r['url'] for r in missed.rows if r['reason'] == 'not_stored'}
        assert absent and not missed.record['done'] and len(missed.rows) == 24
        get(tmp_path/'a', server, settings=DownloadSettings(shard=4, **loose))
        assert {'/' + u.split('//')[1] for u in absent} == set(asked_for(server))
        assert state(tmp_path/'a') == state(tmp_path/'c')
    assert any(f.startswith('rejected_') for f in was)
    assert not any(f.startswith('rejected_') for f in state(tmp_path/'a'))

class Cut(BaseException):
    "The power fails"

@pytest.mark.parametrize('keep', [True,False])
def test_power_cuts_while_tars_are_made(files, tmp_path, monkeypatch, keep):
    "Cut at every single step of other thresholds; once they are asked for again, all is as without."
    urls = [name(i) for i in range(16)]
    with serving(answer(files)) as server:
        first = get(listed(tmp_path/'start', urls), server, settings=DownloadSettings(shard=3, keep_rejected=keep))
    strict = dict(score=.5, sharpness=float(np.median([r['sharpness'] for r in first.kept])))
    shutil.copytree(tmp_path/'start', tmp_path/'whole')
    regate(tmp_path/'whole', **strict)
    assert 0 < len(Photos.load(tmp_path/'whole').kept) < len(Photos.load(tmp_path/'start').kept)
    steps,left = [0],[None]
    def cutting(f):
        def _f(*a, **k):
            steps[0] += 1
            if steps[0] == left[0]:
                raise Cut
            return f(*a, **k)
        return _f
    monkeypatch.setattr(pttface.storage.shards, 'write_tar', cutting(pttface.storage.shards.write_tar))
    for o,f in ((Ledger,'append'), (Ledger,'compact'), (Path,'unlink')):
        monkeypatch.setattr(o, f, cutting(getattr(o, f)))
    for n in range(1, 200):
        root = tmp_path/f'cut{n}'
        left[0],steps[0] = n,0
        shutil.copytree(tmp_path/'start', root)
        try:
            regate(root, **strict)
        except Cut:
            pass
        cut,left[0] = steps[0] == n,None
        regate(root, **strict)
        assert state(root) == state(tmp_path/'whole'), n
        shutil.rmtree(root)
        if not cut:
            break
    assert n > 12

def test_lists_that_have_grown(files, tmp_path):
    "What is there is not fetched again and keeps its key; which of equal photos stays follows the lists."
    def found(root):
        rows = [r for f in sorted((root/'photos').glob('ledger_*.jsonl')) for r in read_jsonl(f)]
        by_key = {r['key']: r['url'] for r in rows}
        return [(r['url'], r['status'], r['reason'], r.get('sha256'), by_key.get(r.get('of'))) for r in rows]
    def keys(root):
        return {r['url']: r['key'] for f in (root/'photos').glob('ledger_*.jsonl') for r in read_jsonl(f)}
    urls = [name(i) for i in range(16)]
    with serving(answer(files)) as server:
        get(listed(tmp_path/'grown', urls[5:], 1), server)
        server.clear()
        before = keys(tmp_path/'grown')
        get(listed(tmp_path/'grown', urls, 1), server)
        assert len(asked_for(server)) == 5
        get(listed(tmp_path/'at once', urls, 1), server)
        assert found(tmp_path/'grown') == found(tmp_path/'at once')
        grown = keys(tmp_path/'grown')
        assert {u: grown[u] for u in before} == before and len(set(grown.values())) == len(grown)
        get(listed(tmp_path/'grown', urls[5:], 1), server)
        get(listed(tmp_path/'less', urls[5:], 1), server)
        assert found(tmp_path/'grown') == found(tmp_path/'less') and keys(tmp_path/'grown') == before
        lists = tmp_path/'grown/links/monthly_jsonl'
        (lists/'image_links_01.jsonl').rename(lists/'image_links_02.jsonl')
        with pytest.raises(BadInput, match='has the months 01, which the crawl has not'):
            get(tmp_path/'grown', server)
        assert get(tmp_path/'grown', server, force=True).kept and not list((tmp_path/'grown/photos').glob('*_01*'))

def test_a_spool_that_lost_its_end(files, tmp_path):
    "A machine that died may leave zeros where photos were."
    urls = [name(i) for i in range(20)]
    with serving(answer(files)) as server:
        get(listed(tmp_path/'whole', urls, 1), server)
        with pytest.MonkeyPatch.context() as mp:
            mp.setattr('pttface.storage.shards.write_shards', lambda *a: (_ for _ in ()).throw(Cut()))
            with pytest.raises(Cut):
                get(listed(tmp_path/'hurt', urls, 1), server)
        spool, = (tmp_path/'hurt/photos').glob('spool*')
        data = spool.read_bytes()
        spool.write_bytes(data[:len(data)//3] + bytes(len(data)//3) + data[2*len(data)//3:])
        hurt = get(tmp_path/'hurt', server)
        lost = [r for r in hurt.rows if r['reason'] == 'not_stored']
        assert lost and not hurt.record['done']
        get(tmp_path/'hurt', server)
    assert state(tmp_path/'hurt') == state(tmp_path/'whole')

def test_ctrl_c(files, tmp_path, monkeypatch):
    "The pool is gone at once, though a request is in the middle of a minute's drip."
    urls = [name(i) for i in range(20)]
    before = set(threading.enumerate())
    with serving(answer(files), faults={'*pic001*':Fault('drip', seconds=.5, times=1)}) as server:
        listed(tmp_path/'cut', urls, 1)
        def press():
            end = time.monotonic() + 60
            while not any('pic001' in path for path in server.requests) and time.monotonic() < end:
                time.sleep(.05)
            time.sleep(.5)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=press, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path/'cut', server)
        assert time.monotonic() - start < 100
        assert not [t for t in {*threading.enumerate()} - before if t.name.startswith(('ThreadPool','gate'))]
        server.faults = None
        get(tmp_path/'cut', server)
        get(listed(tmp_path/'whole', urls, 1), server)
    assert state(tmp_path/'cut') == state(tmp_path/'whole')

def test_no_torch_here():
    code = 'import sys, pttface.download; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0

def test_a_cluster_that_loses_a_worker(files, tmp_path):
    "Two processes, one killed in the middle: the same bytes, and the host's rate and connections shared out."
    distributed = pytest.importorskip('distributed')
    urls = [name(i) for i in range(60)]
    now,most = [0],[0]
    plain,lock = answer(files),threading.Lock()
    def slow(path, headers):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(.03)
        with lock:
            now[0] -= 1
        return plain(path, headers)
    with serving(plain) as server:
        get(listed(tmp_path/'whole', urls), server)
    how = dict(n_workers=2, threads_per_worker=4, dashboard_address=None, host='127.0.0.1', silence_logs=50)
    with serving(slow) as server, distributed.LocalCluster(local_directory=str(tmp_path/'dask'), **how) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        def kill():
            while len(asked_for(server)) < 20:
                time.sleep(.01)
            os.kill(victim, signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
        start = time.monotonic()
        get(listed(tmp_path/'far', urls), server, rate=20, scheduler=cluster.scheduler_address)
        took = time.monotonic() - start
    assert state(tmp_path/'far') == state(tmp_path/'whole')
    assert took > 2 and most[0] <= 6

def _get(root, url):
    download(root, gateway=url, progress=False, workers=2, streams=1)

def test_killed_twenty_times(files, tmp_path):
    context,r = multiprocessing.get_context('forkserver'),random.Random(0)
    context.set_forkserver_preload(['pttface.download'])
    urls = [name(i) for i in range(60)]
    with serving(answer(files), latency=.01) as server:
        get(listed(tmp_path/'whole', urls), server)
        listed(tmp_path/'killed', urls)
        kills = 0
        for _ in range(60):
            p = context.Process(target=_get, args=(tmp_path/'killed', server.url))
            enough,end = len(asked_for(server)) + r.randint(0, 2),time.monotonic() + 20
            p.start()
            while p.is_alive() and (kills >= 20 or len(asked_for(server)) <= enough) and time.monotonic() < end:
                time.sleep(.001)
            if kills < 20 and r.random() < .3:
                time.sleep(r.random()*.1)
            done = not p.is_alive() and p.exitcode == 0
            kills += p.is_alive()
            p.kill()
            p.join()
            if done:
                break
        asked = len(asked_for(server))
    assert done and kills >= 8
    assert state(tmp_path/'killed') == state(tmp_path/'whole')
    assert asked <= 60 + 60 + 2*kills
    assert len(read_jsonl(tmp_path/'killed/photos/ledger_01.jsonl')) == 30
    shutil.rmtree(tmp_path/'killed')
    assert len(Photos.load(tmp_path/'whole')) == 60

def talking(seed, orientation=1):
    "A JPEG that tells of a place, a device and a person"
    exif = Image.Exif()
    exif[0x0112],exif[0x010f] = orientation,'Pear 12'
    exif.get_ifd(0x8825).update({1:'N', 2:(25.,2.,1.)})
    buf = io.BytesIO()
    im = Image.open(io.BytesIO(jpeg(portrait, seed)))
    im = im.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else im
    im.save(buf, 'JPEG', quality=92, exif=exif, comment=b'by Mei', xmp=b'<x:xmpmeta>Mei</x:xmpmeta>')
    return buf.getvalue() + buf.getvalue()

def photos_in(root):
    return {k:p['jpg'] for f in sorted((root/'photos').glob('*.tar')) for k,p in read_tar(f)}

def test_photos_tell_nothing_besides(tmp_path):
    urls,bodies = [name(i) for i in range(3)],[talking(0), talking(1, 6), jpeg(portrait, 2)]
    with serving(answer({f'/i.imgur.com/pic{i:04d}.jpg':o for i,o in enumerate(bodies)})) as server:
        photos = get(listed(tmp_path/'a', urls, 1), server)
        bare = DownloadSettings(strip_metadata=False)
        get(listed(tmp_path/'b', urls, 1), server, settings=bare)
        kept,whole = photos_in(tmp_path/'a'),photos_in(tmp_path/'b')
        assert [r['sha256'] for r in photos.kept] == [hashlib.sha256(o).hexdigest() for o in bodies]
        assert [*whole.values()] == bodies and kept[photos.kept[2]['key']] == bodies[2]
        for body,was in zip(kept.values(), bodies):
            assert not any(o in body for o in (b'Pear', b'Mei', b'xmpmeta'))
            assert dict(Image.open(io.BytesIO(body)).getexif()) in ({}, {0x0112:6})
            assert np.array_equal(decode(body)[0], decode(was)[0])
        record = tmp_path/'b/photos/download.json'
        old = json.loads(record.read_text())
        del old['settings']['strip_metadata']
        record.write_text(json.dumps(old))
        server.clear()
        get(tmp_path/'b', server)
        assert not asked_for(server) and state(tmp_path/'a') == state(tmp_path/'b')

def test_formats_that_are_not_decoded_are_no_dead_links(tmp_path):
    heic,tiff = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(900),io.BytesIO()
    Image.fromarray(portrait).save(tiff, 'TIFF')
    with serving(answer({'/i.imgur.com/pic0000.jpg':heic, '/i.imgur.com/pic0001.jpg':tiff.getvalue()})) as server:
        photos = get(listed(tmp_path, [name(i) for i in range(3)], 1), server)
    assert [r['reason'] for r in photos.rows] == ['format_heic','format_tiff','404']
    rot, = link_rot(photos).rows
    assert (rot['there'], rot['gone']) == (2, 1)

def test_twins_and_other_articles_of_what_was_opted_out(tmp_path):
    "A copy under another address, byte for byte or encoded anew, and a photo that two articles show"
    heads = [draw_head(i, size=(250,200), blur=0) for i in (3,7,11)]
    files = {f'/i.imgur.com/drawn0{i}.jpg':encode_jpeg(h.im) for i,h in enumerate(heads)}
    first,second,third = files
    again = io.BytesIO()
    Image.open(io.BytesIO(files[first])).save(again, 'JPEG', quality=75)
    host = 'https://i.imgur.com/'
    copies = {'/i.imgur.com/copies1.jpg':files[first], '/i.imgur.com/encoded.jpg':again.getvalue()}
    name_of = lambda path: f'https:/{path}'
    articles = [f'https://www.ptt.cc/bbs/Beauty/M.170404031{i}.A.E87.html' for i in range(3)]
    shown = [[first, second], ['/i.imgur.com/copies1.jpg', third], ['/i.imgur.com/encoded.jpg', second]]
    open_root(tmp_path, create=True)
    rows = [dict(date='0101', title='[正妹] 元旦', url=article, images=list(map(name_of, paths)))
            for article,paths in zip(articles, shown)]
    write_jsonl(tmp_path/'links/monthly_jsonl/image_links_01.jsonl', rows)
    with serving(answer(files | copies)) as server:
        before = get(tmp_path, server)
        (tmp_path/'optout.txt').write_text(f'{name_of(first)}\n{articles[2]}\n')
        after = get(tmp_path, server)
        (tmp_path/'optout.txt').unlink()
        (tmp_path/'photos/ledger_01.jsonl').unlink()
        anew = get(tmp_path, server)
    kept = lambda photos: sorted({r['url'] for r in photos.rows if r['status'] == 'kept'})
    assert name_of(first) in kept(before) and name_of(third) in kept(before)
    assert kept(after) == [name_of(third)], 'the photo, its copies, and what the article shows are gone'
    assert {r['reason'] for r in after.rows if r['status'] != 'kept'} == {'opt_out'}
    assert kept(anew) == [name_of(third)], 'for good: the hashes remain when the list is gone'
    assert 'imgur' not in (tmp_path/'optout_hashes.jsonl').read_text() and host in after.rows[0]['url']

def test_two_downloads_at_a_time(files, tmp_path):
    with serving(answer(files)) as server, locked(listed(tmp_path, [name(0)], 1), 'crawl'):
        with pytest.raises(BadInput, match='`pttface crawl` .process'):
            get(tmp_path, server)
        assert not server.requests and not (tmp_path/'photos').exists()

def test_a_second_download_hears_who_is_at_work(files, tmp_path):
    with serving(answer(files)) as server, locked(listed(tmp_path, [name(0)], 1), 'download'):
        with pytest.raises(BadInput, match=rf'process {os.getpid()} on .+, since 20\d\d-'):
            get(tmp_path, server)

def test_a_torn_ledger_is_read_and_left_as_it_is(files, tmp_path):
    "A reader beside a download that is writing, or after one that was killed"
    with serving(answer(files)) as server:
        photos = get(listed(tmp_path, [name(i) for i in range(6)], 1), server)
    ledger = tmp_path/'photos/ledger_01.jsonl'
    whole = ledger.read_bytes()
    newer = photos.rows[0] | dict(status='refused', reason='opt_out')
    torn = whole + json.dumps(newer).encode() + b'\n' + json.dumps(photos.rows[1]).encode()[:-9]
    ledger.write_bytes(torn)
    read = Photos.load(tmp_path)
    assert read.rows == [newer, *photos.rows[1:]] and ledger.read_bytes() == torn

# ---- what hosts and operators ask for

def test_robots_of_image_hosts(files, tmp_path):
    "One request a host and a day; what is kept from robots is not asked for; without an answer nothing is"
    hosts = ['i.imgur.com','i.meee.com.tw','pic.example.org','down.example.org']
    rules = {hosts[0]:b'\xef\xbb\xbfUser-agent: PTTface/9\nDisallow: /*7.jpg$\n\nUser-agent: *\nDisallow: /\n',
             hosts[1]:'User-agent: *\nDisallow: /\n'.encode('utf-16')}
    urls = [f'https://{host}/pic{i:04d}.jpg' for host in hosts for i in (0, 7, 1)]
    def host_answer(path, headers):
        host,_,file = path[1:].partition('/')
        if host == hosts[3]:
            return Reply(500)
        if file == 'robots.txt':
            return Reply(200, rules[host]) if host in rules else Reply(404)
        return Reply(200, files['/i.imgur.com/pic0000.jpg'] + path.encode(), mime='image/jpeg')
    with serving(host_answer) as server:
        import pttface.net.scheduler as module
        before,module.Client = module.Client,lambda *a,**k: before(*a, **k | dict(backoff=.001))
        try:
            photos = get(listed(tmp_path, urls), server)
            asked = Counter(server.requests)
            server.clear()
            again = get(tmp_path, server)
            once_more = list(server.requests)
            plain = DownloadSettings(robots_txt=False)
            get(listed(tmp_path/'plain', urls), server, settings=plain)
        finally:
            module.Client = before
    want = dict(zip(urls, ['','robots','', *['robots']*3, '','','', *['500']*3]))
    assert {r['url']:r['reason'] for r in photos.rows} == want
    assert {r['status'] for r in photos.rows if r['reason'] == 'robots'} == {'refused'} and again.rows == photos.rows
    assert all(asked[f'/{host}/robots.txt'] == 1 for host in hosts[:3])
    assert not any(asked['/' + u.split('//')[1]] for u,why in want.items() if why)
    assert {p.split('/')[1] for p in once_more} == {hosts[3]}, 'the others are kept for a day'
    assert not any(p.endswith('robots.txt') for p in server.requests[len(once_more):])
    rows = Ledger(tmp_path/'robots.jsonl', 'host').rows
    assert {*rows} == {*hosts[:3]}

@pytest.mark.parametrize('status, why', [(403, ''), (410, ''), (204, ''), (301, ''), (429, '429'), (503, '503')])
def test_a_robots_txt_that_is_not_there(files, tmp_path, status, why, monkeypatch):
    quick(monkeypatch, backoff=.001, retries=1)
    here = {'Location':'/i.imgur.com/robots.txt'} if status == 301 else {}
    def host_answer(path, headers):
        return Reply(status, headers=here) if path.endswith('robots.txt') else answer(files)(path, headers)
    with serving(host_answer) as server:
        if why:
            with pytest.raises(BadInput, match=rf'None of the links of 01 could be fetched \(2 {why}\)'):
                get(listed(tmp_path, [name(0), name(1)], 1), server)
        else:
            get(listed(tmp_path, [name(0), name(1)], 1), server)
    assert [r['reason'] for r in Photos.load(tmp_path).rows] == [why]*2

def test_a_pace_that_a_host_asks_for(files, tmp_path):
    pace = {'/i.imgur.com/robots.txt':b'User-agent: *\nCrawl-delay: .2\n',
            '/i.meee.com.tw/robots.txt':b'User-agent: *\nCrawl-delay: 3600\n'}
    def host_answer(path, headers):
        times.append((path, time.monotonic()))
        return Reply(200, pace[path]) if path in pace else answer(files)(path, headers)
    times = []
    with serving(host_answer) as server:
        photos = get(listed(tmp_path, [name(i) for i in range(4)] + ['https://i.meee.com.tw/pic0000.jpg'], 1), server)
    at = sorted(t for path,t in times if path.startswith('/i.imgur.com/pic'))
    assert at[-1] - at[0] > .5, 'three gaps of .2 s; a busy machine can only make them longer'
    assert [r['reason'] for r in photos.rows if 'meee' in r['url']] == ['robots']

def test_a_proxy_a_contact_and_limits(files, tmp_path):
    "The proxy gets whole addresses, and every request says whom to write to"
    seen = []
    def proxy_answer(path, headers):
        seen.append((path, headers['User-Agent']))
        return answer(files)(path.split('gateway.example', 1)[1], headers)
    with serving(proxy_answer) as proxy:
        photos = download(listed(tmp_path, [name(i) for i in range(4)], 1), gateway='http://gateway.example',
                          proxy=proxy.url, contact='me@example.org', limits='imgur.com=0/1', progress=False)
    assert [r['status'] for r in photos.rows] == ['kept','kept','kept','rejected']
    assert all(path.startswith('http://gateway.example/i.imgur.com/') for path,_ in seen)
    assert {agent.split('; ')[1] for _,agent in seen} == {'me@example.org)'}

@pytest.mark.parametrize('how, sentence', [
    (dict(proxy='127.0.0.1:3128'), 'is not the address of a proxy'),
    (dict(proxy='ftp://a.example'), 'is not the address'),
    (dict(proxy='http://[::1'), 'is not the address'), (dict(contact='me@example.org\r\nX: y'), 'in ASCII'),
    (dict(contact='(me)'), 'without brackets'), (dict(limits='imgur.com'), 'is no limit'),
    (dict(limits='imgur.com=-1/2'), 'is no limit'), (dict(limits='imgur.com=nan'), 'is no limit'),
    (dict(limits={'imgur.com':(1, 0)}), 'is no limit'), (dict(limits='https://imgur.com/=1'), 'is no limit')])
def test_proxies_contacts_and_limits_that_are_none(tmp_path, how, sentence):
    with pytest.raises(BadInput, match=sentence):
        download(listed(tmp_path, [name(0)], 1), progress=False, **how)
    assert not (tmp_path/'photos').exists()

def test_a_dead_proxy_says_nothing_of_the_links(files, tmp_path, monkeypatch):
    quick(monkeypatch, backoff=.001, retries=1)
    with serving(answer(files), faults={'*':'delay'}) as server:
        closed = server.closed
    with pytest.raises(BadInput, match=r'2 proxy\): check the network and the proxy'):
        how = dict(gateway='http://gateway.example', proxy=closed, progress=False)
        download(listed(tmp_path, [name(0), name(1)], 1), **how)
    assert link_rot(Photos.load(tmp_path)).rows[0]['gone'] == 0

# ---- opting out, and what leaves the lists

def test_what_left_the_lists_with_its_article_is_remembered(tmp_path):
    "The next crawl takes an opted-out article off the lists; its photos' hashes must be learnt before their rows go"
    heads = [encode_jpeg(draw_head(i, size=(250,200)).im) for i in (3, 7)]
    pool = {f'/i.imgur.com/{k}.jpg':v for k,v in zip(('drawn00','copies1','drawn01'), (heads[0], *heads))}
    pool['/i.imgur.com/removed.png'] = b'\x89PNG'
    articles = [f'https://www.ptt.cc/bbs/Beauty/M.170404031{i}.A.E87.html' for i in range(2)]
    lost = ['https://i.imgur.com/lostone.jpg','https://i.imgur.com/losttwo.jpg']
    def write(*rows):
        rows = [dict(date='0101', title='[正妹] 元旦', url=article, images=images) for article,images in rows]
        write_jsonl(tmp_path/'links/monthly_jsonl/image_links_01.jsonl', rows)
    def host_answer(path, headers):
        if 'lost' in path:
            return Reply(302, headers={'Location':'/i.imgur.com/removed.png'})
        return answer(pool)(path, headers)
    first = articles[0],['https://i.imgur.com/drawn00.jpg', lost[0]]
    second = articles[1],['https://i.imgur.com/drawn01.jpg', lost[1]]
    with serving(host_answer) as server:
        open_root(tmp_path, create=True)
        write(first, second)
        get(tmp_path, server)
        (tmp_path/'optout.txt').write_text(articles[0])
        second[1].append('https://i.imgur.com/copies1.jpg')
        write(second)
        after = get(tmp_path, server)
        server.clear()
        again = get(tmp_path, server)
    reasons = {r['url'].split('/')[-1]:r['reason'] for r in after.rows}
    assert reasons == {'drawn01.jpg':'', 'losttwo.jpg':'removed', 'copies1.jpg':'opt_out'}
    assert again.rows == after.rows and not server.requests, 'a placeholder that many links share is nobody\'s photo'


@pytest.mark.parametrize('place', [0, 1, 3, 7])
def test_keys_stay_when_an_article_is_found_late(tmp_path, place):
    urls = [f'https://i.imgur.com/{c*7}.jpg' for c in 'abcdefg']
    def jobs(names):
        return [dict(url=u, key=f'01{i:05d}', article='https://www.ptt.cc/bbs/Beauty/M.1704040318.A.E87.html')
                for i, u in enumerate(names)]
    def store(names):
        m = MonthShard(tmp_path, '01', jobs(names))
        for j in m.todo(lambda row: False):
            m.put(j, dict(status='kept', reason='', sha256=content_hash(j['url'])), j['url'].encode())
        write_shards([m], 3)
        return {u: r['key'] for u, r in MonthShard(tmp_path, '01', jobs(names)).ledger.rows.items()}
    first = store(urls)
    late = [*urls[:place], 'https://i.imgur.com/laaaate.jpg', 'https://i.imgur.com/laaater.jpg', *urls[place:]]
    second = store(late)
    assert {u: second[u] for u in urls} == first and len(set(second.values())) == 9
    assert store(late) == second
