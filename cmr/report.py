"""The report of an experiment: makes the tables and pictures, and fills them into the page `cmr/report.md`.

As a script, `python -m cmr.report --runs RUN,RUN --out FILE`, it writes the table of the spread over training seeds.
"""
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.audit import COLUMNS, COPIED
from cmr.comparison import (ALPHA, DISTANCES, METRIC_COLUMNS, MINIMUM_PATIENTS, POOLED, all_tests, by_row,
                            comparable, distinct, failures, gap_closed, largest_diagonal_mm, means, outcome,
                            patient_values, penalised, select)
from cmr.errors import DataError, UsageError, run_script
from cmr.experiment import ARMS, BASELINE, PRIMARY_ARMS, UPPER_BOUND
from cmr.files import read_csv, write_csv, write_text
from cmr.pictures import FULL_COLOUR, example_sheet, forest
from cmr.records import STRUCTURES, Domain
from cmr.settings import opt, parse, required
from cmr.synthetic_set import read_manifest
from cmr.verdict import control_lines, sentences

# SUMMARISED: name and digits of a metric in the summary.  TABULATED: name of a column in the tables of a domain.
SUMMARISED = {"dice": ("Dice", 3), "hd95": ("HD95 mm", 1), "assd": ("ASSD mm", 2),
              "hd95_in_plane": ("in-plane HD95 mm", 1)}
TABULATED = {"dice": "Dice", "hd95": "HD95 mm", "hd95_pooled": "HD95 pooled mm", "assd": "ASSD mm",
             "hd95_in_plane": "in-plane HD95 mm", "missed": "missed", "hd95_found": "HD95 mm of those found"}
BY_STRUCTURE = (BASELINE, "DA", "DA, guided, averaged", "DG", "real + DG")             # rows shown by structure

PAGE = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")                 # with {names} of what is filled in
BOUNDED = ("100 % of the gap closed is as good as the upper bound, the same network trained on each target's own "
           "training studies; negative is worse than the baseline; no share where the gap is below 0.01 Dice, 0.5 mm "
           "HD95 or 0.2 mm ASSD. A bound may have fewer or more patients to train on than its baseline, as the end of "
           "this report says, which makes the gap look smaller or larger.")
UNBOUNDED = ("No share of a gap is given, as that takes an upper bound. The level on the source is none: domains "
             "differ in difficulty.")


@dataclass(frozen=True)
class Config:
    """Settings of the table of the spread over training seeds."""
    runs: str = opt("", "finished runs of one experiment, one per seed, separated by commas", required("run folders"))
    out: str  = opt("", "file of the table", required("a file"))


def main(argv=None):
    c = parse(Config, {"demo": {}}, argv, "Write the table of the spread over training seeds.")
    text = spread_over_seeds([Path(run) for run in c.runs.split(",") if run])
    write_text(c.out, text + "\n")
    print(text)


def write_report(out, rows, examples, source, run, settings, made_of, orphans):
    """Write tests.csv, report.md and its pictures into `out`; print the verdict and the table of all targets.

    rows : of metrics.csv.  examples : {domain: list of cmr.pictures.Example}.  source : name of the source domain.
    run : folder of the experiment.  settings : those of evaluate.py.  made_of : from cmr.checkpoint.provenance.
    orphans : [(what, why)] of what took no part.
    """
    rows = penalised(rows)
    shared, domains = comparable(rows), distinct(rows, "domain")
    targets = [domain for domain in domains if domain != source]
    tests = all_tests(shared)
    verdict = sentences(shared, tests, source)
    summary = "\n".join([_summary(shared, [POOLED], [arm.name for arm in ARMS]), "", *control_lines(shared)])
    sections = []
    for domain in domains:
        here, shared_here = (select(some, domain=domain) for some in (rows, shared))
        role = "source test studies" if domain == source else "unseen target"
        sections += [f"## {domain} ({role}, {len(distinct(here, 'subject'))} patients)", "", _domain_table(shared_here),
                     "", _structure_table(here), ""]
    write_csv(out / "tests.csv", tests, columns=tests[0])
    write_text(out / "report.md", PAGE.format(
        source=source, targets=", ".join(targets), networks=", ".join(distinct(rows, "network")),
        seed=settings["seed"], penalty=largest_diagonal_mm(rows), structures=_structures(rows, shared),
        alpha=ALPHA, minimum=MINIMUM_PATIENTS, full_colour=FULL_COLOUR, copied=COPIED,
        verdict="\n".join(f"- {sentence}" for sentence in verdict),
        shares=BOUNDED if UPPER_BOUND in distinct(shared, "arm") else UNBOUNDED,
        summary=summary, each_target=_summary(shared, targets, (BASELINE, *PRIMARY_ARMS, UPPER_BOUND)),
        domains="\n".join(sections), forest=_forest(out, tests), tests=_test_table(tests),
        ledger=_ledger(shared, source, run), examples=draw_examples(out, shared, examples),
        likeness=_likeness_table(run),
        **_synthetic_set(out, run), **_samples(out, run),
        made_of=markdown_table(["what", "value"], made_of),
        left_out="\n".join(f"- {what}: {why}" for what, why in orphans) or "Nothing."))
    print("\n" + "\n".join(verdict))
    print(f"\nall unseen targets\n{summary}")


