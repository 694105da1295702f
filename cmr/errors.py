"""What ends a script with one line and its own exit code.  What is checked, and when, is the business of the stages.

Public: `UserError` and its kinds, `run_script`, `print_anything`.
"""
import atexit
import os
import signal
import sys
import time


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
    """Disk, memory or permission (5)."""
    exit_code = 5


class NumericalError(UserError):
    """A loss or an image that is not finite (6)."""
    exit_code = 6


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
    _leave(_exit_code(main, first))


def print_anything():
    """Let this process print every name: what the terminal has no letter for is written as its number."""
    if hasattr(sys.stdout, "reconfigure"):                        # not where a caller collects the text
        sys.stdout.reconfigure(errors="backslashreplace")


def _exit_code(main, first):
    """The exit code of `main`, after the line that says why."""
    try:
        main()
        return 0
    except UserError as error:
        _say(f"error: {error}", first)
        if not first:                                             # the first meets it too, and is to say it
            _wait_for_the_launcher()
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from what is finished", first)
        return 130
    except BrokenPipeError:                                       # the reader of our output has left
        os._exit(1)
    except RuntimeError as error:
        if "alloc" in str(error) or "out of memory" in str(error):                   # torch's words, on CPU and GPU
            _say("error: out of memory; make --batch, --size, --base, --features or --processes smaller")
        elif "onnection" in str(error) and "WORLD_SIZE" in os.environ:
            _wait_for_the_launcher()                              # another rank has gone: the launcher says which
        else:
            raise
        return ResourceError.exit_code
    except (OSError, MemoryError) as error:
        named = getattr(error, "filename", None)
        what = f"{error.filename}: {error.strerror}" if named else str(error) or "out of memory"
        _say(f"error: {what}; free some space or memory, or choose another folder")
        return ResourceError.exit_code


def _wait_for_the_launcher():
    """Stay until the launcher has seen which rank went first; it ends the others."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(2)


def _leave(code):
    """End a rank without taking the interpreter down.

    Gloo's threads outlive the last exchange.  One that drops its tensor while Python is taken down aborts the process
    ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(line, wanted=True):
    if wanted:
        print(line, file=sys.stderr)


def _interrupt(number, frame):
    raise KeyboardInterrupt
