"""How much the table changes with the training seed: `python -m cmr.seed_spread --runs RUN,RUN,...`.

Patients are averaged inside a seed first, so that the spread is that of training, not of patients.  Rows that some
seeds did not run are left out.
Public: `spread_over_seeds`, `seed_spread`, `read_metrics`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.comparison import METRIC_COLUMNS, SUMMARY_METRICS, comparable, largest_diagonal_mm, means
from cmr.errors import DataError, UsageError, run_script
from cmr.experiment import BASELINE
from cmr.files import read_csv, write_text
from cmr.report import MISSED, SUMMARISED, markdown_table
from cmr.settings import given, opt, parse


@dataclass(frozen=True)
class Config:
    """Which runs."""
    runs: str = opt("", "folders of the experiment, one per seed, separated by commas",
                    given("at least two folders"))
    out: str  = opt("runs/seeds.md", "the table")


def spread_over_seeds(runs):
    """Lines of Markdown: what the table says, and the table.  runs : folders of the experiment, one per seed.

    Raises DataError for a run that was tested on other volumes than the first.
    """
    tables = [read_metrics(Path(run) / "results" / "metrics.csv") for run in runs]
    tested = [{(row["domain"], row["subject"], row["phase"], row["structure"]) for row in rows} for rows in tables]
    for run, of_run in zip(runs, tested):
        if of_run != tested[0]:
            raise DataError(f"{run}: tested on other volumes or structures than {runs[0]}; give runs of one experiment")
    return [f"Mean ± SD over {len(runs)} training seeds, of the mean over patients. A missed structure counts as "
            f"{largest_diagonal_mm(tables[0]):.0f} mm; how many each seed missed stands in the order of the seeds.", "",
            *seed_spread(tables)]


def seed_spread(tables):
    """Lines of the table: mean ± SD over seeds of each row's mean, and of its difference to the same seed's baseline.

    tables : for every seed the rows of its metrics.csv.
    """
    of_seed = [means(comparable(rows)) for rows in tables]
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
                better = f"{(change < 0).sum()} of {len(of_seed)}"
        missed = ", ".join(str(mean[domain, network, arm]["missed"]) for mean in of_seed)
        of_all = of_seed[0][domain, network, arm]["structures"]
        lines.append([domain, network, arm, *cells, f"{missed} of {of_all}", better])
    columns = [column for name, _ in SUMMARISED.values() for column in (name, "to the baseline")]
    header = ["domain", "network", "row", *columns, MISSED, "seeds in which HD95 is better"]
    return markdown_table(header, lines)


def _mean_sd(values, digits, sign=""):
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def read_metrics(path):
    """Rows of a metrics.csv with the metrics of the summary as numbers; an empty cell is nan."""
    numbers = (*SUMMARY_METRICS, "diagonal_mm")
    return [{**row, **{name: float(row[name] or "nan") for name in numbers}} for row in read_csv(path, METRIC_COLUMNS)]


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    runs = [run for run in c.runs.split(",") if run]
    if len(runs) < 2:
        raise UsageError("--runs: give at least two, one per seed; one has no spread")
    text = "\n".join(spread_over_seeds(runs))
    write_text(c.out, text + "\n")
    print(text)


if __name__ == "__main__":
    run_script(main)
