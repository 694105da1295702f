"""Comparing the rows of the experiment over patients: values, means, tests, gaps closed, verdicts.  No Markdown here.

The unit is the patient: phases and structures are averaged inside first.  A missed or spurious structure is infinitely
far: it is counted in every table, and in tests it takes the largest diagonal of the test images, so that it can only
hurt.

`rows` are those of metrics.csv: dictionaries of METRIC_COLUMNS with numbers as numbers.

Public: `METRIC_COLUMNS`, `TEST_COLUMNS`, `patient_values`, `failures`, `compare`, `all_tests`, `means`, `gap_closed`,
`outcome`, `against_controls`, and what is in `rows`: `domains_of`, `targets_of`, `networks_of`, `compared_in`,
`common_structures`.
"""
import math

import numpy as np

from cmr.experiment import ARMS, BASELINE, CONTROLS, PRIMARY_ARMS, UPPER_BOUND
from cmr.statistics import bca_interval, effect_size, hodges_lehmann, holm, paired_t, welch, wilcoxon

METRIC_COLUMNS = ("domain", "role", "subject", "phase", "vendor", "pathology", "structure", "network", "arm",
                  "trained_on", "test_input", "status", "dice", "hd", "hd95", "hd95_pooled", "assd", "masd",
                  "asd_pred_to_ref", "asd_ref_to_pred", "nsd", "hd95_in_plane", "assd_in_plane", "slices_both",
                  "slices_missed", "slices_spurious", "volume_pred_ml", "volume_ref_ml", "diagonal_mm")
TEST_COLUMNS = ("domain", "network", "arm", "metric", "primary", "n", "n_missed_baseline", "n_missed_arm",
                "mean_baseline", "mean_arm", "mean_difference", "bca_low", "bca_high", "bca90_low", "bca90_high",
                "hodges_lehmann", "hedges_g",
                "welch_t", "welch_df", "welch_p", "welch_p_holm", "paired_t_p", "wilcoxon_p", "wilcoxon_p_holm")
TESTED_METRICS, PRIMARY_METRICS = ("dice", "hd95", "assd"), ("hd95", "assd")
SUMMARY_METRICS = ("dice", "hd95", "assd", "hd95_in_plane")
SMALLEST_GAP = {"dice": 0.01, "hd95": 0.5, "assd": 0.2, "hd95_in_plane": 0.5}        # smaller is not worth closing
FAILED = ("missed", "spurious")
POOLED = "all targets"                           # the patients of every unseen domain together
MINIMUM_PATIENTS = 10                            # below this no interval and no star
ALPHA = 0.01
# Two rows whose mean difference lies within this, with 95 % confidence on either side, do equally well.
MARGIN = {"dice": 0.01, "hd95": 1.0}


def patient_values(rows, metric, penalty_mm=None):
    """{subject: mean over phases and structures} of a metric; absent_both is left out.

    penalty_mm : what an infinite distance counts as; None leaves missed and spurious structures out (descriptive tables
    print their number beside it).
    """
    values = {}
    for row in rows:
        value = row[metric]
        undefined = isinstance(value, float) and math.isnan(value) and row["status"] == "ok"
        if row["status"] == "absent_both" or undefined:
            continue
        if metric != "dice" and row["status"] != "ok":
            if penalty_mm is None:
                continue
            value = penalty_mm
        values.setdefault(row["subject"], []).append(value)
    return {subject: float(np.mean(v)) for subject, v in sorted(values.items())}


def failures(rows):
    """How many structures were missed or are spurious."""
    return sum(row["status"] in FAILED for row in rows)


def compare(rows, domain, network, arm, metric, penalty_mm, against=BASELINE):
    """One row of tests.csv: `arm` minus another row of its network, on the same patients of `domain` (or POOLED)."""
    here = [r for r in rows if r["network"] == network and _in_domain(r, domain)]
    its, others = ([r for r in here if r["arm"] == name] for name in (arm, against))
    a, b = patient_values(its, metric, penalty_mm), patient_values(others, metric, penalty_mm)
    subjects = sorted(a.keys() & b.keys())
    x, y = np.array([a[s] for s in subjects]), np.array([b[s] for s in subjects])
    enough = len(subjects) >= MINIMUM_PATIENTS
    interval = lambda level: bca_interval(x - y, level) if enough else (math.nan, math.nan)
    (low, high), (low90, high90) = interval(0.95), interval(0.90)
    welch_t, welch_df, welch_p = welch(x, y)
    return {"domain": domain, "network": network, "arm": arm, "metric": metric,
            "primary": int(arm in PRIMARY_ARMS and metric in PRIMARY_METRICS), "n": len(subjects),
            "n_missed_baseline": failures(others), "n_missed_arm": failures(its),
            "mean_baseline": float(y.mean()), "mean_arm": float(x.mean()), "mean_difference": float((x - y).mean()),
            "bca_low": low, "bca_high": high, "bca90_low": low90, "bca90_high": high90,
            "hodges_lehmann": hodges_lehmann(x, y), "hedges_g": effect_size(x, y),
            "welch_t": welch_t, "welch_df": welch_df, "welch_p": welch_p,
            "paired_t_p": paired_t(x, y)[2], "wilcoxon_p": wilcoxon(x, y)[1]}


def _in_domain(row, domain):
    return row["domain"] == domain or domain == POOLED and row["role"] == "target"


