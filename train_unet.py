"""Train one segmenter, the vanilla U-Net or an nnU-Net, on real volumes of the source, on a synthetic set, or on both.

    labelled volumes -> the network's recipe: batches, loss, learning rate -> weights -> final.pt, and a first Dice

What differs between the networks is in their own files (`cmr.segmenter`); this script is the same for all.
"""
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from cmr import ranks
from cmr.errors import DataError, UsageError, run_script
from cmr.files import writable_folder, write_csv, write_json
from cmr.grid import Grid, at_same_height
from cmr.metrics import dice
from cmr.network import Training
from cmr.records import VALUES, Domain, labelled, network_classes
from cmr.seeds import rng
from cmr.segmenter import NETWORKS, Segmenter
from cmr.settings import DataConfig, above, at_least, one_of, opt, parse
from cmr.studies import in_role, studies_of
from cmr.synthetic_set import find_set, made_by
from cmr.training import Run
from cmr.workers import ahead, pick_device, to_device
from cmr.working import fingerprint, fully_labelled, prepare, slices_mm


@dataclass(frozen=True)
class Config(DataConfig):
    out: str                = opt("runs/segmenter", "run folder: config.json, log.csv, final.pt; plan.json and "
                                                    "validation.csv of an nnU-Net")
    network: str            = opt("vanilla", f"which segmenter: {', '.join(NETWORKS)}")
    domain: str             = opt("", "domain whose training studies are trained on, and whose validation studies "
                                      "score: a target, for its upper bound; empty: the source")
    train_on: str           = opt("real", "training volumes", one_of("real", "synthetic", "both"))
    synthetic: str          = opt("", "synthetic set written by cmr.synthesize (for synthetic and both)")
    shuffle_masks: bool     = opt(False, "give every volume the mask of another: a control that must fail")
    augment: bool           = opt(False, "vanilla: nnU-Net's intensity augmentation too (an nnU-Net always has it)")
    features: int           = opt(32, "channels of the first level; doubled at each", at_least(1))
    levels: int             = opt(4, "resolution levels (vanilla; an nnU-Net plans its own)", at_least(2))
    memory_gb: float        = opt(8.0, "nnU-Net: memory that the planned patch and batch are fitted to", above(0))
    plan: str               = opt("", "nnU-Net: plan.json to use; empty: planned from the source's real training "
                                      "volumes, so that batches are equal whatever is trained on")
    steps: int              = opt(250_000, "optimiser steps, the same for every training set", at_least(1))
    epoch_steps: int        = opt(250, "nnU-Net: steps per epoch; rate and validation go by epochs", at_least(1))
    validation_batches: int = opt(50, "nnU-Net: validation batches per epoch", at_least(1))
    batch: int              = opt(16, "slices per step (vanilla; an nnU-Net plans its own)", at_least(1))
    optimizer: str          = opt("sgd", "nnU-Net: sgd with momentum, as the original, or adamw, which gets further in "
                                         "a short training (vanilla: always Adam)", one_of("sgd", "adamw"))
    lr: float               = opt(1e-2, "initial learning rate; it falls to 0 as a cosine (vanilla) or a polynomial "
                                        "(nnU-Net)", above(0))
    bfloat16: bool          = opt(False, "run the network in bfloat16 (GPU)")
    workers: int            = opt(0, "processes that prepare batches ahead, for each GPU; does not change the result; "
                                     "0: each batch is made when it is needed", at_least(0))
    log_every: int          = opt(50, "steps between log rows", at_least(1))
    save_minutes: float     = opt(1.0, "minutes between checkpoints: what a kill can lose", at_least(0))


def presets():
    """{preset: {network: values}}, as every network declares them."""
    found = {}
    for name, network in NETWORKS.items():
        for preset, values in network.presets.items():
            found.setdefault(preset, {})[name] = values
    return found


