"""Checkpoints that are damaged or foreign.

Parts that do not belong together are refused: of another grid, source, data set or diffusion model.
"""
import gzip
import json
import os
import shutil

import numpy as np
import pytest
import torch
from test_faults import rewrite, small_copy

from cmr import checkpoint
from cmr.errors import CheckpointError
from cmr.files import read_sealed_json, seal, sha256, write_sealed_json
from cmr.studies import find
from helpers import on, one_line, script, synthesis


def test_damaged_checkpoints_are_found(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save(path, net={"w": torch.arange(4000.0)}, config={})
    good = path.read_bytes()
    assert torch.equal(checkpoint.load(path)["net"]["w"], torch.arange(4000.0))
    draw = np.random.default_rng(0)
    for _ in range(20):                                           # anywhere in the tensor's bytes
        broken = bytearray(good)
        broken[int(draw.integers(len(good) // 4, len(good) * 3 // 4))] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    for content, words in ((good[:len(good) // 2], "damaged or truncated; delete"), (b"", "damaged or truncated"),
                           (b"text", "no checkpoint, or a damaged one: give .* delete it if it is one and run")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(path)
    torch.save({"format": 1, "f": os.system}, path)               # a pickle that would run code
    with pytest.raises(CheckpointError, match="not a plain checkpoint"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")


def test_nobody_is_told_to_delete_what_is_not_ours(tmp_path):
    """A folder, an image, arrays of numpy: what was meant is said."""
    (tmp_path / "run").mkdir()
    (tmp_path / "heart.nii.gz").write_bytes(gzip.compress(bytes(500)))
    np.savez(tmp_path / "arrays.npz", a=np.arange(9))
    for name, words in (("run", "is a folder; give the final.pt in it"),
                        ("heart.nii.gz", "no checkpoint, or a damaged one"),
                        ("arrays.npz", "not a plain checkpoint of this project .*; give final.pt of train_")):
        with pytest.raises(CheckpointError, match=f"{name}: {words}") as caught:
            checkpoint.load(tmp_path / name)
        assert "; delete" not in str(caught.value)


def test_equal_content_is_equal_bytes_wherever_it_is_written(tmp_path):
    """The hash of the file is what provenance hangs on; torch.save to a path would write the path's name into it."""
    content = {"net": {"w": torch.arange(6.0).reshape(2, 3)}, "config": {"lr": 0.1}, "subjects": ["a", "b"]}
    for name in ("one.pt", "other.pt"):
        checkpoint.save(tmp_path / name, **content)
    assert sha256(tmp_path / "one.pt") == sha256(tmp_path / "other.pt")
    epochs = [{"mean": 0.5}, {"mean": 0.7}]                       # two keys that are one object, and two that are not
    for name, of_run in (("one.pt", epochs), ("other.pt", [json.loads(json.dumps(epoch)) for epoch in epochs])):
        checkpoint.save(tmp_path / name, **content, epochs=of_run)
    assert sha256(tmp_path / "one.pt") == sha256(tmp_path / "other.pt")
    checkpoint.save(tmp_path / "third.pt", **{**content, "net": {"w": content["net"]["w"] + 1}})
    assert sha256(tmp_path / "third.pt") != sha256(tmp_path / "one.pt")


def test_weights_of_another_network_are_refused(tmp_path):
    net = torch.nn.Linear(3, 2)
    for weights in (torch.nn.Linear(4, 2).state_dict(), {"other": torch.zeros(1)}, {}):
        with pytest.raises(CheckpointError, match="a.pt: weights of another network"):
            checkpoint.fill(net, weights, "a.pt")
    checkpoint.fill(net, net.state_dict(), "a.pt")


def refused(name, arguments, *words):
    got, _, errors = script(*name.split(), *arguments)
    assert got in (3, 4) and one_line(errors) and all(word in errors for word in words), errors


def evaluation(data, run, tmp_path, *more):
    segmenters = ["--segmenters", "vanilla-real,vanilla-synthetic", "--target", "Vendor=B,D"]
    return [*on(data, run), *segmenters, "--run", run, "--out", tmp_path / "results", *more]


def linked(run, tmp_path, *names):
    """An experiment of links to some parts of another."""
    for name in names:
        (tmp_path / name).symlink_to(run / name)


def resealed(table, text):
    """A manifest of another program: it fits its hash."""
    table.write_text(text)
    seal(table, text)


@pytest.fixture
def copied_set(run, phantom, tmp_path):
    """A copy of the DG set, to break: (its folder, arguments of a training on it)."""
    dg = shutil.copytree(run / "dg", tmp_path / "dg")
    return dg, [*on(phantom, run), "--train-on", "synthetic", "--synthetic", dg, "--out", tmp_path / "out"]


def test_another_grid(run, phantom, tmp_path):
    words = "does not belong here (spacing_mm: 2.5 there, 2.0 now)"
    refused("evaluate.py", evaluation(phantom, run, tmp_path, "--spacing-mm", "2.0"), "diffusion/final.pt " + words)
    smaller = [*synthesis(phantom, run, "--out", tmp_path / "dg"), "--size", "32"]
    refused("-m cmr.synthesize", smaller, "(size: 64 there, 32 now)")


def test_another_source(run, phantom, tmp_path):
    other = run / "segmenter-vanilla-Vendor-B" / "final.pt"
    words = f"{other} does not belong here (domain: 'vendor=b' there, 'vendor=a' now)"
    refused("-m cmr.synthesize", [*synthesis(phantom, run, "--out", tmp_path / "dg"), "--segmenter", other], words)
    linked(run, tmp_path, "diffusion", "da", "dg", "segmenter-vanilla-real")
    (tmp_path / "segmenter-vanilla-synthetic").symlink_to(other.parent)
    words = "segmenter-vanilla-synthetic", "domain: 'vendor=b' there"
    refused("evaluate.py", evaluation(phantom, tmp_path, tmp_path), *words)
    from_b = evaluation(phantom, run, tmp_path, "--source", "Vendor=B", "--target", "Vendor=D")
    refused("evaluate.py", from_b, "diffusion/final.pt", "source: 'vendor=a' there, 'vendor=b' now")


def test_a_segmenter_or_set_of_another_diffusion_model(run, phantom, copied_set, tmp_path):
    linked(run, tmp_path, "diffusion", "da", "segmenter-vanilla-real")
    synthetic, shifted = (checkpoint.load(run / f"segmenter-vanilla-{kind}" / "final.pt")
                          for kind in ("synthetic", "shifted"))
    assert synthetic["made_by"] == [sha256(run / "diffusion" / "final.pt")[:16]]
    assert shifted["made_by"] == []                               # images that no diffusion model has seen
    del synthetic["format"]
    other = tmp_path / "segmenter-vanilla-synthetic" / "final.pt"
    checkpoint.save(other, **{**synthetic, "made_by": ["0" * 16]})
    words = "of another diffusion model (" + "0" * 16
    refused("evaluate.py", evaluation(phantom, tmp_path, tmp_path), f"{other}: ", words)
    checkpoint.save(other, **synthetic)
    table = copied_set[0] / "manifest.csv"
    resealed(table, table.read_text().replace(synthetic["made_by"][0], "0" * 16))
    refused("evaluate.py", evaluation(phantom, tmp_path, tmp_path), f"{copied_set[0]}: ", words)


def test_a_test_study_that_was_edited_after_it_was_translated(run, phantom, tmp_path):
    data, _ = small_copy(phantom, tmp_path)
    record = next(r for r in find(data) if r.vendor == "D" and r.split == "Testing")
    rewrite(record.label_path, lambda a: np.roll(a, 1, 0))
    refused("evaluate.py", evaluation(data, run, tmp_path), f"was made of {record.subject}_E", "changed since; delete")


def test_a_training_study_that_was_edited_after_training(run, phantom, tmp_path):
    data, image = small_copy(phantom, tmp_path)
    rewrite(image, lambda a: np.where(a > a.max() // 2, a // 2, a))
    refused("evaluate.py", evaluation(data, run, tmp_path), "segmenter-vanilla-real/final.pt: trained on other data")
    refused("-m cmr.synthesize", synthesis(data, run, "--out", tmp_path / "dg"), "trained on other data")


def test_a_manifest_that_was_edited(copied_set):
    """A digit changed still reads well."""
    dg, training = copied_set
    table = dg / "manifest.csv"
    table.write_text(table.read_text().replace("_s0", "_s1", 1))
    refused("train_unet.py", training, "manifest.csv: not as it was written")
    (dg / "manifest.csv.sha256").unlink()
    refused("train_unet.py", training, "manifest.csv: not as it was written")


@pytest.mark.parametrize("lost,words", [("imagesTr", "the image of"), ("labelsTr", "the mask of")])
def test_a_synthetic_pair_that_is_incomplete(copied_set, lost, words):
    dg, training = copied_set
    sorted((dg / lost).iterdir())[2].unlink()
    refused("train_unet.py", training, words, "is lost, which manifest.csv lists")


def test_an_image_without_a_row_and_a_set_begun_with_other_references(run, phantom, copied_set):
    dg, training = copied_set
    table = dg / "manifest.csv"
    resealed(table, "\n".join(table.read_text().splitlines()[:-1]) + "\n")
    refused("train_unet.py", training, "no row of")
    item = sorted((dg / "items").iterdir())[0]
    write_sealed_json(item, {**read_sealed_json(item), "reference_content": "0" * 16})
    table.unlink()
    again = synthesis(phantom, run, "--use", "dg", "--shift", "0.5", "--strength", "t0=30,steps=2", "--out", dg)
    refused("-m cmr.synthesize", again, "whose image or mask was changed since")
    item.write_text("{")                                          # damaged: made again
    got, printed, _ = script("-m", "cmr.synthesize", *again)
    assert got == 0 and f"{item.name}: damaged; its image is made again" in printed
    assert table.read_bytes() == (run / "dg" / "manifest.csv").read_bytes()


@pytest.mark.parametrize("column", ["sd_dm", "reference_content", "strength"])
def test_a_manifest_without_a_column(run, phantom, tmp_path, column):
    linked(run, tmp_path, "diffusion", "dg", "segmenter-vanilla-real", "segmenter-vanilla-synthetic")
    table = shutil.copytree(run / "da", tmp_path / "da") / "manifest.csv"
    resealed(table, table.read_text().replace(f",{column},", ",other,", 1))
    refused("evaluate.py", evaluation(phantom, tmp_path, tmp_path), f"manifest.csv: column {column} missing")
