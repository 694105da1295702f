"""Physics of the signal, noise and k-space; vendors that can be told apart."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmr.grid import CANONICAL, Grid, to_working
from cmr.nifti import Nifti
from cmr.phantom_heart import heart_at, sample_subject
from cmr.phantom_scanner import (
    _TISSUE, GRID, VENDORS, _window, acquire, blood_level, bssfp, export, sample_session, signal_slice)
from cmr.phantom_tissue import Tissue, noise_fields, thorax_tissue, tissue_slice
from cmr.seeds import rng


def test_bssfp_equals_the_published_form_on_resonance():
    t1, t2, pd, tr = 980.0, 52.0, 0.8, 3.0
    for flip in np.deg2rad((20, 45, 60, 75)):
        e1, e2 = np.exp(-tr / t1), np.exp(-tr / t2)
        expected = pd * np.sin(flip) * (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2) * np.exp(-tr / 2 / t2)
        assert abs(bssfp(t1, t2, pd, flip, tr)) == pytest.approx(expected, abs=1e-9)


def test_relative_levels_of_the_published_table():
    """1.5 T, flip 60: levels relative to LV blood."""
    level = {k: abs(bssfp(*values[:3], np.deg2rad(60), 3.0)) for k, values in _TISSUE.items()}
    blood = level[Tissue.ARTERIAL]
    for tissue, expected in ((Tissue.VENOUS, 0.75), (Tissue.MYO, 0.38), (Tissue.LIVER, 0.54), (Tissue.FAT, 1.46)):
        assert level[tissue] / blood == pytest.approx(expected, abs=0.012)


def test_null_bands_repeat_every_one_over_tr():
    hz = np.linspace(-600, 600, 4801)
    signal = np.abs(bssfp(1550, 220, 0.95, np.deg2rad(60), 3.0, 2 * np.pi * hz * 3.0 / 1000 + np.pi))
    nulls = hz[1:-1][(signal[1:-1] < signal[:-2]) & (signal[1:-1] < signal[2:]) & (signal[1:-1] < 0.3 * signal.max())]
    assert np.diff(nulls) == pytest.approx(1000 / 3.0, abs=1) and np.abs(nulls).min() == pytest.approx(500 / 3.0, abs=1)


def quiet(**changes):
    """A session without shading, ghosts, contrast agent and off-resonance."""
    profile = replace(VENDORS["A"], bias_slope=0.0, ghosting=0.0, enhanced=0.0, **changes)
    session = sample_session(rng(0), profile)
    session.fov_mm, session.matrix, session.shim, session.lung_hz = 320.0, 256, (0, 0, 0), 0.0
    return session


AXIS = (np.arange(GRID) - (GRID - 1) / 2).astype(np.float32)
U, V = np.meshgrid(AXIS, AXIS)


def test_noise_in_air_is_rayleigh_with_the_stated_sigma():
    s = quiet(filter="rect")
    s.matrix = 2 * round(320 / s.vendor.acquired_mm / 2)
    s.vendor = replace(s.vendor, acquired_mm=320 / s.matrix)
    image = acquire(np.zeros(U.shape, np.complex64), 0 * U, 0 * V, 0, s, rng(1))
    # zero-filled along the phase direction: less noise per pixel
    rows = 2 * round(320 / (1.15 * s.vendor.acquired_mm) / 2)
    sigma = blood_level(s) / s.vendor.blood_snr
    assert image.mean() == pytest.approx(1.253 * sigma, rel=0.03), rows
    assert image.std() == pytest.approx(0.655 * sigma, rel=0.03), rows


def test_uniform_tissue_keeps_its_level_through_k_space():
    s = quiet(blood_snr=1e9)
    tissue = np.full((3, *U.shape), Tissue.ARTERIAL, np.int8)
    signal = signal_slice(tissue, U, V, np.full(U.shape, 0.5, np.float32), s)
    image = acquire(signal, 0 * U, 0 * V, 0, s, rng(1))    # at the centre of the coil everywhere
    assert image == pytest.approx(np.full(image.shape, blood_level(s)), rel=2e-3)


@pytest.mark.parametrize("kind,overshoot", [("rect", 9.2), ("tukey", 8.7), ("fermi", 8.4), ("hamming", 0.4)])
def test_edge_overshoot_of_the_filters(kind, overshoot):
    n, fine = 64, 4096
    edge = np.zeros(fine)
    edge[fine // 4:3 * fine // 4] = 1
    k = np.fft.fftshift(np.fft.fft(edge))[fine // 2 - n // 2:fine // 2 + n // 2] * _window(n, kind)
    padded = np.pad(k, (fine - n) // 2)
    ringing = np.fft.ifft(np.fft.ifftshift(padded)).real
    assert 100 * (ringing.max() - 1) == pytest.approx(overshoot, abs=0.7)


def vendor_accuracy(profiles, subjects=10):
    """Share of slices whose vendor a nearest-neighbour rule names, subjects left out one by one.

    profiles : {name: Vendor}.
    """
    grid = Grid(1.5, 96)
    features, vendors, owners = [], [], []
    for i in range(subjects):
        heart = heart_at(sample_subject(rng(21, i), "NOR"), 0.0)
        noise = {k: f[0] for k, f in noise_fields(heart.subject, 1, GRID).items()}
        thorax = thorax_tissue(heart.subject, U, V, 0.4 * heart.L, noise)
        layers = tissue_slice(heart, thorax, U, V, 0.4 * heart.L, noise)
        for vendor, profile in profiles.items():
            session = sample_session(rng(21, i, vendor), profile)
            signal = signal_slice(layers, U, V, noise["texture"], session)
            image = acquire(signal, U, V, 40.0, session, rng(i, vendor))
            stored = export(image[None], session, rng(i, vendor)).transpose(2, 1, 0).astype(np.float32)
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
        centres = {v: features[inside & (vendors == v)].mean(0) for v in profiles}
        for f, true in zip(features[~inside], vendors[~inside]):
            named.append(min(centres, key=lambda v: np.linalg.norm(f - centres[v])) == true)
    return np.mean(named)


def test_vendors_can_be_told_apart_by_their_images_and_copies_of_one_cannot():
    """By appearance alone: pixel size and blanking are vendor A's for all."""
    a = replace(VENDORS["A"], enhanced=0.0, mask="none", ghosting=0.0)
    plain = dict(pixel_mm=a.pixel_mm, spacing_mm=a.spacing_mm, enhanced=0.0, mask="none", ghosting=0.0)
    assert vendor_accuracy({name: replace(vendor, **plain) for name, vendor in VENDORS.items()}) >= 0.9    # about 0.95
    assert vendor_accuracy(dict.fromkeys("ABCD", a)) < 0.45       # chance is 0.25 of 40 slices: SD 0.07
