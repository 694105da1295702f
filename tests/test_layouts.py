"""Every dataset layout, built by the test as small files, and the known bad cases of real releases."""
import json
import re
import shutil

import numpy as np
import pytest

from cmr.check_dataset import Config, check_dataset
from cmr.errors import DataError
from cmr.files import write_csv
from cmr.layouts import LAYOUTS
from cmr.nifti import read_volume
from cmr.records import Record
from cmr.studies import find, left_out
from cmr.synthetic_set import COLUMNS
from helpers import HEADER, cine, mms, nifti

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
    for labels, root in (({"background": 0, "LV": 1, "RV": 2}, tmp_path / "v2"),
                         ({"0": "background", "1": "LV", "2": "RV"}, tmp_path / "v1")):
        nifti(root / "imagesTr" / "A0S9V9_ED_0000.nii.gz", image[..., 0])
        nifti(root / "labelsTr" / "A0S9V9_ED.nii.gz", np.array([0, 1, 0, 2], np.uint8)[label[..., 0]])
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        record, = find(root)
        assert record.subject == "A0S9V9"
        assert (read_volume(record)[1] == np.where(label[..., 0] == 2, 0, label[..., 0])).all()


@pytest.mark.parametrize("case,subject,phase", [
    ("cardiac_00000", "cardiac_00000", "ED"), ("A0S9V9_0000_A_1", "A0S9V9", "frame0000"), ("pat_ed", "pat", "ED"),
    ("pat_Es", "pat", "ES"), ("patient001_Frame01", "patient001", "frame01"), ("heart_0000", "heart_0000", "ED"),
    ("EDWARD_ES", "EDWARD", "ES"), ("x_frame", "x_frame", "ED"), ("la_0003", "la_0003", "ED")])
def test_only_a_phase_or_a_frame_ends_a_subjects_name(tmp_path, case, subject, phase):
    record, = find(dataset(tmp_path, [case]))
    assert (record.subject, record.phase) == (subject, phase) and read_volume(record)[1].any()
    assert not left_out(tmp_path)


def test_what_the_names_leave_out_is_named(tmp_path):
    dataset(tmp_path, ["a_ED", "a_ES"], channel_names={"0": "cine", "1": "LGE"})
    image, label = cine(9)
    nifti(tmp_path / "imagesTr" / "a_ED_0001.nii.gz", image[..., 0])
    nifti(tmp_path / "imagesTr" / "b_ED.nii.gz", image[..., 0])
    nifti(tmp_path / "labelsTr" / "c_ED.nii.gz", label[..., 0])
    assert len(find(tmp_path)) == 2
    assert left_out(tmp_path) == [
        ("channel 1", "1 files in imagesTr: only channel 0 is read"),
        ("imagesTr/b_ED.nii.gz", "no channel number: expected <case>_0000.nii.gz"),
        ("labelsTr/c_ED", "a mask without an image c_ED_0000 in imagesTr")]


@pytest.mark.parametrize("case,image", [("la_001", "{}.nii.gz"), ("la_0001", "{}_0001.nii.gz"),
                                        ("la_0000", "{}.nii.gz"), ("la_0000", "{}.NII.GZ")])
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
    (lambda text: text.replace('"LV": 1', '"LV": [1, 2]'), r"label 'LV': \[1, 2\]; expected .* one whole number"),
    (lambda text: text.replace('"LV": 1', '"LV": 1.5'), "label 'LV': 1.5"),
    (lambda text: text.replace('"LV": 1', '"LV": null'), "label 'LV': None"),
    (lambda text: text.replace('"LV": 1', '"1": 1'), "label '1': 1; expected background, LV, MYO, RV "),
    (lambda text: text.replace('"LV": 1', '"aorta": 1'), "label 'aorta': 1; expected background"),
    (lambda text: text.replace('"LV": 1', '"LV": 2'), "label 'MYO': 2; .* each once"),
    (lambda text: text.replace('"LV": 1', '"LV": 1, "LVC": 4'), "label 'LVC': 4; .* each once")])
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


