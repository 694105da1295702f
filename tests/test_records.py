"""Names and numbers of structures, and domains: filters on metadata."""
import pytest

from cmr.errors import DataError, UsageError
from cmr.records import VALUES, Domain, label_map_of
from cmr.studies import find
from helpers import mms


@pytest.mark.parametrize("name,structure", [("LVC", "LV"), ("LVBP", "LV"), ("lv_cavity", "LV"), ("MLV", "MYO"),
                                            ("LV myocardium", "MYO"), ("RV", "RV"), ("Right Ventricle", "RV"),
                                            ("background", None)])
def test_structures_are_known_by_several_names(name, structure):
    assert label_map_of({name: 1}, "dataset.json")[1] == VALUES.get(structure, 0)
    with pytest.raises(DataError, match="label 'aorta': 2; expected background, LV, MYO, RV"):
        label_map_of({name: 1, "aorta": 2}, "dataset.json")


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
