"""NIfTI files: those that cannot be trusted, masks that fit and do not, results with the header of the image."""
import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmr.errors import DataError
from cmr.folders import frames_in
from cmr.grid import Grid, to_working
from cmr.nifti import BlankImage, read_nifti, read_volume, without_words, write_like, write_nifti
from cmr.records import Record


IMAGE = np.random.default_rng(0).integers(1, 200, (40, 44, 5)).astype(np.int16)
LABEL = np.zeros(IMAGE.shape, np.uint8)
LABEL[10:20, 10:20, 1:4], LABEL[20:25, 10:20, 1:4] = 1, 3


def file(path, array, affine=None, zooms=(1.25, 1.25, 8)):
    affine = np.diag([*zooms[:3], 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def case(tmp_path, label, name="l.nii.gz", image=IMAGE, image_affine=None, **kw):
    return Record("X", "ED", file(tmp_path / f"i{name}", image, image_affine), file(tmp_path / name, label, **kw))


def test_damaged_files_are_named(tmp_path):
    data = Path(file(tmp_path / "a.nii.gz", IMAGE)).read_bytes()
    half = data[:len(data) // 2]
    for name, content, words in (("short.nii.gz", half, "truncated"), ("empty.nii.gz", b"", "is empty"),
                                 ("page.nii.gz", b"<!DOCTYPE html><html>", "DOCTYPE"),
                                 ("cut.nii", gzip.decompress(data)[:-100], "expected .* from the header"),
                                 ("absent.nii.gz", None, "no such file")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read_nifti(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(tmp_path):
    data, rng = Path(file(tmp_path / "a.nii.gz", IMAGE)).read_bytes(), np.random.default_rng(0)
    for i in range(30):
        broken = bytearray(data)
        broken[rng.integers(10, len(data))] ^= 1 << int(rng.integers(8))      # past the gzip header with its time stamp
        (tmp_path / f"flip{i}.nii.gz").write_bytes(broken)
        with pytest.raises(DataError):
            read_nifti(tmp_path / f"flip{i}.nii.gz")


def test_odd_voxels(tmp_path):
    with_nan = IMAGE.astype(np.float64)
    with_nan[3, 3, 1], with_nan[4, 4, 2] = np.nan, np.inf
    n = read_nifti(file(tmp_path / "nan.nii.gz", with_nan))
    assert np.isfinite(n.array).all() and n.array.dtype == np.float32
    assert f"2 non-finite voxels set to 0 in {n.path}" in n.notes
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
    acdc = Record("X", "ED", f"{tmp_path}/il.nii.gz", f"{tmp_path}/l.nii.gz", label_map={0: 0, 1: 3, 2: 2, 3: 1})
    assert (read_volume(acdc)[1] == np.array([0, 3, 2, 1])[LABEL]).all()
    swapped = np.diag([1.25, 1.25, 8, 1])[:, [1, 0, 2, 3]]
    image, label, _, notes = read_volume(case(tmp_path, LABEL.swapaxes(0, 1), "t.nii.gz", affine=swapped))
    assert (label == LABEL).all() and "label stored in another orientation" in notes[0]
    image, label, _, notes = read_volume(case(tmp_path, 0 * LABEL, "z.nii.gz"))
    assert label is None and "all zero" in notes[-1]
    gap = LABEL.copy()
    gap[..., 2] = 0
    assert "interior slice without label" in read_volume(case(tmp_path, gap, "g.nii.gz"))[3]


@pytest.mark.parametrize("label,words,how", [
    (np.where(IMAGE == IMAGE[0, 0, 0], 7, LABEL), r"label values \[7\]", {}), (LABEL[:-1], "shape", {}),
    (LABEL.swapaxes(0, 1), "shape", {}), (LABEL * np.float32(0.7), "not integers", {}),
    (LABEL, "spacing", dict(zooms=(1.3, 1.25, 8))), (LABEL, "constant", dict(image=IMAGE * 0 + 5)),
    (np.stack([LABEL] * 4, 3), r"shape \(40, 44, 5, 4\), but .*/il.nii.gz has .* not a channel for each label", {})])
def test_labels_that_do_not_fit(tmp_path, label, words, how):
    with pytest.raises(DataError, match=words):
        read_volume(case(tmp_path, label, **how))


def test_one_mask_for_a_cine_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"l.nii.gz: shape \(40, 44, 5\), but .* has \(40, 44, 5, 3\)"):
        read_volume(replace(case(tmp_path, LABEL, image=np.stack([IMAGE] * 3, -1)), frame=1))


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
    record = case(tmp_path, array, image_affine=oblique(), affine=affine)
    assert (read_volume(record)[1] == lopsided).all()


def moved(by_mm=(0, 0, 0), by_degrees=0.0):
    affine, angle = oblique(), np.deg2rad(by_degrees)
    c, s = np.cos(angle), np.sin(angle)
    affine[:3, :3] = affine[:3, :3] @ [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    affine[:3, 3] += by_mm
    return affine


@pytest.mark.parametrize("affine", [moved((30, 0, 0)), moved((0, 0.7, 0)), moved(by_degrees=5), moved(by_degrees=0.5),
                                    oblique() @ np.diag([-1, 1, 1, 1]), np.diag([1.25, 1.25, 8, 1])])
def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, affine):
    """Moved, turned, or its affine flipped while the voxels were not."""
    with pytest.raises(DataError, match="l.nii.gz: its affine puts it elsewhere than its image .*il.nii.gz"):
        read_volume(case(tmp_path, LABEL, image_affine=oblique(), affine=affine))


def test_labels_that_are_nan_are_refused(tmp_path):
    broken = LABEL.astype(np.float32)
    broken[12, 12, 2] = np.nan
    with pytest.raises(DataError, match="n.nii.gz: 1 labels are NaN or infinite"):
        read_volume(case(tmp_path, broken, "n.nii.gz"))


def test_equal_voxels_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", IMAGE, np.diag([1.25, 1.25, 8, 1]), "x")
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


def tissue(seed=0):
    """A heart (X, Y, Z) on the way of a scanner: background 5, myocardium 60 to 70, cavity 150 to 250; its label."""
    g = np.random.default_rng(seed)
    x, y = np.indices((64, 64)) - 32
    label = np.zeros((64, 64, 5), np.uint8)
    label[np.hypot(x, y) < 14], label[np.hypot(x, y) < 9] = 2, 1
    usual = np.array([5.0, 200, 65])[label]
    return usual + g.uniform(-1, 1, label.shape) * np.array([4.0, 50, 5])[label], label


def contrast(record, grid=Grid(2.5, 32)):
    """How far LV and myocardium lie apart in [-1, 1], and what was noted."""
    image, label, nifti, notes = read_volume(record)
    image, label, _ = to_working(image, nifti, grid, label)
    return image[label == 1].mean() - image[label == 2].mean(), [note for note in notes if "padding" in note]


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("value", [-300, -2000, -32768, -3e38, 0])
@pytest.mark.parametrize("where", [np.s_[:10], np.s_[30, 40], np.s_[:, :2, 3:], np.s_[::6]])
def test_padding_far_below_the_tissue_is_not_normalised_by(tmp_path, value, offset, where):
    image, label = tissue()
    expected, none = contrast(case(tmp_path, label, "p.nii.gz", image + offset))
    image = image + offset
    image[where] = value
    read_nifti.cache_clear()
    got, notes = contrast(case(tmp_path, label, "p.nii.gz", image))
    assert not none and expected > 1 and got > expected - 0.2
    assert notes == ([] if value == 0 == offset else [f"padding of {value:g}, far below the tissue, is not normalised "
                                                      "by"])


def test_two_paddings_and_a_soft_edge(tmp_path):
    image, label = tissue()
    expected, _ = contrast(case(tmp_path, label, "p.nii.gz", image))
    image[:4], image[4:8], image[8] = -32768, -2000, -900
    read_nifti.cache_clear()
    got, notes = contrast(case(tmp_path, label, "p.nii.gz", image))
    assert got > expected - 0.2 and len(notes) == 2


@pytest.mark.parametrize("change,words", [
    (lambda a: a * 0 + 5, r"is constant \(5\); leave"), (lambda a: a * 0, r"constant \(0\); leave"),
    (lambda a: np.where(np.arange(a.size).reshape(a.shape) == 77, 90, 5), "is constant"),
    (lambda a: np.where(np.arange(a.size).reshape(a.shape) % 2, -32768, 5), r"constant \(5\); leave"),
    (lambda a: np.where(np.arange(a.size).reshape(a.shape) % 500 == 77, -90, 5), "is constant"),
    (lambda a: a * np.nan, r"constant \(0\)")])
def test_an_image_without_contrast_is_refused(tmp_path, change, words):
    record = case(tmp_path, LABEL, image=change(IMAGE.astype(np.float32)).astype(np.float32))
    with pytest.raises(BlankImage, match=words):
        read_volume(record)


@pytest.mark.parametrize("shape,zooms", [((5, 96, 96), (1.5, 1.5, 8)), ((96, 5, 96), (1.5, 1.5, 8)),
                                         ((12, 256, 216), (1.25, 1.25, 10)), ((4, 24, 24), (1.25, 1.25, 8)),
                                         ((64, 64, 60), (1.25, 1.25, 8)), ((30, 64, 64, 12), (1.25, 1.25, 10))])
def test_axes_that_do_not_go_with_the_spacing_are_refused(tmp_path, shape, zooms):
    path = file(tmp_path / "a.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape), zooms=zooms)
    with pytest.raises(DataError, match=r"a.nii.gz: shape \(.*\) with .* mm between slices is a stack of .* third.*"):
        read_nifti(path)


def edited(path, **fields):
    """The file with other values in its header, byte by byte: nibabel would mend them when it saves."""
    data = bytearray(Path(path).read_bytes())
    for name, values in fields.items():
        dtype, offset = nib.Nifti1Header.template_dtype.fields[name][:2]
        data[offset:offset + dtype.itemsize] = np.array(values, dtype.base).tobytes()
    Path(path).write_bytes(data)
    return path


@pytest.mark.parametrize("zooms", [(0, 0, 8), (0, 1.25, 8), (1.25, 1.25, 0), (np.nan, 1.25, 8), (np.inf, 1.25, 8)])
@pytest.mark.parametrize("codes", [0, 2])
def test_a_voxel_size_that_is_none_is_refused_as_it_stands_in_the_file(tmp_path, zooms, codes, caplog):
    path = file(tmp_path / "a.nii", IMAGE)
    edited(path, pixdim=(1, *zooms, 0, 0, 0, 0), sform_code=codes, qform_code=0)
    with pytest.raises(DataError, match="a.nii: (voxel size|its affine)"):
        read_nifti(path)
    assert not caplog.records                                     # nibabel's own lines stay off the screen


def test_what_a_file_is_decides_and_not_its_name(tmp_path):
    plain, packed = tmp_path / "plain.nii", tmp_path / "packed.nii.gz"
    file(plain, IMAGE), file(packed, IMAGE)
    plain.rename(tmp_path / "a.nii.gz"), packed.rename(tmp_path / "b.nii")
    file(tmp_path / "d.nii.gz", IMAGE[..., None].repeat(3, 3))
    (tmp_path / "d.nii.gz").rename(tmp_path / "D.NII.GZ")
    for name, frames in (("a.nii.gz", 1), ("b.nii", 1), ("D.NII.GZ", 3)):
        read = read_nifti(tmp_path / name)
        assert (read.array.reshape(*IMAGE.shape, -1)[..., 0] == IMAGE).all() and frames_in(tmp_path / name) == frames
        write_like(tmp_path / "out.nii.gz", LABEL, read)
        assert (read_nifti(tmp_path / "out.nii.gz").array == LABEL).all()
        read_nifti.cache_clear()
    dicom = b"\0" * 128 + b"DICM"
    nib.save(nib.Nifti2Image(IMAGE, np.diag([1.25, 1.25, 8, 1])), tmp_path / "second.nii")
    for data, words in ((b"PK\3\4...", "PK.*no NIfTI-1 header"), (dicom, "a DICOM file"),
                        ((tmp_path / "second.nii").read_bytes(), "no NIfTI-1 header"),
                        (b"version https://git-lfs.github.com", "version https://git-lfs.*no NIfTI-1 header"),
                        (gzip.compress(b"<html>"), "<html>.*no NIfTI-1 header")):
        (tmp_path / "x.nii.gz").write_bytes(data)
        with pytest.raises(DataError, match=f"x.nii.gz: begins with .*{words}"):
            read_nifti(tmp_path / "x.nii.gz")
        assert frames_in(tmp_path / "x.nii.gz") is None


def test_no_byte_of_a_header_ends_in_a_traceback(tmp_path, recwarn):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(IMAGE[:6, :6], np.diag([1.25, 1.25, 8, 1])), path)
    data = path.read_bytes()
    for position in range(0, nib.Nifti1Header.sizeof_hdr, 3):
        broken = bytearray(data)
        broken[position] = (1, 127, 255)[position // 3 % 3]
        path.write_bytes(broken)
        read_nifti.cache_clear()
        try:
            read_nifti(path)
        except DataError as error:
            assert "\n" not in str(error)
    assert not recwarn.list


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", self)
    path = file(tmp_path / "a.nii.gz", IMAGE)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(PermissionError):                          # which `run_script` puts into words
        read_nifti(path)
