"""The working grid and the way back to the original one: orientation, in-plane resampling, cropping, intensities.

A *working volume* is what every network sees: (D, H, W) float32 in [-1, 1], slices from base to apex, rows and columns
as in the clinical short-axis view, resampled in-plane alone and cropped or padded to one size.
"""
import functools
from dataclasses import dataclass, replace

import numpy as np

from cmr.records import STRUCTURES, labels_of

# This is the clinical short-axis view in patient coordinates (RAS+): columns run from right-anterior to left-posterior,
# rows downwards, slices from base to apex.  Every study is turned to it, so that storage order is no domain gap.
_SLICES = np.array([-0.70, 0.55, -0.45]) / np.linalg.norm([-0.70, 0.55, -0.45])
_COLUMNS = np.array([-0.6, -0.8, 0.0]) - np.dot([-0.6, -0.8, 0.0], _SLICES) * _SLICES
_COLUMNS /= np.linalg.norm(_COLUMNS)
CANONICAL = np.stack([_COLUMNS, np.cross(_COLUMNS, _SLICES), _SLICES], 1)             # world = CANONICAL @ (w, h, d)


@dataclass(frozen=True)
class Grid:
    """The in-plane working grid: a square with an edge of `size` pixels of `spacing_mm` each."""
    spacing_mm: float
    size: int

    @classmethod
    def of(cls, settings):
        return cls(settings["spacing_mm"], settings["size"])


@dataclass(frozen=True)
class Geometry:
    """How a working volume lies in its original file; `canonical` means oriented as the clinical short-axis view."""
    shape: tuple                                 # original (X, Y, Z)
    affine: list                                 # original, 4 x 4
    spacing_mm: tuple                            # original (x, y, z)
    transposed: bool                             # True: canonical columns run along the original axis 1
    flipped: tuple                               # for (d, h, w): True if the axis runs against the original one
    oriented: bool                               # False: the affine is a placeholder, and the stored order was kept
    low: float                                   # original intensity that became -1
    high: float                                  # original intensity that became +1
    grid: tuple                                  # (spacing_mm, size)