def main(argv=None):
    c = parse(Config, presets(), argv, __doc__.splitlines()[0], by="network")
    require_consistent(c)
    device = pick_device(c.device)
    out = writable_folder(c.out, c.data)

    # Data: labelled ED and ES volumes of the domain's training subjects and / or the synthetic pairs.
    domain, grid = Domain.parse(c.domain or c.source), Grid(c.spacing_mm, c.size)
    records = studies_of(c)
    real, validation = (fully_labelled_of(in_role(records, domain, split, labelled_only=True), grid, c)
                        for split in ("Training", "Validation"))
    training = list(real) if c.train_on != "synthetic" else []
    pairs = find_set(c.synthetic) if c.train_on != "real" else []
    training += fully_labelled_of(pairs, grid, c)
    structures = labelled(training)
    if not structures:
        raise DataError(f"{c.data}: no structure is labelled in the training volumes of {domain}")
    if c.shuffle_masks:
        training = shuffled(training, rng(c.seed, "shuffled masks"))
    n_slices = sum(len(w.image) for w in training)
    print(f"{domain}, {c.train_on}: {len(training)} volumes, {n_slices} slices, {', '.join(structures)} on {device}",
          flush=True)

    # Network, plan and optimiser.
    classes = network_classes(structures).astype(np.int64)
    recipe = NETWORKS[c.network].recipe(Training(c, training, validation, real, classes, device))
    run = Run(out, asdict(c), fingerprint(training), recipe.net, recipe.optimizer, clip_norm=recipe.clip_norm)
    if run.finished:
        return
    if recipe.plan:
        write_json(out / "plan.json", recipe.plan)
        print("plan: " + "  ".join(f"{name}={value}" for name, value in recipe.plan.items()), flush=True)

    parallel, samples = ranks.together(recipe.net), ranks.share(recipe.batch_size)
    batches = ahead(lambda step: recipe.batch(step, samples), range(run.step, c.steps), c.workers)
    for step in run.steps(c.steps):
        for group in recipe.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        with run.waiting():
            x, y = to_device(next(batches), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=c.bfloat16):
            outputs = parallel(x)
        whole, labels = (ranks.gathered(own, recipe.batch_size) for own in (outputs, y))
        run.update(recipe.loss(whole, labels))
        if recipe.validate and (step + 1) % c.epoch_steps == 0 and ranks.is_first():
            end_of_epoch(run, structures, recipe.validate(recipe.net, step // c.epoch_steps))
    if not ranks.is_first():
        return
    subjects = sorted({w.record.subject for w in training})
    run.finish(structures=list(structures), subjects=subjects, made_by=made_by(pairs),
               slices_mm=list(slices_mm(real)), plan=recipe.plan, **run.state)

    # One number for the eye, on the domain's validation subjects; nothing is chosen by it.
    score = mean_dice_on(validation, Segmenter.load(run.final, device), structures)
    print(f"{domain} validation: mean Dice {score:.3f} over {len(validation)} volumes (working grid)")


def require_consistent(c):
    """Raise UsageError for settings that do not go together."""
    if (c.train_on != "real") != bool(c.synthetic):
        raise UsageError(f"--train-on {c.train_on}: use real, or synthetic or both with --synthetic FOLDER")
    if c.domain and c.train_on != "real":
        raise UsageError(f"--domain {c.domain}: has real volumes alone; use it with --train-on real")
    if c.network == "vanilla" and c.size % 2 ** (c.levels - 1):
        raise UsageError(f"--size {c.size}: {c.levels} levels halve it to multiples of {2 ** (c.levels - 1)}")


def fully_labelled_of(records, grid, c):
    """Working volumes of the records that label every structure; names the others."""
    kept, left_out = fully_labelled(prepare(records, grid, c.work))
    for case, why in left_out:
        print(f"note: {case} left out: {why}", flush=True)
    return kept


def shuffled(workings, g):
    """The volumes with the masks of others, drawn by g, slice by slice at the same relative height."""
    masks = [workings[other].label for other in g.permutation(len(workings))]
    return [replace(w, label=at_same_height(mask, len(w.image))) for w, mask in zip(workings, masks)]


def end_of_epoch(run, structures, pseudo_dice):
    """Append one epoch's pseudo-Dice and its moving average, 0.9 of the last and 0.1 of this, to validation.csv."""
    history = run.state.setdefault("epochs", [])
    mean = float(np.nanmean(pseudo_dice))
    average = 0.9 * history[-1]["ema"] + 0.1 * mean if history else mean
    history.append({"epoch": len(history), "mean": mean, "ema": average, **dict(zip(structures, pseudo_dice))})
    write_csv(run.out / "validation.csv", history, ("epoch", "mean", "ema", *structures))
    print(f"epoch {len(history) - 1}: pseudo-Dice {mean:.3f}, moving average {average:.3f}", flush=True)


def mean_dice_on(workings, segmenter, structures):
    """Mean over volumes and structures, on the working grid."""
    scores = []
    for w in workings:
        labels = segmenter.labels(w.image, w.spacing_mm)
        scores += [dice(labels == VALUES[name], w.label == VALUES[name]) for name in structures
                   if name in labelled([w])]
    return np.nanmean(scores)


if __name__ == "__main__":
    run_script(main)
