"""Write the embedded multi-vendor phantom as an M&Ms-1 tree: `python -m cmr.phantom --out data/phantom-demo`.

A numerical heart in a numerical thorax, scanned by four simulated vendors, so that everything runs without a download
and the domain gap can be turned with one knob (`--severity`).  It is never patient data: PHANTOM stands in every file.
`--validate` prints statistics of the phantom beside those measured on real cardiac MR.

Public: `Config`, `PRESETS`, `render_study`, `write_dataset`.
"""
import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cmr import anatomy, scanner
from cmr.checkpoint import writable_folder, write_csv, write_json, write_text
from cmr.config import CheckpointError, UsageError, opt, parse, run_script
from cmr.training import rng
from cmr.volumes import CANONICAL, write_nifti

COLUMNS = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height", "Weight"]
CSV_NAME = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
# Studies per vendor: labelled training, unlabelled training, validation, testing.  C and D have no labelled training
# studies in M&Ms either; A is the source.
COUNTS = {"tiny": {"A": (4, 0, 2, 2), "B": (0, 0, 1, 2), "C": (0, 1, 1, 2), "D": (0, 0, 1, 2)},
          "demo": {"A": (40, 0, 4, 10), "B": (0, 0, 5, 12), "C": (0, 1, 5, 12), "D": (0, 0, 5, 12)},
          "mnms": {"A": (75, 0, 4, 16), "B": (75, 0, 10, 40), "C": (0, 25, 10, 40), "D": (0, 0, 10, 40)}}
FOLDERS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
README = """PHANTOM data in the layout of the M&Ms-1 challenge: computer-generated, no patient was scanned.
Not for clinical use.  Written by cmr/phantom.py; all sampled values are in phantom_params.json.
"""


@dataclass(frozen=True)
class Config:
    """Settings of the phantom dataset."""
    out: str = opt("data/phantom-demo", "folder of the dataset")
    counts: str = opt("demo", "studies per vendor and split: tiny, demo or mnms")
    frames: int = opt(3, "frames of each training cine (real ones have 18-34)")
    test_frames: int = opt(2, "frames of each validation and testing cine; 2: ED and ES alone")
    target_training: int = opt(0, "labelled training studies of each of B, C and D beside --counts, for networks trained on the target itself; no other study changes")
    severity: float = opt(1.0, "size of the vendor gap: 0 none, 1 realistic upper range, 1.5 exaggerated")
    geometry: bool = opt(True, "vendors also differ in pixel size, slice spacing and stored orientation")
    seed: int = opt(0, "seed of every subject and scan")
    processes: int = opt(os.cpu_count() or 1, "subjects rendered at a time; does not change the result")
    validate: bool = opt(False, "print the phantom's statistics beside real ones instead of writing")


PRESETS = {"tiny": dict(counts="tiny", frames=2), "demo": {}, "paper": dict(counts="mnms", frames=25, test_frames=25)}


def contraction(frame, frames, ed):
    """Contraction in [0, 1] of a cine frame, cyclic, ED at index `ed`: cosine up to ES at 37 % of the cycle, slower back."""
    position, es = (frame - ed) % frames, max(1, round(0.37 * frames))
    if position <= es:
        return 0.5 * (1 - np.cos(np.pi * position / es))
    return 0.5 * (1 + np.cos(np.pi * (position - es) / (frames - es)))


@dataclass(frozen=True)
class Study:
    """A rendered study: image and label (X, Y, Z, T), affine, spacing (x, y, z) mm, ED and ES index, what it was made of."""
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    ed: int
    es: int
    truth: dict


