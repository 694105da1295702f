"""The working grid: orientation, the way there and back, intensities."""
import numpy as np
import pytest

from cmr.grid import (CANONICAL, Geometry, Grid, canonical, orientation, resample_to_original, resampler, stored,
                      to_original, to_working, working_affine)
from cmr.nifti import Nifti

GRID = Grid(1.5, 128)


def discs(shape=(8, 200, 190), spacing=(10, 1.2, 1.2)):
    """(image, label) (D, H, W) with an LV, a ring and an RV of clinical size."""
    z, y, x = np.indices(shape, dtype=np.float32)
    y, x = (y - shape[1] / 2) * spacing[1], (x - shape[2] / 2) * spacing[2]
    label = np.zeros(shape, np.uint8)
    label[np.hypot((x + 40) / 22, y / 34) < 1] = 3
    label[np.hypot(x, y) < 33] = 2
    label[np.hypot(x, y) < 24] = 1
    label[[0, -1]] = 0
    return (label * 90 + 20 + 5 * np.sin(x / 7)).astype(np.float32), label


def store(array, transposed, flips, spacing_xyz=(1.2, 1.2, 10)):
    """Canonical (D, H, W) to stored (X, Y, Z) with an affine that says so: all sixteen ways."""
    a = array.transpose(1, 2, 0) if transposed else array.transpose(2, 1, 0)
    columns = [CANONICAL[:, 1], CANONICAL[:, 0], CANONICAL[:, 2]] if transposed else list(CANONICAL.T)
    for axis, flip in enumerate(flips):
        if flip:
            a, columns[axis] = np.flip(a, axis), -columns[axis]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, 1) * spacing_xyz
    return a, affine


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_every_way_of_storing_gives_the_same_working_volume_and_the_way_back(transposed, flips):
    image, label = discs()
    plain = to_working(*_nifti(image, False, (0, 0, 0)), GRID, store(label, False, (0, 0, 0))[0])
    turned_image, nifti = _nifti(image, transposed, flips)
    turned_label = store(label, transposed, flips)[0]
    working, working_label, geometry = to_working(turned_image, nifti, GRID, turned_label)
    assert np.allclose(working, plain[0], atol=1e-5) and (working_label == plain[1]).all()
    shares = (working_label[None] == np.arange(4)[:, None, None, None]).astype(np.float32)
    back = to_original(shares, geometry)
    assert back.shape == turned_label.shape
    for value, bound in ((1, 0.97), (3, 0.97), (2, 0.93)):
        a, b = back == value, turned_label == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= bound


def _nifti(image, transposed, flips):
    a, affine = store(image, transposed, flips)
    return a, Nifti("", a, affine, (1.2, 1.2, 10.0), ())


def test_canonical_and_stored_are_inverse():
    a = np.random.default_rng(0).random((5, 6, 7))
    for transposed in (False, True):
        for flips in ((False, False, False), (True, False, True), (True, True, True)):
            g = Geometry((5, 6, 7), (), (1, 1, 10), transposed, flips, True, 0, 1, (1.5, 8))
            assert (stored(canonical(a, g), g) == a).all()


def test_resampling_changes_nothing_where_nothing_is_asked_and_averages_where_it_gets_coarser():
    assert np.array_equal(resampler(31, 1.25, 31, 1.25), np.eye(31, dtype=np.float32))
    finer = resampler(40, 2.0, 80, 1.0)
    # linear stays linear
    assert finer[20:60] @ np.arange(40.0) == pytest.approx((np.arange(80)[20:60] - 39.5) / 2 + 19.5, abs=1e-4)
    coarser = resampler(300, 0.8, 90, 2.5)[5:85]
    assert coarser.sum(1) == pytest.approx(1, abs=1e-5)
    # A triangle of half-width 2.5 mm over samples of 0.8 mm keeps 2/3 of 0.8 / 2.5 of white noise; picking samples
    # would keep up to all of it.
    assert (coarser ** 2).sum(1).mean() == pytest.approx(2 / 3 * 0.8 / 2.5, rel=0.03)


def test_axis_aligned_affine_carries_no_orientation():
    assert orientation(np.diag([-1.25, -1.25, 8, 1])) == (False, (False, False, False), False)


def test_working_grid_is_read_back_as_itself():
    image, label = discs()
    turned, nifti = _nifti(image, True, (1, 0, 1))
    working, _, geometry = to_working(turned, nifti, GRID)
    affine = working_affine(geometry)
    spacing_mm = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    again = to_working(working.transpose(2, 1, 0), Nifti("", None, affine, spacing_mm, ()), GRID)
    assert not again[2].transposed and again[2].flipped == (False, False, False)
    assert np.corrcoef(again[0].ravel(), working.ravel())[0, 1] > 0.999
    world = lambda a, ijk: a[:3, :3] @ ijk + a[:3, 3]  # the centre of the field of view is one point of the patient
    middle, its_middle = (np.array([128, 128, 8]) - 1) / 2, (np.array(turned.shape) - 1) / 2
    assert np.allclose(world(affine, middle), world(nifti.affine, its_middle))


def test_image_comes_back_in_shape_and_scale():
    image, _ = discs()
    turned, nifti = _nifti(image, True, (0, 1, 0))
    working, _, geometry = to_working(turned, nifti, Grid(1.2, 160))
    assert working.min() == -1 and working.max() == 1 and working.dtype == np.float32
    resampled = resample_to_original((working + 1) / 2, geometry)
    back = stored(geometry.low + resampled * (geometry.high - geometry.low), geometry)
    inside = np.abs(back - turned)[40:-40, 40:-40]
    # of a range of 300; the borders are outside the field of view
    assert back.shape == turned.shape and inside.mean() < 2


def test_non_square_pixels_keep_their_shape():
    """A disc of 30 mm on pixels of 1 x 2 mm is round on the working grid."""
    y, x = np.indices((100, 200), dtype=np.float32)
    disc = (np.hypot((x - 99.5) * 1.0, (y - 49.5) * 2.0) < 30)[None].repeat(3, 0)
    image = disc.transpose(2, 1, 0) * 100.0 + 1
    affine = np.diag([1.0, 2, 8, 1]) @ np.pad(CANONICAL, (0, 1)) + np.diag([0, 0, 0, 1.0])
    nifti = Nifti("", image, affine, (1.0, 2.0, 8.0), ())
    working = to_working(image, nifti, GRID)[0][1] > 0
    assert abs(working.any(0).sum() - 40) <= 1 and abs(working.any(1).sum() - 40) <= 1


def test_canonical_axes_are_orthonormal_and_canonical():
    assert np.allclose(CANONICAL.T @ CANONICAL, np.eye(3), atol=1e-12)
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL
    assert orientation(affine) == (False, (False, False, False), True)
