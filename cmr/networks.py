"""The segmenters that are compared, by name.  A new one is a file that makes a `Network`, and an entry here.

Public: `NETWORKS`, `split_name`.
"""
from cmr.errors import UsageError
from cmr.nnunet import NNUNET_2D, NNUNET_3D
from cmr.vanilla import VANILLA

NETWORKS = {"vanilla": VANILLA, "nnunet2d": NNUNET_2D, "nnunet3d": NNUNET_3D}


def split_name(text):
    """(network, training set) of a segmenter's name such as `vanilla-real` or `nnunet2d-Vendor-B`.

    Either may hold hyphens: the longest name of a network that fits is meant.  Raises UsageError if none does.
    """
    fitting = [name for name in NETWORKS if text.startswith(name + "-")]
    if not fitting:
        raise UsageError(f"segmenter {text!r}: expected NETWORK-TRAININGSET with one of {', '.join(NETWORKS)}")
    network = max(fitting, key=len)
    return network, text[len(network) + 1:]
