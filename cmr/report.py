"""report.md: what was compared and found, as Markdown.  Numbers are `cmr.comparison`'s, pictures `cmr.figures`'.

Public: `write_report`.
"""
import math
import shutil

import numpy as np

from cmr.audit import COLUMNS, COPIED
from cmr.comparison import (
    ALPHA, MINIMUM_PATIENTS, POOLED, TEST_COLUMNS, all_tests, comparable, compared_in, domains_of, failures,
    gap_closed, largest_diagonal_mm, means, networks_of, outcome, patient_values, structures_of)
from cmr.experiment import ARMS, BASELINE, PRIMARY_ARMS, UPPER_BOUND
from cmr.figures import EXAMPLES, LEFT_OUT, draw_examples, draw_forest, draw_plots
from cmr.files import read_csv, write_csv, write_text
from cmr.synthetic_set import read_manifest
from cmr.verdict import control_lines, sentences

# Metric: its name in the summary and digits; its name in the tables of a domain.
SUMMARISED = {"dice": ("Dice", 3), "hd95": ("HD95 mm", 1), "assd": ("ASSD mm", 2),
              "hd95_in_plane": ("in-plane HD95 mm", 1)}
TABULATED = {"dice": "Dice", "hd95": "HD95 mm", "hd95_pooled": "HD95 pooled mm", "assd": "ASSD mm",
             "hd95_in_plane": "in-plane HD95 mm"}

MISSED, FOUND = "missed", "HD95 mm of those found"

READING = ("Mean ± SD over patients; phases and structures are averaged inside a patient first. Distances are in mm "
           "on the original grid. **A structure that was missed is counted and costs {penalty:.0f} mm**, the largest "
           "diagonal of the test images, in every mean, difference, test and share of a gap here, so that missing it "
           "can only hurt; *{found}* alone leaves it out. HD95 is the larger directed 95th percentile, pooled HD95 is "
           "medpy's.")
SUMMARY = ("Means over the patients of all targets together. A spurious or missed end slice moves HD95 by the slice "
           "spacing, in-plane HD95 leaves it out. A missed structure counts as {penalty:.0f} mm. ")
SHARES = {True: "100 % of the gap closed is as good as the upper bound, the same network trained on each target's own "
                "training studies; negative is worse than the baseline; no share where the gap is below 0.01 Dice, "
                "0.5 mm HD95 or 0.2 mm ASSD.",
          False: "No share of a gap is given, as that takes an upper bound: the level on the source is none, domains "
                 "differ in difficulty."}
TESTS = ("Negative: better than the baseline. The primary family is {{HD95, ASSD}} x networks x {{DA, DG}} x targets, "
         "Holm-corrected; the patients of all targets pooled are a family of their own. Welch's test is the paper's; "
         "the same patients are scored twice, so the paired signed-rank test is the one to read, and better or worse "
         "is the sign of its rank sums. A missed structure counts as {penalty:.0f} mm. A star needs "
         f"{MINIMUM_PATIENTS} patients and Wilcoxon p < {ALPHA:g} after Holm; one training seed says nothing about "
         "training noise.")
LIKENESS = ("A small convolutional network tells patches of the source's training volumes from those of a target's "
            "validation volumes (DA), or from their own with the look changed at random (DG, which knows no target), "
            "however they are turned. A volume whose patches have a mean probability above one half is taken for the "
            "source, and a projection that worked is. Dice is the auditing segmenter's, against the reference's mask: "
            "on held-out patients, which neither network was trained on, it should not fall.")


