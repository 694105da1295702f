"""Write the synthetic training set of DG or the translated test set of DA: `python -m cmr.synthesize --use dg|da`.

**DG**: every reference, a labelled training image of the source whose look is changed at random, is projected to the
source and keeps its mask.  **DA**: every test image is projected to the source, once for each strength.
`manifest.csv`, written last, has one row per image.  A pair that no longer fits its mask goes to `excluded/`.
For the audit alone, DG also makes images of the source's validation patients: `held_out.csv` has their figures, and
`sd_dm.csv` compares the diffusion model's samples with their slices.  An interrupted run makes only what is missing.
"""
from dataclasses import asdict, dataclass
from itertools import cycle

import numpy as np

from cmr import checkpoint
from cmr.audit import SourceClassifier, audit, audit_samples
from cmr.audit import COLUMNS as SAMPLE_COLUMNS
from cmr.checkpoint import require_part, require_references, require_trained_on
from cmr.errors import DataError, UsageError, run_script
from cmr.files import read_sealed_json, writable_folder, write_csv, write_sealed_json
from cmr.grid import Grid
from cmr.look import random_shift
from cmr.nifti import as_integers, from_integers
from cmr.records import Domain
from cmr.sampler import GUIDED, NONE, PROJECTED, SourceModel, Strength, parse_strength, translate
from cmr.seeds import rng
from cmr.segmenter import Segmenter
from cmr.settings import GRIDS, DataConfig, at_least, matching, one_of, opt, parse, required
from cmr.studies import UNSEEN, in_role, labelled_apart, require_apart, require_unseen, studies_of
from cmr.synthetic_set import COLUMNS, draw_worst, write_dataset_json, write_pair
from cmr.workers import over_volumes, pick_device
from cmr.working import Working, fully_labelled, prepare

_SHIFT = r" *([0-4](\.\d*)?|5(\.0*)?) *"         # a number from 0 to 5


@dataclass(frozen=True)
class Config(DataConfig):
    """Settings of one synthetic set."""
    use: str        = opt("dg", "dg: references with their masks, to train on; da: test studies of source and targets, "
                                "without", one_of("dg", "da"))
    target: str     = opt("", "target domains (da)")
    references: str = opt("", "domain whose labelled images are the references (dg); empty: the source, its training "
                              "studies")
    diffusion: str  = opt("", "final.pt of train_diffusion.py", required("a final.pt"))
    segmenter: str  = opt("", "final.pt of train_unet.py on real source data, for the audit", required("a final.pt"))
    shift: str      = opt("0", "how far the look of a reference is changed at random before it is projected (dg), 0: "
                               "not at all; several are taken in turn by the samples",
                          matching(f"{_SHIFT}(;{_SHIFT})*", "numbers from 0 to 5, separated by ';'"))
    strength: str   = opt(PROJECTED["demo"], "what is kept of the reference, none: all, nothing is projected; "
                                             "several, separated by ';': dg: are taken in turn by the samples, "
                                             "da: every image is made with each")
    samples: int    = opt(1, "synthetic images per reference (dg)", at_least(1))
    out: str        = opt("runs/synthetic", "folder of the dataset")


# DG: one sample near the source, one with a changed look; a larger change harms an nnU-Net, which augments by itself.
# DA: both ways to project.
SAMPLES = {"tiny": 1, "demo": 2, "small": 2, "lab": 2, "paper": 4}
PRESETS = {preset: {"dg": dict(grid, samples=SAMPLES[preset], shift="0;0.5", strength=PROJECTED[preset]),
                    "da": dict(grid, strength=f"{PROJECTED[preset]};{GUIDED[preset]}")}
           for preset, grid in GRIDS.items()}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0], by="use")
    kind = Generalisation if c.use == "dg" else Adaptation
    synthesis = kind(c)                                           # checks everything before the long work
    made = over_volumes(synthesis, kind, c, processes=1)
    rows, held_out = ([row for row, job in zip(made, synthesis.jobs) if job.held_out == held] for held in (False, True))
    synthesis.finish(rows, held_out)
    write_csv(synthesis.out / "manifest.csv", rows, COLUMNS, sealed=True)


@dataclass(frozen=True)
class Job:
    """One synthetic volume that is to be made."""
    reference: Working
    domain: Domain                               # domain of the reference
    sample: int
    shift: float                                 # how far the look is changed before projection
    strength: Strength                           # or NONE
    case: str
    held_out: bool = False                       # for the audit alone, of a patient that no network was trained on


