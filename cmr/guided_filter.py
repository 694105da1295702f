"""The guided filter: one image's brightness with another's edges, so that a projection keeps the anatomy to the pixel.

Which images are filtered, and how wide, says `cmr.sampler`.

Public: `guided`.
"""
import numpy as np
from scipy import ndimage

FLAT = 1e-3                                      # variance below which a window is taken for flat


def guided(guide, image, sigma):
    """Guided filter (He, Sun & Tang 2013, eqs. 5, 6 and 8) with Gaussian windows: `image` with the edges of `guide`.

    guide, image : (D, H, W) in [-1, 1].  sigma : SD of the windows in-plane, pixels.  In every window the result is the
    linear function of the guide that is closest to the image; so it has an edge only where the guide has one, whatever
    the image shows there, and what is finer than the windows is the guide's.
    """
    y, x = np.asarray(guide, np.float64), np.asarray(image, np.float64)
    mean = lambda a: ndimage.gaussian_filter(a, (0, sigma, sigma), mode="nearest")
    mean_y, mean_x = mean(y), mean(x)
    slope = (mean(x * y) - mean_x * mean_y) / (mean(y * y) - mean_y ** 2 + FLAT)
    return np.clip(mean(slope) * y + mean(mean_x - slope * mean_y), -1, 1).astype(np.float32)
