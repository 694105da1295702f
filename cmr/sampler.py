"""The reference-conditioned sampler: noise a reference, then denoise it with the source's diffusion model (SD-DM).

The result looks like the source and keeps the reference's anatomy, so that the reference's mask still fits.  A
`Strength` says how much of the reference is kept; a `SourceModel` is a trained SD-DM.
"""
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.denoiser import build_denoiser, placed
from cmr.diffusion import Schedule, denoise, levels, noised
from cmr.errors import CheckpointError, NumericalError, UsageError
from cmr.files import sha256
from cmr.guidance import guided_filter, low_pass_distance
from cmr.look import match_mean_std, padded_as
from cmr.seeds import generator
from cmr.workers import half_precision

BATCH = 32                                       # largest number of slices per network call
ATTEMPTS = 3                                     # number of draws before a translation is given up


def translate(model, reference, spacing_mm, strength, *seed):
    """Give a reference (D, H, W) in [-1, 1] the look of the source: (image of the same shape, rejected draws).

    model : SourceModel.  spacing_mm : in-plane.  strength : Strength.  seed : key of the noise.
    A draw that is flat or not finite is repeated with other noise; raises NumericalError after ATTEMPTS such draws.
    """
    matched = np.asarray(reference, np.float32)
    if strength.match == "mean_std":
        matched = match_mean_std(matched, model.mean, model.std)
    for attempt in range(ATTEMPTS):
        image = project(model, matched, strength, (*seed, attempt))
        if np.isfinite(image).all() and image.std() > 0.25 * matched.std():
            if strength.guide_mm:
                image = guided_filter(matched, image, strength.guide_mm / spacing_mm)
            return padded_as(reference, image), attempt
    raise NumericalError(f"translation {seed}: three draws in a row were flat or not finite; "
                         "is the diffusion model trained?")


def project(model, volume, strength, seed):
    """One draw: noise the volume (D, H, W) to exactly t0 and denoise it from there, guided towards itself.

    With low_pass = D this is diffusion-driven adaptation (Gao et al., CVPR 2023).  A step from time t to s is

        x_s = ddpm_step(x_t, x_0) - scale * grad_{x_t} || phi_D(y_0) - phi_D(x_0(x_t)) ||_2

    Here y_0 is the reference, phi_D the low-pass and x_0(x_t) the network's clean image at x_t.  Without low_pass it is
    SDEdit (Meng et al. 2022).  Trap: a norm has a gradient of about unit length at any distance, so `scale` is the
    length of a step and means another change on another grid.  `pull` is the change per pixel (RMS): scale / sqrt(H W).
    """
    height, width = volume.shape[1:]
    times = levels(strength.t0, strength.steps, strength.times)
    scale = strength.pull * (height * width) ** 0.5
    # All slices share one noise for the start and one for each step, so that contrast agrees from slice to slice.
    g = generator(*seed)
    first, *noises = [torch.randn(1, 1, height, width, generator=g).to(model.device) for _ in times]
    slices = []
    for start in range(0, len(volume), BATCH):
        y_0 = torch.tensor(volume[start:start + BATCH]).to(model.device)[:, None]                  # (n, 1, H, W)
        distance = None
        if strength.low_pass:
            to_reference = low_pass_distance(y_0, strength.low_pass)
            distance = lambda x_0: scale * to_reference(x_0)
        # Trap: noise to the level of the first step; the original code noises one level too high.
        x_t0 = noised(model.schedule, y_0, times[0], first)
        x_0 = denoise(model.schedule, model.predict_v, x_t0, times, noises, distance)
        slices.append(x_0[:, 0].clamp(-1, 1).cpu().numpy())
    return np.concatenate(slices)


NONE = "none"                                    # in place of a Strength: the image as it is
# The paper's sampler in each preset; `paper` has the settings of the first author's working scripts (docs/paper.md).
# Elsewhere mean and SD are matched first: guidance holds what is coarse, so contrast would stay the reference's.
# Trap: quadratic times end in steps that are shorter than a pull, which overshoots and leaves a dotted texture.
_SAMPLER = "t0=490,match=mean_std,low_pass=2,steps=25,times=uniform"
PROJECTED = {"tiny": "t0=50,match=mean_std,low_pass=2,steps=3", "demo": _SAMPLER, "small": _SAMPLER, "lab": _SAMPLER,
             "paper": "t0=505,low_pass=2,steps=50,times=uniform"}


def guided_in(schedule):
    """The guided projection: the source's brightness over wide windows, and every edge of the reference.

    Trap: one time is another noise in another schedule, so t0 is the first time at which abar is below 0.495.
    """
    return f"t0={int((schedule.abar >= 0.495).sum())},match=mean_std,guide_mm=30,steps=2"


