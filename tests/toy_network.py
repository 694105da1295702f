"""A segmenter as a stranger would add one: a single file that makes a `Network`; see test_segmenter.py."""
import numpy as np
import torch
from torch import nn

from cmr.network import Network, Recipe, dice_ce_loss, predict
from cmr.nnunet_preprocess import zscore
from cmr.seeds import generator, initialised


def build(settings, n_classes, plan):
    c = settings["features"]
    first = nn.Conv2d(1, c, plan["kernel"], padding=plan["kernel"] // 2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(c, n_classes, 1))


def recipe(c, data, device):
    plan = {"kernel": 5}
    images = torch.from_numpy(np.concatenate([zscore(w.image) for w in data.volumes]))[:, None]
    labels = torch.from_numpy(np.concatenate([w.label for w in data.volumes])).long()
    net = initialised(lambda: build(vars(c), data.n_classes, plan), c.seed).to(device)

    def batch(step, samples):
        chosen = torch.randint(len(images), (c.batch,), generator=generator(c.seed, "step", step))
        chosen = chosen[samples.start:samples.stop]
        return images[chosen], labels[chosen]

    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr)
    return Recipe(net, optimizer, c.batch, batch, lambda step: c.lr, dice_ce_loss, plan=plan)


def logits(net, image, spacing_mm, plan, mirror):
    return predict(net, zscore(np.asarray(image)), np.shape(image)[-2:], [()], 32)


TOY = Network(build, recipe, logits, presets={"tiny": dict(features=4, steps=6, batch=4, lr=1e-2)})
