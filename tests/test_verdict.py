"""The five sentences of a report, on made-up numbers: each outcome has its words, and only its own."""
import pytest

from cmr.comparison import all_tests, outcome
from cmr.verdict import sentences

SOURCE = "Vendor=A"


def rows_of(hd95_of, networks=("vanilla",), source_hd95=8.0, patients=14):
    """Rows of metrics.csv.  hd95_of : {arm: change of HD95 to the baseline's 20 mm, by patient}."""
    rows = []
    for network in networks:
        for domain in (SOURCE, "Vendor=B", "Vendor=C"):
            for arm, change in {"baseline": lambda i: 0.0, **hd95_of}.items():
                for i in range(patients):
                    level = source_hd95 if domain == SOURCE else 20.0
                    hd95 = level + 0.1 * (i % 5) + (change(i) if domain != SOURCE else 0.0)
                    rows.append({"domain": domain, "role": "source" if domain == SOURCE else "target",
                                 "subject": f"{domain}{i}", "arm": arm, "network": network, "status": "ok",
                                 "structure": "LV", "dice": 1 - hd95 / 100, "hd95": hd95, "assd": hd95 / 4,
                                 "hd95_in_plane": hd95, "diagonal_mm": 500.0})
    return rows


def said(hd95_of, **more):
    rows = rows_of(hd95_of, **more)
    return dict(zip(("gap", "DA", "DG", "controls", "harm"), sentences(rows, all_tests(rows), SOURCE)))


def steady(mm, period=7):
    return lambda i: mm + 0.05 * (i % period - period // 2)


def wavering(i):
    return 6.0 if i % 2 else -6.3


def test_the_gap_is_said_as_it_is():
    assert "vanilla loses 0.120 Dice and 12.0 mm HD95" in said({"DA": steady(-3), "DG": steady(-3)})["gap"]
    assert "vanilla gains 0.050 Dice and 5.0 mm HD95" in said({"DA": steady(0), "DG": steady(0)},
                                                                    source_hd95=25.0)["gap"]


@pytest.mark.parametrize("change,words", [
    (steady(-6), "vanilla: 50% of the gap (-6.0 mm, significantly better, p "),
    (steady(3), "vanilla: -25% of the gap (+3.0 mm, significantly worse, p "),
    (lambda i: 0.02 * (-1) ** i, "vanilla: 0% of the gap (+0.0 mm, as good as the baseline to 1 mm)"),
    (wavering, "not significant, p ")])
def test_what_a_row_closes(change, words):
    found = said({"DA": change, "DG": steady(-6)})
    assert words in found["DA"].replace("-0.0 mm", "+0.0 mm").replace("-0%", "0%")
    assert "closes: vanilla: 50%" in found["DG"]


def test_what_changes_no_patient_is_said_so():
    found = said({"DA": lambda i: 0.0, "DG": steady(-6)})
    assert found["DA"].endswith("DA closes: vanilla: 0% of the gap (no patient is changed).")
    assert "changed" not in found["DG"]


def test_no_share_without_a_gap():
    assert "vanilla: there is no gap" in said({"DA": steady(-1), "DG": steady(-1)}, source_hd95=25.0)["DA"]


@pytest.mark.parametrize("control,words", [
    (steady(-6), "*augmented* (vanilla) does as well as DG, to 1 mm HD95"),
    (steady(-9, period=5), "does better than DG"),
    (steady(-1, period=5), "does worse than DG"),
    (wavering, "between DG and *augmented* (vanilla) these patients do not decide")])
def test_a_control_does_as_well_only_within_the_margin(control, words):
    found = said({"DA": steady(0), "DG": steady(-6), "augmented": control})
    assert words in found["controls"] and sum(word in found["controls"] for word in (
        "as well as DG", "better than DG", "worse than DG", "do not decide")) == 1
    assert "None was run" in said({"DA": steady(0), "DG": steady(0)})["controls"]


def test_harm_is_named_where_it_is():
    assert said({"DA": steady(-3), "DG": steady(0.2)})["harm"] == (
        "**Harm.** On no target and network does DA or DG lose more than 0.005 Dice or 0.5 mm HD95.")
    harm = said({"DA": steady(-3), "DG": steady(2)}, networks=("vanilla", "nnunet2d"))["harm"]
    assert "On 4 of 8 targets and networks DA or DG loses more than" in harm and "DG costs vanilla on Vendor=" in harm
    assert "0.020 Dice and +2.0 mm HD95" in harm


def test_a_large_p_is_not_equality():
    test = {"metric": "hd95", "hodges_lehmann": 0.1, "bca90_low": -3.0, "bca90_high": 3.2}
    assert outcome(test, 0.9) == "open" and outcome({**test, "bca90_low": -0.9, "bca90_high": 0.9}, 0.9) == "equal"
    assert outcome({**test, "bca90_low": float("nan"), "bca90_high": float("nan")}, 0.9) == "open"
    assert outcome(test, 0.001) == "worse" and outcome({**test, "metric": "dice"}, 0.001) == "better"