@pytest.mark.parametrize("text", ["case,subject,phase,split\na_ED,a,ED,0\n", "file;hash\nx;1\n", ""])
def test_a_manifest_of_another_program_is_an_ordinary_file(tmp_path, text):
    (dataset(tmp_path, ["a_ED", "b_ED"]) / "manifest.csv").write_text(text)
    records = find(tmp_path)
    assert [r.subject for r in records] == ["a", "b"]
    assert not any(r.limits or "split" in r.metadata for r in records)


def test_a_manifest_of_ours_that_has_lost_its_seal_or_its_columns_is_refused(tmp_path):
    path = dataset(tmp_path, ["a_ED_s0"]) / "manifest.csv"
    row = {"case": "a_ED_s0", "subject": "a", "phase": "ED", "kept": 1}
    write_csv(path, [row], COLUMNS, sealed=True)
    assert [r.case for r in find(tmp_path)] == ["a_ED_s0"] and find(tmp_path)[0].limits
    sealed = path.read_text()
    path.write_text("")
    with pytest.raises(DataError, match="manifest.csv: not as it was written"):
        find(tmp_path)
    (tmp_path / "manifest.csv.sha256").unlink()
    for text in (sealed, sealed.replace(",sd_dm,", ",other,"), sealed.replace("case,", "other,").replace(",", ";")):
        path.write_text(text)
        with pytest.raises(DataError, match="manifest.csv: not as it was written"):
            find(tmp_path)


def test_mms1_cine(tmp_path):
    other = {"VendorName": "Philips", "Vendor": "B", "ED": "2.0", "ES": "0,0", "folder": "Testing"}
    mms(tmp_path, {"A0S9V9": {}, "B1C2D3": other})
    (tmp_path / "OpenDataset" / "Testing" / "B1C2D3" / "._B1C2D3_sa.nii.gz").write_bytes(b"AppleDouble")
    records = find(tmp_path)
    assert [(r.case, r.vendor, r.split, r.frame) for r in records] == [
        ("A0S9V9_ED", "A", "Training", 0), ("A0S9V9_ES", "A", "Training", 2),
        # ED after ES is normal, never "repaired"
        ("B1C2D3_ED", "B", "Testing", 2), ("B1C2D3_ES", "B", "Testing", 0)]
    assert all(read_volume(r)[1].any() for r in records)
    frames = find(tmp_path, all_frames=True)
    assert [r.phase for r in frames if r.subject == "A0S9V9"] == ["ED", "ES", "F01", "F03"]
    assert frames[2].label_path is None


def test_mms1_flattened_and_pre_split(tmp_path):
    image, label = cine(0)
    for phase, f in (("ED", 0), ("ES", 2)):
        nifti(tmp_path / "A0S9V9" / f"A0S9V9_sa_{phase}.nii.gz", image[..., f])
        nifti(tmp_path / "A0S9V9" / f"A0S9V9_sa_{phase}_gt.nii.gz", label[..., f])
    header = "External code;VendorName; Vendor ;Centre;ED;ES;Pathology"
    (tmp_path / "info.csv").write_text(f"{header}\nA0S9V9;GE;C;7;;;HCM\n")
    records = find(tmp_path)
    assert [(r.case, r.vendor, r.pathology, r.frame, r.split) for r in records] == [
        ("A0S9V9_ED", "C", "HCM", None, ""), ("A0S9V9_ES", "C", "HCM", None, "")]
    assert (read_volume(records[0])[1] == label[..., 0]).all()


def test_mms2(tmp_path):
    image, label = cine(0)
    for phase in ("ED", "ES"):
        nifti(tmp_path / "dataset" / "007" / f"007_SA_{phase}.nii.gz", image[..., 0])
        nifti(tmp_path / "dataset" / "007" / f"007_SA_{phase}_gt.nii.gz", label[..., 0])
        nifti(tmp_path / "dataset" / "007" / f"007_LA_{phase}.nii.gz", image[..., 0])
    table = "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n7,TRI,Philips Medical Systems,Achieva,1.5\n,,,,\n"
    (tmp_path / "dataset_information.csv").write_text(table)
    assert [(r.case, r.vendor, r.split, r.pathology) for r in find(tmp_path)] == [
        ("007_ED", "B", "Training", "TRI"), ("007_ES", "B", "Training", "TRI")]


