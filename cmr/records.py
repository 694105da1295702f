"""One volume of a dataset as a `Record`, filters on the metadata of records, and the meaning of label values."""
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from cmr.errors import DataError, UsageError

STRUCTURES = ("LV", "MYO", "RV")                 # label values 1, 2, 3 everywhere in this project
VALUES = {name: value for value, name in enumerate(STRUCTURES, 1)}
MMS_LABELS = {0: 0, 1: 1, 2: 2, 3: 3}            # {value on disk: value here}
ACDC_LABELS = {0: 0, 1: 3, 2: 2, 3: 1}           # RV 1, MYO 2, LV 3 on disk

# Other names of the structures; nnU-Net's converters write MLV and LVC (for ACDC) or LVM and LVBP (for M&Ms).
NAMES = {"LV": ("LV", "LVC", "LVBP", "LVCAVITY", "LVBLOODPOOL", "LVENDO", "LEFTVENTRICLE", "LEFTVENTRICULARCAVITY"),
         "MYO": ("MYO", "MLV", "LVM", "LVMYO", "MYOCARDIUM", "LVMYOCARDIUM", "LEFTVENTRICULARMYOCARDIUM"),
         "RV": ("RV", "RVC", "RVBP", "RVCAVITY", "RVBLOODPOOL", "RVENDO", "RIGHTVENTRICLE", "RIGHTVENTRICULARCAVITY")}

VENDOR_NAMES = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
SPLITS = ("Training", "Validation", "Testing")


@dataclass(frozen=True)
class Record:
    subject: str
    phase: str                                   # ED, ES, or F<index> for an unlabelled cine frame
    image_path: str
    label_path: str = None
    frame: int = None                            # frame number in the 4D files, None for 3D files
    split: str = ""                              # one of SPLITS, or "" where the dataset has none
    vendor: str = ""
    centre: str = ""
    pathology: str = ""
    metadata: dict = field(default_factory=dict, hash=False, compare=False)           # all columns of its table
    limits: tuple = None                         # intensities that become -1 and 1; None: from image
    label_map: dict = field(default_factory=lambda: dict(MMS_LABELS), hash=False, compare=False)
    flags: tuple = ()

    @property
    def case(self):
        """Name of the volume, unique in its dataset."""
        return f"{self.subject}_{self.phase}"


def frame_number(text):
    """The frame number in a table cell such as '24', '24.0' or '24,0'; None if the cell holds no whole number."""
    try:
        number = float(text.replace(",", "."))
        return int(number) if number.is_integer() else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Domain:
    """A filter on one metadata column, written `Vendor=A` or `Pathology=MINF,DCM`; it ignores case."""
    column: str
    values: tuple

    @classmethod
    def parse(cls, text):
        column, _, values = text.partition("=")
        values = tuple(v.strip() for v in values.split(",") if v.strip())
        if not column.strip() or not values:
            raise UsageError(f"domain {text!r}: expected Column=Value or Column=Value,Value, e.g. Vendor=A")
        twice = [value for value, n in Counter(map(str.lower, values)).items() if n > 1]
        if twice:
            raise UsageError(f"domain {text!r}: {twice[0]!r} stands there twice; name each value once")
        return cls(column.strip(), values)

    def __str__(self):
        return f"{self.column}={','.join(self.values)}"

    @property
    def file_name(self):
        """The domain as part of a file name: `Vendor-B`, `Pathology-MINF+DCM`."""
        return as_file_name(str(self).replace("=", "-").replace(",", "+"))

    def each(self):
        """One domain per value, because targets are reported one by one."""
        return [Domain(self.column, (value,)) for value in self.values]

    def value(self, record):
        """The record's value in this domain's column, or None if there is no such column."""
        name = VENDOR_NAMES.get(record.vendor, "")
        columns = {"vendorname": name, **record.metadata, "vendor": record.vendor, "centre": record.centre,
                   "pathology": record.pathology}
        return columns.get(self.column.lower())

    def __contains__(self, record):
        return (self.value(record) or "").lower() in [value.lower() for value in self.values]

    def select(self, records):
        """The records of this domain; if no record has one of its values, raises UsageError with those that exist."""
        found = Counter(self.value(r) for r in records)
        if set(found) == {None}:
            columns = sorted({name for r in records for name in r.metadata} | {"vendor", "centre", "pathology"})
            raise UsageError(f"domain {self}: no metadata column {self.column!r}; there are {', '.join(columns)}")
        known = {(value or "").lower() for value in found}
        missing = [value for value in self.values if value.lower() not in known]
        if missing:
            there = ", ".join(f"{value or '(empty)'} ({n})" for value, n in sorted(found.items(), key=str))
            what = self if missing == list(self.values) else f"{self}: {', '.join(missing)}"
            raise UsageError(f"domain {what} matches none of {len(records)} volumes; {self.column} has {there}")
        return [r for r in records if r in self]


def as_file_name(text):
    """The text with `_` in place of everything that a shell or make would take for more than a letter of a name."""
    return re.sub(r"[^\w.+-]", "_", text)


def label_map_of(labels, path):
    """{value on disk: value here} from the labels of a dataset.json: {name: value} or, in version 1, {value: name}."""
    label_map = {0: 0}
    for name, value in labels.items():
        if str(name).isdigit() and isinstance(value, str) and not value.isdigit():
            name, value = value, name
        bare = re.sub(r"[\W_]", "", name).upper()                 # in any case and spelling: `MLV`, `lv cavity`
        ours = next((VALUES[structure] for structure, names in NAMES.items() if bare in names), 0)
        known = ours or name.lower() in ("background", "ignore")
        if not known or not re.fullmatch(r"\d+", str(value)) or ours and (
                int(value) in label_map or ours in label_map.values()):
            raise DataError(f"{path}: label {name!r}: {value!r}; expected background, {', '.join(VALUES)} (or LVC, "
                            "LVBP, MLV, LVM as nnU-Net names them), each once and with one whole number; correct it")
        if name.lower() != "ignore":
            label_map[int(value)] = ours
    return label_map


def labels_of(scores):
    """Labels (...) uint8 by the largest of the scores (C, ...) of the classes, the first of equals."""
    return scores.argmax(0).astype(np.uint8)


def labelled(workings):
    """Structures that occur in the labels of these working volumes, in the order of STRUCTURES."""
    present = {value for w in workings if w.label is not None for value in np.unique(w.label)}
    return tuple(name for name, value in VALUES.items() if value in present)


def network_classes(structures):
    """Table (4,) uint8 from label values to a network's classes: consecutive for its structures, 0 for the others."""
    classes = np.zeros(1 + len(STRUCTURES), np.uint8)
    classes[[VALUES[name] for name in structures]] = np.arange(1, 1 + len(structures))
    return classes


def looks_swapped(label):
    """Whether in a labelled volume (X, Y, Z) the myocardium encloses the RV rather than the LV."""
    if not set(VALUES.values()) <= set(np.unique(label)):
        return False
    enclosed = {}
    for name in ("LV", "RV"):                                     # share of its surrounding pixels that are myocardium
        inside = label == VALUES[name]
        around = ndimage.binary_dilation(inside, np.ones((3, 3, 1))) & ~inside
        enclosed[name] = (label[around] == VALUES["MYO"]).mean()
    return enclosed["RV"] > enclosed["LV"]
