"""The stages fit together: what each writes, and that every row, structure and failure is in the results."""
import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

import evaluate
from cmr import audit, checkpoint
from cmr.grid import Grid, resample_to_original, stored
from cmr.network import softmax
from cmr.records import VALUES
from cmr.sampler import NONE, Strength
from cmr.segmenter import Segmenter
from cmr.studies import find
from cmr.working import prepare
from helpers import NETWORKS, ROOT, ROWS, launch, on, script, synthesis


def table(path):
    return list(csv.DictReader(open(path)))


def test_stages_write_what_they_promise(run):
    written = lambda folder: {path.name for path in (run / folder).iterdir()} - {".lock"}
    assert written("diffusion") == {"config.json", "log.csv", "final.pt", "samples_000008.png"}
    assert written("segmenter-nnunet3d-real") == {"config.json", "log.csv", "final.pt", "plan.json", "validation.csv"}
    dg, rows = find(run / "dg"), table(run / "dg" / "manifest.csv")
    assert len(dg) == len(rows) == 8 and all(r.label_path for r in dg)
    assert nib.load(dg[0].image_path).header.get_zooms()[:2] == (2.5, 2.5)
    assert all(row["sd_dm"]  for row in rows)
    assert all(float(row["dice_synthetic"]) >= 0 and abs(float(row["through_plane_synthetic"])) <= 1 for row in rows)
    held_out, [sd_dm] = table(run / "dg" / "held_out.csv"), table(run / "dg" / "sd_dm.csv")
    assert held_out and not {row["subject"] for row in held_out} & {row["subject"] for row in rows}
    assert all(row["of_source_synthetic"] and row["dice_synthetic"] for row in held_out)
    assert float(sd_dm["frechet_samples"]) > float(sd_dm["frechet_training"]) > 0 and int(sd_dm["samples"]) > 10
    assert not (run / "shifted" / "sd_dm.csv").exists()
    da = [r.metadata for r in find(run / "da")]
    assert {row["split"] for row in da} == {"Testing"}
    made = {(row["vendor"], row["strength"].split(",")[0]) for row in da}
    assert made == {(vendor, start) for vendor in "ABD" for start in ("t0=50", "t0=500")}


IN_THE_REPORT = (
    "## All unseen targets", "as good as the upper bound", "| missed | HD95 mm of those found | gap closed: Dice |",
    "DG against *augmented*", "patients are too few to decide",
    "| Vendor=B | vanilla | upper bound |",
    "## Vendor=A (source test studies", "## Vendor=B (unseen target", "| vanilla | DG + DA |", "| nnunet3d | DG |",
    "| vanilla | shifted |", "| vanilla | shuffled masks |", "n < 10", "pairs were kept",
    "Has the diffusion model learnt the source?", "| DG of held-out patients | Vendor=A |",
    "| upper bound | no | no | its own training images | those of its training images |",
    "## What this was made of", "| SD-DM | SHA-256 ", "| vanilla-Vendor-B | SHA-256 ", " patients, content ",
    "| versions | Python ", "| commit | ", "_F00: mask under Training/Unlabeled ignored",
    "_ED: RV not labelled: not measured there", "](median_Vendor-D.svg)", "](worst_Vendor-A.svg)",
    "contours of vanilla.", "| DA | Vendor=D | no |", "| DG | Vendor=A | yes |")


def test_results_cover_every_row_structure_and_failure(run):
    rows, results = table(run / "results" / "metrics.csv"), run / "results"
    cases = {(row["subject"], row["phase"]) for row in rows}
    assert len(rows) == (len(cases) * 3 - 1) * ROWS               # one mask labels no RV: not measured there, and said
    assert {row["status"] for row in rows} <= {"ok", "missed"}
    failed = [row for row in rows if row["status"] in ("missed", "spurious")]
    assert all(row["hd95"] == "inf" and row["dice"] == "0" for row in failed)
    report = (results / "report.md").read_text()
    assert not [text for text in IN_THE_REPORT if text not in report]
    assert (results / "worst_Vendor-B.svg").stat().st_size > 1000
    assert len(table(results / "tests.csv")) == (2 + 1) * 3 * (ROWS - len(NETWORKS))


