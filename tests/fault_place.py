"""How faults are made: copies of a small finished experiment, commands on them, and ways of damaging them.

What is damaged, asked and expected stands in `fault_table.py`.
"""
import gzip
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from cmr import checkpoint  # noqa: E402
from cmr.reproduce import Config  # noqa: E402
from cmr.studies import find  # noqa: E402

LIMIT_S = 240                                    # for an answer
PATIENCE_S = 3600                                # for what must be made first
TARGET = "Vendor=B,C,D"
MAKE = ["make", "PRESET=tiny", "NETWORKS=vanilla nnunet2d", "TRAINED=real synthetic", "CONTROLS=",
        "JOBS=1", "THREADS=1", f"PYTHON={sys.executable}"]


class Place:
    """One copy of the data and of the experiment, and commands on it: each a list of words."""

    def __init__(self, folder, base):
        self.folder, self.data, self.runs, self.out = (folder, *(folder / name for name in ("data", "runs", "out")))
        for name in ("data", "runs"):
            shutil.copytree(base / name, folder / name, copy_function=shutil.copy2)
        self.work = self.runs / "tiny" / "work"
        self.run = Config(data=str(self.data), runs=str(self.runs), experiment="tiny").run
        was, now = next((self.runs / "tiny").glob("*-seed0")), self.run         # named by the dataset's path, as is
        for path in [was, *was.parent.glob("*.mk")]:                                 # the makefile
            path.rename(path.with_name(path.name.replace(was.name[:-len("-seed0")], now.name[:-len("-seed0")])))
        self.on = ["--preset", "tiny", "--data", self.data, "--work", self.work]

    def image(self, vendor="A", split="Training"):
        return Path(next(r for r in find(self.data) if r.vendor == vendor and r.split == split).image_path)

    def mask(self, vendor="A", split="Training"):
        return mask_of(self.image(vendor, split))

    def table(self):
        return next(self.data.rglob("*.csv"))

    def final(self, stage):
        return self.run / stage / "final.pt"

    def look(self, data=None):
        return ["-m", "cmr.check_dataset", "--preset", "tiny", "--data", data or self.data]

    def check(self, *more):
        return [*self.look(), "--target", TARGET, *more]

    def train(self, *more):
        return ["train_unet.py", *self.on, "--out", self.out, *more]

    def finish(self, *more):                                      # what is finished already
        return self.train("--source", "Vendor=A", "--out", self.run / "segmenter-vanilla-real", *more)

    def diffusion(self, *more):
        return ["train_diffusion.py", *self.on, "--out", self.out, *more]

    def synthesize(self, *more):
        return ["-m", "cmr.synthesize", *self.on, "--use", "dg", "--diffusion", self.final("diffusion"),
                "--segmenter", self.final("segmenter-vanilla-real"), "--out", self.out, *more]

    def synthesize_on(self):                                      # with the experiment's own set
        return self.synthesize("--out", self.run / "dg")

    def evaluate(self, *more):
        names = "vanilla-real,vanilla-synthetic,nnunet2d-real,nnunet2d-synthetic"
        return ["evaluate.py", *self.on, "--target", TARGET, "--run", self.run, "--segmenters", names,
                "--out", self.out, *more]

    def phantom(self):
        return ["-m", "cmr.phantom", "--out", self.out]

    def make(self, *more, goal="reproduce"):
        return [*MAKE, goal, f"DATA={self.data}", f"RUNS={self.runs}", *more]


def started(command, env=None):
    """A command as a user gives it, going on in the background in a session of its own."""
    words = [str(word) for word in command]
    words = words if words[0] in ("make", "bash") else [sys.executable, *words]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background commands ignore Ctrl-C
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
                            start_new_session=True, preexec_fn=heard)


def answer_of(child, seconds=LIMIT_S):
    """(exit code, stdout, stderr) of a started command; code None: it did not end in time."""
    try:
        out, errors = child.communicate(timeout=seconds)
        return child.returncode, out, errors
    except subprocess.TimeoutExpired:
        return None, *killed(child)


def killed(child):
    """End a command with all that it has started: what it had said, (stdout, stderr)."""
    os.killpg(child.pid, signal.SIGKILL)
    return child.communicate()


def ask(command, env=None):
    return answer_of(started(command, env))


def done(command, env=None):
    """Ask a command that must succeed."""
    answer = answer_of(started(command, env), PATIENCE_S)
    assert answer[0] == 0, answer
    return answer


def wait_for(there, seconds=120):
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.05)


# ---- Ways of asking ----------------------------------------------------------------------------------------------

def shell(command, begin="sh -c", before=":", after=":"):
    """A command between two others in a shell; begin : what runs them, `unshare -m sh -c` with mounts of its own."""
    words = [str(word) for word in command]
    words = words if words[0] == "make" else [sys.executable, *words]
    return ["bash", "-c", f"{begin} {shlex.quote(f'{before} && {shlex.join(words)} && {after}')}"]


