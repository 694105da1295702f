"""Dataset layouts: how the volumes of M&Ms-1, M&Ms-2, ACDC, nnU-Net raw and plain folders are found.

Only names, tables and headers are read here.  What lies in the folder decides, never its depth.  A new layout is one
function that makes `Record`s, and one entry in LAYOUTS. Voxels are not read here, but by `cmr.nifti`.

Public: `Folder`, `Layout`, `LAYOUTS`.
"""
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

import nibabel as nib

from cmr.errors import DataError
from cmr.files import read_csv, require_sealed
from cmr.labels import ACDC_LABELS, MMS_LABELS, VALUES
from cmr.nifti import STORED_LIMITS
from cmr.records import VENDOR_NAMES, Record

CINE = re.compile(r"(.+)_sa(?:_(E[DS]))?\.nii(?:\.gz)?")          # M&Ms-1: a 4D cine, or one file for each phase
MMS2 = re.compile(r"(\d+)_SA_(E[DS])\.nii(?:\.gz)?")
ACDC = re.compile(r"patient\d+_frame\d+\.nii(?:\.gz)?")
SPLIT_FOLDERS = {"training": "Training", "train": "Training", "validation": "Validation", "val": "Validation",
                 "testing": "Testing", "test": "Testing"}


@dataclass(frozen=True)
class Folder:
    """A dataset folder with its NIfTI files, and what the caller wants of them (see cmr.studies.find)."""
    root: Path
    files: tuple                                 # below root, sorted, hidden ones left out
    use_unlabeled_masks: bool = False
    all_frames: bool = False
    left_out: list = field(default_factory=list)                  # (what, why) of all that becomes no record

    def has(self, pattern):
        """Whether a file's name is of this pattern."""
        return any(pattern.fullmatch(path.name) for path in self.files)


@dataclass(frozen=True)
class Layout:
    """One entry of the table: how a folder of this layout is recognised, and read."""
    name: str
    recognise: Callable                          # Folder -> bool
    read: Callable                               # Folder -> list of Record


def read_mms1(folder):
    """M&Ms-1: 4D cines with a CSV that names vendor, ED and ES; or the same with a file for each phase."""
    rows = _by_name(_newest_table(folder.root, ("External code", "Vendor", "ED", "ES")), "external code", folder.root)
    images = [(path, CINE.fullmatch(path.name)) for path in folder.files if CINE.fullmatch(path.name)]
    found = {match[1] for _, match in images}
    _note_orphans(folder, rows, found)
    records = []
    for path, match in images:
        code, phase = match.groups()
        if code in rows:
            records += _mms1_study(folder, path, code, phase, rows[code])
    return records


def _note_orphans(folder, rows, found):
    """What stands in the table alone, or lies in the folder alone."""
    folder.left_out.extend((name, "stands in the table but has no files") for name in sorted(set(rows) - found))
    folder.left_out.extend((name, "has files but no row in the table") for name in sorted(found - set(rows)))


def _mms1_study(folder, path, code, phase, row):
    """Records of one file: of its phase, or of the frames of a cine (phase None)."""
    by_name = {name.lower(): letter for letter, name in VENDOR_NAMES.items()}
    vendor = row["vendor"] or by_name.get(row.get("vendorname", "").lower(), "")
    base = Record(subject=code, phase="", image_path=str(path), split=_split_of(path, folder.root), vendor=vendor,
                  vendor_name=row.get("vendorname") or VENDOR_NAMES.get(vendor, ""), centre=row.get("centre", ""),
                  pathology=row.get("pathology", ""), metadata=row)
    label = _mask_beside(path)
    disputed = any(part.lower() == "unlabeled" for part in path.parts)
    if disputed and label and not folder.use_unlabeled_masks:
        base, label = replace(base, flags=("mask under Training/Unlabeled ignored",)), None
    if phase:
        return [replace(base, phase=phase, label_path=label)]
    return _cine(base, label, _frame_number(row["ed"]), _frame_number(row["es"]), folder.all_frames)


