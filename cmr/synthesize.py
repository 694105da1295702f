"""Write the synthetic training set (DG) or the translated test set (DA): `python -m cmr.synthesize --arm dg|da`.

The output is a valid nnU-Net raw dataset on the working grid, with `manifest.csv` written last: one row per image with
its reference, seed, strength, checkpoint hash and audit figures.  A pair that no longer fits its mask goes to
`excluded/`.  DG's images are made of validation patients too, for the audit alone: `held_out.csv` has their figures,
and `sd_dm.csv` says how much the diffusion model's samples are like slices of these patients.  Interrupted, it makes
only what is missing.

Public: `Config`, `PRESETS`, `synthesize`.
"""
import functools
from dataclasses import asdict, dataclass

import numpy as np

from cmr import checkpoint, ranks
from cmr.audit import SourceClassifier, audit, audit_samples
from cmr.audit import COLUMNS as SAMPLE_COLUMNS
from cmr.errors import CheckpointError, DataError, UsageError, run_script
from cmr.files import read_json, read_sealed_json, writable_folder, write_csv, write_json, write_sealed_json
from cmr.grid import Grid
from cmr.look import random_shift
from cmr.nifti import as_integers, from_integers
from cmr.provenance import require_part, require_references, require_trained_on
from cmr.records import Domain
from cmr.sampler import DEFAULT_STRENGTH, GUIDED, NONE, PROJECTED, SourceModel, Strength, parse_strength, translate
from cmr.seeds import rng
from cmr.segmenter import Segmenter
from cmr.settings import FULL_GRID, DataConfig, at_least, given, one_of, opt, parse
from cmr.studies import in_role, require_apart, require_unseen, studies_of
from cmr.synthetic_set import COLUMNS, draw_long_axes, draw_worst, write_dataset_json, write_pair
from cmr.workers import over_volumes, pick_device
from cmr.working import Working, fully_labelled, prepare


@dataclass(frozen=True)
class Config(DataConfig):
    """Settings of one synthetic set."""
    arm: str       = opt("dg", "dg: source training references with their masks; da: test studies of source and "
                               "targets, without", one_of("dg", "da"))
    target: str    = opt("", "target domains (da)")
    diffusion: str = opt("", "final.pt of train_diffusion.py", given("a final.pt"))
    segmenter: str = opt("", "final.pt of train_unet.py on real source data, for the audit", given("a final.pt"))
    shift: str     = opt("0", "how far the look of a reference is changed at random before it is projected, 1: about "
                              "as far as another vendor; several, separated by ';', are taken in turn by the samples")
    strength: str  = opt(DEFAULT_STRENGTH["dg"], "what is kept of the reference, none: all, nothing is projected; "
                                                 "several, separated by ';': dg: are taken in turn by the samples, da: "
                                                 "every image is made with each")
    samples: int   = opt(1, "synthetic images per reference", at_least(1))
    out: str       = opt("runs/synthetic", "folder of the dataset")


# DG: one sample near the source, one of a changed look; changed further, it harms an nnU-Net, which augments by itself.
_DG = dict(samples=2, shift="0;0.5")
_da = lambda preset: dict(strength=f"{PROJECTED[preset]};{GUIDED}")                  # both ways to project
PRESETS = {"tiny": {"dg": dict(_DG, samples=1, strength=PROJECTED["tiny"]), "da": _da("tiny")},
           "demo": {"dg": _DG, "da": _da("demo")},
           "small": {"dg": dict(FULL_GRID, **_DG), "da": dict(FULL_GRID, **_da("small"))},
           "lab": {"dg": dict(FULL_GRID, **_DG), "da": dict(FULL_GRID, **_da("lab"))},
           "paper": {"dg": dict(FULL_GRID, shift="0;0.5", samples=4, strength=PROJECTED["paper"]),
                     "da": dict(FULL_GRID, **_da("paper"))}}
SUMMARISED = ("dice_change", "displacement_median_mm", "displacement_p95_mm", "through_plane_reference",
              "through_plane_synthetic", "of_source_reference", "of_source_synthetic")


def main(argv=None):
    synthesize(parse(Config, PRESETS, argv, __doc__.splitlines()[0], by="arm"))


