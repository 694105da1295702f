"""Pictures with words in them, as SVG that any browser shows: sheets of labelled panels, and a forest plot.

Nothing but text is written; pictures are embedded as PNG.  What is drawn is `cmr.figures`' and `cmr.ladder`'s business.

Public: `labelled_sheet`, `forest`.
"""
import base64
import tempfile
from html import escape
from pathlib import Path

from skimage.io import imsave

FONT, LINE = 13, 18                              # pixels
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


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
            paint = COLOURS[colour % len(COLOURS)]
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