def render_study(subject, vendor, frames, *key):
    """Scan `subject` (cmr.anatomy.Subject) on `vendor` (cmr.scanner.Vendor).

    The heart, its pose and its texture depend on the subject alone and `key` only drives the scan, so two vendors can
    image the same subject: paired images.
    """
    scan, pose = rng(*key, "scan"), np.random.default_rng(subject.texture_seed + 1)
    session = scanner.sample_session(scan, vendor)
    ed = 0 if frames < 3 or scan.random() < 0.5 else frames - int(scan.integers(1, min(6, frames - 1) + 1))
    es = (ed + max(1, round(0.37 * frames))) % frames
    hearts = [anatomy.heart_at(subject, float(contraction(f, frames, ed))) for f in range(frames)]

    ed_heart = hearts[ed]
    first = -session.spacing_mm * pose.uniform(0.4, 1.4)
    n_slices = int(np.ceil((ed_heart.L + 0.7 * ed_heart.t - first) / session.spacing_mm)) + int(pose.integers(0, 2))
    positions = first + session.spacing_mm * np.arange(n_slices)
    shifts = pose.normal(0, 1.5, (n_slices, 2)) * np.where(pose.random((n_slices, 1)) < 0.05, 3.3, 1)   # breath holds

    axis = ((np.arange(scanner.GRID) - (scanner.GRID - 1) / 2) * session.fov_mm / scanner.GRID).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    noise = anatomy.noise_fields(subject, n_slices, scanner.GRID)
    recon = ((np.arange(session.matrix) - (session.matrix - 1) / 2) * session.fov_mm / session.matrix).astype(np.float32)
    ur, vr = np.meshgrid(recon, recon)
    near = np.ix_(*[np.abs(recon) < 110] * 2)                                   # labels only there
    wobble = anatomy.fractal(pose, (2 * n_slices, 64, 64), 3.0) - 0.5           # the annotator's hand, SD about 0.5 mm

    image = np.zeros((frames, n_slices, session.matrix, session.matrix), np.float32)
    label = np.zeros(image.shape, np.uint8)
    for k, (w, shift) in enumerate(zip(positions, shifts)):
        thorax, here = None, {name: field[k] for name, field in noise.items()}
        zoom = ur[near].shape[0] / 64
        hand = [ndimage.zoom(wobble[2 * k + i], zoom, order=1) * 1.7 for i in (0, 1)]
        for f, heart in enumerate(hearts):
            layers, thorax = anatomy.tissue_slice(heart, u + np.float32(shift[0]), v + np.float32(shift[1]), w, here, thorax=thorax)
            signal = scanner.signal_slice(layers, u, v, here["texture"], session)
            image[f, k] = scanner.acquire(signal, u, v, w, session, scan)
            if f in (ed, es):
                drawn = anatomy.label_slice(heart, ur[near] + shift[0] + hand[0], vr[near] + shift[1] + hand[1], w)
                label[f, k][near] = ndimage.median_filter(drawn, 3)
    image = scanner.export(image.reshape(-1, *image.shape[2:]), session, scan).reshape(image.shape)
    for f in (ed, es):
        label[f] = _single_components(label[f])

    spacing = (session.fov_mm / session.matrix,) * 2 + (session.spacing_mm,)
    volumes = {f"{name}_{phase}_ml": float((label[f] == value).sum() * np.prod(spacing) / 1000)
               for phase, f in (("ED", ed), ("ES", es)) for name, value in anatomy.LABELS.items()}
    truth = {"subject": asdict(subject), "vendor": asdict(session.vendor), "enhanced": session.enhanced, **volumes}
    return Study(*_store(image, label, spacing, subject, session.vendor.flips), spacing, ed, es, truth)


def _single_components(label):
    """Keep the largest face-connected part of each structure (D, H, W); the rest becomes background."""
    result = np.zeros_like(label)
    for value in anatomy.LABELS.values():
        parts, n = ndimage.label(label == value)
        if n:
            result[parts == 1 + np.bincount(parts.ravel())[1:].argmax()] = value
    return result


def _store(image, label, spacing, subject, flips):
    """Canonical (T, D, H, W) to the vendor's stored (X, Y, Z, T), and the affine that says so."""
    angles = subject.tilt                                                       # the plane's tilt also turns the affine
    turn = np.linalg.qr(np.eye(3) + np.array([[0, -angles[0], -angles[1]], [angles[0], 0, 0], [angles[1], 0, 0]]))[0]
    directions = np.sign(np.diag(turn)) * turn @ CANONICAL                      # columns w, h, d
    transposed, flip_0, flip_1, flip_d = flips
    order = (1, 0) if transposed else (0, 1)                                    # canonical in-plane axis of stored axes 0 and 1
    arrays = [np.moveaxis(a, [3, 2, 1, 0], [order.index(0), order.index(1), 2, 3]) for a in (image, label)]
    columns = [directions[:, order[0]], directions[:, order[1]], directions[:, 2]]
    for axis, flip in enumerate((flip_0, flip_1, flip_d)):
        if flip:
            arrays, columns[axis] = [np.flip(a, axis) for a in arrays], -columns[axis]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, 1) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(arrays[0].shape[:3]) - 1) / 2)
    return (*map(np.ascontiguousarray, arrays), affine)


