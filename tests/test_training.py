"""Runs that are killed and go on; averaged weights."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cmr import checkpoint
from cmr.errors import CheckpointError, NumericalError
from cmr.files import sha256
from cmr.seeds import generator, initialised
from cmr.training import Run, update_ema
from helpers import ROOT, on

SETTINGS = {"seed": 0, "lr": 1e-2, "log_every": 2, "save_minutes": 0}


def train(out, stop_after=None, steps=20, settings=SETTINGS, data_hash="d"):
    """A small regression; returns the averaged weights.  stop_after: leave as if killed after that many steps."""
    out.mkdir(exist_ok=True)
    net = initialised(
        lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)), 0
    )
    run = Run(out, settings, data_hash, net, torch.optim.Adam(net.parameters(), lr=settings["lr"]), ema_decay=0.9)
    if run.finished:
        return None
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
    assert (tmp_path / "b" / "last.pt").exists() and not (tmp_path / "b" / "final.pt").exists()
    resumed = train(tmp_path / "b")
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert not (tmp_path / "b" / "last.pt").exists()
    losses = lambda name: [row.split(",")[:2] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
    assert losses("a") == losses("b")


def test_a_kill_loses_minutes_whatever_a_step_takes(tmp_path, monkeypatch):
    """One step a minute by a clock of our own, saved every five minutes: killed at step 13, it goes on from step 10."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = small_run(tmp_path, save_minutes=5)
    for step in run.steps(20):
        if step == 13:
            break
        now[0] += 60
        run.update((run.net(torch.ones(1, 1)) ** 2).mean())
    assert checkpoint.load(tmp_path / "last.pt")["step"] == small_run(tmp_path, save_minutes=5).step == 10


def small_run(out, **settings):
    net = torch.nn.Linear(1, 1)
    return Run(out, {**SETTINGS, **settings}, "d", net, torch.optim.SGD(net.parameters(), lr=0.1), ema_decay=0.9)


@pytest.mark.parametrize("save_minutes, saved", [(0, 3), (60, None)])
def test_a_loss_that_was_not_finite_is_found_at_the_next_row_and_never_saved(tmp_path, save_minutes, saved):
    run = small_run(tmp_path, log_every=5, save_minutes=save_minutes)
    words = "last.pt" if saved else "no state was saved"
    with pytest.raises(NumericalError, match=f"loss is nan at step 3; .*{words}"):
        for step in run.steps(20):
            run.update(run.net(torch.full((1, 1), float("nan") if step == 3 else 1.0)).mean())
    assert run.step == (4 if saved else 5) and not run.final.exists()
    assert not saved or checkpoint.load(tmp_path / "last.pt")["step"] == saved


def test_what_follows_the_last_step_may_be_interrupted(tmp_path):
    """A sheet of samples is drawn and a network is scored before final.pt is written."""
    run = small_run(tmp_path, save_minutes=60)
    for _ in run.steps(6):
        run.update(run.net(torch.zeros(1, 1)).mean())
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 6


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"of": "another program"}')
    with pytest.raises(CheckpointError, match="config.json was written with other settings .*of: 'another program'"):
        small_run(tmp_path, save_minutes=1)
    assert "another program" in (tmp_path / "config.json").read_text()


def test_ema_closed_form_with_warm_up():
    net = torch.nn.Linear(1, 1, bias=False)
    ema = {"weight": torch.zeros(1, 1)}
    torch.nn.init.ones_(net.weight)
    rest = 1.0
    for k in range(50):
        update_ema(ema, net, 0.9, k)
        rest *= min(0.9, (1 + k) / (10 + k))
        assert ema["weight"].item() == pytest.approx(1 - rest, rel=1e-5)


def test_sigterm_saves_and_exits_130(tmp_path, phantom):
    command = [sys.executable, "train_unet.py", *on(phantom, tmp_path), "--out", tmp_path / "run", "--steps", "5000",
               "--log-every", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "run" / "log.csv"
    for _ in range(600):
        if log.exists() and len(log.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from what is finished" in errors
    assert (tmp_path / "run" / "last.pt").exists()


def test_equal_runs_in_different_folders_give_equal_checkpoints(tmp_path):
    """What a setting says about places and intervals is in config.json, not in the checkpoint."""
    for name, every in (("a", 2), ("b", 5)):
        train(tmp_path / name, settings={**SETTINGS, "out": str(tmp_path / name), "log_every": every})
    assert sha256(tmp_path / "a" / "final.pt") == sha256(tmp_path / "b" / "final.pt")
    assert "out" in (tmp_path / "a" / "config.json").read_text()


def test_a_finished_run_is_never_overwritten(tmp_path, capsys):
    """Nor is one that was begun with other settings or data."""
    train(tmp_path / "begun", stop_after=8)
    train(tmp_path / "a")
    contents = lambda: {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    before = contents()
    (tmp_path / "a" / "last.pt").write_bytes(b"")                 # killed between the two last acts of a run
    assert train(tmp_path / "a") is None and "finished already" in capsys.readouterr().out
    for name in ("a", "begun"):
        with pytest.raises(CheckpointError, match="lr: 0.01 there, 0.02 now.*another --out"):
            train(tmp_path / name, settings={**SETTINGS, "lr": 2e-2})
        with pytest.raises(CheckpointError, match="data_hash: 'd' there, 'e' now"):
            train(tmp_path / name, data_hash="e")
    assert contents() == before


@pytest.mark.parametrize("text", [None, "", "step,loss\n"])
def test_a_lost_log_comes_back(tmp_path, text):
    straight = train(tmp_path / "a")
    train(tmp_path / "b", stop_after=8)
    (tmp_path / "b" / "log.csv").unlink()
    if text is not None:
        (tmp_path / "b" / "log.csv").write_text(text)
    resumed = train(tmp_path / "b")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    losses = lambda name: [row.split(",")[:2] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
    assert losses("a") == losses("b")


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_a_finished_run_holds_the_average_of_the_weights_after_every_step(tmp_path, ema_decay):
    net = torch.nn.Linear(1, 1)
    run = Run(tmp_path, SETTINGS, "d", net, torch.optim.SGD(net.parameters(), lr=0.01), ema_decay=ema_decay)
    average = net.weight.item()
    for step in run.steps(20):
        run.update((net(torch.ones(1, 1)) - 1).square().mean())
        d = min(ema_decay or 0, (1 + step) / (10 + step))
        average = d * average + (1 - d) * net.weight.item()
    run.finish()
    saved = checkpoint.load(tmp_path / "final.pt")["net"]["weight"].item()
    assert saved == pytest.approx(average, abs=1e-6)
    assert (abs(saved - net.weight.item()) > 1e-3) == bool(ema_decay)
