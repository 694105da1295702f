"""Intensity matching, what FDA swaps, and random changes of look: what they change, and what they leave in place."""
import numpy as np
import pytest
from test_audit import volume
from test_sampler import RNG

from cmr.look import (
    fda, field_of_view, intensity_statistics, match_mean_std, match_quantiles, padded_as, random_shift)
from cmr.seeds import rng


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


@pytest.mark.parametrize("size,spacing_mm,half", [(64, 2.5, 1), (128, 1.5, 1), (128, 2.5, 2), (16, 2.5, 1)])
def test_fda_swaps_the_amplitudes_of_the_same_wavelengths_in_mm_on_every_grid(size, spacing_mm, half):
    image, style = RNG.normal(0.1, 0.05, (2, size, size))
    assert np.abs(fda(image, image, spacing_mm) - image).max() < 1e-5
    of_image, of_style, found = (np.fft.fftshift(np.fft.fft2(x)) for x in (image, style, fda(image, style, spacing_mm)))
    swapped = np.zeros((size, size), bool)
    swapped[size // 2 - half:size // 2 + half + 1, size // 2 - half:size // 2 + half + 1] = True
    expected = np.where(swapped, np.abs(of_style), np.abs(of_image)) * np.exp(1j * np.angle(of_image))
    assert np.abs(found - expected).max() < 1e-3


def test_padding_stays_and_nothing_is_matched_by_it():
    """An nnU-Net crops what is -1 around the image; were it moved, the box and the z-score would be others."""
    seen = np.clip(rng("seen").standard_normal((3, 20, 20)) * 0.3, -0.99, 1).astype(np.float32)
    padded = np.pad(seen, ((0, 0), (6, 6), (4, 8)), constant_values=-1)
    inside = np.s_[:, 6:-6, 4:-8]
    quantiles = np.linspace(-0.5, 0.9, 257)
    for change in (lambda image: match_mean_std(image, 0.2, 0.1), lambda image: match_quantiles(image, quantiles)):
        assert np.array_equal(change(padded)[inside], change(seen))
        assert (padded_as(padded, change(padded)) == change(padded)).all() and change(padded)[0, 0, 0] == -1
    assert field_of_view(padded_as(padded, fda(padded[0], padded[1], 2.5)[None].repeat(3, 0))) == field_of_view(padded)
    changed = random_shift(padded, 2.5, rng("shift"))
    assert field_of_view(changed) == field_of_view(padded) == inside_as_slices(seen.shape)
    of_padded, of_seen = (intensity_statistics([image])[1:] for image in (padded, seen))
    assert list(map(float, of_padded)) == list(map(float, of_seen))


def inside_as_slices(shape):
    return slice(0, shape[0]), slice(6, 6 + shape[1]), slice(4, 4 + shape[2])


def test_a_shift_is_a_change_of_look_and_the_same_key_is_the_same_change():
    x = volume()
    shifted = random_shift(x, 2.5, rng("shift", 1))
    assert shifted.shape == x.shape and shifted.dtype == np.float32 and shifted.min() == -1 and shifted.max() == 1
    assert np.abs(shifted - x).mean() > 0.05
    assert np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 1)))
    assert not np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 2)))
    # scaling to the percentiles is all that is left
    assert np.abs(random_shift(x, 2.5, rng("shift", 1), amount=0.0) - x).mean() < 0.02
    inside = (slice(None), slice(4, -4), slice(4, -4))
    for k in range(8):  # the structure stays where it is
        assert np.corrcoef(x[inside].ravel(), random_shift(x, 2.5, rng("place", k))[inside].ravel())[0, 1] > 0.6
