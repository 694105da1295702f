"""nnU-Net's preprocessing, its inverse for predictions, and the drawing of training patches (Isensee et al. 2021).

Arrays are (z, y, x) or in the plan's axis order, spacings in mm likewise; images are 0 where nothing was imaged.
"""
import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cmr.nnunet_plan import ANISOTROPY, resampled_shape

OUTSIDE = -1                                     # label of unlabelled voxels outside the non-zero mask
NEVER = -1e4                                     # logit of a class that is impossible
FORCED_SHARE = 0.33                              # share of a batch's samples that must show foreground


@dataclass(frozen=True)
class Case:
    """A preprocessed volume as the network is trained on it, in the plan's axis order."""
    image: np.ndarray                            # (Z, Y, X) float32, z-scored
    label: np.ndarray                            # (Z, Y, X) int8, -1 outside the non-zero mask; None without labels
    places: dict                                 # {foreground class: (n, 3) coordinates of its voxels}
    box: tuple                                   # slices that crop the volume
    cropped_shape: tuple                         # shape after the crop, before resampling
    spacing_mm: tuple                            # of the volume
    target_mm: tuple                             # of `image`


def from_zero(image):
    """Shift a working volume to nnU-Net's convention: its darkest value, -1 (outside the field of view), becomes 0."""
    return np.asarray(image) + 1


def preprocess(image, spacing_mm, plan, label=None):
    """Reorder the axes of a (z, y, x) image and its label, if any, then crop, z-score and resample them to a `Case`."""
    spacing = tuple(float(spacing_mm[a]) for a in plan.order)
    image = np.asarray(image, np.float32).transpose(plan.order)
    box, mask = nonzero_box(image)
    image, mask = image[box], mask[box]
    if label is not None:
        label = np.asarray(label).astype(np.int8).transpose(plan.order)[box]
        label = np.where((label == 0) & ~mask, np.int8(OUTSIDE), label)
        mask = label >= 0
    target = spacing[:1] * (3 - plan.dims) + plan.spacing_mm      # a 2D plan keeps the volume's slices
    shape, thick = resampled_shape(image.shape, spacing, target), separate_axis(spacing, target)
    resampled = resample(zscore(image, mask if plan.masked_norm else None), shape, thick, order=3)
    labels = None if label is None else resample_labels(label, shape, thick)
    return Case(resampled, labels, places_of(labels), box, image.shape, spacing, target)


def back_to_volume(logits, case, plan, volume_shape):
    """Bring a case's logits (C, Z, Y, X) back to the volume (C, z, y, x); outside the crop all is background."""
    back = resample(logits, case.cropped_shape, separate_axis(case.target_mm, case.spacing_mm), order=1)
    shape = tuple(volume_shape[a] for a in plan.order)
    whole = np.full((len(back), *shape), NEVER, np.float32)
    whole[0] = 0
    whole[(slice(None), *case.box)] = back
    return whole.transpose(0, *(1 + np.argsort(plan.order)))


def nonzero_box(image):
    """(slices of the bounding box, mask with holes filled) of the non-zero voxels; the whole volume if it is all 0."""
    mask = ndimage.binary_fill_holes(image != 0)
    box = ndimage.find_objects(mask.astype(np.uint8))
    return (box[0] if box else tuple(slice(0, n) for n in image.shape)), mask


def zscore(image, inside=None):
    """Scale to zero mean and unit (population) SD, float32; with a mask, only the voxels inside count and change."""
    values = image if inside is None else image[inside]
    scaled = ((image - values.mean()) / max(float(values.std()), 1e-8)).astype(np.float32)
    return scaled if inside is None else np.where(inside, scaled, image)


def separate_axis(spacing_mm, target_mm):
    """The one thick axis, across which slices are copied, not interpolated; None if the volume is resampled in 3D."""
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            thick = [a for a in range(len(spacing)) if max(spacing) / spacing[a] == 1]
            return thick[0] if len(thick) == 1 else None
    return None


def resample(array, shape, thick, order):
    """Resample (..., Z, Y, X) to (..., *shape) by splines of `order` on a half-pixel grid, clipped to the input range.

    Across the `thick` axis the nearest slice is taken.  There is no antialiasing, because nnU-Net trains without it.
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
    """Resample labels (Z, Y, X) by linear 0/1 maps: the largest wins, if tied the nearest neighbour or the lowest."""
    if label.shape == tuple(shape):
        return label
    values = np.unique(label)
    shares = np.stack([resample((label == v).astype(np.float64), shape, thick, 1) for v in values])
    tied = shares >= shares.max(0) - 1e-12
    nearest = resample(label, shape, thick, 0)
    among = np.take_along_axis(tied, np.searchsorted(values, nearest)[None], 0)[0]
    return np.where(among, nearest, values[tied.argmax(0)]).astype(label.dtype)


def places_of(label):
    """{class: (n, 3) voxel coordinates} of the foreground classes in a label (Z, Y, X); {} for None."""
    present = [] if label is None else [int(v) for v in np.unique(label) if v > 0]
    return {v: np.argwhere(label == v).astype(np.int32) for v in present}


def draw_batch(cases, patch, loaded, batch, g, samples=None):
    """Return (images float32, labels int8), both (n, *loaded), of the range `samples` of a batch; None means all.

    patch, loaded : what the network sees, and what is cut; (z, y, x), or (y, x) with a depth of 1.  Sample j is the
    same whichever others are asked for, and the last ones of a batch must show foreground.
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
    return batch - round(batch * (1 - FORCED_SHARE))


def corner_range(shape, loaded, patch):
    """(lowest, highest) corner per axis, both inclusive, of a box `loaded` cut from a volume of this shape.

    The box hangs over the border by half of its excess over the patch or over the volume, whichever is larger.
    """
    over = [math.ceil(max(n_loaded - n_patch, n_loaded - n) / 2) for n, n_loaded, n_patch in zip(shape, loaded, patch)]
    return [-o for o in over], [n - n_loaded + o for n, n_loaded, o in zip(shape, loaded, over)]


def corner(case, patch, loaded, forced, g):
    """Draw a patch's lower corner, if `forced` around a foreground voxel; as in nnU-Net it may hang over the border."""
    lowest, highest = corner_range(case.label.shape, loaded, patch)
    if forced and case.places:
        places = list(case.places.values())
        chosen = places[g.integers(len(places))]
        centre = chosen[g.integers(len(chosen))]
        return [max(low, int(v) - n // 2) for low, v, n in zip(lowest, centre, loaded)]
    return [int(g.integers(low, high + 1)) for low, high in zip(lowest, highest)]


def cut(array, start, out):
    """Copy the box at `start` with the size of `out` into `out`, which keeps its value where the box hangs over."""
    part = array[tuple(slice(max(0, s), max(0, s + n)) for s, n in zip(start, out.shape))]
    out[tuple(slice(max(0, -s), max(0, -s) + n) for s, n in zip(start, part.shape))] = part
