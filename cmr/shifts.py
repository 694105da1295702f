"""Random changes of appearance that leave the anatomy where it is: a scanner change made of known parts.

For calibrating what a translation gains (`cmr.choose`), and for references whose look is varied before they are
projected.  Public: `random_shift`, `rescaled`.
"""
import numpy as np
from scipy import ndimage

GAMMA_SD, SHADING, BLUR_MM, NOISE_SD, ZOOM = 0.4, 0.7, 3.0, 0.10, 0.5


def random_shift(image, spacing_mm, g, strength=1.0):
    """Contrast, coil shading, sharpness, noise and resolution of a working volume (D, H, W) in [-1, 1], changed at random.

    spacing_mm : in-plane.  g : numpy Generator.  strength : 0 changes nothing, 1 is about as far as another vendor.
    The result is scaled to [-1, 1] as every working volume is.
    """
    u = (np.asarray(image, np.float64) + 1) / 2
    u = u ** np.exp(strength * GAMMA_SD * g.standard_normal())
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in u.shape[1:]), indexing="ij")
    a, b, c, d = strength * SHADING * g.uniform(-0.5, 0.5, 4)
    u = u * np.exp(a * x + b * y + c * (x ** 2 + y ** 2 - 2 / 3) + d * x * y)                   # one coil for all slices
    if g.random() < 0.5:                                                                        # softer, or sharper
        u = ndimage.gaussian_filter(u, (0, *[strength * g.uniform(0, BLUR_MM) / spacing_mm] * 2))
    else:
        u = u + strength * g.uniform(0, 1) * (u - ndimage.gaussian_filter(u, (0, *[BLUR_MM / spacing_mm] * 2)))
    if g.random() < 0.3:                                                                        # acquired coarser, interpolated back
        factor = 1 - strength * g.uniform(0, ZOOM)
        small = [max(2, round(n * factor)) for n in u.shape[1:]]
        lower = ndimage.zoom(u, (1, *np.divide(small, u.shape[1:])), order=1, grid_mode=True, mode="nearest")
        u = ndimage.zoom(lower, (1, *np.divide(u.shape[1:], small)), order=1, grid_mode=True, mode="nearest")
    u = u + strength * g.uniform(0, NOISE_SD) * g.standard_normal(u.shape)
    return rescaled(u)


def rescaled(u):
    """The 0.5 and 99.5 percentiles of a volume to -1 and 1, clipped beyond; float32."""
    low, high = np.percentile(u, [0.5, 99.5])
    return np.clip((u - low) / max(high - low, 1e-6) * 2 - 1, -1, 1).astype(np.float32)
