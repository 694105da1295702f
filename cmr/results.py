"""A page of results, copied from finished runs and not typed: `python -m cmr.results --runs RUN,RUN --out PAGE`.

From the report.md of each run the page takes the main sections and the example pictures, and adds the commit and the
time of each training.  With several runs, one per training seed, it also has a table of their spread; patients are
averaged within a seed first, so that the spread is that of training, not of patients.
"""
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.comparison import DISTANCES, METRIC_COLUMNS, comparable, largest_diagonal_mm, means, penalised
from cmr.errors import DataError, UsageError, run_script
from cmr.experiment import BASELINE
from cmr.files import read_csv, write_text
from cmr.pictures import curves
from cmr.report import SUMMARISED, markdown_table, mean_sd
from cmr.segmenter import split_name
from cmr.settings import opt, parse, required

SHOWN = ("All unseen targets", "Tests against the baseline", "Does it look like the source?")


@dataclass(frozen=True)
class Config:
    """Settings: the runs, and the words of the page."""
    runs: str     = opt("", "finished runs of one experiment, one per seed, separated by commas",
                        required("a run folder"))
    spread: bool  = opt(False, "only the table of their spread, in place of the page")
    title: str    = opt("Results on the phantom", "heading of the page")
    who: str      = opt("For anyone who asks what the experiment finds on the phantom.",
                        "first paragraph: who needs it")
    command: str  = opt("make reproduce", "the command that made the runs")
    figures: bool = opt(True, "with the reports' figures; without, no image of a patient leaves the runs")
    out: str      = opt("", "the page; its figures go to a folder of its name beside it", required("a file"))


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    runs = [Path(run) for run in c.runs.split(",") if run]
    text = spread_over_seeds(runs) if c.spread else results_page(runs, c)
    write_text(c.out, text + "\n")
    print(text if c.spread else f"{c.out}: {len(text.splitlines())} lines")


def results_page(runs, c):
    """The page in Markdown; also copies the figures.  Raises DataError for a run without a report."""
    reports = [_read_report(run / "results" / "report.md") for run in runs]
    folder = Path(c.out).with_suffix("") if c.figures else None
    made_of = [dict(re.findall(r"^\| (.+?) \| (.+) \|$", of["What this was made of"], re.M)) for of in reports]
    text = [f"# {c.title}", "", c.who, "",
            f"Made by `{c.command}` at commit {' and '.join(dict.fromkeys(of['commit'] for of in made_of))} "
            f"({made_of[0]['versions']}; {made_of[0]['machine']}), and copied from the runs' reports by "
            "`python -m cmr.results`.", ""]
    for run, report in zip(runs, reports):
        verdict = "\n".join(re.findall(r"^- \*\*.*", report[""], re.M))
        text += [f"## Seed {run.name.rpartition('-seed')[2]}: what the numbers say", "", verdict, ""]
        for heading in SHOWN if run == runs[0] else SHOWN[:1]:
            text += [f"### {heading}", "", _with_figures(report[heading], run / "results", folder), ""]
    if len(runs) > 1:
        text += ["## Spread over the seeds", "", spread_over_seeds(runs), ""]
    if folder:
        text += ["## Examples", "", _with_figures(reports[0]["Figures"], runs[0] / "results", folder), ""]
        write_text(folder / "losses.svg", curves(_losses(runs[0])))
        text += ["## What a healthy run looks like", "",
                 "The loss of every training over its steps, from the first row of its log to the last. That of the "
                 "diffusion model falls steeply in its first twentieth and slowly from then on; that of a segmenter, "
                 "cross-entropy minus Dice, ends between -0.5 and -0.9.", "",
                 f"![losses]({folder.name}/losses.svg)", ""]
    return "\n".join([*text, "## Time", "", _times(runs[0])])


def _read_report(path):
    """{heading: text below it} of a report; the key "" has the text before the first section."""
    if not path.exists():
        raise DataError(f"{path}: no report; give a finished run")
    head, *sections = re.split("^## ", path.read_text(encoding="utf-8"), flags=re.M)
    return {"": head, **{heading: text.strip() for heading, text in (section.split("\n", 1) for section in sections)}}


