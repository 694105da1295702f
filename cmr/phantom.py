"""Write the embedded multi-vendor phantom as an M&Ms-1 tree: `python -m cmr.phantom --out data/phantom-demo`.

A numerical heart in a numerical thorax, scanned by four simulated vendors, so that everything runs without a download
and the domain gap can be turned with one knob (`--severity`).  It is never patient data: PHANTOM stands in every file.
`--validate` prints statistics of the phantom beside those measured on real cardiac MR.
How a heart and its scan are made is in `cmr.phantom_study` and below.

Public: `Config`, `PRESETS`, `write_dataset`.
"""
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cmr.errors import CheckpointError, run_script
from cmr.files import writable_folder, write_csv, write_json, write_text
from cmr.nifti import write_nifti
from cmr.phantom_realism import print_realism
from cmr.phantom_scanner import REFERENCE_VENDOR, STAND_INS, VENDORS, at_severity
from cmr.phantom_study import render_study
from cmr.phantom_subject import GROUPS, sample_subject
from cmr.seeds import rng
from cmr.settings import at_least, given, one_of, opt, parse, within
from cmr.workers import spawned

COLUMNS = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height",
           "Weight"]
CSV_NAME = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
# Studies per vendor: labelled training, unlabelled training, validation, testing.  C and D have no labelled training
# studies in M&Ms either; A is the source.  Stand-ins are the targets of whoever settles a recipe, beside the A of
# another phantom.
COUNTS = {"tiny": {"A": (4, 0, 2, 2), "B": (0, 0, 1, 2), "C": (0, 1, 1, 2), "D": (0, 0, 1, 2)},
          "example": {"A": (24, 0, 2, 0), "D": (0, 0, 0, 1)},
          "demo": {"A": (40, 0, 4, 10), "B": (0, 0, 5, 12), "C": (0, 1, 5, 12), "D": (0, 0, 5, 12)},
          "lab": {"A": (75, 0, 4, 16), "B": (0, 0, 5, 13), "C": (0, 1, 5, 13), "D": (0, 0, 5, 13)},
          "mnms": {"A": (75, 0, 4, 16), "B": (75, 0, 10, 40), "C": (0, 25, 10, 40), "D": (0, 0, 10, 40)},
          "stand-ins": dict.fromkeys(STAND_INS, (0, 0, 4, 6))}
FOLDERS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
README = """PHANTOM data in the layout of the M&Ms-1 challenge: computer-generated, no patient was scanned.
Not for clinical use.  Written by cmr/phantom.py; all sampled values are in phantom_params.json.
"""


@dataclass(frozen=True)
class Config:
    """Settings of the phantom dataset."""
    out: str = opt("data/phantom-demo", "folder of the dataset", given("a folder"))
    counts: str = opt("demo", "studies per vendor and split", one_of(*COUNTS))
    frames: int = opt(3, "frames of each training cine (real ones have 18-34)", within(2, 100))
    test_frames: int = opt(2, "frames of each validation and testing cine; 2: ED and ES alone", within(2, 100))
    target_training: int = opt(0, "labelled training studies of every vendor but A beside --counts, for networks "
                                  "trained on the target itself; no other study changes", at_least(0))
    severity: float = opt(1.0, "size of the vendor gap: 0 none, 1 realistic upper range, 1.5 exaggerated", within(0, 3))
    geometry: bool = opt(True, "vendors also differ in pixel size, slice spacing and stored orientation")
    seed: int = opt(0, "seed of every subject and scan", at_least(0))
    processes: int = opt(os.cpu_count() or 1, "subjects rendered at a time; does not change the result", at_least(1))
    validate: bool = opt(False, "print the phantom's statistics beside real ones instead of writing")


PRESETS = {"tiny": dict(counts="tiny", frames=2), "demo": {}, "small": {}, "lab": dict(counts="lab", frames=12),
           "paper": dict(counts="mnms", frames=25, test_frames=25)}