def all_tests(rows):
    """Every arm against the baseline on every target and on all together.

    Holm over two primary families, {HD95, ASSD} x networks x {DA, DG} x targets, and the same without targets for the
    pooled patients.
    """
    penalty_mm = largest_diagonal_mm(rows)
    others = [(network, arm.name) for network, arm in compared_in(rows) if arm.name != BASELINE]
    tests = [compare(rows, domain, network, arm, metric, penalty_mm)
             for domain in (*targets_of(rows), POOLED) for network, arm in others for metric in TESTED_METRICS]
    primary = [t for t in tests if t["primary"]]
    for pooled in (False, True):
        family = [t for t in primary if (t["domain"] == POOLED) == pooled]
        for name in ("welch_p", "wilcoxon_p"):
            for test, p in zip(family, holm([t[name] for t in family])):
                test[name + "_holm"] = float(p)
    return tests


def means(rows):
    """{(domain, network, arm): {metric: mean over patients}} of SUMMARY_METRICS.

    First POOLED, the mean of the targets' means.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["domain"], row["network"], row["arm"]), []).append(row)
    mean_of = lambda own, metric: np.mean(list(patient_values(own, metric).values()) or [np.nan])
    each = {key: {m: mean_of(own, m) for m in SUMMARY_METRICS} for key, own in groups.items()}
    targets = targets_of(rows)
    pooled = {}
    for _, network, arm in each:
        of_targets = [each[domain, network, arm] for domain in targets]
        pooled[POOLED, network, arm] = {m: np.mean([of[m] for of in of_targets]) for m in SUMMARY_METRICS}
    return {**pooled, **each}


def gap_closed(mean, domain, network, arm, metric, source):
    """Share of the gap that a row closes, from the baseline to the ceiling; negative is worse than the baseline.

    mean : of `means`.  The ceiling is the upper bound where there is one, the baseline on the source otherwise.
    None for those two rows, and where the gap is below SMALLEST_GAP.
    """
    if arm in (BASELINE, UPPER_BOUND):
        return None
    before = mean[domain, network, BASELINE][metric]
    ceiling = mean.get((domain, network, UPPER_BOUND), mean[source, network, BASELINE])[metric]
    gap = (ceiling - before) * (1 if metric == "dice" else -1)
    if not gap >= SMALLEST_GAP[metric]:
        return None
    return (mean[domain, network, arm][metric] - before) / (ceiling - before) + 0.0


def against_controls(rows):
    """DG against what generalises without a diffusion model, on the same patients of all targets.

    A dictionary for each network and control: network, control, n, dice and hd95_mm (mean differences), wilcoxon_p of
    HD95, its outcome (of `outcome`) and the verdict in words.
    """
    penalty_mm = largest_diagonal_mm(rows)
    ran = {(network, arm.name) for network, arm in compared_in(rows)}
    found = []
    for network in networks_of(rows):
        for control in CONTROLS:
            if not {(network, control), (network, "DG")} <= ran:
                continue
            dice, hd95 = (compare(rows, POOLED, network, "DG", metric, penalty_mm, against=control)
                          for metric in ("dice", "hd95"))
            kind = outcome(hd95, hd95["wilcoxon_p"])
            found.append({"network": network, "control": control, "n": hd95["n"], "dice": dice["mean_difference"],
                          "hd95_mm": hd95["mean_difference"], "wilcoxon_p": hd95["wilcoxon_p"],
                          "outcome": kind, "verdict": _verdict(control, kind, hd95)})
    return found


def outcome(test, p):
    """What a comparison of `compare` says: better, worse, equal or open.

    p : of its paired test, corrected or not.  equal : by two one-sided tests at 5 % each, that is, the 90 % interval of
    the mean difference lies within MARGIN; a large p alone says nothing.
    """
    if p < ALPHA:
        smaller = test["hodges_lehmann"] < 0
        return "better" if smaller == (test["metric"] != "dice") else "worse"
    margin = MARGIN[test["metric"]]
    return "equal" if -margin < test["bca90_low"] and test["bca90_high"] < margin else "open"


def _verdict(control, kind, hd95):
    """An outcome in HD95, in words."""
    words = {"better": "DG is better", "worse": f"{control} alone is better",
             "equal": f"{control} alone does as well, to {MARGIN['hd95']:g} mm",
             "open": f"undecided, 90 % interval {hd95['bca90_low']:+.1f} to {hd95['bca90_high']:+.1f} mm"}
    return words[kind]


def largest_diagonal_mm(rows):
    """What an infinite distance counts as in tests."""
    return max(row["diagonal_mm"] for row in rows)


def domains_of(rows):
    return list(dict.fromkeys(row["domain"] for row in rows))


def targets_of(rows):
    return list(dict.fromkeys(row["domain"] for row in rows if row["role"] == "target"))


def networks_of(rows):
    return list(dict.fromkeys(row["network"] for row in rows))


def compared_in(rows):
    """[(network, Arm)] that were run, in the order of ARMS."""
    ran = {(row["network"], row["arm"]) for row in rows}
    return [(network, arm) for network in networks_of(rows) for arm in ARMS if (network, arm.name) in ran]


def common_structures(rows):
    """Structures that every domain labels."""
    labelled = {}
    for row in rows:
        labelled.setdefault(row["domain"], set()).add(row["structure"])
    return set.intersection(*labelled.values())
