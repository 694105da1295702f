"""A training that is watched for some steps."""
import time
from types import SimpleNamespace

import pytest

from cmr.errors import ResourceError
from cmr.watched import first_rows, watch
from helpers import training

HEADER = "step,loss,lr,seconds_per_step,waiting_share,peak_memory_gb\n"


def test_a_training_is_watched_and_stopped(phantom, tmp_path):
    command = ["train_unet.py", *training(phantom, tmp_path, "nnunet2d"), "--steps", "100000"]
    found = watch(command, tmp_path / "watched", 1, watch_s=2)
    assert found.settings["network"] == "nnunet2d" and found.plan["batch"] >= 2
    assert 0 < found.step_s < 10 and 0 < found.start_s < 60 and 0.1 < found.memory_gb < 4
    assert not (tmp_path / "watched" / "0" / "final.pt").exists()


def test_the_first_step_is_the_start_and_the_rest_are_steps(tmp_path):
    (tmp_path / "log.csv").write_text(HEADER + "1,1,1,3.0,0,1\n2,1,1,0.5,0,2\n")
    rows, start_s = first_rows(tmp_path, SimpleNamespace(poll=lambda: 0), 0.0, 1.0)
    assert [row["seconds_per_step"] for row in rows] == ["3.0", "0.5"] and start_s > 0


def test_a_training_that_stops_after_its_first_step_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("cmr.watched.PATIENCE_S", 0.2)
    (tmp_path / "log.csv").write_text(HEADER + "1,1,1,3.0,0,1\n")
    rows, _ = first_rows(tmp_path, SimpleNamespace(poll=lambda: None), time.monotonic(), 1.0)
    assert len(rows) == 1


def test_a_training_that_cannot_start_says_why(tmp_path):
    folder = tmp_path / "diffusion" / "0"
    folder.mkdir(parents=True)
    (folder / "stderr").write_text("some warning\nerror: out of memory; make --batch smaller\n")
    with pytest.raises(ResourceError, match="^diffusion: does not run here: out of memory; make"):
        first_rows(folder, SimpleNamespace(poll=lambda: 5), 0.0, 1.0)
