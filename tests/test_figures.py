"""The optional plots: left out without matplotlib, drawn with it."""
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
