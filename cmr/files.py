"""Files that are either whole or absent, and tables in them.  Checkpoints are `cmr.checkpoint`'s, images `cmr.nifti`'s.

A *sealed* file can be asked whether it is what was written: text that a flipped bit or an editor has changed still
reads well.

Public: `atomic`, `write_text`, `encoded`, `json_text`, `write_json`, `read_json`, `write_sealed_json`,
`read_sealed_json`, `write_csv`, `seal`, `require_sealed`, `read_bytes`, `read_text`, `read_csv`, `writable_folder`,
`unlock`, `sweep`, `sha256`.
"""
import atexit
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import socket
import time
import uuid
from pathlib import Path

from cmr import ranks
from cmr.errors import DataError, ResourceError, UsageError


PATIENCE_S = 3                                   # for a process that was just killed to give up its lock


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, delete it otherwise.

    The temporary keeps the suffix, because nibabel and scikit-image choose the format by it.
    Raises ResourceError when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except PermissionError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise ResourceError(f"{path}: cannot be written ({why}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(name):
    """Hidden, with the host and the process that writes it, so that only what nobody writes any more is swept away."""
    return f".{_HOST}-{os.getpid()}-{uuid.uuid4().hex}.tmp.{name}"


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}\.tmp\..+")


def sweep(folder):
    """Delete the temporaries below a folder that a killed process of this host has left; nothing else."""
    for path in Path(folder).rglob(".*.tmp.*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[1] == _HOST and not _is_running(int(match[2])):
            path.unlink(missing_ok=True)


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:                                       # somebody else's
        pass
    try:                                                          # killed, and not yet buried by its parent?
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state not in "ZX"


def write_text(path, text):
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(encoded(text))


def encoded(text):
    """A text as UTF-8; bytes of file names that the locale cannot read, which Python keeps, come out as they were."""
    return text.encode("utf-8", "surrogateescape")


def json_text(content):
    """A dictionary as `write_json` writes it, keys in the given order."""
    return json.dumps(content, indent=1) + "\n"


def write_json(path, content):
    """Write JSON atomically."""
    write_text(path, json_text(content))


def read_json(path):
    """A dictionary from JSON; raises DataError if the file is missing, damaged or something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete its folder and run the stage again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected names and values; delete its folder and run the stage again")
    return content


def write_sealed_json(path, content):
    """Write a dictionary as JSON atomically, with the hash of it."""
    write_text(path, json.dumps({"sha256": _hash_of(content), "content": content}) + "\n")


def read_sealed_json(path):
    """What `write_sealed_json` has written, or None if the file is missing or holds anything else."""
    try:
        sealed = json.loads(Path(path).read_text(encoding="utf-8"))
        return sealed["content"] if sealed["sha256"] == _hash_of(sealed["content"]) else None
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash_of(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_csv(path, rows, columns, sealed=False):
    """Write dictionaries as CSV atomically; floats with a point and up to 6 decimals, missing values empty.

    sealed : with its hash beside it, which `require_sealed` compares; `sha256sum -c` knows the format too.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(c)) for c in columns] for row in rows)
    if sealed:
        seal(path, buffer.getvalue())
    write_text(path, buffer.getvalue())


def seal(path, text):
    """Write the hash of `text` beside `path`, before the file itself is there: a killed run is to write both again."""
    path = Path(path)
    write_text(_seal_of(path), f"{hashlib.sha256(encoded(text)).hexdigest()}  {path.name}\n")


def require_sealed(path):
    """Raise DataError if a file is not as it was written, or has lost its hash."""
    path, beside = Path(path), _seal_of(Path(path))
    expected = beside.read_bytes().split()[:1] if beside.exists() else []
    if expected != [sha256(path).encode()]:
        raise DataError(f"{path}: not as it was written (its SHA-256 is not that of {beside.name}); delete "
                        f"{path.parent} and make it again")


def _seal_of(path):
    return path.with_name(path.name + ".sha256")


def _cell(value):
    if value is None:
        return ""
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def read_csv(path, required):
    """Rows of a CSV as dictionaries: BOM, stray spaces and the separator handled; columns in lower case, values text.

    required : columns that must be there, in any case.  Raises DataError naming those that are not.
    """
    lines = read_text(path).splitlines()
    head = lines[0] if lines else ""
    separator = ";" if head.count(";") > head.count(",") else ","
    cells = [[c.strip() for c in row] for row in csv.reader(lines, delimiter=separator)]
    table = [row for row in cells if any(row)]
    header = table[0] if table else []
    columns = [c.lower() for c in header]
    missing = [c for c in required if c.lower() not in columns]
    if missing:
        found = ", ".join(c for c in header if c) or "nothing"
        raise DataError(f"{path}: column {', '.join(missing)} missing; found {found}")
    kept = [i for i, c in enumerate(columns) if c and not c.startswith("unnamed")]
    return [{columns[i]: row[i] if i < len(row) else "" for i in kept} for row in table[1:]]


def read_bytes(path):
    """What a file of the user's holds; raises DataError if it is not there or cannot be read, PermissionError as is."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError:                                       # not damage: `run_script` says it
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is its disk there and sound?") from error


def read_text(path):
    """Text as UTF-8, or as Excel and Notepad write it: UTF-16 with its mark, or the code page of western Europe."""
    data = read_bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def writable_folder(path, data=""):
    """Create the folder `path` if needed, lock it until this process ends, and return it; of several ranks the first.

    What a killed process has left half-written there is deleted.
    data : dataset folders, separated by commas; UsageError if `path` lies in one of them.
    Raises ResourceError at once if nothing can be written there, or if another process is working there.
    """
    path = Path(path)
    for folder in filter(None, data.split(",")):
        if Path(folder).resolve() in [path.resolve(), *path.resolve().parents]:
            raise UsageError(f"--out {path}: lies in the dataset {folder}; choose a folder outside of it")
    if not ranks.is_first():
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        sweep(path)
        _lock(path / ".lock")
    except OSError as error:
        raise ResourceError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
    return path


def _lock(path):
    """Take the lock of a folder, until this process ends; raises ResourceError while another process has it.

    The file names its host and process.  It is made by whoever finds none, which every file system can do for one
    process alone, unlike a link.  That of a process which is gone is taken over; one that was just killed is given a
    moment to go, one that names nobody yet a moment to be written.
    """
    given_up = time.monotonic() + PATIENCE_S
    while not _taken(path):
        host, process = _holder(path)
        waited = time.monotonic() > given_up
        if (host, process) == (_HOST, os.getpid()):
            return
        if waited and host:
            where = "" if host == _HOST else " on another machine"
            raise ResourceError(f"{path.parent}: process {process}{where} is working there; wait until it has ended, "
                                f"or delete {path} if it is gone")
        if waited or host == _HOST and not _is_running(process):
            path.unlink(missing_ok=True)
        else:
            time.sleep(0.1)
    atexit.register(unlock, path.parent)


def _taken(path):
    """Whether this process has made the lock; it is deleted again if the disk is too full to write a name into it."""
    try:
        file = open(path, "x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(f"{_HOST} {os.getpid()}")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _holder(path):
    """(host, process) that a lock names; (None, 0) if it has just been given back or names nobody."""
    try:
        host, process = path.read_text().split()
        return host, int(process)
    except (FileNotFoundError, ValueError):
        return None, 0


def unlock(folder):
    """Give the lock of a folder back, if this process has it."""
    path = Path(folder) / ".lock"
    if _holder(path) == (_HOST, os.getpid()):
        path.unlink(missing_ok=True)


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
