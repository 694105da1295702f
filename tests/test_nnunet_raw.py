"""nnU-Net raw: what names of files and dataset.json say, and what is wrong with them."""
import json

import numpy as np
import pytest

from cmr.check_dataset import Config, check_dataset
from cmr.errors import DataError
from cmr.nifti import read_volume
from cmr.studies import find, left_out
from helpers import cine, nifti

LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}


def dataset(root, cases, image="{}_0000.nii.gz", **described):
    """A dataset of these cases; described : what dataset.json says otherwise."""
    for i, case in enumerate(cases):
        voxels, label = cine(i)
        nifti(root / "imagesTr" / image.format(case), voxels[..., 0])
        nifti(root / "labelsTr" / f"{case}.nii.gz", label[..., 0])
    usual = {"channel_names": {"0": "cine"}, "labels": LABELS, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**usual, **described}))
    return root


def test_both_versions(tmp_path):
    image, label = cine(0)
    for labels, root in (
        ({"background": 0, "LV": 1, "RV": 2}, tmp_path / "v2"),
        ({"0": "background", "1": "LV", "2": "RV"}, tmp_path / "v1"),
    ):
        nifti(root / "imagesTr" / "A0S9V9_ED_0000.nii.gz", image[..., 0])
        nifti(root / "labelsTr" / "A0S9V9_ED.nii.gz", np.array([0, 1, 0, 2], np.uint8)[label[..., 0]])
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        record, = find(root)
        assert record.subject == "A0S9V9"
        assert (read_volume(record)[1] == np.where(label[..., 0] == 2, 0, label[..., 0])).all()


@pytest.mark.parametrize("case,subject,phase", [
    ("cardiac_00000", "cardiac_00000", "ED"), ("A0S9V9_0000_A_1", "A0S9V9_0000_A_1", "ED"), ("pat_ed", "pat", "ED"),
    ("pat_Es", "pat", "ES"), ("patient001_Frame01", "patient001", "frame01"), ("heart_0000", "heart_0000", "ED"),
    ("EDWARD_ES", "EDWARD", "ES"), ("x_frame", "x_frame", "ED"), ("la_0003", "la_0003", "ED")])
def test_only_a_phase_or_a_frame_ends_a_subjects_name(tmp_path, case, subject, phase):
    record, = find(dataset(tmp_path, [case]))
    assert (record.subject, record.phase) == (subject, phase) and read_volume(record)[1].any()
    assert not left_out(tmp_path)


def test_what_the_names_leave_out_is_named(tmp_path):
    dataset(tmp_path, ["a_ED", "a_ES"], channel_names={"0": "cine", "1": "LGE"}, numTraining=5)
    image, label = cine(9)
    nifti(tmp_path / "imagesTr" / "a_ED_0001.nii.gz", image[..., 0])
    nifti(tmp_path / "imagesTr" / "b_ED.nii.gz", image[..., 0])
    nifti(tmp_path / "labelsTr" / "c_ED.nii.gz", label[..., 0])
    assert len(find(tmp_path)) == 2
    assert left_out(tmp_path) == [
        (str(tmp_path / "dataset.json"), "says numTraining 5, imagesTr holds 3"),
        ("channel 1 (LGE)", "1 files in imagesTr: only channel 0 is read"),
        ("imagesTr/b_ED.nii.gz", "no channel number: expected <case>_0000.nii.gz"),
        ("labelsTr/c_ED", "a mask without an image c_ED_0000 in imagesTr")]


@pytest.mark.parametrize("image", ["{}.nii.gz", "{}_0001.nii.gz", "{}.NII.GZ"])
@pytest.mark.parametrize("case", ["la_001", "la_0001", "la_0000"])
def test_images_without_channel_0_are_refused_with_what_to_rename(tmp_path, case, image):
    dataset(tmp_path, [case], image)
    with pytest.raises(DataError, match=f"imagesTr: 1 files and none of channel 0; .* found {image.format(case)}; re"):
        find(tmp_path)


def test_suffixes_in_capitals_and_of_two_kinds(tmp_path):
    dataset(tmp_path, ["a_ED"], "{}_0000.NII.GZ")
    (tmp_path / "labelsTr" / "a_ED.nii.gz").rename(tmp_path / "labelsTr" / "a_ED.Nii.Gz")
    record, = find(tmp_path)
    assert read_volume(record)[1].any()
    nifti(tmp_path / "imagesTr" / "a_ED_0000.nii", cine(0)[0][..., 0])
    with pytest.raises(DataError, match="a_ED_0000 is there twice"):
        find(tmp_path)


@pytest.mark.parametrize("change,words", [
    (lambda text: text.replace('"numTraining"', ',"numTraining"'), "no valid JSON"), (lambda text: "", "no valid JSON"),
    (lambda text: "[]", "no labels"), (lambda text: "{}", "no labels"),
    (lambda text: text.replace(json.dumps(LABELS), '["LV"]'), "no labels; expected"),
    (lambda text: text.replace('"LV": 1', '"LV": [1, 2]'), r"label 'LV' is \[1, 2\], expected one whole number"),
    (lambda text: text.replace('"LV": 1', '"LV": 1.5'), "label 'LV' is 1.5"),
    (lambda text: text.replace('"LV": 1', '"LV": null'), "label 'LV' is None"),
    (lambda text: text.replace('"LV": 1', '"1": 1'), "label '1'; expected background, LV, MYO, RV .* rename it there"),
    (lambda text: text.replace('"LV": 1', '"aorta": 1'), "label 'aorta'; expected background"),
    (lambda text: text.replace('"LV": 1', '"LV": 2'), r"label 'MYO' \(2\) repeats the structure or the value"),
    (lambda text: text.replace('"LV": 1', '"LV": 1, "LVC": 4'), r"label 'LVC' \(4\) repeats the structure")])
def test_a_description_that_cannot_be_understood_is_refused_in_one_line(tmp_path, change, words):
    path = dataset(tmp_path, ["a_ED"]) / "dataset.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=f"dataset.json: {words}") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [{"background": 0, "RV": 3, "MLV": 2, "LVC": 1}, {"LVBP": 1, "LVM": 2, "RV": 3},
                                    {"background": 0, "lv cavity": 1, "Myocardium": 2, "right_ventricle": 3},
                                    {**LABELS, "ignore": 4}, {"0": "background", "1": "LV", "2": "MYO", "3": "RV"}])
def test_the_structures_are_known_by_the_names_that_nnunet_gives_them(tmp_path, labels):
    dataset(tmp_path, ["a_ED"], labels=labels)
    (tmp_path / "dataset.json").write_text("\ufeff" + (tmp_path / "dataset.json").read_text(), encoding="utf-8")
    record, = find(tmp_path)
    assert (read_volume(record)[1] == cine(0)[1][..., 0]).all()


def test_a_voxel_to_be_ignored_and_a_lost_description_are_refused(tmp_path):
    dataset(tmp_path, ["a_ED"], labels={"background": 0, "LV": 1, "MYO": 2, "ignore": 3})
    with pytest.raises(DataError, match=r"label values \[3\]"):
        check_dataset(Config(data=str(tmp_path), source=f"Dataset={tmp_path.name}"))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="dataset.json: missing"):
        find(tmp_path)
