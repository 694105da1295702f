"""Pictures that are drawn from arrays and numbers alone: slices with contours, sheets of panels, plots.

A slice is an array (H, W) in [-1, 1]; a panel is its picture (zoom H, zoom W, 3) uint8.  Sheets without words are PNG
files; pictures with words are SVG texts with the panels embedded as PNG, which any browser shows.
"""
import base64
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from skimage.io import imsave
from skimage.segmentation import find_boundaries
from skimage.transform import resize
from skimage.util import montage

from cmr.files import atomic

COLOURS = {1: (230, 60, 60), 2: (70, 200, 90), 3: (70, 130, 250)}                    # LV red, MYO green, RV blue
FULL_COLOUR = 0.5                                # difference drawn in full colour: a quarter of the range [-1, 1]
FONT, LINE, GAP = 13, 18, 2                      # pixels; GAP lies between the panels of a sheet
PLOT_COLOURS = ("#1f77b4", "#d62728")


def with_contours(image, label=None, zoom=3):
    """Return the panel of a slice; if a label (H, W) is given, each structure's inner boundary is drawn on it."""
    grey = (np.clip(_enlarged(image, zoom) + 1, 0, 2) * 127.5).astype(np.uint8)
    panel = np.repeat(grey[..., None], 3, 2)
    if label is not None:
        large = np.kron(label, np.ones((zoom, zoom), np.uint8))
        for value, colour in COLOURS.items():
            panel[find_boundaries(large == value, mode="inner")] = colour
    return panel


def difference(a, b, zoom=3):
    """Return the panel of b - a: blue where b is darker, red where it is brighter."""
    d = _enlarged((b - a) / FULL_COLOUR, zoom)
    return (np.clip(np.stack([d, np.abs(d) * 0.3, -d], -1), 0, 1) * 255).astype(np.uint8)


def _enlarged(image, zoom):
    height, width = image.shape
    return resize(np.asarray(image, np.float64), (height * zoom, width * zoom), order=1)


def enlargement(slices):
    """Return the whole-number zoom at which panels of these slices (D, H, W) are about 200 pixels high."""
    return max(1, round(200 / slices.shape[1]))


def two_a_row(rows):
    """Put every two rows of panels beside each other."""
    return [a + b for a, b in zip(rows[::2], [*rows[1::2], []])]


def sheet(rows):
    """Join rows of panels of equal size to one RGB picture; short rows are padded with white."""
    white, columns = np.full_like(rows[0][0], 255), max(map(len, rows))
    panels = [panel for row in rows for panel in row + [white] * (columns - len(row))]
    framed = montage(panels, (255, 255, 255), grid_shape=(len(rows), columns), padding_width=GAP, channel_axis=-1)
    return framed[GAP:-GAP, GAP:-GAP]


def save_png(path, picture):
    """Write an RGB picture atomically."""
    with atomic(path) as temporary:
        imsave(temporary, picture, check_contrast=False)


def labelled_sheet(rows, columns, names=()):
    """Return the SVG of rows of panels of equal size, with column names above and, if given, row names on the left."""
    height, width = rows[0][0].shape[:2]
    left, gap = 8 * max(map(len, names), default=0), 3
    parts = []
    for j, column in enumerate(columns):
        parts.append(svg_text(left + j * (width + gap) + width / 2, LINE - 5, column, "middle"))
    for i, row in enumerate(rows):
        top = LINE + i * (height + gap)
        if names:
            parts.append(svg_text(left - 6, top + height / 2, names[i], "end"))
        for j, panel in enumerate(row):
            parts.append(f'<image x="{left + j * (width + gap)}" y="{top}" width="{width}" height="{height}" '
                         f'href="data:image/png;base64,{_png(panel)}"/>')
    return svg(left + len(columns) * (width + gap), LINE + len(rows) * (height + gap), parts)


@dataclass(frozen=True)
class Example:
    """A test volume on the working grid that is to be drawn: images (D, H, W) in [-1, 1], labels (D, H, W)."""
    case: str
    image: np.ndarray
    translated: np.ndarray
    truth: np.ndarray
    found: dict                                  # {row of the experiment: labels}, in the order of drawing


def example_sheet(example):
    """Return the SVG of the first, middle and last labelled slice of an example; of all slices if none is labelled.

    Each row has the slice, its translation, their difference, and contours of the truth and of what was found.
    """
    labelled = np.flatnonzero(example.truth.any((1, 2)))
    among = labelled if len(labelled) else np.arange(len(example.truth))
    rows, zoom = [], enlargement(example.image)
    for k in among[np.linspace(0, len(among) - 1, min(3, len(among))).round().astype(int)]:
        image, translated = example.image[k], example.translated[k]
        contours = [with_contours(image, labels[k], zoom) for labels in (example.truth, *example.found.values())]
        rows.append([with_contours(image, None, zoom), with_contours(translated, None, zoom),
                     difference(image, translated, zoom), *contours])
    return labelled_sheet(rows, ["reference", "translated", f"difference, ±{FULL_COLOUR}", "truth", *example.found])


def forest(groups):
    """Return the SVG of differences in mm with their intervals; what lies left of the line at 0 is better.

    groups : {heading: [(name, difference, low, high, index in PLOT_COLOURS)]}.
    """
    every = [row for rows in groups.values() for row in rows]
    span = 1.05 * (max(abs(value) for _, *values, _ in every for value in values) or 1.0)       # 1 if all are 0
    left, width, height = 190, 420, LINE * (len(every) + len(groups) + 2)
    at = lambda value: left + width * (value + span) / (2 * span)
    parts, y = [f'<line x1="{at(0)}" x2="{at(0)}" y1="4" y2="{height - 2 * LINE}" stroke="#888"/>'], LINE
    for heading, rows in groups.items():
        parts.append(svg_text(4, y, heading, "start", ' font-weight="bold"'))
        y += LINE
        for name, difference, low, high, colour in rows:
            paint = PLOT_COLOURS[colour]
            line = f'y1="{y - 4}" y2="{y - 4}" stroke="{paint}" stroke-width="2"'
            parts += [svg_text(left - 8, y, name, "end"), f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" {line}/>',
                      f'<circle cx="{at(difference):.1f}" cy="{y - 4}" r="3.5" fill="{paint}"/>',
                      svg_text(left + width + 8, y, f"{difference:+.1f} ({low:+.1f} to {high:+.1f})", "start")]
            y += LINE
    for value in (-span, 0, span):
        parts.append(svg_text(at(value), y, f"{value:+.0f} mm" if value else "0", "middle"))
    for value, word in ((-span / 2, "better"), (span / 2, "worse")):
        parts.append(svg_text(at(value), y + LINE, word, "middle"))
    return svg(left + width + 170, height + LINE, parts)


def svg_text(x, y, words, anchor, style=""):
    """Return an SVG element of words at a place in pixels; anchor : what of them lies there, start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _png(panel):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panel.png"
        imsave(path, panel, check_contrast=False)
        return base64.b64encode(path.read_bytes()).decode()


def svg(width, height, parts):
    """Return the SVG picture of some elements on white; width, height : in pixels."""
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-size="{FONT}" '
            'font-family="sans-serif">')
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])
