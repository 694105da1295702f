"""A rendered study, and the phantom dataset: layout, orientation, repeatability."""
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmr.errors import CheckpointError
from cmr.grid import Grid, to_working
from cmr.nifti import Nifti
from cmr.phantom import Config, _studies, _write_study, contraction, render_study, write_dataset
from cmr.phantom_heart import sample_subject
from cmr.phantom_scanner import VENDORS
from cmr.records import Domain
from cmr.seeds import rng
from cmr.studies import find, split_by_subject
from cmr.working import prepare


def test_labels_of_a_study():
    study = render_study(sample_subject(rng(3), "NOR"), VENDORS["D"], 2, 3)
    assert set(np.unique(study.label)) == {0, 1, 2, 3} and study.image.dtype == np.int16
    assert study.image.shape == study.label.shape
    for phase in (study.ed, study.es):
        label = study.label[..., phase]
        for value in (1, 2, 3):
            assert ndimage.label(label == value)[1] == 1          # one component each
        grown = ndimage.binary_dilation(label == 1, np.ones((3, 3, 1)))
        assert np.isin(label[grown], (1, 2)).mean() > 0.99        # the LV lies inside the myocardium
    assert (study.label[..., study.ed] == 1).sum() > (study.label[..., study.es] == 1).sum()


def test_the_same_subject_can_be_seen_by_several_vendors():
    subject, grid = sample_subject(rng(4), "NOR"), Grid(2.5, 64)
    seen = {}
    for vendor in "AD":
        study = render_study(subject, replace(VENDORS[vendor], spacing_mm=(10, 10)), 2, 4, vendor)
        nifti = Nifti("", study.image[..., study.ed].astype(np.float32), study.affine, study.spacing_mm, ())
        seen[vendor] = to_working(nifti.array, nifti, grid, study.label[..., study.ed])[:2]
    (image_a, label_a), (image_d, label_d) = seen["A"], seen["D"]
    overlap = 2 * ((label_a > 0) & (label_d > 0)).sum() / ((label_a > 0).sum() + (label_d > 0).sum())
    assert label_a.shape == label_d.shape and overlap > 0.93 and np.abs(image_a - image_d).mean() > 0.05


def test_contraction_is_zero_at_ed_and_one_at_es():
    for frames, ed in ((2, 0), (3, 0), (25, 0), (25, 22)):
        c = [contraction(f, frames, ed) for f in range(frames)]
        assert c[ed] == 0 and max(c) == pytest.approx(1)
        assert c[(ed + max(1, round(0.37 * frames))) % frames] == pytest.approx(1)


def test_layout_and_orientation(phantom):
    records = split_by_subject(find(phantom), Domain.parse("Vendor=A"))
    assert {(r.vendor, r.split) for r in records} >= {("A", "Training"), ("A", "Testing"), ("B", "Testing"),
                                                      ("C", "Validation"), ("D", "Testing"), ("C", "Training")}
    unlabelled = [r for r in records if r.vendor == "C" and r.split == "Training" and "Unlabeled" in r.image_path]
    assert len(unlabelled) == 1 and unlabelled[0].label_path is None
    assert all(r.subject.startswith("X") and len(r.subject) == 6 for r in records)
    for vendor in "ABCD":
        tested = [r for r in records if (r.vendor, r.split, r.phase) == (vendor, "Testing", "ED")]
        w = next(w for w in prepare(tested, Grid(2.5, 64), phantom / "work") if (w.label == 3).any())
        _, rows, columns = np.nonzero(w.label == 3)
        _, rows_lv, columns_lv = np.nonzero(w.label == 1)
        # the RV is on the left, whatever the storage
        assert columns.mean() < columns_lv.mean() - 4 and w.geometry.oriented
        area = (w.label > 0).sum((1, 2))
        assert area[:len(area) // 2].sum() > area[len(area) // 2 + 1:].sum()     # base first
    assert "PHANTOM" in (phantom / "README.txt").read_text()
    assert json.loads((phantom / "phantom_params.json").read_text())["PHANTOM"]


def test_a_folder_of_something_else_is_no_place_for_a_phantom(tmp_path):
    (tmp_path / "README.txt").write_text("M&Ms")
    with pytest.raises(CheckpointError, match="holds files that are no phantom's; use another --out"):
        write_dataset(Config(out=str(tmp_path)))
    assert (tmp_path / "README.txt").read_text() == "M&Ms"


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(phantom, tmp_path):
    code = sorted(p.name for p in phantom.rglob("*_sa.nii.gz"))[0][:6]
    for seed, equal in ((0, True), (1, False)):
        config = Config(out=str(tmp_path / str(seed)), counts="tiny", frames=2, seed=seed)
        job = next((j for j in _studies(config) if j[0] == code), _studies(config)[0])
        _write_study((config, *job))
        fresh = next((tmp_path / str(seed)).rglob("*_sa.nii.gz"))
        same_name = list(phantom.rglob(fresh.name))
        assert (bool(same_name) and fresh.read_bytes() == same_name[0].read_bytes()) == equal


def test_training_studies_of_the_targets_change_no_other_study():
    without, beside = (_studies(Config(counts="tiny", target_training=n)) for n in (0, 2))
    assert beside[:len(without)] == without
    added = [(vendor, folder) for _, vendor, folder, _ in beside[len(without):]]
    assert added == [(vendor, "Training/Labeled") for vendor in "BBCCDD"]
