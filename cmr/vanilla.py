"""The vanilla 2D U-Net, the plain baseline: Ronneberger et al. 2015 with zero padding and batch normalisation."""
import math

import numpy as np
import torch
from torch import nn

from cmr import ranks
from cmr.errors import UsageError
from cmr.network import Network, Recipe, dice_ce_loss, predict
from cmr.nnunet_augment import Augmentation
from cmr.nnunet_preprocess import zscore
from cmr.seeds import generator, initialised, rng
from cmr.settings import FULL_GRID


class UNet(nn.Module):
    """Maps z-scored slices (N, 1, H, W) to logits (N, n_classes, H, W); 2^(levels-1) must divide H and W."""

    def __init__(self, n_classes, base=32, levels=5):
        super().__init__()
        widths = [base * 2 ** i for i in range(levels)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in zip([1, *widths], widths))
        self.pool = nn.MaxPool2d(2)
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(_double_conv(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(base, n_classes, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        x = skips.pop()
        for raise_, block in zip(reversed(self.raise_), reversed(self.up)):
            x = block(torch.cat([skips.pop(), raise_(x)], 1))
        return self.head(x)


def _double_conv(c_in, c_out):
    layers = []
    for c in (c_in, c_out):
        layers += [nn.Conv2d(c, c_out, 3, padding=1, bias=False), BatchNorm(c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the samples of all ranks, so that they train the same network as a single process."""

    def forward(self, x):
        if not self.training or ranks.world() == 1:
            return super().forward(x)
        over, wide = (0, 2, 3), x.to(torch.promote_types(x.dtype, torch.float32))  # (N, C, H, W)
        n = ranks.summed(wide.new_tensor(wide[:, 0].numel()))
        mean = ranks.summed(wide.sum(over)) / n
        centred = wide - mean[:, None, None]
        variance = ranks.summed((centred ** 2).sum(over)) / n
        with torch.no_grad():                                     # like torch, keep the unbiased variance
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def check(c):
    if c.size % 2 ** (c.levels - 1):
        raise UsageError(f"--size {c.size}: {c.levels} levels halve it to multiples of {2 ** (c.levels - 1)}")


def build(settings, n_classes, plan=None):
    return UNet(n_classes, settings["features"], settings["levels"]).to(memory_format=torch.channels_last)


def recipe(c, data, device):
    """The `Recipe`: random slices, flips alike within a step, Adam with a cosine rate, Dice + CE over the batch."""
    images = torch.from_numpy(np.concatenate([zscore(w.image) for w in data.volumes]))[:, None]    # (N, 1, H, W)
    labels = torch.from_numpy(np.concatenate([w.label for w in data.volumes])).long()              # (N, H, W)
    net = initialised(lambda: build(vars(c), data.n_classes), c.seed).to(device)
    augmentation = Augmentation(images.shape[2:])

    def batch(step, samples):
        g = generator(c.seed, "step", step)
        chosen = torch.randint(len(images), (c.batch,), generator=g)[samples.start:samples.stop]
        flips = [axis for axis, u in zip((-2, -1), torch.rand(2, generator=g)) if u < 0.5]
        x = images[chosen].flip(flips)
        if c.augment:
            streams = [rng(c.seed, "augmentation", step, j) for j in samples]
            x = torch.stack([augmentation.intensities(*pair) for pair in zip(x[:, 0], streams)])[:, None]
        return x, labels[chosen].flip(flips)

    def learning_rate(step):
        return c.lr * 0.5 * (1 + math.cos(math.pi * step / c.steps))

    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, fused=True)
    return Recipe(net, optimizer, c.batch, batch, learning_rate, dice_ce_loss)


def logits(net, image, spacing_mm, plan, mirror):
    """Logits (n_classes, D, H, W) of a working volume (D, H, W), slice by slice; other arguments are unused."""
    return predict(net, zscore(np.asarray(image)), np.shape(image)[-2:], [()], at_a_time=32)


FULL_SIZE = dict(**FULL_GRID, levels=5, batch=32, lr=1e-3, bfloat16=True, workers=6, log_every=250, save_minutes=10)
VANILLA = Network(build, recipe, logits, check=check, presets={
    "tiny": dict(features=8, levels=3, steps=60, batch=8, lr=2e-3, log_every=20, save_minutes=0.1),
    "demo": dict(features=8, steps=2400, lr=2e-3),
    "small": dict(**FULL_GRID, features=8, levels=5, steps=2400, lr=2e-3),
    "lab": dict(**FULL_SIZE, steps=20_000),
    "paper": dict(**FULL_SIZE, steps=40_000)})
