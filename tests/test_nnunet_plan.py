"""nnU-Net's planning rules against its own plans."""
from dataclasses import replace

import pytest
import torch

from cmr.errors import UsageError
from cmr.nnunet import NnUNet
from cmr.nnunet_plan import Plan, fit_to_memory, make_plan, resampled_shape, target_spacing, topology, widths

# id: spacing; patch in; pools; strides; kernels; patch out; features
TOPOLOGY = """
T1 1.5625x1.5625 256x216 5,5 11.22.22.22.22.22 33.33.33.33.33.33 256x224 32,64,128,256,512,512
T2 1.25x1.25 256x216 5,5 11.22.22.22.22.22 33.33.33.33.33.33 256x224 32,64,128,256,512,512
T3 1.5625x1.5625 237x208 5,5 11.22.22.22.22.22 33.33.33.33.33.33 256x224 32,64,128,256,512,512
T4 1.25x1.25 320x320 6,6 11.22.22.22.22.22.22 33.33.33.33.33.33.33 320x320 32,64,128,256,512,512,512
T5 1.25x1.25 512x512 7,7 11.22.22.22.22.22.22.22 33.33.33.33.33.33.33.33 512x512 32,64,128,256,512,512,512,512
T6 1x1.9 96x64 4,4 11.22.22.22.22 33.33.33.33.33 96x64 32,64,128,256,512
T7 1x2 96x64 4,3 11.21.22.22.22 31.33.33.33.33 96x64 32,64,128,256,512
T8 1x1 15x24 2,2 11.22.22 33.33.33 16x24 32,64,128
T9 1x1 7x11 0,0 11 33 7x11 32
T10 1x1 7x12 0,1 11.12 33.33 7x12 32,64
T11 1x1 8x8 1,1 11.22 33.33 8x8 32,64
T12 10x1.5625x1.5625 10x256x216 1,5,5 111.122.122.222.122.122 133.133.333.333.333.333 10x256x224 32,64,128,256,320,320
T13 9.6x1.25x1.25 10x256x216 1,5,5 111.122.122.222.122.122 133.133.333.333.333.333 10x256x224 32,64,128,256,320,320
T14 5x1.5625x1.5625 18x237x208 2,5,5 111.122.222.222.122.122 133.333.333.333.333.333 20x256x224 32,64,128,256,320,320
T15 8x1.25x1.25 12x288x288 1,6,6 111.122.122.222.122.122.122 133.133.333.333.333.333.333 12x320x320 32,64,128,256,320,320,320
T16 10x1.25x1.25 11x256x256 1,6,6 111.122.122.122.222.122.122 133.133.133.333.333.333.333 12x256x256 32,64,128,256,320,320,320
T17 5x1.25x1.25 24x256x256 2,6,6 111.122.122.222.222.122.122 133.133.333.333.333.333.333 24x256x256 32,64,128,256,320,320,320
T18 1x1x1 128x128x128 5,5,5 111.222.222.222.222.222 333.333.333.333.333.333 128x128x128 32,64,128,256,320,320
T19 1x1x1 160x96x64 4,4,4 111.222.222.222.222 333.333.333.333.333 160x96x64 32,64,128,256,320
T20 3x1x1 40x192x160 3,5,5 111.122.222.222.222.122 133.333.333.333.333.333 40x192x160 32,64,128,256,320,320
T21 2.5x0.8x0.8 28x256x256 2,6,6 111.122.222.222.122.122.122 133.333.333.333.333.333.333 28x256x256 32,64,128,256,320,320,320
T22 10x1.5625x1.5625 7x64x64 0,4,4 111.122.122.122.122 133.133.333.333.333 7x64x64 32,64,128,256,320
T23 10x1.5625x1.5625 32x64x64 2,4,4 111.122.122.222.222 133.133.333.333.333 32x64x64 32,64,128,256,320
"""
# fingerprint: groups of (count, shape, spacing)
FINGERPRINTS = {
    "A": [(200, (10, 256, 216), (10, 1.5625, 1.5625))],
    "B": [(200, (10, 256, 216), (9.6, 1.25, 1.25))],
    "C": [(60, (10, 256, 216), (10, 1.5625, 1.5625)), (60, (9, 256, 256), (10, 1.25, 1.25)), (60, (12, 288, 288), (9.6, 1.25, 1.25)),
           (20, (18, 256, 256), (5, 1.4, 1.4))],
    "D": [(176, (10, 256, 216), (10, 1.5625, 1.5625)), (24, (18, 256, 216), (5, 1.5625, 1.5625))],
    "E": [(60, (11, 208, 256), (9.2, 1.25, 1.25)), (120, (10, 240, 210), (9.6, 1.25, 1.25)), (120, (12, 256, 256), (10, 1.328125, 1.328125))],
    "F": [(6, (10, 256, 216), (10, 1.5625, 1.5625))],
    "G": [(200, (10, 512, 512), (10, 0.7, 0.7))],
    "H": [(200, (40, 320, 320), (2, 0.8, 0.8))],
    "I": [(100, (200, 240, 220), (1, 1, 1))],
    "J": [(200, (10, 256, 216), (4.6, 1.5625, 1.5625))]}