def _cine(base, label, ed, es, all_frames):
    """Records of one 4D file.  ED after ES is normal (gating); ED = ES = 0 is how the release says 'unlabelled'."""
    frames = _frames_in(base.image_path)
    phases = {"ED": ed, "ES": es}
    if ed == es:
        reason = f"ED = ES = {ed}: unlabelled" if ed is not None else "no ED and ES frame in the CSV: unlabelled"
        base, phases = replace(base, flags=base.flags + (reason,)), {}
    records = []
    for phase, frame in phases.items():
        if frame is None or frames is not None and not 0 <= frame < frames:
            reason = f"{phase} frame {frame} not within {frames} frames: phase left out"
            base = replace(base, flags=base.flags + (reason,))
            continue
        records.append(replace(base, phase=phase, frame=frame, label_path=label))
    records = [replace(r, flags=base.flags) for r in records]
    if all_frames or not records:
        used = {r.frame for r in records}
        others = [f for f in range(frames or 1) if f not in used]
        wanted = others if all_frames else others[:1]
        records += [replace(base, phase=f"F{f:02d}", frame=f) for f in wanted]
    return records


def _frames_in(path):
    """Number of frames by the header alone; None if it cannot be read: damage is found when voxels are read."""
    try:
        shape = nib.load(path).shape
    except Exception:
        return None
    return shape[3] if len(shape) > 3 else 1


def read_mms2(folder):
    """M&Ms-2: one short-axis file for each phase, subjects numbered 1 to 360, and a CSV with disease and vendor."""
    table = _newest_table(folder.root, ("SUBJECT_CODE", "DISEASE", "VENDOR"))
    named = [{**row, "subject_code": row["subject_code"].zfill(3)} for row in table if row["subject_code"]]
    rows = _by_name(named, "subject_code", folder.root)
    by_name = {name: letter for letter, name in VENDOR_NAMES.items()}
    records = []
    images = [(path, MMS2.fullmatch(path.name)) for path in folder.files if MMS2.fullmatch(path.name)]
    _note_orphans(folder, rows, {match[1] for _, match in images})
    for path, match in images:
        subject, phase = match.groups()
        if subject not in rows:
            continue
        row = rows[subject]
        name = row["vendor"].split()[0].title() if row["vendor"] else ""
        name = "GE" if name == "Ge" else name
        split = "Training" if int(subject) <= 160 else "Validation" if int(subject) <= 200 else "Testing"
        records.append(Record(subject=subject, phase=phase, image_path=str(path), label_path=_mask_beside(path),
                              split=split, vendor=by_name.get(name, ""), vendor_name=name, pathology=row["disease"],
                              metadata=row))
    return records


def read_acdc(folder):
    """ACDC: a folder for each patient, whose Info.cfg says which frames are ED and ES."""
    records = []
    for config in sorted({path.parent / "Info.cfg" for path in folder.files if path.name.startswith("patient")}):
        if not config.exists():
            raise DataError(f"{config}: missing; ED and ES cannot be told from file names")
        row = _colon_pairs(config)
        subject = config.parent.name
        number = int(re.sub(r"\D", "", subject) or 0)
        for phase in ("ED", "ES"):
            frame = _frame_number(row.get(phase.lower(), ""))
            path = _acdc_frame(folder.files, subject, frame)
            if path is None:
                folder.left_out.append((f"{subject} {phase}", f"frame {frame} of {config} has no file"))
                continue
            split = "Testing" if number > 100 else "Training"
            records.append(Record(subject=subject, phase=phase, image_path=str(path), label_path=_mask_beside(path),
                                  split=split, vendor="A", vendor_name="Siemens", centre="ACDC",
                                  pathology=row.get("group", ""), metadata=row, label_map=dict(ACDC_LABELS)))
    return records


