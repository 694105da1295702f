"""Does an image fit its mask, which domain does it look like, and are samples like held-out slices and not copies?"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cmr.audit import (
    STEPS, SourceClassifier, audit_samples, boundary_displacement_mm, draw_samples, features, frechet_distance,
    frechet_to_held_out, memorisation, still_fits, through_plane_correlation)
from cmr.diffusion import Schedule
from cmr.look import match_mean_std
from cmr.seeds import rng


def heart():
    rng = np.random.default_rng(0)
    z, y, x = np.indices((2, 64, 64))
    mask = (np.hypot(x - 32, y - 32) < 12).astype(np.uint8) + (np.hypot(x - 32, y - 32) < 8)
    noisy = mask * 0.5 + 0.05 * rng.standard_normal(mask.shape)
    return ndimage.gaussian_filter(noisy, (0, 0.7, 0.7)).astype(np.float32), mask.astype(np.uint8)


def test_displacement_finds_a_known_shift():
    image, mask = heart()
    assert boundary_displacement_mm(image, image, mask, 2.5) == (0.0, 0.0)
    assert boundary_displacement_mm(image, 0.3 - 0.5 * image, mask, 2.5) == (0.0, 0.0)  # contrast is no displacement
    median, p95 = boundary_displacement_mm(image, np.roll(image, (2, 1), (1, 2)), mask, 2.5)
    assert abs(median - 2.5 * 5 ** 0.5) < 1e-6 and abs(p95 - median) < 1e-6
    assert np.isnan(boundary_displacement_mm(image, image, 0 * mask, 2.5)).all()


def test_an_inner_wall_that_moves_is_found_although_the_outer_rim_stays():
    """At 1.5 mm a patch on the outer rim does not reach across a wall of 10 mm."""
    y, x = np.indices((96, 96))
    radius = np.hypot(x - 48, y - 48)
    ring = lambda inner: (((radius < 24).astype(np.uint8) + (radius < inner))[None], inner)
    (mask, _), (moved, _) = ring(16), ring(12)
    image, thicker = (ndimage.gaussian_filter(labels * 0.5, (0, 0.7, 0.7)) for labels in (mask, moved))
    outer, _ = boundary_displacement_mm(image, thicker, (mask > 0).astype(np.uint8), 1.5)
    worst, _ = boundary_displacement_mm(image, thicker, mask, 1.5)
    assert outer == 0 and worst > 1.5 and boundary_displacement_mm(image, image, mask, 1.5) == (0, 0)


def test_through_plane_correlation_sees_unrelated_slices():
    rng = np.random.default_rng(0)
    common, unrelated = rng.standard_normal((1, 32, 32)), rng.standard_normal((8, 32, 32))
    assert abs(through_plane_correlation(np.repeat(common, 8, 0)) - 1) < 1e-9
    assert abs(through_plane_correlation(unrelated)) < 0.05
    assert abs(through_plane_correlation(common + unrelated) - 0.5) < 0.05
    assert np.isnan(through_plane_correlation(common))
    # a constant slice has no correlation
    assert abs(through_plane_correlation(np.stack([0 * common[0], common[0], -common[0]])) + 1) < 1e-9


def test_a_pair_is_excluded_for_a_moved_boundary_or_a_lost_heart():
    assert still_fits(2.5, 0.2, 2.5) and not still_fits(3.5, 0.0, 2.5) and not still_fits(0.0, 0.3, 2.5)
    assert still_fits(float("nan"), float("nan"), 2.5)


def volume(seed=0):
    g = rng("volume", seed)
    return np.clip(ndimage.gaussian_filter(g.standard_normal((6, 32, 32)), (0, 2, 2)) * 4, -1, 1).astype(np.float32)


def volumes(seed, n, blur=(2, 2), edge=40):
    """n volumes (4, edge, edge) of coloured noise, blurred along rows and columns."""
    g = rng("volumes", seed)
    drawn = [ndimage.gaussian_filter(g.standard_normal((4, edge, edge)), (0, *blur)) for _ in range(n)]
    return [np.clip(x / x.std() / 2, -1, 1).astype(np.float32) for x in drawn]


@pytest.fixture
def classifier_at_full_length(monkeypatch):
    """The short runs of other tests train it for fewer steps (conftest.short_audit)."""
    monkeypatch.setattr("cmr.audit.STEPS", STEPS)


def taken_for_the_source(classifier, asked):
    return np.array([classifier.probability(image) for image in asked])


def test_two_looks_are_told_apart_on_volumes_that_were_held_out(classifier_at_full_length):
    """A few volumes against many: both looks are shown equally often."""
    classifier = SourceClassifier(volumes(0, 20), volumes(1, 4, blur=(3, 3)))
    assert (taken_for_the_source(classifier, volumes(2, 8)) > 0.5).all()
    assert (taken_for_the_source(classifier, volumes(3, 8, blur=(3, 3))) < 0.5).all()
    image = volumes(2, 1)[0]
    assert classifier.probability(0.3 * image - 0.2) == pytest.approx(classifier.probability(image), abs=1e-5)
    padded = np.pad(image, ((0, 0), (8, 8), (8, 8)), constant_values=-1)
    matched = match_mean_std(padded, 0.1, 0.2)                    # padding stays where it is, and is no part of a look
    assert classifier.probability(matched) == pytest.approx(classifier.probability(padded), abs=1e-4)


def test_a_domain_is_not_told_from_itself_and_an_answer_is_a_function_of_images_and_seed(
        classifier_at_full_length, monkeypatch):
    source, others, fresh = (volumes(seed, n) for seed, n in ((0, 20), (1, 20), (2, 6)))
    asked = taken_for_the_source(SourceClassifier(source, others), fresh)
    assert 0.4 < asked.mean() < 0.6 and asked.std() < 0.1
    monkeypatch.setattr("cmr.audit.STEPS", 3)
    short, again, other = (taken_for_the_source(SourceClassifier(source, others, seed), fresh) for seed in (0, 0, 1))
    assert np.array_equal(short, again) and not np.array_equal(short, other)


def test_neither_orientation_nor_position_is_a_look(classifier_at_full_length):
    lying, upright = volumes(0, 10, blur=(1, 3)), volumes(1, 10, blur=(3, 1))
    asked = taken_for_the_source(SourceClassifier(lying, upright), volumes(2, 6, blur=(1, 3)))
    assert 0.4 < asked.mean() < 0.6
    above, below = ([np.where(np.arange(40)[:, None] < 20, x if up else -1, -1 if up else x)
                     for x in volumes(seed, 10)] for seed, up in ((3, True), (4, False)))
    asked = taken_for_the_source(SourceClassifier(above, below), above[:6])
    assert 0.4 < asked.mean() < 0.6


def smooth(seed, n, blur=4, size=64):
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((n, size, size)), (0, blur, blur)) * 5


def test_memorisation_tells_copies_from_new_images():
    slices = smooth(0, 90)
    training, held_out, new = slices[:40], slices[40:80], slices[80:]
    copies = np.roll(training[::4], (2, -2), (1, 2)) * 0.8 + 0.1  # moved by a pixel of the small image, other contrast
    assert (memorisation(copies, training, held_out) < 0.5).all()
    assert np.abs(memorisation(new, training, held_out) - 1).max() < 0.35


def test_a_new_image_is_no_copy_where_training_slices_are_many_more_than_held_out_ones():
    slices = smooth(5, 460)
    training, held_out, new = slices[:400], slices[400:440], slices[440:]
    ratios = memorisation(new, training, held_out)
    assert (ratios > 0.5).all() and 0.8 < ratios.mean() < 1       # the nearest of more is nearer


def with_moments(g, n, mean, covariance):
    """(n, d) vectors whose sample mean and covariance are exactly these."""
    x = g.standard_normal((n, len(mean)))
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), (x - x.mean(0)).T).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    g = np.random.default_rng(0)
    # Commuting covariances: |difference of means|^2 + sum of (sd_a - sd_b)^2.
    turned = np.linalg.qr(g.standard_normal((3, 3)))[0]
    diagonal = lambda *variances: turned @ np.diag(variances) @ turned.T
    a = with_moments(g, 50, np.zeros(3), diagonal(1, 4, 9))
    b = with_moments(g, 70, np.array([1.0, 2.0, 2.0]), diagonal(4, 4, 1))
    assert abs(frechet_distance(a, b) - (9 + 1 + 0 + 4)) < 1e-9
    # Covariances that do not commute: in two dimensions tr (C_a C_b)^1/2 = (tr C_a C_b + 2 (det C_a C_b)^1/2)^1/2.
    c_a, c_b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[4.0, 0.0], [0.0, 1.0]])
    cross = np.sqrt(np.trace(c_a @ c_b) + 2 * np.sqrt(np.linalg.det(c_a @ c_b)))
    a, b = with_moments(g, 30, np.zeros(2), c_a), with_moments(g, 30, np.zeros(2), c_b)
    assert abs(frechet_distance(a, b) - (4 + 5 - 2 * cross)) < 1e-9 and abs(frechet_distance(a, a)) < 1e-9
    flat = g.standard_normal((40, 2)) @ g.standard_normal((2, 8))  # a singular covariance has a root too
    assert abs(frechet_distance(flat, flat + 1) - 8) < 1e-6


def test_the_ratio_is_one_for_the_same_distribution_and_unequal_numbers_are_refused():
    """Few vectors alone make a distance, a third fewer a larger one: hence as many of each."""
    g = np.random.default_rng(1)
    draw = lambda n, shift=0.0: g.standard_normal((n, 64)) * np.linspace(3, 0.1, 64) + shift
    training, held_out = draw(150), draw(150)
    of_samples, of_training = frechet_to_held_out(draw(150), training, held_out)
    assert of_training > 0.5 and 0.7 < of_samples / of_training < 1.4
    of_moved, again = frechet_to_held_out(draw(150, 1.5), training, held_out)
    assert again == of_training and of_moved > 3 * of_samples
    first = lambda n: draw(n)[:, :10]
    assert frechet_distance(first(50), first(50)) > 1.5 * frechet_distance(first(150), first(150))
    with pytest.raises(ValueError, match="50 samples, 150 training"):
        frechet_to_held_out(draw(50), training, held_out)


class Net(torch.nn.Module):
    """Two resolutions: the coarsest map is the mean of blocks of four pixels, and three times that."""

    def __init__(self):
        super().__init__()
        self.pool, self.coarse, self.up = torch.nn.AvgPool2d(4), torch.nn.Conv2d(1, 2, 1), torch.nn.Upsample(None, 4)
        self.head = torch.nn.Conv2d(2, 3, 1)
        self.coarse.weight.data, self.coarse.bias.data = torch.tensor([[[[1.0]]], [[[3.0]]]]), torch.zeros(2)

    def forward(self, x):
        return self.head(self.up(self.coarse(self.pool(x))))


class Asked:
    """A segmenter that gives its network a volume as it is."""
    net = Net()

    def logits(self, image, spacing_mm, mirror=True):
        assert len(image) == 1 and not mirror
        with torch.no_grad():
            return self.net(torch.from_numpy(image)[:, None].float())


def test_features_are_means_of_the_coarsest_map():
    slices = smooth(2, 5, size=16)
    found, mean = features(Asked(), slices, (10, 2.5, 2.5)), slices.mean((1, 2))
    assert np.allclose(found, np.stack([mean, 3 * mean], 1), atol=1e-6)
    assert not any(layer._forward_hooks for layer in Asked.net.modules())             # the segmenter is left as it was


def test_a_samples_noise_is_its_own_whatever_the_number():
    draw = lambda n, seed: draw_samples(Schedule.make("cosine", 50), lambda x, t: 0 * x, n, 8, 4, seed, "cpu")
    few, many = draw(2, 7), draw(40, 7)
    assert np.array_equal(few, many[:2]) and not np.array_equal(many[0], many[32])
    assert not np.array_equal(few, draw(2, 8))


def test_an_audit_counts_copies_and_says_how_far_samples_are_from_held_out_slices(monkeypatch):
    monkeypatch.setattr("cmr.audit.SAMPLES", 256)
    slices = smooth(3, 80)
    training, held_out = slices[:50], slices[50:]
    model = SimpleNamespace(schedule=Schedule.make("cosine", 50), predict_v=None, device="cpu")
    row = {}
    for name, drawn in {"copies": training[20:] * 0.9, "noise": smooth(4, 30, blur=1)}.items():
        monkeypatch.setattr("cmr.audit.draw_samples", lambda *_, drawn=drawn: drawn)
        row[name] = audit_samples(model, Asked(), training, held_out, (10, 2.5, 2.5), 0)
    assert row["copies"]["samples"] == 30 and row["copies"]["copies"] == 30 and row["noise"]["copies"] == 0
    assert row["copies"]["frechet_training"] == row["noise"]["frechet_training"]
    assert row["copies"]["frechet_ratio"] < row["noise"]["frechet_ratio"]
