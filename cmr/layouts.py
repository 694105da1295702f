"""Dataset layouts: how the volumes of M&Ms-1, M&Ms-2, ACDC, nnU-Net raw and plain folders are found."""
import json
import re
from collections import Counter
from dataclasses import replace

from cmr.errors import DataError
from cmr.files import by_name, read_csv, read_text, require_sealed
from cmr.folders import NIFTI, SPLIT_FOLDERS, frames_in, stem
from cmr.nifti import STORED_LIMITS
from cmr.records import ACDC_LABELS, MMS_LABELS, VENDOR_NAMES, Record, frame_number, label_map_of

CINE = re.compile(r"(.+)_sa(?:_((?i:E[DS])))?" + NIFTI)           # M&Ms-1: a 4D cine, or a file for each phase
MMS2 = re.compile(r"(\d+)_SA_((?i:E[DS]))" + NIFTI)
ACDC = re.compile(r"patient\d+_frame(\d+)" + NIFTI)
NNUNET_FOLDERS = (("imagesTr", "labelsTr", "Training"), ("imagesTs", "labelsTs", "Testing"))
CHANNEL = re.compile(r"(.+)_(\d{4})")                             # nnU-Net: case and channel, without suffix
PHASE = re.compile(r"(.+)_(ED|ES|frame\d+)", re.IGNORECASE)       # a subject's name and the phase or frame
MMS_FRAME = re.compile(r"([A-Z]\d[A-Z]\d[A-Z]\d)_(\d+)(?:_.*)?")  # M&Ms in nnU-Net v1: code, frame, vendor, centre
PLAIN_COLUMNS = {"vendor", "centre", "pathology", "split", "ed", "es"}                # understood, so none holds names
VENDOR_LETTERS = {name.lower(): letter for letter, name in VENDOR_NAMES.items()}


def read_layout(folder):
    layout = next((name for name, (recognise, _) in LAYOUTS.items() if recognise(folder)), None)
    if layout is None:
        raise DataError(f"{folder.root}: no files of a known layout ({', '.join(LAYOUTS)}) found, {len(folder.files)} "
                        "NIfTI files of other names; the smallest is images/NAME.nii.gz with labels/NAME.nii.gz")
    _, read = LAYOUTS[layout]
    records = read(folder)
    if not records:
        why = "; ".join(f"{what} {reason}" for what, reason in folder.left_out[:3])
        raise DataError(f"{folder.root}: no usable volume by the layout {layout} ({why or 'no image'})")
    _name_other_layouts(folder, layout, records)
    return records


def _name_other_layouts(folder, layout, records):
    """Note files in folders that `layout` does not recognise, with the name of the layout that would read them."""
    read = {path for r in records for path in (r.image_path, r.label_path)}
    beside = {path.parent for path in folder.files if str(path) in read}
    others = {}
    for parent in sorted({path.parent for path in folder.files} - beside):
        inside = tuple(path for path in folder.files if path.parent == parent)
        known_to = [name for name, (recognise, _) in LAYOUTS.items() if recognise(replace(folder, files=inside))]
        if layout not in known_to:
            others.setdefault(known_to[0] if known_to else "no known layout", []).extend(inside)
    for name, paths in others.items():
        folder.leave_out(f"{len(paths)} files such as {paths[0]}", f"of {name}, and one folder is read by one layout, "
                         f"{layout} here; give theirs as a second one: DATA=x,y")


def read_mms1(folder):
    """Read M&Ms-1: a 4D cine of each study, or a file for each phase, and a CSV with vendor, ED and ES frame."""
    table = folder.newest_table(("External code", "Vendor", "ED", "ES"))
    rows = by_name([row for row in table if row["external code"]], "external code", folder.root)
    records = []
    for path, match in _with_rows(folder, rows, folder.matches(CINE)):
        code, phase = match.groups()                              # the phase of a cine is None
        row, label = rows[code], folder.mask_beside(path)
        vendor = row["vendor"] or VENDOR_LETTERS.get(row.get("vendorname", "").lower(), "")
        base = Record(code, "", str(path), split=_split_of(folder, path, row), **{**_told_by(row), "vendor": vendor})
        disputed = any(part.lower() == "unlabeled" for part in path.relative_to(folder.root).parts)
        if disputed and label and not folder.use_unlabeled_masks:
            base, label = replace(base, flags=("mask under Training/Unlabeled ignored",)), None
        of_phase = phase and [replace(base, phase=phase.upper(), label_path=label)]
        records += of_phase or _cine(base, label, row, folder.all_frames)
    return records


