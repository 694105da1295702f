"""Write the embedded multi-vendor phantom as an M&Ms-1 tree: `python -m cmr.phantom --out data/phantom-demo`.

Four simulated vendors scan, slice by slice, a numerical heart that beats in a numerical thorax, so that everything runs
without a download.  The word PHANTOM in every file says that it is no patient data.
"""
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from cmr.errors import CheckpointError, run_script
from cmr.files import read_json, writable_folder, write_csv, write_json, write_text
from cmr.grid import CANONICAL
from cmr.nifti import write_nifti
from cmr.phantom_heart import GROUPS, heart_at, label_slice, sample_subject
from cmr.phantom_scanner import GRID, VENDORS, acquire, export, sample_session, signal_slice
from cmr.phantom_tissue import fractal, noise_fields, thorax_tissue, tissue_slice
from cmr.records import VALUES
from cmr.seeds import rng
from cmr.settings import SEED, at_least, one_of, opt, parse, required, within
from cmr.workers import spawned

# Studies of each vendor: labelled training, unlabelled training, validation, testing.  As in M&Ms, C and D have no
# labelled training studies; A is the source.
COUNTS = {"tiny": {"A": (4, 0, 2, 2), "B": (0, 0, 1, 2), "C": (0, 1, 1, 2), "D": (0, 0, 1, 2)},
          "example": {"A": (24, 0, 2, 0), "D": (0, 0, 0, 1)},
          "demo": {"A": (40, 0, 4, 10), "B": (0, 0, 5, 12), "C": (0, 1, 5, 12), "D": (0, 0, 5, 12)},
          "lab": {"A": (75, 0, 4, 16), "B": (0, 0, 5, 13), "C": (0, 1, 5, 13), "D": (0, 0, 5, 13)},
          "mnms": {"A": (75, 0, 4, 16), "B": (75, 0, 10, 40), "C": (0, 25, 10, 40), "D": (0, 0, 10, 40)}}
FOLDERS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
CSV_NAME = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
README = """PHANTOM data in the layout of the M&Ms-1 challenge: computer-generated, no patient was scanned.
Not for clinical use.  Written by cmr/phantom.py; its settings are in phantom_params.json.
"""


@dataclass(frozen=True)
class Config:
    out: str = opt("data/phantom-demo", "folder of the dataset", required("a folder"))
    counts: str = opt("demo", "studies per vendor and split", one_of(*COUNTS))
    frames: int = opt(3, "frames of each training cine (real ones have 18-34)", within(2, 100))
    test_frames: int = opt(2, "frames of each validation and testing cine; 2: ED and ES alone", within(2, 100))
    target_training: int = opt(0, "labelled training studies of every vendor but A beside --counts, for networks "
                                  "trained on the target itself; no other study changes", at_least(0))
    seed: int = opt(0, "seed of every subject and scan", SEED)
    processes: int = opt(os.cpu_count() or 1, "subjects rendered at a time; does not change the result", at_least(1))


PRESETS = {"tiny": dict(counts="tiny", frames=2), "demo": {}, "small": {}, "lab": dict(counts="lab", frames=12),
           "paper": dict(counts="mnms", frames=25, test_frames=25)}


def main(argv=None):
    write_dataset(parse(Config, PRESETS, argv, __doc__.splitlines()[0]))


def write_dataset(config):
    """Write the whole tree.  phantom_params.json is written last: where it exists, the tree is complete."""
    root = writable_folder(config.out)
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "processes")}
    started = root / ".settings.json"
    if not started.exists() and {path.name for path in root.iterdir()} - {".lock"}:
        raise CheckpointError(f"{root}: holds files that are no phantom's; use another --out")
    if started.exists() and read_json(started) != settings:
        raise CheckpointError(f"{root}: holds a phantom of other settings; use another --out or delete it")
    write_json(started, settings)
    write_text(root / "README.txt", README)
    jobs = [(config, *study) for study in _studies(config)]
    done = []
    for row in spawned(_write_study, jobs, min(config.processes, len(jobs))):
        done.append(row)
        if len(done) % 10 == 0 or len(done) == len(jobs):
            print(f"phantom: {len(done)} of {len(jobs)} studies", flush=True)
    done.sort(key=lambda row: row["External code"])
    table = [{"": i, **row} for i, row in enumerate(done)]
    write_csv(root / "OpenDataset" / CSV_NAME, table, list(table[0]))
    write_json(root / "phantom_params.json", {"PHANTOM": True, "settings": settings})


