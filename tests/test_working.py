"""The cache of working volumes."""
from dataclasses import replace

import numpy as np
import pytest

from cmr import working
from cmr.errors import DataError
from cmr.grid import Grid
from cmr.nifti import BlankImage, read_nifti
from cmr.studies import find
from cmr.working import fingerprint, fully_labelled, prepare
from helpers import cine, mms
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


def test_a_corrected_distance_of_slices_is_other_data(tmp_path):
    """No voxel changes, but a 3D nnU-Net's plan and every distance do."""
    prints = []
    for spacing_mm in (8, 6):
        read_nifti.cache_clear()
        affine = np.diag([1.25, 1.25, spacing_mm, 1])
        record = case(tmp_path, LABEL, image_affine=affine, affine=affine)
        prints.append(fingerprint(prepare([record], Grid(2.5, 32), tmp_path / "work")))
    assert prints[0] != prints[1]


def test_a_damaged_entry_of_the_cache_is_found_and_made_again(tmp_path, capsys):
    record, grid, work = case(tmp_path, LABEL), Grid(2.5, 32), tmp_path / "work"
    [first] = prepare([record], grid, work)
    image, label, draw = np.array(first.image), np.array(first.label), np.random.default_rng(0)
    for _ in range(20):
        for path in sorted(work.iterdir()):
            data = bytearray(path.read_bytes())
            data[draw.integers(len(data))] ^= 1 << draw.integers(8)
            path.write_bytes(data if draw.random() < 0.7 else data[:draw.integers(len(data))])
        [again] = prepare([record], grid, work)
        assert np.array_equal(again.image, image) and np.array_equal(again.label, label)
        assert again.geometry == first.geometry and again.content == first.content
    assert capsys.readouterr().out.count("damaged entry of the cache") >= 15


def test_two_stages_that_meet_the_same_damaged_entry_go_on(tmp_path, monkeypatch):
    record, grid, work = case(tmp_path, LABEL), Grid(2.5, 32), tmp_path / "work"
    [first], [entry], cached = prepare([record], grid, work), work.glob("*.json"), working._cached
    entry.write_text("{}")

    def cached_while_the_other_stage_deletes_it(*key):
        found = cached(*key)
        if found is None:
            entry.unlink()
        return found

    monkeypatch.setattr(working, "_cached", cached_while_the_other_stage_deletes_it)
    assert prepare([record], grid, work)[0].content == first.content


@pytest.mark.parametrize("name,change", [("image", (b"<f4", b">f4")), ("label", (b"|u1", b"|i1"))])
def test_a_flipped_bit_in_the_type_of_an_array_is_damage_too(tmp_path, name, change):
    """The same bytes read as other numbers: the hash of the bytes alone would not see it."""
    record, grid, work = case(tmp_path, LABEL), Grid(2.5, 32), tmp_path / "work"
    [first] = prepare([record], grid, work)
    expected = np.array(getattr(first, name))
    [path] = work.glob(f"*.{name}.npy")
    path.write_bytes(path.read_bytes().replace(*change, 1))
    [again] = prepare([record], grid, work)
    assert np.array_equal(getattr(again, name), expected)


def test_what_is_not_fully_labelled_is_not_trained_on(tmp_path):
    """A mask without RV would teach a network that the RV is background; so would one whose heart is out of view."""
    masks = {"full": LABEL, "LV only": np.where(LABEL == 1, 1, 0).astype(np.uint8), "empty": 0 * LABEL}
    full, lv, empty = (prepare([case(tmp_path, label, f"{name}.nii.gz")], Grid(2.5, 32), tmp_path / "work")[0]
                       for name, label in masks.items())
    kept, left_out = fully_labelled([full, lv, empty])
    whys = [why for _, why in left_out]
    assert kept == [full] and whys[0].startswith("RV not labelled there") and whys[1] == "its mask is all zero"
    assert fully_labelled([lv, lv]) == ([lv, lv], []) and fully_labelled([empty])[0] == []
    rv = replace(lv, label=np.where(np.asarray(lv.label) == 1, 3, 0))
    with pytest.raises(DataError, match="label LV, RV, but none of them labels all"):
        fully_labelled([lv, rv])


def test_a_blank_frame_beside_ed_and_es_is_left_out_with_a_line(tmp_path, capsys):
    image, _ = cine(0)
    image[..., 1] = 0
    grid, frames = Grid(2.5, 32), find(mms(tmp_path / "one", {"A0S9V9": {"image": image}}), all_frames=True)
    assert [w.record.phase for w in prepare(frames, grid, tmp_path / "work")] == ["ED", "ES", "F03"]
    assert "A0S9V9_sa.nii.gz: F01 of A0S9V9 is constant (0)" in capsys.readouterr().out
    image[..., 2] = 0
    frames = find(mms(tmp_path / "two", {"A0S9V9": {"image": image}}), all_frames=True)
    with pytest.raises(BlankImage, match="ES of A0S9V9 is constant"):
        prepare(frames, grid, tmp_path / "work")


def test_swapped_ventricles_are_named_whenever_volumes_are_prepared(tmp_path, capsys):
    _, label = cine(1)
    studies = {"A0S9V9": {}, "A1S9V9": {"label": np.array([0, 3, 2, 1], np.uint8)[label]}}
    records, grid = find(mms(tmp_path, studies)), Grid(2.5, 32)
    for _ in range(2):                                            # made, and from the cache
        prepare(records, grid, tmp_path / "work")
        said = capsys.readouterr().out
        assert "note: LV and RV look swapped" in said and "in 2 of 4 masks, the first" in said
        assert "A1S9V9_sa_gt" in said
    prepare(records[:2], grid, tmp_path / "work")
    assert not capsys.readouterr().out
