"""Segment every domain's test studies with every (network, training data, test input), measure, test, write the report."""
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cmr import baselines, checkpoint
from cmr.config import DataConfig, DataError, UsageError, opt, parse, run_script
from cmr.metrics import measure
from cmr.parallel import over_volumes
from cmr.report import ARMS, METRIC_COLUMNS, Example, write_report
from cmr.segment import Segmenter, labels_on_original, softmax
from cmr.studies import STRUCTURES, Domain, find, in_role, labelled, require_unseen, split_by_subject
from cmr.synthesize import DEFAULT_STRENGTH
from cmr.training import pick_device, rng
from cmr.translate import NONE, SourceModel, Strength, read_choice
from cmr.volumes import Grid, at_same_height, labels_of, load, prepare, write_like


@dataclass(frozen=True)
class Config(DataConfig):
    target: str    = opt("Vendor=B,C,D", "target domains; each value is reported by itself")
    run: str       = opt("", "folder of the experiment, with diffusion/, segmenter-*/, choice/ and da/")
    segmenters: str = opt("vanilla-real,vanilla-synthetic", "which are compared, as network-trainingset; the real one of each network is its baseline")
    fixed: str     = opt(DEFAULT_STRENGTH["da"], "strength of the rows that translate every domain alike, one that da/ was made with")
    all_inputs_of: str = opt("vanilla,nnunet2d,nnunet3d", "networks whose secondary rows are measured too: DA fixed, DG + DA and the cheap baselines")
    out: str       = opt("runs/results", "folder of metrics.csv, tests.csv, report.md, figures and predictions")
    processes: int = opt(0, "volumes at a time; does not change the result; 0: one for each core, or 1 on a GPU")


PRESETS = {"tiny": dict(all_inputs_of="vanilla"), "demo": dict(all_inputs_of="vanilla"), "paper": dict(size=128, spacing_mm=1.5)}


