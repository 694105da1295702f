"""What ends a script with one line and its own exit code.

Public: `UserError` and its kinds, `answer`, `run_script`, `print_anything`.
"""
import atexit
import errno
import os
import re
import signal
import sys
import time

TURN_S = 3                                       # for a rank to say what happened and the launcher to end the others


class UserError(Exception):
    """Something the user can mend.  Printed as one line; `exit_code` is the process's."""
    exit_code = 2


class UsageError(UserError):
    """A flag, a preset or a domain filter that does not fit (2)."""


class DataError(UserError):
    """A file or a dataset that does not fit (3)."""
    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is damaged or of other settings (4)."""
    exit_code = 4


class ResourceError(UserError):
    """Disk, memory, permission, or another process (5)."""
    exit_code = 5


class NumericalError(UserError):
    """A loss or an image that is not finite (6)."""
    exit_code = 6


# What to do about an error of the system, by its number.
_PERMISSION = "you have no permission there: ask its owner for it (ls -l shows who may), or choose another folder"
_TO_DO = {errno.EACCES: _PERMISSION, errno.EPERM: _PERMISSION, errno.EROFS: "choose another folder",
          errno.EMFILE: "allow more open files (ulimit -n)", errno.ENFILE: "allow more open files (ulimit -n)"}
_FREE_SPACE = "free some space or memory, or choose another folder"

# What torch and its libraries say when memory runs out: the allocators of the CPU and of CUDA; cuBLAS, cuDNN and cuFFT,
# which cannot make their handles or find no algorithm that fits.
_OUT_OF_MEMORY = re.compile("out of memory|alloc|_STATUS_NOT_INITIALIZED|unable to find an engine", re.IGNORECASE)
_SHARED_MEMORY = re.compile(r"/dev/shm|shared memory|\(shm\)|</torch_")
_BETWEEN_RANKS = re.compile("NCCL|gloo|connection|socket", re.IGNORECASE)
SHARED_MEMORY = ("/dev/shm, where processes hand data to each other, is full or cannot be used; give it more (docker: "
                 "--shm-size=1g or --ipc=host), or train with --workers 0")


def answer(error):
    """(line, exit code) that an exception ends a script with; the line is None for a fault of the program itself."""
    said = str(error)
    if isinstance(error, UserError):
        return said, error.exit_code
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else said
        return f"{what}; {_TO_DO.get(error.errno, _FREE_SPACE)}", ResourceError.exit_code
    # The last line of what torch says, without a C++ stack: NCCL tells there what it met.
    gist = (said.partition("Exception raised from")[0].strip() or type(error).__name__).splitlines()[-1].strip()
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(said):              # before NCCL, which names it too
        return f"{SHARED_MEMORY} ({gist})", ResourceError.exit_code
    if _is_between_ranks(error):                                  # before memory: NCCL, too, says malloc
        return (f"the ranks cannot work together: {gist}; all have ended, the same command goes on from what is "
                "finished"), ResourceError.exit_code
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(said):
        return "out of memory; make --batch, --size, --base, --features or --processes smaller", ResourceError.exit_code
    return None, 1


def _is_between_ranks(error):
    """Whether ranks, or their launcher, have lost each other: torch's own kinds (DistBackendError), gloo's words."""
    if re.fullmatch(r"(Dist|Rendezvous)\w*Error", type(error).__name__):
        return True
    return isinstance(error, RuntimeError) and "WORLD_SIZE" in os.environ and bool(_BETWEEN_RANKS.search(str(error)))


def run_script(main):
    """Run `main` as a script: a user's error ends in one line and its own exit code, Ctrl-C and SIGTERM in 130.

    Of several ranks (`cmr.ranks`) the first alone prints what happens and what they all meet.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    print_anything()
    if "WORLD_SIZE" not in os.environ:
        sys.exit(_exit_code(main, first=True))
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    code = _exit_code(main, first)
    # Gloo's threads outlive the last exchange.  One that drops its tensor while Python is taken down aborts the process
    # ("terminate called without an active exception"): so Python is not taken down, all ends with the process.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_anything():
    """Let this process print every name: what the terminal has no letter for is written as its number."""
    if hasattr(sys.stdout, "reconfigure"):                        # not where a caller collects the text
        sys.stdout.reconfigure(errors="backslashreplace")


def _exit_code(main, first):
    """The exit code of `main`, after the line that says why."""
    try:
        main()
        return 0
    except SystemExit as stop:                                    # as of a rank whose share is done
        return stop.code or 0
    except KeyboardInterrupt:
        if "WORLD_SIZE" not in os.environ:                        # of ranks the launcher says it
            print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:                                       # the reader of our output has left
        os._exit(1)
    except Exception as error:
        line, code = answer(error)
        if line is None:
            raise
        # What all ranks meet the first says.  When ranks lose each other one has gone, and the launcher says which.
        # A rank for which another speaks waits until the launcher ends it; what it alone has met it says after that.
        turns = (not first) + _is_between_ranks(error)
        if turns and "WORLD_SIZE" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(TURN_S * turns)
        who = "" if first else f"rank {os.environ['RANK']}: "
        print(f"error: {who}{line}", file=sys.stderr)
        return code


def _interrupt(number, frame):
    raise KeyboardInterrupt
