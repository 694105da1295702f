"""Scripts as a user meets them: faults end in one line and the right exit code, and the stages fit together."""
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import evaluate
import train_diffusion
import train_unet
from cmr import checkpoint, choose, rescan, synthesize
from cmr.config import CheckpointError, DataError, UsageError
from cmr.plan import Plan
from cmr.report import ARMS, POOLED, all_tests, compare, patient_values
from cmr.shifts import random_shift
from cmr.studies import find
from cmr.training import Run, rng
from cmr.volumes import Grid, load, prepare

ROOT = Path(__file__).parent.parent


def script(*arguments):
    """(exit code, stdout, stderr) of a script run as a process."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout, done.stderr


def one_line(errors):
    return errors.startswith("error: ") and errors.count("\n") == 1 and "Traceback" not in errors


NETWORKS = ("vanilla", "nnunet2d", "nnunet3d")
SYNTHETIC = {"synthetic": ("dg",), "both": ("dg",), "shifted": ("shifted",), "shuffled": ("dg", "--shuffle-masks"), "dose1": ("dg", "--dose", "1"), "dose2": ("dg", "--dose", "2")}
SEGMENTERS = (*(f"{network}-{kind}" for network in NETWORKS for kind in ("real", "synthetic", "both")),
              *(f"vanilla-{kind}" for kind in ("augmented", "shifted", "shuffled", "dose1", "dose2", "Vendor-B", "Vendor-D")))
ROWS = len([arm for arm in ARMS if arm.trained_on not in ("dose4", "dose8")]) + 2 * len([arm for arm in ARMS if not arm.secondary and arm.trained_on in ("real", "synthetic", "both")])     # vanilla: all; nnU-Nets: the primary ones


def training(phantom, root, network):
    """Arguments of a training run of a handful of steps."""
    return ["--preset", "tiny", "--data", str(phantom), "--work", str(root / "work"), "--steps", "8", "--save-every", "4", "--log-every", "4",
            *(["--ema", "0.5"] if network == "diffusion" else ["--network", network, *(["--epoch-steps", "2"] if network != "vanilla" else [])])]


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """The whole path at a handful of steps, in-process: {stage: folder}."""
    root = tmp_path_factory.mktemp("run")
    train_diffusion.main([*training(phantom, root, "diffusion"), "--out", str(root / "diffusion")])
    for network in NETWORKS:
        train_unet.main([*training(phantom, root, network), "--out", str(root / f"segmenter-{network}-real")])
    shared = ["--preset", "tiny", "--data", str(phantom), "--work", str(root / "work"), "--diffusion", str(root / "diffusion" / "final.pt"),
              "--segmenter", str(root / "segmenter-vanilla-real" / "final.pt"), "--strength"]
    synthesize.main([*shared, "t0=30,steps=2", "--arm", "dg", "--shift", "0.5", "--out", str(root / "dg")])
    synthesize.main([*shared, "none", "--arm", "dg", "--shift", "0.5", "--out", str(root / "shifted")])
    targets = ["--target", "Vendor=B,D"]
    choose.main(["--preset", "tiny", "--data", str(phantom), "--work", str(root / "work"), *targets, "--run", str(root), "--out", str(root / "choice")])
    shutil.copyfile(root / "choice" / "choice.json", root / "chosen_by_itself.json")                 # networks of 8 steps: force one translation
    choice = {d: dict.fromkeys(NETWORKS, "none") for d in ("Vendor=A", "Vendor=B", "Vendor=D")}
    choice["Vendor=B"]["vanilla"] = "t0=30,steps=2"
    checkpoint.write_json(root / "choice" / "choice.json", choice)
    synthesize.main([*shared, synthesize.DEFAULT_STRENGTH["da"], "--arm", "da", *targets, "--choice", str(root / "choice" / "choice.json"), "--out", str(root / "da")])
    for network in NETWORKS:
        planned = ["--plan", str(root / f"segmenter-{network}-real" / "plan.json")] if network != "vanilla" else []
        for kind, (folder, *flags) in SYNTHETIC.items():
            if f"{network}-{kind}" in SEGMENTERS:
                train_unet.main([*training(phantom, root, network), *planned, "--train-on", "both" if kind == "both" else "synthetic", "--synthetic", str(root / folder), *flags,
                                 "--out", str(root / f"segmenter-{network}-{kind}")])
    train_unet.main([*training(phantom, root, "vanilla"), "--augment", "--out", str(root / "segmenter-vanilla-augmented")])
    for vendor in "BD":
        train_unet.main([*training(phantom, root, "vanilla"), "--source", f"Vendor={vendor}", "--out", str(root / f"segmenter-vanilla-Vendor-{vendor}")])
    evaluate.main(["--preset", "tiny", "--data", str(phantom), "--work", str(root / "work"), *targets, "--run", str(root), "--segmenters", ",".join(SEGMENTERS), "--out", str(root / "results")])
    return root


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


def test_changed_references_are_the_same_with_and_without_the_diffusion_model(run):
    """`shifted` is the control of `dg`: what differs between the two is the projection alone."""
    dg, shifted = ({r.case: r for r in find(run / name)} for name in ("dg", "shifted"))
    manifest = {r["case"]: r for r in csv.DictReader(open(run / "shifted" / "manifest.csv"))}
    assert dg.keys() <= shifted.keys() == manifest.keys() and all(r["strength"] == "none" and r["shift"] == "0.5" and r["kept"] == "1" and float(r["dice_change"]) == 0 for r in manifest.values())
    image = lambda r: np.asarray(nib.load(r.image_path).dataobj, float) / 1000 - 1
    grid = Grid(2.5, 64)
    for case, record in list(dg.items())[:2]:
        reference = next(w for w in prepare([r for r in find(json.loads((run / "diffusion" / "config.json").read_text())["data"]) if r.case == manifest[case]["reference"]], grid, run / "work"))
        given = random_shift(np.asarray(reference.image), 2.5, rng(0, "shift", manifest[case]["reference"], 0), 0.5)
        assert np.abs(image(shifted[case]) - given.transpose(2, 1, 0)).max() < 1e-3 and 0.001 < np.abs(image(record) - image(shifted[case])).mean() < 0.1


def test_the_choice_of_strength_covers_every_domain_network_and_candidate(run):
    chosen = json.loads((run / "chosen_by_itself.json").read_text())
    assert {(d, n) for d, of in chosen.items() for n in of} == {(d, n) for d in ("Vendor=A", "Vendor=B", "Vendor=D") for n in NETWORKS}
    rows = list(csv.DictReader(open(run / "choice" / "predicted.csv")))
    assert len(rows) == 3 * 3 * (1 + len(choose.CANDIDATES)) and all(np.isfinite(float(r["predicted"])) for r in rows)
    assert [r["candidate"] for r in rows if r["chosen"] == "1"] == [of[n] for n in NETWORKS for of in chosen.values()]
    signs = list(csv.DictReader(open(run / "choice" / "signs.csv")))
    assert {r["domain"] for r in signs if r["use"] == "calibration"} == {"Vendor=A", "shift 1"} and all(np.isfinite(float(r[s])) for r in signs for s in choose.SIGNS)


def test_a_synthetic_image_is_asked_which_domain_it_looks_like(run):
    rows = [r for name in ("dg", "da") for r in csv.DictReader(open(run / name / "manifest.csv"))]
    assert {r["domain"] for r in rows if not r["of_source_synthetic"]} == {"Vendor=A"} and {r["domain"] for r in rows} == {"Vendor=A", "Vendor=B", "Vendor=D"}
    assert all(0 <= float(r[f"of_source_{kind}"]) <= 1 for r in rows if r["of_source_synthetic"] for kind in ("reference", "synthetic"))


@dataclass(frozen=True)
class Volume:
    image: np.ndarray
    label: np.ndarray


def test_shuffled_masks_belong_to_others():
    volumes = [Volume(np.zeros((depth, 4, 4)), np.full((depth, 4, 4), i)) for i, depth in enumerate((3, 5, 4, 6))]
    mixed = train_unet.shuffled(volumes, rng(0))
    owners = [v.label.flat[0] for v in mixed]
    assert all(v.label.shape == v.image.shape for v in mixed) and sorted(owners) == [0, 1, 2, 3] and owners != [0, 1, 2, 3]


def test_a_dose_is_the_first_images_of_every_reference(run, phantom, tmp_path, capsys):
    weights = [checkpoint.load(run / f"segmenter-vanilla-{kind}" / "final.pt")["net"] for kind in ("synthetic", "dose1")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])                    # one image a reference: all of them
    shutil.copytree(run / "dg", tmp_path / "dg")
    rows = list(csv.DictReader(open(run / "dg" / "manifest.csv")))
    checkpoint.write_csv(tmp_path / "dg" / "manifest.csv", [{**r, "sample": i % 2} for i, r in enumerate(rows)], list(rows[0]))
    train_unet.main([*training(phantom, run, "vanilla"), "--train-on", "synthetic", "--synthetic", str(tmp_path / "dg"), "--dose", "1", "--out", str(tmp_path / "out")])
    assert f"synthetic: {len(rows) // 2} volumes" in capsys.readouterr().out


def test_an_nnunet_validates_by_epochs_and_keeps_its_plan(run):
    for network, dims in (("nnunet2d", 2), ("nnunet3d", 3)):
        plans = [Plan.read(run / f"segmenter-{network}-{kind}" / "plan.json") for kind in ("real", "synthetic", "both")]
        assert plans[0] == plans[1] == plans[2] and plans[0].dims == dims                         # equal batches whatever it is trained on
        epochs = list(csv.DictReader(open(run / f"segmenter-{network}-real" / "validation.csv")))
        assert [int(e["epoch"]) for e in epochs] == [0, 1, 2, 3]
        average = float(epochs[0]["mean"])
        for e in epochs[1:]:
            average = 0.9 * average + 0.1 * float(e["mean"])
            assert float(e["ema"]) == pytest.approx(average, abs=2e-6)
        rates = [float(r["lr"]) for r in csv.DictReader(open(run / f"segmenter-{network}-real" / "log.csv"))]
        assert rates == pytest.approx([0.01 * (1 - e / 4) ** 0.9 for e in (1, 3)], rel=1e-5)       # steps 4 and 8 of 2-step epochs


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


@pytest.mark.parametrize("script_module,stage,network", [
    (train_diffusion, "diffusion", "diffusion"), *((train_unet, f"segmenter-{n}-real", n) for n in NETWORKS)])
def test_interrupted_training_scripts_end_with_the_same_weights(run, phantom, tmp_path, monkeypatch, script_module, stage, network):
    arguments = [*training(phantom, run, network), "--out", str(tmp_path)]
    update = Run.update
    def killed_at_six(self, loss):
        if self.step == 6:
            raise KeyboardInterrupt
        update(self, loss)
    monkeypatch.setattr(Run, "update", killed_at_six)
    with pytest.raises(KeyboardInterrupt):
        script_module.main(arguments)
    monkeypatch.undo()
    assert (tmp_path / "last.pt").exists() and not (tmp_path / "final.pt").exists()
    script_module.main(arguments)
    resumed, straight = (checkpoint.load(folder / "final.pt")["net"] for folder in (tmp_path, run / stage))
    assert resumed.keys() == straight.keys() and all(torch.equal(resumed[k], straight[k]) for k in straight)
    if network.startswith("nnunet"):
        assert (tmp_path / "validation.csv").read_bytes() == (run / stage / "validation.csv").read_bytes()


def test_interrupted_synthesis_makes_only_what_is_missing_and_the_same(run, phantom, tmp_path):
    copy = tmp_path / "dg"
    shutil.copytree(run / "dg", copy)
    images = sorted((copy / "imagesTr").iterdir())
    before = {p.name: p.read_bytes() for p in images}
    stamp = images[0].stat().st_mtime_ns
    (copy / "manifest.csv").unlink()
    images[3].unlink()
    (copy / "items" / images[3].name.replace("_0000.nii.gz", ".json")).unlink()
    again = ["--preset", "tiny", "--data", str(phantom), "--work", str(run / "work"), "--diffusion", str(run / "diffusion" / "final.pt"),
             "--segmenter", str(run / "segmenter-vanilla-real" / "final.pt"), "--arm", "dg", "--out", str(copy)]
    again += ["--shift", "0.5"]
    synthesize.main([*again, "--strength", "t0=30,steps=2"])
    assert {p.name: p.read_bytes() for p in sorted((copy / "imagesTr").iterdir())} == before and images[0].stat().st_mtime_ns == stamp
    assert (copy / "manifest.csv").read_bytes() == (run / "dg" / "manifest.csv").read_bytes()
    with pytest.raises(CheckpointError, match="strength: 't0=30,steps=2' there"):
        synthesize.main([*again, "--strength", "t0=60,steps=2"])


def test_a_pair_that_does_not_fit_is_kept_out_of_the_training_set_and_listed(run, phantom, tmp_path, monkeypatch):
    arguments = ["--preset", "tiny", "--data", str(phantom), "--work", str(run / "work"), "--diffusion", str(run / "diffusion" / "final.pt"),
                 "--segmenter", str(run / "segmenter-vanilla-real" / "final.pt"), "--arm", "dg", "--strength", "t0=30,steps=2"]
    verdicts = iter([False, *[True] * 7])
    monkeypatch.setattr(synthesize, "still_fits", lambda *figures: next(verdicts))
    synthesize.main([*arguments, "--out", str(tmp_path / "dg")])
    rows = list(csv.DictReader(open(tmp_path / "dg" / "manifest.csv")))
    assert [r["kept"] for r in rows] == ["0", *"1" * 7] and len(find(tmp_path / "dg")) == 7 and rows[0]["case"] not in {r.metadata["case"] for r in find(tmp_path / "dg")}
    assert [p.name for p in (tmp_path / "dg" / "excluded" / "images").iterdir()] == [rows[0]["case"] + "_0000.nii.gz"]
    assert all((tmp_path / "dg" / f"worst_{name}.png").stat().st_size > 1000 for name in ("kept", "excluded"))
    assert json.loads((tmp_path / "dg" / "dataset.json").read_text())["numTraining"] == 7
    monkeypatch.setattr(synthesize, "still_fits", lambda *figures: False)
    with pytest.raises(DataError, match="not one of 8 synthetic images fits its mask"):
        synthesize.main([*arguments, "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none" / "manifest.csv").exists()


def test_a_test_subject_in_training_is_refused(run, phantom, tmp_path):
    with pytest.raises(UsageError, match="is a test subject, but .*leaky.pt was trained on it"):
        saved = checkpoint.load(run / "segmenter-vanilla-real" / "final.pt")
        saved["subjects"] = saved["subjects"] + [next(r.subject for r in find(phantom) if r.vendor == "B" and r.split == "Testing")]
        checkpoint.save(tmp_path / "leaky.pt", **{k: v for k, v in saved.items() if k != "format"})
        synthesize.main(["--preset", "tiny", "--data", str(phantom), "--work", str(run / "work"), "--diffusion", str(run / "diffusion" / "final.pt"),
                         "--segmenter", str(tmp_path / "leaky.pt"), "--arm", "da", "--target", "Vendor=B", "--out", str(tmp_path / "da")])


def test_a_rescanned_dataset_differs_in_its_domain_alone(phantom, tmp_path):
    copy = tmp_path / "copy"
    rescan.rescan(rescan.Config(data=str(phantom), domain="Vendor=B,D", out=str(copy)))
    before, after = ({r.case: r for r in find(root)} for root in (phantom, copy))
    assert before.keys() == after.keys() and [p.name for p in tmp_path.iterdir()] == ["copy"]
    for case, r in before.items():
        (image, label, nifti, _), (other, other_label, other_nifti, _) = load(r), load(after[case])
        assert nifti.spacing_mm == other_nifti.spacing_mm and np.array_equal(nifti.affine, other_nifti.affine) and (label is None or np.array_equal(label, other_label))
        assert np.array_equal(image, other) == (r.vendor in "AC")
        if r.vendor in "BD":
            assert 0.3 < np.corrcoef(image.ravel(), other.ravel())[0, 1] < 0.999


def small_copy(phantom, tmp_path):
    """Hard copies of the phantom, to break."""
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy, ignore=shutil.ignore_patterns("work"))
    return copy, Path(next(r.image_path for r in find(copy) if r.vendor == "A" and r.split == "Training"))


def rewrite(path, change):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine), path)


def truncate(image):
    image.write_bytes(image.read_bytes()[:-2000])


def flip_bit(image):
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 4
    image.write_bytes(data)



FAULTS = {
    "truncated image": (lambda d, i: truncate(i), 3, "truncated or damaged"),
    "flipped bit": (lambda d, i: flip_bit(i), 3, "truncated or damaged"),
    "shapes differ": (lambda d, i: rewrite(i.with_name(i.name.replace("_sa", "_sa_gt")), lambda a: a[:-3]), 3, "shape"),
    "label value 7": (lambda d, i: rewrite(i.with_name(i.name.replace("_sa", "_sa_gt")), lambda a: np.where(a == 1, 7, a)), 3, "label values [7]"),
    "CSV without ED": (lambda d, i: (lambda t: t.write_text(t.read_text().replace(",ED,", ",E.D.,")))(next(d.rglob("*.csv"))), 3, "column ED missing")}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_stops_the_check_and_the_training_in_one_line(phantom, tmp_path, fault):
    damage, code, words = FAULTS[fault]
    data, image = small_copy(phantom, tmp_path)
    damage(data, image)
    for command in (["-m", "cmr.check", data, "--preset", "tiny", "--out", tmp_path / "out"],
                    ["train_unet.py", "--preset", "tiny", "--data", data, "--out", tmp_path / "run", "--work", tmp_path / "work"]):
        got, _, errors = script(*command)
        assert got == code and one_line(errors) and words in errors, errors
    assert not list(tmp_path.rglob("final.pt")) and not list(tmp_path.rglob("*.tmp.*"))


def test_bad_arguments_and_folders(phantom, run, tmp_path):
    for arguments, code, words in (
            (["-m", "cmr.check", tmp_path / "absent"], 3, "no such folder"),
            (["-m", "cmr.check", phantom, "--source", "Vendor=Q"], 2, "Vendor has A"),
            (["train_diffusion.py", "--preset", "tiny", "--data", phantom, "--source", "Vendor=Q", "--out", tmp_path / "r", "--work", tmp_path / "w"], 2, "matches none"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--dose", "2"], 2, "--dose 2: counts the images in --synthetic"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--network", "resnet"], 2, "use vanilla or nnunet2d or nnunet3d"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--work", tmp_path / "w", "--out", tmp_path / "r", "--network", "nnunet2d", "--steps", "7"], 2, "whole epochs"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--work", tmp_path / "w", "--out", tmp_path / "r", "--network", "nnunet2d",
              "--plan", run / "segmenter-nnunet3d-real" / "plan.json"], 2, "a 3D plan"),
            (["train_unet.py", "--preset", "tiny", "--data", phantom, "--out", phantom / "README.txt" / "run"], 5, "choose another --out"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--run", run, "--segmenters", "vanilla-synthetic", "--out", tmp_path / "o"], 2, "vanilla-real is missing"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--work", run / "work", "--target", "Vendor=B,D", "--run", run, "--segmenters", "vanilla-real,vanilla-Vendor-B", "--out", tmp_path / "o"], 2,
             "vanilla-Vendor-B belongs to no row"),
            (["-m", "cmr.check", phantom, "--target", "Pathology=NOR", "--preset", "tiny"], 2, "a target must be unseen"),
            (["-m", "cmr.rescan", "--data", phantom, "--domain", "Vendor=B", "--out", run], 2, "exists"),
            (["-m", "cmr.rescan", "--data", f"{phantom},{phantom}", "--domain", "Vendor=B", "--out", tmp_path / "copy"], 2, "one by one"),
            (["-m", "cmr.synthesize", "--preset", "tiny", "--data", phantom, "--shift", "0,1", "--out", tmp_path / "s"], 2, "--shift '0,1': use numbers"),
            (["train_unet.py", "--preset", "tiny", "--stesp", "3"], 2, "did you mean --steps"),
            (["evaluate.py", "--preset", "tiny", "--data", phantom, "--run", tmp_path, "--out", tmp_path / "o"], 4, "no such checkpoint")):
        got, _, errors = script(*arguments)
        assert got == code and one_line(errors) and words in errors, (arguments, got, errors)


def test_a_checkpoint_of_other_settings_is_refused(run, phantom, tmp_path):
    arguments = ["--preset", "tiny", "--data", phantom, "--work", run / "work", "--diffusion", run / "diffusion" / "final.pt",
                 "--segmenter", run / "segmenter-vanilla-real" / "final.pt", "--out", tmp_path / "dg", "--spacing-mm", "2.0"]
    got, _, errors = script("-m", "cmr.synthesize", *arguments)
    assert got == 4 and one_line(errors) and "spacing_mm: 2.5 there, 2.0 now" in errors
    got, _, errors = script("-m", "cmr.synthesize", *arguments[:-2], "--diffusion", run / "segmenter-vanilla-real" / "final.pt")
    assert got == 4 and one_line(errors) and "not a finished diffusion model" in errors


def row(subject, arm, hd95, status="ok", domain="Vendor=B", role="target"):
    return {"domain": domain, "role": role, "subject": subject, "arm": arm, "network": "vanilla", "status": status, "dice": 0.9 - hd95 / 100 if status == "ok" else 0.0,
            "hd95": hd95, "assd": hd95 / 4, "diagonal_mm": 500.0}


def test_failures_are_counted_and_can_only_hurt():
    rows = [row(f"p{i}", arm, 10.0 + i - (2 + i % 3 if arm == "DA" else 0)) for i in range(12) for arm in ("baseline", "DA")]
    better = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert better["mean_difference"] == pytest.approx(-3) and better["n"] == 12 and better["n_missed_arm"] == 0 and better["wilcoxon_p"] < 0.001
    rows[1] = row("p0", "DA", float("inf"), "missed")
    worse = compare(rows, "Vendor=B", "vanilla", "DA", "hd95", 500.0)
    assert worse["n"] == 12 and worse["n_missed_arm"] == 1 and worse["mean_difference"] == pytest.approx((-3 * 12 + 2 + 490) / 12) and worse["wilcoxon_p"] > better["wilcoxon_p"]
    assert patient_values([rows[1]], "hd95") == {} and patient_values([rows[1]], "hd95", 500.0) == {"p0": 500.0} and patient_values([rows[1]], "dice") == {"p0": 0.0}


def test_holm_runs_over_the_declared_family():
    rows = [row(f"p{i}", a.name, 10.0 + i + (i % 3) * j + 0.1 * i * i * j, domain=d, role="target") for d in ("Vendor=B", "Vendor=C") for i in range(10) for j, a in enumerate(a for a in ARMS if a.name in ("baseline", "DA", "DG", "matched"))]
    tests = all_tests(rows)
    assert sum(t["primary"] for t in tests) == 2 * 2 * 2 + 2 * 2 and all(("welch_p_holm" in t) == bool(t["primary"]) for t in tests)
    by_target, pooled = ([t for t in tests if t["primary"] and (t["domain"] == POOLED) == together] for together in (False, True))
    assert all(t["n"] == 10 for t in by_target) and all(t["n"] == 10 for t in pooled)                  # the same patients' names in both domains here: averaged
    for family in (by_target, pooled):                                                                 # each corrected for its own size alone
        assert min(t["wilcoxon_p_holm"] for t in family) == pytest.approx(min(1, len(family) * min(t["wilcoxon_p"] for t in family)))


def test_real_cardiac_mr_where_it_is_at_hand(tmp_path):
    """26 public-domain patients of the Sunnybrook data, LV only; skipped where the folder is absent (SUNNYBROOK=...)."""
    data = Path(os.environ.get("SUNNYBROOK", "/nowhere"))
    if not data.is_dir():
        pytest.skip("set SUNNYBROOK to a folder of the Sunnybrook data in the pre-split M&Ms form")
    got, printed, errors = script("-m", "cmr.check", data, "--source", "Pathology=MINF,DCM", "--target", "Pathology=HCM,NOR")
    assert got == 0 and "26 subjects, 52 volumes" in printed and "MYO, RV labelled nowhere" in printed, errors