def _cine(base, label, row, all_frames):
    """Return the Records of a cine.  ED after ES is normal (gating); ED = ES = 0 means unlabelled in the release."""
    frames = frames_in(base.image_path)
    cells = {phase: row.get(phase.lower(), "") for phase in ("ED", "ES")}
    phases = {phase: frame_number(cell) for phase, cell in cells.items()}
    flags, named = list(base.flags), {}
    if phases["ED"] == phases["ES"]:
        none = f"no ED and ES frame in the CSV {' and '.join(filter(None, cells.values()))}".strip()
        what = none if phases["ED"] is None else f"ED = ES = {cells['ED']}"
        mask = ", though a mask is there: name the two frames that it labels in the CSV" if label else ""
        flags.append(f"{what}: unlabelled{mask}")
        phases = {}
    for phase, frame in phases.items():
        if frame is None or frames is not None and not 0 <= frame < frames:
            hint = "; do the frames in the CSV count from 1 instead of 0?" if frame == frames else ""
            said = cells[phase] or "(empty)"
            flags.append(f"{phase} frame {said} not within {frames} frames: phase left out{hint}")
        else:
            named[phase] = frame
    base = replace(base, flags=tuple(flags))
    others = [f for f in range(frames or 1) if f not in named.values()]
    wanted = others if all_frames else [] if named else others[:1]
    return [*(replace(base, phase=phase, frame=frame, label_path=label) for phase, frame in named.items()),
            *(replace(base, phase=f"F{f:02d}", frame=f, label_path=None) for f in wanted)]


def read_mms2(folder):
    """Read M&Ms-2: a short-axis file for each phase, subjects numbered 1 to 360, and a CSV with disease and vendor."""
    table = folder.newest_table(("SUBJECT_CODE", "DISEASE", "VENDOR"))
    named = [{**row, "subject_code": row["subject_code"].zfill(3)} for row in table if row["subject_code"]]
    rows = by_name(named, "subject_code", folder.root)
    records = []
    for path, match in _with_rows(folder, rows, folder.matches(MMS2)):
        subject, phase = match.groups()
        row = rows[subject]
        vendor = VENDOR_LETTERS.get(row["vendor"].partition(" ")[0].lower(), "")
        by_number = "Training" if int(subject) <= 160 else "Validation" if int(subject) <= 200 else "Testing"
        records.append(Record(subject, phase.upper(), str(path), folder.mask_beside(path), vendor=vendor,
                              split=_split_of(folder, path, row) or by_number, pathology=row["disease"], metadata=row))
    return records


def read_acdc(folder):
    """Read ACDC, whose Info.cfg counts ED and ES from 1; raises DataError if it is missing or a frame there twice."""
    frames, records = {}, []
    for path, match in folder.matches(ACDC):
        number, patient = int(match[1]), path.parent
        first = frames.setdefault(patient, {}).setdefault(number, path)
        if first != path:
            raise DataError(f"frame {number} of {patient.name} is there twice: {first} and {path}; remove one of them")
    configs = {path.parent: path for path in folder.others if path.name.lower() == "info.cfg"}
    for patient, found in sorted(frames.items()):
        if patient not in configs:
            raise DataError(f"{patient / 'Info.cfg'}: missing; ED and ES cannot be told from file names")
        subject, config = patient.name, configs[patient]
        lines = [line.partition(":") for line in read_text(config).splitlines()]
        row = {name.strip().lower(): value.strip() for name, _, value in lines if name.strip()}
        by_number = "Testing" if int(re.sub(r"\D", "", subject) or 0) > 100 else "Training"
        for phase in ("ED", "ES"):
            said = row.get(phase.lower(), "")
            path = found.pop(frame_number(said), None)            # no frame is of both phases
            if path is None:
                there = ", ".join(map(str, sorted(found)))
                folder.leave_out(f"{subject} {phase}", f"frame {said} of {config} has no file left; there are {there}")
                continue
            records.append(Record(subject, phase, str(path), folder.mask_beside(path), vendor="A", centre="ACDC",
                                  split=folder.split_of(path) or by_number, pathology=row.get("group", ""),
                                  metadata=row, label_map=dict(ACDC_LABELS)))
    return records


