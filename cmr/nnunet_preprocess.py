"""nnU-Net's preprocessing and its way back, and how patches are drawn from what is preprocessed (Isensee et al. 2021).

    crop to the non-zero box -> z-score -> resample to the plan's spacing -> patches at random places
    logits -> resampled to the crop -> the whole volume

Arrays are (z, y, x) or already in the plan's axis order; spacings in mm in the same order; images are 0 where nothing
was imaged.  A 2D plan keeps each volume's own slices.

Public: `OUTSIDE`, `NEVER`, `Case`, `from_zero`, `preprocess`, `back_to_volume`, `nonzero_box`, `zscore`,
`separate_axis`, `resample`, `resample_labels`, `places_of`, `draw_batch`, `forced_count`, `corner_range`, `corner`,
`cut`.
"""
import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cmr.nnunet_plan import ANISOTROPY, resampled_shape

OUTSIDE = -1                                     # label of unlabelled voxels outside the non-zero mask
NEVER = -1e4                                     # logit of a class that cannot be
FORCED_SHARE = 0.33                              # of the samples of a batch, which must show foreground


@dataclass(frozen=True)
class Case:
    """A volume as the network is trained on it, in the plan's axis order."""
    image: np.ndarray                            # (Z, Y, X) float32, z-scored
    label: np.ndarray                            # (Z, Y, X) int8, -1 outside the non-zero mask; None without labels
    places: dict                                 # class -> (n, 3) voxels of it, for the foreground classes in `label`
    box: tuple                                   # slices of the crop in the volume, plan's order
    cropped_shape: tuple                         # before resampling
    spacing_mm: tuple                            # of the volume, plan's order
    target_mm: tuple                             # of `image`


def from_zero(image):
    """A working volume as nnU-Net expects one: its darkest value, -1, outside the field of view, is nnU-Net's zero."""
    return np.asarray(image) + 1


def preprocess(image, spacing_mm, plan, label=None):
    """The `Case` of a (z, y, x) image and its label, if there is one: axes reordered, cropped, z-scored, resampled."""
    spacing = tuple(float(spacing_mm[a]) for a in plan.order)
    image = np.asarray(image, np.float32).transpose(plan.order)
    box, mask = nonzero_box(image)
    image, mask = image[box], mask[box]
    if label is not None:
        label = np.asarray(label).astype(np.int8).transpose(plan.order)[box]
        label = np.where((label == 0) & ~mask, np.int8(OUTSIDE), label)
        mask = label >= 0
    target = spacing[:1] * (3 - plan.dims) + plan.spacing_mm      # a 2D plan leaves the slices alone
    shape, thick = resampled_shape(image.shape, spacing, target), separate_axis(spacing, target)
    resampled = resample(zscore(image, mask if plan.masked_norm else None), shape, thick, order=3)
    labels = None if label is None else resample_labels(label, shape, thick)
    return Case(resampled, labels, places_of(labels), box, image.shape, spacing, target)


def back_to_volume(logits, case, plan, volume_shape):
    """Logits (C, Z, Y, X) of a case to the volume (C, z, y, x); outside the crop only background (class 0) can be."""
    back = resample(logits, case.cropped_shape, separate_axis(case.target_mm, case.spacing_mm), order=1)
    shape = tuple(volume_shape[a] for a in plan.order)
    whole = np.full((len(back), *shape), NEVER, np.float32)
    whole[0] = 0
    whole[(slice(None), *case.box)] = back
    return whole.transpose(0, *(1 + np.argsort(plan.order)))


def nonzero_box(image):
    """(slices of the bounding box, mask) of the non-zero voxels, holes filled; the whole volume if it is all zero."""
    mask = ndimage.binary_fill_holes(image != 0)
    box = ndimage.find_objects(mask.astype(np.uint8))
    return (box[0] if box else tuple(slice(0, n) for n in image.shape)), mask


def zscore(image, inside=None):
    """Zero mean and unit (population) standard deviation, float32: over everything, or over and inside a mask only."""
    values = image if inside is None else image[inside]
    scaled = ((image - values.mean()) / max(float(values.std()), 1e-8)).astype(np.float32)
    return scaled if inside is None else np.where(inside, scaled, image)


def separate_axis(spacing_mm, target_mm):
    """The one thick axis, across which slices are copied and never interpolated; None to resample in 3D."""
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            thick = [a for a in range(len(spacing)) if max(spacing) / spacing[a] == 1]
            return thick[0] if len(thick) == 1 else None
    return None