class Synthesis:
    """What DG and DA have in common: the models, and one image at a time, made unless an earlier run made it."""

    def __init__(self, c):
        self.c, self.device = c, pick_device(c.device)
        self.shifts = [float(text) for text in c.shift.split(";")]
        self.strengths = [parse_strength(text) for text in c.strength.split(";")]
        self.source, self.grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        self.sd_dm = SourceModel.load(c.diffusion, self.device)
        self.segmenter = Segmenter.load(c.segmenter, self.device)
        require_part(c.diffusion, self.sd_dm.settings, c)
        require_part(c.segmenter, self.segmenter.settings, c)
        self.records, self.frames = studies_of(c), studies_of(c, all_frames=True)
        self.real, _ = fully_labelled(self.read(in_role(self.records, self.source, "Training", labelled_only=True)))
        if self.segmenter.settings["train_on"] == "real":
            require_trained_on(c.segmenter, self.segmenter.data_hash, self.real)
        self.learnt = self.read(in_role(self.frames, self.source, "Training"))
        require_trained_on(c.diffusion, self.sd_dm.data_hash, self.learnt)
        for strength in self.strengths:
            self.sd_dm.require_usable(strength)

    def read(self, records):
        """Return the working volumes of the records."""
        return prepare(records, self.grid, self.c.work)

    def jobs_of(self, references, domain, held_out=False):
        """Return the jobs of references of a domain; each is made in all `self.ways`, [(sample, shift, strength)]."""
        return [Job(reference, domain, *way, f"{reference.record.case}_s{number}", held_out)
                for reference in references for number, way in enumerate(self.ways)]

    def begin(self, jobs):
        """Open the set's folder; raises CheckpointError if it was begun with other settings."""
        c, self.jobs, self.out = self.c, jobs, writable_folder(self.c.out, self.c.data)
        settings = {name: value for name, value in asdict(c).items() if name not in ("diffusion", "segmenter")}
        settings.update(shifts=self.shifts, strengths=list(map(str, self.strengths)), sd_dm=self.sd_dm.hash,
                        audited_by=self.segmenter.hash)
        checkpoint.begin_with(self.out / "config.json", settings)

    def volume(self, index):
        """Return the manifest row of one image, which is made unless an earlier run has made it."""
        job = self.jobs[index]
        item = self.out / "items" / f"{job.case}.json"
        row = read_sealed_json(item)
        if row is None and item.exists():
            print(f"note: {item}: damaged; its image is made again", flush=True)
        if row is None:
            row = self.make(job)
            write_sealed_json(item, row)
        require_references(self.out, [row], [job.reference])
        return row

    def make(self, job):
        """Make, audit and write one synthetic volume; return its manifest row."""
        c, working, record = self.c, job.reference, job.reference.record
        sampler_input, redrawn = np.asarray(working.image), 0
        if job.shift:
            stream = rng(c.seed, "shift", record.case, job.sample)
            sampler_input = random_shift(sampler_input, c.spacing_mm, stream, job.shift)
        image = sampler_input
        if job.strength != NONE:
            seed = c.seed, record.subject, job.sample
            image, redrawn = translate(self.sd_dm, sampler_input, c.spacing_mm, job.strength, *seed)
        sampler_input, image = (from_integers(as_integers(x)) for x in (sampler_input, image))   # rounded as on disk
        row = {"case": job.case, "subject": record.subject, "phase": record.phase, "sample": job.sample,
               "domain": str(job.domain), "vendor": record.vendor, "centre": record.centre,
               "pathology": record.pathology, "split": record.split, "reference": record.case,
               "reference_content": working.content[:16], "shift": job.shift, "strength": str(job.strength),
               "seed": c.seed, "sd_dm": self.sd_dm.hash, "segmenter": self.segmenter.hash, "redrawn": redrawn}
        for_training = c.use == "dg"
        row.update(audit(self.segmenter, self.classifiers.get(job.domain), working, sampler_input, image,
                         knows_mask=for_training, may_be_excluded=for_training and job.strength != NONE))
        if not job.held_out:
            write_pair(c.out, c.use, row, image, working, self.segmenter.structures)
        return row


