"""Write the synthetic training set (DG) or the translated test set (DA): `python -m cmr.synthesize --arm dg|da`.

The output is a valid nnU-Net raw dataset on the working grid, with `manifest.csv` written last: one row per image with
its reference, seed, strength, checkpoint hash and audit figures.  A pair that no longer fits its mask goes to `excluded/`.
Interrupted, it makes only what is missing.

Public: `Config`, `PRESETS`.
"""
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmr import checkpoint
from cmr.audit import SourceClassifier, boundary_displacement_mm, mean_dice, still_fits, through_plane_correlation
from cmr.config import DataConfig, DataError, UsageError, opt, parse, run_script
from cmr.pictures import long_axis, save_png, sheet, with_contours
from cmr.segment import Segmenter
from cmr.shifts import random_shift
from cmr.studies import Domain, find, in_role, network_classes, require_unseen, split_by_subject
from cmr.training import pick_device, rng
from cmr.translate import NONE, SourceModel, Strength, read_choice, translate
from cmr.volumes import Grid, Working, as_integers, prepare, read_nifti, working_affine, write_nifti

COLUMNS = ("case", "subject", "phase", "sample", "domain", "vendor", "centre", "pathology", "split", "reference", "reference_content", "shift", "strength", "seed",
           "sd_dm", "segmenter", "redrawn", "kept", "dice_reference", "dice_synthetic", "dice_change", "displacement_median_mm", "displacement_p95_mm",
           "through_plane_reference", "through_plane_synthetic", "of_source_reference", "of_source_synthetic")


@dataclass(frozen=True)
class Config(DataConfig):
    """Settings of one synthetic set."""
    arm: str       = opt("dg", "dg: source training references with their masks; da: test studies of source and targets, without")
    target: str    = opt("", "target domains (da)")
    diffusion: str = opt("", "final.pt of train_diffusion.py")
    segmenter: str = opt("", "final.pt of train_unet.py on real source data, for the audit")
    shift: str     = opt("", "how far the look of a reference is changed at random before it is projected, 1: about as far as another vendor; several, separated by ';', are taken in turn by the samples; empty: the arm's default")
    strength: str  = opt("", "what is kept of the reference, none: all, nothing is projected; several, separated by ';', are taken in turn by the samples; empty: the arm's default")
    choice: str    = opt("", "choice.json of cmr.choose (da): each domain is translated as chosen there, beside --strength")
    samples: int   = opt(0, "synthetic images per reference; 0: 2 for dg, 1 for da")
    out: str       = opt("runs/synthetic", "folder of the dataset")


# Both are guided, so that the anatomy stays to the pixel.  DG: one sample near the source, one that keeps part of a
# changed look.  DA goes further, from matched intensities.
DEFAULT_STRENGTH = {"dg": "t0=300,guide_mm=20,steps=2", "da": "t0=500,match=mean_std,guide_mm=30,steps=2"}
DEFAULT_SHIFT = {"dg": "0;1", "da": "0"}
DEFAULT_SAMPLES = {"dg": 2, "da": 1}
PRESETS = {"tiny": dict(samples=1), "demo": {}, "paper": dict(size=128, spacing_mm=1.5, samples=4)}


@dataclass(frozen=True)
class Job:
    """One synthetic volume to be made."""
    working: Working                             # the reference
    domain: Domain
    shift: float
    strength: Strength                           # or NONE
    sample: int
    case: str


def _folders(arm, kept):
    """Where an image and its mask lie."""
    return ("imagesTs", None) if arm == "da" else ("imagesTr", "labelsTr") if int(kept) else ("excluded/images", "excluded/labels")


