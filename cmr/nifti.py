"""Read and check NIfTI files, read an image together with its mask, and write results on an image's own grid."""
import functools
import gzip
import itertools
import math
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from cmr.errors import DataError
from cmr.files import atomic
from cmr.folders import decoded
from cmr.records import frame_number, looks_swapped

SWAPPED = "LV and RV look swapped (the myocardium encloses what is labelled RV)"
STORED_LIMITS = 0, 2000                          # the integers that -1 and 1 of a synthetic image are stored as


class BlankImage(DataError):
    """The image has no contrast.  An ED or ES image is then unusable; any other frame of a cine is left out."""


@dataclass(frozen=True)
class Nifti:
    """A file as read: array (X, Y, Z[, T]) float32, affine (4, 4), spacing_mm (x, y, z) from the header's pixdim."""
    path: str
    array: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    notes: tuple
    header: object = None                        # the file's own header, for writing results on its grid
    non_finite: int = 0                          # number of voxels that were NaN or infinite and are 0 now

    def frame(self, number):
        """Voxels (X, Y, Z) of a 3D file, or of a cine's frame `number`; raises DataError for a cine if it is None."""
        if self.array.ndim == 3:
            return self.array
        if number is None:
            raise DataError(f"{self.path}: a cine of {self.array.shape[3]} frames without a frame number; "
                            "ED and ES are needed from the CSV")
        return self.array[..., number]


@functools.lru_cache(maxsize=4)                  # every frame of a cine asks for the same 4D file
def read_nifti(path):
    """Read a short-axis stack (X, Y, Z) or cine (X, Y, Z, T); raises DataError if shape or spacing is implausible."""
    nifti = read_stored(path)
    array, notes = nifti.array, list(nifti.notes)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
        notes.append("trailing axis of size 1")
    if array.ndim not in (3, 4):
        raise DataError(f"{path}: shape {nifti.array.shape}, expected (X, Y, Z) or (X, Y, Z, T)")
    _require_short_axis(nifti)
    lengths_mm = np.linalg.norm(nifti.affine[:3, :3], axis=0)
    if np.abs(lengths_mm / nifti.spacing_mm - 1).max() > 0.01:
        notes.append("affine and header spacing disagree; header used")
    directions = nifti.affine[:3, :3] / lengths_mm
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
        notes.append("direction cosines not orthonormal")
    return replace(nifti, array=array, notes=tuple(notes))


def read_stored(path):
    """Read a NIfTI file with all its axes; non-finite voxels become 0.  Raises DataError if it is no grey image."""
    path = str(path)
    image, header, data = decoded(path)
    array, notes = _voxels(path, image, len(data)), ()
    broken = ~np.isfinite(array)
    n_broken = int(broken.sum())
    if n_broken:
        array, notes = np.where(broken, 0, array), (f"{n_broken} non-finite voxels set to 0 in {path}",)
    with np.errstate(all="ignore"):                               # NaN and overflow fail the second condition
        flat = abs(np.linalg.det(image.affine[:3, :3])) <= 1e-6 * np.prod(np.linalg.norm(image.affine[:3, :3], axis=0))
    if flat or not (np.abs(image.affine) < 1e6).all():
        raise DataError(f"{path}: its affine {image.affine[:3].tolist()} cannot be inverted; correct the header")
    array.setflags(write=False)
    # Taken from the raw header, because nibabel replaces a voxel size of 0 by 1.
    spacing_mm = tuple(abs(float(s)) for s in header["pixdim"][1:4][:array.ndim])
    return Nifti(path, array, image.affine, spacing_mm, notes, image.header, n_broken)


def _voxels(path, image, n_bytes):
    kind = image.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        raise DataError(f"{path}: voxels are {kind}, expected one real number each; convert the file to grey values")
    if min(image.shape, default=0) < 1:
        raise DataError(f"{path}: shape {image.shape} holds no voxel; export it again")
    expected = int(image.dataobj.offset) + math.prod(map(int, image.shape)) * kind.itemsize
    if n_bytes < expected:
        raise DataError(f"{path}: {n_bytes} bytes, expected {expected} from the header; copy or download it again")
    with np.errstate(all="ignore"):                               # an overflow becomes infinite, which is counted
        return np.asarray(image.dataobj, np.float32)


