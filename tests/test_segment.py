"""Masks and volumes of image files: as in the experiment, whatever the way they are stored."""
import csv

import nibabel as nib
import numpy as np
import pytest

from cmr import segment
from cmr.diffusion import Schedule
from cmr.errors import UsageError
from cmr.metrics import dice
from cmr.nifti import read_nifti
from cmr.records import VALUES
from cmr.segment import table, volumes_of
from cmr.sampler import SourceModel
from cmr.segmenter import Segmenter
from cmr.studies import find
from helpers import ROOT, one_line, script
from test_translate import PADDINGS, in_the_experiment, padded


@pytest.mark.parametrize("network,row,more", [
    ("nnunet2d", "baseline", []), ("vanilla", "DA, guided, averaged", ["--diffusion", "diffusion"])])
def test_dice_is_that_of_the_report_to_the_last_digit(run, phantom, tmp_path, network, row, more):
    record = next(r for r in find(phantom) if r.vendor == "D" and r.split == "Testing" and r.phase == "ES")
    more = [run / word / "final.pt" if word == "diffusion" else word for word in more]
    code, _, errors = script("-m", "cmr.segment", record.image_path, "--segmenter",
                             run / f"segmenter-{network}-real" / "final.pt", "--out", tmp_path, *more)
    assert code == 0, errors
    mask = nib.load(next(tmp_path.glob("*.nii.gz")))
    assert mask.shape == nib.load(record.image_path).shape and mask.get_data_dtype() == np.uint8
    found, truth = (np.asarray(x)[..., record.frame] for x in (mask.dataobj, read_nifti(record.label_path).array))
    with open(run / "results" / "metrics.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["network"], r["arm"], r["subject"], r["phase"]) ==
                (network, row, record.subject, "ES")]
    assert len(rows) == 3
    for r in rows:
        value = VALUES[r["structure"]]
        assert f"{dice(found == value, truth == value):.6f}".rstrip("0").rstrip(".") == r["dice"]


def test_volumes_and_ejection_fractions_of_a_cine():
    labels = np.zeros((10, 10, 2, 3), np.uint8)
    labels[:8, :5, 0, 0], labels[:6, :5, 0, 1], labels[:2, :5, 0, 2] = 1, 1, 1
    labels[:, 7, 1] = 2
    labels[:4, 9, 1, :2] = 3
    rows = volumes_of(labels, 0.5, ("LV", "MYO", "RV"), [0, 1, 2])
    assert [r["LV_ml"] for r in rows] == [20, 15, 5] and [r["RV_ml"] for r in rows] == [2, 2, 0]
    assert rows[0]["MYO_g"] == pytest.approx(10 * 0.5 * 1.05)
    study, *others = table([{"file": "x.nii", "volumes": rows}])
    of = lambda name: [study[f"{name}_{what}"] for what in ("EDV_ml", "ESV_ml", "EF_percent", "ED", "ES")]
    assert of("LV") == [20, 5, 75, 0, 2] and not any("LV_EF_percent" in row for row in others)
    assert of("RV") == [2, 0, None, 0, 2]                         # a ventricle that was not found ejects nothing
    alone = volumes_of(labels, 0.5, ("LV",), [0, 1, 2])
    assert alone[0] == {"LV_ml": 20, "RV_ml": None, "MYO_g": None}
    assert "RV_EDV_ml" not in table([{"file": "x.nii", "volumes": alone}])[0]


def test_a_pair_of_files_is_a_study_whatever_their_volumes_say():
    frame = lambda lv: [{"LV_ml": lv, "RV_ml": None, "MYO_g": None}]
    found = [{"file": "p/x_sa_ES.nii.gz", "volumes": frame(50.0)}, {"file": "p/x_sa_ED.nii.gz", "volumes": frame(40.0)},
             {"file": "q/x_ED.nii", "volumes": frame(9.0)}]
    of_es, of_ed, alone = table(found)
    assert of_ed["LV_EF_percent"] == -25
    assert (of_ed["LV_ED"], of_ed["LV_ES"]) == ("p/x_sa_ED.nii.gz", "p/x_sa_ES.nii.gz")
    assert "LV_EF_percent" not in of_es and "LV_EF_percent" not in alone and "RV_EF_percent" not in of_ed
    assert of_ed["LV_EDV_ml"] == 40 and of_ed["LV_ESV_ml"] == 50


