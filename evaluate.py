"""Segment every domain's test studies with every (network, training data, test input), measure, test, write the report.

    test volume -> its inputs (raw, translated, matched, ...) -> segmenters -> labels on the original grid -> metrics
    metrics of all volumes -> metrics.csv, tests.csv, report.md
"""
import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cmr.checkpoint import provenance, require_made_by, require_part, require_references, require_trained_on
from cmr.comparison import METRIC_COLUMNS, distinct
from cmr.errors import DataError, run_script
from cmr.experiment import ARMS, BASELINE, PRIMARY_ARMS, rows_to_measure, training_set
from cmr.files import writable_folder, write_csv
from cmr.grid import Grid, at_same_height
from cmr.look import fda, match_quantiles, padded_as
from cmr.metrics import measure
from cmr.network import softmax
from cmr.nifti import read_volume, without_words, write_like
from cmr.pictures import Example
from cmr.records import STRUCTURES, VALUES, Domain, labelled, labels_of
from cmr.report import write_report
from cmr.sampler import GUIDED, NONE, PROJECTED, SourceModel, parse_strength
from cmr.seeds import rng
from cmr.segmenter import NETWORKS, Segmenter, labels_on_original, split_name
from cmr.settings import GRIDS, DataConfig, at_least, opt, parse, required, some_of
from cmr.studies import UNSEEN, in_role, left_out, pseudonyms, require_apart, require_unseen, studies_of
from cmr.synthetic_set import find_set, read_manifest
from cmr.workers import over_volumes, pick_device
from cmr.working import fully_labelled, prepare, with_labels


@dataclass(frozen=True)
class Config(DataConfig):
    target: str        = opt("Vendor=B,C,D", "target domains; each value is reported by itself")
    run: str           = opt("", "folder of the experiment, with diffusion/, segmenter-*/ and da/",
                             required("the folder of an experiment"))
    segmenters: str    = opt("vanilla-real,vanilla-synthetic", "which are compared, as network-trainingset; the real "
                                                               "one of each network is its baseline")
    projected: str     = opt(PROJECTED["demo"], "strength of the rows DA, which da/ was made with")
    guided: str        = opt(GUIDED["demo"], "strength of the rows DA, guided, which da/ was made with")
    every_row_of: str  = opt("", "networks with which DG + DA and the cheap baselines are measured too; empty: the "
                                 "first", some_of(*NETWORKS))
    out: str           = opt("runs/results", "folder of metrics.csv, tests.csv, report.md, figures and predictions")
    pseudonyms: bool   = opt(False, "write numbers in place of patients' identifiers, and their key to a file beside "
                                    "--out that is not to be shared")
    processes: int     = opt(0, "volumes at a time; does not change the result; 0: one for each core, or 1 on a GPU",
                             at_least(0))


PRESETS = {preset: dict(**grid, projected=PROJECTED[preset], guided=GUIDED[preset]) for preset, grid in GRIDS.items()}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    out = writable_folder(c.out, c.data)
    evaluation = Evaluation(c)                                    # checks everything before the long work
    results = over_volumes(evaluation, Evaluation, c, c.processes)
    rows, examples, labelled_in = [], {str(domain): [] for domain in evaluation.domains}, {}
    for (domain, _), (measured, example) in zip(evaluation.jobs, results):
        rows += measured
        examples[str(domain)].append(example)
        labelled_in[str(domain), example.case] = distinct(measured, "structure")
    delete_earlier_predictions(out / "predictions", evaluation.compared, {case for _, case in labelled_in})
    unused = [*left_out(c.data, c.use_unlabeled_masks), *evaluation.left_out]
    if unused and c.pseudonyms:                                   # the reasons name files
        unused = [(f"{len(unused)} volumes or studies", "`make check` names them")]
    write_csv(out / "metrics.csv", rows, METRIC_COLUMNS)
    write_report(out, rows, examples, str(evaluation.source), Path(c.run), asdict(c), evaluation.made_of(),
                 [*unused, *not_measured(labelled_in)])
    if c.pseudonyms:
        key = [{"pseudonym": number, "subject": subject} for subject, number in evaluation.names.items()]
        write_csv(f"{out}-key-NOT-TO-BE-SHARED.csv", key, ("pseudonym", "subject"))


