"""A trained source-domain diffusion model (SD-DM): its network, schedule and what it knows of the source's intensities.

What it is used for is in `cmr.sampler`.

Public: `SourceModel`, `build_denoiser`.
"""
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule
from cmr.errors import CheckpointError
from cmr.files import sha256


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
        return cls(net=net.to(device, memory_format=torch.channels_last).eval(),
                   schedule=Schedule.make(settings["schedule"], settings["T"]),
                   parameterisation=settings["parameterisation"],
                   quantiles=saved["source_quantiles"].numpy(), mean=saved["source_mean"], std=saved["source_std"],
                   settings=settings, subjects=tuple(saved["subjects"]), hash=sha256(path)[:16],
                   data_hash=saved["data_hash"])

    @property
    def device(self):
        return next(self.net.parameters()).device


def build_denoiser(settings):
    """The Denoiser of a training run's settings (lists written `1,2,3`)."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n)
    return Denoiser(settings["base"], numbers(settings["multipliers"]), settings["blocks"],
                    numbers(settings["attention_at"]), settings["head"], settings["groups"], settings["dropout"],
                    settings["size"], settings["patch"])
