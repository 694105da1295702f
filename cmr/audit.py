"""Does a synthetic image still fit its mask?  First figures: Dice of a source-trained segmenter, boundary displacement.

The segmenter shares the biases of whatever it was trained on, so the second figure needs no network: small patches
around the boundary of the mask are looked for in the synthetic image by normalised cross-correlation.

Two more: which domain does it look like, and is it a copy?

Public: `mean_dice`, `mean_hd95_mm`, `boundary_displacement_mm`, `still_fits`, `appearance`, `Likeness`, `SourceClassifier`, `memorisation`,
`through_plane_correlation`.
"""
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.special import expit
from skimage.feature import match_template
from skimage.transform import resize

from cmr.metrics import border, dice, measure

LOST_DICE = 0.25                                 # what the segmenter may lose on a synthetic image before the pair is excluded
COPIED = 0.5                                     # of `memorisation`: a sample below it is a copy
SHRINK = 0.2                                     # of the classifier's covariance towards its diagonal: a few volumes must do
PATCH, REACH = 4, 4                              # half-width of a patch and of the search, in working pixels


def mean_dice(labels, mask):
    """Mean Dice over the structures present in mask; (D, H, W) labels of one numbering; nan for an empty mask."""
    values = [v for v in np.unique(mask) if v]
    return float(np.mean([dice(labels == v, mask == v) for v in values])) if values else float("nan")


def mean_hd95_mm(labels, mask, spacing_mm):
    """Mean HD95 over the structures present in mask, (D, H, W) labels of one numbering, spacing (slice, row, column); a structure that
    was not found counts as the volume's diagonal.  nan for an empty mask."""
    diagonal = float(np.linalg.norm(np.multiply(mask.shape, spacing_mm)))
    values = [min(measure(labels == v, mask == v, spacing_mm)["hd95"], diagonal) for v in np.unique(mask) if v]
    return float(np.mean(values)) if values else float("nan")


def boundary_displacement_mm(reference, synthetic, mask, spacing_mm, points_per_slice=24):
    """(median, 95th percentile) of how far the structure at the mask's boundary moved, in mm; nan without a boundary.

    reference, synthetic : (D, H, W) images.  mask : (D, H, W) labels.  spacing_mm : in-plane; the displacement is
    quantised to it.  Patches are matched on the gradient magnitude, so that a change of contrast is no displacement;
    flat patches, and patches at the image's edge, are left out.
    """
    distances = []
    gradient = lambda x: ndimage.gaussian_gradient_magnitude(np.asarray(x, np.float32), 0.8)
    for ref, syn, labels in zip(reference, synthetic, mask):
        points = np.argwhere(border(labels > 0))
        if not len(points):
            continue
        points = points[np.linspace(0, len(points) - 1, min(points_per_slice, len(points))).astype(int)]
        ref, syn = gradient(ref), gradient(syn)
        flat = 0.1 * ref.std()
        for r, c in points:
            r0, c0 = r - PATCH - REACH, c - PATCH - REACH
            if min(r0, c0) < 0 or r + PATCH + REACH >= ref.shape[0] or c + PATCH + REACH >= ref.shape[1]:
                continue
            patch = ref[r - PATCH:r + PATCH + 1, c - PATCH:c + PATCH + 1]
            if patch.std() < flat:
                continue
            window = syn[r0:r + PATCH + REACH + 1, c0:c + PATCH + REACH + 1]
            peak = np.unravel_index(match_template(window, patch).argmax(), (2 * REACH + 1,) * 2)
            distances.append(np.hypot(peak[0] - REACH, peak[1] - REACH) * spacing_mm)
    return tuple(float(q) for q in np.percentile(distances, (50, 95))) if distances else (float("nan"),) * 2


def still_fits(displacement_median_mm, dice_change, spacing_mm):
    """Whether a synthetic pair may be trained on: half of the boundary within a pixel of its place, and the segmenter not lost.

    Of two figures that may both be wrong, either excludes.  nan, nothing to measure, excludes nothing.
    """
    return not displacement_median_mm > spacing_mm and not dice_change < -LOST_DICE


