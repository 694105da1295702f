"""Has the diffusion model learnt the source?  Its unconditional samples beside training and held-out slices.

Two questions, neither answered with a network that was trained elsewhere: are the samples as much like the source's
held-out slices as its training slices are (Fréchet distance, Heusel et al. 2017), and are they new or copies of what
was trained on (Carlini et al. 2023)?  Nothing is left out or changed by the answers: they are figures for the reader.

Public: `COPIED`, `COLUMNS`, `audit_samples`, `draw_samples`, `features`, `frechet_distance`, `frechet_to_held_out`,
`memorisation`.
"""
import numpy as np
import torch
from scipy.spatial.distance import cdist
from skimage.transform import resize

from cmr.diffusion import denoise, levels
from cmr.seeds import generator

COPIED = 0.5                                     # a sample whose ratio is below it is a copy
SAMPLES, CALLS, BATCH = 256, 40, 32              # at most so many samples, network calls for each, samples at a time
COMPONENTS, SLICES_EACH = 32, 5                  # principal components at most, and slices for each of them
COLUMNS = ("samples", "frechet_samples", "frechet_training", "frechet_ratio", "copies", "nearest_mean",
           "nearest_least")


def audit_samples(model, segmenter, training, held_out, spacing_mm, seed):
    """One row of COLUMNS on the samples of a SourceModel; all but their number is nan where no slice is held out.

    segmenter : Segmenter, trained on the source.  training, held_out : the source's slices (n, H, W) in [-1, 1].
    spacing_mm : (slice, row, column).  There are as many samples as held-out slices, SAMPLES at most.
    """
    n = min(len(training), len(held_out) or SAMPLES, SAMPLES)
    calls = min(CALLS, model.schedule.T)
    samples = draw_samples(model.schedule, model.output, model.parameterisation, n, training.shape[-1], calls, seed,
                           model.device)
    of_samples = of_training = np.nan
    if len(held_out):
        pools = samples, _thinned(training, n), _thinned(held_out, n)
        of_samples, of_training = frechet_to_held_out(*(features(segmenter, pool, spacing_mm) for pool in pools))
    nearest = memorisation(samples, training, held_out)
    return {"samples": n, "frechet_samples": of_samples, "frechet_training": of_training,
            "frechet_ratio": of_samples / of_training,
            "copies": int((nearest < COPIED).sum()) if len(held_out) else np.nan,
            "nearest_mean": float(nearest.mean()), "nearest_least": float(nearest.min())}


def draw_samples(schedule, net, parameterisation, n, size, calls, seed, device):
    """n unconditional samples (n, size, size) in [-1, 1] of a denoiser, with `calls` network calls each.

    The noise is a function of (seed, number of the sample), so that the first samples of a larger n are the same.
    """
    times, samples = levels(schedule.T, calls), []
    for start in range(0, n, BATCH):
        streams = [generator(seed, "sample", i) for i in range(start, min(start + BATCH, n))]
        draw = lambda: torch.stack([torch.randn(1, size, size, generator=g) for g in streams]).to(device)
        x_T, *noises = [draw() for _ in times]
        x_0 = denoise(schedule, net, parameterisation, x_T, times, noises)
        samples.append(x_0[:, 0].cpu().numpy())
    return np.concatenate(samples)


