"""Checkpoints that say what they are, whether they belong together, and what a result was made of.

A checkpoint is refused where it is not what it says.  Each, and each synthetic set, knows the grid, the source and the
data it was made of; a stage names its own, and what does not fit is refused here before anything long starts.  A report
ends with what `provenance` lists.  When a run saves is `cmr.training`'s business.

Public: `save`, `load`, `fill`, `require_settings`, `require_part`, `require_trained_on`, `require_made_by`,
`require_references`, `provenance`.
"""
import importlib.metadata
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from cmr.errors import CheckpointError, ResourceError
from cmr.files import atomic
from cmr.records import Domain
from cmr.settings import without_places
from cmr.working import fingerprint

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


SHARED = ("spacing_mm", "size")                  # settings that all parts of an experiment have in common
PACKAGES = ("torch", "nibabel", "numpy", "scipy", "scikit-image")
GIT_PATIENCE_S = 20                              # for a disk that does not answer


def require_part(path, settings, c, domain=""):
    """Raise CheckpointError unless a part was made on the grid of the settings `c`, in an experiment of its source.

    settings : of the part.  domain : name of the one it must have been trained on; empty: the source.
    """
    now = _origin(vars(c), domain)
    there = _origin(settings, settings.get("domain"))
    differing = [f"{name}: {there[name]!r} there, {now[name]!r} now" for name in now if there[name] != now[name]]
    if differing:
        raise CheckpointError(f"{path} does not belong here ({', '.join(differing)}); give the part that does, or the "
                              "settings it was made with")


def _origin(settings, domain):
    """What settings say of a part's grid, source and domain; a part without a domain is of the source."""
    name = lambda filter: str(Domain.parse(filter)).lower()
    source = settings["source"]
    grid = {key: settings.get(key) for key in SHARED}
    return {**grid, "source": name(source), "domain": name(domain or source)}


def require_trained_on(path, data_hash, workings):
    """Raise CheckpointError unless a model was trained on just these working volumes, as they are now."""
    now = fingerprint(workings)
    if data_hash != now:
        raise CheckpointError(f"{path}: trained on other data ({data_hash} there, {now} now): its training volumes "
                              "were changed, added or lost since; restore them, or delete it and train again")


def require_made_by(path, made_by, sd_dm):
    """Raise CheckpointError unless the images of a set, or those a segmenter was trained on, are of one SD-DM.

    made_by : hashes of the SD-DMs that made them, empty where none did.  sd_dm : hash of the one they must be of.
    """
    others = sorted(set(made_by) - {sd_dm})
    if others:
        raise CheckpointError(f"{path}: its images are of another diffusion model ({others[0]} there, {sd_dm} now); "
                              "delete it and make it again")


def require_references(folder, rows, workings):
    """Raise CheckpointError unless a set's images were made of these references as they are now.

    rows : of the manifest, or of the items made so far; they name the reference and the hash of its content.
    """
    content = {w.record.case: w.content[:16] for w in workings}
    for row in rows:
        found = content.get(row["reference"])
        if found != row["reference_content"]:
            why = "which is not among the references now" if found is None else "whose image or mask was changed since"
            raise CheckpointError(f"{folder}: {row['case']} was made of {row['reference']}, {why}; "
                                  f"delete {folder} and make it again")


def provenance(data, workings, parts):
    """[(what, value)]: the data, checkpoints, versions and machine that results were made with.

    data : dataset folders, separated by commas.  workings : the test volumes.  parts : {name: (first digits of its
    SHA-256, hash of the data it was trained on)} of every checkpoint.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [("dataset", ", ".join(str(Path(folder).resolve()) for folder in data.split(","))),
            ("test volumes", f"{len(workings)}, content {fingerprint(workings)}"),
            *((name, f"SHA-256 {digest}, trained on {data_hash}") for name, (digest, data_hash) in parts.items()),
            ("versions", f"Python {platform.python_version()}, {versions}"),
            ("commit", _commit()),
            ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                        f"threads of torch: {torch.get_num_threads()}")]


def _commit():
    """The commit of this checkout, and whether it was edited since; "none" where git knows none or does not answer."""
    git = lambda *words: subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                                        check=True, timeout=GIT_PATIENCE_S).stdout.strip()
    try:
        edited = git("status", "--porcelain", "-uno")
        return git("rev-parse", "HEAD") + (", with uncommitted changes" if edited else "")
    except (OSError, subprocess.SubprocessError):
        return "none"
