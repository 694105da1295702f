"""A rendered study."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmr import phantom_scanner
from cmr.grid import Grid, to_working
from cmr.nifti import Nifti
from cmr.phantom_study import contraction, render_study
from cmr.phantom_subject import sample_subject
from cmr.seeds import rng


def test_labels_of_a_study():
    study = render_study(sample_subject(rng(3), "NOR"), phantom_scanner.VENDORS["D"], 2, 3)
    assert set(np.unique(study.label)) == {0, 1, 2, 3} and study.image.dtype == np.int16
    assert study.image.shape == study.label.shape
    for phase in (study.ed, study.es):
        label = study.label[..., phase]
        for value in (1, 2, 3):
            assert ndimage.label(label == value)[1] == 1          # one component each
        grown = ndimage.binary_dilation(label == 1, np.ones((3, 3, 1)))
        assert np.isin(label[grown], (1, 2)).mean() > 0.99        # the LV lies inside the myocardium
    assert study.truth["LV_ED_ml"] > study.truth["LV_ES_ml"]


def test_the_same_subject_can_be_seen_by_several_vendors():
    subject, grid = sample_subject(rng(4), "NOR"), Grid(2.5, 64)
    seen = {}
    for vendor in "AD":
        study = render_study(subject, replace(phantom_scanner.VENDORS[vendor], spacing_mm=(10, 10)), 2, 4, vendor)
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
