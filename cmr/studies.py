"""Find the studies of a dataset: one `Record` per volume (study x phase), with its metadata, split and files.

Knows M&Ms-1 (4D cine with a CSV, and the pre-split form), M&Ms-2, ACDC and nnU-Net raw; decides by what lies in the
folder, never by its depth.  Only names, tables and headers are read here; voxels are `cmr.volumes`' business.

Public: `Record`, `Domain`, `find`, `read_table`, `split_by_subject`, `in_role`,
`require_unseen`, `labelled`, `network_classes`.
"""
import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.config import DataError, UsageError

STRUCTURES = ("LV", "MYO", "RV")                                  # label values 1, 2, 3 everywhere in this project
MMS_LABELS = {0: 0, 1: 1, 2: 2, 3: 3}
ACDC_LABELS = {0: 0, 1: 3, 2: 2, 3: 1}                            # RV 1, MYO 2, LV 3 on disk
VENDOR_NAMES = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
SPLITS = ("Training", "Validation", "Testing")


@dataclass(frozen=True)
class Record:
    """One volume: what it is, where it lies, and every anomaly met on the way."""
    subject: str
    phase: str                                                    # ED, ES, or F<index> for an unlabelled cine frame
    image_path: str
    label_path: str = None
    frame: int = None                                             # index into the 4D files, None for a 3D file
    split: str = ""                                               # Training, Validation, Testing, or "" where the dataset has none
    vendor: str = ""
    vendor_name: str = ""
    centre: str = ""
    pathology: str = ""
    metadata: dict = field(default_factory=dict, hash=False, compare=False)
    label_map: dict = field(default_factory=lambda: dict(MMS_LABELS), hash=False, compare=False)
    flags: tuple = ()

    @property
    def case(self):
        """Name of the volume, unique in its dataset."""
        return f"{self.subject}_{self.phase}"


@dataclass(frozen=True)
class Domain:
    """A filter on one metadata column, written `Vendor=A` or `Pathology=MINF,DCM`; column and values without regard to case."""
    column: str
    values: tuple

    @classmethod
    def parse(cls, text):
        column, _, values = text.partition("=")
        values = tuple(v.strip() for v in values.split(",") if v.strip())
        if not column.strip() or not values:
            raise UsageError(f"domain {text!r}: expected Column=Value or Column=Value,Value, e.g. Vendor=A")
        return cls(column.strip(), values)

    def __str__(self):
        return f"{self.column}={','.join(self.values)}"

    @property
    def file_name(self):
        """Its name as part of a path: `Vendor-B`, `Pathology-MINF+DCM`."""
        return str(self).replace("=", "-").replace(",", "+")

    def each(self):
        """One domain per value: targets are reported one by one."""
        return [Domain(self.column, (v,)) for v in self.values]

    def value(self, record):
        """What a record has in this domain's column, or None if there is no such column."""
        named = {"vendor": record.vendor, "vendorname": record.vendor_name, "centre": record.centre, "pathology": record.pathology}
        return {**record.metadata, **named}.get(self.column.lower())

    def __contains__(self, record):
        return (self.value(record) or "").lower() in [v.lower() for v in self.values]

    def select(self, records):
        """The records of this domain; raises UsageError naming what there is when nothing matches."""
        chosen = [r for r in records if r in self]
        if not chosen:
            found = Counter(self.value(r) for r in records)
            if set(found) == {None}:
                columns = sorted({k for r in records for k in r.metadata} | {"vendor", "centre", "pathology"})
                raise UsageError(f"domain {self}: no metadata column {self.column!r}; there are {', '.join(columns)}")
            raise UsageError(f"domain {self} matches none of {len(records)} volumes; {self.column} has "
                             + ", ".join(f"{v or '(empty)'} ({n})" for v, n in sorted(found.items(), key=str)))
        return chosen


def find(root, use_unlabeled_masks=False, all_frames=False):
    """Every volume below `root`, a folder or several separated by commas, sorted by case.

    The name of its folder stands in the column Dataset, so that `Dataset=ACDC` is a domain.
    all_frames : also the frames of a cine between ED and ES, without labels (for the diffusion model).
    use_unlabeled_masks : M&Ms-1 ships masks under Training/Unlabeled whose quality is disputed; off means no label there.
    Raises DataError if a folder is missing or holds no known layout, or if two hold subjects of one name.
    """
    records, owner = [], {}
    for folder in map(Path, str(root).split(",")):
        for record in _find(folder, use_unlabeled_masks, all_frames):
            if owner.setdefault(record.subject, folder) != folder:
                raise DataError(f"{record.subject} is a subject of {owner[record.subject]} and of {folder}; rename it in one of them")
            records.append(replace(record, metadata={"dataset": folder.name, **record.metadata}))
    return sorted(records, key=lambda r: r.case)


