"""Folders of datasets: links, folders that may not be read, the newest table, folders of no split."""
import os
from pathlib import Path

import pytest

from cmr import folders
from cmr.check_dataset import Config, check_dataset
from cmr.errors import ResourceError
from cmr.studies import find, left_out
from helpers import mms

LABELED = Path("OpenDataset") / "Training" / "Labeled"


def test_links_are_followed_and_loops_are_named(tmp_path):
    data = mms(tmp_path / "data", {code: {} for code in ("A0S9V9", "B0S9V9", "C0S9V9")})
    studies = data / LABELED
    (studies / "B0S9V9").rename(tmp_path / "disk")
    (studies / "B0S9V9").symlink_to(tmp_path / "disk")            # on a second disk
    file = studies / "C0S9V9" / "C0S9V9_sa.nii.gz"
    file.rename(tmp_path / "elsewhere.nii.gz")
    file.symlink_to(tmp_path / "elsewhere.nii.gz")
    (data / "all").symlink_to(data)
    (tmp_path / "disk" / "up").symlink_to(tmp_path)
    (data / "OpenDataset" / "Testing").mkdir()                    # by its name, before Training
    (data / "OpenDataset" / "Testing" / "A0S9V9").symlink_to(studies / "A0S9V9")
    (data / "gone").symlink_to(tmp_path / "gone")
    (data / "itself").symlink_to(data / "itself")
    records = find(data)
    assert {r.subject for r in records} == {"A0S9V9", "B0S9V9", "C0S9V9"} and len(records) == 6
    assert all(r.split == "Training" for r in records)
    said = {Path(what).name: why for what, why in left_out(data)}
    assert "a loop, not followed" in said["all"] and "a loop, not followed" in said["up"]
    assert "the same folder as" in said["A0S9V9"] and len(said) == 5
    assert "leads nowhere" in said["gone"] and "leads nowhere" in said["itself"]
    (tmp_path / "link").symlink_to(data)
    assert len(find(tmp_path / "link")) == 6


def test_a_split_made_of_links_is_one(tmp_path):
    """A pool of studies, read first, and a split whose folders hold links to it."""
    mms(tmp_path, {code: {"folder": "A pool"} for code in ("A0S9V9", "B0S9V9")})
    for code, split in (("A0S9V9", "Training"), ("B0S9V9", "Testing")):
        (tmp_path / split).mkdir()
        (tmp_path / split / code).symlink_to(tmp_path / "OpenDataset" / "A pool" / code)
    assert {(r.subject, r.split) for r in find(tmp_path)} == {("A0S9V9", "Training"), ("B0S9V9", "Testing")}
    assert len(find(tmp_path)) == 4 and len(left_out(tmp_path)) == 2


@pytest.mark.parametrize("call,closed", [
    ("scandir", "B0S9V9"), ("access", "B0S9V9/B0S9V9_sa.nii.gz")])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, call, closed):
    """Root may read everything, so the system's answer is given by hand."""
    mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {}})
    closed, real = str(tmp_path / LABELED / closed), getattr(os, call)

    def refused(path, *args, **more):
        if str(path) != closed:
            return real(path, *args, **more)
        if call == "access":
            return False
        raise PermissionError(13, "permission denied", path)

    monkeypatch.setattr(folders.os, call, refused)
    with pytest.raises(ResourceError, match=rf": 1 files or folders may not be read: {closed} \(permission denied\); "):
        find(tmp_path)


def test_the_newest_table_is_told_by_its_date_not_by_its_place(tmp_path):
    mms(tmp_path, {"A0S9V9": {"Pathology": "new"}}, table="211230_M&Ms.csv")
    table = tmp_path / "OpenDataset" / "211230_M&Ms.csv"
    for name in ("old/201014_M&Ms.csv", "old/M&Ms-2020-10-14.csv", "undated.csv"):
        (tmp_path / "OpenDataset" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "OpenDataset" / name).write_text(table.read_text().replace("new", "old"))
    assert {r.pathology for r in find(tmp_path)} == {"new"}
    named = [what for what, why in left_out(tmp_path) if f"{table} is taken for the newest" in why]
    assert {Path(what).name for what in named} == {"201014_M&Ms.csv", "M&Ms-2020-10-14.csv", "undated.csv"}
    table.rename(table.with_name("20191230.csv"))
    assert {r.pathology for r in find(tmp_path)} == {"old"}


@pytest.mark.parametrize("folder", ["Test_set", "Centre 5"])
def test_a_folder_that_is_no_split_is_named_with_what_was_drawn(tmp_path, folder, capsys):
    mms(tmp_path, {f"A{i}S9V9": {"folder": folder if i > 1 else "Training"} for i in range(6)})
    [said] = check_dataset(Config(data=str(tmp_path), size=32))["split"]
    assert f"4 subjects of {tmp_path.name} lie in no folder of a split" in said
    assert f"{folder}/A2S9V9: taken as 2 Training, 1 Validation, 1 Testing;" in said
    assert f"split: {said}" in capsys.readouterr().out
