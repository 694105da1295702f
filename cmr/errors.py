"""Errors that end a script with one line and an exit code of their own."""
import atexit
import errno
import os
import re
import signal
import sys
import time

TURN_S = 6                                       # time for one rank to print and for the launcher to end the others


class UserError(Exception):
    """An error that the user can mend: it is printed as one line, and the process ends with `exit_code`."""
    exit_code = 2


class UsageError(UserError):
    """A flag, a preset or a domain filter does not fit (exit code 2)."""


class DataError(UserError):
    """A file or a dataset cannot be used (exit code 3)."""
    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is damaged or was made with other settings or data (exit code 4)."""
    exit_code = 4


class ResourceError(UserError):
    """Disk space, memory or a permission is missing, or another process is in the way (exit code 5)."""
    exit_code = 5


class NumericalError(UserError):
    """A loss or an image is not finite (exit code 6)."""
    exit_code = 6


# What the user can do about an error of the operating system, by its number.
_PERMISSION = "you have no permission there: ask its owner for it (ls -l shows who may), or choose another folder"
_TO_DO = {errno.EACCES: _PERMISSION, errno.EPERM: _PERMISSION, errno.EROFS: "choose another folder",
          errno.EMFILE: "allow more open files (ulimit -n)", errno.ENFILE: "allow more open files (ulimit -n)"}
_FREE_SPACE = "free some space or memory, or choose another folder"

# These words occur in the messages of torch's allocators when memory runs out, and in those of cuBLAS, cuDNN and cuFFT,
# which then cannot make a handle or find an algorithm.
_OUT_OF_MEMORY = re.compile("out of memory|alloc|_STATUS_NOT_INITIALIZED|unable to find an engine", re.IGNORECASE)
_SHARED_MEMORY = re.compile(r"/dev/shm|shared memory|\(shm\)|</torch_")
_BETWEEN_RANKS = re.compile("NCCL|gloo|connection|socket", re.IGNORECASE)
SHARED_MEMORY = ("/dev/shm, where processes hand data to each other, is full or cannot be used; give it more (docker: "
                 "--shm-size=1g or --ipc=host), or train with --workers 0")


def answer(error):
    """Return (line, exit code) with which an exception ends a script; the line is None if the program is at fault."""
    said = str(error)
    if isinstance(error, UserError):
        return said, error.exit_code
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else said
        return f"{what}; {_TO_DO.get(error.errno, _FREE_SPACE)}", ResourceError.exit_code
    # This is the last line of torch's message, without the C++ stack: there NCCL says what happened.
    gist = (said.partition("Exception raised from")[0].strip() or type(error).__name__).splitlines()[-1].strip()
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(said):              # first: NCCL may name it too
        return f"{SHARED_MEMORY} ({gist})", ResourceError.exit_code
    if _is_between_ranks(error):                                  # before memory, because NCCL may say "malloc"
        return (f"the ranks cannot work together: {gist}; all have ended, the same command goes on from what is "
                "finished"), ResourceError.exit_code
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(said):
        return "out of memory; make --batch, --size, --base, --features or --processes smaller", ResourceError.exit_code
    return None, 1


def _is_between_ranks(error):
    if re.fullmatch(r"(Dist|Rendezvous)\w*Error", type(error).__name__):
        return True
    return isinstance(error, RuntimeError) and _among_ranks() and bool(_BETWEEN_RANKS.search(str(error)))


def _among_ranks():
    """Return whether this process is one of several ranks; a scheduler may say that it is one of one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def run_script(main):
    """Run `main` and exit: a UserError prints one line and gives its exit code, Ctrl-C and SIGTERM give 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print_anything()
    if not _among_ranks():
        sys.exit(_exit_code(main, first=True))
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    code = _exit_code(main, first)
    # Gloo's threads outlive the last exchange, and one that frees its tensor while Python shuts down aborts the process
    # ("terminate called without an active exception").  The process therefore ends without Python's shutdown.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_anything():
    """Let this process print any text: a character that the terminal cannot show is printed as its number."""
    if hasattr(sys.stdout, "reconfigure"):                        # a caller that collects the text has none
        sys.stdout.reconfigure(errors="backslashreplace")


def _exit_code(main, first):
    try:
        main()
        return 0
    except SystemExit as stop:                                    # a rank whose share is done exits so
        return stop.code or 0
    except KeyboardInterrupt:
        if not _among_ranks():                                    # for ranks the launcher prints it
            print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:                                       # the program that read our output has ended
        os._exit(1)
    except Exception as error:
        line, code = answer(error)
        if line is None:
            raise
        # The first rank prints an error that all have, and the launcher names a rank that was lost.  Every other rank
        # waits for the launcher to end it, and prints its own error only if it is still running after that.
        turns = (not first) + _is_between_ranks(error)
        if turns and _among_ranks():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(TURN_S * turns)
        who = "" if first else f"rank {os.environ['RANK']}: "
        print(f"error: {who}{line}", file=sys.stderr)
        return code
