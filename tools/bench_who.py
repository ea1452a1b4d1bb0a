"Who is on a photo: cost of age, gender and identity, and how well drawn people are told apart."
import os
import time

import cv2
import numpy as np
from scipy.spatial.distance import cdist

from pttface.dataset import article_links, people_pairs, split_articles
from pttface.synthetic.heads import draw_heads, random_look
from pttface.vision.attributes import Attributes
from pttface.vision.detectors import load_detector
from pttface.vision.identity import Identity, find_identity


def equal_error(same, other):
    "The threshold at which as large a share of pairs of one person is missed as of others is taken for one, and it."
    limits = np.unique(np.r_[same, np.quantile(other, np.linspace(0, 1, 2001))])
    missed = 1 - np.searchsorted(np.sort(same), limits, 'right')/len(same)
    taken = np.searchsorted(np.sort(other), limits, 'left')/len(other)
    best = int(np.abs(missed - taken).argmin())
    return float(limits[best]), float(missed[best] + taken[best])/2


def photos_of_people(people, photos):
    "Drawn photos of the same people in other poses and light, with the face of each, and who it is."
    looks = [random_look(np.random.default_rng([7, i])) for i in range(people)]
    specs = [dict(seed=10_000 + i*photos + j, look=look, size=(150, 120)) for i, look in enumerate(looks)
             for j in range(photos)]
    heads, detect, out = draw_heads(specs, progress=False), load_detector(), []
    for k, h in enumerate(heads):
        found = detect(h.im)
        if found and found[0].has_landmarks:
            out.append((h.im, found[0], k//photos))
    return out


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


def bench(smoke=False):
    "Rows of figures; identity where PTTFACE_IDENTITY_MODEL names dlib's network as an ONNX file."
    cv2.setNumThreads(1)
    found = photos_of_people(*((4, 2) if smoke else (300, 4)))
    pairs, person = [(im, f) for im, f, _ in found], np.array([k for *_, k in found])
    cost = milliseconds(Attributes().describe, pairs[:100])
    rows = [dict(what='age and gender, a face and core', value=cost, unit='ms', n=len(pairs[:100]))]
    if not os.environ.get('PTTFACE_IDENTITY_MODEL'):
        return rows
    identity = Identity(find_identity(os.environ['PTTFACE_IDENTITY_MODEL'], 'dlib'))
    cost = milliseconds(identity.embed, pairs[:100])
    vectors = identity.embed(pairs)
    d, first = cdist(vectors, vectors), np.triu(np.ones((len(vectors),)*2, bool), 1)
    one = person[:, None] == person[None]
    limit, error = equal_error(d[first & one], d[first & ~one])
    strict = float(np.quantile(d[first & ~one], 1e-4))
    found_by = float((d[first & one] < strict).mean())
    n = len(found)
    rows += [dict(what='identity, a face and core', value=cost, unit='ms', n=len(pairs[:100])),
             dict(what='identity of drawn people, equal error', value=100*error, unit='%', n=n),
             dict(what='distance at the equal error', value=limit, unit='', n=n),
             dict(what='distance that one in 10,000 pairs of strangers is below', value=strict, unit='', n=n),
             dict(what='pairs of one person below it', value=100*found_by, unit='%', n=n)]
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
