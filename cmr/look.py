"""How to match the source's intensities, and random changes of look that keep the anatomy; images are in [-1, 1]."""
import numpy as np
from scipy import ndimage

from cmr.nnunet_preprocess import from_zero, nonzero_box

QUANTILES = np.linspace(0, 1, 257)
FDA_MM = 160                                     # wavelength; all that are as long or longer are swapped
GAMMA_SD, SHADING, BLUR_MM, NOISE_SD, ZOOM = 0.4, 0.7, 3.0, 0.10, 0.5                # sizes of `random_shift`


def field_of_view(image):
    """Return the box (slices) of a volume (D, H, W) outside which it is -1: padding, where nothing was imaged."""
    box, _ = nonzero_box(from_zero(image))
    return box


def padded_as(reference, image):
    """Return a volume that is `image` within the field of view of `reference` and -1 outside; both are (D, H, W).

    Trap: an nnU-Net crops padding before it z-scores, so padding that a change of look moved from -1 changes its input.
    """
    result, box = np.full(np.shape(image), -1, np.float32), field_of_view(reference)
    result[box] = image[box]
    return result


def intensity_statistics(images):
    """Return the averages over volumes of (quantiles at QUANTILES, which are (257,), mean, standard deviation)."""
    images = [np.asarray(x, np.float64)[field_of_view(x)] for x in images]
    quantiles = np.mean([np.quantile(x, QUANTILES) for x in images], 0)
    return quantiles, np.mean([x.mean() for x in images]), np.mean([x.std() for x in images])


def match_mean_std(image, mean, std):
    """Shift and scale a volume linearly to the given mean and standard deviation; clipped to [-1, 1]."""
    seen = image[field_of_view(image)]
    return padded_as(image, np.clip((image - seen.mean()) / max(float(seen.std()), 1e-6) * std + mean, -1, 1))


def match_quantiles(image, quantiles):
    """Match a volume's histogram to the source's `quantiles` (257,): each voxel gets the quantile of its rank."""
    seen = image[field_of_view(image)]
    before = np.quantile(seen, QUANTILES) + np.arange(257) * 1e-9        # increasing although clipped voxels are equal
    return padded_as(image, np.interp(np.interp(image, before, QUANTILES), QUANTILES, quantiles))


def fda(image, style, spacing_mm):
    """Give the slice `image` (H, W) the low-frequency amplitudes of the slice `style` (FDA, Yang & Soatto 2020).

    The swapped window is said in mm, so that it means the same on every grid.
    """
    of_image, of_style = (np.fft.fftshift(np.fft.fft2(x)) for x in (image, style))
    h, w = image.shape
    half = max(1, int(min(h, w) * spacing_mm / FDA_MM))
    window = np.s_[h // 2 - half:h // 2 + half + 1, w // 2 - half:w // 2 + half + 1]
    amplitude = np.abs(of_image)
    amplitude[window] = np.abs(of_style)[window]
    swapped = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(of_image))))
    return np.clip(swapped.real, -1, 1).astype(np.float32)


def random_shift(image, spacing_mm, g, amount=1.0):
    """Change contrast, coil shading, sharpness, resolution and noise of a volume (D, H, W) at random, within [-1, 1].

    spacing_mm : in-plane.  g : numpy Generator.  amount : size of the changes.
    """
    blurred = lambda volume, mm: ndimage.gaussian_filter(volume, (0, mm / spacing_mm, mm / spacing_mm))
    u = (np.asarray(image, np.float64) + 1) / 2
    u = u ** np.exp(amount * GAMMA_SD * g.standard_normal())
    u = u * _shading(u.shape[1:], amount * SHADING * g.uniform(-0.5, 0.5, 4))
    if g.random() < 0.5:                                          # the volume gets softer, else sharper
        u = blurred(u, amount * g.uniform(0, BLUR_MM))
    else:
        u = u + amount * g.uniform(0, 1) * (u - blurred(u, BLUR_MM))
    if g.random() < 0.3:
        u = _coarser(u, 1 - amount * g.uniform(0, ZOOM))
    u = u + amount * g.uniform(0, NOISE_SD) * g.standard_normal(u.shape)
    low, high = np.percentile(u[field_of_view(image)], [0.5, 99.5])
    return padded_as(image, np.clip((u - low) / max(high - low, 1e-6) * 2 - 1, -1, 1))


def _shading(shape, coefficients):
    """Return the receive sensitivity (H, W) of a coil, equal in all slices: the exponential of a polynomial."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    a, b, c, d = coefficients
    return np.exp(a * x + b * y + c * (x ** 2 + y ** 2 - 2 / 3) + d * x * y)


def _coarser(volume, factor):
    """Resample a volume to `factor` times as many pixels along each in-plane axis and interpolate it back."""
    shape = volume.shape[1:]
    small = [max(2, round(n * factor)) for n in shape]
    zoom = lambda a, by: ndimage.zoom(a, (1, *by), order=1, grid_mode=True, mode="nearest")
    return zoom(zoom(volume, np.divide(small, shape)), np.divide(shape, small))
