"""How like real cardiac MR the phantom is: statistics of image and heart beside those measured on real studies.

Real figures: image statistics of 45 Sunnybrook subjects (GE 1.5 T; 8-bit, 1.25 mm assumed), volumes of the 160 M&Ms
test studies (median of three teams' masks).  Public: `image_statistics`, `print_realism`.
Nothing is fitted to them by code.
"""
import warnings

import numpy as np
from scipy import ndimage, optimize, special

from cmr.metrics import ejection_fraction
from cmr.nifti import read_volume
from cmr.records import VALUES
from cmr.studies import find

# name: real median, 5th and 95th percentile, unit
REAL_IMAGE = {"blood / MYO": (3.54, 2.07, 4.77, ""), "blood SD / mean": (0.109, 0.083, 0.167, ""),
              "P99.5 / blood": (2.84, 1.75, 4.92, ""), "noise / blood": (0.027, 0.018, 0.043, ""),
              "endocardial edge sigma": (1.13, 0.84, 1.63, "mm"), "pixels below 5 % of P99.5": (0.59, 0.30, 0.71, ""),
              "exact zeros": (0.37, 0.08, 0.49, ""), "PSD exponent 0.03-0.25 cycles/px": (3.05, 2.66, 3.57, ""),
              "PSD exponent 0.016-0.1": (2.5, 2.0, 3.1, ""), "PSD exponent 0.125-0.4": (3.43, 3.1, 3.8, "")}
REAL_HEART = {"LV ED": (144, 77, 296, "ml"), "LV ES": (61, 31, 176, "ml"), "MYO ED": (107, 63, 219, "ml"),
              "MYO ES": (113, 67, 237, "ml"), "RV ED": (139, 77, 233, "ml"), "RV ES": (64, 29, 120, "ml"),
              "LVEF": (58.9, 25, 68, "%"), "RVEF": (55.5, 32, 70, "%"), "RV / LV EDV": (1.00, 0.56, 1.31, ""),
              "MYO / LV EDV": (0.71, 0.53, 1.40, ""), "MYO ES / ED": (1.026, 0.89, 1.14, "")}


def print_realism(root):
    """Print a table for the phantom below root: real figure, phantom's median and 5th-95th percentile per vendor."""
    image_rows, heart_rows = _phantom_statistics(root)
    print(f"{'':34s} {'real median (5-95 %)':>24s}   {'phantom median (5-95 %), per vendor'}")
    for table, rows in ((REAL_IMAGE, image_rows), (REAL_HEART, heart_rows)):
        for name, (median, low, high, unit) in table.items():
            limits = (median - 0.5, median + 0.5) if name.startswith("PSD") else (0.67 * median, 1.5 * median)
            cells = []
            for vendor, values in sorted(rows[name].items()):
                m, a, b = np.nanpercentile(values, (50, 5, 95))
                fits = limits[0] <= m <= limits[1] and a <= high and b >= low
                cells.append(f"{vendor} {m:.3g} ({a:.3g} to {b:.3g}){'' if fits else ' (!)'}")
            real = f"{median:g} ({low:g} to {high:g})"
            print(f"{name + (' ' + unit if unit else ''):34s} {real:>24s}   " + "   ".join(cells))
    print("(!) median outside 0.67-1.5 of the real one (PSD: 0.5 away), or the 5-95 % ranges do not meet")


def _phantom_statistics(root):
    """({name of REAL_IMAGE: {vendor: values}}, {name of REAL_HEART: {"all": values}}) of the labelled studies."""
    studies, image_rows, heart_rows = {}, {}, {}
    for record in find(root):
        if record.phase in ("ED", "ES") and record.label_path:
            studies.setdefault(record.subject, {})[record.phase] = record
    for phases in studies.values():
        volumes = {}
        for phase, record in phases.items():
            image, label, nifti, _ = read_volume(record)
            if label is None:
                continue
            ml = np.bincount(label.ravel(), minlength=4) * np.prod(nifti.spacing_mm) / 1000
            volumes[phase] = dict(zip(VALUES, ml[1:]))
            if phase == "ED":
                for name, value in _study_statistics(image, label, nifti.spacing_mm[0]).items():
                    image_rows.setdefault(name, {}).setdefault(record.vendor, []).append(value)
        if len(volumes) == 2:
            for name, value in _heart_statistics(volumes["ED"], volumes["ES"]).items():
                heart_rows.setdefault(name, {}).setdefault("all", []).append(value)
    return image_rows, heart_rows


