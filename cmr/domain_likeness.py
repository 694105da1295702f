"""Which domain does a volume look like?  Its distance from the source, and the probability that it is of the source.

Whether an image still fits its mask is another question: `cmr.pair_audit`.

Public: `appearance`, `SourceLook`, `SourceClassifier`.
"""
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

SHRINK = 0.2                                     # of the covariance towards its diagonal: a few volumes must do


def appearance(image):
    """What a volume (D, H, W) looks like, whatever it shows: quantiles and log power in octaves, (9,)."""
    power = np.abs(np.fft.fft2(image - np.mean(image, (1, 2), keepdims=True))).mean(0) ** 2
    frequencies = np.fft.fftfreq(image.shape[1]), np.fft.fftfreq(image.shape[2])
    k = np.hypot(*np.meshgrid(*frequencies, indexing="ij"))       # cycles per pixel
    octaves = [power[(k >= low) & (k < 2 * low)].mean() for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    return np.concatenate([np.quantile(image, (0.1, 0.25, 0.5, 0.75, 0.9)), np.log(np.array(octaves) + 1e-9) / 4])


@dataclass(frozen=True)
class SourceLook:
    """The source's appearance: mean and standard deviation of each figure over its training volumes."""
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, images):
        figures = np.stack([appearance(image) for image in images])
        return cls(figures.mean(0), figures.std(0) + 1e-3)

    def distance(self, image):
        """How far a volume is from the source: mean absolute z-score of its quantiles and of its spectrum."""
        return float(np.abs((appearance(image) - self.mean) / self.std).mean())


@dataclass(frozen=True)
class SourceClassifier:
    """Fisher's linear discriminant between the source and another domain, by `appearance`; the covariance is shrunk."""
    weights: np.ndarray
    intercept: float

    @classmethod
    def fit(cls, source, others):
        """source, others : volumes (D, H, W) in [-1, 1], a few of each at least."""
        a, b = (np.stack([appearance(image) for image in images]) for images in (source, others))
        within = np.concatenate([a - a.mean(0), b - b.mean(0)])
        variance = within.var(0) + 1e-6
        covariance = (1 - SHRINK) * within.T @ within / len(within) + SHRINK * np.diag(variance)
        weights = np.linalg.solve(covariance, a.mean(0) - b.mean(0))
        return cls(weights, float(-weights @ (a.mean(0) + b.mean(0)) / 2))

    def probability(self, image):
        """That a volume is of the source, in [0, 1], if both domains are as frequent."""
        return float(expit(self.weights @ appearance(image) + self.intercept))
