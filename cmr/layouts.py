"""The layout nnU-Net raw: `imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `dataset.json` (versions 1 and 2).

Synthetic sets of this project are written so too, with a manifest that names each image's reference.

Public: `is_nnunet_raw`, `read_nnunet_raw`, `label_map_of`.

Dataset layouts: how the volumes of M&Ms-1, M&Ms-2, ACDC, nnU-Net raw and plain folders are found.

Only names, tables and headers are read here.  What lies in the folder decides, never its depth.  A new layout is one
function that makes `Record`s, and one entry in LAYOUTS. Voxels are not read here, but by `cmr.nifti`.

Public: `Layout`, `LAYOUTS`, `read_layout`.
"""
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from cmr.errors import DataError
from cmr.files import read_csv, read_text, require_sealed
from cmr.folders import NIFTI, SPLIT_FOLDERS, frames_in, stem
from cmr.nifti import STORED_LIMITS
from cmr.records import ACDC_LABELS, MMS_LABELS, VALUES, VENDOR_NAMES, Record, frame_number, structure_called

FOLDERS = (("imagesTr", "labelsTr", "Training"), ("imagesTs", "labelsTs", "Testing"))
CHANNEL = re.compile(r"(.+)_(\d{4})")                             # case and channel, before the suffix
PHASE = re.compile(r"(.+)_(ED|ES|frame\d+)", re.IGNORECASE)       # what ends a subject's name


def read_nnunet_raw(folder):
    """nnU-Net raw; our own synthetic sets carry a manifest.csv with the reference's subject, phase and metadata."""
    root = folder.root
    label_map, channels = _description(folder)
    manifest = root / "manifest.csv"
    rows = {}
    if manifest.exists():
        require_sealed(manifest)
        rows = {r["case"]: r for r in read_csv(manifest, ("case", "subject", "phase"))}
        _require_listed_files(root, rows)
    records = []
    for images, labels, split in FOLDERS:
        for case, path in _cases(folder, images, labels, channels).items():
            row = rows.get(case, {})
            if rows and not row:
                raise DataError(f"{manifest}: no row of {path.name}; delete {root} and make the set again")
            subject, phase = _subject_and_phase(case, row)
            label = folder.nifti(root / labels / case)
            records.append(Record(subject=subject, phase=phase, image_path=str(path),
                                  label_path=str(label) if label else None, split=split,
                                  vendor=row.get("vendor", ""), centre=row.get("centre", ""),
                                  pathology=row.get("pathology", ""), metadata=row, label_map=label_map,
                                  limits=STORED_LIMITS if row else None))
    return records


def _subject_and_phase(case, row):
    """Of a case: by its row of the manifest; else by its name, if it ends in a phase or a frame; else it is ED."""
    if row.get("subject"):
        return row["subject"], case[len(row["subject"]) + 1:]
    named = PHASE.fullmatch(case)
    if not named:
        return case, "ED"
    return named[1], named[2].upper() if len(named[2]) == 2 else named[2].lower()


def _cases(folder, images, labels, channels):
    """{case: path of its channel 0}; names other channels, files without a channel, and masks without an image."""
    inside = [path for path in folder.files if path.parent == folder.root / images]
    masks = [stem(path).name for path in folder.files if path.parent == folder.root / labels]
    # la_0003 is a case of its own, no channel 3 of `la`, where its mask is called la_0003 too.
    parts = {path: None if stem(path).name in masks else CHANNEL.fullmatch(stem(path).name) for path in inside}
    cases = {match[1]: folder.nifti(stem(path)) for path, match in parts.items() if match and match[2] == "0000"}
    nameless = [path.name for path, match in parts.items() if not match]
    if inside and not cases:
        raise DataError(f"{folder.root / images}: {len(inside)} files and none of channel 0; expected "
                        f"<case>_0000.nii.gz, found {inside[0].name}; rename it to "
                        f"{stem(inside[0]).name}_0000.nii.gz, and the others likewise")
    others = Counter(match[2] for match in parts.values() if match and match[2] != "0000")
    for number, n in sorted(others.items()):
        name = channels.get(str(int(number)))
        folder.left_out.append((f"channel {int(number)}" + (f" ({name})" if name else ""),
                                f"{n} files in {images}: only channel 0 is read"))
    for name in nameless:
        folder.left_out.append((f"{images}/{name}", "no channel number: expected <case>_0000.nii.gz"))
    for name in sorted(set(masks) - set(cases)):
        folder.left_out.append((f"{labels}/{name}", f"a mask without an image {name}_0000 in {images}"))
    return cases


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


