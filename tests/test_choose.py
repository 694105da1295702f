"""The label-free choice of strength: what it learns, and when it keeps its hands off."""
import numpy as np
import pytest

from cmr import choose
from cmr.choose import Calibration, pick
from cmr.seeds import rng
from cmr.signs import SIGNS
from cmr.strength import NONE


def test_calibration_finds_the_sign_that_matters_and_knows_its_error():
    g = rng("calibration")
    features = g.standard_normal((300, len(SIGNS)))
    domains, candidates = np.repeat([f"shift {i}" for i in range(6)], 50), np.tile(["a", "b"], 150)
    of_b = 0.02 * (candidates == "b")                             # b gains more than a, whatever the signs
    gains = 0.01 + 0.03 * features[:, 1] - 0.015 * features[:, 5] + of_b + 0.003 * g.standard_normal(300)
    fitted = Calibration.fit(features, gains, domains, candidates)
    assert np.argsort(np.abs(fitted.weights[:len(SIGNS)]))[-2:].tolist() == [5, 1]
    assert fitted.weights[-1] - fitted.weights[-2] == pytest.approx(0.02, abs=0.002)
    assert fitted.predict(features, candidates) == pytest.approx(gains, abs=0.02) and max(fitted.error.values()) < 0.003
    unforeseen = g.standard_normal(300) * 0.05 + 0.1 * (domains == "shift 3")
    useless = Calibration.fit(features, unforeseen, domains, candidates)
    assert min(useless.error.values()) > 0.03  # a domain unlike the others is not foreseen
    far = np.ones((1, len(SIGNS)))
    predicted = [fitted.predict(distance * far, ["a"]) for distance in (1e3, 1e6)]
    assert predicted[0] == predicted[1] and abs(predicted[1]) <= choose.LARGE        # nothing is extrapolated
    # nothing to leave out: nothing is known
    unknown = Calibration.fit(features, gains, np.repeat("one", 300), candidates)
    assert unknown.error == unknown.at_risk == {"a": np.inf, "b": np.inf}


def test_gain_is_weighed_against_risk():
    gains = {"a": 0.05, "b": 0.03}
    assert pick(gains, {"a": 0.02, "b": 0.02}) == "a" and pick(gains, {"a": 0.12, "b": 0.12}) == NONE
    assert pick(gains, {"a": 0.06, "b": 0.0}) == "b"              # the smaller gain, but a sure one
    assert pick(gains, {"a": 0.03, "b": 0.0}) == "a"
    assert pick({"a": -0.01}, {"a": 0.0}) == NONE and pick({"a": 0.3}, {"a": np.inf}) == NONE


def test_what_is_at_risk_is_the_most_a_candidate_lost_on_a_stand_in():
    features, candidates = np.zeros((8, len(SIGNS))), np.tile(["a", "b"], 4)
    gains, domains = [-0.03, 0.01, -0.01, 0.02, 0.05, 0.03, 0.05, 0.01], np.repeat(["one", "two"], 4)
    fitted = Calibration.fit(features, gains, domains, candidates)
    assert fitted.at_risk == pytest.approx({"a": 0.02, "b": 0.0})


NETWORKS, TARGETS = ("vanilla", "nnunet2d"), ["Vendor=A", "Vendor=B", "Vendor=C"]
SHIFTS = [f"shift {k}" for k in range(6)]
# How far each domain is from the source; a translation gains what it is far, less 0.1 Dice.
FAR = {"Vendor=A": 0.0, "Vendor=B": 3.0, "Vendor=C": 0.1, **{shift: k / 2 for k, shift in enumerate(SHIFTS)}}


def measured():
    """Rows of signs.csv of four patients for each domain, in which one sign tells how far it is."""
    g, rows = rng("rows"), []
    for network in NETWORKS:
        for domain in [*SHIFTS, *TARGETS]:
            use = "target" if domain in ("Vendor=B", "Vendor=C") else "calibration"
            for case in "0123":
                for candidate in choose.CANDIDATES:
                    found = {**dict(zip(SIGNS, 0.01 * g.standard_normal(len(SIGNS)))), "likeness before": FAR[domain]}
                    gains = {"gain": 0.1 * FAR[domain] - 0.1, "gain_hd95_mm": FAR[domain]}
                    rows.append({"domain": domain, "use": use, "case": case, "network": network, "candidate": candidate,
                                 **gains, **found})
    return rows


def test_the_choice_is_made_without_a_targets_labels():
    rows = measured()
    picked, predicted = choose.choose(rows, NETWORKS, TARGETS, choose.CANDIDATES)
    assert picked["Vendor=B"]["vanilla"] in choose.CANDIDATES
    assert picked["Vendor=A"] == picked["Vendor=C"] == {"vanilla": NONE, "nnunet2d": NONE}
    blind = [{**row, "gain": None if row["use"] == "target" else row["gain"]} for row in rows]
    assert choose.choose(blind, NETWORKS, TARGETS, choose.CANDIDATES)[0] == picked
    n = len(choose.CANDIDATES)
    assert len(predicted) == 3 * 2 * (1 + n) and sum(row["chosen"] for row in predicted) == 6
    of_b = [row for row in predicted if row["domain"] == "Vendor=B" and row["candidate"] != NONE]
    assert [row["hindsight"] for row in of_b] == pytest.approx([0.2] * 2 * n)
    assert [row["hindsight_hd95_mm"] for row in of_b] == pytest.approx([3.0] * 2 * n)


def test_nothing_is_chosen_by_too_few_patients_of_the_target_or_of_the_source():
    rows = measured()
    is_few = lambda row: int(row["case"]) < choose.FEWEST - 1
    of_target = [row for row in rows if row["domain"] != "Vendor=B" or is_few(row)]
    of_source = [row for row in rows if row["use"] == "target" or is_few(row)]
    for some in (of_target, of_source):
        picked, _ = choose.choose(some, ("vanilla",), ["Vendor=B"], choose.CANDIDATES)
        assert picked["Vendor=B"] == {"vanilla": NONE}
