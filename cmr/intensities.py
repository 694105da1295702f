"""The source's intensities, and ways to match an image to them without a diffusion model.  All images in [-1, 1].

The sampler may match mean and standard deviation before it projects; histogram matching and Fourier domain adaptation
(FDA) are competitors of the projection.

Public: `QUANTILES`, `intensity_statistics`, `match_mean_std`, `match_quantiles`, `fda`.
"""
import numpy as np

QUANTILES = np.linspace(0, 1, 257)


def intensity_statistics(images):
    """(mean quantile function of volumes at QUANTILES (257,), mean of their means, mean of their SDs)."""
    images = [np.asarray(x, np.float64) for x in images]
    quantiles = np.mean([np.quantile(x, QUANTILES) for x in images], 0)
    return quantiles, np.mean([x.mean() for x in images]), np.mean([x.std() for x in images])


def match_mean_std(image, mean, std):
    """Shift and scale a volume linearly to the given mean and standard deviation; clipped to [-1, 1]."""
    return np.clip((image - image.mean()) / max(float(image.std()), 1e-6) * std + mean, -1, 1).astype(np.float32)


def match_quantiles(image, quantiles):
    """Histogram matching of a volume: each voxel's rank goes to that quantile of the source, (257,) at QUANTILES."""
    own = np.quantile(image, QUANTILES) + np.arange(257) * 1e-9   # clipped voxels tie; keep the axis increasing
    return np.interp(np.interp(image, own, QUANTILES), QUANTILES, quantiles).astype(np.float32)


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
