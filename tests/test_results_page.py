"""A page of results is what the runs' reports say."""
import shutil

import pytest

from cmr.errors import DataError
from cmr.results_page import Config, main, results_page


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
        results_page([tmp_path], Config(runs=str(tmp_path), out=str(tmp_path / "page.md")))
