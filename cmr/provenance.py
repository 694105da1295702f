"""What the parts of an experiment were made of, and whether they belong together.

Each checkpoint and each set knows the grid, the source and the data it was made of.  A stage names its own, and what
does not fit is refused here before anything long starts; a report ends with what `provenance` lists.

Public: `require_part`, `require_trained_on`, `require_made_by`, `require_references`, `provenance`.
"""
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from cmr.errors import CheckpointError
from cmr.records import Domain
from cmr.working import fingerprint

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
