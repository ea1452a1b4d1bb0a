"""Who is on a photo: cost of age, gender and identity, and how well they are told of drawn people.

Photos that were drawn are kept in `runs/bench/who`, so a run that was cut off goes on from there. `WHO_PEOPLE` is the
number of people, 300 by default, with four photos each.
"""
import os
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from skimage import data as pictures

from pttface.dataset import article_links, people_pairs, split_articles
from pttface.evaluation.people import embed_crops, rephotograph
from pttface.storage.files import content_hash, read_npz, write_npz
from pttface.synthetic.heads import draw_heads, random_look
from pttface.synthetic.people import OLDEST, YOUNGEST, aged, gender_of
from pttface.synthetic.photos import drawing_code
from pttface.vision.attributes import Attributes
from pttface.vision.detectors import load_detector
from pttface.vision.identity import Identity, find_identity

top = Path(__file__).resolve().parent.parent


def equal_error(same, other):
    "The threshold at which as large a share of pairs of one person is missed as of others is taken for one, and it."
    limits = np.unique(np.r_[same, np.quantile(other, np.linspace(0, 1, 2001))])
    missed = 1 - np.searchsorted(np.sort(same), limits, 'right')/len(same)
    taken = np.searchsorted(np.sort(other), limits, 'left')/len(other)
    best = int(np.abs(missed - taken).argmin())
    return float(limits[best]), float(missed[best] + taken[best])/2


def draw_photos(specs, part=100):
    "The heads that were asked for, (N,H,W,3) uint8; each part of them is kept for the next run."
    ims = []
    for i in range(0, len(specs), part):
        some = specs[i:i+part]
        path = top/f'runs/bench/who/{content_hash(drawing_code(), some)}.npz'
        if not path.exists():
            write_npz(path, ims=np.stack([h.im for h in draw_heads(some, progress=False)]))
        ims.append(read_npz(path)['ims'])
    return np.concatenate(ims)