def orientation(affine):
    """Return (transposed, flips of (d, h, w), oriented), which turn stored axes to the clinical short-axis view.

    An axis-aligned affine (4 x 4) cannot be a short-axis stack's; it is a placeholder, and the stored order is kept.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(np.abs(directions).max(0) - 1).max() < 1e-3:
        return False, (False, False, False), False
    cosines = directions.T @ CANONICAL                            # (stored axis, canonical axis w, h, d)
    crossed, straight = abs(cosines[1, 0]) + abs(cosines[0, 1]), abs(cosines[0, 0]) + abs(cosines[1, 1])
    transposed = crossed > straight
    along_w, along_h = cosines[1 if transposed else 0, 0], cosines[0 if transposed else 1, 1]
    return bool(transposed), (bool(cosines[2, 2] < 0), bool(along_h < 0), bool(along_w < 0)), True


def canonical(array, geometry):
    """Turn a stored array (X, Y, Z) to canonical (D, H, W) without interpolation."""
    array = array.transpose(2, 0, 1) if geometry.transposed else array.transpose(2, 1, 0)
    return np.flip(array, [axis for axis, flip in enumerate(geometry.flipped) if flip])


def stored(array, geometry):
    """Turn a canonical array (D, H, W) to stored (X, Y, Z): the inverse of `canonical`."""
    array = np.flip(array, [axis for axis, flip in enumerate(geometry.flipped) if flip])
    return array.transpose(1, 2, 0) if geometry.transposed else array.transpose(2, 1, 0)


@functools.lru_cache(maxsize=64)
def resampler(n_in, spacing_in, n_out, spacing_out):
    """Return the matrix (n_out, n_in) of linear interpolation between axes of one centre, antialiased; 0 outside."""
    centre_mm = (np.arange(n_out) - (n_out - 1) / 2) * spacing_out
    position = centre_mm / spacing_in + (n_in - 1) / 2            # where output samples lie, in input samples
    width = max(1.0, spacing_out / spacing_in)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(n_in)) / width, 0, None)
    inside = (position > -0.5 - 1e-9) & (position < n_in - 0.5 + 1e-9)
    total = weights.sum(1, keepdims=True)
    return (weights / np.where(total > 0, total, 1) * inside[:, None]).astype(np.float32)


def _resample(array, geometry, back=False):
    """Resample canonical (..., H, W) from the original pixels to the working grid, or back."""
    (x, y, _), (x_mm, y_mm, _), (spacing_mm, size) = geometry.shape, geometry.spacing_mm, geometry.grid
    original = ((x, x_mm), (y, y_mm)) if geometry.transposed else ((y, y_mm), (x, x_mm))     # rows, columns
    working = ((size, spacing_mm), (size, spacing_mm))
    (h_in, w_in), (h_out, w_out) = (working, original) if back else (original, working)
    return resampler(*h_in, *h_out) @ array.astype(np.float32) @ resampler(*w_in, *w_out).T


def to_working(image, nifti, grid, label=None, limits=None):
    """Bring image and label (X, Y, Z) to the working grid: image (D, H, W) in [-1, 1], label uint8 or None, Geometry.

    limits : intensities that become -1 and 1; None: percentiles 0.5 and 99.5 of the voxels brighter than the padding.
    """
    transposed, flipped, oriented = orientation(nifti.affine)
    geometry = Geometry(image.shape, nifti.affine.tolist(), nifti.spacing_mm, transposed, flipped, oriented, low=0.0,
                        high=1.0, grid=(grid.spacing_mm, grid.size))
    darkest = min(0.0, float(image.min()))                        # subtracted, so that the padding, 0, is the darkest
    resampled = _resample(canonical(image, geometry) - darkest, geometry)
    if limits:
        low, high = np.subtract(limits, darkest)
    else:
        foreground = resampled[resampled > 0]
        low, high = np.percentile(foreground if foreground.size else resampled, [0.5, 99.5])
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    scaled = np.clip((resampled - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    geometry = replace(geometry, low=float(low + darkest), high=float(high + darkest))
    if label is None:
        return scaled, None, geometry
    values = np.arange(1 + len(STRUCTURES))[:, None, None, None]
    shares = _resample(canonical(label, geometry)[None] == values, geometry)
    shares[0] += 1 - shares.sum(0)                                # outside the original image all is background
    return scaled, labels_of(shares), geometry


def resample_to_original(array, geometry):
    """Resample working images or scores (..., D, H, W) to the original pixels, still canonical; 0 outside the field."""
    return _resample(array, geometry, back=True)


def to_original(scores, geometry):
    """Return labels (X, Y, Z) uint8 on the original grid by the largest score (C, D, H, W); 0 outside the field."""
    return stored(labels_of(resample_to_original(scores, geometry)), geometry)


def working_affine(geometry):
    """Return the affine (4 x 4) of a working volume stored as (W, H, D); its axes are made orthonormal."""
    affine, shape = np.array(geometry.affine), np.array(geometry.shape)
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    order = (1, 0, 2) if geometry.transposed else (0, 1, 2)       # stored axes that are the canonical w, h, d
    signs = np.where(geometry.flipped[::-1], -1, 1)
    spacing_mm, size = geometry.grid
    directions = (u @ v)[:, order] * signs * (spacing_mm, spacing_mm, geometry.spacing_mm[2])
    centre = affine[:3, 3] + (u @ v) * geometry.spacing_mm @ ((shape - 1) / 2)
    result = np.eye(4)
    result[:3, :3] = directions
    result[:3, 3] = centre - directions @ ((np.array([size, size, shape[2]]) - 1) / 2)
    return result


def at_same_height(volume, depth):
    """Return `depth` slices of a volume (D, H, W), evenly spaced from its first to its last."""
    return np.asarray(volume)[np.round(np.linspace(0, len(volume) - 1, depth)).astype(int)]
