"""Files are whole or absent."""
import pytest

from cmr.errors import ResourceError
from cmr.files import atomic, writable_folder, write_text


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
