"""The vanilla 2D U-Net (Ronneberger et al. 2015, same padding, batch normalisation): the plain baseline.

Public: `UNet`.
"""
import torch
from torch import nn


class UNet(nn.Module):
    """(N, 1, H, W) z-scored slices -> (N, classes, H, W) logits.  H and W must be multiples of 2^(levels-1)."""

    def __init__(self, classes, base=32, levels=5):
        super().__init__()
        widths = [base * 2 ** i for i in range(levels)]
        self.multiple = 2 ** (levels - 1)
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in zip([1, *widths], widths))
        self.pool = nn.MaxPool2d(2)
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(_double_conv(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, x):
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(f"image is {x.shape[-2]}x{x.shape[-1]}, but this U-Net needs multiples of {self.multiple}; pad it")
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        x = skips.pop()
        for raise_, block in zip(reversed(self.raise_), reversed(self.up)):
            x = block(torch.cat([skips.pop(), raise_(x)], 1))
        return self.head(x)


def _double_conv(c_in, c_out):
    return nn.Sequential(*(layer for a in (c_in, c_out) for layer in
                           (nn.Conv2d(a, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))))
