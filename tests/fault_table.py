"""Faults as a careless user or a bad disk makes them, asked from the command line: `python tests/fault_table.py`.

    a small experiment by make -> a copy of it for each fault -> the fault -> a command -> exit code and last line

Prints the table fault -> answer and exits 1 if one of them ends in a traceback, in silence, too late, with another code
or without the words that are expected.  A word of a fault's name as argument asks those faults alone.
"""
import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from cmr.studies import find  # noqa: E402

LIMIT_S = 240
TARGET = "Vendor=B,C,D"
MAKE = ["make", "reproduce", "PRESET=tiny", "NETWORKS=vanilla nnunet2d", "TRAINED=real synthetic", "CONTROLS=",
        "JOBS=1", "THREADS=1", f"PYTHON={sys.executable}"]
FAULTS = []                                      # (group, fault, exit code, words of the answer, function)


def fault(group, name, code, words):
    """Enter a function of a Place that does the damage and returns the command to ask (or its finished answer)."""
    def enter(function):
        FAULTS.append((group, name, code, words, function))
        return function
    return enter


class Place:
    """One copy of the data and of the experiment, to be damaged; commands on it."""

    def __init__(self, folder, base):
        self.folder, self.base = folder, base
        self.data, self.runs, self.out = folder / "data", folder / "runs", folder / "out"
        for name in ("data", "runs"):
            shutil.copytree(base / name, folder / name, copy_function=shutil.copy2)
        self.work = self.runs / "tiny" / "work"
        made = next((self.runs / "tiny").glob("*-seed0"))         # make names a run by the whole path of its dataset
        path_sum = subprocess.run(["cksum"], input=f"{self.data}\n", capture_output=True, text=True).stdout.split()[0]
        self.run = made.rename(made.with_name(f"data-{path_sum}-{made.name.split('-', 2)[2]}"))

    def image(self, vendor="A", split="Training"):
        return Path(next(r for r in find(self.data) if r.vendor == vendor and r.split == split).image_path)

    def mask(self, vendor="A", split="Training"):
        return mask_of(self.image(vendor, split))

    @property
    def table(self):
        return next(self.data.rglob("*.csv"))

    @property
    def on(self):
        return ["--preset", "tiny", "--data", self.data, "--work", self.work]

    def check(self, *more):
        return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", self.data, "--target", TARGET, *more]

    def train(self, *more):
        return ["train_unet.py", *self.on, "--out", self.out, *more]

    def diffusion(self, *more):
        return ["train_diffusion.py", *self.on, "--out", self.out, *more]

    def synthesize(self, arm, *more, out=None):
        models = ["--diffusion", self.run / "diffusion" / "final.pt",
                  "--segmenter", self.run / "segmenter-vanilla-real" / "final.pt"]
        given = ["--target", TARGET] if arm == "da" else []
        return ["-m", "cmr.synthesize", *self.on, "--use", arm, *models, *given, "--out", out or self.out, *more]

    def evaluate(self, *more):
        names = [f"{network}-{kind}" for network in ("vanilla", "nnunet2d") for kind in ("real", "synthetic")]
        return ["evaluate.py", *self.on, "--target", TARGET, "--run", self.run, "--segmenters", ",".join(names),
                "--out", self.out, *more]

    def make(self, *more):
        return [*MAKE, f"DATA={self.data}", f"RUNS={self.runs}", *more]


def ask(command, cwd=ROOT, env=None):
    """(exit code, stdout, stderr) of a command as a user gives it; code None: it did not end in LIMIT_S."""
    words = [str(word) for word in command]
    words = words if words[0] in ("make", "bash") else [sys.executable, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    child = subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
                             start_new_session=True)
    try:
        out, errors = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, errors = child.communicate()
        return None, out, errors
    return child.returncode, out, errors


def wait_for(there, seconds=120):
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.05)


def started(command):
    """A command that goes on in the background."""
    words = [sys.executable, *map(str, command)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)   # a shell's background commands ignore Ctrl-C
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, preexec_fn=heard, env={**os.environ, "OMP_NUM_THREADS": "1"})


def answer_of(child):
    out, errors = child.communicate(timeout=LIMIT_S)
    return child.returncode, out, errors


# ---- How files are damaged ---------------------------------------------------------------------------------------

def mask_of(image):
    return image.with_name(image.name.replace("_sa", "_sa_gt"))


