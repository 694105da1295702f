"""What a file is, whatever its name says: NIfTI-1 or -2, compressed or not, or something else that can be named.

Public: `decoded`, `frames_in`.
"""
import gzip
import logging
import zlib

import nibabel as nib
import numpy as np

from cmr.errors import DataError
from cmr.files import read_bytes

# What nibabel logs of a header is said here, in one line that names the file, or mended without a loss.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

# What files that are no NIfTI begin with.
OTHER_FORMATS = {b"<": "a web page", b"PK": "a zip archive", b"version https://git-lfs": "a pointer of git-lfs",
                 b"/annex/": "a pointer of git-annex", b"NRRD": "an NRRD image", b"ObjectType": "a MetaImage header",
                 b"\x89HDF": "an HDF5 or MINC file", b"CDF": "a MINC file", b"MATLAB": "a MATLAB file",
                 b"\x93NUMPY": "a NumPy array", b"\x89PNG": "a picture", b"\xff\xd8": "a picture",
                 b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"7z": "a 7z archive",
                 b"Rar!": "a rar archive", b"\x28\xb5\x2f\xfd": "a zstd archive"}


def decoded(path):
    """(nibabel image, header as it stands in the file, its bytes) of a file, compressed or not, NIfTI-1 or -2.

    What the file begins with decides, not its name.  The gzip stream is decompressed to its end first: nibabel alone
    stops before the checksum and returns wrong voxels for a flipped bit.
    """
    raw = read_bytes(path)
    try:
        data = gzip.decompress(raw) if _is_gzip(raw) else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is truncated or damaged (gzip checksum); copy or download it again") from error
    if not data:
        raise DataError(f"{path}: is empty; copy or download it again")
    kind = _nifti_kind(data)
    if kind is None:
        raise DataError(f"{path}: begins with {data[:12]!r}, {_format_of(data)}; copy, download or convert it again")
    try:
        with np.errstate(all="ignore"):                           # of numbers that no header means
            image = kind.from_bytes(data)
        return image, kind.header_class(data[:kind.header_class.sizeof_hdr], check=False), data
    except Exception as error:                                    # nibabel has many for a header that is damaged
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise DataError(f"{path}: not a NIfTI file ({why}); copy or download it again") from error


def _is_gzip(data):
    return data[:2] == b"\x1f\x8b"


def _nifti_kind(data):
    """nibabel's class for what begins with these bytes, by the size of the header and its magic; None if it is none."""
    sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    if 348 in sizes and data[344:347] == b"n+1":
        return nib.Nifti1Image
    return nib.Nifti2Image if 540 in sizes and data[4:7] == b"n+2" else None


def _format_of(data):
    """In words, what a file is that is no NIfTI file."""
    if data[128:132] == b"DICM":
        return "a DICOM file"
    if data[344:347] == b"ni1" or data[4:7] == b"ni2":
        return "the header of a pair .hdr and .img, expected one .nii.gz"
    if 348 in (int.from_bytes(data[:4], order) for order in ("little", "big")):
        return "an Analyze 7.5 header, or a damaged one"
    return next((name for begin, name in OTHER_FORMATS.items() if data.startswith(begin)), "no NIfTI header")


def frames_in(path):
    """Number of frames by the header alone; None if it cannot be read: damage is found when voxels are read."""
    try:
        with open(path, "rb") as file:
            begin = file.read(2)
        with (gzip.open if _is_gzip(begin) else open)(path, "rb") as file:
            data = file.read(nib.Nifti2Header.sizeof_hdr)
        kind = _nifti_kind(data).header_class
        shape = kind(data[:kind.sizeof_hdr], check=False).get_data_shape()
    except Exception:
        return None
    return shape[3] if len(shape) > 3 else 1