def _require_short_axis(nifti):
    spacing_mm, shape = nifti.spacing_mm, nifti.array.shape[:3]
    if not all(0.4 <= s <= 4 for s in spacing_mm[:2]) or not 2 <= spacing_mm[2] <= 25:
        raise DataError(f"{nifti.path}: voxel size {spacing_mm} ({nifti.header.get_xyzt_units()[0]}), expected 0.4-4 "
                        "mm in-plane and 2-25 mm between slices; correct the header or the order of the axes")
    sides_mm = np.multiply(shape, spacing_mm)
    if sides_mm[2] > 400 or shape[2] > min(shape[:2]) and sides_mm[2] > 4 * min(sides_mm[:2]):
        raise DataError(f"{nifti.path}: shape {shape} with {spacing_mm[2]:g} mm between slices is a stack of "
                        f"{sides_mm[2]:.0f} mm; is the slice axis the third?  Correct the axes or the voxel size")


def read_volume(record):
    """Read a `Record`: (image (X, Y, Z) float32, label (X, Y, Z) uint8 as in VALUES or None, the image's Nifti, notes).

    A label volume of zeros becomes None with a note, as some copies of the datasets store "unlabelled" so.
    """
    nifti = read_nifti(record.image_path)
    notes = list(nifti.notes)
    image = nifti.frame(record.frame)
    if record.limits is None:
        image, padding = without_padding(image)
        notes += padding
    _require_contrast(image, record)
    if not record.label_path:
        return image, None, nifti, notes
    mask = read_nifti(record.label_path)
    if mask.non_finite:
        raise DataError(f"{mask.path}: {mask.non_finite} labels are NaN or infinite; export the labels again")
    label, mask_notes = _fitting_mask(mask, nifti, record.frame)
    notes += mask_notes
    label = _our_numbering(label, record.label_map, mask.path)
    elsewhere = _labelled_elsewhere(mask, record)
    if not label.any():
        return image, None, nifti, [*notes, "its mask is all zero" + elsewhere]
    if elsewhere:
        notes.append("labels of another frame than the table's" + elsewhere)
    filled = label.any((0, 1))
    if (filled[:-2] & ~filled[1:-1] & filled[2:]).any():
        notes.append("interior slice without label")
    if looks_swapped(label):
        notes.append(f"{SWAPPED} in {mask.path}")
    return image, label, nifti, notes


def _require_contrast(image, record):
    """Raise BlankImage if less than 1 % of the voxels differ from the median: every heart is larger than that."""
    usual = float(np.median(image))
    if (image != usual).sum() < 0.01 * image.size:
        raise BlankImage(f"{record.image_path}: {record.phase} of {record.subject} is constant ({usual:g}); leave it "
                         "out")


def is_blank(image):
    return image.min() == image.max()


def without_padding(image):
    """Raise an image's padding to the value of its darkest tissue: (image, notes that name the value of the padding).

    Padding is below p5 - (p99.5 - p5) / 4 of all brighter voxels; scaled by it, tissues would have hardly any contrast.
    """
    notes = []
    while not is_blank(image):
        lowest = image.min()
        others = image[image > lowest]
        dark, bright = np.percentile(others, (5, 99.5)).astype(np.float64)
        floor = dark - (bright - dark) / 4
        if lowest >= floor:
            break
        notes.append(f"padding of {lowest:g}, far below the tissue, is not normalised by")
        image = np.maximum(image, others[others >= floor].min())
    return image, notes


def _labelled_elsewhere(mask, record):
    """Say which frame of a 4D mask is labelled although the record's table does not name it; "" if there is none.

    A mask with more than two labelled frames covers a whole cine; it is right if the record's frame is among them.
    """
    if mask.array.ndim < 4:
        return ""
    named = [frame_number(record.metadata.get(phase, "")) for phase in ("ed", "es")]
    labelled = [f for f in range(mask.array.shape[3]) if mask.array[..., f].any()]
    others = [f for f in labelled if f not in named]
    if not others or record.frame in labelled and len(labelled) > 2:
        return ""
    for where, frame in (("before", record.frame - 1), ("after", record.frame + 1)):
        if frame in others:
            return f"; the neighbouring frame {where} it is labelled: ED and ES in the table must count from 0"
    return f"; frame {others[0]} is labelled instead: correct ED and ES in the table"


