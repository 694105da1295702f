"""Speed of the parts on this machine: `make bench`.  Compare ratios within one run; seconds are the machine's.

Nothing here is asserted or read by a stage.

Public: `metric_masks`, `segmenter_speed`, `main`.
"""
import contextlib
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from cmr import peers
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, diffusion_loss
from cmr.errors import ResourceError, run_script
from cmr.metrics import dice, measure, surface_metrics
from cmr.network import TrainingData
from cmr.phantom import COUNTS, write_dataset
from cmr.phantom import Config as PhantomConfig
from cmr.sampler import placed
from cmr.seeds import generator, initialised, rng
from cmr.segmenter import NETWORKS, Segmenter
from cmr.workers import peak_memory_gb

SIZES = (10, 20, 40)                             # source studies


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    bench_metrics()
    bench_denoiser()
    bench_segmenters()
    bench_sizes()


def beside(ours, theirs, repeats=5):
    """(our seconds, theirs), each the fastest of some repeats made in turn, so that a busy machine slows both."""
    times = [[], []]
    for _ in range(repeats + 1):
        for own, call in zip(times, (ours, theirs)):
            begin = time.perf_counter()
            call()
            own.append(time.perf_counter() - begin)
    return tuple(min(own[1:]) for own in times)


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
    for name, what, of_pair in peers.metrics(spacing):
        ours, theirs = beside(lambda: [(dice(p, r), surface_metrics(p, r, spacing)) for p, r in pairs],
                              lambda: [of_pair(p, r) for p, r in pairs], 3)
        print(f"  {name} ({what} alone): {1000 * theirs:.1f} ms, {theirs / ours:.1f} times ours")


def bench_denoiser():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = initialised(lambda: Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 0.0, 64, 2), 0)
    step, call = denoiser_work(ours, device)
    step_s, call_s = seconds(step), seconds(call)
    print(f"SD-DM of demo, batch 16 of 64x64, {device}: {step_s:.3f} s per training step, {call_s:.4f} s per network "
          f"call; two calls translate a study's phase in {2 * call_s:.2f} s")
    peer = peers.denoiser()
    if peer:
        name, net = peer
        of_peer = denoiser_work(net, device)
        for what, own, other in (("training step", step, of_peer[0]), ("network call", call, of_peer[1])):
            ours_s, theirs_s = beside(own, other)
            print(f"  {name} of {_millions(net)} parameters (ours {_millions(ours)}), {what}: {theirs_s:.3f} s, "
                  f"{theirs_s / ours_s:.2f} times ours")


