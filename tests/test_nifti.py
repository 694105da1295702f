"""NIfTI files: those that cannot be trusted, masks that fit and do not, results with the header of the image."""
import gzip

import nibabel as nib
import numpy as np
import pytest

from cmr.errors import DataError
from cmr.nifti import read_nifti, read_volume, without_words, write_like, write_nifti
from cmr.records import Record


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
    for name, words in (("short.nii.gz", "truncated"), ("empty.nii.gz", "empty"), ("page.nii.gz", "DOCTYPE"),
                        ("cut.nii", "expected .* from the header"), ("absent.nii.gz", "no such file")):
        with pytest.raises(DataError, match=words) as caught:
            read_nifti(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(tmp_path):
    good = tmp_path / "a.nii.gz"
    file(good, IMAGE)
    data = bytearray(good.read_bytes())
    rng = np.random.default_rng(0)
    for i in range(30):
        position = int(rng.integers(10, len(data)))  # past the gzip header, whose time stamp does not matter
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
    assert np.isfinite(n.array).all() and n.array.dtype == np.float32
    assert f"2 non-finite voxels set to 0 in {n.path}" in n.notes
    n = read_nifti(file(tmp_path / "single.nii.gz", IMAGE[..., None]))
    assert n.array.shape == IMAGE.shape and "trailing axis" in n.notes[0]
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(DataError, match="is empty"):
        read_nifti(tmp_path / "empty.nii.gz")
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
    assert written.shape == IMAGE.shape and (np.asarray(written.dataobj) == LABEL).all()
    assert written.get_data_dtype() == np.uint8
    assert (written.affine == image.affine).all() and written.header.get_zooms() == (1.25, 1.25, 8.0)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 0)
    assert written.header["descrip"].item() == b"scanner text"


def test_labels_that_fit(tmp_path):
    assert (read_volume(case(tmp_path, LABEL))[1] == LABEL).all()
    assert (read_volume(case(tmp_path, LABEL * np.float32(0.9999), "f.nii.gz"))[1] == LABEL).all()
    acdc = Record(
        "X", "ED", str(tmp_path / "il.nii.gz"), str(tmp_path / "l.nii.gz"), label_map={0: 0, 1: 3, 2: 2, 3: 1}
    )
    assert (read_volume(acdc)[1] == np.array([0, 3, 2, 1])[LABEL]).all()
    swapped = np.diag([1.25, 1.25, 8, 1])[:, [1, 0, 2, 3]]
    image, label, _, notes = read_volume(case(tmp_path, LABEL.swapaxes(0, 1), "t.nii.gz", affine=swapped))
    assert (label == LABEL).all() and "label stored in another orientation" in notes[0]
    image, label, _, notes = read_volume(case(tmp_path, 0 * LABEL, "z.nii.gz"))
    assert label is None and "all zero" in notes[-1]
    gap = LABEL.copy()
    gap[..., 2] = 0
    assert "interior slice without label" in read_volume(case(tmp_path, gap, "g.nii.gz"))[3]


def test_labels_that_do_not_fit(tmp_path):
    seven = LABEL.copy()
    seven[0, 0, 0] = 7
    for label, words, name in ((seven, r"label values \[7\]", "7.nii.gz"), (LABEL[:-1], "shape", "s.nii.gz"),
                               (LABEL.swapaxes(0, 1), "shape", "t.nii.gz"),
                               (LABEL * np.float32(0.7), "not integers", "h.nii.gz")):
        with pytest.raises(DataError, match=words):
            read_volume(case(tmp_path, label, name))
    with pytest.raises(DataError, match="spacing"):
        read_volume(case(tmp_path, LABEL, "p.nii.gz", zooms=(1.3, 1.25, 8)))
    with pytest.raises(DataError, match="constant"):
        read_volume(case(tmp_path, LABEL, "c.nii.gz", image=IMAGE * 0 + 5))
    cine = Record(
        "X", "ED", file(tmp_path / "4d.nii.gz", np.stack([IMAGE] * 3, -1)), str(tmp_path / "7.nii.gz"), frame=1
    )
    with pytest.raises(DataError, match="which frame"):
        read_volume(cine)


def oblique():
    """An affine as a scanner writes it: turned, with an offset."""
    a, b = np.deg2rad((25, -40))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * (1.25, 1.25, 8)
    affine[:3, 3] = (-70.5, 31.25, 12)
    return affine


def stored_anew(array, affine, order, flips):
    """The same voxels at the same places, with axes in another order and direction: correct NIfTI."""
    array, affine = array.transpose(order), affine[:, [*order, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            turned = np.diag([-1.0 if a == axis else 1 for a in range(3)])
            moved = np.eye(3)[:, [axis]] * (array.shape[axis] - 1)
            affine = affine @ np.block([[turned, moved], [np.zeros((1, 3)), np.ones((1, 1))]])
            array = np.flip(array, axis)
    return np.ascontiguousarray(array), affine


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_a_mask_in_another_orientation_is_turned_to_its_image(tmp_path, order, flips):
    lopsided = LABEL.copy()
    lopsided[3, 5, 0] = 2
    array, affine = stored_anew(lopsided, oblique(), order, flips)
    record = Record(
        "X", "ED", file(tmp_path / "i.nii.gz", IMAGE, oblique()), file(tmp_path / "l.nii.gz", array, affine)
    )
    assert (read_volume(record)[1] == lopsided).all()


def moved(by_mm=(0, 0, 0), by_degrees=0.0):
    affine, angle = oblique(), np.deg2rad(by_degrees)
    affine[:3, :3] = affine[:3, :3] @ np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine[:3, 3] += by_mm
    return affine


@pytest.mark.parametrize("affine", [moved((30, 0, 0)), moved((0, 0.7, 0)), moved(by_degrees=5), moved(by_degrees=0.5),
                                    oblique() @ np.diag([-1, 1, 1, 1]), np.diag([1.25, 1.25, 8, 1])])
def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, affine):
    """Moved, turned, or its affine flipped while the voxels were not."""
    record = Record(
        "X", "ED", file(tmp_path / "i.nii.gz", IMAGE, oblique()), file(tmp_path / "l.nii.gz", LABEL, affine)
    )
    with pytest.raises(DataError, match="l.nii.gz: its affine puts it elsewhere than its image .*i.nii.gz"):
        read_volume(record)


def test_labels_that_are_nan_are_refused(tmp_path):
    broken = LABEL.astype(np.float32)
    broken[12, 12, 2] = np.nan
    with pytest.raises(DataError, match="n.nii.gz: 1 labels are NaN or infinite"):
        read_volume(case(tmp_path, broken, "n.nii.gz"))


def test_equal_voxels_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", IMAGE, np.diag([1.25, 1.25, 8, 1]), (1.25, 1.25, 8), "x")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_result_without_words_keeps_the_grid_and_no_name(tmp_path):
    image = nib.Nifti1Image(IMAGE, np.diag([1.5, 1.5, 8, 1]))
    image.header["descrip"], image.header["aux_file"] = b"John Doe", b"john"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"John Doe, born 1970"))
    nib.save(image, tmp_path / "a.nii")
    nifti = read_nifti(tmp_path / "a.nii")
    for name, given, said in (("as_is.nii", nifti, True), ("bare.nii", without_words(nifti), False)):
        write_like(tmp_path / name, np.zeros(IMAGE.shape, np.uint8), given)
        assert (b"ohn" in (tmp_path / name).read_bytes()) == said
    assert np.allclose(nib.load(tmp_path / "bare.nii").affine, image.affine)