def _fitting_mask(mask, nifti, frame):
    """The label (X, Y, Z) turned to the image's axes, and notes; raises DataError if the grids still differ."""
    if mask.array.shape[3:] != nifti.array.shape[3:]:
        raise DataError(f"{mask.path}: shape {mask.array.shape}, but its image {nifti.path} has {nifti.array.shape}; "
                        "export a volume of label numbers for each frame, not a channel for each label")
    label = mask.frame(frame)
    why = _why_elsewhere(label.shape, mask.affine, mask.spacing_mm, nifti)
    if not why:
        return label, []
    turn = ornt_transform(io_orientation(mask.affine), io_orientation(nifti.affine))
    turned, affine = apply_orientation(label, turn), mask.affine @ inv_ornt_aff(turn, label.shape)
    spacing_mm = tuple(mask.spacing_mm[axis] for axis in np.argsort(turn[:, 0]))
    if _why_elsewhere(turned.shape, affine, spacing_mm, nifti):
        raise DataError(f"{mask.path}: {why}; nothing is resampled silently, export the label on its image's grid")
    return turned, ["label stored in another orientation, turned to its image's"]


def _why_elsewhere(shape, affine, spacing_mm, nifti):
    """Say how a grid differs from the image's, by more than 1e-3 mm of spacing or 0.05 voxel; "" if it does not."""
    expected = nifti.array.shape[:3]
    if shape != expected:
        return f"shape {shape}, but its image {nifti.path} has {expected}"
    if np.abs(np.subtract(spacing_mm, nifti.spacing_mm)).max() > 1e-3:
        return f"spacing {spacing_mm} mm, but its image has {nifti.spacing_mm}"
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape), [1]))).T
    if np.abs(np.linalg.solve(nifti.affine, affine) @ corners - corners).max() <= 0.05:
        return ""
    shift_mm = np.linalg.norm((affine - nifti.affine) @ corners.mean(1))
    return f"its affine puts it elsewhere than its image {nifti.path} (centres {shift_mm:.1f} mm apart, or turned)"


def _our_numbering(label, label_map, path):
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


def write_nifti(path, array, affine, description=""):
    """Write (X, Y, Z[, T]) atomically as .nii.gz; equal input gives equal bytes, because no time stamp is stored."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description[:79].encode()
    with atomic(path) as temporary:
        nib.save(image, temporary)


def write_like(path, array, nifti):
    """Write a result (X, Y, Z) atomically with the affine and header (codes, units, description) of `nifti`."""
    image = nib.Nifti1Image(array, nifti.affine, nifti.header)
    image.set_data_dtype(array.dtype)
    with atomic(path) as temporary:
        nib.save(image, temporary)


def without_words(nifti):
    """A copy of the Nifti whose header holds no free text, in which names of patients may stand."""
    header = nifti.header.copy()
    for name in {"descrip", "aux_file", "intent_name", "db_name", "data_type"} & set(header.keys()):
        header[name] = b""
    header.extensions.clear()
    return replace(nifti, header=header)


def write_changed(path, values, changed, original):
    """Write the file `original` again atomically with the `changed` voxels of `values`; all else stays to the byte."""
    image, _, data = decoded(str(original))
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
        temporary.write_bytes(gzip.compress(whole, 1, mtime=0) if str(path).lower().endswith(".gz") else whole)


def as_integers(image):
    """Convert an image in [-1, 1] to int16 between STORED_LIMITS, as synthetic images are stored."""
    low, high = STORED_LIMITS
    return np.rint((image + 1) / 2 * (high - low) + low).astype(np.int16)


def from_integers(stored):
    """The inverse of `as_integers`: float32 in [-1, 1]."""
    low, high = STORED_LIMITS
    return ((stored - np.float32(low)) / np.float32(high - low) * 2 - 1).astype(np.float32)
