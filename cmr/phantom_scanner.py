"""From tissues to a vendor's image: bSSFP signal, coil shading, k-space, noise, reconstruction and export.

Tissue values and protocols are published ones; the vendors' profiles are roles that claim nothing about products.
"""
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from scipy import fft, ndimage

from cmr.phantom_tissue import Tissue

GRID = 320                                       # tissue samples along each axis of the field of view

# T1 ms, T2 ms and proton density at 1.5 T; amplitude of the texture, relative to the signal.
_TISSUE = {Tissue.AIR: (1000, 50, 0.0, 0.0), Tissue.FAT: (300, 85, 0.90, 0.06), Tissue.MUSCLE: (900, 35, 0.78, 0.10),
           Tissue.CORTEX: (1000, 10, 0.05, 0.0), Tissue.MARROW: (549, 49, 0.60, 0.15),
           Tissue.LUNG: (1200, 41, 0.12, 0.30), Tissue.LIVER: (586, 46, 0.80, 0.06),
           Tissue.SPLEEN: (1057, 79, 0.85, 0.06), Tissue.FOOD: (1400, 110, 0.80, 0.25),
           Tissue.GAS: (1000, 50, 0.0, 0.0), Tissue.KIDNEY: (966, 87, 0.85, 0.08),
           Tissue.FLUID: (4000, 1500, 1.0, 0.0), Tissue.ARTERIAL: (1550, 220, 0.95, 0.04),
           Tissue.VENOUS: (1550, 150, 0.95, 0.05), Tissue.MYO: (980, 52, 0.80, 0.06)}
# T1, T2 and proton density after gadolinium of the tissues that it changes most.
_ENHANCED = {Tissue.ARTERIAL: (330, 150, 0.95), Tissue.VENOUS: (330, 130, 0.95), Tissue.MYO: (480, 50, 0.80),
             Tissue.LIVER: (350, 44, 0.80), Tissue.KIDNEY: (250, 60, 0.85), Tissue.SPLEEN: (400, 70, 0.85)}


@dataclass(frozen=True)
class Vendor:
    """How one vendor acquires and reconstructs.  These are means, around which `sample_session` draws a study's own."""
    name: str
    centre: str
    flip_deg: float
    tr_ms: float
    fresh: float                                 # share of fresh spins in arterial blood (inflow)
    acquired_mm: float                           # readout pixel; the phase direction is 1.15 times coarser
    blood_snr: float
    filter: str                                  # k-space filter, a name in _WINDOWS
    bias_slope: float                            # change of the log receive sensitivity per 120 mm
    bias_deg: float                              # direction of that slope: 0 is right, -90 anterior (up)
    gamma: float
    gain: float                                  # int16 value of the 99.9th percentile
    pixel_mm: tuple                              # reconstruction pixel, range
    spacing_mm: tuple                            # slice spacing, range
    ghosting: float                              # probability per study
    enhanced: float                              # probability that a study is acquired after gadolinium
    mask: str                                    # region that the reconstruction blanks: "none", "wedge", "circle"
    flips: tuple                                 # storage: transpose in-plane, flip axis 0, 1, 2 (slices)


VENDORS = {
    "A": Vendor("Siemens", "1", 60, 3.0, 0.15, 1.75, 45, "tukey", 0.55, -92, 1.00, 2400,
                (1.17, 1.42), (8.8, 9.6), 0.05, 0.25, "wedge", (False, False, False, False)),
    "B": Vendor("Philips", "2", 60, 3.2, 0.08, 2.20, 55, "hamming", 0.30, -34, 0.80, 1200,
                (1.18, 1.20), (10, 10), 0.05, 0.05, "none", (True, True, False, True)),
    "C": Vendor("GE", "4", 42, 3.6, 0.04, 2.20, 18, "fermi", 1.30, -52, 0.90, 650,
                (1.484, 1.484), (10, 10), 0.15, 0.05, "circle", (True, False, False, False)),
    "D": Vendor("Canon", "5", 72, 4.0, 0.28, 1.55, 14, "rect", 0.90, 86, 1.15, 8000,
                (0.795, 0.795), (10, 10), 0.10, 0.05, "none", (False, False, False, True)),
}
# Apodisation filters; x is the distance from the centre of k-space, 1 at its border.
_WINDOWS = {"rect": lambda x: np.ones_like(x),
            "hamming": lambda x: 0.54 + 0.46 * np.cos(np.pi * x),
            "tukey": lambda x: np.where(x < 0.75, 1, 0.5 * (1 + np.cos(np.pi * (x - 0.75) / 0.25))),
            "fermi": lambda x: 1 / (1 + np.exp((x - 0.85) / 0.05))}


