"""Segmentation losses: cross-entropy minus soft Dice, and deep supervision (nnU-Net's, used by all three networks).

How batches are made is in each network's recipe.

Public: `dice_ce_loss`, `deep_supervision_weights`, `deep_supervision_loss`.
"""
import torch
import torch.nn.functional as F


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
