"""Runs that are killed and go on; averaged weights; checkpoints that are damaged or of other settings."""
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_unet
from cmr import checkpoint
from cmr.config import CheckpointError, NumericalError, ResourceError, UsageError, parse
from cmr.losses import dice_ce_loss
from cmr.preprocess import zscore
from cmr.recipes import vanilla
from cmr.training import Run, generator, initialised, rng, update_ema
from cmr.unet import UNet

SETTINGS = {"seed": 0, "lr": 1e-2, "log_every": 2, "save_every": 4}


def train(out, stop_after=None, steps=20, settings=SETTINGS, data_hash="d"):
    """A small regression; returns the averaged weights.  stop_after: leave as if killed after that many steps."""
    out.mkdir(exist_ok=True)
    net = initialised(lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)), 0)
    run = Run(out, settings, data_hash, net, torch.optim.Adam(net.parameters(), lr=settings["lr"]), ema_decay=0.9)
    for step in run.steps(steps):
        if step == stop_after:
            return None
        x = torch.randn(8, 3, generator=generator(0, "step", step))
        run.update(((net(x) - x.sum(1, keepdim=True)) ** 2).mean())
    run.finish()
    return checkpoint.load(out / "final.pt")["net"]


@pytest.mark.parametrize("killed_at", [3, 4, 11, 19])
def test_killed_and_resumed_equals_unbroken_bit_for_bit(tmp_path, killed_at):
    straight = train(tmp_path / "a")
    train(tmp_path / "b", stop_after=killed_at)
    with open(tmp_path / "b" / "log.csv", "a") as file:
        file.write("1")                                           # half of a row
    assert (tmp_path / "b" / "last.pt").exists() == (killed_at >= 4) and not (tmp_path / "b" / "final.pt").exists()
    resumed = train(tmp_path / "b")
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert not (tmp_path / "b" / "last.pt").exists()
    losses = lambda name: [row.split(",")[:2] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
    assert losses("a") == losses("b")


def test_other_settings_or_data_are_refused_and_named(tmp_path):
    train(tmp_path / "a", stop_after=8)
    with pytest.raises(CheckpointError, match=r"lr: 0.01 there, 0.02 now.*another --out"):
        train(tmp_path / "a", settings={**SETTINGS, "lr": 2e-2})
    with pytest.raises(CheckpointError, match="data_hash"):
        train(tmp_path / "a", data_hash="other")


def test_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    train(tmp_path / "a", stop_after=9)
    before = (tmp_path / "a" / "last.pt").read_bytes()
    net = torch.nn.Linear(1, 1)
    (tmp_path / "b").mkdir()
    run = Run(tmp_path / "b", SETTINGS, "d", net, torch.optim.SGD(net.parameters(), lr=1.0))
    with pytest.raises(NumericalError, match="loss is nan at step 0"):
        for _ in run.steps(3):
            run.update(net(torch.tensor([[float("nan")]])).mean())
    assert not (tmp_path / "b" / "final.pt").exists() and (tmp_path / "a" / "last.pt").read_bytes() == before


def test_ema_closed_form_with_warm_up():
    net = torch.nn.Linear(1, 1, bias=False)
    ema = {"weight": torch.zeros(1, 1)}
    torch.nn.init.ones_(net.weight)
    rest = 1.0
    for k in range(50):
        update_ema(ema, net, 0.9, k)
        rest *= min(0.9, (1 + k) / (10 + k))
        assert ema["weight"].item() == pytest.approx(1 - rest, rel=1e-5)


def test_damaged_checkpoints_are_found(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save(path, net={"w": torch.arange(4000.0)}, config={})
    good = path.read_bytes()
    assert torch.equal(checkpoint.load(path)["net"]["w"], torch.arange(4000.0))
    draw = np.random.default_rng(0)
    for _ in range(20):                                           # anywhere in the tensor's bytes
        broken = bytearray(good)
        broken[int(draw.integers(len(good) // 4, len(good) * 3 // 4))] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    for content, words in ((good[:len(good) // 2], "damaged"), (b"", "damaged"), (b"text", "damaged")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(path)
    torch.save({"format": 1, "f": os.system}, path)               # a pickle that would run code
    with pytest.raises(CheckpointError, match="not a plain checkpoint"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    checkpoint.write_text(path, "old")
    with pytest.raises(RuntimeError):
        with checkpoint.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another --out"):
        checkpoint.writable_folder(tmp_path / "file" / "below")


def test_random_numbers_are_a_function_of_their_key():
    draw = lambda *key: torch.rand(2, generator=generator(*key)).tolist()
    assert draw(0, "step", 5) == draw(0, "step", 5) and len({tuple(draw(*k)) for k in [(0, 1), (1, 0), (0, "1"), (0, 1, 0)]}) >= 3
    assert rng(3, "a").random() == rng(3, "a").random() != rng(3, "b").random()
    before = torch.random.get_rng_state()
    initialised(lambda: torch.nn.Linear(3, 3), 7)
    assert torch.equal(before, torch.random.get_rng_state())


@dataclasses.dataclass(frozen=True)
class Small:
    steps: int = dataclasses.field(default=3, metadata={"help": "h"})
    fast: bool = dataclasses.field(default=False, metadata={"help": "h"})


def test_command_line():
    presets = {"demo": {}, "tiny": {"steps": 1}}
    assert parse(Small, presets, ["--preset", "tiny"], "") == Small(1) and parse(Small, presets, ["--preset", "tiny", "--steps", "7", "--fast"], "") == Small(7, True)
    with pytest.raises(UsageError, match="unknown argument --stepz; did you mean --steps"):
        parse(Small, presets, ["--stepz", "3"], "")
    with pytest.raises(UsageError, match="invalid int"):
        parse(Small, presets, ["--steps", "many"], "")


def test_dice_ce_by_hand():
    """Two pixels, two classes, probabilities .75 / .25: Dice 2 * .75 / (1 + 1), cross-entropy -ln .75."""
    logits = torch.log(torch.tensor([[.25, .75], [.75, .25]])).T.reshape(1, 2, 1, 2)
    loss = dice_ce_loss(logits, torch.tensor([[[1, 0]]]), smooth=0.0)
    assert loss.item() == pytest.approx(-np.log(.75) - 2 * .75 / 2, abs=1e-6)
    absent = dice_ce_loss(torch.tensor([[[[9.0]], [[-9.0]], [[-9.0]]]]), torch.zeros(1, 1, 1, dtype=torch.long))
    assert torch.isfinite(absent)


def test_unet_shapes_and_gradients():
    net = UNet(4, 8, 3)
    x = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (2, 4, 16, 24)
    net(x).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    with pytest.raises(ValueError, match="multiples of 4"):
        net(x[..., :15])
    assert zscore(np.full((2, 3, 3), 4.0)).tolist() == np.zeros((2, 3, 3)).tolist()


def test_sigterm_saves_and_exits_130(tmp_path, phantom):
    command = [sys.executable, "train_unet.py", "--preset", "tiny", "--data", str(phantom), "--out", str(tmp_path / "run"), "--work", str(tmp_path / "work"),
               "--steps", "5000", "--log-every", "1"]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "run" / "log.csv"
    for _ in range(600):
        if log.exists() and len(log.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from the last checkpoint" in errors and (tmp_path / "run" / "last.pt").exists()


def test_the_vanilla_augmentation_changes_intensities_alone():
    volume = SimpleNamespace(image=rng("image").standard_normal((6, 32, 32)).astype(np.float32), label=rng("label").integers(0, 4, (6, 32, 32)).astype(np.uint8))
    batches = []
    for augment in (False, True):
        c = train_unet.Config(network="vanilla", features=8, levels=2, batch=16, steps=10, augment=augment)
        batches.append(vanilla(c, [volume], [], np.arange(4), torch.device("cpu")).batch(3))
    (plain, labels), (augmented, same_labels) = batches
    assert torch.equal(labels, same_labels) and plain.shape == augmented.shape
    changed = [not torch.equal(a, b) for a, b in zip(plain, augmented)]
    assert 0 < sum(changed) < 16 and all(np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.5 for a, b in zip(plain.numpy(), augmented.numpy()))
