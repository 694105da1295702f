"""The experiment: the rows of the results, and the stages that make them.

    check -> SD-DM, networks on real images -> DG set -> networks on it
                                            -> DA set -> evaluation -> report

An *arm* is a row of the results.  A *stage* is a command that writes one file last; make runs it (`cmr.reproduce`) if
that file is missing or older than a file that it is made from.
"""
import shlex
from dataclasses import dataclass

from cmr.errors import UsageError
from cmr.files import digest
from cmr.records import Domain
from cmr.segmenter import NETWORKS, split_name


# ---- Rows ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Arm:
    """One row of the results: what the segmenter was trained on and what it is given at test time."""
    name: str
    trained_on: str                              # a key of TRAINING_SETS
    test_input: str                              # inputs joined by `+`: the softmax is averaged over them; see ARMS
    access: str                                  # which images of the target the row uses
    secondary: bool = False                      # True: measured for some networks only, to save time
    source: str = "yes"                          # whether the row uses the source's images and masks
    target_masks: str = "no"                     # which masks of the target the row uses

    @property
    def key(self):
        """The name of the row's folder."""
        return f"{self.trained_on}-{self.test_input}"


BASELINE, UPPER_BOUND = "baseline", "upper bound"
PRIMARY_ARMS = ("DA", "DG")
THROUGH_SD_DM = "the test image itself, through the SD-DM"
# Test inputs: `raw` is the image as it is; `projected` and `guided` are projections by the paper's sampler and by the
# guided filter (`cmr.sampler`); `matched` and `fda` use no SD-DM (`cmr.look`).
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
        Arm("references", "references", "raw", "nothing"),
        Arm("shuffled masks", "shuffled", "raw", "nothing"),
        Arm(UPPER_BOUND, "target", "raw", "its own training images", source="no",
            target_masks="those of its training images"))
# DG is compared with each of these ways to generalise, which use no diffusion model.
CONTROLS = {"augmented": "real images, nnU-Net's intensity augmentation, no diffusion model",
            "shifted": "the references of DG with their changed look, not projected",
            "references": "the references of DG as they are"}


# The synthetic sets that networks are trained on, with the flags that each adds to DG's call of `cmr.synthesize`.
SETS = {"dg": "", "shifted": "--strength none", "references": "--strength none --shift 0"}
# What a segmenter is trained on: the synthetic set, empty for real images alone, and the flags of train_unet.py.
TRAINING_SETS = {"real": ("", ""),
                 "augmented": ("", "--augment"),
                 "synthetic": ("dg", "--train-on synthetic"),
                 "both": ("dg", "--train-on both"),
                 "shuffled": ("dg", "--train-on synthetic --shuffle-masks"),
                 "shifted": ("shifted", "--train-on synthetic"),
                 "references": ("references", "--train-on synthetic")}


def training_set(arm, domain, source):
    """Return the training set of an arm's segmenter on a domain; the upper bound has one for each target."""
    if arm.trained_on != "target":
        return arm.trained_on
    return "real" if domain == source else domain.file_name


def rows_to_measure(segmenters, domains, every_row_of=""):
    """Return [(network, Arm)] of the rows whose segmenters are given for all domains, by network, then as in ARMS.

    segmenters : their names, as network-trainingset.  domains : the source first.  every_row_of : networks that get
    secondary rows; empty: the first.  Raises UsageError for a missing baseline or a segmenter that no row needs.
    """
    networks = list(dict.fromkeys(split_name(name)[0] for name in segmenters))
    thorough = split(every_row_of) or networks[:1]
    measured, used = [], set()
    for network in networks:
        if f"{network}-real" not in segmenters:
            raise UsageError(f"--segmenters: {network}-real is missing, which the others are compared with")
        for arm in ARMS:
            needed = {f"{network}-{training_set(arm, domain, source=domains[0])}" for domain in domains}
            wanted = not arm.secondary or network in thorough
            if wanted and needed <= set(segmenters):
                measured.append((network, arm))
                used |= needed
    unused = set(segmenters) - used
    if unused:
        raise UsageError(f"--segmenters: {min(unused)} belongs to no row of the table; "
                         "an upper bound needs a network of every target")
    return measured


