"""Slices as pictures: grey panels with contours, differences, long-axis cuts, sheets of panels.  PNG by scikit-image.

Words in pictures are in `cmr.svg`.

Public: `with_contours`, `difference`, `long_axis`, `enlargement`, `two_a_row`, `sheet`, `save_png`.
"""
import numpy as np
from skimage.io import imsave
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from cmr.files import atomic

COLOURS = {1: (230, 60, 60), 2: (70, 200, 90), 3: (70, 130, 250)}                    # LV red, MYO green, RV blue


def with_contours(image, label=None, zoom=3):
    """A slice (H, W) in [-1, 1] as RGB with the inner boundary of each structure of label (H, W) drawn on it."""
    panel = _grey(image, zoom)
    if label is not None:
        large = np.kron(label, np.ones((zoom, zoom), np.uint8))
        for value, colour in COLOURS.items():
            panel[find_boundaries(large == value, mode="inner")] = colour
    return panel


def difference(a, b, full, zoom=3):
    """b - a of two slices: blue where b is darker, red where it is brighter, black where equal.

    full : the difference that has the full colour.
    """
    d = _enlarged((b - a) / full, zoom)
    return (np.clip(np.stack([d, np.abs(d) * 0.3, -d], -1), 0, 1) * 255).astype(np.uint8)


def long_axis(cut, stretch, zoom=3):
    """A cut across the slices, (D, W) in [-1, 1], as RGB; every slice is drawn as thick as it is, `stretch` pixels."""
    return _grey(np.repeat(cut, round(stretch), 0), zoom)


def _grey(image, zoom):
    """(H, W) in [-1, 1] to (zoom H, zoom W, 3) uint8."""
    grey = (np.clip(_enlarged(image, zoom) + 1, 0, 2) * 127.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def _enlarged(image, zoom):
    height, width = image.shape
    return resize(np.asarray(image, np.float64), (height * zoom, width * zoom), order=1)


def enlargement(slices):
    """How many pixels of a picture a pixel of these slices (D, H, W) becomes, for panels of some 200 pixels."""
    return max(1, round(200 / slices.shape[1]))


def two_a_row(rows):
    """Rows of panels, two of them beside each other."""
    return [a + b for a, b in zip(rows[::2], [*rows[1::2], []])]


def sheet(rows, gap=2):
    """Rows of RGB panels of one size as a single picture; short rows are padded with white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    picture = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            picture[top:top + height, left:left + width] = panel
    return picture


def save_png(path, picture):
    """Write an RGB picture atomically."""
    with atomic(path) as temporary:
        imsave(temporary, picture, check_contrast=False)
