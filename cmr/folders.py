"""What a file is, whatever its name says: NIfTI-1 or -2, compressed or not, or something else that can be named.

Public: `decoded`, `frames_in`.

What lies below the folder of a dataset: its files, its tables, and what names of folders say of the split.

Public: `Folder`, `open_folder`, `NIFTI`, `stem`, `like_a_split`.
"""
import functools
import gzip
import logging
import os
import re
import stat
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.errors import DataError, ResourceError
from cmr.files import read_bytes, read_csv

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


NIFTI = r"(?i:\.nii(?:\.gz)?)"                   # how the names of NIfTI files end, as part of a pattern
READ = re.compile(NIFTI + r"$|(?i:\.(csv|cfg|json))$")            # files that a layout may ask for
SPLIT_FOLDERS = {"training": "Training", "train": "Training", "validation": "Validation", "val": "Validation",
                 "testing": "Testing", "test": "Testing"}
# A word in the name of a folder which says that somebody meant a split.
SPLIT_WORD = re.compile(r"train\w*|valid\w*|val|valset|test\w*|eval\w*|dev|devset|hold(?:out)?|held(?:out)?", re.I)
SYSTEM_FOLDERS = {"lost+found", "$RECYCLE.BIN", "System Volume Information"}         # of a disk, not of a dataset


@dataclass(frozen=True)
class Folder:
    """A dataset folder with its files, and what the caller wants of them (see cmr.studies.find)."""
    root: Path
    files: tuple                                 # the NIfTI files below root, sorted, hidden ones left out
    others: tuple = ()                           # all other files, sorted
    use_unlabeled_masks: bool = False
    all_frames: bool = False
    left_out: list = field(default_factory=list)                  # (what, why) of all that becomes no record

    def has(self, pattern):
        """Whether a file's name is of this pattern."""
        return any(pattern.fullmatch(path.name) for path in self.files)

    @functools.cached_property
    def _by_stem(self):
        found = {}
        for path in self.files:
            found.setdefault(stem(path), []).append(path)
        return found

    def nifti(self, path):
        """The NIfTI file of this path, which is given without a suffix, or None; DataError if there are several."""
        first, *others = self._by_stem.get(path, [None])
        if others:
            raise DataError(f"{path.name} is there twice: {first} and {others[0]}; remove one of them")
        return first

    def mask_beside(self, image):
        """Path of an image's mask, which has `_gt` before its suffix, as text; None if there is none."""
        path = stem(image)
        mask = self.nifti(path.with_name(path.name + "_gt"))
        return str(mask) if mask else None

    def split_of(self, path):
        """Training, Validation or Testing by the name of a folder on the way from the root, or ""."""
        return _split_on_the_way(path.parent, self.root)

    def newest_table(self, required):
        """Rows of the newest CSV that holds the required columns, by the date in its name; the older ones are named."""
        tables = [path for path in self.others if path.suffix.lower() == ".csv"]
        if not tables:
            columns = ", ".join(required)
            raise DataError(f"{self.root}: no CSV with the columns {columns} found; put the dataset's information "
                            "file there")
        newest, problems = None, []
        for path in sorted(tables, key=lambda table: (_date_in(table.name), table), reverse=True):
            try:
                rows = read_csv(path, required)
            except DataError as error:
                problems.append(error)
                continue
            if newest:
                self.left_out.append((str(path), f"a table that is not read: {newest[0]} is taken for the newest"))
            newest = newest or (path, rows)
        if newest is None:
            raise problems[0]
        return newest[1]


def _split_on_the_way(folder, root):
    names = (part.lower() for part in folder.relative_to(root).parts)
    return next((SPLIT_FOLDERS[name] for name in names if name in SPLIT_FOLDERS), "")


def stem(path):
    """The path of a NIfTI file without its suffix."""
    return path.with_name(re.sub(NIFTI + "$", "", path.name))


def _date_in(name):
    """The date in a file's name as yymmdd: of 211230, 20211230 or 2021-12-30; "" if there is none."""
    found = re.search(r"(?<!\d)(?:20)?(\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)", name)
    return "".join(found.groups()) if found else ""


def like_a_split(path, root):
    """The folder between root and path whose name looks like a split's without being one, e.g. Test_set, or ""."""
    for part in path.relative_to(root).parts[:-1]:
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)
        if part.lower() not in SPLIT_FOLDERS and any(SPLIT_WORD.fullmatch(word) for word in words):
            return part
    return ""


def open_folder(root, use_unlabeled_masks=False, all_frames=False):
    """The Folder of a dataset; raises DataError if it is none, ResourceError if something below it may not be read."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset with --data (make: DATA=...)")
    found, left_out, refused = _below(root)
    if refused:
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise ResourceError(f"{root}: {len(refused)} files or folders may not be read: "
                            f"{', '.join(sorted(refused)[:8])}{more}; ask their owner for the right to read them, or "
                            "move them out of the dataset")
    is_nifti = lambda path: stem(path) != path
    files, others = filter(is_nifti, found), (path for path in found if not is_nifti(path))
    return Folder(root, tuple(files), tuple(others), use_unlabeled_masks, all_frames, left_out)


def _below(root):
    """(every file below root, sorted; (link, why) of those that were not followed; what may not be read, and why).

    Links are followed, each folder once.  Where several ways lead to it, one through the folder of a split is taken,
    and a real folder rather than a link.  Hidden names are left out.
    """
    found, left_out, refused, seen = [], [], [], {}
    waiting = deque([root])
    while waiting:
        folder = waiting.popleft()
        real = Path(os.path.realpath(folder))
        if folder != root and folder.is_symlink() and _leads_back(folder, real):
            left_out.append((str(folder), f"a link to a folder above it ({real}): a loop, not followed"))
            continue
        if real in seen:
            kept, again = seen[real], folder
            if _split_on_the_way(folder, root) and not _split_on_the_way(kept, root):
                found = [folder / path.relative_to(kept) if kept in path.parents else path for path in found]
                kept, again = folder, kept
            seen[real] = kept
            left_out.append((str(again), f"the same folder as {kept}: read once"))
            continue
        seen[real] = folder
        try:
            names = sorted(os.listdir(folder), reverse=True)
        except OSError as error:
            refused.append(f"{folder} ({error.strerror})")
            continue
        for path in (folder / name for name in names if not name.startswith(".") and name not in SYSTEM_FOLDERS):
            try:
                if not stat.S_ISDIR(path.stat().st_mode):
                    found.append(path)
                    if READ.search(path.name) and not os.access(path, os.R_OK):
                        refused.append(f"{path} (permission denied)")
                elif path.is_symlink():
                    waiting.append(path)
                else:
                    waiting.appendleft(path)
            except PermissionError as error:
                refused.append(f"{path} ({error.strerror})")
            except OSError as error:                              # the link's end is lost, or it leads to itself
                left_out.append((str(path), f"a link that leads nowhere ({error.strerror})"))
    return sorted(found), left_out, refused


def _leads_back(link, real):
    here = Path(os.path.realpath(link.parent))
    return real == here or real in here.parents
