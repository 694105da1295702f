"""What an experiment will cost: how stages overlap, what is multiplied, and what does not fit."""
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cmr.bench import noise_volume
from cmr.errors import ResourceError, UsageError
from cmr.estimate import Config, Stage, _Data, _operations, require_fitting, table, wall_seconds
from cmr.records import Domain
from helpers import ROOT, on, script


def stages(*named):
    return [Stage(name, 10, "steps", seconds, needs) for name, seconds, needs in named]


def test_stages_overlap_as_they_may():
    some = stages(("sd", 100, ()), ("a", 60, ()), ("b", 50, ()), ("dg", 10, ("sd", "a")), ("c", 60, ("dg",)),
                  ("end", 5, ("a", "b", "c")))
    assert wall_seconds(some, 1) == 285
    # sd 0-100; a 0-60, b 60-110; dg 100-110, c 110-170; end
    assert wall_seconds(some, 2) == 175
    assert wall_seconds(some, 9) == 100 + 10 + 60 + 5
    with pytest.raises(ValueError, match="end needs"):
        wall_seconds(stages(("end", 1, ("nothing",))), 1)


def test_operations_of_a_step_by_hand():
    net = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert _operations(net, (torch.zeros(1, 3, 8, 8),)) == 3 * 2 * 8 * 8 * 3 * 5 * 9


def test_the_table_adds_up():
    some = [
        Stage("diffusion", 600, "steps", 180.0, (), 1.5, 0.5, 0.2),
        Stage("results", 90, "volumes", 60.0, ("diffusion",), 2.0, 0.25),
    ]
    text = table(Config(data="x", jobs=2), some)
    assert "| diffusion | 600 steps | 0.3 | 3.0 | 1.5 | 0.50 |" in text
    assert "| all, one after the other |  |  | 4.0 | 2.0 | 0.75 |" in text and "Total: 4 minutes with JOBS=2" in text
    assert torch.cuda.is_available() or "(0.2 x 10^15 operations) would take 13 seconds" in text


@pytest.mark.parametrize("stage, line", [
    (Stage("nnunet3d-real", 1, "steps", 1.0, (), memory_gb=1e5), "nnunet3d-real takes 100000.0 GB, 1 at a time"),
    (Stage("dg", 1, "images", 1.0, (), disk_gb=1e9), "will be written")])
def test_what_does_not_fit_is_refused_with_what_to_do(stage, line):
    with pytest.raises(ResourceError, match=line):
        require_fitting(Config(data="x"), [stage])


def test_an_upper_bound_of_few_studies_that_cannot_be_dealt_to_the_ranks_is_said():
    """Its batch is planned from a target's own training studies; that of the source may be large enough."""
    data = SimpleNamespace(domains=[Domain.parse("Vendor=A"), Domain.parse("Vendor=B")],
                           training_of=lambda domain: [noise_volume(0)])
    watched = {"nnunet3d": SimpleNamespace(settings={"features": 4, "memory_gb": 0.08}, plan={"patch": [8, 64, 64]})}
    ask = lambda ranks, name: _Data.require_dealable(data, Config(data="x", ranks=ranks, segmenters=name), watched)
    ask(2, "nnunet3d-Vendor-B")
    ask(4, "nnunet3d-real")
    with pytest.raises(UsageError, match="nnunet3d-Vendor-B: 4 processes: a batch of 2 cannot be dealt to more than 2"):
        ask(4, "nnunet3d-Vendor-B")


def test_an_experiment_is_estimated_from_real_steps(phantom, tmp_path):
    names = "vanilla-real,vanilla-shifted,nnunet2d-real"
    asked = ["--target", "Vendor=B", "--segmenters", names, "--watch-s", "0.5", "--out", tmp_path / "out"]
    code, output, errors = script("-m", "cmr.estimate", *on(phantom, tmp_path), *asked)
    assert code == 0, errors
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) (\w+) \| ([\d.e+-]+) \|", output, re.MULTILINE)
    counts = {name: (int(n), unit) for name, n, unit, _ in rows}
    assert counts == {"diffusion": (60, "steps"), "vanilla-real": (60, "steps"), "vanilla-shifted": (60, "steps"),
                      "nnunet2d-real": (20, "steps"), "dg": (8, "images"), "shifted": (8, "images"),
                      "da": (16, "images"), "results": (8, "volumes")}
    assert all(0 < float(each) < 60 for *_, each in rows)
    assert (tmp_path / "out" / "estimate.md").read_text() in output


def _trainings_of_real_images(tmp_path, *settings):
    """[(final.pt of the SD-DM or a segmenter, the files that only have to be there before)] as make understands them."""
    command = ["make", "-pn", *settings, "DATA=", f"RUNS={tmp_path}", f"PYTHON={sys.executable}", "report"]
    database = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    return re.findall(r"^(\S+/final\.pt): \S+/check/check\.json(?: \| (.*))?$", database, re.MULTILINE)


def test_no_training_begins_beside_the_estimate(tmp_path):
    """Beside another stage the steps that it watches are slower than they will be."""
    trainings = _trainings_of_real_images(tmp_path, "UPPER=1")
    assert len(trainings) == 1 + 3 + 3 + 3 * 3                    # SD-DM, baselines, *augmented*, upper bounds
    assert all("/check/estimate.md" in before for _, before in trainings)


def test_the_longest_trainings_begin_when_every_training_can(tmp_path):
    """make starts what is ready as it walks along its list: one that was not ready when passed may begin last."""
    waiting = [final for final, before in _trainings_of_real_images(tmp_path) if "/dg/manifest.csv" in before]
    names = sorted(final.split("/segmenter-")[1] for final in waiting)
    assert names == ["nnunet2d-real/final.pt", "nnunet3d-real/final.pt"]   # not the first network: it audits DG's images
