"""The phantom's heart and thorax: implicit shapes evaluated on points, no meshes.

A subject is a set of numbers (volumes, wall, pose); `heart_at` gives the shapes at one moment of the cycle, and
`tissue_slice` / `label_slice` evaluate them in the plane of a slice.  Coordinates in mm: u to the right and v down in
the clinical short-axis view, w along the LV axis from base to apex.  The heart's own frame has x from the LV axis to
the RV (the septal direction), z from the mitral plane to the apex.

Public: `Tissue`, `LABELS`, `sample_subject`, `heart_at`, `tissue_slice`, `label_slice`, `fractal`.
"""
import math
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from scipy import fft
from scipy.special import ndtr

LABELS = {"LV": 1, "MYO": 2, "RV": 3}
GROUPS = {"NOR": 0.40, "DCM": 0.20, "HCM": 0.25, "ARV": 0.15}

Tissue = IntEnum("Tissue", "AIR FAT MUSCLE CORTEX MARROW LUNG LIVER SPLEEN FOOD GAS KIDNEY FLUID ARTERIAL VENOUS MYO", start=0)

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
    """Draw one subject of `group` (NOR, DCM, HCM or ARV) from the distributions of published normal and patient values."""
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
        group=str(group), lv_edv_ml=float(edv), lv_ef=float(ef), wall_mm=float(wall), rv_edv_ml=float(rv_edv), rv_ef=float(rv_ef),
        long_axis_factor=float(np.clip(factor, 0.72, 0.98)),
        elongation=(2.75 if group == "DCM" else 3.05) + normal(0.15), roundness=0.92 + normal(0.04),
        septal_gain=rng.uniform(1.4, 2.2) if kind == "septal" else 1.0,
        apical_gain=rng.uniform(1.5, 2.0) if kind == "apical" else 1.0,
        rotation=np.deg2rad(normal(25)), centre_mm=(normal(9), normal(9)),
        tilt=(np.tan(np.deg2rad(normal(6))), np.tan(np.deg2rad(normal(6)))), base_tilt=(normal(0.14), normal(0.14)),
        rv_base_mm=normal(4), rv_offset_mm=rng.uniform(-2, 8), trabecula_mm=rng.uniform(2.5, 5.5), papillary_mm=rng.uniform(3.5, 6.0),
        fat_cover=rng.uniform(0.3, 0.8), chest=(normal(6) - 4, 62 + normal(8), rng.uniform(126, 146), rng.uniform(172, 200), np.deg2rad(28 + normal(7))),
        fat_mm=float(np.exp(np.log(13) + normal(0.4))), diaphragm_mm=rng.uniform(38, 56), stomach_gas=bool(rng.random() < 0.6),
        harmonics=tuple((abs(normal(0.02 / (n - 1))), rng.uniform(0, 2 * np.pi)) for n in (2, 3, 4)),
        texture_seed=int(rng.integers(2**31)))
    plain = lambda v: tuple(map(plain, v)) if isinstance(v, tuple) else float(v) if isinstance(v, np.floating) else v
    return Subject(**{k: plain(v) for k, v in subject.items()})          # Python floats keep float32 arrays float32


@dataclass(frozen=True)
class Heart:
    """Shapes at one moment.  LV cavity: half ellipsoid (a, b, L); wall t; RV: ellipsoid (A_x, A_y, L_r) at c_x, less the LV."""
    subject: Subject
    contraction: float                    # 0 at ED, 1 at ES
    a: float
    b: float
    L: float
    t: float
    base_mm: float                        # mitral plane along w
    c_x: float
    A_x: float
    A_y: float
    L_r: float


