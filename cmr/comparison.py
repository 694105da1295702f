"""Comparison of the experiment's rows over patients: means, tests and shares of the gap.

The unit is the patient: phases and structures are averaged first, and the tests are paired.  `rows` are lines of
metrics.csv after `penalised`, with numbers as numbers; domains are compared by `comparable` rows alone.
"""
import math

import numpy as np
from scipy import stats

from cmr.experiment import BASELINE, CONTROLS, PRIMARY_ARMS, UPPER_BOUND

METRIC_COLUMNS = ("domain", "role", "subject", "phase", "vendor", "pathology", "structure", "network", "arm",
                  "trained_on", "test_input", "status", "dice", "hd", "hd95", "hd95_pooled", "assd", "masd",
                  "asd_pred_to_ref", "asd_ref_to_pred", "nsd", "hd95_in_plane", "assd_in_plane", "slices_both",
                  "slices_missed", "slices_spurious", "volume_pred_ml", "volume_ref_ml", "diagonal_mm")
TESTED_METRICS, PRIMARY_METRICS = ("dice", "hd95", "assd"), ("hd95", "assd")
DISTANCES = ("hd95", "hd95_pooled", "assd", "hd95_in_plane")                         # the distances that are averaged
# Metrics of the summary, each with the smallest gap of which a share is reported.
SMALLEST_GAP = {"dice": 0.01, "hd95": 0.5, "assd": 0.2, "hd95_in_plane": 0.5}
POOLED = "all targets"                           # the patients of all targets together
MINIMUM_PATIENTS = 10                            # with fewer patients there is no interval and no verdict
ALPHA = 0.01
# Two rows are equal if their mean difference is within this margin, with 95 % confidence on either side.
MARGIN = {"dice": 0.01, "hd95": 1.0, "assd": 0.5}


def penalised(rows):
    """Return the rows with finite distances, and with `hd95_found`: HD95 in mm, nan where it was not finite.

    The largest diagonal replaces what is infinite or undefined in-plane; a structure absent from both masks keeps nan.
    """
    penalty_mm, found = largest_diagonal_mm(rows), []
    for row in rows:
        hd95 = row["hd95"] if math.isfinite(row["hd95"]) else math.nan
        counted = {name: row[name] if math.isfinite(row[name]) else penalty_mm for name in DISTANCES}
        found.append({**row, "hd95_found": hd95, **(counted if row["status"] != "absent_both" else {})})
    return found


def largest_diagonal_mm(rows):
    """Return the distance in mm that a missed structure counts as: the largest diagonal of the test images."""
    return max(row["diagonal_mm"] for row in rows)


def patient_values(rows, metric):
    """Return {subject: mean of a metric over phases and structures}; nan values are left out."""
    values = {}
    for row in rows:
        if not math.isnan(row[metric]):
            values.setdefault(row["subject"], []).append(row[metric])
    return {subject: float(np.mean(v)) for subject, v in sorted(values.items())}


def failures(rows):
    return sum(row["status"] in ("missed", "spurious") for row in rows)


def compare(rows, domain, network, arm, metric, against=BASELINE):
    """Return a line of tests.csv: row `arm` minus row `against` of one network, on the same patients of a domain."""
    here = select(of_domain(rows, domain), network=network)
    ours, theirs = select(here, arm=arm), select(here, arm=against)
    a, b = patient_values(ours, metric), patient_values(theirs, metric)
    subjects = sorted(a.keys() & b.keys())
    x, y = np.array([a[s] for s in subjects]), np.array([b[s] for s in subjects])
    enough = len(subjects) >= MINIMUM_PATIENTS
    (low, high), (low90, high90) = (bca_interval(x - y, level) if enough else (math.nan, math.nan)
                                    for level in (0.95, 0.90))
    welch_t, welch_df, welch_p = welch(x, y)
    larger, smaller, wilcoxon_p = wilcoxon(x, y)
    return {"domain": domain, "network": network, "arm": arm, "metric": metric,
            "primary": int(arm in PRIMARY_ARMS and metric in PRIMARY_METRICS), "n": len(subjects),
            "n_missed_baseline": failures(theirs), "n_missed_arm": failures(ours),
            "mean_baseline": float(y.mean()), "mean_arm": float(x.mean()), "mean_difference": float((x - y).mean()),
            "bca_low": low, "bca_high": high, "bca90_low": low90, "bca90_high": high90,
            "hodges_lehmann": hodges_lehmann(x, y), "welch_t": welch_t, "welch_df": welch_df, "welch_p": welch_p,
            "welch_p_holm": None, "rank_sum_larger": larger, "rank_sum_smaller": smaller, "wilcoxon_p": wilcoxon_p,
            "wilcoxon_p_holm": None}                              # corrected by `all_tests`, in a family


def all_tests(rows):
    """Return the tests of every row against the baseline, for each target and for POOLED.

    Holm's correction has two families: HD95 and ASSD of DA and DG for all networks on all targets; the same on POOLED.
    """
    others = [(network, arm) for network, arm in by_row(rows) if arm != BASELINE]
    domains = [*distinct(of_domain(rows, POOLED), "domain"), POOLED]
    tests = [compare(rows, domain, network, arm, metric)
             for domain in domains for network, arm in others for metric in TESTED_METRICS]
    for pooled in (False, True):
        family = [t for t in tests if t["primary"] and (t["domain"] == POOLED) == pooled]
        for name in ("welch_p", "wilcoxon_p"):
            for test, p in zip(family, holm([t[name] for t in family])):
                test[name + "_holm"] = float(p)
    return tests


