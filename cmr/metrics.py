"""Overlap and surface metrics of one structure in one volume, on the original grid, in mm.

The conventions are those of MONAI and MetricsReloaded: the border of a mask is every voxel with a face neighbour
outside the mask or the array; distances are Euclidean between voxel centres; HD95 is the larger of the two directed
95th percentiles.  medpy instead pools the distances of both directions, which is `hd95_pooled` here.
"""
import math

import numpy as np
from scipy import ndimage

SURFACE = ("hd", "hd95", "hd95_pooled", "assd", "masd", "asd_pred_to_ref", "asd_ref_to_pred")
TOLERANCE_MM = 2.0
STATUS = {(True, True): "ok", (False, True): "missed", (True, False): "spurious", (False, False): "absent_both"}


def dice(pred, ref):
    """Return 2 |P and R| / (|P| + |R|) of two boolean arrays of one shape; nan if both are empty."""
    total = np.count_nonzero(pred) + np.count_nonzero(ref)
    return 2 * np.count_nonzero(pred & ref) / total if total else math.nan


def border(mask):
    """Return the voxels of a boolean mask that have a face neighbour outside the mask or the array."""
    return mask & ~ndimage.binary_erosion(mask)


def border_distances(pred, ref, spacing_mm):
    """Return distances in mm (of each border voxel of pred to ref's border, and the reverse); neither may be empty."""
    box = ndimage.find_objects((pred | ref).view(np.uint8))[0]    # cropping keeps the distances and saves time
    pred_border, ref_border = border(pred[box]), border(ref[box])
    to_ref = ndimage.distance_transform_edt(~ref_border, spacing_mm)
    to_pred = ndimage.distance_transform_edt(~pred_border, spacing_mm)
    return to_ref[pred_border], to_pred[ref_border]


def surface_metrics(pred, ref, spacing_mm):
    """Return {name: value} of SURFACE, in mm, and of `nsd`, the share of both borders within TOLERANCE_MM."""
    d_pr, d_rp = border_distances(pred, ref, spacing_mm)
    both = np.concatenate([d_pr, d_rp])
    quantile = lambda d: float(np.quantile(d, 0.95))
    return {"hd": float(both.max()),
            "hd95": max(quantile(d_pr), quantile(d_rp)),
            "hd95_pooled": quantile(both),
            "assd": float(both.mean()),
            "masd": float((d_pr.mean() + d_rp.mean()) / 2),
            "asd_pred_to_ref": float(d_pr.mean()),
            "asd_ref_to_pred": float(d_rp.mean()),
            "nsd": float((both <= TOLERANCE_MM).mean())}


def in_plane_metrics(pred, ref, spacing_mm):
    """Return mean HD95 and ASSD over the slices (axis 0) with both masks, and counts of missed and spurious slices."""
    has_pred, has_ref = pred.any((1, 2)), ref.any((1, 2))
    rows = [surface_metrics(pred[k], ref[k], spacing_mm[1:]) for k in np.flatnonzero(has_pred & has_ref)]
    mean = lambda name: float(np.mean([r[name] for r in rows])) if rows else math.nan
    return {"hd95_in_plane": mean("hd95"), "assd_in_plane": mean("assd"), "slices_both": len(rows),
            "slices_missed": int((has_ref & ~has_pred).sum()), "slices_spurious": int((has_pred & ~has_ref).sum())}


def measure(pred, ref, spacing_mm):
    """Return every metric of one structure.  pred, ref : boolean (D, H, W).  spacing_mm : (slice, row, column).

    `status` is ok, missed (pred is empty), spurious (ref is empty) or absent_both.  A missed or spurious structure has
    Dice 0, NSD 0 and infinite distances; one that is absent from both has nan in their place.
    """
    pred, ref = np.asarray(pred, bool), np.asarray(ref, bool)
    spacing_mm = tuple(float(s) for s in spacing_mm)
    if pred.shape != ref.shape or pred.ndim != len(spacing_mm):
        raise ValueError(f"prediction {pred.shape}, reference {ref.shape}, spacing {spacing_mm}: "
                         "shapes must agree, one spacing an axis")
    status = STATUS[bool(pred.any()), bool(ref.any())]
    if status == "ok":
        surface = surface_metrics(pred, ref, spacing_mm)
    elif status == "absent_both":
        surface = dict.fromkeys((*SURFACE, "nsd"), math.nan)
    else:
        surface = {**dict.fromkeys(SURFACE, math.inf), "nsd": 0.0}
    voxel_ml = math.prod(spacing_mm) / 1000
    volumes = {"volume_pred_ml": pred.sum() * voxel_ml, "volume_ref_ml": ref.sum() * voxel_ml}
    return {"status": status, "dice": dice(pred, ref), **volumes, **surface, **in_plane_metrics(pred, ref, spacing_mm)}


def mean_dice(labels, mask):
    """Return the mean Dice of labels over the structures in a mask of the same shape; nan if the mask is empty."""
    values = [dice(labels == v, mask == v) for v in np.unique(mask) if v]
    return float(np.mean(values)) if values else math.nan
