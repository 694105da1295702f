"""Changes of look: what they leave in place, and a dataset put through one."""
import numpy as np

from cmr import rescan
from cmr.nifti import read_volume
from cmr.rescan import random_shift
from cmr.seeds import rng
from cmr.studies import find
from test_domain_likeness import volume


def test_a_shift_is_a_change_of_look_and_the_same_key_is_the_same_change():
    x = volume()
    shifted = random_shift(x, 2.5, rng("shift", 1))
    assert shifted.shape == x.shape and shifted.dtype == np.float32 and shifted.min() == -1 and shifted.max() == 1
    assert np.abs(shifted - x).mean() > 0.05
    assert np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 1)))
    assert not np.array_equal(shifted, random_shift(x, 2.5, rng("shift", 2)))
    # scaling to the percentiles is all that is left
    assert np.abs(random_shift(x, 2.5, rng("shift", 1), strength=0.0) - x).mean() < 0.02
    inside = (slice(None), slice(4, -4), slice(4, -4))
    for k in range(8):  # the structure stays where it is
        assert np.corrcoef(x[inside].ravel(), random_shift(x, 2.5, rng("place", k))[inside].ravel())[0, 1] > 0.6


def test_a_rescanned_dataset_differs_in_its_domain_alone(phantom, tmp_path):
    copy = tmp_path / "copy"
    rescan.rescan(rescan.Config(data=str(phantom), domain="Vendor=D", out=str(copy)))
    before, after = ({r.case: r for r in find(root)} for root in (phantom, copy))
    assert before.keys() == after.keys() and [p.name for p in tmp_path.iterdir()] == ["copy"]
    for case, r in before.items():
        (image, label, nifti, _), (other, other_label, other_nifti, _) = read_volume(r), read_volume(after[case])
        assert nifti.spacing_mm == other_nifti.spacing_mm and np.array_equal(nifti.affine, other_nifti.affine)
        assert label is None or np.array_equal(label, other_label)
        assert np.array_equal(image, other) == (r.vendor in "ABC")
        if r.vendor == "D":
            assert 0.3 < np.corrcoef(image.ravel(), other.ravel())[0, 1] < 0.999