class Generalisation(Synthesis):
    """DG: labelled references, whose look is changed at random, are projected to the source and keep their masks."""

    def __init__(self, c):
        super().__init__(c)
        self.references, self.domain = self.real, self.source
        if c.references:
            self.domain = Domain.parse(c.references)
            self.references, _ = fully_labelled(self.read(labelled_apart(self.records, self.domain, [self.source])))
            if not self.references:
                raise DataError(f"{c.data}: the masks of all volumes of {self.domain} are zero, so that none can be a "
                                "reference; choose other --references or leave them out")
        self.unseen = self.read(in_role(self.frames, self.source, "Validation"))
        judged, _ = fully_labelled(self.unseen)
        self.ways = list(zip(range(c.samples), cycle(self.shifts), cycle(self.strengths)))
        self.begin([*self.jobs_of(self.references, self.domain), *self.jobs_of(judged, self.source, held_out=True)])
        # DG knows no target: the source is told from references of another domain, or from its own changed looks.
        others = [working.image for working in self.references]
        if self.domain == self.source:
            others = [random_shift(image, c.spacing_mm, rng(c.seed, "classifier", i)) for i, image in enumerate(others)]
        classifier = SourceClassifier([working.image for working in self.real], others, c.seed)
        self.classifiers = dict.fromkeys((self.source, self.domain), classifier)

    def finish(self, rows, held_out):
        """Print and draw which pairs fit, audit the SD-DM and write the dataset's description.

        rows : of the manifest.  held_out : rows of images of held-out patients.  Raises DataError if no pair fits.
        """
        kept, excluded = ([row for row in rows if bool(row["kept"]) == fits] for fits in (True, False))
        names = ", ".join(row["case"] for row in excluded) or "none"
        before, after = (np.nanmean([row[f"dice_{kind}"] for row in rows]) for kind in ("reference", "synthetic"))
        taken = np.mean([row["of_source_synthetic"] > 0.5 for row in rows])
        print(f"{self.out.name}: {len(kept)} of {len(rows)} pairs kept, mean Dice {before:.3f} before and {after:.3f} "
              f"after, {taken:.0%} taken for the source; excluded, as they no longer fit their mask: {names}")
        if not kept:
            raise DataError(f"{self.out}: not one of {len(rows)} synthetic images fits its mask; train the diffusion "
                            "model longer or choose a weaker --strength")
        draw_worst(self.out, "worst_kept.png", kept, self.references)
        draw_worst(self.out, "worst_excluded.png", excluded, self.references)
        write_csv(self.out / "held_out.csv", held_out, COLUMNS)
        if any(job.strength != NONE for job in self.jobs):
            self.audit_sd_dm()
        write_dataset_json(self.out, self.segmenter.structures, len(kept))

    def audit_sd_dm(self):
        """Write and print whether the SD-DM's samples are like slices of patients that it has not seen."""
        slices = [np.concatenate([w.image for w in pool]) for pool in (self.learnt, self.unseen)]
        row = audit_samples(self.sd_dm, self.segmenter, *slices, self.learnt[0].spacing_mm, self.c.seed)
        write_csv(self.out / "sd_dm.csv", [row], SAMPLE_COLUMNS)
        print(f"{self.out.name}: Fréchet distance to held-out source slices: {row['frechet_samples']:.3g} from "
              f"{row['samples']} samples of the diffusion model, {row['frechet_training']:.3g} from as many training "
              f"slices (ratio {row['frechet_ratio']:.2f}, ideally 1); {row['copies']} samples are copies")


class Adaptation(Synthesis):
    """DA: the test studies of the source and of every target, projected to the source with every strength."""

    def __init__(self, c):
        if not c.target:
            raise UsageError("--use da: give the target domains with --target, e.g. Vendor=B,C,D")
        if (c.samples, c.shift) != (1, "0"):
            raise UsageError("--use da: a test image is projected once with each --strength, as it is; leave out "
                             "--samples and --shift")
        super().__init__(c)
        targets = Domain.parse(c.target).each()
        require_apart(self.records, self.source, targets, UNSEEN)
        self.ways = [(0, 0.0, strength) for strength in self.strengths]
        jobs = []
        for domain in (self.source, *targets):
            tested = in_role(self.records, domain, "Testing")
            require_unseen(tested, self.segmenter.subjects, c.segmenter)
            require_unseen(tested, self.sd_dm.subjects, c.diffusion)
            jobs += self.jobs_of(self.read(tested), domain)
        self.begin(jobs)
        # The source is told from each target's validation volumes, if it has any; their masks are not used.
        real, self.classifiers = [working.image for working in self.real], {}
        for domain in targets:
            unseen = self.read([r for r in domain.select(self.records) if r.split == "Validation"])
            if unseen:
                self.classifiers[domain] = SourceClassifier(real, [working.image for working in unseen], c.seed)

    def finish(self, rows, held_out):
        write_dataset_json(self.out, self.segmenter.structures, n_training=0)


if __name__ == "__main__":
    run_script(main)
