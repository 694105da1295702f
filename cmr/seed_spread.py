"""How much the table changes with the training seed: `python -m cmr.seed_spread --runs RUN,RUN,...`.

Patients are averaged inside a seed first, so that the spread is that of training, not of patients.
Public: `seed_spread`, `read_metrics`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.comparison import METRIC_COLUMNS, SUMMARY_METRICS, means
from cmr.errors import UsageError, run_script
from cmr.experiment import BASELINE
from cmr.files import read_csv, write_text
from cmr.report import SUMMARISED, markdown_table
from cmr.settings import given, opt, parse


@dataclass(frozen=True)
class Config:
    """Which runs."""
    runs: str = opt("", "folders of the experiment, one per seed, separated by commas",
                    given("at least two folders"))
    out: str  = opt("runs/seeds.md", "the table")


def seed_spread(tables):
    """Lines of the table: mean ± SD over seeds of each row's mean, and of its difference to the same seed's baseline.

    tables : for every seed the rows of its metrics.csv.
    """
    of_seed = [means(rows) for rows in tables]
    keys = [key for key in of_seed[0] if all(key in mean for mean in of_seed)]
    lines = []
    for domain, network, arm in keys:
        cells, better = [], "-"
        for metric, (_, digits) in SUMMARISED.items():
            value = np.array([mean[domain, network, arm][metric] for mean in of_seed])
            change = value - [mean[domain, network, BASELINE][metric] for mean in of_seed]
            is_baseline = arm == BASELINE
            cells += [_mean_sd(value, digits), "-" if is_baseline else _mean_sd(change, digits, "+")]
            if metric == "hd95" and not is_baseline:
                better = (change < 0).sum()
        lines.append([domain, network, arm, *cells, f"{better} of {len(of_seed)}"])
    columns = [column for name, _ in SUMMARISED.values() for column in (name, "to the baseline")]
    return markdown_table(["domain", "network", "row", *columns, "seeds in which HD95 is better"], lines)


def _mean_sd(values, digits, sign=""):
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def read_metrics(path):
    """Rows of a metrics.csv with the metrics of the summary as numbers; an empty cell is nan."""
    rows = read_csv(path, METRIC_COLUMNS)
    return [{**row, **{metric: float(row[metric] or "nan") for metric in SUMMARY_METRICS}} for row in rows]


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    runs = [run for run in c.runs.split(",") if run]
    if len(runs) < 2:
        raise UsageError("--runs: give at least two, one per seed; one has no spread")
    tables = [read_metrics(Path(run) / "results" / "metrics.csv") for run in runs]
    heading = f"Mean ± SD over {len(runs)} training seeds, of the mean over patients."
    text = "\n".join([heading, "", *seed_spread(tables)])
    write_text(c.out, text + "\n")
    print(text)


if __name__ == "__main__":
    run_script(main)
