"""Denoising diffusion: schedule, forward process, loss, reverse steps (Ho et al. 2020; Song et al. 2021).

Time runs t = 1..T as in Ho et al.; every table has T + 1 entries and entry 0 is the clean image (abar[0] = 1), so the
last step needs no special case and "s = 0" means clean.  Images are in [-1, 1].

Public: `Schedule`, `at`, `noised`, `estimates`, `target_of`, `loss_weight`, `stratified_t`, `diffusion_loss`,
`ddim_step`, `ddpm_step`, `levels`, `denoise`.
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
    value = table[t].to(device=like.device, dtype=like.dtype)
    return value.view(-1, *[1] * (like.ndim - 1))


def _roots(schedule, t, like):
    """(sqrt(abar), sqrt(1 - abar)) at t; the difference is formed in float64, where it does not cancel."""
    return at(schedule.abar.sqrt(), t, like), at((1 - schedule.abar).sqrt(), t, like)


def noised(schedule, x_0, t, eps):
    """Forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Eq. 4, Ho).  t : (N,) or int in 0..T."""
    a, s = _roots(schedule, t, x_0)
    return a * x_0 + s * eps


def estimates(schedule, parameterisation, output, x_t, t):
    """(x_0, eps) that the network's output stands for.  `eps`, `x0`, or `v` = a eps - s x_0 (Salimans & Ho 2022)."""
    a, s = _roots(schedule, t, x_t)
    if parameterisation == "eps":
        return (x_t - s * output) / a, output
    if parameterisation == "x0":
        return output, (x_t - a * output) / s
    if parameterisation == "v":
        return a * x_t - s * output, s * x_t + a * output
    raise ValueError(f"parameterisation {parameterisation!r}: use eps, x0 or v")


def target_of(schedule, parameterisation, x_0, eps, t):
    """What the network is trained to return: the inverse of `estimates`."""
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
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
    output = net(noised(schedule, x_0, t, eps), t.to(x_0.device)).float()
    error = (output - target_of(schedule, parameterisation, x_0, eps, t)) ** 2
    weight = loss_weight(schedule, t, parameterisation, weighting).to(device=x_0.device, dtype=x_0.dtype)
    return (weight * error.flatten(1).mean(1)).mean()


def ddim_step(schedule, x_t, x_0, eps, t, s, eta=0.0, z=None):
    """x_s from x_t's estimates, any t, s in 0..T (Eq. 12, Song et al. 2021).

    eta = 1 is the DDPM step; s > t inverts (eta 0).

    z : standard normal like x_t, needed for eta > 0; ignored at s = 0, where no noise is added.
    """
    abar_t, abar_s = float(schedule.abar[t]), float(schedule.abar[s])
    sigma = 0.0 if s == 0 or eta == 0 else eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)) ** 0.5
    x_s = abar_s ** 0.5 * x_0 + max(0.0, 1 - abar_s - sigma ** 2) ** 0.5 * eps
    return x_s + sigma * z if sigma else x_s


def ddpm_step(schedule, x_t, x_0, t, s, z, variance="small"):
    """x_s from the posterior q(x_s | x_t, x_0), any s < t (Eq. 6 and 7, Ho, for two levels).

    variance : `small` is the posterior's beta~, `large` is beta.  No noise at s = 0.
    """
    abar_t, abar_s = float(schedule.abar[t]), float(schedule.abar[s])
    alpha = abar_t / abar_s                                       # of the jump t -> s; alpha_t when s = t - 1
    mean = (abar_s ** 0.5 * (1 - alpha) * x_0 + alpha ** 0.5 * (1 - abar_s) * x_t) / (1 - abar_t)
    if s == 0:
        return mean
    return mean + ((1 - alpha) * ((1 - abar_s) / (1 - abar_t) if variance == "small" else 1)) ** 0.5 * z


def levels(t_start, steps, kind="quadratic"):
    """The times a sampler visits: strictly decreasing, from t_start (or near it) to 0, the clean image.

    leading, trailing, linspace : the usual uniform grids.  quadratic : fine steps at small noise, where few uniform
    steps leave texture under-dispersed.  The state is noised at the first entry and each entry's successor is the next
    one: never arithmetic like t - T // steps, which is wrong whenever steps does not divide T.
    """
    if not 1 <= steps <= t_start:
        raise ValueError(f"{steps} steps from t = {t_start}: use between 1 and {t_start}")
    k = np.arange(steps)
    if kind == "leading":
        t = 1 + (k * (t_start // steps))[::-1]
    elif kind == "trailing":
        t = np.round(t_start - k * t_start / steps)
    elif kind == "linspace":
        t = 1 + np.round(np.linspace(0, t_start - 1, steps))[::-1]
    elif kind == "quadratic":
        t = 1 + np.round((t_start - 1) * (1 - k / steps) ** 2)
    else:
        raise ValueError(f"grid {kind!r}: use leading, trailing, linspace or quadratic")
    return [*dict.fromkeys(int(i) for i in t), 0]


@torch.no_grad()
def denoise(schedule, net, parameterisation, x, times, noise, eta=1.0, edit=None, refine=None, clip=True):
    """The reverse chain (Algorithm 2, Ho) from x at times[0] down to times[-1].

    x : (N, 1, H, W).  noise(i) -> standard normal like x for step i.  edit(x_0, t) -> x_0 changes the predicted clean
    image before it is clamped; refine(x_s, s) -> x_s changes the state after the step (classic ILVR).
    eps is re-derived after x_0 was edited or clamped: otherwise eta = 1 is no longer DDPM and contrast saturates.
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
        output = net(x, torch.full((len(x),), t, device=x.device)).float()
        x_0, eps = estimates(schedule, parameterisation, output, x, t)
        if edit or clip:
            x_0 = edit(x_0, t) if edit else x_0
            x_0 = x_0.clamp(-1, 1) if clip else x_0
            a, sd = _roots(schedule, t, x)
            eps = (x - a * x_0) / sd
        x = ddim_step(schedule, x, x_0, eps, t, s, eta, noise(i))
        if refine:
            x = refine(x, s)
    return x
