"""What label values mean: our numbering, the datasets' own, and classes of networks that know only some structures.

Which file uses which numbers is known by `cmr.layouts`.

Public: `STRUCTURES`, `VALUES`, `MMS_LABELS`, `ACDC_LABELS`, `structure_called`, `labelled`, `network_classes`,
`labels_of`, `looks_swapped`.
"""
import re

import numpy as np
from scipy import ndimage

STRUCTURES = ("LV", "MYO", "RV")                 # label values 1, 2, 3 everywhere in this project
VALUES = {name: value for value, name in enumerate(STRUCTURES, 1)}
MMS_LABELS = {0: 0, 1: 1, 2: 2, 3: 3}            # value on disk -> ours
ACDC_LABELS = {0: 0, 1: 3, 2: 2, 3: 1}           # RV 1, MYO 2, LV 3 on disk

# Other names of the structures, in capitals without spaces and the like.  nnU-Net's own converters write MLV and LVC
# (ACDC) or LVM and LVBP (M&Ms).
NAMES = {"LV": ("LV", "LVC", "LVBP", "LVCAVITY", "LVBLOODPOOL", "LVENDO", "LEFTVENTRICLE", "LEFTVENTRICULARCAVITY"),
         "MYO": ("MYO", "MLV", "LVM", "LVMYO", "MYOCARDIUM", "LVMYOCARDIUM", "LEFTVENTRICULARMYOCARDIUM"),
         "RV": ("RV", "RVC", "RVBP", "RVCAVITY", "RVBLOODPOOL", "RVENDO", "RIGHTVENTRICLE", "RIGHTVENTRICULARCAVITY")}


def structure_called(name):
    """The structure that a dataset calls by this name in any case and spelling, e.g. `MLV` or `lv cavity`, or None."""
    bare = re.sub(r"[\W_]", "", name).upper()
    return next((structure for structure, names in NAMES.items() if bare in names), None)


def labelled(workings):
    """Structures that occur in the labels of these working volumes, in the order of STRUCTURES."""
    present = {value for w in workings if w.label is not None for value in np.unique(w.label)}
    return tuple(name for name, value in VALUES.items() if value in present)


def network_classes(structures):
    """Table from our label values to a network's classes, (4,) uint8: consecutive for its structures, else 0."""
    classes = np.zeros(1 + len(STRUCTURES), np.uint8)
    classes[[VALUES[name] for name in structures]] = np.arange(1, 1 + len(structures))
    return classes


def labels_of(scores):
    """Class scores (C, ...) to labels (...) uint8: the largest, of equals the first.

    As np.argmax, which is several times slower along a leading axis.
    """
    largest, labels = scores[0].copy(), np.zeros(scores.shape[1:], np.uint8)
    for value in range(1, len(scores)):
        labels[scores[value] > largest] = value
        np.maximum(largest, scores[value], out=largest)
    return labels


def looks_swapped(label):
    """Whether the myocardium of a labelled volume (X, Y, Z) encloses the RV rather than the LV."""
    present = {name for name, value in VALUES.items() if (label == value).any()}
    return present == set(VALUES) and _enclosed(label, VALUES["RV"]) > _enclosed(label, VALUES["LV"])


def _enclosed(label, value):
    """Share of the pixels around a structure, slice by slice, that are myocardium."""
    inside = label == value
    around = ndimage.binary_dilation(inside, np.ones((3, 3, 1))) & ~inside
    return (label[around] == VALUES["MYO"]).mean()
