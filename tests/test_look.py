"""Changes of look: what they change, and what they leave in place."""
import numpy as np

from cmr.look import random_shift
from cmr.seeds import rng
from test_domain_likeness import volume


def test_a_shift_is_a_change_of_look_and_the_same_key_is_the_same_change():
    x = volume()
    shifted = random_shift(x, 2.5, rng("shift", 1))
    assert shifted.shape == x.shape and shifted.dtype == np.float32 and shifted.min() == -1 and shifted.max() == 1
    assert np.abs(shifted - x).mean() > 0.05
    assert np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 1)))
    assert not np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 2)))
    # scaling to the percentiles is all that is left
    assert np.abs(random_shift(x, 2.5, rng("shift", 1), strength=0.0) - x).mean() < 0.02
    inside = (slice(None), slice(4, -4), slice(4, -4))
    for k in range(8):  # the structure stays where it is
        assert np.corrcoef(x[inside].ravel(), random_shift(x, 2.5, rng("place", k))[inside].ravel())[0, 1] > 0.6
