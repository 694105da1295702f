"""Faults as a careless user or a bad disk makes them, asked from the command line: `python tests/fault_table.py`.

    a small experiment by make -> a copy of it for each fault -> the fault -> a command -> exit code and last line

Prints the table fault -> answer of docs/faults.md and exits 1 if one of them ends in a traceback, in silence, too late,
with another code or without the words that are expected.  A word of a fault's name as argument asks those faults alone.
"""
import gzip
import re
import shutil
import sys
import tempfile
from pathlib import Path
from signal import SIGINT, SIGTERM

import numpy as np

from fault_place import (MAKE, Place, ask, checkpoint_vanishes, done, edited, flip_bit, flipped, flipped_in_the_cache,
                         in_colour, interrupted, malicious, moved, resaved, rewrite, rotation, shell,
                         singular, trained_anew, truncate, two_locales, two_makes, unzipped, while_working, with_cells,
                         with_text, without_last_row, without_spacing, worker_killed)


# ---- What is damaged ---------------------------------------------------------------------------------------------

def to(paths, damage, *args, **more):
    """A damage of a path, or of each of several, that a function of a Place finds."""
    def act(p):
        found = paths(p)
        for path in found if isinstance(found, list) else [found]:
            damage(path, *args, **more)
    return act


def both(*acts):
    def act(p):
        for one in acts:
            one(p)
    return act


def study_twice(p):
    """A test study under the name of a training study."""
    for path in (Place.image, Place.mask):
        shutil.copy(path(p, "A", "Testing"), path(p))


def behind_a_link(p):
    shutil.move(p.image().parent, p.folder / "disk")
    (p.data / "another disk").symlink_to(p.folder / "disk")
    (p.data / "all").symlink_to(p.data)


def with_older_table(p):
    older = p.table().read_text(encoding="utf-8-sig").replace(",A,", ",D,")
    with_text(p.data / "zz" / "201014_M&Ms_Dataset_Information_-_opendataset.csv", older)


def one_patient(p):
    keep = p.image().parent
    for folder in {path.parent for path in p.data.rglob("*_sa.nii.gz")} - {keep}:
        shutil.rmtree(folder)


def group(name, command, cases):
    """[(group, fault, exit code, words of the answer, act, command)] of cases (fault, code, words, act[, command]).

    act : does the damage to a Place; where it returns a command or an answer (exit code, stdout, stderr), that is taken
    instead of the command.  command : in place of the group's.
    """
    return [(name, *case[:4], *(case[4:] or [command])) for case in cases]


# ---- The table ---------------------------------------------------------------------------------------------------

asked = lambda stage, *flags: lambda p: getattr(p, stage)(*flags)
in_run = lambda name: lambda p: p.run / name
image, mask, table = Place.image, Place.mask, Place.table
pair = lambda p: [p.image(), p.mask()]
masks = lambda p: list(p.data.rglob("*_gt.nii.gz"))
sd_dm, final_vanilla, final_synthetic, final_nnunet = (in_run(f"{stage}/final.pt") for stage in (
    "diffusion", "segmenter-vanilla-real", "segmenter-vanilla-synthetic", "segmenter-nnunet2d-real"))
dg, da = in_run("dg/manifest.csv"), in_run("da/manifest.csv")
check, look, evaluate, synthesize, train = Place.check, Place.look, Place.evaluate, Place.synthesize, Place.train
moved_away, sealed, mounts = "its affine puts it elsewhere", "not as it was written", "unshare -m sh -c"
zeroed = lambda value: lambda array: np.where(array == value, 0, array)
frames = lambda change: to(table, edited, with_cells(["ED", "ES"], change, separator=";"))
spoilt = ((flip_bit, "checkpoint with one bit flipped", "damaged"),
          (truncate, "truncated checkpoint", "damaged or truncated"),
          (with_text, "empty checkpoint", "damaged or truncated"),
          (malicious, "malicious pickle", "not a plain checkpoint"),
          (Path.unlink, "checkpoint deleted", "no such checkpoint"))
flags = {"diffusion": ("--steps 0", "--lr 0", "--lr nan", "--ema 2", "--spacing-mm -2", "--head 25", "--log-every 0",
                       "--save-minutes -1", "--sample-every 0", "--size 63", "--schedule foo",
                       "--seed -1", "--T 1", "--batch 0", "--warmup 0", "--multipliers 0", "--groups 5",
                       "--patch 0", "--device tpu", "--device mps", "--device cuda:x"),
         "train": ("--steps 0", "--lr 0", "--features 0", "--levels 1", "--size 63", "--memory-gb 0",
                   "--train-on reel", "--network resnet", "--batch 0"),
         "evaluate": ("--processes -1", "--projected t0=x"),
         "synthesize": ("--shift -1", "--samples -2", "--strength t=3")}
