"""Image files with the look of the source.

Image files without a dataset: which there are, one bad among many; any axis, direction, size and type, there and back.
"""
import json
import re

import nibabel as nib
import numpy as np
import pytest

from cmr import translate
from cmr.diffusion import Schedule
from cmr.errors import CheckpointError, DataError, UsageError
from cmr.grid import CANONICAL, Grid, to_original, to_working
from cmr.layouts import _subject_and_phase
from cmr.nifti import read_nifti, read_volume
from cmr.records import Record
from cmr.sampler import SourceModel, Strength
from cmr.translate import changed, depth_mm, find_images, one_by_one, read_image, require_all, subject_and_phase, view
from helpers import one_line, script

WEAK = "t0=30,steps=2"


@pytest.fixture
def study(phantom):
    """A vendor-D cine of two frames, which is larger than the field of view."""
    return next(path for path in sorted(phantom.rglob("Testing/*/*_sa.nii.gz")) if nib.load(path).shape[0] > 300)


def test_a_cine_keeps_its_header_its_border_and_its_frames_alike(run, study, tmp_path):
    sd_dm = SourceModel.load(run / "diffusion" / "final.pt", "cpu")
    twice = tmp_path / "twice.nii"                                # every frame of it is the same
    original = nib.load(study)
    frame = np.asarray(original.dataobj)[..., 0]
    nib.save(nib.Nifti1Image(np.stack([frame] * 3, 3), original.affine, original.header), twice)
    before = twice.read_bytes()
    translate.translate_file(twice, sd_dm, tmp_path / "out" / "twice.nii", Strength.parse(WEAK))
    there, result = nib.load(twice), nib.load(tmp_path / "out" / "twice.nii")
    assert there.header == result.header and np.array_equal(there.affine, result.affine)
    voxels = np.asarray(result.dataobj)
    assert all(np.array_equal(voxels[..., 0], voxels[..., t]) for t in (1, 2))       # the same noise, the same scale
    changed = (voxels[..., 0] != frame).any(2)
    assert 0.1 < changed.mean() < 0.5 and not changed[:20].any() and not changed[:, :20].any()
    assert voxels.min() >= frame.min() and voxels.max() <= frame.max()
    assert (tmp_path / "out" / "twice.png").exists() and twice.read_bytes() == before


def test_the_command_goes_on_and_refuses_another_strength(run, study, tmp_path):
    bad = tmp_path / "in" / "bad.nii.gz"
    bad.parent.mkdir()
    bad.write_bytes(study.read_bytes()[:-50])
    to = ["--diffusion", run / "diffusion" / "final.pt", "--out", tmp_path / "out"]
    call = lambda *more: script("-m", "cmr.translate", study, bad, *to, *more)
    code, out, errors = call("--strength", WEAK)
    assert code == 3 and one_line(errors) and "1 of 2 images" in errors and "damaged" in errors
    made = tmp_path / "out" / study.name
    before, after = read_image(study).frames, read_image(made).frames
    assert (before[:20, ..., 0] != before[:20, ..., 1]).any() and np.array_equal(before[:20], after[:20])
    when = made.stat().st_mtime_ns
    assert call("--strength", WEAK)[0] == 3 and made.stat().st_mtime_ns == when
    assert call("--strength", "t0=40,steps=2")[0] == 4
    for words, arguments in (("unknown 'none'", ["--strength", "none"]), ("exceeds", ["--strength", "t0=3000"]),
                             ("does not divide", ["--ladder", f"{WEAK};t0=9,low_pass=3,steps=2"]),
                             ("would replace", ["--out", study.parent])):
        code, _, errors = call(*([] if "--out" in arguments else ["--out", tmp_path / "other"]), *arguments)
        assert code == 2 and words in errors and one_line(errors), errors
    assert not list(tmp_path.rglob("*.tmp.*")) and not (tmp_path / "other" / study.name).exists()


