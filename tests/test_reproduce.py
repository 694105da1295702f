"""What make is asked to do, for whatever is asked for: which stages, with which commands, and what is done again."""
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys

import pytest

import evaluate
import train_diffusion
import train_unet
from cmr import check_dataset, estimate, synthesize
from cmr.errors import UsageError
from cmr.experiment import SETS, TRAINING_SETS, price, segmenters, stages
from cmr.reproduce import PRESETS, Config, main, makefile, with_upper_bound_or_not
from helpers import ROOT, mms

# In the place of Python: makes the last file of a stage, and keeps the command.
INTERPRETER = """#!/bin/bash
command="$*"
while [ $# -gt 0 ]; do [ "$1" != --out ] || out=$2; shift; done
case ${out##*/} in check) file=check.json;; results) file=report.md;; d[ag]|shifted|references) file=manifest.csv;;
                   *) file=final.pt;; esac
mkdir -p "$out" && echo "$command" >> asked
[ ${out##*/} = check ] && [ -e "$out/$file" ] || touch "$out/$file"
"""
ALWAYS = ["--preset", "tiny", "--data", "data", "--target", "Vendor=B", "--python", "./python"]
TWO = ["--networks", "vanilla nnunet2d", "--trained", "real synthetic", "--controls", "", "--upper", "0"]
ALL_FOUR = "vanilla-real,vanilla-synthetic,nnunet2d-real,nnunet2d-synthetic"


def made(tmp_path, *settings):
    """{stage: its command} of what make asks Python for, with a dataset whose stages are made in no time."""
    (tmp_path / "python").write_text(INTERPRETER)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "asked").write_text("")
    command = [sys.executable, "-m", "cmr.reproduce", *ALWAYS, *settings]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    commands = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    return {os.path.basename(words[words.index("--out") + 1]): " ".join(words) for words in commands}


def test_a_report_is_of_exactly_what_is_asked_for(tmp_path):
    assert len(made(tmp_path, *TWO)) == 1 + 1 + 2 + 2 + 2 + 1
    assert made(tmp_path, *TWO) == {}
    for asked, names in ((["--networks", "vanilla"], "vanilla-real,vanilla-synthetic"),
                              (["--trained", "real"], "vanilla-real,nnunet2d-real"),
                              (["--pseudonyms"], ALL_FOUR)):
        again = made(tmp_path, *TWO, *asked)
        assert set(again) == {"check", "results"}                 # what is trained is not trained again
        assert f"--segmenters {names} " in again["results"] and f"--segmenters {names} " in again["check"]
        assert ("--pseudonyms" in again["results"]) == ("--pseudonyms" in asked)
        assert made(tmp_path, *TWO, *asked) == {}


def test_a_report_of_other_rows_than_its_folder_was_asked_for_is_made_again(tmp_path):
    """Two makes at a time: the first writes its report after the second, which a lock refused, has asked for others."""
    made(tmp_path, *TWO)
    rows = next(tmp_path.rglob("check/rows"))
    rows.write_text(rows.read_text().replace("with the dataset's identifiers", "with pseudonyms"))
    for path in (tmp_path / "runs").rglob("*"):                   # the report is as new as all else
        os.utime(path, (1e9, 1e9))
    assert set(made(tmp_path, *TWO, "--pseudonyms")) == {"check", "results"}
    assert made(tmp_path, *TWO, "--pseudonyms") == {}
    assert set(made(tmp_path, *TWO, "--pseudonyms", "--use-unlabeled-masks")) == {"check", "results"}


def test_names_that_are_long_and_an_interpreter_behind_a_blank():
    many = "Vendor=" + ",".join(f"a vendor of a very long name number {i}" for i in range(12))
    c = Config(data="data", target=many, upper="0", python="/my disk/.venv/bin/python")
    assert len(c.name) <= 150 and c.name != dataclasses.replace(c, target=many + "x").name
    assert all(stage.command.startswith("'/my disk/.venv/bin/python' ") for stage in stages(c) if stage.command)