def read_nnunet_raw(folder):
    """Read nnU-Net raw or a synthetic set of ours with a manifest.csv; raises DataError if that set is incomplete."""
    manifest, rows, records = folder.root / "manifest.csv", {}, []
    described = folder.root / "dataset.json"
    if folder.below("imagesTr") and not described.exists():
        raise DataError(f"{described}: missing; the numbers of the labels in labelsTr cannot be told without it")
    label_map = _label_map(described, {0: 0})
    sealed = manifest.with_name("manifest.csv.sha256").exists()
    if manifest.exists() and (sealed or "reference_content" in read_text(manifest)):      # else of another program
        require_sealed(manifest)
        rows = {r["case"]: r for r in read_csv(manifest, ("case", "subject", "phase"))}
    for images, labels, split in NNUNET_FOLDERS:
        for case, path in _cases(folder, images, labels).items():
            row = rows.get(case, {})
            if row.get("kept") == "0":                            # an image of an interrupted run, excluded since
                continue
            if rows and not row:
                raise DataError(f"{manifest}: no row of {case}_0000; delete {folder.root} and make the set again")
            subject, phase = (row["subject"], case[len(row["subject"]) + 1:]) if row else _subject_and_phase(case)
            records.append(Record(subject, phase, path, folder.nifti(folder.root / labels / case), split=split,
                                  label_map=label_map, limits=STORED_LIMITS if row else None, **_told_by(row)))
    found_as = {record.case: record for record in records}
    for case in (case for case, row in rows.items() if row.get("kept") != "0"):       # excluded ones are elsewhere
        found = found_as.get(case)
        if not found or found.split == "Training" and not found.label_path:
            raise DataError(f"{folder.root}: the {'mask' if found else 'image'} of {case} is lost, which manifest.csv "
                            f"lists; delete {folder.root} and make the set again")
    return records


def _subject_and_phase(name):
    """Return (subject, phase) of a name such as P1_es or P1_frame05; any other name is a subject's, with phase ED."""
    named, of_mms = PHASE.fullmatch(name), MMS_FRAME.fullmatch(name)
    if not named:                                                 # both frames of a patient belong in one split
        return (of_mms[1], f"frame{of_mms[2]}") if of_mms else (name, "ED")
    return named[1], named[2].upper() if len(named[2]) == 2 else named[2].lower()


def _cases(folder, images, labels):
    """Return {case: path of channel 0} and note all other files; raises DataError if no image is of channel 0."""
    inside = [path for path in folder.files if path.parent == folder.root / images]
    masks = {stem(path).name for path in folder.files if path.parent == folder.root / labels}
    cases, others, nameless = {}, Counter(), []
    for path in inside:
        name = stem(path).name
        match = CHANNEL.fullmatch(name)
        if name in masks or not match:                            # if a mask is called la_0003, 0003 is no channel
            nameless.append(path.name)
        elif match[2] == "0000":
            cases[match[1]] = folder.nifti(stem(path))
        else:
            others[match[2]] += 1
    if inside and not cases:
        raise DataError(f"{folder.root / images}: {len(inside)} files and none of channel 0; expected "
                        f"<case>_0000.nii.gz, found {inside[0].name}; rename it to "
                        f"{stem(inside[0]).name}_0000.nii.gz, and the others likewise")
    for number, n in sorted(others.items()):
        folder.leave_out(f"channel {int(number)}", f"{n} files in {images}: only channel 0 is read")
    for name in nameless:
        folder.leave_out(f"{images}/{name}", "no channel number: expected <case>_0000.nii.gz")
    for name in sorted(masks - set(cases)):
        folder.leave_out(f"{labels}/{name}", f"a mask without an image {name}_0000 in {images}")
    return cases


def _label_map(path, usual):
    """Return {label value on disk: ours} by a dataset.json, or `usual` where there is none."""
    if not path.exists():
        return usual
    try:
        described = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON ({error}); correct it") from error
    if not isinstance(described, dict) or not isinstance(described.get("labels"), dict):
        raise DataError(f'{path}: no labels; expected e.g. "labels": {{"background": 0, "LV": 1, "MYO": 2, "RV": 3}}')
    return label_map_of(described["labels"], path)


