"""Scripts as a careless user meets them: faults end in one line and the right exit code."""
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmr.studies import find
from helpers import one_line, script


def small_copy(phantom, tmp_path):
    """Hard copies of the phantom, to break."""
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy, ignore=shutil.ignore_patterns("work"))
    return copy, Path(next(r.image_path for r in find(copy) if r.vendor == "A" and r.split == "Training"))


def rewrite(path, change):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine), path)


def truncate(image):
    image.write_bytes(image.read_bytes()[:-2000])


def flip_bit(image):
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 4
    image.write_bytes(data)


FAULTS = {
    "truncated image": (lambda d, i: truncate(i), 3, "truncated or damaged"),
    "flipped bit": (lambda d, i: flip_bit(i), 3, "truncated or damaged"),
    "shapes differ": (lambda d, i: rewrite(i.with_name(i.name.replace("_sa", "_sa_gt")), lambda a: a[:-3]), 3, "shape"),
    "label value 7": (lambda d, i: rewrite(i.with_name(i.name.replace("_sa", "_sa_gt")), lambda a: np.where(a == 1, 7, a)), 3, "label values [7]"),
    "CSV without ED": (lambda d, i: (lambda t: t.write_text(t.read_text().replace(",ED,", ",E.D.,")))(next(d.rglob("*.csv"))), 3, "column ED missing")}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_stops_the_check_and_the_training_in_one_line(phantom, tmp_path, fault):
    damage, code, words = FAULTS[fault]
    data, image = small_copy(phantom, tmp_path)
    damage(data, image)
    for command in (["-m", "cmr.check_dataset", data, "--preset", "tiny", "--out", tmp_path / "out"],
                    ["train_unet.py", "--preset", "tiny", "--data", data, "--out", tmp_path / "run", "--work", tmp_path / "work"]):
        got, _, errors = script(*command)
        assert got == code and one_line(errors) and words in errors, errors
    assert not list(tmp_path.rglob("final.pt")) and not list(tmp_path.rglob("*.tmp.*"))


def test_bad_arguments_and_folders(phantom, run, tmp_path):
    for arguments, code, words in (
            (["-m", "cmr.check_dataset", tmp_path / "absent"], 3, "no such folder"),
            (["-m", "cmr.check_dataset", phantom, "--source", "Vendor=Q"], 2, "Vendor has A"),
            (["train_diffusion.py", "--preset", "tiny", "--data", phantom, "--source", "Vendor=Q", "--out", tmp_path / "r", "--work", tmp_path / "w"], 2, "matches none"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--dose", "2"], 2, "--dose 2: counts the images in --synthetic"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--network", "resnet"], 2, "use vanilla or nnunet2d or nnunet3d"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--work", tmp_path / "w", "--out", tmp_path / "r", "--network", "nnunet2d", "--steps", "7"], 2, "whole epochs"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--work", tmp_path / "w", "--out", tmp_path / "r", "--network", "nnunet2d",
              "--plan", run / "segmenter-nnunet3d-real" / "plan.json"], 2, "a 3D plan"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--out", phantom / "README.txt" / "run"], 5, "choose another --out"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--run", run, "--segmenters", "vanilla-synthetic", "--out", tmp_path / "o"], 2, "vanilla-real is missing"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--work", run / "work", "--target", "Vendor=B,D", "--run", run, "--segmenters", "vanilla-real,vanilla-Vendor-B", "--out", tmp_path / "o"], 2,
             "vanilla-Vendor-B belongs to no row"),
            (["-m", "cmr.check_dataset", phantom, "--target", "Pathology=NOR", "--preset", "tiny"], 2, "a target must be unseen"),
            (["-m", "cmr.rescan", "--data", phantom, "--domain", "Vendor=B", "--out", run], 2, "exists"),
            (["-m", "cmr.rescan", "--data", f"{phantom},{phantom}", "--domain", "Vendor=B", "--out", tmp_path / "copy"], 2, "one by one"),
            (["-m", "cmr.synthesize", "--preset", "tiny", "--data", phantom, "--shift", "0,1", "--out", tmp_path / "s"], 2, "--shift '0,1': use numbers"),
            (["train_unet.py", "--preset", "tiny", "--stesp", "3"], 2, "did you mean --steps"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--run", tmp_path, "--out", tmp_path / "o"], 4, "no such checkpoint")):
        got, _, errors = script(*arguments)
        assert got == code and one_line(errors) and words in errors, (arguments, got, errors)