def _find(root, use_unlabeled_masks, all_frames):
    """The volumes of one dataset."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset with --data (make: DATA=...)")
    files = sorted(p for p in root.rglob("*.nii*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts))
    if (root / "dataset.json").exists() and (root / "imagesTr").is_dir() or (root / "imagesTs").is_dir():
        records = _nnunet_raw(root)
    elif any(re.fullmatch(r"\d+_SA_E[DS]\.nii(\.gz)?", p.name) for p in files):
        records = _mms2(root, files)
    elif any(re.fullmatch(r"patient\d+_frame\d+\.nii(\.gz)?", p.name) for p in files):
        records = _acdc(files)
    elif any(re.search(r"_sa(_E[DS])?\.nii(\.gz)?$", p.name) for p in files):
        records = _mms1(root, files, use_unlabeled_masks, all_frames)
    else:
        raise DataError(f"{root}: no M&Ms, ACDC or nnU-Net raw files found ({len(files)} NIfTI files of other names); see the README on data layouts")
    if not records:
        raise DataError(f"{root}: no usable volume; run `make check DATA={root}` for the reasons")
    return records


def read_table(path, required):
    """A CSV as (columns, rows): BOM, stray spaces and the separator handled; columns in lower case, all values text."""
    text = Path(path).read_text(encoding="utf-8-sig")
    head = text.splitlines()[0] if text.strip() else ""
    reader = csv.reader(text.splitlines(), delimiter=";" if head.count(";") > head.count(",") else ",")
    table = [[c.strip() for c in row] for row in reader if any(c.strip() for c in row)]
    columns = [c.lower() for c in table[0]] if table else []
    missing = [c for c in required if c.lower() not in columns]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} missing; found {', '.join(c for c in (table[0] if table else []) if c) or 'nothing'}")
    keep = [i for i, c in enumerate(columns) if c and not c.startswith("unnamed")]
    return [{columns[i]: row[i] if i < len(row) else "" for i in keep} for row in table[1:]]


def _index(text):
    """A frame number from a cell such as '24', '24.0' or ''; None where there is none."""
    try:
        return int(float(text))
    except ValueError:
        return None


def _split_of(path, root):
    for part in Path(path).relative_to(root).parts[:-1]:
        for split, names in (("Training", ("training", "train")), ("Validation", ("validation", "val")), ("Testing", ("testing", "test"))):
            if part.lower() in names:
                return split
    return ""


def _sibling(path, old, new):
    """The file beside `path` with `old` replaced in its name, or None."""
    other = path.with_name(path.name.replace(old, new))
    return str(other) if other.exists() and other != path else None


def _newest_table(root, names, required):
    """Rows of the newest CSV below root that holds the required columns (by the date in its name)."""
    candidates = sorted(p for p in root.rglob("*.csv") if not p.name.startswith(".") and re.search(names, p.name, re.I))
    if not candidates:
        raise DataError(f"{root}: no CSV with the columns {', '.join(required)} found; put the dataset's information file there")
    problems = []
    for path in reversed(candidates):
        try:
            return read_table(path, required)
        except DataError as error:
            problems.append(error)
    raise problems[0]


def _mms1(root, files, use_unlabeled_masks, all_frames):
    rows = {r["external code"]: r for r in _newest_table(root, r"\.csv$", ("External code", "Vendor", "ED", "ES"))}
    images = [p for p in files if re.search(r"_sa(_E[DS])?\.nii(\.gz)?$", p.name)]
    found = {re.sub(r"_sa(_E[DS])?\.nii(\.gz)?$", "", p.name) for p in images}
    for code in sorted(set(rows) - found):
        print(f"note: {code} stands in the CSV but has no files; left out")
    for code in sorted(found - set(rows)):
        print(f"note: {code} has files but no row in the CSV; left out")
    records = []
    for path in images:
        code, pre_split = re.fullmatch(r"(.+)_sa(?:_(E[DS]))?\.nii(?:\.gz)?", path.name).groups()
        if code not in rows:
            continue
        row = rows[code]
        names = {v.lower(): k for k, v in VENDOR_NAMES.items()}
        vendor = row["vendor"] or names.get(row.get("vendorname", "").lower(), "")
        base = Record(subject=code, phase="", image_path=str(path), split=_split_of(path, root), vendor=vendor,
                      vendor_name=row.get("vendorname") or VENDOR_NAMES.get(vendor, ""), centre=row.get("centre", ""),
                      pathology=row.get("pathology", ""), metadata=row)
        label = _sibling(path, ".nii", "_gt.nii")
        if any(part.lower() == "unlabeled" for part in path.parts):
            if label and not use_unlabeled_masks:
                base, label = replace(base, flags=("mask under Training/Unlabeled ignored",)), None
        if pre_split:
            records.append(replace(base, phase=pre_split, label_path=label))
            continue
        records += _cine(base, label, _index(row["ed"]), _index(row["es"]), all_frames)
    return records


def _cine(base, label, ed, es, all_frames):
    """Records of one 4D file.  ED after ES is normal (gating); ED = ES = 0 is how the release says 'unlabelled'."""
    try:
        shape = nib.load(base.image_path).shape                   # header only; damage is found when voxels are read
        frames = shape[3] if len(shape) > 3 else 1
    except Exception:
        frames = None
    records, phases = [], {"ED": ed, "ES": es}
    if ed == es:
        reason = f"ED = ES = {ed}: unlabelled" if ed is not None else "no ED and ES frame in the CSV: unlabelled"
        base, phases = replace(base, flags=base.flags + (reason,)), {}
    for phase, frame in phases.items():
        if frame is None or frames is not None and not 0 <= frame < frames:
            base = replace(base, flags=base.flags + (f"{phase} frame {frame} not within {frames} frames: phase left out",))
            continue
        records.append(replace(base, phase=phase, frame=frame, label_path=label))
    records = [replace(r, flags=base.flags) for r in records]
    if all_frames or not records:
        used = {r.frame for r in records}
        others = [f for f in range(frames or 1) if f not in used]
        records += [replace(base, phase=f"F{f:02d}", frame=f) for f in (others if all_frames else others[:1])]
    return records


def _mms2(root, files):
    rows = {r["subject_code"].zfill(3): r for r in _newest_table(root, r"\.csv$", ("SUBJECT_CODE", "DISEASE", "VENDOR")) if r["subject_code"]}
    records = []
    for path in files:
        match = re.fullmatch(r"(\d+)_SA_(E[DS])\.nii(?:\.gz)?", path.name)
        if not match or match[1] not in rows:
            continue
        row = rows[match[1]]
        name = row["vendor"].split()[0].title() if row["vendor"] else ""
        name = {"Ge": "GE"}.get(name, name)
        split = "Training" if int(match[1]) <= 160 else "Validation" if int(match[1]) <= 200 else "Testing"
        records.append(Record(subject=match[1], phase=match[2], image_path=str(path), label_path=_sibling(path, ".nii", "_gt.nii"), split=split,
                              vendor={v: k for k, v in VENDOR_NAMES.items()}.get(name, ""), vendor_name=name, pathology=row["disease"], metadata=row))
    return records


def _acdc(files):
    records = []
    for config in sorted({p.parent / "Info.cfg" for p in files if p.name.startswith("patient")}):
        if not config.exists():
            raise DataError(f"{config}: missing; ED and ES cannot be told from file names")
        row = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in config.read_text().splitlines()) if k.strip()}
        subject = config.parent.name
        split = "Testing" if int(re.sub(r"\D", "", subject) or 0) > 100 else "Training"
        for phase in ("ED", "ES"):
            frame = _index(row.get(phase.lower(), ""))
            path = next((p for p in files if frame is not None and re.fullmatch(rf"{subject}_frame{frame:02d}\.nii(\.gz)?", p.name)), None)
            if path is None:
                print(f"note: {config}: {phase} frame {frame} has no file; phase left out")
                continue
            records.append(Record(subject=subject, phase=phase, image_path=str(path), label_path=_sibling(path, ".nii", "_gt.nii"), split=split,
                                  vendor="A", vendor_name="Siemens", centre="ACDC", pathology=row.get("group", ""), metadata=row, label_map=dict(ACDC_LABELS)))
    return records


def _nnunet_raw(root):
    """nnU-Net raw; our own synthetic sets carry a manifest.csv with the reference's subject, phase and metadata."""
    description = json.loads((root / "dataset.json").read_text()) if (root / "dataset.json").exists() else {"labels": {}}
    label_map = {0: 0}
    for name, value in description["labels"].items():
        name, value = (value, int(name)) if str(name).isdigit() else (name, value)          # v1 wrote value -> name
        if name.upper() in STRUCTURES:
            label_map[int(value)] = STRUCTURES.index(name.upper()) + 1
        elif name.lower() != "background":
            raise DataError(f"{root / 'dataset.json'}: label {name!r}; expected background, {', '.join(STRUCTURES)}")
    manifest = {r["case"]: r for r in read_table(root / "manifest.csv", ("case", "subject", "phase"))} if (root / "manifest.csv").exists() else {}
    records = []
    for folder, labels, split in (("imagesTr", "labelsTr", "Training"), ("imagesTs", "labelsTs", "Testing")):
        for path in sorted((root / folder).glob("*_0000.nii*")):
            case = re.sub(r"_0000\.nii(\.gz)?$", "", path.name)
            if path.name.startswith("."):
                continue
            row = manifest.get(case, {})
            label = root / labels / path.name.replace("_0000", "")
            subject = row.get("subject") or re.split(r"_(?:frame|ED|ES|\d{4})", case)[0]
            phase = case[len(subject) + 1:] or "ED"
            records.append(Record(subject=subject, phase=phase, image_path=str(path), label_path=str(label) if label.exists() else None, split=split,
                                  vendor=row.get("vendor", ""), centre=row.get("centre", ""), pathology=row.get("pathology", ""),
                                  metadata=row, label_map=label_map))
    return records


