"""One NIfTI file to a working volume and back, and the cache of working volumes.

A *working volume* is what every network sees: (D, H, W) float32 in [-1, 1], slices from base to apex, rows downwards and
columns to the right in the clinical short-axis view, resampled in-plane to one spacing and centre-cropped or padded to
one size; the slices stay as they were acquired.  `Geometry` keeps what is needed to go back to the original grid.

Public: `Grid`, `Geometry`, `Working`, `read_nifti`, `write_nifti`, `write_like`, `load`, `as_integers`, `at_same_height`, `to_working`, `labels_of`, `resample_to_original`, `stored`, `to_original`,
`image_to_original`, `working_affine`, `prepare`, `fingerprint`.
"""
import functools
import gzip
import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.checkpoint import atomic, write_text
from cmr.config import DataError

CACHE_VERSION = 1
# The clinical short-axis view in patient coordinates (RAS+): columns run from right-anterior to left-posterior, rows
# downwards, slices from base to apex.  Turning every study to it keeps a centre's way of storing from being a domain gap.
_SLICES = np.array([-0.70, 0.55, -0.45]) / np.linalg.norm([-0.70, 0.55, -0.45])
_COLUMNS = np.array([-0.6, -0.8, 0.0]) - np.dot([-0.6, -0.8, 0.0], _SLICES) * _SLICES
_COLUMNS /= np.linalg.norm(_COLUMNS)
CANONICAL = np.stack([_COLUMNS, np.cross(_COLUMNS, _SLICES), _SLICES], 1)             # world = CANONICAL @ (w, h, d)


@dataclass(frozen=True)
class Grid:
    """The in-plane working grid: square, `size` pixels of `spacing_mm`."""
    spacing_mm: float
    size: int


@dataclass(frozen=True)
class Nifti:
    """A file as read: array (X, Y, Z[, T]) float32, affine (4, 4), spacing (x, y, z) mm from the header's zooms."""
    path: str
    array: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    notes: tuple
    header: object = None                        # the file's own, for writing results beside it


@functools.lru_cache(maxsize=4)                  # a 4D cine is asked for once per frame
def read_nifti(path):
    """Read a NIfTI file whole, with its checksum; raises DataError for anything that cannot be trusted.

    The gzip stream is decompressed to its end first: nibabel alone stops before the checksum and returns wrong voxels
    for a flipped bit.  NaN and infinite voxels become 0 and are counted in `notes`.
    """
    path = str(path)
    try:
        raw = Path(path).read_bytes()
        data = gzip.decompress(raw) if path.endswith(".gz") else raw
        image = nib.Nifti1Image.from_bytes(data)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        begins = "is empty" if not raw else f"begins with {raw[:12]!r}" if raw[:2] != b"\x1f\x8b" else "is truncated or damaged (gzip checksum)"
        raise DataError(f"{path}: {begins}; copy or download it again") from error
    except Exception as error:
        raise DataError(f"{path}: not a NIfTI file ({type(error).__name__}: {str(error)[:80]}); copy or download it again") from error
    kind = image.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        raise DataError(f"{path}: voxels are {kind}, expected one real number each; convert the file to grey values")
    expected = int(image.dataobj.offset) + int(np.prod(image.shape)) * kind.itemsize
    if len(data) < expected:
        raise DataError(f"{path}: {len(data)} bytes, expected {expected} from the header; copy or download it again")
    array = np.asarray(image.dataobj, np.float32)
    notes = []
    while array.ndim > 3 and array.shape[-1] == 1:
        array, notes = array[..., 0], [*notes, "trailing axis of size 1"]
    if array.ndim not in (3, 4) or min(array.shape) < 1:
        raise DataError(f"{path}: shape {image.shape}, expected (X, Y, Z) or (X, Y, Z, T)")
    broken = ~np.isfinite(array)
    if broken.any():
        array, notes = np.where(broken, 0, array), [*notes, f"{int(broken.sum())} non-finite voxels set to 0"]
    spacing = tuple(float(s) for s in image.header.get_zooms()[:3])
    units = image.header.get_xyzt_units()[0]
    if not all(0.4 <= s <= 4 for s in spacing[:2]) or not 2 <= spacing[2] <= 25:
        raise DataError(f"{path}: voxel size {spacing} ({units}), expected 0.4-4 mm in-plane and 2-25 mm between slices; correct the header")
    columns = np.linalg.norm(image.affine[:3, :3], axis=0)
    if np.abs(columns / spacing - 1).max() > 0.01:
        notes.append("affine and header spacing disagree; header used")
    directions = image.affine[:3, :3] / columns
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
        notes.append("direction cosines not orthonormal")
    array.setflags(write=False)
    return Nifti(path, array, image.affine, spacing, tuple(notes), image.header)


