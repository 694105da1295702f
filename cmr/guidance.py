"""What keeps the reference's anatomy while the source-domain diffusion model (SD-DM) redraws its look.

Two ways, and which of them is taken says `cmr.sampler`: the paper's sampler pulls every step towards the reference by
the distance of the low-passed images; the guided filter gives the finished image the reference's edges.

Public: `low_pass`, `low_pass_distance`, `guided_filter`.
"""
import functools

import numpy as np
import torch
from scipy import ndimage

FLAT = 1e-3                                      # variance below which a window is taken for flat


def low_pass(image, factor):
    """phi_D: an image (N, 1, H, W) made smaller by `factor` and as large again, cubic, antialiased on the way down."""
    height, width = image.shape[-2:]
    rows, columns = (_down_and_up(n, factor).to(image) for n in (height, width))
    return rows @ image @ columns.T


@functools.lru_cache(maxsize=16)
def _down_and_up(n, factor):
    """(n, n) float64 matrix of `low_pass` along one axis; every row sums to 1, so that a constant stays constant.

    Without that a border is mixed with zeros from beyond it and darkens, as in the original code.
    """
    if n % factor:
        raise ValueError(f"low-pass by {factor}: {n} pixels are no multiple of it")
    small = n // factor
    down = _cubic((np.arange(small)[:, None] + 0.5) * factor - 0.5 - np.arange(n), factor)
    up = _cubic((np.arange(n)[:, None] + 0.5) / factor - 0.5 - np.arange(small), 1)
    return torch.from_numpy(up @ down)


def _cubic(distance, width):
    """Rows of cubic interpolation weights (Keys 1981, a = -0.5), the kernel stretched by `width`, normalised."""
    x = np.abs(distance) / width
    near, far = 1.5 * x ** 3 - 2.5 * x ** 2 + 1, -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def low_pass_distance(reference, factor):
    """The function x_0 -> || phi(reference) - phi(x_0) ||_2, (N,): each image's own norm, not squared.

    reference, x_0 : (N, 1, H, W).  At distance 0 the gradient of a norm is 0 / 0; here it is 0.
    """
    kept = low_pass(reference, factor)

    def distance(x_0):
        squared = ((kept - low_pass(x_0, factor)) ** 2).flatten(1).sum(1)
        return squared.clamp(min=1e-12).sqrt()
    return distance


def guided_filter(guide, image, sigma):
    """Give `image` the edges of `guide`: the guided filter (He, Sun & Tang 2013, eqs. 5, 6 and 8), Gaussian windows.

    guide, image : (D, H, W) in [-1, 1].  sigma : SD of the windows in-plane, pixels.  In every window the result is the
    linear function of the guide that is closest to the image; so it has an edge only where the guide has one, whatever
    the image shows there, and what is finer than the windows is the guide's.
    """
    y, x = np.asarray(guide, np.float64), np.asarray(image, np.float64)
    mean = lambda a: ndimage.gaussian_filter(a, (0, sigma, sigma), mode="nearest")
    mean_y, mean_x = mean(y), mean(x)
    slope = (mean(x * y) - mean_x * mean_y) / (mean(y * y) - mean_y ** 2 + FLAT)
    return np.clip(mean(slope) * y + mean(mean_x - slope * mean_y), -1, 1).astype(np.float32)
