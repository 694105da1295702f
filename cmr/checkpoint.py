"""Checkpoints: how they are written and read, and the checks that they belong to this experiment.

Every checkpoint and synthetic set records the grid, the source and the data that it was made of.  Each stage compares
these with its own here, before anything long starts.
"""
import importlib.metadata
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from cmr import ranks
from cmr.errors import CheckpointError, ResourceError
from cmr.files import atomic, read_json, write_json
from cmr.records import Domain
from cmr.settings import deciding
from cmr.working import fingerprint

FORMAT = 1
GIVEN = "final.pt of train_diffusion.py or train_unet.py"


def save(path, **content):
    """Write tensors and plain values to `path` as a checkpoint that `load` reads; raises ResourceError on a full disk.

    Equal content gives equal bytes: torch gets an open file, because it would store the (random) name of a path.
    """
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            torch.save(_rebuilt({"format": FORMAT, **content}), file)
    except RuntimeError as error:                                 # torch raises it when the disk is full
        raise ResourceError(f"{path}: cannot be written ({error}); is the disk full?") from error


def _rebuilt(value):
    """Return an equal value in which containers are never shared and equal strings always are.

    Pickle writes a shared object only once, so without this the checkpoint of a resumed run would have other bytes.
    """
    if type(value) is str:
        return sys.intern(value)
    if isinstance(value, dict):
        return {_rebuilt(name): _rebuilt(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_rebuilt, value))
    return value


def load(path):
    """Read a checkpoint onto the CPU and return the dictionary that was saved.

    Raises CheckpointError if the file is missing, damaged or foreign; torch alone would load a flipped bit silently.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; run the stage that writes it first") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: is a folder; give the final.pt in it") from error
    except zipfile.BadZipFile as error:
        why = f"no checkpoint, or a damaged one: give {GIVEN}, or delete it if it is one and run the stage again"
        if Path(path).read_bytes()[:2] in (b"", b"PK"):           # it begins as ours do
            why = "damaged or truncated; delete it and run the stage again"
        raise CheckpointError(f"{path}: {why}") from error
    except (PermissionError, MemoryError):                        # neither means a bad file
        raise
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: not a plain checkpoint of this project ({kind}); give {GIVEN}") from error
    if damaged:
        raise CheckpointError(f"{path}: damaged (checksum of {damaged} is wrong); delete it and run the stage again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}; write it again with this version")
    return content


def fill(net, weights, path):
    """Load weights, read from the checkpoint `path`, into `net`; raises CheckpointError if they do not fit it."""
    try:
        net.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{path}: weights of another network ({first}); write it again") from error


def require_settings(path, saved, now):
    """Raise CheckpointError, naming each difference, if two runs' settings differ in what changes results."""
    saved, now = deciding(saved), deciding(now)
    differing = [f"{name}: {saved.get(name)!r} there, {now.get(name)!r} now"
                 for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differing:
        raise CheckpointError(f"{path} was written with other settings ({', '.join(differing)}); use another --out or "
                              "delete it")


def begin_with(path, settings):
    """Write the settings that a folder is begun with to the JSON `path`; raises CheckpointError if it has others."""
    if path.exists():
        require_settings(path, read_json(path), settings)
    if ranks.is_first():
        write_json(path, settings)


PACKAGES = ("torch", "nibabel", "numpy", "scipy", "scikit-image")
GIT_PATIENCE_S = 20                              # after so long git is given up, as on a disk that does not answer


def require_part(path, settings, c, domain=""):
    """Raise CheckpointError unless a part (checkpoint or synthetic set) has the grid and source of the settings `c`.

    settings : those of the part.  domain : the domain that it must have been trained on; empty: the source.
    """
    now = _origin(vars(c), domain)
    there = _origin(settings, settings.get("domain"))
    differing = [f"{name}: {there[name]!r} there, {now[name]!r} now" for name in now if there[name] != now[name]]
    if differing:
        raise CheckpointError(f"{path} does not belong here ({', '.join(differing)}); give the part that does, or the "
                              "settings it was made with")


def _origin(settings, domain):
    """Return grid, source and domain as the settings name them; an empty domain stands for the source."""
    name = lambda filter: str(Domain.parse(filter)).lower()
    source = settings["source"]
    return {"spacing_mm": settings["spacing_mm"], "size": settings["size"], "source": name(source),
            "domain": name(domain or source)}


def require_trained_on(path, data_hash, workings):
    """Raise CheckpointError unless `data_hash`, of a model's training data, is the hash of these working volumes."""
    now = fingerprint(workings)
    if data_hash != now:
        raise CheckpointError(f"{path}: trained on other data ({data_hash} there, {now} now): its training volumes "
                              "were changed, added or lost since; restore them, or delete it and train again")


def require_made_by(path, made_by, sd_dm):
    """Raise CheckpointError if `made_by`, the hashes of the SD-DMs of some images, holds any other than `sd_dm`."""
    others = sorted(set(made_by) - {sd_dm})
    if others:
        raise CheckpointError(f"{path}: its images are of another diffusion model ({others[0]} there, {sd_dm} now); "
                              "delete it and make it again")


def require_references(folder, rows, workings):
    """Raise CheckpointError if one of `workings`, the references of `rows` of a set's manifest, was changed since."""
    content = {w.record.case: w.content[:16] for w in workings}
    for row in rows:
        if row["reference_content"] != content[row["reference"]]:
            raise CheckpointError(f"{folder}: {row['case']} was made of {row['reference']}, whose image or mask was "
                                  f"changed since; delete {folder} and make it again")


def provenance(data, workings, parts):
    """Return [(name, value)] of the data, checkpoints, versions and machine that results were made with.

    data : dataset folders, comma-separated.  workings : test volumes.  parts : {checkpoint: (hash, trained on what)}.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [("dataset", ", ".join(str(Path(folder).resolve()) for folder in data.split(","))),
            ("test volumes", f"{len(workings)}, content {fingerprint(workings)}"),
            *((name, f"SHA-256 {digest}, trained on {seen}") for name, (digest, seen) in parts.items()),
            ("versions", f"Python {platform.python_version()}, {versions}"),
            ("commit", _commit()),
            ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                        f"threads of torch: {torch.get_num_threads()}")]


def _commit():
    """Return the commit of this checkout and whether files were edited since; "none" if git does not tell."""
    git = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=, with uncommitted changes"]
    try:
        return subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
                              timeout=GIT_PATIENCE_S).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"
