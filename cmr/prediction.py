"""A network over a whole volume: tile by tile, mirrored, weighted, averaged.

What a network sees of a volume is prepared by its own file.

Public: `predict`, `tile_starts`, `importance`, `softmax`.
"""
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F


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
