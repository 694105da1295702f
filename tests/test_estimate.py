"""What an experiment will cost: what is measured, what is multiplied, and that it is said before the long stages."""
import re

from cmr import estimate, experiment, reproduce
from cmr.estimate import Config, seconds_each, table
from helpers import on, script


def test_the_table_adds_up():
    stages = [("diffusion", 600, "steps", 0.3), ("nnunet3d-real", 100, "steps", 3.0), ("results", 90, "volumes", 4.0)]
    text = table(Config(data="x", jobs=2), stages)
    assert "| diffusion | 600 steps | 0.3 | 3.0 |" in text and "| results | 90 volumes | 4 | 6.0 |" in text
    assert "Total: about 7 minutes (0.1 hours) with JOBS=2 and GPUS=1; 14 minutes one after the other." in text
    assert "Total: about 6 minutes" in table(Config(data="x", jobs=9), stages)       # the longest stage


def test_what_takes_long_is_measured_once(monkeypatch):
    made = []
    for first_s, expected_s, calls in ((61, 61, 1), (9, 2.5, 3)):
        clock = iter([first_s, 2, 3])
        monkeypatch.setattr(estimate.timeit, "timeit", lambda call, number: call() or next(clock))
        assert seconds_each(made.append, 7) == expected_s and made == list(range(calls))
        made.clear()


def test_an_experiment_is_estimated_from_real_steps(phantom, tmp_path):
    names = "vanilla-real,vanilla-shifted,nnunet2d-real"
    asked = ["--target", "Vendor=B", "--segmenters", names, "--out", tmp_path / "out"]
    code, output, errors = script("-m", "cmr.estimate", *on(phantom, tmp_path), *asked)
    assert code == 0, errors
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) (\w+) \| ([\d.e+-]+) \|", output, re.MULTILINE)
    counts = {name: (int(n), unit) for name, n, unit, _ in rows}
    assert counts == {"diffusion": (60, "steps"), "vanilla-real": (60, "steps"), "vanilla-shifted": (60, "steps"),
                      "nnunet2d-real": (20, "steps"), "dg": (12, "images"), "da": (16, "images"),
                      "results": (8, "volumes")}
    assert all(0 < float(each) < 60 for *_, each in rows)
    assert (tmp_path / "out" / "estimate.md").read_text() in output


def test_no_training_begins_beside_the_estimate(tmp_path):
    """Beside another stage the steps that it makes are slower than they will be."""
    c = reproduce.Config(data="data", target="Vendor=B", upper="1", runs=str(tmp_path))
    trainings = [stage for stage in experiment.stages(c) if stage.file.endswith("/final.pt")]
    assert len(trainings) == 1 + 3 * 3 + 2                        # SD-DM; real, synthetic, upper bound; two controls
    assert all("check/estimate.md" in stage.after for stage in trainings)
    assert "-m cmr.estimate" in experiment.price(c)