def test_acdc_labels_and_frames(tmp_path):
    image, label = cine(0)
    folder = acdc(tmp_path)
    nifti(folder / "patient001_4d.nii.gz", image)
    (folder / "Info.cfg").write_text("ED: 12\nES: 1\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
    records = find(tmp_path)
    assert [(r.case, r.image_path[-9:-7], r.pathology, r.split) for r in records] == [
        ("patient001_ED", "12", "DCM", "Training"), ("patient001_ES", "01", "DCM", "Training")]
    assert (read_volume(records[0])[1] == label[..., 2]).all()


def test_images_and_labels_with_and_without_a_table(tmp_path):
    image, label = cine(0)
    for name, f in (("anna_ed", 0), ("anna_es", 2), ("bert", 0)):
        nifti(tmp_path / "images" / f"{name}.nii.gz", image[..., f])
        nifti(tmp_path / "labels" / f"{name}.nii", label[..., f])
    nifti(tmp_path / "images" / "carla.nii.gz", image)
    nifti(tmp_path / "labels" / "carla.nii.gz", label)
    nifti(tmp_path / "labels" / "dora.nii.gz", label)
    cases = lambda: [(r.case, r.frame, r.vendor, r.split) for r in find(tmp_path)]
    two = [("anna_ED", None, "", ""), ("anna_ES", None, "", "")]
    assert cases() == [*two, ("bert_ED", None, "", ""), ("carla_F00", 0, "", "")]
    assert all(read_volume(r)[1].any() for r in find(tmp_path) if r.subject != "carla")
    assert find(tmp_path)[-1].label_path is None                  # which of its frames are ED and ES nobody knows
    assert ("labels/dora", "has no image") in left_out(tmp_path)

    table = tmp_path / "about.csv"
    table.write_text("Age,Patient,Vendor,Split,ED,ES\n50,anna,GE,test,,\n51,carla,Philips,Training,2,0\n")
    assert cases() == [("anna_ED", None, "GE", "Testing"), ("anna_ES", None, "GE", "Testing"),
                       ("carla_ED", 2, "Philips", "Training"), ("carla_ES", 0, "Philips", "Training")]
    assert ("bert", "has files but no row in the table") in left_out(tmp_path)
    assert find(tmp_path)[0].metadata["age"] == "50"
    table.write_text("Patient\nanna\n")
    assert [r.case for r in find(tmp_path)] == ["anna_ED", "anna_ES"]
    table.write_text("Patient\nsomebody else\n")
    with pytest.raises(DataError, match="no column holds the names"):
        find(tmp_path)
    table.unlink()
    nifti(tmp_path / "images" / "bert.nii", image[..., 0])
    with pytest.raises(DataError, match="bert is there twice"):
        find(tmp_path)
    (tmp_path / "images" / "bert.nii").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3}}))
    assert (read_volume(find(tmp_path)[0])[1] == np.array([0, 3, 2, 1])[label[..., 0]]).all()


def plain(root, *names):
    for name in names:
        image, label = cine(0)
        nifti(root / "images" / f"{name}.nii.gz", image[..., 0])
        nifti(root / "labels" / f"{name}.nii.gz", label[..., 0])
    return root


def test_rows_without_a_name_and_a_quote_that_is_not_closed(tmp_path):
    mms(tmp_path, {"A0S9V9": {}})
    table, = tmp_path.rglob("*.csv")
    text = table.read_text(encoding="utf-8-sig")
    table.write_text(text + ",,,,\n,,Siemens,,\n")
    assert len(find(tmp_path)) == 2
    table.write_text(text + '"' + "x" * 200_000)
    with pytest.raises(DataError, match="no valid CSV .*look for a quote that is not closed"):
        find(tmp_path)


def test_a_column_split_goes_before_folders_in_mms(tmp_path):
    mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {}, "C0S9V9": {}})
    table, = tmp_path.rglob("*.csv")
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    cells = ("Split", "test", "", "Validation")
    table.write_text("\n".join(f"{line},{cell}" for line, cell in zip(lines, cells)))
    assert {r.subject: r.split for r in find(tmp_path)} == {"A0S9V9": "Testing", "B0S9V9": "Training",
                                                            "C0S9V9": "Validation"}