def write_report(out, rows, examples, source, run, settings, made_of, orphans, boundable):
    """Write tests.csv, report.md and the figures into `out`; print the main tables.

    rows : of metrics.csv.  examples : {domain: list of cmr.figures.Example}.  source : its domain's name.
    run : folder of the experiment.  settings : of evaluate.py.  made_of : of cmr.provenance.  orphans : of
    cmr.studies.left_out.  boundable : targets with labelled studies to train on.
    """
    shared, penalty = comparable(rows), largest_diagonal_mm(rows)
    tests = all_tests(shared)
    write_csv(out / "tests.csv", tests, TEST_COLUMNS)
    summary = [*_summary(shared, [POOLED], [arm.name for arm in ARMS]), "", *control_lines(shared)]
    tables = {domain: _domain_table(shared, domain) for domain in domains_of(rows)}
    verdict = sentences(shared, tests, source, boundable)
    text = [*_head(rows, source, settings, verdict),
            *_summaries(shared, source, summary),
            *_domain_sections(rows, source, tables),
            "## Tests against the baseline", "", TESTS.format(penalty=penalty), "", *_shown(draw_forest(out, tests)),
            *_test_table(tests), "",
            "## What each row has seen of the target", "", *_ledger(rows), "",
            *_figures(out, shared, examples),
            *_synthetic_set(out, run),
            "## Does it look like the source?", "", LIKENESS, "", *_likeness_table(run), "",
            *_samples(out, run),
            *_made_of(made_of, orphans)]
    write_text(out / "report.md", "\n".join(text))
    print("\n" + "\n".join(verdict))
    print("\nall unseen targets\n" + "\n".join(summary))
    for domain, table in tables.items():
        print(f"\n{domain} ({_patients(rows, domain)} patients)")
        print("\n".join(table))


def markdown_table(header, rows):
    """Lines of a Markdown table."""
    return [_line(header), "|" + "---|" * len(header), *map(_line, rows)]


def _line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def _patients(rows, domain):
    return len({row["subject"] for row in rows if row["domain"] == domain})


def _head(rows, source, settings, verdict):
    """Title, the verdict, what was measured, and how to read the tables."""
    every, compared = structures_of(rows), structures_of(comparable(rows))
    partial = " (the dataset labels no others)" if len(every) < 3 else ""
    if len(compared) < len(every):
        partial = f"; averaged are {', '.join(compared)}, which every domain labels"
    targets = ", ".join(domain for domain in domains_of(rows) if domain != source)
    return [f"# Source {source}, targets {targets}", "", *(f"- {sentence}" for sentence in verdict), "",
            f"Significant: Wilcoxon p < {ALPHA:g} after Holm, on the patients of all targets together.", "",
            f"Segmenters: {', '.join(networks_of(rows))}, one training seed ({settings['seed']}). "
            f"Structures measured: {', '.join(every)}{partial}. A structure that a volume does not label is not "
            "measured there.",
            READING.format(penalty=largest_diagonal_mm(rows), found=FOUND), ""]


def _summaries(rows, source, summary):
    """All targets together, then each by itself."""
    targets = [domain for domain in domains_of(rows) if domain != source]
    main_arms = (BASELINE, *PRIMARY_ARMS, UPPER_BOUND)
    reading = SUMMARY.format(penalty=largest_diagonal_mm(rows)) + SHARES[_bounded(rows)]
    return ["## All unseen targets", "", reading, "", *summary, "",
            "The same on each target:", "", *_summary(rows, targets, main_arms), ""]


def _bounded(rows):
    return any(row["arm"] == UPPER_BOUND for row in rows)


def _summary(rows, domains, arms):
    """Means over patients, how many structures were missed and, with an upper bound, the shares of the gap closed."""
    mean, names = means(rows), [name for name, _ in SUMMARISED.values()]
    shares = ["gap closed: " + names[0], *(name.replace(" mm", "") for name in names[1:])] if _bounded(rows) else []
    lines = []
    for domain in domains:
        for network, arm in compared_in(rows):
            if arm.name not in arms:
                continue
            values = mean[domain, network, arm.name]
            closed = [gap_closed(mean, domain, network, arm.name, metric) for metric in SUMMARISED]
            lines.append([domain, network, arm.name,
                          *(f"{values[metric]:.{digits}f}" for metric, (_, digits) in SUMMARISED.items()),
                          f"{values['missed']} of {values['structures']}", _or_dash(values["hd95_found"], ".1f"),
                          *(_or_dash(share, ".0%") for share in closed[:len(shares)])])
    return markdown_table(["target", "network", "row", *names, MISSED, FOUND, *shares], lines)


