"""DCT band filters: which wavelengths of the reference, in mm, the sampler copies at every step.

A 0/1 mask on the orthonormal DCT-II is an exact orthogonal projection with mirror borders.  That matters: a smooth
filter leaves a band where two independent noises mix to too little variance, and interpolation without antialiasing
amplifies noise. The guided filter, the usual way to keep a reference, is in `cmr.guided_filter`.

Public: `dct_matrix`, `band_mask`, `Band`, `copied_band`.
"""
import functools

import torch

from cmr.diffusion import noised
from cmr.seeds import generator


@functools.lru_cache(maxsize=16)
def dct_matrix(n):
    """Orthonormal DCT-II, (n, n) float64: C[k, j] = sqrt(2/n) cos(pi (j + 1/2) k / n), row 0 over sqrt 2."""
    k, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    c = (2 / n) ** 0.5 * torch.cos(torch.pi * (j + 0.5) * k / n)
    c[0] /= 2 ** 0.5
    return c


def band_mask(height, width, spacing_mm, shortest_mm, longest_mm=None):
    """0/1 weights (H, W) of DCT indices whose wavelength lies in [shortest_mm, longest_mm].

    Index k along an axis of n pixels has the wavelength 2 n spacing / k.  longest_mm None keeps the mean and everything
    long as well (low-pass); otherwise the lowest block is left out (band-pass): mean, shading and global contrast are
    free.
    """
    def cut(wavelength_mm, n):
        return round(2 * n * spacing_mm / wavelength_mm)
    k, l = torch.arange(height)[:, None], torch.arange(width)[None]
    keep = (k < cut(shortest_mm, height)) & (l < cut(shortest_mm, width))
    if longest_mm is not None:
        keep &= ~((k < cut(longest_mm, height)) & (l < cut(longest_mm, width)))
    return keep.double()


class Band:
    """The projection phi(x) = C^T (mask * (C x C^T)) C on the last two axes of a tensor (..., H, W)."""

    def __init__(self, mask):
        self.mask = mask
        self.rows, self.columns = dct_matrix(mask.shape[0]), dct_matrix(mask.shape[1])

    def __call__(self, x):
        c, d, mask = (m.to(device=x.device, dtype=x.dtype) for m in (self.rows, self.columns, self.mask))
        return c.T @ (mask * (c @ x @ d.T)) @ d


def copied_band(schedule, strength, spacing_mm, y_0, seed):
    """(edit, refine) for `cmr.diffusion.denoise` that copy the strength's band of the reference; None where nothing is.

    y_0 : (N, 1, H, W), the reference.  Below strength.t_stop nothing is copied.
    mode x0 copies in the predicted clean image: signal and noise stay consistent for any eta.  mode state is classic
    ILVR: the reference carries the noise level of the *destination* s (Choi et al. 2021, Algorithm 1; a public port
    noises it at t instead), drawn from `seed`.
    """
    if not strength.shortest_mm:
        return None, None
    height, width = y_0.shape[-2:]
    phi = Band(band_mask(height, width, spacing_mm, strength.shortest_mm, strength.longest_mm or None))
    if strength.mode == "x0":
        return (lambda x_0, t: x_0 + phi(y_0 - x_0) if t >= strength.t_stop else x_0), None
    g = generator(*seed, "refine")

    def refine(x_s, s):
        z = torch.randn(1, 1, height, width, generator=g).to(y_0.device)
        return x_s + phi(noised(schedule, y_0, s, z) - x_s) if s >= strength.t_stop else x_s
    return None, refine
