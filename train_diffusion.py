"""Train the source-domain diffusion model (SD-DM) on all slices of the source's training studies, without labels.

    slices of the source -> batches of noised slices -> denoiser -> averaged weights -> final.pt
"""
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from cmr import ranks
from cmr.audit import draw_samples
from cmr.denoiser import build_denoiser, placed
from cmr.diffusion import Schedule, diffusion_loss
from cmr.errors import UsageError, run_script
from cmr.files import writable_folder
from cmr.grid import Grid
from cmr.look import intensity_statistics
from cmr.pictures import save_png, sheet, with_contours
from cmr.records import Domain
from cmr.seeds import generator, initialised
from cmr.settings import FULL_GRID, DataConfig, above, at_least, matching, one_of, opt, parse, within
from cmr.studies import in_role, studies_of
from cmr.training import Run
from cmr.workers import half_precision, pick_device, to_device
from cmr.working import fingerprint, prepare

_LIST, _WORDS = r" *[1-9]\d* *(, *[1-9]\d* *)*", "whole numbers of 1 or more, separated by commas"


@dataclass(frozen=True)
class Config(DataConfig):
    out: str              = opt("runs/diffusion", "run folder: config.json, log.csv, sample sheets, final.pt")
    schedule: str         = opt("cosine", "noise schedule", one_of("cosine", "linear"))
    T: int                = opt(1000, "diffusion steps of the schedule", within(2, 100_000))
    base: int             = opt(24, "channels of the first level", at_least(1))
    multipliers: str      = opt("1,2,3", "channels of each level, as multiples of base", matching(_LIST, _WORDS))
    blocks: int           = opt(1, "residual blocks per level", at_least(1))
    attention_at: str     = opt("8", "feature-map edges with self-attention, in pixels; the coarsest always has it",
                                matching(f"({_LIST})?", _WORDS))
    head: int             = opt(24, "channels per attention head", at_least(1))
    groups: int           = opt(8, "groups of the group normalisation", at_least(1))
    patch: int            = opt(2, "pixels folded into channels along each axis: 2 is four times cheaper than 1",
                                at_least(1))
    steps: int            = opt(3500, "optimiser steps", at_least(1))
    batch: int            = opt(8, "slices per step", at_least(1))
    lr: float             = opt(2e-3, "AdamW learning rate, after a linear warm-up", above(0))
    warmup: int           = opt(100, "steps of the warm-up", at_least(1))
    decay: str            = opt("cosine", "the rate from then on: falls to 0 as a cosine, or stays",
                                one_of("cosine", "constant"))
    ema: float            = opt(0.998, "decay of the averaged weights, per step; 0: none", within(0, 0.999999))
    bfloat16: bool        = opt(False, "run the network in bfloat16 (GPU)")
    log_every: int        = opt(50, "steps between log rows", at_least(1))
    save_minutes: float   = opt(1.0, "minutes between checkpoints: what a kill can lose", at_least(0))
    sample_every: int     = opt(1000, "steps between sample sheets", at_least(1))
    sheet: int            = opt(16, "samples of a sheet", at_least(1))
    sheet_steps: int      = opt(40, "sampling steps of a sheet", at_least(1))


FULL_SIZE = dict(**FULL_GRID, attention_at="16", head=64, groups=32, patch=1, batch=32, warmup=1000, bfloat16=True,
                 log_every=200, save_minutes=10)