def test_masks_of_any_orientation_with_notes_and_numbers_as_asked(run, phantom, tmp_path):
    """A study with its slices first; ACDC's numbers; what the network was not trained for is said."""
    original = nib.load(sorted(phantom.rglob("Testing/*/*_sa.nii.gz"))[0])
    first = np.asarray(original.dataobj)[..., 0]
    affine = original.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 0] *= 3                                            # slices three times as far apart as in training
    nib.save(nib.Nifti1Image(first.transpose(2, 0, 1), affine), tmp_path / "turned.nii.gz")
    segmenter, masks = Segmenter.load(run / "segmenter-vanilla-real" / "final.pt", "cpu"), {}
    for labels in ("mms", "acdc"):
        out = tmp_path / labels / "mask.nii.gz"
        done = segment.segment_file(tmp_path / "turned.nii.gz", segmenter, out, labels=labels)
        masks[labels] = nib.load(out)
        assert masks[labels].shape == first.transpose(2, 0, 1).shape and (tmp_path / labels / "mask.png").exists()
        assert np.array_equal(masks[labels].affine, nib.load(tmp_path / "turned.nii.gz").affine)
    of_mms, of_acdc = (np.asarray(mask.dataobj) for mask in masks.values())
    assert of_mms.any() and np.array_equal(np.array([0, 3, 2, 1])[of_acdc], of_mms)
    assert any("mm apart; the network was trained on" in note for note in done["notes"])


def test_a_structure_it_does_not_know_and_a_heart_at_the_border_are_said(run, phantom, tmp_path, monkeypatch):
    path = next(phantom.rglob("Testing/*/*_sa.nii.gz"))
    segmenter = Segmenter.load(run / "segmenter-vanilla-real" / "final.pt", "cpu")
    object.__setattr__(segmenter, "structures", ("LV", "MYO"))

    def logits(self, image, spacing_mm):
        scores = np.zeros((4, *image.shape), np.float32)
        scores[1, :, :, :9] = 1                                   # LV at the left border
        return scores

    monkeypatch.setattr(Segmenter, "logits", logits)
    notes = segment.segment_file(path, segmenter, tmp_path / "x.nii.gz")["notes"]
    for words in ("not trained on RV", "no MYO found in frame 0, 1", "reaches the border"):
        assert any(words in note for note in notes), notes


def test_networks_of_other_grids_are_refused_and_flags_that_do_not_fit(run, phantom, tmp_path):
    path = next(phantom.rglob("Testing/*/*_sa.nii.gz"))
    real, sd_dm = run / "segmenter-vanilla-real" / "final.pt", run / "diffusion" / "final.pt"
    for code, words, arguments in ((2, "no image given", ["--segmenter", real]),
                                   (4, "not a finished segmenter", [path, "--segmenter", sd_dm]),
                                   (2, "--labels", [path, "--segmenter", real, "--labels", "ours"]),
                                   (2, "give it as --diffusion", [path, "--segmenter", real, "--strength", "t0=100"]),
                                   (3, "no such file", [tmp_path / "none.nii", "--segmenter", real])):
        got, _, errors = script("-m", "cmr.segment", *arguments, "--out", tmp_path / "out")
        assert got == code and words in errors and one_line(errors), errors


def test_the_python_lines_of_the_pages_run_as_they_stand(run, phantom, tmp_path, monkeypatch):
    section = (ROOT / "docs" / "data.md").read_text().split("## Images without a dataset")[1]
    lines = section.split("```python")[1].split("```")[0].strip().splitlines()
    assert len(lines) <= 10
    (tmp_path / "runs" / "example").mkdir(parents=True)
    for name, made in (("diffusion", "diffusion"), ("segmenter", "segmenter-vanilla-real")):
        (tmp_path / "runs" / "example" / name).symlink_to(run / made)
    (tmp_path / "runs" / "example" / "heart.nii.gz").symlink_to(next(phantom.rglob("Testing/*/*_sa.nii.gz")))
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    assert (tmp_path / "mine" / "mask.png").exists() and (tmp_path / "mine" / "translated.nii.gz").exists()


SETTINGS = {"spacing_mm": 2.5, "size": 64, "source": "Vendor=A", "schedule": "cosine"}


@pytest.fixture
def seen(monkeypatch):
    """The images that a segmenter was given, which finds nothing in them."""
    images = []

    def logits(self, image, spacing_mm):
        images.append(image)
        return np.zeros((4, *image.shape), np.float32)

    monkeypatch.setattr(Segmenter, "logits", logits)
    return images


