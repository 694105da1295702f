"""Labels from scores."""
import numpy as np
import pytest

from cmr.labels import labels_of, structure_called


def test_labels_are_the_largest_score_and_of_equals_the_first():
    scores = np.random.default_rng(1).integers(0, 4, (4, 5, 6, 7)).astype(np.float32)                   # many ties
    assert (labels_of(scores) == scores.argmax(0)).all() and labels_of(scores).dtype == np.uint8
    assert (labels_of(np.zeros((4, 3))) == 0).all()


@pytest.mark.parametrize("name,structure", [("LVC", "LV"), ("LVBP", "LV"), ("lv_cavity", "LV"), ("MLV", "MYO"),
                                            ("LV myocardium", "MYO"), ("RV", "RV"), ("Right Ventricle", "RV"),
                                            ("aorta", None), ("background", None), ("", None)])
def test_structures_are_known_by_several_names(name, structure):
    assert structure_called(name) == structure
