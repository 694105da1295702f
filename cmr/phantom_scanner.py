"""From tissues to a vendor's image: bSSFP signal, coil shading, k-space, noise, reconstruction, export.

Tissue values and protocols are published ones (Freeman-Hill steady state; relaxation times of cardiac MR at 1.5 T and
3 T); the vendor profiles are roles for a controlled domain gap, not claims about products.

Public: `bssfp`, `VENDORS`, `STAND_INS`, `Vendor`, `sample_session`, `signal_slice`, `acquire`, `export`.
"""
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import fft, ndimage

from cmr.phantom_tissue import Tissue
from cmr.seeds import rng

GRID = 320                                       # tissue samples along each axis of the field of view

# T1 ms, T2 ms, proton density, at 1.5 T; the rows of Tissue, in order.
_TISSUE = {Tissue.AIR: (1000, 50, 0.0), Tissue.FAT: (300, 85, 0.90), Tissue.MUSCLE: (900, 35, 0.78),
           Tissue.CORTEX: (1000, 10, 0.05), Tissue.MARROW: (549, 49, 0.60), Tissue.LUNG: (1200, 41, 0.12),
           Tissue.LIVER: (586, 46, 0.80), Tissue.SPLEEN: (1057, 79, 0.85), Tissue.FOOD: (1400, 110, 0.80),
           Tissue.GAS: (1000, 50, 0.0), Tissue.KIDNEY: (966, 87, 0.85), Tissue.FLUID: (4000, 1500, 1.0),
           Tissue.ARTERIAL: (1550, 220, 0.95), Tissue.VENOUS: (1550, 150, 0.95), Tissue.MYO: (980, 52, 0.80)}
# After gadolinium; the tissues it changes most.
_ENHANCED = {Tissue.ARTERIAL: (330, 150, 0.95), Tissue.VENOUS: (330, 130, 0.95), Tissue.MYO: (480, 50, 0.80),
             Tissue.LIVER: (350, 44, 0.80), Tissue.KIDNEY: (250, 60, 0.85), Tissue.SPLEEN: (400, 70, 0.85)}
# Relative texture amplitude on PD, T1 and T2.
_TEXTURE = {Tissue.MYO: 0.06, Tissue.LIVER: 0.06, Tissue.FAT: 0.06, Tissue.MUSCLE: 0.10, Tissue.ARTERIAL: 0.04,
            Tissue.VENOUS: 0.05, Tissue.LUNG: 0.30, Tissue.MARROW: 0.15, Tissue.SPLEEN: 0.06, Tissue.FOOD: 0.25,
            Tissue.KIDNEY: 0.08}


def bssfp(t1_ms, t2_ms, density, flip_rad, tr_ms, phase_rad=np.pi):
    """Steady-state bSSFP signal at TE = TR/2 (Freeman-Hill form on resonance), complex.

    phase_rad : precession per TR, 2 pi df TR, plus pi (the passband of a sequence without phase alternation is at pi).
    On resonance the modulus is PD sin(a)(1-E1)/(1-(E1-E2)cos(a)-E1 E2) exp(-TE/T2).  Null bands repeat every 1/TR.
    """
    e1, e2 = np.exp(-tr_ms / t1_ms), np.exp(-tr_ms / t2_ms)
    cos_flip, off = np.cos(flip_rad), np.exp(-1j * phase_rad)
    denominator = (1 - e1 * cos_flip) * (1 - e2 * np.cos(phase_rad)) - e2 * (e1 - cos_flip) * (e2 - np.cos(phase_rad))
    transverse = density * (1 - e1) * np.sin(flip_rad) * (1 - e2 * off) / denominator
    return transverse * np.exp(-tr_ms / 2 / t2_ms) * np.exp(0.5j * (phase_rad - np.pi))


