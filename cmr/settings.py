"""Settings and presets: the frozen dataclass of each script becomes its command line.

Every setting states beside its default what is allowed, and `parse` refuses other values before any file is read.
"""
import argparse
import dataclasses
import math
import re
from dataclasses import dataclass

from cmr.errors import UsageError

# Each of these functions returns which values a setting may have: in words, and as a test of one value.


def at_least(low):
    return f"{low:g} or more", lambda value: math.isfinite(value) and value >= low


def above(low):
    return f"more than {low:g}", lambda value: math.isfinite(value) and value > low


def within(low, high):
    return f"{low} to {high}", lambda value: low <= value <= high


def one_of(*names):
    return " or ".join(names), lambda value: value in names


def some_of(*names):
    """Some, all or none of these names, separated by commas or spaces."""
    return f"some of {', '.join(names)}", lambda text: set(text.replace(",", " ").split()) <= set(names)


def matching(pattern, words):
    """Any text that matches the whole regular expression `pattern`; `words` describe it."""
    return words, lambda value: re.fullmatch(pattern, value)


def required(words):
    """Any text that is not blank; `words` describe it."""
    return matching(r"(?s).*\S.*", words)


def opt(default, help, allowed=("", lambda value: True)):
    """A dataclass field, which becomes a flag of the same name, with its help text and the allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "allowed": allowed})


DEVICE = opt("auto", "auto is the first GPU if there is one, else the CPU",
             matching(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", "auto, cpu, cuda or cuda:N"))


SEED = within(0, 2 ** 31 - 1)


@dataclass(frozen=True)
class DataConfig:
    """What every stage must agree on: the dataset, the source domain and the working grid."""
    data: str = opt("", "dataset folder: M&Ms-1, M&Ms-2, ACDC, nnU-Net raw, or images and labels; several, "
                        "separated by commas, are taken together", required("the folder of a dataset"))
    source: str = opt("Vendor=A", "source domain, a filter on a metadata column, e.g. Vendor=A or Pathology=MINF,DCM")
    out: str = opt("", "output folder of this stage")
    work: str = opt("runs/work", "cache of working volumes")
    upper_bound: bool = opt(False, "an upper bound is asked for: targets of a dataset without splits get training "
                                   "studies too")
    use_unlabeled_masks: bool = opt(False, "M&Ms-1: trust the masks found under Training/Unlabeled")
    spacing_mm: float = opt(2.5, "in-plane spacing of the working grid, mm", within(0.4, 4))
    size: int = opt(64, "height and width of the working grid, pixels", within(16, 1024))
    seed: int = opt(0, "every random number is a function of this, the step and the item", SEED)
    device: str = DEVICE


# The working grid of the presets `small`, `lab` and `paper`; `tiny` and `demo` have that of the defaults above.
FULL_GRID = dict(size=128, spacing_mm=1.5)
GRIDS = {"tiny": {}, "demo": {}, "small": FULL_GRID, "lab": FULL_GRID, "paper": FULL_GRID}

# Settings that may change when a killed run goes on; stages compare the studies themselves by their content.
NO_EFFECT = {"data", "upper_bound", "out", "work", "synthetic", "device", "workers", "log_every", "save_minutes",
          "sample_every", "sheet", "sheet_steps"}


def deciding(settings):
    """The settings that decide the result: all but those of NO_EFFECT."""
    return {name: value for name, value in settings.items() if name not in NO_EFFECT}


def parse(config_class, presets, argv, description, by=None):
    """The settings of one run: the defaults, overridden by the named preset, overridden by the flags.

    by : name of a setting; a preset then has one dictionary for each of its values.  None: a preset is one dictionary.
    """
    flags = vars(_parser(config_class, presets, description).parse_args(argv))
    preset = flags.pop("preset")
    values = presets[preset]
    if by:
        kind = flags.get(by, getattr(config_class, by))
        if kind not in values:
            raise UsageError(f"--{by} {kind}: use {' or '.join(values)}")
        values = values[kind]
    values = {**values, **flags}
    if "data" in values:                                          # so that all who part it at the commas find folders
        values["data"] = ",".join(part.strip() for part in values["data"].split(","))
    config = config_class(**values)
    for f in dataclasses.fields(config):
        value, (words, holds) = getattr(config, f.name), f.metadata["allowed"]
        if not holds(value):
            raise UsageError(f"{_flag(f)} {value!r}: use {words}")
    shown = dataclasses.asdict(config).items()
    print(f"preset {preset}: " + "  ".join(f"{name}={value}" for name, value in shown), flush=True)
    return config


class _Parser(argparse.ArgumentParser):
    """argparse's parser, but mistakes raise UsageError."""

    def error(self, message):
        raise UsageError(message)


def _parser(config_class, presets, description):
    """The parser, with a flag for every setting."""
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", choices=list(presets), default="demo",
                        help="a named set of values, which flags override (default: demo)")
    for f in dataclasses.fields(config_class):
        if f.type is tuple:                                       # positional arguments
            parser.add_argument(f.name, nargs="*", metavar=f.name.upper(), help=f.metadata["help"])
            continue
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        words, _ = f.metadata["allowed"]
        about = f"{f.metadata['help']} ({words + '; ' if words else ''}default: {f.default!r})".replace("%", "%%")
        parser.add_argument(_flag(f), **kind, help=about)
    return parser


def _flag(f):
    return "--" + f.name.replace("_", "-")
