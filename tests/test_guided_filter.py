"""The guided filter against brute force."""
import numpy as np
from scipy import ndimage

from cmr.guided_filter import FLAT, guided
from test_sampler import REFERENCE


def test_guided_filter_is_a_weighted_least_squares_fit_in_every_window():
    """Brute force: each window's line by its normal equations, then the mean of the lines over a pixel's own window."""
    guide, image = REFERENCE[0, :8, :8].astype(float), REFERENCE[1, :8, :8].astype(float)
    impulses = np.eye(64).reshape(64, 8, 8)
    # (pixel, what it sees)
    weights = np.stack([ndimage.gaussian_filter(impulse, 1.5, mode="nearest").ravel() for impulse in impulses], 1)
    lines = []
    for w in weights:
        a = np.array(
            [[np.sum(w * guide.ravel() ** 2) + FLAT, np.sum(w * guide.ravel())], [np.sum(w * guide.ravel()), 1]]
        )
        lines.append(np.linalg.solve(a, [np.sum(w * guide.ravel() * image.ravel()), np.sum(w * image.ravel())]))
    slope, offset = (weights @ np.array(lines)).T
    expected = (slope * guide.ravel() + offset).clip(-1, 1)
    assert np.abs(guided(guide[None], image[None], 1.5).ravel() - expected).max() < 1e-5
