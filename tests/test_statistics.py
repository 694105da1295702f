"""Tests and intervals on patients against published numbers and degenerate input."""
import numpy as np
import pytest

from cmr.statistics import bca_interval, effect_size, hodges_lehmann, holm, paired_t, welch, wilcoxon

A = [8.1, 12.4, 9.7, 15.2, 7.3, 22.8, 10.5, 11.9, 6.4, 13.6, 9.1, 18.7]
B = [7.2, 11.8, 9.9, 12.1, 6.0, 17.5, 10.1, 9.4, 6.6, 11.0, 8.3, 12.9]


def test_oracle():
    assert welch(A, B) == pytest.approx((1.1395291487, 18.9844337669, 0.2686569067), abs=1e-9)
    assert paired_t(A, B) == pytest.approx((3.2908092239, 11, 0.0071943846), abs=1e-9)
    assert wilcoxon(A, B) == pytest.approx((75, 3, 0.00244140625), abs=1e-12)
    assert wilcoxon(B, A) == pytest.approx((3, 75, 0.00244140625), abs=1e-12)
    assert hodges_lehmann(A, B) == pytest.approx(1.675) and effect_size(A, B) == pytest.approx(0.8836974843, abs=1e-9)
    assert bca_interval(np.subtract(A, B)) == pytest.approx((0.9916667, 3.2166667), abs=1e-6)
    assert holm([0.003, 0.012, 0.030, 0.041, 0.20, 0.0008]) == pytest.approx([0.015, 0.048, 0.09, 0.09, 0.2, 0.0048])


def test_degenerate_input():
    assert bca_interval([1.5, 1.5, 1.5]) == (1.5, 1.5) and np.isnan(bca_interval([1.0])).all()
    assert wilcoxon([1, 2], [1, 2]) == (0.0, 0.0, 1.0) and paired_t([1, 2], [1, 2]) == (0.0, 1.0, 1.0)
    assert np.isnan(welch([1], [2])).all() and np.isnan(effect_size([1, 2], [0, 1]))
    assert holm([0.01, np.nan, 0.02]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = np.array([bca_interval(rng.exponential(1.0, 25), resamples=500) for _ in range(200)])
    hits = (intervals[:, 0] <= 1.0) & (1.0 <= intervals[:, 1])
    assert 0.86 <= hits.mean() <= 0.99


def test_differences_that_rounding_alone_tells_apart_have_an_interval():
    """Two rows that are one constant apart, in floating point: the jackknife's spread is 0, the interval is not nan."""
    differences = (20.0 + 0.1 * np.arange(20)) - (15.0 + 0.1 * np.arange(20))
    assert np.ptp(differences) > 0
    assert bca_interval(differences) == pytest.approx((5.0, 5.0))
