"""How like real cardiac MR the phantom is: statistics of image and heart beside those measured on real studies.

Real figures: image statistics of 45 Sunnybrook subjects (GE 1.5 T; 8-bit, 1.25 mm assumed), volumes of the 160 M&Ms
test studies (median of three teams' masks).  Public: `image_statistics`, `print_validation`.
"""
import warnings

import numpy as np
from scipy import ndimage, optimize, special

from cmr.metrics import ejection_fraction
from cmr.studies import find
from cmr.volumes import load

# name: real median, 5th and 95th percentile, unit
REAL_IMAGE = {"blood / MYO": (3.54, 2.07, 4.77, ""), "blood SD / mean": (0.109, 0.083, 0.167, ""), "P99.5 / blood": (2.84, 1.75, 4.92, ""),
              "noise / blood": (0.027, 0.018, 0.043, ""), "endocardial edge sigma": (1.13, 0.84, 1.63, "mm"),
              "pixels below 5 % of P99.5": (0.59, 0.30, 0.71, ""), "exact zeros": (0.37, 0.08, 0.49, ""),
              "PSD exponent 0.03-0.25 cycles/px": (3.05, 2.66, 3.57, ""), "PSD exponent 0.016-0.1": (2.5, 2.0, 3.1, ""), "PSD exponent 0.125-0.4": (3.43, 3.1, 3.8, "")}
REAL_HEART = {"LV ED": (144, 77, 296, "ml"), "LV ES": (61, 31, 176, "ml"), "MYO ED": (107, 63, 219, "ml"), "MYO ES": (113, 67, 237, "ml"), "RV ED": (139, 77, 233, "ml"),
              "RV ES": (64, 29, 120, "ml"), "LVEF": (58.9, 25, 68, "%"), "RVEF": (55.5, 32, 70, "%"), "RV / LV EDV": (1.00, 0.56, 1.31, ""), "MYO / LV EDV": (0.71, 0.53, 1.40, ""),
              "MYO ES / ED": (1.026, 0.89, 1.14, "")}


