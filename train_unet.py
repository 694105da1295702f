"""Train one segmenter, the vanilla U-Net or an nnU-Net, on real volumes of the source, on a synthetic set, or on both.

    labelled volumes -> the network's recipe: batches, loss, learning rate -> weights -> final.pt, and a first Dice
"""
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cmr import ranks
from cmr.checkpoint import require_part
from cmr.errors import DataError, UsageError, run_script
from cmr.files import read_json, writable_folder, write_csv, write_json
from cmr.grid import Grid, at_same_height
from cmr.metrics import mean_dice
from cmr.network import TrainingData
from cmr.records import VALUES, Domain, labelled, network_classes
from cmr.seeds import rng
from cmr.segmenter import NETWORKS, Segmenter, presets
from cmr.settings import DataConfig, above, at_least, one_of, opt, parse
from cmr.studies import in_role, studies_of
from cmr.synthetic_set import find_set, made_by
from cmr.training import Run
from cmr.workers import ahead, half_precision, pick_device, to_device
from cmr.working import fingerprint, fully_labelled, prepare


@dataclass(frozen=True)
class Config(DataConfig):
    out: str                = opt("runs/segmenter", "run folder: config.json, log.csv, final.pt")
    network: str            = opt("vanilla", f"which segmenter: {', '.join(NETWORKS)}")
    domain: str             = opt("", "domain that is trained on: a target, for its upper bound; empty: the source")
    train_on: str           = opt("real", "training volumes", one_of("real", "synthetic", "both"))
    synthetic: str          = opt("", "synthetic set written by cmr.synthesize (for synthetic and both)")
    shuffle_masks: bool     = opt(False, "give every volume the mask of another: a control that must fail")
    augment: bool           = opt(False, "vanilla: nnU-Net's intensity augmentation too (an nnU-Net always has it)")
    features: int           = opt(32, "channels of the first level; doubled at each", at_least(1))
    levels: int             = opt(4, "resolution levels (vanilla; an nnU-Net plans its own)", at_least(2))
    memory_gb: float        = opt(8.0, "nnU-Net: memory that the planned patch and batch are fitted to", above(0))
    steps: int              = opt(250_000, "optimiser steps, the same for every training set", at_least(1))
    epoch_steps: int        = opt(250, "nnU-Net: steps per epoch; rate and validation go by epochs", at_least(1))
    validation_batches: int = opt(50, "nnU-Net: validation batches per epoch", at_least(1))
    batch: int              = opt(16, "slices per step (vanilla; an nnU-Net plans its own)", at_least(1))
    optimizer: str          = opt("sgd", "nnU-Net: sgd as the original, adamw for short runs", one_of("sgd", "adamw"))
    lr: float               = opt(1e-2, "initial learning rate; falls as a cosine (nnU-Net: polynomial)", above(0))
    bfloat16: bool          = opt(False, "run the network in bfloat16 (GPU)")
    workers: int            = opt(0, "processes for each GPU that prepare batches ahead; 0: none", at_least(0))
    log_every: int          = opt(50, "steps between log rows", at_least(1))
    save_minutes: float     = opt(1.0, "minutes between checkpoints: what a kill can lose", at_least(0))


def main(argv=None):
    c = parse(Config, presets(), argv, __doc__.splitlines()[0], by="network")
    require_consistent(c)
    device = pick_device(c.device)
    out = writable_folder(c.out, c.data)

    # Labelled ED and ES volumes: the real ones of the domain, the synthetic pairs, or both.
    domain, records = Domain.parse(c.domain or c.source), studies_of(c)
    real, validation = (fully_labelled_of(in_role(records, domain, split, labelled_only=True), c)
                        for split in ("Training", "Validation"))
    pairs = find_set(c.synthetic) if c.train_on != "real" else []
    if pairs:
        require_part(c.synthetic, read_json(Path(c.synthetic) / "config.json"), c)
    volumes = (real if c.train_on != "synthetic" else []) + fully_labelled_of(pairs, c)
    structures = labelled(volumes)
    for split, labels in (("training", structures), ("validation", validation)):
        if not labels:
            raise DataError(f"{c.data}: no mask of the {split} volumes of {domain} labels anything")
    if c.shuffle_masks:
        volumes = shuffled(volumes, rng(c.seed, "shuffled masks"))
    n_slices = sum(len(w.image) for w in volumes)
    print(f"{domain}, {c.train_on}: {len(volumes)} volumes, {n_slices} slices, {', '.join(structures)} on {device}",
          flush=True)

    # The network's recipe for these volumes: plan, batches, optimiser and loss.
    classes = network_classes(structures)
    in_classes = lambda workings: [replace(w, label=classes[w.label]) for w in workings]
    data = TrainingData(in_classes(volumes), in_classes(validation), real, n_classes=1 + len(structures))
    recipe = NETWORKS[c.network].recipe(c, data, device)
    run = Run(out, asdict(c), fingerprint(volumes), recipe.net, recipe.optimizer, clip_norm=recipe.clip_norm)
    if run.finished:
        return
    if recipe.plan:
        write_json(out / "plan.json", recipe.plan)
        print("plan: " + "  ".join(f"{name}={value}" for name, value in recipe.plan.items()), flush=True)

    train(c, recipe, run, structures, device)
    if not ranks.is_first():
        return
    apart_mm = [w.spacing_mm[0] for w in real]
    run.finish(structures=list(structures), subjects=sorted({w.record.subject for w in volumes}),
               made_by=made_by(pairs), slices_mm=[min(apart_mm), max(apart_mm)], plan=recipe.plan, **run.state)

    # Print the Dice of the domain's validation subjects; it is for information only, nothing is chosen by it.
    score = mean_dice_on(validation, Segmenter.load(run.final, device))
    print(f"{domain} validation: mean Dice {score:.3f} over {len(validation)} volumes (working grid)")


