"""A trained segmenter on a whole working volume: preprocess, predict tile by tile, mirror, go back.

Public: `build_network`, `Segmenter`, `predict`, `tile_starts`, `importance`, `softmax`, `labels_on_original`.
"""
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cmr import checkpoint
from cmr.nnunet import NnUNet
from cmr.plan import Plan
from cmr.preprocess import NEVER, back_to_volume, from_zero, preprocess, zscore
from cmr.studies import STRUCTURES
from cmr.unet import UNet
from cmr.volumes import labels_of, resample_to_original, stored, to_original

SLICES_AT_A_TIME = 32                            # of the vanilla U-Net


def build_network(settings, classes, plan=None):
    """The network of a training run's settings; a plan makes it an nnU-Net."""
    if plan:
        return NnUNet(classes, plan.features, plan.kernels, plan.strides)
    return UNet(classes, settings["features"], settings["levels"]).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Segmenter:
    """A trained network, the structures it was trained on (class i + 1 is structures[i]), its settings and plan."""
    net: torch.nn.Module
    structures: tuple
    settings: dict
    plan: Plan                                   # None for the vanilla U-Net
    subjects: tuple                              # whose volumes it was trained on
    hash: str

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_unet.py; raises CheckpointError for anything else."""
        saved = checkpoint.load(path)
        if not {"structures", "plan"} <= saved.keys():
            raise checkpoint.CheckpointError(f"{path}: not a finished segmenter of this version; give final.pt of train_unet.py")
        plan = Plan.from_dict(saved["plan"]) if saved["plan"] else None
        net = build_network(saved["config"], 1 + len(saved["structures"]), plan)
        net.load_state_dict(saved["net"])
        return cls(net.to(device).eval(), tuple(saved["structures"]), saved["config"], plan, tuple(saved["subjects"]), checkpoint.sha256(path)[:16])

    def logits(self, image, spacing_mm, mirror=True):
        """Logits (4, D, H, W) float32, in the project's label order, of a working volume (D, H, W) in [-1, 1].

        spacing_mm : (slice, row, column).  mirror : an nnU-Net averages over all mirrored copies; without, it is 4 (2D) or 8
        times as fast and a little worse.  A structure the network was not trained on can never win.
        """
        classes = 1 + len(self.structures)
        if self.plan:
            case = preprocess(from_zero(image), spacing_mm, self.plan)
            mirrored = [axes for n in range(self.plan.dims + 1 if mirror else 1) for axes in itertools.combinations(range(-self.plan.dims, 0), n)]
            found = back_to_volume(predict(self.net, classes, case.image, self.plan.patch, mirrored, 2 * self.plan.batch), case, self.plan, np.shape(image))
        else:
            found = predict(self.net, classes, zscore(np.asarray(image)), np.shape(image)[-2:], [()], SLICES_AT_A_TIME)
        result = np.full((1 + len(STRUCTURES), *found.shape[1:]), NEVER, np.float32)
        result[[0] + [STRUCTURES.index(s) + 1 for s in self.structures]] = found
        return result

    def labels(self, image, spacing_mm):
        """Most probable label of each voxel of a working volume, (D, H, W) uint8."""
        return labels_of(self.logits(image, spacing_mm))


@torch.no_grad()
def predict(net, classes, image, patch, mirrored, at_a_time):
    """Logits (classes, Z, Y, X) float32 of a z-scored volume (Z, Y, X), from half-overlapping tiles of `patch`, (y, x) or (z, y, x).

    Tiles are weighted by `importance` and summed in float32; in each, the logits of the image mirrored along every tuple of
    axes in `mirrored` are turned back and averaged; the network sees `at_a_time` patches.  A volume smaller than the patch is
    padded with 0, its mean.
    """
    dims = len(patch)
    x = torch.from_numpy(np.ascontiguousarray(image)).to(next(net.parameters()).device)
    x = x[:, None] if dims == 2 else x[None, None]                                                # (N, 1, *space)
    space = x.shape[2:]
    low = [max(0, p - n) // 2 for n, p in zip(space, patch)]
    high = [max(0, p - n) - l for n, p, l in zip(space, patch, low)]
    x = F.pad(x, [amount for pair in zip(low[::-1], high[::-1]) for amount in pair])
    tiles = [tuple(slice(s, s + p) for s, p in zip(start, patch)) for start in itertools.product(*(tile_starts(n, p) for n, p in zip(x.shape[2:], patch)))]
    weights, total, weight = importance(patch).to(x.device), x.new_zeros(len(x), classes, *x.shape[2:]), x.new_zeros(x.shape[2:])
    for tile in tiles:
        weight[tile] += weights * len(mirrored)
    jobs = [((n, slice(None), *tile), axes) for tile in tiles for n in range(len(x)) for axes in mirrored]
    for chunk in (jobs[i:i + at_a_time] for i in range(0, len(jobs), at_a_time)):
        found = net(torch.stack([x[place].flip(axes) for place, axes in chunk])).float()
        for (place, axes), logits in zip(chunk, found):
            total[place] += weights * logits.flip(axes)
    logits = (total / weight)[(..., *(slice(l, l + n) for l, n in zip(low, space)))]
    return (logits.transpose(0, 1) if dims == 2 else logits[0]).cpu().numpy()


def tile_starts(size, patch):
    """First voxels of tiles that overlap by at least half and cover the axis evenly."""
    n = max(1, math.ceil((size - patch) / (patch / 2)) + 1)
    return [round(i * (size - patch) / (n - 1)) if n > 1 else 0 for i in range(n)]


def importance(patch):
    """Gaussian weight of a tile's voxels, sigma an eighth of its size, 10 at the centre; rounded to float16 and never 0, as in nnU-Net."""
    squares = [((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 8)) ** 2 for n in patch]
    weights = (10 * torch.exp(-0.5 * sum(torch.meshgrid(*squares, indexing="ij")))).half().float()
    return torch.where(weights == 0, weights[weights > 0].min(), weights)


def softmax(logits):
    """Over axis 0, float32."""
    return torch.from_numpy(logits).softmax(0).numpy()


def labels_on_original(logits, geometry):
    """Labels (X, Y, Z) uint8 on the original grid from the logits (4, D, H, W) of one volume's samples.

    Logits, not labels, are resampled; of several samples (a translation drawn more than once) the softmax is averaged there.
    """
    if len(logits) == 1:
        return to_original(logits[0], geometry)
    return stored(labels_of(np.mean([softmax(resample_to_original(sample, geometry)) for sample in logits], 0)), geometry)
