"""Splits by subject, and several datasets together."""
import gzip
import shutil

import pytest

from cmr.check_dataset import Config, check_dataset
from cmr.errors import DataError, UsageError
from cmr.records import Domain, Record
from cmr.studies import UNSEEN, find, in_role, labelled_apart, require_apart, split_by_subject
from helpers import cine, mms, nifti


def test_splits_keep_subjects_whole_and_do_not_depend_on_the_others(tmp_path):
    image, label = cine(0)
    codes = [f"S{i:02d}" for i in range(20)]
    for code in codes:
        for phase in ("ED", "ES"):
            nifti(tmp_path / code / f"{code}_sa_{phase}.nii.gz", image[..., 0])
    rows = [f"{code},C,,,{'HCM' if i % 2 else 'NOR'}" for i, code in enumerate(codes)]
    (tmp_path / "info.csv").write_text("\n".join(["External code,Vendor,ED,ES,Pathology", *rows]))
    source = Domain.parse("Pathology=NOR")
    records = split_by_subject(find(tmp_path), source)
    by_subject = {}
    for r in records:
        by_subject.setdefault(r.subject, set()).add(r.split)
    assert all(len(s) == 1 for s in by_subject.values())
    count = lambda inside, split: len({r.subject for r in records if (r in source) == inside and r.split == split})
    assert [count(True, s) for s in ("Training", "Validation", "Testing")] == [6, 2, 2]       # 60 / 15 / 25 % of ten
    assert [count(False, s) for s in ("Training", "Validation", "Testing")] in ([0, 2, 8], [0, 3, 7])
    with pytest.raises(UsageError, match="has no labelled Training volumes"):
        in_role(records, source, "Training", labelled_only=True)
    bounded = split_by_subject(find(tmp_path), source, upper_bound=True)
    assert [r.split for r in bounded if r in source] == [r.split for r in records if r in source]
    others = {r.subject: r.split for r in bounded if r not in source}
    assert [list(others.values()).count(s) for s in ("Training", "Validation", "Testing")] == [4, 1, 5]


def test_a_subject_whose_volumes_lie_in_source_and_target_is_refused():
    records = [Record("P1", "ED", "ed.nii.gz", vendor="A"), Record("P1", "ES", "es.nii.gz", vendor="B"),
               Record("P2", "ED", "other.nii.gz", vendor="C")]
    source, apart, target = (Domain.parse(f"Vendor={vendor}") for vendor in "ACB")
    require_apart(records, source, [apart], UNSEEN)
    with pytest.raises(UsageError, match=r"P1 is in Vendor=A and in Vendor=B \(1 such subjects\); a target must be"):
        require_apart(records, source, [apart, target], UNSEEN)


def test_references_without_masks_are_refused():
    records = [Record("P1", "ED", "ed.nii.gz", "mask.nii.gz", vendor="A"), Record("P2", "ED", "ed.nii.gz", vendor="B")]
    source, references = Domain.parse("Vendor=A"), Domain.parse("Vendor=B")
    words = "domain Vendor=B has no labelled volumes; choose other --references or leave them"
    with pytest.raises(UsageError, match=words):
        labelled_apart(records, references, [source])
    assert labelled_apart(records, source, [references]) == records[:1]


def test_a_dataset_without_validation_gets_some_of_every_domain(tmp_path):
    groups = ("NOR", "DCM", "HCM")
    for i in range(1, 61):  # ACDC: training and testing alone
        n, (image, label) = i if i <= 45 else 100 + i, cine(i)
        folder = tmp_path / f"patient{n:03d}"
        nifti(folder / f"patient{n:03d}_frame01.nii.gz", image[..., 0])
        nifti(folder / f"patient{n:03d}_frame01_gt.nii.gz", label[..., 0])
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {groups[i % 3]}\n")
    records = split_by_subject(find(tmp_path), Domain.parse("Pathology=NOR"))
    count = lambda pathology, split: len({r.subject for r in records if (r.pathology, r.split) == (pathology, split)})
    assert [count("NOR", s) for s in ("Training", "Validation", "Testing")] == [13, 2, 5]
    assert all(count(p, "Testing") == 5 and count(p, "Validation") in (2, 3) for p in ("DCM", "HCM"))
    assert count("DCM", "Validation") + count("HCM", "Validation") == 5
    check_dataset(Config(data=str(tmp_path), source="Pathology=NOR", target="Pathology=DCM,HCM", size=32))
    assert all(r.split == "Testing" for r in records if int(r.subject[-3:]) > 100)  # what is for testing stays so