def sample_session(g, vendor):
    """Draw one study's protocol, coil, shim and tissue values around its vendor's profile."""
    ratio = lambda sd: float(np.exp(sd * np.clip(g.standard_normal(), -2.5, 2.5)))
    profile = replace(vendor,
                      blood_snr=vendor.blood_snr * ratio(0.25),
                      acquired_mm=vendor.acquired_mm * ratio(0.05),
                      flip_deg=vendor.flip_deg * ratio(0.05),
                      bias_slope=vendor.bias_slope * ratio(0.2),
                      bias_deg=vendor.bias_deg + float(np.rad2deg(0.3 * g.standard_normal())),
                      gain=vendor.gain * ratio(0.4),
                      gamma=vendor.gamma * ratio(0.05))
    pixel_mm, fov_mm = g.uniform(*vendor.pixel_mm), g.uniform(330, 370)
    matrix = 2 * round(fov_mm / pixel_mm / 2)
    enhanced = bool(g.random() < vendor.enhanced)
    relaxation = {k: values[:3] for k, values in _TISSUE.items()} | (_ENHANCED if enhanced else {})
    spread = np.array([0.05, 0.12, 0.0])
    tissue = [np.array(relaxation[k]) * np.exp(spread * np.clip(g.standard_normal(3), -2, 2)) for k in Tissue]
    return SimpleNamespace(
        vendor=profile,
        fov_mm=matrix * pixel_mm,
        matrix=matrix,                           # pixels along each side of the reconstruction
        spacing_mm=g.uniform(*vendor.spacing_mm),
        b1=g.uniform(0.92, 1.05),
        shim=tuple(g.normal(0, (12, 12, 8))),    # off-resonance in Hz: linear in u and v, constant
        lung_hz=float(abs(g.normal(35, 15))),
        ghost=g.uniform(0.03, 0.08) if g.random() < vendor.ghosting else 0.0,        # share of disturbed k-space lines
        tissue=np.array(tissue))                 # (len(Tissue), 3) T1, T2, proton density of this subject


def bssfp(t1_ms, t2_ms, density, flip_rad, tr_ms, phase_rad=np.pi):
    """Complex steady-state bSSFP signal at TE = TR/2 (on resonance in the Freeman-Hill form).

    phase_rad : precession per TR, 2 pi df TR, plus pi, as without phase alternation the passband lies at pi.
    On resonance the modulus is PD sin(a)(1-E1)/(1-(E1-E2)cos(a)-E1 E2) exp(-TE/T2).  Null bands repeat every 1/TR.
    """
    e1, e2 = np.exp(-tr_ms / t1_ms), np.exp(-tr_ms / t2_ms)
    cos_flip, off = np.cos(flip_rad), np.exp(-1j * phase_rad)
    denominator = (1 - e1 * cos_flip) * (1 - e2 * np.cos(phase_rad)) - e2 * (e1 - cos_flip) * (e2 - np.cos(phase_rad))
    transverse = density * (1 - e1) * np.sin(flip_rad) * (1 - e2 * off) / denominator
    return transverse * np.exp(-tr_ms / 2 / t2_ms) * np.exp(0.5j * (phase_rad - np.pi))


def signal_slice(tissue, u, v, texture, session):
    """Complex bSSFP signal (H, W) of tissues (3, H, W), averaged over the layers.  u, v : mm.  texture : in [0, 1]."""
    s = session
    lung = ndimage.gaussian_filter(np.isin(tissue[1], (Tissue.LUNG, Tissue.GAS)).astype(np.float32), 8)
    frequency_hz = s.shim[2] + (s.shim[0] * u + s.shim[1] * v) / 80 + s.lung_hz * 4 * lung * (1 - lung)
    flip, tr_ms = np.deg2rad(s.vendor.flip_deg) * s.b1, s.vendor.tr_ms
    amplitude = np.array([3.46 * _TISSUE[k][3] for k in Tissue], np.float32)         # SD of a uniform is 1/3.46
    total, weights = 0, np.array([0.8, 1.0, 0.8])
    # The signal depends on the pixel only through frequency and texture: tabulate it over frequency for each tissue.
    hz = np.linspace(-400, 400, 161)
    for layer, weight in zip(tissue, weights):
        signal = np.zeros(layer.shape, np.complex64)
        for k in np.unique(layer):
            t1, t2, density = s.tissue[k]
            if density == 0:
                continue
            shift_hz = -220.0 if k == Tissue.FAT else 0.0         # chemical shift at 1.5 T
            phase_rad = 2 * np.pi * (hz + shift_hz) * tr_ms / 1000 + np.pi
            table = bssfp(t1, t2, density, flip, tr_ms, phase_rad)
            if k in (Tissue.ARTERIAL, Tissue.VENOUS):             # fresh spins enter at half the flip angle
                share = s.vendor.fresh * (1.0 if k == Tissue.ARTERIAL else 0.6)
                table = table * (1 - share) + share * density * np.sin(flip / 2)
            where = layer == k
            f = frequency_hz[where]
            plain = np.interp(f, hz, table.real) + 1j * np.interp(f, hz, table.imag)
            signal[where] = plain * (1 + amplitude[k] * (texture[where] - 0.5))
        total = total + weight * signal
    return total / weights.sum()