def _with_figures(section, results, folder):
    """A section of a report, its figures copied to `folder` beside the page, or removed if `folder` is None."""
    picture = re.compile(r"^(!\[.*\])\((.*)\)$", re.M)
    if not folder:
        return picture.sub("", section)
    folder.mkdir(parents=True, exist_ok=True)
    for _, name in picture.findall(section):
        shutil.copyfile(results / name, folder / name)
    return picture.sub(rf"\1({folder.name}/\2)", section)


def _losses(run):
    """{title: {training: losses}} from a run's logs, by network; log10 for the SD-DM, whose losses span decades."""
    panels = {}
    for log in sorted(run.glob("*/log.csv")):
        name = log.parent.name.removeprefix("segmenter-")
        losses = np.array([float(row["loss"]) for row in read_csv(log, ("loss",))])
        if name == "diffusion":
            panels["SD-DM, log10 of the loss"] = {name: np.log10(losses)}
        else:
            panels.setdefault(split_name(name)[0], {})[name] = losses
    return panels


def _times(run):
    """Table of steps and minutes of every training from its log, without time that was lost by a kill."""
    lines = []
    for log in sorted(run.glob("*/log.csv")):
        rows = read_csv(log, ("step", "seconds_per_step"))
        ends = [int(row["step"]) for row in rows]
        seconds = sum((end - begin) * float(row["seconds_per_step"]) for begin, end, row in zip([0, *ends], ends, rows))
        lines.append([log.parent.name, ends[-1], f"{seconds / 60:.1f}"])
    return markdown_table(["training", "steps", "minutes"], lines)


def spread_over_seeds(runs):
    """Text and table of the spread over seeds: means, and differences from the same seed's baseline, ± SD.

    runs : folders of one experiment, one per seed.  Rows that some seeds did not run are left out.  Raises UsageError
    for a single run, and DataError if a run was tested on other volumes than the first.
    """
    if len(runs) < 2:
        raise UsageError("--runs: give at least two, one per seed; one has no spread")
    tables = [_read_metrics(run / "results" / "metrics.csv") for run in runs]
    tested = [{(row["domain"], row["subject"], row["phase"], row["structure"]) for row in rows} for rows in tables]
    for run, of_run in zip(runs, tested):
        if of_run != tested[0]:
            raise DataError(f"{run}: tested on other volumes or structures than {runs[0]}; give runs of one experiment")
    of_seed = [means(comparable(rows)) for rows in tables]
    lines = [_spread_of(key, of_seed) for key in of_seed[0] if all(key in mean for mean in of_seed)]
    columns = [column for name, _ in SUMMARISED.values() for column in (name, "to the baseline")]
    header = ["domain", "network", "row", *columns, "missed", "seeds in which HD95 is better"]
    return (f"Mean ± SD over {len(runs)} training seeds, of the mean over patients. A missed structure counts as "
            f"{largest_diagonal_mm(tables[0]):.0f} mm; how many each seed missed stands in the order of the seeds.\n\n"
            f"{markdown_table(header, lines)}")


def _read_metrics(path):
    """Rows of a metrics.csv, penalised (`cmr.comparison`); an empty cell becomes NaN."""
    rows = read_csv(path, METRIC_COLUMNS)
    for row in rows:
        row.update({name: float(row[name] or "nan") for name in ("dice", *DISTANCES, "diagonal_mm")})
    return penalised(rows)


def _spread_of(key, of_seed):
    """Cells of one table row; key : (domain, network, row of the experiment), of_seed : the `means` of each seed."""
    domain, network, arm = key
    cells, better = [], "-"
    for metric, (_, digits) in SUMMARISED.items():
        value = np.array([mean[key][metric] for mean in of_seed])
        change = value - [mean[domain, network, BASELINE][metric] for mean in of_seed]
        cells += [mean_sd(value, digits), "-" if arm == BASELINE else mean_sd(change, digits, "+")]
        if metric == "hd95" and arm != BASELINE:
            better = f"{(change < 0).sum()} of {len(of_seed)}"
    missed = ", ".join(str(mean[key]["missed"]) for mean in of_seed)
    return [*key, *cells, f"{missed} of {of_seed[0][key]['structures']}", better]


if __name__ == "__main__":
    run_script(main)
