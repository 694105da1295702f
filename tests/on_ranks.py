"""What `test_ranks.py` starts on several ranks: every network trained for some steps in double precision.

In single precision rounding alone, amplified from step to step, moves the weights of a U-Net by 1e-3 in twenty steps,
whatever the ranks: it would hide a wrong share or a wrong mean.
"""
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_diffusion                                            # noqa: E402: this folder is the script's own
import train_unet                                                 # noqa: E402
from cmr import ranks                                             # noqa: E402
from cmr.errors import run_script                                 # noqa: E402
from cmr.segmenter import NETWORKS                                 # noqa: E402

torch.set_num_threads(1)
SINGLE = torch.Tensor.float


def in_double(network):
    """The network whose recipe trains in double precision and leaves its validation out."""
    def recipe(c, data, device):
        made = network.recipe(c, data, device)
        made.net.double()
        def batch(step, samples):
            images, labels = made.batch(step, samples)
            return images.double(), labels
        return dataclasses.replace(made, batch=batch, validate=None)
    return dataclasses.replace(network, recipe=recipe)


def main():
    data, work, out, steps = sys.argv[1:]
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else SINGLE(self)
    train_unet.mean_dice_on = lambda *arguments: np.nan           # a loaded segmenter is in single precision
    of_any = ["--preset", "tiny", "--data", data, "--work", work, "--steps", steps]
    trained = {"vanilla": ["--augment"], "nnunet2d": ["--optimizer", "adamw", "--lr", "1e-3"]}
    if ranks.world() <= 2:                                        # its batch is one of two
        trained["nnunet3d"] = []
    for name, flags in trained.items():
        NETWORKS[name] = in_double(NETWORKS[name])
        epochs = ["--epoch-steps", "2"] if name != "vanilla" else []
        train_unet.main([*of_any, "--network", name, *flags, *epochs, "--out", f"{out}/{name}"])
    train_diffusion.main([*of_any, "--batch", "6", "--sheet", "1", "--sheet-steps", "2", "--out", f"{out}/diffusion"])


if __name__ == "__main__":
    run_script(main)
