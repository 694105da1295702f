"""What the project must know of a segmenter: how it is built, trained and asked.  The networks are elsewhere.

Public: `Network`, `Recipe`, `Training`.

Segmentation losses: cross-entropy minus soft Dice, and deep supervision (nnU-Net's, used by all three networks).

How batches are made is in each network's recipe.

Public: `dice_ce_loss`, `deep_supervision_weights`, `deep_supervision_loss`.

A network over a whole volume: tile by tile, mirrored, weighted, averaged.

What a network sees of a volume is prepared by its own file.

Public: `predict`, `tile_starts`, `importance`, `softmax`.
"""
import itertools
import math
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Training:
    """What one training run is given, whatever the network."""
    settings: object                             # cmr's train_unet.Config
    volumes: list                                # of Working, labelled: what it is trained on
    validation: list                             # of Working, labelled: the source's validation volumes
    real: list                                   # of Working: the source's real training volumes; a plan follows
    classes: np.ndarray                          # (4,) our label value -> network class
    device: torch.device

    @property
    def n_classes(self):
        """Background included."""
        return 1 + int(self.classes.max())


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: what a step sees, how fast it learns, what it minimises."""
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int                              # samples of a step
    batch: Callable                              # (step, range of its samples) -> (images (n, 1, *space) float32,
                                                 # labels (n, *space) int64), on the CPU
    learning_rate: Callable                      # step -> learning rate
    loss: Callable                               # (network output, labels) -> scalar
    clip_norm: float = None                      # largest gradient norm
    validate: Callable = None                    # (network, epoch) -> pseudo-Dice per structure, at the end of an epoch
    plan: dict = None                            # plain values that the network is built from, beside the settings


@dataclass(frozen=True)
class Network:
    """One segmenter: an entry of `cmr.segmenter.NETWORKS`."""
    build: Callable                              # (settings, n_classes, plan) -> untrained torch module
    recipe: Callable                             # Training -> Recipe; batches are a function of (seed, step)
    logits: Callable                             # (net, image, spacing_mm, plan, mirror) -> (n_classes, D, H, W)
    presets: dict = field(default_factory=dict)  # preset -> {setting of train_unet.py: value}


def dice_ce_loss(logits, target, batch_dice=True, smooth=1e-5):
    """Mean cross-entropy minus the mean soft Dice of the foreground classes; -1 is perfect.

    logits : (N, C, *space).  target : (N, *space) int64 in 0..C-1.
    batch_dice : sums over the whole batch, so that a slice without a structure contributes its false positives;
    otherwise the Dice of each sample by itself, where a class absent from both counts as 1.  All sums are float32.
    """
    logits = logits.float()
    probabilities = logits.softmax(1)
    one_hot = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1)
    over = tuple(range(2, logits.ndim)) if not batch_dice else (0, *range(2, logits.ndim))
    overlap, total = (probabilities * one_hot).sum(over), probabilities.sum(over) + one_hot.sum(over)
    dice = (2 * overlap + smooth) / (total + smooth).clamp(min=1e-8)                     # ([N,] C)
    return F.cross_entropy(logits, target) - dice[..., 1:].mean()


def deep_supervision_weights(heads):
    """Weight of each decoder stage's loss, finest first: halved at each, the coarsest 0, summing to 1."""
    raw = [2.0 ** -i for i in range(heads - 1)] + [0.0] if heads > 1 else [1.0]
    return [w / sum(raw) for w in raw]


def deep_supervision_loss(outputs, target, batch_dice):
    """Weighted `dice_ce_loss` over the logits of all decoder stages, finest first; one of weight 0 is not evaluated.

    target : (N, *space) of the finest; the coarser ones see it through "nearest-exact" sampling.
    """
    total = 0.0
    for weight, logits in zip(deep_supervision_weights(len(outputs)), outputs):
        if weight:
            coarse = F.interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
            total = total + weight * dice_ce_loss(logits, coarse, batch_dice)
    return total


@torch.no_grad()
def predict(net, image, patch, flips, at_a_time):
    """Logits (n_classes, Z, Y, X) float32 of a z-scored volume (Z, Y, X), from half-overlapping tiles.

    patch : size of a tile, (y, x) or (z, y, x).  flips : tuples of axes; in each tile the logits of the image mirrored
    along every one are turned back and averaged.  at_a_time : patches that the network sees at once.
    Tiles are weighted by `importance` and summed in float32.  A volume smaller than the patch is padded with 0.
    """
    dims, device = len(patch), next(net.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    x = x[:, None] if dims == 2 else x[None, None]                # (N, 1, *space)
    x, inside = _padded(x, patch)
    axes = [[slice(start, start + p) for start in tile_starts(n, p)] for n, p in zip(x.shape[2:], patch)]
    tiles = list(itertools.product(*axes))
    weights, total, weight = importance(patch).to(device), None, x.new_zeros(x.shape[2:])
    for tile in tiles:
        weight[tile] += weights * len(flips)
    jobs = [((n, slice(None), *tile), axes) for tile in tiles for n in range(len(x)) for axes in flips]
    for start in range(0, len(jobs), at_a_time):
        chunk = jobs[start:start + at_a_time]
        found = net(torch.stack([x[place].flip(axes) for place, axes in chunk])).float()
        if total is None:
            total = x.new_zeros(len(x), found.shape[1], *x.shape[2:])
        for (place, axes), logits in zip(chunk, found):
            total[place] += weights * logits.flip(axes)
    logits = (total / weight)[(..., *inside)]
    return (logits.transpose(0, 1) if dims == 2 else logits[0]).cpu().numpy()


def _padded(x, patch):
    """(x (N, 1, *space) padded with 0 to at least the patch, slices that cut the padding off again)."""
    space = x.shape[2:]
    missing = [max(0, p - n) for n, p in zip(space, patch)]
    before = [m // 2 for m in missing]
    pairs = [(b, m - b) for b, m in zip(before, missing)]
    last_axis_first = [amount for pair in reversed(pairs) for amount in pair]
    return F.pad(x, last_axis_first), tuple(slice(b, b + n) for b, n in zip(before, space))


def tile_starts(size, patch):
    """First voxels of tiles that overlap by at least half and cover the axis evenly."""
    n = max(1, math.ceil((size - patch) / (patch / 2)) + 1)
    return [round(i * (size - patch) / (n - 1)) if n > 1 else 0 for i in range(n)]


def importance(patch):
    """Gaussian weight of a tile's voxels: sigma an eighth of its size, 10 at the centre.

    Rounded to float16 and never 0, as in nnU-Net.
    """
    squares = [((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 8)) ** 2 for n in patch]
    weights = (10 * torch.exp(-0.5 * sum(torch.meshgrid(*squares, indexing="ij")))).half().float()
    return torch.where(weights == 0, weights[weights > 0].min(), weights)


def softmax(logits):
    """Over axis 0, float32."""
    return torch.from_numpy(logits).softmax(0).numpy()
