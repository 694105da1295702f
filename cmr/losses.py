"""Segmentation losses: soft Dice plus cross-entropy.

Public: `dice_ce_loss`.
"""
import torch
import torch.nn.functional as F


def dice_ce_loss(logits, target, smooth=1e-5):
    """1 - mean soft Dice of the foreground classes, plus mean cross-entropy.

    logits : (N, C, *space).  target : (N, *space) int64 in 0..C-1.  Dice is computed over the whole batch (batch dice), so
    a slice without a structure contributes its false positives instead of an undefined ratio; a class absent from both
    counts as 1.
    """
    probabilities = logits.float().softmax(1)
    one_hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    over = (0, *range(2, logits.ndim))
    overlap, total = (probabilities * one_hot).sum(over), probabilities.sum(over) + one_hot.sum(over)
    dice = (2 * overlap + smooth) / (total + smooth)
    return F.cross_entropy(logits.float(), target) + 1 - dice[1:].mean()
