"""The denoiser: size, start, gradients, time, sizes that do not fit."""
import pytest
import torch

from cmr.denoiser import Denoiser

LAYOUTS = {  # size, base, multipliers, blocks, attention, head, groups -> parameters
    "S": ((64, 24, (1, 2, 3), 1, (16,), 24, 8), 1_204_657), "M": ((64, 32, (1, 2, 2), 1, (16,), 32, 8), 1_369_953),
    "L": ((64, 32, (1, 2, 3), 1, (16,), 32, 8), 2_137_409), "128 light": ((128, 64, (1, 2, 3, 4), 2, (16,), 64, 32), 24_372_353),
    "128": ((128, 96, (1, 2, 3, 4), 2, (16,), 64, 32), 54_796_993), "192": ((192, 96, (1, 1, 2, 3, 4), 2, (24, 12), 64, 32), 58_452_193),
    "256": ((256, 64, (1, 2, 2, 4, 4), 2, (16,), 64, 32), 32_076_929), "256 wide": ((256, 96, (1, 1, 2, 2, 4), 2, (16,), 64, 32), 48_575_905)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameter_count(name):
    (size, base, multipliers, blocks, attention, head, groups), expected = LAYOUTS[name]
    with torch.device("meta"):
        net = Denoiser(base, multipliers, blocks, attention, head, groups, size)
    assert sum(p.numel() for p in net.parameters()) == expected


def small(patch=1):
    return Denoiser(16, (1, 2), 1, (8,), 16, 8, 16, patch)


@pytest.mark.parametrize("patch", [1, 2])
def test_output_is_zero_at_the_start_and_every_weight_learns(patch):
    net = small(patch)
    x, t = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 10, 500, 1000])
    assert net(x, t).shape == x.shape and not net(x, t).any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):                                            # zero layers open one after another
        optimizer.zero_grad()
        ((net(x, t) - x) ** 2).mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_time_matters_and_items_do_not_mix():
    net = small()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    together, alone = net(x, torch.tensor([5, 900])), net(x[1:], torch.tensor([900]))
    assert torch.allclose(together[1:], alone, atol=1e-5)
    assert not torch.allclose(net(x, torch.tensor([5, 5]))[1:], alone, atol=1e-4)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        Denoiser(16, (1, 2, 3), 1, (), 16, 8, 30)