def segmenter(**more):
    return Segmenter(None, ("LV",), {**SETTINGS, **more}, None, (), "")


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_scales_a_frame_no_more_than_in_the_experiment(tmp_path, seen, padding):
    """One volume; and a cine, of which a frame without padding is scaled by itself."""
    path, cine = tmp_path / "x.nii.gz", tmp_path / "cine.nii.gz"
    padded(path, padding)
    image = nib.load(path)
    frame = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([frame, np.abs(frame) % 500 + 1], 3), image.affine), cine)
    for name, numbers in ((path, [None]), (cine, [0, 1])):
        expected, notes = zip(*(in_the_experiment(name, number) for number in numbers))
        seen.clear()
        said = segment.segment_file(name, segmenter(), tmp_path / "out" / name.name)["notes"]
        assert len(seen) == len(numbers) and all(map(np.array_equal, seen, expected))
        assert [note for note in said if "padding" in note] == notes[0] and len(sum(notes, [])) == (padding < 0)


@pytest.mark.parametrize("blank", [0, 1])
def test_a_blank_frame_is_no_end_systole(tmp_path, monkeypatch, blank):
    """The LV fills the bright half of every frame; ED and ES are the larger and the smaller of those that have one."""
    monkeypatch.setattr(Segmenter, "logits", lambda self, image, spacing_mm: np.stack([0 * image, image]))
    padded(tmp_path / "x.nii.gz", 0)
    image = nib.load(tmp_path / "x.nii.gz")
    frame = np.asarray(image.dataobj, np.float32)
    frames = [frame, frame ** 3]
    frames.insert(blank, 0 * frame)
    nib.save(nib.Nifti1Image(np.stack(frames, 3), image.affine), tmp_path / "cine.nii.gz")
    done = segment.segment_file(tmp_path / "cine.nii.gz", segmenter(), tmp_path / "out.nii.gz")
    assert f"frame {blank} is blank: no volumes" in done["notes"] and "no LV found" not in str(done["notes"])
    study, *_ = rows = table([{"file": "cine.nii.gz", "volumes": done["volumes"]}])
    assert [row["LV_ml"] is None for row in rows] == [t == blank for t in range(3)]
    ed, es = [t for t in range(3) if t != blank]
    assert (study["LV_ED"], study["LV_ES"]) == (ed, es) and 0 < study["LV_EF_percent"] < 100


def test_a_slice_without_a_thickness_has_no_volumes(tmp_path, seen):
    padded(tmp_path / "x.nii.gz", 0)
    image = nib.load(tmp_path / "x.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., 0], image.affine), tmp_path / "flat.nii.gz")
    done = segment.segment_file(tmp_path / "flat.nii.gz", segmenter(), tmp_path / "out.nii.gz")
    assert done["volumes"] == [dict.fromkeys(("LV_ml", "RV_ml", "MYO_g"))]
    assert "one slice without a thickness: no volumes" in done["notes"]


def test_voxels_that_are_no_numbers_are_said(tmp_path, seen):
    path = tmp_path / "x.nii.gz"
    padded(path, 0)
    image = nib.load(path)
    values = np.asarray(image.dataobj, np.float32)
    values[40, 40, 0] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)
    notes = segment.segment_file(path, segmenter(), tmp_path / "out.nii.gz")["notes"]
    assert f"1 non-finite voxels set to 0 in {path}" in notes


@pytest.mark.parametrize("more,words", [
    ({}, ""), ({"source": "vendor = a", "domain": ""}, ""), ({"source": "Vendor=B", "domain": "Vendor=A"}, ""),
    ({"source": "Vendor=B"}, "look of Vendor=A on .*, but unet.pt was trained for Vendor=B on "),
    ({"domain": "Vendor=B"}, "was trained for Vendor=B"), ({"size": 32}, "on Grid.*size=32")])
def test_a_diffusion_model_of_another_source_or_grid_is_refused(tmp_path, monkeypatch, more, words):
    """An upper bound was trained for its own domain, whatever its experiment's source."""
    sd_dm = SourceModel(None, Schedule.make("cosine"), None, 0, 1, SETTINGS, (), "")
    monkeypatch.setattr(SourceModel, "load", lambda path, device: sd_dm)
    monkeypatch.setattr(SourceModel, "require_usable", lambda self, strength: None)
    monkeypatch.setattr(Segmenter, "load", lambda path, device: segmenter(**more))
    monkeypatch.setattr(segment, "one_by_one", lambda *_: ([], []))
    padded(tmp_path / "x.nii.gz", 0)
    call = lambda: segment.main([str(tmp_path / "x.nii.gz"), "--segmenter", "unet.pt", "--diffusion", "sd-dm.pt",
                                 "--out", str(tmp_path / "out")])
    if not words:
        return call()
    with pytest.raises(UsageError, match=words):
        call()
