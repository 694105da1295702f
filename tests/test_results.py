"""A page of results is what the runs' reports say; the table of their spread over training seeds."""
import math
import shutil

import pytest

from cmr.comparison import METRIC_COLUMNS
from cmr.errors import DataError, UsageError
from cmr.files import write_csv
from cmr.results import main


def test_a_page_is_copied_from_its_runs(run, tmp_path):
    for seed in (0, 1):
        shutil.copytree(run, tmp_path / f"run-seed{seed}", ignore=shutil.ignore_patterns("work"))
    report = (run / "results" / "report.md").read_text()
    out = tmp_path / "docs" / "results.md"
    runs = f"{tmp_path}/run-seed0,{tmp_path}/run-seed1"
    main(["--runs", runs, "--out", str(out), "--command", "make reproduce SEEDS=2"])
    page = out.read_text()
    verdict = [line for line in report.splitlines() if line.startswith("- **")]
    tables = [line for line in report.split("## All unseen targets")[1].split("\n## ")[0].splitlines() if "|" in line]
    assert len(verdict) == 5 and all(page.count(line) >= 2 for line in [*verdict, *tables])
    assert "## Seed 1" in page and "Made by `make reproduce SEEDS=2` at commit" in page and "## Spread over" in page
    assert "](results/median_Vendor-D.svg)" in page and (tmp_path / "docs" / "results" / "median_Vendor-D.svg").exists()
    main(["--runs", runs, "--out", str(tmp_path / "plain" / "results.md"), "--no-figures"])
    plain = (tmp_path / "plain" / "results.md").read_text()
    assert "![" not in plain and not (tmp_path / "plain" / "results").exists() and all(line in plain for line in tables)
    assert "| segmenter-nnunet3d-real | 8 | " in page


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="give a finished run"):
        main(["--runs", str(tmp_path), "--out", str(tmp_path / "page.md")])


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
    main(["--spread", "--runs", ",".join(map(str, runs)), "--out", str(tmp_path / "spread.md")])
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
