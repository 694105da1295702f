"""The cache of working volumes."""
from cmr.grid import Grid
from cmr.nifti import read_nifti
from cmr.working import fingerprint, prepare
from test_nifti import IMAGE, LABEL, case


def test_cache_is_the_same_again_and_notices_a_changed_file(tmp_path):
    record = case(tmp_path, LABEL)
    first = prepare([record], Grid(2.5, 32), tmp_path / "work")
    again = prepare([record], Grid(2.5, 32), tmp_path / "work")
    assert (first[0].image == again[0].image).all() and first[0].geometry == again[0].geometry
    assert fingerprint(first) == fingerprint(again)
    assert again[0].spacing_mm == (8.0, 2.5, 2.5)
    read_nifti.cache_clear()
    changed = case(tmp_path, LABEL, image=IMAGE[::-1].copy())
    assert fingerprint(prepare([changed], Grid(2.5, 32), tmp_path / "work")) != fingerprint(first)
