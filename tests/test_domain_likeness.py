"""Which domain a volume looks like."""
import numpy as np
from scipy import ndimage

from cmr.domain_likeness import SourceClassifier, SourceLook
from cmr.seeds import rng


def volume(seed=0):
    g = rng("volume", seed)
    return np.clip(ndimage.gaussian_filter(g.standard_normal((6, 32, 32)), (0, 2, 2)) * 4, -1, 1).astype(np.float32)


def test_likeness_grows_with_the_change():
    source = [volume(i) for i in range(12)]
    likeness = SourceLook.of(source)
    own, noisy = volume(99), np.clip(volume(99) + 0.5 * rng("noise").standard_normal((6, 32, 32)), -1, 1)
    assert likeness.distance(own) < 2 < likeness.distance(noisy)
    assert likeness.distance(own ** 3) > likeness.distance(own)


def test_the_classifier_tells_a_changed_look_and_gives_it_back():
    g = np.random.default_rng(0)
    volume = lambda: np.clip(ndimage.gaussian_filter(g.standard_normal((4, 32, 32)), (0, 2, 2)) * 3, -1, 1)
    blurred = lambda x: ndimage.gaussian_filter(x, (0, 1.5, 1.5))
    classifier = SourceClassifier.fit([volume() for _ in range(20)], [blurred(volume()) for _ in range(5)])
    fresh = [volume() for _ in range(10)]
    assert all(classifier.probability(x) > 0.9 for x in fresh)
    assert all(classifier.probability(blurred(x)) < 0.1 for x in fresh)
