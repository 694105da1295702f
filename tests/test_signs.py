"""The label-free signs."""
import numpy as np

from cmr.prediction import softmax
from cmr.signs import fragments, hesitation


def test_a_collapse_is_no_confidence():
    empty, whole = np.zeros((4, 4, 16, 16), np.float32), np.zeros((4, 4, 16, 16), np.float32)
    empty[0] = 20.0  # surely background everywhere
    whole[0] = 5.0
    whole[1, :, 4:10, 4:10] = 10.0
    entropy = lambda logits: hesitation(softmax(logits))
    assert entropy(empty) > entropy(whole) and fragments(empty.argmax(0)) == 1 and fragments(whole.argmax(0)) == 0
    shattered = whole.argmax(0).copy()
    shattered[:, 13, 13] = 1
    assert 0 < fragments(shattered) < 0.1
