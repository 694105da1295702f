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
    gains = 0.02 + 0.03 * features[:, 1] - 0.015 * features[:, 5] + 0.003 * g.standard_normal(300)
    fitted = Calibration.fit(features, gains, domains, candidates)
    assert np.argsort(np.abs(fitted.weights))[-2:].tolist() == [5, 1] and fitted.predict(features) == pytest.approx(gains, abs=0.02) and max(fitted.error.values()) < 0.003
    useless = Calibration.fit(features, g.standard_normal(300) * 0.05 + 0.1 * (domains == "shift 3"), domains, candidates)
    assert min(useless.error.values()) > 0.03                                                                              # a domain unlike the others is not foreseen
    far = np.ones((1, len(SIGNS)))
    assert fitted.predict(1e3 * far) == fitted.predict(1e6 * far) and abs(fitted.predict(1e6 * far)) <= choose.LARGE                # nothing is extrapolated
    assert Calibration.fit(features, gains, np.repeat("one", 300), candidates).error == {"a": np.inf, "b": np.inf}               # nothing to leave out: nothing is known


def test_nothing_is_translated_unless_the_gain_is_clear():
    sure, unsure = {"a": 0.02, "b": 0.02}, {"a": 0.1, "b": 0.1}
    assert pick({"a": 0.05, "b": 0.03}, sure) == "a" and pick({"a": 0.05, "b": 0.03}, unsure) == NONE
    assert pick({"a": 0.05, "b": 0.03}, {"a": 0.06, "b": 0.0}) == "b"                                       # the smaller gain, but a sure one
    assert pick({"a": 0.05, "b": 0.03}, {"a": 0.04, "b": 0.0}) == "a" and pick({"a": 0.05}, {"a": 0.047}) == NONE
    assert pick({"a": -0.01}, {"a": 0.0}) == NONE and pick({"a": 0.3}, {"a": np.inf}) == NONE


def test_the_choice_is_made_without_a_targets_labels():
    g, rows = rng("rows"), []
    for network in ("vanilla", "nnunet2d"):
        for domain, use in [(f"shift {k}", "calibration") for k in range(6)] + [("Vendor=A", "calibration"), ("Vendor=B", "target"), ("Vendor=C", "target")]:
            far = {"Vendor=B": 3.0, "Vendor=C": 0.1, "Vendor=A": 0.0, **{f"shift {k}": k / 2 for k in range(6)}}[domain]
            for case in range(4):
                for candidate in choose.CANDIDATES:
                    found = dict(zip(SIGNS, 0.01 * g.standard_normal(len(SIGNS))))
                    found["likeness before"] = far
                    rows.append({"domain": domain, "use": use, "case": str(case), "network": network, "candidate": candidate, "gain": 0.1 * far - 0.1, "gain_hd95_mm": far, **found})
    picked, predicted = choose.choose(rows, ("vanilla", "nnunet2d"), ["Vendor=A", "Vendor=B", "Vendor=C"], choose.CANDIDATES)
    assert picked["Vendor=B"]["vanilla"] in choose.CANDIDATES and picked["Vendor=A"] == picked["Vendor=C"] == {"vanilla": NONE, "nnunet2d": NONE}
    blind = [{**r, "gain": None if r["use"] == "target" else r["gain"]} for r in rows]
    assert choose.choose(blind, ("vanilla", "nnunet2d"), ["Vendor=A", "Vendor=B", "Vendor=C"], choose.CANDIDATES)[0] == picked
    few = lambda domain: [r for r in rows if r["domain"] != domain or int(r["case"]) < choose.FEWEST - 1]       # patients too few to choose by: the target's, the source's
    assert all(set(choose.choose(some, ("vanilla",), ["Vendor=B"], choose.CANDIDATES)[0]["Vendor=B"].values()) == {NONE}
               for some in (few("Vendor=B"), [r for r in rows if r["use"] == "target" or int(r["case"]) < choose.FEWEST - 1]))
    assert len(predicted) == 3 * 2 * (1 + len(choose.CANDIDATES)) and sum(r["chosen"] for r in predicted) == 6 and [r["hindsight"] for r in predicted if r["domain"] == "Vendor=B" and r["candidate"] != NONE] == pytest.approx([0.2] * 2 * len(choose.CANDIDATES))
    assert [r["hindsight_hd95_mm"] for r in predicted if r["domain"] == "Vendor=B" and r["candidate"] != NONE] == pytest.approx([3.0] * 2 * len(choose.CANDIDATES))
