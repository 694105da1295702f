"""Tiling and weighting of a whole volume."""
import numpy as np
import pytest

from cmr.nnunet import NnUNet
from cmr.prediction import importance, predict, tile_starts
from test_nnunet import TOY


def test_tile_starts():
    expected = {(300, 256): [0, 44], (512, 256): [0, 128, 256], (512, 224): [0, 96, 192, 288],
                (110, 64): [0, 23, 46], (13, 10): [0, 3], (10, 10): [0]}
    assert {k: tile_starts(*k) for k in expected} == expected


def test_importance():
    row = importance((16, 16))[8].tolist()
    assert row[:8] == pytest.approx(
        [0.003355, 0.021875, 0.111090, 0.439369, 1.353353, 3.246525, 6.065307, 8.824969], rel=1e-3
    )
    assert row[8] == 10
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
