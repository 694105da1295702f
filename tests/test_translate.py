"""Images of one's own with the look of the source."""
import nibabel as nib
import numpy as np
import pytest

from cmr import translate
from cmr.own_image import read_own
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
    code, out, errors = call("--t0", 30)
    assert code == 3 and one_line(errors) and "1 of 2 images" in errors and "damaged" in errors
    made = tmp_path / "out" / study.name
    before, after = read_own(study).frames, read_own(made).frames
    assert (before[:20, ..., 0] != before[:20, ..., 1]).any() and np.array_equal(before[:20], after[:20])
    when = made.stat().st_mtime_ns
    assert call("--t0", 30)[0] == 3 and made.stat().st_mtime_ns == when
    assert call("--t0", 40)[0] == 4
    for wanted, words, arguments in ((2, "one projection", ["--strength", "none"]), (2, "exceeds", ["--t0", 3000]),
                                     (2, "two voxel numbers", ["--centre", "left"]),
                                     (2, "would replace", ["--out", study.parent]),
                                     (3, "2 of 2 images", ["--centre", "9999,1"])):
        code, _, errors = call(*([] if "--out" in arguments else ["--out", tmp_path / "other"]), *arguments)
        assert code == wanted and words in errors and one_line(errors), errors
    assert not list(tmp_path.rglob("*.tmp.*")) and not (tmp_path / "other" / study.name).exists()
