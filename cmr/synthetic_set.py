"""A synthetic set on disk: where its images and masks lie, how they are written and read, and pictures of them.

It is a valid nnU-Net raw dataset on the working grid.  `cmr.synthesize` makes its images.
"""
from pathlib import Path

import numpy as np

from cmr.files import read_csv, require_sealed, write_json
from cmr.grid import working_affine
from cmr.nifti import as_integers, from_integers, read_nifti, write_nifti
from cmr.pictures import save_png, sheet, two_a_row, with_contours
from cmr.records import network_classes
from cmr.sampler import NONE
from cmr.studies import find

# Columns of manifest.csv, which has one row per image.
COLUMNS = ("case", "subject", "phase", "sample", "domain", "vendor", "centre", "pathology", "split", "reference",
           "reference_content", "shift", "strength", "seed", "sd_dm", "segmenter", "redrawn", "kept", "dice_reference",
           "dice_synthetic", "dice_change", "displacement_median_mm", "displacement_p95_mm", "through_plane_reference",
           "through_plane_synthetic", "of_source_reference", "of_source_synthetic")
MADE_OF = ("sample", "reference", "reference_content", "strength", "sd_dm")
WORST = 10                                       # number of pairs in a picture


def find_set(folder):
    """Return a set's records, whose metadata are manifest rows; raises DataError if it is unfinished or was changed."""
    read_manifest(folder, MADE_OF)
    return find(folder)


def made_by(records):
    """Return the hashes of the SD-DMs that made the images of a set; images that were not projected have none."""
    return sorted({record.metadata["sd_dm"] for record in records if record.metadata["strength"] != NONE})


def read_manifest(folder, columns):
    """Return the rows of a set's manifest.csv as text; raises DataError if it was changed or lacks a column."""
    path = Path(folder) / "manifest.csv"
    require_sealed(path)
    return read_csv(path, columns)


def _paths(out, use, row):
    """Return the paths of an image and of its mask, None for DA, by a manifest row; excluded pairs have own folders."""
    dg = ("imagesTr", "labelsTr") if int(row["kept"]) else ("excluded/images", "excluded/labels")
    images, labels = dg if use == "dg" else ("imagesTs", None)
    image = Path(out) / images / f"{row['case']}_0000.nii.gz"
    return image, labels and Path(out) / labels / f"{row['case']}.nii.gz"


def write_pair(out, use, row, image, working, structures):
    """Write a synthetic image (D, H, W) in [-1, 1], and for DG the mask of its reference in consecutive classes.

    row : of the manifest.  working : the reference.  structures : those of dataset.json.
    """
    affine = working_affine(working.geometry)
    of_image, of_mask = _paths(out, use, row)
    stored = lambda array: np.ascontiguousarray(array.transpose(2, 1, 0))            # (D, H, W) -> (X, Y, Z)
    write_nifti(of_image, stored(as_integers(image)), affine, "synthetic")
    if of_mask:
        classes = network_classes(structures)[np.asarray(working.label)]             # nnU-Net needs consecutive labels
        write_nifti(of_mask, stored(classes), affine, "mask of the reference")


def write_dataset_json(out, structures, n_training):
    """Write the dataset.json that nnU-Net needs."""
    labels = {"background": 0, **{name: i for i, name in enumerate(structures, 1)}}
    write_json(Path(out) / "dataset.json",
               {"channel_names": {"0": "cineMRI"}, "labels": labels, "numTraining": n_training,
                "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"})


def draw_worst(out, name, rows, references):
    """Draw the pairs whose boundary moved furthest: reference and synthetic image, without and with the mask.

    Each is shown in the slice where its mask is largest.  out : folder of the set, to which the picture `name` is
    written if there is a pair.  rows : of DG's manifest.  references : working volumes.
    """
    working_of = {working.record.case: working for working in references}
    worst = sorted(rows, key=lambda row: (-np.nan_to_num(row["displacement_p95_mm"]), row["dice_change"]))[:WORST]
    panels = []
    for row in worst:
        working, (of_image, _) = working_of[row["reference"]], _paths(out, "dg", row)
        synthetic = from_integers(read_nifti(of_image).array.transpose(2, 1, 0))     # (X, Y, Z) -> (D, H, W)
        k = (working.label > 0).sum((1, 2)).argmax()
        images = working.image[k], synthetic[k]
        panels.append([with_contours(image, mask) for mask in (None, working.label[k]) for image in images])
    if panels:
        save_png(Path(out) / name, sheet(two_a_row(panels)))
