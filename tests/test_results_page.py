"""A page of results is what the runs' reports say, with the curves of their losses."""
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from cmr.errors import DataError
from results_page import curves, main

NAME = "{http://www.w3.org/2000/svg}"


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


def test_curves_reach_from_their_first_value_to_their_last():
    picture = ElementTree.fromstring(curves({"a": {"x": [3.0, 2.0, 1.0], "y": [1.0, 1.0]}, "b": {"z": [5.0, 7.0]}}))
    frames = [[float(frame.get(side)) for side in ("x", "y", "width", "height")]
              for frame in picture.iter(NAME + "rect") if frame.get("x")]
    lines = [[tuple(map(float, point.split(","))) for point in line.get("points").split()]
             for line in picture.iter(NAME + "polyline")]
    for (left, top, width, height), line in ((frames[0], lines[0]), (frames[1], lines[2])):
        assert line[0][0] == left and line[-1][0] == left + width
        assert {round(y) for _, y in (line[0], line[-1])} == {top, top + height}
    assert lines[0][1] == (frames[0][0] + 120, frames[0][1] + 85) and lines[0][0][1] < lines[0][2][1]
    words = {text.text for text in picture.iter(NAME + "text")}
    assert {"a", "b", "x", "y", "z", "3", "1", "7", "5"} <= words
