"""A simulated change of scanner, made of known parts: random changes of look that leave the anatomy where it is.

`python -m cmr.rescan` copies a dataset with some of its domains changed, alike for all studies of a domain; masks,
grids and tables stay.  On real hearts it makes a gap whose truth is known: the same patients as they were scanned.
The same changes make stand-ins for unseen domains (`cmr.choose`) and vary the references of DG (`cmr.synthesize`).
Nothing moves: geometry and masks stay.

Public: `random_shift`, `Config`, `rescan`.
"""
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cmr.errors import UsageError, run_script
from cmr.files import unlock, writable_folder
from cmr.nifti import as_integers, read_nifti, write_like
from cmr.records import Domain
from cmr.seeds import rng
from cmr.settings import at_least, given, opt, parse, within
from cmr.studies import find

GAMMA_SD, SHADING, BLUR_MM, NOISE_SD, ZOOM = 0.4, 0.7, 3.0, 0.10, 0.5


def random_shift(image, spacing_mm, g, strength=1.0):
    """Contrast, coil shading, sharpness, resolution and noise of a volume (D, H, W) in [-1, 1], changed at random.

    spacing_mm : in-plane.  g : numpy Generator.  strength : 0 changes nothing, 1 is about as far as another vendor.
    The result is scaled to [-1, 1] as every working volume is.
    """
    u = (np.asarray(image, np.float64) + 1) / 2
    u = u ** np.exp(strength * GAMMA_SD * g.standard_normal())
    u = u * _shading(u.shape[1:], strength * SHADING * g.uniform(-0.5, 0.5, 4))
    if g.random() < 0.5:                                          # softer, or sharper
        u = _blurred(u, strength * g.uniform(0, BLUR_MM) / spacing_mm)
    else:
        u = u + strength * g.uniform(0, 1) * (u - _blurred(u, BLUR_MM / spacing_mm))
    if g.random() < 0.3:
        u = _coarser(u, 1 - strength * g.uniform(0, ZOOM))
    u = u + strength * g.uniform(0, NOISE_SD) * g.standard_normal(u.shape)
    low, high = np.percentile(u, [0.5, 99.5])
    return np.clip((u - low) / max(high - low, 1e-6) * 2 - 1, -1, 1).astype(np.float32)


def _shading(shape, coefficients):
    """Receive sensitivity (H, W): the exponential of a polynomial, one coil for all slices."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    a, b, c, d = coefficients
    return np.exp(a * x + b * y + c * (x ** 2 + y ** 2 - 2 / 3) + d * x * y)


def _blurred(volume, sigma):
    """In-plane; sigma in pixels."""
    return ndimage.gaussian_filter(volume, (0, sigma, sigma))


def _coarser(volume, factor):
    """Acquired on a grid of `factor` times as many pixels along each in-plane axis, and interpolated back."""
    shape = volume.shape[1:]
    small = [max(2, round(n * factor)) for n in shape]
    zoom = lambda a, by: ndimage.zoom(a, (1, *by), order=1, grid_mode=True, mode="nearest")
    return zoom(zoom(volume, np.divide(small, shape)), np.divide(shape, small))


@dataclass(frozen=True)
class Config:
    """Which studies are changed, and how far."""
    data: str       = opt("", "dataset folder", given("the folder of a dataset"))
    domain: str     = opt("", "domains to change, each value in its own way, e.g. Pathology=HCM,NOR",
                          given("a domain, e.g. Vendor=B"))
    strength: float = opt(1.0, "how far, 1: about as far as another vendor", within(0, 5))
    seed: int       = opt(0, "which change", at_least(0))
    out: str        = opt("", "folder of the copy; must not exist", given("a folder"))


def rescan(c):
    """Write the copy under another name, and give it its own when it is whole."""
    if "," in c.data:
        raise UsageError(f"--data {c.data}: several datasets; rescan them one by one")
    out = Path(c.out)
    if out.exists():
        raise UsageError(f"--out {out}: exists; choose another or delete it")
    records = find(c.data)
    domain_of = {r.image_path: domain for domain in Domain.parse(c.domain).each() for r in domain.select(records)}
    partial = writable_folder(out.with_name(f".{out.name}.partial"))
    shutil.copytree(c.data, partial, dirs_exist_ok=True)
    for path, domain in domain_of.items():
        nifti = read_nifti(path)
        shifted = _rescanned(nifti, rng(c.seed, "scanner", str(domain)), c.strength)
        write_like(partial / Path(path).relative_to(c.data), shifted, nifti)
    unlock(partial)
    os.replace(partial, out)
    print(f"{out}: {len(domain_of)} images of {c.domain} changed")


def _rescanned(nifti, g, strength):
    """The voxels (X, Y, Z[, T]) of a file after the change, as integers; all frames alike."""
    shape = nifti.array.shape
    stack = nifti.array.reshape(*shape[:2], -1).transpose(2, 1, 0)                   # (slices of all frames, Y, X)
    shifted = random_shift(stack, nifti.spacing_mm[0], g, strength)
    return as_integers(shifted.transpose(2, 1, 0)).reshape(shape)


def main(argv=None):
    rescan(parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0]))


if __name__ == "__main__":
    run_script(main)
