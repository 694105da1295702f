"""Images of one's own: any axis, direction, size and type, there and back."""
import nibabel as nib
import numpy as np
import pytest

from cmr.errors import DataError
from cmr.grid import CANONICAL, Grid, to_original
from cmr.own_image import Field, read_own

GRID = Grid(2.5, 64)


def heart(shape, spacing_mm):
    """(image (D, H, W), label) with one bright disc left of the middle, in every slice."""
    z, y, x = np.indices(shape, dtype=np.float32)
    y, x = (y - (shape[1] - 1) / 2) * spacing_mm[1], (x - (shape[2] - 1) / 2) * spacing_mm[2]
    label = (np.hypot(x + 20, y - 6) < 18).astype(np.uint8)
    return 100 + 400.0 * label + x + 0.5 * y + 3 * z, label


def stored_as(array, axes, flips, spacing_whd, turn=np.eye(3)):
    """Canonical (D, H, W) as a file holds it: axes of (w, h, d) in the file's order, some reversed; and its affine."""
    directions = turn @ CANONICAL * spacing_whd
    array, directions = array.transpose(2, 1, 0).transpose(axes), directions[:, axes]
    for axis in np.flatnonzero(flips):
        array, directions[:, axis] = np.flip(array, axis), -directions[:, axis]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, (3, -7, 11)
    return array, affine


def save(path, array, affine, kind=np.int16):
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)
    return path


def there_and_back(path, label):
    """(OwnImage, Dice of a mask (X, Y, Z) that was brought to the working grid and back by the field of the file)."""
    own = read_own(path)
    field = Field(own, GRID)
    working, geometry = field.to_working(own.frames[..., 0])
    assert working.shape == (own.frames.shape[2], GRID.size, GRID.size) and working.min() == -1 and working.max() == 1
    bright = field.cut(to_original(np.stack([-working, working]), geometry))
    mask = label.transpose(own.axes)
    return own, 2 * (bright & mask).sum() / (bright.sum() + mask.sum())


