"""Look a dataset over before anything long starts: `python -m cmr.check_dataset --data DATA`."""
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from cmr.errors import DataError, run_script
from cmr.experiment import rows_to_measure
from cmr.files import digest, json_text, read_text, writable_folder, write_json
from cmr.grid import Grid, to_working
from cmr.nifti import BlankImage, read_volume
from cmr.records import SPLITS, STRUCTURES, VALUES, Domain, Record
from cmr.settings import GRIDS, DataConfig, opt, parse
from cmr.studies import UNSEEN, in_role, labelled_apart, left_out, require_apart, splits_drawn, studies_of


@dataclass(frozen=True)
class Config(DataConfig):
    target: str = opt("", "target domain; each of its values must hold validation and labelled test volumes")
    references: str = opt("", "domain of DG's references, which may be neither in the source nor in a target")
    segmenters: str = opt("", "which will be compared, as network-trainingset: is there a row for each?")
    out: str    = opt("", "folder for check.json; empty: print only")


@dataclass(frozen=True)
class Volume:
    record: Record
    unusable: str = ""                           # why it cannot be read; the fields below are then empty
    left_out: str = ""                           # why no segmenter is trained or tested on it
    notes: tuple = ()
    spacing: str = ""
    image_hash: str = ""
    content: str = ""                            # hash of image, label, their place and what the table says of them
    structures: tuple = ()                       # names of the structures that its mask labels
    inside: float = 1.0                          # share of the labelled area within the working field of view


def main(argv=None):
    check_dataset(parse(Config, GRIDS, argv, __doc__.splitlines()[0]))


def check_dataset(config):
    source, targets = Domain.parse(config.source), Domain.parse(config.target).each() if config.target else []
    records, grid = studies_of(config), Grid(config.spacing_mm, config.size)
    _require_roles(records, source, targets, config)
    volumes = [_look_at(record, grid) for record in records]
    emptied = [(v.record.case, v.left_out) for v in volumes if v.left_out]
    orphans = [*left_out(config.data, config.use_unlabeled_masks), *emptied]
    findings = {**_findings(volumes, [source, *targets]), "split": splits_drawn(config, records),
                "left out": [f"{what}: {why}" for what, why in orphans]}
    for title, lines in findings.items():
        for line in lines:
            print(f"{title}: {line}")
    _refuse(config.data, [source, *targets], volumes, findings)
    if config.out:
        path = writable_folder(config.out, config.data) / "check.json"
        if not path.exists() or read_text(path) != json_text(findings):              # a newer file would rerun stages
            write_json(path, findings)
    return findings


def _require_roles(records, source, targets, c):
    """Raise UsageError if a row, a target or a role has no volumes, or if a target shares a subject with the source."""
    if c.segmenters:
        rows_to_measure(c.segmenters.split(","), [source, *targets])
    require_apart(records, source, targets, UNSEEN)
    for split in SPLITS if targets else ("Training",):
        in_role(records, source, split, labelled_only=True)
    if c.references:
        labelled_apart(records, Domain.parse(c.references), [source, *targets])
    for domain in targets:
        in_role(records, domain, "Validation")
        in_role(records, domain, "Testing", labelled_only=True)
        for split in ("Training", "Validation") if c.upper_bound else ():
            in_role(records, domain, split, labelled_only=True, instead="leave the upper bound out (make: UPPER=0), or "
                    "choose a target that has")


def _look_at(record, grid):
    try:
        image, label, nifti, notes = read_volume(record)
    except DataError as error:
        is_spare = record.phase.startswith("F") and isinstance(error, BlankImage)
        return Volume(record, **{"left_out" if is_spare else "unusable": str(error)})
    why = notes.pop() if record.label_path and label is None else ""           # the last note says why it is none
    told = repr((nifti.affine.tolist(), nifti.spacing_mm, replace(record, image_path="", label_path=""))).encode()
    both = told + image.tobytes() + (b"" if label is None else label.tobytes())
    found = Volume(record, left_out=why, notes=tuple(notes), spacing=" x ".join(f"{s:.2f}" for s in nifti.spacing_mm),
                   image_hash=digest(image.tobytes()), content=digest(both))
    if label is None:
        return found
    _, working_label, _ = to_working(image, nifti, grid, label)
    area_mm2 = (label > 0).sum() * np.prod(nifti.spacing_mm[:2])
    return replace(found, structures=tuple(name for name in STRUCTURES if (label == VALUES[name]).any()),
                   inside=(working_label > 0).sum() * grid.spacing_mm ** 2 / area_mm2)


