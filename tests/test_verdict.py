"""The five sentences of a report, on made-up numbers: each outcome has its words, and only its own."""
import math
import re

import pytest

from cmr.comparison import all_tests, outcome, penalised
from cmr.verdict import control_lines, sentences

SOURCE, TARGETS = "Vendor=A", ("Vendor=B", "Vendor=C")


def rows_of(hd95_of, networks=("vanilla",), source_hd95=8.0, patients=14, bound=8.0):
    """Rows of metrics.csv.  hd95_of : {arm: change of HD95 to the baseline's 20 mm, by patient; inf: missed}.

    bound : HD95 of the upper bound on the targets; None without.
    """
    arms = {"baseline": lambda i: 0.0, **hd95_of, "upper bound": lambda i: (bound or 0) - 20.0 + 0.01 * (i % 3)}
    if bound is None:
        del arms["upper bound"]
    rows = []
    for network in networks:
        for domain in (SOURCE, *TARGETS):
            for arm, change in arms.items():
                for i in range(patients):
                    level = source_hd95 if domain == SOURCE else 20.0
                    hd95 = level + 0.1 * (i % 5) + (change(i) if domain != SOURCE else 0.0)
                    found = math.isfinite(hd95)
                    rows.append({"domain": domain, "role": "source" if domain == SOURCE else "target",
                                 "subject": f"{domain}{i}", "arm": arm, "network": network, "structure": "LV",
                                 "status": "ok" if found else "missed", "dice": 1 - hd95 / 100 if found else 0.0,
                                 "hd95": hd95, "hd95_pooled": hd95, "assd": hd95 / 4, "hd95_in_plane": hd95,
                                 "diagonal_mm": 500.0})
    return penalised(rows)


def said(hd95_of, **more):
    rows = rows_of(hd95_of, **more)
    found = sentences(rows, all_tests(rows), SOURCE)
    assert not [sentence for sentence in found if "nan" in sentence]
    return dict(zip(("gap", "DA", "DG", "controls", "harm"), found))


