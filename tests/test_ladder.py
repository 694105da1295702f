"""The picture of one reference at rising strength."""
from cmr import ladder
from cmr.ladder import KEPT, TIMES
from helpers import on, one_line, script


def test_a_ladder_shows_every_time_and_every_way_to_keep_the_reference(run, phantom, tmp_path, monkeypatch):
    models = ["--diffusion", str(run / "diffusion" / "final.pt")]
    predicted = next((run / "results" / "predictions" / "vanilla" / "real-raw").glob("*.nii.gz"))
    case = predicted.name.removesuffix(".nii.gz")
    monkeypatch.setattr(ladder, "CALLS", 2)
    ladder.main([*on(phantom, run), *models, "--case", case, "--out", str(tmp_path / "ladder.svg")])
    text = (tmp_path / "ladder.svg").read_text()
    assert text.count("<image") == len(KEPT) * (1 + len(TIMES)) and all(f"{name}<" in text for name in KEPT)
    code, _, errors = script("-m", "cmr.ladder", *on(phantom, run), *models, "--case", "nobody")
    assert code == 3 and one_line(errors) and "no volume nobody" in errors