def markdown_table(header, rows):
    """Return a Markdown table as text; header : column names, rows : lists of cells."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def mean_sd(values, digits, sign=""):
    """Return "mean ± SD"; one value has no SD, and "-" stands for no value.  sign : "+" also shows the mean's sign."""
    if not len(values):
        return "-"
    sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.{digits}f}{sd}"


def _measured(rows, metrics):
    """Return table cells: each metric's mean ± SD over patients; for "missed", how many structures were missed."""
    missed = f"{failures(rows)} of {len(rows)}"
    averaged = lambda metric: mean_sd(list(patient_values(rows, metric).values()), 3 if metric == "dice" else 1)
    return [missed if metric == "missed" else averaged(metric) for metric in metrics]


def _or_dash(value, form):
    return "-" if value is None or math.isnan(value) else format(value, form)


def _picture(name):
    """Return the Markdown of a picture that lies beside the report, with the blank line after it."""
    return f"![{name[:-4].replace('_', ' ')}]({name})\n\n"


def _copied(path, out, name):
    """Copy a picture of another stage to the report's folder `out`; return its Markdown."""
    shutil.copyfile(path, out / name)
    return _picture(name)


def _structures(rows, shared):
    """Return which structures were measured, and which of them enter the averages, in words."""
    every, averaged = distinct(rows, "structure"), distinct(shared, "structure")
    if len(averaged) < len(every):
        return f"{', '.join(every)}; averaged are {', '.join(averaged)}, which every domain labels"
    others = " (not every network was trained on the others, or no test volume labels them)"
    return ", ".join(every) + (others if len(every) < len(STRUCTURES) else "")


def _summary(rows, domains, arms):
    """Return the table of means over patients, of missed structures and, with an upper bound, of the gap closed."""
    mean, bounded = means(rows), UPPER_BOUND in distinct(rows, "arm")
    header = ["target", "network", "row", *(name for name, _ in SUMMARISED.values()), "missed", TABULATED["hd95_found"]]
    if bounded:
        header += ["gap closed: Dice", "HD95", "ASSD", "in-plane HD95"]
    lines = []
    for (domain, network, arm), values in mean.items():
        if domain in domains and arm in arms:
            lines.append([domain, network, arm,
                          *(f"{values[metric]:.{digits}f}" for metric, (_, digits) in SUMMARISED.items()),
                          f"{values['missed']} of {values['structures']}", _or_dash(values["hd95_found"], ".1f")])
            if bounded:
                closed = [gap_closed(mean, domain, network, arm, metric) for metric in SUMMARISED]
                lines[-1] += [_or_dash(share, ".0%") for share in closed]
    return markdown_table(header, lines)


def _domain_table(rows):
    """Return the table of every row of the experiment; rows : of a domain."""
    lines = [[network, arm, of_row[0]["trained_on"], of_row[0]["test_input"], *_measured(of_row, TABULATED)]
             for (network, arm), of_row in by_row(rows).items()]
    return markdown_table(["network", "row", "trained on", "test input", *TABULATED.values()], lines)


