"""The nnU-Net network against the original's own numbers."""
import math

import numpy as np
import pytest
import torch

import train_unet
from bench import noise_volume
from cmr.errors import UsageError
from cmr.network import TrainingData, deep_supervision_loss
from cmr.nnunet import NnUNet, pseudo_dice
from cmr.nnunet_plan import make_plan
from cmr.seeds import initialised
from cmr.segmenter import NETWORKS

TOY = {"2d": dict(features=(4, 8, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3),
       "3d": dict(features=(4, 8, 12), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
                  kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)))}


def filled(net):
    """Parameter t, element i becomes 0.3 sin(0.37 i + 0.11 (t + 1)), in the order nnU-Net's parts are built in."""
    with torch.no_grad():
        for t, p in enumerate(net.parameters()):
            i = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_((0.3 * torch.sin(0.37 * i + 0.11 * (t + 1))).view(p.shape))
    return net


def sine(*shape, rate=0.05, factor=1.0):
    return (factor * torch.sin(rate * torch.arange(math.prod(shape), dtype=torch.float64))).float().reshape(shape)


def labels(*shape):
    i = torch.arange(math.prod(shape))
    return (((i * i + 3 * i) // 5) % 4).reshape(shape)


@pytest.mark.parametrize("name,shape,count,first,second,channels", [
    ("2d", (2, 1, 16, 12), 7608, (-0.117689, 0.115465, -0.251423, 0.032825),
     (-0.268989, 0.073176, -0.214780, -0.283463), (-0.267830, -0.163130, -0.060565, 0.020769)),
    ("3d", (1, 1, 4, 16, 8), 16048, (-0.117668, 0.114925, -0.250207, 0.032925),
     (-0.268967, 0.072683, -0.214646, -0.283020), (-0.268858, -0.163615, -0.059625, 0.021425))])
def test_forward_pass(name, shape, count, first, second, channels):
    net = filled(NnUNet(4, **TOY[name]))
    assert sum(p.numel() for p in net.parameters()) == count
    outputs = net(sine(*shape))
    assert len(outputs) == 2
    for logits, (mean, sd, a, z) in zip(outputs, (first, second)):
        flat = logits.flatten()
        got = [logits.mean().item(), logits.std().item(), flat[0].item(), flat[-1].item()]
        assert got == pytest.approx([mean, sd, a, z], abs=2e-6)
    assert outputs[0].transpose(0, 1).flatten(1).mean(1).tolist() == pytest.approx(channels, abs=2e-6)
    alone = net.eval()(sine(*shape))
    assert torch.equal(alone, outputs[0])  # no dropout, no batch statistic


def test_initial_weights():
    plan = make_plan(3, [(10, 1.5625, 1.5625)] * 200, [(10, 256, 216)] * 200, n_classes=4)
    net = initialised(lambda: NnUNet(4, plan.features, plan.kernels, plan.strides), 0)
    sd = lambda layer: layer.weight.std().item()
    assert sd(net.encoder[0][0][0]) == pytest.approx(0.47138, rel=0.15)                  # 288 weights
    assert sd(net.encoder[3][0][0]) == pytest.approx(0.02406, rel=0.01)
    assert sd(net.decoder[0].enlarge) == pytest.approx(0.03953, rel=0.01)
    assert sd(net.decoder[2].enlarge) == pytest.approx(0.04419, rel=0.01)
    assert sd(net.decoder[-1].head) == pytest.approx(0.25, rel=0.2)                      # 128 weights
    assert len(list(net.parameters())) == 108
    assert sum(p.numel() for p in net.encoder.parameters()) == 13_895_520
    assert sum(p.numel() for p in net.decoder.parameters()) == 16_117_364
    norms = [m for m in net.modules() if isinstance(m, torch.nn.InstanceNorm3d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() and not m.track_running_stats for m in norms)
    assert all((m.bias == 0).all() for m in net.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)))


@pytest.mark.parametrize("batch_dice,steps,after", [
    (True, ((1.1822988, 0.1800542), (1.1816559, 0.1785879), (1.1807108, 0.1767743)), 1.1794780),
    (False, ((1.1822999, 0.1800536),), 1.1794791)])
def test_three_optimiser_steps(batch_dice, steps, after):
    net = filled(NnUNet(4, (4, 8, 16, 16), ((3, 3),) * 4, ((1, 1),) + ((2, 2),) * 3))
    x, y = sine(2, 1, 32, 24), labels(2, 32, 24)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    for i in range(3):
        loss = deep_supervision_loss(net(x), y, batch_dice)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 12)
        optimizer.step()
        if i < len(steps):
            assert (loss.item(), norm.item()) == pytest.approx(steps[i], abs=2e-6)
    assert deep_supervision_loss(net(x), y, batch_dice).item() == pytest.approx(after, abs=3e-6)
    untrained = [i for i, p in enumerate(net.parameters()) if p.grad is None]
    assert untrained == [42, 43]                                  # the coarsest head
    if batch_dice:
        assert sum((p.double() ** 2).sum().item() for p in net.parameters()) == pytest.approx(919.92145, rel=1e-6)


