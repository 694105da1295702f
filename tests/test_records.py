"""Names and numbers of structures, labels from scores, and domains: filters on metadata."""
import numpy as np
import pytest

from cmr.errors import UsageError
from cmr.records import Domain, labels_of, structure_called
from cmr.studies import find
from helpers import mms


def test_labels_are_the_largest_score_and_of_equals_the_first():
    scores = np.random.default_rng(1).integers(0, 4, (4, 5, 6, 7)).astype(np.float32)                   # many ties
    assert (labels_of(scores) == scores.argmax(0)).all() and labels_of(scores).dtype == np.uint8
    assert (labels_of(np.zeros((4, 3))) == 0).all()


@pytest.mark.parametrize("name,structure", [("LVC", "LV"), ("LVBP", "LV"), ("lv_cavity", "LV"), ("MLV", "MYO"),
                                            ("LV myocardium", "MYO"), ("RV", "RV"), ("Right Ventricle", "RV"),
                                            ("aorta", None), ("background", None), ("", None)])
def test_structures_are_known_by_several_names(name, structure):
    assert structure_called(name) == structure


def test_domains(tmp_path):
    records = find(mms(tmp_path, {"A0S9V9": {}, "B0S9V9": {"Vendor": "B", "Pathology": "HCM", "Sex": "M"}}))
    assert {r.subject for r in Domain.parse("vendor = a,b").select(records)} == {"A0S9V9", "B0S9V9"}
    assert {r.subject for r in Domain.parse("Sex=M").select(records)} == {"B0S9V9"}
    assert [str(d) for d in Domain.parse("Vendor=B,C").each()] == ["Vendor=B", "Vendor=C"]
    with pytest.raises(UsageError, match=r"matches none of 4 volumes; Vendor has A \(2\), B \(2\)"):
        Domain.parse("Vendor=Q").select(records)
    with pytest.raises(UsageError, match=r"domain Vendor=A,Q: Q matches none of 4 volumes; Vendor has A \(2\), B"):
        Domain.parse("Vendor=A,Q").select(records)
    with pytest.raises(UsageError, match="no metadata column 'Scanner'"):
        Domain.parse("Scanner=X").select(records)
    with pytest.raises(UsageError, match="expected Column=Value"):
        Domain.parse("Vendor")
