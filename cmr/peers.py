"""The same work done by other people's code, for `make bench`: each only where it is installed, none is needed.

    diffusers: UNet2DModel    dynamic-network-architectures: PlainConvUNet    medpy, MONAI, surface-distance: metrics

Networks are of equal layers; that ours give the same numbers is the tests' business.

Public: `denoiser`, `nnunet`, `metrics`.
"""
import contextlib
import io
import warnings

import torch
import torch.nn.functional as F
from torch import nn


def denoiser():
    """(name, network like the SD-DM of `demo`, (x_t, t) -> output), or None."""
    with _quiet(), contextlib.suppress(ImportError):
        from diffusers import UNet2DModel
        return "diffusers UNet2DModel", _Folded(UNet2DModel(
            sample_size=32, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(24, 48, 72),
            down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=24,
            norm_num_groups=8, resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet"))
    return None


class _Folded(nn.Module):
    """Two by two pixels folded into channels, as the SD-DM of `demo` does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_t, t):
        return F.pixel_shuffle(self.net(F.pixel_unshuffle(x_t, 2), t).sample, 2)


def nnunet(plan, classes):
    """(name, the original's network of a plan, as plain values), or None."""
    with _quiet(), contextlib.suppress(ImportError):
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        stages, dims = len(plan["features"]), len(plan["patch"])
        layer = lambda name: getattr(nn, f"{name}{dims}d")
        net = PlainConvUNet(1, stages, plan["features"], layer("Conv"), plan["kernels"], plan["strides"], 2, classes,
                            2, conv_bias=True, norm_op=layer("InstanceNorm"),
                            norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
                            nonlin_kwargs={"inplace": True}, deep_supervision=True)
        return "the original's PlainConvUNet", net
    return None


def metrics(spacing_mm):
    """[(name, what it measures, function of two masks)] of what is there."""
    found = []
    with _quiet(), contextlib.suppress(ImportError):
        from medpy.metric import binary
        found.append(("medpy", "Dice, HD95, ASSD", lambda p, r: (
            binary.dc(p, r), binary.hd95(p, r, spacing_mm), binary.assd(p, r, spacing_mm))))
    with _quiet(), contextlib.suppress(ImportError):
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
        batch = lambda mask: torch.from_numpy(mask)[None, None]
        found.append(("MONAI", "HD95, ASSD", lambda p, r: (
            compute_hausdorff_distance(batch(p), batch(r), True, percentile=95, spacing=spacing_mm),
            compute_average_surface_distance(batch(p), batch(r), True, symmetric=True, spacing=spacing_mm))))
    with _quiet(), contextlib.suppress(ImportError):
        import surface_distance
        def of_surfaces(p, r):
            distances = surface_distance.compute_surface_distances(r, p, spacing_mm)
            return (surface_distance.compute_robust_hausdorff(distances, 95),
                    surface_distance.compute_average_surface_distance(distances))
        found.append(("surface-distance", "HD95, ASSD", of_surfaces))
    return found


@contextlib.contextmanager
def _quiet():
    """Without what the libraries print when they are loaded."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
