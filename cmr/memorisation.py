"""Is a sample of the diffusion model new, or a copy of what it was trained on?

Nothing is left out or changed by it: it is a figure for the reader.

Public: `COPIED`, `memorisation`.
"""
import numpy as np
from scipy.spatial.distance import cdist
from skimage.transform import resize

COPIED = 0.5                                     # a sample whose ratio is below it is a copy


def memorisation(samples, training, held_out, size=32, reach=2):
    """(n,) ratio of the distances to the nearest training slice and to the nearest held-out one, per sample.

    samples (n, H, W), training and held_out (m, H, W) in [-1, 1].  Slices are shrunk to size x size, z-scored and
    compared by root mean squared difference over shifts of up to `reach` pixels; the larger pool is thinned to the
    smaller, because more slices are nearer.  About 1: new images; below COPIED: copies, which diffusion models of few
    slices make.  nan without a pool.
    """
    if not len(training) or not len(held_out):
        return np.full(len(samples), np.nan)
    core = slice(reach, size - reach)                             # what stays in sight under every shift
    n = min(len(training), len(held_out))
    pools = []
    for pool in (training, held_out):
        thinned = pool[np.linspace(0, len(pool) - 1, n).astype(int)]
        pools.append(_shrunk(thinned, size, core)[:, core, core].reshape(n, -1))
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
