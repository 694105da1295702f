"""What a segmenter must provide, and what all share: the losses and prediction of a whole volume in tiles."""
import itertools
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Network:
    build: Callable                              # (settings, n_classes, plan) -> untrained torch module
    recipe: Callable                             # (train_unet.Config, TrainingData, device) -> Recipe
    logits: Callable                             # (net, image, spacing_mm, plan, mirror) -> (n_classes, D, H, W)
    presets: dict                                # preset -> {setting of train_unet.py: value}
    check: Callable = lambda settings: None      # raises UsageError for settings that make no such network or training
    augments: bool = False                       # its recipe always changes intensities: there is no row *augmented*


@dataclass(frozen=True)
class TrainingData:
    """The working volumes of one training run; their labels are the network's classes, and 0 is the background."""
    volumes: list                                # the volumes that are trained on
    validation: list                             # volumes of the same domain, to watch the training
    real: list                                   # the domain's real training volumes, from which an nnU-Net plans
    n_classes: int                               # number of classes, background included


@dataclass(frozen=True)
class Recipe:
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int                              # samples per step
    batch: Callable                              # (step, range of its samples) -> (images (n, 1, *space) float32,
                                                 # labels (n, *space) int64), on the CPU
    learning_rate: Callable                      # step -> learning rate
    loss: Callable                               # (network output, labels) -> scalar
    clip_norm: float = None                      # gradients are clipped to this norm; None: not clipped
    validate: Callable = None                    # (network, epoch) -> pseudo-Dice per structure, at the end of an epoch
    plan: dict = None                            # plain values that, with the settings, define the network


def dice_ce_loss(logits, target, batch_dice=True, smooth=1e-5):
    """Return the mean cross-entropy minus the mean soft Dice of the foreground classes, a scalar; -1 is perfect.

    logits : (N, C, *space).  target : (N, *space) int64 in 0..C-1.  batch_dice : over the whole batch, so that a slice
    without a structure counts by its false positives; otherwise by sample, and 1 for a class that neither has.
    """
    logits = logits.float()
    probabilities = logits.softmax(1)
    one_hot = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1)
    axes = [axis for axis in range(logits.ndim) if axis > 1 or axis == 0 and batch_dice]
    overlap, total = (probabilities * one_hot).sum(axes), probabilities.sum(axes) + one_hot.sum(axes)
    dice = (2 * overlap + smooth) / (total + smooth).clamp(min=1e-8)                     # ([N,] C)
    return F.cross_entropy(logits, target) - dice[..., 1:].mean()


def deep_supervision_weights(n_outputs):
    """Return the weight of each resolution's loss, finest first; each is half the one before, the last 0, the sum 1."""
    raw = [2.0 ** -i for i in range(n_outputs - 1)] + [0.0] if n_outputs > 1 else [1.0]
    return [w / sum(raw) for w in raw]


def deep_supervision_loss(outputs, target, batch_dice):
    """Return the weighted sum of `dice_ce_loss` over logits, finest first; the target (N, *space) is at the finest."""
    total = 0.0
    for weight, logits in zip(deep_supervision_weights(len(outputs)), outputs):
        if weight:
            coarse = F.interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
            total = total + weight * dice_ce_loss(logits, coarse, batch_dice)
    return total


@torch.no_grad()
def predict(net, image, patch, flips, at_a_time):
    """Return logits (n_classes, Z, Y, X) float32 of a z-scored volume (Z, Y, X), from half-overlapping tiles.

    patch : size of a tile, (y, x) or (z, y, x); a smaller volume is padded with 0.  flips : tuples of axes; each tile
    is predicted mirrored along the axes of every tuple.  at_a_time : number of tiles in one network call.
    """
    dims, device = len(patch), next(net.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    x = x[:, None] if dims == 2 else x[None, None]                # (N, 1, *space)
    space = x.shape[2:]
    missing = [max(0, p - n) for n, p in zip(space, patch)]
    x = F.pad(x, [amount for m in reversed(missing) for amount in (m // 2, m - m // 2)])     # last axis first
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
    """Return the first voxels of tiles that cover an axis of `size` voxels evenly and overlap by at least half."""
    n = max(1, math.ceil((size - patch) / (patch / 2)) + 1)
    return [round(i * (size - patch) / (n - 1)) if n > 1 else 0 for i in range(n)]


def importance(patch):
    """Return Gaussian weights of a tile's voxels in float16 precision: 10 at the centre, nowhere 0, SD size / 8."""
    squares = [((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 8)) ** 2 for n in patch]
    weights = (10 * torch.exp(-0.5 * sum(torch.meshgrid(*squares, indexing="ij")))).half().float()
    return torch.where(weights == 0, weights[weights > 0].min(), weights)


def softmax(logits):
    return torch.from_numpy(logits).softmax(0).numpy()
