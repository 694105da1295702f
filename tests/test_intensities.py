"""Intensity matching, and what FDA swaps."""
import numpy as np
import pytest

from cmr.intensities import fda, intensity_statistics, match_mean_std, match_quantiles
from test_sampler import REFERENCE, RNG


def test_intensity_matching():
    source = np.clip(RNG.normal(-0.3, 0.3, (6, 20, 20)), -1, 1)
    quantiles, mean, std = intensity_statistics([source])
    volume = np.clip(RNG.normal(0.2, 0.15, (6, 20, 20)), -1, 1)
    linear = match_mean_std(volume, mean, std)
    assert linear.mean() == pytest.approx(mean, abs=0.01) and linear.std() == pytest.approx(std, abs=0.02)
    matched = match_quantiles(volume, quantiles)
    assert np.quantile(matched, [.1, .5, .9]) == pytest.approx(np.quantile(source, [.1, .5, .9]), abs=0.01)
    order = np.argsort(volume.ravel())
    assert (np.diff(matched.ravel()[order]) >= -1e-6).all()       # monotone: no tissue changes places


def test_fda_swaps_low_frequency_amplitudes_alone():
    image, style = REFERENCE[0] * 0.5, REFERENCE[1] * 0.5
    assert np.abs(fda(image, image) - image).max() < 1e-5
    # amplitude of style, sign (phase) of image
    assert fda(image, style).mean() == pytest.approx(abs(style.mean()) * np.sign(image.mean()), abs=1e-5)
