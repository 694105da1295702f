"""The table of segmenters, a new one, and the way from a volume to labels on its grid against nnU-Net's own numbers."""
import csv
from dataclasses import asdict

import numpy as np
import pytest
from test_nnunet import TOY as NNUNET_TOY
from test_nnunet import filled

import evaluate
import train_unet
from cmr import checkpoint
from cmr.errors import UsageError
from cmr.grid import Geometry
from cmr.network import predict, softmax, tile_starts
from cmr.nnunet import NnUNet
from cmr.nnunet_plan import Plan
from cmr.nnunet_preprocess import NEVER, back_to_volume, preprocess
from cmr.records import STRUCTURES
from cmr.segmenter import NETWORKS, Segmenter, labels_on_original, split_name
from helpers import on
from toy_network import TOY


def test_a_name_is_a_network_and_a_training_set_and_both_may_hold_hyphens(monkeypatch):
    monkeypatch.setitem(NETWORKS, "vanilla-wide", TOY)
    assert split_name("nnunet2d-Vendor-B") == ("nnunet2d", "Vendor-B")
    assert split_name("vanilla-real") == ("vanilla", "real")
    assert split_name("vanilla-wide-real") == ("vanilla-wide", "real")
    with pytest.raises(UsageError, match="expected NETWORK-TRAININGSET with one of vanilla, nnunet2d"):
        split_name("resnet-real")


def test_a_new_segmenter_is_one_file_and_one_entry(run, phantom, tmp_path, monkeypatch):
    """From training to the table, under a name with a hyphen and with a plan of its own."""
    monkeypatch.setitem(NETWORKS, "toy-net", TOY)
    for name in ("diffusion", "da", "dg"):
        (tmp_path / name).symlink_to(run / name)
    for kind, more in (("real", []), ("synthetic", ["--train-on", "synthetic", "--synthetic", str(run / "dg")])):
        out = tmp_path / f"segmenter-toy-net-{kind}"
        train_unet.main([*on(phantom, run), "--network", "toy-net", *more, "--out", str(out)])
        saved = checkpoint.load(out / "final.pt")
        assert saved["plan"] == {"kernel": 5} and saved["step"] == 6 and saved["config"]["features"] == 4
    evaluate.main([*on(phantom, run), "--target", "Vendor=B", "--run", str(tmp_path), "--processes", "1",
                   "--segmenters", "toy-net-real,toy-net-synthetic", "--out", str(tmp_path / "results")])
    rows = list(csv.DictReader(open(tmp_path / "results" / "metrics.csv")))
    assert {row["network"] for row in rows} == {"toy-net"}
    of_any = {"baseline", "DA", "DA, averaged", "DA, guided", "DA, guided, averaged", "DG"}
    of_the_first = {"matched", "FDA", "DG + DA"}
    assert {row["arm"] for row in rows} == of_any | of_the_first
    assert "| Vendor=B | toy-net | DG |" in (tmp_path / "results" / "report.md").read_text()
    assert len(list((tmp_path / "results" / "predictions" / "toy-net" / "synthetic-raw").iterdir())) == 8


def segmenter_of(net, structures, plan):
    return Segmenter(net, structures, {"network": "nnunet2d"}, asdict(plan), (), "")     # the plan says which nnU-Net


def plan_of(name, spacing_mm, patch, order=(0, 1, 2)):
    layers = [NNUNET_TOY[name][part] for part in ("features", "kernels", "strides")]
    return Plan(order, spacing_mm, patch, 2, *layers, batch_dice=name == "2d", masked_norm=False)


def heart():
    """The volume, spacing and label of the end-to-end oracle."""
    z, y, x = np.meshgrid(np.arange(5.0), np.arange(40.0), np.arange(36.0), indexing="ij")
    body = (y >= 2) & (y < 38) & (x >= 3) & (x < 34)
    waves = 50 * np.sin(0.2 * y) + 30 * np.cos(0.15 * x) + 8 * np.sin(0.9 * x + 0.5 * y)
    image = np.where(body, 100 + waves + 10 * z, 0)
    r, right = np.hypot(y - 20, x - 17), np.hypot(y - 20, x - 30)
    label = np.where(r < 6, 1, np.where(r < 10, 2, np.where(right < 6, 3, 0)))
    label[4] = 0
    return image.astype(np.float32), (10, 1.5, 1.5), label.astype(np.uint8)


