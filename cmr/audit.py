"""Three questions about a diffusion model (SD-DM) and its images, answered without any network trained elsewhere.

1. Does an image still fit its mask?  Only this question can exclude an image (`still_fits`).
2. Which domain does it look like, to a small classifier that was trained on real images alone?
3. Has the SD-DM learnt the source (Heusel et al. 2017), or does it copy training slices (Carlini et al. 2023)?
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.feature import match_template
from skimage.transform import resize
from torch import nn

from cmr.diffusion import denoise, levels
from cmr.look import field_of_view
from cmr.metrics import border, mean_dice
from cmr.nnunet_preprocess import zscore
from cmr.seeds import generator, initialised

LOST_DICE = 0.25                                 # largest loss of Dice with which a synthetic image is kept
MATCHED, REACH, POINTS = 4, 4, 24                # half-widths of patch and search in pixels; points per slice
PATCH, STEPS, PATCHES, LEARNING_RATE = 32, 300, 64, 3e-3          # classifier: patch edge in pixels, steps, batch, rate
COPIED = 0.5                                     # a sample whose `memorisation` ratio is below this is a copy
SAMPLES, CALLS, BATCH = 256, 40, 32              # most samples, most network calls per sample, samples at a time
COMPONENTS, SLICES_EACH = 32, 5                  # most principal components; slices needed for each component
SHRUNK, SHIFT = 32, 2                            # pixels: edge of the slices compared for copies, largest shift
COLUMNS = ("samples", "frechet_samples", "frechet_training", "frechet_ratio", "copies", "nearest_mean",
           "nearest_least")


def audit(segmenter, classifier, working, sampler_input, image, knows_mask, may_be_excluded):
    """Return the figures of one synthetic image, named as in manifest.csv; `kept` says whether it may be trained on.

    sampler_input, image : (D, H, W) in [-1, 1], what was projected and what came of it; the input differs from the
    reference, `working.image`, if its look was changed.  classifier : SourceClassifier or None.
    knows_mask : whether the reference's mask may be used; if not, the segmenter's boundary on the input replaces it.
    may_be_excluded : whether `still_fits` decides; if not, the image is always kept.
    """
    reference, spacing_mm = np.asarray(working.image), working.spacing_mm[-1]
    found_on_input, found_on_image = (segmenter.labels(x, working.spacing_mm) for x in (sampler_input, image))
    figures, boundary, lost = {}, found_on_input, 0
    if knows_mask:
        boundary = working.label
        before, after = (mean_dice(found, working.label) for found in (found_on_input, found_on_image))
        figures.update(dice_reference=before, dice_synthetic=after, dice_change=after - before)
        # Trap: on a changed look Dice may be low already, so what is lost counts from the reference as it is.
        lost = mean_dice(segmenter.labels(reference, working.spacing_mm), working.label) - after
    median, p95 = boundary_displacement_mm(reference, image, boundary, spacing_mm)
    kept = not may_be_excluded or still_fits(median, lost, spacing_mm)
    figures.update(displacement_median_mm=median, displacement_p95_mm=p95, kept=int(kept),
                   through_plane_reference=through_plane_correlation(reference),
                   through_plane_synthetic=through_plane_correlation(image))
    if classifier:
        figures.update(of_source_reference=classifier.probability(sampler_input),
                       of_source_synthetic=classifier.probability(image))
    return figures


# ---- 1. Does an image still fit its mask? ----

def boundary_displacement_mm(reference, synthetic, mask, spacing_mm):
    """Return (median, 95th percentile) in mm of the movement at the boundary of a structure; nan without one.

    It is the structure of the mask (D, H, W) that moved most: an inner wall may move while the outer rim stays.
    Patches are found again by cross-correlation of gradient magnitudes, which depends little on the contrast.
    """
    gradient = lambda image: ndimage.gaussian_gradient_magnitude(np.asarray(image, np.float32), 0.8)
    slices = [(gradient(ref), gradient(syn), labels) for ref, syn, labels in zip(reference, synthetic, mask)]
    moved = []
    for value in set(np.unique(mask)) - {0}:
        distances = []
        for ref, syn, labels in slices:
            points = np.argwhere(border(labels == value))
            chosen = np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)
            distances += _displacements(ref, syn, points[chosen])
        if distances:
            moved.append(tuple(np.percentile(np.multiply(distances, spacing_mm), (50, 95)).tolist()))
    return max(moved, default=(math.nan, math.nan))


def _displacements(reference, synthetic, points):
    """Return one displacement in pixels per point (row, column) of a slice; flat patches and the margin are skipped."""
    around = lambda image, r, c, half: image[r - half:r + half + 1, c - half:c + half + 1]
    margin, flat, found = MATCHED + REACH, 0.1 * reference.std(), []
    for r, c in points:
        inside = margin <= r < reference.shape[0] - margin and margin <= c < reference.shape[1] - margin
        patch = around(reference, r, c, MATCHED)
        if inside and patch.std() >= flat:
            score = match_template(around(synthetic, r, c, margin), patch)
            row, column = np.unravel_index(score.argmax(), score.shape)
            found.append(np.hypot(row - REACH, column - REACH))
    return found


def still_fits(displacement_median_mm, lost_dice, spacing_mm):
    """Whether the boundary moved by a pixel at most and LOST_DICE at most was lost; a nan excludes nothing."""
    return not displacement_median_mm > spacing_mm and not lost_dice > LOST_DICE


def through_plane_correlation(image):
    """Return the mean Pearson correlation of neighbouring slices (D, H, W), which noise lowers; nan for one slice."""
    slices = np.asarray(image, np.float64).reshape(len(image), -1)
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(slices, slices[1:]) if a.std() and b.std()]
    return float(np.mean(pairs)) if pairs else math.nan


# ---- 2. Which domain does it look like? ----

class SourceClassifier:
    """A small network that tells source images from others, trained on the CPU, where results are reproducible.

    Trap: it sees volumes z-scored, as every segmenter does.  Else matching two numbers, mean and SD, without any
    diffusion model, makes it take every image for the source's, although not a segmenter sees a difference.
    """

    def __init__(self, source, others, seed=0):
        """Train on volumes (D, H, W) of both domains, of patients that `probability` is not asked about."""
        pools = [torch.from_numpy(np.concatenate(list(map(_as_segmented, volumes)))) for volumes in (source, others)]
        net = initialised(_patch_network, seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        of_source = torch.cat([torch.ones(PATCHES // 2), torch.zeros(PATCHES // 2)])
        for step in range(STEPS):
            g = generator(seed, "source classifier", step)
            patches = torch.cat([_random_patches(slices, PATCHES // 2, g) for slices in pools])
            loss = F.binary_cross_entropy_with_logits(net(patches)[:, 0], of_source)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
            optimizer.step()
        self.net = net.eval()

    @torch.no_grad()
    def probability(self, image):
        """Return the probability, averaged over patches, that a volume (D, H, W) is of the source."""
        slices = torch.from_numpy(_as_segmented(image))
        edge = min(PATCH, *slices.shape[1:])
        patches = slices.unfold(1, edge, edge // 2).unfold(2, edge, edge // 2).reshape(-1, 1, edge, edge)
        return float(torch.cat([self.net(some).sigmoid() for some in patches.split(256)]).mean())


def _as_segmented(volume):
    """Return a volume z-scored by its field of view, as an nnU-Net's input is; padding is 0."""
    inside = np.zeros(volume.shape, bool)
    inside[field_of_view(volume)] = True
    return np.where(inside, zscore(np.asarray(volume), inside), np.float32(0))