def train(c, recipe, run, structures, device):
    """Make every step of the run: a batch, the network, the whole batch's loss, an update; ranks share the samples."""
    net, samples = ranks.together(recipe.net), ranks.share(recipe.batch_size)
    batches = ahead(lambda step: recipe.batch(step, samples), range(run.step, c.steps), c.workers)
    for step in run.steps(c.steps):
        for group in recipe.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        with run.waiting():
            images, labels = to_device(next(batches), device)
        with half_precision(device, c.bfloat16):
            outputs = net(images)
        outputs, labels = (ranks.gathered(share, recipe.batch_size) for share in (outputs, labels))
        run.update(recipe.loss(outputs, labels))
        if recipe.validate and (step + 1) % c.epoch_steps == 0 and ranks.is_first():
            end_of_epoch(run, structures, recipe.validate(recipe.net, step // c.epoch_steps))


def require_consistent(c):
    """Raise UsageError for settings that do not go together."""
    if (c.train_on != "real") != bool(c.synthetic):
        raise UsageError(f"--train-on {c.train_on}: use real, or synthetic or both with --synthetic FOLDER")
    if c.domain and c.train_on != "real":
        raise UsageError(f"--domain {c.domain}: has real volumes alone; use it with --train-on real")
    if c.augment and NETWORKS[c.network].augments:
        raise UsageError("--augment: an nnU-Net always augments; leave it out, or train --network vanilla with it")
    NETWORKS[c.network].check(c)


def fully_labelled_of(records, c):
    """Working volumes of the records that label every structure; prints which others are left out."""
    kept, left_out = fully_labelled(prepare(records, Grid(c.spacing_mm, c.size), c.work))
    for case, why in left_out:
        print(f"note: {case} left out: {why}", flush=True)
    return kept


def shuffled(workings, g):
    """Give the volumes each other's masks in an order drawn by g; slices are matched by relative height."""
    masks = [workings[other].label for other in g.permutation(len(workings))]
    return [replace(w, label=at_same_height(mask, len(w.image))) for w, mask in zip(workings, masks)]


def end_of_epoch(run, structures, pseudo_dice):
    """Append an epoch's pseudo-Dice and its moving average (0.9 of the last + 0.1 of this) to validation.csv."""
    epochs = run.state.setdefault("epochs", [])
    mean = float(np.nanmean(pseudo_dice))
    average = 0.9 * epochs[-1]["ema"] + 0.1 * mean if epochs else mean
    epochs.append({"epoch": len(epochs), "mean": mean, "ema": average, **dict(zip(structures, pseudo_dice))})
    write_csv(run.out / "validation.csv", epochs, ("epoch", "mean", "ema", *structures))
    print(f"epoch {len(epochs) - 1}: pseudo-Dice {mean:.3f}, moving average {average:.3f}", flush=True)


def mean_dice_on(workings, segmenter):
    """Mean Dice over volumes on the working grid, of the structures that the segmenter was trained on."""
    trained_on = [VALUES[name] for name in segmenter.structures]
    masks = [np.where(np.isin(w.label, trained_on), w.label, 0) for w in workings]
    return np.nanmean([mean_dice(segmenter.labels(w.image, w.spacing_mm), mask) for w, mask in zip(workings, masks)])


if __name__ == "__main__":
    run_script(main)
