"""The phantom's tissues: heart and thorax in a slice, and random fields; coordinates as in `cmr.phantom_heart`."""
from enum import IntEnum

import numpy as np
from scipy import fft
from scipy.special import ndtr

from cmr.phantom_heart import above_base, contour_ripple, endocardium, epicardium, half_ellipse, rv_surface, to_heart

_NAMES = "AIR FAT MUSCLE CORTEX MARROW LUNG LIVER SPLEEN FOOD GAS KIDNEY FLUID ARTERIAL VENOUS MYO"
Tissue = IntEnum("Tissue", _NAMES, start=0)


def tissue_slice(heart, thorax, u, v, w, noise):
    """Tissues of three layers through a slice of 8 mm, (3, H, W) int8 of Tissue.

    thorax : that of the slice, which is equal for every phase.  u, v : (H, W) mm.  noise : {name: (H, W)}.
    """
    stack = np.repeat(thorax[None], 3, 0)
    offsets = (np.arange(3) - 1.0) * 8.0 / 3
    rows, columns = np.abs(v[:, 0] - heart.subject.centre_mm[1]) < 90, np.abs(u[0] - heart.subject.centre_mm[0]) < 90
    box = np.ix_(rows, columns)
    for layer, offset in zip(stack, offsets):
        part = layer[box]
        _heart_tissue(heart, u[box], v[box], w + offset, {k: f[box] for k, f in noise.items()}, part)
        layer[box] = part
    return stack


def _heart_tissue(heart, u, v, w, noise, tissue):
    """Draw the heart, its fat and the great vessels at its base into `tissue` (H, W), in place."""
    s = heart.subject
    x, y, z, theta = to_heart(heart, u, v, w)
    depth = endocardium(heart, x, y, z, contour_ripple(heart, theta))
    outside = epicardium(heart, x, y, z, theta)
    rv = rv_surface(heart, x, y, z)
    above = above_base(heart, x, y, z)
    rv_free = outside > 0

    # Epicardial fat, and a thin pericardial line around the whole heart.
    surface = np.minimum(outside, rv - 3.2)
    fat = (surface > 0) & (surface < 1.5 + 6.5 * noise["fat"]) & (noise["cover"] < s.fat_cover)
    groove = (np.minimum(np.abs(outside), 9) + np.minimum(np.abs(rv), 9) < 9) & (surface > 0)
    tissue[(surface > 0) & (surface < 0.9)] = Tissue.MUSCLE
    tissue[fat | groove] = Tissue.FAT

    # Right heart: wall, cavity with trabeculae and a moderator band; above the base, right atrium and outflow tract.
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
        reach = (0.60 + 0.18 * heart.contraction) * half_ellipse(z.mean(), heart.L)
        for angle in np.deg2rad((125, 235)) + twist:
            centre_x, centre_y = reach * heart.a * np.cos(angle), reach * heart.b * np.sin(angle)
            muscle |= np.hypot(x - centre_x, y - centre_y) < s.papillary_mm * (0.8 + 0.5 * noise["fat"])
    tissue[depth > 0] = np.where(muscle[depth > 0], Tissue.MYO, Tissue.ARTERIAL)

    # Above the mitral plane: atria and aortic root, which are blood with thin walls.
    atrium = above & (depth > -2.5)
    tissue[atrium] = np.where(depth[atrium] > 0, Tissue.ARTERIAL, Tissue.MYO)
    if (z.mean() < 12):
        root = np.hypot(x - 0.95 * heart.a, y + 0.85 * heart.b) - 14.5        # aortic root beside the septum, anterior
        near = (z < 4)
        tissue[near & (root < 1.8)] = Tissue.MYO
        tissue[near & (root < 0)] = Tissue.ARTERIAL


