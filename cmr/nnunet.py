"""nnU-Net (Isensee et al. 2021, version 2) in 2D and 3D: the network, its training recipe and its presets."""
import functools
import itertools
import math
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from cmr.errors import UsageError
from cmr.network import Network, Recipe, deep_supervision_loss, predict
from cmr.nnunet_augment import Augmentation
from cmr.nnunet_plan import Plan, make_plan
from cmr.nnunet_preprocess import back_to_volume, draw_batch, from_zero, nonzero_box, preprocess
from cmr.seeds import initialised, rng
from cmr.settings import FULL_GRID
from cmr.workers import half_precision


class NnUNet(nn.Module):
    """PlainConvUNet: maps z-scored patches (N, 1, *space) to logits (N, n_classes, *space).

    features, kernels, strides : of each stage, finest first; kernels and strides are tuples with an entry per axis.
    In train mode it returns a list, the logits of every decoder stage, finest first (deep supervision).
    """

    def __init__(self, n_classes, features, kernels, strides):
        super().__init__()
        dims = len(strides[0])
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for c_in, c_out, kernel, stride in zip([1, *features], features, kernels, strides):
            first, second = _block(dims, c_in, c_out, kernel, stride), _block(dims, c_out, c_out, kernel, 1)
            self.encoder.append(nn.Sequential(first, second))
        for i in reversed(range(len(features) - 1)):              # coarsest first
            self.decoder.append(_UpStage(dims, features[i + 1], features[i], kernels[i], strides[i + 1], n_classes))
        self.apply(_he_normal)

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x, logits = skips.pop(), []
        for stage in self.decoder:
            x = stage(x, skips.pop())
            if self.training or not skips:
                logits.insert(0, stage.head(x))
        return logits if self.training else logits[0]


class _UpStage(nn.Module):
    """One decoder stage: upsample, append the encoder's features, two blocks; `head` turns the result into logits."""

    def __init__(self, dims, c_in, c_out, kernel, stride, n_classes):
        super().__init__()
        self.enlarge = _layer("ConvTranspose", dims)(c_in, c_out, stride, stride)
        self.blocks = nn.Sequential(_block(dims, 2 * c_out, c_out, kernel, 1), _block(dims, c_out, c_out, kernel, 1))
        self.head = _layer("Conv", dims)(c_out, n_classes, 1)

    def forward(self, x, skip):                                   # in nnU-Net's order, so that its weights fit
        return self.blocks(torch.cat([self.enlarge(x), skip], 1))


def _layer(name, dims):
    return getattr(nn, f"{name}{dims}d")


