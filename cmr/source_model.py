"""A trained source-domain diffusion model (SD-DM): its network, schedule and what it knows of the source's intensities.

What it is used for is in `cmr.sampler`.

Public: `SourceModel`, `placed`, `build_denoiser`.
"""
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule
from cmr.errors import CheckpointError
from cmr.files import sha256
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
