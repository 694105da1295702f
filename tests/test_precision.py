"""Training and sampling in bfloat16 beside float32: how far apart they are, for every network."""
import numpy as np
import pytest
import torch

import train_unet
from bench import noise_volume
from cmr.denoiser import Denoiser, placed
from cmr.diffusion import Schedule, diffusion_loss
from cmr.network import TrainingData
from cmr.sampler import SourceModel, Strength, project
from cmr.seeds import generator, initialised, rng
from cmr.segmenter import NETWORKS, Segmenter

# bfloat16 keeps 8 bits: 0.4 % of each number; instance normalisation over the few voxels of a deep stage cancels most
# of its gradient, which leaves the rounding (nnunet2d: 25 % of the norm, at a cosine of 0.97).
LOSS, GRADIENT, IMAGE = 0.02, 0.3, 0.02


def with_gradients(net, loss_of, bfloat16):
    """(loss, all gradients as one vector) of one step."""
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = loss_of()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def require_close(net, loss_of):
    (single, of_single), (half, of_half) = (with_gradients(net, loss_of, bfloat16) for bfloat16 in (False, True))
    assert half != single, "nothing was computed in bfloat16"
    assert abs(half - single) < LOSS * max(1, abs(single))
    assert (of_half - of_single).norm() < GRADIENT * of_single.norm()
    assert of_half.dtype == torch.float32                         # the weights, and what moves them


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_a_segmenter(network):
    volumes = [noise_volume(i) for i in range(8)]
    c = train_unet.Config(network=network, features=8, levels=3, memory_gb=0.08, steps=2, epoch_steps=1, batch=4)
    recipe = NETWORKS[network].recipe(c, TrainingData(volumes, volumes[:1], volumes, 4), torch.device("cpu"))
    images, labels = recipe.batch(0, range(recipe.batch_size))
    require_close(recipe.net, lambda: recipe.loss(recipe.net(images), labels))


@pytest.fixture(scope="module")
def denoiser():
    """One whose last convolutions are not zero any more."""
    net = initialised(lambda: Denoiser(16, (1, 2), 1, (8,), 16, 8, 32, 2), 0)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator("weights", *weight.shape))
    return net


def test_a_step_of_the_diffusion_model(denoiser):
    x_0 = torch.tanh(torch.randn(4, 1, 32, 32, generator=generator("x")))
    require_close(denoiser, lambda: diffusion_loss(Schedule.make("cosine"), denoiser, x_0, generator("step")))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A network that was trained in bfloat16 is asked in bfloat16 on the CPU too."""
    of_cpu = lambda device, bfloat16: torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    for room in ("cmr.sampler", "cmr.segmenter"):
        monkeypatch.setattr(f"{room}.half_precision", of_cpu)


@pytest.mark.parametrize("low_pass", [0, 4])
def test_a_sampled_volume(denoiser, as_on_a_gpu, low_pass):
    """The network alone is asked in bfloat16: what is drawn differs by 0.02 of its range of 2 at most."""
    volume = np.tanh(rng("volume").standard_normal((6, 32, 32))).astype(np.float32)
    strength, drawn = Strength(t0=300, steps=4, low_pass=low_pass), []
    for bfloat16 in (False, True):
        model = SourceModel(denoiser, Schedule.make("cosine"), None, 0.0, 0.5, {"bfloat16": bfloat16}, (), "hash")
        drawn.append(project(model, volume, strength, (0,)))
    assert drawn[1].dtype == np.float32 and not np.array_equal(*drawn)
    assert np.abs(drawn[1] - drawn[0]).mean() < IMAGE


@pytest.mark.parametrize("network", NETWORKS)
def test_a_segmented_volume(network, as_on_a_gpu):
    """Logits are summed in float32; labels of an untrained network, its closest calls, mostly agree."""
    volume = noise_volume(0)
    c = train_unet.Config(network=network, features=8, levels=3, memory_gb=0.08, steps=2, epoch_steps=1, batch=4)
    recipe = NETWORKS[network].recipe(c, TrainingData([volume], [], [volume], 4), torch.device("cpu"))
    single, half = (Segmenter(recipe.net.eval(), ("LV", "MYO", "RV"), {**vars(c), "bfloat16": bfloat16}, recipe.plan,
                              (), "").logits(volume.image, volume.spacing_mm) for bfloat16 in (False, True))
    assert half.dtype == np.float32 and not np.array_equal(half, single)
    assert (half.argmax(0) == single.argmax(0)).mean() > 0.95


def test_the_memory_of_a_denoiser_is_laid_out_as_its_device_leaves_images():
    weight = lambda device: placed(torch.nn.Conv2d(3, 4, 3), device).weight
    assert weight("cpu").is_contiguous(memory_format=torch.channels_last) and not weight("cpu").is_contiguous()
    assert weight("meta").is_contiguous()                         # as on a GPU
