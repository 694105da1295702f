"""The phantom's heart: volumes, and conservation of muscle."""
import numpy as np
import pytest

from cmr.phantom_heart import GROUPS, heart_at, label_slice, sample_subject
from cmr.seeds import rng


def volumes_ml(heart, step=1.5, spacing=2.0):
    """LV, MYO, RV volumes of the labels on a fine grid."""
    axis = np.arange(-110, 110, step, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    counts = sum(np.bincount(label_slice(heart, u, v, w).ravel(), minlength=4) for w in np.arange(-14, 130, spacing))
    return counts[1:] * step ** 2 * spacing / 1000


@pytest.mark.parametrize("group", GROUPS)
def test_volumes_are_the_requested_ones_and_muscle_is_conserved(group):
    ratios, ef_errors, edv_errors = [], [], []
    for i in range(4):
        s = sample_subject(rng(11, group, i), group)
        s.tilt, s.base_tilt, s.rv_base_mm = (0.0, 0.0), (0.0, 0.0), 0.0
        ed, es = volumes_ml(heart_at(s, 0.0)), volumes_ml(heart_at(s, 1.0))
        ratios.append(es[1] / ed[1])
        ef_errors.append(100 * (1 - es[0] / ed[0]) - s.lv_ef)
        edv_errors.append(ed[0] / s.lv_edv_ml - 1)
        assert ed[2] == pytest.approx(s.rv_edv_ml, rel=0.12)
    assert 0.9 < np.mean(ratios) < 1.12, f"MYO ES/ED {ratios}"
    assert np.abs(ef_errors).max() < 3.5 and np.abs(np.mean(ef_errors)) < 2, f"EF errors {ef_errors}"
    assert np.abs(edv_errors).max() < 0.06, f"EDV errors {edv_errors}"
