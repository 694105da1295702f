"""Scripts as a careless user meets them: faults end in one line and the right exit code."""
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cmr.studies import find
from fault_place import edited, flip_bit, mask_of, rewrite, truncate
from fault_table import FAULTS
from helpers import ROOT, one_line, process, script, synthesis


def small_copy(phantom, tmp_path):
    """Hard copies of the phantom, to break, and the image of a training study of the source."""
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy, ignore=shutil.ignore_patterns("work"))
    return copy, Path(next(r.image_path for r in find(copy) if r.vendor == "A" and r.split == "Training"))


# What is done to (dataset, image), and the words of the answer.
DAMAGES = {
    "truncated image": (lambda data, image: truncate(image), "truncated or damaged"),
    "flipped bit": (lambda data, image: flip_bit(image), "truncated or damaged"),
    "shapes differ": (lambda data, image: rewrite(mask_of(image), lambda a: a[:-3]), "shape"),
    "label value 7": (lambda data, image: rewrite(mask_of(image), lambda a: np.where(a == 1, 7, a)),
                      "label values [7]"),
    "CSV without ED": (lambda data, image: edited(next(data.rglob("*.csv")), lambda t: t.replace(",ED,", ",E.D.,")),
                       "column ED missing")}


@pytest.mark.parametrize("fault", DAMAGES)
def test_bad_data_stops_the_check_and_the_training_in_one_line(phantom, tmp_path, fault):
    damage, words = DAMAGES[fault]
    data, image = small_copy(phantom, tmp_path)
    damage(data, image)
    shared = ["--preset", "tiny", "--data", data]
    for command in (["-m", "cmr.check_dataset", *shared, "--out", tmp_path / "out"],
                    ["train_unet.py", *shared, "--out", tmp_path / "run", "--work", tmp_path / "work"]):
        got, _, errors = script(*command)
        assert got == 3 and one_line(errors) and words in errors, errors
    assert not list(tmp_path.rglob("final.pt")) and not list(tmp_path.rglob("*.tmp.*"))


def test_a_fault_ends_the_process_with_its_code_on_any_terminal(tmp_path):
    """A folder with letters that neither the locale nor the terminal knows."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    got, printed, errors = process("-m", "cmr.check_dataset", "--data", tmp_path / "Müller", **ascii_alone)
    assert got == 3 and one_line(errors) and "no such folder" in errors and "preset demo" in printed


def test_bad_arguments_and_folders(phantom, run, tmp_path):
    on_phantom = ["--preset", "tiny", "--data", phantom, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    check = ["-m", "cmr.check_dataset", "--data"]
    unet, nnunet = ["train_unet.py", *on_phantom], ["train_unet.py", *on_phantom, "--network", "nnunet2d"]
    evaluate = ["evaluate.py", *on_phantom, "--run", run, "--target", "Vendor=B,D"]
    da = ["-m", "cmr.synthesize", *synthesis(phantom, run, "--use", "da", "--out", tmp_path / "da")]
    for code, words, arguments in (
            (3, "no such folder", [*check, tmp_path / "absent"]),
            (2, "Vendor has A", [*check, phantom, "--source", "Vendor=Q"]),
            (2, "a target must be unseen", [*check, phantom, "--target", "Pathology=NOR", "--preset", "tiny"]),
            (2, "matches none", ["train_diffusion.py", *on_phantom, "--source", "Vendor=Q"]),
            (2, "unrecognized arguments: --stesp", ["train_unet.py", "--preset", "tiny", "--stesp", "3"]),
            (2, "use vanilla or nnunet2d or nnunet3d", [*unet, "--network", "resnet"]),
            (5, "choose another --out", [*unet, "--out", __file__ + "/run"]),
            (2, "lies in the dataset", [*unet, "--out", phantom / "run"]),
            (2, "whole epochs", [*nnunet, "--steps", "7"]),
            (2, "--shift '0,1': use numbers", ["-m", "cmr.synthesize", *synthesis(phantom, run, "--shift", "0,1")]),
            (2, "a target must be unseen", [*evaluate, "--segmenters", "vanilla-real", "--target", "Vendor=A,B"]),
            (2, "a target must be unseen", [*da, "--target", "Vendor=B,A"]),
            (2, "'b' stands there twice", [*da, "--target", "Vendor=B,b"]),
            (2, "vanilla-real is missing", [*evaluate, "--segmenters", "vanilla-synthetic"]),
            (2, "vanilla-Vendor-B belongs to no row", [*evaluate, "--segmenters", "vanilla-real,vanilla-Vendor-B"]),
            (4, "no such checkpoint", [*evaluate, "--run", tmp_path])):
        got, _, errors = script(*arguments)
        assert got == code and one_line(errors) and words in errors, (arguments, got, errors)


def test_the_page_of_faults_is_the_table_of_faults():
    page = (ROOT / "docs" / "faults.md").read_text()
    answers = [tuple(line.split(" | ", 3)) for line in re.findall(r"^\| (?!fault|\|)(.*) \|$", page, re.M)]
    assert [answer[:3] for answer in answers] == [(group, name, str(code)) for group, name, code, *_ in FAULTS]
    assert f"one of the {len(FAULTS)} is answered" in " ".join(page.split())
