"""Finding studies: every layout, built by the test as small files, and the known bad cases of real releases."""
import csv
import json

import nibabel as nib
import numpy as np
import pytest

from cmr.check import Config, check
from cmr.config import DataError, UsageError
from cmr.studies import Domain, find, in_role, split_by_subject
from cmr.volumes import load, read_nifti

HEADER = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height", "Weight"]


def nifti(path, array, zooms=(1.25, 1.25, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*zooms, 1])), path)


def cine(seed, frames=4):
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 200, (48, 48, 4, frames)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    for f in (0, 2):
        label[18:30, 18:30, 1:3, f], label[20:28, 20:28, 1:3, f], label[12:18, 18:30, 1:3, f] = 2, 1, 3
    return image, label


def mms(root, studies, header=HEADER, folder="Training/Labeled", table="211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"):
    """An M&Ms-1 tree; studies: {code: row overrides, plus image and label arrays}."""
    rows = []
    for i, (code, s) in enumerate(studies.items()):
        image, label = cine(i)
        where = root / "OpenDataset" / s.get("folder", folder) / code
        nifti(where / f"{code}_sa.nii.gz", s.get("image", image))
        nifti(where / f"{code}_sa_gt.nii.gz", s.get("label", label))
        rows.append({"": i, "External code": code, "VendorName": "Siemens", "Vendor": "A", "Centre": "1", "ED": 0, "ES": 2, "Age": 50, "Pathology": "NOR",
                     "Sex": "F", "Height": "", "Weight": "", **{k: v for k, v in s.items() if k in HEADER}})
    with open(root / "OpenDataset" / table, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    read_nifti.cache_clear()
    return root


def test_mms1_cine(tmp_path):
    mms(tmp_path, {"A0S9V9": {}, "B1C2D3": {"VendorName": "Philips", "Vendor": "B", "ED": "2.0", "ES": "0", "folder": "Testing"}})
    (tmp_path / "OpenDataset" / "Testing" / "B1C2D3" / "._B1C2D3_sa.nii.gz").write_bytes(b"AppleDouble")
    records = find(tmp_path)
    assert [(r.case, r.vendor, r.vendor_name, r.split, r.frame) for r in records] == [
        ("A0S9V9_ED", "A", "Siemens", "Training", 0), ("A0S9V9_ES", "A", "Siemens", "Training", 2),
        ("B1C2D3_ED", "B", "Philips", "Testing", 2), ("B1C2D3_ES", "B", "Philips", "Testing", 0)]   # ED after ES is normal, never "repaired"
    assert all(load(r)[1].any() for r in records)
    frames = find(tmp_path, all_frames=True)
    assert [r.phase for r in frames if r.subject == "A0S9V9"] == ["ED", "ES", "F01", "F03"] and frames[2].label_path is None


def test_mms1_flattened_and_pre_split(tmp_path):
    image, label = cine(0)
    for phase, f in (("ED", 0), ("ES", 2)):
        nifti(tmp_path / "A0S9V9" / f"A0S9V9_sa_{phase}.nii.gz", image[..., f])
        nifti(tmp_path / "A0S9V9" / f"A0S9V9_sa_{phase}_gt.nii.gz", label[..., f])
    (tmp_path / "info.csv").write_text("External code;VendorName; Vendor ;Centre;ED;ES;Pathology\nA0S9V9;GE;C;7;;;HCM\n")
    records = find(tmp_path)
    assert [(r.case, r.vendor, r.pathology, r.frame, r.split) for r in records] == [("A0S9V9_ED", "C", "HCM", None, ""), ("A0S9V9_ES", "C", "HCM", None, "")]
    assert (load(records[0])[1] == label[..., 0]).all()


def test_mms2(tmp_path):
    image, label = cine(0)
    for phase in ("ED", "ES"):
        nifti(tmp_path / "dataset" / "007" / f"007_SA_{phase}.nii.gz", image[..., 0])
        nifti(tmp_path / "dataset" / "007" / f"007_SA_{phase}_gt.nii.gz", label[..., 0])
        nifti(tmp_path / "dataset" / "007" / f"007_LA_{phase}.nii.gz", image[..., 0])
    (tmp_path / "dataset_information.csv").write_text("SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n7,TRI,Philips Medical Systems,Achieva,1.5\n,,,,\n")
    assert [(r.case, r.vendor, r.split, r.pathology) for r in find(tmp_path)] == [("007_ED", "B", "Training", "TRI"), ("007_ES", "B", "Training", "TRI")]


def test_acdc_labels_and_frames(tmp_path):
    image, label = cine(0)
    folder = tmp_path / "training" / "patient001"
    for frame, f in ((1, 0), (12, 2)):
        nifti(folder / f"patient001_frame{frame:02d}.nii.gz", image[..., f])
        nifti(folder / f"patient001_frame{frame:02d}_gt.nii.gz", np.array([0, 3, 2, 1], np.uint8)[label[..., f]])   # RV 1, MYO 2, LV 3
    nifti(folder / "patient001_4d.nii.gz", image)
    (folder / "Info.cfg").write_text("ED: 12\nES: 1\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
    records = find(tmp_path)
    assert [(r.case, r.image_path[-9:-7], r.pathology, r.split) for r in records] == [("patient001_ED", "12", "DCM", "Training"), ("patient001_ES", "01", "DCM", "Training")]
    assert (load(records[0])[1] == label[..., 2]).all()


def test_nnunet_raw_both_versions(tmp_path):
    image, label = cine(0)
    for labels, root in (({"background": 0, "LV": 1, "RV": 2}, tmp_path / "v2"), ({"0": "background", "1": "LV", "2": "RV"}, tmp_path / "v1")):
        nifti(root / "imagesTr" / "A0S9V9_ED_0000.nii.gz", image[..., 0])
        nifti(root / "labelsTr" / "A0S9V9_ED.nii.gz", np.array([0, 1, 0, 2], np.uint8)[label[..., 0]])
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        record, = find(root)
        assert record.subject == "A0S9V9" and (load(record)[1] == np.where(label[..., 0] == 2, 0, label[..., 0])).all()


def test_unlabelled_studies_and_their_disputed_masks(tmp_path):
    mms(tmp_path, {"A0S9V9": {}, "C0S9V9": {"folder": "Training/Unlabeled", "ED": 0, "ES": 0}, "D0S9V9": {"folder": "Training/Unlabeled"}})
    unlabelled = [r for r in find(tmp_path) if r.subject == "C0S9V9"]
    assert len(unlabelled) == 1 and unlabelled[0].label_path is None and any("ED = ES = 0" in f for f in unlabelled[0].flags)
    assert all(r.label_path is None for r in find(tmp_path) if r.subject == "D0S9V9")
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
    labelled = {r.case: load(r)[1] is not None for r in find(tmp_path)}
    assert labelled == {"A0S9V9_ED": False, "A0S9V9_ES": False, "B0S9V9_ED": True, "B0S9V9_ES": False}


def test_orphans_are_listed_and_left_out(tmp_path, capsys):
    mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {}})
    image, label = cine(9)
    nifti(tmp_path / "OpenDataset" / "Testing" / "Z9Z9Z9" / "Z9Z9Z9_sa.nii.gz", image)
    for p in (tmp_path / "OpenDataset" / "Training" / "Labeled" / "B0S9V9").iterdir():
        p.unlink()
    assert {r.subject for r in find(tmp_path)} == {"A0S9V9"}
    printed = capsys.readouterr().out
    assert "B0S9V9 stands in the CSV but has no files" in printed and "Z9Z9Z9 has files but no row" in printed


