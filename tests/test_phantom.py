"""The phantom: volumes, conservation, physics of the signal, noise and k-space, layout, severity, repeatability."""
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmr import anatomy, scanner
from cmr.anatomy import Tissue, heart_at, label_slice, sample_subject
from cmr.phantom import Config, _plan, _write_study, contraction, render_study
from cmr.studies import Domain, find, split_by_subject
from cmr.training import rng
from cmr.volumes import CANONICAL, Grid, Nifti, orientation, prepare, to_working


def volumes_ml(heart, step=1.5, spacing=2.0):
    """LV, MYO, RV volumes of the labels on a fine grid."""
    axis = np.arange(-110, 110, step, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    counts = sum(np.bincount(label_slice(heart, u, v, w).ravel(), minlength=4) for w in np.arange(-14, 130, spacing))
    return counts[1:] * step ** 2 * spacing / 1000


@pytest.mark.parametrize("group", anatomy.GROUPS)
def test_volumes_are_the_requested_ones_and_muscle_is_conserved(group):
    ratios, ef_errors, edv_errors = [], [], []
    for i in range(4):
        s = replace(sample_subject(rng(11, group, i), group), tilt=(0.0, 0.0), base_tilt=(0.0, 0.0), rv_base_mm=0.0)
        ed, es = volumes_ml(heart_at(s, 0.0)), volumes_ml(heart_at(s, 1.0))
        ratios.append(es[1] / ed[1])
        ef_errors.append(100 * (1 - es[0] / ed[0]) - s.lv_ef)
        edv_errors.append(ed[0] / s.lv_edv_ml - 1)
        assert ed[2] == pytest.approx(s.rv_edv_ml, rel=0.12)
    assert 0.9 < np.mean(ratios) < 1.12, f"MYO ES/ED {ratios}"
    assert np.abs(ef_errors).max() < 3.5 and np.abs(np.mean(ef_errors)) < 2, f"EF errors {ef_errors}"
    assert np.abs(edv_errors).max() < 0.06, f"EDV errors {edv_errors}"


def test_labels_of_a_study():
    study = render_study(sample_subject(rng(3), "NOR"), scanner.VENDORS["D"], 2, 3)
    assert set(np.unique(study.label)) == {0, 1, 2, 3} and study.image.dtype == np.int16 and study.image.shape == study.label.shape
    for phase in (study.ed, study.es):
        label = study.label[..., phase]
        for value in (1, 2, 3):
            assert ndimage.label(label == value)[1] == 1          # one component each
        grown = ndimage.binary_dilation(label == 1, np.ones((3, 3, 1)))
        assert np.isin(label[grown], (1, 2)).mean() > 0.99        # the LV lies inside the myocardium
    assert study.truth["LV_ED_ml"] > study.truth["LV_ES_ml"]


def test_bssfp_equals_the_published_form_on_resonance():
    t1, t2, pd, tr = 980.0, 52.0, 0.8, 3.0
    for flip in np.deg2rad((20, 45, 60, 75)):
        e1, e2 = np.exp(-tr / t1), np.exp(-tr / t2)
        expected = pd * np.sin(flip) * (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2) * np.exp(-tr / 2 / t2)
        assert abs(scanner.bssfp(t1, t2, pd, flip, tr)) == pytest.approx(expected, abs=1e-9)


def test_relative_levels_of_the_published_table():
    """1.5 T, flip 60: levels relative to LV blood."""
    level = {k: abs(scanner.bssfp(*scanner._TISSUE[k], np.deg2rad(60), 3.0)) for k in scanner._TISSUE}
    blood = level[Tissue.ARTERIAL]
    for tissue, expected in ((Tissue.VENOUS, 0.75), (Tissue.MYO, 0.38), (Tissue.LIVER, 0.54), (Tissue.FAT, 1.46)):
        assert level[tissue] / blood == pytest.approx(expected, abs=0.012)


def test_null_bands_repeat_every_one_over_tr():
    hz = np.linspace(-600, 600, 4801)
    signal = np.abs(scanner.bssfp(1550, 220, 0.95, np.deg2rad(60), 3.0, 2 * np.pi * hz * 3.0 / 1000 + np.pi))
    nulls = hz[1:-1][(signal[1:-1] < signal[:-2]) & (signal[1:-1] < signal[2:]) & (signal[1:-1] < 0.3 * signal.max())]
    assert np.diff(nulls) == pytest.approx(1000 / 3.0, abs=1) and np.abs(nulls).min() == pytest.approx(500 / 3.0, abs=1)


def quiet(vendor="A", **changes):
    vendor = replace(scanner.VENDORS[vendor], bias_slope=0.0, ghosting=0.0, enhanced=0.0, **changes)
    return replace(scanner.sample_session(rng(0), vendor), fov_mm=320.0, matrix=256, shim=(0, 0, 0), lung_hz=0.0)


AXIS = (np.arange(scanner.GRID) - (scanner.GRID - 1) / 2).astype(np.float32)
U, V = np.meshgrid(AXIS, AXIS)


def test_noise_in_air_is_rayleigh_with_the_stated_sigma():
    s = quiet(filter="rect")
    s = replace(s, matrix=2 * round(320 / s.vendor.acquired_mm / 2))
    s = replace(s, vendor=replace(s.vendor, acquired_mm=320 / s.matrix / 1.0))
    image = scanner.acquire(np.zeros(U.shape, np.complex64), 0 * U, 0 * V, 0, s, rng(1))
    rows = 2 * round(320 / (1.15 * s.vendor.acquired_mm) / 2)      # zero-filled along the phase direction: less noise per pixel
    sigma = scanner.blood_level(s) / s.vendor.blood_snr
    assert image.mean() == pytest.approx(1.253 * sigma, rel=0.03) and image.std() == pytest.approx(0.655 * sigma, rel=0.03), rows


def test_uniform_tissue_keeps_its_level_through_k_space():
    s = quiet(blood_snr=1e9)
    tissue = np.full((3, *U.shape), Tissue.ARTERIAL, np.int8)
    signal = scanner.signal_slice(tissue, U, V, np.full(U.shape, 0.5, np.float32), s)
    image = scanner.acquire(signal, 0 * U, 0 * V, 0, s, rng(1))    # at the centre of the coil everywhere
    assert image == pytest.approx(np.full(image.shape, scanner.blood_level(s)), rel=2e-3)


@pytest.mark.parametrize("kind,overshoot", [("rect", 9.2), ("tukey", 8.7), ("fermi", 8.4), ("hamming", 0.4)])
def test_edge_overshoot_of_the_filters(kind, overshoot):
    n, fine = 64, 4096
    edge = np.zeros(fine)
    edge[fine // 4:3 * fine // 4] = 1
    k = np.fft.fftshift(np.fft.fft(edge))[fine // 2 - n // 2:fine // 2 + n // 2] * scanner._window(n, kind)
    padded = np.pad(k, (fine - n) // 2)
    ringing = np.fft.ifft(np.fft.ifftshift(padded)).real
    assert 100 * (ringing.max() - 1) == pytest.approx(overshoot, abs=0.7)


def test_severity_is_anchored_at_the_reference_vendor():
    for vendor in "ABCD":
        assert replace(scanner.at_severity(vendor, 0.0), name="Siemens", centre="1") == scanner.VENDORS["A"]
        assert scanner.at_severity("A", 1.7) == scanner.VENDORS["A"]
        assert scanner.at_severity(vendor, 1.0).gamma == pytest.approx(scanner.VENDORS[vendor].gamma)
    assert scanner.at_severity("D", 1.0, geometry=False).pixel_mm == scanner.VENDORS["A"].pixel_mm


def test_the_same_subject_can_be_seen_by_several_vendors():
    subject, grid = sample_subject(rng(4), "NOR"), Grid(2.5, 64)
    seen = {}
    for vendor in "AD":
        study = render_study(subject, replace(scanner.VENDORS[vendor], spacing_mm=(10, 10)), 2, 4, vendor)
        nifti = Nifti("", study.image[..., study.ed].astype(np.float32), study.affine, study.spacing_mm, ())
        seen[vendor] = to_working(nifti.array, nifti, grid, study.label[..., study.ed])[:2]
    (image_a, label_a), (image_d, label_d) = seen["A"], seen["D"]
    overlap = 2 * ((label_a > 0) & (label_d > 0)).sum() / ((label_a > 0).sum() + (label_d > 0).sum())
    assert label_a.shape == label_d.shape and overlap > 0.93 and np.abs(image_a - image_d).mean() > 0.05


def test_contraction_is_zero_at_ed_and_one_at_es():
    for frames, ed in ((2, 0), (3, 0), (25, 0), (25, 22)):
        c = [contraction(f, frames, ed) for f in range(frames)]
        assert c[ed] == 0 and max(c) == pytest.approx(1) and c[(ed + max(1, round(0.37 * frames))) % frames] == pytest.approx(1)


def test_layout_and_orientation(phantom):
    records = split_by_subject(find(phantom), Domain.parse("Vendor=A"))
    assert {(r.vendor, r.split) for r in records} >= {("A", "Training"), ("A", "Testing"), ("B", "Testing"), ("C", "Validation"), ("D", "Testing"), ("C", "Training")}
    unlabelled = [r for r in records if r.vendor == "C" and r.split == "Training" and "Unlabeled" in r.image_path]
    assert len(unlabelled) == 1 and unlabelled[0].label_path is None
    assert all(r.subject.startswith("X") and len(r.subject) == 6 for r in records)
    for vendor in "ABCD":
        w = prepare([next(r for r in records if r.vendor == vendor and r.split == "Testing")], Grid(2.5, 64), phantom / "work")[0]
        _, rows, columns = np.nonzero(w.label == 3)
        _, rows_lv, columns_lv = np.nonzero(w.label == 1)
        assert columns.mean() < columns_lv.mean() - 4 and w.geometry.oriented    # the RV is on the left, whatever the storage
        area = (w.label > 0).sum((1, 2))
        assert area[:len(area) // 2].sum() > area[len(area) // 2 + 1:].sum()     # base first
    assert "PHANTOM" in (phantom / "README.txt").read_text() and json.loads((phantom / "phantom_params.json").read_text())["PHANTOM"]


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(phantom, tmp_path):
    code = sorted(p.name for p in phantom.rglob("*_sa.nii.gz"))[0][:6]
    for seed, equal in ((0, True), (1, False)):
        config = Config(out=str(tmp_path / str(seed)), counts="tiny", frames=2, seed=seed)
        job = next((j for j in _plan(config) if j[0] == code), _plan(config)[0])
        _write_study((config, job))
        fresh = next((tmp_path / str(seed)).rglob("*_sa.nii.gz"))
        same_name = list(phantom.rglob(fresh.name))
        assert (bool(same_name) and fresh.read_bytes() == same_name[0].read_bytes()) == equal


def test_canonical_axes_are_orthonormal_and_canonical():
    assert np.allclose(CANONICAL.T @ CANONICAL, np.eye(3), atol=1e-12)
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL
    assert orientation(affine) == (False, (False, False, False), True)


def vendor_accuracy(severity, subjects=10):
    """Share of slices whose vendor a nearest-neighbour rule names, subjects left out one by one; appearance alone."""
    grid = Grid(1.5, 96)
    features, vendors, owners = [], [], []
    for i in range(subjects):
        subject = sample_subject(rng(21, i), "NOR")
        heart = heart_at(subject, 0.0)
        noise = {k: f[0] for k, f in anatomy.noise_fields(subject, 1, scanner.GRID).items()}
        layers, _ = anatomy.tissue_slice(heart, U, V, 0.4 * heart.L, noise)
        for vendor in "ABCD":
            profile = replace(scanner.at_severity(vendor, severity, geometry=False), enhanced=0.0, mask="none", ghosting=0.0)
            session = scanner.sample_session(rng(21, i, vendor), profile)
            image = scanner.acquire(scanner.signal_slice(layers, U, V, noise["texture"], session), U, V, 40.0, session, rng(i, vendor))
            image = scanner.export(image[None], session, rng(i, vendor))
            stored = image.transpose(2, 1, 0).astype(np.float32)
            affine = np.eye(4)
            affine[:3, :3] = CANONICAL
            x = to_working(stored, Nifti("", stored, affine, (session.fov_mm / session.matrix,) * 2 + (8.0,), ()), grid)[0][0]
            power = np.abs(np.fft.fft2((x - x.mean()) * np.hanning(96)[:, None] * np.hanning(96))) ** 2
            k = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
            spectrum = [np.log(power[(k >= a) & (k < a + 0.05)].mean()) for a in np.arange(0.02, 0.5, 0.05)]
            blocks = ndimage.zoom(x, 4 / 96, order=1).ravel()
            features.append([*np.quantile(x, np.linspace(0.05, 0.95, 10)), *spectrum, *blocks])
            vendors.append(vendor)
            owners.append(i)
    features, vendors, owners = np.array(features), np.array(vendors), np.array(owners)
    features = (features - features.mean(0)) / features.std(0)
    named = []
    for i in range(subjects):
        inside = owners != i
        centres = {v: features[inside & (vendors == v)].mean(0) for v in "ABCD"}
        named += [min(centres, key=lambda v: np.linalg.norm(f - centres[v])) == true for f, true in zip(features[~inside], vendors[~inside])]
    return np.mean(named)


def test_vendors_can_be_told_apart_at_severity_one_and_not_at_zero():
    assert vendor_accuracy(1.0) > 0.95
    assert vendor_accuracy(0.0) < 0.45                            # chance is 0.25 of 40 slices: SD 0.07


def test_training_studies_of_the_targets_change_no_other_study():
    without, beside = (_plan(Config(counts="tiny", target_training=n)) for n in (0, 2))
    assert beside[:len(without)] == without and [(vendor, folder) for _, vendor, folder, _ in beside[len(without):]] == [(v, "Training/Labeled") for v in "BBCCDD"]
