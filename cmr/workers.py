"""Where work is done: the device, and processes that share the volumes or prepare batches ahead of time."""
import collections
import contextlib
import io
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

import torch
from tqdm import tqdm

from cmr import ranks
from cmr.errors import SHARED_MEMORY, ResourceError, UsageError, print_anything

VOLUME_S, BATCH_S = 12 * 3600, 1800              # seconds to wait for one: far longer than any takes
_work = None                                     # in a worker process: what build(config) has made


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda` or `cuda:N`, one GPU per rank; raises UsageError if there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, gpus = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UsageError(f"--device {name}: there are {gpus} GPUs here, cuda:0 to cuda:{gpus - 1}")
    return ranks.join(device)


def to_device(batch, device):
    """Move CPU tensors to the device; pinned memory lets a GPU fetch them while it computes."""
    if device.type != "cuda":
        return batch
    return [one.pin_memory().to(device, non_blocking=True) for one in batch]


def half_precision(device, bfloat16):
    """torch.autocast for a network that was trained in bfloat16, enabled only on a GPU, where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(bfloat16) and device.type == "cuda")


def over_volumes(work, build, config, processes=0):
    """[work.volume(i) for i in range(len(work.jobs))]; of several ranks only the first returns, the others exit.

    Without ranks, each of `processes` (0: one per core, or 1 on a GPU) makes its own work by build(config).
    """
    indices = range(len(work.jobs))
    if ranks.world() > 1:
        results = ranks.dealt(work.volume, len(indices))
        if not ranks.is_first():
            sys.exit(0)
        return results
    processes = min(processes or (1 if work.device.type == "cuda" else cores()), len(indices))
    results = map(work.volume, indices) if processes == 1 else spawned(_volume, indices, processes, build, config)
    finished = []
    for result in tqdm(results, total=len(indices), disable=not sys.stderr.isatty(), desc="volumes"):
        finished.append(result)
        if len(finished) % 20 == 0 and not sys.stderr.isatty():
            print(f"{len(finished)} of {len(indices)} volumes", flush=True)
    return finished


def ahead(make, steps, processes):
    """Iterate over make(step), CPU tensors that depend on the step alone; `processes` (or none) make them early."""
    if not processes:
        return map(make, steps)
    start = (lambda config: make), None, 1
    # Processes are forked, so that each has the volumes without reading them again.
    return _in_order(_batch, steps, processes, "fork", start, 2 * processes, BATCH_S, "--workers")


def spawned(function, jobs, processes, build=None, config=None):
    """Yield function(job) in order from new processes, which first call build(config); ResourceError if one dies."""
    threads = max(1, cores() // processes)
    # Limits numpy, as torch's own limit does not: with more threads than cores, matrix products are 3 times as slow.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
        yield from _in_order(function, jobs, processes, "spawn", (build, config, threads), len(jobs), VOLUME_S,
                             "--processes")


def _in_order(function, jobs, processes, method, start, at_a_time, patience_s, flag):
    """Yield function(job) in order, from processes that first call _start(*start) and are killed if this ends early."""
    try:
        executor = ProcessPoolExecutor(processes, multiprocessing.get_context(method), _start, start)
    except OSError as error:                                      # shared memory holds its semaphores
        raise ResourceError(f"{SHARED_MEMORY} ({error})") from error
    try:
        jobs = iter(jobs)
        begun = collections.deque(executor.submit(function, job) for job in itertools.islice(jobs, at_a_time))
        while begun:
            if not wait([begun[0]], patience_s).done:
                raise ResourceError(f"a worker process has not answered for {patience_s / 60:g} minutes; what is "
                                    "finished is kept, the same command goes on from there")
            yield begun.popleft().result()
            begun.extend(executor.submit(function, job) for job in itertools.islice(jobs, 1))
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.kill()
        if isinstance(error, BrokenProcessPool):
            raise ResourceError("a worker process was killed, perhaps for want of memory; what is finished is kept, "
                                f"fewer {flag} need less") from error
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _start(build, config, threads):
    global _work
    print_anything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)                  # the parent answers Ctrl-C: it has to save
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stdout(io.StringIO()):           # the parent has printed the same
            _work = build and build(config)
    except Exception as error:                                    # raised with the first volume, in one line
        _work = error


def _end_with_parent():
    """End this worker when its parent was killed; otherwise it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _batch(step):
    return _work(step)


def _volume(index):
    if isinstance(_work, Exception):
        raise _work
    return _work.volume(index)


def peak_memory_gb(device):
    """Peak memory of this process in GB: what torch allocated on a GPU, otherwise resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20       # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
