"""Does a synthetic image still fit its mask?  How far the boundary moved, and what the segmenter lost.

The segmenter shares the biases of whatever it was trained on, so the displacement needs no network: small patches
around the boundary of the mask are looked for in the synthetic image by normalised cross-correlation.

Public: `audit`, `boundary_displacement_mm`, `still_fits`, `through_plane_correlation`.
"""
import math

import numpy as np
from scipy import ndimage
from skimage.feature import match_template

from cmr.metrics import border, mean_dice

LOST_DICE = 0.25                                 # what the segmenter may lose on a synthetic image
PATCH, REACH = 4, 4                              # half-width of a patch and of the search, in working pixels


def audit(segmenter, classifier, working, given, image, knows_mask, may_be_excluded):
    """Figures of one synthetic image, named as in manifest.csv, and whether it is kept.

    segmenter : Segmenter, trained on real source images.  classifier : SourceClassifier, or None where none is known.
    working : the reference.  given, image : (D, H, W) in [-1, 1], the reference as it was given to the sampler, and its
    projection.
    knows_mask : the reference's mask may be used; a target's is unknown at adaptation time, and the segmenter's own
    boundary on the reference is followed in its place.
    """
    reference, spacing_mm = np.asarray(working.image), working.spacing_mm[-1]
    found_on_given, found_on_image = (segmenter.labels(x, working.spacing_mm) for x in (given, image))
    figures, boundary = {}, found_on_given
    if knows_mask:
        boundary = working.label
        before, after = (mean_dice(found, working.label) for found in (found_on_given, found_on_image))
        figures.update(dice_reference=before, dice_synthetic=after, dice_change=after - before)
    median, p95 = boundary_displacement_mm(reference, image, boundary, spacing_mm)
    kept = not may_be_excluded or still_fits(median, figures["dice_change"], spacing_mm)
    figures.update(displacement_median_mm=median, displacement_p95_mm=p95, kept=int(kept),
                   through_plane_reference=through_plane_correlation(reference),
                   through_plane_synthetic=through_plane_correlation(image))
    if classifier:
        figures.update(of_source_reference=classifier.probability(given),
                       of_source_synthetic=classifier.probability(image))
    return figures


def boundary_displacement_mm(reference, synthetic, mask, spacing_mm, points_per_slice=24):
    """(median, 95th percentile) of how far the structure at the mask's boundary moved, in mm; nan without a boundary.

    reference, synthetic : (D, H, W) images.  mask : (D, H, W) labels.  spacing_mm : in-plane; the displacement is
    quantised to it.  Patches are matched on the gradient magnitude, so that a change of contrast is no displacement;
    flat patches, and patches at the image's edge, are left out.
    """
    gradient = lambda image: ndimage.gaussian_gradient_magnitude(np.asarray(image, np.float32), 0.8)
    distances = []
    for ref, syn, labels in zip(reference, synthetic, mask):
        points = np.argwhere(border(labels > 0))
        if len(points):
            chosen = np.linspace(0, len(points) - 1, min(points_per_slice, len(points))).astype(int)
            distances += _displacements(gradient(ref), gradient(syn), points[chosen])
    if not distances:
        return math.nan, math.nan
    median, p95 = np.percentile(np.multiply(distances, spacing_mm), (50, 95))
    return float(median), float(p95)


def _displacements(reference, synthetic, points):
    """How far, in pixels, the patch around each point of a slice is found in the other; flat patches left out."""
    flat = 0.1 * reference.std()
    around = lambda image, r, c, half: image[r - half:r + half + 1, c - half:c + half + 1]
    margin, found = PATCH + REACH, []
    for r, c in points:
        if min(r, c) < margin or r + margin >= reference.shape[0] or c + margin >= reference.shape[1]:
            continue
        patch = around(reference, r, c, PATCH)
        if patch.std() < flat:
            continue
        score = match_template(around(synthetic, r, c, margin), patch)
        row, column = np.unravel_index(score.argmax(), score.shape)
        found.append(np.hypot(row - REACH, column - REACH))
    return found


def still_fits(displacement_median_mm, dice_change, spacing_mm):
    """Whether a pair may be trained on: half of the boundary within a pixel of its place, the segmenter not lost.

    Of two figures that may both be wrong, either excludes.  nan, nothing to measure, excludes nothing.
    """
    return not displacement_median_mm > spacing_mm and not dice_change < -LOST_DICE


def through_plane_correlation(image):
    """Mean Pearson correlation of neighbouring slices of a volume (D, H, W); nan for fewer than two slices.

    Slices drawn from unrelated noise agree less with their neighbours than real ones do.
    """
    slices = np.asarray(image, np.float64).reshape(len(image), -1)
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(slices, slices[1:]) if a.std() and b.std()]
    return float(np.mean(pairs)) if pairs else math.nan
