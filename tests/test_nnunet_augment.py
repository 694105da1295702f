"""Augmentation against nnU-Net's own numbers."""
import numpy as np
import pytest
import torch

from cmr import nnunet_augment as aug
from cmr.nnunet_augment import Augmentation
from cmr.seeds import rng


def sine(*shape, rate=0.3):
    return torch.sin(rate * torch.arange(np.prod(shape), dtype=torch.float64)).float().reshape(shape)


@pytest.mark.parametrize("patch,angle,expected", [
    ((256, 224), 180, (301, 301)), ((320, 192), 15, (422, 225)), ((96, 64), 15, (128, 75)),
    ((128, 128, 128), 30, (205, 205, 205)),
    ((32, 256, 224), 30, (183, 392, 263)), ((64, 128, 96), 30, (140, 186, 135))])
def test_enlarged_patch(patch, angle, expected):
    assert aug.enlarged(patch, angle) == expected


def test_mode_follows_the_patch():
    assert Augmentation((10, 256, 224)).loaded == (10, 301, 301)
    assert Augmentation((12, 320, 320)).loaded == (12, 376, 376)
    assert Augmentation((128, 128, 128)).largest_angle == 30 and not Augmentation((128, 128, 128)).in_plane
    # 3 is not anisotropic
    assert Augmentation((64, 128, 192)).in_plane is False and Augmentation((63, 128, 192)).in_plane
    assert Augmentation((256, 224)).largest_angle == 180 and Augmentation((96, 64)).largest_angle == 180
    assert Augmentation((97, 64)).largest_angle == 15


