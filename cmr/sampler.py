"""The reference-conditioned sampler: noise the reference, denoise it with the source-domain diffusion model (SD-DM).

The output looks like the source and keeps the reference's anatomy, so the reference's mask still fits.  How much is
kept is the `Strength`: the start time t0 (more noise, more of the source), and the guided filter: the SD-DM's image
says how bright each region is, the reference where its edges are, so that a projection from far keeps the anatomy to
the pixel.  A rarer way to keep more, copying a band of wavelengths at every step, is in `cmr.bands`.
Noise levels and reverse steps are in `cmr.diffusion`, what may be chosen in `cmr.strength`.

Public: `translate`, `project`.
"""
import numpy as np
import torch

from cmr.bands import copied_band
from cmr.diffusion import denoise, levels, noised
from cmr.errors import NumericalError
from cmr.guided_filter import guided
from cmr.intensities import match_mean_std, match_quantiles
from cmr.seeds import generator

BATCH = 32                                       # slices a network call sees at most
ATTEMPTS = 3


def translate(model, reference, spacing_mm, strength, *seed):
    """Project a reference volume to the source: (D, H, W) in [-1, 1] -> the same, plus the number of rejected draws.

    spacing_mm : in-plane.  seed : key of the noise; one noise per volume, shared by its slices, keeps contrast coherent
    along z.  A draw that is constant, not finite or far too flat is repeated with the next noise, three times at most;
    then NumericalError.
    """
    matched = _matched(model, np.asarray(reference, np.float32), strength.match)
    for attempt in range(ATTEMPTS):
        image = project(model, matched, spacing_mm, strength, (*seed, attempt))
        if np.isfinite(image).all() and image.std() > 0.25 * matched.std():
            if strength.guide_mm:
                image = guided(matched, image, strength.guide_mm / spacing_mm)
            return image, attempt
    raise NumericalError(f"translation {seed}: three draws in a row were flat or not finite; "
                         "is the diffusion model trained?")


def _matched(model, reference, match):
    """The reference with the source's intensities, as Strength.match says."""
    if match == "mean_std":
        return match_mean_std(reference, model.mean, model.std)
    if match == "quantile":
        return match_quantiles(reference, model.quantiles)
    return reference


@torch.no_grad()
def project(model, volume, spacing_mm, strength, seed):
    """Noise (D, H, W) to the strength's t0 and denoise it from there: one draw, as the SD-DM gives it."""
    depth, height, width = volume.shape
    times = levels(strength.t0, strength.steps)
    # One draw for the start and one for each step, in this order and even where unused: a function of the seed alone.
    g = generator(*seed)
    noises = [torch.randn(1, 1, height, width, generator=g).to(model.device) for _ in times]
    slices = []
    for start in range(0, depth, BATCH):
        y_0 = torch.tensor(volume[start:start + BATCH]).to(model.device)[:, None]                  # (n, 1, H, W)
        edit, refine = copied_band(model.schedule, strength, spacing_mm, y_0, seed)
        x_t0 = noised(model.schedule, y_0, times[0], noises[0])
        x_0 = denoise(model.schedule, model.net, model.parameterisation, x_t0, times, lambda i: noises[i + 1],
                      strength.eta, edit, refine)
        slices.append(x_0[:, 0].clamp(-1, 1).cpu().numpy())
    return np.concatenate(slices)