def test_folders_of_images_are_splits_or_begin_the_name(tmp_path):
    plain(tmp_path, "train/anna_ED", "train/anna_ES", "Test/bert", "val/ward/carla", "ward/dora", "train")
    found = find(tmp_path)
    assert [(r.case, r.split) for r in found] == [
        ("anna_ED", "Training"), ("anna_ES", "Training"), ("bert_ED", "Testing"), ("train_ED", ""),
        ("ward_carla_ED", "Validation"), ("ward_dora_ED", "")]
    assert all(r.label_path for r in found) and not left_out(tmp_path)
    (tmp_path / "about.csv").write_text("Name,Split\nanna,\nbert,train\nward_carla,\n")
    assert [r.split for r in find(tmp_path)] == ["Training", "Training", "Training", "Validation"]
    (tmp_path / "about.csv").write_text("Name,Split\nanna,fit\nbert,eval\nward_carla,\n")
    with pytest.raises(DataError, match="the table says split 'eval' of bert; use training, validation or testing"):
        find(tmp_path)
    (tmp_path / "about.csv").unlink()
    plain(tmp_path, "test/anna_ED")
    with pytest.raises(DataError, match="anna_ED is there twice: .*test/anna_ED.* and .*train/anna_ED.* or rename it"):
        find(tmp_path)


def test_images_of_a_challenge_in_a_folder_of_images_need_no_table_of_it(tmp_path):
    plain(tmp_path, "A0S9V9_sa_ED", "patient001_frame01", "001_SA_ES")
    assert [r.case for r in find(tmp_path)] == ["001_SA_ES", "A0S9V9_sa_ED", "patient001_frame01"]


@pytest.mark.parametrize("table,vendors", [
    ("Scan order,Patient,Vendor\n1,3,Z\n2,1,X\n4,2,Y", "XYZ"),   # a column of other numbers holds two of three
    ("Centre,Patient,Vendor\n3,1,X\n2,2,Y\n1,3,Z", "XYZ"),
    ("Patient,Copy,Vendor\n1,1,X\n2,2,Y\n3,3,Z", "XYZ"), ("Patient,File,Vendor\n1,1_ED,X\n2,2,Y\n3,3,Z", "XYZ"),
    ("Scan order,Patient,Vendor\n1,3,Z\n2,1,X\n3,2,Y", None)])    # nobody can tell which of the two it is
def test_the_column_that_holds_the_most_names_tells_whose_a_row_is(tmp_path, table, vendors):
    plain(tmp_path, "1_ED", "2", "3")
    (tmp_path / "about.csv").write_text(table)
    if vendors:
        assert "".join(r.vendor for r in find(tmp_path)) == vendors
    else:
        with pytest.raises(DataError, match="columns scan order and patient both hold names of images, but 1 stands"):
            find(tmp_path)


@pytest.mark.parametrize("above", ["data", "Unlabeled"])
def test_unlabelled_studies_and_their_disputed_masks(tmp_path, above):
    """Folders above the dataset say nothing of its studies."""
    tmp_path = tmp_path / above
    unlabelled = {"folder": "Training/Unlabeled"}
    mms(tmp_path, {"A0S9V9": {}, "C0S9V9": {**unlabelled, "ED": 0, "ES": 0}, "D0S9V9": unlabelled})
    unlabelled = [r for r in find(tmp_path) if r.subject == "C0S9V9"]
    assert len(unlabelled) == 1 and unlabelled[0].label_path is None
    assert any("ED = ES = 0" in f for f in unlabelled[0].flags)
    assert all((r.label_path is None) == (r.subject != "A0S9V9") for r in find(tmp_path))
    assert all(r.label_path for r in find(tmp_path, use_unlabeled_masks=True) if r.subject == "D0S9V9")


def test_frame_outside_the_cine_rejects_that_phase_only(tmp_path):
    mms(tmp_path, {"A0S9V9": {"ES": 17}})
    record, = find(tmp_path)
    assert record.phase == "ED" and "ES frame 17 not within 4 frames" in record.flags[0]


