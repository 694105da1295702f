"""A page of results from finished runs, copied and not typed: `python -m cmr.results_page --runs RUN,RUN --out PAGE`.

What a run found is in its report.md; this takes the sections that a reader of the documentation needs, the spread over
the runs, the example figures, the commit and the time each stage took.  Nothing is computed anew here.

Public: `results_page`.
"""
import shutil
from dataclasses import dataclass
from pathlib import Path

from cmr.errors import DataError, run_script
from cmr.files import read_csv, write_text
from cmr.report import markdown_table
from cmr.seed_spread import spread_over_seeds
from cmr.settings import given, opt, parse

SHOWN = ("All unseen targets", "Tests against the baseline", "Does it look like the source?")
OF_EACH = SHOWN[:1]                              # sections of the second and further runs


@dataclass(frozen=True)
class Config:
    """Which runs, and what the page says of them."""
    runs: str     = opt("", "finished runs of one experiment, one per seed, separated by commas", given("a run folder"))
    title: str    = opt("Results on the phantom", "heading of the page")
    who: str      = opt("For anyone who asks what the experiment finds on the phantom.",
                        "first paragraph: who needs it")
    command: str  = opt("make reproduce", "the command that made the runs")
    figures: bool = opt(True, "with the reports' figures; without, no image of a patient leaves the runs")
    out: str      = opt("docs/results-phantom.md", "the page; its figures go to a folder of its name beside it")


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    page = results_page([Path(run) for run in c.runs.split(",") if run], c)
    write_text(c.out, page)
    print(f"{c.out}: {len(page.splitlines())} lines")


def results_page(runs, c):
    """The Markdown of the page; copies the figures."""
    reports = [_sections(run / "results" / "report.md") for run in runs]
    figures = Path(c.out).with_suffix("") if c.figures else None
    commits = " and ".join(dict.fromkeys(_made_of(report, "commit") for report in reports))
    text = [f"# {c.title}", "", c.who, "",
            f"Made by `{c.command}` at commit {commits} ({_made_of(reports[0], 'versions')}; "
            f"{_made_of(reports[0], 'machine')}), and copied from the runs' reports by "
            "`python -m cmr.results_page`.", ""]
    for run, report in zip(runs, reports):
        seed = run.name.rpartition("-seed")[2]
        text += [f"## Seed {seed}: what the numbers say", "", _verdict(report), ""]
        for heading in SHOWN if run == runs[0] else OF_EACH:
            text += [f"### {heading}", "", _with_figures(report[heading], run / "results", figures), ""]
    if len(runs) > 1:
        text += ["## Spread over the seeds", "", *spread_over_seeds(runs), ""]
    if figures:
        text += ["## Examples", "", _with_figures(reports[0]["Figures"], runs[0] / "results", figures), ""]
    text += ["## Time", "", *_times(runs[0])]
    return "\n".join(text) + "\n"


def _sections(path):
    """{heading: text below it} of a report; the text before the first section under ''."""
    if not path.exists():
        raise DataError(f"{path}: no report; give a finished run")
    sections, heading = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        sections.setdefault(heading, []).append(line)
    return {name: "\n".join(lines[1:]).strip() for name, lines in sections.items()}


def _verdict(report):
    """The sentences that a report opens with."""
    return "\n".join(line for line in report[""].splitlines() if line.startswith("- **"))


def _made_of(report, what):
    """A cell of the table of provenance."""
    rows = [line.split(" | ") for line in report["What this was made of"].splitlines()]
    return next(row[1].rstrip(" |") for row in rows if row[0] == f"| {what}")


def _with_figures(section, results, folder):
    """A section of a report, with its figures copied to a folder beside the page, or without them."""
    lines = []
    for line in section.splitlines():
        if line.startswith("![") and not folder:
            continue
        if line.startswith("!["):
            folder.mkdir(parents=True, exist_ok=True)
            name = line.rpartition("(")[2].rstrip(")")
            shutil.copyfile(results / name, folder / name)
            line = line.replace(f"({name})", f"({folder.name}/{name})")
        lines.append(line)
    return "\n".join(lines)


def _times(run):
    """Steps and minutes of every training, by its log: without what a kill has cost."""
    lines = []
    for log in sorted(run.glob("*/log.csv")):
        rows = read_csv(log, ("step", "seconds_per_step"))
        ends = [int(row["step"]) for row in rows]
        seconds = sum((end - begin) * float(row["seconds_per_step"]) for begin, end, row in zip([0, *ends], ends, rows))
        lines.append([log.parent.name, str(ends[-1]), f"{seconds / 60:.1f}"])
    return markdown_table(["training", "steps", "minutes"], lines)


if __name__ == "__main__":
    run_script(main)
