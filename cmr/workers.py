"""Where work is done: the device, and processes that share the volumes or prepare batches ahead.

Ranks, which train one network together, are in `cmr.ranks`.

Public: `pick_device`, `over_volumes`, `spawned`, `ahead`, `peak_memory_gb`, `cores`.
"""
import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from cmr import ranks
from cmr.errors import ResourceError, UsageError, UserError, print_anything

_work = None                                     # of a worker process


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda` or `cuda:N`; raises UsageError when it is not there.

    Of several ranks each takes a GPU of its own, and they meet here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from error
    return ranks.join(device)


def over_volumes(work, build, config, processes=0):
    """[work.volume(i) for i in range(len(work.jobs))], in order.

    Of several ranks each computes its share; the first has all results, the others end here, as all that follows is
    written by the first.  In one process, build(config) makes the same object in each worker, which then uses its share
    of the cores.
    processes : 0 for one per core, or 1 on a GPU.  Raises ResourceError if a worker dies.
    """
    indices = range(len(work.jobs))
    if ranks.world() > 1:
        results = ranks.dealt(work.volume, len(indices))
        if results is None:
            sys.exit(0)
        return results
    processes = min(processes or (1 if work.device.type == "cuda" else cores()), len(work.jobs))
    results = map(work.volume, indices) if processes == 1 else spawned(_volume, indices, processes, build, config)
    finished = []
    for result in tqdm(results, total=len(indices), disable=not sys.stderr.isatty(), desc="volumes"):
        finished.append(result)
        if len(finished) % 20 == 0 and not sys.stderr.isatty():
            print(f"{len(finished)} of {len(indices)} volumes", flush=True)
    return finished


def ahead(make, steps, processes, device):
    """Iterator over make(step) for every step, in order, made ahead of time by so many processes; 0: when asked for.

    make(step) -> tensors on the CPU, a function of the step alone.  Raises ResourceError if one of the processes dies.
    """
    if not processes:
        yield from map(make, steps)
        return
    loader = DataLoader(_Steps(make), batch_size=None, sampler=steps, num_workers=processes,
                        multiprocessing_context="fork", worker_init_fn=_ignore_signals,
                        pin_memory=device.type == "cuda", generator=torch.Generator())
    try:
        batches = iter(loader)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)             # torch's own raises wherever the main thread just is;
        yield from batches                                        # without it a death shows where a batch is waited for
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        raise ResourceError("a process that prepares batches has died, perhaps for want of memory; what was saved is "
                            "kept, fewer --workers need less") from error


class _Steps(torch.utils.data.Dataset):
    """What a DataLoader asks for the batch of a step."""

    def __init__(self, make):
        self.make = make

    def __getitem__(self, step):
        return self.make(step)


def _ignore_signals(worker):
    """Ctrl-C is the parent's to answer: it still has to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def spawned(function, jobs, processes, build=None, config=None):
    """Yield function(job) in order, from processes of their own; raises ResourceError as soon as one of them dies.

    build(config) is made first in each, for `_volume`.
    """
    threads = max(1, cores() // processes)
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (build, config, threads))
    try:
        with _threads_of_new_processes(threads):                  # they start when the first jobs are given
            results = executor.map(function, jobs)
        yield from results
    except BrokenProcessPool as error:
        raise ResourceError("a worker process was killed, perhaps for want of memory; what is finished is kept, "
                            "fewer --processes need less") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def peak_memory_gb(device, process="self"):
    """Largest memory of a process so far, GB: of a GPU what torch took there, else what is resident.

    process : its number; 0 GB if it has gone.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    if Path("/proc/self/status").exists():                        # ru_maxrss is the parent's too
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2 ** 20
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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


def _start(build, config, threads):
    global _work
    print_anything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)                  # Ctrl-C is the parent's to answer
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


def _volume(index):
    if isinstance(_work, UserError):
        raise _work
    return _work.volume(index)
