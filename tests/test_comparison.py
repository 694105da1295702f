"""Comparing patients: failures, families."""
import pytest

from cmr.comparison import POOLED, all_tests, compare, patient_values
from cmr.experiment import ARMS


def row(subject, arm, hd95, status="ok", domain="Vendor=B", role="target"):
    dice = 0.9 - hd95 / 100 if status == "ok" else 0.0
    return {"domain": domain, "role": role, "subject": subject, "arm": arm, "network": "vanilla", "status": status,
            "dice": dice, "hd95": hd95, "assd": hd95 / 4, "diagonal_mm": 500.0}


def test_failures_are_counted_and_can_only_hurt():
    rows = []
    for i in range(12):
        rows += [row(f"p{i}", "baseline", 10.0 + i), row(f"p{i}", "DA", 10.0 + i - (2 + i % 3))]
    better = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert better["mean_difference"] == pytest.approx(-3) and better["n"] == 12 and better["n_missed_arm"] == 0
    assert better["wilcoxon_p"] < 0.001
    rows[1] = row("p0", "DA", float("inf"), "missed")
    worse = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert worse["n"] == 12 and worse["n_missed_arm"] == 1
    assert worse["mean_difference"] == pytest.approx((-3 * 12 + 2 + 490) / 12)
    assert worse["wilcoxon_p"] > better["wilcoxon_p"]
    assert patient_values([rows[1]], "hd95") == {} and patient_values([rows[1]], "hd95", 500.0) == {"p0": 500.0}
    assert patient_values([rows[1]], "dice") == {"p0": 0.0}


def test_holm_runs_over_the_declared_family():
    arms = [a.name for a in ARMS if a.name in ("baseline", "DA", "DG", "matched")]
    hd95 = lambda i, j: 10.0 + i + (i % 3) * j + 0.1 * i * i * j
    rows = [row(f"p{i}", arm, hd95(i, j), domain=domain)
            for domain in ("Vendor=B", "Vendor=C") for i in range(10) for j, arm in enumerate(arms)]
    tests = all_tests(rows)
    assert sum(t["primary"] for t in tests) == 2 * 2 * 2 + 2 * 2
    assert all(("welch_p_holm" in t) == bool(t["primary"]) for t in tests)
    primary = [t for t in tests if t["primary"]]
    assert all(t["n"] == 10 for t in primary)  # the same names in both domains: pooled, they are averaged
    for pooled in (False, True):                                  # each family is corrected for its own size alone
        family = [t for t in primary if (t["domain"] == POOLED) == pooled]
        smallest = min(t["wilcoxon_p"] for t in family)
        assert min(t["wilcoxon_p_holm"] for t in family) == pytest.approx(min(1, len(family) * smallest))
