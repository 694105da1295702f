"""Denoising diffusion (DDPM, Ho et al. 2020): schedule, forward process, loss and reverse steps.

Equations and algorithms without another name are those of Ho et al.  Time runs t = 1..T; every table has T + 1 entries,
so that index t means time t, and time 0 is the clean image (abar[0] = 1).  Images are in [-1, 1].
"""
from dataclasses import dataclass

import numpy as np
import torch

GAMMA = 5.0                                      # of the min-SNR weight


@dataclass(frozen=True)
class Schedule:
    """The noise schedule: tables beta and abar_t = prod_{i <= t} (1 - beta_i), both float64 (T + 1,)."""
    beta: torch.Tensor
    abar: torch.Tensor

    @property
    def T(self):
        return len(self.beta) - 1

    @classmethod
    def make(cls, name, T=1000):
        """Make the schedule "linear" (ends scaled by 1000 / T) or "cosine" (Nichol & Dhariwal 2021, Eq. 17)."""
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = {"linear": np.linspace(1e-4 * 1000 / T, 2e-2 * 1000 / T, T), "cosine": 1 - f[1:] / f[:-1]}[name]
        beta = np.concatenate([[0.0], np.minimum(beta, 0.999)])
        # Trap: abar is the product of the clipped betas; the closed form f(t) / f(0) differs from it at t = T.
        return cls(torch.from_numpy(beta), torch.from_numpy(np.cumprod(1 - beta)))

    def snr(self, t):
        """Return the signal-to-noise ratio abar / (1 - abar) at t >= 1."""
        return self.abar[t] / (1 - self.abar[t])


def at(table, t, like):
    """Return the entries t (int or (N,)) of a table, in the type and on the device of `like`, shaped to multiply it."""
    value = table[t].to(device=like.device, dtype=like.dtype, non_blocking=True)
    return value.view(-1, *[1] * (like.ndim - 1))


def _roots(schedule, t, like):
    """Return (sqrt(abar), sqrt(1 - abar)) at t; 1 - abar is computed in float64, because float32 loses its digits."""
    return at(schedule.abar.sqrt(), t, like), at((1 - schedule.abar).sqrt(), t, like)


def noised(schedule, x_0, t, eps):
    """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, the forward process (Eq. 4).  t : int or (N,) in 0..T."""
    a, s = _roots(schedule, t, x_0)
    return a * x_0 + s * eps


def diffusion_loss(schedule, net, x_0, generator):
    """Return the weighted mean squared error of the network's v at random times, a scalar (Algorithm 1, Eq. 14).

    net : (x_t, t) -> v, all (N, 1, H, W) but t (N,) int64 in 1..T.  generator : on the CPU; first t is drawn, then eps.
    """
    t = stratified_t(schedule.T, len(x_0), generator)
    # The copies are `non_blocking`, so that the CPU need not wait for the GPU's previous step.
    eps = torch.randn(x_0.shape, generator=generator).to(x_0.device, non_blocking=True)
    output = net(noised(schedule, x_0, t, eps), t.to(x_0.device, non_blocking=True)).float()
    error = (output - target_of(schedule, x_0, eps, t)) ** 2
    weight = loss_weight(schedule, t).to(x_0.device, x_0.dtype, non_blocking=True)
    return (weight * error.flatten(1).mean(1)).mean()


def stratified_t(T, n, generator):
    """Draw n shuffled times in 1..T, one per n-th of the range; the loss then varies less (Kingma et al. 2021)."""
    u = torch.rand((), generator=generator, dtype=torch.float64)
    t = 1 + torch.floor(T * ((u + torch.arange(n, dtype=torch.float64)) / n % 1)).long()
    return t[torch.randperm(n, generator=generator)]


def loss_weight(schedule, t):
    """Return the min-SNR weight (Hang et al. 2023) of the squared error of v at times t (N,): float64 (N,).

    Trap: the published weight min(SNR, GAMMA) is for the error of x_0; the error of v is sqrt(SNR + 1) times as large.
    """
    snr = schedule.snr(t)
    return snr.clamp(max=GAMMA) / (snr + 1)


def target_of(schedule, x_0, eps, t):
    """Return what the network shall predict: v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022)."""
    a, s = _roots(schedule, t, x_0)
    return a * eps - s * x_0


def clean_image(schedule, v, x_t, t):
    """Return the clean image x_0 = sqrt(abar) x_t - sqrt(1 - abar) v that a prediction v at x_t implies."""
    a, s = _roots(schedule, t, x_t)
    return a * x_t - s * v


def denoise(schedule, net, x, times, noises, distance=None):
    """Run the reverse process (Algorithm 2) from x (N, 1, H, W) at times[0] and return the image at times[-1].

    times : decreasing, from `levels`.  noises : standard normal, shaped like x, one for each step.
    distance : None, or a function of clean images -> (N,), whose gradient at x_t each step subtracts (Gao et al. 2023).
    """
    for t, s, z in zip(times, times[1:], noises):
        with torch.set_grad_enabled(distance is not None):
            x_t = x.detach().requires_grad_(distance is not None)
            v = net(x_t, torch.full((len(x_t),), t, device=x_t.device)).float()
            # Trap: x_0 is clamped before the step and within the graph; the step and its noise are not in the graph.
            x_0 = clean_image(schedule, v, x_t, t).clamp(-1, 1)
            gradient = torch.autograd.grad(distance(x_0).sum(), x_t)[0] if distance else 0.0
        x = ddpm_step(schedule, x_t, x_0, t, s, z).detach() - gradient
    return x


def ddpm_step(schedule, x_t, x_0, t, s, z):
    """Draw x_s from the posterior q(x_s | x_t, x_0) for any s < t; Eq. 6 and 7 are the case s = t - 1.

    x_t, x_0, z : (N, 1, H, W); z is standard normal noise.  Trap: the last step, to s = 0, adds no noise.
    """
    abar_t, abar_s = float(schedule.abar[t]), float(schedule.abar[s])
    alpha = abar_t / abar_s                                       # the alpha of the step t -> s; alpha_t if s = t - 1
    mean = (abar_s ** 0.5 * (1 - alpha) * x_0 + alpha ** 0.5 * (1 - abar_s) * x_t) / (1 - abar_t)
    if s == 0:
        return mean
    return mean + ((1 - alpha) * (1 - abar_s) / (1 - abar_t)) ** 0.5 * z


def levels(t_start, steps, spacing="quadratic"):
    """Return the times (integers) that a sampler visits, strictly decreasing from exactly t_start to 0.

    spacing : "uniform", or "quadratic", which is finer at small times to keep texture.
    Trap: a step leads to the next entry; t - T // steps is wrong unless steps divides T.
    """
    left = 1 - np.arange(steps) / steps                           # share of t_start that is still left at each step
    t = {"uniform": np.round(t_start * left), "quadratic": 1 + np.round((t_start - 1) * left ** 2)}[spacing]
    return [*dict.fromkeys(map(int, t)), 0]
