"""The report's figures: example slices of each domain, and plots if matplotlib is installed, the one optional extra.

How a slice becomes a panel is `cmr.panels`' business; what is compared, `cmr.comparison`'s.

Public: `Example`, `EXAMPLES`, `draw_examples`, `draw_forest`, `LEFT_OUT`, `draw_plots`.
"""
from dataclasses import dataclass

import numpy as np

from cmr.comparison import POOLED, domains_of, largest_diagonal_mm, means, networks_of, patient_values, targets_of
from cmr.experiment import BASELINE, DOSES, PRIMARY_ARMS
from cmr.files import atomic, write_text
from cmr.panels import difference, forest, labelled_sheet, with_contours
from cmr.records import Domain

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

LEFT_OUT = ("Plots were left out: matplotlib is not installed.  Install it, delete the results folder and run the "
            "same command again.")
FULL_COLOUR = 0.5                                # a difference of a quarter of the images' range [-1, 1]
EXAMPLES = ("Each row is a slice. Translated is the image of DA, the difference is red where it is "
            f"brighter and blue where it is darker than the reference, in full colour at {FULL_COLOUR} of a range of "
            "2. Contours: LV red, MYO green, RV blue, of the truth and of the first network.")


@dataclass(frozen=True)
class Example:
    """A test volume on the working grid, to be drawn: images (D, H, W) in [-1, 1], labels (D, H, W)."""
    case: str
    image: np.ndarray
    translated: np.ndarray
    truth: np.ndarray
    found: dict                                  # (network, arm name) -> labels