def _studies(config):
    """[(code, vendor, split folder, disease group)] of every study; they depend on the settings and the seed alone."""
    draw, studies, codes = rng(config.seed, "plan"), [], set()
    counts_of = COUNTS[config.counts]
    # The targets' own training studies are drawn last, so that all other studies stay the same.
    of_targets = {vendor: (config.target_training,) for vendor in counts_of if vendor != "A"}
    for vendor, counts in (*counts_of.items(), *of_targets.items()):
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
    """Draw a study's code like those of M&Ms (digit, letter, digit, letter, digit) after an X."""
    digits, letters = list("0123456789"), list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return "X" + "".join(draw.choice(digits if i % 2 == 0 else letters) for i in range(5))


def _groups(draw, n):
    """n shuffled disease groups in the proportions of GROUPS, so that chance does not change a vendor's case mix."""
    shares = np.array(list(GROUPS.values()))
    counts = np.floor(shares * n).astype(int)
    for i in np.argsort(-(shares * n - counts), kind="stable")[: n - counts.sum()]:
        counts[i] += 1
    return list(draw.permutation(np.repeat(list(GROUPS), counts)))


def _write_study(job):
    """Render and write one study unless an earlier run did; returns its row of the CSV."""
    config, code, vendor, folder, group = job
    study_folder = Path(config.out) / "OpenDataset" / folder / code
    finished = study_folder / f".{code}.json"
    if finished.exists():
        return read_json(finished)
    subject = sample_subject(rng(config.seed, code), group)
    frames = config.frames if folder.startswith("Training") else config.test_frames
    study = render_study(subject, VENDORS[vendor], frames, config.seed, code)
    label, ed, es = study.label, study.ed, study.es
    if folder == "Training/Unlabeled":
        label, ed, es = np.zeros_like(label), 0, 0
    for name, array in ((f"{code}_sa.nii.gz", study.image), (f"{code}_sa_gt.nii.gz", label)):
        write_nifti(study_folder / name, array, study.affine, "PHANTOM, not a patient")
    row = {"External code": code, "VendorName": VENDORS[vendor].name, "Vendor": vendor,
           "Centre": VENDORS[vendor].centre, "ED": ed, "ES": es, "Pathology": group}
    write_json(finished, row)
    return row


def render_study(subject, vendor, frames, *key):
    """Scan a subject (`cmr.phantom_heart.sample_subject`) on a vendor (`cmr.phantom_scanner.Vendor`).

    Heart, pose and texture are the subject's; `key` seeds only the scan, so two vendors can image one subject.
    Returns image and label (X, Y, Z, T), affine, spacing_mm (x, y, z) and the frames ed and es.
    """
    scan, pose = rng(*key, "scan"), np.random.default_rng(subject.texture_seed + 1)
    session = sample_session(scan, vendor)
    ed = 0 if frames < 3 or scan.random() < 0.5 else frames - int(scan.integers(1, min(6, frames - 1) + 1))
    es = (ed + max(1, round(0.37 * frames))) % frames
    hearts = [heart_at(subject, float(contraction(f, frames, ed))) for f in range(frames)]
    positions, shifts = _slice_positions(hearts[ed], session, pose)

    u, v = _plane(GRID, session.fov_mm)
    noise = noise_fields(subject, len(positions), GRID)
    u_recon, v_recon = _plane(session.matrix, session.fov_mm)
    near = np.ix_(*[np.abs(u_recon[0]) < 110] * 2)                # labels lie only there
    u_near, v_near = u_recon[near], v_recon[near]
    wobble = fractal(pose, (2 * len(positions), 64, 64), 3.0) - 0.5         # the annotator's hand: SD 0.5 mm

    image = np.zeros((frames, len(positions), session.matrix, session.matrix), np.float32)
    label = np.zeros(image.shape, np.uint8)
    for k, (w, shift) in enumerate(zip(positions, shifts)):
        here = {name: field[k] for name, field in noise.items()}
        hand = [ndimage.zoom(wobble[2 * k + i], u_near.shape[0] / 64, order=1) * 1.7 for i in (0, 1)]
        u_breath, v_breath = u + np.float32(shift[0]), v + np.float32(shift[1])
        thorax = thorax_tissue(subject, u_breath, v_breath, w, here)
        for f, heart in enumerate(hearts):
            layers = tissue_slice(heart, thorax, u_breath, v_breath, w, here)
            signal = signal_slice(layers, u, v, here["texture"], session)
            image[f, k] = acquire(signal, u, v, w, session, scan)
            if f in (ed, es):
                drawn = label_slice(heart, u_near + shift[0] + hand[0], v_near + shift[1] + hand[1], w)
                label[f, k][near] = ndimage.median_filter(drawn, 3)
    image = export(image.reshape(-1, *image.shape[2:]), session, scan).reshape(image.shape)
    for f in (ed, es):
        label[f] = _single_components(label[f])

    spacing_mm = (session.fov_mm / session.matrix,) * 2 + (session.spacing_mm,)
    image, label, affine = _store(image, label, spacing_mm, subject, session.vendor.flips)
    return SimpleNamespace(image=image, label=label, affine=affine, spacing_mm=spacing_mm, ed=ed, es=es)


