"""nnU-Net's preprocessing, its way back, and its patch sampling, against its own numbers."""
import numpy as np
import pytest

from cmr.nnunet_plan import Plan
from cmr.nnunet_preprocess import (
    Case, corner, corner_range, cut, draw_batch, forced_count, nonzero_box, places_of, preprocess, resample,
    resample_labels, separate_axis, zscore)
from cmr.seeds import rng


def labelled_case(label, image=None):
    return Case(image, label, places_of(label), None, None, None, None)


def test_crop():
    image = np.zeros((4, 6, 6), np.float32)
    image[1:3, 2:5, 1:5] = 1
    image[1, 3, 2] = 0
    label = np.zeros(image.shape, np.uint8)
    label[2, 3, 3], label[0, 0, 0] = 2, 1
    box, mask = nonzero_box(image)
    assert [(b.start, b.stop) for b in box] == [(1, 3), (2, 5), (1, 5)]
    case = preprocess(image, (10, 1, 1), Plan((0, 1, 2), (10, 1, 1), (2, 3, 4), 2, (), (), (), False, False), label)
    assert case.image.shape == (2, 3, 4) and (case.label == -1).sum() == 1  # the pocket is open towards z = 0
    whole, _ = nonzero_box(np.zeros((3, 4, 5)))
    assert [(b.start, b.stop) for b in whole] == [(0, 3), (0, 4), (0, 5)]


def test_zscore():
    scaled = zscore(np.arange(24, dtype=np.float32))
    assert np.arange(24).std() == pytest.approx(6.922187, rel=1e-6)
    assert (scaled[0], scaled[-1]) == pytest.approx((-1.6613247, 1.6613247))
    inside = np.arange(24) < 12
    masked = zscore(np.where(inside, np.arange(24), 0).astype(np.float32), inside)
    assert masked[:12].mean() == pytest.approx(0, abs=1e-6) and masked[:12].std() == pytest.approx(1)
    assert (masked[12:] == 0).all()


@pytest.mark.parametrize("current,target,axis", [
    ((10, 1.5625, 1.5625), (9.6, 1.25, 1.25), 0), ((3.75, 1.25, 1.25), (5, 1.25, 1.25), 0),
    ((3.75, 1.25, 1.25), (3.75, 1.25, 1.25), None), ((3, 1, 1), (3, 1, 1), None),
    ((0.24, 1.25, 1.25), (1.25, 1.25, 1.25), None), ((5, 1.4, 1.2), (2, 1, 1), 0)])
def test_separate_axis(current, target, axis):
    assert separate_axis(current, target) == axis


def test_resampling():
    image = (10 * np.sin(0.5 * np.arange(60))).astype(np.float32).reshape(2, 6, 5)
    out = resample(image, (3, 9, 4), separate_axis((10, 1.5, 1.5), (6.67, 1, 1.875)), 3)
    assert out.dtype == np.float32 and out.mean() == pytest.approx(0.120175, abs=1e-6)
    assert out[0, 0].tolist() == pytest.approx([-0.4725, 6.76396, 9.97495, 9.97495], abs=1e-4)
    assert out[:, 4, 2].tolist() == pytest.approx([6.16797, -3.4476, -3.4476], abs=1e-4)
    label = ((np.arange(60) ** 2) // 7 % 4).astype(np.int8).reshape(2, 6, 5)
    rows = ["".join(map(str, row)) for row in resample_labels(label, (3, 9, 4), 0)[0]]
    assert rows == "0012,0013,3113,2100,0000,0023,1332,1000,1000".split(",")
    assert resample(image, image.shape, 0, 3) is image


def test_forced_share_of_a_batch():
    forced = {2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 2, 8: 3, 12: 4, 16: 5, 31: 10, 49: 16, 56: 18}
    assert {batch: forced_count(batch) for batch in forced} == forced


@pytest.mark.parametrize("shape,loaded,patch,low,high", [
    ((10, 256, 216), (1, 301, 301), (1, 256, 224), (0, -23, -43), (9, -22, -42)),
    ((9, 250, 215), (10, 301, 301), (10, 256, 224), (-1, -26, -43), (0, -25, -43)),
    ((18, 300, 290), (10, 301, 301), (10, 256, 224), (0, -23, -39), (8, 22, 28)),
    ((14, 400, 380), (12, 376, 376), (12, 320, 320), (0, -28, -28), (2, 52, 32))])
def test_patch_ranges(shape, loaded, patch, low, high):
    assert corner_range(shape, loaded, patch) == (list(low), list(high))


@pytest.mark.parametrize("voxel,expected", [((3, 10, 20), [0, -23, -43]), ((9, 250, 210), [4, 100, 60])])
def test_forced_patch(voxel, expected):
    label = np.zeros((10, 256, 216), np.int8)
    label[voxel] = 2
    volume = labelled_case(label)
    assert corner(volume, (10, 256, 224), (10, 301, 301), True, rng(0)) == expected
    assert volume.places.keys() == {2}
    assert len({tuple(corner(volume, (10, 256, 224), (10, 301, 301), False, rng(i))) for i in range(30)}) > 1


def test_forced_classes_are_drawn_evenly_and_a_volume_without_foreground_is_sampled_anywhere():
    label = np.zeros((1, 40, 40), np.int8)
    label[0, :30], label[0, 39, 39] = 1, 3                                                     # 1200 voxels against one
    volume = labelled_case(label)
    rare = sum(corner(volume, (1, 8, 8), (1, 8, 8), True, rng("draw", i))[1] == 35 for i in range(400))
    assert 160 < rare < 240
    empty = labelled_case(np.zeros((1, 40, 40), np.int8))
    assert 0 <= corner(empty, (1, 8, 8), (1, 8, 8), True, rng(0))[1] <= 32


def test_what_hangs_over_is_the_mean_and_unlabelled():
    out = np.zeros((1, 3, 3), np.float32)
    cut(np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4), (0, -1, 2), out)
    assert out.tolist() == [[[0, 0, 0], [3, 4, 0], [7, 8, 0]]]
    volume = labelled_case(np.ones((2, 4, 4), np.int8), np.ones((2, 4, 4), np.float32))
    images, labels = draw_batch([volume], (4, 4), (8, 8), 3, rng(0), range(3))
    assert images.shape == labels.shape == (3, 8, 8) and ((labels == -1) == (images == 0)).all()
    assert (labels == -1).any()
