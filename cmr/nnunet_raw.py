"""The layout nnU-Net raw: `imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `dataset.json` (versions 1 and 2).

Synthetic sets of this project are written so too, with a manifest that names each image's reference.

Public: `is_nnunet_raw`, `read_nnunet_raw`, `label_map_of`.
"""
import json
import re
from collections import Counter

from cmr.errors import DataError
from cmr.files import read_csv, read_text, require_sealed
from cmr.folders import stem
from cmr.labels import VALUES, structure_called
from cmr.nifti import STORED_LIMITS
from cmr.records import Record

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
