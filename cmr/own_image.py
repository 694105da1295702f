"""An image of one's own: any NIfTI file, read whatever way it is stored, and results written back on its own grid.

There is no table, no split and no mask.  The slices may run along any axis, there may be one of them or many, and one
frame or a cine.  The working grid and the way back are `cmr.grid`'s, as in the experiment.

Public: `OwnImage`, `read_own`, `Field`, `unusual_pixels`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.errors import DataError
from cmr.grid import CANONICAL, canonical, orientation, resample_to_original, stored, to_working
from cmr.nifti import Nifti, read_stored, write_changed, write_like

BLEND_MM = 10                                    # over so much a change fades out towards the border of the field
CLEARLY = 1.5                                    # an axis is that of the slices if so much coarser, or shorter


@dataclass(frozen=True)
class OwnImage:
    """A file as it is worked on: frames (X, Y, Z, T) float32 with the slices along Z, spacing (x, y, z) mm."""
    path: Path
    frames: np.ndarray
    affine: np.ndarray                           # 4 x 4, of the axes X, Y, Z
    spacing_mm: tuple
    axes: tuple                                  # axis of the file that became X, Y and Z
    stored: Nifti                                # the file in its own axes

    @property
    def n_frames(self):
        return self.frames.shape[3]

    @property
    def voxel_ml(self):
        return float(np.prod(self.spacing_mm)) / 1000

    def as_stored(self, frames):
        """(X, Y, Z, T) in the axes and the shape of the file."""
        in_order = frames.transpose(*np.argsort(self.axes), 3)
        return in_order.reshape(self.stored.array.shape)

    def write_labels(self, path, labels):
        """Write labels (X, Y, Z, T) uint8 on the grid of the file, with its header."""
        write_like(path, self.as_stored(labels), self.stored)

    def write_frames(self, path, frames):
        """Write grey values (X, Y, Z, T) in the file's data type; voxels with the file's values stay to the bit."""
        write_changed(path, self.as_stored(frames), self.as_stored(frames != self.frames), self.stored.path)


def read_own(path):
    """Read any NIfTI file of grey values as an `OwnImage`; raises DataError for what is none."""
    nifti = read_stored(path)
    shape = nifti.array.shape
    if len(shape) < 2 or any(n > 1 for n in shape[4:]):
        raise DataError(f"{path}: shape {shape}, expected one slice (X, Y), a stack (X, Y, Z) or a cine (X, Y, Z, T)")
    if nifti.array.min() == nifti.array.max():
        raise DataError(f"{path}: constant ({nifti.array.min():g}); leave it out")
    whole = nifti.array.reshape((*shape, 1, 1)[:4])
    spacing_mm = (*nifti.spacing_mm, 1.0)[:3]                      # the header of a single slice has no third
    if not all(0.1 <= s <= 50 for s in spacing_mm):
        raise DataError(f"{path}: voxel size {spacing_mm}, expected 0.1 to 50 mm; correct the header")
    slices = _slice_axis(whole.shape[:3], spacing_mm, nifti.affine)
    axes = (*[axis for axis in range(3) if axis != slices], slices)
    affine = nifti.affine[:, (*axes, 3)]
    spacing_mm = tuple(spacing_mm[axis] for axis in axes)
    return OwnImage(Path(path), whole.transpose(*axes, 3), affine, spacing_mm, axes, nifti)


def _slice_axis(shape, spacing_mm, affine):
    """Which axis of a file the slices run along.

    The only one of a single voxel; the clearly coarsest; the clearly shortest; that which an oblique affine turns
    nearest to the direction of a short-axis stack; the last.
    """
    if shape.count(1) == 1:
        return shape.index(1)
    _, second, coarsest = np.argsort(spacing_mm, kind="stable")
    if spacing_mm[coarsest] > CLEARLY * spacing_mm[second]:
        return int(coarsest)
    shortest, second, _ = np.argsort(shape, kind="stable")
    if shape[second] > CLEARLY * shape[shortest]:
        return int(shortest)
    *_, oblique = orientation(affine)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.abs(CANONICAL[:, 2] @ directions).argmax()) if oblique else 2


class Field:
    """The working field of view on an image: the way of a volume (X, Y, Z) to the working grid, and back.

    Its middle is the image's, or the voxel `centre` (x, y): then the image is padded until that is its middle.  Raises
    DataError for a voxel outside the image.
    """

    def __init__(self, own, grid, centre=None):
        self.own, self.grid, self.before, self.after = own, grid, [0, 0], [0, 0]
        for axis, at in enumerate(centre or ()):
            n = own.frames.shape[axis]
            if not 0 <= at <= n - 1:
                raise DataError(f"{own.path}: --centre {centre[0]:g},{centre[1]:g} lies outside its "
                                f"{own.frames.shape[0]} x {own.frames.shape[1]} pixels")
            missing = round(2 * at - (n - 1))
            self.before[axis], self.after[axis] = max(0, -missing), max(0, missing)

    def to_working(self, volume):
        """(image (D, H, W) in [-1, 1], Geometry) of a volume (X, Y, Z): a frame, or several one behind the other."""
        image, _, geometry = to_working(self._padded(volume), self.own, self.grid)
        return image, geometry

    def _padded(self, volume):
        """With as much around it as brings `centre` to the middle, in the value that `to_working` takes for outside."""
        return np.pad(volume, [*zip(self.before, self.after), (0, 0)], constant_values=min(0, volume.min()))

    def cut(self, array):
        """The image's part of an array (X, Y, ...) on the padded grid."""
        (x, y), (n_x, n_y) = self.before, self.own.frames.shape[:2]
        return array[x:x + n_x, y:y + n_y]

    def changed(self, volume, image, new, geometry):
        """A volume (X, Y, Z) with what changed on the working grid, from `image` to `new` (D, H, W).

        The change is added, in grey values: what is finer than the working grid stays, and what lies beyond the
        brightness that -1 and 1 stand for.  It fades out over a centimetre towards the border of the field; nothing
        gets darker or brighter than the volume's own extremes.
        """
        step = stored(resample_to_original(new - image, geometry), geometry) * (geometry.high - geometry.low) / 2
        weight = np.clip(self.depth_mm() / BLEND_MM, 0, 1)[..., None]
        return np.clip(volume + self.cut(step) * weight, volume.min(), volume.max()).astype(np.float32)

    def depth_mm(self):
        """(X, Y): how far each pixel lies inside the field; below 0 outside."""
        axes = []
        for n, before, after, s in zip(self.own.frames.shape, self.before, self.after, self.own.spacing_mm):
            from_middle = np.abs(np.arange(n) + before - (n + before + after - 1) / 2) * s
            axes.append(self.grid.size * self.grid.spacing_mm / 2 - from_middle)
        return np.minimum(axes[0][:, None], axes[1][None])

    def is_touched(self, labels):
        """Whether labels (X, Y, ...) reach the border of the field, to a pixel of the working grid."""
        depth_mm = self.depth_mm()
        border = (depth_mm > 0) & (depth_mm <= self.grid.spacing_mm)
        return bool(labels[border].any())

    def view(self, volume, geometry):
        """What the field shows of a volume (X, Y, Z): (D, H, W) in the clinical view, of square pixels."""
        turned, pitch_mm = canonical(self._padded(volume), geometry), min(self.own.spacing_mm[:2])
        n = int(self.grid.size * self.grid.spacing_mm / pitch_mm)
        from_middle_mm = (np.arange(n) - (n - 1) / 2) * pitch_mm
        rows, columns = (_nearest(from_middle_mm, *axis) for axis in geometry.original_axes)
        return turned[:, rows[:, None], columns]

    def grey_view(self, volume, geometry):
        """`view` of grey values, in [-1, 1] as the networks see them."""
        return (self.view(volume, geometry) - geometry.low) / (geometry.high - geometry.low) * 2 - 1


def _nearest(from_middle_mm, n, spacing_mm):
    """Index of the nearest of n pixels at each of these distances from their middle; those beyond are left out."""
    at = np.rint(from_middle_mm / spacing_mm + (n - 1) / 2).astype(int)
    return at[(at >= 0) & (at < n)]


def unusual_pixels(own, grid):
    """[what to mind] where an image is coarser in-plane than the grid that the networks were trained on."""
    coarsest = max(own.spacing_mm[:2])
    if coarsest <= grid.spacing_mm:
        return []
    return [f"pixels of {coarsest:.2f} mm are coarser than the {grid.spacing_mm:g} mm that the network was trained on"]
