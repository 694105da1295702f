"""Whether a synthetic image still fits its mask."""
import numpy as np
from scipy import ndimage

from cmr.pair_audit import boundary_displacement_mm, still_fits, through_plane_correlation


def heart():
    rng = np.random.default_rng(0)
    z, y, x = np.indices((2, 64, 64))
    mask = (np.hypot(x - 32, y - 32) < 12).astype(np.uint8) + (np.hypot(x - 32, y - 32) < 8)
    noisy = mask * 0.5 + 0.05 * rng.standard_normal(mask.shape)
    return ndimage.gaussian_filter(noisy, (0, 0.7, 0.7)).astype(np.float32), mask.astype(np.uint8)


def test_displacement_finds_a_known_shift():
    image, mask = heart()
    assert boundary_displacement_mm(image, image, mask, 2.5) == (0.0, 0.0)
    assert boundary_displacement_mm(image, 0.3 - 0.5 * image, mask, 2.5) == (0.0, 0.0)  # contrast is no displacement
    median, p95 = boundary_displacement_mm(image, np.roll(image, (2, 1), (1, 2)), mask, 2.5)
    assert abs(median - 2.5 * 5 ** 0.5) < 1e-6 and abs(p95 - median) < 1e-6
    assert np.isnan(boundary_displacement_mm(image, image, 0 * mask, 2.5)).all()


def test_through_plane_correlation_sees_unrelated_slices():
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((1, 32, 32)), rng.standard_normal((8, 32, 32))
    assert abs(through_plane_correlation(np.repeat(common, 8, 0)) - 1) < 1e-9
    assert abs(through_plane_correlation(own)) < 0.05
    assert abs(through_plane_correlation(common + own) - 0.5) < 0.05 and np.isnan(through_plane_correlation(common))
    # a constant slice has no correlation
    assert abs(through_plane_correlation(np.stack([0 * common[0], common[0], -common[0]])) + 1) < 1e-9


def test_a_pair_is_excluded_for_a_moved_boundary_or_a_lost_heart():
    assert still_fits(2.5, -0.2, 2.5) and not still_fits(3.5, 0.0, 2.5) and not still_fits(0.0, -0.3, 2.5)
    assert still_fits(float("nan"), float("nan"), 2.5)
