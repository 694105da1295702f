"""Speed of the parts on this machine: `make bench`, or `python tests/bench.py`.

Networks are of the size of `demo` and see noise.  Compare ratios within one run; seconds are the machine's.
"""
import sys
import timeit
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cmr.denoiser import Denoiser, placed  # noqa: E402
from cmr.diffusion import Schedule, diffusion_loss  # noqa: E402
from cmr.errors import run_script  # noqa: E402
from cmr.metrics import measure  # noqa: E402
from cmr.network import TrainingData  # noqa: E402
from cmr.sampler import PROJECTED, SourceModel, Strength, project  # noqa: E402
from cmr.seeds import generator, initialised, rng  # noqa: E402
from cmr.segmenter import NETWORKS  # noqa: E402
from cmr.workers import pick_device, to_device  # noqa: E402


def main():
    device = pick_device("auto")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; seconds of each")
    denoiser_speed(device)
    for network in NETWORKS:
        segmenter_speed(network, device)
    label = noise_volume(0).label
    score = lambda: [measure(np.roll(label == k, 2, 1), label == k, (9.0, 2.5, 2.5)) for k in (1, 2, 3)]
    print(f"metrics of three structures in {' x '.join(map(str, label.shape))} voxels: {seconds(score):.3f}")


def seconds(call, repeats=5):
    """Median of some repeats, after one to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    return float(np.median(timeit.repeat(lambda: (call(), wait()), number=1, repeat=1 + repeats)[1:]))


def print_step(what, device, net, loss_of, waiting_s=0.0):
    """Print what a step takes that minimises loss_of(net) after waiting_s for its batch."""
    optimizer = torch.optim.AdamW(net.to(device).parameters(), fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(net).backward()
        optimizer.step()

    step_s = waiting_s + seconds(step, 10)
    print(f"{what}, step of {type(net).__name__}: {step_s:.3f}, {waiting_s / step_s:.1%} of it waiting for data")


def denoiser_speed(device):
    """Print what a training step of the SD-DM takes, and a projected volume."""
    net = placed(initialised(lambda: Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 64, 2), 0), device)
    schedule, x_0 = Schedule.make("cosine"), torch.randn(8, 1, 64, 64, generator=generator("bench")).to(device)
    loss_of = lambda net: diffusion_loss(schedule, net, x_0, generator("bench", "loss"))
    print_step("SD-DM, batch of 8", device, net, loss_of)
    model = SourceModel(net.eval().requires_grad_(False), schedule, None, 0.0, 1.0, {}, (), "")
    volume_s = seconds(lambda: project(model, noise_volume(0).image, Strength.parse(PROJECTED["demo"]), (0,)), 1)
    print(f"SD-DM, projection of 12 slices: {volume_s:.3f}")


def segmenter_speed(network, device):
    """Print what a training step of a segmenter takes, and a segmented volume."""
    common = dict(network=network, levels=4, batch=16, augment=False, optimizer="adamw", seed=0)
    settings = SimpleNamespace(**{**common, **NETWORKS[network].presets["demo"]})
    volumes = [noise_volume(i) for i in range(20)]
    recipe = NETWORKS[network].recipe(settings, TrainingData(volumes, volumes[:2], volumes, 4), device)
    batches = (to_device(recipe.batch(step, range(recipe.batch_size)), device) for step in range(12))
    x, y = next(batches)
    waiting_s, what = seconds(lambda: next(batches), 10), f"{network}, batch of {len(x)}"
    print_step(what, device, recipe.net, lambda net: recipe.loss(net(x), y), waiting_s)
    net, volume = recipe.net.eval(), volumes[0]
    segment = lambda: NETWORKS[network].logits(net, volume.image, volume.spacing_mm, recipe.plan, True)
    print(f"{network}, segmentation of 12 slices: {seconds(segment, 2):.3f}")


def noise_volume(i):
    """A working volume of noise with a labelled heart of boxes."""
    label = np.zeros((12, 64, 64), np.uint8)
    label[2:10, 20:44, 20:44], label[2:10, 26:38, 26:38], label[2:10, 24:40, 10:20] = 2, 1, 3
    image = np.tanh(rng("bench", i).standard_normal(label.shape)).astype(np.float32)
    return SimpleNamespace(image=image, label=label, spacing_mm=(9.0, 2.5, 2.5))


if __name__ == "__main__":
    run_script(main)