GUIDED = {preset: guided_in(Schedule.make("linear" if preset == "paper" else "cosine")) for preset in PROJECTED}


@dataclass(frozen=True)
class Strength:
    """How a reference is projected, written `t0=490,low_pass=2,steps=25`; raises UsageError for values out of range."""
    t0: int = 300                                # start time in 1..T, to which the reference is noised
    match: str = "none"                          # first give the reference the source's intensities: none, mean_std
    low_pass: int = 0                            # D of the guidance, in pixels; 0: no guidance (SDEdit)
    pull: float = 0.047                          # change of a pixel by the guidance at each step (RMS)
    steps: int = 20                              # number of network calls
    times: str = "quadratic"                     # how the times are spaced from t0 to 0: quadratic, uniform
    guide_mm: float = 0.0                        # SD of the guided filter's windows; 0: no guided filter

    def __post_init__(self):
        for name, names in (("match", ("none", "mean_std")), ("times", ("quadratic", "uniform"))):
            if getattr(self, name) not in names:
                raise UsageError(f"strength: {name}={getattr(self, name)}; use {' or '.join(names)}")
        for name, least, most in (("steps", 1, self.t0), ("low_pass", 0, 64), ("pull", 0, 1), ("guide_mm", 0, 1000)):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"strength: {name}={getattr(self, name)}; use {least} to {most}")

    @classmethod
    def parse(cls, text):
        """A Strength from `name=value,...`; raises UsageError for an unknown name or a wrong value."""
        types = {f.name: f.type for f in dataclasses.fields(cls)}
        values = {}
        for item in text.split(","):
            name, _, value = item.partition("=")
            if name not in types:
                raise UsageError(f"strength {text!r}: unknown {name!r}; use {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError as error:
                raise UsageError(f"strength {text!r}: {name} must be {types[name].__name__}") from error
        return cls(**values)

    def __str__(self):
        shown = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        shown = [(f, value) for f, value in shown if f.name in ("t0", "steps") or value != f.default]
        return ",".join(f"{f.name}={str(value).removesuffix('.0')}" for f, value in shown)


def parse_strength(text):
    """A Strength from its text, or NONE."""
    return NONE if text == NONE else Strength.parse(text)


def parse_members(text):
    """The Strengths and NONE of a test input, with `+` between them; their softmax is averaged (Gao et al. 2023)."""
    return tuple(map(parse_strength, text.split("+")))


@dataclass(frozen=True)
class SourceModel:
    """A trained SD-DM with its schedule and statistics of the source's intensities."""
    net: torch.nn.Module
    schedule: Schedule
    quantiles: np.ndarray
    mean: float
    std: float
    settings: dict
    subjects: tuple                              # subjects whose images it was trained on
    hash: str
    data_hash: str = ""                          # hash of those images

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_diffusion.py; raises CheckpointError for any other file."""
        saved = checkpoint.load(path)
        if "source_quantiles" not in saved:
            raise CheckpointError(f"{path}: not a finished diffusion model; give final.pt of train_diffusion.py")
        settings = saved["config"]
        net = build_denoiser(settings)
        checkpoint.fill(net, saved["net"], path)
        net.requires_grad_(False)                                 # guidance needs the image's gradient only
        return cls(net=placed(net, device).eval(), schedule=Schedule.make(settings["schedule"], settings["T"]),
                   quantiles=saved["source_quantiles"].numpy(), mean=saved["source_mean"], std=saved["source_std"],
                   settings=settings, subjects=tuple(saved["subjects"]), hash=sha256(path)[:16],
                   data_hash=saved["data_hash"])

    @property
    def device(self):
        return next(self.net.parameters()).device

    @property
    def guided(self):
        """The Strength of the guided projection, in the times of this model's schedule."""
        return Strength.parse(guided_in(self.schedule))

    def predict_v(self, x_t, t):
        """v of `cmr.diffusion.target_of` by the network, for x_t (N, 1, H, W) at times t (N,) in 1..T."""
        with half_precision(self.device, self.settings.get("bfloat16")):
            return self.net(x_t, t)

    def require_usable(self, strength):
        """Raise UsageError if a strength starts beyond the model's T or its low-pass does not divide the grid."""
        size = self.settings["size"]
        if strength != NONE and strength.t0 > self.schedule.T:
            raise UsageError(f"strength {strength}: t0 exceeds the model's T = {self.schedule.T}")
        if strength != NONE and strength.low_pass and size % strength.low_pass:
            raise UsageError(f"strength {strength}: low_pass does not divide the {size} pixels of the grid")
