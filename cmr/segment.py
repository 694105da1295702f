"""Segment image files: `python -m cmr.segment IMAGE... --segmenter final.pt --out FOLDER`.

Each frame is a volume of its own.  With `--diffusion` the softmax is averaged over the image and its projection (DA).

    FOLDER/NAME.nii.gz      the mask, on the image's own grid
    FOLDER/NAME.png         contours on every slice; with DA: without it, the projected image, with it
    FOLDER/volumes.csv      ventricles in ml, myocardium in g; of a cine, or an ED/ES pair, the ejection fractions
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmr.errors import UsageError, run_script
from cmr.files import write_csv
from cmr.grid import Grid, to_working
from cmr.nifti import as_integers, from_integers, is_blank, without_padding
from cmr.pictures import enlargement, save_png, sheet, two_a_row, with_contours
from cmr.records import ACDC_LABELS, MMS_LABELS, VALUES, Domain
from cmr.sampler import NONE, SourceModel, parse_members, translate
from cmr.segmenter import Segmenter, labels_on_original
from cmr.settings import one_of, opt, parse, required
from cmr.translate import (
    ImageFile, ImagesConfig, changed, coarse_pixels, depth_mm, find_images, grey_view, one_by_one, picture_of,
    read_image, require_all, subject_and_phase, view)
from cmr.workers import pick_device

MYOCARDIUM_G_PER_ML = 1.05
SIMILAR = 1.2                                    # largest ratio of slice spacings that count as equal
VENTRICLES = ("LV", "RV")
NUMBERING = {"mms": MMS_LABELS, "acdc": ACDC_LABELS}
COLUMNS = ("file", "frame", "LV_ml", "RV_ml", "MYO_g",
           *(f"{name}_{what}" for name in VENTRICLES for what in ("EDV_ml", "ESV_ml", "EF_percent", "ED", "ES")))


@dataclass(frozen=True)
class Config(ImagesConfig):
    segmenter: str = opt("", "final.pt of train_unet.py", required("a final.pt"))
    out: str       = opt("masks", "folder for the results")
    diffusion: str = opt("", "final.pt of train_diffusion.py: segment by DA; empty: the image as it is")
    strength: str  = opt("", "DA: what is averaged, `none` the image as it is, with a + between them; empty: as DA, "
                             "guided, averaged, in the experiment")
    labels: str    = opt("mms", "numbers in the mask: mms LV 1, MYO 2, RV 3; acdc RV 1, MYO 2, LV 3",
                         one_of(*NUMBERING))


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    images, device = find_images(c.images, c.out), pick_device(c.device)
    asked = parse_members(c.strength) if c.strength else None
    if asked and not c.diffusion:
        raise UsageError("--strength: what is averaged is made by a diffusion model; give it as --diffusion")
    segmenter = Segmenter.load(c.segmenter, device)
    sd_dm = SourceModel.load(c.diffusion, device) if c.diffusion else None
    members = default_members(sd_dm)
    if sd_dm:
        require_together(c, sd_dm.settings, segmenter.settings)
        members = asked or members
        for member in members:
            sd_dm.require_usable(member)

    def make(place, path):
        done = segment_file(path, segmenter, Path(c.out) / place, sd_dm, members, c.labels, c.seed)
        return {"file": place, **done}

    settings = {"segmenter": segmenter.hash, "sd_dm": sd_dm and sd_dm.hash, "labels": c.labels,
                "strength": "+".join(map(str, members)), "seed": c.seed}
    found, left_out = one_by_one(images, c.out, settings, make)
    write_csv(Path(c.out) / "volumes.csv", table(found), COLUMNS)
    require_all(left_out, len(images))


def require_together(c, of_sd_dm, of_segmenter):
    """Raise UsageError unless DA gives images the look that the segmenter was trained for, on the same grid."""
    trained_for = of_segmenter.get("domain") or of_segmenter["source"]       # an upper bound has a domain of its own
    look, known = (Domain.parse(text) for text in (of_sd_dm["source"], trained_for))
    grid, its_grid = Grid.of(of_sd_dm), Grid.of(of_segmenter)
    if str(look).lower() != str(known).lower() or grid != its_grid:
        raise UsageError(f"{c.diffusion} gives images the look of {look} on {grid}, but {c.segmenter} was trained for "
                         f"{known} on {its_grid}; give those of one experiment")


def segment_file(path, segmenter, out, sd_dm=None, members=None, labels="mms", seed=0):
    """Segment one NIfTI file, write the mask to `out` and a picture beside it; members None: as in the experiment.

    Returns {volumes: LV_ml, RV_ml and MYO_g of each frame, notes: warnings about the file}.
    """
    members = members or default_members(sd_dm)
    image, (subject, _) = read_image(path), subject_and_phase(path)
    frames, padding = zip(*map(without_padding, np.moveaxis(image.frames, 3, 0)))    # of each frame, as it is scaled
    way = _Way(image, segmenter, sd_dm, (seed, subject, 0))
    seen = [t for t, frame in enumerate(frames) if not is_blank(frame)]
    found = np.zeros(image.frames.shape, np.uint8)
    for t in tqdm(seen, "frames", leave=False, disable=not sys.stderr.isatty()):
        found[..., t] = way.labels(frames[t], members)
    on_disk = {ours: value for value, ours in NUMBERING[labels].items()}
    image.write_labels(out, np.array([on_disk[value] for value in range(4)], np.uint8)[found])
    measured = segmenter.structures if has_slice_spacing(image) else ()
    volumes = volumes_of(found, np.prod(image.spacing_mm) / 1000, measured, seen)
    shown = seen[:1]
    if len(seen) > 1 and "LV" in measured:                        # show end-diastole and end-systole
        lv_ml = lambda t: volumes[t]["LV_ml"]
        shown = [max(seen, key=lv_ml), min(seen, key=lv_ml)]
    rows = [row for t in shown for row in way.picture(frames[t], found[..., t], members)]
    save_png(picture_of(out), sheet(rows))
    _, geometry = way.to_working(frames[seen[0]])
    notes = [*image.nifti.notes, *dict.fromkeys(sum(padding, [])), *notes_on(image, segmenter, found, seen, geometry)]
    return {"volumes": volumes, "notes": notes}


def has_slice_spacing(image):
    """Whether the file has an axis of slices; one slice (X, Y) alone says nothing of its thickness."""
    return image.nifti.array.ndim > 2


def default_members(sd_dm):
    """The members of the test input in the row *DA, guided, averaged*; without a diffusion model the image as it is."""
    return (NONE, sd_dm.guided) if sd_dm else (NONE,)


@dataclass(frozen=True)
class _Way:
    """Takes volumes (X, Y, Z) of one image through projection and network."""
    image: ImageFile
    segmenter: Segmenter
    sd_dm: SourceModel                           # None without DA
    key: tuple                                   # key of the noise, the same for every frame

    def to_working(self, volume):
        """(working image (D, H, W), Geometry) of a volume."""
        working, _, geometry = to_working(volume, self.image, Grid.of(self.segmenter.settings))
        return working, geometry

    def input_of(self, working, member):
        """The working image that a member of the test input stands for, rounded as the experiment stores it."""
        if member == NONE:
            return working
        projected, _ = translate(self.sd_dm, working, self.sd_dm.settings["spacing_mm"], member, *self.key)
        return from_integers(as_integers(projected))

    def labels(self, volume, members):
        """Labels (X, Y, Z) uint8 from the averaged softmax of the members."""
        working, geometry = self.to_working(volume)
        spacing_mm = (self.image.spacing_mm[2], *[self.segmenter.settings["spacing_mm"]] * 2)
        logits = [self.segmenter.logits(self.input_of(working, member), spacing_mm) for member in members]
        return labels_on_original(logits, geometry)

    def picture(self, volume, labels, members):
        """Rows of panels with the labels on every slice; with DA also the labels without it and the projected image."""
        working, geometry = self.to_working(volume)
        grey, projections = grey_view(volume, geometry), [member for member in members if member != NONE]
        zoom = enlargement(grey)
        drawn = lambda labels: [with_contours(*pair, zoom) for pair in zip(grey, view(labels, geometry))]
        found = drawn(labels)
        if not projections:
            return [found[k:k + 6] for k in range(0, len(found), 6)]
        projected = changed(volume, working, self.input_of(working, projections[0]), geometry)
        seen = [with_contours(image, zoom=zoom) for image in grey_view(projected, geometry)]
        return two_a_row(list(map(list, zip(drawn(self.labels(volume, [NONE])), seen, found))))


def volumes_of(labels, voxel_ml, structures, seen):
    """[{LV_ml, RV_ml, MYO_g}] of each frame of labels (X, Y, Z, T); None for what is not measured.

    structures : those that are measured.  seen : frames in which they are; the others are blank.
    """
    rows = []
    for t, frame in enumerate(np.moveaxis(labels, 3, 0)):
        measured = structures if t in seen else ()
        ml = {name: float((frame == VALUES[name]).sum() * voxel_ml) for name in measured}
        mass_g = ml["MYO"] * MYOCARDIUM_G_PER_ML if "MYO" in ml else None
        rows.append({"LV_ml": ml.get("LV"), "RV_ml": ml.get("RV"), "MYO_g": mass_g})
    return rows


def table(found):
    """Rows of volumes.csv, one per frame; EDV, ESV and EF stand with a cine's first frame or a pair's ED."""
    rows, pairs = [], {}
    for of in found:
        frames = [{"file": of["file"], "frame": t, **volumes} for t, volumes in enumerate(of["volumes"])]
        rows += frames
        subject, phase = subject_and_phase(of["file"])
        if len(frames) > 1:
            for name in VENTRICLES:
                volume = lambda row: row[f"{name}_ml"]
                known = [row for row in frames if volume(row) is not None]
                if known:
                    frames[0].update(ejected(name, max(known, key=volume), min(known, key=volume), "frame"))
        elif phase:
            pairs.setdefault((Path(of["file"]).parent, subject), {})[phase] = frames[0]
    for pair in pairs.values():
        if len(pair) == 2:
            for name in VENTRICLES:
                pair["ED"].update(ejected(name, pair["ED"], pair["ES"], "file"))
    return rows


def ejected(name, ed, es, which):
    """EDV, ESV and EF of a ventricle from its rows at ED and ES, which column `which` names; {} if one is not known."""
    edv_ml, esv_ml = ed[f"{name}_ml"], es[f"{name}_ml"]
    if edv_ml is None or esv_ml is None:
        return {}
    ef = 100 * (edv_ml - esv_ml) / edv_ml if edv_ml and esv_ml else None             # in per cent of EDV
    return {f"{name}_EDV_ml": edv_ml, f"{name}_ESV_ml": esv_ml, f"{name}_EF_percent": ef, f"{name}_ED": ed[which],
            f"{name}_ES": es[which]}


def notes_on(image, segmenter, labels, seen, geometry):
    """Warnings about a segmentation (X, Y, Z, T).  seen : its frames that are not blank.  geometry : of one of them."""
    notes = coarse_pixels(image, Grid.of(segmenter.settings))
    unknown = [name for name in VALUES if name not in segmenter.structures]
    if unknown:
        notes.append(f"the network was not trained on {', '.join(unknown)}: none is found")
    (least, most), apart = segmenter.slices_mm, image.spacing_mm[2]
    if not has_slice_spacing(image):
        notes.append("one slice without a thickness: no volumes")
    elif not least / SIMILAR <= apart <= most * SIMILAR:
        notes.append(f"slices {apart:.1f} mm apart; the network was trained on {least:.1f} to {most:.1f} mm")
    blank = [str(t) for t in range(labels.shape[3]) if t not in seen]
    if blank:
        notes.append(f"frame {', '.join(blank)} is blank: no volumes")
    for name in segmenter.structures:
        frames = [str(t) for t in seen if not (labels[..., t] == VALUES[name]).any()]
        if frames:
            notes.append(f"no {name} found" + (f" in frame {', '.join(frames)}" if labels.shape[3] > 1 else ""))
    depth = depth_mm(geometry)
    if labels[(depth > 0) & (depth <= segmenter.settings["spacing_mm"])].any():
        notes.append("the segmentation reaches the border of the field of view, the heart may lie outside: crop the "
                     "image until the heart is in its middle")
    return notes


if __name__ == "__main__":
    run_script(main)
