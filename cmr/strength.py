"""How strongly a reference is projected: what is kept of it, as text and as numbers; and the recipes of DG and DA.

What the numbers do is said in `cmr.sampler`.  A *test input* is one image or several, whose softmax is averaged
(self-ensembling, Gao et al., Back to the Source, CVPR 2023): its members are strengths, written with `+` between them,
and `none` is the image as it is.

Public: `NONE`, `PROJECTED`, `GUIDED`, `DEFAULT_STRENGTH`, `Strength`, `parse_strength`, `parse_members`.
"""
import dataclasses
from dataclasses import dataclass

from cmr.errors import UsageError

NONE = "none"                                    # the strength that translates nothing
# The paper's sampler in each preset.  `paper` has the settings of the first author's working scripts: the 50th of 100
# uniform times, a low-pass by 2, a scale of 6 on 128 x 128 pixels.  Elsewhere mean and SD are matched to the source's
# first: what is coarser than the low-pass, and so contrast, is held, and would stay the reference's.
# Uniform times: quadratic ones take large last steps, which overshoot the guidance and leave a dotted texture.
_SAMPLER = "t0=490,match=mean_std,low_pass=2,steps=25,times=uniform"
PROJECTED = {"tiny": "t0=50,match=mean_std,low_pass=2,steps=3", "demo": _SAMPLER, "small": _SAMPLER, "lab": _SAMPLER,
             "paper": "t0=505,low_pass=2,steps=50,times=uniform"}
# The guided projection: brightness of the source over wide windows, every edge of the reference.
GUIDED = "t0=500,match=mean_std,guide_mm=30,steps=2"
# What DG projects with, and what a target's image is segmented from where nothing else is asked for.
DEFAULT_STRENGTH = {"dg": _SAMPLER, "da": f"{NONE}+{GUIDED}"}


@dataclass(frozen=True)
class Strength:
    """What is kept of the reference.  Written `t0=490,low_pass=2,steps=25`."""
    t0: int = 300                                # start time in 1..T; the reference is noised to exactly this level
    match: str = "none"                          # intensities of the reference first: none or mean_std, the source's
    low_pass: int = 0                            # D of the guidance, in pixels; 0: unguided (SDEdit)
    pull: float = 0.047                          # grey levels that the guidance moves a pixel by at each step
    steps: int = 20                              # network calls
    times: str = "quadratic"                     # how these are spaced from t0 to 0: quadratic or uniform
    guide_mm: float = 0.0                        # SD of the guided filter's windows; 0: the SD-DM's image as it is

    def __post_init__(self):
        if self.match not in ("none", "mean_std"):
            raise UsageError(f"strength: match={self.match}; use none or mean_std")
        if self.times not in ("quadratic", "uniform"):
            raise UsageError(f"strength: times={self.times}; use quadratic or uniform")
        if not 1 <= self.steps <= self.t0:
            raise UsageError(f"strength: steps={self.steps} from t0={self.t0}; use 1 to t0")
        for name, most in (("low_pass", 64), ("pull", 1), ("guide_mm", 1000)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"strength: {name}={getattr(self, name)}; use 0 to {most}")

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