def write_dataset(config):
    """Write the whole tree; phantom_params.json is written last, so its presence means *finished*.

    Equal settings give equal bytes.  Raises CheckpointError where another phantom lies.
    """
    root = writable_folder(config.out)
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "processes", "validate")}
    started = root / ".settings.json"
    if started.exists() and json.loads(started.read_text()) != settings:
        raise CheckpointError(f"{root}: holds a phantom of other settings; use another --out or delete it")
    write_json(started, settings)
    write_text(root / "README.txt", README)
    jobs = [(config, *study) for study in _studies(config)]
    done = []
    for study in spawned(_write_study, jobs, min(config.processes, len(jobs))):
        done.append(study)
        if len(done) % 10 == 0 or len(done) == len(jobs):
            print(f"phantom: {len(done)} of {len(jobs)} studies", flush=True)
    rows = sorted((study["row"] for study in done), key=lambda r: r["External code"])
    write_csv(root / "OpenDataset" / CSV_NAME, [{"": i, **row} for i, row in enumerate(rows)], COLUMNS)
    truth = {study["row"]["External code"]: study["truth"] for study in done}
    write_json(root / "phantom_params.json", {"PHANTOM": True, "settings": settings, "studies": truth})


def _studies(config):
    """(code, vendor, split folder, group) of every study, a function of the seed."""
    draw, studies, codes = rng(config.seed, "plan"), [], set()
    counts_of = COUNTS[config.counts]
    training_of_targets = {vendor: (config.target_training,) for vendor in counts_of if vendor != REFERENCE_VENDOR}
    # The targets' training studies are drawn last, so that they change nothing else.
    for vendor, counts in (*counts_of.items(), *training_of_targets.items()):
        folders = [folder for folder, n in zip(FOLDERS, counts) for _ in range(n)]
        groups = [group for n in counts for group in _groups(draw, n)]
        for folder, group in zip(folders, groups):
            code = _code(draw)
            while code in codes:
                code = _code(draw)
            codes.add(code)
            studies.append((code, vendor, folder, group))
    return studies


def _code(draw):
    """A study's code as M&Ms has them: digit, letter, digit, letter, digit."""
    digits, letters = list("0123456789"), list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return "X" + "".join(draw.choice(digits if i % 2 == 0 else letters) for i in range(5))


def _groups(draw, n):
    """n disease groups in the phantom's proportions, shuffled: no vendor gets its case mix by chance."""
    shares = np.array(list(GROUPS.values()))
    counts = np.floor(shares * n).astype(int)
    for i in np.argsort(-(shares * n - counts), kind="stable")[: n - counts.sum()]:
        counts[i] += 1
    return list(draw.permutation(np.repeat(list(GROUPS), counts)))


def _write_study(job):
    """Render and write one study, unless an earlier run has; {row: of the CSV, truth: what it was made of}."""
    config, code, vendor, folder, group = job
    study_folder = Path(config.out) / "OpenDataset" / folder / code
    done = study_folder / f".{code}.json"
    if done.exists():
        return json.loads(done.read_text())                       # finished before an interruption
    draw = rng(config.seed, code)
    subject = sample_subject(draw, group)
    frames = config.frames if folder.startswith("Training") else config.test_frames
    profile = at_severity(vendor, config.severity, config.geometry)
    study = render_study(subject, profile, frames, config.seed, code)
    unlabelled = folder == "Training/Unlabeled"
    label = np.zeros_like(study.label) if unlabelled else study.label
    for name, array in ((f"{code}_sa.nii.gz", study.image), (f"{code}_sa_gt.nii.gz", label)):
        write_nifti(study_folder / name, array, study.affine, study.spacing_mm, "PHANTOM, not a patient")
    ed, es = (0, 0) if unlabelled else (study.ed, study.es)
    sex = str(draw.choice(["M", "F"]))
    height, weight = ((176, 7), (80, 12)) if sex == "M" else ((163, 7), (67, 12))
    role = VENDORS[vendor]
    row = {"External code": code, "VendorName": role.name, "Vendor": vendor, "Centre": role.centre, "ED": ed, "ES": es,
           "Age": int(draw.integers(20, 80)), "Pathology": group, "Sex": sex, "Height": int(draw.normal(*height)),
           "Weight": int(draw.normal(*weight))}
    study_and_truth = {"row": row, "truth": study.truth}
    write_json(done, study_and_truth)
    return study_and_truth


def main(argv=None):
    config = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    if config.validate:
        print_realism(config.out)
    else:
        write_dataset(config)


if __name__ == "__main__":
    run_script(main)
