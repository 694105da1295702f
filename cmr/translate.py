"""Image files without a dataset, given the look of the source: `python -m cmr.translate IMAGE... --diffusion final.pt`.

    image -> working grid -> noised to t0 and denoised by the SD-DM -> what changed is added, on the image's own grid

Any NIfTI file of a slice, a stack or a cine will do.  A cine is scaled and matched as a whole, so that all frames are
equally bright.  `cmr.segment` uses the same functions.
"""
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr import checkpoint
from cmr.errors import DataError, NumericalError, UsageError, run_script
from cmr.files import read_sealed_json, sha256, writable_folder, write_sealed_json, write_text
from cmr.folders import open_folder, stem
from cmr.grid import CANONICAL, Grid, at_same_height, canonical, orientation, resample_to_original, stored, to_working
from cmr.layouts import MMS_FRAME
from cmr.nifti import Nifti, is_blank, read_stored, without_padding, write_changed, write_like
from cmr.pictures import difference, enlargement, labelled_sheet, save_png, sheet, two_a_row, with_contours
from cmr.sampler import SourceModel, Strength, translate
from cmr.settings import DEVICE, SEED, opt, parse, required
from cmr.workers import pick_device

MASK = re.compile(r"_gt(?=\.nii)", re.IGNORECASE)
NAME = re.compile(r"(.+?)(?:_sa)?(?:_(?:(ED|ES)|frame\d+))?(?:_0000)?", re.IGNORECASE)
BLEND_MM = 10                                    # distance over which a change fades out towards the field's border
CLEARLY = 1.5                                    # the slice axis is coarser, or shorter, by more than this factor


@dataclass(frozen=True)
class ImagesConfig:
    """Settings of both commands, `cmr.translate` and `cmr.segment`."""
    images: tuple = opt((), "NIfTI files, or folders of them: one slice, a stack, or a cine with its frames last")
    seed: int = opt(0, "of the noise, which is the same for every slice and frame", SEED)
    device: str = DEVICE


def find_images(images, out):
    """Return {name of the result below `out`: Path} of files and folders, without hidden ones, masks and results."""
    found = {}
    for start in map(Path, images):
        for path in _below(start, out) if start.is_dir() else [start]:
            place = str(path.relative_to(start)) if start.is_dir() else path.name
            if not path.exists():
                raise DataError(f"{path}: no such file or folder")
            if stem(path) == path:
                raise UsageError(f"{path}: called neither .nii nor .nii.gz, as its result would be; convert it to "
                                 "NIfTI, or rename it if it is one")
            other, _ = found.setdefault(stem(Path(place)), (path, place))
            if other.resolve() != path.resolve():
                raise UsageError(f"{other} and {path} would have results of one name; give them one by one")
            if (Path(out) / place).resolve() == path.resolve():
                raise UsageError(f"--out {out}: the result would replace {path}; choose another folder")
    if not found:
        raise UsageError("no image given; name NIfTI files, or folders of them")
    return {place: path for path, place in found.values()}


def _below(folder, out):
    """Return the images below a folder; what lies below `out`, where that is a folder inside it, are results."""
    there = open_folder(folder, whole=False)                      # a file that may not be read is named in its turn
    files = set(there.files)
    for what, why in there.left_out:
        print(f"left out: {what}: {why}", flush=True)
    inside = Path(out).resolve()
    results = {path for path in files if folder.resolve() in inside.parents and inside in path.resolve().parents}
    files -= results
    masks = {path for path in files if path.with_name(MASK.sub("", path.name)) in files - {path}}
    if not files:
        raise UsageError(f"{folder}: no NIfTI files below it")
    if results:
        print(f"{folder}: {len(results)} files below --out {out} are taken for results and left alone", flush=True)
    if masks:
        print(f"{folder}: {len(masks)} files called as another with _gt are taken for masks and left alone", flush=True)
    return sorted(files - masks)


def one_by_one(images, out, settings, make):
    """Call make(place, path) for each image of `find_images`; return ([all results there], [why a file was left out]).

    make : writes the results of a file and returns plain values, among them "notes", a list of warnings.
    settings : everything that decides the results; what was finished with them before, by this command or an earlier
    one, is not done again.
    """
    out = writable_folder(out)
    begun = out / "settings.json"
    results = [name for place in images for name in (place, picture_of(place), "volumes.csv")]
    there = [name for name in results if (out / name).exists()]
    if there and not begun.exists():
        raise UsageError(f"--out {out}: {there[0]} lies there already and is no result of this command; choose another "
                         "folder")
    checkpoint.begin_with(begun, settings)
    left_out = []
    for n, (place, path) in enumerate(images.items(), 1):
        entry = out / "finished" / f"{stem(Path(place))}.json"
        with _going_on(path, left_out):
            done = read_sealed_json(entry) if (out / place).is_file() else None
            if not done or done["image"] != sha256(path):
                if done and done["path"] != str(path.resolve()):
                    raise DataError(f"{path}: {out / place} is the result of another image; choose another --out")
                print(f"{n} of {len(images)}: {path}", flush=True)
                entry.unlink(missing_ok=True)
                done = {"image": sha256(path), "path": str(path.resolve()), "found": make(place, path)}
                write_sealed_json(entry, done)
            for note in done["found"]["notes"]:
                print(f"note: {path}: {note}", flush=True)
    entries = map(read_sealed_json, sorted((out / "finished").rglob("*.json")))
    return [done["found"] for done in entries if done], left_out


