"""Patch sampling against nnU-Net's own numbers."""
import numpy as np
import pytest

from cmr.nnunet_patches import Volume, corner, corner_range, cut, draw_batch, forced_count
from cmr.nnunet_preprocess import Case
from cmr.seeds import rng


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
    volume = Volume.of(Case(None, label, None, None, None, None))
    assert corner(volume, (10, 256, 224), (10, 301, 301), True, rng(0)) == expected
    assert volume.places.keys() == {2}
    assert len({tuple(corner(volume, (10, 256, 224), (10, 301, 301), False, rng(i))) for i in range(30)}) > 1


def test_forced_classes_are_drawn_evenly_and_a_volume_without_foreground_is_sampled_anywhere():
    label = np.zeros((1, 40, 40), np.int8)
    label[0, :30], label[0, 39, 39] = 1, 3                                                     # 1200 voxels against one
    volume = Volume.of(Case(None, label, None, None, None, None))
    rare = sum(corner(volume, (1, 8, 8), (1, 8, 8), True, rng("draw", i))[1] == 35 for i in range(400))
    assert 160 < rare < 240
    empty = Volume.of(Case(None, np.zeros((1, 40, 40), np.int8), None, None, None, None))
    assert 0 <= corner(empty, (1, 8, 8), (1, 8, 8), True, rng(0))[1] <= 32


def test_what_hangs_over_is_the_mean_and_unlabelled():
    out = np.zeros((1, 3, 3), np.float32)
    cut(np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4), (0, -1, 2), out)
    assert out.tolist() == [[[0, 0, 0], [3, 4, 0], [7, 8, 0]]]
    volume = Volume(np.ones((2, 4, 4), np.float32), np.ones((2, 4, 4), np.int8), {1: np.array([[0, 0, 0]])})
    images, labels = draw_batch([volume], (4, 4), (8, 8), 3, rng(0), range(3))
    assert images.shape == labels.shape == (3, 8, 8) and ((labels == -1) == (images == 0)).all()
    assert (labels == -1).any()
