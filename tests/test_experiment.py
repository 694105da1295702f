"""Which rows the given settings allow, and which stages make asks for."""
import os
import subprocess

import pytest

from cmr.errors import UsageError
from cmr.experiment import ARMS, rows_to_measure, training_set
from cmr.records import Domain
from helpers import ROOT

ALONE = ("baseline", "DA", "DA, averaged", "DA, guided", "DA, guided, averaged")        # of a network on real images
DOMAINS = [Domain.parse(text) for text in ("Vendor=A", "Vendor=B", "Pathology=HCM,DCM")]


def test_rows_follow_from_the_segmenters():
    names = lambda *segmenters, inputs=(): [(n, arm.name) for n, arm in rows_to_measure(segmenters, DOMAINS, inputs)]
    assert names(("a", "real")) == [("a", name) for name in ALONE]
    assert names(("a", "real"), ("a", "synthetic"), inputs=["a"]) == [
        ("a", name) for name in (*ALONE, "matched", "FDA", "DG", "DG + DA")]
    assert names(("b", "real"), ("a", "real"), ("a", "shifted")) == [
        *(("b", name) for name in ALONE), *(("a", name) for name in ALONE), ("a", "shifted")]
    bounds = [("a", "real"), ("a", "Vendor-B"), ("a", "Pathology-HCM+DCM")]
    assert names(*bounds)[-1] == ("a", "upper bound")
    with pytest.raises(UsageError, match="a-Vendor-B belongs to no row"):
        names(*bounds[:2])                                        # a bound needs a network of every target
    with pytest.raises(UsageError, match="a-real is missing"):
        names(("a", "synthetic"))


def test_the_upper_bound_on_the_source_is_the_baseline():
    bound = next(arm for arm in ARMS if arm.name == "upper bound")
    assert [training_set(bound, domain, DOMAINS[0]) for domain in DOMAINS] == ["real", "Vendor-B", "Pathology-HCM+DCM"]
    assert len({arm.name for arm in ARMS}) == len({arm.key for arm in ARMS}) == len(ARMS)


# In the place of Python: makes the last file of a stage, and keeps the command.
INTERPRETER = """#!/bin/bash
command="$*"
while [ $# -gt 0 ]; do [ "$1" != --out ] || out=$2; shift; done
case ${out##*/} in check) file=check.json;; results) file=report.md;; d[ago]*|shifted) file=manifest.csv;;
                   *) file=final.pt;; esac
mkdir -p "$out" && echo "$command" >> asked
[ ${out##*/} = check ] && [ -e "$out/$file" ] || touch "$out/$file"
"""


def made(tmp_path, goal, *settings):
    """{stage: its command} of what make asks Python for, with a dataset whose stages are made in no time."""
    (tmp_path / "python").write_text(INTERPRETER)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "asked").write_text("")
    always = ["PRESET=tiny", "DATA=data", "TARGET=Vendor=B", "CONTROLS=", "PYTHON=./python"]
    subprocess.run(["make", goal, *always, *settings], cwd=tmp_path, check=True, capture_output=True)
    commands = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    return {os.path.basename(words[words.index("--out") + 1]): " ".join(words) for words in commands}


TWO = ["NETWORKS=vanilla nnunet2d", "TRAINED=real synthetic"]
ALL_FOUR = "vanilla-real,vanilla-synthetic,nnunet2d-real,nnunet2d-synthetic"


def test_a_report_is_of_exactly_what_is_asked_for(tmp_path):
    assert len(made(tmp_path, "report", *TWO)) == 1 + 1 + 2 + 2 + 2 + 1
    assert made(tmp_path, "report", *TWO) == {}
    for asked, segmenters in ((["NETWORKS=vanilla", TWO[1]], "vanilla-real,vanilla-synthetic"),
                              ([TWO[0], "TRAINED=real"], "vanilla-real,nnunet2d-real"),
                              ([*TWO, "PSEUDONYMS=1"], ALL_FOUR)):
        again = made(tmp_path, "report", *asked)
        assert set(again) == {"check", "results"}                 # what is trained is not trained again
        assert f"--segmenters {segmenters} " in again["results"] and f"--segmenters {segmenters} " in again["check"]
        assert ("--pseudonyms" in again["results"]) == ("PSEUDONYMS=1" in asked)
        assert made(tmp_path, "report", *asked) == {}


def test_every_dose_is_a_set_of_its_own_in_whatever_order(tmp_path):
    vanilla = ["NETWORKS=vanilla", "TRAINED=real"]
    first = made(tmp_path, "report", *vanilla, "DOSES=2 1")
    again = made(tmp_path, "report", *vanilla, "DOSES=4 2 1")
    for n, commands in ((1, first), (2, first), (4, again)):
        assert f"--samples {n} " in commands[f"dose{n}"] + " "
        assert commands[f"segmenter-vanilla-dose{n}"].endswith(f"/dose{n}")
    assert set(again) == {"check", "dose4", "segmenter-vanilla-dose4", "results"}


def test_a_rehearsal_begins_anew_in_a_folder_of_its_own_that_clean_reaches(tmp_path):
    result, runs = made(tmp_path, "reproduce", *TWO, "RUNS=mine"), tmp_path / "mine"
    (runs / "notes.txt").write_text("the user's")
    rehearsed = [made(tmp_path, "rehearse", *TWO, "RUNS=mine") for _ in range(2)]
    assert rehearsed[0] == rehearsed[1] and rehearsed[0].keys() == result.keys()
    assert all("/rehearsal-tiny/" in command and command not in result.values() for command in rehearsed[0].values())
    assert made(tmp_path, "reproduce", *TWO, "RUNS=mine") == {}
    made(tmp_path, "clean", "RUNS=mine")
    left = [path.name for path in runs.rglob("*")]
    assert "notes.txt" in left and not {"final.pt", "manifest.csv", "report.md", "check.json"} & set(left)