def resample(array, shape, thick, order):
    """(..., Z, Y, X) to (..., *shape) by splines of `order` on a half-pixel grid, clipped to the range of the input.

    Across the `thick` axis the nearest slice is taken, and in-plane every slice is resampled by itself.  No
    antialiasing: nnU-Net has none, and its networks are trained on what this gives.
    """
    if array.shape[-3:] == tuple(shape):
        return array
    if array.ndim > 3:
        return np.stack([resample(a, shape, thick, order) for a in array])
    if thick is None:
        return _zoom(array, shape, order)
    slices = np.moveaxis(array, thick, 0)
    plane = [n for a, n in enumerate(shape) if a != thick]
    nearest = np.minimum((np.arange(shape[thick]) + 0.5) * len(slices) / shape[thick], len(slices) - 1).astype(int)
    resized = np.stack([_zoom(s, plane, order) for s in slices])
    return np.moveaxis(resized[nearest], 0, thick)


def _zoom(array, shape, order):
    if array.shape == tuple(shape):
        return array
    factors = np.divide(shape, array.shape)
    zoomed = ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, array.min(), array.max()).astype(array.dtype)


def resample_labels(label, shape, thick):
    """(Z, Y, X) labels to `shape`: every label's share by itself, linearly, then the largest.

    A tie goes to the label of the nearest neighbour if that is among the largest, else to the lowest of them.
    """
    if label.shape == tuple(shape):
        return label
    values = np.unique(label)
    shares = np.stack([resample((label == v).astype(np.float64), shape, thick, 1) for v in values])
    tied = shares >= shares.max(0) - 1e-12
    nearest = resample(label, shape, thick, 0)
    among = np.take_along_axis(tied, np.searchsorted(values, nearest)[None], 0)[0]
    return np.where(among, nearest, values[tied.argmax(0)]).astype(label.dtype)


def places_of(label):
    """{class: (n, 3) voxel coordinates} of the foreground classes in a label (Z, Y, X), or in None."""
    present = [] if label is None else [int(v) for v in np.unique(label) if v > 0]
    return {v: np.argwhere(label == v).astype(np.int32) for v in present}


def draw_batch(cases, patch, loaded, batch, g, samples=None):
    """(images, labels) of some samples of one batch: (n, *loaded) float32 and int8.

    patch : what the network sees.  loaded : what is cut, larger where the augmentation rotates it.  Both (y, x) or
    (z, y, x): a 2D patch is a 3D one of depth 1.
    Every sample's case is drawn with replacement from numpy Generator `g`; the last samples are forced to show
    foreground.  samples : range, or None for all; sample j is the same whatever others are asked for.
    """
    samples = range(batch) if samples is None else samples
    deep = lambda size: (1,) * (3 - len(size)) + tuple(size)
    images = np.zeros((len(samples), *deep(loaded)), np.float32)
    labels = np.full(images.shape, OUTSIDE, np.int8)
    for j in range(batch):
        case = cases[g.integers(len(cases))]
        start = corner(case, deep(patch), deep(loaded), j >= batch - forced_count(batch), g)
        if j in samples:
            cut(case.image, start, images[j - samples.start])
            cut(case.label, start, labels[j - samples.start])
    return images.reshape(-1, *loaded), labels.reshape(-1, *loaded)


def forced_count(batch):
    """How many samples of a batch must show foreground."""
    return batch - round(batch * (1 - FORCED_SHARE))


def corner_range(shape, loaded, patch):
    """(lowest, highest) corner of what is loaded from a volume of this shape, per axis, both inclusive.

    It hangs over the border by half of what it exceeds the patch, or the volume, whichever is more.
    """
    over = [math.ceil(max(n_loaded - n_patch, n_loaded - n) / 2) for n, n_loaded, n_patch in zip(shape, loaded, patch)]
    return [-o for o in over], [n - n_loaded + o for n, n_loaded, o in zip(shape, loaded, over)]


def corner(case, patch, loaded, forced, g):
    """Lower corner of a patch: anywhere, or (forced) around a voxel of a class drawn evenly among those that are there.

    As in nnU-Net, a forced patch may hang over the far border by any length.
    """
    lowest, highest = corner_range(case.label.shape, loaded, patch)
    if forced and case.places:
        places = list(case.places.values())
        chosen = places[g.integers(len(places))]
        centre = chosen[g.integers(len(chosen))]
        return [max(low, int(v) - n // 2) for low, v, n in zip(lowest, centre, loaded)]
    return [int(g.integers(low, high + 1)) for low, high in zip(lowest, highest)]


def cut(array, start, out):
    """Copy the box at `start` of the size of `out` into `out`, which keeps its value where the box hangs over."""
    part = array[tuple(slice(max(0, s), max(0, s + n)) for s, n in zip(start, out.shape))]
    out[tuple(slice(max(0, -s), max(0, -s) + n) for s, n in zip(start, part.shape))] = part
