"""Ranks: processes that share one piece of work through torch.distributed.

    python -m cmr.ranks 4 train_unet.py ...

starts a script on four ranks; if one dies, all end with one line of explanation.  A single process is rank 0 of 1.

In training each rank computes its share of a batch, the outputs are gathered, and every rank follows the gradient of
the *whole* batch's loss through its own share.  So soft Dice and batch statistics do not depend on the ranks.
"""
import contextlib
import datetime
import logging
import os
import signal
import sys
import tempfile
import uuid

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cmr.errors import ResourceError, UsageError, run_script

MEETING = datetime.timedelta(minutes=3)          # how long to wait until all ranks have started
PATIENCE = datetime.timedelta(hours=12)          # how long to wait for the first to read a dataset
HERE, LAUNCHER_S = "127.0.0.1", 60               # all ranks are on this machine; launcher's time limit, s


def rank():
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0   # a scheduler may set one of the two for itself


def world():
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    return rank() == 0


def join(device):
    """Wait for the other ranks, if any, and return this rank's device: with several GPUs, one of its own."""
    if world() == 1:
        return device
    if device.type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
        if local >= gpus:
            here = os.environ.get("LOCAL_WORLD_SIZE", world())
            raise UsageError(f"{here} ranks, but {gpus} GPUs on this machine; start as many ranks as there are GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def _meet(backend):
    """Make the process group; a rank that does not start is waited for as long as MEETING, not as long as PATIENCE."""
    try:
        store, this, n = next(dist.rendezvous("env://", timeout=MEETING))
    except ValueError as error:                                   # an environment variable is missing
        raise UsageError(f"WORLD_SIZE={world()}: {error}; start ranks with python -m cmr.ranks or torchrun") from error
    store.set(f"here-{this}", "")
    store.wait([f"here-{other}" for other in range(n)], MEETING)
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=this, world_size=n, timeout=PATIENCE)


def share(n, of=None):
    """Range of the n samples that rank `of` (None: this one) computes; UsageError if there are more ranks than n."""
    if n < world():
        raise UsageError(f"{world()} processes: a batch of {n} cannot be dealt to more than {n}; start fewer")
    of = rank() if of is None else of
    return range(of * n // world(), (of + 1) * n // world())


def gathered(outputs, n):
    """Join the shares of all ranks to the whole batch: (share, *rest) -> (n, *rest), also for each tensor of a list.

    The gradient flows through this rank's own part alone: every rank forms the same loss and follows its own samples.
    """
    if world() == 1:
        return outputs
    if isinstance(outputs, (list, tuple)):
        return [gathered(one, n) for one in outputs]
    sizes = [len(share(n, of)) for of in range(world())]
    padded = F.pad(outputs, (0, 0) * (outputs.ndim - 1) + (0, max(sizes) - len(outputs)))    # all_gather needs one size
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.detach().contiguous())
    parts[rank()] = padded
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


def summed(value):
    """The sum of a tensor over all ranks; its gradient is the sum of the gradients of all ranks."""
    return value if world() == 1 else _Sum.apply(value)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.forward(ctx, gradient)


def together(net):
    """Wrap the network in DistributedDataParallel: equal initial weights, gradients averaged over the ranks."""
    return net if world() == 1 else torch.nn.parallel.DistributedDataParallel(net, forward_sync_buffers=False)


def any_of(flag):
    """Whether the flag is set on any rank, so that all ranks leave a loop after the same step."""
    raised = torch.tensor([int(bool(flag))])
    if world() > 1:
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


@contextlib.contextmanager
def first_alone():
    """Context: the first rank runs the block alone, then the others run it and find what the first has made."""
    if not is_first():
        any_of(False)                                             # wait until the first has left the block
    yield
    if is_first():
        any_of(False)


def dealt(function, n):
    """[function(i) for i in range(n)] on the first rank, each i computed by one of the ranks; None on the others.

    Each rank takes a block of neighbours: DA's images are made with a slow and a fast strength in turn, and dealt in
    turn, one of two ranks would get all the slow ones.
    """
    found = [function(i) for i in range(rank() * n // world(), (rank() + 1) * n // world())]
    of_all = [None] * world() if is_first() else None
    dist.gather_object(found, of_all)
    if is_first():
        return [result for of_rank in of_all for result in of_rank]


def main():
    ranks, *command = sys.argv[1:] or [""]
    if not ranks.isdecimal() or int(ranks) < 1 or not command:
        raise UsageError(f"{' '.join([ranks, *command])}: use: python -m cmr.ranks RANKS script.py|-m module [flags]")
    logging.disable(logging.ERROR)                                # silences the launcher's own messages
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")         # silences warnings about host names, see HERE
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(ranks))))
    with tempfile.TemporaryDirectory() as logs:
        # The numeric address of this machine: looking up a host name that the network does not know takes minutes.
        config = LaunchConfig(1, 1, int(ranks), run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint=f"{HERE}:0",
                              local_addr=HERE, rdzv_configs={"join_timeout": LAUNCHER_S, "read_timeout": LAUNCHER_S},
                              max_restarts=0, logs_specs=DefaultLogsSpecs(logs))
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:                         # that rank has said why, unless it was killed
            failed, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                raise ResourceError(f"rank {failed} was killed ({name}), perhaps for want of memory, and all have "
                                    "ended; the same command goes on from what is finished, on any number of ranks")
            sys.exit(failure.exitcode)


if __name__ == "__main__":
    run_script(main)
