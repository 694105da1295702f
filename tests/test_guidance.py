"""What keeps the reference: the low-pass against oracle numbers, its gradient in closed form, the guided filter."""
import numpy as np
import pytest
import torch
from scipy import ndimage

from cmr.guidance import FLAT, guided_filter, low_pass, low_pass_distance
from test_sampler import REFERENCE

# A single 1 at row 7, column 9 of 16 x 16: row 7 of the low-passed image.
IMPULSE = {2: (4, [0.00100, -0.00733, -0.02466, 0.02633, 0.14562, 0.16355, 0.08012, 0.02633, 0.00216]),
           4: (6, [0.0074, 0.0187, 0.0311, 0.0395, 0.0384, 0.0271, 0.0131])}


@pytest.mark.parametrize("factor", IMPULSE)
def test_the_low_pass_of_an_impulse_is_the_published_one(factor):
    image = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    image[0, 0, 7, 9] = 1
    first, expected = IMPULSE[factor]
    row = low_pass(image, factor)[0, 0, 7, first:first + len(expected)]
    assert row.numpy() == pytest.approx(np.array(expected), abs=2e-4)
    assert factor != 2 or float(low_pass(image, 2).sum()) == pytest.approx(1, abs=1e-3)


def test_borders_do_not_darken():
    """Zeros from beyond the border would make 10.81 of the ramp's last value, and a constant would lose its rim."""
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    assert low_pass(ramp, 2)[0, 0, 5, 15].item() == pytest.approx(14.63, abs=0.01)
    for factor in (2, 4, 8):
        constant = torch.full((2, 1, 16, 32), 0.7, dtype=torch.float64)
        assert torch.allclose(low_pass(constant, factor), constant)


def test_the_low_pass_is_linear_and_antialiased():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, 1, 32, 32, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(low_pass(2 * x - y, 2), 2 * low_pass(x, 2) - low_pass(y, 2))
    # Noise that is only subsampled keeps a quarter or more of its variance, whatever the factor.
    for factor in (2, 4, 8):
        assert 0.3 < low_pass(x, factor).var().item() * factor ** 2 < 1
    with pytest.raises(ValueError, match="32 pixels are no multiple"):
        low_pass(x, 3)


def test_the_distance_has_the_gradient_of_its_closed_form():
    """A network whose clean image is c x_t: the gradient is -c phi^T r / |r|, of each image by itself."""
    g = torch.Generator().manual_seed(1)
    y_0, x_t = (torch.randn(3, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    c = 0.6
    x = x_t.clone().requires_grad_()
    gradient, = torch.autograd.grad(low_pass_distance(y_0, 2)(c * x).sum(), x)
    phi = low_pass(torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8), 2).reshape(64, 64)  # row i: phi of pixel i
    for i in range(3):
        r = (y_0[i] - c * x_t[i]).flatten() @ phi
        expected = -c * (phi @ r) / r.norm()
        assert torch.allclose(gradient[i].flatten(), expected, atol=1e-12)


def test_at_distance_zero_nothing_pulls():
    y_0 = torch.rand(2, 1, 8, 8)
    x = y_0.clone().requires_grad_()
    gradient, = torch.autograd.grad(low_pass_distance(y_0, 2)(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_guided_filter_is_a_weighted_least_squares_fit_in_every_window():
    """Brute force: each window's line by its normal equations, then the mean of the lines over a pixel's own window."""
    guide, image = REFERENCE[0, :8, :8].astype(float), REFERENCE[1, :8, :8].astype(float)
    impulses = np.eye(64).reshape(64, 8, 8)
    # (pixel, what it sees)
    weights = np.stack([ndimage.gaussian_filter(impulse, 1.5, mode="nearest").ravel() for impulse in impulses], 1)
    lines = []
    for w in weights:
        a = np.array(
            [[np.sum(w * guide.ravel() ** 2) + FLAT, np.sum(w * guide.ravel())], [np.sum(w * guide.ravel()), 1]]
        )
        lines.append(np.linalg.solve(a, [np.sum(w * guide.ravel() * image.ravel()), np.sum(w * image.ravel())]))
    slope, offset = (weights @ np.array(lines)).T
    expected = (slope * guide.ravel() + offset).clip(-1, 1)
    assert np.abs(guided_filter(guide[None], image[None], 1.5).ravel() - expected).max() < 1e-5
