"""The check before anything long starts."""
import nibabel as nib
import numpy as np
import pytest

from cmr.check_dataset import Config, check_dataset
from cmr.errors import DataError, UsageError
from cmr.nifti import read_nifti
from helpers import cine, mms, one_line, script


def test_check_lists_everything_and_finds_leaks(tmp_path, capsys):
    image, _ = cine(5)
    one = tmp_path / "one"
    source = {"A0S9V9": {}, "A1S9V9": {"folder": "Validation"}, "B0S9V9": {"folder": "Testing"}}
    tested = {"C0S9V9": {"folder": "Testing", "Vendor": "B"}}
    mms(one, {**source, "B1S9V9": {"folder": "Validation", "Vendor": "B"}, **tested})
    findings = check_dataset(Config(data=str(one), target="Vendor=B", size=32))
    assert findings["found"] == ["5 subjects, 10 volumes"] and not findings["UNUSABLE"]
    assert findings["structures"] == ["LV in 10 volumes, MYO in 10 volumes, RV in 10 volumes"]
    asked = dict(data=str(one), target="Vendor=B", size=32)       # before the first stage, not after every training
    with pytest.raises(UsageError, match="Vendor=B has no labelled Training volumes"):
        check_dataset(Config(**asked, upper_bound=True))
    with pytest.raises(UsageError, match="vanilla-more belongs to no row"):
        check_dataset(Config(**asked, segmenters="vanilla-real,vanilla-more"))
    for overlap in ("Vendor=A", "Vendor=B"):
        with pytest.raises(UsageError, match=f"is in {overlap} and in {overlap} .* choose --references apart"):
            check_dataset(Config(**asked, references=overlap))
    assert "spacing mm: 1.25 x 1.25 x 9.00" in capsys.readouterr().out
    mms(one, {"A0S9V9": {"image": image}, "B0S9V9": {"folder": "Testing", "image": image}})
    with pytest.raises(DataError, match="leakage between splits: one image under two names"):
        check_dataset(Config(data=str(one)))
    mms(tmp_path / "two", {"A0S9V9": {}, "B0S9V9": {"folder": "Testing", "image": image},
                           "B1S9V9": {"folder": "Testing", "image": image}})         # would be two patients of a test
    with pytest.raises(DataError, match=r": one image under two names, .*B0S9V9.*B1S9V9"):
        check_dataset(Config(data=str(tmp_path / "two")))
    mms(tmp_path / "other", {**source, **tested})
    # before a diffusion model is trained for it
    with pytest.raises(UsageError, match="Vendor=B has no Validation volumes"):
        check_dataset(Config(data=str(tmp_path / "other"), target="Vendor=B", size=32))
    bad = one / "OpenDataset" / "Testing" / "B0S9V9" / "B0S9V9_sa.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    read_nifti.cache_clear()
    with pytest.raises(DataError, match="2 of .* volumes cannot be used"):
        check_dataset(Config(data=str(one)))


def test_masks_of_zeros_and_masks_without_a_structure_are_named(tmp_path, capsys):
    _, label = cine(1)
    mms(tmp_path, {"A0S9V9": {}, "A1S9V9": {"label": np.where(label == 3, 0, label)}, "A2S9V9": {"label": 0 * label}})
    findings = check_dataset(Config(data=str(tmp_path), size=32))
    assert findings["left out"] == ["A2S9V9_ED: its mask is all zero", "A2S9V9_ES: its mask is all zero"]
    printed = capsys.readouterr().out
    for phase in ("ED", "ES"):
        assert f"left out: A2S9V9_{phase}: its mask is all zero" in printed
        assert f"A1S9V9_{phase} (RV, labelled elsewhere in Vendor=A Training)" in printed
    assert "A0S9V9" not in printed


def test_swapped_ventricles_are_named(tmp_path, capsys):
    """LV inside the ring of myocardium, RV beside it; a file with labels 1 and 3 exchanged is named, not refused."""
    image, label = cine(1)
    mms(tmp_path, {"A0S9V9": {}, "A1S9V9": {"label": np.array([0, 3, 2, 1], np.uint8)[label]}})
    findings = check_dataset(Config(data=str(tmp_path), size=32))
    [named] = findings["note"]
    assert "encloses what is labelled RV) in " in named and named.endswith("A1S9V9_sa_gt.nii.gz (2 volumes)")
    assert f"note: {named}" in capsys.readouterr().out


