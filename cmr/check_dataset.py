"""Look a dataset over before anything long starts: `python -m cmr.check_dataset DATA`.

Counts per domain, split and phase; spacings; label values; every anomaly; leakage between splits by subject and by
image content.  All unusable files are listed at once; then the exit code is 3.
What a single file must be is checked when it is read (`cmr.nifti`).

Public: `Config`, `check_dataset`.
"""
import hashlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from cmr.errors import DataError, UsageError, run_script
from cmr.experiment import rows_to_measure
from cmr.files import json_text, writable_folder, write_json
from cmr.grid import Grid, to_original, to_working
from cmr.metrics import dice
from cmr.nifti import BlankImage, read_volume
from cmr.records import SPLITS, STRUCTURES, VALUES, Domain, looks_swapped
from cmr.segmenter import split_name
from cmr.settings import GRIDS, DataConfig, opt, parse
from cmr.studies import in_role, left_out, require_apart, splits_drawn, studies_of


@dataclass(frozen=True)
class Config(DataConfig):
    """Settings of the check."""
    target: str = opt("", "target domain; each of its values must hold validation and labelled test volumes")
    segmenters: str = opt("", "which will be compared, as network-trainingset: is there a row for each?")
    out: str    = opt("", "folder for check.json; empty: print only")


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    config = parse(Config, GRIDS, argv, __doc__.splitlines()[0])
    check_dataset(config)


def check_dataset(config):
    """Read every volume of the dataset and return the findings as a dictionary; raises DataError if any is unusable."""
    source = Domain.parse(config.source)
    records = studies_of(config)
    _require_roles(records, source, config)
    targets = Domain.parse(config.target).each() if config.target else []
    survey = _Survey(Grid(config.spacing_mm, config.size), [source, *targets])
    for record in records:
        survey.add(record)
    orphans = [*left_out(config.data, config.use_unlabeled_masks), *survey.without_labels]
    findings = {**survey.findings(), "left_out": [f"{what}: {why}" for what, why in orphans],
                "splits_drawn": splits_drawn(config, records)}
    _print(findings)
    _refuse(config.data, findings)
    if not survey.trained:
        empty = f"; {': '.join(survey.without_labels[0])}" if survey.without_labels else ""
        raise DataError(f"{config.data}: no mask of the training volumes of {source} labels anything{empty}")
    if config.out:
        _keep(writable_folder(config.out, config.data) / "check.json", findings)
    return findings


def _keep(path, findings):
    """Write the findings, unless just these lie there: what depends on the file need not be asked again."""
    if not path.exists() or path.read_text() != json_text(findings):
        write_json(path, findings)


def _require_roles(records, source, c):
    """Raise UsageError where a row, a target or the volumes of a role are missing, or where a target is not unseen."""
    targets = Domain.parse(c.target).each() if c.target else []
    if c.segmenters:
        rows_to_measure(list(map(split_name, c.segmenters.split(","))), [source, *targets], ())
    require_apart(records, source, targets)
    for split in SPLITS if targets else ("Training",):
        in_role(records, source, split, labelled_only=True)
    for domain in targets:
        in_role(records, domain, "Validation")
        in_role(records, domain, "Testing", labelled_only=True)
        for split in ("Training", "Validation") if c.upper_bound else ():
            if not any(r.split == split and r.label_path for r in records if r in domain):
                raise UsageError(f"--upper-bound: {domain} has no labelled {split} volumes; leave the bound out (make: "
                                 "UPPER=), or choose a target that has")


