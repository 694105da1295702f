"""One volume after the other on a GPU, as many at a time as there are cores on a CPU.

Public: `over_volumes`.
"""
import multiprocessing
import os
import sys

import torch
from tqdm import tqdm

_work = None                                     # of a worker process


def over_volumes(work, build, config, processes=0):
    """[work.volume(i) for i in range(len(work.jobs))], in order.

    build(config) makes the same object in each worker process, which then uses its share of the cores.  processes : 0 for
    one per core, or 1 on a GPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = min(processes or (1 if work.device.type == "cuda" else cores), len(work.jobs))
    bar = lambda results: list(tqdm(results, total=len(work.jobs), disable=not sys.stderr.isatty(), desc="volumes"))
    if processes == 1:
        return bar(map(work.volume, range(len(work.jobs))))
    with multiprocessing.get_context("spawn").Pool(processes, _start, (build, config, max(1, cores // processes))) as pool:
        return bar(pool.imap(_volume, range(len(work.jobs))))


def _start(build, config, threads):
    global _work
    torch.set_num_threads(threads)
    _work = build(config)


def _volume(index):
    return _work.volume(index)