def rewrite(path, change=None, affine=None, kind=None, zooms=None):
    """A NIfTI file with other voxels, another affine, type or voxel size."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array = change(array) if change else array
    new = nib.Nifti1Image(array if kind is None else array.astype(kind), image.affine if affine is None else affine)
    if zooms:
        new.header.set_zooms((*zooms, *new.header.get_zooms()[3:]))
    nib.save(new, path)


def singular(path):
    image = nib.load(path)
    header = image.header.copy()
    header["qform_code"], header["sform_code"], header["srow_y"] = 0, 1, header["srow_x"]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, header), path)


def moved(path, matrix):
    rewrite(path, affine=matrix @ nib.load(path).affine)


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def flip_bit(path, where=0.5, mask=4):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= mask
    path.write_bytes(data)


def truncate(path, share=0.7):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])


def retabled(place, change, encoding="utf-8"):
    place.table.write_bytes(change(place.table.read_text(encoding="utf-8-sig")).encode(encoding))


def edited_cell(text, column, value, row=1):
    lines = [line.split(",") for line in text.splitlines()]
    lines[row][lines[0].index(column)] = value
    return "\n".join(map(",".join, lines)) + "\n"


# ---- Masks -------------------------------------------------------------------------------------------------------

def moved_mask(matrix):
    def damage(place):
        moved(place.mask(), matrix)
        return place.check()
    return damage


SHIFT = np.eye(4)
SHIFT[0, 3] = 30
for _name, _matrix in (("its affine flipped left to right", np.diag([-1.0, 1, 1, 1])),
                       ("its affine turned by 5 degrees", rotation(5)), ("its affine moved by 30 mm", SHIFT)):
    fault("a mask that lies elsewhere", _name, 3, "its affine puts it elsewhere")(moved_mask(_matrix))


@fault("a mask that lies elsewhere", "re-exported in another orientation, correctly", 0, "turned to its image's")
def _(p):
    image = nib.load(p.mask())
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine @ flip), p.mask())
    return p.check()


@fault("a mask that lies elsewhere", "another shape", 3, "shape")
def _(p):
    rewrite(p.mask(), lambda a: a[:-3])
    return p.check()


@fault("a mask that lies elsewhere", "another spacing", 3, "spacing")
def _(p):
    rewrite(p.mask(), zooms=(1.5, 1.5, 9))
    return p.check()


@fault("labels", "NaN voxels", 3, "NaN or infinite")
def _(p):
    rewrite(p.mask(), lambda a: np.where(a == 1, np.nan, a.astype(np.float32)), kind=np.float32)
    return p.check()


@fault("labels", "LV and RV swapped in every mask", 0, "LV and RV look swapped")
def _(p):
    for mask in p.data.rglob("*_gt.nii.gz"):
        rewrite(mask, lambda a: np.array([0, 3, 2, 1], np.uint8)[a.astype(int)])
    return p.check()


@fault("labels", "value 7", 3, "label values [7]")
def _(p):
    rewrite(p.mask(), lambda a: np.where(a == 1, 7, a))
    return p.check()


@fault("labels", "resampled linearly", 3, "not integers")
def _(p):
    rewrite(p.mask(), lambda a: a * np.float32(0.9), kind=np.float32)
    return p.check()


@fault("labels", "RV absent from the whole training split", 0, "RV labelled in no training volume")
def _(p):
    for mask in p.data.rglob("*_gt.nii.gz"):
        if "Training" in str(mask):
            rewrite(mask, lambda a: np.where(a == 3, 0, a))
    return p.check()


@fault("labels", "RV absent from one training mask", 0, "not fully labelled (training leaves the volume out")
def _(p):
    rewrite(p.mask(), lambda a: np.where(a == 3, 0, a))
    return p.check()


@fault("labels", "one training mask all zero", 0, "its mask is all zero")
def _(p):
    rewrite(p.mask(), lambda a: 0 * a)
    return p.check()


# ---- Made of other data ------------------------------------------------------------------------------------------

@fault("data edited since", "a test mask, after da/ was made", 4, "changed since")
def _(p):
    rewrite(p.mask("D", "Testing"), lambda a: np.roll(a, 1, 0))
    return p.evaluate()


@fault("data edited since", "a training image, before evaluation", 4, "trained on other data")
def _(p):
    rewrite(p.image(), lambda a: a // 2)
    return p.evaluate()


@fault("data edited since", "a reference, DG half made", 4, "changed, added or lost since")
def _(p):
    (p.run / "dg" / "manifest.csv").unlink()
    rewrite(p.mask(), lambda a: np.roll(a, 1, 0))
    return p.synthesize("dg", out=p.run / "dg")


@fault("data edited since", "a test image, then make", 2, "changed since")
def _(p):
    rewrite(p.image("D", "Testing"), lambda a: a // 2)
    return p.make()


@fault("data edited since", "DATA=y/data after DATA=x/data: a run of its own", 0, "train_diffusion.py")
def _(p):
    (p.folder / "y").mkdir()
    shutil.copytree(p.data, p.folder / "y" / "data")
    return [*p.make(f"DATA={p.folder / 'y' / 'data'}"), "-n"]


# ---- Parts that do not belong together ---------------------------------------------------------------------------

fault("parts of another experiment", "evaluate on another grid", 4, "spacing_mm: 2.5 there, 2.0 now")(
    lambda p: p.evaluate("--spacing-mm", 2.0))
fault("parts of another experiment", "synthesize on another grid", 4, "size: 64 there, 32 now")(
    lambda p: p.synthesize("dg", "--size", 32))
fault("parts of another experiment", "a segmenter for a diffusion model", 4, "not a finished diffusion model")(
    lambda p: p.synthesize("dg", "--diffusion", p.run / "segmenter-vanilla-real" / "final.pt"))
fault("parts of another experiment", "a diffusion model for a segmenter", 4, "not a finished segmenter")(
    lambda p: p.synthesize("dg", "--segmenter", p.run / "diffusion" / "final.pt"))


def resaved(path, setting, value):
    """A checkpoint that says another setting of itself."""
    code = ("import sys; from cmr import checkpoint; s = checkpoint.load(sys.argv[1]); s.pop('format');"
            f"s['config'][{setting!r}] = {value!r}; checkpoint.save(sys.argv[1], **s)")
    assert ask(["-c", code, path])[0] == 0
    return path


@fault("parts of another experiment", "a synthetic segmenter of another source in the table", 4, "'vendor=b' there")
def _(p):
    resaved(p.run / "segmenter-vanilla-synthetic" / "final.pt", "source", "Vendor=B")
    return p.evaluate()


@fault("parts of another experiment", "synthesis audited by a segmenter of another source", 4, "'vendor=b' there")
def _(p):
    of_b = resaved(p.run / "segmenter-vanilla-synthetic" / "final.pt", "source", "Vendor=B")
    return p.synthesize("dg", "--segmenter", of_b)


@fault("parts of another experiment", "a checkpoint of another architecture", 4, "weights of another network")
def _(p):
    resaved(p.run / "segmenter-vanilla-real" / "final.pt", "features", 16)
    return p.evaluate()


fault("parts of another experiment", "source and target overlap", 2, "must be unseen")(
    lambda p: p.check("--source", "Vendor=A,B"))
for _source in ("Vendor=Q", "Vendor=A,Q"):
    fault("parts of another experiment", f"a source of which nobody is: {_source}", 2, "Vendor has A")(
        lambda p, source=_source: p.check("--source", source))


# ---- Studies that vanish -----------------------------------------------------------------------------------------

@fault("studies that vanish", "a test mask deleted", 0, "has no mask")
def _(p):
    p.mask("B", "Testing").unlink()
    return p.check()


@fault("studies that vanish", "a training mask deleted", 0, "has no mask")
def _(p):
    p.mask().unlink()
    return p.check()


for _folder, _what in (("imagesTr", "the image of"), ("labelsTr", "the mask of")):
    def _lost(p, folder=_folder):
        sorted((p.run / "dg" / folder).iterdir())[1].unlink()
        return p.train("--train-on", "synthetic", "--synthetic", p.run / "dg")
    fault("studies that vanish", f"a file of dg/{_folder} deleted", 3, _what)(_lost)


@fault("studies that vanish", ".nii beside .nii.gz of one study", 3, "there twice")
def _(p):
    for path in (p.image(), p.mask()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    return p.check()


@fault("studies that vanish", "a backup copy in DATA/old", 3, "there twice")
def _(p):
    shutil.copytree(p.image().parent, p.data / "old" / p.image().parent.name)
    return p.check()


@fault("studies that vanish", "one code twice in the table, of different vendors", 3, "two rows of")
def _(p):
    def doubled(text):
        last = text.splitlines()[-1].split(",")
        place = text.splitlines()[0].split(",").index("Vendor")
        last[place] = "Q"
        return text + ",".join(last) + "\n"
    retabled(p, doubled)
    return p.check()


@fault("studies that vanish", "files without a row in the table", 0, "left out")
def _(p):
    retabled(p, lambda text: "\n".join(text.splitlines()[:-1]) + "\n")
    return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", p.data]


@fault("studies that vanish", "a row without files", 0, "left out")
def _(p):
    shutil.rmtree(p.image("D", "Testing").parent)
    return p.check()


@fault("studies that vanish", "one subject in training and in testing", 3, "leakage")
def _(p):
    folder = p.image("A", "Testing").parent
    other = next(p.data.rglob("Training/Labeled")) / "Z9Z9Z9"
    shutil.copytree(folder, other)
    for path in list(other.iterdir()):
        path.rename(other / path.name.replace(folder.name, other.name))
    retabled(p, lambda text: text + next(line for line in text.splitlines() if folder.name in line).replace(
        folder.name, other.name) + "\n")
    return p.check()


# ---- A damaged cache, damaged files ------------------------------------------------------------------------------

@fault("damaged files", "one bit flipped in a cached volume", 0, "damaged entry of the cache; it is made again")
def _(p):
    assert ask(p.train("--steps", 2, "--out", p.folder / "first"))[0] == 0          # the copy's own entries
    for path in p.work.glob("*.image.npy"):
        flip_bit(path, 0.9)
    return p.train("--steps", 2)


for _name, _damage, _words in (("truncated image", truncate, "truncated or damaged"),
                               ("one bit flipped in an image", flip_bit, "truncated or damaged"),
                               ("an empty image", lambda path: path.write_bytes(b""), "is empty"),
                               ("a web page saved as image", lambda path: path.write_text("<html>"), "begins with"),
                               ("RGB image", lambda path: nib.save(nib.Nifti1Image(
                                   np.zeros((8, 8, 4), [(c, "u1") for c in "RGB"]), np.eye(4)), path), "grey values"),
                               ("complex image", lambda path: rewrite(path, kind=np.complex64), "grey values"),
                               ("2D image", lambda path: rewrite(path, lambda a: a[:, :, 0, 0]), "expected (X, Y, Z)"),
                               ("micrometres", lambda path: rewrite(path, zooms=(1250, 1250, 9000)),
                                "correct the header"),
                               ("constant image", lambda path: rewrite(path, lambda a: a * 0 + 5), "is constant"),
                               ("affine that cannot be inverted", singular, "cannot be inverted")):
    def _damaged(p, damage=_damage):
        damage(p.image())
        return p.check()
    fault("damaged files", _name, 3, _words)(_damaged)


@fault("damaged files", "NaN voxels in an image: named with the file", 0, "_sa.nii.gz")
def _(p):
    rewrite(p.image(), lambda a: np.where(a > 100, np.nan, a.astype(np.float32)), kind=np.float32)
    return ["bash", "-c", f"{sys.executable} -m cmr.check_dataset --preset tiny --data {p.data} | grep non-finite"]


@fault("damaged files", "no read permission", 0, "")
def _(p):
    if os.geteuid() == 0:
        return 0, "", "skipped: root may read everything"
    p.image().chmod(0)
    return p.check()


@fault("damaged files", "64-bit integers", 0, "structures")
def _(p):
    image = nib.load(p.image())
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int64), image.affine, dtype=np.int64), p.image())
    return p.check()


def damaged_checkpoint(damage, stage="diffusion", by="synthesize"):
    def act(p):
        damage(p.run / stage / "final.pt")
        return p.synthesize("dg") if by == "synthesize" else p.evaluate()
    return act


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil",)


def malicious(path):
    import pickle
    import zipfile
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
        archive.writestr("archive/version", "3\n")


for _name, _damage, _words in (("checkpoint with one bit flipped", lambda path: flip_bit(path, 0.5), "damaged"),
                               ("truncated checkpoint", truncate, "damaged or truncated"),
                               ("empty checkpoint", lambda path: path.write_bytes(b""), "damaged or truncated"),
                               ("malicious pickle", malicious, "not a plain checkpoint"),
                               ("checkpoint deleted", lambda path: path.unlink(), "no such checkpoint")):
    fault("damaged files", _name, 4, _words)(damaged_checkpoint(_damage))
    fault("damaged files", _name + " of a segmenter", 4, _words)(
        damaged_checkpoint(_damage, "segmenter-nnunet2d-real", "evaluate"))


def with_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@fault("damaged files", "config.json damaged: final.pt knows its settings", 0, "finished already")
def _(p):
    with_text(p.run / "segmenter-vanilla-real" / "config.json", "{")
    return ["train_unet.py", *p.on, "--out", p.run / "segmenter-vanilla-real", "--source", "Vendor=A"]


@fault("damaged files", "an items/*.json damaged: its image is made again", 0, "damaged; its image is made again")
def _(p):
    (p.run / "dg" / "manifest.csv").unlink()
    with_text(sorted((p.run / "dg" / "items").iterdir())[0], "{")
    return p.synthesize("dg", out=p.run / "dg")


for _column in ("reference", "strength", "sd_dm", "reference_content"):
    def _without(p, column=_column):
        table = p.run / "da" / "manifest.csv"
        table.write_text(table.read_text().replace(f",{column},", ",other,", 1))
        return p.evaluate()
    fault("damaged files", f"manifest without the column {_column}", 3, "not as it was written")(_without)


@fault("damaged files", "manifest without its last row", 3, "not as it was written")
def _(p):
    table = p.run / "da" / "manifest.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    return p.evaluate()


@fault("damaged files", "manifest empty", 3, "not as it was written")
def _(p):
    with_text(p.run / "da" / "manifest.csv", "")
    return p.evaluate()


@fault("damaged files", "a SHA-256 lost", 3, "not as it was written")
def _(p):
    (p.run / "da" / "manifest.csv.sha256").unlink()
    return p.evaluate()


@fault("damaged files", "an SD-DM trained anew after da/ was made", 4, "another diffusion model")
def _(p):
    shutil.rmtree(p.run / "diffusion")
    answer = ask(["train_diffusion.py", *p.on, "--source", "Vendor=A", "--seed", 1, "--out", p.run / "diffusion"])
    assert answer[0] == 0, answer
    return p.evaluate()


# ---- Tables ------------------------------------------------------------------------------------------------------

for _encoding in ("latin-1", "utf-16", "utf-8-sig"):
    def _encoded(p, encoding=_encoding):
        retabled(p, lambda text: edited_cell(text, "Pathology", "Å-Körper", 1), encoding)
        return p.check()
    fault("tables", f"CSV in {_encoding}", 0, "structures")(_encoded)


@fault("tables", "semicolons, as Excel writes them", 0, "structures")
def _(p):
    retabled(p, lambda text: text.replace(",", ";"))
    return p.check()


for _value in ("inf", "-3", "99", "x", ""):
    def _frame(p, value=_value):
        retabled(p, lambda text: edited_cell(text, "ED", value, 1))
        return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", p.data]
    fault("tables", f"ED frame {_value!r}", 0, "ED frame")(_frame)


@fault("tables", "no column ED", 3, "column ED missing")
def _(p):
    retabled(p, lambda text: text.replace(",ED,", ",E.D.,"))
    return p.check()


@fault("tables", "no CSV at all", 3, "no CSV")
def _(p):
    p.table.unlink()
    return p.check()


# ---- Someone else's data -----------------------------------------------------------------------------------------

def behind_a_link(p):
    shutil.move(p.image().parent, p.folder / "disk")
    (p.data / "another disk").symlink_to(p.folder / "disk")
    (p.data / "all").symlink_to(p.data)


def with_older_table(p):
    older = p.data / "zz" / "201014_M&Ms_Dataset_Information_-_opendataset.csv"
    with_text(older, p.table.read_text(encoding="utf-8-sig").replace(",A,", ",D,"))


def with_frames(change):
    """ED and ES of every row as `change` says, in a table with semicolons."""
    def changed(text):
        head, *rows = [line.split(",") for line in text.splitlines()]
        for row in rows:
            for column in (head.index("ED"), head.index("ES")):
                row[column] = change(row[column])
        return "\n".join(map(";".join, [head, *rows])) + "\n"
    return lambda p: retabled(p, changed)


def without_spacing(p):
    for path in (p.image(), p.mask()):
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[80:88], data[252:256] = bytes(8), bytes(4)           # voxel size in-plane; the codes of both affines
        path.write_bytes(gzip.compress(data))


def padded(array):
    array = array.astype(np.int16)
    array[:20] = -32768
    return array


for _name, _code, _words, _damage in (
        ("a study behind a link, and a link that leads back", 0, "a loop, not followed", behind_a_link),
        ("a folder Test_set", 0, "lie in Test_set",
         lambda p: next(p.data.rglob("Testing")).rename(p.data / "Test_set")),
        ("an older table in a subfolder", 0, "is taken for the newest", with_older_table),
        ("ED and ES with decimal commas", 0, "structures: LV in 34", with_frames(lambda cell: cell + ",0")),
        ("ED = ES = 0 in every row", 2, "though a mask is there", with_frames(lambda cell: "0")),
        ("ED and ES counted from 1", 0, "must count from 0", with_frames(lambda cell: str(int(cell) + 1))),
        ("voxel size 0 in-plane", 3, "voxel size (0.0, 0.0", without_spacing),
        ("slices stored first", 3, "is the slice axis the third?",
         lambda p: rewrite(p.image(), lambda a: a.transpose(2, 1, 0, 3))),
        ("padding of -32768", 0, "not normalised by", lambda p: rewrite(p.image(), padded)),
        ("an uncompressed file called .nii.gz", 0, "structures: LV in 34",
         lambda p: p.image().write_bytes(gzip.decompress(p.image().read_bytes())))):
    def _foreign(p, damage=_damage):
        damage(p)
        return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", p.data]
    fault("someone else's data", _name, _code, _words)(_foreign)
for _data, _words in (("{0},{0}", "name each dataset once"), ("{0},", "an empty name beside a comma")):
    fault("someone else's data", f"--data {_data.format('x')}", 2, _words)(
        lambda p, data=_data: ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", data.format(p.data)])


# ---- Flags -------------------------------------------------------------------------------------------------------

FLAGS = {"diffusion": ("--steps 0", "--lr 0", "--lr nan", "--ema 2", "--spacing-mm -2", "--head 25", "--log-every 0",
                       "--save-minutes -1", "--sample-every 0", "--size 63", "--schedule foo", "--parameterisation w",
                       "--seed -1", "--T 1", "--batch 0", "--warmup 0", "--multipliers 0", "--groups 5",
                       "--dropout 2", "--patch 0", "--device tpu", "--device mps", "--device cuda:x"),
         "train": ("--steps 0", "--lr 0", "--features 0", "--levels 1", "--size 63", "--memory-gb 0",
                   "--train-on reel", "--network resnet", "--batch 0"),
         "evaluate": ("--processes -1", "--projected t0=x")}
for _stage, _flags in FLAGS.items():
    for _flag in _flags:
        def _given(p, stage=_stage, flag=_flag):
            name, value = flag.split()
            return getattr(p, stage)(name, value.strip("'"))
        fault("flags", f"{_stage} {_flag}", 2, "use")(_given)
fault("flags", "synthesize --shift -1", 2, "--shift")(lambda p: p.synthesize("dg", "--shift", "-1"))
fault("flags", "synthesize --samples -2", 2, "--samples")(lambda p: p.synthesize("dg", "--samples", "-2"))
fault("flags", "synthesize --strength t=3", 2, "strength")(lambda p: p.synthesize("dg", "--strength", "t=3"))
fault("flags", "a flag misspelt", 2, "did you mean --steps")(lambda p: p.train("--stesp", 3))
fault("flags", "--data forgotten", 2, "--data")(lambda p: ["train_unet.py", "--preset", "tiny", "--out", p.out])
for _setting in ("SEED=x", "SEEDS=1.5", "JOBS=two", "PRESET=big", "RUNS=a b"):
    fault("flags", f"make {_setting}", 2, _setting.split("=")[0])(lambda p, setting=_setting: p.make(setting))


# ---- Something of the user's -------------------------------------------------------------------------------------

@fault("what is the user's", "training into a finished folder with other settings", 4, "steps: 60 there, 7 now")
def _(p):
    return ["train_unet.py", *p.on, "--source", "Vendor=A", "--steps", 7, "--out", p.run / "segmenter-vanilla-real"]


@fault("what is the user's", "... with the same settings", 0, "finished already")
def _(p):
    return ["train_unet.py", *p.on, "--source", "Vendor=A", "--out", p.run / "segmenter-vanilla-real"]


@fault("what is the user's", "a file .notes.tmp.txt below --out is kept", 0, "step")
def _(p):
    p.out.mkdir()
    with_text(p.out / ".notes.tmp.txt", "mine")
    answer = ask(p.train("--steps", 2))
    assert (p.out / ".notes.tmp.txt").read_text() == "mine"
    return answer


@fault("what is the user's", "make clean RUNS=folder with a user's files: they are kept", 0, "")
def _(p):
    with_text(p.runs / "thesis.txt", "mine")
    with_text(p.run / "mine" / "notes.txt", "mine")
    answer = ask(["make", "clean", f"RUNS={p.runs}", f"PYTHON={sys.executable}"])
    assert (p.runs / "thesis.txt").exists() and (p.run / "mine" / "notes.txt").exists()
    assert not (p.run / "diffusion").exists()
    return answer


fault("what is the user's", "--out inside the dataset", 2, "lies in the dataset")(
    lambda p: p.train("--out", p.data / "run"))


@fault("what is the user's", "two processes in one folder", 5, "is working there")
def _(p):
    first = started(p.train("--steps", 2000))
    wait_for((p.out / ".lock").exists)
    try:
        return ask(p.train("--steps", 2000))
    finally:
        first.kill()
        first.communicate()


@fault("what is the user's", "two makes at the same time", 2, "is working there")
def _(p):
    shutil.rmtree(p.run / "diffusion")
    first = subprocess.Popen(p.make(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)
    wait_for((p.run / "diffusion" / ".lock").exists)
    try:
        return ask(p.make())
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


# ---- Hangs and deaths --------------------------------------------------------------------------------------------

def descendants(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


@fault("hangs", "a worker of evaluate killed", 5, "a worker process was killed")
def _(p):
    child = started(p.evaluate("--processes", 2))
    wait_for(lambda: (p.out / "predictions").exists())
    workers = [w for w in descendants(child.pid) if b"spawn_main" in Path(f"/proc/{w}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    return answer_of(child)


@fault("hangs", "a checkpoint that vanishes while workers start", 4, "no such checkpoint")
def _(p):
    child = started(p.evaluate("--processes", 2))
    wait_for(lambda: len([w for w in descendants(child.pid)]) >= 2)
    (p.run / "segmenter-nnunet2d-synthetic" / "final.pt").unlink()
    return answer_of(child)


def interrupted(number, stage):
    def act(p):
        commands = {"diffusion": p.diffusion("--steps", 5000), "train": p.train("--steps", 50000),
                    "synthesize": p.synthesize("dg", "--samples", 50),
                    "evaluate": p.evaluate("--processes", 1), "phantom": ["-m", "cmr.phantom", "--out", p.out]}
        there = {"diffusion": "log.csv", "train": "log.csv", "synthesize": "items",
                 "evaluate": "predictions", "phantom": "OpenDataset"}[stage]
        child = started(commands[stage])
        wait_for((p.out / there).exists)
        time.sleep(2)
        child.send_signal(number)
        answer = answer_of(child)
        left = [path for path in p.out.rglob(".*") if ".tmp." in path.name or path.name == ".lock"]
        assert not left, left
        return answer
    return act


for _stage in ("diffusion", "train", "synthesize", "evaluate", "phantom"):
    for _signal in (signal.SIGINT, signal.SIGTERM):
        fault("hangs", f"{_signal.name} in {_stage}", 130, "interrupted")(interrupted(_signal, _stage))


# ---- Training ----------------------------------------------------------------------------------------------------

@fault("training", "log.csv lost, then resumed", 0, "has no rows up to step")
def _(p):
    cut = ("import sys; from cmr.training import Run; old = Run.update\n"
           "def update(self, loss):\n    if self.step == 30: raise KeyboardInterrupt\n    old(self, loss)\n"
           "Run.update = update\nimport train_unet\ntry: train_unet.main(sys.argv[2:])\nexcept KeyboardInterrupt: pass")
    assert ask(["-c", cut, *p.train("--save-minutes", 0)])[0] == 0 and (p.out / "last.pt").exists()
    (p.out / "log.csv").unlink()
    return p.train()


@fault("training", "a loss that is not finite, before anything was saved", 6, "no state was saved before")
def _(p):
    return p.train("--lr", 1e30)


@fault("training", "out of memory on the CPU", 5, "make --batch")
def _(p):
    flags = " ".join(map(str, p.train("--batch", 100_000, "--features", 512, "--steps", 1)))
    return ["bash", "-c", f"ulimit -v 6000000; {sys.executable} {flags}"]


@fault("training", "resumed with other settings", 4, "was written with other settings")
def _(p):
    (p.run / "segmenter-vanilla-real" / "final.pt").rename(p.run / "segmenter-vanilla-real" / "last.pt")
    return ["train_unet.py", *p.on, "--source", "Vendor=A", "--lr", 1e-4, "--out", p.run / "segmenter-vanilla-real"]


@fault("training", "a dataset of one patient", 2, "")
def _(p):
    keep = p.image().parent
    for folder in [path.parent for path in p.data.rglob("*_sa.nii.gz")]:
        if folder != keep:
            shutil.rmtree(folder)
    return p.check()


# ---- Places ------------------------------------------------------------------------------------------------------

@fault("places", "full disk", 5, "cannot be written")
def _(p):
    small = p.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small]).returncode:
        return 5, "", "skipped: cannot be written (no mount here)"
    try:
        return ask(p.train("--steps", 2, "--out", small / "run"))
    finally:
        subprocess.run(["umount", small])


def apart(own, before, command):
    """A command after another one that it alone sees the effect of: own `-m` mounts, own `-u` name of the host."""
    words = shlex.join([sys.executable, *map(str, command)])
    return ["bash", "-c", f"unshare {own} sh -c {shlex.quote(f'{before} && exec {words}')}"]


@fault("places", "/dev/shm of 64 kB, as many a container has, and --workers", 5, "/dev/shm")
def _(p):
    return apart("-m", "mount -t tmpfs -o size=64k none /dev/shm", p.train("--workers", 2))


@fault("places", "a host whose name no network knows: two ranks", 0, "mean Dice")
def _(p):
    return apart("-u", "hostname nameless", ["-m", "cmr.ranks", 2, *p.train("--steps", 2)])


@fault("places", "a read-only dataset", 0, "finished")
def _(p):
    if subprocess.run(["mount", "--bind", p.data, p.data]).returncode:
        return 0, "", "skipped: finished (no mount here)"
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", p.data])
        code, out, errors = ask(p.train("--steps", 2))
        return code, out + "finished", errors
    finally:
        subprocess.run(["umount", p.data])


@fault("places", "a run folder that cannot be written", 5, "choose another --out")
def _(p):
    with_text(p.folder / "file", "")
    return p.train("--out", p.folder / "file" / "run")


@fault("places", "data behind a symlink", 0, "structures")
def _(p):
    (p.folder / "link").symlink_to(p.data)
    return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", p.folder / "link", "--target", TARGET]


@fault("places", "a path with spaces and umlauts: scripts", 0, "structures")
def _(p):
    p.data = p.data.rename(p.folder / "Daten für Köln")
    return p.check()


@fault("places", "a path with spaces: make", 2, "make takes no spaces")
def _(p):
    return p.make(f"DATA={p.folder / 'my data'}")


@fault("places", "another working directory", 0, "structures")
def _(p):
    return ask(p.check(), cwd="/")


@fault("places", "a folder that is not there", 3, "no such folder")
def _(p):
    return ["-m", "cmr.check_dataset", p.folder / "absent"]


@fault("places", "a folder without images", 3, "no files of a known layout")
def _(p):
    (p.folder / "empty").mkdir()
    return ["-m", "cmr.check_dataset", p.folder / "empty"]


@fault("places", "a checkpoint deleted in mid-pipeline, then make", 0, "train_unet.py")
def _(p):
    (p.run / "segmenter-vanilla-real" / "final.pt").unlink()
    return p.make("-n")


@fault("places", "PYTHONHASHSEED and a comma locale: the same weights", 0, "")
def _(p):
    hashes = set()
    for i, env in enumerate(({"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "LC_ALL": "de_DE.UTF-8"})):
        answer = ask(p.train("--steps", 3, "--out", p.folder / str(i)), env=env)
        assert answer[0] == 0, answer
        hashes.add((p.folder / str(i) / "final.pt").read_bytes())
    assert len(hashes) == 1
    return answer


# ---- Asking ------------------------------------------------------------------------------------------------------

def prepared(base):
    """A phantom and a small finished experiment, by make."""
    made = ask(["-m", "cmr.phantom", "--preset", "tiny", "--out", base / "data"])
    assert made[0] == 0, made
    made = ask([*MAKE, f"DATA={base / 'data'}", f"RUNS={base / 'runs'}"])
    assert made[0] == 0, made


def shown(out, errors, words):
    """The line that answers: an error, else the one with the expected words, else the last."""
    lines = [line.strip() for line in (errors + "\n" + out).splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith(("error: ", "Makefile:"))]
    having = [line for line in lines if words and words in line]
    return (refusals or having or lines[-1:] or [""])[0].replace("|", "/")


def main(words):
    wanted = [entry for entry in FAULTS if not words or any(word in f"{entry[0]}: {entry[1]}" for word in words)]
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        prepared(base)
        print("| | fault | exit | answer |\n|---|---|---|---|")
        for i, (group, name, code, expected, act) in enumerate(wanted):
            folder = Path(scratch) / f"f{i}"
            folder.mkdir()
            place = Place(folder, base)
            try:
                command = act(place)
                got, out, errors = command if isinstance(command, tuple) else ask(command)
            except Exception as error:                            # of the damage itself: said, and the next one asked
                got, out, errors = type(error).__name__, "", str(error)
            said = out + errors
            good = got == code and expected in said and "Traceback" not in said
            line = shown(out, errors, expected).replace(str(folder) + "/", "").replace(str(scratch) + "/", "")
            run = line.replace("runs/tiny/" + place.run.name, "RUN")
            print(f"| {group} | {name} | {got} | {run[:200]} |" + ("" if good else "  **NOT AS EXPECTED**"), flush=True)
            if not good:
                failed.append(name)
                print(said[-1500:], file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{len(wanted)} faults, {len(wanted) - len(failed)} answered as expected", flush=True)
    print(json.dumps(failed), file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
