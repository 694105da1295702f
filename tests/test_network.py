"""Losses, and the tiling and weighting of a whole volume, against nnU-Net's own numbers and by hand."""
import numpy as np
import pytest
import torch
from test_nnunet import TOY, labels, sine

from cmr.network import deep_supervision_loss, deep_supervision_weights, dice_ce_loss, importance, predict, tile_starts
from cmr.nnunet import NnUNet


def test_dice_ce_by_hand():
    """Two pixels, two classes, probabilities .75 / .25: Dice 2 * .75 / (1 + 1), cross-entropy -ln .75."""
    logits = torch.log(torch.tensor([[.25, .75], [.75, .25]])).T.reshape(1, 2, 1, 2)
    loss = dice_ce_loss(logits, torch.tensor([[[1, 0]]]), smooth=0.0)
    assert loss.item() == pytest.approx(-np.log(.75) - 2 * .75 / 2, abs=1e-6)
    absent = dice_ce_loss(torch.tensor([[[[9.0]], [[-9.0]], [[-9.0]]]]), torch.zeros(1, 1, 1, dtype=torch.long))
    assert torch.isfinite(absent)


def case(*shape):
    return sine(*shape, rate=0.7, factor=2.0), labels(shape[0], *shape[2:])


@pytest.mark.parametrize("shape,dice,ce,batch,alone", [
    ((2, 4, 4, 6), -0.2378252, 2.1520004, 1.9141752, 1.9167843),
    ((2, 4, 2, 4, 4), -0.2162395, 2.1955376, 1.9792981, 1.9824370)])
def test_loss(shape, dice, ce, batch, alone):
    logits, target = case(*shape)
    assert torch.nn.functional.cross_entropy(logits, target).item() == pytest.approx(ce, abs=2e-6)
    assert dice_ce_loss(logits, target).item() == pytest.approx(batch, abs=2e-6) == dice + ce
    assert dice_ce_loss(logits, target, batch_dice=False).item() == pytest.approx(alone, abs=2e-6)


def test_loss_of_absent_and_rare_classes():
    logits, target = case(2, 4, 4, 6)
    target[1] = 0
    assert dice_ce_loss(logits, target).item() == pytest.approx(2.0051539, abs=2e-6)
    assert dice_ce_loss(logits, target, False).item() == pytest.approx(2.0354249, abs=2e-6)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    target[0, 0], target[0, 1] = 1, 2
    sure = 200.0 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    assert dice_ce_loss(sure, target).item() == dice_ce_loss(sure, target, False).item() == -1      # both without 3
    target[0, 0, 0] = 3
    assert dice_ce_loss(sure, target).item() == pytest.approx(11.8809490, rel=1e-6)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 8, 8, generator=g), torch.randint(0, 4, (2, 1, 8, 8), generator=g)[:, 0]
    assert x[0, 0, 0, 0].item() == pytest.approx(-1.12584, abs=1e-5)
    assert dice_ce_loss(x, y).item() == pytest.approx(1.4901386, abs=2e-6)
    assert dice_ce_loss(x, y, False).item() == pytest.approx(1.4916387, abs=2e-6)


def test_loss_gradient():
    for batch_dice, norm in ((True, 0.1648386), (False, 0.1649061)):
        logits, target = case(2, 4, 4, 6)
        logits.requires_grad_()
        dice_ce_loss(logits, target, batch_dice).backward()
        assert logits.grad.norm().item() == pytest.approx(norm, abs=2e-7)


def test_deep_supervision():
    assert deep_supervision_weights(5) == pytest.approx([0.53333, 0.26667, 0.13333, 0.06667, 0], abs=1e-5)
    assert deep_supervision_weights(6) == pytest.approx([0.51613, 0.25806, 0.12903, 0.06452, 0.03226, 0], abs=1e-5)
    assert deep_supervision_weights(4) == pytest.approx([0.571429, 0.285714, 0.142857, 0], abs=1e-6)
    assert deep_supervision_weights(1) == [1]
    outputs = [case(2, 4, n, n)[0] for n in (16, 8, 4, 2)]
    target = case(2, 4, 16, 16)[1]
    assert deep_supervision_loss(outputs, target, True).item() == pytest.approx(1.8638384, abs=2e-6)
    assert deep_supervision_loss(outputs, target, False).item() == pytest.approx(1.8638407, abs=2e-6)


def test_tile_starts():
    expected = {(300, 256): [0, 44], (512, 256): [0, 128, 256], (512, 224): [0, 96, 192, 288],
                (110, 64): [0, 23, 46], (13, 10): [0, 3], (10, 10): [0]}
    assert {k: tile_starts(*k) for k in expected} == expected


def test_importance():
    row = importance((16, 16))[8].tolist()
    half = [0.003355, 0.021875, 0.111090, 0.439369, 1.353353, 3.246525, 6.065307, 8.824969, 10]
    assert row[:9] == pytest.approx(half, rel=1e-3)
    assert importance((16, 16))[0, 0].item() == pytest.approx(1.125e-6, rel=0.06)
    assert importance((256, 224)).sum().item() == pytest.approx(56290.195, rel=2e-5)
    assert importance((12, 320, 320)).min() > 0


def test_a_volume_smaller_than_the_patch_is_padded_with_its_mean():
    seen = []
    net = NnUNet(4, **TOY["3d"]).eval()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert predict(net, np.ones((3, 15, 10), np.float32), (4, 16, 16), [()], 2).shape == (4, 3, 15, 10)
    inside = seen[0][0, 0]
    assert inside.shape == (4, 16, 16) and inside[:3, :15, 3:13].eq(1).all() and inside.sum() == 3 * 15 * 10
