"""The vanilla U-Net and its recipe."""
from types import SimpleNamespace

import numpy as np
import torch

import train_unet
from cmr.network import TrainingData
from cmr.nnunet_preprocess import zscore
from cmr.seeds import rng
from cmr.vanilla import UNet, recipe


def test_unet_shapes_and_gradients():
    net = UNet(4, 8, 3)
    x = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (2, 4, 16, 24)
    net(x).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert zscore(np.full((2, 3, 3), 4.0)).tolist() == np.zeros((2, 3, 3)).tolist()


def test_the_vanilla_augmentation_changes_intensities_alone():
    volume = SimpleNamespace(image=rng("image").standard_normal((6, 32, 32)).astype(np.float32),
                             label=rng("label").integers(0, 4, (6, 32, 32)).astype(np.uint8))
    batches = []
    for augment in (False, True):
        c = train_unet.Config(network="vanilla", features=8, levels=2, batch=16, steps=10, augment=augment)
        made = recipe(c, TrainingData([volume], [], [volume], 4), torch.device("cpu"))
        batches.append(made.batch(3, range(16)))
    (plain, labels), (augmented, same_labels) = batches
    assert torch.equal(labels, same_labels) and plain.shape == augmented.shape
    changed = [not torch.equal(a, b) for a, b in zip(plain, augmented)]
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(plain.numpy(), augmented.numpy())]
    assert 0 < sum(changed) < 16 and min(correlations) > 0.3          # of white noise, which blurs worst
