"""Text, JSON and CSV files that are written whole or not at all, and folders that are locked for one process.

A *sealed* file has a hash that reveals a flipped bit or an edited digit, after which text still reads well.
"""
import contextlib
import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import socket
import time
import uuid
from pathlib import Path

from cmr import ranks
from cmr.errors import DataError, ResourceError, UsageError

PATIENCE_S = 3                                   # how long to wait until a process that was just killed has ended
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}\.tmp\..+")
_held = {}                                       # {lock file: its open file}; closing one would give the lock back


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path with the suffix of `path`; rename it to `path` if the block succeeds, or delete it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name tells which process of which host uses it: `sweep` deletes only abandoned ones.
    temporary = path.with_name(f".{_HOST}-{os.getpid()}-{uuid.uuid4().hex}.tmp.{path.name}")
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


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data):
    """Return the SHA-256 of bytes or of a text, in hexadecimal digits."""
    return hashlib.sha256(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data).hexdigest()


def write_text(path, text):
    """Write a text in UTF-8; undecodable bytes of file names, which Python keeps as surrogates, are restored."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def json_text(content):
    return json.dumps(content, indent=1) + "\n"


def write_json(path, content):
    write_text(path, json_text(content))


def read_json(path):
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete its folder and run the stage again") from error


def write_sealed_json(path, content):
    write_text(path, json.dumps({"sha256": digest(json.dumps(content)), "content": content}) + "\n")


def read_sealed_json(path):
    """Read what `write_sealed_json` wrote; returns None if the file is missing or was changed since."""
    try:
        sealed = read_json(path)
        return sealed["content"] if sealed["sha256"] == digest(json.dumps(sealed["content"])) else None
    except (DataError, KeyError):
        return None


def write_csv(path, rows, columns, sealed=False):
    """Write dictionaries as CSV atomically; `sealed` adds the hash for `require_sealed`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(c)) for c in columns] for row in rows)
    if sealed:
        seal(path, buffer.getvalue())
    write_text(path, buffer.getvalue())


def _cell(value):
    """Return a value as csv shall write it, a float to 6 decimals; csv turns None into an empty cell by itself."""
    if isinstance(value, float) and 0 < abs(value) < 1e-3:        # to 6 digits: decimals would make some p-values 0
        return f"{value:.6g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def seal(path, text):
    """Write the hash of `text` beside `path`; call it before writing the file, so that a killed run remakes both."""
    write_text(f"{path}.sha256", f"{digest(text)}  {Path(path).name}\n")


def require_sealed(path):
    path, beside = Path(path), Path(f"{path}.sha256")
    if not path.exists():
        raise DataError(f"{path}: no such file; run the stage that writes {path.parent} again")
    expected = beside.read_bytes().split()[:1] if beside.exists() else []
    if expected != [sha256(path).encode()]:
        raise DataError(f"{path}: not as it was written (its SHA-256 is not that of {beside.name}); delete "
                        f"{path.parent} and make it again")


def read_csv(path, required):
    """Read a CSV as [{column in lower case: text}]; raises DataError if one of the `required` columns is missing."""
    lines = read_text(path).splitlines() or [""]
    separator = ";" if lines[0].count(";") > lines[0].count(",") else ","
    try:
        cells = [[c.strip() for c in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise DataError(f"{path}: no valid CSV ({error}); look for a quote that is not closed") from error
    header, *rows = [row for row in cells if any(row)] or [[]]
    columns = [c.lower() for c in header]
    missing = [c for c in required if c.lower() not in columns]
    if missing:
        found = ", ".join(filter(None, header)) or "nothing"
        raise DataError(f"{path}: column {', '.join(missing)} missing; found {found}")
    kept = lambda column: column and not column.startswith("unnamed")
    return [{c: value for c, value in itertools.zip_longest(columns, row, fillvalue="") if kept(c)} for row in rows]


def by_name(rows, column, root):
    """Return {name in a column: row}; raises DataError if two rows of one name differ."""
    found = {}
    for row in rows:
        first = found.setdefault(row[column], row)
        differing = [name for name in row if row[name] != first[name]]
        if differing:
            raise DataError(f"{root}: two rows of {row[column]} in its table differ in {', '.join(differing)}; "
                            "correct it")
    return found


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError:                                       # the file is not damaged, so this is no DataError
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is its disk there and sound?") from error


def read_text(path):
    """Read text in UTF-8, or as Excel and Notepad write it: in UTF-16 with a byte-order mark, or in cp1252."""
    data = read_bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def writable_folder(path, data=""):
    """Make, sweep and lock the folder `path` outside of the datasets `data`; only the first of several ranks does."""
    path = Path(path)
    require_outside(path, data)
    if not ranks.is_first():
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        sweep(path)
        _lock(path / ".lock")
    except OSError as error:
        raise ResourceError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
    return path


def require_outside(path, data, flag="--out"):
    """Raise UsageError if a folder that is to be written lies in one of the datasets `data`, separated by commas."""
    for folder in filter(None, data.split(",")):
        if Path(path).resolve().is_relative_to(Path(folder).resolve()):
            raise UsageError(f"{flag} {path}: lies in the dataset {folder}; choose a folder outside of it")


def sweep(folder):
    """Delete the temporary files below a folder that killed processes of this host have left."""
    for path in Path(folder).rglob(".*.tmp.*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[1] == _HOST and not _is_running(int(match[2])):
            path.unlink(missing_ok=True)


def _lock(path):
    """Hold the lock file `path` until this process ends; the system gives it back, however that happens.

    The workers of a process that was killed end after it and hold its lock until then, for which PATIENCE_S is enough.
    """
    _held.pop(path.resolve(), None)                               # of an earlier call
    file, given_up = open(path, "a+"), time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > given_up:
                file.seek(0)
                raise ResourceError(f"{path.parent}: process {file.read()} is working there; wait until it has ended, "
                                    f"or delete {path} if it is gone") from error
            time.sleep(0.1)
        except OSError:                                           # such as a network drive that was mounted without
            print(f"note: {path.parent}: this disk knows no locks; let no other process work there")
            break
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _held[path.resolve()] = file


def _is_running(process):
    """Return whether a process of this host is running; a zombie (ended, but not yet reaped) is not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:                                               # another user's process, or no /proc
        return True
