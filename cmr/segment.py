"""A trained segmenter on a whole volume, back on the original grid.

Public: `build_network`, `zscore`, `Segmenter`.
"""
from dataclasses import dataclass

import numpy as np
import torch

from cmr import checkpoint
from cmr.studies import STRUCTURES
from cmr.unet import UNet

BATCH = 32                                       # slices a network call sees at most


def build_network(settings, classes):
    """The network of a training run's settings."""
    return {"vanilla": lambda: UNet(classes, settings["base"], settings["levels"])}[settings["network"]]()


def zscore(image):
    """Zero mean and unit standard deviation over the whole volume, float32."""
    return ((image - image.mean()) / max(float(image.std()), 1e-6)).astype(np.float32)


@dataclass(frozen=True)
class Segmenter:
    """A trained network, the structures it was trained on (class i + 1 is structures[i]) and its settings."""
    net: torch.nn.Module
    structures: tuple
    settings: dict
    subjects: tuple                              # whose volumes it was trained on
    hash: str

    @classmethod
    def load(cls, path, device):
        """Read `final.pt` of train_unet.py; raises CheckpointError for anything else."""
        saved = checkpoint.load(path)
        if "structures" not in saved:
            raise checkpoint.CheckpointError(f"{path}: not a finished segmenter; give final.pt of train_unet.py")
        net = build_network(saved["config"], 1 + len(saved["structures"]))
        net.load_state_dict(saved["net"])
        return cls(net.to(device, memory_format=torch.channels_last).eval(), tuple(saved["structures"]), saved["config"], tuple(saved["subjects"]), checkpoint.sha256(path)[:16])

    @torch.no_grad()
    def probabilities(self, image):
        """Softmax of a working volume (D, H, W) in [-1, 1]: (4, D, H, W) float32 in the project's label order.

        A structure the network was not trained on has probability 0.
        """
        device = next(self.net.parameters()).device
        x = torch.from_numpy(zscore(np.asarray(image)))[:, None]                                  # (D, 1, H, W)
        batches = [self.net(part.to(device)).float().softmax(1).cpu() for part in x.split(BATCH)]
        classes = torch.cat(batches).transpose(0, 1).numpy()                                      # (C, D, H, W)
        result = np.zeros((1 + len(STRUCTURES), *classes.shape[1:]), np.float32)
        result[[0] + [STRUCTURES.index(s) + 1 for s in self.structures]] = classes
        return result

    def labels(self, image):
        """Most probable label of each voxel of a working volume, (D, H, W) uint8."""
        return self.probabilities(image).argmax(0).astype(np.uint8)
