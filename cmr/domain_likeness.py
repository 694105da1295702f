"""Which domain does an image look like?  A small convolutional network is asked, patch by patch.

It is trained on real images alone, so that it has not seen what a projection leaves behind.  Whether an image still
fits its mask is another question: `cmr.pair_audit`.

Public: `SourceClassifier`.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cmr.seeds import generator, initialised

PATCH = 32                                       # edge in pixels; patches that are asked about overlap by half
STEPS, BATCH, LEARNING_RATE = 300, 64, 3e-3
WIDTHS, STRIDES = (16, 24, 32), (2, 2, 1)


@dataclass(frozen=True)
class SourceClassifier:
    """Tells the source from another domain by contrast, sharpness and noise of patches, not by where or how they lie.

    In training patches are cut anywhere, turned and flipped at random; both domains are shown equally often, whatever
    the number of their volumes.  It runs on the CPU, so that its answers are a function of images and seed.
    """
    net: nn.Module

    @classmethod
    def fit(cls, source, others, seed=0):
        """source, others : volumes (D, H, W) in [-1, 1], unlabelled, of patients that are not asked about later."""
        pools = [torch.from_numpy(np.concatenate(volumes).astype(np.float32)) for volumes in (source, others)]
        net = initialised(_network, seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        of_source = torch.cat([torch.ones(BATCH // 2), torch.zeros(BATCH // 2)])
        for step in range(STEPS):
            g = generator(seed, "source classifier", step)
            patches = torch.cat([_random_patches(slices, BATCH // 2, g) for slices in pools])
            loss = F.binary_cross_entropy_with_logits(net(patches)[:, 0], of_source)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
            optimizer.step()
        return cls(net.eval())

    @torch.no_grad()
    def probability(self, image):
        """That a volume (D, H, W) is of the source, in [0, 1], if both domains are as frequent: the mean over patches.

        Above 0.5 it is taken for the source.
        """
        slices = torch.from_numpy(np.array(image, np.float32))
        edge = min(PATCH, *slices.shape[1:])
        patches = slices.unfold(1, edge, edge // 2).unfold(2, edge, edge // 2).reshape(-1, 1, edge, edge)
        return float(torch.cat([self.net(some).sigmoid() for some in patches.split(256)]).mean())


def _network():
    """(N, 1, H, W) patches -> (N, 1) logits: three convolutions, then the mean over the patch."""
    layers, c_in = [], 1
    for c_out, stride in zip(WIDTHS, STRIDES):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1))


def _random_patches(slices, n, g):
    """n patches (n, 1, edge, edge) from anywhere in slices (N, H, W), laid in one of the eight ways of a square."""
    draw = lambda below, *shape: torch.randint(below, shape, generator=g)
    edge = min(PATCH, *slices.shape[1:])
    rows, columns = (draw(length - edge + 1, n, 1) + torch.arange(edge) for length in slices.shape[1:])
    patches = slices[draw(len(slices), n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    turned = torch.rot90(patches, int(draw(4)), (1, 2))
    return (turned.flip(1) if draw(2) else turned)[:, None]