def while_working(command, lock):
    """The answer to a command while the same one works behind a lock."""
    first = started(command)
    wait_for(lock.exists)
    try:
        return ask(command)
    finally:
        killed(first)


def two_makes(p):
    shutil.rmtree(p.run / "diffusion")
    return while_working(p.make(), p.run / "diffusion" / ".lock")


def workers_of(child):
    found = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def worker_killed(p):
    child = started(p.evaluate("--processes", 2))
    wait_for((p.out / "predictions").exists)
    os.kill(workers_of(child)[0], signal.SIGKILL)
    return answer_of(child)


def checkpoint_vanishes(p):
    child = started(p.evaluate("--processes", 2))
    wait_for(lambda: len(workers_of(child)) >= 2)
    p.final("segmenter-nnunet2d-synthetic").unlink()
    return answer_of(child)


def interrupted(number, command, there):
    """A stage that gets a signal when it has written `there`."""
    def act(p):
        child = started(command(p))
        wait_for((p.out / there).exists)
        time.sleep(2)
        child.send_signal(number)
        answer = answer_of(child)
        left = [path for path in p.out.rglob(".*") if ".tmp." in path.name]
        assert not left, left
        return answer
    return act


def two_locales(p):
    said = {"1": "C", "2": "de_DE.UTF-8"}
    answers = [done(p.train("--steps", 3, "--out", p.folder / name), {"PYTHONHASHSEED": name, "LC_ALL": locale})
               for name, locale in said.items()]
    assert len({(p.folder / name / "final.pt").read_bytes() for name in said}) == 1
    return answers[-1]


def flipped_in_the_cache(p):
    done(p.train("--steps", 2, "--out", p.folder / "first"))      # makes the copy's own entries
    for path in p.work.glob("*.image.npy"):
        flip_bit(path, 0.9)


def trained_anew(p):
    shutil.rmtree(p.run / "diffusion")
    done(p.diffusion("--source", "Vendor=A", "--seed", 1, "--out", p.run / "diffusion"))


# ---- Ways of damaging a file -------------------------------------------------------------------------------------

def mask_of(image):
    return image.with_name(image.name.replace("_sa", "_sa_gt"))


def rewrite(path, change=None, affine=None, kind=None, zooms=None):
    """A NIfTI file with other voxels, another affine, type or voxel size."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array = change(array) if change else array
    array = array if kind is None else array.astype(kind)
    new = nib.Nifti1Image(array, image.affine if affine is None else affine, dtype=array.dtype)
    if zooms:
        new.header.set_zooms((*zooms, *new.header.get_zooms()[3:]))
    nib.save(new, path)


def moved(path, matrix):
    rewrite(path, affine=matrix @ nib.load(path).affine)


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def flipped(path):
    """Stored in another orientation, with the affine that says so."""
    image = nib.load(path)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    rewrite(path, lambda array: array[::-1].copy(), affine=image.affine @ flip)


def singular(path):
    """With an affine of which two rows are equal."""
    image = nib.load(path)
    header = image.header.copy()
    header["qform_code"], header["sform_code"], header["srow_y"] = 0, 1, header["srow_x"]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, header), path)


def in_colour(path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), [(c, "u1") for c in "RGB"]), np.eye(4)), path)


def unzipped(path, to=None):
    (to or path).write_bytes(gzip.decompress(path.read_bytes()))


def without_spacing(path):
    """With a voxel size of 0 in-plane, and the codes of both affines 0."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:88], data[252:256] = bytes(8), bytes(4)
    path.write_bytes(gzip.compress(data))


def flip_bit(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * 0.7)])


def with_text(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def edited(path, change, encoding="utf-8"):
    """A text file with `change` of its text."""
    path.write_bytes(change(path.read_text(encoding="utf-8-sig")).encode(encoding))


def without_last_row(text):
    return "\n".join(text.splitlines()[:-1]) + "\n"


def with_cells(columns, change, rows=None, separator=","):
    """A change of a table's text: of some cells in its first rows, or in all."""
    def changed(text):
        table = [line.split(",") for line in text.splitlines()]
        places = [table[0].index(column) for column in columns]
        for row in table[1:rows and rows + 1]:
            for place in places:
                row[place] = change(row[place])
        return "\n".join(map(separator.join, table)) + "\n"
    return changed


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil",)


def malicious(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
        archive.writestr("archive/version", "3\n")


def resaved(path, setting, value):
    """A checkpoint that says another setting of itself."""
    saved = checkpoint.load(path)
    saved.pop("format")
    saved["config"][setting] = value
    checkpoint.save(path, **saved)
