"""The phantom dataset: layout, orientation, repeatability."""
import json
from collections import Counter

import numpy as np

from cmr.grid import Grid
from cmr.phantom import Config, _studies, _write_study
from cmr.records import Domain
from cmr.studies import find, split_by_subject
from cmr.working import prepare


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
    assert [(vendor, folder) for _, vendor, folder, _ in beside[len(without):]] == [
        (v, "Training/Labeled") for v in "BBCCDD"
    ]


def test_stand_ins_are_for_validation_and_testing_alone():
    studies = _studies(Config(counts="stand-ins"))
    assert {vendor for _, vendor, *_ in studies} == set("EFGHIJKL")
    assert Counter(folder for _, _, folder, _ in studies) == {"Validation": 8 * 4, "Testing": 8 * 6}
    beside = _studies(Config(counts="stand-ins", target_training=1))[len(studies):]
    assert [vendor for _, vendor, *_ in beside] == list("EFGHIJKL")
