"""Strengths as text, and the choice of one."""
import pytest

from cmr.errors import CheckpointError, UsageError
from cmr.strength import NONE, Strength, parse_members, read_choice


def test_strength_text():
    s = Strength.parse("t0=700,match=mean_std,shortest_mm=20,steps=12")
    assert s == Strength(t0=700, match="mean_std", shortest_mm=20.0, steps=12) and Strength.parse(str(s)) == s
    for text, words in (("t=3", "unknown 't'"), ("t0=x", "must be int"), ("match=linear", "none, mean_std or quantile"),
                        ("t0=5,steps=9", "1 to t0"), ("shortest_mm=20,longest_mm=10", "must exceed"),
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


def test_a_choice_must_cover_what_is_asked_for(tmp_path):
    path = tmp_path / "choice.json"
    with pytest.raises(CheckpointError, match="run cmr.choose again"):
        read_choice(path, ["Vendor=B"])
    path.write_text('{"Vendor=B": {"vanilla": "none", "nnunet2d": "t0=50,steps=2"}}')
    assert read_choice(path, ["Vendor=B"]) == {"Vendor=B": {"vanilla": "none", "nnunet2d": "t0=50,steps=2"}}
    assert read_choice(path, ["Vendor=B"], ["vanilla"]) == {"Vendor=B": {"vanilla": "none"}}
    for damaged in ("", "{", "[]", "7", '{"Vendor=B": "none"}', "null"):
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="damaged.json: no choice for these domains and networks"):
            read_choice(tmp_path / "damaged.json", ["Vendor=B"], ["vanilla"])
    for domains, networks in ((["Vendor=C"], None), (["Vendor=B"], ["nnunet3d"])):
        with pytest.raises(CheckpointError, match="no choice for these domains and networks"):
            read_choice(path, domains, networks)