def test_missing_things_are_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no M&Ms, ACDC or nnU-Net raw files"):
        find(tmp_path)
    mms(tmp_path, {"A0S9V9": {}}, header=[h for h in HEADER if h != "ED"])
    with pytest.raises(DataError, match="column ED missing; found External code"):
        find(tmp_path)


def test_domains(tmp_path):
    records = find(mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {"Vendor": "B", "Pathology": "HCM", "Sex": "M"}}))
    assert {r.subject for r in Domain.parse("vendor = a,b").select(records)} == {"A0S9V9", "B0S9V9"}
    assert {r.subject for r in Domain.parse("Sex=M").select(records)} == {"B0S9V9"}
    assert [str(d) for d in Domain.parse("Vendor=B,C").each()] == ["Vendor=B", "Vendor=C"]
    with pytest.raises(UsageError, match=r"matches none of 4 volumes; Vendor has A \(2\), B \(2\)"):
        Domain.parse("Vendor=Q").select(records)
    with pytest.raises(UsageError, match="no metadata column 'Scanner'"):
        Domain.parse("Scanner=X").select(records)
    with pytest.raises(UsageError, match="expected Column=Value"):
        Domain.parse("Vendor")


def test_splits_keep_subjects_whole_and_do_not_depend_on_the_others(tmp_path):
    image, label = cine(0)
    codes = [f"S{i:02d}" for i in range(20)]
    for code in codes:
        for phase in ("ED", "ES"):
            nifti(tmp_path / code / f"{code}_sa_{phase}.nii.gz", image[..., 0])
    (tmp_path / "info.csv").write_text("External code,Vendor,ED,ES,Pathology\n" + "".join(f"{c},C,,,{'HCM' if i % 2 else 'NOR'}\n" for i, c in enumerate(codes)))
    source = Domain.parse("Pathology=NOR")
    records = split_by_subject(find(tmp_path), source)
    by_subject = {}
    for r in records:
        by_subject.setdefault(r.subject, set()).add(r.split)
    assert all(len(s) == 1 for s in by_subject.values())
    count = lambda inside, split: len({r.subject for r in records if (r in source) == inside and r.split == split})
    assert [count(True, s) for s in ("Training", "Validation", "Testing")] == [6, 2, 2]       # 60 / 15 / 25 % of ten
    assert [count(False, s) for s in ("Training", "Validation", "Testing")] == [0, 2, 8] or [count(False, s) for s in ("Training", "Validation", "Testing")] == [0, 3, 7]
    with pytest.raises(UsageError, match="has no labelled Training volumes"):
        in_role(records, source, "Training", labelled_only=True)