def write_nifti(path, array, affine, spacing_mm, description=""):
    """Write (X, Y, Z[, T]) atomically as .nii.gz; equal input gives equal bytes (no time stamp), the header's zooms are exact."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_zooms(tuple(spacing_mm) + (1.0,) * (array.ndim - 3))
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 2)
    image.set_qform(affine, 0)
    image.header["descrip"] = description[:79].encode()
    with atomic(path) as temporary:
        nib.save(image, temporary)


def write_like(path, array, nifti):
    """Write a result (X, Y, Z) on the grid of `nifti` atomically, with that file's own header: codes, units, description."""
    image = nib.Nifti1Image(array, nifti.affine, nifti.header)
    image.set_data_dtype(array.dtype)
    with atomic(path) as temporary:
        nib.save(image, temporary)


def as_integers(image):
    """An image in [-1, 1] as it is stored, int16 from 0 to 2000."""
    return np.rint((image + 1) * 1000).astype(np.int16)


def at_same_height(volume, depth):
    """`depth` slices of a volume (D, H, W), each at the same relative height between its first and its last."""
    return np.asarray(volume)[np.round(np.linspace(0, len(volume) - 1, depth)).astype(int)]


def load(record):
    """The voxels of one record: image (X, Y, Z) float32, label (X, Y, Z) uint8 in our numbering or None, Nifti, notes.

    record : cmr.studies.Record.  Raises DataError if image and label do not fit, or for a label outside the dataset's
    table.  A label volume without any structure becomes None with a note: files of zeros are how some copies say "unlabelled".
    """
    nifti = read_nifti(record.image_path)
    notes = list(nifti.notes)
    image = _frame(nifti, record.frame)
    if image.max() == image.min():
        raise DataError(f"{nifti.path}: {record.phase} of {record.subject} is constant ({image.max():g}); leave the study out")
    if not record.label_path:
        return image, None, nifti, notes
    mask = read_nifti(record.label_path)
    if record.frame is not None and mask.array.ndim == 3 and nifti.array.ndim == 4:
        raise DataError(f"{mask.path}: one label volume for a cine of {nifti.array.shape[3]} frames; which frame it belongs to is unknown")
    if mask.array.ndim == 4 and mask.array.shape[3] != nifti.array.shape[3]:
        raise DataError(f"{mask.path}: {mask.array.shape[3]} frames, but its image has {nifti.array.shape[3]}; export the labels again")
    label = _frame(mask, record.frame)
    if label.shape != image.shape:
        if label.swapaxes(0, 1).shape == image.shape and np.allclose(mask.affine[:, [1, 0, 2, 3]], nifti.affine, atol=1e-3):
            label, notes = label.swapaxes(0, 1), [*notes, "label stored transposed"]
        else:
            raise DataError(f"{mask.path}: shape {label.shape}, but its image {nifti.path} has {image.shape}; nothing is resampled silently, export the label again")
    elif np.abs(np.array(mask.spacing_mm) - nifti.spacing_mm).max() > 1e-3:
        raise DataError(f"{mask.path}: spacing {mask.spacing_mm} mm, but its image has {nifti.spacing_mm}; correct one of the headers")
    rounded = np.rint(label)
    if np.abs(label - rounded).max() > 2e-3:
        raise DataError(f"{mask.path}: labels are not integers (e.g. {label.flat[np.abs(label - rounded).argmax()]:g}); was it resampled linearly?")
    unknown = sorted(set(np.unique(rounded).astype(int).tolist()) - set(record.label_map))
    if unknown:
        raise DataError(f"{mask.path}: label values {unknown}, expected only {sorted(record.label_map)}; correct the file or its label table")
    label = np.array([record.label_map.get(i, 0) for i in range(max(record.label_map) + 1)], np.uint8)[rounded.astype(int)]
    if not label.any():
        return image, None, nifti, [*notes, "label volume is all zero: unlabelled"]
    filled = label.any((0, 1))
    if (filled[:-2] & ~filled[1:-1] & filled[2:]).any():
        notes.append("interior slice without label")
    return image, label, nifti, notes


def _frame(nifti, frame):
    array = nifti.array
    if array.ndim == 3:
        return array
    if frame is None:
        raise DataError(f"{nifti.path}: a cine of {array.shape[3]} frames without a frame number; ED and ES are needed from the CSV")
    return array[..., frame]


