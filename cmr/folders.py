"""The files below a dataset's folder: which there are, and what each contains, whatever its name says."""
import functools
import gzip
import logging
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.errors import DataError, ResourceError
from cmr.files import read_bytes, read_csv

# nibabel's log is silenced: this project reports or mends problems of a header itself and names the file.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

GZIP = b"\x1f\x8b"                               # begin of every compressed file
NIFTI = r"(?i:\.nii(?:\.gz)?)"                   # pattern of the suffix of NIfTI files
READ = re.compile(NIFTI + r"$|(?i:\.(csv|cfg|json))$")            # names of the files that a layout may read
SPLIT_FOLDERS = {"training": "Training", "train": "Training", "validation": "Validation", "valid": "Validation",
                 "val": "Validation", "testing": "Testing", "test": "Testing"}
SYSTEM_FOLDERS = {"lost+found", "$RECYCLE.BIN", "System Volume Information"}         # made by operating systems


@dataclass(frozen=True)
class Folder:
    root: Path
    files: tuple                                 # the NIfTI files below root, sorted, hidden ones left out
    others: tuple = ()                           # all other files, sorted
    use_unlabeled_masks: bool = False
    all_frames: bool = False
    left_out: list = field(default_factory=list)                  # (what, why) of all that becomes no Record

    def leave_out(self, what, why):
        self.left_out.append((str(what), why))

    def matches(self, pattern):
        """Return [(path, match)] of the NIfTI files whose whole name matches a compiled pattern."""
        found = [(path, pattern.fullmatch(path.name)) for path in self.files]
        return [(path, match) for path, match in found if match]

    def below(self, name):
        """Return the NIfTI files, at any depth, below the folder `name` of the root."""
        return [path for path in self.files if self.root / name in path.parents]

    @functools.cached_property
    def _by_stem(self):
        found = {}
        for path in self.files:
            found.setdefault(stem(path), []).append(str(path))
        return found

    def nifti(self, path):
        """Return the NIfTI file (str) of a path without suffix, or None; raises DataError if there are two."""
        first, *others = self._by_stem.get(path, [None])
        if others:
            raise DataError(f"{path.name} is there twice: {first} and {others[0]}; remove one of them")
        return first

    def mask_beside(self, image):
        """Return the mask (str) that lies beside an image and has `_gt` before its suffix, or None."""
        return self.nifti(image.with_name(stem(image).name + "_gt"))

    def split_of(self, path):
        """Return Training, Validation or Testing by the name of a folder between root and path, or ""."""
        return _split_on_the_way(path.parent, self.root)

    @property
    def tables(self):
        """The CSV files, sorted by the date in their names, the newest first."""
        tables = [path for path in self.others if path.suffix.lower() == ".csv"]
        return sorted(tables, key=lambda table: (_date_in(table.name), table), reverse=True)

    def newest_table(self, required):
        newest, problem = None, None
        for path in self.tables:
            try:
                rows = read_csv(path, required)
            except DataError as error:
                problem = problem or error
                continue
            if newest:
                self.leave_out(path, f"a table that is not read: {newest[0]} is taken for the newest")
            newest = newest or (path, rows)
        if newest is None:
            raise problem or DataError(f"{self.root}: no CSV with the columns {', '.join(required)} found; put the "
                                       "dataset's information file there")
        return newest[1]


def stem(path):
    return path.with_name(re.sub(NIFTI + "$", "", path.name))


def _split_on_the_way(folder, root):
    names = (part.lower() for part in folder.relative_to(root).parts)
    return next((SPLIT_FOLDERS[name] for name in names if name in SPLIT_FOLDERS), "")


def _date_in(name):
    """Return the date in a name (211230, 20211230 or 2021-12-30) as the text yymmdd, or ""."""
    found = re.search(r"(?<!\d)(?:20)?(\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)", name)
    return "".join(found.groups()) if found else ""


