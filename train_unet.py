"""Train one segmenter on real volumes of the source, on a synthetic set, or on both."""
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.config import DataConfig, DataError, UsageError, opt, parse, run_script
from cmr.losses import dice_ce_loss
from cmr.metrics import dice
from cmr.segment import Segmenter, build_network, zscore
from cmr.studies import STRUCTURES, Domain, find, in_role, labelled, network_classes, split_by_subject
from cmr.training import Run, generator, initialised, pick_device
from cmr.volumes import Grid, fingerprint, prepare


@dataclass(frozen=True)
class Config(DataConfig):
    out: str        = opt("runs/segmenter", "run folder: config.json, log.csv, final.pt")
    network: str    = opt("vanilla", "which segmenter: vanilla")
    train_on: str   = opt("real", "training volumes: real, synthetic or both")
    synthetic: str  = opt("", "synthetic set written by cmr.synthesize (for synthetic and both)")
    base: int       = opt(16, "channels of the first level")
    levels: int     = opt(4, "resolution levels")
    steps: int      = opt(700, "optimiser steps, the same for every training set")
    batch: int      = opt(16, "slices per step")
    lr: float       = opt(2e-3, "Adam learning rate, decayed to 0 by a cosine")
    bfloat16: bool  = opt(False, "run the network in bfloat16 (GPU)")
    log_every: int  = opt(50, "steps between log rows")
    save_every: int = opt(100, "steps between checkpoints")


PRESETS = {
    "tiny": dict(base=8, levels=3, steps=60, batch=8, log_every=20, save_every=20),
    "demo": {},
    "paper": dict(size=128, spacing_mm=1.5, base=32, levels=5, steps=40_000, batch=32, lr=1e-3, bfloat16=True, log_every=200, save_every=2000),
}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__)
    if c.network != "vanilla":
        raise UsageError(f"--network {c.network}: use vanilla")
    if c.train_on not in ("real", "synthetic", "both") or (c.train_on != "real") != bool(c.synthetic):
        raise UsageError(f"--train-on {c.train_on}: use real, or synthetic or both with --synthetic FOLDER")
    device = pick_device(c.device)
    out = checkpoint.writable_folder(c.out)

    # Data: labelled ED and ES volumes of the source's training subjects and / or the synthetic pairs.
    source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
    real = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
    records = in_role(real, source, "Training", labelled_only=True) if c.train_on != "synthetic" else []
    if c.train_on != "real":
        records = records + [r for r in find(c.synthetic) if r.label_path]
    workings = [w for w in prepare(records, grid, c.work) if w.label is not None]
    structures = labelled(workings)
    if not structures:
        raise DataError(f"{c.data}: no structure is labelled in the training volumes of {source}")
    classes = network_classes(structures).astype(np.int64)                                   # label value -> network class
    images = torch.from_numpy(np.concatenate([zscore(w.image) for w in workings]))[:, None]  # (N, 1, H, W)
    labels = torch.from_numpy(np.concatenate([classes[w.label] for w in workings]))          # (N, H, W)
    print(f"{source}, {c.train_on}: {len(workings)} volumes, {len(images)} slices, {', '.join(structures)} on {device}", flush=True)

    net = initialised(lambda: build_network(asdict(c), 1 + len(structures)), c.seed).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, fused=True)
    run = Run(out, asdict(c), fingerprint(workings), net, optimizer)

    # Slices and flips are drawn from (seed, step).
    for step in run.steps(c.steps):
        g = generator(c.seed, "step", step)
        chosen = torch.randint(len(images), (c.batch,), generator=g)
        flips = [axis for axis, u in zip((-2, -1), torch.rand(2, generator=g)) if u < 0.5]
        x, y = images[chosen].flip(flips).to(device), labels[chosen].flip(flips).to(device)
        for group in optimizer.param_groups:
            group["lr"] = c.lr * 0.5 * (1 + math.cos(math.pi * step / c.steps))
        with torch.autocast(device.type, torch.bfloat16, enabled=c.bfloat16):
            logits = net(x)
        run.update(dice_ce_loss(logits, y))
    run.finish(structures=list(structures), subjects=sorted({w.record.subject for w in workings}))

    # One number for the eye, on the source's validation subjects; nothing is chosen by it.
    segmenter = Segmenter.load(run.final, device)
    held_out = [w for w in prepare(in_role(real, source, "Validation", labelled_only=True), grid, c.work) if w.label is not None]
    scores = [dice(segmenter.labels(w.image) == i, w.label == i) for w in held_out for i in (STRUCTURES.index(s) + 1 for s in structures)]
    print(f"source validation: mean Dice {np.nanmean(scores):.3f} over {len(held_out)} volumes (working grid)")


if __name__ == "__main__":
    run_script(main)
