"""NIfTI files: read whole and checked, an image with its mask, results written beside them.

Which way up a volume lies, and its working grid, are `cmr.grid`'s business.

Public: `Nifti`, `read_nifti`, `read_stored`, `read_volume`, `write_nifti`, `write_like`, `write_changed`,
`without_words`, `STORED_LIMITS`, `as_integers`, `from_integers`.
"""
import functools
import gzip
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.errors import DataError
from cmr.files import atomic

STORED_LIMITS = 0, 2000                          # as which -1 and 1 of a synthetic image are stored


@dataclass(frozen=True)
class Nifti:
    """A file as read: array (X, Y, Z[, T]) float32, affine (4, 4), spacing (x, y, z) mm from the header's zooms."""
    path: str
    array: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    notes: tuple
    header: object = None                        # the file's own, for writing results beside it
    non_finite: int = 0                          # voxels that were NaN or infinite and are 0 now


@functools.lru_cache(maxsize=4)                  # a 4D cine is asked for once per frame
def read_nifti(path):
    """Read a short-axis stack (X, Y, Z) or cine (X, Y, Z, T); raises DataError for anything that cannot be trusted."""
    nifti = read_stored(path)
    array, notes = nifti.array, list(nifti.notes)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
        notes.append("trailing axis of size 1")
    if array.ndim not in (3, 4):
        raise DataError(f"{path}: shape {nifti.array.shape}, expected (X, Y, Z) or (X, Y, Z, T)")
    _require_short_axis(nifti)
    notes += _odd_affine(nifti.affine, nifti.spacing_mm)
    return replace(nifti, array=array, notes=tuple(notes))


def read_stored(path):
    """Read a NIfTI file whole, with its checksum, in the axes it has; raises DataError for what is no grey image.

    NaN and infinite voxels become 0 and are counted; the notes name them with the file.
    """
    path = str(path)
    image, data = _decoded(path)
    kind = image.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        raise DataError(f"{path}: voxels are {kind}, expected one real number each; convert the file to grey values")
    expected = int(image.dataobj.offset) + int(np.prod(image.shape)) * kind.itemsize
    if len(data) < expected:
        raise DataError(f"{path}: {len(data)} bytes, expected {expected} from the header; copy or download it again")
    array = np.asarray(image.dataobj, np.float32)
    if not array.size:
        raise DataError(f"{path}: shape {image.shape} holds no voxel; export it again")
    notes = []
    broken = ~np.isfinite(array)
    if broken.any():
        array = np.where(broken, 0, array)
        notes.append(f"{int(broken.sum())} non-finite voxels set to 0 in {path}")
    columns_mm = np.linalg.norm(image.affine[:3, :3], axis=0)
    if abs(np.linalg.det(image.affine[:3, :3])) <= 1e-6 * np.prod(columns_mm):
        raise DataError(f"{path}: its affine {image.affine[:3].tolist()} cannot be inverted; correct the header")
    array.setflags(write=False)
    spacing_mm = tuple(float(s) for s in image.header.get_zooms()[:3])
    return Nifti(path, array, image.affine, spacing_mm, tuple(notes), image.header, int(broken.sum()))


def _decoded(path):
    """(nibabel image, its bytes) of a file.

    The gzip stream is decompressed to its end first: nibabel alone stops before the checksum and returns wrong voxels
    for a flipped bit.
    """
    try:
        raw = Path(path).read_bytes()
        if not raw:                                               # gzip takes nothing for an empty archive
            raise EOFError
        data = gzip.decompress(raw) if path.endswith(".gz") else raw
        return nib.Nifti1Image.from_bytes(data), data
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError:                                       # not damage: `run_script` says it
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        is_gzip = raw[:2] == b"\x1f\x8b"
        found = "is truncated or damaged (gzip checksum)" if is_gzip else f"begins with {raw[:12]!r}"
        raise DataError(f"{path}: {found if raw else 'is empty'}; copy or download it again") from error
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:80]}"
        raise DataError(f"{path}: not a NIfTI file ({why}); copy or download it again") from error