@dataclass(frozen=True)
class Vendor:
    """Acquisition and reconstruction of one role.  Means; a session draws its own around them."""
    name: str
    centre: str
    flip_deg: float
    tr_ms: float
    fresh: float                                 # share of fresh spins in arterial blood (inflow)
    acquired_mm: float                           # readout pixel; the phase direction is 1.15 times coarser
    blood_snr: float
    filter: str
    bias_slope: float                            # log receive sensitivity per 120 mm
    bias_deg: float                              # its direction: 0 to the right, -90 anterior (up)
    gamma: float
    gain: float                                  # int16 value of the 99.9th percentile
    pixel_mm: tuple                              # reconstruction pixel, range
    spacing_mm: tuple                            # slice spacing, range
    ghosting: float                              # probability per study
    enhanced: float                              # share acquired after gadolinium
    mask: str                                    # what the reconstruction blanks: "none", "wedge", "circle"
    flips: tuple                                 # stored: transpose in-plane, flip axis 0, flip axis 1, flip slices


_ROLES = {
    "A": Vendor("Siemens", "1", 60, 3.0, 0.15, 1.75, 45, "tukey", 0.55, -92, 1.00, 2400,
                (1.17, 1.42), (8.8, 9.6), 0.05, 0.25, "wedge", (False, False, False, False)),
    "B": Vendor("Philips", "2", 60, 3.2, 0.08, 2.20, 55, "hamming", 0.30, -34, 0.80, 1200,
                (1.18, 1.20), (10, 10), 0.05, 0.05, "none", (True, True, False, True)),
    "C": Vendor("GE", "4", 42, 3.6, 0.04, 2.20, 18, "fermi", 1.30, -52, 0.90, 650,
                (1.484, 1.484), (10, 10), 0.15, 0.05, "circle", (True, False, False, False)),
    "D": Vendor("Canon", "5", 72, 4.0, 0.28, 1.55, 14, "rect", 0.90, 86, 1.15, 8000,
                (0.795, 0.795), (10, 10), 0.10, 0.05, "none", (False, False, False, True)),
}


def _stand_in(name):
    """A scanner drawn at random from a little more than what the four roles span; a function of its name."""
    g = rng("stand-in", name)
    between = lambda low, high: float(g.uniform(low, high))
    ratio = lambda low, high: float(np.exp(g.uniform(np.log(low), np.log(high))))
    pixel_mm, spacing_mm = ratio(0.8, 1.5), between(8.8, 10)
    return Vendor(name=f"stand-in {name}", centre=name, flip_deg=ratio(38, 78), tr_ms=ratio(2.9, 4.1),
                  fresh=between(0, 0.3), acquired_mm=ratio(1.5, 2.3), blood_snr=ratio(13, 60),
                  filter=str(g.choice(["tukey", "hamming", "fermi", "rect"])), bias_slope=between(0.2, 1.3),
                  bias_deg=between(-180, 180), gamma=ratio(0.75, 1.25), gain=2000, pixel_mm=(pixel_mm, pixel_mm),
                  spacing_mm=(spacing_mm, spacing_mm), ghosting=0.1, enhanced=0.08,
                  mask=str(g.choice(["none", "wedge", "circle"])), flips=(False, False, False, False))


# Stand-ins for scanners nobody has seen: recipes are settled on them, so that no label of B, C or D has to be read.
STAND_INS = "EFGHIJKL"
VENDORS = {**_ROLES, **{name: _stand_in(name) for name in STAND_INS}}
REFERENCE_VENDOR = "A"
_GEOMETRIC = ("flip_deg", "tr_ms", "fresh", "acquired_mm", "blood_snr", "gamma", "gain")
_LINEAR = ("bias_slope", "bias_deg", "ghosting", "enhanced")
_STORAGE = ("pixel_mm", "spacing_mm", "flips", "mask")
_LIMITS = {"flip_deg": (10, 85), "fresh": (0, 0.5), "blood_snr": (8, 200), "acquired_mm": (1.2, 2.8),
           "gamma": (0.5, 2.0)}


def at_severity(vendor, severity, geometry=True):
    """The profile between the reference vendor (severity 0) and `vendor` (1), or beyond; clamped to what scanners do.

    geometry : False keeps pixel, slice spacing, orientation and blanking common, so that the gap is appearance alone.
    """
    r, v = VENDORS[REFERENCE_VENDOR], VENDORS[vendor]
    values = {f.name: getattr(v, f.name) for f in fields(Vendor)}
    for name in _GEOMETRIC:
        values[name] = getattr(r, name) * (getattr(v, name) / getattr(r, name)) ** severity
    for name in _LINEAR:
        values[name] = getattr(r, name) + severity * (getattr(v, name) - getattr(r, name))
    values["filter"] = v.filter if severity > 0 else r.filter
    for name in _STORAGE:
        values[name] = getattr(v if geometry and severity > 0 else r, name)
    for name, (low, high) in _LIMITS.items():
        values[name] = float(np.clip(values[name], low, high))
    for name in ("ghosting", "enhanced"):
        values[name] = float(np.clip(values[name], 0, 1))
    return Vendor(**values)