def _one(c, model, segmenter, classifier, job):
    """Make, audit and write one synthetic volume; return its manifest row."""
    working, shift, strength, sample = job.working, job.shift, job.strength, job.sample
    record = working.record
    reference, mask = np.asarray(working.image), working.label
    given = random_shift(reference, c.spacing_mm, rng(c.seed, "shift", record.case, sample), shift) if shift else reference
    image, redrawn = translate(model, given, c.spacing_mm, strength, c.seed, record.subject, sample) if strength != NONE else (given, 0)
    found_on_reference, found_on_image = (segmenter.labels(x, working.spacing_mm) for x in (given, image))
    row = {"case": job.case, "subject": record.subject, "phase": record.phase, "sample": sample, "domain": str(job.domain), "vendor": record.vendor, "centre": record.centre,
           "pathology": record.pathology, "split": record.split, "reference": record.case, "reference_content": working.content[:16],
           "shift": shift, "strength": str(strength), "seed": c.seed, "sd_dm": model.hash, "segmenter": segmenter.hash, "redrawn": redrawn}
    if c.arm == "dg":
        row["dice_reference"], row["dice_synthetic"] = mean_dice(found_on_reference, mask), mean_dice(found_on_image, mask)
        row["dice_change"] = row["dice_synthetic"] - row["dice_reference"]
    # A target's mask is unknown at adaptation time: there the segmenter's own boundary on the reference is followed.
    boundary = mask if c.arm == "dg" else found_on_reference
    row["displacement_median_mm"], row["displacement_p95_mm"] = boundary_displacement_mm(reference, image, boundary, c.spacing_mm)
    row["kept"] = int(c.arm == "da" or strength == NONE or still_fits(row["displacement_median_mm"], row["dice_change"], c.spacing_mm))
    row["through_plane_reference"], row["through_plane_synthetic"] = through_plane_correlation(reference), through_plane_correlation(image)
    if classifier:
        row["of_source_reference"], row["of_source_synthetic"] = classifier.probability(given), classifier.probability(image)

    affine, spacing = working_affine(working.geometry)
    images, labels = _folders(c.arm, row["kept"])
    stored = lambda array: np.ascontiguousarray(array.transpose(2, 1, 0))                         # (D, H, W) -> (X, Y, Z)
    write_nifti(f"{c.out}/{images}/{job.case}_0000.nii.gz", stored(as_integers(image)), affine, spacing, "synthetic")
    if c.arm == "dg":
        classes = network_classes(segmenter.structures)[np.asarray(mask)]                         # nnU-Net wants consecutive labels
        write_nifti(f"{c.out}/{labels}/{job.case}.nii.gz", stored(classes), affine, spacing, "mask of the reference")
    return row


def synthesize(c):
    """Make every missing volume of the set, then the manifest."""
    if c.arm not in ("dg", "da"):
        raise UsageError(f"--arm {c.arm}: use dg or da")
    if c.arm == "da" and not c.target:
        raise UsageError("--arm da: give the target domains with --target, e.g. Vendor=B,C,D")
    device = pick_device(c.device)
    samples = c.samples or DEFAULT_SAMPLES[c.arm]
    try:
        shifts = [float(text) for text in (c.shift or DEFAULT_SHIFT[c.arm]).split(";")]
    except ValueError as error:
        raise UsageError(f"--shift {c.shift!r}: use numbers, separated by ';'") from error
    fixed = [NONE if s == NONE else Strength.parse(s) for s in (c.strength or DEFAULT_STRENGTH[c.arm]).split(";")]
    model, segmenter = SourceModel.load(c.diffusion, device), Segmenter.load(c.segmenter, device)
    grid = Grid(c.spacing_mm, c.size)
    checkpoint.require_settings(c.diffusion, {k: model.settings[k] for k in asdict(grid)}, asdict(grid))
    source = Domain.parse(c.source)
    records = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
    if c.arm == "dg":                                                                               # the samples of a reference take the strengths in turn
        domains = (source,)
        chosen = in_role(records, source, "Training", labelled_only=True)
        strengths = {r.case: [fixed[n % len(fixed)] for n in range(samples)] for r in chosen}
    else:                                                                                           # every strength of the domain, with all samples
        domains = (source, *Domain.parse(c.target).each())
        choice = read_choice(c.choice, domains) if c.choice else {str(d): {} for d in domains}
        of_domain = {d: list(dict.fromkeys([*fixed, *(Strength.parse(text) for text in sorted({*choice[str(d)].values()} - {NONE}))])) for d in domains}
        chosen = [r for d in domains for r in in_role(records, d, "Testing")]
        strengths = {r.case: [s for s in of_domain[d] for _ in range(samples)] for d in domains for r in chosen if r in d}
    for s in {s for some in strengths.values() for s in some} - {NONE}:
        if s.t0 > model.schedule.T:
            raise UsageError(f"strength {s}: t0 exceeds the model's T = {model.schedule.T}")
    if c.arm == "da":
        require_unseen(chosen, segmenter.subjects, c.segmenter)
        require_unseen(chosen, model.subjects, c.diffusion)

    out = checkpoint.writable_folder(c.out)
    settings = {**{k: v for k, v in asdict(c).items() if k not in ("diffusion", "segmenter")}, "sd_dm": model.hash,
                "strengths": sorted({str(s) for some in strengths.values() for s in some})}
    if (out / "config.json").exists():
        checkpoint.require_settings(out / "config.json", json.loads((out / "config.json").read_text()), settings)
    checkpoint.write_json(out / "config.json", settings)
    labels = {"background": 0, **{s: i for i, s in enumerate(segmenter.structures, 1)}}
    workings = [w for w in prepare(chosen, grid, c.work) if c.arm == "da" or w.label is not None]
    domain_of = lambda w: next(d for d in domains if w.record in d)
    jobs = [Job(w, domain_of(w), shifts[n % samples % len(shifts)], strength, n % samples, f"{w.record.case}_s{n}")
            for w in workings for n, strength in enumerate(strengths[w.record.case])]
    classifiers = _classifiers(c, source, domains, records, grid)
    rows = []
    for job in tqdm(jobs, disable=not sys.stderr.isatty(), desc=out.name):
        done = out / "items" / f"{job.case}.json"
        if not done.exists():
            checkpoint.write_json(done, _one(c, model, segmenter, classifiers.get(job.domain), job))
        rows.append(json.loads(done.read_text()))
        if len(rows) % 20 == 0 and not sys.stderr.isatty():
            print(f"{out.name}: {len(rows)} of {len(jobs)}", flush=True)
    kept, excluded = ([r for r in rows if r["kept"] == k] for k in (1, 0))
    if c.arm == "dg":
        print(f"{out.name}: {len(kept)} of {len(rows)} pairs kept; excluded, as they no longer fit their mask: {', '.join(r['case'] for r in excluded) or 'none'}")
        if not kept:
            raise DataError(f"{out}: not one of {len(rows)} synthetic images fits its mask; train the diffusion model longer or choose a weaker --strength")
        for name, some in (("kept", kept), ("excluded", excluded)):
            _draw_worst(out / f"worst_{name}.png", c, some, {w.record.case: w for w in workings})
    _draw_long_axes(c, workings, kept)
    checkpoint.write_json(out / "dataset.json", {"channel_names": {"0": "cineMRI"}, "labels": labels, "numTraining": len(kept) if c.arm == "dg" else 0,
                                                 "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"})
    checkpoint.write_csv(out / "manifest.csv", rows, COLUMNS)
    for name in ("dice_change", "displacement_median_mm", "displacement_p95_mm", "through_plane_reference", "through_plane_synthetic", "of_source_reference", "of_source_synthetic"):
        values = np.array([r[name] for r in rows if r.get(name) is not None and np.isfinite(r[name])])
        if len(values):
            print(f"{out.name}: {name} mean {values.mean():.3f}, SD {values.std():.3f}, worst {values.max() if name.startswith('displacement') else values.min():.3f} (n {len(values)})")