def _patch_network():
    """Return an untrained network that maps patches (N, 1, H, W) to logits (N, 1)."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, padding=1), nn.ReLU(),
                         nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))


def _random_patches(slices, n, g):
    """Cut n patches (n, 1, edge, edge) from slices (N, H, W) at random, all turned and flipped in one random way."""
    draw = lambda below, *shape: torch.randint(below, shape, generator=g)
    edge = min(PATCH, *slices.shape[1:])
    rows, columns = (draw(length - edge + 1, n, 1) + torch.arange(edge) for length in slices.shape[1:])
    patches = slices[draw(len(slices), n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    turned = torch.rot90(patches, int(draw(4)), (1, 2))
    return (turned.flip(1) if draw(2) else turned)[:, None]


# ---- 3. Has the SD-DM learnt the source? ----

def audit_samples(model, segmenter, training, held_out, spacing_mm, seed):
    """Draw samples from a SourceModel and return one row of COLUMNS.

    training, held_out : source slices (n, H, W) in [-1, 1].  spacing_mm : (slice, row, column).
    """
    n = min(len(training), len(held_out), SAMPLES)
    samples = draw_samples(model.schedule, model.predict_v, n, training.shape[-1], CALLS, seed, model.device)
    thinned = lambda pool: pool[np.linspace(0, len(pool) - 1, n).astype(int)]
    of_samples, of_training = frechet_to_held_out(*(features(segmenter, pool, spacing_mm)
                                                    for pool in (samples, thinned(training), thinned(held_out))))
    nearest = memorisation(samples, training, held_out)
    return {"samples": n, "frechet_samples": of_samples, "frechet_training": of_training,
            "frechet_ratio": of_samples / of_training, "copies": int((nearest < COPIED).sum()),
            "nearest_mean": float(nearest.mean()), "nearest_least": float(nearest.min())}


def draw_samples(schedule, net, n, size, calls, seed, device):
    """Draw n unconditional samples (n, size, size) in [-1, 1] with the denoiser `net`, at most `calls` of it each.

    The noise of a sample depends on the seed and its number alone, so a larger n only appends samples.
    """
    times, samples = levels(schedule.T, calls), []
    for start in range(0, n, BATCH):
        streams = [generator(seed, "sample", i) for i in range(start, min(start + BATCH, n))]
        draw = lambda: torch.stack([torch.randn(1, size, size, generator=g) for g in streams]).to(device)
        x_T, *noises = [draw() for _ in times]
        samples.append(denoise(schedule, net, x_T, times, noises)[:, 0].cpu().numpy())
    return np.concatenate(samples)


def features(segmenter, slices, spacing_mm):
    """Return a segmenter's coarsest feature map of each slice (n, H, W), seen alone, as means (n, channels) float64."""
    seen, means = [], []
    watch = lambda layer, _, output: seen.append(output) if torch.is_tensor(output) else None
    with nn.modules.module.register_module_forward_hook(watch):   # of every layer, until the block ends
        for image in slices:
            seen.clear()
            segmenter.logits(np.asarray(image)[None], spacing_mm, mirror=False)
            coarsest = min(reversed(seen), key=lambda output: output[0, 0].numel())
            means.append(coarsest.flatten(2).mean((0, 2)).double().cpu().numpy())
    return np.stack(means)


