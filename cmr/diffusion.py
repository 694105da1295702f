"""Denoising diffusion: schedule, forward process, loss, reverse steps (Ho et al. 2020).

Time runs t = 1..T as in Ho et al.; every table has T + 1 entries and entry 0 is the clean image (abar[0] = 1), so the
last step needs no special case and "s = 0" means clean.  Images are in [-1, 1].

Public: `Schedule`, `at`, `noised`, `clean_image`, `target_of`, `loss_weight`, `stratified_t`, `diffusion_loss`,
`ddpm_step`, `levels`, `denoise`.
"""
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Schedule:
    """beta, alpha = 1 - beta and abar = prod alpha, float64 (T + 1,); beta[0] = 0 and abar[0] = 1: the clean image."""
    beta: torch.Tensor
    abar: torch.Tensor

    @property
    def T(self):
        return len(self.beta) - 1

    @classmethod
    def make(cls, name, T=1000):
        """`linear` (Ho et al. 2020; ends scaled by 1000 / T) or `cosine` (Nichol & Dhariwal 2021, s = 0.008).

        abar is the product of the *clipped* betas: the closed form differs at t = T.
        """
        if name == "linear":
            beta = np.minimum(np.linspace(1e-4 * 1000 / T, 2e-2 * 1000 / T, T), 0.999)
        elif name == "cosine":
            f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
            beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
        else:
            raise ValueError(f"schedule {name!r}: use linear or cosine")
        beta = np.concatenate([[0.0], beta])
        return cls(torch.from_numpy(beta), torch.from_numpy(np.cumprod(1 - beta)))

    def snr(self, t):
        """Signal-to-noise ratio abar / (1 - abar) at t >= 1."""
        return self.abar[t] / (1 - self.abar[t])


def at(table, t, like):
    """Entries t of a table, shaped to multiply `like`: (T+1,), (N,) or int -> (N, 1, 1[, 1]), in the type of `like`."""
    value = table[t].to(device=like.device, dtype=like.dtype, non_blocking=True)
    return value.view(-1, *[1] * (like.ndim - 1))


def _roots(schedule, t, like):
    """(sqrt(abar), sqrt(1 - abar)) at t; the difference is formed in float64, where it does not cancel."""
    return at(schedule.abar.sqrt(), t, like), at((1 - schedule.abar).sqrt(), t, like)


def noised(schedule, x_0, t, eps):
    """Forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Eq. 4, Ho).  t : (N,) or int in 0..T."""
    a, s = _roots(schedule, t, x_0)
    return a * x_0 + s * eps


def clean_image(schedule, parameterisation, output, x_t, t):
    """The x_0 that the network's output at x_t stands for: `eps`, `x0`, or `v` = a eps - s x_0 (Salimans & Ho 2022)."""
    a, s = _roots(schedule, t, x_t)
    if parameterisation == "eps":
        return (x_t - s * output) / a
    if parameterisation == "x0":
        return output
    if parameterisation == "v":
        return a * x_t - s * output
    raise ValueError(f"parameterisation {parameterisation!r}: use eps, x0 or v")


def target_of(schedule, parameterisation, x_0, eps, t):
    """What the network is trained to return: the inverse of `clean_image`."""
    a, s = _roots(schedule, t, x_0)
    return {"eps": lambda: eps, "x0": lambda: x_0, "v": lambda: a * eps - s * x_0}[parameterisation]()


