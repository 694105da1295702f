"""Two ways to keep the reference's anatomy while the source-domain diffusion model (SD-DM) redraws its look.

The paper's `low_pass_distance` pulls at every step; `guided_filter`, which is ours, changes the finished image.
"""
import functools

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

FLAT = 1e-3                                      # variance below which a window of the guide counts as flat


def low_pass_distance(reference, factor):
    """Return the function x_0 -> || phi(reference) - phi(x_0) ||_2 from images (N, 1, H, W) to (N,); phi is `low_pass`.

    Traps: the norm is each image's, not the batch's, and not squared; at distance 0 the clamp makes its gradient 0.
    """
    kept = low_pass(reference, factor)

    def distance(x_0):
        squared = ((kept - low_pass(x_0, factor)) ** 2).flatten(1).sum(1)
        return squared.clamp(min=1e-12).sqrt()
    return distance


def low_pass(image, factor):
    """Return phi_D: images (N, 1, H, W) shrunk by `factor` with antialiasing and enlarged again, both by cubics."""
    height, width = image.shape[-2:]
    rows, columns = (_down_and_up(n, factor).to(image) for n in (height, width))
    return rows @ image @ columns.T


@functools.lru_cache(maxsize=16)
def _down_and_up(n, factor):
    """Return the (n, n) float64 matrix of `low_pass` along an axis; raises ValueError if `factor` does not divide n."""
    if n % factor:
        raise ValueError(f"low-pass by {factor}: {n} pixels are no multiple of it")
    # Trap: each row of weights sums to 1.  A border that mixes with zeros from beyond it, as in the guidance's original
    # code, darkens.  `antialias` is needed upwards too: without it torch's cubic is not that of Keys (1981, a = -0.5).
    cubic = functools.partial(F.interpolate, mode="bicubic", antialias=True)
    return cubic(cubic(torch.eye(n, dtype=torch.float64)[None, None], (n // factor, n)), (n, n))[0, 0]


def guided_filter(guide, image, sigma):
    """Give `image` (D, H, W) the edges of `guide` by the guided filter (He et al. 2013); sigma : in-plane pixels."""
    y, x = np.asarray(guide, np.float64), np.asarray(image, np.float64)
    mean = lambda a: ndimage.gaussian_filter(a, (0, sigma, sigma), mode="nearest")
    mean_y, mean_x = mean(y), mean(x)
    slope = (mean(x * y) - mean_x * mean_y) / (mean(y * y) - mean_y ** 2 + FLAT)     # Eq. 5
    offset = mean_x - slope * mean_y                                                 # Eq. 6
    return np.clip(mean(slope) * y + mean(offset), -1, 1).astype(np.float32)         # Eq. 8
