"""How strongly a reference is projected: what is kept of it, as text and as numbers; and what was chosen for a domain.

What the numbers do is said in `cmr.sampler`.  A *test input* is one image or several, whose softmax is averaged
(self-ensembling, Gao et al., Back to the Source, CVPR 2023): its members are strengths, written with `+` between them,
and `none` is the image as it is.

Public: `NONE`, `WIDE`, `DEFAULT_STRENGTH`, `Strength`, `parse_strength`, `parse_members`, `read_choice`.
"""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from cmr.errors import CheckpointError, UsageError

NONE = "none"                                    # the strength that translates nothing
# DG keeps part of a changed look, and the anatomy to the pixel.  DA averages the image as it is with one that has the
# source's brightness over wide windows: narrow windows and unguided projections gain more where the gap is large, and
# harm on many scanners where it is not.
WIDE = "t0=500,match=mean_std,guide_mm=30,steps=2"
DEFAULT_STRENGTH = {"dg": "t0=300,guide_mm=20,steps=2", "da": f"{NONE}+{WIDE}"}


@dataclass(frozen=True)
class Strength:
    """What is kept of the reference.  Written `t0=700,match=mean_std,shortest_mm=20`."""
    t0: int = 300                                # start time in 1..T; the reference is noised to exactly this level
    match: str = "none"                          # intensities of the reference first: none, mean_std, quantile
    shortest_mm: float = 0.0                     # wavelengths above this are copied from the reference; 0: none
    longest_mm: float = 0.0                      # ... and only those below this (band-pass); 0: no upper end (low-pass)
    mode: str = "x0"                             # copy in the predicted clean image, or in the state: ILVR ("state")
    t_stop: int = 100                            # below this time nothing is copied: texture and edges settle freely
    steps: int = 20                              # network calls
    eta: float = 1.0                             # 1 forgets the reference's texture, 0 keeps more of it
    guide_mm: float = 0.0                        # SD of the guided filter's windows; 0: the SD-DM's image as it is

    def __post_init__(self):
        if self.match not in ("none", "mean_std", "quantile"):
            raise UsageError(f"strength: match={self.match}; use none, mean_std or quantile")
        if self.mode not in ("x0", "state"):
            raise UsageError(f"strength: mode={self.mode}; use x0 or state")
        if self.t_stop < 0 or not 0 <= self.eta <= 1:
            raise UsageError(f"strength: t_stop={self.t_stop},eta={self.eta}; use t_stop 0 or more, eta 0 to 1")
        if not 0 <= self.shortest_mm < 1000 or not 0 <= self.longest_mm < 1000:
            raise UsageError(f"strength: shortest_mm={self.shortest_mm},longest_mm={self.longest_mm}; use 0 to 1000")
        if not 1 <= self.steps <= self.t0:
            raise UsageError(f"strength: steps={self.steps} from t0={self.t0}; use 1 to t0")
        if self.longest_mm and self.longest_mm <= self.shortest_mm:
            raise UsageError(f"strength: longest_mm={self.longest_mm} must exceed shortest_mm={self.shortest_mm}")
        if not 0 <= self.guide_mm < 1000:
            raise UsageError(f"strength: guide_mm={self.guide_mm}; use 0 to 1000")

    @classmethod
    def parse(cls, text):
        """From `name=value,...`; raises UsageError for an unknown name or value."""
        types = {f.name: f.type for f in dataclasses.fields(cls)}
        values = {}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in types:
                raise UsageError(f"strength {text!r}: unknown {name!r}; use {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError as error:
                raise UsageError(f"strength {text!r}: {name} must be {types[name].__name__}") from error
        return cls(**values)

    def __str__(self):
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("t0", "steps") or value != f.default:
                shown.append(f"{f.name}={value}" if f.type is str else f"{f.name}={value:g}")
        return ",".join(shown)


def parse_strength(text):
    """A Strength from its text, or NONE."""
    return NONE if text == NONE else Strength.parse(text)


def parse_members(text):
    """The members of a test input, a tuple of Strength or NONE; raises UsageError for an empty one."""
    parts = text.split("+")
    if not all(parts):
        raise UsageError(f"strength {text!r}: an empty member; write e.g. none+t0=500,guide_mm=30,steps=2")
    return tuple(map(parse_strength, parts))


def read_choice(path, domains, networks=None):
    """{domain's name: {network: strength as text, or NONE}} from choice.json of cmr.choose.

    networks : names that must be there; None: whichever are.  Raises CheckpointError if a domain or network is not.
    """
    try:
        choice = json.loads(Path(path).read_text())
        return {str(d): {n: choice[str(d)][n] for n in networks or choice[str(d)]} for d in domains}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no choice for these domains and networks ({error})"
        raise CheckpointError(f"{path}: {why}; run cmr.choose again") from error
