"""Where work is done: the device, and processes that share the volumes or prepare batches ahead.

Ranks, which train one network together, are in `cmr.ranks`.

Public: `pick_device`, `to_device`, `half_precision`, `over_volumes`, `ahead`, `spawned`, `peak_memory_gb`, `cores`.
"""
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
from cmr.errors import SHARED_MEMORY, ResourceError, UsageError, UserError, print_anything

VOLUME_S, BATCH_S = 12 * 3600, 1800              # how long one is waited for, seconds: far longer than any takes
_work = None                                     # of a worker process


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda` or `cuda:N`; raises UsageError when it is not there.

    Of several ranks each takes a GPU of its own, and they meet here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, gpus = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UsageError(f"--device {name}: there are {gpus} GPUs here, cuda:0 to cuda:{gpus - 1}")
    return ranks.join(device)


def to_device(batch, device):
    """Tensors of the CPU on the device.  A GPU fetches them while it computes, from memory that stays in place."""
    if device.type != "cuda":
        return batch
    return [one.pin_memory().to(device, non_blocking=True) for one in batch]


def half_precision(device, bfloat16):
    """torch.autocast around a network that was trained in bfloat16, where that is faster: on a GPU, not on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(bfloat16) and device.type == "cuda")


def over_volumes(work, build, config, processes=0):
    """[work.volume(i) for i in range(len(work.jobs))], in order.

    Of several ranks each computes its share; the first has all results, the others end here, as all that follows is
    written by the first.  Without ranks, build(config) makes the same object in each of so many worker processes.
    processes : 0 for one per core, or 1 on a GPU.  Raises ResourceError if a worker dies.
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
    """Iterator over make(step) for every step, in order, made ahead of time by so many processes; 0: when asked for.

    make(step) -> tensors on the CPU, a function of the step alone.  Raises ResourceError if one of the processes dies.
    """
    if not processes:
        return map(make, steps)
    start = (lambda config: make), None, 1
    # Forked, so that each has the volumes without reading them again.
    return _in_order(_batch, steps, processes, "fork", start, 2 * processes, BATCH_S, "--workers")


def spawned(function, jobs, processes, build=None, config=None):
    """Yield function(job) in order, from processes of their own, which share the cores and make build(config) first.

    Raises ResourceError as soon as one of them dies.
    """
    threads = max(1, cores() // processes)
    # For numpy, which torch's own limit does not reach: with a thread for every core in each process matrix products
    # take three times as long.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
        yield from _in_order(function, jobs, processes, "spawn", (build, config, threads), len(jobs), VOLUME_S,
                             "--processes")


def _in_order(function, jobs, processes, method, start, at_a_time, patience_s, flag):
    """Yield function(job) of every job in order, from processes that have gone through _start(*start).

    at_a_time : jobs that are given out before the first is done.  flag : what says how many processes there are.
    Raises ResourceError as soon as one dies, or if one that lives does not answer for so long.  Whenever this ends
    early what they do is in vain, and they are killed: nobody waits for them.
    """
    try:
        executor = ProcessPoolExecutor(processes, multiprocessing.get_context(method), _start, start)
    except OSError as error:                                      # its semaphores lie there
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
    """Begin a worker process."""
    global _work
    print_anything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)                  # Ctrl-C is the parent's to answer: it has to save
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stdout(io.StringIO()):           # the parent has printed it
            _work = build and build(config)
    except UserError as error:                                    # told by the first volume, in one line
        _work = error


def _end_with_parent():
    """A worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _batch(step):
    return _work(step)


def _volume(index):
    if isinstance(_work, UserError):
        raise _work
    return _work.volume(index)


def peak_memory_gb(device):
    """Largest memory of this process so far, GB: of a GPU what torch took there, else what is resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20       # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