def means(rows):
    """Return {(domain, network, arm): {metric: mean over patients}}, with POOLED as first domain.

    "hd95_found" is nan if no structure was found; "missed" counts missed and spurious ones, "structures" all of them.
    """
    found = {}
    for domain in (POOLED, *distinct(rows, "domain")):
        for (network, arm), of_row in by_row(of_domain(rows, domain)).items():
            entries = {"missed": failures(of_row), "structures": len(of_row)}
            for metric in (*SMALLEST_GAP, "hd95_found"):
                values = list(patient_values(of_row, metric).values())
                entries[metric] = float(np.mean(values)) if values else math.nan
            found[domain, network, arm] = entries
    return found


def gap_closed(mean, domain, network, arm, metric):
    """Return the share of the gap from baseline to upper bound that a row closes; negative if the row is worse.

    mean : result of `means`.  Both bounds give None, and so do a gap below SMALLEST_GAP and a missing upper bound.
    """
    if arm in (BASELINE, UPPER_BOUND) or (domain, network, UPPER_BOUND) not in mean:
        return None
    before, ceiling = (mean[domain, network, name][metric] for name in (BASELINE, UPPER_BOUND))
    gap = (ceiling - before) * (1 if metric == "dice" else -1)
    if not gap >= SMALLEST_GAP[metric]:
        return None
    return (mean[domain, network, arm][metric] - before) / (ceiling - before) + 0.0


def against_controls(rows):
    """Compare DG with each of the CONTROLS, which use no diffusion model, on the patients of all targets.

    Returns [{network, control, "dice" and "hd95" of `compare`, "p" of HD95's Wilcoxon test after Holm, "outcome"}].
    """
    ran, found = by_row(rows).keys(), []
    for network in distinct(rows, "network"):
        for control in CONTROLS:
            if {(network, control), (network, "DG")} <= ran:
                tests = {metric: compare(rows, POOLED, network, "DG", metric, control) for metric in ("dice", "hd95")}
                found.append({"network": network, "control": control, **tests})
    corrected = holm([c["hd95"]["wilcoxon_p"] for c in found])
    return [{**c, "p": float(p), "outcome": outcome(c["hd95"], p)} for c, p in zip(found, corrected)]


def outcome(test, p):
    """Return what a test of `compare` says: "better", "worse", "equal", "open", or "few" for too few patients.

    Rows are "equal" if the 90 % interval of the mean difference lies within MARGIN (two one-sided tests at 5 %).
    """
    if test["n"] < MINIMUM_PATIENTS:
        return "few"
    if p < ALPHA:
        smaller = test["rank_sum_smaller"] > test["rank_sum_larger"]
        return "better" if smaller == (test["metric"] != "dice") else "worse"
    margin = MARGIN[test["metric"]]
    return "equal" if -margin < test["bca90_low"] and test["bca90_high"] < margin else "open"


def comparable(rows):
    """Return the rows of the structures that every domain has, so that means of domains are over the same ones."""
    of_each = [distinct(of_domain(rows, domain), "structure") for domain in distinct(rows, "domain")]
    common = set.intersection(*map(set, of_each))
    return [row for row in rows if row["structure"] in common]


def by_row(rows):
    """Return {(network, row of the experiment): its lines of metrics.csv} of all that was run, in their order."""
    found = {}
    for row in rows:
        found.setdefault((row["network"], row["arm"]), []).append(row)
    return found


def of_domain(rows, domain):
    """Return the rows of a domain; POOLED stands for all targets."""
    return select(rows, role="target") if domain == POOLED else select(rows, domain=domain)


def select(rows, **cells):
    """Return the rows whose columns have these values, such as network="vanilla", arm="DG"."""
    return [row for row in rows if all(row[column] == cell for column, cell in cells.items())]


def distinct(rows, column):
    """Return the distinct values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def welch(a, b):
    """Return (t, degrees of freedom, two-sided p) of Welch's t-test; nan if a sample has fewer than two values."""
    if min(len(a), len(b)) < 2:
        return np.nan, np.nan, np.nan
    result = stats.ttest_ind(a, b, equal_var=False)
    return float(result.statistic), float(result.df), float(result.pvalue)


def wilcoxon(a, b):
    """Return (rank sum of pairs with a > b, rank sum of pairs with a < b, two-sided p) of the signed-rank test.

    Equal pairs are left out; p = 1 if all are.  The larger sum gives the direction: the Hodges-Lehmann shift may be 0.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    d = d[d != 0]
    if not len(d):
        return 0.0, 0.0, 1.0
    ranks = stats.rankdata(np.abs(d))
    return float(ranks[d > 0].sum()), float(ranks[d < 0].sum()), float(stats.wilcoxon(d).pvalue)


def hodges_lehmann(a, b):
    """Return the pseudo-median of the paired differences a - b: the median of their pairwise means (Walsh averages)."""
    d = np.asarray(a, float) - np.asarray(b, float)
    i, j = np.triu_indices(len(d))
    return float(np.median((d[i] + d[j]) / 2))


def bca_interval(differences, level=0.95, resamples=10_000):
    """Return (low, high) of the mean difference by the bias-corrected and accelerated bootstrap (BCa, Efron 1987).

    scipy's is not used, because it resamples differently between versions and returns nan for ties.
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
    acceleration = (u ** 3).sum() / (6 * spread) if spread else 0.0                  # spread may underflow to 0
    z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(resampled, stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


def holm(p_values):
    """Return Holm-adjusted p-values in the given order; nan stays nan and does not count in the family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(len(p), np.nan)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    if len(order):
        adjusted[order] = np.maximum.accumulate(np.minimum(1, (len(order) - np.arange(len(order))) * p[order]))
    return adjusted
