"""Comparing the rows of the experiment over patients: values, means, tests, shares of a gap.  No Markdown here.

The unit is the patient: phases and structures are averaged inside first.  The same patients are scored by both rows, so
that the difference per patient is the datum; the paper's Welch test treats the two as independent and throws that away,
and stands beside the paired tests.  A missed structure is infinitely far: in every mean, difference, test and share it
counts as the largest diagonal of the test images, so that it can only hurt, and how many were missed stands beside.

`rows` are those of metrics.csv, `penalised`: dictionaries of METRIC_COLUMNS with numbers as numbers.  Where domains are
compared, they are those of `comparable` alone.

Public: `METRIC_COLUMNS`, `TEST_COLUMNS`, `penalised`, `patient_values`, `failures`, `compare`, `all_tests`, `means`,
`gap_closed`, `outcome`, `against_controls`, `largest_diagonal_mm`; what is in `rows`: `comparable`, `compared_in`,
`each_row`, `of_domain`, `select`, `distinct`; tests: `welch`, `paired_t`, `wilcoxon`, `hodges_lehmann`,
`bca_interval`, `holm`, `effect_size`.
"""
import math

import numpy as np
from scipy import stats

from cmr.experiment import ARMS, BASELINE, CONTROLS, PRIMARY_ARMS, UPPER_BOUND

METRIC_COLUMNS = ("domain", "role", "subject", "phase", "vendor", "pathology", "structure", "network", "arm",
                  "trained_on", "test_input", "status", "dice", "hd", "hd95", "hd95_pooled", "assd", "masd",
                  "asd_pred_to_ref", "asd_ref_to_pred", "nsd", "hd95_in_plane", "assd_in_plane", "slices_both",
                  "slices_missed", "slices_spurious", "volume_pred_ml", "volume_ref_ml", "diagonal_mm")
TEST_COLUMNS = ("domain", "network", "arm", "metric", "primary", "n", "n_missed_baseline", "n_missed_arm",
                "mean_baseline", "mean_arm", "mean_difference", "bca_low", "bca_high", "bca90_low", "bca90_high",
                "hodges_lehmann", "hedges_g", "welch_t", "welch_df", "welch_p", "welch_p_holm", "paired_t_p",
                "rank_sum_larger", "rank_sum_smaller", "wilcoxon_p", "wilcoxon_p_holm")
TESTED_METRICS, PRIMARY_METRICS = ("dice", "hd95", "assd"), ("hd95", "assd")
SUMMARY_METRICS = ("dice", "hd95", "assd", "hd95_in_plane")
DISTANCES = ("hd95", "hd95_pooled", "assd", "hd95_in_plane")                         # those that are averaged, in mm
SMALLEST_GAP = {"dice": 0.01, "hd95": 0.5, "assd": 0.2, "hd95_in_plane": 0.5}        # smaller is not worth closing
FAILED = ("missed", "spurious")
POOLED = "all targets"                           # the patients of every unseen domain together
MINIMUM_PATIENTS = 10                            # below this no interval and no verdict
ALPHA = 0.01
# Two rows whose mean difference lies within this, with 95 % confidence on either side, do equally well.
MARGIN = {"dice": 0.01, "hd95": 1.0, "assd": 0.5}


def penalised(rows):
    """The rows, every distance finite, and beside them `hd95_found`: HD95 in mm, nan where a structure was missed.

    A distance that is infinite (a missed structure), or undefined in-plane (a structure that was found in none of its
    slices), counts as the largest diagonal.  What is absent from both masks keeps its nan, and is in no mean.
    """
    penalty_mm, found = largest_diagonal_mm(rows), []
    for row in rows:
        hd95 = row["hd95"] if math.isfinite(row["hd95"]) else math.nan
        counted = {name: row[name] if math.isfinite(row[name]) else penalty_mm for name in DISTANCES}
        found.append({**row, "hd95_found": hd95, **(counted if row["status"] != "absent_both" else {})})
    return found


def largest_diagonal_mm(rows):
    """What a missed structure counts as."""
    return max(row["diagonal_mm"] for row in rows)


def patient_values(rows, metric):
    """{subject: mean over phases and structures} of a metric, without what is nan."""
    values = {}
    for row in rows:
        if not math.isnan(row[metric]):
            values.setdefault(row["subject"], []).append(row[metric])
    return {subject: float(np.mean(v)) for subject, v in sorted(values.items())}


def failures(rows):
    """How many structures were missed or are spurious."""
    return sum(row["status"] in FAILED for row in rows)


def compare(rows, domain, network, arm, metric, against=BASELINE):
    """One row of tests.csv: `arm` minus another row of its network, on the same patients of `domain` (or POOLED)."""
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
            "hodges_lehmann": hodges_lehmann(x, y), "hedges_g": effect_size(x, y),
            "welch_t": welch_t, "welch_df": welch_df, "welch_p": welch_p,
            "paired_t_p": paired_t(x, y)[2], "rank_sum_larger": larger, "rank_sum_smaller": smaller,
            "wilcoxon_p": wilcoxon_p}


