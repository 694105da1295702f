"""The source's intensities, and how a volume is matched to them.  All images in [-1, 1].

What else differs between scanners is not matched.

Public: `QUANTILES`, `intensity_statistics`, `match_mean_std`, `match_quantiles`.
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
