"""What the competitors without diffusion change."""
import numpy as np
import pytest
import torch

from cmr.bands import Band, band_mask
from cmr.baselines import fda, low_pass_swap
from test_sampler import REFERENCE


def test_cheap_baselines_swap_only_what_they_say():
    image, style = REFERENCE[0] * 0.5, REFERENCE[1] * 0.5
    assert np.abs(fda(image, image) - image).max() < 1e-5
    assert np.abs(low_pass_swap(image, image, 2.5) - image).max() < 1e-6
    swapped = low_pass_swap(image, style, 2.5, shortest_mm=20.0)
    phi = Band(band_mask(16, 16, 2.5, 20.0))
    low = lambda x: phi(torch.from_numpy(np.array(x, np.float64))).numpy()
    assert np.abs(low(swapped) - low(style)).max() < 1e-5
    assert np.abs((swapped - low(swapped)) - (image - low(image))).max() < 1e-5
    # amplitude of style, sign (phase) of image
    assert fda(image, style).mean() == pytest.approx(abs(style.mean()) * np.sign(image.mean()), abs=1e-5)
