"""The experiment: what each row is trained on, what it is given at test time, and what it has seen of the target.

    check -> SD-DM, segmenters on real images -> DG set -> segmenters on it
                                              -> DA set -> evaluation -> report

The stages, and what each reads and writes, are the rules of the Makefile (`make plan` prints them).  No numbers here.

Public: `Arm`, `ARMS`, `training_set`, `rows_to_measure`, and the names of rows.
"""
from dataclasses import dataclass

from cmr.errors import UsageError


@dataclass(frozen=True)
class Arm:
    """One row of the experiment: what the segmenter was trained on and what it is given at test time."""
    name: str
    trained_on: str
    test_input: str
    access: str                                  # what images of the target it has touched
    secondary: bool = False                      # measured for some networks only, where time is short
    source: str = "yes"                          # whether it has touched the source's images and masks
    target_masks: str = "no"

    @property
    def key(self):
        """Folder name."""
        return f"{self.trained_on}-{self.test_input}"


BASELINE, UPPER_BOUND = "baseline", "upper bound"
PRIMARY_ARMS = ("DA", "DG")
DOSES = {n: f"DG, {n} a reference" for n in (1, 2, 4, 8)}         # synthetic images per reference: the row's name
THROUGH_SD_DM = "the test image itself, through the SD-DM"
# What a segmenter is given at test time: images, joined by `+` where their softmax is averaged.  raw is the image as it
# is, projected is the paper's sampler, guided the guided projection (both: `cmr.sampler`); the rest know no SD-DM.
ARMS = (Arm(BASELINE, "real", "raw", "nothing"),
        Arm("DA", "real", "projected", THROUGH_SD_DM),
        Arm("DA, averaged", "real", "raw+projected", THROUGH_SD_DM),
        Arm("DA, guided", "real", "guided", THROUGH_SD_DM),
        Arm("DA, guided, averaged", "real", "raw+guided", THROUGH_SD_DM),
        Arm("matched", "real", "matched", "the test image itself, its histogram", secondary=True),
        Arm("FDA", "real", "fda", "the test image itself, its low frequencies", secondary=True),
        Arm("DG", "synthetic", "raw", "nothing"),
        Arm("real + DG", "both", "raw", "nothing"),
        Arm("DG + DA", "synthetic", "raw+guided", THROUGH_SD_DM, secondary=True),
        Arm("augmented", "augmented", "raw", "nothing"),
        Arm("augmented + DA", "augmented", "raw+guided", THROUGH_SD_DM, secondary=True),
        Arm("shifted", "shifted", "raw", "nothing"),
        Arm("shuffled masks", "shuffled", "raw", "nothing"),
        *(Arm(name, f"dose{n}", "raw", "nothing") for n, name in DOSES.items()),
        Arm(UPPER_BOUND, "target", "raw", "its own training images", source="no",
            target_masks="those of its training images"))
# Networks whose secondary rows are measured too.
ALL_INPUTS_OF = {**dict.fromkeys(("tiny", "demo", "small", "lab"), "vanilla"), "paper": "vanilla,nnunet2d,nnunet3d"}
# What generalises without a diffusion model: DG is compared with each.
CONTROLS = {"augmented": "real images, nnU-Net's intensity augmentation, no diffusion model",
            "shifted": "the references of DG with their changed look, not projected"}


def training_set(arm, domain, source):
    """What the segmenter of a row was trained on, as in its folder's name.

    An upper bound has a segmenter for each domain; on the source that is the baseline's.
    """
    if arm.trained_on != "target":
        return arm.trained_on
    return "real" if domain == source else domain.file_name


def rows_to_measure(segmenters, domains, all_inputs_of):
    """[(network, Arm)] that the given segmenters allow on all domains, network by network in the order of ARMS.

    segmenters : (network, training set) of each.  domains : the source first.  all_inputs_of : networks whose secondary
    rows are measured too.  Raises UsageError for a network without a baseline and for a segmenter that no row needs.
    """
    source = domains[0]
    networks = list(dict.fromkeys(network for network, _ in segmenters))
    for network in networks:
        if (network, "real") not in segmenters:
            raise UsageError(f"--segmenters: {network}-real is missing, which the others are compared with")
    measured, needed = [], set()
    for network in networks:
        for arm in ARMS:
            own = {(network, training_set(arm, domain, source)) for domain in domains}
            wanted = not arm.secondary or network in all_inputs_of
            if wanted and own <= set(segmenters):
                measured.append((network, arm))
                needed |= own
    unused = set(segmenters) - needed
    if unused:
        raise UsageError(f"--segmenters: {'-'.join(min(unused))} belongs to no row of the table; "
                         "an upper bound needs a network of every target")
    return measured