def steady(mm, period=7):
    return lambda i: mm + 0.05 * (i % period - period // 2)


def wavering(i):
    return 6.0 if i % 2 else -6.3


def test_the_gap_is_that_to_the_upper_bound():
    """A source that is harder than the targets does not turn the gap into a gain."""
    for source_hd95 in (8.0, 25.0):
        gap = said({"DA": steady(-3), "DG": steady(-3)}, source_hd95=source_hd95)["gap"]
        assert "trained on the target's own studies: vanilla -0.120 Dice and +12.0 mm HD95." in gap
        assert f"{source_hd95 + 0.2:.1f} mm HD95 on the source" in gap and "UPPER" not in gap


def test_without_an_upper_bound_domains_are_only_compared():
    found = said({"DA": steady(-6), "DG": steady(-6)}, bound=None, source_hd95=25.0)
    assert "vanilla 0.748 Dice and 25.2 mm HD95 on the source, 0.798 Dice and 20.2 mm HD95 on the targets" in (
        found["gap"])
    assert "These levels do not give the gap, as" in found["gap"] and "against the same network" not in found["gap"]
    assert "% of the gap" not in "".join(found.values()) and "vanilla: -6.0 mm, significantly better" in found["DA"]


@pytest.mark.parametrize("change,words", [
    (steady(-6), "vanilla: 50% of the gap closed, -6.0 mm, significantly better, p "),
    (steady(3), "vanilla: the gap 25% wider, +3.0 mm, significantly worse, p "),
    (lambda i: 0.02 * (-1) ** i, "vanilla: 0% of the gap closed, +0.0 mm, as good to 1 mm."),
    (wavering, "undecided, 90 % interval -"),
    (lambda i: math.inf if i == 3 else -1 - i / 50,
     "+33.2 mm (structures missed: 2 against 0), significantly better by ranks, though not in the mean")])
def test_what_a_row_closes(change, words):
    found = said({"DA": change, "DG": steady(-6)})
    assert words in found["DA"]
    assert "vanilla: 50% of the gap closed, -6.0 mm" in found["DG"]


def test_what_changes_one_patient_in_four_and_none_for_the_worse_is_better():
    found = said({"DA": lambda i: -5.0 * (i % 4 == 0), "DG": lambda i: 5.0 * (i % 4 == 0)}, patients=26)
    assert "-1.3 mm, significantly better, p " in found["DA"] and "+1.3 mm, significantly worse, p " in found["DG"]


def test_what_changes_no_patient_is_said_so():
    found = said({"DA": lambda i: 0.0, "DG": steady(-6)})
    assert found["DA"].endswith("vanilla: 0% of the gap closed, no patient is changed.")
    assert "changed" not in found["DG"]


def test_no_share_without_a_gap():
    assert "vanilla: there is no gap, -1.0 mm" in said({"DA": steady(-1), "DG": steady(-1)}, bound=25.0)["DA"]


@pytest.mark.parametrize("missing", ["baseline", "DA"])
def test_a_structure_that_is_found_far_away_is_better_than_one_that_is_missed(missing):
    """The difference that is printed is the tested one, and the share has its sign."""
    found = {"baseline": lambda i: math.inf if i % 2 else 0.0, "DA": lambda i: 40.0 + i / 9 if i % 2 else 0.0}
    if missing == "DA":
        found = {"baseline": found["DA"], "DA": found["baseline"]}
    text = said({**found, "DG": steady(0)}, patients=28)["DA"]    # of 14, half of them ties, scipy permutes slowly
    [mm] = re.findall(r", ([+-][\d.]+) mm \(structures missed", text)
    better = missing == "baseline"
    assert (float(mm) < -100) == ("significantly better" in text) == ("% of the gap closed, " in text) == better
    counted = "(structures missed: 0 against 28)" if better else "(structures missed: 28 against 0)"
    assert counted in text


def test_too_few_patients_have_words_of_their_own():
    rows = {"DA": steady(-6, period=5), "DG": steady(-6, period=5), "augmented": steady(6, period=5)}
    found = said(rows, patients=4)                                # 8 on both targets
    assert "-6.0 mm, 8 patients are too few to decide." in found["DA"]
    assert found["controls"] == ("**Controls.** Without a diffusion model, 8 patients are too few to decide between DG "
                                 "and *augmented* (vanilla).")
    [line] = control_lines(rows_of(rows, patients=4))
    assert line.endswith("HD95 -12.0 mm, 8 patients are too few to decide.") and "nan" not in line
    harmed = said({"DA": steady(6, period=5), "DG": steady(0)}, patients=4)["harm"]
    assert "HD95 +6.0 mm (4 patients are too few to decide)" in harmed


@pytest.mark.parametrize("control,words", [
    (steady(-6), "*augmented* (vanilla) does as well as DG, to 1 mm HD95"),
    (steady(-9, period=5), "does better than DG"),
    (steady(-1, period=5), "does worse than DG"),
    (wavering, "DG and *augmented* (vanilla) cannot be told apart on these patients")])
def test_a_control_does_as_well_only_within_the_margin(control, words):
    patients = 14 if control is wavering else 20                  # fewer with ties take scipy's slow permutation test
    found = said({"DA": steady(0), "DG": steady(-6), "augmented": control}, patients=patients)
    assert words in found["controls"]


def test_without_a_control_the_question_is_open():
    assert "None was run" in said({"DA": steady(0), "DG": steady(0)}, patients=20)["controls"]


def test_a_control_that_ran_without_dg_leaves_the_question_open():
    rows = [*rows_of({"augmented": steady(-3)}, patients=20), *rows_of({"DG": steady(-3)}, ("nnunet2d",), patients=20)]
    assert sentences(rows, all_tests(rows), SOURCE)[2] == (
        "**Controls.** *augmented* (vanilla) ran without DG of the same network, so whether DG needs a diffusion model "
        "is not answered here.")


def test_a_control_of_which_ranks_and_mean_disagree_is_said_so():
    """DG gains a little in all patients but one on either target, and misses a structure in that one."""
    rows = {"DA": steady(-6), "DG": lambda i: math.inf if i == 3 else -1 - i / 50, "augmented": lambda i: 0.0}
    assert said(rows, patients=20)["controls"].endswith("*augmented* (vanilla) does worse than DG by ranks, "
                                                               "though not in the mean.")
    rows["DG"], rows["augmented"] = rows["augmented"], rows["DG"]
    assert said(rows, patients=20)["controls"].endswith("*augmented* (vanilla) does better than DG by ranks, "
                                                               "though not in the mean.")


def test_harm_is_named_where_it_is():
    assert said({"DA": steady(-3), "DG": steady(0.2)})["harm"] == (
        "**Harm.** On no target and network does DA or DG lose more than 0.005 Dice or 0.5 mm HD95.")
    harm = said({"DA": steady(-3), "DG": steady(2)}, networks=("vanilla", "nnunet2d"))["harm"]
    assert "In 4 of 8 combinations of a target, a network and a row DA or DG loses more than" in harm
    assert "DG, vanilla on Vendor=" in harm and "Dice -0.020, HD95 +2.0 mm" in harm


def test_rows_that_ran_for_some_networks_only():
    more = rows_of({"DA": steady(-3)}, networks=("nnunet2d",), bound=None)
    rows = rows_of({"DA": steady(-3), "DG": steady(-3), "augmented": steady(-3)}) + more
    gap, da, dg, controls, harm = sentences(rows, all_tests(rows), SOURCE)
    assert "These levels do not give the gap of nnunet2d, as domains differ in difficulty" in gap
    assert "an upper bound does (UPPER=1" in gap
    assert "vanilla: 25% of the gap closed" in da and "; nnunet2d: -3.0 mm" in da and "nnunet2d" not in dg


def test_a_large_p_is_not_equality():
    test = {"metric": "hd95", "n": 14, "rank_sum_larger": 70.0, "rank_sum_smaller": 35.0, "bca90_low": -3.0,
            "bca90_high": 3.2}
    assert outcome(test, 0.9) == "open" and outcome({**test, "bca90_low": -0.9, "bca90_high": 0.9}, 0.9) == "equal"
    assert outcome(test, 0.001) == "worse" and outcome({**test, "metric": "dice"}, 0.001) == "better"
    assert outcome({**test, "n": 9}, 0.001) == "few"
