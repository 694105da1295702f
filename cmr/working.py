"""Working volumes of records, made once and kept in a cache.  What a working volume is, `cmr.grid` says.

Public: `Working`, `prepare`, `fingerprint`.
"""
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cmr.files import atomic, write_text
from cmr.grid import Geometry, to_working
from cmr.nifti import read_volume

CACHE_VERSION = 1


@dataclass(frozen=True)
class Working:
    """A working volume: image (D, H, W) float32 in [-1, 1], label (D, H, W) uint8 or None, memory-mapped."""
    record: object
    image: np.ndarray
    label: np.ndarray
    geometry: Geometry
    notes: tuple
    content: str                                 # hash of image and label

    @property
    def spacing_mm(self):
        """(slice, row, column) in mm."""
        in_plane_mm, _ = self.geometry.grid
        return (self.geometry.spacing_mm[2], in_plane_mm, in_plane_mm)


def prepare(records, grid, work):
    """Working volumes of `records`, from the cache in `work` or made now: a list of Working in the same order.

    An entry is a function of the files' path, size, time and of the grid; the JSON is written last, so a killed run
    leaves no half entry.
    """
    return [_prepared(record, grid, Path(work)) for record in records]


def _prepared(record, grid, work):
    key = _key(record, grid)
    entry = work / f"{key}.json"
    if not entry.exists():
        _make(record, grid, work, key)
    saved = json.loads(entry.read_text())
    geometry = Geometry(**{name: _as_tuples(value) for name, value in saved["geometry"].items()})
    image = np.load(work / f"{key}.image.npy", mmap_mode="r")
    label = np.load(work / f"{key}.label.npy", mmap_mode="r") if saved["labelled"] else None
    return Working(record, image, label, geometry, tuple(saved["notes"]), saved["content"])


def _key(record, grid):
    """Name of a record's entry in the cache."""
    paths = [os.path.realpath(path) if path else None for path in (record.image_path, record.label_path)]
    stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) if path else None for path in paths]
    identity = [CACHE_VERSION, stats, record.frame, asdict(grid), sorted(record.label_map.items())]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _make(record, grid, work, key):
    """Write one entry of the cache."""
    image, label, nifti, notes = read_volume(record)
    image, label, geometry = to_working(image, nifti, grid, label)
    content = hashlib.sha256(image.tobytes() + (b"" if label is None else label.tobytes())).hexdigest()
    for name, array in (("image", image), ("label", label)):
        if array is not None:
            with atomic(work / f"{key}.{name}.npy") as temporary:
                np.save(temporary, array)
    entry = {"geometry": asdict(geometry), "notes": notes, "content": content, "labelled": label is not None}
    write_text(work / f"{key}.json", json.dumps(entry))


def _as_tuples(value):
    """JSON knows no tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def fingerprint(workings):
    """Hash of what a set of working volumes contains, whatever their order and place."""
    return hashlib.sha256("".join(sorted(w.content for w in workings)).encode()).hexdigest()[:16]
