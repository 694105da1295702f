"""Settings, presets and exit codes: one frozen dataclass per script becomes its command line.

Public: `opt`, `DataConfig`, `parse`, `differing_settings`, `run_script` and the errors that end a script with one line.
"""
import argparse
import dataclasses
import difflib
import os
import sys
from dataclasses import dataclass


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


def opt(default, help):
    """A dataclass field with its help text, which becomes a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DataConfig:
    """What every stage must agree on: the dataset, the source domain and the working grid."""
    data: str = opt("", "dataset folder: M&Ms-1, M&Ms-2, ACDC or nnU-Net raw; several, separated by commas, are taken together")
    source: str = opt("Vendor=A", "source domain, a filter on a metadata column, e.g. Vendor=A or Pathology=MINF,DCM")
    out: str = opt("", "output folder of this stage")
    work: str = opt("runs/work", "cache of working volumes")
    use_unlabeled_masks: bool = opt(False, "M&Ms-1: trust the masks found under Training/Unlabeled")
    spacing_mm: float = opt(2.5, "in-plane spacing of the working grid, mm")
    size: int = opt(64, "height and width of the working grid, pixels")
    seed: int = opt(0, "every random number is a function of this, the step and the item")
    device: str = opt("auto", "auto (the first GPU if there is one), cpu, cuda or cuda:N")


# Settings that may change between a killed run and its continuation: they say where, not what.
PLACES = {"data", "out", "work", "device", "log_every", "save_every", "sample_every"}


def differing_settings(saved, now, ignore=PLACES):
    """{name: (saved, now)} for every setting that differs, places and intervals left out."""
    return {k: (saved.get(k), now.get(k)) for k in sorted({*saved, *now} - set(ignore)) if saved.get(k) != now.get(k)}


class _Parser(argparse.ArgumentParser):
    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [f for a in self._actions for f in a.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            raise UsageError(f"unknown argument {unknown[0]}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return args

    def error(self, message):
        raise UsageError(message)


def parse(config_class, presets, argv, description, by=None):
    """The settings of one run: the defaults, then the named preset, then the flags.

    by : name of a setting by whose value a preset is subdivided; None: it is not.
    Prints them, so that a log starts with what was run.  Raises UsageError for an unknown preset, flag or value.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=sorted(presets), default="demo", help="a named set of values; flags override it")
    for f in dataclasses.fields(config_class):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        shown = dict(help=f"{f.metadata['help']} (default: {f.default!r})", default=argparse.SUPPRESS)
        parser.add_argument("--" + f.name.replace("_", "-"), **kind, **shown)
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset")
    chosen = presets[preset]
    if by:
        kind = given.get(by, getattr(config_class, by))
        if kind not in chosen:
            raise UsageError(f"--{by} {kind}: use {' or '.join(chosen)}")
        chosen = chosen[kind]
    config = config_class(**{**chosen, **given})
    print(f"preset {preset}: " + "  ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items()), flush=True)
    return config


def run_script(main):
    """Run `main` as a script: a user's error ends in one line and its own exit code, Ctrl-C in 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                                       # the reader of our output has left
        os._exit(1)
    except (OSError, MemoryError) as error:
        what = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else str(error) or "out of memory"
        print(f"error: {what}; free some space or memory, or choose another folder", file=sys.stderr)
        sys.exit(ResourceError.exit_code)
