"""Segment images of one's own: `python -m cmr.segment IMAGE... --segmenter final.pt --out FOLDER`.

Each frame is a volume by itself, as in the experiment; several segmenters are averaged.  With `--diffusion` it is DA:
the image is also projected to the source, and the softmax averaged with that of the image as it is.

    FOLDER/NAME.nii.gz      the mask, on the image's own grid
    FOLDER/NAME.png         contours on every slice; with DA: without it, the projected image, with it
    FOLDER/volumes.csv      ventricles in ml, myocardium in g; of a cine, or an ED/ES pair, the ejection fractions

Public: `Config`, `Segmentation`, `segment_file`.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmr.errors import UsageError, run_script
from cmr.files import write_csv
from cmr.grid import Grid
from cmr.metrics import ejection_fraction
from cmr.nifti import as_integers, from_integers
from cmr.own_files import OwnConfig, find_images, one_by_one, parse_centre, picture_of, require_all, subject_and_phase
from cmr.own_image import Field, read_own, unusual_pixels
from cmr.pictures import enlargement, save_png, sheet, two_a_row, with_contours
from cmr.records import ACDC_LABELS, MMS_LABELS, VALUES
from cmr.sampler import DEFAULT_STRENGTH, NONE, translate
from cmr.segmenter import Segmenter, labels_on_original
from cmr.settings import given, one_of, opt, parse
from cmr.translate import load_sd_dm, projected_members
from cmr.workers import pick_device

MYOCARDIUM_G_PER_ML = 1.05
SIMILAR = 1.2                                    # spacings between slices that differ by less are taken for alike
VENTRICLES = ("LV", "RV")
NUMBERING = {"mms": MMS_LABELS, "acdc": ACDC_LABELS}
OF_STUDY = ("EDV_ml", "ESV_ml", "EF_percent", "ED", "ES")
COLUMNS = ("file", "frame", "LV_ml", "RV_ml", "MYO_g",
           *(f"{name}_{what}" for name in VENTRICLES for what in OF_STUDY))


@dataclass(frozen=True)
class Config(OwnConfig):
    """Settings of the command."""
    segmenter: str = opt("", "final.pt of train_unet.py; several, separated by commas, are averaged",
                         given("a final.pt"))
    diffusion: str = opt("", "final.pt of train_diffusion.py: segment by DA; empty: the image as it is")
    average: bool  = opt(True, "DA: average the softmax with that of the image as it is")
    labels: str    = opt("mms", "numbers in the mask: mms LV 1, MYO 2, RV 3; acdc RV 1, MYO 2, LV 3",
                         one_of(*NUMBERING))


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    jobs, centre, device = find_images(c.images, c.out), parse_centre(c.centre), pick_device(c.device)
    members = [NONE]
    if c.diffusion:
        members = projected_members(c.strength, c.t0, c.steps)
        members = members if c.average else [member for member in members if member != NONE]
    sd_dm = load_sd_dm(c.diffusion, members, device) if c.diffusion else None
    segmenters = [Segmenter.load(path, device) for path in c.segmenter.split(",")]
    require_alike(segmenters, sd_dm)
    settings = {"segmenters": [s.hash for s in segmenters], "sd_dm": sd_dm and sd_dm.hash, "labels": c.labels,
                "strength": "+".join(map(str, members)), "centre": c.centre, "seed": c.seed}

    def make(job):
        done = segment_file(job.path, segmenters, Path(c.out) / job.place, sd_dm, members, c.labels, centre, c.seed)
        return {"file": job.name, "volumes": done.volumes, "notes": done.notes}

    found, left_out = one_by_one(jobs, c.out, settings, make)
    write_csv(Path(c.out) / "volumes.csv", table(found), COLUMNS)
    require_all(left_out, len(jobs))


def require_alike(segmenters, sd_dm=None):
    """Raise UsageError for networks of different grids or structures: their scores cannot be averaged."""
    kinds = {(Grid.of(s.settings), s.structures) for s in segmenters}
    grids = {Grid.of(model.settings) for model in [*segmenters, *([sd_dm] if sd_dm else [])]}
    if len(kinds) > 1 or len(grids) > 1:
        shown = ", ".join(sorted(f"{grid.size} pixels of {grid.spacing_mm:g} mm" for grid in grids))
        raise UsageError(f"networks of different grids or structures ({shown}; "
                         f"{'; '.join(sorted(' '.join(names) for _, names in kinds))}); give those of one experiment")


@dataclass(frozen=True)
class Segmentation:
    """What was found in a file: labels (X, Y, Z, T) with the slices along Z; a row of volumes for each frame."""
    labels: np.ndarray
    volumes: list
    notes: list


def segment_file(path, segmenters, out, sd_dm=None, members=None, labels="mms", centre=None, seed=0):
    """Segment one NIfTI file, write the mask to `out` and a picture beside it; return a `Segmentation`.

    segmenters : list of Segmenter.  sd_dm : a SourceModel, for DA.  members : what is averaged, Strengths and NONE;
    None: as DA in the experiment.  labels : numbering of the mask, mms or acdc.  centre : the voxel (x, y) in the
    middle of the field of view; None: the image's middle.  Raises DataError for a file that is no image.
    """
    if members is None:
        members = projected_members(DEFAULT_STRENGTH["da"]) if sd_dm else [NONE]
    own = read_own(path)
    field, subject = Field(own, Grid.of(segmenters[0].settings), centre), subject_and_phase(path)[0]
    way = _Way(field, segmenters, sd_dm, (seed, subject, 0))
    frames = tqdm(np.moveaxis(own.frames, 3, 0), "frames", leave=False, disable=not sys.stderr.isatty())
    found = np.stack([way.labels(frame, members) for frame in frames], 3)
    volumes = volumes_of(found, own.voxel_ml, segmenters[0].structures)
    on_disk = {ours: value for value, ours in NUMBERING[labels].items()}
    own.write_labels(out, np.array([on_disk[value] for value in range(4)], np.uint8)[found])
    of_lv = study_of([row["LV_ml"] for row in volumes])
    shown = [of_lv["ED"], of_lv["ES"]] if of_lv else [0]
    pictures = [way.picture(own.frames[..., t], found[..., t], members) for t in shown]
    save_png(picture_of(out), sheet(sum(pictures, [])))
    return Segmentation(found, volumes, notes_on(own, field, segmenters, found))


@dataclass(frozen=True)
class _Way:
    """The way of a volume (X, Y, Z) through projection and networks."""
    field: Field
    segmenters: list
    sd_dm: object
    key: tuple                                   # of the noise, the same for every frame

    def image(self, working, member):
        """Working image of a member of the test input, as the experiment stores and reads it."""
        if member == NONE:
            return working
        projected, _ = translate(self.sd_dm, working, self.field.grid.spacing_mm, member, *self.key)
        return from_integers(as_integers(projected))

    def labels(self, volume, members):
        """(X, Y, Z) uint8 from the softmax of all members and segmenters; nothing is found in a blank frame."""
        if volume.min() == volume.max():
            return np.zeros(volume.shape, np.uint8)
        working, geometry = self.field.to_working(volume)
        spacing_mm = (self.field.own.spacing_mm[2], *[self.field.grid.spacing_mm] * 2)
        images = [self.image(working, member) for member in members]
        logits = [segmenter.logits(image, spacing_mm) for image in images for segmenter in self.segmenters]
        return self.field.cut(labels_on_original(logits, geometry))

    def picture(self, volume, labels, members):
        """Rows of panels: the labels on every slice; with DA for each slice also those without it, and what it sees."""
        working, geometry = self.field.to_working(volume)
        view = lambda label: self.field.view(label, geometry)
        grey = self.field.grey_view(volume, geometry)
        zoom = enlargement(grey)
        found = [with_contours(image, label, zoom) for image, label in zip(grey, view(labels))]
        projected = next((member for member in members if member != NONE), NONE)
        if projected == NONE:
            return [found[k:k + 6] for k in range(0, len(found), 6)]
        changed = self.field.changed(volume, working, self.image(working, projected), geometry)
        before = zip(grey, view(self.labels(volume, [NONE])), self.field.grey_view(changed, geometry), found)
        return two_a_row([[with_contours(a, label, zoom), with_contours(b, zoom=zoom), c] for a, label, b, c in before])


def volumes_of(labels, voxel_ml, structures):
    """[{LV_ml, RV_ml, MYO_g}] of each frame of labels (X, Y, Z, T); None for what the networks do not know."""
    rows = []
    for frame in np.moveaxis(labels, 3, 0):
        of = {name: float((frame == VALUES[name]).sum()) * voxel_ml if name in structures else None for name in VALUES}
        mass = of["MYO"] if of["MYO"] is None else of["MYO"] * MYOCARDIUM_G_PER_ML
        rows.append({"LV_ml": of["LV"], "RV_ml": of["RV"], "MYO_g": mass})
    return rows


def study_of(volumes_ml):
    """{EDV_ml, ESV_ml, EF_percent, ED, ES} of a ventricle: its largest and smallest volume over the frames.

    Empty for one frame, or for a ventricle that the networks do not know.
    """
    if len(volumes_ml) < 2 or None in volumes_ml:
        return {}
    ed, es = int(np.argmax(volumes_ml)), int(np.argmin(volumes_ml))
    return {**ejected(volumes_ml[ed], volumes_ml[es]), "ED": ed, "ES": es}


def ejected(edv_ml, esv_ml):
    """{EDV_ml, ESV_ml, EF_percent}; no ejection fraction where the ventricle was not found in one of them."""
    both = edv_ml and esv_ml
    return {"EDV_ml": edv_ml, "ESV_ml": esv_ml, "EF_percent": ejection_fraction(edv_ml, esv_ml) if both else None}


def table(found):
    """Rows of volumes.csv: one of each frame; the first of a cine, and the ED of an ED/ES pair, holds the study."""
    rows, pairs = [], {}
    for of in found:
        first = len(rows)
        rows += [{"file": of["file"], "frame": t, **volumes} for t, volumes in enumerate(of["volumes"])]
        for name in VENTRICLES:
            study = study_of([volumes[f"{name}_ml"] for volumes in of["volumes"]])
            rows[first].update({f"{name}_{what}": value for what, value in study.items()})
        subject, phase = subject_and_phase(of["file"])
        if phase and len(of["volumes"]) == 1:
            pairs.setdefault((Path(of["file"]).parent, subject), {})[phase] = rows[first]
    for pair in pairs.values():
        if len(pair) == 2:
            pair["ED"].update(_of_pair(pair["ED"], pair["ES"]))
    return rows


def _of_pair(ed, es):
    """Columns of a study whose end-diastole and end-systole are files of their own, by their rows."""
    columns = {}
    for name in VENTRICLES:
        if ed[f"{name}_ml"] is not None:
            study = {**ejected(ed[f"{name}_ml"], es[f"{name}_ml"]), "ED": ed["file"], "ES": es["file"]}
            columns.update({f"{name}_{what}": value for what, value in study.items()})
    return columns


def notes_on(own, field, segmenters, labels):
    """What to mind about a file: what the networks were not trained for, and what looks wrong in the result."""
    notes, structures = unusual_pixels(own, field.grid), segmenters[0].structures
    unknown = [name for name in VALUES if name not in structures]
    if unknown:
        notes.append(f"the network was not trained on {', '.join(unknown)}: none is found")
    least, most = min(s.slices_mm[0] for s in segmenters), max(s.slices_mm[1] for s in segmenters)
    if not least / SIMILAR <= own.spacing_mm[2] <= most * SIMILAR:
        apart = f"slices {own.spacing_mm[2]:.1f} mm apart"
        notes.append(f"{apart}; the network was trained on {least:.1f} to {most:.1f} mm")
    for name in structures:
        frames = [str(t) for t in np.flatnonzero(~(labels == VALUES[name]).any((0, 1, 2)))]
        if frames:
            notes.append(f"no {name} found" + (f" in frame {', '.join(frames)}" if own.n_frames > 1 else ""))
    if field.is_touched(labels):
        x, y = (round(float(at.mean())) for at in np.nonzero(labels)[:2])
        notes.append("the segmentation reaches the border of the field of view, the heart may lie outside; its part "
                     f"inside has its middle at --centre {x},{y}")
    return notes


if __name__ == "__main__":
    run_script(main)
