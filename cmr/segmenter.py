"""The table of segmenters, and a trained segmenter that is loaded from its checkpoint and applied to volumes."""
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.errors import CheckpointError, UsageError
from cmr.files import sha256
from cmr.grid import resample_to_original, stored, to_original
from cmr.network import softmax
from cmr.nnunet import NNUNET_2D, NNUNET_3D
from cmr.nnunet_preprocess import NEVER
from cmr.records import STRUCTURES, VALUES, labels_of
from cmr.vanilla import VANILLA
from cmr.workers import half_precision

NETWORKS = {"vanilla": VANILLA, "nnunet2d": NNUNET_2D, "nnunet3d": NNUNET_3D}


def presets():
    """{preset: {network: {setting of train_unet.py: value}}}, as the networks declare them."""
    found = {}
    for name, network in NETWORKS.items():
        for preset, values in network.presets.items():
            found.setdefault(preset, {})[name] = values
    return found


def split_name(text):
    """(network, training set) of a name such as `nnunet2d-Vendor-B`; raises UsageError if it starts with no network."""
    fitting = [name for name in NETWORKS if text.startswith(name + "-")]
    if not fitting:
        raise UsageError(f"segmenter {text!r}: expected NETWORK-TRAININGSET with one of {', '.join(NETWORKS)}")
    network = max(fitting, key=len)
    return network, text[len(network) + 1:]


@dataclass(frozen=True)
class Segmenter:
    """A trained network with what its checkpoint says about it."""
    net: torch.nn.Module
    structures: tuple                            # that it segments; structures[i] is class i + 1
    settings: dict                               # settings of train_unet.py
    plan: dict                                   # plan of an nnU-Net; None for other networks
    subjects: tuple                              # subjects whose volumes it was trained on
    hash: str
    data_hash: str = ""                          # hash of the volumes it was trained on
    made_by: tuple = ()                          # hashes of the SD-DMs that made the synthetic ones
    slices_mm: tuple = (0.0, np.inf)             # least and largest spacing of these volumes' slices

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_unet.py; raises CheckpointError for any other file."""
        saved = checkpoint.load(path)
        if not {"structures", "plan", "made_by", "slices_mm"} <= saved.keys():
            raise CheckpointError(f"{path}: not a finished segmenter of this version; give final.pt of train_unet.py")
        settings, structures = saved["config"], tuple(saved["structures"])
        if settings["network"] not in NETWORKS:
            raise CheckpointError(f"{path}: a network {settings['network']!r}; there are {', '.join(NETWORKS)}")
        net = NETWORKS[settings["network"]].build(settings, 1 + len(structures), saved["plan"])
        checkpoint.fill(net, saved["net"], path)
        return cls(net=net.to(device).eval(), structures=structures, settings=settings, plan=saved["plan"],
                   subjects=tuple(saved["subjects"]), hash=sha256(path)[:16], data_hash=saved["data_hash"],
                   made_by=tuple(saved["made_by"]), slices_mm=tuple(saved["slices_mm"]))

    def logits(self, image, spacing_mm, mirror=True):
        """Logits (4, D, H, W) float32 of a working volume (D, H, W) in [-1, 1], in the order of the project's labels.

        spacing_mm : (slice, row, column).  mirror : an nnU-Net averages over its 4 (2D) or 8 mirrored copies.
        A structure that the network was not trained on gets a logit that never wins.
        """
        network = NETWORKS[self.settings["network"]]
        with half_precision(next(self.net.parameters()).device, self.settings.get("bfloat16")):
            found = network.logits(self.net, image, spacing_mm, self.plan, mirror)
        result = np.full((1 + len(STRUCTURES), *found.shape[1:]), NEVER, np.float32)
        result[[0] + [VALUES[name] for name in self.structures]] = found
        return result

    def labels(self, image, spacing_mm):
        """The most probable label of each voxel of a working volume, (D, H, W) uint8."""
        return labels_of(self.logits(image, spacing_mm))


def labels_on_original(logits, geometry):
    """Labels (X, Y, Z) uint8 on the original grid, from a list of logits (4, D, H, W) on the working grid.

    Logits, not labels, are resampled.  The softmax of several (one per input image) is averaged on the original grid.
    """
    if len(logits) == 1:
        return to_original(logits[0], geometry)
    probabilities = [softmax(resample_to_original(sample, geometry)) for sample in logits]
    return stored(labels_of(np.mean(probabilities, 0)), geometry)
