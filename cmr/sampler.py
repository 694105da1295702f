"""A trained source-domain diffusion model (SD-DM): its network, schedule and what it knows of the source's intensities.

What it is used for is in `cmr.sampler`.

Public: `SourceModel`, `placed`, `build_denoiser`.

How strongly a reference is projected: what is kept of it, as text and as numbers; and the recipes of DG and DA.

What the numbers do is said in `cmr.sampler`.  A *test input* is one image or several, whose softmax is averaged
(self-ensembling, Gao et al., Back to the Source, CVPR 2023): its members are strengths, written with `+` between them,
and `none` is the image as it is.

Public: `NONE`, `PROJECTED`, `GUIDED`, `DEFAULT_STRENGTH`, `Strength`, `parse_strength`, `parse_members`.

The reference-conditioned sampler: noise the reference, denoise it with the source-domain diffusion model (SD-DM).

The output looks like the source and keeps the reference's anatomy, so that the reference's mask still fits.  The
reverse steps are in `cmr.diffusion`, what keeps the anatomy is in `cmr.guidance`, what may be chosen in `cmr.sampler`.

Public: `translate`, `project`.
"""
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, denoise, levels, noised
from cmr.errors import CheckpointError, NumericalError, UsageError
from cmr.files import sha256
from cmr.guidance import guided_filter, low_pass_distance
from cmr.look import match_mean_std
from cmr.seeds import generator
from cmr.workers import half_precision


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
    data_hash: str = ""                          # of those images

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_diffusion.py; raises CheckpointError for anything else."""
        saved = checkpoint.load(path)
        if "source_quantiles" not in saved:
            raise CheckpointError(f"{path}: not a finished diffusion model; give final.pt of train_diffusion.py")
        settings = saved["config"]
        try:
            net = build_denoiser(settings)
        except ValueError as error:                               # settings that a former version took
            raise CheckpointError(f"{path}: {error}; delete it and train again") from error
        checkpoint.fill(net, saved["net"], path)
        # Only the image is differentiated through the network (`cmr.guidance`), never the weights.
        net.requires_grad_(False)
        return cls(net=placed(net, device).eval(), schedule=Schedule.make(settings["schedule"], settings["T"]),
                   parameterisation=settings["parameterisation"],
                   quantiles=saved["source_quantiles"].numpy(), mean=saved["source_mean"], std=saved["source_std"],
                   settings=settings, subjects=tuple(saved["subjects"]), hash=sha256(path)[:16],
                   data_hash=saved["data_hash"])

    @property
    def device(self):
        return next(self.net.parameters()).device

    def output(self, x_t, t):
        """What the network says of x_t (N, 1, H, W) at t (N,), in the precision that it was trained in."""
        with half_precision(self.device, self.settings.get("bfloat16")):
            return self.net(x_t, t)


def placed(net, device):
    """The denoiser on its device, its weights laid out as its layers leave an image.

    On a CPU that is channels last.  A GPU's group normalisation returns channels first, whatever it is given, so that
    around every convolution the image would be turned to channels last and back.
    """
    on_cpu = torch.device(device).type == "cpu"
    return net.to(device, memory_format=torch.channels_last if on_cpu else torch.contiguous_format)


def build_denoiser(settings):
    """The Denoiser of a training run's settings (lists written `1,2,3`)."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n)
    return Denoiser(settings["base"], numbers(settings["multipliers"]), settings["blocks"],
                    numbers(settings["attention_at"]), settings["head"], settings["groups"], settings["dropout"],
                    settings["size"], settings["patch"])


NONE = "none"                                    # the strength that translates nothing
# The paper's sampler in each preset.  `paper` has the settings of the first author's working scripts: the 50th of 100
# uniform times, a low-pass by 2, a scale of 6 on 128 x 128 pixels.  Elsewhere mean and SD are matched to the source's
# first: what is coarser than the low-pass, and so contrast, is held, and would stay the reference's.
# Uniform times: quadratic ones take large last steps, which overshoot the guidance and leave a dotted texture.
_SAMPLER = "t0=490,match=mean_std,low_pass=2,steps=25,times=uniform"
PROJECTED = {"tiny": "t0=50,match=mean_std,low_pass=2,steps=3", "demo": _SAMPLER, "small": _SAMPLER, "lab": _SAMPLER,
             "paper": "t0=505,low_pass=2,steps=50,times=uniform"}
# The guided projection: brightness of the source over wide windows, every edge of the reference.
GUIDED = "t0=500,match=mean_std,guide_mm=30,steps=2"
# What DG projects with, and what a target's image is segmented from where nothing else is asked for.
DEFAULT_STRENGTH = {"dg": _SAMPLER, "da": f"{NONE}+{GUIDED}"}


@dataclass(frozen=True)
class Strength:
    """What is kept of the reference.  Written `t0=490,low_pass=2,steps=25`."""
    t0: int = 300                                # start time in 1..T; the reference is noised to exactly this level
    match: str = "none"                          # intensities of the reference first: none or mean_std, the source's
    low_pass: int = 0                            # D of the guidance, in pixels; 0: unguided (SDEdit)
    pull: float = 0.047                          # grey levels that the guidance moves a pixel by at each step
    steps: int = 20                              # network calls
    times: str = "quadratic"                     # how these are spaced from t0 to 0: quadratic or uniform
    guide_mm: float = 0.0                        # SD of the guided filter's windows; 0: the SD-DM's image as it is

    def __post_init__(self):
        if self.match not in ("none", "mean_std"):
            raise UsageError(f"strength: match={self.match}; use none or mean_std")
        if self.times not in ("quadratic", "uniform"):
            raise UsageError(f"strength: times={self.times}; use quadratic or uniform")
        if not 1 <= self.steps <= self.t0:
            raise UsageError(f"strength: steps={self.steps} from t0={self.t0}; use 1 to t0")
        for name, most in (("low_pass", 64), ("pull", 1), ("guide_mm", 1000)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"strength: {name}={getattr(self, name)}; use 0 to {most}")

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
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("t0", "steps") or value != f.default:
                shown.append(f"{f.name}={value}" if f.type is str else f"{f.name}={value:g}")
        return ",".join(shown)


def parse_strength(text):
    """A Strength from its text, or NONE."""
    return NONE if text == NONE else Strength.parse(text)


def parse_members(text):
    """The members of a test input, a tuple of Strength or NONE; raises UsageError for an empty one."""
    parts = text.split("+")
    if not all(parts):
        raise UsageError(f"strength {text!r}: an empty member; write e.g. none+t0=500,guide_mm=30,steps=2")
    return tuple(map(parse_strength, parts))


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
