"""Run an experiment, what of it is missing: `python -m cmr.reproduce`, or `make reproduce`.

The stages of `cmr.experiment` are written as rules to a makefile beside the run's folder, and make runs them.
"""
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from cmr.errors import run_script
from cmr.experiment import TRAINING_SETS, price, rows_asked_for, stages
from cmr.files import digest, require_outside, writable_folder, write_text
from cmr.records import Domain, as_file_name
from cmr.segmenter import NETWORKS
from cmr.settings import GRIDS, SEED, at_least, matching, one_of, opt, parse, required, some_of
from cmr.studies import studies_of
from cmr.workers import cores


@dataclass(frozen=True)
class Config:
    """The experiment that is asked for.  Lists are separated by commas or spaces."""
    data: str       = opt("", "dataset folder; several, separated by commas, are taken together",
                          required("the folder of a dataset"))
    source: str     = opt("Vendor=A", "source domain")
    target: str     = opt("Vendor=B,C,D", "target domains; each value is reported by itself")
    experiment: str = opt("demo", "preset of every stage; that of --preset", one_of(*GRIDS))
    networks: str   = opt("vanilla,nnunet2d,nnunet3d", "networks; the first judges synthetic pairs",
                          required("one network or several"))
    trained: str    = opt("real,synthetic", "what each network is trained on: real (always), synthetic, both")
    controls: str   = opt("first", "what DG is compared with: first: vanilla-augmented and the first network's "
                                   "shifted, all: that of every network, or a list of network-trainingset: "
                                   f"{', '.join(TRAINING_SETS)}")
    every_row_of: str = opt("", "networks whose secondary rows, such as DG + DA, are measured too; empty: the first",
                            some_of(*NETWORKS))
    references: str = opt("", "another labelled domain whose images are DG's references, e.g. Dataset=ACDC; empty: the "
                              "source's own")
    upper: str      = opt("auto", "every network trained on each target's own training studies: 1, 0, or auto: on real "
                                  "data where every target has some", one_of("auto", "0", "1"))
    pseudonyms: bool = opt(False, "numbers in place of patients' identifiers in the results")
    use_unlabeled_masks: bool = opt(False, "M&Ms-1: trust the masks found under Training/Unlabeled")
    rehearse: bool  = opt(False, "two steps of every stage at the preset's size, in a folder of its own, anew")
    seed: int       = opt(0, "every random number is a function of this, the step and the item", SEED)
    seeds: int      = opt(1, "runs, from --seed on; more than one adds a table of their spread", at_least(1))
    jobs: int       = opt(2, "stages at a time: two small networks train 1.4 times as fast beside each other on two "
                             "cores, a GPU takes one", at_least(1))
    gpus: int       = opt(1, "ranks that share the work of each stage", at_least(1))
    runs: str       = opt("runs", "folder of all runs",
                          matching(r"[\w./+-]+", "a path of letters, digits and . / + - _ alone, which make and the "
                                                 "shell leave as they are"))
    python: str     = opt(sys.executable, "interpreter of the stages")
    goal: str       = opt("reproduce", "what is wanted", one_of("reproduce", "check", "estimate", "plan"))

    @property
    def upper_bound(self):
        return self.upper == "1"

    @property
    def of_preset(self):
        """Folder of all runs of the preset."""
        return Path(self.runs) / (f"rehearsal-{self.experiment}" if self.rehearse else self.experiment)

    @property
    def name(self):
        """Name of the experiment: datasets and domains; a hash of their paths tells datasets of equal names apart."""
        folders = [Path(folder) for folder in self.data.split(",")]
        data = "+".join(folder.name for folder in folders)
        if not self.data.startswith(EMBEDDED):
            paths = ",".join(str(folder.resolve()) for folder in folders)
            data += f"-{digest(paths)[:8]}"
        of = f"-of-{Domain.parse(self.references).file_name}" if self.references else ""
        domains = f"{Domain.parse(self.source).file_name}-to-{Domain.parse(self.target).file_name}{of}"
        name = as_file_name(f"{data}-{domains}")
        return name if len(name) <= 150 else f"{name[:140]}-{digest(name)[:8]}"      # file systems take 255 bytes

    @property
    def run(self):
        """Folder of this seed's run."""
        return self.of_preset / f"{self.name}-seed{self.seed}"


EMBEDDED = "data/phantom-"                       # start of the paths of the Makefile's own phantoms
_ALL = dict(trained="real,synthetic,both")       # the other presets leave out `both`, to save time
PRESETS = {"tiny": dict(experiment="tiny", **_ALL), "demo": {}, "small": dict(experiment="small"),
           "lab": dict(experiment="lab", jobs=1),
           "paper": dict(experiment="paper", jobs=1, **_ALL, controls="all", every_row_of="vanilla,nnunet2d,nnunet3d")}