@dataclass(frozen=True)
class Session:
    """One study on one scanner: the vendor's profile with the study's own deviations."""
    vendor: Vendor
    fov_mm: float
    matrix: int                                  # of the reconstruction, square
    spacing_mm: float
    b1: float
    shim: tuple                                  # off-resonance: linear u, v and constant, Hz
    lung_hz: float
    ghost: float                                 # share of disturbed k-space lines
    enhanced: bool
    tissue: np.ndarray                           # (len(Tissue), 3) T1, T2, PD of this subject


def sample_session(g, vendor):
    """Draw the deviations of one study: protocol, coil, shim, tissue values."""
    log = lambda sd: float(np.exp(sd * np.clip(g.standard_normal(), -2.5, 2.5)))
    own = replace(vendor,
                  blood_snr=vendor.blood_snr * log(0.25),
                  acquired_mm=vendor.acquired_mm * log(0.05),
                  flip_deg=vendor.flip_deg * log(0.05),
                  bias_slope=vendor.bias_slope * log(0.2),
                  bias_deg=vendor.bias_deg + float(np.rad2deg(0.3 * g.standard_normal())),
                  gain=vendor.gain * log(0.4),
                  gamma=vendor.gamma * log(0.05))
    pixel, fov = g.uniform(*vendor.pixel_mm), g.uniform(330, 370)
    matrix = 2 * round(fov / pixel / 2)
    enhanced = bool(g.random() < vendor.enhanced)
    table = {**_TISSUE, **(_ENHANCED if enhanced else {})}
    spread = np.array([0.05, 0.12, 0.0])
    tissue = np.array([np.array(table[k]) * np.exp(spread * np.clip(g.standard_normal(3), -2, 2)) for k in Tissue])
    return Session(own, matrix * pixel, matrix,
                   spacing_mm=g.uniform(*vendor.spacing_mm),
                   b1=g.uniform(0.92, 1.05),
                   shim=tuple(g.normal(0, (12, 12, 8))),
                   lung_hz=float(abs(g.normal(35, 15))),
                   ghost=g.uniform(0.03, 0.08) if g.random() < vendor.ghosting else 0.0,
                   enhanced=enhanced, tissue=tissue)