def test_two_datasets_are_taken_together_and_told_apart_by_their_folders(tmp_path):
    mms(tmp_path / "first", {"A0S9V9": {}})
    mms(tmp_path / "second", {"B1C2D3": {}})
    records = find(f"{tmp_path / 'first'},{tmp_path / 'second'}/")
    assert [r.case for r in Domain.parse("Dataset=second").select(records)] == ["B1C2D3_ED", "B1C2D3_ES"]
    assert len(records) == 4
    mms(tmp_path / "third", {"A0S9V9": {}})
    with pytest.raises(DataError, match="A0S9V9 is a subject of .*first and of .*third"):
        find(f"{tmp_path / 'first'},{tmp_path / 'third'}")


def test_a_name_that_no_table_can_hold_is_refused_and_the_folder_of_a_point_has_its_name(tmp_path, monkeypatch):
    image, label = cine(0)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    nifti(tmp_path / "mine" / "images" / "anna.nii.gz", image[..., 0])
    nifti(tmp_path / "mine" / "labels" / "anna.nii.gz", label[..., 0])
    assert Domain.parse("Dataset=mine").select(find("."))
    for name in ("K\udcf6hler", " anna", "anna "):
        path = tmp_path / "mine" / "images" / f"{name}.nii.gz"
        nifti(path, image[..., 0])
        with pytest.raises(DataError, match="cannot be written into tables; rename it"):
            find(".")
        path.unlink()


def test_what_is_there_twice_is_refused(tmp_path):
    mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {}})
    study = tmp_path / "OpenDataset" / "Training" / "Labeled" / "A0S9V9"
    shutil.copytree(study, tmp_path / "old" / "A0S9V9")           # a backup
    with pytest.raises(DataError, match="A0S9V9_ED is there twice: .*OpenDataset.* and .*old"):
        find(tmp_path)
    shutil.rmtree(tmp_path / "old")
    (study / "A0S9V9_sa.nii").write_bytes(gzip.decompress((study / "A0S9V9_sa.nii.gz").read_bytes()))
    with pytest.raises(DataError, match="A0S9V9_ED is there twice"):
        find(tmp_path)
    (study / "A0S9V9_sa.nii").unlink()
    [table] = tmp_path.rglob("*.csv")
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[1].replace("Siemens,A", "Philips,B")]) + "\n")
    with pytest.raises(DataError, match="two rows of A0S9V9 in its table differ in vendorname, vendor; correct it"):
        find(tmp_path)


def test_what_data_names_twice_or_not_at_all_is_refused(tmp_path, monkeypatch):
    x = mms(tmp_path / "x", {"A0S9V9": {}})
    y = mms(tmp_path / "y", {"B0S9V9": {}})
    (tmp_path / "link").symlink_to(x)
    monkeypatch.chdir(x)                                          # an empty name would be this folder
    for text in (f"{x},", f",{x}", f"{x},,{y}", f"{x}, "):
        with pytest.raises(UsageError, match="an empty name beside a comma: --data .* folders separated by commas"):
            find(text)
    for text in (f"{x},{x}", f"{x},{x}/", f"{x},{y},{tmp_path / 'link'}", f"{y},{x},{x / 'OpenDataset'}"):
        with pytest.raises(UsageError, match="are one folder, or one lies in the other"):
            find(text)
    (tmp_path / "a,b").mkdir()
    with pytest.raises(DataError, match="a: no such folder; --data .*a,b' is read as 2 folders .* no path may contain"):
        find(tmp_path / "a,b")
    assert len(find(f"{x}, {y}")) == 4


def test_a_role_without_volumes_says_why(tmp_path):
    records = find(mms(tmp_path, {"A0S9V9": {"ED": 0, "ES": 0}, "A1S9V9": {"ED": 0, "ES": 0}}))
    with pytest.raises(UsageError, match=r"no labelled Training volumes \(ED = ES = 0: .*mask is there.*, in 2 of 2\)"):
        in_role(records, Domain.parse("Vendor=A"), "Training", labelled_only=True)
