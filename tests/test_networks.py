"""The table of segmenters: names, and a new network that is one file and one entry."""
import csv
import json
import shutil

import pytest
from toy_network import TOY

import evaluate
import train_unet
from cmr import checkpoint
from cmr.errors import UsageError
from cmr.networks import NETWORKS, split_name
from helpers import on


def test_a_name_is_a_network_and_a_training_set_and_both_may_hold_hyphens(monkeypatch):
    monkeypatch.setitem(NETWORKS, "vanilla-wide", TOY)
    assert split_name("nnunet2d-Vendor-B") == ("nnunet2d", "Vendor-B")
    assert split_name("vanilla-real") == ("vanilla", "real")
    assert split_name("vanilla-wide-real") == ("vanilla-wide", "real")
    with pytest.raises(UsageError, match="expected NETWORK-TRAININGSET with one of vanilla, nnunet2d"):
        split_name("resnet-real")


def test_a_new_segmenter_is_one_file_and_one_entry(run, phantom, tmp_path, monkeypatch):
    """From training to the table, under a name with a hyphen and with a plan of its own."""
    monkeypatch.setitem(NETWORKS, "toy-net", TOY)
    for name in ("diffusion", "da", "dg"):
        (tmp_path / name).symlink_to(run / name)
    for kind, more in (("real", []), ("synthetic", ["--train-on", "synthetic", "--synthetic", str(run / "dg")])):
        out = tmp_path / f"segmenter-toy-net-{kind}"
        train_unet.main([*on(phantom, run), "--network", "toy-net", *more, "--out", str(out)])
        saved = checkpoint.load(out / "final.pt")
        assert saved["plan"] == {"kernel": 5} and saved["step"] == 6 and saved["config"]["features"] == 4
    evaluate.main([*on(phantom, run), "--target", "Vendor=B,D", "--run", str(tmp_path), "--processes", "1",
                   "--segmenters", "toy-net-real,toy-net-synthetic", "--out", str(tmp_path / "results")])
    rows = list(csv.DictReader(open(tmp_path / "results" / "metrics.csv")))
    assert {row["network"] for row in rows} == {"toy-net"}
    assert {row["arm"] for row in rows} == {"baseline", "DA", "DA, averaged", "DA, guided", "DA, guided, averaged", "DG"}
    assert "| Vendor=B | toy-net | DG |" in (tmp_path / "results" / "report.md").read_text()
    assert len(list((tmp_path / "results" / "predictions" / "toy-net" / "synthetic-raw").iterdir())) == 12
