"""Labels from scores."""
import numpy as np

from cmr.labels import labels_of


def test_labels_are_the_largest_score_and_of_equals_the_first():
    scores = np.random.default_rng(1).integers(0, 4, (4, 5, 6, 7)).astype(np.float32)                   # many ties
    assert (labels_of(scores) == scores.argmax(0)).all() and labels_of(scores).dtype == np.uint8
    assert (labels_of(np.zeros((4, 3))) == 0).all()