stages = {"diffusion": (asked("diffusion", "--steps", 5000), "log.csv"),
          "train": (asked("train", "--steps", 50000), "log.csv"),
          "synthesize": (asked("synthesize", "--samples", 50), "items"),
          "evaluate": (asked("evaluate", "--processes", 1), "predictions"), "phantom": (Place.phantom, "OpenDataset")}

FAULTS = group("a mask that lies elsewhere", check, [
    ("its affine flipped left to right", 3, moved_away, to(mask, moved, np.diag([-1.0, 1, 1, 1]))),
    ("its affine turned by 5 degrees", 3, moved_away, to(mask, moved, rotation(5))),
    ("its affine moved by 30 mm", 3, moved_away, to(mask, moved, np.eye(4) + 30 * np.eye(4, k=3))),
    ("re-exported in another orientation, correctly", 0, "turned to its image's", to(mask, flipped)),
    ("another shape", 3, "shape", to(mask, rewrite, lambda a: a[:-3])),
    ("another spacing", 3, "spacing", to(mask, rewrite, zooms=(1.5, 1.5, 9)))])
FAULTS += group("labels", check, [
    ("NaN voxels", 3, "NaN or infinite",
     to(mask, rewrite, lambda a: np.where(a == 1, np.nan, a.astype(np.float32)), kind=np.float32)),
    ("LV and RV swapped in every mask", 0, "LV and RV look swapped",
     to(masks, rewrite, lambda a: np.array([0, 3, 2, 1], np.uint8)[a.astype(int)])),
    ("value 7", 3, "label values [7]", to(mask, rewrite, lambda a: np.where(a == 1, 7, a))),
    ("resampled linearly", 3, "not integers", to(mask, rewrite, lambda a: a * np.float32(0.9), kind=np.float32)),
    ("RV absent from the whole training split", 0, "RV labelled in no training volume",
     to(lambda p: [path for path in masks(p) if "Training" in str(path)], rewrite, zeroed(3))),
    ("RV absent from one training mask", 0, "not fully labelled (training leaves the volume out",
     to(mask, rewrite, zeroed(3))),
    ("one training mask all zero", 0, "its mask is all zero", to(mask, rewrite, lambda a: 0 * a))])
