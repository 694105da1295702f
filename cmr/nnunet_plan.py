"""nnU-Net's experiment planning (Isensee et al. 2021, version 2): from the volumes' spacings and shapes to a `Plan`.

    spacings and shapes -> target spacing -> median shape -> patch -> pooling and kernels -> fit to the memory -> batch

Spacings are in mm, sizes in voxels, in the order (z, y, x), or (y, x) for a 2D network; `round` is half-to-even.
`cmr.nnunet_preprocess` applies the plan.
"""
import math
from dataclasses import dataclass

import numpy as np

from cmr.errors import UsageError

ANISOTROPY = 3                                    # an axis that is coarser by more than this factor is treated apart
MINIMUM_EDGE = 4                                  # least edge of a feature map, in voxels
# {dims: value}: a reference plan's memory estimate, and its batch size on REFERENCE_GB; largest edge; most channels.
REFERENCE_ESTIMATE, REFERENCE_BATCH, REFERENCE_GB = {2: 85e6, 3: 560e6}, {2: 12, 3: 2}, 8
LARGEST_PATCH, MOST_FEATURES = {2: 2048, 3: 256}, {2: 512, 3: 320}


@dataclass(frozen=True)
class Plan:
    """Everything that follows from the training data: enough to preprocess, train and predict."""
    order: tuple                                 # the volume's axes that become the plan's 0, 1, 2; the coarsest first
    spacing_mm: tuple                            # of the training grid; in 2D only in-plane, slices stay as they are
    patch: tuple                                 # size of the network's input, in voxels
    batch: int
    features: tuple                              # channels per stage, finest first
    kernels: tuple                               # per stage, one entry per axis
    strides: tuple                               # per stage; the first is 1
    batch_dice: bool                             # whether Dice is over the batch (2D) or per patch (3D)
    masked_norm: bool                            # whether to z-score only inside the non-zero mask

    @property
    def dims(self):
        return len(self.patch)


def make_plan(dims, spacings_mm, shapes, n_classes, relative_size=1.0, first_features=32, memory_gb=REFERENCE_GB):
    """Make the plan of a 2D or 3D network.

    spacings_mm, shapes : (volumes, 3), of all training volumes after the non-zero crop.
    n_classes : with the background.
    relative_size : median share of a volume's voxels that the crop keeps.
    first_features : channels of the first stage, 32 in nnU-Net; patch and batch do not depend on it.
    memory_gb : memory that patch and batch are fitted to, 8 in nnU-Net.
    Raises UsageError if the volumes are too small for a network with a decoder.
    """
    target = target_spacing(spacings_mm, shapes)
    thick = int(np.argmax(target))
    order = (thick, *(a for a in range(3) if a != thick))
    target = tuple(target[a] for a in order)
    in_order = np.asarray(shapes)[:, order], np.asarray(spacings_mm)[:, order]
    resampled = [resampled_shape(shape, spacing, target) for shape, spacing in zip(*in_order)]
    median = np.median(resampled, 0).tolist()                     # may end in .5
    n_voxels = math.prod(median) * len(shapes)                    # on the 3D grid, even for a 2D plan
    if dims == 3 and median[0] == 1:
        raise UsageError("the training volumes have one slice each; use nnunet2d")
    target, median = target[-dims:], tuple(median[-dims:])
    # Start with a box that is isotropic in mm and no larger than the median volume.
    edge_mm = LARGEST_PATCH[dims] * math.prod(target) ** (1 / dims)
    start = tuple(min(round(edge_mm / s), m) for s, m in zip(target, median))
    *_, (patch, kernels, strides, estimate) = fit_to_memory(target, start, median, n_classes, memory_gb)
    if len(strides) < 2:
        raise UsageError(f"{start} voxels cannot be halved once; an nnU-Net needs at least 8 on two axes or 12 on one")
    by_memory = round(REFERENCE_ESTIMATE[dims] * memory_gb / REFERENCE_GB / estimate * REFERENCE_BATCH[dims])
    by_data = round(0.05 * n_voxels / math.prod(patch))           # a batch shows at most 5 % of the data
    return Plan(order, target, patch, batch=max(min(by_memory, by_data), 2),
                features=widths(dims, len(strides), first_features), kernels=kernels, strides=strides,
                batch_dice=dims == 2, masked_norm=relative_size < 0.75)


