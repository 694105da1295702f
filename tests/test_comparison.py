"""Comparing patients: failures, families."""
import pytest

from cmr.comparison import POOLED, all_tests, compare, patient_values
from cmr.experiment import ARMS


def row(subject, arm, hd95, status="ok", domain="Vendor=B", role="target"):
    return {"domain": domain, "role": role, "subject": subject, "arm": arm, "network": "vanilla", "status": status, "dice": 0.9 - hd95 / 100 if status == "ok" else 0.0,
            "hd95": hd95, "assd": hd95 / 4, "diagonal_mm": 500.0}


def test_failures_are_counted_and_can_only_hurt():
    rows = [row(f"p{i}", arm, 10.0 + i - (2 + i % 3 if arm == "DA" else 0)) for i in range(12) for arm in ("baseline", "DA")]
    better = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert better["mean_difference"] == pytest.approx(-3) and better["n"] == 12 and better["n_missed_arm"] == 0 and better["wilcoxon_p"] < 0.001
    rows[1] = row("p0", "DA", float("inf"), "missed")
    worse = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert worse["n"] == 12 and worse["n_missed_arm"] == 1 and worse["mean_difference"] == pytest.approx((-3 * 12 + 2 + 490) / 12) and worse["wilcoxon_p"] > better["wilcoxon_p"]
    assert patient_values([rows[1]], "hd95") == {} and patient_values([rows[1]], "hd95", 500.0) == {"p0": 500.0} and patient_values([rows[1]], "dice") == {"p0": 0.0}


def test_holm_runs_over_the_declared_family():
    rows = [row(f"p{i}", a.name, 10.0 + i + (i % 3) * j + 0.1 * i * i * j, domain=d, role="target") for d in ("Vendor=B", "Vendor=C") for i in range(10) for j, a in enumerate(a for a in ARMS if a.name in ("baseline", "DA", "DG", "matched"))]
    tests = all_tests(rows)
    assert sum(t["primary"] for t in tests) == 2 * 2 * 2 + 2 * 2 and all(("welch_p_holm" in t) == bool(t["primary"]) for t in tests)
    by_target, pooled = ([t for t in tests if t["primary"] and (t["domain"] == POOLED) == together] for together in (False, True))
    assert all(t["n"] == 10 for t in by_target) and all(t["n"] == 10 for t in pooled)                  # the same patients' names in both domains here: averaged
    for family in (by_target, pooled):                                                                 # each corrected for its own size alone
        assert min(t["wilcoxon_p_holm"] for t in family) == pytest.approx(min(1, len(family) * min(t["wilcoxon_p"] for t in family)))