def test_a_ladder_shows_three_slices_at_every_strength(run, study, tmp_path):
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(study).dataobj)[:, :, 1, 0], np.eye(4) * [1.2, 1.2, 1, 1]), flat)
    strengths = (WEAK, "t0=60,low_pass=4,steps=2")
    code, _, errors = script("-m", "cmr.translate", study, flat, "--diffusion", run / "diffusion" / "final.pt",
                             "--ladder", ";".join(strengths), "--out", tmp_path / "out")
    assert code == 0, errors
    names = (study.name.removesuffix(".nii.gz"), "flat")
    text, of_flat = ((tmp_path / "out" / f"{name}_ladder.svg").read_text() for name in names)
    assert text.count("<image") == 3 * 3 and of_flat.count("<image") == 3          # a single slice is a column
    assert all(f">{name}<" in text for name in ("as it is", *strengths)) and text.count(">slice ") == 3


GRID = Grid(2.5, 64)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_files_and_folders_without_masks_and_hidden_ones(tmp_path, capsys):
    touch(tmp_path, "a/x.nii.gz", "a/b/x.nii", "a/x_gt.nii.gz", "a/alone_gt.nii.gz", "a/.y.nii.gz", "a/notes.txt",
          "z.nii")
    images = find_images([str(tmp_path / "a"), str(tmp_path / "z.nii")], tmp_path / "out")
    assert list(images) == ["alone_gt.nii.gz", "b/x.nii", "x.nii.gz", "z.nii"]
    assert images["b/x.nii"] == tmp_path / "a" / "b" / "x.nii"
    assert "1 files called as another with _gt" in capsys.readouterr().out


def test_results_below_the_folder_of_the_images_are_no_images_of_a_second_run(tmp_path, capsys):
    touch(tmp_path, "a/x.nii.gz", "a/masks/x.nii.gz", "a/masks of mine/y.nii.gz")
    for out in (tmp_path / "a" / "masks", tmp_path / "a" / "b" / ".." / "masks"):
        assert list(find_images([tmp_path / "a"], out)) == ["masks of mine/y.nii.gz", "x.nii.gz"]
    assert "1 files below --out" in capsys.readouterr().out
    assert list(find_images([tmp_path / "a" / "masks"], tmp_path / "a")) == ["x.nii.gz"]
    with pytest.raises(UsageError, match="the result would replace"):
        find_images([tmp_path / "a"], tmp_path / "a")


@pytest.mark.parametrize("images,out,words", [
    ([], "out", "no image given"), (["c"], "out", "no NIfTI files below"),
    (["a/x.nii.gz", "b/x.nii"], "out", "results of one name"), (["a/x.nii.gz"], "a", "the result would replace")])
def test_what_cannot_be_meant_is_refused_before_anything_is_done(tmp_path, images, out, words):
    touch(tmp_path, "a/x.nii.gz", "b/x.nii", "c/notes.txt")
    with pytest.raises(UsageError, match=words):
        find_images([tmp_path / name for name in images], tmp_path / out)


def test_a_file_that_is_no_result_of_ours_and_that_of_another_image_are_left_alone(tmp_path):
    touch(tmp_path, "a/x.nii.gz", "b/x.nii.gz", "b/y.nii.gz", "masks/x.nii.gz")
    (tmp_path / "b" / "x.nii.gz").write_bytes(b"another")
    images = lambda name: find_images([tmp_path / name], tmp_path / "out")
    touch(tmp_path, "tables/volumes.csv")
    for out in ("masks", "tables"):
        with pytest.raises(UsageError, match="lies there already and is no result of this command"):
            one_by_one(images("a"), tmp_path / out, {}, None)

    def make(place, path):
        (tmp_path / "out" / place).write_bytes(path.read_bytes())
        return {"notes": [], "of": path.parent.name}

    assert one_by_one(images("a"), tmp_path / "out", {}, make) == ([{"notes": [], "of": "a"}], [])
    found, left_out = one_by_one(images("b"), tmp_path / "out", {}, make)
    assert [done["of"] for done in found] == ["a", "b"]           # what an earlier command has made is in the table too
    assert len(left_out) == 1 and "is the result of another image; choose another --out" in left_out[0]
    assert (tmp_path / "out" / "x.nii.gz").read_bytes() == b"a/x.nii.gz"
    (tmp_path / "out" / "x.nii.gz").unlink()                      # on purpose: it is made again, from where it lies now
    assert one_by_one(images("b"), tmp_path / "out", {}, make)[1] == []