def test_a_dataset_without_validation_gets_some_of_every_domain(tmp_path):
    groups = ("NOR", "DCM", "HCM")
    for i in range(1, 61):                                                                    # ACDC: training and testing alone
        n, (image, label) = i if i <= 45 else 100 + i, cine(i)
        folder = tmp_path / f"patient{n:03d}"
        nifti(folder / f"patient{n:03d}_frame01.nii.gz", image[..., 0])
        nifti(folder / f"patient{n:03d}_frame01_gt.nii.gz", label[..., 0])
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {groups[i % 3]}\n")
    records = split_by_subject(find(tmp_path), Domain.parse("Pathology=NOR"))
    count = lambda pathology, split: len({r.subject for r in records if (r.pathology, r.split) == (pathology, split)})
    assert [count("NOR", s) for s in ("Training", "Validation", "Testing")] == [13, 2, 5]
    assert all(count(p, "Testing") == 5 and count(p, "Validation") in (2, 3) for p in ("DCM", "HCM")) and count("DCM", "Validation") + count("HCM", "Validation") == 5
    check(Config(data=str(tmp_path), source="Pathology=NOR", target="Pathology=DCM,HCM", size=32))
    assert all(r.split == "Testing" for r in records if int(r.subject[-3:]) > 100)            # what is for testing stays so


def test_check_lists_everything_and_finds_leaks(tmp_path, capsys):
    image, _ = cine(5)
    mms(tmp_path, {"A0S9V9": {}, "A1S9V9": {"folder": "Validation"}, "B0S9V9": {"folder": "Testing"}, "B1S9V9": {"folder": "Validation", "Vendor": "B"}, "C0S9V9": {"folder": "Testing", "Vendor": "B"}})
    findings = check(Config(data=str(tmp_path), target="Vendor=B", size=32))
    assert findings["volumes"] == 10 and findings["structures"] == {"LV": 10, "MYO": 10, "RV": 10} and not findings["unusable"]
    assert "spacing mm: 1.25 x 1.25 x 9.00" in capsys.readouterr().out
    mms(tmp_path, {"A0S9V9": {"image": image}, "B0S9V9": {"folder": "Testing", "image": image}})
    with pytest.raises(DataError, match="leakage between splits"):
        check(Config(data=str(tmp_path)))
    mms(tmp_path / "other", {"A0S9V9": {}, "A1S9V9": {"folder": "Validation"}, "B0S9V9": {"folder": "Testing"}, "C0S9V9": {"folder": "Testing", "Vendor": "B"}})
    with pytest.raises(UsageError, match="Vendor=B has no Validation volumes"):                # before a diffusion model is trained for it
        check(Config(data=str(tmp_path / "other"), target="Vendor=B", size=32))
    bad = tmp_path / "OpenDataset" / "Testing" / "B0S9V9" / "B0S9V9_sa.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    read_nifti.cache_clear()
    with pytest.raises(DataError, match="2 of .* volumes cannot be used"):
        check(Config(data=str(tmp_path)))


def test_two_datasets_are_taken_together_and_told_apart_by_their_folders(tmp_path):
    mms(tmp_path / "first", {"A0S9V9": {}})
    mms(tmp_path / "second", {"B1C2D3": {}})
    records = find(f"{tmp_path / 'first'},{tmp_path / 'second'}/")
    assert [r.case for r in Domain.parse("Dataset=second").select(records)] == ["B1C2D3_ED", "B1C2D3_ES"] and len(records) == 4
    mms(tmp_path / "third", {"A0S9V9": {}})
    with pytest.raises(DataError, match="A0S9V9 is a subject of .*first and of .*third"):
        find(f"{tmp_path / 'first'},{tmp_path / 'third'}")
