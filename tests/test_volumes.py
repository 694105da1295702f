"""Working volumes: orientation, the way there and back, intensities, cache, and files that cannot be trusted."""
import gzip

import nibabel as nib
import numpy as np
import pytest

from cmr.config import DataError
from cmr.studies import Record
from cmr.volumes import (CANONICAL, Geometry, Grid, Nifti, _resampler, canonical, fingerprint, image_to_original, labels_of, load, orientation, prepare, read_nifti, stored,
                         to_original, to_working, working_affine, write_like, write_nifti)

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


def test_labels_are_the_largest_score_and_of_equals_the_first():
    scores = np.random.default_rng(1).integers(0, 4, (4, 5, 6, 7)).astype(np.float32)                   # many ties
    assert (labels_of(scores) == scores.argmax(0)).all() and labels_of(scores).dtype == np.uint8 and (labels_of(np.zeros((4, 3))) == 0).all()


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
    assert np.array_equal(_resampler(31, 1.25, 31, 1.25), np.eye(31, dtype=np.float32))
    finer = _resampler(40, 2.0, 80, 1.0)
    assert finer[20:60] @ np.arange(40.0) == pytest.approx((np.arange(80)[20:60] - 39.5) / 2 + 19.5, abs=1e-4)    # linear stays linear
    coarser = _resampler(300, 0.8, 90, 2.5)[5:85]
    assert coarser.sum(1) == pytest.approx(1, abs=1e-5)
    # A triangle of half-width 2.5 mm over samples of 0.8 mm keeps 2/3 of 0.8 / 2.5 of white noise; picking samples would keep up to all of it.
    assert (coarser ** 2).sum(1).mean() == pytest.approx(2 / 3 * 0.8 / 2.5, rel=0.03)


def test_axis_aligned_affine_carries_no_orientation():
    assert orientation(np.diag([-1.25, -1.25, 8, 1])) == (False, (False, False, False), False)


def test_working_grid_is_read_back_as_itself():
    image, label = discs()
    turned, nifti = _nifti(image, True, (1, 0, 1))
    working, _, geometry = to_working(turned, nifti, GRID)
    affine, spacing = working_affine(geometry)
    again = to_working(working.transpose(2, 1, 0), Nifti("", None, affine, spacing, ()), GRID)
    assert not again[2].transposed and again[2].flipped == (False, False, False)
    assert np.corrcoef(again[0].ravel(), working.ravel())[0, 1] > 0.999
    world = lambda a, ijk: a[:3, :3] @ ijk + a[:3, 3]             # the centre of the field of view is one point of the patient
    assert np.allclose(world(affine, (np.array([128, 128, 8]) - 1) / 2), world(nifti.affine, (np.array(turned.shape) - 1) / 2))


def test_image_comes_back_in_shape_and_scale():
    image, _ = discs()
    turned, nifti = _nifti(image, True, (0, 1, 0))
    working, _, geometry = to_working(turned, nifti, Grid(1.2, 160))
    assert working.min() == -1 and working.max() == 1 and working.dtype == np.float32
    back = image_to_original(working, geometry)
    inside = np.abs(back - turned)[40:-40, 40:-40]
    assert back.shape == turned.shape and inside.mean() < 2       # of a range of 300; the borders are outside the field of view


def test_results_carry_the_header_of_the_image(tmp_path):
    image = nib.Nifti1Image(np.stack([IMAGE] * 3, -1).astype(np.float64), np.diag([-1.25, -1.25, 8, 1]))
    image.set_sform(image.affine, 2)
    image.set_qform(None, 0)
    image.header["descrip"] = b"scanner text"
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "4d.nii.gz")
    nifti = read_nifti(tmp_path / "4d.nii.gz")
    write_like(tmp_path / "out.nii.gz", LABEL, nifti)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == IMAGE.shape and (np.asarray(written.dataobj) == LABEL).all() and written.get_data_dtype() == np.uint8
    assert (written.affine == image.affine).all() and written.header.get_zooms() == (1.25, 1.25, 8.0)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"]), written.header["descrip"].item()) == (2, 0, b"scanner text")


def test_non_square_pixels_keep_their_shape():
    """A disc of 30 mm on pixels of 1 x 2 mm is round on the working grid."""
    y, x = np.indices((100, 200), dtype=np.float32)
    disc = (np.hypot((x - 99.5) * 1.0, (y - 49.5) * 2.0) < 30)[None].repeat(3, 0)
    image = disc.transpose(2, 1, 0) * 100.0 + 1
    nifti = Nifti("", image, np.diag([1.0, 2, 8, 1]) @ np.pad(CANONICAL, (0, 1)) + np.diag([0, 0, 0, 1.0]), (1.0, 2.0, 8.0), ())
    working = to_working(image, nifti, GRID)[0][1] > 0
    assert abs(working.any(0).sum() - 40) <= 1 and abs(working.any(1).sum() - 40) <= 1


