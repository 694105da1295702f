"""Example slices; the optional plots: left out without matplotlib, drawn with it."""
import numpy as np
import pytest

from cmr import figures
from cmr.experiment import DOSES

METRICS = {"dice": 0.5, "hd95": 10.0, "assd": 2.0, "hd95_in_plane": 4.0}
ROWS = [{"domain": domain, "role": role, "subject": subject, "network": "vanilla", "arm": arm, "status": "ok",
         "diagonal_mm": 500.0, **METRICS}
        for domain, role in (("Vendor=A", "source"), ("Vendor=B", "target"))
        for subject in "pq" for arm in ("baseline", "DA")]
OF_DOSES = [{**row, "arm": name} for row in ROWS if row["arm"] == "baseline" for name in (DOSES[1], DOSES[2])]


def test_plots_are_left_out_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "Figure", None)
    assert figures.draw_plots(tmp_path, ROWS) is None and not list(tmp_path.iterdir())


def test_every_plot_is_written_and_named(tmp_path):
    pytest.importorskip("matplotlib")
    names = [name for name, _ in figures.draw_plots(tmp_path, ROWS + OF_DOSES)]
    assert names == ["paired.png", "dose.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)
    assert [name for name, _ in figures.draw_plots(tmp_path, ROWS)] == names[:1]


def test_a_heart_outside_the_field_of_view_is_drawn_and_said(tmp_path):
    """Its structures are missed, so that it is the worst case; there is nothing to draw contours of."""
    measured = {"p": {}, "q": {}, "r": {"status": "missed", "hd95": np.inf}}
    rows = [{**ROWS[0], "subject": subject, "phase": "ED", **of} for subject, of in measured.items()]
    image, heart = np.zeros((4, 16, 16), np.float32), np.zeros((4, 16, 16), np.uint8)
    heart[1:3, 4:8, 4:8] = 1
    example = lambda subject, truth: figures.Example(f"{subject}_ED", image, image, truth, {})
    examples = [example("p", heart), example("q", heart), example("r", 0 * heart), example("not measured", heart)]
    (median, of_median), (worst, of_worst) = figures.draw_examples(tmp_path, "Vendor=A", "vanilla", examples, rows)
    assert "q_ED, 10.0 mm)" in of_median
    assert "r_ED, 500.0 mm; the heart lies outside the working field of view)" in of_worst
    assert (tmp_path / worst).stat().st_size > 1000 and (tmp_path / median).exists()
