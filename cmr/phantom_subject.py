"""The numbers that make one phantom subject: volumes, wall, pose, disease.  Shapes are `cmr.phantom_heart`'s.

Shapes follow from these in `cmr.phantom_heart`.

Public: `GROUPS`, `Subject`, `sample_subject`.
"""
from dataclasses import dataclass, field

import numpy as np

GROUPS = {"NOR": 0.40, "DCM": 0.20, "HCM": 0.25, "ARV": 0.15}

# Mean and SD per group: LVEDV ml, LVEF %, mid-wall mm, RVEDV ml, RVEF %, long-axis factor L_ES / L_ED.
_GROUP = {"NOR": ((147, 27), (62, 6), (6.6, 0.9), (168, 33), (58, 7), (0.82, 0.03)),
          "DCM": ((245, 55), (28, 9), (6.5, 1.1), (165, 42), (45, 12), (0.93, 0.03)),
          "HCM": ((118, 27), (66, 7), (7.5, 1.0), (136, 30), (62, 8), (0.85, 0.03)),
          "ARV": ((145, 33), (56, 8), (6.0, 1.0), (235, 48), (36, 9), (0.84, 0.04))}
# ln LVEDV, LVEF, wall, ln RVEDV, RVEF, long-axis factor; the correlations between volumes and EF of 160 real studies.
_CORRELATION = np.array([[1, -.41, .3, .64, -.25, .2], [-.41, 1, 0, -.25, .64, -.3], [.3, 0, 1, .2, 0, 0],
                         [.64, -.25, .2, 1, -.3, .1], [-.25, .64, 0, -.3, 1, -.1], [.2, -.3, 0, .1, -.1, 1]])


@dataclass(frozen=True)
class Subject:
    """The numbers that make one phantom subject.  Volumes in ml, lengths in mm, angles in radians."""
    group: str
    lv_edv_ml: float
    lv_ef: float
    wall_mm: float
    rv_edv_ml: float
    rv_ef: float
    long_axis_factor: float
    elongation: float                     # L / a
    roundness: float                      # b / a
    septal_gain: float                    # wall thickness factor of the septal sector (asymmetric HCM)
    apical_gain: float
    rotation: float                       # of the heart in the image
    centre_mm: tuple                      # LV axis in the image, (u, v)
    tilt: tuple                           # slope of the slice plane along (u, v)
    base_tilt: tuple                      # slope of the mitral plane along (x, y)
    rv_base_mm: float                     # where the annotator stops labelling the RV, relative to the mitral plane
    rv_offset_mm: float                   # RV centre along y
    trabecula_mm: float
    papillary_mm: float
    fat_cover: float                      # share of the epicardium under fat
    chest: tuple                          # outline: centre u, v, semi-axes, rotation
    fat_mm: float                         # subcutaneous
    diaphragm_mm: float
    stomach_gas: bool
    harmonics: tuple = field(default=())  # (amplitude, phase) of the LV contour, n = 2..4
    texture_seed: int = 0


def sample_subject(rng, group):
    """Draw one subject of `group` (a key of GROUPS) from the distributions of published normal and patient values."""
    z = np.clip(rng.multivariate_normal(np.zeros(6), _CORRELATION), -2.2, 2.2)
    (edv, ef, wall, rv_edv, rv_ef, factor) = [
        m * np.exp(s / m * zi) if i in (0, 3) else m + s * zi for i, ((m, s), zi) in enumerate(zip(_GROUP[group], z))]
    ef, rv_ef = np.clip([ef, rv_ef], 12, 78)
    stroke = edv * ef                                          # keep the stroke volumes of both sides within 0.8 .. 1.3
    rv_ef = np.clip(rv_ef, stroke / (1.3 * rv_edv), min(75, stroke / (0.8 * rv_edv)))
    kind = rng.choice(["septal", "concentric", "apical"], p=[0.6, 0.25, 0.15]) if group == "HCM" else "none"
    wall *= rng.uniform(1.3, 1.6) if kind == "concentric" else 1.0
    normal = lambda sd, limit=2.0: float(sd * np.clip(rng.standard_normal(), -limit, limit))
    subject = dict(
        group=str(group), lv_edv_ml=float(edv), lv_ef=float(ef), wall_mm=float(wall),
        rv_edv_ml=float(rv_edv), rv_ef=float(rv_ef),
        long_axis_factor=float(np.clip(factor, 0.72, 0.98)),
        elongation=(2.75 if group == "DCM" else 3.05) + normal(0.15), roundness=0.92 + normal(0.04),
        septal_gain=rng.uniform(1.4, 2.2) if kind == "septal" else 1.0,
        apical_gain=rng.uniform(1.5, 2.0) if kind == "apical" else 1.0,
        rotation=np.deg2rad(normal(25)), centre_mm=(normal(9), normal(9)),
        tilt=(np.tan(np.deg2rad(normal(6))), np.tan(np.deg2rad(normal(6)))), base_tilt=(normal(0.14), normal(0.14)),
        rv_base_mm=normal(4), rv_offset_mm=rng.uniform(-2, 8),
        trabecula_mm=rng.uniform(2.5, 5.5), papillary_mm=rng.uniform(3.5, 6.0), fat_cover=rng.uniform(0.3, 0.8),
        chest=(normal(6) - 4, 62 + normal(8), rng.uniform(126, 146), rng.uniform(172, 200), np.deg2rad(28 + normal(7))),
        fat_mm=float(np.exp(np.log(13) + normal(0.4))), diaphragm_mm=rng.uniform(38, 56),
        stomach_gas=bool(rng.random() < 0.6),
        harmonics=tuple((abs(normal(0.02 / (n - 1))), rng.uniform(0, 2 * np.pi)) for n in (2, 3, 4)),
        texture_seed=int(rng.integers(2**31)))
    return Subject(**{name: _plain(value) for name, value in subject.items()})


def _plain(value):
    """numpy's numbers to Python's, which keep float32 arrays float32."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return float(value) if isinstance(value, np.floating) else value