def read_plain(folder):
    """Read the smallest layout: images/NAME.nii.gz, labels/NAME.nii.gz and, if there is one, a CSV."""
    root, records = folder.root, []
    images, labels = ({stem(path).relative_to(root / name) for path in folder.below(name)}
                      for name in ("images", "labels"))
    words = lambda path: [part for part in path.parts[:-1] if part.lower() not in SPLIT_FOLDERS]
    named = {path: "_".join([*words(path), path.name]) for path in sorted(images)}   # train/ward/anna is ward_anna
    names = set(named.values()) | {_subject_and_phase(name)[0] for name in named.values()}
    rows = _plain_table(folder, names) if folder.tables else {}
    for mask in sorted(labels - images):
        folder.leave_out(f"labels/{mask}", "has no image")
    label_map = _label_map(root / "dataset.json", dict(MMS_LABELS))
    for inside, name in named.items():
        subject, phase = _subject_and_phase(name)
        row = rows.get(name) or rows.get(subject) or {}
        if rows and not row:
            folder.leave_out(inside, "has files but no row in the table")
            continue
        place = root / "images" / inside
        path, split = folder.nifti(place), _split_of(folder, place, row)
        base = Record(subject, phase, path, folder.nifti(root / "labels" / inside), split=split, label_map=label_map,
                      **_told_by(row))
        is_cine = (frames_in(path) or 1) > 1
        records += _cine(base, base.label_path, row, folder.all_frames) if is_cine else [base]
    return records


def _plain_table(folder, names):
    """Return {name: row} of the newest CSV that holds a name, by its column that holds the most of them."""
    for path in folder.tables:
        table = read_csv(path, ())
        columns = [column for column in (table[0] if table else ()) if column not in PLAIN_COLUMNS]
        held = {column: len(names & {row[column] for row in table}) for column in columns}
        most = max(held.values(), default=0)
        if most:
            column, *others = (name for name, n in held.items() if n == most)
            for other in others:
                _require_same_subjects(path, table, column, other, names)
            return by_name([row for row in table if row[column]], column, folder.root)
    raise DataError(f"{folder.tables[0]}: no column holds the names of images, such as {min(names)}; add or move it")


def _require_same_subjects(path, table, column, other, names):
    """Raise DataError if two columns of a table hold names of images, and in one of its rows of other subjects."""
    for a, b in ((row[column], row[other]) for row in table):
        if {a, b} <= names and _subject_and_phase(a)[0] != _subject_and_phase(b)[0]:
            raise DataError(f"{path}: the columns {column} and {other} both hold names of images, but {a} stands "
                            f"beside {b}; take out the column that does not name them")


def _split_of(folder, path, row):
    """Return the split that a table's row names, else that of a folder, or ""; DataError if the row names another."""
    said = row.get("split", "")
    if said and said.lower() not in SPLIT_FOLDERS:
        raise DataError(f"{folder.root}: the table says split {said!r} of {path.name}; use training, validation or "
                        "testing")
    return SPLIT_FOLDERS.get(said.lower()) or folder.split_of(path)


def _told_by(row):
    """Return the arguments of a Record that a table's row gives: metadata, vendor, centre and pathology."""
    return {"metadata": row, **{name: row.get(name, "") for name in ("vendor", "centre", "pathology")}}


def _with_rows(folder, rows, images):
    """Return the images [(path, match)] whose subject has a row; note rows without files and files without a row."""
    found = {match[1] for _, match in images}
    for name in sorted(set(rows) - found):
        folder.leave_out(name, "stands in the table but has no files")
    for name in sorted(found - set(rows)):
        folder.leave_out(name, "has files but no row in the table")
    return [(path, match) for path, match in images if match[1] in rows]


# {name: (whether a Folder is of the layout, its list of Records)}; the first that recognises a folder reads it.
LAYOUTS = {"nnU-Net raw": (lambda folder: any(folder.below(name) for pair in NNUNET_FOLDERS for name in pair[:2]),
                           read_nnunet_raw),
           "images and labels": (lambda folder: folder.below("images") or folder.below("labels"), read_plain),
           "M&Ms-2": (lambda folder: folder.matches(MMS2), read_mms2),
           "ACDC": (lambda folder: folder.matches(ACDC), read_acdc),
           "M&Ms-1": (lambda folder: folder.matches(CINE), read_mms1)}