def _description(folder):
    """({value on disk: ours}, {channel: name}) by dataset.json; raises DataError for one that cannot be understood."""
    path = folder.root / "dataset.json"
    training = [path for path in folder.files if path.parent == folder.root / "imagesTr"]
    if not path.exists():
        if training:
            raise DataError(f"{path}: missing; the numbers of the labels in labelsTr cannot be told without it")
        return {0: 0}, {}                                         # images to be segmented, without masks
    described = _read(path)
    n_cases = len({CHANNEL.sub(r"\1", stem(image).name) for image in training})
    if training and str(described.get("numTraining", n_cases)) != str(n_cases):
        folder.left_out.append((str(path), f"says numTraining {described['numTraining']}, imagesTr holds {n_cases}"))
    channels = described.get("channel_names") or described.get("modality")
    return label_map_of(path), channels if isinstance(channels, dict) else {}


def _read(path):
    """The dictionary in a dataset.json; raises DataError if it is none, or without labels."""
    try:
        described = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON ({error}); correct it") from error
    if not isinstance(described, dict) or not isinstance(described.get("labels"), dict):
        raise DataError(f'{path}: no labels; expected e.g. "labels": {{"background": 0, "LV": 1, "MYO": 2, "RV": 3}}')
    return described


def label_map_of(path):
    """{value on disk: ours} by the labels of a dataset.json, `{name: value}` or, in version 1, `{value: name}`.

    nnU-Net's label `ignore` may be declared, but no voxel may have it: nothing here leaves voxels out.
    """
    label_map = {0: 0}
    for name, value in _read(path)["labels"].items():
        if str(name).isdigit() and isinstance(value, str) and not value.isdigit():
            name, value = value, name
        if not re.fullmatch(r"\d+", str(value)):
            raise DataError(f"{path}: label {name!r} is {value!r}, expected one whole number (no regions); correct it")
        if name.lower() == "ignore":
            continue
        structure = structure_called(name)
        if structure is None and name.lower() != "background":
            raise DataError(f"{path}: label {name!r}; expected background, {', '.join(VALUES)} (or LVC, LVBP, MLV, LVM "
                            "as nnU-Net names them); rename it there")
        ours = VALUES.get(structure, 0)
        if label_map.setdefault(int(value), ours) != ours or ours and list(label_map.values()).count(ours) > 1:
            raise DataError(f"{path}: label {name!r} ({value}) repeats the structure or the value of another; "
                            "each must stand there once")
    return label_map


def is_nnunet_raw(folder):
    """Whether images or masks lie in the folders of nnU-Net raw."""
    names = {folder.root / name for images, labels, _ in FOLDERS for name in (images, labels)}
    return any(path.parent in names for path in folder.files)


CINE = re.compile(r"(.+)_sa(?:_((?i:E[DS])))?" + NIFTI)           # M&Ms-1: a 4D cine, or one file for each phase
MMS2 = re.compile(r"(\d+)_SA_((?i:E[DS]))" + NIFTI)
ACDC = re.compile(r"patient\d+_frame\d+" + NIFTI)


@dataclass(frozen=True)
class Layout:
    """One entry of the table: how a folder of this layout is recognised, and read."""
    name: str
    recognise: Callable                          # Folder -> bool
    read: Callable                               # Folder -> list of Record


def read_mms1(folder):
    """M&Ms-1: 4D cines with a CSV that names vendor, ED and ES; or the same with a file for each phase."""
    rows = _by_name(folder.newest_table(("External code", "Vendor", "ED", "ES")), "external code", folder.root)
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
    base = Record(subject=code, phase="", image_path=str(path), split=folder.split_of(path), vendor=vendor,
                  vendor_name=row.get("vendorname") or VENDOR_NAMES.get(vendor, ""), centre=row.get("centre", ""),
                  pathology=row.get("pathology", ""), metadata=row)
    label = folder.mask_beside(path)
    disputed = any(part.lower() == "unlabeled" for part in path.parts)
    if disputed and label and not folder.use_unlabeled_masks:
        base, label = replace(base, flags=("mask under Training/Unlabeled ignored",)), None
    if phase:
        return [replace(base, phase=phase.upper(), label_path=label)]
    return _cine(base, label, row, folder.all_frames)