def test_distances_and_volumes_are_those_of_the_written_predictions_in_mm(run, phantom):
    """Slices lie three times as far apart as pixels: with the axes of the spacing exchanged no number is right."""
    row = next(row for row in table(run / "results" / "metrics.csv")
               if (row["arm"], row["status"]) == ("baseline", "ok"))
    value = VALUES[row["structure"]]
    record = next(r for r in find(phantom) if (r.subject, r.phase) == (row["subject"], row["phase"]))
    folder = run / "results" / "predictions" / row["network"] / "real-raw"
    prediction = nib.load(folder / f"{record.case}.nii.gz")
    spacing_mm = prediction.header.get_zooms()
    assert spacing_mm[2] > 3 * max(spacing_mm[:2])
    mask = np.asarray(nib.load(record.label_path).dataobj)[..., record.frame]
    points_mm = []
    for labels in (np.asarray(prediction.dataobj) == value, mask == value):
        inner = np.argwhere(labels & ~ndimage.binary_erosion(labels))
        points_mm.append(inner * np.array(spacing_mm))
    distances = [cKDTree(b).query(a)[0] for a, b in (points_mm, points_mm[::-1])]
    assert float(row["hd95"]) == pytest.approx(max(np.quantile(d, 0.95) for d in distances), abs=1e-4)
    assert float(row["assd"]) == pytest.approx(np.concatenate(distances).mean(), abs=1e-4)
    assert float(row["volume_ref_ml"]) == pytest.approx((mask == value).sum() * np.prod(spacing_mm) / 1000, abs=1e-4)


def test_the_upper_bound_was_trained_on_its_target_and_is_the_baseline_on_the_source(run, phantom):
    rows = table(run / "results" / "metrics.csv")
    on_source = [row for row in rows if row["domain"] == "Vendor=A" and row["network"] == "vanilla"]
    dice = lambda arm: {
        (row["subject"], row["phase"], row["structure"]): row["dice"] for row in on_source if row["arm"] == arm
    }
    assert dice("upper bound") == dice("baseline") != {}
    for vendor in "BD":
        subjects = checkpoint.load(run / f"segmenter-vanilla-Vendor-{vendor}" / "final.pt")["subjects"]
        assert {r.vendor for r in find(phantom) if r.subject in subjects} == {vendor}


def test_a_test_input_of_two_images_is_the_mean_of_their_softmax(run, phantom):
    record = next(r for r in find(phantom) if r.vendor == "D" and r.split == "Testing")
    translated = next(r for r in find(run / "da") if r.metadata["reference"] == record.case
                      and r.metadata["strength"].startswith("t0=50,"))
    workings = prepare([record, translated], Grid(2.5, 64), run / "work")
    segmenter = Segmenter.load(run / "segmenter-vanilla-real" / "final.pt", "cpu")
    logits = [segmenter.logits(np.asarray(w.image), w.spacing_mm) for w in workings]
    on_original = [softmax(resample_to_original(sample, workings[0].geometry)) for sample in logits]
    expected = stored((sum(on_original) / 2).argmax(0).astype(np.uint8), workings[0].geometry)
    folder = run / "results" / "predictions" / "vanilla"
    found = lambda arm: np.asarray(nib.load(folder / arm / f"{record.case}.nii.gz").dataobj)
    assert (found("real-raw+projected") == expected).all() and (found("real-raw") != expected).any()