@pytest.mark.parametrize("name,spacing,patch,shape,sd,counts,channels,exported", [
    ("2d", (1.25, 1.25), (32, 28), (5, 43, 37), 0.999946, [5815, 608, 1112, 420],
     (-0.26635, -0.16568, -0.06251, 0.02297), [1620, 0, 322, 5258]),
    ("3d", (8, 1.25, 1.25), (4, 32, 28), (6, 43, 37), 0.990526, [6871, 760, 1390, 525],
     (-0.26780, -0.16431, -0.06081, 0.02190), [1620, 0, 402, 5178])])
def test_end_to_end(name, spacing, patch, shape, sd, counts, channels, exported):
    image, spacing_mm, label = heart()
    plan = plan_of(name, spacing, patch)
    case = preprocess(image, spacing_mm, plan, label)
    assert [(b.start, b.stop) for b in case.box] == [(0, 5), (2, 38), (3, 34)] and case.image.shape == shape
    found = [case.image.mean(), case.image.std(), case.image.min(), case.image.max()]
    assert found == pytest.approx([-0.000008, sd, -2.44634, 2.53097], abs=1e-5)
    assert case.image[2, 10, 5:8].tolist() == pytest.approx([1.33066, 1.36138, 1.41530], abs=1e-5)
    assert [int((case.label == v).sum()) for v in range(4)] == counts
    assert [tile_starts(n, p) for n, p in zip(shape[-len(patch):], patch)] == [[0, 2], [0, 11], [0, 9]][-len(patch):]
    net = filled(NnUNet(4, **NNUNET_TOY[name])).eval()
    mirrored = [(), (-1,), (-2,), (-2, -1)]
    if name == "3d":
        mirrored += [(-3, *axes) for axes in mirrored]
    logits = predict(net, case.image, patch, mirrored, 3)
    assert logits.mean((1, 2, 3)).tolist() == pytest.approx(channels, abs=1e-5)
    whole = back_to_volume(logits, case, plan, image.shape)
    assert np.bincount(whole.argmax(0).ravel(), minlength=4).tolist() == exported
    segmenter = segmenter_of(net, STRUCTURES, plan)
    assert np.allclose(segmenter.logits(image - 1, spacing_mm), whole, atol=1e-4)  # of a working volume, -1 is nothing


def test_another_axis_order_gives_the_same_logits():
    image, spacing_mm, _ = heart()
    net = filled(NnUNet(4, **NNUNET_TOY["3d"])).eval()
    of = lambda order: segmenter_of(net, STRUCTURES, plan_of("3d", (8, 1.25, 1.25), (4, 32, 28), order))
    turned = of((2, 0, 1)).logits(image.transpose(1, 2, 0) - 1, (1.5, 1.5, 10))
    assert np.array_equal(turned.transpose(0, 3, 1, 2), of((0, 1, 2)).logits(image - 1, spacing_mm))


def test_a_structure_without_training_never_wins_and_samples_are_averaged_as_softmax():
    net = filled(NnUNet(2, **NNUNET_TOY["2d"])).eval()
    image, spacing_mm, _ = heart()
    logits = segmenter_of(net, ("RV",), plan_of("2d", (1.25, 1.25), (32, 28))).logits(image - 1, spacing_mm)
    assert (logits[1:3] == NEVER).all() and set(np.unique(logits.argmax(0))) <= {0, 3}
    assert np.allclose(softmax(logits)[1:3], 0)
    as_stored = dict(transposed=False, flipped=(False,) * 3, oriented=False, low=0.0, high=1.0)
    geometry = Geometry((6, 6, 1), tuple(map(tuple, np.eye(4))), (1.0, 1.0, 8.0), **as_stored, grid=(1.0, 4))
    sure, unsure = np.zeros((2, 4, 1, 4, 4), np.float32)
    sure[1], unsure[2] = 0.8, 0.7
    strong = unsure * 10
    assert set(np.unique(labels_on_original([sure, strong], geometry)[1:5, 1:5])) == {2}
    assert set(np.unique(labels_on_original([sure, unsure], geometry)[1:5, 1:5])) == {1}
    assert (labels_on_original([sure, strong], geometry)[[0, 5]] == 0).all()  # outside the working field of view