def target_spacing(spacings_mm, shapes):
    """Median spacing (z, y, x) in mm, but the 10th percentile on an axis that is thick and short in the median volume.

    That keeps the detail of the volumes with thin slices, though the others must be interpolated.
    """
    target, size = np.median(spacings_mm, 0), np.median(shapes, 0)
    thick = int(target.argmax())
    others = [a for a in range(3) if a != thick]
    if target[thick] > ANISOTROPY * max(target[others]) and ANISOTROPY * size[thick] < min(size[others]):
        fine = float(np.percentile(np.asarray(spacings_mm)[:, thick], 10))
        target[thick] = max(target[others]) + 1e-5 if fine < max(target[others]) else fine
    return tuple(target.tolist())


def resampled_shape(shape, spacing_mm, target_mm):
    """Size of a volume on the spacing `target_mm`, 1 at least; the order of operations decides how it is rounded."""
    return tuple(max(1, round(s / t * n)) for n, s, t in zip(shape, spacing_mm, target_mm))


def topology(spacing_mm, patch):
    """(kernels, strides, patch) of a U-Net: an axis is halved while it is fine and long enough.

    "Fine" is a spacing within a factor 2 of the finest axis that can be halved.  A kernel is 1 along an axis until the
    others are as coarse *at* that stage, then it is 3.  The patch grows to a multiple of its strides.
    """
    dims = len(patch)
    spacing, size, pools, kernel = list(spacing_mm), list(patch), [0] * dims, [1] * dims
    kernels, strides = [], [(1,) * dims]
    while True:
        long = [a for a in range(dims) if size[a] >= 2 * MINIMUM_EDGE]
        halved = [a for a in long if spacing[a] / min(spacing[b] for b in long) < 2]
        if not halved or len(halved) == 1 and size[halved[0]] < 3 * MINIMUM_EDGE:
            break
        kernel = [3 if spacing[a] / min(spacing) < 2 else kernel[a] for a in range(dims)]     # once 3, it stays 3
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in halved else 1 for a in range(dims)))
        for a in halved:
            spacing[a], size[a], pools[a] = 2 * spacing[a], math.ceil(size[a] / 2), pools[a] + 1
    kernels.append((3,) * dims)                                   # the bottleneck
    return tuple(kernels), tuple(strides), tuple(math.ceil(n / 2 ** p) * 2 ** p for n, p in zip(patch, pools))


def widths(dims, n_stages, first_features=32):
    """Channels of each stage: doubled from stage to stage, up to MOST_FEATURES."""
    return tuple(min(MOST_FEATURES[dims], first_features * 2 ** i) for i in range(n_stages))


def _memory_estimate(patch, strides, n_classes):
    """Feature-map values of one patch at nnU-Net's widths: 2 maps per encoder stage, 3 per decoder stage, the head."""
    voxels, size = [], patch
    for stride in strides:
        size = tuple(n // s for n, s in zip(size, stride))
        voxels.append(math.prod(size))
    maps = [f * v for f, v in zip(widths(len(patch), len(strides)), voxels)]
    return 2 * sum(maps) + 3 * sum(maps[:-1]) + n_classes * voxels[0]


def fit_to_memory(spacing_mm, patch, median_shape, n_classes, memory_gb=REFERENCE_GB):
    """Yield (patch, kernels, strides, estimate), each smaller than the last, until a batch of two fits the memory."""
    dims = len(patch)
    while True:
        kernels, strides, patch = topology(spacing_mm, patch)
        estimate = _memory_estimate(patch, strides, n_classes)
        yield patch, kernels, strides, estimate
        if estimate * 2 / REFERENCE_BATCH[dims] <= REFERENCE_ESTIMATE[dims] * memory_gb / REFERENCE_GB:
            return
        longest = max(range(dims), key=lambda a: (patch[a] / median_shape[a], a))            # in a tie the last axis
        minus = lambda by: tuple(n - by if a == longest else n for a, n in enumerate(patch))
        multiple = lambda strides: math.prod(s[longest] for s in strides)
        _, thinner, _ = topology(spacing_mm, minus(multiple(strides)))    # the step is the smaller patch's stride
        patch = minus(multiple(thinner))
