"""Settings, presets and flags."""
import dataclasses

import pytest

from cmr.errors import UsageError
from cmr.settings import parse


@dataclasses.dataclass(frozen=True)
class Small:
    steps: int = dataclasses.field(default=3, metadata={"help": "h"})
    fast: bool = dataclasses.field(default=False, metadata={"help": "h"})


def test_command_line():
    presets = {"demo": {}, "tiny": {"steps": 1}}
    assert parse(Small, presets, ["--preset", "tiny"], "") == Small(1)
    assert parse(Small, presets, ["--preset", "tiny", "--steps", "7", "--fast"], "") == Small(7, True)
    with pytest.raises(UsageError, match="unknown argument --stepz; did you mean --steps"):
        parse(Small, presets, ["--stepz", "3"], "")
    with pytest.raises(UsageError, match="invalid int"):
        parse(Small, presets, ["--steps", "many"], "")