def _block(dims, c_in, c_out, kernel, stride):
    return nn.Sequential(_layer("Conv", dims)(c_in, c_out, kernel, stride, padding=[(k - 1) // 2 for k in kernel]),
                         _layer("InstanceNorm", dims)(c_out, eps=1e-5, affine=True), nn.LeakyReLU(0.01, inplace=True))


def _he_normal(module):
    """Initialise as He et al. 2015; as in nnU-Net, torch's fan_in counts a transposed convolution's outputs."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        nn.init.zeros_(module.bias)


def check(c):
    if c.steps % c.epoch_steps:
        raise UsageError(f"--steps {c.steps}: an nnU-Net trains whole epochs, give a multiple of --epoch-steps "
                         f"{c.epoch_steps}")


def build(settings, n_classes, plan):
    """Build the untrained network of a plan (a dictionary), which already contains what is needed of the settings."""
    plan = Plan(**plan)
    return NnUNet(n_classes, plan.features, plan.kernels, plan.strides)


def recipe(c, data, device, dims):
    """The training `Recipe`: plan, preprocessing, augmented patches, SGD or AdamW, deep supervision, pseudo-Dice."""
    plan = plan_for(dims, data.real, data.n_classes, c.features, c.memory_gb)
    cases, held_out = ([preprocess(from_zero(w.image), w.spacing_mm, plan, w.label) for w in volumes]
                       for volumes in (data.volumes, data.validation))
    augmentation = Augmentation(plan.patch, plan.masked_norm)
    net = initialised(lambda: build(vars(c), data.n_classes, asdict(plan)), c.seed).to(device)
    net.decoder[0].head.requires_grad_(len(net.decoder) == 1)     # with several heads the loss leaves out the coarsest

    def batch(step, samples):
        g = rng(c.seed, "patches", step)
        images, labels = draw_batch(cases, plan.patch, augmentation.loaded, plan.batch, g, samples)
        streams = [rng(c.seed, "augmentation", step, j) for j in samples]
        pairs = [augmentation(*pair) for pair in zip(torch.from_numpy(images), torch.from_numpy(labels), streams)]
        return torch.stack([x for x, _ in pairs])[:, None], torch.stack([y for _, y in pairs]).long()

    def learning_rate(step):
        return c.lr * (1 - step // c.epoch_steps / (c.steps // c.epoch_steps)) ** 0.9

    def loss(outputs, labels):
        return deep_supervision_loss(outputs, labels, plan.batch_dice)

    def validate(net, epoch):
        streams = [rng(c.seed, "validation", epoch, i) for i in range(c.validation_batches)]
        batches = (draw_batch(held_out, plan.patch, plan.patch, plan.batch, g) for g in streams)
        with half_precision(device, c.bfloat16):
            return pseudo_dice(net, batches, data.n_classes, device)

    if c.optimizer == "adamw":                                    # in a short run as good as SGD after half the steps
        optimizer = torch.optim.AdamW(net.parameters(), lr=c.lr, weight_decay=1e-2, fused=True)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=c.lr, momentum=0.99, nesterov=True, weight_decay=3e-5)
    return Recipe(net, optimizer, plan.batch, batch, learning_rate, loss, clip_norm=12, validate=validate,
                  plan=asdict(plan))


def plan_for(dims, workings, n_classes, first_features, memory_gb):
    """Make the Plan for these working volumes, from their spacings and their shapes after the non-zero crop."""
    boxes = [nonzero_box(from_zero(w.image))[0] for w in workings]
    shapes = [tuple(side.stop - side.start for side in box) for box in boxes]
    kept = float(np.median([math.prod(shape) / w.image.size for shape, w in zip(shapes, workings)]))
    spacings_mm = [w.spacing_mm for w in workings]
    return make_plan(dims, spacings_mm, shapes, n_classes, kept, first_features, memory_gb)


@torch.no_grad()
def pseudo_dice(net, batches, n_classes, device):
    """Dice of each foreground class, pooled over all voxels of the (images, labels); NaN for an absent class."""
    hits, sizes = torch.zeros(n_classes), torch.zeros(n_classes)
    net.eval()
    for images, labels in batches:
        found = net(torch.from_numpy(images)[:, None].to(device)).argmax(1).cpu()
        truth = torch.from_numpy(labels).clamp(min=0)
        hits += torch.bincount(truth[found == truth], minlength=n_classes)
        sizes += torch.bincount(truth.flatten(), minlength=n_classes)
        sizes += torch.bincount(found.flatten(), minlength=n_classes)
    net.train()
    return (2 * hits / sizes)[1:].tolist()


def logits(net, image, spacing_mm, plan, mirror):
    """Logits (n_classes, D, H, W) of a working volume (D, H, W); `mirror` averages them over its mirrored copies."""
    plan = Plan(**plan)
    case = preprocess(from_zero(image), spacing_mm, plan)
    axes = range(-plan.dims, 0)
    flips = [f for n in range(plan.dims + 1 if mirror else 1) for f in itertools.combinations(axes, n)]
    found = predict(net, case.image, plan.patch, flips, 2 * plan.batch)
    return back_to_volume(found, case, plan, np.shape(image))


def _presets(short_steps, short_lr):
    """The presets; a short training has few channels and a plan for little memory, hence small patches and batches."""
    full_size = dict(**FULL_GRID, bfloat16=True, workers=6, log_every=250, save_minutes=10)
    short = dict(features=8, steps=short_steps, epoch_steps=120, validation_batches=4, optimizer="adamw", lr=short_lr,
                 log_every=100)
    return {
        "tiny": dict(features=4, memory_gb=0.08, steps=20, epoch_steps=10, validation_batches=2, log_every=10,
                     save_minutes=0.1),
        "demo": dict(**short, memory_gb=0.08),
        "small": dict(**short, **FULL_GRID, memory_gb=0.25),
        "lab": dict(**full_size, steps=25_000),                   # 100 epochs; nnU-Net trains 1000
        "paper": full_size}


NNUNET_2D = Network(build, functools.partial(recipe, dims=2), logits, _presets(4200, 2e-3), check, augments=True)
NNUNET_3D = Network(build, functools.partial(recipe, dims=3), logits, _presets(4680, 1e-3), check, augments=True)
