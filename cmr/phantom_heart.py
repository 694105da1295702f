"""The phantom's heart: the numbers that describe a subject, its shapes through the cycle, and an annotator's labels.

Points are in mm: u to the right and v down in the clinical short-axis view, w along the LV axis from base to apex.
In the heart's own frame x points from the LV axis to the RV, and z from the mitral plane to the apex.
"""
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from cmr.records import VALUES

GROUPS = {"NOR": 0.40, "DCM": 0.20, "HCM": 0.25, "ARV": 0.15}

# Mean and SD per group: LVEDV ml, LVEF %, mid-wall mm, RVEDV ml, RVEF %, long-axis factor L_ES / L_ED.
_GROUP = {"NOR": ((147, 27), (62, 6), (6.6, 0.9), (168, 33), (58, 7), (0.82, 0.03)),
          "DCM": ((245, 55), (28, 9), (6.5, 1.1), (165, 42), (45, 12), (0.93, 0.03)),
          "HCM": ((118, 27), (66, 7), (7.5, 1.0), (136, 30), (62, 8), (0.85, 0.03)),
          "ARV": ((145, 33), (56, 8), (6.0, 1.0), (235, 48), (36, 9), (0.84, 0.04))}
# Correlations of ln LVEDV, LVEF, wall, ln RVEDV, RVEF, long-axis factor; of volumes and EF from 160 real studies.
_CORRELATION = np.array([[1, -.41, .3, .64, -.25, .2], [-.41, 1, 0, -.25, .64, -.3], [.3, 0, 1, .2, 0, 0],
                         [.64, -.25, .2, 1, -.3, .1], [-.25, .64, 0, -.3, 1, -.1], [.2, -.3, 0, .1, -.1, 1]])


def sample_subject(rng, group):
    """Draw a subject of a group in GROUPS: Python numbers in ml, mm and radians, which keep float32 arrays float32."""
    z = np.clip(rng.multivariate_normal(np.zeros(6), _CORRELATION), -2.2, 2.2)
    (edv, ef, wall, rv_edv, rv_ef, factor) = [
        m * np.exp(s / m * zi) if i in (0, 3) else m + s * zi for i, ((m, s), zi) in enumerate(zip(_GROUP[group], z))]
    ef, rv_ef = np.clip([ef, rv_ef], 12, 78)
    stroke = edv * ef                                          # keep the stroke volumes of both sides within 0.8 .. 1.3
    rv_ef = np.clip(rv_ef, stroke / (1.3 * rv_edv), min(75, stroke / (0.8 * rv_edv)))
    kind = rng.choice(["septal", "concentric", "apical"], p=[0.6, 0.25, 0.15]) if group == "HCM" else "none"
    wall *= rng.uniform(1.3, 1.6) if kind == "concentric" else 1.0
    normal = lambda sd: float(sd * np.clip(rng.standard_normal(), -2, 2))
    radians = lambda degrees: float(np.deg2rad(degrees))
    slope = lambda degrees: float(np.tan(np.deg2rad(degrees)))
    return SimpleNamespace(
        group=str(group), lv_edv_ml=float(edv), lv_ef=float(ef), wall_mm=float(wall), rv_edv_ml=float(rv_edv),
        rv_ef=float(rv_ef), long_axis_factor=float(np.clip(factor, 0.72, 0.98)),
        elongation=(2.75 if group == "DCM" else 3.05) + normal(0.15),            # L / a
        roundness=0.92 + normal(0.04),                                           # b / a
        septal_gain=rng.uniform(1.4, 2.2) if kind == "septal" else 1.0,          # factor on the wall there
        apical_gain=rng.uniform(1.5, 2.0) if kind == "apical" else 1.0,
        rotation=radians(normal(25)),                                            # of the heart in the image
        centre_mm=(normal(9), normal(9)),                                        # of the LV axis in the image, (u, v)
        tilt=(slope(normal(6)), slope(normal(6))),                               # of the slice plane along (u, v)
        base_tilt=(normal(0.14), normal(0.14)),                                  # of the mitral plane along (x, y)
        rv_base_mm=normal(4),                    # least z at which the annotator labels the RV
        rv_offset_mm=rng.uniform(-2, 8),                                         # RV centre along y
        trabecula_mm=rng.uniform(2.5, 5.5), papillary_mm=rng.uniform(3.5, 6.0),
        fat_cover=rng.uniform(0.3, 0.8),                                         # share of the epicardium under fat
        chest=(normal(6) - 4, 62 + normal(8), rng.uniform(126, 146), rng.uniform(172, 200),
               radians(28 + normal(7))),                                         # centre (u, v), semi-axes, rotation
        fat_mm=float(np.exp(np.log(13) + normal(0.4))),                          # subcutaneous fat
        diaphragm_mm=rng.uniform(38, 56), stomach_gas=bool(rng.random() < 0.6),
        # Amplitude and phase of harmonics 2, 3 and 4 of the LV contour.
        harmonics=tuple((abs(normal(0.02 / (n - 1))), rng.uniform(0, 2 * np.pi)) for n in (2, 3, 4)),
        texture_seed=int(rng.integers(2**31)))