# fingerprint, dims: spacing; patch; batch; strides; kernels; features; parameters; memory estimate (0: not recorded)
PLANS = """
A 2 1.5625x1.5625 256x224 56 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 18063360
A 3 10x1.5625x1.5625 10x256x224 7 111.122.122.222.122.122 133.133.333.333.333.333 32,64,128,256,320,320 30012884 170562560
B 2 1.25x1.25 256x224 56 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 0
B 3 9.6x1.25x1.25 10x256x224 7 111.122.122.222.122.122 133.133.333.333.333.333 32,64,128,256,320,320 30012884 0
C 2 1.25x1.25 320x320 31 11.22.22.22.22.22.22 33.33.33.33.33.33.33 32,64,128,256,512,512,512 33474840 32435200
C 3 9.14x1.25x1.25 12x320x320 3 111.122.122.222.122.122.122 133.133.333.333.333.333.333 32,64,128,256,320,320,320 44251928 366163200
D 2 1.5625x1.5625 256x224 56 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 0
D 3 5x1.5625x1.5625 20x256x224 4 111.122.222.222.122.122 133.333.333.333.333.333 32,64,128,256,320,320 30377428 310481920
E 2 1.25x1.25 256x256 49 11.22.22.22.22.22.22 33.33.33.33.33.33.33 32,64,128,256,512,512,512 33474840 20758528
E 3 9.2x1.25x1.25 12x256x256 5 111.122.122.222.122.122.122 133.133.333.333.333.333.333 32,64,128,256,320,320,320 44251928 234344448
F 2 1.5625x1.5625 256x224 3 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 0
F 3 10x1.5625x1.5625 10x256x224 2 111.122.122.222.122.122 133.133.333.333.333.333 32,64,128,256,320,320 30012884 0
G 2 0.7x0.7 512x512 12 11.22.22.22.22.22.22.22 33.33.33.33.33.33.33.33 32,64,128,256,512,512,512,512 46328604 83148800
G 3 10x0.7x0.7 8x448x448 2 111.122.122.122.222.122.122 133.133.133.333.333.333.333 32,64,128,256,320,320,320 43121432 494509568
H 2 0.8x0.8 320x320 31 11.22.22.22.22.22.22 33.33.33.33.33.33.33 32,64,128,256,512,512,512 33474840 0
H 3 2x0.8x0.8 32x256x224 2 111.122.222.222.222.122 133.333.333.333.333.333 32,64,128,256,320,320 30705108 495194112
I 2 1x1 256x224 56 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 0
I 3 1x1x1 128x128x128 2 111.222.222.222.222.222 333.333.333.333.333.333 32,64,128,256,320,320 31197204 454893568
J 2 1.5625x1.5625 256x224 56 11.22.22.22.22.22 33.33.33.33.33.33 32,64,128,256,512,512 20621076 0
J 3 4.6x1.5625x1.5625 10x256x224 7 111.122.222.122.122.122 133.333.333.333.333.333 32,64,128,256,320,320 30246356 159093760
"""


def floats(text):
    return tuple(map(float, text.split("x")))


def ints(text):
    return tuple(map(int, text.replace("x", ",").split(",")))


def stages(text):
    return tuple(tuple(map(int, stage)) for stage in text.split("."))


def fingerprint(name):
    groups = FINGERPRINTS[name]
    return [s for n, _, s in groups for _ in range(n)], [x for n, x, _ in groups for _ in range(n)]


@pytest.mark.parametrize("row", TOPOLOGY.split("\n")[1:-1])
def test_topology(row):
    _, spacing, patch, pools, strides, kernels, final, features = row.split()
    got_kernels, got_strides, got_patch = topology(floats(spacing), ints(patch))
    assert (got_kernels, got_strides, got_patch) == (stages(kernels), stages(strides), ints(final))
    assert tuple(sum(s[a] == 2 for s in got_strides) for a in range(len(got_patch))) == ints(pools)
    assert widths(len(got_patch), len(got_strides)) == ints(features)