def features(segmenter, slices, spacing_mm):
    """What a segmenter sees at its coarsest resolution, averaged over each slice: (n, channels) float64.

    Every slice is given to it as a volume of one slice, so that a sample, which has no neighbours, is treated as a real
    one is.  The coarsest feature map is found by watching the layers: of those with the fewest pixels, the last.
    """
    seen, means = [], []
    watch = lambda layer, _, output: seen.append(output) if torch.is_tensor(output) else None
    hooks = [layer.register_forward_hook(watch) for layer in segmenter.net.modules() if not list(layer.children())]
    try:
        for image in slices:
            seen.clear()
            segmenter.logits(np.asarray(image)[None], spacing_mm, mirror=False)
            pixels = [output[0, 0].numel() for output in seen]
            deepest = seen[len(pixels) - 1 - pixels[::-1].index(min(pixels))]
            means.append(deepest.flatten(2).mean((0, 2)).double().cpu().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack(means)


def frechet_distance(a, b):
    """Squared Fréchet distance of the Gaussians that fit two sets of feature vectors (n, d) and (m, d), n and m > d.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), Dowson & Landau 1982.  From few vectors it is
    too large, the more so the fewer: compare only distances of equal numbers.
    """
    cov_a, cov_b = np.cov(a.T).reshape(a.shape[1], -1), np.cov(b.T).reshape(b.shape[1], -1)
    root_a = _square_root(cov_a)
    cross = _square_root(root_a @ cov_b @ root_a)
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(cov_a + cov_b - 2 * cross))


def _square_root(matrix):
    """Of a symmetric positive semidefinite matrix; what rounding makes negative counts as 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet_to_held_out(samples, training, held_out):
    """(distance of samples, distance of training slices) to held-out slices; equal if the model has learnt the source.

    All are features (n, d) of the same number of slices, so that both distances are too large by alike; ValueError if
    not.  They are reduced to the principal components of the training slices, one for every SLICES_EACH slices and
    COMPONENTS at most, since a covariance of more dimensions than that is not known from n slices.
    """
    if not len(samples) == len(training) == len(held_out):
        raise ValueError(f"{len(samples)} samples, {len(training)} training and {len(held_out)} held-out slices: use "
                         "as many of each")
    kept = max(1, min(COMPONENTS, len(training) // SLICES_EACH, training.shape[1]))
    _, _, directions = np.linalg.svd(training - training.mean(0), full_matrices=False)
    reduced = [found @ directions[:kept].T for found in (samples, training, held_out)]
    return frechet_distance(reduced[0], reduced[2]), frechet_distance(reduced[1], reduced[2])


def _thinned(pool, n):
    """n slices of a pool at even distances."""
    return pool[np.linspace(0, len(pool) - 1, n).astype(int)]


def memorisation(samples, training, held_out, size=32, reach=2):
    """(n,) ratio of the distances to the nearest training slice and to the nearest held-out one, per sample.

    samples (n, H, W), training and held_out (m, H, W) in [-1, 1].  Slices are shrunk to size x size, z-scored and
    compared by root mean squared difference over shifts of up to `reach` pixels.  About 1, a little less where there
    are more training than held-out slices: new images; below COPIED: copies, which diffusion models of few slices make.
    No training slice is left out, as a copy of it would not be found.  nan without a pool.
    """
    if not len(training) or not len(held_out):
        return np.full(len(samples), np.nan)
    core = slice(reach, size - reach)                             # what stays in sight under every shift
    pools = [_shrunk(pool, size, core)[:, core, core].reshape(len(pool), -1) for pool in (training, held_out)]
    ratios = []
    for sample in _shrunk(samples, size, core):
        windows = _shifted_windows(sample, size - 2 * reach)
        nearest = [np.sqrt(cdist(windows, pool, "sqeuclidean").min() / windows.shape[1]) for pool in pools]
        to_training, to_held_out = nearest
        ratios.append(to_training / max(to_held_out, 1e-6))
    return np.array(ratios)


def _shrunk(images, size, core):
    """(n, H, W) to (n, size, size), z-scored by the core of each."""
    small = resize(np.moveaxis(np.asarray(images, np.float32), 0, -1), (size, size), anti_aliasing=True)
    inner = small[core, core]
    return np.moveaxis((small - inner.mean((0, 1))) / (inner.std((0, 1)) + 1e-6), -1, 0)


def _shifted_windows(image, edge):
    """Every window of edge x edge pixels of a square image, flat: (shifts, edge^2)."""
    starts = range(len(image) - edge + 1)
    return np.stack([image[i:i + edge, j:j + edge].ravel() for i in starts for j in starts])
