"""Files are whole or absent."""
import errno
import os
import subprocess
import sys

import pytest

from cmr import files
from cmr.errors import ResourceError, UsageError
from cmr.files import atomic, writable_folder, write_csv, write_text
from helpers import ROOT


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another --out"):
        writable_folder(tmp_path / "file" / "below")


def test_a_name_that_the_locale_cannot_read_is_written_as_it_lies_on_disk(tmp_path):
    """Under locale C Python hands over the bytes of such a name as lone surrogates."""
    name = os.fsencode("Müller").decode("ascii", "surrogateescape")
    write_csv(tmp_path / "a.csv", [{"subject": name}], ["subject"], sealed=True)
    files.require_sealed(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().decode() == "subject\nMüller\n"


def test_only_what_a_killed_process_of_ours_left_is_swept_away(tmp_path):
    with atomic(tmp_path / "a.csv") as living:
        users = tmp_path / ".notes.tmp.txt"
        dead = tmp_path / living.name.replace(f"-{os.getpid()}-", "-999999999-")
        elsewhere = tmp_path / ("." + "0" * 8 + dead.name[9:])    # of another host on the same disk
        for path in (living, users, dead, elsewhere):
            path.touch()
        writable_folder(tmp_path)
        assert set(tmp_path.iterdir()) == {living, users, elsewhere, tmp_path / ".lock"}


def test_nothing_is_written_among_the_data(tmp_path):
    for out in (tmp_path / "data", tmp_path / "data" / "runs", tmp_path / "other" / ".." / "data" / "x"):
        with pytest.raises(UsageError, match="lies in the dataset"):
            writable_folder(out, f"{tmp_path / 'first'},{tmp_path / 'data'}")
    assert writable_folder(tmp_path / "runs", str(tmp_path / "data")).is_dir()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_tables_are_read_as_excel_writes_them(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("Name;Centre\r\nJosé;Málaga\r\n".encode(encoding))
    assert files.read_csv(tmp_path / "a.csv", ("Name",)) == [{"name": "José", "centre": "Málaga"}]


def test_a_lock_needs_no_links_and_none_that_is_empty_lasts(tmp_path, monkeypatch):
    """Network drives and exFAT know no links; a process may be killed, or the disk be full before its name is there."""
    def refuse(*paths, **named):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(paths[0]))
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    (tmp_path / ".lock").touch()
    for _ in range(2):                                            # the second time it is its own
        assert writable_folder(tmp_path) and (tmp_path / ".lock").read_text() == str(os.getpid())
    with pytest.raises(ResourceError, match="choose another --out"):
        writable_folder("/dev/full")


def test_a_disk_that_knows_no_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    assert writable_folder(tmp_path) == tmp_path and "knows no locks" in capsys.readouterr().out


def test_two_processes_do_not_work_in_one_folder(tmp_path, monkeypatch):
    """The second is refused; the lock of a process that has ended or was killed is taken over."""
    code = ("import sys, time; from cmr.files import writable_folder; "
            "writable_folder(sys.argv[1]); print(1, flush=True); time.sleep({})")
    monkeypatch.setattr(files, "PATIENCE_S", 0.3)
    start = lambda seconds: subprocess.Popen([sys.executable, "-c", code.format(seconds), tmp_path], cwd=ROOT,
                                             stdout=subprocess.PIPE)
    other = start(60)
    other.stdout.readline()
    words = f"process {other.pid} is working there; wait .* or delete .*.lock if it is gone"
    with pytest.raises(ResourceError, match=words):
        writable_folder(tmp_path)
    other.kill()                                                  # not waited for: a zombie
    monkeypatch.setattr(files, "PATIENCE_S", 3)
    assert start(0).wait() == 0 and writable_folder(tmp_path)