def thorax_tissue(subject, u, v, w, noise):
    """The thorax without the heart at slice position w, (H, W) int8 of Tissue; later lines cover earlier ones."""
    s = subject
    tissue = np.full(u.shape, Tissue.AIR, np.int8)
    cu, cv, au, av, angle = s.chest
    shrink = 1 - 0.0012 * max(w, 0)                               # the chest wall comes nearer towards the apex
    du, dv = u - cu, v - cv
    eu, ev = du * np.cos(angle) + dv * np.sin(angle), -du * np.sin(angle) + dv * np.cos(angle)
    outline = (np.hypot(eu / au, ev / av) / shrink - 1) * au + 5 * (noise["edge"] - 0.5)
    front = np.clip(-(eu / au) - 0.3 * ev / av, 0, 1)             # the breast side carries more fat
    fat_mm = s.fat_mm * (0.7 + 1.1 * front)
    tissue[outline < 0] = Tissue.FAT
    tissue[(outline < 0) & (outline > -1.8)] = Tissue.MUSCLE      # skin
    muscle_mm = 11 + 5 * noise["cover"]
    tissue[outline < -fat_mm] = Tissue.MUSCLE
    tissue[(outline < -fat_mm) & (np.abs(noise["edge"] - 0.5) < 0.02)] = Tissue.FAT
    chest_angle = np.arctan2(ev / av, eu / au)
    along, across = (((chest_angle * 150 + 0.9 * w) % 31) - 15.5) / 1.5, outline + fat_mm + 0.6 * muscle_mm
    rib = np.hypot(along, across) + 4 * (noise["cover"] - 0.3)
    tissue[rib < 5.2] = Tissue.CORTEX
    tissue[rib < 3.6] = Tissue.MARROW
    inner = outline < -(fat_mm + muscle_mm)
    tissue[inner] = Tissue.LUNG
    line = np.abs(noise["vessel"] % 0.25 - 0.125) < 0.006 + 0.008 * (np.hypot(u, v) < 75)
    vessel = line & (noise["fat"] > 0.55)                         # interrupted, so that dots remain
    tissue[inner & vessel] = Tissue.ARTERIAL
    mediastinum = np.hypot(u + 62, (v + 18) * 0.8) < 34 + 14 * noise["edge"]                       # the anterior part
    tissue[inner & mediastinum] = Tissue.FAT

    _abdomen_tissue(s, u, v, w, noise, inner, tissue)

    # Behind the heart: vertebra with its canal, descending aorta, oesophagus.
    vertebra = np.hypot((u - 2) / 20, (v - 128 - 0.15 * w) / 17)
    tissue[(vertebra < 1.12) & inner] = Tissue.CORTEX
    tissue[(vertebra < 1.0) & inner] = Tissue.MARROW
    tissue[(np.hypot(u - 2, v - 154 - 0.15 * w) < 7) & inner] = Tissue.FLUID
    aorta_u, aorta_v = 26, 104 + 0.1 * w
    tissue[(np.hypot(u - aorta_u, v - aorta_v) < 12.5) & inner] = Tissue.MUSCLE
    tissue[(np.hypot(u - aorta_u, v - aorta_v) < 11) & inner] = Tissue.ARTERIAL
    return tissue


def _abdomen_tissue(s, u, v, w, noise, inner, tissue):
    """Draw what lies under the diaphragm, within the mask `inner`, into `tissue` (H, W), in place."""
    dome = s.diaphragm_mm - 0.12 * w + 0.0022 * (u + 18) ** 2 + 0.10 * (u - 10) + 9 * (noise["edge"] - 0.5)
    below = inner & (v > dome)
    tissue[below] = Tissue.FAT
    tissue[below & (v < dome + 2.5)] = Tissue.MUSCLE
    lower_edge = dome + 52 + 0.25 * w + 24 * (noise["cover"] - 0.5) - 0.40 * np.maximum(u + 10, 0)
    liver = below & (v > dome + 2.5) & (v < lower_edge) & (u < 62)
    tissue[liver] = Tissue.LIVER
    tissue[liver & (np.abs(noise["vessel"] % 0.2 - 0.1) < 0.008) & (noise["fat"] > 0.4)] = Tissue.VENOUS
    bowel = below & (v > dome + 52) & (u < 40)
    loops = np.sin(u / 6 + 9 * noise["edge"]) * np.sin(v / 7 + 7 * noise["cover"])
    tissue[bowel] = np.where(loops > 0.1, Tissue.FOOD, Tissue.FAT)[bowel]
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


def fractal(rng, shape, beta):
    """Random field (D, H, W) float32, uniform in (0, 1), from a Gaussian field with the power spectrum k^-beta."""
    # The factor of 1.5 makes neighbouring slices more alike than neighbouring pixels are.
    k = np.sqrt((fft.fftfreq(shape[0])[:, None, None] * 1.5) ** 2 + fft.fftfreq(shape[1])[None, :, None] ** 2
                + fft.rfftfreq(shape[2])[None, None, :] ** 2)
    k[0, 0, 0] = np.inf
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32), workers=1) * k.astype(np.float32) ** (-beta / 2)
    g = fft.irfftn(spectrum, shape, workers=1)
    return ndtr(g / g.std()).astype(np.float32)


def noise_fields(subject, n_slices, size):
    """The subject's random fields {name: (n_slices, size, size) in [0, 1]}, equal for every phase and vendor."""
    rng = np.random.default_rng(subject.texture_seed)
    betas = {"edge": 4.4, "cover": 4.0, "fat": 2.8, "vessel": 4.6, "trabecula": 2.2, "texture": 2.3}
    return {name: fractal(rng, (n_slices, size, size), beta) for name, beta in betas.items()}
