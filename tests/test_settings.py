"""Settings, presets and flags."""
import dataclasses
import shlex

import pytest

import train_diffusion
from cmr.errors import UsageError
from cmr.settings import DataConfig, opt, parse
from helpers import one_line, script


@dataclasses.dataclass(frozen=True)
class Small:
    steps: int = opt(3, "h")
    fast: bool = opt(False, "h")


def test_command_line():
    presets = {"demo": {}, "tiny": {"steps": 1}}
    assert parse(Small, presets, ["--preset", "tiny"], "") == Small(1)
    assert parse(Small, presets, ["--preset", "tiny", "--steps", "7", "--fast"], "") == Small(7, True)
    with pytest.raises(UsageError, match="unrecognized arguments: --stepz 3"):
        parse(Small, presets, ["--stepz", "3"], "")
    with pytest.raises(UsageError, match="invalid int"):
        parse(Small, presets, ["--steps", "many"], "")


def test_blanks_beside_the_commas_between_datasets_are_no_part_of_a_folder(tmp_path):
    """So that the second dataset is written into no more than the first."""
    first, second = tmp_path / "first one", tmp_path / "second"
    assert parse(DataConfig, {"demo": {}}, ["--data", f" {first} , {second}"], "").data == f"{first},{second}"
    got, _, errors = script("train_unet.py", "--data", f"{first}, {second}", "--out", second / "out")
    assert got == 2 and one_line(errors) and f"lies in the dataset {second}" in errors and not second.exists()


ON = ["--preset", "tiny", "--data", "nowhere"]
REFUSED = {
    "train_diffusion.py": ("--steps 0", "--lr 0", "--lr nan", "--lr inf", "--ema 2", "--ema -0.1", "--spacing-mm -2",
                           "--spacing-mm 5", "--head 25", "--log-every 0", "--save-minutes -1", "--sample-every 0",
                           "--size 63",
                           "--size 8", "--schedule foo", "--seed -1",
                           "--T 1", "--batch 0", "--warmup 0", "--multipliers 1,x", "--multipliers 0",
                           "--multipliers ''", "--attention-at 7", "--base 9", "--T 5", "--groups 5",
                           "--patch 0", "--data ''"),
    "train_unet.py": ("--steps 0", "--lr 0", "--features 0", "--levels 1", "--size 63", "--batch 0",
                      "--memory-gb 0", "--train-on reel", "--epoch-steps 0", "--validation-batches 0",
                      "--network resnet", "--device mps", "--device xpu", "--device meta", "--device cuda:x",
                      "--device cpu:1", "--device ''"),
    "evaluate.py": ("--processes -1", "--run ''"),
    "-m cmr.synthesize": ("--shift -1", "--shift a", "--use dx", "--samples -2", "--diffusion ''"),
    "-m cmr.phantom": ("--counts some", "--frames 1", "--processes 0", "--seed -1",
                        "--seed 100000000000000000000")}


@pytest.mark.parametrize("name,flags", [(name, flags) for name, some in REFUSED.items() for flags in some])
def test_values_that_cannot_be_meant_are_refused_before_any_data_is_read(name, flags, tmp_path):
    flag, value = shlex.split(flags)
    shared = {"-m cmr.phantom": [], "evaluate.py": [*ON, "--run", "nowhere"],
              "-m cmr.synthesize": [*ON, "--diffusion", "nowhere", "--segmenter", "nowhere"]}.get(name, ON)
    got, _, errors = script(*name.split(), *shared, "--out", tmp_path / "out", flag, value)
    assert got == 2 and one_line(errors) and flag in errors, errors
    assert not (tmp_path / "out").exists()


def test_help_says_what_is_allowed(capsys):
    with pytest.raises(SystemExit):
        train_diffusion.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "optimiser steps (1 or more; default: 3500)" in shown and "(cosine or linear; default: 'cosine')" in shown
    assert "pixels (16 to 1024; default: 64)" in shown


def test_networks_with_every_row_are_known_ones(tmp_path):
    for script_, more in (("evaluate.py", ["--run", "r"]), ("-m cmr.reproduce", []), ("-m cmr.estimate", [])):
        code, _, errors = script(*script_.split(), "--data", "d", *more, "--every-row-of", "vanila")
        assert code == 2 and "--every-row-of 'vanila': use some of vanilla, nnunet2d, nnunet3d" in errors