def _structure_table(rows):
    """Return the table of the main rows of the experiment, by structure; rows : of a domain."""
    structures = distinct(rows, "structure")
    shown, lines = ("dice", "hd95", "assd", "missed"), []
    for (network, arm), of_row in by_row(rows).items():
        if arm in BY_STRUCTURE:
            lines.append([network, arm])
            for structure in structures:
                lines[-1] += _measured(select(of_row, structure=structure), shown)
    columns = [f"{structure} {TABULATED[metric]}" for structure in structures for metric in shown]
    return markdown_table(["network", "row", *columns], lines)


def _forest(out, tests):
    """Draw how DA and DG change HD95; return Markdown, which is empty if every test has too few patients."""
    groups = {}
    for test in select(tests, metric="hd95"):
        values = test["mean_difference"], test["bca_low"], test["bca_high"]
        if test["arm"] in PRIMARY_ARMS and np.isfinite(values).all():
            name = f"{test['network']} {test['arm']}"
            groups.setdefault(test["domain"], []).append((name, *values, PRIMARY_ARMS.index(test["arm"])))
    if not groups:
        return ""
    write_text(out / "forest.svg", forest(groups))
    return ("Change of HD95 against the baseline, mean over patients with its 95 % BCa interval; what was missed "
            f"counts as in the table.\n\n{_picture('forest.svg')}")


def _test_table(tests):
    """Return the table of the primary tests, those of DA and DG against the baseline."""
    lines = []
    for t in select(tests, primary=1):
        interval = f"{t['bca_low']:+.1f} to {t['bca_high']:+.1f}"
        kind = outcome(t, t["wilcoxon_p_holm"])
        star = f" * {kind}" if kind in ("better", "worse") else ""
        lines.append([t["domain"], t["network"], t["arm"], t["metric"].upper(), t["n"],
                      f"{t['mean_difference']:+.2f} mm", f"{t['n_missed_baseline']}, {t['n_missed_arm']}",
                      f"n < {MINIMUM_PATIENTS}" if kind == "few" else interval,
                      f"{_or_dash(t['welch_p'], '.2g')} ({_or_dash(t['welch_p_holm'], '.2g')})",
                      f"{t['wilcoxon_p']:.2g} ({t['wilcoxon_p_holm']:.2g}){star}"])
    return markdown_table(["target", "network", "row", "metric", "n", "difference", "missed by baseline, row",
                           "95 % BCa", "Welch p (Holm)", "Wilcoxon p (Holm)"], lines)


def _ledger(rows, source, run):
    """Return the table of the images and masks of source and target that each row of the experiment has used."""
    ran = distinct(rows, "arm")
    table = markdown_table(["row", "source images", "source masks", "target images", "target masks"],
                           [[arm.name, arm.source, arm.source, arm.access, arm.target_masks]
                            for arm in ARMS if arm.name in ran])
    others = set(distinct(read_manifest(run / "dg", ("domain",)), "domain")) - {source}
    note = "\n\nDG's references are the labelled images of {}: whatever was trained on DG's images has seen those too."
    return table + "".join(note.format(domain) for domain in others)


