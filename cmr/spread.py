"""How much the table changes with the training seed: `python -m cmr.spread --runs RUN,RUN,...`.

Patients are averaged inside a seed first, so that the spread is that of training, not of patients.
Public: `spread`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.checkpoint import write_text
from cmr.config import UsageError, opt, parse, run_script
from cmr.report import BASELINE, METRIC_COLUMNS, SUMMARY_METRICS, means
from cmr.studies import read_table


@dataclass(frozen=True)
class Config:
    """Which runs."""
    runs: str = opt("", "folders of the experiment, one per seed, separated by commas")
    out: str  = opt("runs/seeds.md", "the table")


def spread(tables):
    """Lines of the table: mean ± SD over seeds of each row's mean, and of its difference to the baseline of the same seed.

    tables : for every seed the rows of its metrics.csv.
    """
    of_seed = [means(rows) for rows in tables]
    keys = [key for key in of_seed[0] if all(key in mean for mean in of_seed)]
    over = lambda values, digits, sign="": f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
    lines = ["| domain | network | row | " + " | ".join(f"{name} | to the baseline" for name, _ in SUMMARY_METRICS.values()) + " | seeds in which HD95 is better |", "|" + "---|" * (4 + 2 * len(SUMMARY_METRICS))]
    for domain, network, arm in keys:
        value, baseline = ({m: np.array([mean[domain, network, a][m] for mean in of_seed]) for m in SUMMARY_METRICS} for a in (arm, BASELINE))
        change = {m: value[m] - baseline[m] for m in SUMMARY_METRICS}
        cells = [f"{over(value[m], d)} | {over(change[m], d, '+') if arm != BASELINE else '-'}" for m, (_, d) in SUMMARY_METRICS.items()]
        lines.append(f"| {domain} | {network} | {arm} | " + " | ".join(cells) + f" | {(change['hd95'] < 0).sum() if arm != BASELINE else '-'} of {len(of_seed)} |")
    return lines


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, __doc__.splitlines()[0])
    runs = [run for run in c.runs.split(",") if run]
    if len(runs) < 2:
        raise UsageError("--runs: give at least two, one per seed; one has no spread")
    tables = [[{**row, **{m: float(row[m] or "nan") for m in SUMMARY_METRICS}} for row in read_table(Path(run) / "results" / "metrics.csv", METRIC_COLUMNS)] for run in runs]
    text = "\n".join([f"Mean ± SD over {len(runs)} training seeds, of the mean over patients.", "", *spread(tables)])
    write_text(c.out, text + "\n")
    print(text)


if __name__ == "__main__":
    run_script(main)