class Evaluation:
    """Everything that is compared, and one test volume at a time through all of it."""

    def __init__(self, c):
        self.c, self.device, self.out, run = c, pick_device(c.device), Path(c.out), Path(c.run)
        self.model = SourceModel.load(run / "diffusion" / "final.pt", self.device)
        self.fixed = str(Strength.parse(c.fixed))
        self.segmenters = {tuple(name.split("-", 1)): Segmenter.load(run / f"segmenter-{name}" / "final.pt", self.device) for name in c.segmenters.split(",")}
        self.networks = list(dict.fromkeys(network for network, _ in self.segmenters))
        without = [network for network in self.networks if (network, "real") not in self.segmenters]
        if without:
            raise UsageError(f"--segmenters: {without[0]}-real is missing, which the others are compared with")
        source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        records = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
        self.domains = [source, *Domain.parse(c.target).each()]
        self.compared = [(network, arm) for network in self.networks for arm in ARMS if all((network, self.training_set(arm, d)) in self.segmenters for d in self.domains)
                         and (not arm.secondary or network in c.all_inputs_of.split(","))]
        unused = set(self.segmenters) - {(network, self.training_set(arm, d)) for network, arm in self.compared for d in self.domains}
        if unused:
            raise UsageError(f"--segmenters: {'-'.join(min(unused))} belongs to no row of the table; an upper bound needs a network of every target")
        self.styles = prepare(in_role(records, source, "Training", labelled_only=True), grid, c.work)
        self.choice = read_choice(run / "choice" / "choice.json", self.domains, self.networks)
        samples = prepare(find(run / "da"), grid, c.work)                        # their metadata are the rows of the manifest
        stale = {sample.record.metadata["sd_dm"] for sample in samples} - {self.model.hash}
        if stale:
            raise checkpoint.CheckpointError(f"{run / 'da'}: translated by another diffusion model ({stale.pop()}); delete it and run cmr.synthesize again")
        self.translated_of = {}                                                  # (case, strength) -> images
        for sample in samples:
            key = sample.record.metadata["reference"], str(Strength.parse(sample.record.metadata["strength"]))
            self.translated_of.setdefault(key, []).append(np.asarray(sample.image))
        self.jobs, self.structures = [], {}                                      # (domain, working volume); structures to measure in a domain
        trained = self.segmenters[self.networks[0], "real"].structures
        for domain in self.domains:
            workings = [w for w in prepare(in_role(records, domain, "Testing", labelled_only=True), grid, c.work) if w.label is not None]
            self.structures[domain] = [s for s in labelled(workings) if s in trained]
            if not self.structures[domain]:
                raise DataError(f"{c.data}: {domain} labels none of {', '.join(trained)}; nothing can be measured there")
            wanted = {self.fixed, *(self.translation(domain, network) for network in self.networks)} - {"raw"}
            absent = [w.record.case for w in workings for strength in wanted if (w.record.case, strength) not in self.translated_of]
            if absent:
                raise DataError(f"{run / 'da'}: no translation of {absent[0]}; run cmr.synthesize --arm da again")
            self.jobs += [(domain, w) for w in workings]
        for (network, trained_on), segmenter in self.segmenters.items():
            require_unseen([w.record for _, w in self.jobs], segmenter.subjects, f"{network}-{trained_on}")

    def training_set(self, arm, domain):
        """What the segmenter of a row was trained on; an upper bound has one for each domain, on the source the baseline."""
        if arm.trained_on != "target":
            return arm.trained_on
        return "real" if domain is self.domains[0] else domain.file_name

    def test_inputs(self, working):
        """{input name: list of working images (D, H, W)}; the softmax is averaged over a list.

        FDA and the swap take their low frequencies from a source training volume, drawn by the name of the case.
        """
        image = np.asarray(working.image)
        style = at_same_height(self.styles[rng("style", working.record.case).integers(len(self.styles))].image, len(image))
        slicewise = lambda f: np.stack([f(x, y) for x, y in zip(image, style)])
        return {"raw": [image], "matched": [baselines.match_quantiles(image, self.model.quantiles)], "fda": [slicewise(baselines.fda)],
                "swap": [slicewise(lambda x, y: baselines.low_pass_swap(x, y, working.geometry.grid[0]))],
                **{strength: images for (case, strength), images in self.translated_of.items() if case == working.record.case}}

    def translation(self, domain, network):
        """The test input that was chosen for a domain and a network; `raw` where nothing is worth a translation."""
        text = self.choice[str(domain)][network]
        return "raw" if text == NONE else str(Strength.parse(text))

    def volume(self, index):
        """(rows of metrics.csv, Example) of one test volume; writes its predictions on the original grid."""
        domain, working = self.jobs[index]
        record, inputs = working.record, self.test_inputs(working)
        _, truth, nifti, _ = load(record)
        diagonal_mm = float(np.linalg.norm(np.multiply(truth.shape, nifti.spacing_mm)))
        rows, found, seen = [], {}, {}
        for network, arm in self.compared:
            name = {"translated": self.translation(domain, network), "fixed": self.fixed}.get(arm.test_input, arm.test_input)
            key = network, self.training_set(arm, domain), name                  # two rows that see the same are computed once
            if key not in seen:
                seen[key] = self.segmented(self.segmenters[key[:2]], inputs[name], working, truth, nifti, self.structures[domain])
            found[network, arm.name], labels, metrics = seen[key]
            write_like(self.out / "predictions" / network / arm.key / f"{record.case}.nii.gz", labels, nifti)
            rows += [{"domain": str(domain), "role": "source" if domain is self.domains[0] else "target", "subject": record.subject, "phase": record.phase,
                      "vendor": record.vendor, "pathology": record.pathology, "structure": structure, "network": network, "arm": arm.name,
                      "trained_on": arm.trained_on, "test_input": arm.test_input, "diagonal_mm": diagonal_mm, **measured} for structure, measured in metrics.items()]
        return rows, Example(record.case, np.asarray(working.image), inputs[self.fixed][0], np.asarray(working.label), found)

    @staticmethod
    def segmented(segmenter, images, working, truth, nifti, structures):
        """(labels on the working grid, labels on the original grid, {structure: metrics}) of one segmenter; its softmax is averaged over `images`."""
        logits = [segmenter.logits(image, working.spacing_mm) for image in images]
        labels = labels_on_original(logits, working.geometry)
        value = lambda structure: STRUCTURES.index(structure) + 1
        metrics = {s: measure(labels.transpose(2, 1, 0) == value(s), truth.transpose(2, 1, 0) == value(s), nifti.spacing_mm[::-1]) for s in structures}
        return labels_of(np.mean([softmax(sample) for sample in logits], 0)), labels, metrics


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__)
    out = checkpoint.writable_folder(c.out)
    evaluation = Evaluation(c)                                                   # what is missing is found before the long work
    results = over_volumes(evaluation, Evaluation, c, c.processes)
    rows = [row for found, _ in results for row in found]
    examples = {str(domain): [example for (d, _), (_, example) in zip(evaluation.jobs, results) if d is domain] for domain in evaluation.domains}
    checkpoint.write_csv(out / "metrics.csv", rows, METRIC_COLUMNS)
    write_report(out, rows, examples, str(evaluation.domains[0]), Path(c.run), asdict(c))


if __name__ == "__main__":
    run_script(main)
