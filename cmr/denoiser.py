"""The denoiser: a time-conditioned U-Net (Ho et al. 2020, with the blocks of Dhariwal & Nichol 2021)."""
import math

import torch
import torch.nn.functional as F
from torch import nn


def build_denoiser(settings):
    """Build the Denoiser of a training run's settings, in which lists are texts such as `1,2,3`."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n)
    return Denoiser(settings["base"], numbers(settings["multipliers"]), settings["blocks"],
                    numbers(settings["attention_at"]), settings["head"], settings["groups"], settings["size"],
                    settings["patch"])


def placed(net, device):
    """Move a denoiser to its device, channels last on a CPU; on a GPU group normalisation returns channels first."""
    on_cpu = torch.device(device).type == "cpu"
    return net.to(device, memory_format=torch.channels_last if on_cpu else torch.contiguous_format)


class Denoiser(nn.Module):
    """The network (x_t, t) -> v of the shape of x_t; at initialisation v is exactly 0.

    x_t : (N, 1, H, W) float32, folded patch x patch into channels; H and W are multiples of patch * 2^(levels-1).
    t : (N,) in 1..T.  attention_at : edges in pixels of feature maps with self-attention; the coarsest always has it.
    """

    def __init__(self, base, multipliers, blocks, attention_at, head, groups, size, patch=1):
        super().__init__()
        self.base, self.patch, multiple = base, patch, patch * 2 ** (len(multipliers) - 1)
        if size % multiple:
            raise ValueError(f"size {size}: this denoiser needs multiples of {multiple} "
                             f"(patch {patch}, {len(multipliers)} levels)")
        if base % 2:
            raise ValueError(f"base {base}: use an even number, half of it are cosines of the time and half are sines")
        edges = [size // patch // 2 ** level for level in range(len(multipliers))]
        if not set(attention_at) <= set(edges):
            raise ValueError(f"attention at {list(attention_at)}: the feature maps have edges of {edges} pixels")
        res = lambda c_in, c_out, resample=None: ResBlock(c_in, c_out, 4 * base, groups, resample)
        attention = lambda c, edge: [Attention(c, head, groups)] if edge in attention_at else []
        channels = [base * m for m in multipliers]
        self.embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.stem = nn.Conv2d(patch ** 2, channels[0], 3, padding=1)

        current, skips = channels[0], [channels[0]]               # channels of what `forward` puts on its stack
        self.down = nn.ModuleList()
        for c, edge in zip(channels, edges):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([res(current, c), *attention(c, edge)]))
                current = c
                skips.append(c)
            if edge != edges[-1]:
                self.down.append(nn.ModuleList([res(c, c, "down")]))
                skips.append(c)
        self.middle = nn.ModuleList([res(current, current), Attention(current, head, groups), res(current, current)])
        self.up = nn.ModuleList()
        for c, edge in zip(reversed(channels), reversed(edges)):
            for i in range(blocks + 1):
                layers = [res(current + skips.pop(), c), *attention(c, edge)]
                current = c
                if edge != edges[0] and i == blocks:
                    layers.append(res(c, c, "up"))
                self.up.append(nn.ModuleList(layers))
        last = _zero(nn.Conv2d(current, patch ** 2, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(groups, current), nn.SiLU(), last)

    def forward(self, x_t, t):
        emb = self.embed(time_features(t, self.base).to(x_t.dtype))
        h = self.stem(F.pixel_unshuffle(x_t, self.patch))         # (N, patch^2, H/patch, W/patch) -> (N, C, ...)
        skips = [h]
        for layers in self.down:
            for layer in layers:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layers in self.up:
            h = torch.cat([h, skips.pop()], 1)
            for layer in layers:
                h = layer(h, emb)
        return F.pixel_shuffle(self.head(h), self.patch)


def time_features(t, width):
    """Return sinusoidal features of the times t (N,): cos and sin of t / 10000^(j / (width/2)), float32 (N, width)."""
    j = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(1e4) * j / (width // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class ResBlock(nn.Module):
    """A residual block, scaled and shifted by the time; `resample` is "down" (mean), "up" (nearest pixel) or None."""

    def __init__(self, c_in, c_out, embedding, groups, resample):
        super().__init__()
        self.norm_in, self.conv_in = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * c_out)
        self.norm_out = nn.GroupNorm(groups, c_out)
        self.conv_out = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.resample = {None: nn.Identity(), "down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2)}[resample]

    def forward(self, x, emb):
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        scale, shift = self.film(F.silu(emb))[:, :, None, None].chunk(2, 1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(self.resample(x)) + h


class Attention(nn.Module):
    """Residual self-attention over the pixels of a feature map, with about `head` channels per head."""

    def __init__(self, channels, head, groups):
        super().__init__()
        self.heads = max(1, channels // head)
        if channels % self.heads:
            raise ValueError(f"{channels} channels cannot be dealt to {self.heads} heads of about {head}")
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x, emb):
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(n, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)                 # (N, heads, HW, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        return x + self.out(attended)


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
