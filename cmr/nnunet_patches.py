"""nnU-Net's patch sampling: random places, and a third of every batch forced to hold foreground.

A 2D patch is a 3D one of depth 1: corners and sizes here are always (z, y, x) in the plan's axis order.
What is done to a patch afterwards is in `cmr.nnunet_augment`.

Public: `Volume`, `forced_count`, `corner_range`, `corner`, `cut`, `draw_batch`.
"""
from dataclasses import dataclass

import numpy as np

from cmr.nnunet_preprocess import OUTSIDE

FORCED_SHARE = 0.33


@dataclass(frozen=True)
class Volume:
    """A preprocessed training volume with the places of its foreground."""
    image: np.ndarray                            # (Z, Y, X) float32, z-scored
    label: np.ndarray                            # (Z, Y, X) int8, -1 outside
    places: dict                                 # class -> (n, 3) voxel coordinates, classes that are there only

    @classmethod
    def of(cls, case):
        present = [int(v) for v in np.unique(case.label) if v > 0]
        return cls(case.image, case.label, {v: np.argwhere(case.label == v).astype(np.int32) for v in present})


def draw_batch(volumes, patch, loaded, batch, g, samples):
    """(images, labels) of some samples of one batch: (n, *loaded) float32 and int8.

    patch : what the network sees.  loaded : what is cut, larger where the augmentation rotates it.  Both (y, x) or
    (z, y, x).  Every sample's volume is drawn with replacement from numpy Generator `g`; the last samples are the
    forced ones.  samples : range; the places of the others are drawn too, so that sample j is the same whoever asks.
    """
    deep = lambda size: (1,) * (3 - len(size)) + tuple(size)
    images = np.zeros((len(samples), *deep(loaded)), np.float32)
    labels = np.full(images.shape, OUTSIDE, np.int8)
    for j in range(batch):
        volume = volumes[g.integers(len(volumes))]
        start = corner(volume, deep(patch), deep(loaded), j >= batch - forced_count(batch), g)
        if j in samples:
            cut(volume.image, start, images[j - samples.start])
            cut(volume.label, start, labels[j - samples.start])
    return images.reshape(-1, *loaded), labels.reshape(-1, *loaded)


def forced_count(batch):
    """How many samples of a batch must show foreground."""
    return batch - round(batch * (1 - FORCED_SHARE))


def corner_range(shape, loaded, patch):
    """(lowest, highest) corner per axis, inclusive.

    What is loaded may hang over the border by as much as it exceeds the patch.
    """
    over = [-(-max(p - q, p - n) // 2) for n, p, q in zip(shape, loaded, patch)]
    return [-o for o in over], [n - p + o for n, p, o in zip(shape, loaded, over)]


def corner(volume, patch, loaded, forced, g):
    """Lower corner of a patch: anywhere, or (forced) around a voxel of a class drawn evenly among those that are there.

    A forced patch is not kept from hanging over the far border: nnU-Net does not keep it either.
    """
    lowest, highest = corner_range(volume.label.shape, loaded, patch)
    if forced and volume.places:
        places = list(volume.places.values())
        chosen = places[g.integers(len(places))]
        centre = chosen[g.integers(len(chosen))]
        return [max(lo, int(v) - p // 2) for lo, v, p in zip(lowest, centre, loaded)]
    return [int(g.integers(lo, hi + 1)) for lo, hi in zip(lowest, highest)]


def cut(array, start, out):
    """Copy the box at `start` of the size of `out` into `out`, which keeps its value where the box hangs over."""
    low = [max(0, s) for s in start]
    high = [min(n, s + p) for n, s, p in zip(array.shape, start, out.shape)]
    if all(a < b for a, b in zip(low, high)):
        inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))
        out[inside] = array[tuple(slice(a, b) for a, b in zip(low, high))]