def acquire(signal, u, v, w, session, g):
    """Scan one slice: complex signal (GRID, GRID) -> magnitude (matrix, matrix) float32, with Rayleigh noise in air."""
    s, vendor = session, session.vendor
    angle = np.deg2rad(vendor.bias_deg)
    # The vendor's slope grows towards the apex, nearer to the coil; the array's dome brightens both chest walls.
    slope = vendor.bias_slope * (1 + 0.004 * w) * (u * np.cos(angle) + v * np.sin(angle)) / 120
    log_bias = slope + 0.55 * np.hypot(u, v) ** 2 / 150 ** 2
    k_space = fft.fftshift(fft.fft2(fft.ifftshift(signal * np.exp(np.clip(log_bias, -3, 3))), workers=1))
    rows, columns = 2 * round(s.fov_mm / (1.15 * vendor.acquired_mm) / 2), 2 * round(s.fov_mm / vendor.acquired_mm / 2)
    k_space = _centred(k_space, (rows, columns))
    if s.ghost:
        lines = g.random(rows) < s.ghost
        k_space[lines] *= 1 + 0.6 * np.exp(2j * np.pi * g.random(lines.sum()))[:, None]
    sigma = blood_level(s) / vendor.blood_snr * GRID * GRID / np.sqrt(rows * columns)              # unnormalised FFT
    k_space = k_space + sigma * (g.standard_normal(k_space.shape) + 1j * g.standard_normal(k_space.shape))
    k_space *= _window(rows, vendor.filter)[:, None] * _window(columns, vendor.filter)[None]
    image = fft.fftshift(fft.ifft2(fft.ifftshift(_centred(k_space, (s.matrix, s.matrix))), workers=1))
    return (np.abs(image) * (s.matrix / GRID) ** 2).astype(np.float32)


def blood_level(session):
    """On-resonance signal of arterial blood, relative to which SNR is defined."""
    t1, t2, density = session.tissue[Tissue.ARTERIAL]
    flip, fresh = np.deg2rad(session.vendor.flip_deg) * session.b1, session.vendor.fresh
    return (1 - fresh) * abs(bssfp(t1, t2, density, flip, session.vendor.tr_ms)) + fresh * density * np.sin(flip / 2)


def _centred(spectrum, shape):
    """Crop a 2D spectrum to `shape` or pad it with zeros; the zero frequency stays at index n // 2."""
    for axis, n in enumerate(shape):
        have = spectrum.shape[axis]
        before = n // 2 - have // 2
        if n <= have:
            spectrum = spectrum.take(range(-before, n - before), axis)
        else:
            spectrum = np.pad(spectrum, [(before, n - have - before) if a == axis else (0, 0) for a in (0, 1)])
    return spectrum


def _window(n, kind):
    """Apodisation weights of n k-space samples: 1 at the centre, index n // 2."""
    return _WINDOWS[kind](np.abs(np.arange(n) - n // 2) / (n / 2))


def export(volume, session, g):
    """Turn magnitudes (D, H, W) into the int16 that the scanner stores: saturation, gamma, blanking and gain."""
    vendor, (_, h, w) = session.vendor, volume.shape
    x = np.clip(volume / np.percentile(volume, 99.9), 0, 1) ** vendor.gamma
    rows, columns = np.mgrid[-1:1:h * 1j, -1:1:w * 1j]
    if vendor.mask == "circle" and g.random() < 0.4:
        x = x * (np.hypot(rows, columns) < 1.0)
    if vendor.mask == "wedge":
        x = x * (columns < 1.05 - 0.10 * g.random() + 0.06 * rows)
    return np.round(x * vendor.gain).astype(np.int16)
