"""Preprocessing, tiling and export against nnU-Net's own numbers, from a raw volume to labels on its grid."""
import numpy as np
import pytest
import torch

from cmr.nnunet import NnUNet
from cmr.plan import Plan
from cmr.preprocess import NEVER, back_to_volume, nonzero_box, preprocess, resample, resample_labels, separate_axis, zscore
from cmr.segment import Segmenter, importance, labels_on_original, predict, softmax, tile_starts
from cmr.volumes import Geometry
from test_nnunet import TOY, filled


def test_crop():
    image = np.zeros((4, 6, 6), np.float32)
    image[1:3, 2:5, 1:5] = 1
    image[1, 3, 2] = 0
    label = np.zeros(image.shape, np.uint8)
    label[2, 3, 3], label[0, 0, 0] = 2, 1
    box, mask = nonzero_box(image)
    assert [(b.start, b.stop) for b in box] == [(1, 3), (2, 5), (1, 5)]
    case = preprocess(image, (10, 1, 1), Plan((0, 1, 2), (10, 1, 1), (2, 3, 4), 2, (), (), (), False, False), label)
    assert case.image.shape == (2, 3, 4) and (case.label == -1).sum() == 1                                  # the pocket is open towards z = 0
    whole, _ = nonzero_box(np.zeros((3, 4, 5)))
    assert [(b.start, b.stop) for b in whole] == [(0, 3), (0, 4), (0, 5)]


def test_zscore():
    scaled = zscore(np.arange(24, dtype=np.float32))
    assert np.arange(24).std() == pytest.approx(6.922187, rel=1e-6) and (scaled[0], scaled[-1]) == pytest.approx((-1.6613247, 1.6613247))
    inside = np.arange(24) < 12
    masked = zscore(np.where(inside, np.arange(24), 0).astype(np.float32), inside)
    assert masked[:12].mean() == pytest.approx(0, abs=1e-6) and masked[:12].std() == pytest.approx(1) and (masked[12:] == 0).all()


@pytest.mark.parametrize("current,target,axis", [
    ((10, 1.5625, 1.5625), (9.6, 1.25, 1.25), 0), ((3.75, 1.25, 1.25), (5, 1.25, 1.25), 0), ((3.75, 1.25, 1.25), (3.75, 1.25, 1.25), None),
    ((3, 1, 1), (3, 1, 1), None), ((0.24, 1.25, 1.25), (1.25, 1.25, 1.25), None), ((5, 1.4, 1.2), (2, 1, 1), 0)])
def test_separate_axis(current, target, axis):
    assert separate_axis(current, target) == axis


