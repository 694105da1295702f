"""One phantom study: a subject's beating heart, scanned slice by slice, with the labels an annotator would draw.

Files are written by `cmr.phantom`.

Public: `Study`, `render_study`, `contraction`.
"""
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from cmr.grid import CANONICAL
from cmr.labels import VALUES
from cmr.phantom_heart import heart_at, label_slice
from cmr.phantom_scanner import GRID, acquire, export, sample_session, signal_slice
from cmr.phantom_tissue import fractal, noise_fields, tissue_slice
from cmr.seeds import rng


@dataclass(frozen=True)
class Study:
    """A rendered study: image and label (X, Y, Z, T), affine, spacing (x, y, z) mm, ED and ES index, the truth."""
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    ed: int
    es: int
    truth: dict


def render_study(subject, vendor, frames, *key):
    """Scan `subject` (cmr.phantom_subject.Subject) on `vendor` (cmr.phantom_scanner.Vendor).

    The heart, its pose and its texture depend on the subject alone and `key` only drives the scan, so two vendors can
    image the same subject: paired images.
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
    near = np.ix_(*[np.abs(u_recon[0]) < 110] * 2)                # labels only there
    u_near, v_near = u_recon[near], v_recon[near]
    wobble = fractal(pose, (2 * len(positions), 64, 64), 3.0) - 0.5         # the annotator's hand: SD 0.5 mm

    image = np.zeros((frames, len(positions), session.matrix, session.matrix), np.float32)
    label = np.zeros(image.shape, np.uint8)
    for k, (w, shift) in enumerate(zip(positions, shifts)):
        thorax, here = None, {name: field[k] for name, field in noise.items()}
        hand = [ndimage.zoom(wobble[2 * k + i], u_near.shape[0] / 64, order=1) * 1.7 for i in (0, 1)]
        u_breath, v_breath = u + np.float32(shift[0]), v + np.float32(shift[1])
        for f, heart in enumerate(hearts):
            layers, thorax = tissue_slice(heart, u_breath, v_breath, w, here, thorax=thorax)
            signal = signal_slice(layers, u, v, here["texture"], session)
            image[f, k] = acquire(signal, u, v, w, session, scan)
            if f in (ed, es):
                drawn = label_slice(heart, u_near + shift[0] + hand[0], v_near + shift[1] + hand[1], w)
                label[f, k][near] = ndimage.median_filter(drawn, 3)
    image = export(image.reshape(-1, *image.shape[2:]), session, scan).reshape(image.shape)
    for f in (ed, es):
        label[f] = _single_components(label[f])

    spacing_mm = (session.fov_mm / session.matrix,) * 2 + (session.spacing_mm,)
    truth = {"subject": asdict(subject), "vendor": asdict(session.vendor), "enhanced": session.enhanced,
             **_volumes_ml(label, {"ED": ed, "ES": es}, spacing_mm)}
    stored_image, stored_label, affine = _store(image, label, spacing_mm, subject, session.vendor.flips)
    return Study(stored_image, stored_label, affine, spacing_mm, ed, es, truth)


def contraction(frame, frames, ed):
    """Contraction in [0, 1] of a cine frame, cyclic, ED at index `ed`: ES after 37 % of the cycle, slower back."""
    position, es = (frame - ed) % frames, max(1, round(0.37 * frames))
    if position <= es:
        return 0.5 * (1 - np.cos(np.pi * position / es))
    return 0.5 * (1 + np.cos(np.pi * (position - es) / (frames - es)))


def _slice_positions(ed_heart, session, pose):
    """(positions along w (n,), in-plane shifts (n, 2) by breath holds) in mm, from above the base to below the apex."""
    first = -session.spacing_mm * pose.uniform(0.4, 1.4)
    length = ed_heart.L + 0.7 * ed_heart.t - first
    n_slices = int(np.ceil(length / session.spacing_mm)) + int(pose.integers(0, 2))
    positions = first + session.spacing_mm * np.arange(n_slices)
    return positions, pose.normal(0, 1.5, (n_slices, 2)) * np.where(pose.random((n_slices, 1)) < 0.05, 3.3, 1)


def _plane(n, fov_mm):
    """(u, v), each (n, n) float32 in mm: the centres of n pixels over a field of view."""
    axis = ((np.arange(n) - (n - 1) / 2) * fov_mm / n).astype(np.float32)
    return np.meshgrid(axis, axis)


def _volumes_ml(label, frame_of, spacing_mm):
    """{LV_ED_ml, ...} from the labels (T, D, H, W)."""
    return {f"{name}_{phase}_ml": float((label[frame] == value).sum() * np.prod(spacing_mm) / 1000)
            for phase, frame in frame_of.items() for name, value in VALUES.items()}


def _single_components(label):
    """Keep the largest face-connected part of each structure (D, H, W); the rest becomes background."""
    result = np.zeros_like(label)
    for value in VALUES.values():
        parts, n = ndimage.label(label == value)
        if n:
            result[parts == 1 + np.bincount(parts.ravel())[1:].argmax()] = value
    return result


def _store(image, label, spacing, subject, flips):
    """Canonical (T, D, H, W) to the vendor's stored (X, Y, Z, T), and the affine that says so."""
    a, b = subject.tilt                                           # the plane's tilt also turns the affine
    turn = np.linalg.qr(np.eye(3) + np.array([[0, -a, -b], [a, 0, 0], [b, 0, 0]]))[0]
    directions = np.sign(np.diag(turn)) * turn @ CANONICAL        # columns w, h, d
    transposed, flip_0, flip_1, flip_d = flips
    order = (1, 0) if transposed else (0, 1)                      # canonical in-plane axis of stored axes 0 and 1
    arrays = [np.moveaxis(a, [3, 2, 1, 0], [order.index(0), order.index(1), 2, 3]) for a in (image, label)]
    columns = [directions[:, order[0]], directions[:, order[1]], directions[:, 2]]
    for axis, flip in enumerate((flip_0, flip_1, flip_d)):
        if flip:
            arrays, columns[axis] = [np.flip(a, axis) for a in arrays], -columns[axis]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, 1) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(arrays[0].shape[:3]) - 1) / 2)
    return (*map(np.ascontiguousarray, arrays), affine)
