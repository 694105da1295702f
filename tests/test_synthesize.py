"""Synthetic sets: controls, interruptions, pairs kept out, leaks."""
import csv
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import evaluate
from cmr import audit, checkpoint, synthesize
from cmr.errors import CheckpointError, DataError, UsageError
from cmr.grid import Grid
from cmr.look import random_shift
from cmr.metrics import mean_dice
from cmr.records import Domain, Record
from cmr.seeds import rng
from cmr.segmenter import Segmenter
from cmr.studies import find
from cmr.working import prepare
from helpers import on, one_line, script, synthesis


@pytest.fixture
def without_models(monkeypatch):
    """Every Synthesis is of these records, of few pixels and without masks."""
    records = [Record(f"{vendor}{split}", "ED", "image", "mask", split=split, vendor=vendor) for vendor, split in
               (("A", "Training"), ("A", "Testing"), ("B", "Testing"), ("B", "Validation"), ("C", "Testing"))]

    def volumes(chosen):
        return [SimpleNamespace(record=record, image=np.zeros((1, 8, 8), np.float32), label=None) for record in chosen]

    def begin(synthesis, c):
        of_none = SimpleNamespace(subjects=())
        vars(synthesis).update(c=c, source=Domain.parse(c.source), records=records, frames=records, shifts=[0],
                               strengths=["none"], real=volumes(records[:1]), segmenter=of_none, sd_dm=of_none,
                               read=volumes)

    monkeypatch.setattr(synthesize.Synthesis, "__init__", begin)
    monkeypatch.setattr(synthesize.Synthesis, "begin", lambda synthesis, jobs: None)


def test_a_target_without_validation_volumes_has_no_classifier(without_models, monkeypatch):
    monkeypatch.setattr(synthesize, "SourceClassifier", lambda source, others, seed: len(others))
    adaptation = synthesize.Adaptation(synthesize.Config(use="da", target="Vendor=B,C"))
    assert adaptation.classifiers == {Domain.parse("Vendor=B"): 1}


def test_references_without_a_mask_are_refused_before_the_long_work(without_models):
    with pytest.raises(DataError, match="the masks of all volumes of Vendor=C are zero, .* choose other --references"):
        synthesize.Generalisation(synthesize.Config(use="dg", references="Vendor=C"))


def test_changed_references_are_the_same_with_and_without_the_diffusion_model(run, phantom):
    """`shifted` is the control of `dg`: what differs between the two is the projection alone."""
    dg, shifted = ({r.case: r for r in find(run / name)} for name in ("dg", "shifted"))
    manifest = {r["case"]: r for r in csv.DictReader(open(run / "shifted" / "manifest.csv"))}
    assert dg.keys() <= shifted.keys() == manifest.keys()
    assert {(r["strength"], r["shift"], r["kept"], float(r["dice_change"])) for r in manifest.values()} == {
        ("none", "0.5", "1", 0)
    }
    image = lambda r: np.asarray(nib.load(r.image_path).dataobj, float) / 1000 - 1
    records = {r.case: r for r in find(phantom)}
    for case, record in list(dg.items())[:2]:
        name = manifest[case]["reference"]
        [reference] = prepare([records[name]], Grid(2.5, 64), run / "work")
        given = random_shift(np.asarray(reference.image), 2.5, rng(0, "shift", name, 0), 0.5)
        assert np.abs(image(shifted[case]) - given.transpose(2, 1, 0)).max() < 1e-3
        assert 0.001 < np.abs(image(record) - image(shifted[case])).mean() < 0.1


def test_a_set_is_read_as_it_was_written_and_audited(run):
    """No second percentile stretch: what DG trains on and DA is tested with is what the audit has seen."""
    segmenter = Segmenter.load(run / "segmenter-vanilla-real" / "final.pt", "cpu")
    for w in prepare([*find(run / "dg"), *find(run / "da")], Grid(2.5, 64), run / "work"):
        written = np.asarray(nib.load(w.record.image_path).dataobj, float).transpose(2, 1, 0) / 1000 - 1
        assert np.abs(w.image - written).max() < 1e-6
        if w.label is not None:
            audited = float(w.record.metadata["dice_synthetic"])
            assert abs(mean_dice(segmenter.labels(w.image, w.spacing_mm), w.label) - audited) < 1e-5


