"""The audit finds what was done to an image."""
import numpy as np
import pytest
from scipy import ndimage

from cmr.audit import SourceClassifier, boundary_displacement_mm, mean_dice, mean_hd95_mm, memorisation, still_fits, through_plane_correlation


def heart():
    rng = np.random.default_rng(0)
    z, y, x = np.indices((2, 64, 64))
    mask = (np.hypot(x - 32, y - 32) < 12).astype(np.uint8) + (np.hypot(x - 32, y - 32) < 8)
    return ndimage.gaussian_filter(mask * 0.5 + 0.05 * rng.standard_normal(mask.shape), (0, 0.7, 0.7)).astype(np.float32), mask.astype(np.uint8)


def test_displacement_finds_a_known_shift():
    image, mask = heart()
    assert boundary_displacement_mm(image, image, mask, 2.5) == (0.0, 0.0)
    assert boundary_displacement_mm(image, 0.3 - 0.5 * image, mask, 2.5) == (0.0, 0.0)            # contrast is no displacement
    median, p95 = boundary_displacement_mm(image, np.roll(image, (2, 1), (1, 2)), mask, 2.5)
    assert abs(median - 2.5 * 5 ** 0.5) < 1e-6 and abs(p95 - median) < 1e-6
    assert np.isnan(boundary_displacement_mm(image, image, 0 * mask, 2.5)).all()


def test_mean_dice_is_over_the_structures_of_the_mask():
    _, mask = heart()
    assert mean_dice(mask, mask) == 1.0 and mean_dice(0 * mask, mask) == 0.0 and np.isnan(mean_dice(mask, 0 * mask))
    assert abs(mean_dice(np.where(mask == 2, 0, mask), mask) - 0.5) < 1e-12


def test_through_plane_correlation_sees_unrelated_slices():
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((1, 32, 32)), rng.standard_normal((8, 32, 32))
    assert abs(through_plane_correlation(np.repeat(common, 8, 0)) - 1) < 1e-9 and abs(through_plane_correlation(own)) < 0.05
    assert abs(through_plane_correlation(common + own) - 0.5) < 0.05 and np.isnan(through_plane_correlation(common))
    assert abs(through_plane_correlation(np.stack([0 * common[0], common[0], -common[0]])) + 1) < 1e-9            # a constant slice has no correlation


def test_a_pair_is_excluded_for_a_moved_boundary_or_a_lost_heart():
    assert still_fits(2.5, -0.2, 2.5) and not still_fits(3.5, 0.0, 2.5) and not still_fits(0.0, -0.3, 2.5) and still_fits(float("nan"), float("nan"), 2.5)


def test_memorisation_tells_copies_from_new_images():
    slices = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((90, 64, 64)), (0, 4, 4)) * 5
    training, held_out, new = slices[:40], slices[40:80], slices[80:]
    copies = np.roll(training[::4], (2, -2), (1, 2)) * 0.8 + 0.1                                   # moved by a pixel of the small image, other contrast
    assert (memorisation(copies, training, held_out) < 0.5).all() and np.abs(memorisation(new, training, held_out) - 1).max() < 0.35
    assert np.isnan(memorisation(new, training, [])).all()


def test_the_classifier_tells_a_changed_look_and_gives_it_back():
    g = np.random.default_rng(0)
    volume = lambda: np.clip(ndimage.gaussian_filter(g.standard_normal((4, 32, 32)), (0, 2, 2)) * 3, -1, 1)
    blurred = lambda x: ndimage.gaussian_filter(x, (0, 1.5, 1.5))
    classifier = SourceClassifier.fit([volume() for _ in range(20)], [blurred(volume()) for _ in range(5)])
    fresh = [volume() for _ in range(10)]
    assert all(classifier.probability(x) > 0.9 for x in fresh) and all(classifier.probability(blurred(x)) < 0.1 for x in fresh)


def test_mean_hd95_counts_what_was_not_found_as_the_diagonal():
    mask = np.zeros((3, 16, 16), np.uint8)
    mask[:, 2:6, 2:6], mask[:, 8:12, 8:12] = 1, 3
    assert mean_hd95_mm(mask, mask, (10, 2.5, 2.5)) == 0
    found = np.where(mask == 3, 0, mask)
    assert mean_hd95_mm(found, mask, (10, 2.5, 2.5)) == pytest.approx((30 ** 2 + 40 ** 2 + 40 ** 2) ** 0.5 / 2)
