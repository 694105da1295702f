"""What the project must know of a segmenter: how it is built, trained and asked.  The networks are elsewhere.

Public: `Network`, `Recipe`, `Training`.
"""
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch


@dataclass(frozen=True)
class Training:
    """What one training run is given, whatever the network."""
    settings: object                             # cmr's train_unet.Config
    volumes: list                                # of Working, labelled: what it is trained on
    validation: list                             # of Working, labelled: the source's validation volumes
    real: list                                   # of Working: the source's real training volumes; a plan follows
    classes: np.ndarray                          # (4,) our label value -> network class
    device: torch.device

    @property
    def n_classes(self):
        """Background included."""
        return 1 + int(self.classes.max())


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: what a step sees, how fast it learns, what it minimises."""
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int                              # samples of a step
    batch: Callable                              # (step, range of its samples) -> (images (n, 1, *space) float32,
                                                 # labels (n, *space) int64), on the CPU
    learning_rate: Callable                      # step -> learning rate
    loss: Callable                               # (network output, labels) -> scalar
    clip_norm: float = None                      # largest gradient norm
    validate: Callable = None                    # (network, epoch) -> pseudo-Dice per structure, at the end of an epoch
    plan: dict = None                            # plain values that the network is built from, beside the settings


@dataclass(frozen=True)
class Network:
    """One segmenter: an entry of `cmr.networks.NETWORKS`."""
    build: Callable                              # (settings, n_classes, plan) -> untrained torch module
    recipe: Callable                             # Training -> Recipe; batches are a function of (seed, step)
    logits: Callable                             # (net, image, spacing_mm, plan, mirror) -> (n_classes, D, H, W)
    presets: dict = field(default_factory=dict)  # preset -> {setting of train_unet.py: value}