def signal_slice(tissue, u, v, texture, session):
    """Complex bSSFP signal of one slice, averaged through its thickness: (S, H, W) tissues -> (H, W) complex64.

    u, v : (H, W) mm.  texture : (H, W) uniform field, acts on PD, T1 and T2 so that it changes with the protocol.
    """
    s = session
    grain = texture - 0.5
    lung = ndimage.gaussian_filter(np.isin(tissue[len(tissue) // 2], (Tissue.LUNG, Tissue.GAS)).astype(np.float32), 8)
    frequency_hz = s.shim[2] + (s.shim[0] * u + s.shim[1] * v) / 80 + s.lung_hz * 4 * lung * (1 - lung)
    flip, tr_ms = np.deg2rad(s.vendor.flip_deg) * s.b1, s.vendor.tr_ms
    amplitude = np.array([3.46 * _TEXTURE.get(k, 0.0) for k in Tissue], np.float32)   # SD of a uniform is 1/3.46
    total, weights = 0, np.ones(len(tissue)) if len(tissue) < 3 else np.r_[0.8, np.ones(len(tissue) - 2), 0.8]
    # The signal depends on the pixel only through frequency and texture, which are smooth: tabulated per tissue.
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
            signal[where] = plain * (1 + amplitude[k] * grain[where])
        total = total + weight * signal
    return total / weights.sum()


def _window(n, kind):
    """Apodisation over n k-space samples, centre in the middle, 1 at the centre."""
    x = np.abs(np.arange(n) - n // 2) / (n / 2)
    if kind == "rect":
        return np.ones(n)
    if kind == "hamming":
        return 0.54 + 0.46 * np.cos(np.pi * x)
    if kind == "tukey":
        return np.where(x < 0.75, 1, 0.5 * (1 + np.cos(np.pi * (x - 0.75) / 0.25)))
    if kind == "fermi":
        return 1 / (1 + np.exp((x - 0.85) / 0.05))
    raise ValueError(f"unknown apodisation {kind!r}; use rect, hamming, tukey or fermi")


def _centred(array, shape):
    """Crop or zero-pad a centred 2D spectrum to `shape`, keeping the zero frequency at n // 2."""
    for axis, n in enumerate(shape):
        have = array.shape[axis]
        if n <= have:
            start = have // 2 - n // 2
            array = array.take(range(start, start + n), axis)
        else:
            before = n // 2 - have // 2
            array = np.pad(array, [(before, n - have - before) if a == axis else (0, 0) for a in (0, 1)])
    return array


def blood_level(session):
    """On-resonance signal of arterial blood: what SNR is defined against."""
    t1, t2, density = session.tissue[Tissue.ARTERIAL]
    flip = np.deg2rad(session.vendor.flip_deg) * session.b1
    steady = abs(bssfp(t1, t2, density, flip, session.vendor.tr_ms))
    return (1 - session.vendor.fresh) * steady + session.vendor.fresh * density * np.sin(flip / 2)


def acquire(signal, u, v, w, session, g):
    """Scan one slice: (GRID, GRID) complex signal -> (matrix, matrix) float32 magnitude, arbitrary unit.

    Receive shading, k-space crop to the acquired matrix, ghosting, complex noise, apodisation, zero-filling, magnitude.
    Noise is white and complex in the acquired grid, with sigma = blood / SNR, so the magnitude in air is Rayleigh.
    """
    s, ven = session, session.vendor
    angle = np.deg2rad(ven.bias_deg)
    # The vendor's slope, nearer to the coil towards the apex; the array's own dome, by which both walls are bright.
    slope = ven.bias_slope * (1 + 0.004 * w) * (u * np.cos(angle) + v * np.sin(angle)) / 120
    log_bias = slope + 0.55 * np.hypot(u, v) ** 2 / 150 ** 2
    k_space = fft.fftshift(fft.fft2(fft.ifftshift(signal * np.exp(np.clip(log_bias, -3, 3))), workers=1))
    rows, columns = 2 * round(s.fov_mm / (1.15 * ven.acquired_mm) / 2), 2 * round(s.fov_mm / ven.acquired_mm / 2)
    k_space = _centred(k_space, (rows, columns))
    if s.ghost:
        lines = g.random(rows) < s.ghost
        k_space[lines] *= 1 + 0.6 * np.exp(2j * np.pi * g.random(lines.sum()))[:, None]
    sigma = blood_level(s) / ven.blood_snr * GRID * GRID / np.sqrt(rows * columns)    # for an unnormalised FFT
    k_space = k_space + sigma * (g.standard_normal(k_space.shape) + 1j * g.standard_normal(k_space.shape))
    k_space *= _window(rows, ven.filter)[:, None] * _window(columns, ven.filter)[None]
    image = fft.fftshift(fft.ifft2(fft.ifftshift(_centred(k_space, (s.matrix, s.matrix))), workers=1))
    return (np.abs(image) * (s.matrix / GRID) ** 2).astype(np.float32)


def export(volume, session, g):
    """Reconstructed magnitudes (D, H, W) to what the scanner stores: gain, gamma, saturation, blanking; int16."""
    ven, (_, h, w) = session.vendor, volume.shape
    x = np.clip(volume / np.percentile(volume, 99.9), 0, 1) ** ven.gamma
    rows, columns = np.mgrid[-1:1:h * 1j, -1:1:w * 1j]
    if ven.mask == "circle" and g.random() < 0.4:
        x = x * (np.hypot(rows, columns) < 1.0)
    if ven.mask == "wedge":
        x = x * (columns < 1.05 - 0.10 * g.random() + 0.06 * rows)
    return np.round(x * ven.gain).astype(np.int16)
