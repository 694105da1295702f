"""Metrics: oracle masks rebuilt by formula, invariances against brute force, statuses of missing structures."""
import itertools
import math

import numpy as np
import pytest

from cmr.metrics import SURFACE, border, border_distances, dice, in_plane_metrics, mean_dice, measure
from test_audit import heart

ISO, CMR = (1.0, 1.0, 1.0), (10.0, 1.25, 1.25)


def box(shape, z, y, x):
    mask = np.zeros(shape, bool)
    mask[slice(*z), slice(*y), slice(*x)] = True
    return mask


def ellipsoid(shape, centre, radius):
    z, y, x = np.indices(shape)
    return ((z - centre[0]) * 10) ** 2 + ((y - centre[1]) * 1.25) ** 2 + ((x - centre[2]) * 1.25) ** 2 <= radius ** 2


def tube(cy, cx, inner, outer, z0, z1, shape=(10, 64, 64)):
    z, y, x = np.indices(shape)
    r = (y - cy) ** 2 + (x - cx) ** 2
    return (inner ** 2 <= r) & (r <= outer ** 2) & (z0 <= z) & (z < z1)


def voxel(shape, *index):
    mask = np.zeros(shape, bool)
    mask[index] = True
    return mask


RING = tube(31, 31, 10, 16, 1, 8)
CUBE, ISLAND = box((16, 24, 24), (4, 10), (5, 15), (6, 16)), box((24, 24, 48), (7, 17), (7, 17), (4, 14))
DIAGONAL = lambda s: np.indices((8, 20, 20))[1] + np.indices((8, 20, 20))[2] == s
# case: spacing, reference, prediction, voxels (R, P), border voxels (R, P),
#       dice, HD, HD95, HD95 pooled, ASSD, MASD, ASD pred->ref, ASD ref->pred, NSD@2, volume error ml
ORACLE = {
    "K1": (ISO, CUBE, box((16, 24, 24), (4, 10), (5, 15), (8, 18)), (600, 600), (344, 344),
           (0.8, 2, 2, 2, .5581395349, .5581395349, .5581395349, .5581395349, 1, 0)),
    "K2": (CMR, CUBE, box((16, 24, 24), (5, 11), (5, 15), (8, 18)), (600, 600), (344, 344),
           (.6666666667, 10.3077640640, 10.0778221854, 10.0778221854, 3.9065577398, 3.9065577398, 3.9065577398, 3.9065577398, .4069767442, 0)),
    "K3": (CMR, ellipsoid((12, 64, 64), (5.5, 31.5, 31.5), 30), ellipsoid((12, 64, 64), (5.5, 33.5, 30.5), 27), (7336, 5280), (3528, 2824),
           (.8370323399, 9.5197163823, 6.25, 6.25, 1.6864952392, 1.6623348558, 1.4443423059, 1.8803274058, .6561712846, -32.125)),
    "K4": (CMR, voxel((5, 9, 9), 2, 2, 3), voxel((5, 9, 9), 3, 6, 6), (1, 1), (1, 1),
           (0, *[11.7924764151] * 7, 0, 0)),
    "K5": (CMR, RING, RING, (3444, 3444), (1724, 1724), (1, 0, 0, 0, 0, 0, 0, 0, 1, 0)),
    "K6": (CMR, RING, tube(32, 31, 9, 15, 1, 7), (3444, 2760), (1724, 1464),
           (.7814313346, 10.3077640640, 10.0778221854, 10, 2.2709115997, 2.1705945566, .9405532750, 3.4006358383, .7289836888, -10.6875)),
    "K7": (ISO, ISLAND, ISLAND | box((24, 24, 48), (8, 11), (8, 11), (36, 40)), (1000, 1036), (488, 522),
           (.9823182711, 26, 23, 0, .8247524752, .7978927203, 1.5957854406, 0, .9663366337, .036)),
    "K8": (CMR, box((6, 32, 32), (0, 6), (0, 10), (0, 32)), box((6, 32, 32), (0, 6), (0, 13), (0, 32)), (1920, 2496), (960, 1176),
           (.8695652174, 3.75, 3.75, 3.75, .6601123596, .6396683673, .8418367347, .4375, .8239700375, 9)),
    "K9": (CMR, DIAGONAL(18), DIAGONAL(21) & (np.indices((8, 20, 20))[0] < 6), (152, 108), (152, 108),
           (0, 20.1943680268, 20.1943680268, 20.1943680268, 4.6210929731, 4.3568023414, 2.7950849719, 5.9185197108, 0, -.6875)),
    "K10": (CMR, RING, tube(31, 31, 0, 16, 1, 8), (3444, 5579), (1724, 2034),
            (.7633824670, 12.5, 7.5, 6.3737743920, 1.2330378483, 1.2217478775, 1.3586114591, 1.0848842958, .7961681746, 33.359375))}


@pytest.mark.parametrize("case", ORACLE)
def test_oracle(case):
    spacing, ref, pred, voxels, borders, expected = ORACLE[case]
    assert (ref.sum(), pred.sum()) == voxels and (border(ref).sum(), border(pred).sum()) == borders
    m = measure(pred, ref, spacing)
    got = [m[name] for name in ("dice", *SURFACE, "nsd")]
    assert got + [m["volume_pred_ml"] - m["volume_ref_ml"]] == pytest.approx(expected, abs=1e-9) and m["status"] == "ok"