def test_a_set_of_da_may_hold_images_as_they_are_beside_their_projections(monkeypatch):
    samples = [SimpleNamespace(record=SimpleNamespace(metadata={"reference": "x_ED", "strength": text}), image=0)
               for text in ("none", "t0=5,steps=2")]
    monkeypatch.setattr(evaluate, "find_set", lambda folder: [sample.record for sample in samples])
    monkeypatch.setattr(evaluate, "require_references", lambda *_: None)
    monkeypatch.setattr(evaluate, "prepare", lambda *_: samples)
    evaluation = object.__new__(evaluate.Evaluation)
    evaluation.c, evaluation.strengths = SimpleNamespace(work=""), {"projected": Strength(t0=5, steps=2)}
    tested = [SimpleNamespace(record=SimpleNamespace(case="x_ED"))]
    assert evaluation._translations("da", tested, None)["x_ED"].keys() == {NONE, Strength(t0=5, steps=2)}


def test_pseudonyms_stand_wherever_an_identifier_would(run, phantom, tmp_path):
    out = tmp_path / "out"
    earlier = out / "predictions" / "vanilla" / "real-raw" / "P0_ED.nii.gz"
    earlier.parent.mkdir(parents=True)
    earlier.touch()                                               # of an evaluation without pseudonyms
    rows_of = ["--segmenters", "vanilla-real", "--every-row-of", "nnunet2d", "--target", "Vendor=D"]
    evaluate.main([*on(phantom, run), *rows_of, "--run", str(run), "--processes", "1", "--pseudonyms",
                   "--out", str(out)])
    key = {row["subject"]: row["pseudonym"] for row in table(f"{out}-key-NOT-TO-BE-SHARED.csv")}
    assert key.keys() == {r.subject for r in find(phantom)} and len(set(key.values())) == len(key)
    for path in out.rglob("*"):
        text = path.read_text() if path.suffix in (".csv", ".md", ".svg") else ""
        assert not [subject for subject in key if subject in path.name or subject in text], path
    dice = lambda rows, named: {(named(row["subject"]), row["phase"], row["structure"]): row["dice"] for row in rows
                                if (row["network"], row["arm"], row["domain"]) == ("vanilla", "baseline", "Vendor=D")}
    found = dice(table(out / "metrics.csv"), str)
    assert found == dice(table(run / "results" / "metrics.csv"), key.get) and len(found) > 3
    written = {path.name for path in earlier.parent.iterdir()}
    assert {f"{subject}_{phase}.nii.gz" for subject, phase, _ in found} < written and not earlier.exists()


def test_predictions_lie_on_the_grid_of_their_image(run, phantom):
    record = next(r for r in find(phantom) if r.vendor == "D" and r.split == "Testing")
    prediction = nib.load(run / "results" / "predictions" / "nnunet3d" / "real-raw" / f"{record.case}.nii.gz")
    original = nib.load(record.image_path)
    assert prediction.shape == original.shape[:3] and np.allclose(prediction.affine, original.affine, atol=1e-5)


def test_volumes_dealt_to_ranks_give_the_same_tables(run, phantom, tmp_path):
    """Synthesis and evaluation on two ranks, beside what one process has written."""
    (tmp_path / "short_audit.py").write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from cmr import audit, synthesize
audit.SAMPLES, audit.CALLS, audit.STEPS = {audit.SAMPLES}, {audit.CALLS}, {audit.STEPS}
synthesize.main()
""")
    dg = synthesis(phantom, run, "--use", "dg", "--strength", "t0=30,steps=2", "--shift", "0.5")
    evaluation = ["evaluate.py", *on(phantom, run), "--target", "Vendor=B", "--run", run,
                  "--segmenters", "vanilla-real,vanilla-synthetic", "--out"]
    assert script(*evaluation, tmp_path / "one")[0] == 0
    for command in ([tmp_path / "short_audit.py", *dg, "--out", tmp_path / "dg"], [*evaluation, tmp_path / "two"]):
        started = launch(2, *command)
        _, errors = started.communicate(timeout=120)
        assert started.returncode == 0, errors
    for table in ("manifest.csv", "sd_dm.csv", "held_out.csv"):
        assert (tmp_path / "dg" / table).read_bytes() == (run / "dg" / table).read_bytes()
    for table in ("metrics.csv", "tests.csv"):
        assert (tmp_path / "two" / table).read_bytes() == (tmp_path / "one" / table).read_bytes()
