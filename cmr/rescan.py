"""Copy a dataset with some of its domains put through a simulated change of scanner: `python -m cmr.rescan`.

Contrast, coil shading, sharpness, noise and resolution change at random, alike for all studies of a domain; masks, grids
and tables stay.  On real hearts it makes a gap whose truth is known: the same patients as they were scanned.

Public: `Config`, `rescan`.
"""
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cmr.checkpoint import writable_folder
from cmr.config import UsageError, opt, parse, run_script
from cmr.shifts import random_shift
from cmr.studies import Domain, find
from cmr.training import rng
from cmr.volumes import as_integers, read_nifti, write_like


@dataclass(frozen=True)
class Config:
    """Which studies are changed, and how far."""
    data: str       = opt("", "dataset folder")
    domain: str     = opt("", "domains to change, each value in its own way, e.g. Pathology=HCM,NOR")
    strength: float = opt(1.0, "how far, 1: about as far as another vendor")
    seed: int       = opt(0, "which change")
    out: str        = opt("", "folder of the copy; must not exist")


def rescan(c):
    """Write the copy under another name, and give it its own when it is whole."""
    if not c.data or not c.domain or not c.out:
        raise UsageError("give --data, --domain and --out")
    if "," in c.data:
        raise UsageError(f"--data {c.data}: several datasets; rescan them one by one")
    out = Path(c.out)
    if out.exists():
        raise UsageError(f"--out {out}: exists; choose another or delete it")
    records = find(c.data)
    changed = {r.image_path: domain for domain in Domain.parse(c.domain).each() for r in domain.select(records)}
    partial = writable_folder(out.with_name(f".{out.name}.partial"))
    shutil.copytree(c.data, partial, dirs_exist_ok=True)
    for path, domain in changed.items():
        nifti = read_nifti(path)
        stack = nifti.array.reshape(*nifti.array.shape[:2], -1).transpose(2, 1, 0)                  # (X, Y, Z[, T]) -> (slices of all frames, Y, X)
        shifted = random_shift(stack, nifti.spacing_mm[0], rng(c.seed, "scanner", str(domain)), c.strength)
        write_like(partial / Path(path).relative_to(c.data), as_integers(shifted.transpose(2, 1, 0)).reshape(nifti.array.shape), nifti)
    os.replace(partial, out)
    print(f"{out}: {len(changed)} images of {c.domain} changed")


def main(argv=None):
    rescan(parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0]))


if __name__ == "__main__":
    run_script(main)