def test_zero_filled_label_is_unlabelled_and_one_phase_may_be(tmp_path):
    image, label = cine(0)
    one = label.copy()
    one[..., 2] = 0
    mms(tmp_path, {"A0S9V9": {"label": 0 * label}, "B0S9V9": {"label": one}})
    labelled = {r.case: read_volume(r)[1] is not None for r in find(tmp_path)}
    assert labelled == {"A0S9V9_ED": False, "A0S9V9_ES": False, "B0S9V9_ED": True, "B0S9V9_ES": False}


def test_all_that_is_left_out_is_named(tmp_path):
    """Files without a row, a row without files, a mask that is lost, a phase beyond the cine."""
    mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {}, "C0S9V9": {}, "D0S9V9": {"ES": 9}})
    studies = tmp_path / "OpenDataset" / "Training" / "Labeled"
    nifti(tmp_path / "OpenDataset" / "Testing" / "Z9Z9Z9" / "Z9Z9Z9_sa.nii.gz", cine(9)[0])
    shutil.rmtree(studies / "B0S9V9")
    (studies / "C0S9V9" / "C0S9V9_sa_gt.nii.gz").unlink()
    assert {r.subject for r in find(tmp_path)} == {"A0S9V9", "C0S9V9", "D0S9V9"}
    assert left_out(tmp_path) == [
        ("B0S9V9", "stands in the table but has no files"), ("Z9Z9Z9", "has files but no row in the table"),
        ("C0S9V9_ED", "has no mask"), ("C0S9V9_ES", "has no mask"),
        ("D0S9V9_ED", "ES frame 9 not within 4 frames: phase left out")]


@pytest.mark.parametrize("cells,words", [
    (("0", "0"), "ED = ES = 0: unlabelled, though a mask is there: name the two frames that it labels"),
    (("", ""), "no ED and ES frame in the CSV: unlabelled, though"),
    (("first", "12."), "ED frame first not within 4 frames"), (("x", "y"), "no ED and ES frame in the CSV x and y: un"),
    (("0", "2.5"), "ES frame 2.5 not within 4 frames"),
    (("1", "4"), "ES frame 4 not within 4 frames: phase left out; do the frames in the CSV count from 1")])
def test_frames_that_cannot_be_meant_are_named_as_they_stand_in_the_table(tmp_path, cells, words):
    mms(tmp_path, {"A0S9V9": dict(zip(("ED", "ES"), cells))})
    assert any(words in why for _, why in left_out(tmp_path)), left_out(tmp_path)


@pytest.mark.parametrize("cells,words", [
    (("1", "3"), "the neighbouring frame before it is labelled: ED and ES in the table must count from 0"),
    (("3", "1"), "the neighbouring frame before it is labelled"), (("0", "1"), "the neighbouring frame after it"),
    (("3", "2"), "frame 0 is labelled instead: correct ED and ES")])
def test_a_mask_whose_other_frames_are_labelled_says_which(tmp_path, cells, words):
    mms(tmp_path, {"A0S9V9": dict(zip(("ED", "ES"), cells))})
    notes = [note for r in find(tmp_path) for note in read_volume(r)[3]]
    assert any("all zero; " in note and words in note for note in notes), notes


def test_es_taken_for_ed_is_named_and_a_mask_of_a_whole_cine_is_not(tmp_path):
    """ED and ES beside each other and counted from 1: the frame of ED is labelled, as ES."""
    image, label = cine(0)
    apart = label[..., [0, 2, 1, 3]]
    mms(tmp_path, {"A0S9V9": {"label": apart, "ED": 1, "ES": 2}, "B0S9V9": {"label": label[..., [0, 0, 2, 2]]}})
    notes = {r.case: " ".join(read_volume(r)[3]) for r in find(tmp_path)}
    assert "labels of another frame than the table's; the neighbouring frame before it" in notes["A0S9V9_ED"]
    assert "all zero; frame 0 is labelled instead" in notes["A0S9V9_ES"]
    assert not notes["B0S9V9_ED"] + notes["B0S9V9_ES"]


