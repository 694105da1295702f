"""Where work is done: the device, and processes that share the volumes.

Public: `pick_device`, `over_volumes`.
"""
import contextlib
import multiprocessing
import os
import sys

import torch
from tqdm import tqdm

from cmr.errors import UsageError

_work = None                                     # of a worker process


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda` or `cuda:N`; raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from error


def over_volumes(work, build, config, processes=0):
    """[work.volume(i) for i in range(len(work.jobs))], in order.

    build(config) makes the same object in each worker process, which then uses its share of the cores.
    processes : 0 for one per core, or 1 on a GPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = min(processes or (1 if work.device.type == "cuda" else cores), len(work.jobs))
    indices = range(len(work.jobs))
    if processes == 1:
        return _with_bar(map(work.volume, indices), len(indices))
    threads = max(1, cores // processes)
    with _threads_of_new_processes(threads):
        pool = multiprocessing.get_context("spawn").Pool(processes, _start, (build, config, threads))
    with pool:
        return _with_bar(pool.imap(_volume, indices), len(indices))


@contextlib.contextmanager
def _threads_of_new_processes(threads):
    """Processes started inside use so many threads for numpy's matrix products, which torch's own limit does not reach.

    With a thread for every core in each of them the evaluation takes three times as long.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _with_bar(results, total):
    return list(tqdm(results, total=total, disable=not sys.stderr.isatty(), desc="volumes"))


def _start(build, config, threads):
    global _work
    torch.set_num_threads(threads)
    _work = build(config)


def _volume(index):
    return _work.volume(index)