def image_statistics(image, lv, pixel_mm):
    """The statistics of REAL_IMAGE of one slice: image (H, W), boolean LV cavity mask, square pixels; None for a small LV."""
    if lv.sum() * pixel_mm ** 2 < 400:
        return None
    pool = image[lv]
    bright = pool[pool >= np.median(pool)]
    blood = float(np.median(bright))
    centre = np.argwhere(lv).mean(0)
    y, x = np.indices(image.shape)
    sector = (np.arctan2(y - centre[0], x - centre[1]) / (2 * np.pi) * 24).astype(int) % 24
    outside_mm = ndimage.distance_transform_edt(~lv) * pixel_mm
    ring = (outside_mm > 1) & (outside_mm < 6)
    wall = np.sort([image[ring & (sector == s)].mean() for s in range(24) if (ring & (sector == s)).any()])
    haar = (image[:-1:2, :-1:2] - image[1::2, :-1:2] - image[:-1:2, 1::2] + image[1::2, 1::2])[: image.shape[0] // 2] / 2
    p995 = np.percentile(image, 99.5)
    frequencies, power = _radial_power(image)
    slope = lambda low, high: -np.polyfit(*np.log(np.stack([frequencies, power])[:, (frequencies > low) & (frequencies < high)]), 1)[0]
    return {"blood / MYO": blood / max(wall[:int(0.7 * len(wall))].mean(), 1e-6), "blood SD / mean": float(bright.std() / bright.mean()), "P99.5 / blood": p995 / blood,
            "noise / blood": float(np.median(np.abs(haar[haar != 0])) / 0.6745 / blood) if haar.any() else 0.0,
            "endocardial edge sigma": _edge_sigma_mm(image, centre, lv, pixel_mm), "pixels below 5 % of P99.5": float((image < 0.05 * p995).mean()),
            "exact zeros": float((image == 0).mean()), "PSD exponent 0.03-0.25 cycles/px": slope(0.03, 0.25), "PSD exponent 0.016-0.1": slope(0.016, 0.1),
            "PSD exponent 0.125-0.4": slope(0.125, 0.4)}


def _radial_power(image):
    n = min(image.shape)
    image = image[:n, :n] - image[:n, :n].mean()
    power = np.abs(np.fft.fft2(image * np.hanning(n)[:, None] * np.hanning(n))) ** 2
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    bins = np.clip((k * n).round().astype(int), 0, n // 2)
    return (np.arange(n // 2 + 1) / n)[1:-1], (np.bincount(bins.ravel(), power.ravel()) / np.bincount(bins.ravel()))[1:-1] + 1e-12


def _edge_sigma_mm(image, centre, lv, pixel_mm):
    """Median over 24 rays of the Gaussian width of the blood-muscle edge, from an error function fitted to the profile."""
    radius = np.sqrt(lv.sum() / np.pi)
    r = np.arange(0.3 * radius, radius + 6, 0.25)
    model = lambda r, r0, sigma, low, step: low + step * 0.5 * special.erfc((r - r0) / (sigma * 2 ** 0.5))
    found = []
    for angle in np.arange(24) * 2 * np.pi / 24:
        profile = ndimage.map_coordinates(image.astype(float), [centre[0] + r * np.sin(angle), centre[1] + r * np.cos(angle)], order=1)
        steepest = np.argmin(np.gradient(ndimage.gaussian_filter1d(profile, 2)))
        near = np.abs(r - r[steepest]) < 4
        start = (r[steepest], 1.0, profile[near].min(), np.ptp(profile[near]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)             # a flat ray has no covariance; its fit is left out below
            try:
                (_, sigma, _, step), _ = optimize.curve_fit(model, r[near], profile[near], start, maxfev=400)
            except (RuntimeError, TypeError):
                continue
        if step > 0 and 0.2 < abs(sigma) < 4:
            found.append(abs(sigma) * pixel_mm)
    return float(np.median(found)) if found else np.nan


def print_validation(config):
    """Print a table for the phantom below config.out: real figure, phantom's median and 5th-95th percentile per vendor."""
    image_rows, heart_rows = {}, {}
    studies = {}
    for record in find(config.out):
        if record.phase in ("ED", "ES") and record.label_path:
            studies.setdefault(record.subject, {})[record.phase] = record
    for subject, phases in studies.items():
        volumes = {}
        for phase, record in phases.items():
            image, label, nifti, _ = load(record)
            if label is None:
                continue
            ml = np.bincount(label.ravel(), minlength=4) * np.prod(nifti.spacing_mm) / 1000
            volumes[phase] = dict(zip(("LV", "MYO", "RV"), ml[1:]))
            if phase == "ED":
                areas = (label == 1).sum((0, 1))
                middle = np.flatnonzero(areas > 0.5 * areas.max())
                stats = [s for k in middle[:: max(1, len(middle) // 3)] if (s := image_statistics(image[..., k], label[..., k] == 1, nifti.spacing_mm[0]))]
                for name in REAL_IMAGE:
                    image_rows.setdefault(name, {}).setdefault(record.vendor, []).append(np.nanmedian([s[name] for s in stats]))
        if len(volumes) == 2:
            ed, es = volumes["ED"], volumes["ES"]
            heart = {**{f"{s} {p}": volumes[p][s] for s in ed for p in volumes}, "LVEF": ejection_fraction(ed["LV"], es["LV"]), "RVEF": ejection_fraction(ed["RV"], es["RV"]),
                     "RV / LV EDV": ed["RV"] / ed["LV"], "MYO / LV EDV": ed["MYO"] / ed["LV"], "MYO ES / ED": es["MYO"] / ed["MYO"]}
            for name, value in heart.items():
                heart_rows.setdefault(name, {}).setdefault("all", []).append(value)
    print(f"{'':34s} {'real median (5-95 %)':>24s}   {'phantom median (5-95 %), per vendor'}")
    for table, rows in ((REAL_IMAGE, image_rows), (REAL_HEART, heart_rows)):
        for name, (median, low, high, unit) in table.items():
            cells = []
            for vendor, values in sorted(rows[name].items()):
                m, a, b = np.nanpercentile(values, (50, 5, 95))
                limits = (median - 0.5, median + 0.5) if name.startswith("PSD") else (0.67 * median, 1.5 * median)
                verdict = "" if limits[0] <= m <= limits[1] and a <= high and b >= low else " (!)"
                cells.append(f"{vendor} {m:.3g} ({a:.3g} to {b:.3g}){verdict}")
            print(f"{name + (' ' + unit if unit else ''):34s} {f'{median:g} ({low:g} to {high:g})':>24s}   " + "   ".join(cells))
    print("(!) median outside 0.67-1.5 of the real one (PSD: 0.5 away), or the 5-95 % ranges do not meet")