def draw_examples(out, rows, examples):
    """Draw each domain's median and worst case by the HD95 of the first network's baseline; return Markdown."""
    network, text = rows[0]["network"], ""
    for domain, of_domain in examples.items():
        of_baseline = select(rows, domain=domain, network=network, arm=BASELINE)
        as_patients = [{**row, "subject": f"{row['subject']}_{row['phase']}"} for row in of_baseline]
        distance_mm = patient_values(as_patients, "hd95")
        order = sorted((e for e in of_domain if e.case in distance_mm), key=lambda e: (distance_mm[e.case], e.case))
        for which, example in (("median", order[len(order) // 2]), ("worst", order[-1])):
            name = f"{which}_{Domain.parse(domain).file_name}.svg"
            write_text(out / name, example_sheet(example))
            outside = "" if example.truth.any() else "; the heart lies outside the working field of view"
            text += (f"{domain}, {which} case by the baseline's HD95 ({example.case}, {distance_mm[example.case]:.1f} "
                     f"mm{outside}), contours of {network}.\n\n{_picture(name)}")
    return text


def _synthetic_set(out, run):
    """Return {name in the page: value} on DG's pairs: how many fit their masks, the worst, correlation of slices."""
    pairs = read_manifest(run / "dg", ("kept", "through_plane_reference", "through_plane_synthetic"))
    excluded, correlations = len(select(pairs, kept="0")), []
    drawn = [run / "dg" / name for name in ("worst_kept.png", "worst_excluded.png")]
    worst = "".join(_copied(path, out, path.name) for path in drawn if path.exists())
    for kind in ("reference", "synthetic"):
        r = np.array([float(row[f"through_plane_{kind}"] or "nan") for row in pairs])
        r = r[np.isfinite(r)]                                     # undefined for a volume of one slice
        correlations.append(f"{kind} {r.mean():.3f} ± {r.std():.3f}" if len(r) else f"{kind} undefined")
    return {"kept": len(pairs) - excluded, "pairs": len(pairs), "excluded": excluded, "worst": worst,
            "correlations": ", ".join(correlations)}


def _likeness_table(run):
    """Return the table of volumes taken for the source, and of the auditing segmenter's Dice, before and after."""
    columns = ("domain", "shift", "strength", "of_source_reference", "of_source_synthetic", "dice_reference",
               "dice_synthetic")
    sets = {"DG": read_manifest(run / "dg", columns), "DA": read_manifest(run / "da", columns),
            "DG of held-out patients": read_csv(run / "dg" / "held_out.csv", columns)}
    groups = {}
    for name, rows in sets.items():
        for row in rows:
            if row["of_source_synthetic"]:
                groups.setdefault((name, row["domain"], row["shift"], row["strength"]), []).append(row)
    lines = []
    for (name, domain, shift, strength), rows in sorted(groups.items()):
        cells = [name, domain, "yes" if float(shift) else "no", strength, len(rows)]
        for kind in ("reference", "synthetic"):
            taken = np.mean([float(row[f"of_source_{kind}"]) > 0.5 for row in rows])
            scores = [float(row[f"dice_{kind}"]) for row in rows if row[f"dice_{kind}"]]
            cells += [f"{taken:.0%}", f"{np.nanmean(scores):.3f}" if scores else "-"]
        lines.append(cells)
    header = ["set", "images", "look changed before", "strength", "volumes", "taken for the source before",
              "Dice before", "after: taken for the source", "Dice"]
    return markdown_table(header, lines)


def _samples(out, run):
    """Return {name in the page: value} on the SD-DM's unconditional samples, with the last sheet of them."""
    [row] = read_csv(run / "dg" / "sd_dm.csv", COLUMNS)
    sheet, sheets = "", sorted((run / "diffusion").glob("samples_*.png"))
    if sheets:
        sheet = f"Samples, always from the same noise:\n\n{_copied(sheets[-1], out, 'samples.png')}"
    return {**{name: float(row[name]) for name in COLUMNS}, "sheet": sheet}


def spread_over_seeds(runs):
    """Return the table of the spread over seeds: means, and differences from the same seed's baseline, ± SD.

    runs : folders of one experiment, one per seed.  Rows that some seeds did not run are left out.  Raises UsageError
    for a single run, and DataError if a run was tested on other volumes than the first.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
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
    """Return the rows of a metrics.csv, penalised (`cmr.comparison`); an empty cell becomes nan."""
    rows = read_csv(path, METRIC_COLUMNS)
    for row in rows:
        try:
            row.update({name: float(row[name] or "nan") for name in ("dice", *DISTANCES, "diagonal_mm")})
        except ValueError as error:
            raise DataError(f"{path}: {error}; take the file as evaluate.py wrote it") from error
    return penalised(rows)


def _spread_of(key, of_seed):
    """Return the cells of one line; key : (domain, network, row of the experiment), of_seed : each seed's `means`."""
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