# `paper` has the settings of the first author's working scripts where they are known (docs/paper.md).
PRESETS = {
    "tiny": dict(steps=60, base=16, multipliers="1,2", attention_at="", head=16, warmup=10, log_every=20,
                 save_minutes=0.1, sample_every=60),
    "demo": {},
    "small": dict(**FULL_GRID, attention_at="16", steps=10_000, lr=1e-3, sample_every=2_500),
    "lab": dict(**FULL_SIZE, base=64, multipliers="1,2,3,4", blocks=2, steps=40_000, lr=2e-4, ema=0.9995,
                sample_every=5_000),
    "paper": dict(**FULL_SIZE, schedule="linear", base=128, multipliers="1,1,2,3,4", blocks=1, steps=120_000, lr=1e-4,
                  decay="constant", ema=0.9999, sample_every=10_000),
}


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    require_consistent(c)
    device = pick_device(c.device)
    out = writable_folder(c.out, c.data)

    # Data: every frame and slice of the source's training subjects, in [-1, 1].
    source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
    workings = prepare(in_role(studies_of(c, all_frames=True), source, "Training"), grid, c.work)
    slices = torch.from_numpy(np.concatenate([w.image for w in workings]))[:, None]                # (N, 1, H, W)
    subjects = sorted({w.record.subject for w in workings})
    print(f"{source}: {len(subjects)} subjects, {len(workings)} volumes, {len(slices)} slices on {device}", flush=True)
    if len(slices) < 500:
        print("note: under 500 slices a diffusion model tends to copy its training set; cmr.synthesize counts copies")

    # Model and optimiser.
    schedule = Schedule.make(c.schedule, c.T)
    net = placed(initialised(lambda: build_denoiser(asdict(c)), c.seed), device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=c.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    run = Run(out, asdict(c), fingerprint(workings), net, optimizer, ema_decay=c.ema, clip_norm=1.0)
    if run.finished:
        return

    parallel, samples = ranks.together(net), ranks.share(c.batch)

    def predict(x_t, t):
        """The network's output for the whole batch, of which this process computes its share."""
        own = slice(samples.start, samples.stop)
        return ranks.gathered(parallel(x_t[own], t[own]), len(x_t))

    # Algorithm 1 of Ho et al. 2020; batch, times and noise are drawn from (seed, step).
    for step in run.steps(c.steps):
        g = generator(c.seed, "step", step)
        with run.waiting():
            batch = slices[torch.randint(len(slices), (c.batch,), generator=g)]                    # (N, 1, H, W)
            x_0, = to_device([batch], device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(c, step)
        with half_precision(device, c.bfloat16):
            loss = diffusion_loss(schedule, predict, x_0, g)
        run.update(loss)
        if (step + 1) % c.sample_every == 0 and step + 1 < c.steps and ranks.is_first():
            draw_sheet(c, out, step + 1, schedule, run.averaged(), device)

    if not ranks.is_first():
        return

    # Draw a last sheet, then save the weights with the source's statistics, which the sampler needs.
    draw_sheet(c, out, c.steps, schedule, run.averaged(), device)
    quantiles, mean, std = intensity_statistics([w.image for w in workings])
    run.finish(source_quantiles=torch.from_numpy(quantiles), source_mean=float(mean), source_std=float(std),
               subjects=subjects)


def learning_rate(c, step):
    """Learning rate of a step (from 0): a linear warm-up to c.lr, times half a cosine down to 0 or a constant 1."""
    share_left = 0.5 * (1 + math.cos(math.pi * step / c.steps)) if c.decay == "cosine" else 1.0
    return c.lr * min(1.0, (step + 1) / c.warmup) * share_left


def require_consistent(c):
    """Raise UsageError for settings that together make no denoiser or no sheet of samples."""
    try:
        denoiser = build_denoiser(asdict(c))
    except ValueError as error:                                   # e.g. a size that cannot be halved
        raise UsageError(f"--size, --patch, --base, --multipliers, --groups, --attention-at: {error}") from error
    channels = denoiser.middle[0].conv_in.in_channels
    if channels % c.head:
        raise UsageError(f"--head {c.head}: use a divisor of {channels}, the channels of the last level")
    if c.sheet_steps > c.T:
        raise UsageError(f"--sheet-steps {c.sheet_steps}: use 1 to {c.T}, there are no more in --T {c.T}")


def draw_sheet(c, out, step, schedule, weights, device):
    """Write a sheet of samples by the given (averaged) weights, eight in a row, always from the same noise."""
    averaged = build_denoiser(asdict(c)).to(device).eval().requires_grad_(False)
    averaged.load_state_dict(weights)
    with half_precision(device, c.bfloat16):
        samples = draw_samples(schedule, averaged, c.sheet, c.size, c.sheet_steps, c.seed, device)
    panels = [with_contours(image, zoom=2) for image in samples]
    save_png(out / f"samples_{step:06d}.png", sheet([panels[i:i + 8] for i in range(0, len(panels), 8)]))


if __name__ == "__main__":
    run_script(main)