def _cine(base, label, row, all_frames):
    """Records of one 4D file.  ED after ES is normal (gating); ED = ES = 0 is how the release says 'unlabelled'."""
    frames = frames_in(base.image_path)
    cells = {phase: row.get(phase.lower(), "") for phase in ("ED", "ES")}
    phases = {phase: frame_number(cell) for phase, cell in cells.items()}
    if phases["ED"] == phases["ES"]:
        none = f"no ED and ES frame in the CSV {' and '.join(filter(None, cells.values()))}".strip()
        named = none if phases["ED"] is None else f"ED = ES = {cells['ED']}"
        mask = ", though a mask is there: name the two frames that it labels in the CSV" if label else ""
        base, phases = replace(base, flags=base.flags + (f"{named}: unlabelled{mask}",)), {}
    records = []
    for phase, frame in phases.items():
        if frame is None or frames is not None and not 0 <= frame < frames:
            hint = "; do the frames in the CSV count from 1 instead of 0?" if frame == frames else ""
            reason = f"{phase} frame {cells[phase] or '(empty)'} not within {frames} frames: phase left out{hint}"
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


def read_mms2(folder):
    """M&Ms-2: one short-axis file for each phase, subjects numbered 1 to 360, and a CSV with disease and vendor."""
    table = folder.newest_table(("SUBJECT_CODE", "DISEASE", "VENDOR"))
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
        by_number = "Training" if int(subject) <= 160 else "Validation" if int(subject) <= 200 else "Testing"
        records.append(Record(subject=subject, phase=phase.upper(), image_path=str(path),
                              label_path=folder.mask_beside(path), split=folder.split_of(path) or by_number,
                              vendor=by_name.get(name, ""), vendor_name=name, pathology=row["disease"], metadata=row))
    return records


def read_acdc(folder):
    """ACDC: a folder for each patient, whose Info.cfg says which frames are ED and ES, counted from 1."""
    frames, records = {}, []
    for path in folder.files:
        if ACDC.fullmatch(path.name):
            frames.setdefault(path.parent, {})[int(re.search(r"_frame(\d+)", path.name)[1])] = path
    configs = {path.parent: path for path in folder.others if path.name.lower() == "info.cfg"}
    for patient, found in sorted(frames.items()):
        if patient not in configs:
            raise DataError(f"{patient / 'Info.cfg'}: missing; ED and ES cannot be told from file names")
        records += _acdc_patient(folder, patient.name, configs[patient], found)
    return records


def _acdc_patient(folder, subject, config, frames):
    """Records of a patient's two phases; frames : {frame number: path}."""
    row = _colon_pairs(config)
    number = int(re.sub(r"\D", "", subject) or 0)
    by_number = "Testing" if number > 100 else "Training"
    records = []
    for phase in ("ED", "ES"):
        said = row.get(phase.lower(), "")
        path = frames.get(frame_number(said))
        if path is None:
            there = ", ".join(map(str, sorted(frames)))
            folder.left_out.append((f"{subject} {phase}", f"frame {said} of {config} has no file; there are {there}"))
        elif records and str(path) == records[0].image_path:
            folder.left_out.append((f"{subject} {phase}", f"{config} names the frame of ED, {said}, for ES too"))
        else:
            records.append(Record(subject=subject, phase=phase, image_path=str(path), metadata=row,
                                  label_path=folder.mask_beside(path), split=folder.split_of(path) or by_number,
                                  vendor="A", vendor_name="Siemens", centre="ACDC", pathology=row.get("group", ""),
                                  label_map=dict(ACDC_LABELS)))
    return records


def _colon_pairs(path):
    """{name in lower case: value} of a file of `Name: value` lines."""
    lines = [line.partition(":") for line in read_text(path).splitlines()]
    return {name.strip().lower(): value.strip() for name, _, value in lines if name.strip()}