@pytest.mark.parametrize("row", PLANS.split("\n")[1:-1])
def test_full_plan(row):
    name, dims, spacing, patch, batch, strides, kernels, features, parameters, estimate = row.split()
    plan = make_plan(int(dims), *fingerprint(name), n_classes=4)
    layers = ints(features), stages(kernels), stages(strides)
    expected = Plan((0, 1, 2), pytest.approx(floats(spacing)), ints(patch), int(batch), *layers, dims == "2", False)
    assert plan == expected
    with torch.device("meta"):                                   # shapes without memory
        net = NnUNet(4, plan.features, plan.kernels, plan.strides)
    assert sum(p.numel() for p in net.parameters()) == int(parameters)
    if int(estimate):
        *_, last = fit_to_memory(plan.spacing_mm, plan.patch, plan.patch, 4)
        assert last[3] == int(estimate)


def test_target_spacing():
    thick, sizes = (10, 1.5, 1.5), [(10, 256, 216)] * 10
    assert target_spacing([thick] * 8 + [(1, 1.5, 1.5)] * 2, sizes) == pytest.approx((1.50001, 1.5, 1.5), abs=1e-9)
    assert target_spacing([thick] * 8 + [(5, 1.4, 1.4)] * 2, sizes) == pytest.approx((5, 1.5, 1.5))
    assert target_spacing([(4.5, 1.5, 1.5)] * 10, sizes) == (4.5, 1.5, 1.5)  # ratio exactly 3 is not anisotropic
    # thick but not short
    assert target_spacing([thick] * 8 + [(5, 1.4, 1.4)] * 2, [(100, 256, 216)] * 10) == (10, 1.5, 1.5)


def test_axis_order_and_rounding():
    assert resampled_shape((5, 5, 5), (1, 1, 1), (2, 2, 2)) == (2, 2, 2)
    assert resampled_shape((7, 7, 7), (1, 1, 1), (2, 2, 2)) == (4, 4, 4)
    plan = make_plan(3, [(1.5625, 1.5625, 10)] * 200, [(256, 216, 10)] * 200, n_classes=4)
    assert plan == replace(make_plan(3, *fingerprint("A"), n_classes=4), order=(2, 0, 1))


@pytest.mark.parametrize("spacing,patch,median,trace", [
    ((10, 0.7, 0.7), (10, 512, 512), (10, 512, 512), ["10.512.512", 807720960, "10.512.448", 706442240, "10.448.448", 618136960, "8.448.448", 494509568]),
    ((2, 0.8, 0.8), (40, 320, 320), (40, 320, 320),
     ["40.320.320", 1105904000, "40.320.256", 884723200, "40.256.256", 707778560, "32.256.256", 566222848, "32.256.224", 495194112]),
    ((1, 1, 1), (200, 240, 220), (200, 240, 220),
     ["224.256.224", 2786223104, "192.256.224", 0, "192.224.224", 0, "192.224.192", 0, "160.224.192", 0, "160.192.192", 0, "160.192.160", 0, "160.160.160", 0,
      "128.160.160", 0, "128.160.128", 568616960, "128.128.128", 454893568])])
def test_shrink_trace(spacing, patch, median, trace):
    steps = list(fit_to_memory(spacing, patch, median, 4))
    assert [".".join(map(str, s[0])) for s in steps] == trace[::2]
    assert all(s[3] == expected for s, expected in zip(steps, trace[1::2]) if expected)


def test_less_memory_shrinks_the_patch_and_the_batch_by_the_same_rules():
    heart = [(9, 2.5, 2.5)] * 60, [(12, 64, 64)] * 60
    for memory_gb, expected in ((8, [((64, 64), 36), ((12, 64, 64), 3)]), (0.08, [((64, 64), 8), ((8, 48, 48), 2)])):
        plans = [make_plan(dims, *heart, n_classes=4, memory_gb=memory_gb) for dims in (2, 3)]
        assert [(p.patch, p.batch) for p in plans] == expected


def test_too_small_for_a_decoder_is_refused():
    with pytest.raises(UsageError, match="cannot be halved once"):
        make_plan(2, [(10, 1, 1)] * 3, [(5, 7, 11)] * 3, n_classes=4)
    with pytest.raises(UsageError, match="use nnunet2d"):
        make_plan(3, [(10, 1, 1)] * 3, [(1, 64, 64)] * 3, n_classes=4)


def test_the_first_stage_may_be_narrower():
    plan = make_plan(3, *fingerprint("E"), n_classes=4, first_features=8)
    assert plan.features == (8, 16, 32, 64, 128, 256, 320) and plan.batch == 5  # narrower, nothing else


def test_a_single_slice_of_a_thin_stack_stays_a_slice():
    assert resampled_shape((1, 64, 64), (1.0, 2.5, 2.5), (9.0, 2.5, 2.5)) == (1, 64, 64)
    assert resampled_shape((3, 64, 64), (1.0, 2.5, 2.5), (9.0, 2.5, 2.5)) == (1, 64, 64)
