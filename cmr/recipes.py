"""How each segmenter is trained: what a step sees, how fast it learns, what it minimises.

A recipe is all that differs between the networks; the loop in `train_unet.py` is the same for the three.  Every batch is
a function of (seed, step).  Public: `vanilla`, `nnunet`, `RECIPES`.
"""
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch

from cmr.augment import Augmentation
from cmr.config import UsageError
from cmr.losses import deep_supervision_loss, dice_ce_loss
from cmr.patches import Volume, draw_batch
from cmr.plan import Plan, make_plan
from cmr.preprocess import from_zero, nonzero_box, preprocess, zscore
from cmr.segment import build_network
from cmr.training import generator, initialised, rng


@dataclass(frozen=True)
class Recipe:
    """What the training loop needs to know of a network."""
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch: Callable                              # step -> (images (N, 1, *space) float32, labels (N, *space) int64), on the CPU or the device
    learning_rate: Callable                      # step -> learning rate
    loss: Callable                               # (network output, labels) -> scalar
    clip_norm: float = None                      # largest gradient norm
    validate: Callable = None                    # (network, epoch) -> pseudo-Dice per structure, at the end of an epoch
    plan: Plan = None                            # of an nnU-Net


def vanilla(c, training, validation, classes, device):
    """The plain baseline: random slices, flips, Adam with a cosine, Dice + CE over the batch; nnU-Net's intensity changes only with c.augment.

    c : settings of train_unet.py.  training, validation : lists of Working.  classes : (4,) our label value -> network class.
    """
    images = torch.from_numpy(np.concatenate([zscore(w.image) for w in training]))[:, None]  # (N, 1, H, W)
    labels = torch.from_numpy(np.concatenate([classes[w.label] for w in training]))          # (N, H, W)
    net = initialised(lambda: build_network(vars(c), 1 + int(classes.max())), c.seed).to(device, memory_format=torch.channels_last)
    augmentation = Augmentation(images.shape[2:])

    def batch(step):
        g = generator(c.seed, "step", step)
        chosen = torch.randint(len(images), (c.batch,), generator=g)
        flips = [axis for axis, u in zip((-2, -1), torch.rand(2, generator=g)) if u < 0.5]
        x = images[chosen].flip(flips)
        if c.augment:
            x = torch.stack([augmentation.intensities(image[0], rng(c.seed, "augmentation", step, j)) for j, image in enumerate(x)])[:, None]
        return x, labels[chosen].flip(flips)

    return Recipe(net, torch.optim.Adam(net.parameters(), lr=c.lr, fused=True), batch,
                  lambda step: c.lr * 0.5 * (1 + math.cos(math.pi * step / c.steps)), dice_ce_loss)


def nnunet(c, training, validation, classes, device):
    """nnU-Net (Isensee et al. 2021, v2): plan, preprocess, augmented patches, SGD, deep supervision, pseudo-Dice per epoch."""
    if c.steps % c.epoch_steps:
        raise UsageError(f"--steps {c.steps}: an nnU-Net trains whole epochs, give a multiple of --epoch-steps {c.epoch_steps}")
    dims, n_classes, epochs = int(c.network[-2]), 1 + int(classes.max()), c.steps // c.epoch_steps
    plan = Plan.read(c.plan) if c.plan else plan_for(dims, training, n_classes, c)
    if plan.dims != dims:
        raise UsageError(f"--plan {c.plan}: a {plan.dims}D plan, but --network {c.network}")
    ready = lambda workings: [Volume.of(preprocess(from_zero(w.image), w.spacing_mm, plan, classes[w.label])) for w in workings]
    volumes, held_out, augmentation = ready(training), ready(validation), Augmentation(plan.patch, plan.masked_norm)
    net = initialised(lambda: build_network(vars(c), n_classes, plan), c.seed).to(device)

    def batch(step):
        images, labels = (torch.from_numpy(a).to(device) for a in draw_batch(volumes, plan.patch, augmentation.loaded, plan.batch, rng(c.seed, "patches", step)))
        samples = [augmentation(image, label, rng(c.seed, "augmentation", step, j)) for j, (image, label) in enumerate(zip(images, labels))]
        return torch.stack([x for x, _ in samples])[:, None], torch.stack([y for _, y in samples]).long()

    @torch.no_grad()
    def validate(net, epoch):
        """Dice per foreground class, pooled over the voxels of all validation batches; NaN where a class occurs nowhere."""
        hits, sizes = torch.zeros(n_classes), torch.zeros(n_classes)
        net.eval()
        for i in range(c.validation_batches):
            images, labels = draw_batch(held_out, plan.patch, plan.patch, plan.batch, rng(c.seed, "validation", epoch, i))
            found = net(torch.from_numpy(images)[:, None].to(device)).argmax(1).cpu()
            truth = torch.from_numpy(labels).clamp(min=0)
            for k in range(1, n_classes):
                hits[k] += ((found == k) & (truth == k)).sum()
                sizes[k] += (found == k).sum() + (truth == k).sum()
        net.train()
        return (2 * hits / sizes)[1:].tolist()

    optimizer = torch.optim.SGD(net.parameters(), lr=c.lr, momentum=0.99, nesterov=True, weight_decay=3e-5)
    return Recipe(net, optimizer, batch, lambda step: c.lr * (1 - step // c.epoch_steps / epochs) ** 0.9,
                  lambda outputs, labels: deep_supervision_loss(outputs, labels, plan.batch_dice), clip_norm=12, validate=validate, plan=plan)


def plan_for(dims, workings, classes, c):
    """The plan that follows from working volumes: their spacings and their shapes after the non-zero crop."""
    boxes = [nonzero_box(from_zero(w.image))[0] for w in workings]
    shapes = [tuple(b.stop - b.start for b in box) for box in boxes]
    kept = [math.prod(shape) / w.image.size for shape, w in zip(shapes, workings)]
    return make_plan(dims, [w.spacing_mm for w in workings], shapes, len(workings), classes, float(np.median(kept)), c.features, c.memory_gb)


RECIPES = {"vanilla": vanilla, "nnunet2d": nnunet, "nnunet3d": nnunet}
