"""Two ways to keep the reference's anatomy while the source-domain diffusion model (SD-DM) redraws its look.

The paper's `low_pass_distance` pulls at every step; `guided_filter`, which is ours, changes the finished image.
"""
import functools

import numpy as np
import torch
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
    small = n // factor
    down = _cubic((np.arange(small)[:, None] + 0.5) * factor - 0.5 - np.arange(n), factor)
    up = _cubic((np.arange(n)[:, None] + 0.5) / factor - 0.5 - np.arange(small), 1)
    return torch.from_numpy(up @ down)


def _cubic(distance, width):
    """Return rows of cubic interpolation weights (Keys 1981, a = -0.5) at pixel distances, stretched by `width`."""
    x = np.abs(distance) / width
    near, far = 1.5 * x ** 3 - 2.5 * x ** 2 + 1, -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    # Trap: without this sum a border mixes with zeros from beyond it and darkens, as in the guidance's original code.
    return weights / weights.sum(1, keepdims=True)


def guided_filter(guide, image, sigma):
    """Give `image` (D, H, W) the edges of `guide` by the guided filter (He et al. 2013); sigma : in-plane pixels."""
    y, x = np.asarray(guide, np.float64), np.asarray(image, np.float64)
    mean = lambda a: ndimage.gaussian_filter(a, (0, sigma, sigma), mode="nearest")
    mean_y, mean_x = mean(y), mean(x)
    slope = (mean(x * y) - mean_x * mean_y) / (mean(y * y) - mean_y ** 2 + FLAT)     # Eq. 5
    offset = mean_x - slope * mean_y                                                 # Eq. 6
    return np.clip(mean(slope) * y + mean(offset), -1, 1).astype(np.float32)         # Eq. 8