def _study_statistics(image, label, pixel_mm):
    """Median over up to three slices with a large LV of the statistics of REAL_IMAGE; image, label (X, Y, Z)."""
    areas = (label == VALUES["LV"]).sum((0, 1))
    middle = np.flatnonzero(areas > 0.5 * areas.max())
    slices = middle[:: max(1, len(middle) // 3)]
    found = [image_statistics(image[..., k], label[..., k] == VALUES["LV"], pixel_mm) for k in slices]
    return {name: np.nanmedian([s[name] for s in found if s]) for name in REAL_IMAGE}


def _heart_statistics(ed_ml, es_ml):
    """The figures of REAL_HEART from {structure: ml} at ED and ES."""
    volumes = {f"{s} {phase}": of[s] for s in VALUES for phase, of in (("ED", ed_ml), ("ES", es_ml))}
    return {**volumes,
            "LVEF": ejection_fraction(ed_ml["LV"], es_ml["LV"]),
            "RVEF": ejection_fraction(ed_ml["RV"], es_ml["RV"]),
            "RV / LV EDV": ed_ml["RV"] / ed_ml["LV"],
            "MYO / LV EDV": ed_ml["MYO"] / ed_ml["LV"],
            "MYO ES / ED": es_ml["MYO"] / ed_ml["MYO"]}


def image_statistics(image, lv, pixel_mm):
    """The statistics of REAL_IMAGE of one slice; None for a small LV.

    image : (H, W).  lv : boolean mask of the cavity.  pixel_mm : of square pixels.
    """
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
    p995 = np.percentile(image, 99.5)
    frequencies, power = _radial_power(image)

    def exponent(low, high):
        """Of the power law between two frequencies, cycles per pixel."""
        between = (frequencies > low) & (frequencies < high)
        return -np.polyfit(*np.log(np.stack([frequencies, power])[:, between]), 1)[0]

    return {"blood / MYO": blood / max(wall[:int(0.7 * len(wall))].mean(), 1e-6),
            "blood SD / mean": float(bright.std() / bright.mean()),
            "P99.5 / blood": p995 / blood,
            "noise / blood": _noise(image) / blood,
            "endocardial edge sigma": _edge_sigma_mm(image, centre, lv, pixel_mm),
            "pixels below 5 % of P99.5": float((image < 0.05 * p995).mean()),
            "exact zeros": float((image == 0).mean()),
            "PSD exponent 0.03-0.25 cycles/px": exponent(0.03, 0.25),
            "PSD exponent 0.016-0.1": exponent(0.016, 0.1),
            "PSD exponent 0.125-0.4": exponent(0.125, 0.4)}


def _noise(image):
    """SD of the noise by the median of the finest diagonal Haar coefficients (Donoho & Johnstone 1994), less zeros."""
    a, b, c, d = image[:-1:2, :-1:2], image[1::2, :-1:2], image[:-1:2, 1::2], image[1::2, 1::2]
    haar = (a - b - c + d)[: image.shape[0] // 2] / 2
    return float(np.median(np.abs(haar[haar != 0])) / 0.6745) if haar.any() else 0.0


def _radial_power(image):
    n = min(image.shape)
    image = image[:n, :n] - image[:n, :n].mean()
    power = np.abs(np.fft.fft2(image * np.hanning(n)[:, None] * np.hanning(n))) ** 2
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    bins = np.clip((k * n).round().astype(int), 0, n // 2)
    mean_power = np.bincount(bins.ravel(), power.ravel()) / np.bincount(bins.ravel())
    return (np.arange(n // 2 + 1) / n)[1:-1], mean_power[1:-1] + 1e-12


def _edge_sigma_mm(image, centre, lv, pixel_mm):
    """Median over 24 rays of the Gaussian width of the blood-muscle edge, by an error function fitted to each."""
    radius = np.sqrt(lv.sum() / np.pi)
    r = np.arange(0.3 * radius, radius + 6, 0.25)
    model = lambda r, r0, sigma, low, step: low + step * 0.5 * special.erfc((r - r0) / (sigma * 2 ** 0.5))
    found = []
    for angle in np.arange(24) * 2 * np.pi / 24:
        ray = [centre[0] + r * np.sin(angle), centre[1] + r * np.cos(angle)]
        profile = ndimage.map_coordinates(image.astype(float), ray, order=1)
        steepest = np.argmin(np.gradient(ndimage.gaussian_filter1d(profile, 2)))
        near = np.abs(r - r[steepest]) < 4
        start = (r[steepest], 1.0, profile[near].min(), np.ptp(profile[near]))
        with warnings.catch_warnings():                           # a flat ray has no covariance, and is left out below
            warnings.simplefilter("ignore", optimize.OptimizeWarning)
            try:
                (_, sigma, _, step), _ = optimize.curve_fit(model, r[near], profile[near], start, maxfev=400)
            except (RuntimeError, TypeError):
                continue
        if step > 0 and 0.2 < abs(sigma) < 4:
            found.append(abs(sigma) * pixel_mm)
    return float(np.median(found)) if found else np.nan
