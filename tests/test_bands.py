"""DCT bands: oracle, projection, cut-offs in mm."""
import pytest
import torch

from cmr.bands import Band, band_mask, dct_matrix


def low_pass(n, factor):
    """Keep indices below n / factor."""
    return Band(band_mask(n, n, 1.0, 2.0 * factor))


@pytest.mark.parametrize(
    "factor,y00,y35,sum_of_squares",
    [(2, 1.16966742, 0.60535042, 31.63772295), (4, -0.36716216, 0.06405385, 2.23202687)],
)
def test_low_pass_oracle(factor, y00, y35, sum_of_squares):
    x = torch.cos(0.9 * torch.arange(64, dtype=torch.float64) + 0.1).view(8, 8)
    y = low_pass(8, factor)(x)
    assert [y[0, 0].item(), y[3, 5].item(), (y**2).sum().item(), y.sum().item()] == pytest.approx(
        [y00, y35, sum_of_squares, 1.13587606], abs=1e-7
    )


def test_dct_is_orthonormal():
    c = dct_matrix(24)
    assert torch.allclose(c @ c.T, torch.eye(24, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("phi", [low_pass(32, 4), Band(band_mask(32, 32, 2.5, 12, 64))])
def test_projection(phi):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, 32, 32, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(phi(phi(x)), phi(x), atol=1e-10)
    assert torch.allclose(phi(x - phi(x) + phi(y)), phi(y), atol=1e-10)
    share = phi.mask.mean().item()
    assert phi(x).var().item() == pytest.approx(share, rel=0.03)  # folded noise would be larger: antialiasing matters


def test_constant_image_is_fixed_by_low_pass_and_removed_by_band_pass():
    one = torch.ones(32, 32, dtype=torch.float64)
    assert torch.allclose(low_pass(32, 4)(one), one)
    assert torch.allclose(Band(band_mask(32, 32, 2.5, 12, 64))(one), 0 * one, atol=1e-12)


def test_cut_off_in_mm():
    """128 px at 1.5 mm: 12 mm is index 32, 64 mm is index 6 (wavelength of index k: 2 FOV / k)."""
    mask = band_mask(128, 128, 1.5, 12, 64)
    assert mask[:, 0].nonzero().min() == 6 and mask[:, 0].nonzero().max() == 31 and mask[:6, :6].sum() == 0
    assert band_mask(64, 32, 2.5, 20).sum() == 16 * 8