def test_makes_that_begin_together_have_a_makefile_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    asked = []
    monkeypatch.setattr(os, "execvp", lambda make, words: asked.append(words[words.index("-f") + 1]))
    for seed in ("0", "1"):
        main([*ALWAYS, *TWO, "--seed", seed])
    assert all(f"--seed {seed} " in open(path).read() for seed, path in enumerate(asked))


@pytest.mark.parametrize("flags,words", [
    (["--runs", "R&D"], "--runs 'R&D': use a path of letters"), (["--runs", "a,b"], "use a path of letters"),
    (["--runs", "data/runs"], "--runs data/runs: lies in the dataset data"), (["--networks", ""], "--networks ''"),
    (["--controls", "nnunet2d-augmented"], "nnunet2d-augmented: an nnU-Net always augments"),
    (["--trained", "real,augmented"], "nnunet2d-augmented: an nnU-Net always augments")])
def test_what_no_stage_could_do_is_refused_before_the_first(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=words):
        main([*ALWAYS, *TWO, *flags])
    assert os.listdir(tmp_path) == ["data"]


def test_a_check_that_is_lost_is_made_again_and_once_alone(tmp_path):
    made(tmp_path, *TWO)
    lost, = tmp_path.rglob("check.json")
    lost.unlink()
    assert "check" in made(tmp_path, *TWO) and made(tmp_path, *TWO) == {}


@pytest.mark.parametrize("ends", ["exit 5", "kill -INT 0"])
def test_what_a_stage_has_written_is_kept_whatever_its_end(tmp_path, ends):
    """train_unet.py scores its validation studies after it has written final.pt; make would delete the file."""
    made(tmp_path, *TWO)
    (tmp_path / "python").write_text(INTERPRETER + f"[ $file != final.pt ] || {ends}\n")
    shutil.rmtree(tmp_path / "runs")
    command = [sys.executable, "-m", "cmr.reproduce", *ALWAYS, *TWO]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                   start_new_session=True)
    assert list(tmp_path.rglob("final.pt"))


def test_names_that_make_cannot_take_are_changed(tmp_path):
    c = Config(data="my data (old)", source="Pathology=Dilated LV", target="Pathology=NOR,HCM/x")
    assert c.name.endswith("-Pathology-Dilated_LV-to-Pathology-NOR+HCM_x") and c.name.startswith("my_data__old_-")


def planned(tmp_path, capsys, monkeypatch, *settings):
    """{file: whether it is done} as `--goal plan` prints it."""
    monkeypatch.chdir(tmp_path)
    main([*ALWAYS, *settings, "--goal", "plan"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("done ", "to do "))]
    return {words[-1]: words[0] == "done" for words in lines}


