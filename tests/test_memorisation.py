"""Copies of training slices are told from new images."""
import numpy as np
from scipy import ndimage

from cmr.memorisation import memorisation


def test_memorisation_tells_copies_from_new_images():
    slices = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((90, 64, 64)), (0, 4, 4)) * 5
    training, held_out, new = slices[:40], slices[40:80], slices[80:]
    copies = np.roll(training[::4], (2, -2), (1, 2)) * 0.8 + 0.1  # moved by a pixel of the small image, other contrast
    assert (memorisation(copies, training, held_out) < 0.5).all()
    assert np.abs(memorisation(new, training, held_out) - 1).max() < 0.35
    assert np.isnan(memorisation(new, training, [])).all()