@contextlib.contextmanager
def _going_on(path, left_out):
    """If the image `path` cannot be used, print why, append that to the list `left_out` and go on."""
    try:
        yield
    except (DataError, NumericalError, PermissionError) as error:
        left_out.append(f"{path}: permission denied" if isinstance(error, PermissionError) else str(error))
        print(f"left out: {left_out[-1]}", flush=True)


def require_all(left_out, n_images):
    if left_out:
        others = f" (and {len(left_out) - 1} more, named above)" if len(left_out) > 1 else ""
        raise DataError(f"{len(left_out)} of {n_images} images could not be used: {left_out[0]}{others}")


def subject_and_phase(path):
    """Return (subject, "ED", "ES" or None) by a file's name: A0S9V9_sa_ED.nii.gz gives ("A0S9V9", "ED").

    The subject is called as in the experiment, because it is the key of the noise; P1_frame05 is a frame of P1.
    """
    name = stem(Path(path)).name
    of_mms = MMS_FRAME.fullmatch(name)
    subject, phase = (of_mms[1], None) if of_mms else NAME.fullmatch(name).groups()
    return subject, phase and phase.upper()


def picture_of(path, suffix=".png"):
    return Path(f"{stem(Path(path))}{suffix}")


@dataclass(frozen=True)
class ImageFile:
    """An image file whose axes were reordered so that the slices lie along Z."""
    frames: np.ndarray                           # (X, Y, Z, T) float32
    affine: np.ndarray                           # 4 x 4, of the axes X, Y, Z
    spacing_mm: tuple                            # (x, y, z)
    axes: tuple                                  # the axes of the file that became X, Y and Z
    nifti: Nifti                                 # the file with its axes as stored

    def as_stored(self, frames):
        """Return an array (X, Y, Z, T) with the axes and the shape of the file."""
        in_order = frames.transpose(*np.argsort(self.axes), 3)
        return in_order.reshape(self.nifti.array.shape)

    def write_labels(self, path, labels):
        write_like(path, self.as_stored(labels), self.nifti)

    def write_frames(self, path, frames):
        """Write grey values (X, Y, Z, T) in the file's data type; voxels that did not change keep their very bits."""
        write_changed(path, self.as_stored(frames), self.as_stored(frames != self.frames), self.nifti.path)


def read_image(path):
    """Read a NIfTI file of grey values as an ImageFile; raises DataError if it is constant or of another shape."""
    nifti = read_stored(path)
    shape = nifti.array.shape
    if len(shape) < 2 or any(n > 1 for n in shape[4:]):
        raise DataError(f"{path}: shape {shape}, expected one slice (X, Y), a stack (X, Y, Z) or a cine (X, Y, Z, T)")
    tissue, padding = without_padding(nifti.array)
    if is_blank(tissue):
        raise DataError(f"{path}: constant ({tissue.min():g}){' but for its padding' if padding else ''}; leave it out")
    whole = nifti.array.reshape((*shape, 1, 1)[:4])
    spacing_mm = (*nifti.spacing_mm, 1.0)[:3]                      # a single slice has no third voxel size
    if not all(0.1 <= s <= 50 for s in spacing_mm):
        raise DataError(f"{path}: voxel size {spacing_mm}, expected 0.1 to 50 mm; correct the header")
    slices = _slice_axis(whole.shape[:3], spacing_mm, nifti.affine)
    axes = (*[axis for axis in range(3) if axis != slices], slices)
    spacing_mm = tuple(spacing_mm[axis] for axis in axes)
    return ImageFile(whole.transpose(*axes, 3), nifti.affine[:, (*axes, 3)], spacing_mm, axes, nifti)


def _slice_axis(shape, spacing_mm, affine):
    """Return the axis (0, 1 or 2) along which the slices of a file lie, by the first of these that exists.

    The only one of a single voxel; the clearly coarsest; the clearly shortest; by an oblique affine; the last.
    """
    if shape.count(1) == 1:
        return shape.index(1)
    _, second, coarsest = np.argsort(spacing_mm, kind="stable")
    if spacing_mm[coarsest] > CLEARLY * spacing_mm[second]:
        return int(coarsest)
    shortest, second, _ = np.argsort(shape, kind="stable")
    if shape[second] > CLEARLY * shape[shortest]:
        return int(shortest)
    *_, oblique = orientation(affine)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.abs(CANONICAL[:, 2] @ directions).argmax()) if oblique else 2


def changed(volume, working, new, geometry):
    """Add to a volume (X, Y, Z) the change on the working grid from `working` to `new` (D, H, W); returns float32.

    Detail finer than the working grid stays, and the change fades out over BLEND_MM towards the field's border.
    """
    step = stored(resample_to_original(new - working, geometry), geometry) * (geometry.high - geometry.low) / 2
    weight = np.clip(depth_mm(geometry) / BLEND_MM, 0, 1)[..., None]
    return np.clip(volume + step * weight, volume.min(), volume.max()).astype(np.float32)