def _domain_sections(rows, source, tables):
    """A section for each domain: every row, then the main rows structure by structure."""
    text = []
    for domain, table in tables.items():
        role = "source test studies" if domain == source else "unseen target"
        text += [f"## {domain} ({role}, {_patients(rows, domain)} patients)", "", *table, "",
                 *_structure_table(rows, domain), ""]
    return text


def _domain_table(rows, domain):
    here, penalty_mm = [row for row in rows if row["domain"] == domain], largest_diagonal_mm(rows)
    lines = []
    for network, arm in compared_in(rows):
        own = [row for row in here if row["arm"] == arm.name and row["network"] == network]
        cells = [_mean_sd(own, metric, penalty_mm) for metric in TABULATED]
        lines.append([network, arm.name, arm.trained_on, arm.test_input, *cells, f"{failures(own)} of {len(own)}",
                      _mean_sd(own, "hd95", None)])
    header = ["network", "row", "trained on", "test input", *TABULATED.values(), MISSED, FOUND]
    return markdown_table(header, lines)


def _structure_table(rows, domain):
    here, penalty_mm = [row for row in rows if row["domain"] == domain], largest_diagonal_mm(rows)
    structures = structures_of(here)
    lines = []
    for network, arm in compared_in(rows):
        if arm.name not in (BASELINE, "DA", "DA, guided, averaged", "DG", "real + DG"):
            continue
        of_row = [row for row in here if (row["network"], row["arm"]) == (network, arm.name)]
        cells = []
        for structure in structures:
            own = [row for row in of_row if row["structure"] == structure]
            cells += [_mean_sd(own, metric, penalty_mm) for metric in ("dice", "hd95", "assd")]
            cells.append(f"{failures(own)} of {len(own)}")
        lines.append([network, arm.name, *cells])
    columns = [f"{s} {name}" for s in structures for name in ("Dice", "HD95 mm", "ASSD mm", MISSED)]
    return markdown_table(["network", "row", *columns], lines)


def _mean_sd(rows, metric, penalty_mm):
    """Mean ± SD over patients, or `-`."""
    values = list(patient_values(rows, metric, penalty_mm).values())
    if not values:
        return "-"
    digits = 3 if metric == "dice" else 1
    sd = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{sd}"


def _or_dash(value, form):
    return "-" if value is None or math.isnan(value) else format(value, form)


def _test_table(tests):
    lines = [[t["domain"], t["network"], t["arm"], t["metric"].upper(), t["n"], f"{t['mean_difference']:+.2f} mm",
              f"{t['n_missed_baseline']}, {t['n_missed_arm']}", _interval(t),
              f"{_or_dash(t['welch_p'], '.2g')} ({_or_dash(t['welch_p_holm'], '.2g')})",
              f"{t['wilcoxon_p']:.2g} ({t['wilcoxon_p_holm']:.2g}){_star(t)}"] for t in tests if t["primary"]]
    return markdown_table(["target", "network", "row", "metric", "n", "difference", "missed by baseline, row",
                           "95 % BCa", "Welch p (Holm)", "Wilcoxon p (Holm)"], lines)


def _interval(test):
    if test["n"] < MINIMUM_PATIENTS:
        return f"n < {MINIMUM_PATIENTS}"
    return f"{test['bca_low']:+.1f} to {test['bca_high']:+.1f}"


def _star(test):
    kind = outcome(test, test["wilcoxon_p_holm"])
    return f" * {kind}" if kind in ("better", "worse") else ""


def _ledger(rows):
    """Which images and masks of which domain each row has touched."""
    arms = dict.fromkeys(arm for _, arm in compared_in(rows))
    return markdown_table(["row", "source images", "source masks", "target images", "target masks"],
                  [[arm.name, arm.source, arm.source, arm.access, arm.target_masks] for arm in arms])