def photos_of_people(people, photos):
    "Drawn photos of people of all ages, each in other poses and light, with the face found, and who it is; their looks"
    looks, detect, out = [], load_detector(), []
    for i in range(people):
        rng = np.random.default_rng([7, i])
        looks.append(aged(random_look(rng), round(float(rng.uniform(YOUNGEST, OLDEST)), 1)))
    specs = [dict(seed=10_000 + i*photos + j, look=look, size=(150, 120)) for i, look in enumerate(looks)
             for j in range(photos)]
    for k, im in enumerate(draw_photos(specs)):
        found = detect(im)
        if found and found[0].has_landmarks:
            out.append((im, found[0], k//photos))
    return out, looks


def milliseconds(f, pairs):
    "CPU milliseconds of `f(pairs)` for each pair, on one thread."
    f(pairs[:2])
    start = time.process_time()
    f(pairs)
    return 1e3*(time.process_time() - start)/len(pairs)


def leak(person, articles, pairs):
    "Share of the people held out who are trained on too."
    names, links = article_links([dict(key=str(i), article=a) for i, a in enumerate(articles)], pairs)
    by_article = split_articles(links, .1)
    side = np.array([by_article[a] for a in names])
    held = set(person[side == 1])
    return len(set(person[side == 0]) & held)/max(len(held), 1), len(held)


def told_of_drawings(told, looks):
    "Rows: what the networks say of people whose age and gender were drawn"
    ages, genders = np.array([a for a, _ in told], float), [g for _, g in told]
    truth = np.array([look['age'] for look in looks])
    said = [(g, gender_of(look)) for g, look in zip(genders, looks) if g is not None]
    right = [float(np.mean([g == t for g, t in said if t == k])) for k in (0, 1) if any(t == k for _, t in said)]
    n = len(told)
    return [dict(what='age of drawn people, rank correlation with the truth', value=spearmanr(ages, truth)[0], n=n),
            dict(what='age of drawn people, mean error', value=float(np.abs(ages - truth).mean()), unit='years', n=n),
            dict(what='gender of drawn people, told at all', value=100*len(said)/n, unit='%', n=n),
            dict(what='gender of drawn people, right where told', value=100*np.mean(right), unit='%', n=len(said))]


def real_photos():
    "The astronaut of scikit-image, and the six people of InsightFace's own example where that is installed"
    photos, spec = [pictures.astronaut()], find_spec('insightface')
    example = Path(spec.submodule_search_locations[0])/'data/images/t1.jpg' if spec else None
    if example and example.exists():
        photos.append(cv2.imread(str(example))[..., ::-1].copy())
    return photos


def real_faces(identity):
    "Rows: how far apart the faces of real people are, and one face from itself photographed again"
    detect, photos = load_detector(), real_photos()
    pairs = [(im, f) for im in photos for f in detect(im) if f.has_landmarks and f.score > .99]
    x1, y1, x2, y2 = pairs[0][1].bbox
    side, middle = 1.6*max(x2 - x1, y2 - y1), ((x1 + x2)/2, (y1 + y2)/2)
    square = cv2.getRectSubPix(photos[0], (round(side),)*2, middle)
    again = rephotograph(cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA)[None])
    apart = {k: float(cdist(embed_crops(o, identity, detect)[0], identity.embed(pairs[:1])).min())
             for k, o in again.items()}
    rows = [dict(what='a real face from itself at 64 px, all changes at once', value=apart.pop('all of it'), n=1),
            dict(what='the same, the largest of one change', value=max(apart.values()), n=len(apart))]
    if len(pairs) > 1:
        d = cdist(*[identity.embed(pairs)]*2)[np.triu_indices(len(pairs), 1)]
        rows.append(dict(what='two real people, smallest distance', value=float(d.min()), n=len(d)))
    return rows


def bench(smoke=False):
    "Rows of figures; identity where PTTFACE_IDENTITY_MODEL names dlib's network as an ONNX file."
    cv2.setNumThreads(1)
    found, looks = photos_of_people(*((4, 2) if smoke else (int(os.environ.get('WHO_PEOPLE', 300)), 4)))
    pairs, person = [(im, f) for im, f, _ in found], np.array([k for *_, k in found])
    some, attributes, detect = pairs[:100], Attributes(), load_detector()
    cost = milliseconds(attributes.describe, some)
    look = milliseconds(lambda o: [detect(im) for im, _ in o], some)
    rows = [dict(what='finding the face, a photo of 120 × 150 px', value=look, unit='ms', n=len(some)),
            dict(what='age and gender, a face and core', value=cost, unit='ms', n=len(some))]
    rows += told_of_drawings(attributes.describe(pairs), [looks[k] for k in person])
    if not os.environ.get('PTTFACE_IDENTITY_MODEL'):
        return rows
    identity = Identity(find_identity(os.environ['PTTFACE_IDENTITY_MODEL'], 'dlib'))
    cost = milliseconds(identity.embed, some)
    vectors = identity.embed(pairs)
    d, first = cdist(vectors, vectors), np.triu(np.ones((len(vectors),)*2, bool), 1)
    one = person[:, None] == person[None]
    limit, error = equal_error(d[first & one], d[first & ~one])
    strict = float(np.quantile(d[first & ~one], 1e-4))
    found_by = float((d[first & one] < strict).mean())
    n = len(found)
    rows += [dict(what='identity, a face and core', value=cost, unit='ms', n=len(some)),
             dict(what='identity of drawn people, equal error', value=100*error, unit='%', n=n),
             dict(what='distance at the equal error', value=limit, unit='', n=n),
             dict(what='distance that one in 10,000 pairs of strangers is below', value=strict, unit='', n=n),
             dict(what='pairs of one person below it', value=100*found_by, unit='%', n=n)]
    rows += real_faces(identity)
    articles = [f'https://www.ptt.cc/bbs/Beauty/M.{1704040000 + 60*i}.A.E87.html' for i in range(n)]
    keys, none = np.array([str(i) for i in range(n)]), np.zeros((0, 2), int)
    rows_of = [dict(key=k, article=a) for k, a in zip(keys.tolist(), articles)]
    truth = np.stack([np.arange(n - 1), np.arange(1, n)], 1)[person[1:] == person[:-1]]
    splits = {'by article': (none, 0), 'by true person': (truth, 0)}
    for name, t in dict(strict=strict, equal=limit).items():
        splits[f'by person, {name} distance'] = people_pairs(
            rows_of, none, dict(key=keys, vectors=vectors, network=dict(threshold=t)))
    for name, (linked, refused) in splits.items():
        share, held = leak(person, articles, linked)
        rows.append(dict(what=f'held-out people also trained on, split {name}', value=100*share, unit='%', n=held))
        if refused:
            rows.append(dict(what=f'links refused, split {name}', value=refused, unit='links', n=n))
    return rows