@pytest.mark.parametrize("seed", range(8))
def test_any_orientation_spacing_and_size_there_and_back(tmp_path, seed):
    g = np.random.default_rng(seed)
    mm = g.uniform(0.7, 2.5) * np.array([1, g.uniform(0.8, 1.25), 1])
    mm[2] = g.uniform(5, 12)
    shape = int(g.integers(1, 15)), *(int(n) for n in g.uniform(100, 220, 2) / mm[1::-1])
    image, label = heart(shape, (mm[2], mm[1], mm[0]))
    axes, flips = g.permutation(3), g.random(3) < 0.5
    turn = np.linalg.qr(np.eye(3) + 0.1 * g.standard_normal((3, 3)))[0]
    turn = turn * np.sign(np.diag(turn))
    array, affine = stored_as(image, axes, flips, mm, turn)
    path = save(tmp_path / "x.nii.gz", array, affine)
    own, dice = there_and_back(path, stored_as(label, axes, flips, mm)[0])
    assert dice > 0.85
    plain = save(tmp_path / "plain.nii", *stored_as(image, (0, 1, 2), (0, 0, 0), mm))
    same, _ = Field(read_own(plain), GRID).to_working(read_own(plain).frames[..., 0])
    turned, _ = Field(own, GRID).to_working(own.frames[..., 0])
    assert np.abs(turned - same).max() < 1e-4                     # whatever way it is stored, the networks see the same
    own.write_labels(tmp_path / "mask.nii.gz", own.frames.astype(np.uint8) // 2)
    back = nib.load(tmp_path / "mask.nii.gz")
    assert back.shape == array.shape and np.array_equal(back.affine, nib.load(path).affine)
    assert np.array_equal(back.dataobj, array.astype(np.int16).astype(np.uint8) // 2)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_where_spacing_and_size_are_alike_the_affine_says_along_which_axis_the_slices_run(tmp_path, axes):
    image, _ = heart((50, 60, 55), (2, 2, 2))
    assert read_own(save(tmp_path / "x.nii", *stored_as(image, axes, (0, 1, 0), (2, 2, 2)))).axes[2] == axes.index(2)


@pytest.mark.parametrize("shape", [(60, 50), (60, 50, 1), (60, 50, 1, 5), (60, 50, 6, 4, 1), (1, 60, 50)])
def test_a_slice_a_cine_and_axes_of_one_keep_their_shape(tmp_path, shape):
    array = np.random.default_rng(0).integers(1, 900, shape)
    path = save(tmp_path / "x.nii.gz", array, np.diag([2, 2, 2, 1]))
    own = read_own(path)
    assert own.frames.shape[3] == (shape[3] if len(shape) > 3 else 1)
    own.write_labels(tmp_path / "mask.nii.gz", (own.frames > 400).astype(np.uint8))
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").dataobj, array > 400)


@pytest.mark.parametrize("array,words", [
    (np.full((9, 9, 3), 7), "constant"), (np.arange(9), "expected one slice"),
    (np.arange(162).reshape(9, 9, 1, 1, 2), "expected one slice"), (np.zeros((9, 0, 3)), "no voxel")])
def test_what_is_no_image_is_said(tmp_path, array, words):
    with pytest.raises(DataError, match=words):
        read_own(save(tmp_path / "x.nii.gz", array, np.diag([2, 2, 8, 1])))


@pytest.mark.parametrize("kind,slope", [(np.int16, 1), (np.uint8, 1), (np.float64, 1), (np.int16, 0.25), (">i2", 1)])
def test_what_did_not_change_stays_to_the_byte_and_what_did_is_added_in_the_grey_values_of_the_file(tmp_path, kind, slope):
    image, _ = heart((4, 160, 150), (8, 1.5, 1.5))
    array, affine = stored_as(image / 3, (1, 0, 2), (0, 1, 1), (1.5, 1.5, 8))
    path, original = tmp_path / "x.nii.gz", nib.Nifti1Image(array.astype(kind), affine)
    original.header["descrip"], original.header["cal_max"] = b"scanner 7", 300
    original.header.set_slope_inter(slope, 0)
    nib.save(original, path)
    own = read_own(path)
    field, volume = Field(own, GRID), own.frames[..., 0]
    working, geometry = field.to_working(volume)
    own.write_frames(tmp_path / "same.nii.gz", field.changed(volume, working, working, geometry)[..., None])
    same, there = (nib.load(tmp_path / name) for name in ("same.nii.gz", "x.nii.gz"))
    assert same.header == there.header and np.array_equal(same.dataobj.get_unscaled(), there.dataobj.get_unscaled())

    result = field.changed(volume, working, working - 0.2, geometry)
    own.write_frames(tmp_path / "darker.nii.gz", result[..., None])
    darker = read_own(tmp_path / "darker.nii.gz")
    assert nib.load(tmp_path / "darker.nii.gz").header == there.header
    step, depth_mm = (volume - darker.frames[..., 0]).mean(2), field.depth_mm()
    whole = 0.1 * (geometry.high - geometry.low)
    assert (step[depth_mm <= 0] == 0).all() and (depth_mm <= 0).any()
    bright = (volume > volume.min() + whole).all(2)
    assert np.abs(step - whole)[(depth_mm >= 10) & bright].max() < max(0.51 * slope, 0.01)
    half = np.abs(depth_mm - 5) < 0.8
    assert 0.3 * whole < step[half & bright].mean() < 0.7 * whole


def test_a_field_around_another_voxel_sees_the_heart_that_the_middle_misses(tmp_path):
    image, label = heart((3, 200, 240), (8, 1.5, 1.5))
    image, label = np.roll(image, 75, 2), np.roll(label, 75, 2)   # 112 mm to the right: at the border of 160 mm
    path = save(tmp_path / "x.nii.gz", *stored_as(image, (0, 1, 2), (0, 0, 0), (1.5, 1.5, 8)))
    own, mask = read_own(path), label.transpose(2, 1, 0)
    x, y, _ = (at.mean() for at in np.nonzero(mask))
    assert Field(own, GRID).is_touched(mask)
    field = Field(own, GRID, (x, y))
    deepest = np.unravel_index(field.depth_mm().argmax(), mask.shape[:2])
    assert abs(deepest[0] - x) <= 1 and abs(deepest[1] - y) <= 1
    assert not field.is_touched(mask)
    working, geometry = field.to_working(own.frames[..., 0])
    assert (working[:, 30:34, 30:34] > 0.5).all()
    assert (field.cut(to_original(np.stack([-working, working]), geometry)) == mask)[80:].mean() > 0.97
    with pytest.raises(DataError, match="outside its 240 x 200 pixels"):
        Field(own, GRID, (240, 3))