def delete_earlier_predictions(folder, compared, cases):
    """Delete the predictions that an evaluation of other rows or other cases has left, and nothing else."""
    for network in NETWORKS:
        for arm in ARMS:
            for path in (folder / network / arm.key).glob("*.nii.gz"):
                if (network, arm) not in compared or path.name.removesuffix(".nii.gz") not in cases:
                    path.unlink()


def not_measured(labelled_in):
    """[(case, why)] from {(domain, case): its structures}, where others of the domain label a structure too."""
    found = []
    for (domain, case), there in labelled_in.items():
        of_domain = {name for (other, _), names in labelled_in.items() if other == domain for name in names}
        lacking = [name for name in STRUCTURES if name in of_domain - set(there)]
        if lacking:
            found.append((case, f"{', '.join(lacking)} not labelled: not measured there"))
    return found


class Evaluation:
    """Everything that is compared; `volume` takes one test volume through all of it."""

    def __init__(self, c):
        self.c, self.device, self.out, run = c, pick_device(c.device), Path(c.out), Path(c.run)
        self.source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        self.domains = [self.source, *Domain.parse(c.target).each()]
        self.strengths = {"raw": NONE, "projected": parse_strength(c.projected), "guided": parse_strength(c.guided)}
        names = c.segmenters.split(",")
        self.compared = rows_to_measure(names, self.domains, c.every_row_of)
        self.model = SourceModel.load(run / "diffusion" / "final.pt", self.device)
        self.segmenters = {name: Segmenter.load(run / f"segmenter-{name}" / "final.pt", self.device) for name in names}

        records = studies_of(c)
        self.names = pseudonyms(records) if c.pseudonyms else {}
        self.left_out = []                                        # [(case, why)] of what is not trained on or measured
        require_apart(records, self.source, self.domains[1:], UNSEEN)
        self._require_parts(records, grid)
        self.styles = prepare(in_role(records, self.source, "Training", labelled_only=True), grid, c.work)
        self.trained = [name for name in STRUCTURES if all(name in s.structures for s in self.segmenters.values())]
        self.jobs, shared = [], set(self.trained)                 # [(domain, working volume)]; what all domains label
        for domain in self.domains:
            tested = prepare(in_role(records, domain, "Testing", labelled_only=True), grid, c.work)
            self.left_out += [(w.record.case, "its mask is all zero") for w in tested if w.label is None]
            shared &= set(labelled(tested))
            if not shared:
                raise DataError(f"{c.data}: {domain} labels no structure that every network was trained on and the "
                                "domains before it label; nothing can be compared")
            self.jobs += [(domain, w) for w in with_labels(tested)]
        workings = [w for _, w in self.jobs]
        self.translated_of = self._translations(run / "da", workings, grid)
        for name, segmenter in self.segmenters.items():
            require_unseen([w.record for w in workings], segmenter.subjects, name)

    def _require_parts(self, records, grid):
        """Raise CheckpointError for a model of another grid, source or data than this experiment's."""
        folder = Path(self.c.run)
        require_part(folder / "diffusion" / "final.pt", self.model.settings, self.c)
        for name in ("dg", "da"):
            require_made_by(folder / name, {row["sd_dm"] for row in read_manifest(folder / name, ("sd_dm",))},
                            self.model.hash)
        own_domain = {domain.file_name: domain for domain in self.domains}           # of upper bounds
        training = {}                                             # {domain: volumes}, read once for all networks
        for name, segmenter in self.segmenters.items():
            path = folder / f"segmenter-{name}" / "final.pt"
            own = own_domain.get(split_name(name)[1], self.source)
            require_part(path, segmenter.settings, self.c, str(own))
            require_made_by(path, segmenter.made_by, self.model.hash)
            if segmenter.settings["train_on"] == "real":
                if own not in training:
                    volumes = in_role(records, own, "Training", labelled_only=True)
                    training[own], left_out_there = fully_labelled(prepare(volumes, grid, self.c.work))
                    self.left_out += left_out_there
                require_trained_on(path, segmenter.data_hash, training[own])

    def _translations(self, folder, tested, grid):
        """{case: {Strength: image}} of the test volumes, from DA's set; UserError if one lacks or was edited since."""
        images = {w.record.case: {} for w in tested}
        records = [record for record in find_set(folder) if record.metadata["reference"] in images]
        require_references(folder, [record.metadata for record in records], tested)
        for sample in prepare(records, grid, self.c.work):
            row = sample.record.metadata
            images[row["reference"]][parse_strength(row["strength"])] = np.asarray(sample.image)
        wanted = set(self.strengths.values()) - {NONE}
        lacking = [case for case, made in images.items() if not wanted <= made.keys()]
        if lacking:
            raise DataError(f"{folder}: no translation of {lacking[0]}; run cmr.synthesize --use da again")
        return images

    def made_of(self):
        """Provenance of the results: hashes of the models and of their data."""
        models = {"SD-DM": self.model, **self.segmenters}
        parts = {name: (model.hash, f"{len(model.subjects)} patients, content {model.data_hash}")
                 for name, model in models.items()}
        return provenance(self.c.data, [w for _, w in self.jobs], parts)

    def images(self, working):
        """{name or Strength: image (D, H, W)}, all members of test inputs; seed and case draw FDA's style image."""
        image, case = np.asarray(working.image), working.record.case
        drawn = rng(self.c.seed, "style", case).integers(len(self.styles))
        style = at_same_height(self.styles[drawn].image, len(image))
        return {**self.translated_of[case], NONE: image,
                "matched": match_quantiles(image, self.model.quantiles),
                "fda": padded_as(image, np.stack([fda(x, y, self.c.spacing_mm) for x, y in zip(image, style)]))}

    def volume(self, index):
        """(rows of metrics.csv, Example) of one test volume; writes its predictions on the original grid."""
        domain, working = self.jobs[index]
        _, truth, nifti, _ = read_volume(working.record)
        record, images = working.record, self.images(working)
        if self.c.pseudonyms:
            record, nifti = replace(record, subject=self.names[record.subject]), without_words(nifti)
        structures = [name for name in self.trained if (truth == VALUES[name]).any()]
        common = {"domain": str(domain), "role": "source" if domain == self.source else "target",
                  "subject": record.subject, "phase": record.phase, "vendor": record.vendor,
                  "pathology": record.pathology,
                  "diagonal_mm": float(np.linalg.norm(np.multiply(truth.shape, nifti.spacing_mm)))}

        @functools.cache                                          # members stand in several test inputs
        def logits(segmenter, member):
            return self.segmenters[segmenter].logits(images[member], working.spacing_mm)

        @functools.cache                                          # on the source the upper bound is the baseline
        def result(segmenter, test_input):
            of_each = [logits(segmenter, self.strengths.get(name, name)) for name in test_input.split("+")]
            return labelled_and_measured(of_each, working, truth, nifti, structures)

        rows, found = [], {}
        for network, arm in self.compared:
            segmenter = f"{network}-{training_set(arm, domain, self.source)}"
            on_working, labels, metrics = result(segmenter, arm.test_input)
            if network == self.compared[0][0] and arm.name in (BASELINE, *PRIMARY_ARMS):      # drawn
                found[arm.name] = on_working
            write_like(self.out / "predictions" / network / arm.key / f"{record.case}.nii.gz", labels, nifti)
            of_row = {"network": network, "arm": arm.name, "trained_on": arm.trained_on, "test_input": arm.test_input}
            rows += [{**common, **of_row, "structure": structure, **figures} for structure, figures in metrics.items()]
        image, translated = np.asarray(working.image), images[self.strengths["projected"]]
        return rows, Example(record.case, image, translated, np.asarray(working.label), found)


def labelled_and_measured(logits, working, truth, nifti, structures):
    """(labels on the working grid, on the original grid, {structure: metrics}) from a list of logits (4, D, H, W)."""
    labels = labels_on_original(logits, working.geometry)
    on_working = labels_of(np.mean([softmax(of_one) for of_one in logits], 0))
    to_dhw = lambda array: array.transpose(2, 1, 0)
    metrics = {}
    for name in structures:
        pred, ref = to_dhw(labels == VALUES[name]), to_dhw(truth == VALUES[name])
        metrics[name] = measure(pred, ref, nifti.spacing_mm[::-1])
    return on_working, labels, metrics


if __name__ == "__main__":
    run_script(main)