def _acdc_frame(files, subject, frame):
    """The file of a subject's frame, or None."""
    if frame is None:
        return None
    name = re.compile(rf"{subject}_frame{frame:02d}\.nii(\.gz)?")
    return next((path for path in files if name.fullmatch(path.name)), None)


def _colon_pairs(path):
    """{name in lower case: value} of a file of `Name: value` lines."""
    lines = [line.partition(":") for line in path.read_text().splitlines()]
    return {name.strip().lower(): value.strip() for name, _, value in lines if name.strip()}


def read_nnunet_raw(folder):
    """nnU-Net raw; our own synthetic sets carry a manifest.csv with the reference's subject, phase and metadata."""
    root = folder.root
    label_map = _nnunet_labels(root / "dataset.json")
    manifest = root / "manifest.csv"
    rows = {}
    if manifest.exists():
        require_sealed(manifest)
        rows = {r["case"]: r for r in read_csv(manifest, ("case", "subject", "phase"))}
        _require_listed_files(root, rows)
    records = []
    for images, labels, split in (("imagesTr", "labelsTr", "Training"), ("imagesTs", "labelsTs", "Testing")):
        for path in sorted((root / images).glob("*_0000.nii*")):
            if path.name.startswith("."):
                continue
            case = re.sub(r"_0000\.nii(\.gz)?$", "", path.name)
            row = rows.get(case, {})
            if rows and not row:
                raise DataError(f"{manifest}: no row of {path.name}; delete {root} and make the set again")
            label = root / labels / path.name.replace("_0000", "")
            subject = row.get("subject") or re.split(r"_(?:frame|ED|ES|\d{4})", case)[0]
            records.append(Record(subject=subject, phase=case[len(subject) + 1:] or "ED", image_path=str(path),
                                  label_path=str(label) if label.exists() else None, split=split,
                                  vendor=row.get("vendor", ""), centre=row.get("centre", ""),
                                  pathology=row.get("pathology", ""), metadata=row, label_map=label_map,
                                  limits=STORED_LIMITS if row else None))
    return records


def _require_listed_files(root, rows):
    """Raise DataError if an image of the manifest, or the mask of one that is trained on, is lost."""
    for case, row in rows.items():
        if row.get("kept") == "0":                                # lies in excluded/
            continue
        found = [folder for folder in ("imagesTr", "imagesTs") if list((root / folder).glob(f"{case}_0000.nii*"))]
        if not found or found == ["imagesTr"] and not list((root / "labelsTr").glob(f"{case}.nii*")):
            what = "mask" if found else "image"
            raise DataError(f"{root}: the {what} of {case} is lost, which manifest.csv lists; delete {root} and make "
                            "the set again")


def _nnunet_labels(path):
    """{value on disk: ours} by dataset.json; background alone where there is none."""
    described = json.loads(path.read_text())["labels"] if path.exists() else {}
    label_map = {0: 0}
    for name, value in described.items():
        if str(name).isdigit():                                   # version 1 wrote value -> name
            name, value = value, int(name)
        if name.upper() in VALUES:
            label_map[int(value)] = VALUES[name.upper()]
        elif name.lower() != "background":
            raise DataError(f"{path}: label {name!r}; expected background, {', '.join(VALUES)}")
    return label_map


def _is_nnunet_raw(folder):
    has_training = (folder.root / "dataset.json").exists() and (folder.root / "imagesTr").is_dir()
    return has_training or (folder.root / "imagesTs").is_dir()