def split_by_subject(records, source):
    """Fill in the split where the dataset has none, or no validation: always whole subjects, by a hash of their name.

    Without any split: source subjects 60 % Training, 15 % Validation, 25 % Testing; all others 25 % Validation, 75 %
    Testing, as nothing is ever trained on them.  With training but no validation studies, in the source or in all else of a
    dataset (ACDC): every sixth training subject, vendors and pathologies in turn, becomes Validation.
    """
    digest = lambda subject: hashlib.sha256(subject.encode()).hexdigest()
    pools = {}
    for record in records:                                        # each value of the source's column is shared out by itself
        if not record.split:
            pools.setdefault((record in source, record.vendor, record.pathology), set()).add(record.subject)
    assigned = {}
    for (is_source, *_), subjects in pools.items():
        for i, subject in enumerate(sorted(subjects, key=digest)):
            share = (i + 0.5) / len(subjects)
            bounds = (0.60, 0.75) if is_source else (0.0, 0.25)
            assigned[subject] = SPLITS[sum(share > b for b in bounds)]
    records = [replace(r, split=r.split or assigned[r.subject]) for r in records]
    pools, held_out = {}, set()
    for record in records:
        pools.setdefault("the source" if record in source else record.metadata["dataset"], []).append(record)
    for members in pools.values():
        if not any(r.split == "Validation" for r in members):
            training = sorted({(str(r.vendor), str(r.pathology), digest(r.subject), r.subject) for r in members if r.split == "Training"})
            held_out.update(subject for *_, subject in training[5::6])
    return [replace(r, split="Validation") if r.split == "Training" and r.subject in held_out else r for r in records]