def test_a_synthetic_image_is_asked_which_domain_it_looks_like(run):
    rows = [r for name in ("dg", "da") for r in csv.DictReader(open(run / name / "manifest.csv"))]
    assert {r["domain"] for r in rows if not r["of_source_synthetic"]} == {"Vendor=A"}
    assert {r["domain"] for r in rows} == {"Vendor=A", "Vendor=B", "Vendor=D"}
    for kind in ("of_source_reference", "of_source_synthetic"):
        assert all(0 <= float(r[kind]) <= 1 for r in rows if r[kind])


def test_interrupted_synthesis_makes_only_what_is_missing_and_the_same(run, phantom, tmp_path):
    copy = tmp_path / "dg"
    shutil.copytree(run / "dg", copy)
    images = sorted((copy / "imagesTr").iterdir())
    before = {p.name: p.read_bytes() for p in images}
    stamp = images[0].stat().st_mtime_ns
    (copy / "manifest.csv").unlink()
    images[3].unlink()
    (copy / "items" / images[3].name.replace("_0000.nii.gz", ".json")).unlink()
    again = synthesis(phantom, run, "--use", "dg", "--out", copy, "--shift", "0.5")
    synthesize.main([*again, "--strength", "t0=30,steps=2"])
    assert {p.name: p.read_bytes() for p in sorted((copy / "imagesTr").iterdir())} == before
    assert images[0].stat().st_mtime_ns == stamp
    assert (copy / "manifest.csv").read_bytes() == (run / "dg" / "manifest.csv").read_bytes()
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(re.sub('"audited_by": "[0-9a-f]+"', '"audited_by": "another"', config))
    with pytest.raises(CheckpointError, match="audited_by: 'another' there"):
        synthesize.main([*again, "--strength", "t0=30,steps=2"])
    (copy / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="strength: 't0=30,steps=2' there"):
        synthesize.main([*again, "--strength", "t0=60,steps=2"])


