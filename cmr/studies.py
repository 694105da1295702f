"""The studies of a dataset: every volume with its split, and the rules for what may be trained and tested on."""
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cmr.errors import DataError, UsageError
from cmr.files import digest, require_outside
from cmr.folders import open_folder
from cmr.layouts import read_layout
from cmr.records import SPLITS, Domain
from cmr.seeds import rng
from cmr.settings import DataConfig

UNSEEN = "a target must be unseen"              # why a target may not share a subject with the source
# Shares of the subjects that train and validate, where a dataset has no splits; the others are tested.
SHARES = {"source": (0.60, 0.15), "target": (0.0, 0.25), "target with upper bound": (0.40, 0.10)}


def find(root, use_unlabeled_masks=False, all_frames=False):
    """Records of every volume below `root`, a folder or several separated by commas, sorted by case.

    The metadata column `dataset` holds the folder's name, so that `Dataset=ACDC` is a domain.
    all_frames : include a cine's frames other than ED and ES, without labels (for the diffusion model).
    use_unlabeled_masks : use M&Ms-1's masks under Training/Unlabeled, whose quality is disputed.
    Raises DataError if a folder is missing or has no known layout, if two folders share a subject's name, or if a
    volume is there twice (a copy elsewhere, or .nii beside .nii.gz).
    """
    records, folder_of, path_of = [], {}, {}
    for folder in _folders(root):
        name = folder.absolute().name                             # of `.` too
        for record in read_layout(open_folder(folder, use_unlabeled_masks, all_frames)):
            if any(not text.isprintable() or text != text.strip() for text in (record.subject, record.case)):
                raise DataError(f"{record.image_path!r}: a name with blanks at its ends or letters that are no UTF-8 "
                                "cannot be written into tables; rename it")
            first, path = folder_of.setdefault(record.subject, folder), record.image_path
            if first != folder:
                raise DataError(f"{record.subject} is a subject of {first} and of {folder}; rename it in one of them")
            if path_of.setdefault(record.case, path) != path:
                raise DataError(f"{record.case} is there twice: {path_of[record.case]} and {path}; remove one of "
                                "them, or rename it if it is another volume")
            records.append(replace(record, metadata={"dataset": name, **record.metadata}))
    return sorted(records, key=lambda r: r.case)


def left_out(root, use_unlabeled_masks=False):
    """[(what, why)] of everything in the datasets that no segmenter is trained or tested on."""
    found = []
    for path in _folders(root):
        folder = open_folder(path, use_unlabeled_masks)
        records = read_layout(folder)
        found += folder.left_out
        for record in records:
            without = () if record.label_path else ("has no mask",)
            found += [(record.case, why) for why in record.flags or without]
    return list(dict.fromkeys(found))


def _folders(text):
    """The dataset folders that `--data` names, separated by commas; raises UserError for missing or nested ones."""
    parts = [part.strip() for part in str(text).split(",")]
    read_as = f"--data {str(text)!r} is read as {len(parts)} folders separated by commas; no path may contain a comma"
    if not all(parts):
        raise UsageError(f"an empty name beside a comma: {read_as}")
    folders = [Path(part) for part in parts]
    for folder in folders if len(parts) > 1 else ():
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {read_as}")
    for inner, outer in itertools.permutations(folders, 2):
        if outer.resolve() in (inner.resolve(), *inner.resolve().parents):
            raise UsageError(f"--data {text}: {inner} and {outer} are one folder, or one lies in the other; "
                             "name each dataset once")
    return folders


def studies_of(c, all_frames=False):
    """Records of the dataset that a stage's settings `c` name, each with its split; all_frames : as in `find`.

    The experiment's source alone decides the split, whatever the stage trains on, so that a test study stays one.
    """
    if isinstance(c, DataConfig):
        require_outside(c.work, c.data, "--work")
    records = find(c.data, c.use_unlabeled_masks, all_frames)
    return split_by_subject(records, Domain.parse(c.source), c.upper_bound)


def split_by_subject(records, source, upper_bound=False):
    """Fill in the split where a dataset has none, or no validation: whole subjects, by a hash of their names."""
    assigned = _shared_out(records, source, upper_bound)
    records = [replace(r, split=r.split or assigned[r.subject]) for r in records]
    held_out = _held_out(records, source)
    as_validation = lambda r: r.split == "Training" and r.subject in held_out
    return [replace(r, split="Validation") if as_validation(r) else r for r in records]