def test_capitals_and_links_are_images_and_other_names_are_none(tmp_path, capsys):
    touch(tmp_path, "a/B.NII.GZ", "a/B_gt.NII.GZ", "disk/c.nii", "scan")
    (tmp_path / "a" / "patient").symlink_to(tmp_path / "disk")
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nowhere")
    assert list(find_images([tmp_path / "a"], tmp_path / "out")) == ["B.NII.GZ", "patient/c.nii"]
    assert "lost" in capsys.readouterr().out
    with pytest.raises(UsageError, match="scan: called neither .nii nor .nii.gz"):
        find_images([tmp_path / "scan"], tmp_path / "out")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_images([tmp_path / "nowhere"], tmp_path / "out")


def test_a_file_that_may_not_be_read_stops_no_other(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.nii.gz", "in/bad.nii.gz")
    monkeypatch.setattr("cmr.folders.os.access", lambda path, mode: "bad" not in str(path))
    assert list(find_images([tmp_path / "in"], tmp_path / "out")) == ["a.nii.gz", "bad.nii.gz"]


@pytest.mark.parametrize("name", ["A0S9V9_0000_A_1_0000", "P1_ES", "P1_frame05", "A0S9V9_sa_ED", "la_0003"])
def test_the_key_of_the_noise_is_the_experiments_subject(tmp_path, name):
    touch(tmp_path, f"images/{name}.nii.gz")
    if not name.startswith("A0S9V9_sa"):                          # M&Ms-1 has its names from its table
        subject, _ = _subject_and_phase(re.sub("_0000$", "", name))
        assert subject_and_phase(tmp_path / f"{name}.nii.gz")[0] == subject
    else:
        assert subject_and_phase(tmp_path / f"{name}.nii.gz") == ("A0S9V9", "ED")


def test_one_bad_file_is_said_at_the_end_and_a_second_run_makes_only_what_is_missing(tmp_path, capsys):
    touch(tmp_path, "in/a.nii.gz", "in/bad.nii.gz", "in/c.nii.gz")
    images, out, made = find_images([tmp_path / "in"], tmp_path / "out"), tmp_path / "out", []

    def make(place, path):
        made.append(place)
        if place.startswith("bad") and not (out / "mended").exists():
            raise DataError("bad.nii.gz: is bad")
        (out / place).write_bytes(b"result")
        return {"n": len(place), "notes": ["mind this"]}

    found, left_out = one_by_one(images, out, {"t0": 3}, make)
    assert made == ["a.nii.gz", "bad.nii.gz", "c.nii.gz"] and [f["n"] for f in found] == [8, 8]
    assert left_out == ["bad.nii.gz: is bad"] and "note: " in capsys.readouterr().out
    with pytest.raises(DataError, match="1 of 3 images could not be used: bad.nii.gz: is bad"):
        require_all(left_out, 3)
    (out / "mended").touch()
    (out / "c.nii.gz").unlink()                                   # lost: it is made again
    touch(tmp_path, "in/d.nii.gz")
    images = find_images([tmp_path / "in"], out)
    found, left_out = one_by_one(images, out, {"t0": 3}, make)
    assert made[3:] == ["bad.nii.gz", "c.nii.gz", "d.nii.gz"] and len(found) == 4 and not left_out
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"another image")
    one_by_one(images, out, {"t0": 3}, make)
    assert made[6:] == ["a.nii.gz"]
    with pytest.raises(CheckpointError, match="t0: 3 there, 4 now"):
        one_by_one(images, out, {"t0": 4}, make)
    assert json.loads((out / "settings.json").read_text()) == {"t0": 3}