@dataclass(frozen=True)
class Job:
    """One synthetic volume to be made."""
    working: Working                             # the reference
    domain: Domain
    shift: float
    strength: Strength                           # or NONE
    sample: int
    case: str

    @property
    def held_out(self):
        """Whether the image is made for its audit alone, of a patient that neither network was trained on."""
        return self.working.record.split == "Validation"


def synthesize(c):
    """Make every missing volume of the set, then the manifest."""
    synthesis = Synthesis(c)                                      # what does not fit is found before the long work
    out, workings = synthesis.out, synthesis.workings
    made = over_volumes(synthesis, Synthesis, c, processes=1)
    earlier = sum(row["segmenter"] != synthesis.segmenter.hash for row in made)
    if earlier:
        print(f"note: {out}: {earlier} of {len(made)} images were audited by another segmenter than {c.segmenter}; "
              "delete the folder to have all audited by this one", flush=True)
    rows, held_out = ([row for row, job in zip(made, synthesis.jobs) if job.held_out == is_held_out]
                      for is_held_out in (False, True))
    kept = [row for row in rows if row["kept"]]
    if c.arm == "dg":
        _report_pairs(out, rows, kept, {w.record.case: w for w in workings})
        write_csv(out / "held_out.csv", held_out, COLUMNS)
        _print_summary(f"{out.name}, held-out patients", held_out)
        _report_samples(synthesis)
    draw_long_axes(out, c.arm, workings, kept)
    write_dataset_json(out, synthesis.segmenter.structures, len(kept) if c.arm == "dg" else 0)
    write_csv(out / "manifest.csv", rows, COLUMNS, sealed=True)
    _print_summary(out.name, rows)


class Synthesis:
    """What makes images and what they are judged by; one image at a time, made unless an earlier run has made it."""

    def __init__(self, c):
        shifts, strengths = _checked(c)
        self.c, self.device = c, pick_device(c.device)
        grid, source = Grid(c.spacing_mm, c.size), Domain.parse(c.source)
        self.sd_dm = SourceModel.load(c.diffusion, self.device)
        self.segmenter = Segmenter.load(c.segmenter, self.device)
        require_part(c.diffusion, self.sd_dm.settings, c)
        require_part(c.segmenter, self.segmenter.settings, c)
        records = studies_of(c)
        own, _ = fully_labelled(prepare(in_role(records, source, "Training", labelled_only=True), grid, c.work))
        if self.segmenter.settings["train_on"] == "real":
            require_trained_on(c.segmenter, self.segmenter.data_hash, own)
        frames = studies_of(c, all_frames=True)
        self.trained_on = prepare(in_role(frames, source, "Training"), grid, c.work)
        require_trained_on(c.diffusion, self.sd_dm.data_hash, self.trained_on)
        unseen = [r for r in source.select(frames) if r.split == "Validation"] if c.arm == "dg" else []
        self.held_out = prepare(unseen, grid, c.work)
        domain_of = _training_references(records, source) if c.arm == "dg" else _test_volumes(c, records, source)
        _require_fitting(c, domain_of, strengths, self.sd_dm, self.segmenter)

        self.out = writable_folder(c.out, c.data)
        _keep_settings(c, self.out, self.sd_dm, shifts, strengths)
        self.workings = own if c.arm == "dg" else prepare(list(domain_of), grid, c.work)
        judged, _ = fully_labelled(self.held_out)
        domain_of.update({w.record: source for w in judged})
        self.jobs = _jobs(c, [*self.workings, *judged], domain_of, strengths, shifts)
        _require_no_others(self.out, self.jobs)
        self._what_classifiers_see = c, source, records, grid, own

    @functools.cached_property
    def classifiers(self):
        """{domain: SourceClassifier}; trained when the first image is made."""
        return _classifiers(*self._what_classifiers_see)

    def volume(self, index):
        """Manifest row of one image."""
        job = self.jobs[index]
        item = self.out / "items" / f"{job.case}.json"
        row = _read_item(item)
        if row is None:
            row = _make(self, job)
            write_sealed_json(item, row)
        require_references(self.out, [row], [job.working])
        return row


