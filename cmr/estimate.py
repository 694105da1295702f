"""What `make reproduce` will take here, measured before it starts: `make estimate`, or `python -m cmr.estimate`.

The phantom, the check, the images of DG's controls and the report are not counted.
"""
import contextlib
import io
import runpy
import shutil
import tempfile
import timeit
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr import synthesize
from cmr.errors import DataError, run_script
from cmr.experiment import flags_of_all, rows_to_measure
from cmr.files import read_csv, writable_folder, write_text
from cmr.grid import Grid
from cmr.metrics import measure
from cmr.nifti import read_volume
from cmr.records import VALUES, Domain
from cmr.segmenter import NETWORKS, Segmenter, labels_on_original, split_name
from cmr.settings import GRIDS, DataConfig, at_least, one_of, opt, parse, some_of
from cmr.studies import in_role, studies_of
from cmr.workers import cores, pick_device
from cmr.working import prepare, with_labels


@dataclass(frozen=True)
class Config(DataConfig):
    experiment: str = opt("demo", "preset of the experiment that is estimated; that of --preset", one_of(*GRIDS))
    target: str     = opt("Vendor=B,C,D", "target domains")
    references: str = opt("", "domain of DG's references; empty: the source")
    every_row_of: str = opt("", "networks whose secondary rows are measured too; empty: the first", some_of(*NETWORKS))
    segmenters: str = opt("vanilla-real,vanilla-synthetic", "all that are trained, as network-trainingset")
    jobs: int       = opt(1, "stages at a time", at_least(1))
    ranks: int      = opt(1, "GPUs that share each stage, as many times as fast", at_least(1))


PRESETS = {preset: dict(**grid, experiment=preset) for preset, grid in GRIDS.items()}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    print("making some steps of every training and some images of every set ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder, contextlib.redirect_stdout(io.StringIO()):
        stages = estimated(c, Path(folder))
    text = table(c, stages)
    print(text, flush=True)
    if c.out:
        write_text(writable_folder(c.out, c.data) / "estimate.md", text)


def estimated(c, run):
    """Measure all long stages and return [(stage, count, unit, seconds per unit)]; `run` is an empty working folder."""
    segmenters, scripts = [split_name(name) for name in c.segmenters.split(",")], Path(__file__).parent.parent
    script = runpy.run_path(f"{scripts}/train_diffusion.py")
    steps = script["Config"](**script["PRESETS"][c.experiment]).steps
    # The learning rate is next to 0, because a half-trained model makes flat images, which would be drawn again.
    flags = "--lr", "1e-9", "--sheet", "1", "--sheet-steps", "1"
    stages = [("diffusion", steps, "steps", step_seconds(c, script["main"], run / "diffusion", *flags))]
    script, of_network = runpy.run_path(f"{scripts}/train_unet.py"), {}
    for network in dict(segmenters):
        steps = script["Config"](**NETWORKS[network].presets[c.experiment]).steps
        flags = "--network", network, "--epoch-steps", "3", "--validation-batches", "1"
        of_network[network] = steps, "steps", step_seconds(c, script["main"], run / network, *flags)
    stages += [(f"{network}-{trained_on}", *of_network[network]) for network, trained_on in segmenters]

    models = "--diffusion", f"{run}/diffusion/final.pt", "--segmenter", f"{run}/{segmenters[0][0]}/final.pt"
    for use, kind, flags in (("dg", synthesize.Generalisation, ("--references", c.references)),
                             ("da", synthesize.Adaptation, ("--target", c.target))):
        argv = [*flags_of_all(c, c.work), "--device", c.device, "--use", use, *models, *flags, "--out", f"{run}/{use}"]
        synthesis = kind(parse(synthesize.Config, synthesize.PRESETS, argv, "", by="use"))
        n = len(synthesis.jobs)
        stages.append((use, n, "images", seconds_each(synthesis.volume, n) / c.ranks))
    return [*stages, evaluation(c, run, segmenters)]


def step_seconds(c, main, out, *flags):
    """Return the seconds per step of a training script, whose `main` makes some steps and writes out/final.pt."""
    for steps in (3, 30):                                         # 30 steps only if one takes less than a second
        shutil.rmtree(out, ignore_errors=True)
        agreed = *flags_of_all(c, c.work), "--device", c.device
        main([*agreed, "--steps", str(steps), "--log-every", "1", "--out", str(out), *flags])
        rows = read_csv(out / "log.csv", ("seconds_per_step",))
        # The first step warms up, and the last one's time may include the validation of an nnU-Net's epoch.
        seconds = float(np.median([float(row["seconds_per_step"]) for row in rows[1:-1]]))
        if seconds > 1:
            break
    return seconds / c.ranks


def evaluation(c, run, segmenters):
    """Return the entry of `estimated` for the stage that segments the test volumes and scores every row."""
    domains, records = [Domain.parse(c.source), *Domain.parse(c.target).each()], studies_of(c)
    tested = [r for domain in domains for r in in_role(records, domain, "Testing", labelled_only=True)]
    found = with_labels(prepare(tested, Grid(c.spacing_mm, c.size), c.work))             # read for DA, so cached
    if not found:
        raise DataError(f"{c.data}: the masks of all test volumes are zero; nothing can be measured")
    working = found[0]
    image, seconds = np.asarray(working.image), 0.0
    rows = rows_to_measure(c.segmenters.split(","), domains, c.every_row_of)
    seen = {(network, arm.trained_on, member) for network, arm in rows for member in arm.test_input.split("+")}
    for network in dict(segmenters):
        segmenter = Segmenter.load(run / network / "final.pt", pick_device(c.device))
        once_s = seconds_each(lambda i: segmenter.logits(image, working.spacing_mm), 3)
        seconds += once_s * sum(of == network for of, _, _ in seen)
    logits, (_, truth, nifti, _) = segmenter.logits(image, working.spacing_mm), read_volume(working.record)
    masks = [truth.transpose(2, 1, 0) == value for value in VALUES.values()]         # (X, Y, Z) -> (D, H, W)

    def score(i):
        labels_on_original([logits], working.geometry)
        for mask in masks:                                        # the scored segmentation is the truth, a pixel off
            measure(np.roll(mask, 1, axis=1), mask, nifti.spacing_mm[::-1])

    return "results", len(tested), "volumes", (seconds + seconds_each(score, 3) * len(rows)) / c.ranks


def seconds_each(make, n):
    """Return the mean seconds of make(1) and make(2); make(0) warms up and is taken if it needs a minute or n is 1."""
    times = []
    for i in range(min(3, n)):
        times.append(timeit.timeit(lambda: make(i), number=1))
        if times[0] > 60:
            break
    return float(np.mean(times[1:] or times))


def table(c, stages):
    lines = [f"Estimate for preset {c.experiment} on this machine ({pick_device(c.device)}, {cores()} cores):", "",
             "| stage | how many | seconds each | minutes |", "|---|---|---|---|"]
    for name, count, unit, each_s in stages:
        lines.append(f"| {name} | {count} {unit} | {each_s:.3g} | {count * each_s / 60:.1f} |")
    minutes = [count * each_s / 60 for _, count, _, each_s in stages]
    total = max(*minutes, sum(minutes) / c.jobs)
    lines += ["", f"Total: about {total:.0f} minutes ({total / 60:.1f} hours) with JOBS={c.jobs} and GPUS={c.ranks}; "
                  f"{sum(minutes):.0f} minutes one after the other.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
