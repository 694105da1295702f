"""The table over training seeds."""
import math

import pytest

from cmr.comparison import METRIC_COLUMNS
from cmr.errors import DataError
from cmr.files import write_csv
from cmr.seed_spread import main, seed_spread


def row(subject, arm, dice, role="target", domain="Vendor=B"):
    found = dice > 0
    hd95 = 10 - 10 * dice if found else math.inf
    return {"domain": domain, "role": role, "subject": subject, "phase": "ED", "network": "vanilla", "arm": arm,
            "structure": "LV", "status": "ok" if found else "missed", "dice": dice, "hd95": hd95, "assd": 1.0,
            "hd95_in_plane": 2.0, "diagonal_mm": 101.9}


def table(*rows):
    lines = seed_spread(rows)
    header, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    return [dict(zip(header, line)) | {"change of HD95": line[header.index("HD95 mm") + 1]} for line in body]


def test_spread_is_over_seeds_of_the_mean_over_patients():
    tables = [
        [row("p", "baseline", 0.6), row("q", "baseline", 0.8), row("p", "DA", 0.7 + s), row("q", "DA", 0.9 + s)]
        for s in (0.0, 0.02)
    ]
    found = table(*tables)
    assert [line["domain"] for line in found] == ["all targets", "all targets", "Vendor=B", "Vendor=B"]
    da = found[3]
    assert (da["row"], da["Dice"], da["HD95 mm"], da["change of HD95"]) == (
        "DA", "0.810 ± 0.014", "1.9 ± 0.1", "-1.1 ± 0.1")
    assert da["seeds in which HD95 is better"] == "2 of 2" and found[2]["seeds in which HD95 is better"] == "-"
    assert (found[2]["Dice"], found[2]["to the baseline"], found[2]["missed"]) == ("0.700 ± 0.000", "-", "0, 0 of 2")


def test_what_a_seed_missed_counts_and_stands_beside():
    found = table([row("p", "baseline", 0.6), row("p", "DA", 0.6)], [row("p", "baseline", 0.6), row("p", "DA", 0.0)])
    assert (found[1]["missed"], found[1]["HD95 mm"]) == ("0, 1 of 1", "53.0 ± 69.2")


def test_rows_of_some_seeds_are_left_out_and_other_test_volumes_refused(tmp_path, capsys):
    runs = {"a": [row("p", "baseline", 0.6), row("p", "DG", 0.7)], "b": [row("p", "baseline", 0.7)],
            "c": [row("q", "baseline", 0.7)]}
    for name, rows in runs.items():
        write_csv(tmp_path / name / "results" / "metrics.csv", rows, METRIC_COLUMNS)
    of = lambda *names: ["--runs", ",".join(str(tmp_path / name) for name in names), "--out", str(tmp_path / "t.md")]
    main(of("a", "b"))
    printed = capsys.readouterr().out
    assert "A missed structure counts as 102 mm" in printed and "| baseline |" in printed and "| DG |" not in printed
    with pytest.raises(DataError, match="c: tested on other volumes"):
        main(of("a", "c"))
