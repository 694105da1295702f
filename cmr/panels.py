"""Slices as pictures: grey panels with contours, differences, long-axis cuts, sheets of panels.  PNG by scikit-image.

Words in pictures are in `cmr.panels`.

Public: `with_contours`, `difference`, `long_axis`, `enlargement`, `two_a_row`, `sheet`, `save_png`.

Pictures with words in them, as SVG that any browser shows: sheets of labelled panels, and a forest plot.

Nothing but text is written; pictures are embedded as PNG.  What is drawn is `cmr.figures`' and `cmr.ladder`'s business.

Public: `labelled_sheet`, `forest`.
"""
import base64
import tempfile
from html import escape
from pathlib import Path

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


FONT, LINE = 13, 18                              # pixels
PLOT_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def labelled_sheet(rows, columns, names=()):
    """A table of RGB panels, each column named above it and, if there are names, each row before it.

    rows : lists of panels (H, W, 3) uint8 of one size.
    """
    height, width = rows[0][0].shape[:2]
    left, gap = 8 * max(map(len, names), default=0), 3
    parts = []
    for j, column in enumerate(columns):
        parts.append(_text(left + j * (width + gap) + width / 2, LINE - 5, column, "middle"))
    for i, row in enumerate(rows):
        top = LINE + i * (height + gap)
        if names:
            parts.append(_text(left - 6, top + height / 2, names[i], "end"))
        for j, panel in enumerate(row):
            parts.append(f'<image x="{left + j * (width + gap)}" y="{top}" width="{width}" height="{height}" '
                         f'href="data:image/png;base64,{_png(panel)}"/>')
    return _document(left + len(columns) * (width + gap), LINE + len(rows) * (height + gap), parts)


def forest(groups, unit):
    """Differences with their intervals, one line each, better to the left of a line at 0.

    groups : {heading: [(name, difference, low, high, which colour)]}.
    """
    of_all = [row for rows in groups.values() for row in rows]
    span = 1.05 * (max(abs(value) for _, *values, _ in of_all for value in values) or 1.0)      # all 0: nothing changed
    left, width, height = 190, 420, LINE * (len(of_all) + len(groups) + 2)
    at = lambda value: left + width * (value + span) / (2 * span)
    parts, y = [f'<line x1="{at(0)}" x2="{at(0)}" y1="4" y2="{height - 2 * LINE}" stroke="#888"/>'], LINE
    for heading, rows in groups.items():
        parts.append(_text(4, y, heading, "start", bold=True))
        y += LINE
        for name, difference, low, high, colour in rows:
            paint = PLOT_COLOURS[colour % len(PLOT_COLOURS)]
            line = f'y1="{y - 4}" y2="{y - 4}" stroke="{paint}" stroke-width="2"'
            parts += [_text(left - 8, y, name, "end"), f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" {line}/>',
                      f'<circle cx="{at(difference):.1f}" cy="{y - 4}" r="3.5" fill="{paint}"/>',
                      _text(left + width + 8, y, f"{difference:+.1f} ({low:+.1f} to {high:+.1f})", "start")]
            y += LINE
    for value in (-span, 0, span):
        parts.append(_text(at(value), y, f"{value:+.0f} {unit}" if value else "0", "middle"))
    parts += [_text(at(-span / 2), y + LINE, "better", "middle"), _text(at(span / 2), y + LINE, "worse", "middle")]
    return _document(left + width + 170, height + LINE, parts)


def _text(x, y, words, anchor, bold=False):
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _png(panel):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panel.png"
        imsave(path, panel, check_contrast=False)
        return base64.b64encode(path.read_bytes()).decode()


def _document(width, height, parts):
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-size="{FONT}" '
            'font-family="sans-serif">')
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])