def test_the_plan_says_what_is_done_and_what_follows_from_what_is_not(tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    before = planned(tmp_path, capsys, monkeypatch, *TWO)
    made(tmp_path, *TWO)
    after = planned(tmp_path, capsys, monkeypatch, *TWO)
    assert before.keys() == after.keys() and not any(before.values()) and all(after.values())
    next(tmp_path.rglob("diffusion/final.pt")).unlink()
    to_do = [file for file, done in planned(tmp_path, capsys, monkeypatch, *TWO).items() if not done]
    assert to_do == ["diffusion/final.pt", "dg/manifest.csv", "da/manifest.csv",
                     "segmenter-nnunet2d-synthetic/final.pt", "segmenter-vanilla-synthetic/final.pt",
                     "results/report.md"]
    next(tmp_path.rglob("segmenter-vanilla-real/final.pt")).unlink()                 # which judges DG's pairs
    to_do = [file for file, done in planned(tmp_path, capsys, monkeypatch, *TWO).items() if not done]
    assert to_do[:4] == ["diffusion/final.pt", "segmenter-vanilla-real/final.pt", "dg/manifest.csv", "da/manifest.csv"]
    made(tmp_path, *TWO)
    next(tmp_path.rglob("segmenter-vanilla-real/final.pt")).unlink()
    assert not planned(tmp_path, capsys, monkeypatch, *TWO)["dg/manifest.csv"]
    asked = [*TWO, "--pseudonyms"]
    assert not planned(tmp_path, capsys, monkeypatch, *asked)["results/report.md"]


def test_several_seeds_are_runs_of_their_own_and_end_in_a_table_of_their_spread(tmp_path):
    commands = made(tmp_path, *TWO, "--seeds", "2", "--seed", "3")
    asked = (tmp_path / "asked").read_text()
    assert all(asked.count(f"--seed {seed} ") == 1 + 1 + 2 + 2 + 2 + 1 for seed in (3, 4))
    spread = commands["seeds.md"]
    assert "-m cmr.report --runs" in spread and "-seed3," in spread and "-seed4 " in spread


def test_a_dataset_that_was_changed_is_checked_again(tmp_path):
    made(tmp_path, *TWO)
    (tmp_path / "data" / "new").write_text("")
    assert set(made(tmp_path, *TWO)) == {"check"}                 # the answer is the same: nothing else is done again
    assert made(tmp_path, *TWO) == {}


def test_a_rehearsal_begins_anew_in_a_folder_of_its_own_that_clean_reaches(tmp_path):
    mine = [*TWO, "--runs", "mine"]
    result, runs = made(tmp_path, *mine), tmp_path / "mine"
    (runs / "notes.txt").write_text("the user's")
    rehearsed = [made(tmp_path, *mine, "--rehearse") for _ in range(2)]
    assert rehearsed[0] == rehearsed[1] and rehearsed[0].keys() == result.keys()
    assert all("/rehearsal-tiny/" in command and command not in result.values() for command in rehearsed[0].values())
    assert made(tmp_path, *mine) == {}
    run, = (path for path in (runs / "tiny").iterdir() if path.name.endswith("-seed0"))
    copy = run.with_name(f"{run.name}-backup") / "results" / "report.md"
    copy.parent.mkdir(parents=True)
    copy.write_text("the user's")
    killed = run / "segmenter-vanilla-both" / "config.json"       # before its first row of log.csv
    killed.parent.mkdir()
    killed.write_text("{}")
    subprocess.run(["make", "-f", ROOT / "Makefile", "clean", "RUNS=mine"], cwd=tmp_path, check=True)
    assert {path for path in runs.rglob("*") if path.is_file()} == {runs / "notes.txt", copy}
    # The user's own, called as ours are: no makefile of ours is beside it.
    names = ("work/notes.txt", "config.mk", "mri-seed0/results/a.svg", "a/b-seed0/dg/c")
    theirs = [runs / "mine" / name for name in names]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (runs / "mine" / "empty").mkdir()
    for folder in ("", "my runs", "mine"):
        done = subprocess.run(["make", "-f", ROOT / "Makefile", "clean", f"RUNS={folder}"], cwd=tmp_path,
                              capture_output=True, text=True)
        assert (done.returncode == 0) == (folder == "mine") and ("name a folder" in done.stderr) != (folder == "mine")
    assert all(path.exists() for path in [*theirs, runs / "mine" / "empty"])


def test_every_training_set_is_made_from_a_stage_that_is_there():
    for name, (images, _) in TRAINING_SETS.items():
        c = Config(data="data", target="Vendor=B", controls=f"vanilla-{name}", networks="vanilla")
        files = [stage.file for stage in stages(c)]
        for stage in stages(c):
            there = ["check/rows", *files[:files.index(stage.file)]]
            late = [file for file in stage.made_from if file not in there]
            assert not late, f"{stage.file} is made from {late}"
        assert f"segmenter-vanilla-{name}/final.pt" in files and (not images or f"{images}/manifest.csv" in files)
    c = Config(data="data", target="Vendor=B", controls="", references="Dataset=ACDC")
    commands = {stage.file: stage.command for stage in stages(c)}
    assert "--references Dataset=ACDC --strength none --shift 0" in commands["references/manifest.csv"]
    assert all("--references Dataset=ACDC" in commands[name] for name in ("dg/manifest.csv", "check/asked"))
    assert "segmenter-vanilla-references/final.pt" in commands    # the control comes with the references
    assert set(SETS) - {"dg"} == {"shifted", "references"} and "shifted/manifest.csv" not in commands
    with pytest.raises(UsageError, match="no training set is called bigger"):
        stages(Config(data="data", controls="vanilla-bigger"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_is_understood_by_its_script(preset):
    """With all that can be asked for: flags that a stage does not take would end a run that has begun."""
    asked = {**PRESETS[preset], "target": "Vendor=B", "references": "Vendor=C", "upper": "1", "pseudonyms": True,
             "use_unlabeled_masks": True, "rehearse": True, "trained": "real,synthetic,both"}
    c = Config(data="data", **asked)
    configs = {"cmr.check_dataset": check_dataset, "cmr.estimate": estimate, "cmr.synthesize": synthesize,
               "train_diffusion.py": train_diffusion, "train_unet.py": train_unet, "evaluate.py": evaluate}
    for command in [price(c), *(stage.command for stage in stages(c) if stage.command)]:
        words = shlex.split(command.partition(" && ")[0])
        script = words[2] if words[1] == "-m" else words[1]
        flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")} - {"preset"}
        known = {field.name for field in dataclasses.fields(configs[script].Config)}
        assert flags <= known, f"{script} does not know {flags - known}"


def test_controls_follow_the_networks():
    of = lambda **asked: [name for name in segmenters(Config(data="data", trained="real", upper="0", **asked))
                          if not name.endswith("-real")]
    assert of() == ["vanilla-augmented", "vanilla-shifted"]
    assert of(networks="nnunet2d nnunet3d") == ["nnunet2d-shifted"]                  # which augments by itself
    assert of(controls="all") == ["vanilla-augmented", "vanilla-shifted", "nnunet2d-shifted", "nnunet3d-shifted"]
    assert of(controls="nnunet2d-shuffled") == ["nnunet2d-shuffled"] and of(controls="") == []
    with pytest.raises(UsageError, match="--controls vanilla-shifted: vanilla is not among the networks nnunet2d"):
        of(networks="nnunet2d", controls="vanilla-shifted")


def test_a_long_training_waits_for_the_images_that_let_all_begin():
    """make starts what is ready as it walks along its list: one that was not ready when passed may begin last."""
    rules = dict(line.split(": ") for line in makefile([Config(data="data", target="Vendor=B")]).splitlines()
                 if "/final.pt: " in line)
    late = {file for file, needs in rules.items() if "dg/manifest.csv" in needs}
    early = {os.path.basename(os.path.dirname(file)) for file in set(rules) - late}
    assert early == {"diffusion", "segmenter-vanilla-real"} and len(late) == 7


@pytest.mark.parametrize("splits, upper", [({}, "1"), ({"B": "Testing"}, "0")])
def test_upper_bounds_are_the_default_where_every_target_has_studies_to_spare(tmp_path, capsys, splits, upper):
    codes = [f"{vendor}{n}C{n}D{n}" for vendor in "AB" for n in range(8)]
    mms(tmp_path, {code: {"Vendor": code[0], "folder": splits.get(code[0], "")} for code in codes})
    c = with_upper_bound_or_not(Config(data=str(tmp_path), target="Vendor=B"))
    assert c.upper == upper and ("no upper bound, as Vendor=B" in capsys.readouterr().out) == (upper == "0")
    (tmp_path / "phantom_params.json").write_text("{}")
    assert with_upper_bound_or_not(c.__class__(data=str(tmp_path))).upper == "0"
