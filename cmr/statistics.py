"""Tests and intervals on patients: the paper's Welch test, and the paired ones that fit the design.

The same patients are scored by both methods, so the difference per patient is the datum; Welch's test treats the two
columns as independent and throws that away.  What is compared with what is in `cmr.comparison`.

Public: `welch`, `paired_t`, `wilcoxon`, `hodges_lehmann`, `bca_interval`, `holm`, `effect_size`.
"""
import numpy as np
from scipy import stats


def welch(a, b):
    """(t, degrees of freedom, two-sided p) of Welch's t-test on two samples; nan for fewer than two values each."""
    if min(len(a), len(b)) < 2:
        return np.nan, np.nan, np.nan
    result = stats.ttest_ind(a, b, equal_var=False)
    return float(result.statistic), float(result.df), float(result.pvalue)


def paired_t(a, b):
    """(t, degrees of freedom, two-sided p) of the paired t-test; p = 1 if nothing differs."""
    if len(a) < 2:
        return np.nan, np.nan, np.nan
    if np.array_equal(a, b):
        return 0.0, float(len(a) - 1), 1.0
    result = stats.ttest_rel(a, b)
    return float(result.statistic), float(result.df), float(result.pvalue)


def wilcoxon(a, b):
    """(rank sum where a is larger, rank sum where a is smaller, two-sided p) of the signed-rank test.

    Exact for small samples without ties; pairs that are equal are left out; p = 1 if nothing differs.  The larger sum
    says in which direction a differs from b: the Hodges-Lehmann shift cannot, it is 0 where most pairs are equal.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    d = d[d != 0]
    if not len(d):
        return 0.0, 0.0, 1.0
    ranks = stats.rankdata(np.abs(d))
    return float(ranks[d > 0].sum()), float(ranks[d < 0].sum()), float(stats.wilcoxon(d).pvalue)


def hodges_lehmann(a, b):
    """Pseudo-median of the paired differences a - b: the median of all pairwise means (Walsh averages)."""
    d = np.asarray(a, float) - np.asarray(b, float)
    i, j = np.triu_indices(len(d))
    return float(np.median((d[i] + d[j]) / 2))


def bca_interval(differences, level=0.95, resamples=10_000):
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) of the mean of patients' differences.

    Equal differences give that point twice; fewer than two values give nan.
    scipy.stats.bootstrap is not used, because it resamples differently between versions and returns nan for ties.
    """
    d = np.asarray(differences, float)
    n = len(d)
    if n < 2:
        return np.nan, np.nan
    if np.ptp(d) == 0:
        return float(d[0]), float(d[0])
    resampled = d[np.random.default_rng(0).integers(0, n, (resamples, n))].mean(1)
    z0 = stats.norm.ppf(((resampled < d.mean()).sum() + 0.5 * (resampled == d.mean()).sum()) / resamples)
    jackknife = np.array([np.delete(d, i).mean() for i in range(n)])
    u = jackknife.mean() - jackknife
    spread = (u ** 2).sum() ** 1.5
    acceleration = (u ** 3).sum() / (6 * spread) if spread else 0.0                  # 0 where rounding alone differs
    z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(resampled, stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


def holm(p_values):
    """Holm-adjusted p-values in the given order; nan stays nan and does not count in the family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(len(p), np.nan)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    if len(order):
        adjusted[order] = np.maximum.accumulate(np.minimum(1, (len(order) - np.arange(len(order))) * p[order]))
    return adjusted


def effect_size(a, b):
    """Hedges' g of paired differences: mean over SD, times 1 - 3 / (4 (n - 1) - 1); nan when undefined."""
    d = np.asarray(a, float) - np.asarray(b, float)
    if len(d) < 2 or d.std(ddof=1) == 0:
        return np.nan
    return float(d.mean() / d.std(ddof=1) * (1 - 3 / (4 * (len(d) - 1) - 1)))
