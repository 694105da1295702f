"""The bench still runs: what it measures is for the eye.  Other people's networks are of equal size."""
import re
import time

import pytest
import torch

from cmr import bench
from cmr.denoiser import Denoiser
from cmr.nnunet import NnUNet
from cmr.segmenter import NETWORKS


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_measured(network, capsys, monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda call, repeats=5: (call(), 0.1)[1])
    bench.segmenter_speed(network, torch.device("cpu"))
    shown = re.findall(rf"^{network}, ([a-z]+) .*: (\d+\.\d+)", capsys.readouterr().out, re.MULTILINE)
    assert shown == [("batch", "0.200"), ("segmentation", "0.100")]


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_other_networks_are_of_equal_size():
    plan = {"patch": (8, 48, 48), "features": (8, 16, 32), "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
    pairs = [(bench.other_denoiser(), Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 64, 2)),
             (bench.other_nnunet(plan, 4), NnUNet(4, plan["features"], plan["kernels"], plan["strides"]))]
    installed = [(other, ours) for other, ours in pairs if other]
    for other, ours in installed:
        assert n_parameters(other) == pytest.approx(n_parameters(ours), rel=0.001)
    if not installed:
        pytest.skip("neither diffusers nor dynamic-network-architectures is installed")


def test_the_first_call_only_warms_up():
    called = []
    assert bench.seconds(lambda: time.sleep(0.5 if not called else 0.0) or called.append(1), repeats=2) < 0.4
    assert len(called) == 3