def heart_at(subject, contraction):
    """The heart at `contraction` in [0, 1] (0 ED, 1 ES): transverse scale from EF and long-axis shortening, wall by conserving its volume."""
    s = subject
    ef, q = contraction * s.lv_ef / 100, 1 - contraction * (1 - s.long_axis_factor)
    a = (3000 * s.lv_edv_ml / (2 * np.pi * s.roundness * s.elongation)) ** (1 / 3)     # V = 2 pi a b L / 3
    b, L, t = s.roundness * a, s.elongation * a, s.wall_mm
    scale = math.sqrt((1 - ef) / q)
    a_t, b_t = scale * a, scale * b
    w = (a + t) * (b + t) - a * b                                                      # ring area over pi, over 1/q at ES
    t_t = (-(a_t + b_t) + math.sqrt((a_t + b_t) ** 2 + 4 * w / q)) / 2
    lean = Heart(s, contraction, a_t, b_t, q * L, t_t, (1 - q) * L, c_x=1.05 * a_t, A_x=0.0,
                 A_y=46 * (s.rv_edv_ml / 160) ** (1 / 3) * (1 - 0.20 * contraction * s.rv_ef / 55), L_r=0.95 * q * L)
    return replace(lean, A_x=_solve_rv_width(lean, s.rv_edv_ml * (1 - contraction * s.rv_ef / 100)))


def _solve_rv_width(heart, volume_ml):
    """A_x for the wanted RV volume, by bisection on a 3 mm grid (the cavity is an ellipsoid less the LV, so no closed form)."""
    y, x, z = np.meshgrid(np.arange(-75, 75, 3.0), np.arange(-15, 110, 3.0), np.arange(1.5, heart.L_r, 3.0), indexing="ij")
    outside_lv = _epicardium(heart, x, y, z, np.arctan2(y, x)) > 0
    low, high = 5.0, 110.0
    for _ in range(18):
        middle = (low + high) / 2
        cavity = outside_lv & (_rv_surface(replace(heart, A_x=middle), x, y, z) < 0) & (x > -5)
        low, high = (middle, high) if cavity.sum() * 0.027 < volume_ml else (low, middle)
    return middle


def _ripple(heart, theta):
    """Relative change of the LV radius with the angle: harmonics n = 2..4."""
    return 1 + sum(c * np.cos(n * theta + p) for n, (c, p) in zip((2, 3, 4), heart.subject.harmonics))


def _half_ellipse(z, length):
    """Relative radius of a half ellipsoid at height z; straight above the base."""
    return np.sqrt(np.clip(1 - (np.maximum(z, 0) / length) ** 2, 0, 1))


def _endocardium(heart, x, y, z, ripple):
    """Depth in mm below the endocardium, negative outside the cavity (positive inside)."""
    radius = np.sqrt((x / heart.a) ** 2 + (y / heart.b) ** 2) / ripple
    return np.where(z < heart.L, (_half_ellipse(z, heart.L) - radius) * (heart.a + heart.b) / 2, -9.0)


def _epicardium(heart, x, y, z, theta):
    """Distance in mm outside the epicardium, negative inside: wall thickness by height, sector and group."""
    s = heart.subject
    septal = 1 + (s.septal_gain - 1) * np.clip(1.4 - np.abs(theta) / math.radians(70), 0, 1)
    height = np.interp(z / heart.L, (0, 0.5, 0.8, 1.0), (1.05, 1.0, 0.8 * s.apical_gain, 0.55 * s.apical_gain)).astype(x.dtype)
    t = heart.t * height * (1 + 0.12 * np.cos(theta)) * septal
    length = heart.L + 0.7 * heart.t * s.apical_gain
    radius = np.sqrt((x / (heart.a + t)) ** 2 + (y / (heart.b + t)) ** 2) / _ripple(heart, theta)
    return np.where(z < length, (radius - _half_ellipse(z, length)) * (heart.a + heart.t), 9.0)


def _rv_surface(heart, x, y, z):
    """Distance in mm outside the RV's outer ellipsoid (approximate), negative inside."""
    q = np.sqrt(np.clip(1 - (z / heart.L_r) ** 2, 1e-4, 1))
    radius = np.sqrt(((x - heart.c_x * q) / (heart.A_x * q)) ** 2 + ((y - heart.subject.rv_offset_mm) / (heart.A_y * q)) ** 2)
    return np.where(np.abs(z) < heart.L_r, (radius - 1) * q * (heart.A_x + heart.A_y) / 2, 30.0)