@dataclass(frozen=True)
class Heart:
    """Shapes in mm: the LV cavity is a half ellipsoid (a, b, L), the RV an ellipsoid (A_x, A_y, L_r) less the LV."""
    subject: SimpleNamespace
    contraction: float                    # 0 at ED, 1 at ES
    a: float                              # semi-axis of the LV cavity along x, at its base
    b: float                              # semi-axis along y
    L: float                              # length along z, from base to apex
    t: float                              # thickness of the wall
    base_mm: float                        # position of the mitral plane along w
    c_x: float                            # centre of the RV along x, at its base
    A_x: float                            # semi-axes of the RV along x, y and z
    A_y: float
    L_r: float


def heart_at(subject, contraction):
    """The heart at `contraction` (0 ED, 1 ES): EF and shortening set its width, the wall's volume stays constant."""
    s = subject
    ef, q = contraction * s.lv_ef / 100, 1 - contraction * (1 - s.long_axis_factor)
    a = (3000 * s.lv_edv_ml / (2 * np.pi * s.roundness * s.elongation)) ** (1 / 3)                 # V = 2 pi a b L / 3
    b, L, t = s.roundness * a, s.elongation * a, s.wall_mm
    scale = math.sqrt((1 - ef) / q)
    a_t, b_t = scale * a, scale * b
    w = (a + t) * (b + t) - a * b                                 # ring area / pi, which grows by 1/q as L shrinks
    t_t = (-(a_t + b_t) + math.sqrt((a_t + b_t) ** 2 + 4 * w / q)) / 2
    lean = Heart(s, contraction, a_t, b_t, q * L, t_t, (1 - q) * L, c_x=1.05 * a_t, A_x=0.0,
                 A_y=46 * (s.rv_edv_ml / 160) ** (1 / 3) * (1 - 0.20 * contraction * s.rv_ef / 55), L_r=0.95 * q * L)
    return replace(lean, A_x=_solve_rv_width(lean, s.rv_edv_ml * (1 - contraction * s.rv_ef / 100)))


def _solve_rv_width(heart, volume_ml):
    """Find A_x for the wanted RV volume by bisection on a 3 mm grid: an ellipsoid less the LV has no closed form."""
    axes = np.arange(-75, 75, 3.0), np.arange(-15, 110, 3.0), np.arange(1.5, heart.L_r, 3.0)
    y, x, z = np.meshgrid(*axes, indexing="ij")
    outside_lv = epicardium(heart, x, y, z, np.arctan2(y, x)) > 0
    low, high = 5.0, 110.0
    for _ in range(18):
        middle = (low + high) / 2
        cavity = outside_lv & (rv_surface(replace(heart, A_x=middle), x, y, z) < 0) & (x > -5)
        low, high = (middle, high) if cavity.sum() * 0.027 < volume_ml else (low, middle)
    return middle


def contour_ripple(heart, theta):
    """Factor on the LV radius at the angle `theta`: 1 plus the harmonics 2 to 4 of the subject."""
    return 1 + sum(c * np.cos(n * theta + p) for n, (c, p) in zip((2, 3, 4), heart.subject.harmonics))