def test_resampling():
    image = (10 * np.sin(0.5 * np.arange(60))).astype(np.float32).reshape(2, 6, 5)
    out = resample(image, (3, 9, 4), separate_axis((10, 1.5, 1.5), (6.67, 1, 1.875)), 3)
    assert out.dtype == np.float32 and out.mean() == pytest.approx(0.120175, abs=1e-6)
    assert out[0, 0].tolist() == pytest.approx([-0.4725, 6.76396, 9.97495, 9.97495], abs=1e-4) and out[:, 4, 2].tolist() == pytest.approx([6.16797, -3.4476, -3.4476], abs=1e-4)
    label = ((np.arange(60) ** 2) // 7 % 4).astype(np.int8).reshape(2, 6, 5)
    rows = ["".join(map(str, row)) for row in resample_labels(label, (3, 9, 4), 0)[0]]
    assert rows == "0012,0013,3113,2100,0000,0023,1332,1000,1000".split(",")
    assert resample(image, image.shape, 0, 3) is image


def test_tile_starts():
    expected = {(300, 256): [0, 44], (512, 256): [0, 128, 256], (512, 224): [0, 96, 192, 288], (110, 64): [0, 23, 46], (13, 10): [0, 3], (10, 10): [0]}
    assert {k: tile_starts(*k) for k in expected} == expected


def test_importance():
    row = importance((16, 16))[8].tolist()
    assert row[:8] == pytest.approx([0.003355, 0.021875, 0.111090, 0.439369, 1.353353, 3.246525, 6.065307, 8.824969], rel=1e-3) and row[8] == 10
    assert importance((16, 16))[0, 0].item() == pytest.approx(1.125e-6, rel=0.06) and importance((256, 224)).sum().item() == pytest.approx(56290.195, rel=2e-5)
    assert importance((12, 320, 320)).min() > 0


def heart():
    """The volume, spacing and label of the end-to-end oracle."""
    z, y, x = np.meshgrid(np.arange(5.0), np.arange(40.0), np.arange(36.0), indexing="ij")
    image = np.where((y >= 2) & (y < 38) & (x >= 3) & (x < 34), 100 + 50 * np.sin(0.2 * y) + 30 * np.cos(0.15 * x) + 10 * z + 8 * np.sin(0.9 * x + 0.5 * y), 0)
    r, right = np.hypot(y - 20, x - 17), np.hypot(y - 20, x - 30)
    label = np.where(r < 6, 1, np.where(r < 10, 2, np.where(right < 6, 3, 0)))
    label[4] = 0
    return image.astype(np.float32), (10, 1.5, 1.5), label.astype(np.uint8)


@pytest.mark.parametrize("name,spacing,patch,shape,sd,counts,channels,exported", [
    ("2d", (1.25, 1.25), (32, 28), (5, 43, 37), 0.999946, [5815, 608, 1112, 420], (-0.26635, -0.16568, -0.06251, 0.02297), [1620, 0, 322, 5258]),
    ("3d", (8, 1.25, 1.25), (4, 32, 28), (6, 43, 37), 0.990526, [6871, 760, 1390, 525], (-0.26780, -0.16431, -0.06081, 0.02190), [1620, 0, 402, 5178])])
def test_end_to_end(name, spacing, patch, shape, sd, counts, channels, exported):
    image, spacing_mm, label = heart()
    plan = Plan((0, 1, 2), spacing, patch, 2, *(TOY[name][k] for k in ("features", "kernels", "strides")), name == "2d", False)
    case = preprocess(image, spacing_mm, plan, label)
    assert [(b.start, b.stop) for b in case.box] == [(0, 5), (2, 38), (3, 34)] and case.image.shape == shape
    assert [case.image.mean(), case.image.std(), case.image.min(), case.image.max()] == pytest.approx([-0.000008, sd, -2.44634, 2.53097], abs=1e-5)
    assert case.image[2, 10, 5:8].tolist() == pytest.approx([1.33066, 1.36138, 1.41530], abs=1e-5)
    assert [int((case.label == v).sum()) for v in range(4)] == counts
    assert [tile_starts(n, p) for n, p in zip(shape[-len(patch):], patch)] == [[0, 2], [0, 11], [0, 9]][-len(patch):]
    net = filled(NnUNet(4, plan.features, plan.kernels, plan.strides)).eval()
    segmenter = Segmenter(net, ("LV", "MYO", "RV"), {}, plan, (), "")
    mirrored = [(), (-1,), (-2,), (-2, -1)] if name == "2d" else [(), (-1,), (-2,), (-3,), (-2, -1), (-3, -1), (-3, -2), (-3, -2, -1)]
    logits = predict(net, 4, case.image, patch, mirrored, 3)
    assert logits.mean((1, 2, 3)).tolist() == pytest.approx(channels, abs=1e-5)
    whole = back_to_volume(logits, case, plan, image.shape)
    assert np.bincount(whole.argmax(0).ravel(), minlength=4).tolist() == exported
    assert np.allclose(segmenter.logits(image - 1, spacing_mm), whole, atol=1e-4)         # of a working volume, -1 is nothing


def test_another_axis_order_gives_the_same_logits():
    image, spacing_mm, _ = heart()
    plan = lambda order: Plan(order, (8, 1.25, 1.25), (4, 32, 28), 2, *(TOY["3d"][k] for k in ("features", "kernels", "strides")), False, False)
    net = filled(NnUNet(4, **TOY["3d"])).eval()
    of = lambda order: Segmenter(net, ("LV", "MYO", "RV"), {}, plan(order), (), "")
    turned = of((2, 0, 1)).logits(image.transpose(1, 2, 0) - 1, (1.5, 1.5, 10))
    assert np.array_equal(turned.transpose(0, 3, 1, 2), of((0, 1, 2)).logits(image - 1, spacing_mm))


def test_a_volume_smaller_than_the_patch_is_padded_with_its_mean():
    seen = []
    net = NnUNet(4, **TOY["3d"]).eval()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert predict(net, 4, np.ones((3, 15, 10), np.float32), (4, 16, 16), [()], 2).shape == (4, 3, 15, 10)
    inside = seen[0][0, 0]
    assert inside.shape == (4, 16, 16) and inside[:3, :15, 3:13].eq(1).all() and inside.sum() == 3 * 15 * 10


def test_a_structure_without_training_never_wins_and_samples_are_averaged_as_softmax():
    plan = Plan((0, 1, 2), (1.25, 1.25), (32, 28), 2, *(TOY["2d"][k] for k in ("features", "kernels", "strides")), True, False)
    net = filled(NnUNet(2, plan.features, plan.kernels, plan.strides)).eval()
    image, spacing_mm, _ = heart()
    logits = Segmenter(net, ("RV",), {}, plan, (), "").logits(image - 1, spacing_mm)
    assert (logits[1:3] == NEVER).all() and set(np.unique(logits.argmax(0))) <= {0, 3} and np.allclose(softmax(logits)[1:3], 0)
    geometry = Geometry((6, 6, 1), tuple(map(tuple, np.eye(4))), (1.0, 1.0, 8.0), False, (False,) * 3, False, 0.0, 1.0, (1.0, 4))
    sure, unsure = np.zeros((2, 4, 1, 4, 4), np.float32)
    sure[1], unsure[2] = 0.8, 0.7
    strong = unsure * 10
    assert set(np.unique(labels_on_original([sure, strong], geometry)[1:5, 1:5])) == {2} and set(np.unique(labels_on_original([sure, unsure], geometry)[1:5, 1:5])) == {1}
    assert (labels_on_original([sure, strong], geometry)[[0, 5]] == 0).all()              # outside the working field of view
