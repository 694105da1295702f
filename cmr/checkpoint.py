"""Checkpoints that say what they are, and are refused when they are not.

When a run saves is `cmr.training`'s business.

Public: `save`, `load`, `fill`, `require_settings`.
"""
import sys
import zipfile

import torch

from cmr.errors import CheckpointError, ResourceError
from cmr.files import atomic
from cmr.settings import without_places

FORMAT = 1


def save(path, **content):
    """Write tensors and plain values as a checkpoint that `load` accepts.

    Equal content gives equal bytes, so that a hash of the file is a hash of the content.  torch writes the name of the
    path it is given into the archive, which here is a random temporary one; an open file has no name it would write.
    """
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            torch.save(_rebuilt({"format": FORMAT, **content}), file)
    except RuntimeError as error:                                 # torch's word for a full disk
        raise ResourceError(f"{path}: cannot be written ({error}); is the disk full?") from error


def _rebuilt(value):
    """An equal value that shares no container and keeps every text once.

    Pickle writes an object that it has met before as a reference, so that equal content of which a part was read from
    a file, as that of a resumed run, would give other bytes.
    """
    if type(value) is str:
        return sys.intern(value)
    if isinstance(value, dict):
        return {_rebuilt(name): _rebuilt(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_rebuilt, value))
    return value


def load(path):
    """Read a checkpoint onto the CPU: a dictionary of what was saved.

    Raises CheckpointError for a missing, truncated, bit-flipped or foreign file.  The zip self-test matters: torch
    loads a file with a flipped bit without complaint, and with wrong weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; run the stage that writes it first") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: damaged or truncated; delete it and run the stage again") from error
    except (PermissionError, MemoryError):                        # the file is not to blame
        raise
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: not a plain checkpoint of this project ({kind}); delete it") from error
    if damaged:
        raise CheckpointError(f"{path}: damaged (checksum of {damaged} is wrong); delete it and run the stage again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}; write it again with this version")
    return content


def fill(net, weights, path):
    """Give a network its weights from the checkpoint `path`; raises CheckpointError if they are of another one."""
    try:
        net.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{path}: weights of another network ({first}); write it again") from error


def require_settings(path, saved, now):
    """Raise CheckpointError if `saved` settings differ from `now` in more than places; names the differing ones."""
    saved, now = without_places(saved), without_places(now)
    differing = [f"{name}: {saved.get(name)!r} there, {now.get(name)!r} now"
                 for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differing:
        raise CheckpointError(f"{path} was written with other settings ({', '.join(differing)}); use another --out or "
                              "delete it")