def file(path, array, affine=None, zooms=(1.25, 1.25, 8)):
    affine = np.diag([*zooms[:3], 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


IMAGE = np.random.default_rng(0).integers(1, 200, (40, 44, 5)).astype(np.int16)


def test_damaged_files_are_named(tmp_path):
    good = tmp_path / "a.nii.gz"
    file(good, IMAGE)
    data = good.read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(data[:len(data) // 2])
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "page.nii.gz").write_bytes(b"<!DOCTYPE html><html>")
    cut = gzip.decompress(data)[:-100]
    (tmp_path / "cut.nii").write_bytes(cut)
    for name, words in (("short.nii.gz", "truncated"), ("empty.nii.gz", "empty"), ("page.nii.gz", "DOCTYPE"), ("cut.nii", "expected .* from the header"),
                        ("absent.nii.gz", "no such file")):
        with pytest.raises(DataError, match=words) as caught:
            read_nifti(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(tmp_path):
    good = tmp_path / "a.nii.gz"
    file(good, IMAGE)
    data = bytearray(good.read_bytes())
    rng = np.random.default_rng(0)
    for i in range(30):
        position = int(rng.integers(10, len(data)))               # past the gzip header, whose time stamp does not matter
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"flip{i}.nii.gz"
        path.write_bytes(broken)
        with pytest.raises(DataError):
            read_nifti(path)


def test_odd_voxels(tmp_path):
    with_nan = IMAGE.astype(np.float64)
    with_nan[3, 3, 1], with_nan[4, 4, 2] = np.nan, np.inf
    n = read_nifti(file(tmp_path / "nan.nii.gz", with_nan))
    assert np.isfinite(n.array).all() and "2 non-finite voxels set to 0" in n.notes and n.array.dtype == np.float32
    n = read_nifti(file(tmp_path / "single.nii.gz", IMAGE[..., None]))
    assert n.array.shape == IMAGE.shape and "trailing axis" in n.notes[0]
    shear = np.diag([1.25, 1.25, 8, 1.0])
    shear[0, 1] = 0.01
    assert any("orthonormal" in note for note in read_nifti(file(tmp_path / "shear.nii.gz", IMAGE, shear)).notes)
    with pytest.raises(DataError, match="voxel size"):
        read_nifti(file(tmp_path / "metres.nii.gz", IMAGE, zooms=(0.00125, 0.00125, 0.008)))
    colour = np.zeros((4, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "rgb.nii.gz")
    with pytest.raises(DataError, match="one real number"):
        read_nifti(tmp_path / "rgb.nii.gz")


LABEL = np.zeros(IMAGE.shape, np.uint8)
LABEL[10:20, 10:20, 1:4] = 1
LABEL[20:25, 10:20, 1:4] = 3


def case(tmp_path, label, name="l.nii.gz", image=IMAGE, **kw):
    return Record("X", "ED", file(tmp_path / f"i{name}", image), file(tmp_path / name, label, **kw))


def test_labels_that_fit(tmp_path):
    assert (load(case(tmp_path, LABEL))[1] == LABEL).all()
    assert (load(case(tmp_path, LABEL * np.float32(0.9999), "f.nii.gz"))[1] == LABEL).all()
    acdc = Record("X", "ED", str(tmp_path / "il.nii.gz"), str(tmp_path / "l.nii.gz"), label_map={0: 0, 1: 3, 2: 2, 3: 1})
    assert (load(acdc)[1] == np.array([0, 3, 2, 1])[LABEL]).all()
    swapped = np.diag([1.25, 1.25, 8, 1])[:, [1, 0, 2, 3]]
    image, label, _, notes = load(case(tmp_path, LABEL.swapaxes(0, 1), "t.nii.gz", affine=swapped))
    assert (label == LABEL).all() and "label stored transposed" in notes
    image, label, _, notes = load(case(tmp_path, 0 * LABEL, "z.nii.gz"))
    assert label is None and "all zero" in notes[-1]
    gap = LABEL.copy()
    gap[..., 2] = 0
    assert "interior slice without label" in load(case(tmp_path, gap, "g.nii.gz"))[3]


def test_labels_that_do_not_fit(tmp_path):
    seven = LABEL.copy()
    seven[0, 0, 0] = 7
    for label, words, name in ((seven, r"label values \[7\]", "7.nii.gz"), (LABEL[:-1], "shape", "s.nii.gz"), (LABEL.swapaxes(0, 1), "shape", "t.nii.gz"),
                               (LABEL * np.float32(0.7), "not integers", "h.nii.gz")):
        with pytest.raises(DataError, match=words):
            load(case(tmp_path, label, name))
    with pytest.raises(DataError, match="spacing"):
        load(case(tmp_path, LABEL, "p.nii.gz", zooms=(1.3, 1.25, 8)))
    with pytest.raises(DataError, match="constant"):
        load(case(tmp_path, LABEL, "c.nii.gz", image=IMAGE * 0 + 5))
    cine = Record("X", "ED", file(tmp_path / "4d.nii.gz", np.stack([IMAGE] * 3, -1)), str(tmp_path / "7.nii.gz"), frame=1)
    with pytest.raises(DataError, match="which frame"):
        load(cine)


def test_cache_is_the_same_again_and_notices_a_changed_file(tmp_path):
    record = case(tmp_path, LABEL)
    first = prepare([record], Grid(2.5, 32), tmp_path / "work")
    again = prepare([record], Grid(2.5, 32), tmp_path / "work")
    assert (first[0].image == again[0].image).all() and first[0].geometry == again[0].geometry and fingerprint(first) == fingerprint(again)
    assert again[0].spacing_mm == (8.0, 2.5, 2.5)
    read_nifti.cache_clear()
    changed = case(tmp_path, LABEL, image=IMAGE[::-1].copy())
    assert fingerprint(prepare([changed], Grid(2.5, 32), tmp_path / "work")) != fingerprint(first)


def test_equal_voxels_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", IMAGE, np.diag([1.25, 1.25, 8, 1]), (1.25, 1.25, 8), "x")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