def _figures(out, rows, examples):
    """Plots, if they can be drawn, and the example slices of each domain."""
    plots = draw_plots(out, rows)
    text = ["## Figures", ""]
    if plots is None:
        text += [LEFT_OUT, ""]
    text += [*_shown(plots or ()), EXAMPLES, ""]
    for domain in domains_of(rows):
        text += _shown(draw_examples(out, domain, networks_of(rows)[0], examples[domain], rows))
    return text


def _shown(pictures):
    """Lines that show each (file name, caption)."""
    lines = []
    for name, caption in pictures:
        lines += [f"{caption.rstrip('.')}.", "", f"![{name[:-4].replace('_', ' ')}]({name})", ""]
    return lines


def _synthetic_set(out, run):
    """How many pairs fit their masks, the worst of them, and continuity across slices."""
    pairs = read_manifest(run / "dg", ("kept", "through_plane_reference", "through_plane_synthetic"))
    excluded = sum(row["kept"] == "0" for row in pairs)
    text = ["## The synthetic training set", "",
            f"{len(pairs) - excluded} of {len(pairs)} pairs were kept, {excluded} excluded, as they no longer fitted "
            "their mask (`dg/manifest.csv` names them). The worst by displacement of the boundary (reference and "
            "synthetic image, then with the mask on both):", ""]
    for name in ("worst_kept.png", "worst_excluded.png"):
        if (run / "dg" / name).exists():
            shutil.copyfile(run / "dg" / name, out / name)
            text += [f"![{name[:-4].replace('_', ' ')}]({name})", ""]
    shutil.copyfile(run / "dg" / "through_plane.png", out / "through_plane.png")
    correlations = []
    for kind in ("reference", "synthetic"):
        r = np.array([float(row[f"through_plane_{kind}"] or "nan") for row in pairs])
        r = r[np.isfinite(r)]                                     # a volume of one slice has none
        correlations.append(f"{kind} {r.mean():.3f} ± {r.std():.3f}" if len(r) else f"{kind} undefined")
    return [*text,
            "Cuts along the long axis: a source reference, then its synthetic volumes, whose slices share their noise. "
            f"Correlation of neighbouring slices: {', '.join(correlations)} ({len(pairs)} pairs).", "",
            "![through-plane continuity](through_plane.png)", ""]


def _likeness_table(run):
    """How many volumes a classifier takes for the source, and the auditing segmenter's Dice, before and after."""
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
    """Whether the SD-DM has learnt the source: how its unconditional samples compare with held-out slices."""
    [row] = read_csv(run / "dg" / "sd_dm.csv", COLUMNS)
    value = {name: float(row[name]) for name in COLUMNS}
    text = ["## Has the diffusion model learnt the source?", "",
            f"Fréchet distance to held-out source slices, on the features of the segmenter that audits DG: "
            f"{value['frechet_samples']:.3g} from {row['samples']} unconditional samples, "
            f"{value['frechet_training']:.3g} from as many training slices, ratio {value['frechet_ratio']:.2f}; 1 is "
            f"the ideal.  A sample is {value['nearest_mean']:.2f} times as far from the nearest training slice as from "
            f"the nearest held-out one (least {value['nearest_least']:.2f}; {row['copies']} of {row['samples']} below "
            f"{COPIED}, copies).", ""]
    sheets = sorted((run / "diffusion").glob("samples_*.png"))
    if sheets:
        shutil.copyfile(sheets[-1], out / "samples.png")
        text += ["Samples, always from the same noise:", "", "![samples](samples.png)", ""]
    return text


def _made_of(made_of, orphans):
    """Provenance, and what of the dataset took no part."""
    lines = [f"- {what}: {why}" for what, why in orphans] or ["Nothing."]
    return ["## What this was made of", "", *markdown_table(["what", "value"], made_of), "",
            "Left out of the dataset in training or tests, as a whole or in part:", "", *lines, ""]