def _require_short_axis(nifti):
    """Raise DataError for a voxel size that cannot be a short-axis stack's in mm."""
    spacing = nifti.spacing_mm
    if not all(0.4 <= s <= 4 for s in spacing[:2]) or not 2 <= spacing[2] <= 25:
        units = nifti.header.get_xyzt_units()[0]
        raise DataError(f"{nifti.path}: voxel size {spacing} ({units}), expected 0.4-4 mm in-plane and 2-25 mm between "
                        "slices; correct the header")


def _odd_affine(affine, spacing_mm):
    """Notes on an affine that says something else than the header, or shears."""
    notes = []
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(columns / spacing_mm - 1).max() > 0.01:
        notes.append("affine and header spacing disagree; header used")
    directions = affine[:3, :3] / columns
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
        notes.append("direction cosines not orthonormal")
    return notes


def read_volume(record):
    """The voxels of one record: image (X, Y, Z) float32, label (X, Y, Z) uint8 in our numbering or None, Nifti, notes.

    record : cmr.records.Record.  Raises DataError if image and label do not fit, or for a label outside the dataset's
    table.  A label volume without any structure becomes None with a note: files of zeros are how some copies say
    "unlabelled".
    """
    nifti = read_nifti(record.image_path)
    notes = list(nifti.notes)
    image = _frame(nifti, record.frame)
    if image.max() == image.min():
        constant = f"{record.phase} of {record.subject} is constant ({image.max():g})"
        raise DataError(f"{nifti.path}: {constant}; leave the study out")
    if not record.label_path:
        return image, None, nifti, notes
    mask = read_nifti(record.label_path)
    if mask.non_finite:
        raise DataError(f"{mask.path}: {mask.non_finite} labels are NaN or infinite; export the labels again")
    label, mask_notes = _fitting_mask(mask, nifti, image.shape, record.frame)
    notes += mask_notes
    label = _our_numbering(label, record.label_map, mask.path)
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
        raise DataError(f"{nifti.path}: a cine of {array.shape[3]} frames without a frame number; "
                        "ED and ES are needed from the CSV")
    return array[..., frame]


def _fitting_mask(mask, nifti, shape, frame):
    """(label (X, Y, Z) of the frame on the image's grid, notes); raises DataError if it lies on another."""
    if frame is not None and mask.array.ndim == 3 and nifti.array.ndim == 4:
        raise DataError(f"{mask.path}: one label volume for a cine of {nifti.array.shape[3]} frames; "
                        "which frame it belongs to is unknown")
    if mask.array.ndim == 4 and mask.array.shape[3] != nifti.array.shape[3]:
        raise DataError(f"{mask.path}: {mask.array.shape[3]} frames, but its image has {nifti.array.shape[3]}; "
                        "export the labels again")
    label = _frame(mask, frame)
    axes, flipped = _turn(label.shape, mask, nifti, shape)
    if axes is None:
        raise DataError(f"{mask.path}: {_how_it_lies(label, mask, nifti, shape)}; nothing is resampled silently, "
                        "export the label on its image's grid")
    if axes == (0, 1, 2) and not flipped:
        return label, []
    return np.flip(label.transpose(axes), flipped), ["label stored in another orientation, turned to its image's"]


def _turn(mask_shape, mask, nifti, shape):
    """(axes of the mask in the image's order, axes to flip then) by both affines; (None, None) if no voxels coincide.

    No voxel is interpolated: the map between the grids must be a permutation and flips, to a twentieth of a voxel.
    """
    to_image = np.linalg.solve(nifti.affine, mask.affine)         # voxel of the mask -> voxel of the image
    turn = np.rint(to_image[:3, :3])
    is_turn = (np.abs(turn).sum(0) == 1).all() and (np.abs(turn).sum(1) == 1).all()
    axes = tuple(int(a) for a in np.abs(turn).argmax(1))          # of the mask, for each axis of the image
    if not is_turn or tuple(mask_shape[a] for a in axes) != shape:
        return None, None
    first = np.where(turn.sum(1) < 0, np.array(shape) - 1, 0)     # where the mask's voxel (0, 0, 0) must lie
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mask_shape], indexing="ij")).reshape(3, -1)
    off_voxels = to_image[:3, :3] @ corners + to_image[:3, 3:] - (turn @ corners + first[:, None])
    off_mm = np.array(mask.spacing_mm)[list(axes)] - nifti.spacing_mm
    if np.abs(off_voxels).max() > 0.05 or np.abs(off_mm).max() > 1e-3:
        return None, None
    return axes, [axis for axis in range(3) if turn[axis].sum() < 0]