def open_folder(root, use_unlabeled_masks=False, all_frames=False, whole=True):
    """Return the Folder `root`; if it must be `whole`, raise ResourceError for what may not be read below it."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset with --data (make: DATA=...)")
    found, left_out, refused = _walk(root)
    if not whole:
        left_out += [(what, "may not be read") for what in refused]
    elif refused:
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise ResourceError(f"{root}: {len(refused)} files or folders may not be read: "
                            f"{', '.join(sorted(refused)[:8])}{more}; ask their owner for the right to read them, or "
                            "move them out of the dataset")
    files = tuple(path for path in found if stem(path) != path)
    others = tuple(path for path in found if stem(path) == path)
    return Folder(root, files, others, use_unlabeled_masks, all_frames, left_out)


def _walk(root):
    """Return (sorted files below root, [(link, why it was not followed)], [what may not be read, and why]).

    A folder that links reach twice is read once, preferably below a split's folder.  Hidden names are left out.
    """
    found, left_out, refused, ways = [], [], [], {}
    hidden = lambda name: name.startswith(".") or name in SYSTEM_FOLDERS
    refuse = lambda error: refused.append(f"{error.filename} ({error.strerror})")
    for folder, inside, names in os.walk(root, followlinks=True, onerror=refuse):
        folder, real = Path(folder), Path(os.path.realpath(folder))
        above = {Path(os.path.realpath(way)) for way in (folder, *folder.parents) if root in (way, *way.parents)}
        for name in list(inside):
            target = Path(os.path.realpath(folder / name))
            if not hidden(name) and target in above | set(real.parents):
                left_out.append((str(folder / name), f"a link to a folder above it ({target}): a loop, not followed"))
                inside.remove(name)
        inside[:] = sorted(name for name in inside if not hidden(name))
        is_link = real != Path(os.path.realpath(root)) / folder.relative_to(root)
        files = [folder / name for name in names if not hidden(name)]
        ways.setdefault(real, []).append((not _split_on_the_way(folder, root), is_link, folder, files))
    for (*_, kept, files), *others in map(sorted, ways.values()):
        found += [path for path in files if path.exists()]
        left_out += [(str(path), "a link that leads nowhere") for path in files if not path.exists()]
        left_out += [(str(folder), f"the same folder as {kept}: read once") for *_, folder, _ in others]
    closed = [path for path in found if READ.search(path.name) and not os.access(path, os.R_OK)]
    refused += [f"{path} (permission denied)" for path in closed]
    return sorted(found), left_out, refused


def decoded(path):
    """Return (nibabel image, unchanged header, decompressed bytes) of a NIfTI file, whose gzip checksum is tested."""
    raw = read_bytes(path)
    try:
        data = gzip.decompress(raw) if raw.startswith(GZIP) else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is truncated or damaged (gzip checksum); copy or download it again") from error
    if not data:
        raise DataError(f"{path}: is empty; copy or download it again")
    if data[344:347] != b"n+1":
        what = "a DICOM file" if data[128:132] == b"DICM" else "no NIfTI-1 header"
        raise DataError(f"{path}: begins with {data[:24]!r}, {what}; copy, download or convert it again")
    try:
        with np.errstate(all="ignore"):                           # a damaged header may hold absurd numbers
            image = nib.Nifti1Image.from_bytes(data)
        return image, nib.Nifti1Header(data[:nib.Nifti1Header.sizeof_hdr], check=False), data
    except Exception as error:                                    # nibabel raises many kinds for a damaged header
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise DataError(f"{path}: not a NIfTI file ({why}); copy or download it again") from error


def frames_in(path):
    """Return the number of frames by the header alone, or None if that fails; reading the voxels will say why."""
    try:
        with open(path, "rb") as file:
            whole = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(GZIP) else file
            shape = nib.Nifti1Header(whole.read(nib.Nifti1Header.sizeof_hdr)).get_data_shape()
    except Exception:
        return None
    return shape[3] if len(shape) > 3 else 1
