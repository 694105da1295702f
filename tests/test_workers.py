"""Worker processes: order, a death among them, an error in them, a parent that dies."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cmr.errors import DataError, ResourceError
from cmr.seeds import generator
from cmr.workers import ahead, spawned
from helpers import ROOT, process


def square(n):
    return n * n


def die_at_two(n):
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)                      # as the out-of-memory killer does
    return n


def refuse(n):
    raise DataError(f"volume {n} cannot be read")


def test_results_come_in_order_and_a_user_error_comes_through():
    assert list(spawned(square, range(5), 2)) == [0, 1, 4, 9, 16]
    with pytest.raises(DataError, match="volume 0 cannot be read"):
        list(spawned(refuse, range(3), 2))


def test_a_worker_that_is_killed_ends_the_run_instead_of_hanging():
    with pytest.raises(ResourceError, match="a worker process was killed"):
        list(spawned(die_at_two, range(6), 2))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks processes up in /proc")
def test_workers_end_with_their_parent(tmp_path):
    """kill -9 of the parent leaves no process that waits for work for ever."""
    code = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_workers import sleepy
from cmr.workers import spawned
if __name__ == "__main__":
    list(spawned(sleepy, [{str(tmp_path)!r}] * 2, 2))
"""
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"])
    for _ in range(300):
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]
        if workers:
            break
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{worker}") for worker in workers):
            break
        time.sleep(0.1)
    assert workers and not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def sleepy(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_made_ahead_are_those_of_their_steps(processes):
    before = torch.random.get_rng_state()
    make = lambda step: (torch.randn(3, generator=generator("batch", step)), torch.tensor([step]))
    found = list(ahead(make, range(5, 12), processes, torch.device("cpu")))
    assert [int(step) for _, step in found] == list(range(5, 12))
    assert all(torch.equal(x, make(int(step))[0]) for x, step in found)
    assert torch.equal(torch.random.get_rng_state(), before)      # nothing was drawn from the global generator


def test_a_process_that_makes_batches_and_dies_ends_the_run(tmp_path):
    script = tmp_path / "run.py"
    script.write_text("""
import os, sys, torch
sys.path.insert(0, os.getcwd())
from cmr.errors import run_script
from cmr.workers import ahead
def make(step):
    if step == 2:
        os.kill(os.getpid(), 9)
    return torch.zeros(1)
run_script(lambda: list(ahead(make, range(5), 1, torch.device("cpu"))))
""")
    code, _, errors = process(script)
    last = errors.strip().splitlines()[-1]
    assert code == 5 and last.startswith("error: a process that prepares batches has died"), errors