def rows_asked_for(c):
    """Return the rows of the report that the settings `c` ask for as text, one per line."""
    domains = [Domain.parse(c.source), *Domain.parse(c.target).each()]
    rows = rows_to_measure(segmenters(c), domains, c.every_row_of)
    lines = [f"{network}, {arm.name}: {arm.key}" for network, arm in rows]
    masks = "with" if c.use_unlabeled_masks else "without"
    return "\n".join([*lines, "with pseudonyms" if c.pseudonyms else "with the dataset's identifiers",
                      f"{masks} the masks under Training/Unlabeled", ""])


# ---- Stages ----------------------------------------------------------------------------------------------------------

ALONE = ("-m cmr.check_dataset", "-m cmr.estimate")        # scripts that always run on a single rank
# SHORT holds the flags that a rehearsal adds to each command.
_PROJECTED, _GUIDED = "t0=100,low_pass=2,steps=1", "t0=100,guide_mm=30,steps=1"
SHORT = {"train_diffusion.py": "--steps 2 --batch 2 --log-every 1 --sheet 1 --sheet-steps 2",
         "train_unet.py": "--steps 2 --epoch-steps 1 --validation-batches 1 --workers 1 --log-every 1",
         "-m cmr.synthesize --use dg": f"--samples 1 --strength '{_PROJECTED}'",
         "-m cmr.synthesize --use da": f"--strength '{_PROJECTED};{_GUIDED}'",
         "evaluate.py": f"--projected '{_PROJECTED}' --guided '{_GUIDED}'"}


@dataclass(frozen=True)
class Stage:
    """A command, the file that it writes last, and the files which that depends on, all below the run's folder."""
    file: str
    made_from: tuple
    command: str
    after: tuple = ()                            # files that must exist before it starts, whatever their age


def stages(c):
    """Return [Stage] of the run that the settings `c` of `cmr.reproduce` describe, in an order that can be run."""
    trained, judge = segmenters(c), f"segmenter-{split(c.networks)[0]}-real/final.pt"
    target, rows, thorough, references = flags_asked_for(c)

    # The dataset is checked against the rows.  `rows` says which are wanted.  `asked` is touched after each check and
    # tells make when the data were last looked at.  check.json is written anew only if the findings have changed, so
    # that an unchanged dataset retrains nothing.
    asked, checked, priced = "check/asked", "check/check.json", "check/estimate.md"
    check = command(c, "-m cmr.check_dataset", "check", target, rows, references)
    found = [Stage(asked, ("check/rows",), f"{check} && touch {c.run / asked}"), Stage(checked, (asked,), "")]
    first = ()                                   # the estimate is made once, before the first long stage
    if not (c.rehearse or c.experiment == "tiny" or (c.run / "diffusion").exists()):
        found.append(Stage(priced, (), price(c), (checked,)))
        first = (priced,)

    # The SD-DM is trained; it makes DG's images of the references and DA's images of every domain's test studies.
    sd_dm = "diffusion/final.pt"
    found.append(Stage(sd_dm, (checked,), command(c, "train_diffusion.py", "diffusion"), first))
    judged = f"--diffusion {c.run / sd_dm} --segmenter {c.run / judge}"
    judging, *others = training_stages(c, trained, judge, checked, first)
    found.append(judging)
    for name, flags in SETS.items():
        if name == "dg" or name in {images for images, _ in trained.values()}:
            dg = command(c, "-m cmr.synthesize --use dg", name, judged, references, flags)
            found.append(Stage(f"{name}/manifest.csv", (sd_dm, judge), dg))
    da = command(c, "-m cmr.synthesize --use da", "da", judged, target)
    found.append(Stage("da/manifest.csv", (sd_dm, judge), da))
    found += others

    # Every row is measured on every domain's test studies.
    made = [stage.file for stage in found if stage.file not in (asked, checked, priced)]
    names = "--pseudonyms" if c.pseudonyms else ""
    report = command(c, "evaluate.py", "results", target, rows, thorough, f"--run {c.run}", names)
    says_of_which_rows = f"echo {digest(rows_asked_for(c))[:16]} > {c.run / 'results' / 'rows'}"
    return [*found, Stage("results/report.md", ("check/rows", *made), f"{report} && {says_of_which_rows}")]


