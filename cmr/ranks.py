"""Ranks: processes that do one piece of work together, through torch.distributed.

Started by `torchrun --nproc_per_node=4 train_unet.py ...` or `python -m cmr.launch 4 train_unet.py ...`; a process by
itself is rank 0 of 1 and takes the same path.  In training the batch is what the settings say, whatever the number of
ranks.  Each computes its share of the samples, the outputs are gathered, and every rank forms the loss of the *whole*
batch, whose gradient it follows through its own share; the gradients are summed.  So nothing that is taken over a batch
(soft Dice, batch statistics) depends on the number of ranks.  Only the first rank writes and prints.

Public: `rank`, `world`, `is_first`, `join`, `share`, `require_dealable`, `gathered`, `summed`, `together`, `any_of`,
`first_alone`, `dealt`.
"""
import contextlib
import datetime
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cmr.errors import UsageError

MEETING = datetime.timedelta(minutes=3)          # until all are there
PATIENCE = datetime.timedelta(hours=12)          # for the first to read a dataset; the dead are seen at once


def rank():
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world():
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    return rank() == 0


def join(device):
    """Meet the other ranks; the device of this one: of several GPUs its own.  Nothing happens to a single process.

    Raises UsageError if there are fewer GPUs than ranks on this machine, or if nobody has said where the ranks meet.
    """
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
    """Make the process group of all ranks.  One that never comes is waited for as long as MEETING, not as PATIENCE."""
    try:
        store, own, n = next(dist.rendezvous("env://", timeout=MEETING))
    except ValueError as error:                                   # a variable of the environment is missing
        raise UsageError(f"WORLD_SIZE={world()}: {error}; start ranks with python -m cmr.launch or torchrun") from error
    store.set(f"here-{own}", "")
    store.wait([f"here-{other}" for other in range(n)], MEETING)
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=own, world_size=n, timeout=PATIENCE)


def share(n, of=None):
    """Which of n samples are those of a rank: range, sizes differ by one at most.  of : the rank; None: this one.

    Raises UsageError if there are more ranks than samples.
    """
    require_dealable(n, world())
    of = rank() if of is None else of
    return range(of * n // world(), (of + 1) * n // world())


def require_dealable(n, processes, whose=""):
    """Raise UsageError if a batch of n samples has none for one of so many ranks.  whose : begins the line."""
    if n < processes:
        raise UsageError(f"{whose}{processes} processes: a batch of {n} cannot be dealt to more than {n}; start fewer")


def gathered(own, n):
    """The whole batch from the shares of all ranks: (share, *rest) -> (n, *rest), or of each tensor of a list.

    The gradient flows through this rank's own part alone: every rank forms the same loss, and follows its own samples.
    """
    if world() == 1:
        return own
    if isinstance(own, (list, tuple)):
        return [gathered(one, n) for one in own]
    shares = [share(n, of) for of in range(world())]
    largest = max(map(len, shares))
    padded = F.pad(own, (0, 0) * (own.ndim - 1) + (0, largest - len(own)))           # all must be of one size
    parts = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(parts, padded.detach().contiguous())
    parts[rank()] = padded
    return torch.cat([part[:len(samples)] for part, samples in zip(parts, shares)])


def summed(value):
    """Sum of a tensor over all ranks; its gradient is the sum over what every rank makes of it."""
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
    """The network with the gradients of all ranks (DistributedDataParallel), with equal weights to begin with."""
    if world() == 1:
        return net
    device = next(net.parameters()).device
    return torch.nn.parallel.DistributedDataParallel(net, [device] if device.type == "cuda" else None,
                                                     forward_sync_buffers=False)


def any_of(flag):
    """Whether the flag is set on any rank: all leave a loop after the same step."""
    if world() == 1:
        return bool(flag)
    raised = torch.tensor([int(bool(flag))])
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


@contextlib.contextmanager
def first_alone():
    """The block is gone through by the first rank, then by the others: what it has made they find."""
    if not is_first():
        any_of(False)
    yield
    if is_first():
        any_of(False)


def dealt(function, n):
    """[function(i) for i in range(n)] on the first rank, each i computed by one rank; None on the others."""
    own = {i: function(i) for i in range(rank(), n, world())}
    everything = [None] * world() if is_first() else None
    dist.gather_object(own, everything)
    if is_first():
        found = {i: result for some in everything for i, result in some.items()}
        return [found[i] for i in range(n)]
