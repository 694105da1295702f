"""What translation costs without diffusion: Fourier domain adaptation and a swap of low frequencies.

The third competitor, histogram matching, is `cmr.intensities.match_quantiles`, which the sampler can use too.

All images in [-1, 1].  Public: `fda`, `low_pass_swap`.
They know no diffusion model; matching of histograms is in `cmr.intensities`.
"""
import numpy as np
import torch

from cmr.bands import Band, band_mask


def fda(image, style, beta=0.03):
    """Fourier domain adaptation (Yang & Soatto 2020) of a slice: low-frequency amplitude of `style`, phase of `image`.

    image, style : (H, W).  beta : half-width of the swapped square window, as a share of the smaller edge.
    """
    own, other = np.fft.fftshift(np.fft.fft2(image)), np.fft.fftshift(np.fft.fft2(style))
    h, w = image.shape
    half = max(1, int(beta * min(h, w)))
    window = np.s_[h // 2 - half:h // 2 + half + 1, w // 2 - half:w // 2 + half + 1]
    amplitude = np.abs(own)
    amplitude[window] = np.abs(other)[window]
    swapped = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(own))))
    return np.clip(swapped.real, -1, 1).astype(np.float32)


def low_pass_swap(image, style, spacing_mm, shortest_mm=64.0):
    """x - phi(x) + phi(style): the low-pass guidance of the sampler without any network; (H, W) slices."""
    phi = Band(band_mask(*image.shape, spacing_mm, shortest_mm))
    x, y = torch.from_numpy(np.array(image, np.float64)), torch.from_numpy(np.array(style, np.float64))
    return (x + phi(y - x)).clamp(-1, 1).numpy().astype(np.float32)