def appearance(image):
    """What a volume (D, H, W) looks like, whatever it shows: quantiles and log power in octaves, (9,)."""
    power = np.abs(np.fft.fft2(image - np.mean(image, (1, 2), keepdims=True))).mean(0) ** 2
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(image.shape[1]), np.fft.fftfreq(image.shape[2]), indexing="ij"))
    bands = [power[(k >= low) & (k < 2 * low)].mean() for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4)]          # cycles per pixel
    return np.concatenate([np.quantile(image, (0.1, 0.25, 0.5, 0.75, 0.9)), np.log(np.array(bands) + 1e-9) / 4])


@dataclass(frozen=True)
class Likeness:
    """How far an image is from the source: mean absolute z-score of its quantiles and of its spectrum."""
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, images):
        features = np.stack([appearance(x) for x in images])
        return cls(features.mean(0), features.std(0) + 1e-3)

    def distance(self, image):
        return float(np.abs((appearance(image) - self.mean) / self.std).mean())


@dataclass(frozen=True)
class SourceClassifier:
    """Fisher's linear discriminant between the source and another domain, by `appearance`; the covariance is shrunk."""
    weights: np.ndarray
    intercept: float

    @classmethod
    def fit(cls, source, others):
        """source, others : volumes (D, H, W) in [-1, 1], a few of each at least."""
        a, b = (np.stack([appearance(x) for x in images]) for images in (source, others))
        within = np.concatenate([a - a.mean(0), b - b.mean(0)])
        variance = within.var(0) + 1e-6
        covariance = (1 - SHRINK) * within.T @ within / len(within) + SHRINK * np.diag(variance)
        weights = np.linalg.solve(covariance, a.mean(0) - b.mean(0))
        return cls(weights, float(-weights @ (a.mean(0) + b.mean(0)) / 2))

    def probability(self, image):
        """That a volume is of the source, in [0, 1], if both domains are as frequent."""
        return float(expit(self.weights @ appearance(image) + self.intercept))


def memorisation(samples, training, held_out, size=32, reach=2):
    """(n,) ratio of the distances to the nearest training slice and to the nearest held-out one, per sample.

    samples (n, H, W), training and held_out (m, H, W) in [-1, 1].  Slices are shrunk to size x size, z-scored and compared
    by root mean squared difference over shifts of up to `reach` pixels; the larger pool is thinned to the smaller, because more
    slices are nearer.  About 1: new images; below COPIED: copies, which diffusion models of few slices make.  nan without a pool.
    """
    if not len(training) or not len(held_out):
        return np.full(len(samples), np.nan)
    core = slice(reach, size - reach)                                             # what stays in sight under every shift
    def features(images):
        small = resize(np.moveaxis(np.asarray(images, np.float32), 0, -1), (size, size), anti_aliasing=True)
        inner = small[core, core]
        return np.moveaxis((small - inner.mean((0, 1))) / (inner.std((0, 1)) + 1e-6), -1, 0)
    pool_size = min(len(training), len(held_out))
    pools = [features(pool[np.linspace(0, len(pool) - 1, pool_size).astype(int)])[:, core, core].reshape(pool_size, -1)
             for pool in (training, held_out)]
    ratios = []
    for sample in features(samples):
        windows = np.stack([sample[i:i + size - 2 * reach, j:j + size - 2 * reach].ravel() for i in range(2 * reach + 1) for j in range(2 * reach + 1)])
        nearest = [np.sqrt(cdist(windows, pool, "sqeuclidean").min() / windows.shape[1]) for pool in pools]
        ratios.append(nearest[0] / max(nearest[1], 1e-6))
    return np.array(ratios)


def through_plane_correlation(image):
    """Mean Pearson correlation of neighbouring slices of a volume (D, H, W); nan for fewer than two slices.

    Slices drawn from unrelated noise agree less with their neighbours than real ones do.
    """
    slices = np.asarray(image, np.float64).reshape(len(image), -1)
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(slices, slices[1:]) if a.std() and b.std()]
    return float(np.mean(pairs)) if pairs else float("nan")
