"""Train one segmenter on real volumes of the source, on a synthetic set, or on both."""
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from cmr import checkpoint
from cmr.config import DataConfig, DataError, UsageError, opt, parse, run_script
from cmr.metrics import dice
from cmr.recipes import RECIPES
from cmr.segment import Segmenter
from cmr.studies import STRUCTURES, Domain, find, in_role, labelled, network_classes, split_by_subject
from cmr.training import Run, pick_device, rng
from cmr.volumes import Grid, at_same_height, fingerprint, prepare


@dataclass(frozen=True)
class Config(DataConfig):
    out: str                = opt("runs/segmenter", "run folder: config.json, log.csv, final.pt; plan.json and validation.csv of an nnU-Net")
    network: str            = opt("vanilla", "which segmenter: vanilla, nnunet2d or nnunet3d")
    train_on: str           = opt("real", "training volumes: real, synthetic or both")
    synthetic: str          = opt("", "synthetic set written by cmr.synthesize (for synthetic and both)")
    dose: int               = opt(0, "use so many of the images of each reference in --synthetic; 0: all")
    shuffle_masks: bool     = opt(False, "give every volume the mask of another: a control that must fail")
    augment: bool           = opt(False, "vanilla: nnU-Net's intensity augmentation too (an nnU-Net always has it)")
    features: int           = opt(32, "channels of the first level; doubled at each")
    levels: int             = opt(4, "resolution levels (vanilla; an nnU-Net plans its own)")
    memory_gb: float        = opt(8.0, "nnU-Net: memory that the planned patch and batch are fitted to")
    plan: str               = opt("", "nnU-Net: plan.json to use; empty: planned from the training volumes")
    steps: int              = opt(250_000, "optimiser steps, the same for every training set")
    epoch_steps: int        = opt(250, "nnU-Net: steps per epoch; the learning rate falls and validation comes by epochs")
    validation_batches: int = opt(50, "nnU-Net: validation batches per epoch")
    batch: int              = opt(16, "slices per step (vanilla; an nnU-Net plans its own)")
    lr: float               = opt(1e-2, "initial learning rate: Adam with a cosine to 0 (vanilla), SGD with a polynomial to 0 (nnU-Net)")
    bfloat16: bool          = opt(False, "run the network in bfloat16 (GPU)")
    log_every: int          = opt(50, "steps between log rows")
    save_every: int         = opt(100, "steps between checkpoints")


LONG = dict(size=128, spacing_mm=1.5, bfloat16=True, log_every=250, save_every=2500)
PRESETS = {
    "tiny": {"vanilla": dict(features=8, levels=3, steps=60, batch=8, lr=2e-3, log_every=20, save_every=20),
             **{n: dict(features=4, memory_gb=0.08, steps=20, epoch_steps=10, validation_batches=2, log_every=10, save_every=10) for n in ("nnunet2d", "nnunet3d")}},
    "demo": {"vanilla": dict(features=8, steps=900, lr=2e-3),
             **{n: dict(features=8, memory_gb=0.08, steps=3120, epoch_steps=120, validation_batches=4, log_every=100) for n in ("nnunet2d", "nnunet3d")}},
    "paper": {"vanilla": dict(LONG, levels=5, steps=40_000, batch=32, lr=1e-3), "nnunet2d": LONG, "nnunet3d": LONG}}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__, by="network")
    if c.train_on not in ("real", "synthetic", "both") or (c.train_on != "real") != bool(c.synthetic):
        raise UsageError(f"--train-on {c.train_on}: use real, or synthetic or both with --synthetic FOLDER")
    if c.dose and c.train_on == "real":
        raise UsageError(f"--dose {c.dose}: counts the images in --synthetic; use it with --train-on synthetic or both")
    device = pick_device(c.device)
    out = checkpoint.writable_folder(c.out)

    # Data: labelled ED and ES volumes of the source's training subjects and / or the synthetic pairs.
    source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
    ready = lambda records: [w for w in prepare(records, grid, c.work) if w.label is not None]
    real = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
    records = in_role(real, source, "Training", labelled_only=True) if c.train_on != "synthetic" else []
    if c.train_on != "real":
        records = records + [r for r in find(c.synthetic) if r.label_path and (not c.dose or int(r.metadata["sample"]) < c.dose)]
    training, validation = ready(records), ready(in_role(real, source, "Validation", labelled_only=True))
    structures = labelled(training)
    if not structures:
        raise DataError(f"{c.data}: no structure is labelled in the training volumes of {source}")
    if c.shuffle_masks:
        training = shuffled(training, rng(c.seed, "shuffled masks"))
    print(f"{source}, {c.train_on}: {len(training)} volumes, {sum(len(w.image) for w in training)} slices, {', '.join(structures)} on {device}", flush=True)

    recipe = RECIPES[c.network](c, training, validation, network_classes(structures).astype(np.int64), device)
    plan = recipe.plan and asdict(recipe.plan)
    if plan:
        checkpoint.write_json(out / "plan.json", plan)
        print("plan: " + "  ".join(f"{k}={v}" for k, v in plan.items()), flush=True)
    run = Run(out, asdict(c), fingerprint(training), recipe.net, recipe.optimizer, clip_norm=recipe.clip_norm)

    for step in run.steps(c.steps):
        for group in recipe.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        with run.waiting():
            x, y = recipe.batch(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=c.bfloat16):
            outputs = recipe.net(x.to(device))
        run.update(recipe.loss(outputs, y.to(device)))
        if recipe.validate and (step + 1) % c.epoch_steps == 0:
            end_of_epoch(run, structures, recipe.validate(recipe.net, step // c.epoch_steps))
    run.finish(structures=list(structures), subjects=sorted({w.record.subject for w in training}), plan=plan, **run.state)

    # One number for the eye, on the source's validation subjects; nothing is chosen by it.
    segmenter = Segmenter.load(run.final, device)
    found = [segmenter.labels(w.image, w.spacing_mm) for w in validation]
    scores = [dice(labels == i, w.label == i) for w, labels in zip(validation, found) for i in (STRUCTURES.index(s) + 1 for s in structures)]
    print(f"source validation: mean Dice {np.nanmean(scores):.3f} over {len(validation)} volumes (working grid)")


def shuffled(workings, g):
    """The volumes with the masks of others, drawn by g, slice by slice at the same relative height."""
    return [replace(w, label=at_same_height(workings[other].label, len(w.image))) for w, other in zip(workings, g.permutation(len(workings)))]


def end_of_epoch(run, structures, pseudo_dice):
    """Append one epoch's pseudo-Dice and its moving average, 0.9 of the last and 0.1 of this, to validation.csv."""
    history = run.state.setdefault("epochs", [])
    mean = float(np.nanmean(pseudo_dice))
    average = 0.9 * history[-1]["ema"] + 0.1 * mean if history else mean
    history.append({"epoch": len(history), "mean": mean, "ema": average, **dict(zip(structures, pseudo_dice))})
    checkpoint.write_csv(run.out / "validation.csv", history, ("epoch", "mean", "ema", *structures))
    print(f"epoch {len(history) - 1}: pseudo-Dice {mean:.3f}, moving average {average:.3f}", flush=True)


if __name__ == "__main__":
    run_script(main)
