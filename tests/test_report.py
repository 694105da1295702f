"""The report of rows that ran for some networks only, with structures that were missed; the spread over seeds."""
import csv
import math
import re
import shutil

import numpy as np
import pytest

from cmr.comparison import DISTANCES, METRIC_COLUMNS, penalised
from cmr.errors import DataError, UsageError
from cmr.files import write_csv
from cmr.pictures import Example
from cmr.report import _ledger, _structures, draw_examples, main, write_report

NO_NUMBERS = ("domain", "role", "subject", "phase", "vendor", "pathology", "structure", "network", "arm", "trained_on",
              "test_input", "status")


def rows_of(run):
    """Rows of the short experiment's metrics.csv, as evaluate.py has measured them."""
    with open(run / "results" / "metrics.csv") as file:
        return [{name: cell if name in NO_NUMBERS else float(cell or "nan") for name, cell in row.items()}
                for row in csv.DictReader(file)]


def reported(run, out, rows):
    """The text of report.md, without the numbers' sake: there are no pictures of predictions."""
    image = np.zeros((2, 16, 16), np.float32)
    cases = {(row["domain"], f"{row['subject']}_{row['phase']}") for row in rows}
    examples = {}
    for domain, case in sorted(cases):
        examples.setdefault(domain, []).append(Example(case, image, image, np.ones((2, 16, 16), np.uint8), {}))
    write_report(out, rows, examples, "Vendor=A", run, {"seed": 0}, [], [])
    return (out / "report.md").read_text()


def tables_of(report):
    """The header and the lines of each table."""
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", report, re.M)]


@pytest.fixture
def uneven(run):
    """Two networks, DG and an upper bound for the first alone; it has missed every RV of vendor B."""
    kept = [row for row in rows_of(run) if row["network"] == "vanilla" or
            row["network"] == "nnunet2d" and row["trained_on"] == "real"]
    for row in kept:
        if (row["domain"], row["structure"], row["arm"]) == ("Vendor=B", "RV", "baseline"):
            row.update(status="missed", dice=0.0, nsd=0.0, hd95_in_plane=math.nan,
                       **dict.fromkeys(("hd", "hd95", "hd95_pooled", "assd", "masd"), math.inf))
    return kept


def test_rows_of_some_networks_are_reported_without_a_hole(run, uneven, tmp_path):
    report = reported(run, tmp_path, uneven)
    gap = "These levels do not give the gap of nnunet2d, as domains differ in difficulty; an upper bound does (UPPER=1"
    assert gap in report
    assert "| all targets | nnunet2d | DA |" in report and "| nnunet2d | DG |" not in report
    assert not re.search(r"\b(nan|inf)\b", report)


def test_every_table_of_distances_counts_what_was_missed(run, uneven, tmp_path):
    of_distances = [table for table in tables_of(reported(run, tmp_path, uneven))
                    if re.search(r"HD95|ASSD", table[0] + table[-1]) and "regret" not in table[0]]
    assert len(of_distances) >= 2 + 2 * 3 + 1 and all("missed" in table[0] for table in of_distances)


def test_no_share_of_a_gap_without_an_upper_bound(run, uneven, tmp_path):
    unbounded = [row for row in uneven if row["arm"] != "upper bound"]
    report = reported(run, tmp_path, unbounded)
    assert "gap closed" not in report and "No share of a gap is given" in report
    assert "an upper bound does (UPPER=1, where" in report


def test_a_heart_outside_the_field_of_view_is_drawn_and_said(tmp_path):
    """Its structures are missed, so that it is the worst case; there is nothing to draw contours of."""
    measured = {"p": {}, "q": {}, "r": {"status": "missed", "hd95": math.inf}}
    row = {"domain": "Vendor=A", "network": "vanilla", "arm": "baseline", "phase": "ED", "status": "ok",
           "diagonal_mm": 500.0, **dict.fromkeys(DISTANCES, 10.0)}
    rows = penalised([{**row, "subject": subject, **of} for subject, of in measured.items()])
    image, heart = np.zeros((4, 16, 16), np.float32), np.zeros((4, 16, 16), np.uint8)
    heart[1:3, 4:8, 4:8] = 1
    truths = {"p": heart, "q": heart, "r": 0 * heart, "not measured": heart}
    examples = [Example(f"{subject}_ED", image, image, truth, {}) for subject, truth in truths.items()]
    text = draw_examples(tmp_path, rows, {"Vendor=A": examples})
    assert "median case by the baseline's HD95 (q_ED, 10.0 mm)" in text
    outside = "r_ED, 500.0 mm; the heart lies outside the working field of view"
    assert f"worst case by the baseline's HD95 ({outside})" in text
    assert {path.name for path in tmp_path.iterdir()} == {"median_Vendor-A.svg", "worst_Vendor-A.svg"}
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_a_structure_that_is_not_measured_may_be_one_that_the_source_alone_does_not_label():
    rows = [{"structure": name} for name in ("LV", "MYO", "RV")]
    assert _structures(rows, rows) == "LV, MYO, RV"
    assert _structures(rows, rows[:2]) == "LV, MYO, RV; averaged are LV, MYO, which every domain labels"
    assert _structures(rows[:2], rows[:2]) == (
        "LV, MYO (not every network was trained on the others, or no test volume labels them)")


