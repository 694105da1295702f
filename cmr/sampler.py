"""The reference-conditioned sampler: noise the reference, denoise it with the source-domain diffusion model (SD-DM).

The output looks like the source and keeps the reference's anatomy, so that the reference's mask still fits.  The
reverse steps are in `cmr.diffusion`, what keeps the anatomy is in `cmr.guidance`, what may be chosen in `cmr.strength`.

Public: `translate`, `project`.
"""
import numpy as np
import torch

from cmr.diffusion import denoise, levels, noised
from cmr.errors import NumericalError
from cmr.guidance import guided_filter, low_pass_distance
from cmr.intensities import match_mean_std
from cmr.seeds import generator

BATCH = 32                                       # slices a network call sees at most
ATTEMPTS = 3


def translate(model, reference, spacing_mm, strength, *seed):
    """Give a reference volume the look of the source: (D, H, W) in [-1, 1] -> (the same, number of rejected draws).

    model : SourceModel.  spacing_mm : in-plane.  strength : Strength.  seed : key of the noise.
    A draw that is constant, not finite or far too flat is repeated with the next noise, three times at most; then
    NumericalError.
    """
    matched = np.asarray(reference, np.float32)
    if strength.match == "mean_std":
        matched = match_mean_std(matched, model.mean, model.std)
    for attempt in range(ATTEMPTS):
        image = project(model, matched, strength, (*seed, attempt))
        if np.isfinite(image).all() and image.std() > 0.25 * matched.std():
            if strength.guide_mm:
                image = guided_filter(matched, image, strength.guide_mm / spacing_mm)
            return image, attempt
    raise NumericalError(f"translation {seed}: three draws in a row were flat or not finite; "
                         "is the diffusion model trained?")


def project(model, volume, strength, seed):
    """One draw: the volume (D, H, W) is noised to exactly t0 and denoised from there, pulled towards itself.

    With low_pass = D and pull this is diffusion-driven adaptation (Gao et al., CVPR 2023), for t -> s of the times:

        x_s = ddpm_step(x_t, x_0) - scale * grad_{x_t} || phi_D(y_0) - phi_D(x_0(x_t)) ||_2

    y_0 is the reference and x_0(x_t) the network's clean image at x_t.  The gradient of a norm has about unit length,
    whatever the distance, so `scale` is the length of a step in grey levels: `pull` is what falls to a pixel (root mean
    square), scale / sqrt(H W), and means the same on every grid.  Without low_pass it is SDEdit (Meng et al. 2022).
    """
    height, width = volume.shape[1:]
    times = levels(strength.t0, strength.steps, strength.times)
    scale = strength.pull * (height * width) ** 0.5
    # One noise for the start and one for each step, shared by the slices: contrast stays coherent from slice to slice.
    g = generator(*seed)
    first, *noises = [torch.randn(1, 1, height, width, generator=g).to(model.device) for _ in times]
    slices = []
    for start in range(0, len(volume), BATCH):
        y_0 = torch.tensor(volume[start:start + BATCH]).to(model.device)[:, None]                  # (n, 1, H, W)
        distance = None
        if strength.low_pass:
            to_reference = low_pass_distance(y_0, strength.low_pass)
            distance = lambda x_0: scale * to_reference(x_0)
        x_t0 = noised(model.schedule, y_0, times[0], first)
        x_0 = denoise(model.schedule, model.output, model.parameterisation, x_t0, times, noises, distance)
        slices.append(x_0[:, 0].clamp(-1, 1).cpu().numpy())
    return np.concatenate(slices)
