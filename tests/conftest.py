"""Shared by all tests: a phantom, and a short experiment on it, each made once.

One thread: the arrays of the tests are small, and results must not depend on how many tests run at a time.
"""
import nibabel as nib
import numpy as np
import pytest
import torch

import evaluate
import train_diffusion
import train_unet
from cmr import audit, synthesize
from cmr.phantom import Config, write_dataset
from cmr.records import VALUES
from cmr.studies import find
from helpers import NETWORKS, SEGMENTERS, SYNTHETIC, on, synthesis, training

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def short_audit():
    """Models of a handful of steps are audited by few samples, of few calls, and by a classifier of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "SAMPLES", 16)
        patch.setattr(audit, "CALLS", 2)
        patch.setattr(audit, "STEPS", 30)
        yield


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """A phantom dataset of 18 small studies, one of each target for training, written once.

    The ED mask of one test study of vendor D labels no RV.
    """
    root = tmp_path_factory.mktemp("phantom")
    write_dataset(Config(out=str(root), counts="tiny", frames=2, target_training=1))
    record = next(r for r in find(root) if (r.vendor, r.split, r.phase) == ("D", "Testing", "ED"))
    mask = nib.load(record.label_path)
    labels = np.asarray(mask.dataobj).copy()
    labels[..., record.frame][labels[..., record.frame] == VALUES["RV"]] = 0
    nib.save(nib.Nifti1Image(labels, mask.affine, mask.header), record.label_path)
    return root


@pytest.fixture(scope="session")
def run(phantom, tmp_path_factory):
    """The whole path at a handful of steps, in-process: the folder of the experiment."""
    root = tmp_path_factory.mktemp("run")
    targets = ["--target", "Vendor=B,D"]
    train = lambda name, network, *more: train_unet.main([*training(phantom, root, network), *more,
                                                          "--out", str(root / f"segmenter-{name}")])
    train_diffusion.main([*training(phantom, root, "diffusion"), "--out", str(root / "diffusion")])
    for network in NETWORKS:
        train(f"{network}-real", network)
    for name, strength in (("dg", "t0=30,steps=2"), ("shifted", "none")):
        made = ["--use", "dg", "--strength", strength, "--shift", "0.5", "--out", root / name]
        synthesize.main(synthesis(phantom, root, *made))
    synthesize.main(synthesis(phantom, root, "--use", "da", *targets, "--out", root / "da"))
    for network in NETWORKS:
        for kind, (folder, *flags) in SYNTHETIC.items():
            if f"{network}-{kind}" in SEGMENTERS:
                train_on = "both" if kind == "both" else "synthetic"
                train(f"{network}-{kind}", network, "--train-on", train_on, "--synthetic", str(root / folder), *flags)
    train("vanilla-augmented", "vanilla", "--augment")
    for vendor in "BD":
        train(f"vanilla-Vendor-{vendor}", "vanilla", "--domain", f"Vendor={vendor}")
    evaluate.main([*on(phantom, root), *targets, "--run", str(root), "--segmenters", ",".join(SEGMENTERS),
                   "--out", str(root / "results")])
    return root
