"""Speed of the parts on this machine: `make bench`.  Ratios within one run are what to compare; seconds are the machine's.

Public: `metric_masks`, `main`.
"""
import time

import numpy as np
import torch

from cmr.config import run_script
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, diffusion_loss
from cmr.losses import dice_ce_loss
from cmr.metrics import dice, measure, surface_metrics
from cmr.training import generator, initialised
from cmr.unet import UNet


def seconds(call, repeats=5):
    """Fastest of some repeats, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def metric_masks(z0, z1, s, wobble, shift, shape=(10, 256, 256), spacing=(10, 1.25, 1.25)):
    """Label map of a three-structure heart by formula: LV 1, MYO 2, RV 3; slices z0 to z1, scale s, 5-fold wobble, shift (y, x) mm."""
    label = np.zeros(shape, np.uint8)
    y = ((np.arange(shape[1]) - (shape[1] - 1) / 2) * spacing[1] - shift[0])[:, None]
    x = ((np.arange(shape[2]) - (shape[2] - 1) / 2) * spacing[2] - shift[1])[None]
    for z in range(z0, z1):
        u = (z - z0 + 0.5) / (z1 - z0)
        t = s * np.sqrt(1 - u ** 2)
        w = 1 + wobble * np.sin(5 * np.arctan2(y, x) + z)
        r = np.sqrt(x ** 2 + y ** 2)
        if t > 0.3:
            label[z][((x + 38 * t) / (26 * t)) ** 2 + (y / (38 * t)) ** 2 <= 1] = 3
        label[z][r <= (24 * t + 10 * s) * w] = 2
        label[z][r <= 24 * t * w] = 1
    return label


def bench_metrics():
    spacing = (10.0, 1.25, 1.25)
    ref, pred = metric_masks(1, 9, 1.0, 0.0, (0, 0)), metric_masks(1, 8, 0.97, 0.04, (1.5, -1.0))
    ours = seconds(lambda: [(dice(pred == i, ref == i), surface_metrics(pred == i, ref == i, spacing)) for i in (1, 2, 3)], 30)
    print(f"metrics, 3 structures, 10x256x256: {1000 * ours:.1f} ms (Dice, HD, HD95, ASSD, MASD, NSD)")
    everything = seconds(lambda: [measure(pred == i, ref == i, spacing) for i in (1, 2, 3)], 5)
    print(f"  with in-plane metrics slice by slice: {1000 * everything:.1f} ms")
    try:
        from medpy.metric import binary
    except ImportError:
        print("  medpy is not installed; pip install medpy to measure it beside")
        return
    theirs = seconds(lambda: [(binary.dc(pred == i, ref == i), binary.hd95(pred == i, ref == i, spacing), binary.assd(pred == i, ref == i, spacing)) for i in (1, 2, 3)], 2)
    print(f"  medpy (Dice, HD95, ASSD only): {1000 * theirs:.1f} ms, {theirs / ours:.1f} times ours")


def bench_networks():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    schedule, g = Schedule.make("cosine"), generator(0, "bench")
    x = torch.randn(16, 1, 64, 64, generator=g).to(device)
    y = torch.randint(0, 4, (16, 64, 64), generator=g).to(device)
    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()
    for layout in (torch.contiguous_format, torch.channels_last):
        denoiser = initialised(lambda: Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 0.0, 64, 2), 0).to(device, memory_format=layout)
        unet = initialised(lambda: UNet(4, 16, 4), 0).to(device, memory_format=layout)
        for name, net, loss in (("denoiser", denoiser, lambda net: diffusion_loss(schedule, net, x, g)), ("vanilla U-Net", unet, lambda net: dice_ce_loss(net(x), y))):
            optimizer = torch.optim.AdamW(net.parameters(), fused=True)
            def step():
                optimizer.zero_grad(set_to_none=True)
                loss(net).backward()
                optimizer.step()
                wait()
            print(f"{name}, batch 16 of 64x64, {str(layout)[6:]}, {device}: {seconds(step):.3f} s per training step")
    with torch.no_grad():
        call = seconds(lambda: (denoiser(x, torch.full((16,), 500, device=device)), wait()))
    print(f"sampler: {call:.4f} s per network call on 16 slices; 12 calls translate a study's phase in {12 * call:.2f} s")


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    bench_metrics()
    bench_networks()


if __name__ == "__main__":
    run_script(main)
