"""Other people's code beside ours, where it is installed: equal sizes, equal numbers."""
import numpy as np
import pytest

from cmr import peers
from cmr.bench import metric_masks
from cmr.denoiser import Denoiser
from cmr.metrics import dice, surface_metrics
from cmr.nnunet import NnUNet

SPACING_MM = (10.0, 1.25, 1.25)


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_the_denoiser_is_of_equal_size():
    peer = peers.denoiser() or pytest.skip("diffusers is not installed")
    ours = n_parameters(Denoiser(24, (1, 2, 3), 1, (8,), 24, 8, 0.0, 64, 2))
    assert n_parameters(peer[1]) == pytest.approx(ours, rel=0.001)


def test_the_nnunet_is_of_equal_size():
    plan = {"patch": (8, 48, 48), "features": (8, 16, 32), "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
    peer = peers.nnunet(plan, 4) or pytest.skip("dynamic-network-architectures is not installed")
    assert n_parameters(peer[1]) == n_parameters(NnUNet(4, plan["features"], plan["kernels"], plan["strides"]))


def test_metrics_agree():
    found = {name: of_pair for name, _, of_pair in peers.metrics(SPACING_MM)}
    if not found:
        pytest.skip("no peer of the metrics is installed")
    ref, pred = (metric_masks(*shape) == 1 for shape in ((1, 9, 1.0, 0.0, (0, 0)), (1, 8, 0.97, 0.04, (1.5, -1.0))))
    ours = surface_metrics(pred, ref, SPACING_MM)
    if "medpy" in found:
        of_medpy = found["medpy"](pred, ref)
        assert of_medpy[0] == pytest.approx(dice(pred, ref)) and of_medpy[2] == pytest.approx(ours["assd"], rel=1e-6)
    if "MONAI" in found:
        hd95_mm, assd_mm = (float(np.squeeze(value)) for value in found["MONAI"](pred, ref))
        assert hd95_mm == pytest.approx(ours["hd95"], rel=1e-4) and assd_mm == pytest.approx(ours["assd"], rel=1e-4)
