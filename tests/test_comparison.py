"""Comparing patients: failures, families, directions, shares of a gap.

Tests and intervals on patients against published numbers and degenerate input.
"""
import math

import numpy as np
import pytest

from cmr.comparison import (
    DISTANCES, POOLED, TESTED_METRICS, all_tests, bca_interval, comparable, compare, distinct,
    gap_closed, hodges_lehmann, holm, means, outcome, patient_values, penalised, welch, wilcoxon)
from cmr.experiment import ARMS
from cmr.files import read_csv, write_csv


def row(subject, arm, hd95, status="ok", domain="Vendor=B", role="target", **more):
    dice = 0.9 - hd95 / 100 if status == "ok" else 0.0
    measured = {"domain": domain, "role": role, "subject": subject, "arm": arm, "network": "vanilla", "status": status,
                "structure": "LV", "dice": dice, "hd95": hd95, "hd95_pooled": hd95, "assd": hd95 / 4,
                "hd95_in_plane": hd95, "diagonal_mm": 500.0, **more}
    return penalised([measured])[0]


def missed(subject, arm):
    return row(subject, arm, math.inf, "missed", hd95_in_plane=math.nan)


def test_failures_are_counted_and_can_only_hurt():
    rows = []
    for i in range(12):
        rows += [row(f"p{i}", "baseline", 10.0 + i), row(f"p{i}", "DA", 10.0 + i - (2 + i % 3))]
    better = compare(rows, "Vendor=B", "vanilla", "DA", "hd95")
    assert better["mean_difference"] == pytest.approx(-3) and better["n"] == 12 and better["n_missed_arm"] == 0
    assert better["wilcoxon_p"] < 0.001
    rows[1] = missed("p0", "DA")
    worse = compare(rows, "Vendor=B", "vanilla", "DA", "hd95")
    assert worse["n"] == 12 and worse["n_missed_arm"] == 1
    assert worse["mean_difference"] == pytest.approx((-3 * 12 + 2 + 490) / 12)
    assert worse["wilcoxon_p"] > better["wilcoxon_p"]
    assert patient_values([rows[1]], "hd95_found") == {} and patient_values([rows[1]], "dice") == {"p0": 0.0}
    for metric in DISTANCES:
        assert patient_values([rows[1]], metric) == {"p0": 500.0}
    found_in_no_slice = row("p0", "DA", 30.0, hd95_in_plane=math.nan)
    assert patient_values([found_in_no_slice], "hd95_in_plane") == {"p0": 500.0}
    absent_from_both = row("p0", "DA", math.nan, "absent_both", dice=math.nan)
    assert all(patient_values([absent_from_both], metric) == {} for metric in ("dice", *DISTANCES))


def test_means_tests_and_shares_speak_of_the_same_distances():
    """All targets: the mean over their patients, not over their means, or the tables would not show what is tested."""
    rows = [row(f"p{i}", arm, hd95 + i * (1 + hd95 / 100), domain="Vendor=B" if i < 11 else "Vendor=C")
            for i in range(14) for arm, hd95 in (("baseline", 20.0), ("DA", 18.0), ("upper bound", 8.0))]
    rows = [missed("p3", "baseline") if (r["subject"], r["arm"]) == ("p3", "baseline") else r for r in rows]
    mean = means(rows)
    of_baseline, of_da = (mean[POOLED, "vanilla", arm] for arm in ("baseline", "DA"))
    test = next(t for t in all_tests(rows) if (t["domain"], t["metric"]) == (POOLED, "hd95"))
    assert of_da["hd95"] - of_baseline["hd95"] == pytest.approx(test["mean_difference"])
    assert (of_baseline["missed"], of_baseline["structures"], of_da["missed"]) == (1, 14, 0)
    assert of_baseline["hd95"] > 55 and of_baseline["hd95_found"] == pytest.approx(20 + 1.2 * (91 - 3) / 13)
    bound = mean[POOLED, "vanilla", "upper bound"]["hd95"]
    share = gap_closed(mean, POOLED, "vanilla", "DA", "hd95")
    assert share == pytest.approx(-test["mean_difference"] / (of_baseline["hd95"] - bound))
    unbounded = means([r for r in rows if r["arm"] != "upper bound"])
    assert gap_closed(unbounded, POOLED, "vanilla", "DA", "hd95") is None


