"""Which files a command takes, what it goes on with, and what one bad file among many does."""
import json

import pytest

from cmr.errors import CheckpointError, DataError, UsageError
from cmr.own_files import find_images, one_by_one, parse_centre, require_all, subject_and_phase


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_files_and_folders_without_masks_and_hidden_ones(tmp_path, capsys):
    touch(tmp_path, "a/x.nii.gz", "a/b/x.nii", "a/x_gt.nii.gz", "a/alone_gt.nii.gz", "a/.y.nii.gz", "a/notes.txt", "z.nii")
    jobs = find_images([str(tmp_path / "a"), str(tmp_path / "z.nii")], tmp_path / "out")
    assert [job.name for job in jobs] == ["alone_gt.nii.gz", "b/x.nii", "x.nii.gz", "z.nii"]
    assert "1 files called as another with _gt" in capsys.readouterr().out


def test_what_cannot_be_meant_is_refused_before_anything_is_done(tmp_path):
    touch(tmp_path, "a/x.nii.gz", "b/x.nii", "c/notes.txt")
    with pytest.raises(UsageError, match="no image given"):
        find_images([], tmp_path / "out")
    with pytest.raises(UsageError, match="no NIfTI files below"):
        find_images([tmp_path / "c"], tmp_path / "out")
    with pytest.raises(UsageError, match="results of one name"):
        find_images([tmp_path / "a" / "x.nii.gz", tmp_path / "b" / "x.nii"], tmp_path / "out")
    with pytest.raises(UsageError, match="the result would replace"):
        find_images([tmp_path / "a" / "x.nii.gz"], tmp_path / "a")
    with pytest.raises(UsageError, match="two voxel numbers"):
        parse_centre("3")
    assert parse_centre("3,4.5") == (3, 4.5) and parse_centre("") is None


def test_one_bad_file_is_said_at_the_end_and_a_second_run_makes_only_what_is_missing(tmp_path, capsys):
    touch(tmp_path, "in/a.nii.gz", "in/bad.nii.gz", "in/c.nii.gz")
    jobs, out, made = find_images([tmp_path / "in"], tmp_path / "out"), tmp_path / "out", []

    def make(job):
        made.append(job.name)
        if job.name.startswith("bad") and not (out / "mended").exists():
            raise DataError("bad.nii.gz: is bad")
        (out / job.place).write_bytes(b"result")
        return {"n": len(job.name), "notes": ["mind this"]}

    found, left_out = one_by_one(jobs, out, {"t0": 3}, make)
    assert made == ["a.nii.gz", "bad.nii.gz", "c.nii.gz"] and [f["n"] for f in found] == [8, 8]
    assert left_out == ["bad.nii.gz: is bad"] and "note: " in capsys.readouterr().out
    with pytest.raises(DataError, match="1 of 3 images could not be used: bad.nii.gz: is bad"):
        require_all(left_out, 3)
    (out / "mended").touch()
    (out / "c.nii.gz").unlink()                                   # lost: it is made again
    touch(tmp_path, "in/d.nii.gz")
    jobs = find_images([tmp_path / "in"], out)
    found, left_out = one_by_one(jobs, out, {"t0": 3}, make)
    assert made[3:] == ["bad.nii.gz", "c.nii.gz", "d.nii.gz"] and len(found) == 4 and not left_out
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"another image")
    one_by_one(jobs, out, {"t0": 3}, make)
    assert made[6:] == ["a.nii.gz"]
    with pytest.raises(CheckpointError, match="t0: 3 there, 4 now"):
        one_by_one(jobs, out, {"t0": 4}, make)
    assert json.loads((out / "settings.json").read_text()) == {"t0": 3}


def test_subject_and_phase_by_name():
    assert subject_and_phase("d/A0S9V9_sa_ED.nii.gz") == ("A0S9V9", "ED") == subject_and_phase("A0S9V9_ed_0000.nii")
    assert subject_and_phase("A0S9V9_sa.nii.gz") == ("A0S9V9", None) and subject_and_phase("red.nii") == ("red", None)