@dataclass(frozen=True)
class Geometry:
    """How a working volume lies in its original file: everything needed to go back."""
    shape: tuple                                 # original (X, Y, Z)
    affine: tuple                                # original, 4 x 4
    spacing_mm: tuple                            # original (x, y, z)
    transposed: bool                             # canonical columns run along the original axis 1
    flipped: tuple                               # canonical (d, h, w) axis runs against the original one
    oriented: bool                               # False: the affine is axis-aligned and carries no anatomy; kept as stored
    low: float                                   # original intensity of -1
    high: float                                  # original intensity of +1
    grid: tuple                                  # (spacing_mm, size)


@dataclass(frozen=True)
class Working:
    """A working volume: image (D, H, W) float32 in [-1, 1], label (D, H, W) uint8 or None, record, geometry, notes."""
    record: object
    image: np.ndarray
    label: np.ndarray
    geometry: Geometry
    notes: tuple
    content: str                                 # hash of image and label

    @property
    def spacing_mm(self):
        """(slice, row, column) in mm."""
        s = self.geometry.grid[0]
        return (self.geometry.spacing_mm[2], s, s)


def orientation(affine):
    """(transposed, flips of (d, h, w), oriented) that bring stored axes to the clinical short-axis view.

    An axis-aligned affine cannot belong to a short-axis stack: it is a placeholder, so the stored order is kept.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(np.abs(directions).max(0) - 1).max() < 1e-3:
        return False, (False, False, False), False
    cosines = directions.T @ CANONICAL                                    # (stored axis, canonical axis w, h, d)
    transposed = abs(cosines[1, 0]) + abs(cosines[0, 1]) > abs(cosines[0, 0]) + abs(cosines[1, 1])
    along_w, along_h = cosines[1 if transposed else 0, 0], cosines[0 if transposed else 1, 1]
    return bool(transposed), (bool(cosines[2, 2] < 0), bool(along_h < 0), bool(along_w < 0)), True


def canonical(array, geometry):
    """Stored (X, Y, Z) to canonical (D, H, W); no interpolation."""
    array = array.transpose(2, 0, 1) if geometry.transposed else array.transpose(2, 1, 0)
    return np.flip(array, [axis for axis, flip in enumerate(geometry.flipped) if flip])


def stored(array, geometry):
    """Canonical (D, H, W) to stored (X, Y, Z): the inverse of `canonical`."""
    array = np.flip(array, [axis for axis, flip in enumerate(geometry.flipped) if flip])
    return array.transpose(1, 2, 0) if geometry.transposed else array.transpose(2, 1, 0)


@functools.lru_cache(maxsize=64)
def _resampler(n_in, spacing_in, n_out, spacing_out):
    """(n_out, n_in) linear interpolation between two centred axes, zero outside.

    The triangle kernel is stretched where the output is coarser: the antialiasing that plain interpolation lacks.
    """
    centre_mm = (np.arange(n_out) - (n_out - 1) / 2) * spacing_out
    position = centre_mm / spacing_in + (n_in - 1) / 2                    # of each output sample, in input samples
    width = max(1.0, spacing_out / spacing_in)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(n_in)) / width, 0, None)
    inside = (position > -0.5 - 1e-9) & (position < n_in - 0.5 + 1e-9)
    total = weights.sum(1, keepdims=True)
    return (weights / np.where(total > 0, total, 1) * inside[:, None]).astype(np.float32)


def _plane_axes(geometry):
    """((n, spacing) of the canonical rows, of the canonical columns) on the original grid."""
    (x, y, _), (sx, sy, _) = geometry.shape, geometry.spacing_mm
    return ((x, sx), (y, sy)) if geometry.transposed else ((y, sy), (x, sx))


def _resample(array, axes_in, axes_out):
    (h_in, w_in), (h_out, w_out) = axes_in, axes_out
    return _resampler(*h_in, *h_out) @ array.astype(np.float32) @ _resampler(*w_in, *w_out).T


def to_working(image, nifti, grid, label=None):
    """(X, Y, Z) image and label to the working grid: (D, H, W) in [-1, 1], (D, H, W) uint8 or None, Geometry.

    The 0.5 and 99.5 percentiles of the non-zero voxels in the field of view become -1 and 1; beyond them is clipped.
    """
    transposed, flipped, oriented = orientation(nifti.affine)
    base = Geometry(tuple(image.shape), tuple(map(tuple, nifti.affine.tolist())), nifti.spacing_mm, transposed, flipped, oriented, 0.0, 1.0,
                    (grid.spacing_mm, grid.size))
    working_axes = ((grid.size, grid.spacing_mm),) * 2
    shift = min(0.0, float(image.min()))                                  # so that the padding is the darkest value
    resampled = _resample(canonical(image, base) - shift, _plane_axes(base), working_axes)
    foreground = resampled[resampled > 0]
    low, high = np.percentile(foreground if foreground.size else resampled, [0.5, 99.5])
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    scaled = np.clip((resampled - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    geometry = Geometry(**{**asdict(base), "low": float(low + shift), "high": float(high + shift)})
    if label is None:
        return scaled, None, geometry
    one_hot = canonical(label, base)[None] == np.arange(4)[:, None, None, None]
    shares = _resample(one_hot, _plane_axes(base), working_axes)
    shares[0] += 1 - shares.sum(0)                                        # outside the original field of view: background
    return scaled, labels_of(shares), geometry


def labels_of(scores):
    """Class scores (C, ...) to labels (...) uint8: the largest, of equals the first.  As np.argmax, which is several times slower along a leading axis."""
    largest, labels = scores[0].copy(), np.zeros(scores.shape[1:], np.uint8)
    for value in range(1, len(scores)):
        labels[scores[value] > largest] = value
        np.maximum(largest, scores[value], out=largest)
    return labels


def resample_to_original(array, geometry):
    """Working images, logits or probabilities (..., D, H, W) to the original pixels, still in the canonical orientation (`stored` turns them back); 0 outside the field of view."""
    return _resample(array, ((geometry.grid[1], geometry.grid[0]),) * 2, _plane_axes(geometry))


def to_original(scores, geometry):
    """Class scores (C, D, H, W) to labels (X, Y, Z) uint8 on the original grid: interpolated as scores, then the largest.

    Outside the working field of view all scores are 0 and the first class, background, wins.
    """
    return stored(labels_of(resample_to_original(scores, geometry)), geometry)


def image_to_original(image, geometry):
    """Working image (D, H, W) in [-1, 1] to original intensities (X, Y, Z) float32; outside the field of view the lowest."""
    resampled = resample_to_original((image + 1) / 2, geometry)
    return stored(geometry.low + resampled * (geometry.high - geometry.low), geometry).astype(np.float32)


def working_affine(geometry):
    """(affine, spacing) of the working array stored as (X, Y, Z) = (W, H, D); directions made orthonormal."""
    affine = np.array(geometry.affine)
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    matrix = (u @ v) * np.array(geometry.spacing_mm)
    n = np.array(geometry.shape)
    order = (1, 0, 2) if geometry.transposed else (0, 1, 2)               # stored axis of the canonical w, h, d
    signs = np.array([-1.0 if flip else 1.0 for flip in geometry.flipped[::-1]])
    directions = matrix[:, order] * signs
    spacing = (geometry.grid[0], geometry.grid[0], geometry.spacing_mm[2])
    directions = directions / np.linalg.norm(directions, axis=0) * spacing
    centre = affine[:3, 3] + matrix @ ((n - 1) / 2)
    working_centre = (np.array([geometry.grid[1], geometry.grid[1], n[2]]) - 1) / 2
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = directions, centre - directions @ working_centre
    return result, spacing


def prepare(records, grid, work):
    """Working volumes of `records`, from the cache in `work` or made now: a list of Working in the same order.

    Arrays are memory-mapped.  An entry is a function of the files' path, size, time and of the grid; the JSON is written
    last, so a killed run leaves no half entry.
    """
    work = Path(work)
    done = []
    for record in records:
        stats = [(p, os.stat(p).st_size, os.stat(p).st_mtime_ns) if p else None
                 for p in (os.path.realpath(record.image_path), record.label_path and os.path.realpath(record.label_path))]
        identity = [CACHE_VERSION, stats, record.frame, asdict(grid), sorted(record.label_map.items())]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        entry = work / f"{key}.json"
        if not entry.exists():
            image, label, nifti, notes = load(record)
            image, label, geometry = to_working(image, nifti, grid, label)
            content = hashlib.sha256(image.tobytes() + (b"" if label is None else label.tobytes())).hexdigest()
            for name, array in (("image", image), ("label", label)):
                if array is not None:
                    with atomic(work / f"{key}.{name}.npy") as temporary:
                        np.save(temporary, array)
            write_text(entry, json.dumps({"geometry": asdict(geometry), "notes": notes, "content": content, "labelled": label is not None}))
        saved = json.loads(entry.read_text())
        geometry = Geometry(**{k: tuple(map(tuple, v)) if k == "affine" else tuple(v) if isinstance(v, list) else v
                               for k, v in saved["geometry"].items()})
        label = np.load(work / f"{key}.label.npy", mmap_mode="r") if saved["labelled"] else None
        done.append(Working(record, np.load(work / f"{key}.image.npy", mmap_mode="r"), label, geometry, tuple(saved["notes"]), saved["content"]))
    return done


def fingerprint(workings):
    """Hash of what a set of working volumes contains, whatever their order and place."""
    return hashlib.sha256("".join(sorted(w.content for w in workings)).encode()).hexdigest()[:16]