def _findings(volumes, domains):
    """Return {title: [lines]} of what is in the volumes.  domains : the source first, then the targets."""
    read = [v for v in volumes if v.content]
    kinds = Counter(" ".join((v.record.vendor or "-", v.record.pathology or "-", v.record.split, v.record.phase,
                              "labelled" if v.structures else "unlabelled")) for v in read)
    labelled = Counter(name for v in read for name in v.structures)
    trained = {name for v in read if v.record in domains[0] and v.record.split == "Training" for name in v.structures}
    spacings = Counter(v.spacing for v in read)
    notes = [f"{note} ({n} volumes)" for note, n in sorted(Counter(note for v in read for note in v.notes).items())]
    unknown = ", ".join(name for name in STRUCTURES if name not in trained)
    if unknown:
        notes.append(f"{unknown} labelled in no training volume of the source: neither trained nor measured")
    return {"content": [digest(repr(sorted((v.record.case, v.content) for v in read)))],
            "found": [f"{len({v.record.subject for v in volumes})} subjects, {len(volumes)} volumes"],
            "volumes": [f"{n:4d} {kind}" for kind, n in sorted(kinds.items())],
            "spacing mm": [", ".join(f"{spacing} ({n})" for spacing, n in spacings.most_common(8))],
            "structures": [", ".join(f"{name} in {n} volumes" for name, n in labelled.items())],
            "note": notes,
            "heart cut by the working field of view": [f"{v.record.case} ({1 - v.inside:.0%})" for v in read
                                                       if v.inside < 0.97],
            "not fully labelled (training leaves the volume out, evaluation the structure)": _incomplete(read, domains),
            "there twice": _twice(read),
            "UNUSABLE": [v.unusable for v in volumes if v.unusable]}


def _incomplete(volumes, domains):
    """Return a text for each volume that lacks a structure which others of its domain (or dataset) and split label."""
    groups, found = defaultdict(list), []
    for v in volumes:
        if v.structures:
            domain = next((str(domain) for domain in domains if v.record in domain), v.record.metadata["dataset"])
            groups[f"{domain} {v.record.split}"].append(v)
    for group, members in groups.items():
        of_any = {name for v in members for name in v.structures}
        for v in members:
            lacking = [name for name in STRUCTURES if name in of_any and name not in v.structures]
            if lacking:
                found.append(f"{v.record.case} ({', '.join(lacking)}, labelled elsewhere in {group})")
    return found


def _twice(volumes):
    """Return a text for each subject that is in two splits and each image that two subjects have."""
    owners_of, found = defaultdict(set), []
    for v in volumes:
        owner = v.record.subject, v.record.split
        owners_of["one subject in two splits", v.record.subject].add(owner)
        owners_of["one image under two names", v.image_hash].add(owner)
    for (what, _), owners in owners_of.items():
        if len(owners) > 1:
            leak = "leakage between splits: " if len({split for _, split in owners}) > 1 else ""
            found.append(f"{leak}{what}, {sorted(owners)}")
    return found


def _refuse(data, domains, volumes, findings):
    """Raise DataError for volumes that cannot be used or are there twice, and for a role whose masks are all empty."""
    unusable, twice = findings["UNUSABLE"], findings["there twice"]
    if unusable:
        raise DataError(f"{len(unusable)} of {len(volumes)} volumes cannot be used; the first: {unusable[0]}")
    if twice:
        raise DataError(f"{data}: {twice[0]}; leave one of them out")
    source = domains[0]
    for domain, split in [(source, "Training"), (source, "Validation"), *((domain, "Testing") for domain in domains)]:
        masked = [v for v in volumes if v.record in domain and v.record.split == split and v.record.label_path]
        if masked and not any(v.structures for v in masked):
            raise DataError(f"{data}: no mask of the {split.lower()} volumes of {domain} labels anything; "
                            f"{masked[0].record.case}: {masked[0].left_out}")


if __name__ == "__main__":
    run_script(main)
