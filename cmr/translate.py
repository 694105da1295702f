"""Give one's own images the look of the source: `python -m cmr.translate IMAGE... --diffusion final.pt --out FOLDER`.

    image -> working grid -> noised to t0 and denoised by the SD-DM -> what changed is added, on the image's own grid

Every result has the size, affine, header and data type of its image.  Outside the working field of view the image stays
as it is.  A cine is scaled and matched as a whole, so that no frame is brighter than the next; a single volume is
projected as DA projects it in the experiment.  Beside each lies a picture: before, after, difference.

Public: `Config`, `projected_members`, `load_sd_dm`, `translate_file`.
"""
from dataclasses import dataclass, replace
from pathlib import Path

from cmr.errors import UsageError, run_script
from cmr.grid import Grid
from cmr.own_files import OwnConfig, find_images, one_by_one, parse_centre, picture_of, require_all, subject_and_phase
from cmr.own_image import Field, read_own, unusual_pixels
from cmr.pictures import difference, enlargement, save_png, sheet, two_a_row, with_contours
from cmr.sampler import DEFAULT_STRENGTH, NONE, SourceModel, parse_members, translate
from cmr.settings import given, opt, parse
from cmr.workers import pick_device

FULL_COLOUR = 1.0                                # the difference that is drawn in full colour, of 2 from black to white


@dataclass(frozen=True)
class Config(OwnConfig):
    """Settings of the command."""
    diffusion: str = opt("", "final.pt of train_diffusion.py", given("a final.pt"))


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    members = [member for member in projected_members(c.strength, c.t0, c.steps) if member != NONE]
    if len(members) != 1:
        raise UsageError(f"--strength {c.strength}: one projection is needed, found {len(members)}")
    jobs, centre = find_images(c.images, c.out), parse_centre(c.centre)
    sd_dm = load_sd_dm(c.diffusion, members, pick_device(c.device))
    settings = {"sd_dm": sd_dm.hash, "strength": str(members[0]), "centre": c.centre, "seed": c.seed}

    def make(job):
        return {"notes": translate_file(job.path, sd_dm, Path(c.out) / job.place, members[0], centre, c.seed)}

    _, left_out = one_by_one(jobs, c.out, settings, make)
    require_all(left_out, len(jobs))


def projected_members(text, t0=0, steps=0):
    """The members of a test input; t0 and steps, unless 0, in place of those that the text says."""
    changes = {name: value for name, value in (("t0", t0), ("steps", steps)) if value}
    return [member if member == NONE else replace(member, **changes) for member in parse_members(text)]


def load_sd_dm(path, members, device):
    """The SD-DM; raises UsageError for a member that starts beyond its times."""
    sd_dm = SourceModel.load(path, device)
    for member in members:
        if member != NONE and member.t0 > sd_dm.schedule.T:
            raise UsageError(f"strength {member}: t0 exceeds the model's T = {sd_dm.schedule.T}")
    return sd_dm


def translate_file(path, sd_dm, out, strength=None, centre=None, seed=0):
    """Project one NIfTI file to the source, frame by frame, and write it to `out` with a picture beside it.

    sd_dm : a SourceModel.  strength : a Strength; None: that of DA.  centre : the voxel (x, y) in the middle of the
    field of view; None: the image's middle.  Returns notes on what to mind.  Raises DataError for a file that is no
    image, NumericalError if the SD-DM draws nothing that can be used.
    """
    if strength is None:
        strength = next(member for member in parse_members(DEFAULT_STRENGTH["da"]) if member != NONE)
    own, grid = read_own(path), Grid.of(sd_dm.settings)
    field, (subject, _) = Field(own, grid, centre), subject_and_phase(path)
    stack = own.frames.reshape(*own.frames.shape[:2], -1)         # every slice of every frame: nothing mixes slices
    image, geometry = field.to_working(stack)
    new, _ = translate(sd_dm, image, grid.spacing_mm, strength, seed, subject, 0)
    result = field.changed(stack, image, new, geometry)
    own.write_frames(out, result.reshape(own.frames.shape))
    _draw(picture_of(out), *(field.grey_view(v[..., ::own.n_frames], geometry) for v in (stack, result)))
    return unusual_pixels(own, grid)


def _draw(path, before, after):
    """The slices of the first frame (D, H, W), two a row: before, after, difference."""
    zoom = enlargement(before)
    panels = [[with_contours(a, zoom=zoom), with_contours(b, zoom=zoom), difference(a, b, FULL_COLOUR, zoom)]
              for a, b in zip(before, after)]
    save_png(path, sheet(two_a_row(panels)))


if __name__ == "__main__":
    run_script(main)
