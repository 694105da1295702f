"""Random changes of look that leave the anatomy where it is: what contrast, coil, sharpness and noise do to an image.

DG changes the look of some of its references with them before they are projected (`cmr.synthesize`).

Public: `random_shift`.
"""
import numpy as np
from scipy import ndimage

GAMMA_SD, SHADING, BLUR_MM, NOISE_SD, ZOOM = 0.4, 0.7, 3.0, 0.10, 0.5


def random_shift(image, spacing_mm, g, strength=1.0):
    """Change contrast, coil shading, sharpness, resolution and noise of a volume (D, H, W) in [-1, 1] at random.

    spacing_mm : in-plane.  g : numpy Generator.  strength : 0 changes nothing, 1 is about as far as another vendor.
    The result is scaled to [-1, 1] as every working volume is; geometry and mask stay as they are.
    """
    u = (np.asarray(image, np.float64) + 1) / 2
    u = u ** np.exp(strength * GAMMA_SD * g.standard_normal())
    u = u * _shading(u.shape[1:], strength * SHADING * g.uniform(-0.5, 0.5, 4))
    if g.random() < 0.5:                                          # softer, or sharper
        u = _blurred(u, strength * g.uniform(0, BLUR_MM) / spacing_mm)
    else:
        u = u + strength * g.uniform(0, 1) * (u - _blurred(u, BLUR_MM / spacing_mm))
    if g.random() < 0.3:
        u = _coarser(u, 1 - strength * g.uniform(0, ZOOM))
    u = u + strength * g.uniform(0, NOISE_SD) * g.standard_normal(u.shape)
    low, high = np.percentile(u, [0.5, 99.5])
    return np.clip((u - low) / max(high - low, 1e-6) * 2 - 1, -1, 1).astype(np.float32)


def _shading(shape, coefficients):
    """Receive sensitivity (H, W): the exponential of a polynomial, one coil for all slices."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    a, b, c, d = coefficients
    return np.exp(a * x + b * y + c * (x ** 2 + y ** 2 - 2 / 3) + d * x * y)


def _blurred(volume, sigma):
    """In-plane; sigma in pixels."""
    return ndimage.gaussian_filter(volume, (0, sigma, sigma))


def _coarser(volume, factor):
    """Acquired on a grid of `factor` times as many pixels along each in-plane axis, and interpolated back."""
    shape = volume.shape[1:]
    small = [max(2, round(n * factor)) for n in shape]
    zoom = lambda a, by: ndimage.zoom(a, (1, *by), order=1, grid_mode=True, mode="nearest")
    return zoom(zoom(volume, np.divide(small, shape)), np.divide(shape, small))