def _to_heart(heart, u, v, w):
    """Image point (u, v, w) in the heart's frame (x, y, z) and its angle from the septal direction."""
    s = heart.subject
    du, dv = u - s.centre_mm[0], v - s.centre_mm[1]
    septal = math.radians(190) + s.rotation                     # to the left and slightly up in the image
    x, y = du * math.cos(septal) + dv * math.sin(septal), du * math.sin(septal) - dv * math.cos(septal)
    z = w + s.tilt[0] * du + s.tilt[1] * dv - heart.base_mm
    return x, y, np.broadcast_to(z, x.shape), np.arctan2(y, x)


def _above_base(heart, x, y, z):
    return z < heart.subject.base_tilt[0] * x + heart.subject.base_tilt[1] * y


def label_slice(heart, u, v, w):
    """Labels an annotator would draw at slice position w: (H, W) uint8, 0 background, 1 LV, 2 MYO, 3 RV.

    u, v : (H, W) mm.  Papillary muscles and trabeculae belong to the cavities; the RV's free wall is background; a
    basal slice is labelled if at least half of the ring is muscular; areas under 20 mm2 are left out.
    """
    x, y, z, theta = _to_heart(heart, u, v, w)
    inside = _epicardium(heart, x, y, z, theta) <= 0
    cavity = _endocardium(heart, x, y, z, _ripple(heart, theta)) > 0
    ring = inside & ~cavity
    label = np.zeros(x.shape, np.uint8)
    if ring.any() and (_above_base(heart, x, y, z) & ring).sum() <= 0.5 * ring.sum() and z[ring].mean() > 0:
        label[ring], label[cavity & inside] = LABELS["MYO"], LABELS["LV"]
    rv = (_rv_surface(heart, x, y, z) < 0) & ~inside & (x > -5) & (z > heart.subject.rv_base_mm)
    label[rv] = LABELS["RV"]
    area_mm2 = abs(u[0, 1] - u[0, 0]) * abs(v[1, 0] - v[0, 0])
    for value in LABELS.values():
        if (label == value).sum() * area_mm2 < 20:
            label[label == value] = 0
    return label


def _heart_tissue(heart, u, v, w, noise, tissue):
    """Draw the heart, the great vessels at its base and its fat into `tissue` (H, W), in place."""
    s = heart.subject
    x, y, z, theta = _to_heart(heart, u, v, w)
    depth = _endocardium(heart, x, y, z, _ripple(heart, theta))
    outside = _epicardium(heart, x, y, z, theta)
    rv = _rv_surface(heart, x, y, z)
    above = _above_base(heart, x, y, z)
    rv_free = outside > 0

    # Epicardial fat and a thin pericardial line around everything.
    surface = np.minimum(outside, rv - 3.2)
    fat = (surface > 0) & (surface < 1.5 + 6.5 * noise["fat"]) & (noise["cover"] < s.fat_cover)
    groove = (np.minimum(np.abs(outside), 9) + np.minimum(np.abs(rv), 9) < 9) & (surface > 0)
    tissue[(surface > 0) & (surface < 0.9)] = Tissue.MUSCLE
    tissue[fat | groove] = Tissue.FAT

    # Right heart: wall, cavity with trabeculae and a moderator band; above the base the right atrium and the outflow tract.
    tissue[(rv < 3.2) & rv_free] = Tissue.MYO
    trabecula = noise["trabecula"] < np.clip(1 + rv / 6.0, 0, 0.9)
    band = (np.abs(y - 0.35 * heart.A_y + 0.25 * x) < 2.2) & (np.abs(z / heart.L - 0.6) < 0.07) & (rv < 0)
    cavity = (rv < 0) & rv_free & (x > -5)
    tissue[cavity] = np.where((trabecula & (z > 5) | band)[cavity], Tissue.MYO, Tissue.VENOUS)

    # Left heart: wall, cavity with papillary muscles and trabeculae.
    ring = (outside <= 0) & (depth <= 0)
    tissue[ring] = Tissue.MYO
    twist = np.deg2rad(heart.contraction * np.interp(z.mean() / heart.L, (0, 1), (-3, 8)))
    muscle = noise["trabecula"] < np.clip(1 - depth / s.trabecula_mm, 0, 0.97)
    if 0.35 < z.mean() / heart.L < 0.78:
        reach = (0.60 + 0.18 * heart.contraction) * _half_ellipse(z.mean(), heart.L)
        for angle in np.deg2rad((125, 235)) + twist:
            muscle |= np.hypot(x - reach * heart.a * np.cos(angle), y - reach * heart.b * np.sin(angle)) < s.papillary_mm * (0.8 + 0.5 * noise["fat"])
    tissue[depth > 0] = np.where(muscle[depth > 0], Tissue.MYO, Tissue.ARTERIAL)

    # Above the mitral plane: atria and roots, blood with thin walls.
    atrium = above & (depth > -2.5)
    tissue[atrium] = np.where(depth[atrium] > 0, Tissue.ARTERIAL, Tissue.MYO)
    if (z.mean() < 12):
        root = np.hypot(x - 0.95 * heart.a, y + 0.85 * heart.b) - 14.5          # aortic root beside the septum, anterior
        near = (z < 4)
        tissue[near & (root < 1.8)] = Tissue.MYO
        tissue[near & (root < 0)] = Tissue.ARTERIAL


