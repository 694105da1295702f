"""What a segmenter must provide, and what all of them share: the losses, and the way over a whole volume.

A segmenter is a file with three functions, put together as a `Network`: one builds the untrained network, one says how
it is trained, one asks it for the logits of a volume.  `train_unet.py` is the loop around them.

Public: `Network`, `TrainingData`, `Recipe`, `dice_ce_loss`, `deep_supervision_weights`, `deep_supervision_loss`,
`predict`, `tile_starts`, `importance`, `softmax`.
"""
import itertools
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Network:
    """One segmenter: an entry of `cmr.segmenter.NETWORKS`."""
    build: Callable                              # (settings, n_classes, plan) -> untrained torch module
    recipe: Callable                             # (train_unet.Config, TrainingData, device) -> Recipe
    logits: Callable                             # (net, image, spacing_mm, plan, mirror) -> (n_classes, D, H, W)
    presets: dict                                # preset -> {setting of train_unet.py: value}


@dataclass(frozen=True)
class TrainingData:
    """The working volumes of one training run; their labels are classes of the network, 0 (background) and up."""
    volumes: list                                # what is trained on
    validation: list                             # of the same domain, to look at the network while it is trained
    real: list                                   # the domain's real training volumes, from which an nnU-Net plans
    n_classes: int                               # background included


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


def dice_ce_loss(logits, target, batch_dice=True, smooth=1e-5):
    """Mean cross-entropy minus the mean soft Dice of the foreground classes; -1 is perfect.

    logits : (N, C, *space).  target : (N, *space) int64 in 0..C-1.
    batch_dice : sum over the whole batch, so that a slice without a structure contributes its false positives;
    otherwise the Dice of each sample by itself, which is 1 for a class that neither has.  All sums are float32.
    """
    logits = logits.float()
    probabilities = logits.softmax(1)
    one_hot = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1)
    axes = [axis for axis in range(logits.ndim) if axis > 1 or axis == 0 and batch_dice]
    overlap, total = (probabilities * one_hot).sum(axes), probabilities.sum(axes) + one_hot.sum(axes)
    dice = (2 * overlap + smooth) / (total + smooth).clamp(min=1e-8)                     # ([N,] C)
    return F.cross_entropy(logits, target) - dice[..., 1:].mean()


def deep_supervision_weights(n_outputs):
    """Weight of the loss at each resolution, finest first: halved at each, 0 at the coarsest, 1 in sum."""
    raw = [2.0 ** -i for i in range(n_outputs - 1)] + [0.0] if n_outputs > 1 else [1.0]
    return [w / sum(raw) for w in raw]


def deep_supervision_loss(outputs, target, batch_dice):
    """Weighted sum of `dice_ce_loss` over the logits at all resolutions, finest first.

    target : (N, *space) of the finest; for the others it is sampled to their size by nearest neighbour.
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

    patch : size of a tile, (y, x) or (z, y, x); a smaller volume is padded with 0.
    flips : tuples of axes.  Each tile is seen mirrored along the axes of every tuple; the logits are turned back.
    at_a_time : patches that the network sees at once.
    The logits of tiles and flips are averaged with the weights of `importance`.
    """
    dims, device = len(patch), next(net.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    x = x[:, None] if dims == 2 else x[None, None]                # (N, 1, *space)
    space = x.shape[2:]
    missing = [max(0, p - n) for n, p in zip(space, patch)]
    x = F.pad(x, [amount for m in reversed(missing) for amount in (m // 2, m - m // 2)])     # the last axis first
    starts = [tile_starts(n, p) for n, p in zip(x.shape[2:], patch)]
    tiles = [tuple(slice(s, s + p) for s, p in zip(corner, patch)) for corner in itertools.product(*starts)]
    jobs = [((n, slice(None), *tile), axes) for tile in tiles for n in range(len(x)) for axes in flips]
    weights, total, weight = importance(patch).to(device), None, x.new_zeros(x.shape[2:])
    for tile in tiles:
        weight[tile] += weights * len(flips)
    for start in range(0, len(jobs), at_a_time):
        chunk = jobs[start:start + at_a_time]
        found = net(torch.stack([x[place].flip(axes) for place, axes in chunk])).float()
        if total is None:
            total = x.new_zeros(len(x), found.shape[1], *x.shape[2:])
        for (place, axes), logits in zip(chunk, found):
            total[place] += weights * logits.flip(axes)
    inside = [slice(m // 2, m // 2 + n) for m, n in zip(missing, space)]
    logits = (total / weight)[(..., *inside)]
    return (logits.transpose(0, 1) if dims == 2 else logits[0]).cpu().numpy()


def tile_starts(size, patch):
    """First voxels of tiles that overlap by at least half and cover the axis evenly."""
    n = max(1, math.ceil((size - patch) / (patch / 2)) + 1)
    return [round(i * (size - patch) / (n - 1)) if n > 1 else 0 for i in range(n)]


def importance(patch):
    """Gaussian weight of a tile's voxels: sigma an eighth of its size, 10 at the centre, never 0, in float16 steps."""
    squares = [((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 8)) ** 2 for n in patch]
    weights = (10 * torch.exp(-0.5 * sum(torch.meshgrid(*squares, indexing="ij")))).half().float()
    return torch.where(weights == 0, weights[weights > 0].min(), weights)


def softmax(logits):
    """Over axis 0, float32."""
    return torch.from_numpy(logits).softmax(0).numpy()
