"""Worker processes: order, a death among them, an error in them, a parent that dies."""
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from cmr.errors import DataError, ResourceError, UsageError
from cmr.seeds import generator
from cmr.workers import ahead, half_precision, over_volumes, peak_memory_gb, pick_device, spawned
from helpers import ROOT, one_line, process


def square(n):
    return n * n


def die_at_two(n):
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)                      # as the out-of-memory killer does
    return n


def refuse(n):
    raise DataError(f"volume {n} cannot be read")


def too_large(config):
    raise MemoryError


def test_results_come_in_order_and_errors_come_through():
    assert list(spawned(square, range(5), 2)) == [0, 1, 4, 9, 16]
    with pytest.raises(DataError, match="volume 0 cannot be read"):
        list(spawned(refuse, range(3), 2))
    with pytest.raises(MemoryError):                              # before the first volume: nothing was killed
        over_volumes(SimpleNamespace(jobs=range(3)), too_large, None, 2)


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


@pytest.mark.parametrize("start", [lambda: spawned(sleepy, ["."] * 2, 2), lambda: ahead(time.sleep, [60, 60], 2)])
def test_a_worker_that_never_answers_is_not_waited_for(start, tmp_path, monkeypatch):
    monkeypatch.setattr("cmr.workers.VOLUME_S", 0.6)
    monkeypatch.setattr("cmr.workers.BATCH_S", 0.6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResourceError, match="a worker process has not answered for 0.01 minutes"):
        list(start())
    for _ in range(100):                                          # the pool's own thread may be what sees them end
        if not multiprocessing.active_children():
            break
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_made_ahead_are_those_of_their_steps(processes):
    before = torch.random.get_rng_state()
    make = lambda step: (torch.randn(3, generator=generator("batch", step)), torch.tensor([step]))
    found = list(ahead(make, range(5, 12), processes))
    assert [int(step) for _, step in found] == list(range(5, 12))
    assert all(torch.equal(x, make(int(step))[0]) for x, step in found)
    assert torch.equal(torch.random.get_rng_state(), before)      # nothing was drawn from the global generator


@pytest.mark.parametrize("happens, line", [
    ("os.kill(os.getpid(), 9)", "error: a worker process was killed, perhaps for want of memory; what is finished"),
    ("resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))", "error: /dev/shm, where processes hand data to"),
    ("raise OSError(24, 'Too many open files')", "error: [Errno 24] Too many open files; allow more open files")])
def test_a_process_that_cannot_make_batches_ends_the_run(happens, line, tmp_path):
    """It is killed, there is no room to hand its batch over, or something is met in it: one line, and nobody waits."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import os, resource, sys, torch
sys.path.insert(0, os.getcwd())
from cmr.errors import run_script
from cmr.workers import ahead
def make(step):
    if step == 2:
        {happens}
    return torch.zeros(1000)
run_script(lambda: list(ahead(make, range(5), 1)))
""")
    code, _, errors = process(script)
    assert code == 5 and one_line(errors) and errors.startswith(line), errors


@pytest.mark.parametrize("name, gpus, ranks, words", [
    ("cuda", 0, 1, "--device cuda: no CUDA device here; use --device cpu"),
    ("cuda:9", 2, 1, "--device cuda:9: there are 2 GPUs here, cuda:0 to cuda:1"),
    ("auto", 2, 4, "4 ranks, but 2 GPUs on this machine; start as many ranks as there are GPUs")])
def test_a_gpu_that_is_not_there_is_refused(name, gpus, ranks, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(variable, str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(ranks - 1))
    with pytest.raises(UsageError, match=words):
        pick_device(name)


@pytest.mark.parametrize("system, unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_gb_on_every_system(system, unit, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2 ** 30 // unit))
    assert peak_memory_gb(torch.device("cpu")) == 3


def test_inference_on_a_cpu_stays_in_float32():
    with half_precision(torch.device("cpu"), True):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32