def _plan(config):
    """One job per study: (code, vendor, split folder, group), a function of the seed."""
    draw, jobs, codes = rng(config.seed, "plan"), [], set()
    targets = {vendor: (config.target_training,) for vendor in list(COUNTS[config.counts])[1:]}            # drawn last, so that they change nothing else
    for vendor, counts in (*COUNTS[config.counts].items(), *targets.items()):
        groups = [g for folder, n in zip(FOLDERS, counts) for g in _groups(draw, n)]
        for folder, group in zip([f for f, n in zip(FOLDERS, counts) for _ in range(n)], groups):
            while (code := "X{}{}{}{}{}".format(*(draw.choice(list("0123456789" if i % 2 == 0 else "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) for i in range(5)))) in codes:
                pass
            codes.add(code)
            jobs.append((code, vendor, folder, group))
    return jobs


def _groups(draw, n):
    """n disease groups in the phantom's proportions, shuffled: no vendor gets its case mix by chance."""
    shares = np.array(list(anatomy.GROUPS.values()))
    counts = np.floor(shares * n).astype(int)
    for i in np.argsort(-(shares * n - counts), kind="stable")[: n - counts.sum()]:
        counts[i] += 1
    return list(draw.permutation(np.repeat(list(anatomy.GROUPS), counts)))


def _write_study(job):
    config, (code, vendor, folder, group) = job
    study_folder = Path(config.out) / "OpenDataset" / folder / code
    files = study_folder / f"{code}_sa.nii.gz", study_folder / f"{code}_sa_gt.nii.gz", study_folder / f".{code}.json"
    if files[2].exists():
        return json.loads(files[2].read_text())                                 # finished before an interruption
    draw = rng(config.seed, code)
    subject = anatomy.sample_subject(draw, group)
    frames = config.frames if folder.startswith("Training") else config.test_frames
    study = render_study(subject, scanner.at_severity(vendor, config.severity, config.geometry), frames, config.seed, code)
    unlabelled = folder == "Training/Unlabeled"
    for path, array in ((files[0], study.image), (files[1], np.zeros_like(study.label) if unlabelled else study.label)):
        write_nifti(path, array, study.affine, study.spacing_mm, "PHANTOM, not a patient")
    profile = scanner.VENDORS[vendor]
    sex = draw.choice(["M", "F"])
    row = {"External code": code, "VendorName": profile.name, "Vendor": vendor, "Centre": profile.centre, "ED": 0 if unlabelled else study.ed,
           "ES": 0 if unlabelled else study.es, "Age": int(draw.integers(20, 80)), "Pathology": group, "Sex": str(sex),
           "Height": int(draw.normal(176 if sex == "M" else 163, 7)), "Weight": int(draw.normal(80 if sex == "M" else 67, 12))}
    write_json(files[2], {"row": row, "truth": study.truth})
    return {"row": row, "truth": study.truth}


def write_dataset(config):
    """Write the whole tree; phantom_params.json is written last, so its presence means *finished*.  Equal settings give equal bytes."""
    if config.counts not in COUNTS:
        raise UsageError(f"--counts {config.counts}: unknown; use one of {', '.join(COUNTS)}")
    root = writable_folder(config.out)
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "processes", "validate")}
    started = root / ".settings.json"
    if started.exists() and json.loads(started.read_text()) != settings:
        raise CheckpointError(f"{root}: holds a phantom of other settings; use another --out or delete it")
    write_json(started, settings)
    write_text(root / "README.txt", README)
    jobs = [(config, job) for job in _plan(config)]
    with multiprocessing.get_context("spawn").Pool(max(1, config.processes)) as pool:
        done = []
        for (_, (code, *_rest)), result in zip(jobs, pool.imap(_write_study, jobs)):
            done.append(result)
            if len(done) % 10 == 0 or len(done) == len(jobs):
                print(f"phantom: {len(done)} of {len(jobs)} studies", flush=True)
    rows = sorted((d["row"] for d in done), key=lambda r: r["External code"])
    write_csv(root / "OpenDataset" / CSV_NAME, [{"": i, **row} for i, row in enumerate(rows)], COLUMNS)
    write_json(root / "phantom_params.json", {"PHANTOM": True, "settings": settings, "studies": {d["row"]["External code"]: d["truth"] for d in done}})


def main(argv=None):
    config = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    if config.validate:
        from cmr.likeness import print_validation                               # only this command needs it
        print_validation(config)
    else:
        write_dataset(config)


if __name__ == "__main__":
    run_script(main)
