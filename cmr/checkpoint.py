"""Files that are either whole or absent, and checkpoints that say what they are.

Public: `atomic`, `write_text`, `writable_folder`, `save`, `load`, `require_settings`, `sha256`.
"""
import contextlib
import csv
import hashlib
import io
import json
import os
import uuid
import zipfile
from pathlib import Path

import torch

from cmr.config import CheckpointError, ResourceError, differing_settings

FORMAT = 1


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, delete it otherwise.

    The temporary keeps the suffix, because nibabel and scikit-image choose the format by it.
    Raises ResourceError when the disk is full (torch reports that as RuntimeError, not OSError).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except PermissionError:
        raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, content):
    """Write JSON atomically, keys in the given order."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path, rows, columns):
    """Write dictionaries as CSV atomically; floats with a point and up to 6 decimals, missing values empty."""
    def cell(value):
        return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(row.get(c)) for c in columns] for row in rows)
    write_text(path, buffer.getvalue())


def writable_folder(path):
    """Create the folder `path` if needed and return it; raise ResourceError at once if nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for stale in path.rglob(".*.tmp.*"):                  # left by a process that was killed while writing
            stale.unlink()
        probe = path / f".{uuid.uuid4().hex}.tmp.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
    return path


def save(path, **content):
    """Write tensors and plain values as a checkpoint that `load` accepts with weights_only=True."""
    try:
        with atomic(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except RuntimeError as error:
        raise ResourceError(f"{path}: cannot be written ({error}); is the disk full?") from error


def load(path):
    """Read a checkpoint onto the CPU.

    Raises CheckpointError for a missing, truncated, bit-flipped or foreign file.  The zip self-test matters: torch
    loads a file with a flipped bit without complaint, and with wrong weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: damaged (checksum of {damaged} is wrong); delete it and run the stage again")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; run the stage that writes it first") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: damaged or truncated; delete it and run the stage again") from error
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: not a plain checkpoint of this project ({type(error).__name__}); delete it") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}; write it again with this version")
    return content


def require_settings(path, saved, now, ignore=None):
    """Raise CheckpointError if `saved` settings differ from `now` in more than places; names the differing ones."""
    differing = differing_settings(saved, now, *([] if ignore is None else [ignore]))
    if differing:
        shown = ", ".join(f"{k}: {a!r} there, {b!r} now" for k, (a, b) in differing.items())
        raise CheckpointError(f"{path} was written with other settings ({shown}); use another --out or delete it")


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