@pytest.mark.parametrize("encoding,more", [("utf-8-sig", ""), ("latin-1", "Médecin: X\n"), ("utf-16", "")])
def test_info_cfg_is_read_as_windows_writes_it(tmp_path, encoding, more):
    config = acdc(tmp_path) / "Info.cfg"
    config.write_bytes(("ED: 1\r\nES: 12\r\n" + more).encode(encoding))
    assert [r.case for r in find(tmp_path)] == ["patient001_ED", "patient001_ES"] and not left_out(tmp_path)


@pytest.mark.parametrize("text,words", [("ED: 0\nES: 12\n", "frame 0 of .*Info.cfg has no file left; there are 1, 12"),
                                        ("ES: 12\n", "frame  of .*Info.cfg has no file"),
                                        ("ED: 12\nES: 12\n", "frame 12 of .* has no file left; there are 1")])
def test_a_frame_of_info_cfg_that_is_wrong_is_named(tmp_path, text, words):
    (acdc(tmp_path) / "Info.cfg").write_text(text)
    assert len(find(tmp_path)) == 1 and re.search(words, left_out(tmp_path)[0][1])


def test_a_frame_of_acdc_that_is_there_twice_is_refused(tmp_path):
    folder = acdc(tmp_path)
    for name in ("patient001_frame01.nii", "patient001_frame1.nii"):
        nifti(folder / name, cine(1)[0][..., 0])
        with pytest.raises(DataError, match=f"frame 1 of patient001 is there twice: .*01.* and .*{name}.*; remove one"):
            find(tmp_path)
        (folder / name).unlink()


def test_two_layouts_below_one_folder_are_named(tmp_path):
    acdc(tmp_path / "french")
    mms(tmp_path / "spanish", {"A0S9V9": {}})
    nifti(tmp_path / "more" / "imagesTr" / "x_0000.nii.gz", cine(0)[0][..., 0])
    assert {r.subject for r in find(tmp_path)} == {"patient001"}
    [mms1, unknown] = sorted(left_out(tmp_path), key=lambda item: item[1])
    assert "1 files such as" in unknown[0] and "of no known layout" in unknown[1]
    assert "2 files such as" in mms1[0] and "of M&Ms-1, and one folder is read by one layout, ACDC here" in mms1[1]


def acdc(root):
    """A patient of frames 1 and 12: its folder."""
    image, label = cine(0)
    folder = root / "training" / "patient001"
    for frame, f in ((1, 0), (12, 2)):
        nifti(folder / f"patient001_frame{frame:02d}.nii.gz", image[..., f])
        # RV 1, MYO 2, LV 3
        nifti(folder / f"patient001_frame{frame:02d}_gt.nii.gz", np.array([0, 3, 2, 1], np.uint8)[label[..., f]])
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    return folder


def test_missing_things_are_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no files of a known layout .nnU-Net raw, .* and labels. .* images/NAME"):
        find(tmp_path)
    mms(tmp_path, {"A0S9V9": {}}, header=[h for h in HEADER if h != "ED"])
    with pytest.raises(DataError, match="column ED missing; found External code"):
        find(tmp_path)


def test_a_new_layout_is_one_function_and_one_entry(tmp_path, monkeypatch):
    """A dataset of files called NAME.ED.nii.gz and NAME.ED.mask.nii.gz, all of one vendor."""
    name = re.compile(r"(\w+)\.(E[DS])\.nii\.gz")

    def read(folder):
        return [Record(subject=match[1], phase=match[2], image_path=str(path), vendor="A", split="Training",
                       label_path=str(path).replace(".nii.gz", ".mask.nii.gz")) for path, match in folder.matches(name)]

    image, label = cine(0)
    for phase, frame in (("ED", 0), ("ES", 2)):
        nifti(tmp_path / f"heart.{phase}.nii.gz", image[..., frame])
        nifti(tmp_path / f"heart.{phase}.mask.nii.gz", label[..., frame])
    with pytest.raises(DataError, match="4 NIfTI files of other names"):
        find(tmp_path)
    entry = lambda folder: folder.matches(name), read
    monkeypatch.setattr("cmr.layouts.LAYOUTS", {**LAYOUTS, "dotted": entry})
    records = find(tmp_path)
    assert [r.case for r in records] == ["heart_ED", "heart_ES"] and (read_volume(records[1])[1] == label[..., 2]).all()