def contraction(frame, frames, ed):
    """Contraction of a frame of a cyclic cine: 0 at frame `ed`, 1 after 37 % of the cycle, then more slowly back."""
    position, es = (frame - ed) % frames, max(1, round(0.37 * frames))
    if position <= es:
        return 0.5 * (1 - np.cos(np.pi * position / es))
    return 0.5 * (1 + np.cos(np.pi * (position - es) / (frames - es)))


def _slice_positions(ed_heart, session, pose):
    """Positions along w (n,) from above the base to below the apex, and breath-hold shifts in-plane (n, 2), in mm."""
    first = -session.spacing_mm * pose.uniform(0.4, 1.4)
    length = ed_heart.L + 0.7 * ed_heart.t - first
    n_slices = int(np.ceil(length / session.spacing_mm)) + int(pose.integers(0, 2))
    positions = first + session.spacing_mm * np.arange(n_slices)
    return positions, pose.normal(0, 1.5, (n_slices, 2)) * np.where(pose.random((n_slices, 1)) < 0.05, 3.3, 1)


def _plane(n, fov_mm):
    """(u, v), each (n, n) float32: the pixel centres in mm of an n x n image with the field of view `fov_mm`."""
    axis = ((np.arange(n) - (n - 1) / 2) * fov_mm / n).astype(np.float32)
    return np.meshgrid(axis, axis)


def _single_components(label):
    """Keep the largest face-connected part of each structure of a label map (D, H, W); the rest becomes background."""
    result = np.zeros_like(label)
    for value in VALUES.values():
        parts, n = ndimage.label(label == value)
        if n:
            result[parts == 1 + np.bincount(parts.ravel())[1:].argmax()] = value
    return result


def _store(image, label, spacing_mm, subject, flips):
    """Bring both arrays (T, D, H, W) to the vendor's storage order (X, Y, Z, T); return them and their affine."""
    a, b = subject.tilt                                           # the plane's tilt also turns the affine
    turn = np.linalg.qr(np.eye(3) + np.array([[0, -a, -b], [a, 0, 0], [b, 0, 0]]))[0]
    directions = np.sign(np.diag(turn)) * turn @ CANONICAL        # columns: along w, h and d
    transposed, *flipped = flips
    axes = (2, 3, 1, 0) if transposed else (3, 2, 1, 0)
    if transposed:
        directions = directions[:, [1, 0, 2]]
    stored = [np.flip(array.transpose(axes), tuple(np.flatnonzero(flipped))) for array in (image, label)]
    affine = np.eye(4)
    affine[:3, :3] = np.where(flipped, -directions, directions) * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(stored[0].shape[:3]) - 1) / 2)
    return (*map(np.ascontiguousarray, stored), affine)


if __name__ == "__main__":
    run_script(main)