def _thorax_tissue(subject, u, v, w, noise):
    """The thorax without the heart at slice position w, (H, W) int8 of Tissue: later lines cover earlier ones."""
    s = subject
    tissue = np.full(u.shape, Tissue.AIR, np.int8)
    cu, cv, au, av, angle = s.chest
    shrink = 1 - 0.0012 * max(w, 0)                                             # the chest wall comes nearer towards the apex
    du, dv = u - cu, v - cv
    eu, ev = du * np.cos(angle) + dv * np.sin(angle), -du * np.sin(angle) + dv * np.cos(angle)
    outline = (np.hypot(eu / au, ev / av) / shrink - 1) * au + 5 * (noise["edge"] - 0.5)
    front = np.clip(-(eu / au) - 0.3 * ev / av, 0, 1)                           # the breast side carries more fat
    fat_mm = s.fat_mm * (0.7 + 1.1 * front)
    tissue[outline < 0] = Tissue.FAT
    tissue[(outline < 0) & (outline > -1.8)] = Tissue.MUSCLE                    # skin
    muscle_mm = 11 + 5 * noise["cover"]
    tissue[outline < -fat_mm] = Tissue.MUSCLE
    tissue[(outline < -fat_mm) & (np.abs(noise["edge"] - 0.5) < 0.02)] = Tissue.FAT
    chest_angle = np.arctan2(ev / av, eu / au)
    rib = np.hypot((((chest_angle * 150 + 0.9 * w) % 31) - 15.5) / 1.5, outline + fat_mm + 0.6 * muscle_mm) + 4 * (noise["cover"] - 0.3)
    tissue[rib < 5.2] = Tissue.CORTEX
    tissue[rib < 3.6] = Tissue.MARROW
    inner = outline < -(fat_mm + muscle_mm)
    tissue[inner] = Tissue.LUNG
    vessel = (np.abs(noise["vessel"] % 0.25 - 0.125) < 0.006 + 0.008 * (np.hypot(u, v) < 75)) & (noise["fat"] > 0.55)   # lines broken into dots
    tissue[inner & vessel] = Tissue.ARTERIAL
    tissue[inner & (np.hypot(u + 62, (v + 18) * 0.8) < 34 + 14 * noise["edge"])] = Tissue.FAT      # anterior mediastinum

    # Under the diaphragm: liver on the left of the image, stomach, spleen on the right, bowel and kidney lower down.
    dome = s.diaphragm_mm - 0.12 * w + 0.0022 * (u + 18) ** 2 + 0.10 * (u - 10) + 9 * (noise["edge"] - 0.5)
    below = inner & (v > dome)
    tissue[below] = Tissue.FAT
    tissue[below & (v < dome + 2.5)] = Tissue.MUSCLE
    liver = below & (v > dome + 2.5) & (v < dome + 52 + 0.25 * w + 24 * (noise["cover"] - 0.5) - 0.40 * np.maximum(u + 10, 0)) & (u < 62)
    tissue[liver] = Tissue.LIVER
    tissue[liver & (np.abs(noise["vessel"] % 0.2 - 0.1) < 0.008) & (noise["fat"] > 0.4)] = Tissue.VENOUS
    bowel = below & (v > dome + 52) & (u < 40)
    tissue[bowel] = np.where(np.sin(u / 6 + 9 * noise["edge"]) * np.sin(v / 7 + 7 * noise["cover"]) > 0.1, Tissue.FOOD, Tissue.FAT)[bowel]
    stomach = np.hypot((u - 44) / 32, (v - dome - 24) / 20) + 0.5 * (noise["edge"] - 0.5)
    tissue[below & (stomach < 1.10)] = Tissue.MUSCLE
    lumen = below & (stomach < 1.0)
    gas = s.stomach_gas & (v < dome + 22)
    tissue[lumen] = np.where(gas, Tissue.GAS, Tissue.FOOD)[lumen]
    spleen = below & (np.hypot((u - 84) / 22, (v - dome - 32) / 44) + 0.4 * (noise["edge"] - 0.5) < 1)
    tissue[spleen] = Tissue.SPLEEN
    kidney = np.hypot((u - 56) / 23, (v - 142 + 0.35 * w) / 29) + 9 * (w < 5)             # lower slices only
    tissue[(kidney < 1) & inner] = Tissue.KIDNEY
    tissue[(kidney < 0.55) & inner] = Tissue.FAT

    # Behind the heart: vertebra with its canal, descending aorta, oesophagus.
    vertebra = np.hypot((u - 2) / 20, (v - 128 - 0.15 * w) / 17)
    tissue[(vertebra < 1.12) & inner] = Tissue.CORTEX
    tissue[(vertebra < 1.0) & inner] = Tissue.MARROW
    tissue[(np.hypot(u - 2, v - 154 - 0.15 * w) < 7) & inner] = Tissue.FLUID
    aorta_u, aorta_v = 26, 104 + 0.1 * w
    tissue[(np.hypot(u - aorta_u, v - aorta_v) < 12.5) & inner] = Tissue.MUSCLE
    tissue[(np.hypot(u - aorta_u, v - aorta_v) < 11) & inner] = Tissue.ARTERIAL
    return tissue