def _how_it_lies(label, mask, nifti, shape):
    """In words, why a mask does not lie on its image's grid."""
    if label.shape != shape:
        return f"shape {label.shape}, but its image {nifti.path} has {shape}"
    if np.abs(np.array(mask.spacing_mm) - nifti.spacing_mm).max() > 1e-3:
        return f"spacing {mask.spacing_mm} mm, but its image has {nifti.spacing_mm}"
    middle = np.append((np.array(shape) - 1) / 2, 1)
    shift_mm = np.linalg.norm((mask.affine - nifti.affine) @ middle)
    return f"its affine puts it elsewhere than its image {nifti.path} (centres {shift_mm:.1f} mm apart, or turned)"


def _our_numbering(label, label_map, path):
    """Label values on disk to ours, uint8; raises DataError for a value that the table does not have."""
    rounded = np.rint(label)
    off = np.abs(label - rounded)
    if off.max() > 2e-3:
        example = label.flat[off.argmax()]
        raise DataError(f"{path}: labels are not integers (e.g. {example:g}); was it resampled linearly?")
    unknown = sorted(set(np.unique(rounded).astype(int).tolist()) - set(label_map))
    if unknown:
        raise DataError(f"{path}: label values {unknown}, expected only {sorted(label_map)}; "
                        "correct the file or its label table")
    table = np.array([label_map.get(value, 0) for value in range(max(label_map) + 1)], np.uint8)
    return table[rounded.astype(int)]


def write_nifti(path, array, affine, spacing_mm, description=""):
    """Write (X, Y, Z[, T]) atomically as .nii.gz; equal input gives equal bytes (no time stamp), zooms are exact."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_zooms(tuple(spacing_mm) + (1.0,) * (array.ndim - 3))
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 2)
    image.set_qform(affine, 0)
    image.header["descrip"] = description[:79].encode()
    with atomic(path) as temporary:
        nib.save(image, temporary)


def write_like(path, array, nifti):
    """Write a result (X, Y, Z) on the grid of `nifti` atomically, with its own header: codes, units, description."""
    image = nib.Nifti1Image(array, nifti.affine, nifti.header)
    image.set_data_dtype(array.dtype)
    with atomic(path) as temporary:
        nib.save(image, temporary)


def without_words(nifti):
    """The same file without what its header says in words, where names of patients may stand."""
    header = nifti.header.copy()
    for name in {"descrip", "aux_file", "intent_name", "db_name", "data_type"} & set(header.keys()):
        header[name] = b""
    header.extensions.clear()
    return replace(nifti, header=header)


def write_changed(path, values, changed, original):
    """Write the file `original` again atomically with other voxels; header, data type and all else to the byte.

    values : grey values, of the shape in the file.  changed : boolean, which voxels they are written to.  They are
    rounded and clipped to what the file's data type and scaling can hold.
    """
    image, data = _decoded(str(original))
    proxy = image.dataobj
    raw = np.array(proxy.get_unscaled())
    stored = (values[changed] - proxy.inter) / proxy.slope
    if raw.dtype.kind in "iu":
        limits = np.iinfo(raw.dtype)
        stored = np.clip(np.rint(stored), limits.min, limits.max)
    raw[changed] = stored
    voxels = raw.tobytes("F")
    whole = data[:proxy.offset] + voxels + data[proxy.offset + len(voxels):]
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(whole, 1, mtime=0) if str(path).endswith(".gz") else whole)


def as_integers(image):
    """An image in [-1, 1] as it is stored, int16 between STORED_LIMITS."""
    low, high = STORED_LIMITS
    return np.rint((image + 1) / 2 * (high - low) + low).astype(np.int16)


def from_integers(stored):
    """A stored image as it was, float32 in [-1, 1]."""
    low, high = STORED_LIMITS
    return ((stored - np.float32(low)) / np.float32(high - low) * 2 - 1).astype(np.float32)
