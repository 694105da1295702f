"""Give image files the look of the source: `python -m cmr.translate IMAGE... --diffusion final.pt`.

    image -> working grid -> noised to t0 and denoised by the SD-DM -> what changed is added, on the image's own grid

Every result has the size, affine, header and data type of its image.  Outside the working field of view the image stays
as it is.  A cine is scaled and matched as a whole, so that no frame is brighter than the next; a single volume is
projected as DA projects it in the experiment.  Beside each lies a picture: before, after, difference.  With `--ladder`
only a picture is drawn, of three slices at several strengths.

Public: `Config`, `translate_file`, `draw_ladder`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.errors import run_script
from cmr.files import write_text
from cmr.grid import Grid, at_same_height, to_working
from cmr.image_files import (
    ImagesConfig, changed, coarse_pixels, find_images, grey_view, one_by_one, picture_of, read_image, require_all,
    subject_and_phase)
from cmr.pictures import FULL_COLOUR, difference, enlargement, labelled_sheet, save_png, sheet, two_a_row, with_contours
from cmr.sampler import GUIDED, SourceModel, Strength, translate
from cmr.settings import given, opt, parse
from cmr.workers import pick_device


@dataclass(frozen=True)
class Config(ImagesConfig):
    """Settings of the command."""
    diffusion: str = opt("", "final.pt of train_diffusion.py", given("a final.pt"))
    out: str       = opt("translated", "folder for the results")
    strength: str  = opt(GUIDED, "what is kept of the image; the default is that of DA, guided, in the experiment")
    ladder: str    = opt("", "several strengths, separated by ';': draw an image at each, as NAME_ladder.svg")


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    strength, *ladder = map(Strength.parse, [c.strength, *filter(None, c.ladder.split(";"))])
    images, sd_dm = find_images(c.images, c.out), SourceModel.load(c.diffusion, pick_device(c.device))
    for wanted in ladder or [strength]:
        sd_dm.require_usable(wanted)
    if ladder:
        for place, path in images.items():
            draw_ladder(path, sd_dm, picture_of(Path(c.out) / place, "_ladder.svg"), ladder, c.seed)
        return

    def make(place, path):
        return {"notes": translate_file(path, sd_dm, Path(c.out) / place, strength, c.seed)}

    settings = {"sd_dm": sd_dm.hash, "strength": str(strength), "seed": c.seed}
    _, left_out = one_by_one(images, c.out, settings, make)
    require_all(left_out, len(images))


def translate_file(path, sd_dm, out, strength=Strength.parse(GUIDED), seed=0):
    """Project one NIfTI file to the source, every frame with the same noise, and write it to `out` with a picture.

    sd_dm : a SourceModel.  Returns notes on what to mind.  Raises DataError for a file that is no image, NumericalError
    if the SD-DM draws nothing that can be used.
    """
    image, grid, (subject, _) = read_image(path), Grid.of(sd_dm.settings), subject_and_phase(path)
    stack = image.frames.reshape(*image.frames.shape[:2], -1)     # every slice of every frame: nothing mixes slices
    working, _, geometry = to_working(stack, image, grid)
    new, _ = translate(sd_dm, working, grid.spacing_mm, strength, seed, subject, 0)
    result = changed(stack, working, new, geometry)
    image.write_frames(out, result.reshape(image.frames.shape))
    before, after = (grey_view(volume[..., ::image.n_frames], geometry) for volume in (stack, result))
    zoom = enlargement(before)
    panels = [[with_contours(a, zoom=zoom), with_contours(b, zoom=zoom), difference(a, b, FULL_COLOUR, zoom)]
              for a, b in zip(before, after)]
    save_png(picture_of(out), sheet(two_a_row(panels)))
    return coarse_pixels(image, grid)


def draw_ladder(path, sd_dm, out, strengths, seed=0):
    """Draw the first frame of a NIfTI file on the working grid, as it is and at each of some strengths, to an SVG."""
    image, grid, (subject, _) = read_image(path), Grid.of(sd_dm.settings), subject_and_phase(path)
    working, *_ = to_working(image.frames[..., 0], image, grid)
    volumes = [working, *(translate(sd_dm, working, grid.spacing_mm, strength, seed, subject, 0)[0]
                          for strength in strengths)]
    chosen = np.unique(at_same_height(np.arange(len(working)), 5)[1:-1])         # neither the base nor the apex
    rows = [[with_contours(volume[k]) for k in chosen] for volume in volumes]
    write_text(out, labelled_sheet(rows, [f"slice {k + 1}" for k in chosen], ["as it is", *map(str, strengths)]))
    print(f"{path}: drawn at {len(strengths)} strengths in {out}", flush=True)


if __name__ == "__main__":
    run_script(main)