def in_role(records, domain, split, labelled_only=False):
    """Records of a domain and split; raises UsageError if there is none."""
    chosen = [r for r in domain.select(records) if r.split == split and (r.label_path or not labelled_only)]
    if not chosen:
        raise UsageError(f"domain {domain} has no {'labelled ' if labelled_only else ''}{split} volumes; choose another domain or dataset")
    return chosen


def require_unseen(tested, trained_on, network):
    """Raise UsageError if `network` was trained on the subject of a tested record."""
    seen = sorted({r.subject for r in tested} & set(trained_on))
    if seen:
        raise UsageError(f"{seen[0]} is a test subject, but {network} was trained on it ({len(seen)} such); train again with this data")


def network_classes(structures):
    """Table from our label values to the classes of a network trained on `structures`: (4,) uint8, consecutive, 0 for the rest."""
    classes = np.zeros(1 + len(STRUCTURES), np.uint8)
    classes[[STRUCTURES.index(s) + 1 for s in structures]] = np.arange(1, 1 + len(structures))
    return classes


def labelled(workings):
    """Structures that occur in the labels of these working volumes, in the order of STRUCTURES."""
    present = {v for w in workings if w.label is not None for v in np.unique(w.label)}
    return tuple(s for i, s in enumerate(STRUCTURES, 1) if i in present)