def test_a_pair_that_does_not_fit_is_kept_out_of_the_training_set_and_listed(run, phantom, tmp_path, monkeypatch):
    arguments = synthesis(phantom, run, "--use", "dg", "--strength", "t0=30,steps=2")
    verdicts = iter([False, *[True] * 7])
    monkeypatch.setattr(audit, "still_fits", lambda *figures: next(verdicts))
    synthesize.main([*arguments, "--out", str(tmp_path / "dg")])
    rows = list(csv.DictReader(open(tmp_path / "dg" / "manifest.csv")))
    assert [r["kept"] for r in rows] == ["0", *"1" * 7] and len(find(tmp_path / "dg")) == 7
    assert rows[0]["case"] not in {r.metadata["case"] for r in find(tmp_path / "dg")}
    assert [p.name for p in (tmp_path / "dg" / "excluded" / "images").iterdir()] == [rows[0]["case"] + "_0000.nii.gz"]
    assert all((tmp_path / "dg" / f"worst_{name}.png").stat().st_size > 1000 for name in ("kept", "excluded"))
    assert json.loads((tmp_path / "dg" / "dataset.json").read_text())["numTraining"] == 7
    monkeypatch.setattr(audit, "still_fits", lambda *figures: False)
    with pytest.raises(DataError, match="not one of 8 synthetic images fits its mask"):
        synthesize.main([*arguments, "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none" / "manifest.csv").exists()


@pytest.mark.parametrize("flag,part", [("--segmenter", "segmenter-vanilla-real"), ("--diffusion", "diffusion")])
def test_a_test_subject_in_training_is_refused(run, phantom, tmp_path, flag, part):
    saved = checkpoint.load(run / part / "final.pt")
    tested = next(r.subject for r in find(phantom) if r.vendor == "B" and r.split == "Testing")
    saved["subjects"] = [*saved["subjects"], tested]
    checkpoint.save(tmp_path / "leaky.pt", **{k: v for k, v in saved.items() if k != "format"})
    arguments = synthesis(phantom, run, "--use", "da", "--target", "Vendor=B", "--out", tmp_path / "da")
    with pytest.raises(UsageError, match=f"{tested} is a test subject, but .*leaky.pt was trained on it"):
        synthesize.main([*arguments, flag, str(tmp_path / "leaky.pt")])


def test_a_test_subject_that_a_segmenter_has_seen_is_not_measured(run, phantom, tmp_path, monkeypatch):
    tested = next(r.subject for r in find(phantom) if r.vendor == "B" and r.split == "Testing" and r.label_path)
    load = Segmenter.load
    seen = lambda path, device: replace(load(path, device), subjects=(tested,))
    monkeypatch.setattr(Segmenter, "load", seen)
    with pytest.raises(UsageError, match=f"{tested} is a test subject, but vanilla-real was trained on it"):
        evaluate.main([*map(str, on(phantom, run)), "--run", str(run), "--segmenters", "vanilla-real", "--target",
                       "Vendor=B,D", "--out", str(tmp_path / "results")])


def test_a_checkpoint_of_other_settings_is_refused(run, phantom, tmp_path):
    arguments = synthesis(phantom, run, "--out", tmp_path / "dg")
    got, _, errors = script("-m", "cmr.synthesize", *arguments, "--spacing-mm", "2.0")
    assert got == 4 and one_line(errors) and "does not belong here (spacing_mm: 2.5 there, 2.0 now)" in errors
    other = run / "segmenter-vanilla-real" / "final.pt"
    got, _, errors = script("-m", "cmr.synthesize", *arguments, "--diffusion", other)
    assert got == 4 and one_line(errors) and "not a finished diffusion model" in errors


def test_a_set_made_with_another_preset_is_refused(run, phantom, tmp_path):
    """config.json keeps what a preset stood for, so that a later version does not take the set for its own."""
    arguments = synthesis(phantom, run, "--use", "dg", "--strength", "t0=30,steps=2", "--out", tmp_path / "dg")
    synthesize.main([*arguments, "--shift", "0"])
    with pytest.raises(CheckpointError, match="shift: '0' there, '0;0.5' now"):
        synthesize.main(arguments)


def test_a_low_pass_must_divide_the_grid(run, phantom, tmp_path):
    arguments = synthesis(phantom, run, "--strength", "low_pass=3", "--out", tmp_path / "dg")
    with pytest.raises(UsageError, match="low_pass does not divide the 64 pixels"):
        synthesize.main(arguments)
    assert not (tmp_path / "dg").exists()


def test_references_of_another_domain_keep_their_masks_and_none_is_of_the_source(run, phantom, tmp_path):
    arguments = synthesis(phantom, run, "--use", "dg", "--strength", "t0=30,steps=2", "--shift", "0", "--samples", "1")
    synthesize.main([*arguments, "--references", "Vendor=C", "--out", str(tmp_path / "dg")])
    rows = list(csv.DictReader(open(tmp_path / "dg" / "manifest.csv")))
    labelled = [r for r in find(phantom) if r.vendor == "C" and r.label_path]        # of any split: none is tested
    assert {r["reference"] for r in rows} == {r.case for r in labelled}
    assert {(r["domain"], r["vendor"]) for r in rows} == {("Vendor=C", "C")}
    assert all(r["of_source_synthetic"] and float(r["dice_synthetic"]) >= 0 for r in rows)
    held_out = list(csv.DictReader(open(tmp_path / "dg" / "held_out.csv")))
    assert {r["domain"] for r in held_out} == {"Vendor=A"} and all(r["of_source_synthetic"] for r in held_out)
    with pytest.raises(UsageError, match="is in Vendor=A,C and in Vendor=A .* choose --references apart"):
        synthesize.main([*arguments, "--references", "Vendor=A,C", "--out", str(tmp_path / "other")])
