"""Start a script on several ranks: `python -m cmr.launch 4 train_unet.py ...`, by PyTorch's own launcher.

The same as `torchrun --nproc_per_node=4 train_unet.py ...`, except that a rank which dies ends all of them with one
line instead of a page.  What the ranks do together is in `cmr.ranks`.

Public: `main`.
"""
import logging
import os
import signal
import sys
import tempfile
import uuid

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cmr.errors import ResourceError, UsageError, run_script

HERE, PATIENCE_S = "127.0.0.1", 60               # all ranks are on this machine; seconds for its launcher to begin
USAGE = "use: python -m cmr.launch RANKS script.py|-m module [flags]"


def main(argv=None):
    ranks, *command = (sys.argv[1:] if argv is None else argv) or [""]
    if not ranks.isdecimal() or int(ranks) < 1 or not command:
        raise UsageError(f"{' '.join([ranks, *command])}: {USAGE}")
    logging.disable(logging.ERROR)                                # what its parts say beside the line that counts
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")         # names it cannot resolve are no news: see HERE
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(ranks))))
    with tempfile.TemporaryDirectory() as logs:
        # Its own address in numbers: a host's name is not known to every network, and asking for it takes minutes.
        config = LaunchConfig(1, 1, int(ranks), run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint=f"{HERE}:0",
                              local_addr=HERE, rdzv_configs={"join_timeout": PATIENCE_S, "read_timeout": PATIENCE_S},
                              max_restarts=0, logs_specs=DefaultLogsSpecs(logs))
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            _told(*error.get_first_failure())


def _told(rank, failure):
    """End as the rank that failed first has ended, which has said why unless it was killed."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        raise ResourceError(f"rank {rank} was killed ({name}), perhaps for want of memory, and all have ended; the "
                            "same command goes on from what is finished, on any number of ranks")
    sys.exit(failure.exitcode)


if __name__ == "__main__":
    run_script(main)
