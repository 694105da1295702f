"""Several ranks on the CPU: the same networks, the same tables; one that dies; going on with another number."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cmr import checkpoint, ranks
from cmr.errors import UsageError
from helpers import ENVIRONMENT, ROOT, launch, one_line, script, training

def weights(path):
    return checkpoint.load(path)["net"]


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_shares_are_whole_and_even(monkeypatch):
    for world, n in ((1, 5), (2, 5), (4, 6), (3, 16)):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        shares = [ranks.share(n, of) for of in range(world)]
        assert [j for samples in shares for j in samples] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(UsageError, match="batch of 2 cannot be dealt to more than 2"):
        ranks.share(2, 0)


def test_a_rank_without_a_world_is_a_schedulers_own_and_neighbours_are_dealt_to_one_rank(monkeypatch):
    monkeypatch.setenv("RANK", "16")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks.rank() == 0 and ranks.is_first()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK")
    assert ranks.rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "2")                         # two strengths in turn, of which one is long
    monkeypatch.setenv("RANK", "1")
    sent = []
    monkeypatch.setattr(ranks.dist, "gather_object", lambda found, of_all: sent.append(found))
    assert ranks.dealt(lambda i: i, 6) is None and sent == [[3, 4, 5]]


def test_ranks_train_the_network_that_one_would(phantom, tmp_path):
    """Uneven shares (5 and 6 samples over 2 and 4), batch normalisation, soft Dice of a batch, Adam, SGD, clipping."""
    for n in (1, 2, 4):
        started = launch(n, "tests/on_ranks.py", phantom, tmp_path / "work", tmp_path / str(n), 4)
        _, errors = started.communicate(timeout=300)
        assert started.returncode == 0, errors
        for final in (tmp_path / str(n)).glob("*/final.pt"):
            alone = weights(tmp_path / "1" / final.parent.name / "final.pt")
            limit = 1e-5 if final.parent.name == "diffusion" else 1e-9
            assert largest_difference(weights(final), alone) < limit, final
    assert {path.name for path in (tmp_path / "2").iterdir()} == {"vanilla", "nnunet2d", "nnunet3d", "diffusion"}
    assert {path.name for path in (tmp_path / "4").iterdir()} == {"vanilla", "nnunet2d", "diffusion"}


def test_a_rank_that_dies_ends_all_and_another_number_goes_on(phantom, tmp_path):
    of_run = ["train_diffusion.py", *training(phantom, tmp_path, "diffusion"), "--steps", "30", "--out"]
    assert script(*of_run, tmp_path / "alone")[0] == 0
    started = launch(2, *of_run, tmp_path / "run", "--log-every", "1")
    for _ in range(600):
        if (tmp_path / "run" / "last.pt").exists():
            break
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True).stdout.split()
    of_rank = {int(re.search(rb"\0RANK=(\d+)", open(f"/proc/{child}/environ", "rb").read())[1]): int(child)
               for child in children if b"\0RANK=" in open(f"/proc/{child}/environ", "rb").read()}
    os.kill(of_rank[1], signal.SIGKILL)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 5 and errors.count("\n") == 1, errors
    assert errors.startswith("error: rank 1 was killed (SIGKILL)")
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["step"]
    assert 0 < saved < 30 and not (tmp_path / "run" / "final.pt").exists()
    code, output, errors = script(*of_run, tmp_path / "run")
    assert code == 0 and f"going on from step {saved}" in output, errors
    assert largest_difference(weights(tmp_path / "run" / "final.pt"), weights(tmp_path / "alone" / "final.pt")) < 1e-5


@pytest.mark.parametrize("n, command, code, line", [
    (2, ["train_unet.py", "--data", "/nowhere"], 3, "error: /nowhere"),
    (2, ["train_unet.py", "--steps", "x"], 2, "error: argument --steps"),
    ("two", ["train_unet.py"], 2, "error: two train_unet.py: use: python -m cmr.ranks RANKS")])
def test_what_all_ranks_meet_is_said_once(n, command, code, line):
    started = launch(n, *command)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == code and errors.startswith(line) and errors.count("\n") == 1, errors


def test_a_launcher_needs_no_name_of_its_host(tmp_path):
    """What ranks are told to meet at is a number: many a network does not know its hosts by name."""
    (tmp_path / "script.py").write_text("import os; print(os.environ['MASTER_ADDR'], os.environ['WORLD_SIZE'])")
    assert launch(1, tmp_path / "script.py").communicate(timeout=60)[0] == "127.0.0.1 1\n"


@pytest.mark.parametrize("missing, code, line", [("", 5, "error: the ranks cannot work together: "),
                                                  ("MASTER_ADDR", 2, "error: WORLD_SIZE=2: ")])
def test_ranks_that_never_come_are_not_waited_for(missing, code, line):
    program = """
import datetime, torch
from cmr import ranks
from cmr.errors import run_script
ranks.MEETING = datetime.timedelta(seconds=1)
run_script(lambda: ranks.join(torch.device("cpu")))
"""
    alone = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    alone.pop(missing, None)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=alone, capture_output=True, text=True,
                           timeout=60)
    assert ended.returncode == code and one_line(ended.stderr) and ended.stderr.startswith(line), ended.stderr


def test_what_one_rank_alone_meets_it_says(tmp_path):
    (tmp_path / "script.py").write_text(f"""
import sys, torch
sys.path.insert(0, {str(ROOT)!r})
from cmr.errors import DataError, run_script
from cmr.ranks import any_of, join, rank
def main():
    join(torch.device("cpu"))
    if rank() == 1:
        raise DataError("a file")
    any_of(False)
run_script(main)
""")
    started = launch(2, tmp_path / "script.py")
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 3 and errors == "error: rank 1: a file\n"


@pytest.mark.parametrize("end, code", [("pass", 0), ("sys.exit(0)", 0), ("raise DataError('a file')", 3)])
def test_a_rank_ends_before_python_is_taken_down(end, code):
    """Gloo's threads may outlive the last exchange; handlers of exit have run, output is written, the code is kept."""
    program = f"""
import atexit, os, sys
from cmr.errors import DataError, run_script
class Late:
    def __del__(self):
        os.write(1, b"taken down")
late = Late()
atexit.register(print, "handled")
def main():
    print("worked")
    {end}
run_script(main)
"""
    for of_rank, last_words in (({"RANK": "0", "WORLD_SIZE": "2"}, ""), ({}, "taken down")):
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**ENVIRONMENT, **of_rank},
                               capture_output=True, text=True)
        assert ended.returncode == code and ended.stderr == ("error: a file\n" if code else "")
        assert ended.stdout == "worked\nhandled\n" + last_words
