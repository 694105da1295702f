"""The reference-conditioned sampler: noise the reference, denoise it with the source-domain diffusion model (SD-DM).

The output looks like the source and keeps the reference's anatomy, so the reference's mask still fits.  How much is
kept is the `Strength`: the start time t0 (more noise, more of the source), the band of wavelengths that is copied from
the reference at every step, and the guided filter: the SD-DM's image says how bright each region is, the reference where
its edges are, so that a projection from far away keeps the anatomy to the pixel.

Public: `NONE`, `Strength`, `read_choice`, `SourceModel`, `build_denoiser`, `translate`, `guided`.
"""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from cmr import checkpoint
from cmr.baselines import match_mean_std, match_quantiles
from cmr.bands import Band, band_mask
from cmr.config import NumericalError, UsageError
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, denoise, levels, noised
from cmr.training import generator

BATCH = 32                                       # slices a network call sees at most
NONE = "none"                                    # the strength that translates nothing
FLAT = 1e-3                                      # variance below which the guided filter takes a window for flat


@dataclass(frozen=True)
class Strength:
    """What is kept of the reference.  Written `t0=700,match=mean_std,shortest_mm=20`."""
    t0: int = 300                                # start time in 1..T; the reference is noised to exactly this level
    match: str = "none"                          # intensities of the reference first: none, mean_std, quantile
    shortest_mm: float = 0.0                     # wavelengths above this are copied from the reference; 0: none (SDEdit)
    longest_mm: float = 0.0                      # ... and only those below this (band-pass); 0: no upper end (low-pass)
    mode: str = "x0"                             # copy in the predicted clean image, or in the state: classic ILVR ("state")
    t_stop: int = 100                            # below this time nothing is copied: texture and edges settle freely
    steps: int = 20                              # network calls
    eta: float = 1.0                             # 1 forgets the reference's texture, 0 keeps more of it
    guide_mm: float = 0.0                        # SD of the windows in which the result is linear in the reference; 0: the SD-DM's image as it is

    def __post_init__(self):
        if self.match not in ("none", "mean_std", "quantile"):
            raise UsageError(f"strength: match={self.match}; use none, mean_std or quantile")
        if self.mode not in ("x0", "state"):
            raise UsageError(f"strength: mode={self.mode}; use x0 or state")
        if not 1 <= self.steps <= self.t0:
            raise UsageError(f"strength: steps={self.steps} from t0={self.t0}; use 1 to t0")
        if self.longest_mm and self.longest_mm <= self.shortest_mm:
            raise UsageError(f"strength: longest_mm={self.longest_mm} must exceed shortest_mm={self.shortest_mm}")
        if self.guide_mm < 0:
            raise UsageError(f"strength: guide_mm={self.guide_mm}; use 0 or more")

    @classmethod
    def parse(cls, text):
        """From `name=value,...`; raises UsageError for an unknown name or value."""
        types = {f.name: f.type for f in dataclasses.fields(cls)}
        values = {}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in types:
                raise UsageError(f"strength {text!r}: unknown {name!r}; use {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError as error:
                raise UsageError(f"strength {text!r}: {name} must be {types[name].__name__}") from error
        return cls(**values)

    def __str__(self):
        shown = [f"{f.name}={getattr(self, f.name):g}" if f.type is not str else f"{f.name}={getattr(self, f.name)}"
                 for f in dataclasses.fields(self) if f.name in ("t0", "steps") or getattr(self, f.name) != f.default]
        return ",".join(shown)


def read_choice(path, domains, networks=None):
    """{domain's name: {network: strength, or NONE}} from choice.json of cmr.choose.

    networks : names that must be there; None: whichever are.  Raises CheckpointError if a domain or network is not.
    """
    try:
        choice = json.loads(Path(path).read_text())
        return {str(d): {n: choice[str(d)][n] for n in networks or choice[str(d)]} for d in domains}
    except (OSError, ValueError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{path}: no choice for these domains and networks ({error}); run cmr.choose again") from error


@dataclass(frozen=True)
class SourceModel:
    """A trained SD-DM with its schedule and the source's intensity statistics."""
    net: torch.nn.Module
    schedule: Schedule
    parameterisation: str
    quantiles: np.ndarray
    mean: float
    std: float
    settings: dict
    subjects: tuple                              # whose images it was trained on
    hash: str

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_diffusion.py; raises CheckpointError for anything else."""
        saved = checkpoint.load(path)
        if "source_quantiles" not in saved:
            raise checkpoint.CheckpointError(f"{path}: not a finished diffusion model; give final.pt of train_diffusion.py")
        settings = saved["config"]
        net = build_denoiser(settings)
        net.load_state_dict(saved["net"])
        return cls(net.to(device, memory_format=torch.channels_last).eval(), Schedule.make(settings["schedule"], settings["T"]), settings["parameterisation"],
                   saved["source_quantiles"].numpy(), saved["source_mean"], saved["source_std"], settings, tuple(saved["subjects"]), checkpoint.sha256(path)[:16])


def build_denoiser(settings):
    """The Denoiser of a training run's settings (lists written `1,2,3`)."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n)
    return Denoiser(settings["base"], numbers(settings["multipliers"]), settings["blocks"], numbers(settings["attention_at"]),
                    settings["head"], settings["groups"], settings["dropout"], settings["size"], settings["patch"])


@torch.no_grad()
def translate(model, reference, spacing_mm, strength, *seed):
    """Project a reference volume to the source: (D, H, W) in [-1, 1] -> the same, plus the number of rejected draws.

    spacing_mm : in-plane.  seed : key of the noise; one noise per volume, shared by its slices, keeps contrast coherent
    along z.  A draw that is constant, not finite or far too flat is repeated with the next noise, three times at most;
    then NumericalError.
    """
    reference = np.asarray(reference, np.float32)
    matched = {"none": lambda: reference, "mean_std": lambda: match_mean_std(reference, model.mean, model.std),
               "quantile": lambda: match_quantiles(reference, model.quantiles)}[strength.match]()
    for attempt in range(3):
        output = _project(model, matched, spacing_mm, strength, (*seed, attempt))
        if np.isfinite(output).all() and output.std() > 0.25 * matched.std():
            return (guided(matched, output, strength.guide_mm / spacing_mm) if strength.guide_mm else output), attempt
    raise NumericalError(f"translation {seed}: three draws in a row were flat or not finite; is the diffusion model trained?")


def guided(guide, image, sigma):
    """Guided filter (He, Sun & Tang 2013, eqs. 5, 6 and 8) with Gaussian windows: `image` with the edges of `guide`.

    guide, image : (D, H, W) in [-1, 1].  sigma : SD of the windows in-plane, pixels.  In every window the result is the linear
    function of the guide that is closest to the image; so it has an edge only where the guide has one, whatever the image
    shows there, and what is finer than the windows is the guide's.
    """
    y, x = np.asarray(guide, np.float64), np.asarray(image, np.float64)
    mean = lambda a: ndimage.gaussian_filter(a, (0, sigma, sigma), mode="nearest")
    mean_y, mean_x = mean(y), mean(x)
    slope = (mean(x * y) - mean_x * mean_y) / (mean(y * y) - mean_y ** 2 + FLAT)
    return np.clip(mean(slope) * y + mean(mean_x - slope * mean_y), -1, 1).astype(np.float32)


def _project(model, matched, spacing_mm, strength, seed):
    device = next(model.net.parameters()).device
    depth, height, width = matched.shape
    times = levels(strength.t0, strength.steps)
    # One draw for the start and one for each step, in this order and even where unused: a function of the seed alone.
    g = generator(*seed)
    draws = [torch.randn(1, 1, height, width, generator=g).to(device) for _ in range(len(times))]
    phi = None
    if strength.shortest_mm:
        phi = Band(band_mask(height, width, spacing_mm, strength.shortest_mm, strength.longest_mm or None))

    outputs = []
    for start in range(0, depth, BATCH):
        y_0 = torch.tensor(matched[start:start + BATCH]).to(device)[:, None]               # (n, 1, H, W)
        copies = lambda t: phi is not None and t >= strength.t_stop
        # x0: signal and noise stay consistent for any eta.  state: the reference carries the noise level of the
        # *destination* s (Choi et al. 2021, Algorithm 1; a public port noises it at t instead).
        edit = (lambda x_0, t: x_0 + phi(y_0 - x_0) if copies(t) else x_0) if strength.mode == "x0" else None
        refine = None
        if strength.mode == "state":
            g_refine = generator(*seed, "refine")
            def refine(x_s, s):
                z = torch.randn(1, 1, height, width, generator=g_refine).to(device)
                return x_s + phi(noised(model.schedule, y_0, s, z) - x_s) if copies(s) else x_s
        x = noised(model.schedule, y_0, times[0], draws[0])
        x_0 = denoise(model.schedule, model.net, model.parameterisation, x, times, lambda i: draws[i + 1],
                      strength.eta, edit, refine)
        outputs.append(x_0[:, 0].clamp(-1, 1).cpu().numpy())
    return np.concatenate(outputs)
