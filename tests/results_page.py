"""A page of results for docs/, copied from finished runs and not typed: `python tests/results_page.py --runs ...`.

From the report.md of each run the page takes the main sections and the example pictures, and adds the commit and the
time of each training.  With several runs, one per training seed, it also has the table of their spread.
"""
import argparse
import re
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from cmr.errors import DataError, run_script  # noqa: E402
from cmr.files import read_csv, write_text  # noqa: E402
from cmr.pictures import LINE, svg, svg_text  # noqa: E402
from cmr.report import markdown_table, spread_over_seeds  # noqa: E402
from cmr.segmenter import split_name  # noqa: E402

SHOWN = ("All unseen targets", "Tests against the baseline", "Does it look like the source?")
LINE_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
HEALTHY = ("The loss of every training over its steps, from the first row of its log to the last. That of the "
           "diffusion model falls steeply in its first twentieth and slowly from then on; that of a segmenter, "
           "cross-entropy minus Dice, ends between -0.5 and -0.9.")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, help="finished runs of one experiment, one per seed, with commas")
    parser.add_argument("--title", default="Results on the phantom", help="heading of the page")
    parser.add_argument("--who", default="For anyone who asks what the experiment finds on the phantom.",
                        help="first paragraph: who needs it")
    parser.add_argument("--command", default="make reproduce", help="the command that made the runs")
    parser.add_argument("--out", required=True, help="the page; its figures go to a folder of its name beside it")
    parser.add_argument("--no-figures", dest="figures", action="store_false",
                        help="without the reports' figures: no image of a patient leaves the runs")
    c = parser.parse_args(argv)
    write_text(c.out, results_page([Path(run) for run in c.runs.split(",")], c) + "\n")


def results_page(runs, c):
    """The page in Markdown; also copies the figures.  Raises DataError for a run without a report."""
    reports = [read_report(run / "results" / "report.md") for run in runs]
    folder = Path(c.out).with_suffix("") if c.figures else None
    made_of = [dict(re.findall(r"^\| (.+?) \| (.+) \|$", of["What this was made of"], re.M)) for of in reports]
    text = [f"# {c.title}", "", c.who, "",
            f"Made by `{c.command}` at commit {' and '.join(dict.fromkeys(of['commit'] for of in made_of))} "
            f"({made_of[0]['versions']}; {made_of[0]['machine']}), and copied from the runs' reports by "
            "`python tests/results_page.py`.", ""]
    for run, report in zip(runs, reports):
        verdict = "\n".join(re.findall(r"^- \*\*.*", report[""], re.M))
        text += [f"## Seed {run.name.rpartition('-seed')[2]}: what the numbers say", "", verdict, ""]
        for heading in SHOWN if run == runs[0] else SHOWN[:1]:
            text += [f"### {heading}", "", with_figures(report[heading], run / "results", folder), ""]
    if len(runs) > 1:
        text += ["## Spread over the seeds", "", spread_over_seeds(runs), ""]
    if folder:
        text += ["## Examples", "", with_figures(reports[0]["Figures"], runs[0] / "results", folder), ""]
        write_text(folder / "losses.svg", curves(losses(runs[0])))
        text += ["## What a healthy run looks like", "", HEALTHY, "", f"![losses]({folder.name}/losses.svg)", ""]
    return "\n".join([*text, "## Time", "", times(runs[0])])


def read_report(path):
    """{heading: text below it} of a report; the key "" has the text before the first section."""
    if not path.exists():
        raise DataError(f"{path}: no report; give a finished run")
    head, *sections = re.split("^## ", path.read_text(encoding="utf-8"), flags=re.M)
    return {"": head, **{heading: text.strip() for heading, text in (section.split("\n", 1) for section in sections)}}


def with_figures(section, results, folder):
    """A section of a report, its figures copied to `folder` beside the page, or removed if `folder` is None."""
    picture = re.compile(r"^(!\[.*\])\((.*)\)$", re.M)
    if not folder:
        return picture.sub("", section)
    folder.mkdir(parents=True, exist_ok=True)
    for _, name in picture.findall(section):
        shutil.copyfile(results / name, folder / name)
    return picture.sub(rf"\1({folder.name}/\2)", section)


def losses(run):
    """{title: {training: losses}} from a run's logs, by network; log10 for the SD-DM, whose losses span decades."""
    panels = {}
    for log in sorted(run.glob("*/log.csv")):
        name = log.parent.name.removeprefix("segmenter-")
        values = np.array([float(row["loss"]) for row in read_csv(log, ("loss",))])
        if name == "diffusion":
            panels["SD-DM, log10 of the loss"] = {name: np.log10(values)}
        else:
            panels.setdefault(split_name(name)[0], {})[name] = values
    return panels


def curves(panels):
    """SVG of plots side by side, every line as wide as its plot; panels : {title: {name of a line: its values}}."""
    width, height, gap = 240, 170, 60
    most = max(len(lines) for lines in panels.values())
    parts = []
    for i, (title, lines) in enumerate(panels.items()):
        every = np.concatenate([np.asarray(values, float) for values in lines.values()])
        low, high = every.min(), every.max() + 1e-9
        left, top = gap + i * (width + gap), 2 * LINE
        parts += [svg_text(left, LINE, title, "start", ' font-weight="bold"'),
                  f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#888"/>',
                  svg_text(left - 4, top + 10, f"{high:.3g}", "end"),
                  svg_text(left - 4, top + height, f"{low:.3g}", "end")]
        for k, (name, values) in enumerate(lines.items()):
            x = left + width * np.linspace(0, 1, len(values))
            y = top + height * (high - np.asarray(values, float)) / (high - low)
            paint = LINE_COLOURS[k % len(LINE_COLOURS)]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
            parts += [f'<polyline points="{points}" fill="none" stroke="{paint}" stroke-width="1.5"/>',
                      svg_text(left, top + height + (k + 1.2) * LINE, name, "start", f' fill="{paint}"')]
    return svg(gap + len(panels) * (width + gap), 3 * LINE + height + most * LINE, parts)


def times(run):
    """Table of steps and minutes of every training from its log, without time that was lost by a kill."""
    lines = []
    for log in sorted(run.glob("*/log.csv")):
        rows = read_csv(log, ("step", "seconds_per_step"))
        ends = [int(row["step"]) for row in rows]
        seconds = sum((end - begin) * float(row["seconds_per_step"]) for begin, end, row in zip([0, *ends], ends, rows))
        lines.append([log.parent.name, ends[-1], f"{seconds / 60:.1f}"])
    return markdown_table(["training", "steps", "minutes"], lines)


if __name__ == "__main__":
    run_script(main)