def main(argv=None):
    c = with_upper_bound_or_not(parse(Config, PRESETS, argv, __doc__.splitlines()[0]))
    runs = [replace(c, seed=c.seed + n) for n in range(c.seeds)]
    if c.goal == "plan":
        for run in runs:
            print_plan(run)
        return
    require_outside(c.runs, c.data, "--runs")
    for run in runs:
        prepare(run)
    text = makefile(runs)
    path = c.of_preset / f"{c.name}-{digest(text)[:8]}.mk"       # another make may start at the same time
    write_text(path, text)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (c.jobs * c.gpus))))
    sys.stdout.flush()
    os.execvp("make", ["make", "--no-print-directory", "-f", str(path), "-j", str(c.jobs), c.goal])


def with_upper_bound_or_not(c):
    """The settings with `upper` decided; on the phantom `auto` means no upper bound, which saves time."""
    if c.upper != "auto":
        return c
    if (Path(c.data) / "phantom_params.json").exists():
        return replace(c, upper="0")
    records = studies_of(replace(c, upper="1"))
    labelled_in = lambda domain: {r.split for r in domain.select(records) if r.label_path}
    lacking = [str(domain) for domain in Domain.parse(c.target).each()
               if not {"Training", "Validation"} <= labelled_in(domain)]
    if lacking:
        print(f"note: no upper bound, as {', '.join(lacking)} has no labelled studies to train and validate on; "
              "--target may name only those that have", flush=True)
    return replace(c, upper="0" if lacking else "1")


def prepare(c):
    """Update the folder of a run, so that make can decide what is to be done."""
    if c.rehearse:
        for folder in {(c.run / stage.file).parent for stage in stages(c)}:
            shutil.rmtree(writable_folder(folder), ignore_errors=True)             # unless another is at work there
    if not rows_are_as_before(c):                # make then repeats the check and the report
        write_text(c.run / "check" / "rows", rows_asked_for(c))
    if data_changed(c):
        (c.run / "check" / "asked").unlink(missing_ok=True)


def rows_are_as_before(c):
    """Whether the check, and the report if there is one, are of the rows that are asked for now.

    The report's own word for it counts, as another make may have written it while `check/rows` was changed.
    """
    asked, made, report = (c.run / file for file in ("check/rows", "results/rows", "results/report.md"))
    rows = rows_asked_for(c)
    if not asked.exists() or asked.read_text() != rows:
        return False
    return not report.exists() or made.exists() and made.read_text().strip() == digest(rows)[:16]


def data_changed(c):
    """Whether a file of the dataset was changed, added or removed since the dataset was checked."""
    asked = c.run / "check" / "asked"
    if not asked.exists() or not asked.with_name("check.json").exists():
        return True
    find = ["find", "-L", *c.data.split(","), "-cnewer", str(asked)]
    found = subprocess.run(find, capture_output=True, text=True)
    return bool(found.stdout or found.stderr)


def makefile(runs):
    """The text of a makefile with the goals and the stages of all runs."""
    reports = [str(run.run / "results" / "report.md") for run in runs]
    shown = [f"@cat {report}; echo; echo 'figures and per-case numbers: {Path(report).parent}'" for report in reports]
    if len(runs) > 1:
        folders = ",".join(str(run.run) for run in runs)
        python = shlex.quote(runs[0].python)
        shown.append(f"@{python} -m cmr.report --runs {folders} --out {runs[0].run}/results/seeds.md")
    rules = [rule("reproduce", reports, [], *shown), rule("check", [], [], stages(runs[0])[0].command),
             rule("estimate", [], [], price(runs[0]))]
    files = []
    for run in runs:
        below = lambda files: [str(run.run / file) for file in files]
        for stage in stages(run):
            files += below([stage.file])
            rules.append(rule(files[-1], below(stage.made_from), below(stage.after), stage.command))
    head = "# Written by cmr.reproduce: every stage, what it is made from, and its command.\n"
    # Trap: make deletes the file of a command that fails or is interrupted after it has written it, such as final.pt of
    # a training whose last validation is stopped.  Stages write their file whole or not at all, so that it is kept.
    head += f"SHELL := bash\n.PHONY: reproduce check estimate\n.PRECIOUS: {' '.join(files)}\n\n"
    return head + "\n".join(rules)


def rule(file, made_from, after, *commands):
    """The text of one rule of make; after : order-only prerequisites, which must exist but may be newer."""
    order_only = ["|", *after] if after else []
    recipe = ["\t" + command.replace("$", "$$") for command in commands if command]
    head = " ".join([f"{file}:", *made_from, *order_only])
    return "\n".join([head, *recipe] if recipe else [f"{head} ;"]) + "\n"


def print_plan(c):
    """Print every stage in order, whether it is done, and what it is made from."""
    print(f"data {c.data}   run folder {c.run}")
    to_do = set() if rows_are_as_before(c) else {"check/rows"}
    for stage in stages(c):
        path = c.run / stage.file
        # A stage without a command is made by the one before it, which leaves the file alone if nothing has changed.
        newer = lambda file: stage.command and (c.run / file).stat().st_mtime > path.stat().st_mtime
        undone = not path.exists() or to_do & set(stage.made_from) or any(map(newer, stage.made_from))
        if undone or stage.file == "check/asked" and data_changed(c):
            to_do.add(stage.file)
        state = "to do" if stage.file in to_do else "done"
        print(f"{state:6s} {stage.file}\n       made from {' '.join(stage.made_from) or c.data}")


if __name__ == "__main__":
    run_script(main)
