"Files of every kind that boards link to: which are decoded, in which colours, which way up, and the reasons."
import io,time

import cv2
import numpy as np
import pytest
from PIL import Image,ImageCms,ImageOps,features
from skimage import data

from pttface.vision.images import Unusable,decode

portrait = data.astronaut()[:256, 96:352].copy()
pil = Image.fromarray(portrait)

def saved(im, form, **kw):
    buf = io.BytesIO()
    im.save(buf, form, **kw)
    return buf.getvalue()

def reason(body):
    try:
        decode(body)
    except Unusable as e:
        return str(e)
    return ''

def off(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()

@pytest.mark.skipif(not features.check('avif'), reason='Pillow without AVIF')
def test_avif():
    body = saved(pil, 'AVIF', quality=90)
    im,form = decode(body)
    assert form == 'AVIF' and off(im, portrait) < 4
    for share in (.1, .5, .9):
        assert reason(body[:int(len(body)*share)]) == 'truncated'

def box(brand):
    return b'\0\0\0\x20ftyp' + brand + b'\0\0\0\0mif1heic' + bytes(400)

def test_formats_that_are_not_decoded_are_named():
    files = {'format_heic':[box(b) for b in (b'heic',b'heix',b'hevc',b'mif1',b'msf1',b'heim')],
             'format_tiff':[saved(pil, 'TIFF'), b'MM\0*' + bytes(90), b'II+\0' + bytes(90)],
             'format_jp2':[saved(pil, 'JPEG2000'), saved(pil, 'JPEG2000', no_jp2=True)],
             'format_jxl':[b'\xff\x0a' + bytes(90), b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(90)],
             'format_svg':[b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'<?xml version="1.0"?>\n<svg/>'],
             'format_video':[box(b'isom'), box(b'mp42'), b'\x1aE\xdf\xa3' + bytes(90)],
             'not_image':[b'', b'<!doctype html><p>gone', b'PK\3\4' + bytes(90), b'{"error": 404}']}
    for want,bodies in files.items():
        assert {reason(o) for o in bodies} == {want}

@pytest.mark.parametrize('form', ['WEBP','PNG','GIF','JPEG'])
def test_files_cut_short(form):
    body = saved(pil, form)
    for n in (40, 200, len(body)//2, len(body) - 40):
        assert reason(body[:n]) == 'truncated', n
    if form == 'WEBP':
        assert reason(saved(pil, form, lossless=True)[:900]) == 'truncated'

@pytest.mark.parametrize('how', [dict(), dict(subsampling=0), dict(restart_marker_rows=1), dict(progressive=True),
                                 dict(progressive=True, quality=75), dict(exif=True), dict(grey=True), dict(cmyk=True)])
def test_half_a_jpeg_with_an_end_mark(how):
    exif = Image.Exif()
    exif[0x0112] = 6
    how = dict(quality=92) | how
    source = pil.convert('L') if how.pop('grey', 0) else pil.convert('CMYK') if how.pop('cmyk', 0) else pil
    body = saved(source, 'JPEG', **how | (dict(exif=exif) if 'exif' in how else {}))
    assert reason(body) == '' and reason(body + b'a tail') == ''
    for share in (.3, .5, .7, .9):
        assert reason(body[:int(len(body)*share)] + b'\xff\xd9') == 'truncated', share

def test_grey_below_a_line_saved_again():
    grey = portrait.copy()
    grey[150:] = 128
    assert [reason(saved(Image.fromarray(grey), f, quality=90)) for f in ('JPEG','PNG','WEBP')] == ['truncated']*3

def test_grey_that_belongs_to_the_photo():
    framed = np.full((320,320,3), 128, np.uint8)
    framed[32:-32,32:-32] = portrait
    black = portrait.copy()
    black[150:] = 0
    foot = portrait.copy()
    foot[-10:] = 128
    for im in (framed, black, foot):
        for how in (dict(), dict(progressive=True)):
            assert reason(saved(Image.fromarray(im), 'JPEG', quality=92, **how)) == ''

def profile(primaries, gamma, white=(.3127,.3290)):
    "An ICC profile of three primaries and one gamma, written by hand"
    def xyz(x, y):
        return np.array([x/y, 1, (1-x-y)/y])
    P = np.stack([xyz(*p) for p in primaries], 1)
    M = P*np.linalg.solve(P, xyz(*white))
    B = np.array([[.8951,.2664,-.1614],[-.7502,1.7135,.0367],[.0389,-.0685,1.0296]])
    D50 = np.array([.9642,1,.8249])
    M = np.linalg.inv(B)@np.diag((B@D50)/(B@xyz(*white)))@B@M
    fixed = lambda v: b''.join(int(round(o*65536)).to_bytes(4, 'big', signed=True) for o in v)
    text = b'desc' + bytes(4) + (5).to_bytes(4) + b'wide\0' + bytes(78)
    curve = b'curv' + bytes(4) + (1).to_bytes(4) + int(gamma*256).to_bytes(2) + bytes(2)
    tags = {b'desc':text, b'cprt':b'text' + bytes(4) + b'none\0\0\0\0', b'wtpt':b'XYZ ' + bytes(4) + fixed(D50)}
    tags |= {k + b'XYZ':b'XYZ ' + bytes(4) + fixed(M[:,i]) for i,k in enumerate((b'r',b'g',b'b'))}
    tags |= {k + b'TRC':curve for k in (b'r',b'g',b'b')}
    head,body,at = len(tags).to_bytes(4),b'',128 + 4 + 12*len(tags)
    for k,v in tags.items():
        v += bytes(-len(v) % 4)
        head += k + (at + len(body)).to_bytes(4) + len(v).to_bytes(4)
        body += v
    size = (at + len(body)).to_bytes(4)
    top = size + b'none' + b'\x02\x10\0\0' + b'mntrRGB XYZ ' + bytes(12) + b'acsp' + bytes(28) + fixed(D50)
    return top + bytes(128 - len(top)) + head + body, M

wide = dict(adobe=([(.64,.33),(.21,.71),(.15,.06)], 2.2), p3=([(.68,.32),(.265,.69),(.15,.06)], 2.2),
            rec2020=([(.708,.292),(.170,.797),(.131,.046)], 2.4))

def in_profile(rgb, M, gamma, srgb):
    "The photo's numbers in another space"
    c = rgb/255.
    light = np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4)
    return np.round(255*np.clip(light@(np.linalg.inv(M)@srgb).T, 0, 1)**(1/gamma)).astype(np.uint8)

@pytest.mark.parametrize('name', wide)
def test_profiles_become_srgb(name):
    primaries,gamma = wide[name]
    icc,M = profile(primaries, gamma)
    _,srgb = profile([(.64,.33),(.30,.60),(.15,.06)], 2.2)
    numbers = Image.fromarray(in_profile(portrait, M, gamma, srgb))
    cost = off(decode(saved(pil, 'JPEG', quality=90))[0], portrait)
    assert off(np.asarray(numbers), portrait) > 2
    for form,how in (('JPEG', dict(quality=90)), ('PNG', {}), ('WEBP', dict(lossless=True))):
        assert off(decode(saved(numbers, form, icc_profile=icc, **how))[0], portrait) < max(cost*1.5, 1), form
    veiled = numbers.copy()
    veiled.putalpha(255)
    assert off(decode(saved(veiled, 'PNG', icc_profile=icc))[0], portrait) < 1

def test_a_profile_of_srgb_changes_nothing():
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    body = saved(pil, 'JPEG', quality=90)
    for profile_of in (icc, b'no profile at all'):
        assert np.array_equal(decode(saved(pil, 'JPEG', quality=90, icc_profile=profile_of))[0], decode(body)[0])

def test_orientation_comes_from_exif_only():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
    for form in ('JPEG','PNG','WEBP'):
        assert off(decode(saved(pil, form, xmp=xmp))[0], portrait) < 12
    for tag in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        body = saved(pil, 'JPEG', exif=exif, xmp=xmp, quality=95)
        want = Image.open(io.BytesIO(saved(pil, 'JPEG', exif=exif, quality=95)))
        assert np.array_equal(decode(body)[0], np.asarray(ImageOps.exif_transpose(want)))

@pytest.mark.parametrize('form', ['GIF','WEBP','PNG','AVIF'])
@pytest.mark.parametrize('first', ['black','white','grey','clear'])
def test_a_blank_first_frame_is_passed_over(form, first):
    if form == 'AVIF' and not features.check('avif'):
        pytest.skip('Pillow without AVIF')
    blank = Image.new('RGBA', pil.size, (0,0,0,0)) if first == 'clear' else Image.new('RGB', pil.size, first)
    frames = [pil.convert(blank.mode)]*2
    body = saved(blank, form, save_all=True, append_images=[blank, *frames], duration=[50,60,70,80])
    assert off(decode(body)[0], portrait) < 15
    only = saved(blank, form, save_all=True, append_images=[blank], duration=[50,60])
    assert decode(only)[0].std() < 1

def test_plain_jpegs_stay_quick():
    body = cv2.imencode('.jpg', cv2.resize(portrait, (1600,1600)))[1].tobytes()
    def best(f):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return min(times)
    bare = best(lambda: cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB))
    assert best(lambda: decode(body)) < 3*bare + .05