def row(subject, arm, dice):
    found = dice > 0
    return {"domain": "Vendor=B", "role": "target", "subject": subject, "phase": "ED", "network": "vanilla", "arm": arm,
            "structure": "LV", "status": "ok" if found else "missed", "dice": dice,
            "hd95": 10 - 10 * dice if found else math.inf, "assd": 1.0, "hd95_in_plane": 2.0, "diagonal_mm": 101.9}


def spread_of(tmp_path, *tables):
    """What is written of runs with these rows, and the lines of its table."""
    runs = [tmp_path / f"run{seed}" for seed in range(len(tables))]
    for run, rows in zip(runs, tables):
        write_csv(run / "results" / "metrics.csv", rows, METRIC_COLUMNS)
    main(["--runs", ",".join(map(str, runs)), "--out", str(tmp_path / "spread.md")])
    text = (tmp_path / "spread.md").read_text()
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    change = header.index("HD95 mm") + 1
    return text, [dict(zip(header, line)) | {"change of HD95": line[change]} for line in lines]


def test_spread_is_over_seeds_of_the_mean_over_patients(tmp_path):
    tables = [
        [row("p", "baseline", 0.6), row("q", "baseline", 0.8), row("p", "DA", 0.7 + s), row("q", "DA", 0.9 + s)]
        for s in (0.0, 0.02)
    ]
    text, found = spread_of(tmp_path, *tables)
    assert "A missed structure counts as 102 mm" in text
    assert [line["domain"] for line in found] == ["all targets", "all targets", "Vendor=B", "Vendor=B"]
    da = found[3]
    assert (da["row"], da["Dice"], da["HD95 mm"], da["change of HD95"]) == (
        "DA", "0.810 ± 0.014", "1.9 ± 0.1", "-1.1 ± 0.1")
    assert da["seeds in which HD95 is better"] == "2 of 2" and found[2]["seeds in which HD95 is better"] == "-"
    assert (found[2]["Dice"], found[2]["to the baseline"], found[2]["missed"]) == ("0.700 ± 0.000", "-", "0, 0 of 2")


def test_what_a_seed_missed_counts_and_stands_beside(tmp_path):
    first, second = ([row("p", "baseline", 0.6), row("p", "DA", dice)] for dice in (0.6, 0.0))
    _, found = spread_of(tmp_path, first, second)
    assert (found[1]["missed"], found[1]["HD95 mm"]) == ("0, 1 of 1", "53.0 ± 69.2")


def test_rows_of_some_seeds_are_left_out_and_other_test_volumes_or_one_seed_refused(tmp_path):
    first, second = [row("p", "baseline", 0.6), row("p", "DG", 0.7)], [row("p", "baseline", 0.7)]
    assert {line["row"] for line in spread_of(tmp_path, first, second)[1]} == {"baseline"}
    with pytest.raises(DataError, match="run1: tested on other volumes"):
        spread_of(tmp_path, first, [row("q", "baseline", 0.7)])
    with pytest.raises(UsageError, match="give at least two"):
        spread_of(tmp_path, first)


def test_one_run_is_no_spread_and_a_table_saved_by_a_spreadsheet_is_named(run, tmp_path):
    with pytest.raises(UsageError, match="give at least two, one per seed"):
        main(["--runs", f"{run},{run}", "--out", str(tmp_path / "spread.md")])
    shutil.copytree(run / "results", tmp_path / "b" / "results")
    path = tmp_path / "b" / "results" / "metrics.csv"
    path.write_text(path.read_text().replace(",0.", ",x0."))
    with pytest.raises(DataError, match="metrics.csv: could not convert .* take the file as evaluate.py wrote it"):
        main(["--runs", f"{run},{tmp_path / 'b'}", "--out", str(tmp_path / "spread.md")])


@pytest.mark.parametrize("domain,named", [("Vendor=A", False), ("Dataset=ACDC", True)])
def test_a_third_domain_that_dg_has_seen_is_named(tmp_path, domain, named):
    (tmp_path / "dg").mkdir()
    write_csv(tmp_path / "dg" / "manifest.csv", [{"domain": domain}], ("domain",), sealed=True)
    text = _ledger([{"arm": "baseline"}, {"arm": "DG"}], "Vendor=A", tmp_path)
    assert ("references are the labelled images of Dataset=ACDC" in text) == named