def all_tests(rows):
    """Every row of the experiment against the baseline, on every target and on all together.

    Holm over two primary families, {HD95, ASSD} x networks x {DA, DG} x targets, and the same without targets for the
    pooled patients.
    """
    others = [(network, arm.name) for network, arm in compared_in(rows) if arm.name != BASELINE]
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
    """{(domain, network, arm): {metric: mean over patients}} of SUMMARY_METRICS; first POOLED, all targets' patients.

    Each has three entries more: "hd95_found", the mean HD95 in mm of the structures that were found (nan if none was),
    "missed" and "structures", how many were not and how many there are.
    """
    found = {}
    for domain in (POOLED, *distinct(rows, "domain")):
        for network, arm, of_row in each_row(rows, domain):
            entries = {"missed": failures(of_row), "structures": len(of_row)}
            for metric in (*SUMMARY_METRICS, "hd95_found"):
                values = list(patient_values(of_row, metric).values())
                entries[metric] = float(np.mean(values)) if values else math.nan
            found[domain, network, arm.name] = entries
    return found


def gap_closed(mean, domain, network, arm, metric):
    """Share of the gap that a row closes, from the baseline to the upper bound; negative is worse than the baseline.

    mean : of `means`.  None for those two rows, without an upper bound (the level on the source is none: domains differ
    in difficulty), and where the gap is below SMALLEST_GAP.
    """
    if arm in (BASELINE, UPPER_BOUND) or (domain, network, UPPER_BOUND) not in mean:
        return None
    before, ceiling = (mean[domain, network, name][metric] for name in (BASELINE, UPPER_BOUND))
    gap = (ceiling - before) * (1 if metric == "dice" else -1)
    if not gap >= SMALLEST_GAP[metric]:
        return None
    return (mean[domain, network, arm][metric] - before) / (ceiling - before) + 0.0


def against_controls(rows):
    """DG against what generalises without a diffusion model, on the same patients of all targets.

    A dictionary for each network and control: network, control, its tests of `compare` in dice and hd95, p of the
    Wilcoxon test of HD95 after Holm over all these comparisons, and the outcome (of `outcome`).
    """
    ran = {(network, arm.name) for network, arm in compared_in(rows)}
    found = []
    for network in distinct(rows, "network"):
        for control in CONTROLS:
            if {(network, control), (network, "DG")} <= ran:
                tests = {metric: compare(rows, POOLED, network, "DG", metric, control) for metric in ("dice", "hd95")}
                found.append({"network": network, "control": control, **tests})
    corrected = holm([c["hd95"]["wilcoxon_p"] for c in found])
    return [{**c, "p": float(p), "outcome": outcome(c["hd95"], p)} for c, p in zip(found, corrected)]


def outcome(test, p):
    """What a comparison of `compare` says: better, worse, equal, open, or few (patients, so that it says nothing).

    p : of its paired test, corrected or not; the direction is that of its rank sums.  equal : by two one-sided tests at
    5 % each, that is, the 90 % interval of the mean difference lies within MARGIN; a large p alone says nothing.
    """
    if test["n"] < MINIMUM_PATIENTS:
        return "few"
    if p < ALPHA:
        smaller = test["rank_sum_smaller"] > test["rank_sum_larger"]
        return "better" if smaller == (test["metric"] != "dice") else "worse"
    margin = MARGIN[test["metric"]]
    return "equal" if -margin < test["bca90_low"] and test["bca90_high"] < margin else "open"


def comparable(rows):
    """The rows of the structures that every domain has: a mean over others would compare structures, not domains."""
    of_each = [distinct(of_domain(rows, domain), "structure") for domain in distinct(rows, "domain")]
    common = set.intersection(*map(set, of_each))
    return [row for row in rows if row["structure"] in common]


def compared_in(rows):
    """[(network, Arm)] that were run, in the order of ARMS."""
    ran = {(row["network"], row["arm"]) for row in rows}
    return [(network, arm) for network in distinct(rows, "network") for arm in ARMS if (network, arm.name) in ran]


def each_row(rows, domain):
    """(network, Arm, the rows that it has there) of all that was run on a domain, or on POOLED."""
    here = of_domain(rows, domain)
    for network, arm in compared_in(here):
        yield network, arm, select(here, network=network, arm=arm.name)


def of_domain(rows, domain):
    """The rows of a domain, or of every target (unseen domain) for POOLED."""
    return select(rows, role="target") if domain == POOLED else select(rows, domain=domain)


def select(rows, **cells):
    """The rows that have these cells, such as network="vanilla", arm="DG"."""
    return [row for row in rows if all(row[column] == cell for column, cell in cells.items())]


def distinct(rows, column):
    """What a column holds, each once, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


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