def _checked(c):
    """(shifts, strengths) of the settings; raises UsageError for what does not fit the arm."""
    if c.arm == "da" and not c.target:
        raise UsageError("--arm da: give the target domains with --target, e.g. Vendor=B,C,D")
    try:
        shifts = [float(text) for text in c.shift.split(";")]
    except ValueError as error:
        raise UsageError(f"--shift {c.shift!r}: use numbers, separated by ';'") from error
    if not all(0 <= shift <= 5 for shift in shifts):
        raise UsageError(f"--shift {c.shift!r}: use 0 to 5; 1 is about as far as another vendor")
    return shifts, [parse_strength(text) for text in c.strength.split(";")]


def _training_references(records, source):
    """{reference: its domain} of DG: the source's labelled training volumes."""
    return dict.fromkeys(in_role(records, source, "Training", labelled_only=True), source)


def _test_volumes(c, records, source):
    """{volume: its domain} of DA: the test volumes of the source and of every target."""
    targets, domain_of = Domain.parse(c.target).each(), {}
    require_apart(records, source, targets)
    for domain in (source, *targets):
        domain_of.update(dict.fromkeys(in_role(records, domain, "Testing"), domain))
    return domain_of


def _require_fitting(c, domain_of, strengths, sd_dm, segmenter):
    """Raise UsageError for a strength that the model or grid does not have, or a test subject it was trained on."""
    for strength in strengths:
        if strength == NONE:
            continue
        if strength.t0 > sd_dm.schedule.T:
            raise UsageError(f"strength {strength}: t0 exceeds the model's T = {sd_dm.schedule.T}")
        if strength.low_pass and c.size % strength.low_pass:
            raise UsageError(f"strength {strength}: low_pass does not divide the {c.size} pixels of the grid")
    if c.arm == "da":
        require_unseen(domain_of, segmenter.subjects, c.segmenter)
        require_unseen(domain_of, sd_dm.subjects, c.diffusion)


def _keep_settings(c, out, sd_dm, shifts, strengths):
    """Write config.json, defaults resolved; raise CheckpointError where a set of other settings has been begun."""
    own = {name: value for name, value in asdict(c).items() if name not in ("diffusion", "segmenter")}
    resolved = {"shifts": shifts, "strengths": list(map(str, strengths))}
    settings = {**own, **resolved, "sd_dm": sd_dm.hash}
    path = out / "config.json"
    if path.exists():
        checkpoint.require_settings(path, read_json(path), settings)
    if ranks.is_first():
        write_json(path, settings)


def _require_no_others(out, jobs):
    """Raise CheckpointError if the set holds an image that is not asked for now, as of a study of another split."""
    made = {path.stem for path in (out / "items").glob("*.json") if not path.name.startswith(".")}
    others = sorted(made - {job.case for job in jobs})
    if others:
        raise CheckpointError(f"{out}: holds {others[0]}, which is not to be made now ({len(others)} such); "
                              f"delete {out} and make it again")


def _jobs(c, workings, domain_of, strengths, shifts):
    """Every image of every reference.  DG's samples take the strengths in turn; DA makes each with every strength."""
    if c.arm == "dg":
        made = [(n, strengths[n % len(strengths)]) for n in range(c.samples)]
    else:
        made = [(n, strength) for strength in strengths for n in range(c.samples)]
    jobs = []
    for w in workings:
        for number, (sample, strength) in enumerate(made):
            shift = shifts[sample % len(shifts)]
            jobs.append(Job(w, domain_of[w.record], shift, strength, sample, f"{w.record.case}_s{number}"))
    return jobs


def _classifiers(c, source, records, grid, own):
    """{domain: SourceClassifier}, the source's training volumes against what is known of a domain without labels.

    For DA its validation volumes; the source has none, as it is no other domain.  DG knows no target: there the others
    are the same volumes with their look changed.
    """
    own = [np.asarray(w.image) for w in own]
    if c.arm == "dg":
        streams = [rng(c.seed, "classifier", i) for i in range(len(own))]
        return {source: SourceClassifier.fit(own, [random_shift(x, c.spacing_mm, g) for x, g in zip(own, streams)])}
    classifiers = {}
    for domain in Domain.parse(c.target).each():
        unlabelled = [r for r in domain.select(records) if r.split == "Validation"]
        if unlabelled:
            others = [np.asarray(w.image) for w in prepare(unlabelled, grid, c.work)]
            classifiers[domain] = SourceClassifier.fit(own, others)
    return classifiers