@pytest.mark.parametrize("change,words", [
    ({"label": 0 * cine(0)[1]}, "A0S9V9_ED: its mask is all zero"),
    ({"ED": 1, "ES": 3}, "A0S9V9_ED: .*the neighbouring frame before it is labelled: ED and ES in the table must")])
def test_masks_that_are_all_empty_in_training_are_refused(tmp_path, change, words):
    mms(tmp_path, {"A0S9V9": change, "A1S9V9": change, "B0S9V9": {"folder": "Testing", "Vendor": "B"}})
    with pytest.raises(DataError, match=f"no mask of the training volumes of Vendor=A labels anything; {words}"):
        check_dataset(Config(data=str(tmp_path), size=32))


def test_masks_that_are_all_empty_in_validation_are_refused(tmp_path):
    data = tmp_path / "data"
    mms(data, {"A0S9V9": {}, "B0S9V9": {"folder": "Testing", "Vendor": "B"},
               "A1S9V9": {"folder": "Validation", "label": 0 * cine(0)[1]}})
    words = "no mask of the validation volumes of Vendor=A labels anything; A1S9V9_ED: its mask is all zero"
    with pytest.raises(DataError, match=words):
        check_dataset(Config(data=str(data), size=32))
    data_of_b = tmp_path / "tested"
    mms(data_of_b, {"A0S9V9": {}, "A1S9V9": {"folder": "Validation"}, "A2S9V9": {"folder": "Testing"},
                    "B0S9V9": {"folder": "Validation", "Vendor": "B"},
                    "B1S9V9": {"folder": "Testing", "Vendor": "B", "label": 0 * cine(0)[1]}})
    with pytest.raises(DataError, match="no mask of the testing volumes of Vendor=B labels anything; B1S9V9_ED: its"):
        check_dataset(Config(data=str(data_of_b), target="Vendor=B", size=32))
    code, _, errors = script("train_unet.py", "--preset", "tiny", "--data", data, "--out", tmp_path / "run",
                             "--work", tmp_path / "work", "--network", "nnunet2d")
    assert code == 3 and one_line(errors) and "no mask of the validation volumes of Vendor=A" in errors, errors


def test_what_cannot_be_trained_on_is_left_out_by_name(tmp_path):
    """A mask of zeros, and a study without ED and ES whose first frame is blank."""
    image, label = cine(3)
    one, blank = label.copy(), image.copy()
    one[..., 2], blank[..., 0] = 0, 0
    mms(tmp_path, {"A0S9V9": {"label": one}, "A1S9V9": {"image": blank, "ED": 0, "ES": 0}})
    left_out = check_dataset(Config(data=str(tmp_path), size=32))["left out"]
    assert "A0S9V9_ES: its mask is all zero" in left_out
    assert any("F00 of A1S9V9 is constant (0)" in item for item in left_out)


def test_a_corrected_header_or_table_is_other_content(tmp_path):
    """check.json is written anew, so that make asks the stages again; nothing of the voxels has changed."""
    studies = {"A0S9V9": {}, "A1S9V9": {"folder": "Testing"}}
    content = lambda: check_dataset(Config(data=str(tmp_path), size=32))["content"][0]
    mms(tmp_path, studies)
    first = content()
    assert content() == first
    mms(tmp_path, {**studies, "A1S9V9": {"folder": "Testing", "Centre": "2"}})
    read_nifti.cache_clear()
    in_the_table = content()
    path = next(tmp_path.rglob("A0S9V9_sa.nii.gz"))
    image = nib.load(path)
    for file in (path, path.with_name("A0S9V9_sa_gt.nii.gz")):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), image.affine @ np.diag([-1, -1, 1, 1])), file)
    read_nifti.cache_clear()
    assert len({first, in_the_table, content()}) == 3
