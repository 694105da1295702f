"""Files of one's own, one after the other: which there are, what was finished before, which could not be used.

What is done with each is the business of `cmr.translate` and `cmr.segment`.

Public: `OwnConfig`, `Job`, `find_images`, `one_by_one`, `require_all`, `subject_and_phase`, `picture_of`,
`parse_centre`.
"""
import re
from dataclasses import dataclass
from pathlib import Path

from cmr import checkpoint
from cmr.errors import DataError, NumericalError, UsageError
from cmr.files import read_json, read_sealed_json, sha256, writable_folder, write_json, write_sealed_json
from cmr.sampler import DEFAULT_STRENGTH
from cmr.settings import at_least, given, opt

SUFFIX = re.compile(r"\.nii(\.gz)?$")
NAME = re.compile(r"(.+?)(?:_sa)?(?:_(ED|ES))?(?:_0000)?", re.IGNORECASE)


@dataclass(frozen=True)
class OwnConfig:
    """What both commands are told."""
    images: tuple = opt((), "NIfTI files, or folders of them: one slice, a stack, or a cine with its frames last")
    out: str = opt("", "folder for the results", given("a folder"))
    strength: str = opt(DEFAULT_STRENGTH["da"], "what is kept of the image when it is projected to the source; the "
                                                "default is that of DA in the experiment")
    t0: int = opt(0, "start time of the projection; 0: as in --strength", at_least(0))
    steps: int = opt(0, "network calls of the projection; 0: as in --strength", at_least(0))
    centre: str = opt("", "x,y: the voxel, along the in-plane axes of the file, in the middle of the field of view; "
                          "empty: the middle of the image")
    seed: int = opt(0, "of the noise, which is the same for every slice and frame", at_least(0))
    device: str = opt("auto", "auto (the first GPU if there is one), cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Job:
    """One file, and its place below the folder of results."""
    path: Path
    place: Path

    @property
    def name(self):
        return str(self.place)


def find_images(images, out):
    """Every image among files and folders, as Jobs; raises UsageError if there is none or if results would collide.

    A mask that lies beside its image, `_gt` at the end of the same name, is no image.
    """
    if not images:
        raise UsageError("no image given; name NIfTI files, or folders of them")
    jobs = []
    for given_path in map(Path, images):
        below = _below(given_path) if given_path.is_dir() else [given_path]
        jobs += [Job(path, path.relative_to(given_path) if given_path.is_dir() else Path(path.name)) for path in below]
    first = {}
    for job in jobs:
        other = first.setdefault(SUFFIX.sub("", job.name), job)
        if other.path.resolve() != job.path.resolve():
            raise UsageError(f"{other.path} and {job.path} would have results of one name; give them one by one")
        if (Path(out) / job.place).resolve() == job.path.resolve():
            raise UsageError(f"--out {out}: the result would replace {job.path}; choose another folder")
    return list(first.values())


def _below(folder):
    """NIfTI files below a folder, hidden ones and masks left out."""
    files = {path for path in folder.rglob("*.nii*") if SUFFIX.search(path.name) and path.is_file()}
    hidden = {path for path in files if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    masks = {path for path in files if path.with_name(path.name.replace("_gt.nii", ".nii")) in files - {path}}
    if not files - hidden - masks:
        raise UsageError(f"{folder}: no NIfTI files below it")
    if masks:
        print(f"{folder}: {len(masks)} files called as another with _gt are taken for masks and left alone", flush=True)
    return sorted(files - hidden - masks)


def one_by_one(jobs, out, settings, make):
    """([what make(job) found], [why a file was left out]) of all jobs; what was finished before is not done again.

    make(job) writes the results of a file and returns plain values, among them `notes`: what to mind.  settings : all
    that decides what comes out; raises CheckpointError where results of others lie.  An image that cannot be used does
    not stop the rest.
    """
    out = writable_folder(out)
    begun = out / "settings.json"
    if begun.exists():
        checkpoint.require_settings(begun, read_json(begun), settings)
    write_json(begun, settings)
    found, left_out = [], []
    for n, job in enumerate(jobs, 1):
        try:
            found.append(_finished(job, out) or _made(job, out, make, f"{n} of {len(jobs)}"))
        except (DataError, NumericalError, PermissionError) as error:
            left_out.append(f"{job.path}: permission denied" if isinstance(error, PermissionError) else str(error))
            print(f"left out: {left_out[-1]}", flush=True)
            continue
        for note in found[-1]["notes"]:
            print(f"note: {job.path}: {note}", flush=True)
    return found, left_out


def _entry(job, out):
    return out / "finished" / f"{SUFFIX.sub('', job.name)}.json"


def _finished(job, out):
    """What was found when the file was done before, or None if it was not, or is another file now."""
    entry = read_sealed_json(_entry(job, out))
    whole = entry and job.path.is_file() and entry["image"] == sha256(job.path) and (out / job.place).is_file()
    return entry["found"] if whole else None


def _made(job, out, make, which):
    print(f"{which}: {job.path}", flush=True)
    found = make(job)
    write_sealed_json(_entry(job, out), {"image": sha256(job.path), "found": found})
    return found


def require_all(left_out, n_jobs):
    """Raise DataError at the end if images were left out."""
    if left_out:
        others = f" (and {len(left_out) - 1} more, named above)" if len(left_out) > 1 else ""
        raise DataError(f"{len(left_out)} of {n_jobs} images could not be used: {left_out[0]}{others}")


def subject_and_phase(path):
    """(subject, ED, ES or None) by the name of a file: A0S9V9_sa_ED.nii.gz is of A0S9V9."""
    subject, phase = NAME.fullmatch(SUFFIX.sub("", Path(path).name)).groups()
    return subject, phase and phase.upper()


def picture_of(path):
    """Where the picture of a NIfTI file lies."""
    return Path(path).with_name(SUFFIX.sub("", Path(path).name) + ".png")


def parse_centre(text):
    """(x, y) from `x,y`, None from an empty text; raises UsageError for anything else."""
    if not text:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--centre {text!r}: use two voxel numbers, x,y") from error
    return x, y
