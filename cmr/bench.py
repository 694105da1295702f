"""Speed of the parts on this machine: `make bench`.  Compare ratios within one run; seconds are the machine's.

Public: `metric_masks`, `segmenter_speed`, `main`.
"""
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import torch

from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, diffusion_loss
from cmr.errors import run_script
from cmr.metrics import dice, measure, surface_metrics
from cmr.networks import NETWORKS
from cmr.recipe import Training
from cmr.seeds import generator, initialised, rng
from cmr.segmenter import Segmenter
from cmr.workers import peak_memory_gb


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    bench_metrics()
    bench_denoiser()
    bench_segmenters()


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
    """Label map of a three-structure heart by formula: LV 1, MYO 2, RV 3.

    Slices z0 to z1, scale s, 5-fold wobble, shift (y, x) mm.
    """
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
    pairs = [(pred == value, ref == value) for value in (1, 2, 3)]
    ours = seconds(lambda: [(dice(p, r), surface_metrics(p, r, spacing)) for p, r in pairs], 30)
    print(f"metrics, 3 structures, 10x256x256: {1000 * ours:.1f} ms (Dice, HD, HD95, ASSD, MASD, NSD)")
    everything = seconds(lambda: [measure(p, r, spacing) for p, r in pairs], 5)
    print(f"  with in-plane metrics slice by slice: {1000 * everything:.1f} ms")
    try:
        from medpy.metric import binary
    except ImportError:
        print("  medpy is not installed; pip install medpy to measure it beside")
        return
    medpy = lambda p, r: (binary.dc(p, r), binary.hd95(p, r, spacing), binary.assd(p, r, spacing))
    theirs = seconds(lambda: [medpy(p, r) for p, r in pairs], 2)
    print(f"  medpy (Dice, HD95, ASSD only): {1000 * theirs:.1f} ms, {theirs / ours:.1f} times ours")


def bench_denoiser():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    schedule, g = Schedule.make("cosine"), generator(0, "bench")
    x = torch.randn(16, 1, 64, 64, generator=g).to(device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    denoiser = initialised(lambda: Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 0.0, 64, 2), 0)
    denoiser = denoiser.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        diffusion_loss(schedule, denoiser, x, g).backward()
        optimizer.step()
        wait()

    @torch.no_grad()
    def call():
        denoiser(x, torch.full((16,), 500, device=device))
        wait()

    print(f"denoiser, batch 16 of 64x64, {device}: {seconds(step):.3f} s per training step")
    one_call = seconds(call)
    print(f"sampler: {one_call:.4f} s per network call on 16 slices; "
          f"two calls translate a study's phase in {2 * one_call:.2f} s")


def bench_segmenters():
    for network in NETWORKS:
        for threads in sorted({1, torch.get_num_threads()}):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                step, share, peak_mb, volume = pool.apply(segmenter_speed, (network, threads))
            print(f"{network}, demo size, cpu, {threads} threads: {1 / step:.1f} steps per second ({share:.1%} of it "
                  f"data), peak {peak_mb:.0f} MB, {volume:.2f} s to segment a volume of 12 slices")


def segmenter_speed(network, threads):
    """Of a network at demo size, on the CPU; in a process of its own, so that the peak is this network's.

    (seconds per training step, share of it spent on data, peak memory of training in MB, seconds per volume).
    """
    torch.set_num_threads(threads)
    volumes = [noise_volume(i) for i in range(60)]
    settings = SimpleNamespace(network=network, features=8, levels=4, memory_gb=0.08, plan="", steps=1200,
                               epoch_steps=120, validation_batches=1, batch=16, lr=1e-3, augment=False, seed=0)
    before = peak_memory_gb(torch.device("cpu"))
    training = Training(settings, volumes, volumes[:2], volumes, np.arange(4), torch.device("cpu"))
    recipe = NETWORKS[network].recipe(training)
    times, data = [], 0.0
    for step in range(43):
        begin = time.perf_counter()
        x, y = recipe.batch(step, range(recipe.batch_size))
        ready = time.perf_counter()
        loss = recipe.loss(recipe.net(x), y)
        recipe.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        recipe.optimizer.step()
        if step >= 3:                                             # the first steps warm up
            times.append(time.perf_counter() - begin)
            data += ready - begin
    peak_mb = 1024 * (peak_memory_gb(torch.device("cpu")) - before)
    segmenter = Segmenter(recipe.net.eval(), ("LV", "MYO", "RV"), vars(settings), recipe.plan, (), "")
    volume = seconds(lambda: segmenter.logits(volumes[0].image, volumes[0].spacing_mm), 2)
    return float(np.median(times)), data / sum(times), peak_mb, volume


def noise_volume(i):
    """A working volume of noise with a labelled heart of boxes."""
    label = np.zeros((12, 64, 64), np.uint8)
    label[2:10, 20:44, 20:44], label[2:10, 26:38, 26:38], label[2:10, 24:40, 10:20] = 2, 1, 3
    image = np.tanh(rng("bench", i).standard_normal(label.shape)).astype(np.float32)
    return SimpleNamespace(image=image, label=label, spacing_mm=(9.0, 2.5, 2.5))


if __name__ == "__main__":
    run_script(main)
