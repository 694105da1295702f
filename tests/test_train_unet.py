"""The training script: what it is trained on, epochs, kills."""
import csv
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import train_diffusion
import train_unet
from cmr import checkpoint
from cmr.files import read_json, sha256
from cmr.seeds import rng
from cmr.training import Run
from helpers import NETWORKS, training


@dataclass(frozen=True)
class Volume:
    image: np.ndarray
    label: np.ndarray


def test_shuffled_masks_belong_to_others():
    volumes = [Volume(np.zeros((depth, 4, 4)), np.full((depth, 4, 4), i)) for i, depth in enumerate((3, 5, 4, 6))]
    mixed = train_unet.shuffled(volumes, rng(0))
    owners = [v.label.flat[0] for v in mixed]
    assert all(v.label.shape == v.image.shape for v in mixed) and sorted(owners) == [0, 1, 2, 3]
    assert owners != [0, 1, 2, 3]


def test_an_nnunet_validates_by_epochs_and_keeps_its_plan(run):
    for network, dims in (("nnunet2d", 2), ("nnunet3d", 3)):
        plans = [read_json(run / f"segmenter-{network}-{kind}" / "plan.json") for kind in ("real", "synthetic")]
        assert plans[0] == plans[1] and len(plans[0]["patch"]) == dims  # equal batches whatever it is trained on
        epochs = list(csv.DictReader(open(run / f"segmenter-{network}-real" / "validation.csv")))
        assert [int(e["epoch"]) for e in epochs] == [0, 1, 2, 3]
        average = float(epochs[0]["mean"])
        for e in epochs[1:]:
            average = 0.9 * average + 0.1 * float(e["mean"])
            assert float(e["ema"]) == pytest.approx(average, abs=2e-6)
        rates = [float(r["lr"]) for r in csv.DictReader(open(run / f"segmenter-{network}-real" / "log.csv"))]
        # steps 4 and 8 of 2-step epochs
        assert rates == pytest.approx([0.01 * (1 - e / 4) ** 0.9 for e in (1, 3)], rel=1e-5)


@pytest.mark.parametrize("script_module,stage,network", [
    (train_diffusion, "diffusion", "diffusion"), *((train_unet, f"segmenter-{n}-real", n) for n in NETWORKS)])
def test_interrupted_training_scripts_end_with_the_same_weights_and_file(
    run, phantom, tmp_path, monkeypatch, script_module, stage, network
):
    arguments = [*training(phantom, run, network), "--out", str(tmp_path)]
    update = Run.update
    def killed_at_six(self, loss):
        if self.step == 6:
            raise KeyboardInterrupt
        update(self, loss)
    monkeypatch.setattr(Run, "update", killed_at_six)
    with pytest.raises(KeyboardInterrupt):
        script_module.main(arguments)
    monkeypatch.undo()
    assert (tmp_path / "last.pt").exists() and not (tmp_path / "final.pt").exists()
    script_module.main(arguments)
    resumed, straight = (checkpoint.load(folder / "final.pt")["net"] for folder in (tmp_path, run / stage))
    assert resumed.keys() == straight.keys() and all(torch.equal(resumed[k], straight[k]) for k in straight)
    assert sha256(tmp_path / "final.pt") == sha256(run / stage / "final.pt")
    if network.startswith("nnunet"):
        assert (tmp_path / "validation.csv").read_bytes() == (run / stage / "validation.csv").read_bytes()
