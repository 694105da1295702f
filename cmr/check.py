"""Look a dataset over before anything long starts: `python -m cmr.check DATA`.

Counts per domain, split and phase; spacings; label values; every anomaly; leakage between splits by subject and by
image content.  All unusable files are listed at once; then the exit code is 3.

Public: `Config`, `check`.
"""
import hashlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from cmr.checkpoint import writable_folder, write_json
from cmr.config import DataConfig, DataError, UsageError, opt, parse, run_script
from cmr.metrics import dice
from cmr.studies import STRUCTURES, Domain, find, in_role, split_by_subject
from cmr.volumes import Grid, load, to_original, to_working


@dataclass(frozen=True)
class Config(DataConfig):
    """Settings of the check."""
    target: str = opt("", "target domain; each of its values must hold validation and labelled test volumes")
    out: str = opt("", "folder for check.json; empty: print only")


PRESETS = {"tiny": {}, "demo": {}, "paper": dict(size=128, spacing_mm=1.5)}


def check(config):
    """Read every volume of the dataset and return the findings as a dictionary; raises DataError if any is unusable."""
    source = Domain.parse(config.source)
    records = split_by_subject(find(config.data, config.use_unlabeled_masks), source)
    for split in ("Training", "Validation", "Testing") if config.target else ("Training",):
        in_role(records, source, split, labelled_only=True)
    for domain in Domain.parse(config.target).each() if config.target else ():
        in_role(records, domain, "Validation")
        in_role(records, domain, "Testing", labelled_only=True)
        both = sorted({r.subject for r in records if r in domain and r in source})
        if both:
            raise UsageError(f"{both[0]} is in the target {domain} and in the source {source} ({len(both)} such subjects); a target must be unseen")
    grid = Grid(config.spacing_mm, config.size)
    unusable, notes, spacings, shapes, values, cropped = [], Counter(), Counter(), Counter(), Counter(), []
    contents, counts, there_and_back = defaultdict(set), Counter(), defaultdict(list)
    for record in records:
        for flag in record.flags:
            notes[flag] += 1
        try:
            image, label, nifti, load_notes = load(record)
        except DataError as error:
            unusable.append(str(error))
            continue
        for note in load_notes:
            notes[note] += 1
        spacings[" x ".join(f"{s:.2f}" for s in nifti.spacing_mm)] += 1
        shapes[image.shape] += 1
        contents[hashlib.sha256(image.tobytes()).hexdigest()].add((record.subject, record.split))
        counts[(record.vendor or "-", record.pathology or "-", record.split, record.phase, "labelled" if label is not None else "unlabelled")] += 1
        if label is None:
            continue
        values.update(STRUCTURES[v - 1] for v in np.unique(label) if v)
        _, working_label, geometry = to_working(image, nifti, grid, label)
        back = to_original((working_label == np.arange(4)[:, None, None, None]).astype(np.float32), geometry)
        for value in np.unique(label[label > 0]):
            there_and_back[STRUCTURES[value - 1]].append(dice(back == value, label == value))
        share = working_label.astype(bool).sum() * grid.spacing_mm ** 2 / (label.astype(bool).sum() * np.prod(nifti.spacing_mm[:2]))
        if share < 0.97:
            cropped.append(f"{record.case} ({100 * (1 - share):.0f} %)")
    leaks = [sorted(owners) for owners in contents.values() if len({s for s, _ in owners}) > 1 or len({split for _, split in owners}) > 1]
    splits = defaultdict(set)
    for record in records:
        splits[record.subject].add(record.split)
    shared = sorted(s for s, where in splits.items() if len(where) > 1)
    findings = {"volumes": len(records), "subjects": len(splits), "counts": {" ".join(k): n for k, n in sorted(counts.items())},
                "spacings_mm": dict(spacings.most_common()), "structures": dict(values),
                "working_grid_dice": {s: [float(np.mean(there_and_back[s])), float(np.min(there_and_back[s]))] for s in STRUCTURES if s in there_and_back}, "notes": dict(notes),
                "heart_outside_working_field": cropped, "same_image_twice": leaks, "subject_in_two_splits": shared, "unusable": unusable}
    _print(findings)
    if config.out:
        write_json(writable_folder(config.out) / "check.json", findings)
    if unusable:
        raise DataError(unusable[0] if len(unusable) == 1 else f"{len(unusable)} of {len(records)} volumes cannot be used; the first: {unusable[0]}")
    if shared or any(len({split for _, split in owners}) > 1 for owners in leaks):
        raise DataError(f"{config.data}: leakage between splits: {(shared or leaks)[0]}; leave one of them out")
    if not values:
        raise DataError(f"{config.data}: no labelled volume; segmenters cannot be trained")
    return findings


def _print(findings):
    print(f"{findings['subjects']} subjects, {findings['volumes']} volumes")
    print("vendor pathology split phase                     volumes")
    for key, n in findings["counts"].items():
        print(f"  {key:44s} {n:5d}")
    print("spacing mm: " + ", ".join(f"{k} ({n})" for k, n in list(findings["spacings_mm"].items())[:8]))
    print("structures: " + ", ".join(f"{k} in {n} volumes" for k, n in findings["structures"].items()))
    if findings["working_grid_dice"]:
        print("a mask sent through the working grid and back, Dice with itself (no network can do better there): "
              + ", ".join(f"{s} {mean:.3f} (worst {worst:.3f})" for s, (mean, worst) in findings["working_grid_dice"].items()))
    missing = [s for s in STRUCTURES if s not in findings["structures"]]
    if missing and findings["structures"]:
        print(f"note: {', '.join(missing)} labelled nowhere: unknown there, neither trained nor measured")
    for note, n in sorted(findings["notes"].items()):
        print(f"note: {note} ({n} volumes)")
    for title, key in (("heart cut by the working field of view", "heart_outside_working_field"), ("the same image twice", "same_image_twice"),
                       ("subject in two splits", "subject_in_two_splits"), ("UNUSABLE", "unusable")):
        for item in findings[key]:
            print(f"{title}: {item}")


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    config = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    if not config.data:
        raise UsageError("no dataset; python -m cmr.check DATA")
    check(config)


if __name__ == "__main__":
    run_script(main)