def test_the_direction_is_that_of_the_rank_sums():
    """13 of 52 patients gain 5 mm and none loses any: the median of all pairwise means is 0."""
    hd95 = {"baseline": lambda i: 20.0 + i / 10, "DA": lambda i: 20.0 + i / 10 - 5 * (i < 13)}
    rows = [row(f"p{i}", arm, of(i)) for i in range(52) for arm, of in hd95.items()]
    tests = {metric: compare(rows, "Vendor=B", "vanilla", "DA", metric) for metric in ("hd95", "dice")}
    assert all(t["hodges_lehmann"] == pytest.approx(0) and t["wilcoxon_p"] < 0.001 for t in tests.values())
    assert all(outcome(t, t["wilcoxon_p"]) == "better" for t in tests.values())
    other_way = compare(rows, "Vendor=B", "vanilla", "baseline", "hd95", against="DA")
    assert outcome(other_way, other_way["wilcoxon_p"]) == "worse"


def test_what_is_compared_is_labelled_by_every_domain():
    rows = [row("p", "baseline", 9.0), row("p", "baseline", 9.0, structure="RV"), row("q", "baseline", 9.0, domain="A")]
    assert distinct(rows, "structure") == ["LV", "RV"] and distinct(comparable(rows), "structure") == ["LV"]


def test_holm_runs_over_the_declared_family():
    arms = [a.name for a in ARMS if a.name in ("baseline", "DA", "DG", "matched")]
    hd95 = lambda i, j: 10.0 + i + (i % 3) * j + 0.1 * i * i * j
    rows = [row(f"p{i}", arm, hd95(i, j), domain=domain)
            for domain in ("Vendor=B", "Vendor=C") for i in range(10) for j, arm in enumerate(arms)]
    tests = all_tests(rows)
    assert sum(t["primary"] for t in tests) == 2 * 2 * 2 + 2 * 2
    assert all((t["welch_p_holm"] is not None) == bool(t["primary"]) for t in tests)
    primary = [t for t in tests if t["primary"]]
    assert all(t["n"] == 10 for t in primary)  # the same names in both domains: pooled, they are averaged
    for pooled in (False, True):                                  # each family is corrected for its own size alone
        family = [t for t in primary if (t["domain"] == POOLED) == pooled]
        smallest = min(t["wilcoxon_p"] for t in family)
        assert min(t["wilcoxon_p_holm"] for t in family) == pytest.approx(min(1, len(family) * smallest))


def test_a_small_p_value_keeps_its_digits_in_the_table(tmp_path):
    """Six decimals, as other numbers have, would make a p-value of 6e-9 a 0."""
    rows = [row(f"p{i}", arm, hd95 + i + i % 3) for i in range(40) for arm, hd95 in (("baseline", 20.0), ("DA", 9.0))]
    rows += [row(f"p{i}", "DA", 9.3 + i, structure="RV") for i in range(40)]
    tests = all_tests(rows)
    write_csv(tmp_path / "tests.csv", tests, tests[0])
    for test, line in zip(tests, read_csv(tmp_path / "tests.csv", tests[0])):
        assert 0 < test["wilcoxon_p"] < 1e-6
        assert all(float(line[name]) == pytest.approx(test[name], rel=1e-5) for name in ("wilcoxon_p", "welch_p"))
        assert line["mean_difference"] == f"{test['mean_difference']:.6f}".rstrip("0")


def test_every_metric_that_is_tested_has_an_outcome():
    """The table of tests asks it of ASSD too, of which no sentence speaks."""
    rows = []
    for i in range(12):
        rows += [row(f"p{i}", "baseline", 10.0 + i), row(f"p{i}", "DA", 10.0 + i + 0.01 * (-1) ** i)]
    for metric in TESTED_METRICS:
        assert outcome(compare(rows, "Vendor=B", "vanilla", "DA", metric), 0.5) == "equal"


A = [8.1, 12.4, 9.7, 15.2, 7.3, 22.8, 10.5, 11.9, 6.4, 13.6, 9.1, 18.7]
B = [7.2, 11.8, 9.9, 12.1, 6.0, 17.5, 10.1, 9.4, 6.6, 11.0, 8.3, 12.9]


def test_oracle():
    assert welch(A, B) == pytest.approx((1.1395291487, 18.9844337669, 0.2686569067), abs=1e-9)
    assert wilcoxon(A, B) == pytest.approx((75, 3, 0.00244140625), abs=1e-12)
    assert wilcoxon(B, A) == pytest.approx((3, 75, 0.00244140625), abs=1e-12)
    assert hodges_lehmann(A, B) == pytest.approx(1.675)
    assert bca_interval(np.subtract(A, B)) == pytest.approx((0.9916667, 3.2166667), abs=1e-6)
    assert holm([0.003, 0.012, 0.030, 0.041, 0.20, 0.0008]) == pytest.approx([0.015, 0.048, 0.09, 0.09, 0.2, 0.0048])


def test_degenerate_input():
    assert bca_interval([1.5, 1.5, 1.5]) == (1.5, 1.5) and np.isnan(bca_interval([1.0])).all()
    assert wilcoxon([1, 2], [1, 2]) == (0.0, 0.0, 1.0)
    assert np.isnan(welch([1], [2])).all()
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
