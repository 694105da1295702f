"""Working volumes of records, made once and kept in a cache.  `cmr.grid` defines what a working volume is."""
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cmr import ranks
from cmr.errors import DataError, ResourceError
from cmr.files import atomic, digest, read_sealed_json, sweep, write_sealed_json
from cmr.grid import Geometry, to_working
from cmr.nifti import SWAPPED, BlankImage, read_volume
from cmr.records import labelled

CACHE_VERSION = 5


@dataclass(frozen=True)
class Working:
    """A working volume: image (D, H, W) float32 in [-1, 1], label (D, H, W) uint8 or None, both memory-mapped."""
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
    """List of the Working volumes of `records`, in order, from the cache in the folder `work` or made now.

    A blank cine frame other than ED and ES is left out with a note.  A cache entry depends on the grid and on path,
    size and time of the files; its JSON is written last.  Every rank must call this equally often.
    """
    workings = []
    with ranks.first_alone():
        sweep(work)
        for record in records:
            try:
                workings.append(_prepared(record, grid, Path(work)))
            except BlankImage as error:
                if not record.phase.startswith("F") or len(records) == 1:
                    raise
                print(f"note: {error}; the frame is left out", flush=True)
    swapped = [w.record.label_path for w in workings if any(note.startswith(SWAPPED) for note in w.notes)]
    if swapped:
        print(f"note: {SWAPPED} in {len(swapped)} of {len(with_labels(workings))} masks, the first {swapped[0]}; "
              "correct them or their label table", flush=True)
    return workings


def _prepared(record, grid, work):
    paths = [os.path.realpath(path) if path else None for path in (record.image_path, record.label_path)]
    stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) if path else None for path in paths]
    identity = [CACHE_VERSION, stats, record.frame, asdict(grid), sorted(record.label_map.items()), record.limits]
    key = digest(json.dumps(identity))[:24]
    for _ in range(2):
        if not (work / f"{key}.json").exists():
            _make(record, grid, work, key)
        working = _cached(record, work, key)
        if working:
            return working
        print(f"note: {work / key}: damaged entry of the cache; it is made again", flush=True)
        (work / f"{key}.json").unlink(missing_ok=True)            # another stage may have met it too
    raise ResourceError(f"{work}: what is written there is read back differently; choose another --work")


def _cached(record, work, key):
    """The Working in the cache, or None if an entry is damaged."""
    entry = read_sealed_json(work / f"{key}.json")
    if entry is None:
        return None
    try:
        image = np.load(work / f"{key}.image.npy", mmap_mode="r")
        label = np.load(work / f"{key}.label.npy", mmap_mode="r") if entry["labelled"] else None
        geometry = Geometry(**entry["geometry"])                  # with lists for tuples, which JSON does not have
        if entry["content"] != _content(image, label, geometry):
            return None
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, EOFError):        # raised by damaged headers
        return None
    return Working(record, image, label, geometry, tuple(entry["notes"]), entry["content"])


def _make(record, grid, work, key):
    image, label, nifti, notes = read_volume(record)
    image, label, geometry = to_working(image, nifti, grid, label, record.limits)
    for name, array in (("image", image), ("label", label)):
        if array is not None:
            with atomic(work / f"{key}.{name}.npy") as temporary:
                np.save(temporary, array)
    entry = {"geometry": asdict(geometry), "notes": notes, "content": _content(image, label, geometry)}
    write_sealed_json(work / f"{key}.json", {**entry, "labelled": label is not None})


def _content(image, label, geometry):
    """Hash of voxels, labels and spacing; raises ValueError unless they are little-endian float32 and uint8."""
    if image.dtype.str != "<f4" or label is not None and label.dtype.str != "|u1":
        raise ValueError(f"voxels are {image.dtype}, labels {getattr(label, 'dtype', None)}")
    spacing_mm = repr([float(mm) for mm in geometry.spacing_mm]).encode()
    return digest(image.tobytes() + (b"" if label is None else label.tobytes()) + spacing_mm)


def with_labels(workings):
    """The volumes that have a label; one whose mask is all zero has none."""
    return [w for w in workings if w.label is not None]


def fully_labelled(workings):
    """([fully labelled volumes], [(case, why)] of the others, which would teach a network not to see a structure)."""
    of_any, kept, left_out = labelled(workings), [], []
    for working in workings:
        lacking = [name for name in of_any if name not in labelled([working])]
        if working.label is None:
            left_out.append((working.record.case, "its mask is all zero"))
        elif lacking:
            left_out.append((working.record.case, f"{', '.join(lacking)} not labelled there (or outside the working "
                             "field of view): not trained on"))
        else:
            kept.append(working)
    if of_any and not kept:
        raise DataError(f"{len(workings)} training volumes label {', '.join(of_any)}, but none of them labels all; "
                        "train on volumes that label the same structures")
    return kept, left_out


def fingerprint(workings):
    """Hash of the contents of these working volumes, whatever their order and place."""
    return digest("".join(sorted(w.content for w in workings)))[:16]
