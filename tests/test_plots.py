"""The optional plots: left out without matplotlib, drawn with it."""
import pytest

from cmr import plots

PATIENTS = {("vanilla", "Vendor=B"): {arm: {"p": 10.0, "q": 12.0 + i} for i, arm in enumerate(("baseline", "DA"))}}
PREDICTED = [{"network": "vanilla", "domain": "Vendor=B", "candidate": c, "predicted": "0.01", "hindsight": "0.02"} for c in ("none", "t0=100")]
SIGNS = [{"use": use, "network": "vanilla", "domain": "Vendor=B", "candidate": "t0=100", "gain": gain, "entropy change": "-0.1"} for use, gain in (("target", "0.02"), ("target", ""), ("calibration", "0.1"))]
DOSES = {"Vendor=B": {n: {"dice": 0.5, "hd95": 10.0} for n in (0, 1, 2)}}


def test_plots_are_left_out_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "Figure", None)
    assert plots.draw_plots(tmp_path, PATIENTS, PREDICTED, SIGNS, DOSES) is None and not list(tmp_path.iterdir())


def test_every_plot_is_written_and_named(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.draw_plots(tmp_path, PATIENTS, PREDICTED, SIGNS, DOSES)
    assert [name for name, _ in drawn] == ["paired.png", "strength.png", "entropy.png", "dose.png"] and all((tmp_path / name).stat().st_size > 1000 for name, _ in drawn)
    assert [name for name, _ in plots.draw_plots(tmp_path, PATIENTS, PREDICTED, SIGNS, {})][-1] == "entropy.png"