def read_plain(folder):
    """The smallest layout: images/NAME.nii.gz, labels/NAME.nii.gz, and a table if there is one.

    NAME is a subject's, or ends in _ED, _ES or _frameNN after it.  Columns of a table are as in M&Ms-1.
    """
    root, records = folder.root, []
    below = lambda name: [path for path in folder.files if root / name in path.parents]
    named = lambda name: [(str(path.relative_to(root / name)).split(".nii")[0], str(path)) for path in below(name)]
    images, labels = named("images"), dict(named("labels"))
    subjects = {case: re.sub(r"_(ED|ES|frame\d+)$", "", case, flags=re.IGNORECASE) for case, _ in images}
    rows = _plain_table(root, {*subjects, *subjects.values()}) if any(root.glob("[!.]*.csv")) else {}
    folder.left_out.extend((f"labels/{case}", "has no image") for case in sorted(set(labels) - set(subjects)))
    label_map = _nnunet_labels(root / "dataset.json") if (root / "dataset.json").exists() else dict(MMS_LABELS)
    for case, path in images:
        row = rows.get(case) or rows.get(subjects[case]) or {}
        if rows and not row:
            folder.left_out.append((case, "has files but no row in the table"))
            continue
        said, phase = row.get, case[len(subjects[case]) + 1:].upper() or "ED"
        base = Record(subjects[case], phase, path, labels.get(case), vendor=said("vendor", ""),
                      split=SPLIT_FOLDERS.get(said("split", "").lower(), ""), centre=said("centre", ""),
                      pathology=said("pathology", ""), metadata=row, label_map=label_map)
        ed, es = _frame_number(said("ed", "")), _frame_number(said("es", ""))
        is_cine = (_frames_in(path) or 1) > 1
        records += _cine(base, base.label_path, ed, es, folder.all_frames) if is_cine else [base]
    return records


def _plain_table(root, names):
    """{name: row} of the last CSV in a folder, by the first of its columns that holds any of the names."""
    path = max(root.glob("[!.]*.csv"))
    table = read_csv(path, ())
    for column in table[0] if table else ():
        if any(row[column] in names for row in table):
            return _by_name([row for row in table if row[column]], column, root)
    raise DataError(f"{path}: no column holds the names of images, such as {min(names)}; add or move it")


# The first that recognises a folder reads it.
LAYOUTS = (Layout("nnU-Net raw", _is_nnunet_raw, read_nnunet_raw),
           Layout("M&Ms-2", lambda folder: folder.has(MMS2), read_mms2),
           Layout("ACDC", lambda folder: folder.has(ACDC), read_acdc),
           Layout("M&Ms-1", lambda folder: folder.has(CINE), read_mms1),
           Layout("images and labels", lambda folder: (folder.root / "images").is_dir(), read_plain))


def _frame_number(text):
    """A frame number from a cell such as '24', '24.0' or ''; None where there is none."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):                           # no number, or an infinite one
        return None


def _split_of(path, root):
    """Training, Validation or Testing by the name of a folder on the way from the root, or ""."""
    for part in path.relative_to(root).parts[:-1]:
        if part.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.lower()]
    return ""


def _mask_beside(path):
    """The mask of an image, `_gt` before its suffix, or None."""
    mask = path.with_name(path.name.replace(".nii", "_gt.nii"))
    return str(mask) if mask.exists() else None


def _by_name(rows, column, root):
    """{name: row}; raises DataError if two rows of one name say different things."""
    found = {}
    for row in rows:
        said = {name: value for name, value in row.items() if name}
        if found.setdefault(row[column], said) != said:
            differing = [name for name in said if said[name] != found[row[column]].get(name)]
            raise DataError(f"{root}: two rows of {row[column]} in its table differ in {', '.join(differing)}; "
                            "correct it")
    return found


def _newest_table(root, required):
    """Rows of the newest CSV below root that holds the required columns (by the date in its name)."""
    candidates = sorted(path for path in root.rglob("*.csv") if not path.name.startswith("."))
    if not candidates:
        columns = ", ".join(required)
        raise DataError(f"{root}: no CSV with the columns {columns} found; put the dataset's information file there")
    problems = []
    for path in reversed(candidates):
        try:
            return read_csv(path, required)
        except DataError as error:
            problems.append(error)
    raise problems[0]