def _classifiers(c, source, domains, records, grid):
    """{domain: SourceClassifier}: the source's training volumes against what is known of a domain without labels, for DA its
    validation volumes; DG knows no target, so there the others are the same volumes with their look changed.  The source of DA
    has none, as it is no other domain."""
    images = lambda some: [np.asarray(w.image) for w in prepare(some, grid, c.work)]
    own = images(in_role(records, source, "Training", labelled_only=True))
    if c.arm == "dg":
        return {source: SourceClassifier.fit(own, [random_shift(x, c.spacing_mm, rng(c.seed, "classifier", i)) for i, x in enumerate(own)])}
    unlabelled = {d: [r for r in d.select(records) if r.split == "Validation"] for d in domains if d != source}
    return {d: SourceClassifier.fit(own, images(some)) for d, some in unlabelled.items() if some}


def _stored_image(c, row):
    """(D, H, W) in [-1, 1] of a synthetic volume."""
    return read_nifti(Path(c.out) / _folders(c.arm, row["kept"])[0] / f"{row['case']}_0000.nii.gz").array.transpose(2, 1, 0) / 1000 - 1


def _draw_worst(path, c, rows, workings, n=10):
    """The n pairs whose boundary moved furthest: the reference and its synthetic image at the largest slice of the mask, which is drawn on both."""
    worst = sorted(rows, key=lambda r: (-np.nan_to_num(r["displacement_p95_mm"]), r["dice_change"]))[:n]
    panels = []
    for row in worst:
        working = workings[row["reference"]]
        k = (working.label > 0).sum((1, 2)).argmax()
        panels.append([with_contours(image[k], mask) for mask in (None, working.label[k]) for image in (working.image, _stored_image(c, row))])
    if panels:
        save_png(path, sheet([left + right for left, right in zip(panels[::2], [*panels[1::2], []])]))


def _draw_long_axes(c, workings, kept):
    """`through_plane.png`: three references cut along the heart across their slices, each beside its synthetic volumes."""
    rows = []
    for working in workings[::max(1, len(workings) // 3)][:3]:
        synthetic = [_stored_image(c, row) for row in kept if row["reference"] == working.record.case]
        middle = working.image.shape[1] // 2
        rows.append([long_axis(volume[:, middle], working.spacing_mm[0] / working.spacing_mm[1]) for volume in [np.asarray(working.image), *synthetic]])
    height = max(row[0].shape[0] for row in rows)
    save_png(Path(c.out) / "through_plane.png", sheet([[np.pad(panel, ((0, height - len(panel)), (0, 0), (0, 0))) for panel in row] for row in rows]))


def main(argv=None):
    synthesize(parse(Config, PRESETS, argv, __doc__.splitlines()[0]))


if __name__ == "__main__":
    run_script(main)