def depth_mm(geometry):
    """Return how many mm each pixel (X, Y) lies inside the working field of view; the distance is negative outside."""
    spacing_mm, size = geometry.grid
    along = [size * spacing_mm / 2 - np.abs(np.arange(n) - (n - 1) / 2) * mm
             for n, mm in zip(geometry.shape[:2], geometry.spacing_mm)]
    return np.minimum.outer(*along)


def view(volume, geometry):
    """Return the part of a volume (X, Y, Z) in the working field of view as (D, H, W) in the clinical view."""
    inside = depth_mm(geometry) > 0
    return canonical(volume[inside.any(1)][:, inside.any(0)], geometry)


def grey_view(volume, geometry):
    """Return the `view` of a volume of grey values, scaled so that the working volume's limits are -1 and 1."""
    return (view(volume, geometry) - geometry.low) / (geometry.high - geometry.low) * 2 - 1


def coarse_pixels(image, grid):
    coarsest = max(image.spacing_mm[:2])
    if coarsest <= grid.spacing_mm:
        return []
    return [f"pixels of {coarsest:.2f} mm are coarser than the {grid.spacing_mm:g} mm that the network was trained on"]


@dataclass(frozen=True)
class Config(ImagesConfig):
    diffusion: str = opt("", "final.pt of train_diffusion.py", required("a final.pt"))
    out: str       = opt("translated", "folder for the results")
    strength: str  = opt("", "what is kept of the image; empty: as DA, guided, in the experiment")
    ladder: str    = opt("", "several strengths, separated by ';': draw an image at each, as NAME_ladder.svg")


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    asked = Strength.parse(c.strength) if c.strength else None
    ladder = [Strength.parse(text) for text in filter(None, c.ladder.split(";"))]
    images, sd_dm = find_images(c.images, c.out), SourceModel.load(c.diffusion, pick_device(c.device))
    strength = asked or sd_dm.guided
    for wanted in ladder or [strength]:
        sd_dm.require_usable(wanted)
    if ladder:
        out, left_out = writable_folder(c.out), []
        for place, path in images.items():
            with _going_on(path, left_out):
                draw_ladder(path, sd_dm, picture_of(out / place, "_ladder.svg"), ladder, c.seed)
    else:
        make = lambda place, path: {"notes": translate_file(path, sd_dm, Path(c.out) / place, strength, c.seed)}
        settings = {"sd_dm": sd_dm.hash, "strength": str(strength), "seed": c.seed}
        _, left_out = one_by_one(images, c.out, settings, make)
    require_all(left_out, len(images))


def translate_file(path, sd_dm, out, strength=None, seed=0):
    """Project a NIfTI file by a SourceModel, all frames with one noise, draw it, and return a list of warnings.

    strength : a Strength; None: as *DA, guided* in the experiment.
    """
    strength = strength or sd_dm.guided
    image, grid, (subject, _) = read_image(path), Grid.of(sd_dm.settings), subject_and_phase(path)
    stack = image.frames.reshape(*image.frames.shape[:2], -1)     # (X, Y, Z * T): each slice is projected by itself
    tissue, padding = without_padding(stack)                      # of a cine as a whole, as it is scaled
    working, _, geometry = to_working(tissue, image, grid)
    new, _ = translate(sd_dm, working, grid.spacing_mm, strength, seed, subject, 0)
    result = np.where(tissue != stack, stack, changed(tissue, working, new, geometry))            # padding stays
    image.write_frames(out, result.reshape(image.frames.shape))
    before, after = (grey_view(volume[..., ::image.frames.shape[3]], geometry) for volume in (stack, result))
    zoom = enlargement(before)
    panels = [[with_contours(a, zoom=zoom), with_contours(b, zoom=zoom), difference(a, b, zoom)]
              for a, b in zip(before, after)]
    save_png(picture_of(out), sheet(two_a_row(panels)))
    return [*image.nifti.notes, *padding, *coarse_pixels(image, grid)]


def draw_ladder(path, sd_dm, out, strengths, seed=0):
    """Draw slices of a NIfTI file's first frame, as they are and projected at each strength, as the SVG `out`."""
    image, grid, (subject, _) = read_image(path), Grid.of(sd_dm.settings), subject_and_phase(path)
    tissue, _ = without_padding(image.frames[..., 0])
    working, *_ = to_working(tissue, image, grid)
    volumes = [working, *(translate(sd_dm, working, grid.spacing_mm, strength, seed, subject, 0)[0]
                          for strength in strengths)]
    chosen = np.unique(at_same_height(np.arange(len(working)), 5)[1:-1])         # three slices between base and apex
    rows = [[with_contours(volume[k]) for k in chosen] for volume in volumes]
    write_text(out, labelled_sheet(rows, [f"slice {k + 1}" for k in chosen], ["as it is", *map(str, strengths)]))
    print(f"{path}: drawn at {len(strengths)} strengths in {out}", flush=True)


if __name__ == "__main__":
    run_script(main)