class _Survey:
    """What is found on the way through the volumes."""

    def __init__(self, grid, domains):
        """domains : the source, then the targets."""
        self.grid, self.n_volumes, self.unusable, self.cropped, self.swapped = grid, 0, [], [], []
        self.source, self.domains, self.trained = domains[0], domains, set()         # what its training volumes label
        self.without_labels, self.labelled_by = [], {}            # (case, why); group -> {case: structures}
        self.notes, self.spacings, self.counts, self.structures = Counter(), Counter(), Counter(), Counter()
        self.owners_of, self.splits_of, self.there_and_back = defaultdict(set), defaultdict(set), defaultdict(list)
        self.content = {}                                         # case -> hash of its voxels

    def add(self, record):
        """Read one volume."""
        self.n_volumes += 1
        self.splits_of[record.subject].add(record.split)
        try:
            image, label, nifti, notes = read_volume(record)
        except DataError as error:
            is_spare = record.is_extra_frame and isinstance(error, BlankImage)
            if is_spare:
                self.without_labels.append((record.case, str(error)))
            else:
                self.unusable.append(str(error))
            return
        if record.label_path and label is None:
            self.without_labels.append((record.case, notes.pop()))
        self.notes.update(notes)
        self.spacings[" x ".join(f"{s:.2f}" for s in nifti.spacing_mm)] += 1
        voxels = hashlib.sha256(image.tobytes())
        self.owners_of[voxels.hexdigest()].add((record.subject, record.split))
        voxels.update(b"" if label is None else label.tobytes())
        self.content[record.case] = voxels.hexdigest()
        labelled = "unlabelled" if label is None else "labelled"
        self.counts[record.vendor or "-", record.pathology or "-", record.split, record.phase, labelled] += 1
        if label is not None:
            self._add_label(record, image, nifti, label)

    def _add_label(self, record, image, nifti, label):
        """What the working grid does to a mask: how it comes back, how much of it lies outside the field of view."""
        _, working_label, geometry = to_working(image, nifti, self.grid, label)
        one_hot = working_label == np.arange(1 + len(STRUCTURES))[:, None, None, None]
        back = to_original(one_hot.astype(np.float32), geometry)
        there = [name for name, value in VALUES.items() if (label == value).any()]
        group = next((str(domain) for domain in self.domains if record in domain), record.metadata["dataset"])
        self.labelled_by.setdefault(f"{group} {record.split}", {})[record.case] = there
        self.structures.update(there)
        if record in self.source and record.split == "Training":
            self.trained.update(there)
        for name in there:
            self.there_and_back[name].append(dice(back == VALUES[name], label == VALUES[name]))
        if looks_swapped(label):
            self.swapped.append(record.label_path)
        pixel_mm2 = np.prod(nifti.spacing_mm[:2])
        share = (working_label > 0).sum() * self.grid.spacing_mm ** 2 / ((label > 0).sum() * pixel_mm2)
        if share < 0.97:
            self.cropped.append(f"{record.case} ({100 * (1 - share):.0f} %)")

    def incomplete(self):
        """Volumes that do not label what others of their domain (outside those: of their dataset) and split do."""
        found = []
        for group, of in self.labelled_by.items():
            of_any = set().union(*of.values())
            for case, there in of.items():
                lacking = [name for name in STRUCTURES if name in of_any and name not in there]
                if lacking:
                    found.append(f"{case} ({', '.join(lacking)}, labelled elsewhere in {group})")
        return found

    def findings(self):
        """Everything as plain values, in the order in which it is printed."""
        several = lambda owners, i: len({owner[i] for owner in owners}) > 1
        twice = [sorted(owners) for owners in self.owners_of.values() if several(owners, 0) or several(owners, 1)]
        kept = {name: self.there_and_back[name] for name in STRUCTURES if name in self.there_and_back}
        content = hashlib.sha256(repr(sorted(self.content.items())).encode()).hexdigest()
        return {"content": content,
                "volumes": self.n_volumes,
                "subjects": len(self.splits_of),
                "counts": {" ".join(key): n for key, n in sorted(self.counts.items())},
                "spacings_mm": dict(self.spacings.most_common()),
                "structures": dict(self.structures),
                "not_trained": [name for name in STRUCTURES if name in self.structures and name not in self.trained],
                "working_grid_dice": {name: [float(np.mean(d)), float(np.min(d))] for name, d in kept.items()},
                "notes": dict(self.notes),
                "heart_outside_working_field": self.cropped,
                "incompletely_labelled": self.incomplete(),
                "lv_and_rv_swapped": list(dict.fromkeys(self.swapped)),
                "same_image_twice": twice,
                "subject_in_two_splits": sorted(s for s, splits in self.splits_of.items() if len(splits) > 1),
                "unusable": self.unusable}


def _refuse(data, findings):
    """Raise DataError for what must not be trained on: unusable files, leakage between splits, no label at all."""
    unusable, shared = findings["unusable"], findings["subject_in_two_splits"]
    if len(unusable) == 1:
        raise DataError(unusable[0])
    if unusable:
        raise DataError(f"{len(unusable)} of {findings['volumes']} volumes cannot be used; the first: {unusable[0]}")
    twice = findings["same_image_twice"]
    across_splits = [owners for owners in twice if len({split for _, split in owners}) > 1]
    if shared or across_splits:
        raise DataError(f"{data}: leakage between splits: {(shared or across_splits)[0]}; leave one of them out")
    if not findings["structures"]:
        raise DataError(f"{data}: no labelled volume; segmenters cannot be trained")


def _print(findings):
    print(f"{findings['subjects']} subjects, {findings['volumes']} volumes")
    print("vendor pathology split phase                     volumes")
    for key, n in findings["counts"].items():
        print(f"  {key:44s} {n:5d}")
    print("spacing mm: " + ", ".join(f"{k} ({n})" for k, n in list(findings["spacings_mm"].items())[:8]))
    print("structures: " + ", ".join(f"{k} in {n} volumes" for k, n in findings["structures"].items()))
    kept = [f"{s} {mean:.3f} (worst {worst:.3f})" for s, (mean, worst) in findings["working_grid_dice"].items()]
    if kept:
        print("a mask sent through the working grid and back as labels, Dice with itself (a network's scores go back "
              "unrounded and may do a little better): " + ", ".join(kept))
    missing = [s for s in STRUCTURES if s not in findings["structures"]]
    if missing and findings["structures"]:
        print(f"note: {', '.join(missing)} labelled nowhere: unknown there, neither trained nor measured")
    if findings["not_trained"]:
        print(f"note: {', '.join(findings['not_trained'])} labelled in no training volume of the source: neither "
              "trained nor measured")
    for note, n in sorted(findings["notes"].items()):
        print(f"note: {note} ({n} volumes)")
    for title, key in (("heart cut by the working field of view", "heart_outside_working_field"),
                       ("not fully labelled (training leaves the volume out, evaluation the structure)",
                        "incompletely_labelled"),
                       ("LV and RV look swapped (the myocardium encloses what is labelled RV)", "lv_and_rv_swapped"),
                       ("split", "splits_drawn"), ("left out", "left_out"),
                       ("the same image twice", "same_image_twice"),
                       ("subject in two splits", "subject_in_two_splits"), ("UNUSABLE", "unusable")):
        for item in findings[key]:
            print(f"{title}: {item}")


if __name__ == "__main__":
    run_script(main)
