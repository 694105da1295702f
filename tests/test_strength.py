"""Strengths as text."""
import pytest

from cmr.errors import UsageError
from cmr.strength import NONE, Strength, parse_members


def test_strength_text():
    s = Strength.parse("t0=700,match=mean_std,low_pass=2,pull=0.1,steps=12,times=uniform")
    assert s == Strength(t0=700, match="mean_std", low_pass=2, pull=0.1, steps=12, times="uniform")
    assert Strength.parse(str(s)) == s
    for text, words in (("t=3", "unknown 't'"), ("t0=x", "must be int"), ("match=linear", "none or mean_std"),
                        ("t0=5,steps=9", "1 to t0"), ("low_pass=-1", "low_pass=-1; use 0 to 64"),
                        ("times=cubic", "quadratic or uniform"), ("pull=nan", "use 0 to 1"),
                        ("guide_mm=-1", "guide_mm=-1.0; use 0 to 1000")):
        with pytest.raises(UsageError, match=words):
            Strength.parse(text)


def test_a_test_input_has_members():
    assert parse_members("none") == (NONE,)
    members = parse_members("none+t0=500,guide_mm=30,steps=2+t0=300,steps=2")
    assert members == (NONE, Strength(t0=500, guide_mm=30.0, steps=2), Strength(t0=300, steps=2))
    assert parse_members("+".join(map(str, members))) == members
    for text in ("none+", "+none", "raw+none"):
        with pytest.raises(UsageError, match="strength"):
            parse_members(text)