def loss_weight(schedule, t, parameterisation, weighting, gamma=5.0):
    """Weight of the squared error at t, (N,) float64: one objective per `weighting`, whatever the parameterisation.

    simple (Ho et al. 2020), snr+1 (Salimans & Ho 2022), min-snr (Hang et al. 2023, gamma 5), written as the weight of
    the squared error of x_0 and divided by |d output|^2 / |d x_0|^2, which is SNR for eps, 1 for x0 and SNR + 1 for v.
    """
    snr = schedule.snr(t)
    of_x0 = {"simple": snr, "snr+1": snr + 1, "min-snr": snr.clamp(max=gamma)}[weighting]
    return of_x0 / {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[parameterisation]


def stratified_t(T, n, generator):
    """n times in 1..T, one from each n-th of the range, shuffled: unbiased with less variance (Kingma et al. 2021)."""
    u = torch.rand((), generator=generator, dtype=torch.float64)
    t = 1 + torch.floor(T * ((u + torch.arange(n, dtype=torch.float64)) / n % 1)).long()
    return t[torch.randperm(n, generator=generator)]


def diffusion_loss(schedule, net, x_0, generator, parameterisation="v", weighting="min-snr"):
    """Weighted mean squared error of the network's output (Algorithm 1 and Eq. 14, Ho).

    x_0 : (N, 1, H, W) float32 in [-1, 1], clean source slices.
    net : callable (x_t, t) -> (N, 1, H, W); t is (N,) int64 in 1..T.
    Returns a scalar.  Draws t, then eps, from `generator` (CPU) and nowhere else.
    """
    t = stratified_t(schedule.T, len(x_0), generator)
    # Nothing here is waited for: a GPU has the step before it to do.
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device, non_blocking=True)
    output = net(noised(schedule, x_0, t, eps), t.to(x_0.device, non_blocking=True)).float()
    error = (output - target_of(schedule, parameterisation, x_0, eps, t)) ** 2
    weight = loss_weight(schedule, t, parameterisation, weighting).to(x_0.device, x_0.dtype, non_blocking=True)
    return (weight * error.flatten(1).mean(1)).mean()


def ddpm_step(schedule, x_t, x_0, t, s, z):
    """A sample x_s of the posterior q(x_s | x_t, x_0), for any s < t (Eq. 6 and 7 of Ho et al. are the case s = t - 1).

    x_t, x_0, z : (N, 1, H, W); z is standard normal and is not added at s = 0, the clean image.
    """
    abar_t, abar_s = float(schedule.abar[t]), float(schedule.abar[s])
    alpha = abar_t / abar_s                                       # of the jump t -> s; alpha_t when s = t - 1
    mean = (abar_s ** 0.5 * (1 - alpha) * x_0 + alpha ** 0.5 * (1 - abar_s) * x_t) / (1 - abar_t)
    if s == 0:
        return mean
    return mean + ((1 - alpha) * (1 - abar_s) / (1 - abar_t)) ** 0.5 * z


def levels(t_start, steps, spacing="quadratic"):
    """The times that a sampler visits: a strictly decreasing list from exactly t_start down to 0, the clean image.

    uniform : evenly spaced.  quadratic : finer towards small noise, where few uniform steps lose texture.  A step leads
    from one entry to the next: arithmetic like t - T // steps is wrong whenever steps does not divide T.
    """
    if not 1 <= steps <= t_start:
        raise ValueError(f"{steps} steps from t = {t_start}: use between 1 and {t_start}")
    left = 1 - np.arange(steps) / steps                           # share of the way that is left
    if spacing == "uniform":
        t = np.round(t_start * left)
    elif spacing == "quadratic":
        t = 1 + np.round((t_start - 1) * left ** 2)
    else:
        raise ValueError(f"spacing {spacing!r}: use uniform or quadratic")
    return [*dict.fromkeys(int(i) for i in t), 0]


def denoise(schedule, net, parameterisation, x, times, noises, distance=None):
    """The reverse chain (Algorithm 2 of Ho et al.) from x at times[0] down to times[-1].

    x : (N, 1, H, W).  noises : standard normal like x, one for each step.
    distance : None, or a function of the clean image (N, 1, H, W) that says how far each is from what it shall be,
    (N,).  Its gradient with respect to x_t, taken through the network, is subtracted after every step (Gao et al., Back
    to the Source, CVPR 2023).  The clean image is clamped to [-1, 1] before its distance is taken; the step is outside.
    """
    for t, s, z in zip(times, times[1:], noises):
        with torch.set_grad_enabled(distance is not None):
            x_t = x.detach().requires_grad_(distance is not None)
            output = net(x_t, torch.full((len(x_t),), t, device=x_t.device)).float()
            x_0 = clean_image(schedule, parameterisation, output, x_t, t).clamp(-1, 1)
            gradient = torch.autograd.grad(distance(x_0).sum(), x_t)[0] if distance else 0.0
        x = ddpm_step(schedule, x_t, x_0, t, s, z).detach() - gradient
    return x