def fractal(rng, shape, beta, z_scale=1.5):
    """Uniform(0, 1) field whose underlying Gaussian field has a power spectrum k^-beta; (D, H, W) float32.

    z_scale : weight of the frequency along D; 1 makes neighbouring slices as different as neighbouring pixels.
    """
    k = np.sqrt((fft.fftfreq(shape[0])[:, None, None] * z_scale) ** 2 + fft.fftfreq(shape[1])[None, :, None] ** 2
                + fft.rfftfreq(shape[2])[None, None, :] ** 2)
    k[0, 0, 0] = np.inf
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32), workers=1) * k.astype(np.float32) ** (-beta / 2)
    g = fft.irfftn(spectrum, shape, workers=1)
    return ndtr(g / g.std()).astype(np.float32)


def noise_fields(subject, n_slices, size):
    """The subject's random fields, the same at every phase and for every vendor: {name: (n_slices, size, size) in [0, 1]}."""
    rng = np.random.default_rng(subject.texture_seed)
    betas = {"edge": 4.4, "cover": 4.0, "fat": 2.8, "vessel": 4.6, "trabecula": 2.2, "texture": 2.3}
    return {name: fractal(rng, (n_slices, size, size), beta) for name, beta in betas.items()}


def tissue_slice(heart, u, v, w, noise, thickness_mm=8.0, sub_slices=3, thorax=None):
    """Tissues through the thickness of one slice: (sub_slices, H, W) int8 of Tissue, and the heart-less thorax (H, W).

    u, v : (H, W) mm.  noise : {name: (H, W)}.  Pass `thorax` back in for the next phase of the same slice: it does not move.
    """
    if thorax is None:
        thorax = _thorax_tissue(heart.subject, u, v, w, noise)
    stack = np.repeat(thorax[None], sub_slices, 0)
    offsets = (np.arange(sub_slices) - (sub_slices - 1) / 2) * thickness_mm / sub_slices
    rows, columns = np.abs(v[:, 0] - heart.subject.centre_mm[1]) < 90, np.abs(u[0] - heart.subject.centre_mm[0]) < 90
    box = np.ix_(rows, columns)
    for layer, offset in zip(stack, offsets):
        part = layer[box]
        _heart_tissue(heart, u[box], v[box], w + offset, {k: f[box] for k, f in noise.items()}, part)
        layer[box] = part
    return stack, thorax
