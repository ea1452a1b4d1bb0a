"Drawn people: ages, genders and covered faces are true of the drawing, and a board may post people again."
import numpy as np
import pytest

from pttface.storage.files import BadInput
from pttface.synthetic.board import make_board
from pttface.synthetic.heads import draw_head, random_look
from pttface.synthetic.people import COVERS, aged, covered, gender_of

SMALL = dict(size=(96, 80), yaw=0., pitch=0., roll=0., scale=.7, centre=(.5, .5))


def look(seed=4, **kw):
    return random_look(np.random.default_rng(seed)) | dict(glasses=0, hat=0) | kw


def inside(head, low, high):
    "The pixels of a drawn face between two heights, in distances between the eyes below these."
    eyes = head.kps[:2].mean(0)
    d = np.linalg.norm(head.kps[1] - head.kps[0])
    y = (eyes[1] + d*np.array([low, high])).round().astype(int)
    x = (eyes[0] + d*np.array([-.5, .5])).round().astype(int)
    return head.im[y[0]:y[1], x[0]:x[1]].astype(float)


def test_hair_greys_and_folds_come_with_age():
    young, old = (draw_head(9, look=aged(look(hair=[40., 30., 26.]), a), **SMALL) for a in (20, 80))
    assert old.im.mean() > young.im.mean() + 5, 'black hair turns grey'
    assert np.allclose(young.kps, old.kps, atol=.01)
    folds = [aged(look(), a)['folds'] for a in (20, 40, 60, 80)]
    assert folds == sorted(folds) and folds[0] == 0 and folds[-1] == 1


@pytest.mark.parametrize('age', [0, 19.9, 81, float('nan')])
def test_an_age_that_cannot_be_drawn(age):
    with pytest.raises(BadInput, match='20 to 80 can'):
        aged(look(), age)


@pytest.mark.parametrize('cover,place', [('sunglasses', (-.25, .25)), ('mask', (.8, 1.2)), ('hand', (.8, 1.1))])
def test_a_cover_is_where_it_should_be_and_changes_nothing_else(cover, place):
    bare, over = draw_head(9, look=look(), **SMALL), draw_head(9, look=covered(look(), cover), **SMALL)
    assert np.array_equal(bare.kps, over.kps) and np.array_equal(bare.bbox, over.bbox)
    assert np.abs(inside(bare, *place) - inside(over, *place)).mean() > 12
    far = np.abs(bare.im[:8].astype(float) - over.im[:8]).mean()
    assert far < 2, 'what is above the head stays as it was'


def test_a_cover_that_there_is_not():
    with pytest.raises(BadInput, match='scarf'):
        covered(look(), 'scarf')


def test_gender_is_that_of_the_drawing():
    looks = [random_look(np.random.default_rng(i)) for i in range(200)]
    males = [o for o in looks if gender_of(o)]
    assert 10 < len(males) < 100 and min(o['jaw_w'] for o in males) > 1
    assert not any(o['stubble'] for o in looks if not gender_of(o))


@pytest.fixture(scope='module')
def crowd():
    return make_board(600, people=25, covers=.2, workers=1)


def test_everybody_is_posted_again(crowd):
    articles = {}
    for i in np.flatnonzero(np.diff(crowd.start)):
        articles.setdefault(crowd.person_of(int(i)), set()).add(int(i))
    assert len(articles) == 25 and min(map(len, articles.values())) >= 2
    truths = [crowd.photo_truth(k) for k in range(600)]
    known = [t for t in truths if 'person' in t]
    assert len(known) > 500 and not any('person' in t for t in truths if t['kind'] == 'none')
    for person in range(25):
        mine = [t for t in known if t['person'] == person]
        assert len({(t['age'], t['gender']) for t in mine}) == 1
    share = np.mean([t['cover'] is not None for t in known])
    assert .12 < share < .28 and {t['cover'] for t in known} == {None, *COVERS}
    assert 20 <= min(t['age'] for t in known) and max(t['age'] for t in known) <= 80


def test_copies_show_who_the_original_shows(crowd):
    copies = [p for p in map(crowd.photo, range(600)) if p.of is not None]
    assert copies and all(p.look == crowd.photo(p.of).look for p in copies)


def test_a_board_without_people_is_what_it_was(crowd):
    plain = make_board(600, workers=1, optouts=3)
    assert all(plain.photo(k).look is None for k in range(plain.n_photos))
    other = make_board(600, workers=1, optouts=3, people=25)
    assert other.n_photos == plain.n_photos and np.array_equal(other.photo_kind, plain.photo_kind)
    assert all(vars(plain.photo(k)) == vars(other.photo(k)) | dict(look=None) for k in range(plain.n_photos))
    assert not any('person' in plain.photo_truth(k) for k in range(50))


@pytest.mark.parametrize('kw', [dict(people=-1), dict(covers=.5), dict(people=3, covers=1.5)])
def test_people_that_no_board_can_have(kw):
    with pytest.raises(BadInput, match='covers is a share'):
        make_board(60, **kw)


def test_more_people_than_can_be_posted_twice():
    with pytest.raises(BadInput, match='articles show photos, so'):
        make_board(60, people=20)


def test_photos_of_one_person_differ(crowd):
    ks = [k for k in range(600) if crowd.photo_kind[k] == 'head' and crowd.photo(k).look['person'] == 3][:2]
    a, b = (crowd.photo(k) for k in ks)
    assert a.seed != b.seed and {k: v for k, v in a.look.items() if k not in ('cover', 'glasses')} == {
        k: v for k, v in b.look.items() if k not in ('cover', 'glasses')}