def training_stages(c, trained, judge, checked, first):
    """Return [Stage] of all segmenters, the one first that judges pairs; trained : {name: entry of TRAINING_SETS}.

    The others that train longest come first, so that parallel jobs end together, and wait for DG's images; otherwise
    make would start the ready ones earlier and come to the longest last.
    """
    networks, found = list(NETWORKS), []
    for name in sorted(trained, key=lambda name: (f"segmenter-{name}/final.pt" != judge,
                                                  -networks.index(split_name(name)[0]))):
        file, network = f"segmenter-{name}/final.pt", split_name(name)[0]
        images, flags = trained[name]
        made_from, pairs = (f"{images}/manifest.csv", f"--synthetic {c.run / images}") if images else (checked, "")
        train = command(c, "train_unet.py", f"segmenter-{name}", f"--network {network}", flags, pairs)
        found.append(Stage(file, (made_from,), train, first if file == judge else (*first, "dg/manifest.csv")))
    return found


def price(c):
    """Return the command that estimates how long the run will take."""
    return command(c, "-m cmr.estimate", "check", *flags_asked_for(c), f"--jobs {c.jobs} --ranks {c.gpus}")


def flags_asked_for(c):
    """Return the flags of the targets, of the segmenters, of the networks with every row, and of the references."""
    every_row = f"--every-row-of {c.every_row_of}" if c.every_row_of else ""
    references = f"--references {shlex.quote(c.references)}" if c.references else ""
    return f"--target {shlex.quote(c.target)}", f"--segmenters {','.join(segmenters(c))}", every_row, references


def segmenters(c):
    """Return {NETWORK-TRAININGSET: its entry of TRAINING_SETS, or one for a target}; UsageError for an unknown set."""
    targets, controls, found = Domain.parse(c.target).each(), controls_of(c), {}
    bounds = {target.file_name: ("", f"--domain {shlex.quote(str(target))}") for target in targets}
    known = TRAINING_SETS | bounds
    for network in split(c.networks):
        of_network = [what for of, what in controls if of == network]
        for what in ("real", *split(c.trained), *(bounds if c.upper_bound else ()), *of_network):
            if what not in known:
                raise UsageError(f"{network}-{what}: no training set is called {what}; use {', '.join(TRAINING_SETS)}")
            name = f"{network}-{what}"
            if what == "augmented" and NETWORKS[split_name(name)[0]].augments:
                raise UsageError(f"{name}: an nnU-Net always augments; only vanilla-augmented is a row")
            found[name] = known[what]
    return found


def controls_of(c):
    """Return [(network, training set)] of DG's controls; raises UsageError if a control's network is not trained."""
    networks = split(c.networks)
    found = [(networks[0], "references")] if c.references else []
    if c.controls in ("first", "all"):
        shifted = [(network, "shifted") for network in networks]
        return [("vanilla", "augmented"), *(shifted[:1] if c.controls == "first" else shifted), *found]
    for name in split(c.controls):
        network, trained_on = split_name(name)
        if network not in networks:
            raise UsageError(f"--controls {name}: {network} is not among the networks {', '.join(networks)}")
        found.append((network, trained_on))
    return found


def command(c, script, folder, *flags):
    """Return a stage's command line: interpreter, ranks, script, the flags of all stages, its own flags and --out."""
    ranks = f"-m cmr.ranks {c.gpus}" if c.gpus > 1 and script not in ALONE else ""
    short = SHORT.get(script, "") if c.rehearse else ""
    agreed = shlex.join(flags_of_all(c, c.of_preset / "work"))
    words = [shlex.quote(c.python), ranks, script, agreed, short, *flags, f"--out {c.run / folder}"]
    return " ".join(filter(None, words))


def flags_of_all(c, work):
    """Return the list of the flags on which all stages must agree; work : folder of their working volumes."""
    flags = ["--preset", c.experiment, "--data", c.data, "--source", c.source, "--seed", str(c.seed),
             "--work", str(work)]
    flags += ["--upper-bound"] if c.upper_bound else []
    return flags + (["--use-unlabeled-masks"] if c.use_unlabeled_masks else [])


def split(text):
    """Return the parts of a text that is separated by commas or spaces."""
    return text.replace(",", " ").split()