def test_spatial():
    image, label = sine(12, 10), ((torch.arange(120) // 3) % 4).to(torch.int8).reshape(12, 10)
    x, y = aug.spatial(image, label, (8, 6), np.deg2rad([30]), 1.2)
    assert x[0].tolist() == pytest.approx([0.05456, 0.12259, 0.20879, 0.02127, -0.79723, 0.28116], abs=2e-5)
    assert x.mean().item() == pytest.approx(0.003381, abs=2e-6)
    assert y[0].tolist() == [2, 2, 3, 3, 0, 1]
    x, y = aug.spatial(image, label, (8, 6), np.zeros(1), 0.7)
    assert x[0].tolist() == pytest.approx([-0.3547, -0.51593, -0.65931, -0.77148, -0.84457, -0.88724], abs=2e-5)
    assert y[0].tolist() == [3, 3, 3, 3, 0, 0]
    _, y = aug.spatial(image, label, (12, 10), np.deg2rad([45]), 1.4)
    assert [int((y == v).sum()) for v in (-1, 0, 1, 2, 3)] == [62, 15, 14, 15, 14]


def test_thick_slices_are_rotated_in_plane_as_one():
    image, label = sine(5, 24, 24), ((torch.arange(5 * 24 * 24) // 3) % 4).to(torch.int8).reshape(5, 24, 24)
    x, y = aug.spatial(image, label, (5, 16, 18), np.deg2rad([30]), 1.2)
    for z in range(5):
        alone = aug.spatial(image[z], label[z], (16, 18), np.deg2rad([30]), 1.2)
        assert torch.equal(x[z], alone[0]) and torch.equal(y[z], alone[1])


@pytest.mark.parametrize("axis", range(3))
def test_rotation_in_3d_turns_about_each_axis(axis):
    """By 90 degrees about array axis i: what rot90 does in the other two axes."""
    image, label = sine(9, 9, 9), ((torch.arange(729) // 5) % 3).to(torch.int8).reshape(9, 9, 9)
    angles = np.zeros(3)
    angles[axis] = np.pi / 2
    x, y = aug.spatial(image, label, (9, 9, 9), angles, 1.0)
    others = [a for a in range(3) if a != axis]
    turns = -1 if axis != 1 else 1  # axes (0, 2) turn in the sense of z to x
    assert torch.allclose(x, torch.rot90(image, turns, others), atol=1e-5)
    assert torch.equal(y, torch.rot90(label, turns, others))


def test_intensity_transforms():
    x = sine(6, 6)
    first = lambda image, n=3: image.flatten()[:n].tolist()
    assert first(aug.contrast(x, 0.8)) == pytest.approx([0.024676, 0.261092, 0.476390], abs=2e-6)
    assert first(aug.contrast(x, 1.25), 2) == pytest.approx([-0.030845, 0.338555], abs=2e-6)
    assert aug.contrast(x, 1.25).max().item() == pytest.approx(0.998543, abs=2e-6)
    assert first(aug.gamma(x, 1.3)) == pytest.approx([-0.079572, 0.234022, 0.539225], abs=2e-6)
    assert first(-aug.gamma(-x, 1.3)) == pytest.approx([0.082822, 0.376879, 0.613938], abs=2e-6)
    x = sine(10, 9)
    assert aug.low_resolution(x, 0.6, 2)[0, :4].tolist() == pytest.approx(
        [0, 0.188214, 0.501904, 0.727930], abs=2e-6
    )
    assert aug.blur(x, (0.75, 1.0))[4, :3].tolist() == pytest.approx([-0.152573, -0.149331, -0.137081], abs=2e-6)


def test_a_sample_is_a_function_of_its_generator_and_most_are_only_mirrored():
    a = Augmentation((16, 12))
    image, label = sine(*a.loaded), ((torch.arange(np.prod(a.loaded)) // 3) % 4 - 1).to(torch.int8).reshape(a.loaded)
    once, again = (a(image, label, rng("sample", 7)) for _ in range(2))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    middle = [aug.centre(image, a.patch).flip(f) for f in ([], [-1], [-2], [-2, -1])]
    samples = [a(image, label, rng("sample", i)) for i in range(400)]
    untouched = np.mean([any(torch.equal(x, m) for m in middle) for x, _ in samples])
    expected = 0.8 * 0.8 * 0.9 * 0.9 * 0.85 * 0.85 * 0.875 * 0.9 * 0.7
    assert abs(untouched - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)
    assert all(x.shape == y.shape == a.patch and torch.isfinite(x).all() and y.min() >= 0 for x, y in samples)


def test_masked_normalisation_keeps_what_was_not_imaged_at_zero():
    a = Augmentation((16, 12), masked_norm=True)
    label = torch.zeros(a.loaded, dtype=torch.int8)
    label[:, : a.loaded[1] // 2] = -1
    for i in range(20):
        x, y = a(sine(*a.loaded) + 3, label, rng("masked", i))
        assert (x == 0).any() and y.min() == 0


@pytest.mark.parametrize("patch,depth_moves", [((8, 48, 48), False), ((16, 24, 24), True)])
def test_thick_slices_that_are_only_scaled_keep_their_place(monkeypatch, patch, depth_moves):
    """Scaled without being rotated: in-plane alone for a patch of thick slices, in 3D for one that is about cubic."""
    a = Augmentation(patch)
    assert a.in_plane is not depth_moves
    for name in ("P_ROTATE", "P_NOISE", "P_BLUR", "P_BRIGHTNESS", "P_CONTRAST", "P_LOW_RESOLUTION", "P_GAMMA_INVERTED",
                 "P_GAMMA"):
        monkeypatch.setattr(aug, name, 0.0)
    monkeypatch.setattr(aug, "P_SCALE", 1.0)
    monkeypatch.setattr(aug, "SCALES", (1.3, 1.4))
    height = torch.arange(1, 1 + a.loaded[0], dtype=torch.float32)[:, None, None].expand(a.loaded)      # of each slice
    label = (height.long() % 3).to(torch.int8)
    kept = aug.centre(height, patch)[:, 0, 0].tolist()
    for i in range(6):
        image, found = a(height, label, rng("scaled", i))
        line = image[:, patch[1] // 2, patch[2] // 2].tolist()    # up the middle of the patch
        assert (sorted(line) == pytest.approx(kept, abs=1e-4)) is not depth_moves
        if not depth_moves:
            assert found[:, patch[1] // 2, patch[2] // 2].tolist() == [round(z) % 3 for z in line]


def test_probabilities_and_ranges_are_the_originals():
    assert (aug.P_ROTATE, aug.P_SCALE, aug.SCALES) == (0.2, 0.2, (0.7, 1.4))
    assert (aug.P_NOISE, aug.NOISE_SD, aug.P_BLUR, aug.BLUR_SIGMA) == (0.1, (0, 0.1), 0.1, (0.5, 1))
    assert (aug.P_BRIGHTNESS, aug.P_CONTRAST, aug.FACTORS) == (0.15, 0.15, (0.75, 1.25))
    assert (aug.P_LOW_RESOLUTION, aug.ZOOMS) == (0.125, (0.5, 1))
    assert (aug.P_GAMMA_INVERTED, aug.P_GAMMA, aug.GAMMAS) == (0.1, 0.3, (0.7, 1.5))


def test_a_factor_shrinks_as_often_as_it_grows():
    factors = np.array([aug.around_one(0.7, 1.5, rng("factor", i)) for i in range(2000)])
    assert 0.7 < factors.min() < 0.71 and 1.49 < factors.max() < 1.5
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.04)   # a uniform factor would be below 1 in 3 of 8


@pytest.mark.parametrize("patch,axes", [((8, 48, 48), 2), ((24, 48, 48), 3), ((48, 48), 2)])
def test_low_resolution_spares_the_axis_of_thick_slices(monkeypatch, patch, axes):
    seen = []
    monkeypatch.setattr(aug, "P_LOW_RESOLUTION", 1.0)
    monkeypatch.setattr(aug, "low_resolution", lambda image, zoom, dims: seen.append(dims) or image)
    Augmentation(patch).intensities(torch.zeros(patch), rng(0))
    assert seen == [axes]
