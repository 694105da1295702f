"""The stages fit together: what each writes, and that every row, structure and failure is in the results."""
import csv
import json

import nibabel as nib
import numpy as np

from cmr import checkpoint
from cmr.signs import SIGNS
from cmr.studies import find
from helpers import CANDIDATES, NETWORKS, ROWS


def test_stages_write_what_they_promise(run):
    assert {p.name for p in (run / "diffusion").iterdir()} == {"config.json", "log.csv", "final.pt", "samples_000008.png", "memorisation.csv"}
    dg = find(run / "dg")
    assert len(dg) == 8 and all(r.label_path for r in dg) and {r.subject for r in dg} == {r.subject for r in find(run / "dg")}
    header = nib.load(dg[0].image_path).header
    assert header.get_zooms()[:2] == (2.5, 2.5)
    rows = list(csv.DictReader(open(run / "dg" / "manifest.csv")))
    assert len(rows) == 8 and all(row["sd_dm"] and row["strength"].startswith("t0=30") and float(row["dice_synthetic"]) >= 0 for row in rows)
    da = find(run / "da")
    assert {r.metadata["split"] for r in da} == {"Testing"}
    assert {(r.metadata["vendor"], r.metadata["strength"].split(",")[0]) for r in da} == {("A", "t0=500"), ("B", "t0=500"), ("D", "t0=500"), ("B", "t0=30")}
    assert all(-1 <= float(row["through_plane_synthetic"]) <= 1 for row in rows) and (run / "dg" / "through_plane.png").stat().st_size > 1000
    assert {p.name for p in (run / "segmenter-nnunet3d-real").iterdir()} == {"config.json", "log.csv", "final.pt", "plan.json", "validation.csv"}


def test_the_choice_of_strength_covers_every_domain_network_and_candidate(run):
    chosen = json.loads((run / "chosen_by_itself.json").read_text())
    assert {(d, n) for d, of in chosen.items() for n in of} == {(d, n) for d in ("Vendor=A", "Vendor=B", "Vendor=D") for n in NETWORKS}
    rows = list(csv.DictReader(open(run / "choice" / "predicted.csv")))
    assert len(rows) == 3 * 3 * (1 + len(CANDIDATES)) and all(np.isfinite(float(r["predicted"])) for r in rows)
    assert [r["candidate"] for r in rows if r["chosen"] == "1"] == [of[n] for n in NETWORKS for of in chosen.values()]
    signs = list(csv.DictReader(open(run / "choice" / "signs.csv")))
    assert {r["domain"] for r in signs if r["use"] == "calibration"} == {"Vendor=A", "shift 1"} and all(np.isfinite(float(r[s])) for r in signs for s in SIGNS)


def test_results_cover_every_arm_structure_and_failure(run, phantom):
    rows = list(csv.DictReader(open(run / "results" / "metrics.csv")))
    cases = {(r["subject"], r["phase"]) for r in rows}
    assert len(rows) == len(cases) * 3 * ROWS and {r["status"] for r in rows} <= {"ok", "missed", "spurious", "absent_both"}
    assert all(r["hd95"] == "inf" and r["dice"] == "0" for r in rows if r["status"] in ("missed", "spurious"))
    report = (run / "results" / "report.md").read_text()
    for text in ("## Vendor=A (source test studies", "## Vendor=B (unseen target", "| vanilla | DG + DA |", "| nnunet3d | DG |", "| vanilla | shifted |", "n < 10", "](median_Vendor-D.png)", "](worst_Vendor-A.png)", "DG against *augmented*", "pairs were kept", "Memorisation", "## All unseen targets", "as good as the upper bound", "| Vendor=B | vanilla | upper bound |",
                 "| upper bound | no | no | its own training images | those of its training images |", "| vanilla | shuffled masks |", "| DA | Vendor=D | no |", "| DG | Vendor=A | yes |"):
        assert text in report
    assert (run / "results" / "worst_Vendor-B.png").stat().st_size > 1000 and len(list(csv.DictReader(open(run / "results" / "tests.csv")))) == (2 + 1) * 3 * (ROWS - len(NETWORKS))
    upper = {(r["subject"], r["phase"], r["structure"]): r["dice"] for r in rows if r["domain"] == "Vendor=A" and r["arm"] == "upper bound"}
    assert upper == {(r["subject"], r["phase"], r["structure"]): r["dice"] for r in rows if r["domain"] == "Vendor=A" and r["arm"] == "baseline" and r["network"] == "vanilla"}
    own = [checkpoint.load(run / f"segmenter-vanilla-Vendor-{v}" / "final.pt") for v in "BD"]
    assert [{r.vendor for r in find(phantom) if r.subject in saved["subjects"]} for saved in own] == [{"B"}, {"D"}]
    record = next(r for r in find(phantom) if r.vendor == "D" and r.split == "Testing")
    prediction = nib.load(run / "results" / "predictions" / "nnunet3d" / "real-raw" / f"{record.case}.nii.gz")
    original = nib.load(record.image_path)
    assert prediction.shape == original.shape[:3] and np.allclose(prediction.affine, original.affine, atol=1e-5)
