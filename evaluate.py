"""Segment every domain's test studies with every (training data, test input), measure, test, write the report."""
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmr import baselines, checkpoint
from cmr.config import DataConfig, DataError, opt, parse, run_script
from cmr.metrics import measure
from cmr.report import ARMS, METRIC_COLUMNS, write_report
from cmr.segment import Segmenter
from cmr.studies import STRUCTURES, Domain, find, in_role, labelled, split_by_subject
from cmr.training import pick_device, rng
from cmr.translate import SourceModel
from cmr.volumes import Grid, load, prepare, to_original, write_like


@dataclass(frozen=True)
class Config(DataConfig):
    target: str  = opt("Vendor=B,C,D", "target domains; each value is reported by itself")
    run: str     = opt("", "folder of the experiment, with diffusion/, segmenter-*/ and da/")
    network: str = opt("vanilla", "which segmenter")
    out: str     = opt("runs/results", "folder of metrics.csv, tests.csv, report.md, figures and predictions")


PRESETS = {"tiny": {}, "demo": {}, "paper": dict(size=128, spacing_mm=1.5)}


def test_inputs(working, model, styles, translated):
    """{input name: list of working images (D, H, W)}; the softmax is averaged over a list.

    styles : working volumes of source training subjects, one of which lends its low frequencies to FDA and the swap.
    """
    image = np.asarray(working.image)
    style = np.asarray(styles[rng("style", working.record.case).integers(len(styles))].image)
    at_same_height = style[np.round(np.linspace(0, len(style) - 1, len(image))).astype(int)]
    slicewise = lambda f: np.stack([f(x, y) for x, y in zip(image, at_same_height)])
    return {"raw": [image], "matched": [baselines.match_quantiles(image, model.quantiles)], "fda": [slicewise(baselines.fda)],
            "swap": [slicewise(lambda x, y: baselines.low_pass_swap(x, y, working.geometry.grid[0]))], "translated": translated}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__)
    device, run = pick_device(c.device), Path(c.run)
    out = checkpoint.writable_folder(c.out)

    # What is to be compared.
    model = SourceModel.load(run / "diffusion" / "final.pt", device)
    segmenters = {arm.trained_on: Segmenter.load(run / f"segmenter-{c.network}-{arm.trained_on}" / "final.pt", device) for arm in ARMS}
    source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
    records = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
    domains = [source, *Domain.parse(c.target).each()]
    styles = prepare(in_role(records, source, "Training", labelled_only=True), grid, c.work)
    translated_of = {}
    samples = prepare(find(run / "da"), grid, c.work)                        # their metadata are the rows of the manifest
    for sample in samples:
        translated_of.setdefault(sample.record.metadata["reference"], []).append(np.asarray(sample.image))
    stale = {sample.record.metadata["sd_dm"] for sample in samples} - {model.hash}
    if stale:
        raise checkpoint.CheckpointError(f"{run / 'da'}: translated by another diffusion model ({stale.pop()}); delete it and run cmr.synthesize again")

    # Every arm on every test volume, measured on the original grid.
    rows, examples = [], {}
    for domain in domains:
        workings = [w for w in prepare(in_role(records, domain, "Testing", labelled_only=True), grid, c.work) if w.label is not None]
        structures = [s for s in labelled(workings) if s in segmenters["real"].structures]
        if not structures:
            raise DataError(f"{c.data}: {domain} labels none of {', '.join(segmenters['real'].structures)}; nothing can be measured there")
        for working in tqdm(workings, disable=not sys.stderr.isatty(), desc=str(domain)):
            record = working.record
            if record.case not in translated_of:
                raise DataError(f"{run / 'da'}: no translation of {record.case}; run cmr.synthesize --arm da again")
            inputs = test_inputs(working, model, styles, translated_of[record.case])
            _, truth, nifti, _ = load(record)
            spacing_zyx = nifti.spacing_mm[::-1]
            found = {}
            for arm in ARMS:
                shares = np.mean([segmenters[arm.trained_on].probabilities(image) for image in inputs[arm.test_input]], 0)
                found[arm.name] = shares.argmax(0).astype(np.uint8)
                labels = to_original(shares, working.geometry)
                write_like(out / "predictions" / arm.key / f"{record.case}.nii.gz", labels, nifti)
                for structure in structures:
                    value = STRUCTURES.index(structure) + 1
                    metrics = measure(labels.transpose(2, 1, 0) == value, truth.transpose(2, 1, 0) == value, spacing_zyx)
                    rows.append({"domain": str(domain), "role": "source" if domain is source else "target", "subject": record.subject, "phase": record.phase,
                                 "vendor": record.vendor, "pathology": record.pathology, "structure": structure, "network": c.network, "arm": arm.name,
                                 "trained_on": arm.trained_on, "test_input": arm.test_input, "diagonal_mm": float(np.linalg.norm(np.multiply(truth.shape, nifti.spacing_mm))), **metrics})
            examples.setdefault(str(domain), []).append((working, inputs, found))
        print(f"{domain}: {len(workings)} volumes, {len({w.record.subject for w in workings})} patients", flush=True)
    checkpoint.write_csv(out / "metrics.csv", rows, METRIC_COLUMNS)
    write_report(out, rows, examples, str(source), run, asdict(c))


if __name__ == "__main__":
    run_script(main)