def draw_examples(out, domain, network, examples, rows):
    """Write panels (see EXAMPLES) of the median and the worst case by the baseline's HD95; [(file name, caption)].

    examples : of the domain, of which those that were measured are drawn.
    """
    of_baseline = [r for r in rows if (r["domain"], r["network"], r["arm"]) == (domain, network, BASELINE)]
    distance_mm = _distance_of_cases(of_baseline, largest_diagonal_mm(rows))
    order = sorted((e for e in examples if e.case in distance_mm), key=lambda e: (distance_mm[e.case], e.case))
    drawn = []
    for which, example in (("median", order[len(order) // 2]), ("worst", order[-1])):
        name = f"{which}_{Domain.parse(domain).file_name}.svg"
        columns = ["reference", "translated", f"difference, ±{FULL_COLOUR}", "truth", *_arms_of(example, network)]
        write_text(out / name, labelled_sheet(_example_panels(example, network), columns))
        outside = "" if example.truth.any() else "; the heart lies outside the working field of view"
        measured = f"{example.case}, {distance_mm[example.case]:.1f} mm{outside}"
        drawn.append((name, f"{domain}, {which} case by the baseline's HD95 ({measured}), contours of {network}"))
    return drawn


def draw_forest(out, tests):
    """Write forest.svg, the change of HD95 of DA and DG with its 95 % interval; [(file name, caption)], or [] without.

    tests : rows of tests.csv.
    """
    groups = {}
    for row in tests:
        if row["metric"] == "hd95" and row["arm"] in PRIMARY_ARMS:
            name = f"{row['network']} {row['arm']}"
            values = (row["mean_difference"], row["bca_low"], row["bca_high"])
            if np.isfinite(values).all():                         # too few patients have no interval
                groups.setdefault(row["domain"], []).append((name, *values, PRIMARY_ARMS.index(row["arm"])))
    if not groups:
        return []
    write_text(out / "forest.svg", forest(groups, "mm"))
    caption = ("Change of HD95 against the baseline, mean over patients with its 95 % BCa interval; what was missed "
               "counts as in the table")
    return [("forest.svg", caption)]


def _arms_of(example, network):
    """Rows of the table whose contours are drawn."""
    return [arm for arm in (BASELINE, *PRIMARY_ARMS) if (network, arm) in example.found]


def _distance_of_cases(rows, penalty_mm):
    """{case: mean HD95 over its structures, in mm}, as patients are averaged."""
    as_patients = [{**row, "subject": f"{row['subject']}_{row['phase']}"} for row in rows]
    return patient_values(as_patients, "hd95", penalty_mm)


def _example_panels(example, network):
    """Up to three slices of a case: first, middle and last of the labelled ones, or of all if none is in view."""
    filled = np.flatnonzero(example.truth.any((1, 2)))
    filled = filled if len(filled) else np.arange(len(example.truth))
    chosen = filled[np.linspace(0, len(filled) - 1, min(3, len(filled))).round().astype(int)]
    arms, panels = _arms_of(example, network), []
    for k in chosen:
        image, translated = example.image[k], example.translated[k]
        panels.append([with_contours(image), with_contours(translated), difference(image, translated, FULL_COLOUR),
                       with_contours(image, example.truth[k]),
                       *(with_contours(image, example.found[network, arm][k]) for arm in arms)])
    return panels


def draw_plots(out, rows):
    """Write paired.png and, if there are doses, dose.png into `out`; [(file name, caption)], None without matplotlib.

    rows : of metrics.csv.
    """
    if Figure is None:
        return None
    plots = [_plot_patients(out, _patients_hd95(rows))]
    doses = _doses(rows)
    if len(doses[POOLED]) > 1:
        plots.append(_plot_doses(out, doses))
    return plots


def _save(figure, path):
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _patients_hd95(rows):
    """{(network, domain): {arm: {subject: HD95 in mm}}} of baseline, DA and DG; failures at their penalty."""
    penalty_mm, patients = largest_diagonal_mm(rows), {}
    for network in networks_of(rows):
        for domain in domains_of(rows):
            own = [row for row in rows if (row["network"], row["domain"]) == (network, domain)]
            ran = {row["arm"] for row in own} & {BASELINE, *PRIMARY_ARMS}
            of_arm = lambda arm: patient_values([row for row in own if row["arm"] == arm], "hd95", penalty_mm)
            patients[network, domain] = {arm: of_arm(arm) for arm in ran}
    return patients


def _plot_patients(out, patients):
    networks, domains = (list(dict.fromkeys(key[i] for key in patients)) for i in (0, 1))
    figure = Figure(figsize=(2.6 * len(domains), 2.4 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), len(domains), sharex=True, sharey=True, squeeze=False)
    arms = ("DG", BASELINE, "DA")
    for (network, domain), of in patients.items():
        ax = axes[networks.index(network), domains.index(domain)]
        for subject in of[BASELINE]:
            line = [of.get(arm, {}).get(subject, np.nan) for arm in arms]
            ax.plot(range(3), line, color="0.5", marker="o", markersize=2.5, linewidth=0.7)
        medians = [np.median(list(of[arm].values())) if arm in of else np.nan for arm in arms]
        ax.plot(range(3), medians, color="tab:red", marker="s", markersize=4)
        ax.set(xticks=range(3), xticklabels=arms, yscale="log", title=f"{network}, {domain}")
        ax.title.set_fontsize(8)
    figure.supylabel("HD95, mm")
    _save(figure, out / "paired.png")
    caption = ("HD95 of every patient (one line each; the median red), from the baseline to DG and to DA; what was "
               "missed counts as in the tables.")
    return "paired.png", caption


def _doses(rows):
    """{domain: {synthetic images per reference: {metric: mean}}} of the first network; 0 is the baseline."""
    mean, first = means(rows), networks_of(rows)[0]
    doses = {}
    for domain in (*targets_of(rows), POOLED):
        of = {n: mean.get((domain, first, arm)) for n, arm in {0: BASELINE, **DOSES}.items()}
        doses[domain] = {n: values for n, values in of.items() if values}
    return doses


def _plot_doses(out, doses):
    figure = Figure(figsize=(7, 3), layout="constrained")
    for ax, (metric, label) in zip(figure.subplots(1, 2), (("dice", "Dice"), ("hd95", "HD95, mm"))):
        for domain, of in doses.items():
            values = [of[n][metric] for n in sorted(of)]
            ax.plot(range(len(of)), values, marker="o", markersize=4, label=domain)
            ax.set_xticks(range(len(of)), [n or "real" for n in sorted(of)])
        ax.set(xlabel="synthetic images per reference", ylabel=label)
    ax.legend(fontsize=7)
    _save(figure, out / "dose.png")
    caption = ("DG against the number of synthetic images per reference, at equal optimiser steps; the first is only "
               "projected, every second one has its look changed before. What was missed counts as in the tables.")
    return "dose.png", caption