def half_ellipse(z, length):
    """Radius of a half ellipsoid at height z relative to that at z = 0; constant above the base (z < 0)."""
    return np.sqrt(np.clip(1 - (np.maximum(z, 0) / length) ** 2, 0, 1))


def endocardium(heart, x, y, z, ripple):
    """Depth in mm below the endocardium: positive inside the cavity, negative outside."""
    radius = np.sqrt((x / heart.a) ** 2 + (y / heart.b) ** 2) / ripple
    return np.where(z < heart.L, (half_ellipse(z, heart.L) - radius) * (heart.a + heart.b) / 2, -9.0)


def epicardium(heart, x, y, z, theta):
    """Distance in mm from the epicardium, negative inside; the wall's thickness varies with height and sector."""
    s = heart.subject
    septal = 1 + (s.septal_gain - 1) * np.clip(1.4 - np.abs(theta) / math.radians(70), 0, 1)
    by_height = (1.05, 1.0, 0.8 * s.apical_gain, 0.55 * s.apical_gain)
    height = np.interp(z / heart.L, (0, 0.5, 0.8, 1.0), by_height).astype(x.dtype)
    t = heart.t * height * (1 + 0.12 * np.cos(theta)) * septal
    length = heart.L + 0.7 * heart.t * s.apical_gain
    radius = np.sqrt((x / (heart.a + t)) ** 2 + (y / (heart.b + t)) ** 2) / contour_ripple(heart, theta)
    return np.where(z < length, (radius - half_ellipse(z, length)) * (heart.a + heart.t), 9.0)


def rv_surface(heart, x, y, z):
    """Approximate distance in mm from the RV's outer ellipsoid, negative inside."""
    q = np.sqrt(np.clip(1 - (z / heart.L_r) ** 2, 1e-4, 1))
    dx, dy = (x - heart.c_x * q) / (heart.A_x * q), (y - heart.subject.rv_offset_mm) / (heart.A_y * q)
    radius = np.sqrt(dx ** 2 + dy ** 2)
    return np.where(np.abs(z) < heart.L_r, (radius - 1) * q * (heart.A_x + heart.A_y) / 2, 30.0)


def to_heart(heart, u, v, w):
    """Transform image points (u, v, w) to the heart's frame: x, y, z in mm and the angle from the septal direction."""
    s = heart.subject
    du, dv = u - s.centre_mm[0], v - s.centre_mm[1]
    septal = math.radians(190) + s.rotation                     # to the left and slightly up in the image
    x, y = du * math.cos(septal) + dv * math.sin(septal), du * math.sin(septal) - dv * math.cos(septal)
    z = w + s.tilt[0] * du + s.tilt[1] * dv - heart.base_mm
    return x, y, np.broadcast_to(z, x.shape), np.arctan2(y, x)


def above_base(heart, x, y, z):
    return z < heart.subject.base_tilt[0] * x + heart.subject.base_tilt[1] * y


def label_slice(heart, u, v, w):
    """Labels (H, W) uint8 as an annotator draws them: cavities with papillary muscles, the RV without free wall."""
    x, y, z, theta = to_heart(heart, u, v, w)
    inside = epicardium(heart, x, y, z, theta) <= 0
    cavity = endocardium(heart, x, y, z, contour_ripple(heart, theta)) > 0
    ring = inside & ~cavity
    label = np.zeros(x.shape, np.uint8)
    if ring.any() and (above_base(heart, x, y, z) & ring).sum() <= 0.5 * ring.sum() and z[ring].mean() > 0:
        label[ring], label[cavity & inside] = VALUES["MYO"], VALUES["LV"]
    rv = (rv_surface(heart, x, y, z) < 0) & ~inside & (x > -5) & (z > heart.subject.rv_base_mm)
    label[rv] = VALUES["RV"]
    area_mm2 = abs(u[0, 1] - u[0, 0]) * abs(v[1, 0] - v[0, 0])
    for value in VALUES.values():
        if (label == value).sum() * area_mm2 < 20:
            label[label == value] = 0
    return label