def frechet_to_held_out(samples, training, held_out):
    """Return the Fréchet distances (samples to held-out, training to held-out); they agree if the source was learnt.

    All are (n, d) with one n, as the distance grows when n shrinks, and are reduced to a few components of `training`.
    """
    if not len(samples) == len(training) == len(held_out):
        raise ValueError(f"{len(samples)} samples, {len(training)} training, {len(held_out)} held-out slices: unequal")
    kept = max(1, min(COMPONENTS, len(training) // SLICES_EACH, training.shape[1]))
    _, _, directions = np.linalg.svd(training - training.mean(0), full_matrices=False)
    reduced = [found @ directions[:kept].T for found in (samples, training, held_out)]
    return frechet_distance(reduced[0], reduced[2]), frechet_distance(reduced[1], reduced[2])


def frechet_distance(a, b):
    """Return the squared Fréchet distance of Gaussians fitted to feature vectors a (n, d) and b (m, d), n and m > d.

    It is |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (Dowson & Landau 1982).  With C_a = x^T x
    and C_b = y^T y the trace of that root is the nuclear norm of x y^T, the sum of its singular values.
    """
    x, y = ((found - found.mean(0)) / (len(found) - 1) ** 0.5 for found in (a, b))
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + (x ** 2).sum() + (y ** 2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc"))


def memorisation(samples, training, held_out):
    """Return for each sample its distance to the nearest training slice over that to the nearest held-out slice: (n,).

    Slices (n, H, W) are shrunk, z-scored and compared by the smallest RMS difference over shifts of up to SHIFT pixels.
    The ratio of a copy is below COPIED, that of a new image about 1, or less where `training` are many more slices.
    """
    core = slice(SHIFT, SHRUNK - SHIFT)                           # the pixels that no shift moves out of the slice
    edge = SHRUNK - 2 * SHIFT
    pools = [_shrunk(pool, core)[:, core, core].reshape(len(pool), -1) for pool in (training, held_out)]
    ratios = []
    for sample in _shrunk(samples, core):
        shifted = np.lib.stride_tricks.sliding_window_view(sample, (edge, edge)).reshape(-1, edge ** 2)
        to_training, to_held_out = (np.sqrt(cdist(shifted, pool, "sqeuclidean").min() / edge ** 2) for pool in pools)
        ratios.append(to_training / max(to_held_out, 1e-6))
    return np.array(ratios)


def _shrunk(images, core):
    """Shrink slices (n, H, W) to (n, SHRUNK, SHRUNK) and z-score each by the mean and SD of its core."""
    small = resize(np.moveaxis(np.asarray(images, np.float32), 0, -1), (SHRUNK, SHRUNK), anti_aliasing=True)
    inner = small[core, core]
    return np.moveaxis((small - inner.mean((0, 1))) / (inner.std((0, 1)) + 1e-6), -1, 0)
