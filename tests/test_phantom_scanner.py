"""Physics of the signal, noise and k-space, severity."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmr import phantom_scanner
from cmr.grid import CANONICAL, Grid, to_working
from cmr.nifti import Nifti
from cmr.phantom_heart import heart_at, sample_subject
from cmr.phantom_scanner import GRID
from cmr.phantom_tissue import Tissue, noise_fields, tissue_slice
from cmr.seeds import rng


def test_bssfp_equals_the_published_form_on_resonance():
    t1, t2, pd, tr = 980.0, 52.0, 0.8, 3.0
    for flip in np.deg2rad((20, 45, 60, 75)):
        e1, e2 = np.exp(-tr / t1), np.exp(-tr / t2)
        expected = pd * np.sin(flip) * (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2) * np.exp(-tr / 2 / t2)
        assert abs(phantom_scanner.bssfp(t1, t2, pd, flip, tr)) == pytest.approx(expected, abs=1e-9)


def test_relative_levels_of_the_published_table():
    """1.5 T, flip 60: levels relative to LV blood."""
    level = {
        k: abs(phantom_scanner.bssfp(*phantom_scanner._TISSUE[k], np.deg2rad(60), 3.0)) for k in phantom_scanner._TISSUE
    }
    blood = level[Tissue.ARTERIAL]
    for tissue, expected in ((Tissue.VENOUS, 0.75), (Tissue.MYO, 0.38), (Tissue.LIVER, 0.54), (Tissue.FAT, 1.46)):
        assert level[tissue] / blood == pytest.approx(expected, abs=0.012)


def test_null_bands_repeat_every_one_over_tr():
    hz = np.linspace(-600, 600, 4801)
    signal = np.abs(phantom_scanner.bssfp(1550, 220, 0.95, np.deg2rad(60), 3.0, 2 * np.pi * hz * 3.0 / 1000 + np.pi))
    nulls = hz[1:-1][(signal[1:-1] < signal[:-2]) & (signal[1:-1] < signal[2:]) & (signal[1:-1] < 0.3 * signal.max())]
    assert np.diff(nulls) == pytest.approx(1000 / 3.0, abs=1) and np.abs(nulls).min() == pytest.approx(500 / 3.0, abs=1)


def quiet(vendor="A", **changes):
    vendor = replace(phantom_scanner.VENDORS[vendor], bias_slope=0.0, ghosting=0.0, enhanced=0.0, **changes)
    return replace(
        phantom_scanner.sample_session(rng(0), vendor), fov_mm=320.0, matrix=256, shim=(0, 0, 0), lung_hz=0.0
    )


AXIS = (np.arange(GRID) - (GRID - 1) / 2).astype(np.float32)
U, V = np.meshgrid(AXIS, AXIS)


def test_noise_in_air_is_rayleigh_with_the_stated_sigma():
    s = quiet(filter="rect")
    s = replace(s, matrix=2 * round(320 / s.vendor.acquired_mm / 2))
    s = replace(s, vendor=replace(s.vendor, acquired_mm=320 / s.matrix / 1.0))
    image = phantom_scanner.acquire(np.zeros(U.shape, np.complex64), 0 * U, 0 * V, 0, s, rng(1))
    # zero-filled along the phase direction: less noise per pixel
    rows = 2 * round(320 / (1.15 * s.vendor.acquired_mm) / 2)
    sigma = phantom_scanner.blood_level(s) / s.vendor.blood_snr
    assert image.mean() == pytest.approx(1.253 * sigma, rel=0.03), rows
    assert image.std() == pytest.approx(0.655 * sigma, rel=0.03), rows


def test_uniform_tissue_keeps_its_level_through_k_space():
    s = quiet(blood_snr=1e9)
    tissue = np.full((3, *U.shape), Tissue.ARTERIAL, np.int8)
    signal = phantom_scanner.signal_slice(tissue, U, V, np.full(U.shape, 0.5, np.float32), s)
    image = phantom_scanner.acquire(signal, 0 * U, 0 * V, 0, s, rng(1))    # at the centre of the coil everywhere
    assert image == pytest.approx(np.full(image.shape, phantom_scanner.blood_level(s)), rel=2e-3)


@pytest.mark.parametrize("kind,overshoot", [("rect", 9.2), ("tukey", 8.7), ("fermi", 8.4), ("hamming", 0.4)])
def test_edge_overshoot_of_the_filters(kind, overshoot):
    n, fine = 64, 4096
    edge = np.zeros(fine)
    edge[fine // 4:3 * fine // 4] = 1
    k = np.fft.fftshift(np.fft.fft(edge))[fine // 2 - n // 2:fine // 2 + n // 2] * phantom_scanner._window(n, kind)
    padded = np.pad(k, (fine - n) // 2)
    ringing = np.fft.ifft(np.fft.ifftshift(padded)).real
    assert 100 * (ringing.max() - 1) == pytest.approx(overshoot, abs=0.7)


def test_severity_is_anchored_at_the_reference_vendor():
    for vendor in "ABCD":
        same = replace(phantom_scanner.at_severity(vendor, 0.0), name="Siemens", centre="1")
        assert same == phantom_scanner.VENDORS["A"]
        assert phantom_scanner.at_severity("A", 1.7) == phantom_scanner.VENDORS["A"]
        assert phantom_scanner.at_severity(vendor, 1.0).gamma == pytest.approx(phantom_scanner.VENDORS[vendor].gamma)
    assert phantom_scanner.at_severity("D", 1.0, geometry=False).pixel_mm == phantom_scanner.VENDORS["A"].pixel_mm


def test_stand_ins_are_scanners_of_their_own_within_what_scanners_do():
    drawn = [phantom_scanner.VENDORS[name] for name in phantom_scanner.STAND_INS]
    assert not set(phantom_scanner.STAND_INS) & set("ABCD")
    assert len({(v.flip_deg, v.blood_snr, v.bias_deg) for v in drawn}) == len(drawn) == 8
    for vendor in drawn:
        for name, (low, high) in phantom_scanner._LIMITS.items():
            assert low <= getattr(vendor, name) <= high
        again = phantom_scanner.at_severity(vendor.centre, 1.0)
        assert again.flip_deg == pytest.approx(vendor.flip_deg) and again.filter == vendor.filter


def vendor_accuracy(severity, subjects=10):
    """Share of slices whose vendor a nearest-neighbour rule names, subjects left out one by one; appearance alone."""
    grid = Grid(1.5, 96)
    features, vendors, owners = [], [], []
    for i in range(subjects):
        subject = sample_subject(rng(21, i), "NOR")
        heart = heart_at(subject, 0.0)
        noise = {k: f[0] for k, f in noise_fields(subject, 1, GRID).items()}
        layers, _ = tissue_slice(heart, U, V, 0.4 * heart.L, noise)
        for vendor in "ABCD":
            profile = replace(
                phantom_scanner.at_severity(vendor, severity, geometry=False), enhanced=0.0, mask="none", ghosting=0.0
            )
            session = phantom_scanner.sample_session(rng(21, i, vendor), profile)
            signal = phantom_scanner.signal_slice(layers, U, V, noise["texture"], session)
            image = phantom_scanner.acquire(signal, U, V, 40.0, session, rng(i, vendor))
            image = phantom_scanner.export(image[None], session, rng(i, vendor))
            stored = image.transpose(2, 1, 0).astype(np.float32)
            affine = np.eye(4)
            affine[:3, :3] = CANONICAL
            spacing_mm = (session.fov_mm / session.matrix,) * 2 + (8.0,)
            x = to_working(stored, Nifti("", stored, affine, spacing_mm, ()), grid)[0][0]
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
        named += [
            min(centres, key=lambda v: np.linalg.norm(f - centres[v])) == true
            for f, true in zip(features[~inside], vendors[~inside])
        ]
    return np.mean(named)


def test_vendors_can_be_told_apart_at_severity_one_and_not_at_zero():
    assert vendor_accuracy(1.0) >= 0.9                            # about 0.95, also of twice as many subjects
    assert vendor_accuracy(0.0) < 0.45                            # chance is 0.25 of 40 slices: SD 0.07