def _shared_out(records, source, upper_bound):
    """{subject: split} of the subjects without one, drawn separately for each vendor and pathology."""
    pools, assigned = {}, {}
    for record in records:
        if not record.split:
            pool = (record in source, record.vendor, record.pathology)
            pools.setdefault(pool, set()).add(record.subject)
    for (is_source, *_), subjects in pools.items():
        trained, validate = SHARES["source" if is_source else "target with upper bound" if upper_bound else "target"]
        bounds = trained, trained + validate
        for i, subject in enumerate(sorted(subjects, key=digest)):
            share = (i + 0.5) / len(subjects)
            assigned[subject] = SPLITS[sum(share > bound for bound in bounds)]
    return assigned


def _held_out(records, source):
    """Training subjects that become Validation, of the source and the other datasets that lack validation studies."""
    pools, held_out = {}, set()
    for record in records:
        pool = "the source" if record in source else record.metadata["dataset"]
        pools.setdefault(pool, []).append(record)
    for members in pools.values():
        if all(r.split != "Validation" for r in members):
            keys = {(r.vendor, r.pathology, digest(r.subject), r.subject) for r in members if r.split == "Training"}
            held_out.update(subject for *_, subject in sorted(keys)[5::6])                 # every sixth
    return held_out


def splits_drawn(c, records):
    """Sentences on the subjects whom no folder and no table gives a split.  c : settings of a stage."""
    drawn = {}
    for before, after in zip(find(c.data, c.use_unlabeled_masks), records):
        if not before.split:
            drawn.setdefault(before.metadata["dataset"], {})[after.subject] = after
    said = []
    for dataset, found in drawn.items():
        counts = Counter(record.split for record in found.values())
        drawn_as = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
        first = Path(next(iter(found.values())).image_path).parent
        said.append(f"{len(found)} subjects of {dataset} lie in no folder of a split (training, validation, testing), "
                    f"the first in {first}: taken as {drawn_as}; rename its folder if that is not meant")
    return said


def in_role(records, domain, split="", labelled_only=False, instead="choose another domain or dataset"):
    """Records of a domain and split (empty: any); raises UsageError if there is none, with what to do `instead`."""
    there = [r for r in domain.select(records) if split in ("", r.split)]
    chosen = [r for r in there if r.label_path or not labelled_only]
    if not chosen:
        kind = f"labelled {split}".strip() if labelled_only else split
        flags = Counter(flag for r in there for flag in r.flags).most_common(1)
        why = f" ({flags[0][0]}, in {flags[0][1]} of {len(there)})" if flags else ""
        raise UsageError(f"domain {domain} has no {kind} volumes{why}; {instead}")
    return chosen


def labelled_apart(records, domain, others):
    """Return all labelled records of the domain of DG's references; UsageError if it has none or shares a subject."""
    require_apart(records, domain, others, "choose --references apart from source and targets, or leave them out")
    return in_role(records, domain, labelled_only=True, instead="choose other --references or leave them out")


def pseudonyms(records):
    """{subject: "P" and a number} of a dataset; their order follows from all its names, and tells nothing of one."""
    subjects = sorted({r.subject for r in records})
    numbers = rng("pseudonyms", *subjects).permutation(len(subjects))
    return {subject: f"P{number + 1:03d}" for subject, number in zip(subjects, numbers)}


def require_apart(records, domain, others, why):
    """Raise UsageError if a subject has volumes, be it different ones, in `domain` and in one of the other domains."""
    subjects = {r.subject for r in records if r in domain}
    for other in others:
        shared = sorted(subjects & {r.subject for r in records if r in other})
        if shared:
            raise UsageError(f"{shared[0]} is in {domain} and in {other} ({len(shared)} such subjects); {why}")


def require_unseen(tested, trained_on, network):
    """Raise UsageError if a tested record's subject is among `trained_on`, the subjects that `network` has seen."""
    seen = sorted({r.subject for r in tested} & set(trained_on))
    if seen:
        raise UsageError(f"{seen[0]} is a test subject, but {network} was trained on it ({len(seen)} such); "
                         "train again with this data")
