"""The nnU-Net network (PlainConvUNet of Isensee et al. 2021), 2D and 3D, with deep supervision.

Strided convolutions downwards, transposed convolutions upwards, instance normalisation, leaky ReLU; the kernel and
stride of every stage come from the plan (`cmr.plan`), so that thick slices are not mixed before the in-plane
resolution is as coarse as they are.

Public: `NnUNet`.
"""
import math

import torch
from torch import nn


class NnUNet(nn.Module):
    """(N, 1, *space) z-scored patches -> logits (N, classes, *space), or in training the list of all resolutions.

    features : channels of each stage, finest first.
    kernels, strides : one tuple per stage with one entry per axis; 2 axes make a 2D network, 3 a 3D one.  strides[0] is 1.
    In train mode `forward` returns the logits of every decoder stage, finest first (deep supervision); in eval mode
    the finest alone.  Nothing else differs: there is no dropout and no batch statistic.
    Raises ValueError for a plan of one stage, which has no decoder.
    """

    def __init__(self, classes, features, kernels, strides):
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"a plan of {len(features)} stage has no decoder; the patch is too small for an nnU-Net (at least 8 pixels on two axes, or 12 on one)")
        dims = len(strides[0])
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for c_in, c_out, kernel, stride in zip([1, *features], features, kernels, strides):
            self.encoder.append(nn.Sequential(_block(dims, c_in, c_out, kernel, stride), _block(dims, c_out, c_out, kernel, 1)))
        for i in reversed(range(len(features) - 1)):                             # coarsest first
            self.decoder.append(_UpStage(dims, features[i + 1], features[i], kernels[i], strides[i + 1], classes))
        self.apply(_he_normal)

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x, logits = skips.pop(), []
        for stage in self.decoder:
            x = stage(x, skips.pop())
            if self.training or not skips:
                logits.insert(0, stage.head(x))
        return logits if self.training else logits[0]


class _UpStage(nn.Module):
    """One step up: enlarge, put the encoder's features behind, two blocks.  The head belongs to the stage, trained or not."""

    def __init__(self, dims, c_in, c_out, kernel, stride, classes):
        super().__init__()
        self.enlarge = _layer("ConvTranspose", dims)(c_in, c_out, stride, stride)
        self.blocks = nn.Sequential(_block(dims, 2 * c_out, c_out, kernel, 1), _block(dims, c_out, c_out, kernel, 1))
        self.head = _layer("Conv", dims)(c_out, classes, 1)

    def forward(self, x, skip):
        return self.blocks(torch.cat([self.enlarge(x), skip], 1))                # the enlarged first: weights are exchangeable with nnU-Net's


def _layer(name, dims):
    return getattr(nn, f"{name}{dims}d")


def _block(dims, c_in, c_out, kernel, stride):
    """Convolution with a bias, instance normalisation with an affine, leaky ReLU."""
    return nn.Sequential(_layer("Conv", dims)(c_in, c_out, kernel, stride, padding=[(k - 1) // 2 for k in kernel]),
                         _layer("InstanceNorm", dims)(c_out, eps=1e-5, affine=True), nn.LeakyReLU(0.01, inplace=True))


def _he_normal(module):
    """He et al. 2015 for leaky ReLU.  fan_in is weight.shape[1] times the kernel, which for a transposed convolution is its *output* side."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        fan_in = module.weight.shape[1] * math.prod(module.kernel_size)
        nn.init.normal_(module.weight, 0, math.sqrt(2 / ((1 + 0.01 ** 2) * fan_in)))
        nn.init.zeros_(module.bias)
