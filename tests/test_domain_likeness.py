"""Which domain an image looks like."""
import numpy as np
from scipy import ndimage

from cmr.domain_likeness import SourceClassifier
from cmr.seeds import rng


def volume(seed=0):
    g = rng("volume", seed)
    return np.clip(ndimage.gaussian_filter(g.standard_normal((6, 32, 32)), (0, 2, 2)) * 4, -1, 1).astype(np.float32)


def volumes(seed, n, blur=(2, 2), edge=40):
    """n volumes (4, edge, edge) of coloured noise, blurred along rows and columns."""
    g = rng("volumes", seed)
    drawn = [ndimage.gaussian_filter(g.standard_normal((4, edge, edge)), (0, *blur)) for _ in range(n)]
    return [np.clip(x / x.std() / 2, -1, 1).astype(np.float32) for x in drawn]


def taken_for_the_source(classifier, asked):
    return np.array([classifier.probability(image) for image in asked])


def test_two_looks_are_told_apart_on_volumes_that_were_held_out():
    """A few volumes against many: both looks are shown equally often."""
    classifier = SourceClassifier.fit(volumes(0, 20), volumes(1, 4, blur=(3, 3)))
    assert (taken_for_the_source(classifier, volumes(2, 8)) > 0.5).all()
    assert (taken_for_the_source(classifier, volumes(3, 8, blur=(3, 3))) < 0.5).all()


def test_a_domain_is_not_told_from_itself_and_an_answer_is_a_function_of_images_and_seed(monkeypatch):
    source, others, fresh = (volumes(seed, n) for seed, n in ((0, 20), (1, 20), (2, 6)))
    asked = taken_for_the_source(SourceClassifier.fit(source, others), fresh)
    assert 0.4 < asked.mean() < 0.6 and asked.std() < 0.1
    monkeypatch.setattr("cmr.domain_likeness.STEPS", 3)
    short, again, other = (taken_for_the_source(SourceClassifier.fit(source, others, seed), fresh) for seed in (0, 0, 1))
    assert np.array_equal(short, again) and not np.array_equal(short, other)


def test_neither_orientation_nor_position_is_a_look():
    lying, upright = volumes(0, 10, blur=(1, 3)), volumes(1, 10, blur=(3, 1))
    asked = taken_for_the_source(SourceClassifier.fit(lying, upright), volumes(2, 6, blur=(1, 3)))
    assert 0.4 < asked.mean() < 0.6
    above, below = ([np.where(np.arange(40)[:, None] < 20, x if up else -1, -1 if up else x)
                     for x in volumes(seed, 10)] for seed, up in ((3, True), (4, False)))
    asked = taken_for_the_source(SourceClassifier.fit(above, below), above[:6])
    assert 0.4 < asked.mean() < 0.6
