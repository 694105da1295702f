"""Settings and presets: one frozen dataclass per script becomes its command line.

Every setting says beside its default what is allowed, and `parse` refuses anything else before a file is read.  What
settings must be together is for the script that has them.

Public: `opt`, `at_least`, `above`, `within`, `one_of`, `matching`, `given`, `integers`, `DataConfig`,
`FULL_GRID`, `GRIDS`, `parse`, `without_places`, `differing_settings`.
"""
import argparse
import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from typing import Callable

from cmr.errors import UsageError


@dataclass(frozen=True)
class Allowed:
    """Which values a setting may have: in words, and as a test."""
    words: str
    holds: Callable


def at_least(low):
    return Allowed(f"{low:g} or more", lambda value: math.isfinite(value) and value >= low)


def above(low):
    return Allowed(f"more than {low:g}", lambda value: math.isfinite(value) and value > low)


def within(low, high):
    return Allowed(f"{low:g} to {high:g}", lambda value: low <= value <= high)


def one_of(*names):
    return Allowed(" or ".join(names), lambda value: value in names)


def matching(pattern, words):
    """A text of the pattern, which `words` describe."""
    return Allowed(words, lambda value: bool(re.fullmatch(pattern, value)))


def given(what):
    """A text that may not be left out."""
    return Allowed(what, lambda value: bool(value.strip()))


def integers(low, may_be_empty=False):
    """Whole numbers separated by commas."""
    is_one = lambda part: part.strip().isdecimal() and int(part) >= low
    return Allowed(f"whole numbers of {low} or more, separated by commas",
                   lambda text: may_be_empty and not text or all(map(is_one, text.split(","))))


def opt(default, help, allowed=None):
    """A dataclass field with its help text and what is allowed, which becomes a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True)
class DataConfig:
    """What every stage must agree on: the dataset, the source domain and the working grid."""
    data: str = opt("", "dataset folder: M&Ms-1, M&Ms-2, ACDC, nnU-Net raw, or images and labels; several, "
                        "separated by commas, are taken together", given("the folder of a dataset"))
    source: str = opt("Vendor=A", "source domain, a filter on a metadata column, e.g. Vendor=A or Pathology=MINF,DCM")
    out: str = opt("", "output folder of this stage")
    work: str = opt("runs/work", "cache of working volumes")
    upper_bound: bool = opt(False, "an upper bound is asked for: targets of a dataset without splits get training "
                                   "studies too")
    use_unlabeled_masks: bool = opt(False, "M&Ms-1: trust the masks found under Training/Unlabeled")
    spacing_mm: float = opt(2.5, "in-plane spacing of the working grid, mm", within(0.4, 10))
    size: int = opt(64, "height and width of the working grid, pixels", within(16, 1024))
    seed: int = opt(0, "every random number is a function of this, the step and the item", at_least(0))
    device: str = opt("auto", "auto is the first GPU if there is one, else the CPU",
                      matching(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", "auto, cpu, cuda or cuda:N"))


# The working grid of the presets `small`, `lab` and `paper`; the defaults above are that of `tiny` and `demo`.
FULL_GRID = dict(size=128, spacing_mm=1.5)
GRIDS = {"tiny": {}, "demo": {}, "small": FULL_GRID, "lab": FULL_GRID, "paper": FULL_GRID}

# Settings that may change between a killed run and its continuation: they say where, not what.  Which studies there
# are, stages compare by content.
PLACES = {"data", "upper_bound", "out", "work", "synthetic", "device", "workers", "log_every", "save_minutes",
          "sample_every", "sheet", "sheet_steps"}


def without_places(settings):
    """The settings that decide what comes out: all but PLACES."""
    return {name: value for name, value in settings.items() if name not in PLACES}


def differing_settings(saved, now):
    """{name: (saved, now)} for every setting that differs, PLACES left out."""
    saved, now = without_places(saved), without_places(now)
    return {k: (saved.get(k), now.get(k)) for k in sorted({*saved, *now}) if saved.get(k) != now.get(k)}


class _Parser(argparse.ArgumentParser):
    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [f for a in self._actions for f in a.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UsageError(f"unknown argument {unknown[0]}; {hint}")
        return args

    def error(self, message):
        raise UsageError(message)


def parse(config_class, presets, argv, description, by=None):
    """The settings of one run: the defaults, then the named preset, then the flags.

    by : name of a setting by whose value a preset is subdivided; None: it is not.
    Prints them, so that a log starts with what was run.  Raises UsageError for an unknown preset, flag or value.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    about_presets = "a named set of values, which flags override (default: demo)"
    parser.add_argument("--preset", choices=list(presets), default="demo", help=about_presets)
    shared = {f.name for f in dataclasses.fields(DataConfig)}
    groups = {True: parser.add_argument_group("what all stages must agree on, and where"),
              False: parser.add_argument_group("this stage")}
    for f in dataclasses.fields(config_class):
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        if f.type is tuple:                                       # what is named without a flag
            parser.add_argument(f.name, nargs="*", metavar=f.name.upper(), help=f.metadata["help"],
                                default=argparse.SUPPRESS)
            continue
        own = groups[f.name in shared and f.name != "out"]
        about = _about(f, presets, by)
        own.add_argument("--" + f.name.replace("_", "-"), **kind, help=about, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset")
    chosen = presets[preset]
    if by:
        kind = given.get(by, getattr(config_class, by))
        if kind not in chosen:
            raise UsageError(f"--{by} {kind}: use {' or '.join(chosen)}")
        chosen = chosen[kind]
    config = config_class(**{**chosen, **given})
    _require_allowed(config)
    values = dataclasses.asdict(config).items()
    print(f"preset {preset}: " + "  ".join(f"{name}={value}" for name, value in values), flush=True)
    return config


def _about(f, presets, by):
    """Help text of a setting: what it is, what is allowed, and what each preset makes of it."""
    allowed, shown = f.metadata.get("allowed"), [f"default: {f.default!r}"]
    for preset, of in presets.items():
        kinds = of if by else {"": of}
        values = {kind: repr(own[f.name]) for kind, own in kinds.items() if f.name in own}
        if len(values) == len(kinds) and len(set(values.values())) == 1:             # all alike
            values = {"": next(iter(values.values()))}
        shown += [f"{preset}{kind and ' '}{kind}: {value}" for kind, value in values.items()]
    words = [allowed.words] if allowed else []
    return f"{f.metadata['help']} ({'; '.join([*words, ', '.join(shown)])})".replace("%", "%%")


def _require_allowed(config):
    """Raise UsageError for the first value that its setting does not allow."""
    for f in dataclasses.fields(config):
        value, allowed = getattr(config, f.name), f.metadata.get("allowed")
        if allowed and not allowed.holds(value):
            raise UsageError(f"--{f.name.replace('_', '-')} {value!r}: use {allowed.words}")