@pytest.mark.parametrize("case,hd95,assd,both,missed", [
    ("K3", 7.171293, 4.185551, 6, None), ("K6", 2.5, 1.138759, 6, 1), ("K10", 6.606267, 1.585034, 7, 0)])
def test_in_plane(case, hd95, assd, both, missed):
    spacing, ref, pred, *_ = ORACLE[case]
    m = in_plane_metrics(pred, ref, spacing)
    assert (m["hd95_in_plane"], m["assd_in_plane"], m["slices_both"]) == pytest.approx((hd95, assd, both), abs=1e-6)
    assert missed is None or m["slices_missed"] == missed


def test_missing_structures_have_a_status_and_are_never_zero_or_dropped():
    empty, full = np.zeros((6, 16, 16), bool), box((6, 16, 16), (2, 4), (4, 10), (4, 10))
    both, missed, spurious = measure(empty, empty, CMR), measure(empty, full, CMR), measure(full, empty, CMR)
    assert both["status"] == "absent_both" and math.isnan(both["dice"]) and math.isnan(both["hd95"])
    for m, status, error in ((missed, "missed", -1.125), (spurious, "spurious", 1.125)):
        assert m["status"] == status and m["dice"] == 0 and m["nsd"] == 0
        assert m["hd95"] == m["assd"] == m["hd"] == math.inf
        assert m["volume_pred_ml"] - m["volume_ref_ml"] == pytest.approx(error)
    assert missed["slices_missed"] == 2 and spurious["slices_spurious"] == 2


def brute_force(pred, ref, spacing):
    """All pairs of border voxels; the border by looking at each of the six neighbours."""
    def edge(mask):
        points = []
        for p in np.argwhere(mask):
            for axis, step in itertools.product(range(3), (-1, 1)):
                q = p.copy()
                q[axis] += step
                if not 0 <= q[axis] < mask.shape[axis] or not mask[tuple(q)]:
                    points.append(p * spacing)
                    break
        return np.array(points)
    a, b = edge(pred), edge(ref)
    d = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return np.sort(d.min(1)), np.sort(d.min(0))


def test_against_brute_force_and_invariances():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape, spacing = rng.integers(2, 7, 3), rng.uniform(0.5, 10, 3)
        pred, ref = rng.random(shape) < 0.4, rng.random(shape) < 0.4
        if not pred.any() or not ref.any():
            continue
        d_pr, d_rp = border_distances(pred, ref, spacing)
        expected = brute_force(pred, ref, spacing)
        assert np.sort(d_pr) == pytest.approx(expected[0], abs=1e-9)
        assert np.sort(d_rp) == pytest.approx(expected[1], abs=1e-9)
        m, swapped = measure(pred, ref, spacing), measure(ref, pred, spacing)
        assert m["hd"] >= m["hd95"] >= 0
        assert (m["hd"], m["assd"], m["hd95"]) == pytest.approx((swapped["hd"], swapped["assd"], swapped["hd95"]))
        padded = measure(np.pad(pred, 2), np.pad(ref, 2), spacing)
        order = rng.permutation(3)
        turned = measure(pred.transpose(order), ref.transpose(order), spacing[order])
        scaled = measure(pred, ref, 3 * spacing)
        for name in ("hd", "hd95", "hd95_pooled", "assd"):
            assert m[name] == pytest.approx(padded[name]) == pytest.approx(turned[name])
            assert scaled[name] == pytest.approx(3 * m[name])


def test_arguments_are_forgiving_in_type_and_strict_in_shape():
    spacing, ref, pred, *_ = ORACLE["K8"]
    as_float = measure(pred.astype(float), ref.astype(np.uint8), list(np.float32(spacing)))
    assert as_float["hd95"] == 3.75
    full = np.ones((3, 4, 5), bool)
    assert measure(full, full, ISO)["hd"] == 0 and border(full).sum() == 60 - 1 * 2 * 3
    with pytest.raises(ValueError, match="shapes must agree"):
        measure(full, full[:2], ISO)


def test_tolerance_is_inclusive():
    spacing, ref, pred, *_ = ORACLE["K1"]
    assert measure(pred, ref, spacing)["nsd"] == 1.0              # the borders are exactly 2 mm apart


def test_dice_of_nothing_is_no_number():
    assert math.isnan(dice(np.zeros(3, bool), np.zeros(3, bool)))


def test_agrees_with_medpy_where_installed():
    binary = pytest.importorskip("medpy.metric.binary")
    for spacing, ref, pred, *_ in ORACLE.values():
        m = measure(pred, ref, spacing)
        assert m["hd95_pooled"] == pytest.approx(binary.hd95(pred, ref, spacing)) or not dice(pred, ref)
        assert m["assd"] == pytest.approx(binary.assd(pred, ref, spacing))


def test_mean_dice_is_over_the_structures_of_the_mask():
    _, mask = heart()
    assert mean_dice(mask, mask) == 1.0 and mean_dice(0 * mask, mask) == 0.0 and np.isnan(mean_dice(mask, 0 * mask))
    assert abs(mean_dice(np.where(mask == 2, 0, mask), mask) - 0.5) < 1e-12