def _read_item(path):
    """The manifest row of an image that was made before, or None; a damaged one is made again, and said."""
    row = read_sealed_json(path)
    if row is None and path.exists():
        print(f"note: {path}: damaged; its image is made again", flush=True)
    return row


def _make(synthesis, job):
    """Make, audit and write one synthetic volume; return its manifest row."""
    c, working, record = synthesis.c, job.working, job.working.record
    reference, given, redrawn = np.asarray(working.image), np.asarray(working.image), 0
    if job.shift:
        given = random_shift(reference, c.spacing_mm, rng(c.seed, "shift", record.case, job.sample), job.shift)
    image = given
    if job.strength != NONE:
        seed = c.seed, record.subject, job.sample
        image, redrawn = translate(synthesis.sd_dm, given, c.spacing_mm, job.strength, *seed)
    given, image = (from_integers(as_integers(x)) for x in (given, image))           # audited as it will be read
    row = {"case": job.case, "subject": record.subject, "phase": record.phase, "sample": job.sample,
           "domain": str(job.domain), "vendor": record.vendor, "centre": record.centre, "pathology": record.pathology,
           "split": record.split, "reference": record.case, "reference_content": working.content[:16],
           "shift": job.shift, "strength": str(job.strength), "seed": c.seed, "sd_dm": synthesis.sd_dm.hash,
           "segmenter": synthesis.segmenter.hash, "redrawn": redrawn}
    may_be_excluded = c.arm == "dg" and job.strength != NONE
    row.update(audit(synthesis.segmenter, synthesis.classifiers.get(job.domain), working, given, image,
                     knows_mask=c.arm == "dg", may_be_excluded=may_be_excluded))
    if not job.held_out:
        write_pair(c.out, c.arm, row, image, working, synthesis.segmenter.structures)
    return row


def _report_pairs(out, rows, kept, workings):
    """Say and draw which pairs fit; raises DataError if none does."""
    excluded = [row for row in rows if not row["kept"]]
    names = ", ".join(row["case"] for row in excluded) or "none"
    print(f"{out.name}: {len(kept)} of {len(rows)} pairs kept; excluded, as they no longer fit their mask: {names}")
    if not kept:
        raise DataError(f"{out}: not one of {len(rows)} synthetic images fits its mask; train the diffusion model "
                        "longer or choose a weaker --strength")
    draw_worst(out / "worst_kept.png", out, kept, workings)
    draw_worst(out / "worst_excluded.png", out, excluded, workings)


def _report_samples(synthesis):
    """Say whether the SD-DM has learnt the source; not of a set that it took no part in."""
    if all(job.strength == NONE for job in synthesis.jobs):
        return
    slices = [np.concatenate([w.image for w in pool]) if pool else np.zeros((0, 1, 1))
              for pool in (synthesis.trained_on, synthesis.held_out)]
    spacing_mm = synthesis.trained_on[0].spacing_mm
    row = audit_samples(synthesis.sd_dm, synthesis.segmenter, *slices, spacing_mm, synthesis.c.seed)
    write_csv(synthesis.out / "sd_dm.csv", [row], SAMPLE_COLUMNS)
    print(f"{synthesis.out.name}: Fréchet distance to held-out source slices: {row['frechet_samples']:.3g} from "
          f"{row['samples']} samples of the diffusion model, {row['frechet_training']:.3g} from as many training "
          f"slices (ratio {row['frechet_ratio']:.2f}, ideally 1); {row['copies']} samples are copies")


def _print_summary(what, rows):
    """Mean, SD and worst of each audit figure."""
    for name in SUMMARISED:
        values = np.array([row[name] for row in rows if row.get(name) is not None and np.isfinite(row[name])])
        if len(values):
            worst = values.max() if name.startswith("displacement") else values.min()
            print(f"{what}: {name} mean {values.mean():.3f}, SD {values.std():.3f}, worst {worst:.3f} "
                  f"(n {len(values)})")


if __name__ == "__main__":
    run_script(main)