@pytest.mark.parametrize("network,batch_dice", [("nnunet2d", True), ("nnunet3d", False)])
def test_the_recipe_is_the_originals(network, batch_dice):
    """The optimiser, clipping and loss that are trained with; the coarsest head, which no loss sees, is frozen."""
    volumes = [noise_volume(i) for i in range(8)]
    c = train_unet.Config(network=network, features=8, memory_gb=0.08, steps=2000, epoch_steps=20)
    recipe = NETWORKS[network].recipe(c, TrainingData(volumes, volumes[:1], volumes, 4), torch.device("cpu"))
    [group], optimizer = recipe.optimizer.param_groups, recipe.optimizer
    assert type(optimizer) is torch.optim.SGD and len(group["params"]) == len(list(recipe.net.parameters()))
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.99, True, 3e-5)
    assert recipe.clip_norm == 12 and recipe.plan["batch_dice"] == batch_dice
    rates = [recipe.learning_rate(step) for step in (0, 19, 20, 1000, 1999)]
    assert rates == pytest.approx([0.01, 0.01, 0.01 * 0.99 ** 0.9, 0.01 * 0.5 ** 0.9, 0.01 * 0.01 ** 0.9])
    frozen = [name for name, p in recipe.net.named_parameters() if not p.requires_grad]
    assert frozen == ["decoder.0.head.weight", "decoder.0.head.bias"]
    images, targets = recipe.batch(0, range(recipe.batch_size))
    outputs = recipe.net(images)
    assert recipe.loss(outputs, targets).item() == deep_supervision_loss(outputs, targets, batch_dice).item()


def test_pseudo_dice_is_pooled_over_the_voxels_of_all_batches():
    """In two batches class 1 is found whole and by half, class 2 is there and never found, class 3 occurs nowhere."""
    truths = np.array([[[[1, 1], [0, 2]]], [[[1, 1], [0, 0]]]])
    answers = iter(np.array([[[[1, 1], [0, 0]]], [[[1, 0], [0, 0]]]]))
    net = torch.nn.Identity()
    net.forward = lambda x: torch.nn.functional.one_hot(torch.from_numpy(next(answers)), 4).movedim(-1, 1).float()
    batches = [(np.zeros((1, 2, 2), np.float32), truth) for truth in truths]
    found = pseudo_dice(net, batches, 4, "cpu")
    assert found[:2] == pytest.approx([2 * 3 / (4 + 3), 0]) and np.isnan(found[2])


def test_an_nnunet_that_is_asked_to_augment_is_refused(tmp_path):
    """It always does, so that its control `augmented` would be the baseline, trained a second time."""
    with pytest.raises(UsageError, match="--augment: an nnU-Net always augments; leave it out"):
        train_unet.main(["--data", "nowhere", "--network", "nnunet2d", "--augment", "--out", str(tmp_path)])