FAULTS += group("data edited since", evaluate, [
    ("a test mask, after da/ was made", 4, "changed since",
     to(lambda p: p.mask("D", "Testing"), rewrite, lambda a: np.roll(a, 1, 0))),
    ("a training image, before evaluation", 4, "trained on other data", to(image, rewrite, lambda a: a // 2)),
    ("a reference, DG half made", 4, "changed, added or lost since",
     both(to(dg, Path.unlink), to(mask, rewrite, lambda a: np.roll(a, 1, 0))), Place.synthesize_on),
    ("a test image, then make", 2, "changed since",
     to(lambda p: p.image("D", "Testing"), rewrite, lambda a: a // 2), Place.make),
    ("DATA=y/data after DATA=x/data: a run of its own", 0, "to do  diffusion/final.pt",
     lambda p: shutil.copytree(p.data, p.folder / "y" / "data"),
     lambda p: p.make(f"DATA={p.folder / 'y' / 'data'}", goal="plan"))])
FAULTS += group("parts of another experiment", evaluate, [
    ("evaluate on another grid", 4, "spacing_mm: 2.5 there, 2.0 now", asked("evaluate", "--spacing-mm", 2.0)),
    ("synthesize on another grid", 4, "size: 64 there, 32 now", asked("synthesize", "--size", 32)),
    ("a segmenter for a diffusion model", 4, "not a finished diffusion model",
     lambda p: p.synthesize("--diffusion", p.final("segmenter-vanilla-real"))),
    ("a diffusion model for a segmenter", 4, "not a finished segmenter",
     lambda p: p.synthesize("--segmenter", p.final("diffusion"))),
    ("a synthetic segmenter of another source in the table", 4, "'vendor=b' there",
     to(final_synthetic, resaved, "source", "Vendor=B")),
    ("synthesis audited by a segmenter of another source", 4, "'vendor=b' there",
     to(final_vanilla, resaved, "source", "Vendor=B"), synthesize),
    ("a checkpoint of another architecture", 4, "weights of another network",
     to(final_vanilla, resaved, "features", 16)),
    ("source and target overlap", 2, "must be unseen", asked("check", "--source", "Vendor=A,B")),
    ("a source of which nobody is: Vendor=Q", 2, "Vendor has A", asked("check", "--source", "Vendor=Q")),
    ("a source of which nobody is: Vendor=A,Q", 2, "Vendor has A", asked("check", "--source", "Vendor=A,Q"))])
FAULTS += group("studies that vanish", check, [
    ("a test mask deleted", 0, "has no mask", to(lambda p: p.mask("B", "Testing"), Path.unlink)),
    ("a training mask deleted", 0, "has no mask", to(mask, Path.unlink)),
    *((f"a file of dg/{folder} deleted", 3, words,
       to(lambda p, folder=folder: sorted((p.run / "dg" / folder).iterdir())[1], Path.unlink),
       lambda p: p.train("--train-on", "synthetic", "--synthetic", p.run / "dg"))
      for folder, words in (("imagesTr", "the image of"), ("labelsTr", "the mask of"))),
    (".nii beside .nii.gz of one study", 3, "there twice",
     to(pair, lambda path: path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())))),
    ("a backup copy in DATA/old", 3, "there twice",
     lambda p: shutil.copytree(p.image().parent, p.data / "old" / p.image().parent.name)),
    ("one code twice in the table, of different vendors", 3, "two rows of",
     to(table, edited, lambda text: text + re.sub(",[ABCD],", ",Q,", text.splitlines()[-1]) + "\n")),
    ("files without a row in the table", 0, "left out", to(table, edited, without_last_row), look),
    ("a row without files", 0, "left out", lambda p: shutil.rmtree(p.image("D", "Testing").parent)),
    ("one subject in training and in testing", 3, "leakage", study_twice)])
FAULTS += group("damaged files", check, [
    ("one bit flipped in a cached volume", 0, "damaged entry of the cache; it is made again",
     flipped_in_the_cache, asked("train", "--steps", 2)),
    ("truncated image", 3, "truncated or damaged", to(image, truncate)),
    ("one bit flipped in an image", 3, "truncated or damaged", to(image, flip_bit)),
    ("an empty image", 3, "is empty", to(image, with_text)),
    ("a web page saved as image", 3, "begins with", to(image, with_text, "<html>")),
    ("RGB image", 3, "grey values", to(image, in_colour)),
    ("complex image", 3, "grey values", to(image, rewrite, kind=np.complex64)),
    ("2D image", 3, "expected (X, Y, Z)", to(image, rewrite, lambda a: a[:, :, 0, 0])),
    ("micrometres", 3, "correct the header", to(image, rewrite, zooms=(1250, 1250, 9000))),
    ("constant image", 3, "is constant", to(image, rewrite, lambda a: a * 0 + 5)),
    ("affine that cannot be inverted", 3, "cannot be inverted", to(image, singular)),
    ("NaN voxels in an image: named with the file", 0, "_sa.nii.gz (2 volumes)",
     to(image, rewrite, lambda a: np.where(a > 100, np.nan, a.astype(np.float32)), kind=np.float32)),
    ("64-bit integers", 0, "structures", to(image, rewrite, kind=np.int64)),
    *((name + of, 4, words, to(path, damage), command) for damage, name, words in spoilt
      for of, path, command in (("", sd_dm, synthesize), (" of a segmenter", final_nnunet, evaluate))),
    ("config.json damaged: final.pt knows its settings", 0, "finished already",
     to(in_run("segmenter-vanilla-real/config.json"), with_text, "{"), Place.finish),
    ("an items/*.json damaged: its image is made again", 0, "damaged; its image is made again",
     both(to(dg, Path.unlink),
          to(lambda p: min((p.run / "dg" / "items").iterdir()), with_text, "{")), Place.synthesize_on),
    *((f"manifest without the column {column}", 3, sealed,
       to(da, edited, lambda text, c=column: text.replace(f",{c},", ",other,", 1)), evaluate)
      for column in ("reference", "strength", "sd_dm", "reference_content")),
    ("manifest without its last row", 3, sealed, to(da, edited, without_last_row), evaluate),
    ("manifest empty", 3, sealed, to(da, with_text), evaluate),
    ("a SHA-256 lost", 3, sealed, to(in_run("da/manifest.csv.sha256"), Path.unlink), evaluate),
    ("an SD-DM trained anew after da/ was made", 4, "another diffusion model", trained_anew, evaluate)])
FAULTS += group("tables", check, [
    *((f"CSV in {encoding}", 0, "structures", to(
        table, edited, with_cells(["Pathology"], lambda cell: "Å-Körper", rows=1), encoding))
      for encoding in ("latin-1", "utf-16", "utf-8-sig")),
    ("semicolons, as Excel writes them", 0, "structures", to(table, edited, lambda text: text.replace(",", ";"))),
    *((f"ED frame {value!r}", 0, "ED frame",
       to(table, edited, with_cells(["ED"], lambda cell, value=value: value, rows=1)), look)
      for value in ("inf", "-3", "99", "x", "")),
    ("no column ED", 3, "column ED missing", to(table, edited, lambda text: text.replace(",ED,", ",E.D.,"))),
    ("no CSV at all", 3, "no CSV", to(table, Path.unlink))])
FAULTS += group("someone else's data", look, [
    ("a study behind a link, and a link that leads back", 0, "a loop, not followed", behind_a_link),
    ("a folder Test_set", 0, "lie in no folder of a split",
     lambda p: next(p.data.rglob("Testing")).rename(p.data / "Test_set")),
    ("an older table in a subfolder", 0, "is taken for the newest", with_older_table),
    ("ED and ES with decimal commas", 0, "structures: LV in 34", frames(lambda cell: cell + ",0")),
    ("ED = ES = 0 in every row", 2, "though a mask is there", frames(lambda cell: "0")),
    ("ED and ES counted from 1", 0, "must count from 0", frames(lambda cell: str(int(cell) + 1))),
    ("voxel size 0 in-plane", 3, "voxel size (0.0, 0.0", to(pair, without_spacing)),
    ("slices stored first", 3, "is the slice axis the third?", to(image, rewrite, lambda a: a.transpose(2, 1, 0, 3))),
    ("padding of -32768", 0, "not normalised by",
     to(image, rewrite, lambda a: np.where(np.arange(len(a))[:, None, None, None] < 20, np.int16(-32768), a))),
    ("an uncompressed file called .nii.gz", 0, "structures: LV in 34", to(image, unzipped)),
    ("--data x,x", 2, "name each dataset once", lambda p: p.look(f"{p.data},{p.data}")),
    ("--data x,", 2, "an empty name beside a comma", lambda p: p.look(f"{p.data},"))])
FAULTS += group("flags", train, [
    *((f"{stage} {flag}", 2, flag.split()[0][2:] if stage == "synthesize" else "use",
       asked(stage, *flag.split())) for stage, all_flags in flags.items() for flag in all_flags),
    ("a flag misspelt", 2, "unrecognized arguments: --stesp", asked("train", "--stesp", 3)),
    ("--data forgotten", 2, "--data", lambda p: ["train_unet.py", "--preset", "tiny", "--out", p.out]),
    *((f"make {setting}", 2, f"--{setting.split('=')[0].lower()}", asked("make", setting))
      for setting in ("SEED=x", "SEEDS=1.5", "JOBS=two", "PRESET=big", "RUNS=a b"))])
FAULTS += group("what is the user's", Place.finish, [
    ("training into a finished folder with other settings", 4, "steps: 60 there, 7 now", asked("finish", "--steps", 7)),
    ("... with the same settings", 0, "finished already", None),
    ("a file .notes.tmp.txt below --out is kept", 0, "mine", lambda p: with_text(p.out / ".notes.tmp.txt", "mine\n"),
     lambda p: shell(p.train("--steps", 2), after=f"cat {p.out}/.notes.tmp.txt")),
    ("make clean RUNS=folder with a user's files: they are kept", 0, "mine",
     to(lambda p: [p.runs / "thesis.txt", p.runs / "tiny/mine/notes.txt"], with_text, "mine\n"),
     lambda p: shell(["make", "clean", f"RUNS={p.runs}", f"PYTHON={sys.executable}"], after=(
         f"test ! -e {p.run}/diffusion && cat {p.runs}/thesis.txt {p.runs}/tiny/mine/notes.txt"))),
    ("--out inside the dataset", 2, "lies in the dataset", lambda p: p.train("--out", p.data / "run")),
    ("two processes in one folder", 5, "is working there",
     lambda p: while_working(p.train("--steps", 2000), p.out / ".lock")),
    ("two makes at the same time", 2, "is working there", two_makes)])
FAULTS += group("hangs", evaluate, [
    ("a worker of evaluate killed", 5, "a worker process was killed", worker_killed),
    ("a checkpoint that vanishes while workers start", 4, "no such checkpoint", checkpoint_vanishes),
    *((f"{number.name} in {stage}", 130, "interrupted", interrupted(number, *how))
      for stage, how in stages.items() for number in (SIGINT, SIGTERM))])
FAULTS += group("training", train, [
    ("a loss that is not finite, before anything was saved", 6, "no state was saved before",
     asked("train", "--lr", 1e30)),
    ("out of memory on the CPU", 5, "make --batch", lambda p: shell(
        p.train("--batch", 100_000, "--features", 512, "--steps", 1), before="ulimit -v 6000000")),
    ("resumed with other settings", 4, "was written with other settings",
     to(final_vanilla, lambda path: path.rename(path.with_name("last.pt"))), asked("finish", "--lr", 1e-4)),
    ("a dataset of one patient", 2, "", one_patient, check)])
FAULTS += group("places", check, [
    ("full disk", 5, "cannot be written", lambda p: shell(
        p.train("--steps", 2, "--out", "/mnt/run"), mounts, "mount -t tmpfs -o size=64k none /mnt")),
    ("/dev/shm of 64 kB, as many a container has, and --workers", 5, "/dev/shm", lambda p: shell(
        p.train("--workers", 2), mounts, "mount -t tmpfs -o size=64k none /dev/shm")),
    ("a host whose name no network knows: two ranks", 0, "mean Dice", lambda p: shell(
        ["-m", "cmr.ranks", 2, *p.train("--steps", 2)], "unshare -u sh -c", "hostname nameless")),
    ("a read-only dataset", 0, "mean Dice", lambda p: shell(p.train("--steps", 2), mounts, (
        f"mount --bind {p.data} {p.data} && mount -o remount,ro,bind {p.data}"))),
    ("a run folder that cannot be written", 5, "choose another --out",
     lambda p: with_text(p.folder / "file"), lambda p: p.train("--out", p.folder / "file" / "run")),
    ("data behind a symlink", 0, "structures", lambda p: (p.folder / "link").symlink_to(p.data),
     lambda p: [*p.look(p.folder / "link"), "--target", "Vendor=B,C,D"]),
    ("a path with spaces and umlauts: scripts", 0, "structures",
     lambda p: p.look(p.data.rename(p.folder / "Daten für Köln"))),
    ("a path with spaces: make", 2, "letters, digits and", lambda p: p.make(f"RUNS={p.folder / 'my runs'}")),
    ("another working directory", 0, "structures", lambda p: shell(p.check(), before="cd /")),
    ("a folder that is not there", 3, "no such folder", lambda p: p.look(p.folder / "absent")),
    ("a folder without images", 3, "no files of a known layout", lambda p: (p.folder / "empty").mkdir(),
     lambda p: p.look(p.folder / "empty")),
    ("a checkpoint deleted in mid-pipeline, then make", 0, "to do  segmenter-vanilla-real/final.pt",
     to(final_vanilla, Path.unlink), lambda p: p.make(goal="plan")),
    ("PYTHONHASHSEED and a comma locale: the same weights", 0, "", two_locales)])


# ---- Asking ------------------------------------------------------------------------------------------------------

def shown(out, errors, words):
    """The line that answers: an error, else the one with the expected words, else the last."""
    lines = [line.strip() for line in (errors + "\n" + out).splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith(("error: ", "Makefile:"))]
    having = [line for line in lines if words and words in line]
    return (refusals or having or lines[-1:] or [""])[0].replace("|", "/")


def answered(place, act, command):
    """(exit code, stdout, stderr) of a fault; what goes wrong in making it stands there too."""
    try:
        found = act(place) if act else None
        asks = found if isinstance(found, (list, tuple)) else command(place)
        return asks if isinstance(asks, tuple) else ask(asks)
    except Exception as error:
        return type(error).__name__, "", str(error)


def main(words):
    wanted = [entry for entry in FAULTS if not words or any(word in f"{entry[0]}: {entry[1]}" for word in words)]
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        done(["-m", "cmr.phantom", "--preset", "tiny", "--out", base / "data"])
        done([*MAKE, "reproduce", f"DATA={base / 'data'}", f"RUNS={base / 'runs'}"])
        print("| | fault | exit | answer |\n|---|---|---|---|")
        for i, (group_name, name, code, expected, act, command) in enumerate(wanted):
            folder = Path(scratch) / f"f{i}"
            place = Place(folder, base)
            got, out, errors = answered(place, act, command)
            said, line = out + errors, shown(out, errors, expected).replace(f"{folder}/", "").replace(f"{scratch}/", "")
            line = line.replace("runs/tiny/" + place.run.name, "RUN")[:200]
            good = got == code and expected in said and "Traceback" not in said
            print(f"| {group_name} | {name} | {got} | {line} |" + ("" if good else "  **NOT AS EXPECTED**"), flush=True)
            if not good:
                failed += 1
                print(said[-1500:], file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{len(wanted)} faults, {len(wanted) - failed} answered as expected", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