def denoiser_work(net, device):
    """(a training step, a network call) on a batch of noise."""
    schedule, g = Schedule.make("cosine"), generator(0, "bench")
    x = torch.randn(16, 1, 64, 64, generator=g).to(device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    net = placed(net, device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        diffusion_loss(schedule, net, x, g).backward()
        optimizer.step()
        wait()

    @torch.no_grad()
    def call():
        net(x, torch.full((16,), 500, device=device))
        wait()

    return step, call


def _millions(net):
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"


def bench_segmenters():
    for network in NETWORKS:
        for threads in sorted({1, torch.get_num_threads()}):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                step, share, peak_mb, volume, peer = pool.apply(segmenter_speed, (network, threads))
            print(f"{network}, demo size, cpu, {threads} threads: {1 / step:.1f} steps per second ({share:.1%} of it "
                  f"data), peak {peak_mb:.0f} MB, {volume:.2f} s to segment a volume of 12 slices")
            if peer:
                name, ours_s, theirs_s = peer
                print(f"  {name}, a step without data: {theirs_s:.3f} s, {theirs_s / ours_s:.2f} times ours")


def segmenter_speed(network, threads, steps=40):
    """Of a network at demo size, on the CPU; in a process of its own, so that the peak is this network's.

    (seconds per training step, share of it spent on data, peak memory of training in MB, seconds per volume, and of an
    nnU-Net, if the original's network is installed: its name, our seconds per step without data, its).
    """
    torch.set_num_threads(threads)
    volumes = [noise_volume(i) for i in range(60)]
    settings = SimpleNamespace(network=network, features=8, levels=4, memory_gb=0.08, steps=1200,
                               epoch_steps=120, validation_batches=1, batch=16, optimizer="adamw", lr=1e-3,
                               augment=False, seed=0)
    before = peak_memory_gb(torch.device("cpu"))
    data_of = TrainingData(volumes, volumes[:2], volumes, n_classes=4)
    recipe = NETWORKS[network].recipe(settings, data_of, torch.device("cpu"))
    times, data = [], 0.0
    for step in range(3 + steps):
        begin = time.perf_counter()
        x, y = recipe.batch(step, range(recipe.batch_size))
        ready = time.perf_counter()
        learn(recipe.net, recipe.optimizer, recipe.loss, x, y)
        if step >= 3:                                             # the first steps warm up
            times.append(time.perf_counter() - begin)
            data += ready - begin
    peak_mb = 1024 * (peak_memory_gb(torch.device("cpu")) - before)
    peer = recipe.plan and peers.nnunet(recipe.plan, data_of.n_classes)
    compared = None
    if peer:
        name, net = peer
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        compared = name, *beside(lambda: learn(recipe.net, recipe.optimizer, recipe.loss, x, y),
                                 lambda: learn(net, optimizer, recipe.loss, x, y), 10)
    segmenter = Segmenter(recipe.net.eval(), ("LV", "MYO", "RV"), vars(settings), recipe.plan, (), "")
    volume = seconds(lambda: segmenter.logits(volumes[0].image, volumes[0].spacing_mm), 2)
    return float(np.median(times)), data / sum(times), peak_mb, volume, compared


def learn(net, optimizer, loss_of, images, labels):
    """One step of a segmenter on a batch that is there."""
    optimizer.zero_grad(set_to_none=True)
    loss_of(net(images), labels).backward()
    optimizer.step()


def bench_sizes():
    """Seconds and memory of each stage against the number of source studies, at the steps of `tiny`."""
    for n in SIZES:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            COUNTS["bench"] = {"A": (n, 0, 2, n // 4), "B": (0, 0, 2, n // 4)}
            data = f"{folder}/phantom"
            with contextlib.redirect_stdout(io.StringIO()):
                begin = time.perf_counter()
                write_dataset(PhantomConfig(out=data, counts="bench", frames=2))
                made_s = time.perf_counter() - begin
            measured = stages_of(data, folder)
            figures = [f"{name} {taken_s:.1f} s, {memory_mb:.0f} MB" for name, taken_s, memory_mb in measured]
            print(f"{n} source studies and {n // 4 * 2} to test: phantom {made_s:.1f} s; {'; '.join(figures)}")


def stages_of(data, folder):
    """Yield (stage, seconds, peak memory in MB) of the stages on one dataset, each in a process of its own."""
    of_any = ["--preset", "tiny", "--data", data, "--work", f"{folder}/work"]
    targets, final = ["--target", "Vendor=B"], f"{folder}/segmenter-vanilla-real/final.pt"
    parts = ["--diffusion", f"{folder}/diffusion/final.pt", "--segmenter", final]
    rows = ["--run", folder, "--segmenters", "vanilla-real", *targets, "--processes", "1"]
    commands = {"check": ["-m", "cmr.check_dataset"], "diffusion": ["train_diffusion.py"],
                "segmenter-vanilla-real": ["train_unet.py"], "dg": ["-m", "cmr.synthesize", *parts],
                "da": ["-m", "cmr.synthesize", "--use", "da", *parts, *targets],
                "results": ["evaluate.py", *rows]}
    for name, command in commands.items():
        line = [sys.executable, *command, *of_any, "--out", f"{folder}/{name}"]
        begin, peak_gb = time.perf_counter(), 0.0
        process = subprocess.Popen(line, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak_gb = max(peak_gb, peak_memory_gb(torch.device("cpu"), process.pid))
            time.sleep(0.05)
        if process.returncode:
            raise ResourceError(f"{name}: ended with {process.returncode}")
        yield name, time.perf_counter() - begin, 1024 * peak_gb


def noise_volume(i):
    """A working volume of noise with a labelled heart of boxes."""
    label = np.zeros((12, 64, 64), np.uint8)
    label[2:10, 20:44, 20:44], label[2:10, 26:38, 26:38], label[2:10, 24:40, 10:20] = 2, 1, 3
    image = np.tanh(rng("bench", i).standard_normal(label.shape)).astype(np.float32)
    return SimpleNamespace(image=image, label=label, spacing_mm=(9.0, 2.5, 2.5))


if __name__ == "__main__":
    run_script(main)
