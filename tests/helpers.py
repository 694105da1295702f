"""What several test files need: scripts run as a user would, small datasets, and the arguments of short runs."""
import contextlib
import csv
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

from cmr.experiment import ARMS
from cmr.nifti import read_nifti

ROOT = Path(__file__).parent.parent


def script(*arguments):
    """(exit code, stdout, stderr) of a script as the command line runs it, in this process: torch is loaded once.

    arguments : `train_unet.py`, or `-m` and a module, and its flags.
    """
    name, *argv = map(str, arguments)
    named, argv = (argv[0], argv[1:]) if name == "-m" else (name, argv)
    out, errors, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    try:
        sys.argv = [named, *argv]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)       # the module is loaded already: it is run once more
            run = runpy.run_module if name == "-m" else runpy.run_path
            run(named if name == "-m" else str(ROOT / named), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
        read_nifti.cache_clear()                                  # as a new process: files may have changed
    return code, out.getvalue(), errors.getvalue()


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}             # of processes that are started


def process(*arguments, **env):
    """The same in a process of its own; env : variables that it has beside ours."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          env={**ENVIRONMENT, **env})
    return done.returncode, done.stdout, done.stderr


def launch(n, *command):
    """A started script on n ranks."""
    return subprocess.Popen([sys.executable, "-m", "cmr.ranks", str(n), *map(str, command)], cwd=ROOT, text=True,
                            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def one_line(errors):
    return errors.startswith("error: ") and errors.count("\n") == 1 and "Traceback" not in errors


# ---- The short experiment of conftest.run ----

NETWORKS = ("vanilla", "nnunet2d", "nnunet3d")
SYNTHETIC = {"synthetic": ("dg",), "both": ("dg",), "shifted": ("shifted",), "shuffled": ("dg", "--shuffle-masks")}
SEGMENTERS = (*(f"{network}-{kind}" for network in NETWORKS for kind in ("real", "synthetic")),
              *(f"vanilla-{kind}" for kind in ("both", "augmented", "shifted", "shuffled", "Vendor-B",
                                               "Vendor-D")))
# Rows of the table: all of the vanilla U-Net, the primary ones of both nnU-Nets.
_ALL = [arm for arm in ARMS if arm.trained_on != "references"]
_PRIMARY = [arm for arm in ARMS if not arm.secondary and arm.trained_on in ("real", "synthetic")]
ROWS = len(_ALL) + 2 * len(_PRIMARY)


def on(phantom, root):
    """Arguments of any stage of the short experiment."""
    return ["--preset", "tiny", "--data", str(phantom), "--work", str(root / "work")]


def training(phantom, root, network):
    """Arguments of a training run of a handful of steps."""
    steps = [*on(phantom, root), "--steps", "8", "--save-minutes", "0", "--log-every", "4"]
    if network == "diffusion":
        return [*steps, "--ema", "0.5", "--sheet", "2", "--sheet-steps", "4"]
    return [*steps, "--network", network, *(["--epoch-steps", "2"] if network.startswith("nnunet") else [])]


def synthesis(phantom, root, *arguments):
    """Arguments of cmr.synthesize with the models of the short experiment."""
    return [*on(phantom, root), "--diffusion", str(root / "diffusion" / "final.pt"),
            "--segmenter", str(root / "segmenter-vanilla-real" / "final.pt"), *map(str, arguments)]


# ---- Small datasets ----

HEADER = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height",
          "Weight"]


def nifti(path, array, zooms=(1.25, 1.25, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*zooms, 1])), path)


def cine(seed, frames=4):
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 200, (48, 48, 4, frames)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    for f in (0, 2):
        label[18:30, 18:30, 1:3, f], label[20:28, 20:28, 1:3, f], label[12:18, 18:30, 1:3, f] = 2, 1, 3
    return image, label


def mms(root, studies, header=HEADER, folder="Training/Labeled",
        table="211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"):
    """An M&Ms-1 tree; studies: {code: row overrides, plus image and label arrays}."""
    rows = []
    for i, (code, s) in enumerate(studies.items()):
        image, label = cine(i)
        where = root / "OpenDataset" / s.get("folder", folder) / code
        nifti(where / f"{code}_sa.nii.gz", s.get("image", image))
        nifti(where / f"{code}_sa_gt.nii.gz", s.get("label", label))
        usual = {"VendorName": "Siemens", "Vendor": "A", "Centre": "1", "ED": 0, "ES": 2, "Age": 50, "Pathology": "NOR",
                 "Sex": "F", "Height": "", "Weight": ""}
        own = {name: value for name, value in s.items() if name in HEADER}
        rows.append({"": i, "External code": code, **usual, **own})
    with open(root / "OpenDataset" / table, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    read_nifti.cache_clear()
    return root
