"""Label-free signs of what a translation did to one volume: what `cmr.choose` learns from.

What is made of them is in `cmr.choose`.

Public: `SIGNS`, `Look`, `signs`.
"""
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from cmr.diffusion import estimates, noised
from cmr.labels import VALUES, labels_of
from cmr.metrics import dice
from cmr.seeds import generator

SIGNS = ("entropy change", "agreement", "volume change", "fragments", "structure kept", "likeness gain",
         "likeness before", "denoising change")


@dataclass(frozen=True)
class Look:
    """What the signs need of an image, whatever segments it."""
    distance: float                              # from the source, by SourceLook
    denoising: float                             # denoising_error of the SD-DM
    edges: np.ndarray                            # gradient magnitude, flat

    @classmethod
    def of(cls, image, source_look, model):
        edges = ndimage.gaussian_gradient_magnitude(np.asarray(image, np.float32), (0, 1, 1))
        return cls(source_look.distance(image), denoising_error(model, image), edges.ravel())


def signs(look_before, looks_after, before, after):
    """The label-free signs of one candidate on one volume, in the order of SIGNS.

    look_before : of the volume as it is.  looks_after : of the candidate's members; signs of look are their mean.
    before, after : (4, D, H, W) probabilities of the segmenter on the volume as it is, and averaged over the members.
    """
    over_members = lambda sign: float(np.mean([sign(look) for look in looks_after]))
    labels_before, labels_after = labels_of(before), labels_of(after)
    overlaps = [dice(labels_before == value, labels_after == value) for value in VALUES.values()]
    agreement = np.nanmean(overlaps) if np.isfinite(overlaps).any() else 0.0
    voxels_before, voxels_after = (labels_before > 0).sum(), (labels_after > 0).sum()
    return np.array([np.log(hesitation(after) / hesitation(before)),
                     agreement,
                     abs(np.log((voxels_after + 1) / (voxels_before + 1))),
                     fragments(labels_after) - fragments(labels_before),
                     over_members(lambda look: np.corrcoef(look_before.edges, look.edges)[0, 1]),
                     over_members(lambda look: look_before.distance - look.distance),
                     look_before.distance,
                     over_members(lambda look: np.log(look.denoising / look_before.denoising))])


def hesitation(probabilities):
    """Predictive entropy summed over the volume, per voxel of predicted foreground; large for an empty one."""
    total = -(probabilities * np.log(probabilities + 1e-9)).sum()
    return (total + 1) / ((labels_of(probabilities) > 0).sum() + 1)


def fragments(labels):
    """Share of the foreground outside its largest component; 1 if there is none: a collapse is no success."""
    components, n = ndimage.label(labels > 0)
    return 1 - np.bincount(components.ravel())[1:].max() / (labels > 0).sum() if n else 1.0


@torch.no_grad()
def denoising_error(model, image, t=100):
    """Root mean squared error of the SD-DM's clean image from one fixed noise at t: large for what it never saw."""
    x_0 = torch.tensor(np.asarray(image), device=model.device)[:, None]                            # (D, 1, H, W)
    z = torch.randn(1, 1, *x_0.shape[2:], generator=generator("denoising error")).to(model.device)
    x_t = noised(model.schedule, x_0, t, z)
    output = model.net(x_t, torch.full((len(x_0),), t, device=model.device)).float()
    found, _ = estimates(model.schedule, model.parameterisation, output, x_t, t)
    return float(((found - x_0) ** 2).mean().sqrt())
