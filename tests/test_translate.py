"""Image files with the look of the source."""
import nibabel as nib
import numpy as np
import pytest

from cmr import translate
from cmr.image_files import read_image
from cmr.sampler import SourceModel, Strength
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