def test_subject_and_phase_by_name():
    assert subject_and_phase("d/A0S9V9_sa_ED.nii.gz") == ("A0S9V9", "ED") == subject_and_phase("A0S9V9_ed_0000.nii")
    assert subject_and_phase("A0S9V9_sa.nii.gz") == ("A0S9V9", None) and subject_and_phase("red.nii") == ("red", None)


@pytest.mark.parametrize("name,subject", [
    ("patient101_frame01.nii.gz", "patient101"), ("P1_Frame12.nii", "P1"), ("P1_FRAME5_0000.nii.gz", "P1"),
    ("A_B_frame01.nii.gz", "A_B"), ("x_frame.nii", "x_frame"), ("framed.nii", "framed")])
def test_a_frame_is_its_subjects_and_has_no_phase(name, subject):
    """The key of the noise is the subject as the experiment calls it: by the layouts ACDC, nnU-Net raw and plain."""
    assert subject_and_phase(name) == (subject, None)


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
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)
    return path


def working_of(image):
    """(working image, Geometry) of the first frame of an `ImageFile`."""
    working, _, geometry = to_working(image.frames[..., 0], image, GRID)
    return working, geometry


@pytest.mark.parametrize("seed", range(8))
def test_any_orientation_spacing_and_size_there_and_back(tmp_path, seed):
    g = np.random.default_rng(seed)
    mm = g.uniform(0.7, 2.5) * np.array([1, g.uniform(0.8, 1.25), 1])
    mm[2] = g.uniform(5, 12)
    shape = int(g.integers(1, 15)), *(int(n) for n in g.uniform(100, 220, 2) / mm[1::-1])
    values, label = heart(shape, (mm[2], mm[1], mm[0]))
    axes, flips = g.permutation(3), g.random(3) < 0.5
    turn = np.linalg.qr(np.eye(3) + 0.1 * g.standard_normal((3, 3)))[0]
    turn = turn * np.sign(np.diag(turn))
    array, affine = stored_as(values, axes, flips, mm, turn)
    path = save(tmp_path / "x.nii.gz", array, affine)
    image = read_image(path)
    working, geometry = working_of(image)
    assert working.shape == (shape[0], GRID.size, GRID.size) and working.min() == -1 and working.max() == 1
    bright = to_original(np.stack([-working, working]), geometry)
    mask = stored_as(label, axes, flips, mm)[0].transpose(image.axes)
    assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.85
    plain, _ = working_of(read_image(save(tmp_path / "plain.nii", *stored_as(values, (0, 1, 2), (0, 0, 0), mm))))
    assert np.abs(working - plain).max() < 1e-4                   # whatever way it is stored, the networks see the same
    image.write_labels(tmp_path / "mask.nii.gz", image.frames.astype(np.uint8) // 2)
    back = nib.load(tmp_path / "mask.nii.gz")
    assert back.shape == array.shape and np.array_equal(back.affine, nib.load(path).affine)
    assert np.array_equal(back.dataobj, array.astype(np.int16).astype(np.uint8) // 2)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_where_spacing_and_size_are_alike_the_affine_says_along_which_axis_the_slices_run(tmp_path, axes):
    values, _ = heart((50, 60, 55), (2, 2, 2))
    assert read_image(save(tmp_path / "x.nii", *stored_as(values, axes, (0, 1, 0), (2, 2, 2)))).axes[2] == axes.index(2)


@pytest.mark.parametrize("shape", [(60, 50), (60, 50, 1), (60, 50, 1, 5), (60, 50, 6, 4, 1), (1, 60, 50)])
def test_a_slice_a_cine_and_axes_of_one_keep_their_shape(tmp_path, shape):
    array = np.random.default_rng(0).integers(1, 900, shape)
    path = save(tmp_path / "x.nii.gz", array, np.diag([2, 2, 2, 1]))
    image = read_image(path)
    assert image.frames.shape[3] == (shape[3] if len(shape) > 3 else 1)
    image.write_labels(tmp_path / "mask.nii.gz", (image.frames > 400).astype(np.uint8))
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").dataobj, array > 400)


@pytest.mark.parametrize("array,words", [
    (np.full((9, 9, 3), 7), "constant"), (np.arange(9), "expected one slice"),
    (np.arange(162).reshape(9, 9, 1, 1, 2), "expected one slice"), (np.zeros((9, 0, 3)), "no voxel")])
def test_what_is_no_image_is_said(tmp_path, array, words):
    with pytest.raises(DataError, match=words):
        read_image(save(tmp_path / "x.nii.gz", array, np.diag([2, 2, 8, 1])))


@pytest.mark.parametrize("kind,slope", [(np.int16, 1), (np.uint8, 1), (np.float64, 1), (np.int16, 0.25), (">i2", 1)])
def test_what_did_not_change_stays_to_the_byte_and_what_did_is_added_in_the_grey_values_of_the_file(
        tmp_path, kind, slope):
    values, _ = heart((4, 160, 150), (8, 1.5, 1.5))
    array, affine = stored_as(values / 3, (1, 0, 2), (0, 1, 1), (1.5, 1.5, 8))
    path, original = tmp_path / "x.nii.gz", nib.Nifti1Image(array.astype(kind), affine)
    original.header["descrip"], original.header["cal_max"] = b"scanner 7", 300
    original.header.set_slope_inter(slope, 0)
    nib.save(original, path)
    image = read_image(path)
    volume, (working, geometry) = image.frames[..., 0], working_of(image)
    image.write_frames(tmp_path / "same.nii.gz", changed(volume, working, working, geometry)[..., None])
    same, there = (nib.load(tmp_path / name) for name in ("same.nii.gz", "x.nii.gz"))
    assert same.header == there.header and np.array_equal(same.dataobj.get_unscaled(), there.dataobj.get_unscaled())

    result = changed(volume, working, working - 0.2, geometry)
    image.write_frames(tmp_path / "darker.nii.gz", result[..., None])
    darker = read_image(tmp_path / "darker.nii.gz")
    assert nib.load(tmp_path / "darker.nii.gz").header == there.header
    step, depth = (volume - darker.frames[..., 0]).mean(2), depth_mm(geometry)
    whole = 0.1 * (geometry.high - geometry.low)
    assert (step[depth <= 0] == 0).all() and (depth <= 0).any()
    bright = (volume > volume.min() + whole).all(2)
    assert np.abs(step - whole)[(depth >= 10) & bright].max() < max(0.51 * slope, 0.01)
    half = np.abs(depth - 5) < 0.8
    assert 0.3 * whole < step[half & bright].mean() < 0.7 * whole


def test_the_field_of_view_is_shown_upright_and_no_more(tmp_path):
    """160 mm of 240 in pixels of 1.5 mm, turned to the clinical view whatever way they are stored."""
    values, _ = heart((3, 160, 160), (8, 1.5, 1.5))
    image = read_image(save(tmp_path / "x.nii", *stored_as(values, (1, 0, 2), (1, 0, 1), (1.5, 1.5, 8))))
    _, geometry = working_of(image)
    shown = view(image.frames[..., 0], geometry)
    middle = values.astype(np.int16)[:, 27:133, 27:133]
    assert np.array_equal(shown, middle)


PADDINGS = (0, -1000, -32768)


def padded(path, padding, kind=np.int16):
    """Write a heart whose border is padding to `path`; return its voxels (D, H, W)."""
    values, _ = heart((3, 90, 80), (8, 2, 2))
    values[:, :12], values[:, :, -9:] = padding, padding
    save(path, *stored_as(values, (0, 1, 2), (0, 0, 0), (2, 2, 8)), kind)
    return values


def in_the_experiment(path, frame=None):
    """(working volume, notes) of a file, or of a frame of it, as the experiment prepares it."""
    read_nifti.cache_clear()
    image, _, nifti, notes = read_volume(Record("x", "ED", str(path), frame=frame))
    return to_working(image, nifti, GRID)[0], notes


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_scales_an_image_no_more_than_in_the_experiment_and_stays_as_it_is(tmp_path, monkeypatch, padding):
    path, seen = tmp_path / "x.nii.gz", []
    padded(path, padding)
    expected, notes = in_the_experiment(path)

    def darker(sd_dm, working, *rest):
        seen.append(working)
        return working - 0.2, 0

    monkeypatch.setattr(translate, "translate", darker)
    sd_dm = SourceModel(None, Schedule.make("cosine"), None, 0, 1, {"spacing_mm": 2.5, "size": 64}, (), "")
    said = translate.translate_file(path, sd_dm, tmp_path / "out.nii.gz", Strength())
    translate.draw_ladder(path, sd_dm, tmp_path / "ladder.svg", [Strength()])
    assert all(np.array_equal(working, expected) for working in seen) and len(seen) == 2
    assert said == notes and len(notes) == (padding < 0)
    before, after = (read_image(name).frames for name in (path, tmp_path / "out.nii.gz"))
    where = before == padding
    assert 0.2 < where.mean() < 0.3 and (padding == 0 or (after[where] == padding).all())
    assert (before - after)[~where].mean() > 20


def test_voxels_that_are_no_numbers_are_said_and_an_image_of_padding_alone_is_constant(tmp_path, monkeypatch):
    path = tmp_path / "x.nii.gz"
    values = padded(path, 0)
    values[0, 40, 40] = np.nan
    save(path, *stored_as(values, (0, 1, 2), (0, 0, 0), (2, 2, 8)), np.float32)
    monkeypatch.setattr(translate, "translate", lambda sd_dm, working, *rest: (working, 0))
    sd_dm = SourceModel(None, Schedule.make("cosine"), None, 0, 1, {"spacing_mm": 2.5, "size": 64}, (), "")
    assert translate.translate_file(path, sd_dm, tmp_path / "out.nii.gz", Strength()) == [
        f"1 non-finite voxels set to 0 in {path}"]
    save(path, *stored_as(np.where(values > 0, 7, -9999), (0, 1, 2), (0, 0, 0), (2, 2, 8)))
    with pytest.raises(DataError, match=r"constant \(7\) but for its padding; leave it out"):
        read_image(path)


def test_a_bad_file_ends_no_ladder(tmp_path, monkeypatch, capsys):
    for name in ("a.nii.gz", "bad.nii.gz", "c.nii.gz"):
        padded(tmp_path / "in" / name, -1000)
    bad = tmp_path / "in" / "bad.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-50])
    sd_dm = SourceModel(None, Schedule.make("cosine"), None, 0, 1, {"spacing_mm": 2.5, "size": 64}, (), "")
    monkeypatch.setattr(SourceModel, "load", lambda path, device: sd_dm)
    monkeypatch.setattr(SourceModel, "require_usable", lambda self, strength: None)
    monkeypatch.setattr(translate, "translate", lambda sd_dm, working, *rest: (working, 0))
    with pytest.raises(DataError, match="1 of 3 images could not be used: .*bad.nii.gz: is truncated or damaged"):
        translate.main([str(tmp_path / "in"), "--diffusion", "sd-dm.pt", "--ladder", WEAK,
                        "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.svg")) == ["a_ladder.svg", "c_ladder.svg"]
    assert f"left out: {bad}: is truncated" in capsys.readouterr().out
