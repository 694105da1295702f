"""What a results folder was made of: data, checkpoints, versions, threads.  Written at the end of its report.

Whether the parts belong together is checked by `cmr.belonging`.

Public: `provenance`.
"""
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from cmr.working import fingerprint

PATIENCE_S = 20                                  # for git, on a disk that does not answer
PACKAGES = ("torch", "nibabel", "numpy", "scipy", "scikit-image")


def provenance(data, workings, parts):
    """[(what, value)] for the report.

    data : dataset folders as given.  workings : the test volumes.  parts : {name: (first digits of its SHA-256, hash of
    the data it was trained on)} of every checkpoint.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    rows = [("dataset", ", ".join(str(Path(folder).resolve()) for folder in data.split(","))),
            ("test volumes", f"{len(workings)}, content {fingerprint(workings)}")]
    rows += [(name, f"SHA-256 {digest}, trained on {data_hash}") for name, (digest, data_hash) in parts.items()]
    return [*rows, ("versions", f"Python {platform.python_version()}, {versions}"), ("commit", _commit()),
            ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                        f"threads of torch: {torch.get_num_threads()}")]


def _commit():
    """Of the checkout that this file lies in, and whether it was edited since; none where git knows of none."""
    here = Path(__file__).parent
    try:
        commit, edited = _git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return "none"
    return f"{commit}, with uncommitted changes" if edited else commit


def _git(folder, *words):
    """What git says; raises SubprocessError where it knows nothing or does not answer."""
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True,
                          timeout=PATIENCE_S).stdout.strip()
