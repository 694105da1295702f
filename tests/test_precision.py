"""Training and sampling in bfloat16 beside float32: how far apart they are, for every network."""
import numpy as np
import pytest
import torch

import train_unet
from cmr.denoiser import Denoiser
from cmr.diffusion import Schedule, denoise, diffusion_loss, levels
from cmr.networks import NETWORKS
from cmr.recipe import Training
from cmr.seeds import generator, initialised
from cmr.bench import noise_volume

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
    recipe = NETWORKS[network].recipe(Training(c, volumes, volumes[:1], volumes, np.arange(4), torch.device("cpu")))
    images, labels = recipe.batch(0, range(recipe.batch_size))
    require_close(recipe.net, lambda: recipe.loss(recipe.net(images), labels))


@pytest.fixture(scope="module")
def denoiser():
    """One whose last convolutions are not zero any more."""
    net = initialised(lambda: Denoiser(16, (1, 2), 1, (8,), 16, 8, 0.0, 32, 2), 0)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator("weights", *weight.shape))
    return net


def test_a_step_of_the_diffusion_model(denoiser):
    x_0 = torch.tanh(torch.randn(4, 1, 32, 32, generator=generator("x")))
    require_close(denoiser, lambda: diffusion_loss(Schedule.make("cosine"), denoiser, x_0, generator("step")))


def test_a_sampled_volume(denoiser):
    """The sampler itself runs in float32; in bfloat16 it would draw the same volume to 0.02 of its range of 2."""
    drawn = []
    for bfloat16 in (False, True):
        g = generator("noise")
        noise = lambda step=None: torch.randn(6, 1, 32, 32, generator=g)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            drawn.append(denoise(Schedule.make("cosine"), denoiser, "v", noise(), levels(300, 4), noise))
    assert drawn[1].dtype == torch.float32 and not torch.equal(*drawn)
    assert (drawn[1] - drawn[0]).abs().mean() < IMAGE