def read_plain(folder):
    """The smallest layout: images/NAME.nii.gz, labels/NAME.nii.gz, and a table if there is one.

    NAME is a subject's, or ends in _ED, _ES or _frameNN after it.  A CSV beside the folders says more of each NAME or
    subject, in any columns; Vendor, Centre, Pathology, Split, and ED and ES of a cine are understood.
    """
    root, records = folder.root, []
    below = lambda name: [path for path in folder.files if root / name in path.parents]
    named = lambda name: [(str(stem(path).relative_to(root / name)), str(path)) for path in below(name)]
    images, labels = named("images"), {case: str(folder.nifti(root / "labels" / case)) for case, _ in named("labels")}
    subjects = {case: re.sub(r"_(ED|ES|frame\d+)$", "", case, flags=re.IGNORECASE) for case, _ in images}
    rows = _plain_table(root, {*subjects, *subjects.values()}) if any(root.glob("[!.]*.csv")) else {}
    folder.left_out.extend((f"labels/{case}", "has no image") for case in sorted(set(labels) - set(subjects)))
    label_map = label_map_of(root / "dataset.json") if (root / "dataset.json").exists() else dict(MMS_LABELS)
    for case, path in images:
        row = rows.get(case) or rows.get(subjects[case]) or {}
        if rows and not row:
            folder.left_out.append((case, "has files but no row in the table"))
            continue
        said, phase = row.get, case[len(subjects[case]) + 1:].upper() or "ED"
        base = Record(subjects[case], phase, path, labels.get(case), vendor=said("vendor", ""),
                      split=SPLIT_FOLDERS.get(said("split", "").lower(), ""), centre=said("centre", ""),
                      pathology=said("pathology", ""), metadata=row, label_map=label_map)
        is_cine = (frames_in(path) or 1) > 1
        records += _cine(base, base.label_path, row, folder.all_frames) if is_cine else [base]
    return records


def is_plain(folder):
    """Whether images or masks lie below the folders of the smallest layout."""
    names = {folder.root / "images", folder.root / "labels"}
    return any(names & set(path.parents) for path in folder.files)


def _plain_table(root, names):
    """{name: row} of the last CSV in a folder, by the first of its columns that holds any of the names."""
    path = max(root.glob("[!.]*.csv"))
    table = read_csv(path, ())
    for column in table[0] if table else ():
        if any(row[column] in names for row in table):
            return _by_name([row for row in table if row[column]], column, root)
    raise DataError(f"{path}: no column holds the names of images, such as {min(names)}; add or move it")


# The first that recognises a folder reads it.
LAYOUTS = (Layout("nnU-Net raw", is_nnunet_raw, read_nnunet_raw),
           Layout("M&Ms-2", lambda folder: folder.has(MMS2), read_mms2),
           Layout("ACDC", lambda folder: folder.has(ACDC), read_acdc),
           Layout("M&Ms-1", lambda folder: folder.has(CINE), read_mms1),
           Layout("images and labels", is_plain, read_plain))


def read_layout(folder):
    """Records of a Folder by the first layout that recognises it; raises DataError if none does, or if none is left.

    What it leaves out is named in `folder.left_out`.
    """
    layout = next((layout for layout in LAYOUTS if layout.recognise(folder)), None)
    if layout is None:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise DataError(f"{folder.root}: no files of a known layout ({known}) found, {len(folder.files)} NIfTI files "
                        "of other names; the smallest is images/NAME.nii.gz with labels/NAME.nii.gz")
    records = layout.read(folder)
    if not records:
        why = "; ".join(f"{what} {reason}" for what, reason in folder.left_out[:3])
        raise DataError(f"{folder.root}: no usable volume by the layout {layout.name} ({why or 'no image'})")
    _name_other_layouts(folder, layout, records)
    return records


def _name_other_layouts(folder, layout, records):
    """Name the files in folders of which the layout that is read knows none, with the layout that would read them."""
    below, known_to = {}, {}
    for path in folder.files:
        below.setdefault(path.parent, []).append(path)
        known_to.setdefault(path.parent, set()).update(_recognised_by(replace(folder, files=(path,))))
    own = {Path(path).parent for r in records for path in (r.image_path, r.label_path) if path}
    others = {}
    for parent, names in known_to.items():
        if parent not in own and layout.name not in names:
            others.setdefault(min(names, default="no known layout"), []).extend(below[parent])
    for name, paths in others.items():
        folder.left_out.append((f"{len(paths)} files such as {paths[0]}", f"of {name}, and one folder is read by one "
                                f"layout, {layout.name} here; give theirs as a second one: DATA=x,y"))


def _recognised_by(folder):
    return [layout.name for layout in LAYOUTS if layout.recognise(folder)]


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
