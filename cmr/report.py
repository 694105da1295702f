"""Tables, tests and figures from the per-case metrics: tests.csv, report.md and PNG panels.

The unit is the patient: phases and structures are averaged inside first.  A missed or spurious structure has an infinite
distance: it is counted in every table, and in tests it takes the largest diagonal of the test images, so that it can
only hurt.  Public: `Arm`, `ARMS`, `Example`, `METRIC_COLUMNS`, `patient_values`, `compare`, `means`, `write_report`.
"""
import math
import shutil
from dataclasses import dataclass

import numpy as np

from cmr.audit import COPIED
from cmr.checkpoint import write_csv, write_text
from cmr.pictures import difference, save_png, sheet, with_contours
from cmr.plots import LEFT_OUT, draw_plots
from cmr.statistics import bca_interval, effect_size, hodges_lehmann, holm, paired_t, welch, wilcoxon
from cmr.studies import Domain, read_table


@dataclass(frozen=True)
class Arm:
    """One row of the experiment: what the segmenter was trained on and what it is given at test time."""
    name: str
    trained_on: str
    test_input: str
    access: str                                  # what images of the target it has touched
    secondary: bool = False                      # measured for some networks only, where time is short
    source: str = "yes"                          # whether it has touched the source's images and masks
    target_masks: str = "no"

    @property
    def key(self):
        """Folder name."""
        return f"{self.trained_on}-{self.test_input}"


@dataclass(frozen=True)
class Example:
    """A test volume on the working grid, to be drawn: images (D, H, W) in [-1, 1], labels (D, H, W)."""
    case: str
    image: np.ndarray
    translated: np.ndarray
    truth: np.ndarray
    found: dict                                  # (network, arm name) -> labels


DOSES = {n: f"DG, {n} a reference" for n in (1, 2, 4, 8)}          # synthetic images per reference that DG is tried with: the row's name
ARMS = (Arm("baseline", "real", "raw", "nothing"),
        Arm("DA", "real", "translated", "the test image itself, through the SD-DM; the validation images, for the choice"),
        Arm("DA fixed", "real", "fixed", "the test image itself, through the SD-DM", True),
        Arm("matched", "real", "matched", "the test image itself, its histogram", True),
        Arm("FDA", "real", "fda", "the test image itself, its low frequencies", True),
        Arm("low-pass swap", "real", "swap", "the test image itself, its low frequencies", True),
        Arm("DG", "synthetic", "raw", "nothing"),
        Arm("real + DG", "both", "raw", "nothing"),
        Arm("DG + DA", "synthetic", "fixed", "the test image itself, through the SD-DM", True),
        Arm("augmented", "augmented", "raw", "nothing"),
        Arm("augmented + DA", "augmented", "fixed", "the test image itself, through the SD-DM", True),
        Arm("shifted", "shifted", "raw", "nothing"),
        Arm("shuffled masks", "shuffled", "raw", "nothing"),
        *(Arm(name, f"dose{n}", "raw", "nothing") for n, name in DOSES.items()),
        Arm("upper bound", "target", "raw", "its own training images", source="no", target_masks="those of its training images"))
BASELINE, UPPER_BOUND, PRIMARY_ARMS, PRIMARY_METRICS = "baseline", "upper bound", ("DA", "DG"), ("hd95", "assd")
SUMMARY_METRICS = {"dice": ("Dice", 3), "hd95": ("HD95 mm", 1), "assd": ("ASSD mm", 2), "hd95_in_plane": ("in-plane HD95 mm", 1)}
SMALLEST_GAP = {"dice": 0.01, "hd95": 0.5, "assd": 0.2, "hd95_in_plane": 0.5}     # what is smaller is not worth closing: no share is given
TABLE_METRICS = {"dice": "Dice", "hd95": "HD95 mm", "hd95_pooled": "HD95 pooled mm", "assd": "ASSD mm", "hd95_in_plane": "in-plane HD95 mm"}
METRIC_COLUMNS = ("domain", "role", "subject", "phase", "vendor", "pathology", "structure", "network", "arm", "trained_on", "test_input", "status", "dice",
                  "hd", "hd95", "hd95_pooled", "assd", "masd", "asd_pred_to_ref", "asd_ref_to_pred", "nsd", "hd95_in_plane", "assd_in_plane", "slices_both",
                  "slices_missed", "slices_spurious", "volume_pred_ml", "volume_ref_ml", "diagonal_mm")
TEST_COLUMNS = ("domain", "network", "arm", "metric", "primary", "n", "n_missed_baseline", "n_missed_arm", "mean_baseline", "mean_arm", "mean_difference",
                "bca_low", "bca_high", "hodges_lehmann", "hedges_g", "welch_t", "welch_df", "welch_p", "welch_p_holm", "paired_t_p", "wilcoxon_p", "wilcoxon_p_holm")
POOLED = "all targets"                           # the patients of every unseen domain together
MINIMUM_PATIENTS = 10                            # below this no interval and no star

READING = ("Mean ± SD over patients; phases and structures are averaged inside a patient first. Distances are in mm on the original grid and "
           "average the structures that were found; the last column counts those that were not. HD95 is the larger directed 95th percentile, "
           "pooled HD95 is medpy's.")
TESTS = ("Negative: better than the baseline. The primary family is {HD95, ASSD} x networks x {DA, DG} x targets, Holm-corrected; the patients of all targets pooled are a family of their own. Welch's test is the "
         "paper's; the same patients are scored twice, so the paired signed-rank test is the one to read. An infinite distance counts as the "
         f"largest image diagonal here. A star needs {MINIMUM_PATIENTS} patients and Wilcoxon p < 0.01 after Holm; one training seed says "
         "nothing about training noise.")
CONTROLS = {"augmented": "real images, nnU-Net's intensity augmentation, no diffusion model", "shifted": "the references of DG with their changed look, not projected"}
SUMMARY = ("The mean over the targets' means. A spurious or missed end slice moves HD95 by the slice spacing, in-plane HD95 leaves it out. Negative is worse than the baseline; 100 % of the gap closed is as good as {ceiling}; "
           "no share where the gap is below 0.01 Dice, 0.5 mm HD95 or 0.2 mm ASSD.")
CEILINGS = {True: "the upper bound, the same network trained on each target's own training studies", False: "the same network's baseline on the source's own test studies, which a harder target may not allow"}
CHOICE = ("DA fixed translates every domain alike. DA translates each domain as `cmr.choose` picked on its validation volumes without their labels; `none` leaves them as they are, and is "
          "picked wherever the domain or the source has fewer validation patients than a mean can be trusted of (`cmr.choose` says so). Hindsight is the mean "
          "gain in Dice on those volumes, by their labels, which nothing was chosen by; regret is the distance to the best candidate, in HD95 to the best in HD95.")
LIKENESS = ("Fisher's discriminant on quantiles and spectrum of a volume tells the source's training volumes from a target's validation volumes (DA), or from themselves with their look changed at random "
            "(DG, which knows no target). A projection that worked is taken for the source; DG keeps part of a changed look on purpose.")
FIGURES = ("Each row is a slice: reference, translated, difference (red brighter, blue darker), truth, and the contours of baseline, DA and DG. "
           "LV red, MYO green, RV blue. Translated is as in DA fixed; the contours are the first network's.")


def patient_values(rows, metric, penalty_mm=None):
    """{subject: mean over phases and structures} of a metric; absent_both is left out.

    penalty_mm : what an infinite distance counts as; None leaves missed and spurious structures out (descriptive tables
    print their number beside it).
    """
    values = {}
    for row in rows:
        v = row[metric]
        if row["status"] == "absent_both" or (isinstance(v, float) and math.isnan(v) and row["status"] == "ok"):
            continue
        if metric != "dice" and row["status"] != "ok":
            if penalty_mm is None:
                continue
            v = penalty_mm
        values.setdefault(row["subject"], []).append(v)
    return {s: float(np.mean(v)) for s, v in sorted(values.items())}


def compare(rows, domain, network, arm, metric, penalty_mm, against=BASELINE):
    """One row of tests.csv: `arm` minus another row of the same network, its baseline, on the same patients of `domain` (or POOLED)."""
    here = [r for r in rows if r["network"] == network and (r["domain"] == domain or domain == POOLED and r["role"] == "target")]
    pick = lambda name: [r for r in here if r["arm"] == name]
    a, b = patient_values(pick(arm), metric, penalty_mm), patient_values(pick(against), metric, penalty_mm)
    subjects = sorted(a.keys() & b.keys())
    x, y = np.array([a[s] for s in subjects]), np.array([b[s] for s in subjects])
    enough = len(subjects) >= MINIMUM_PATIENTS
    low, high = bca_interval(x - y) if enough else (math.nan, math.nan)
    welch_t, welch_df, welch_p = welch(x, y)
    missed = lambda name: sum(r["status"] in ("missed", "spurious") for r in pick(name))
    return {"domain": domain, "network": network, "arm": arm, "metric": metric, "primary": int(arm in PRIMARY_ARMS and metric in PRIMARY_METRICS),
            "n": len(subjects), "n_missed_baseline": missed(against), "n_missed_arm": missed(arm), "mean_baseline": float(y.mean()), "mean_arm": float(x.mean()),
            "mean_difference": float((x - y).mean()), "bca_low": low, "bca_high": high, "hodges_lehmann": hodges_lehmann(x, y), "hedges_g": effect_size(x, y),
            "welch_t": welch_t, "welch_df": welch_df, "welch_p": welch_p, "paired_t_p": paired_t(x, y)[2], "wilcoxon_p": wilcoxon(x, y)[1]}


def all_tests(rows):
    """Every arm against the baseline on every target and on all together; Holm over two primary families, {HD95, ASSD} x networks
    x {DA, DG} x targets, and the same without targets for the pooled patients."""
    penalty = max(r["diagonal_mm"] for r in rows)
    targets = list(dict.fromkeys(r["domain"] for r in rows if r["role"] == "target"))
    tests = [compare(rows, d, network, arm.name, metric, penalty) for d in (*targets, POOLED) for network, arm in _compared(rows) if arm.name != BASELINE
             for metric in ("dice", "hd95", "assd")]
    primary = [t for t in tests if t["primary"]]
    for family in ([t for t in primary if t["domain"] != POOLED], [t for t in primary if t["domain"] == POOLED]):
        for name in ("welch_p", "wilcoxon_p"):
            for test, p in zip(family, holm([t[name] for t in family])):
                test[name + "_holm"] = float(p)
    return tests


def _networks(rows):
    return list(dict.fromkeys(r["network"] for r in rows))


def _compared(rows):
    """[(network, arm)] that were run, in the order of ARMS."""
    ran = {(r["network"], r["arm"]) for r in rows}
    return [(network, arm) for network in _networks(rows) for arm in ARMS if (network, arm.name) in ran]


def _cell(rows, metric):
    values = list(patient_values(rows, metric).values())
    if not values:
        return "-"
    digits = 3 if metric == "dice" else 1
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def _table(rows, domain):
    here = [r for r in rows if r["domain"] == domain]
    lines = ["| network | row | trained on | test input | " + " | ".join(TABLE_METRICS.values()) + " | missed or spurious |", "|" + "---|" * (len(TABLE_METRICS) + 5)]
    for network, arm in _compared(rows):
        own = [r for r in here if r["arm"] == arm.name and r["network"] == network]
        failed = sum(r["status"] in ("missed", "spurious") for r in own)
        lines.append(f"| {network} | {arm.name} | {arm.trained_on} | {arm.test_input} | " + " | ".join(_cell(own, m) for m in TABLE_METRICS) + f" | {failed} of {len(own)} |")
    return lines


def means(rows):
    """{(domain, network, arm): {metric: mean over patients}} of SUMMARY_METRICS; first POOLED, the mean of the targets' means."""
    groups = {}
    for r in rows:
        groups.setdefault((r["domain"], r["network"], r["arm"]), []).append(r)
    each = {key: {m: np.mean(list(patient_values(own, m).values()) or [np.nan]) for m in SUMMARY_METRICS} for key, own in groups.items()}
    targets = list(dict.fromkeys(r["domain"] for r in rows if r["role"] == "target"))
    pooled = {(POOLED, network, arm): {m: np.mean([each[d, network, arm][m] for d in targets]) for m in SUMMARY_METRICS} for _, network, arm in each}
    return {**pooled, **each}


def _summary(rows, source, domains=(POOLED,), arms=tuple(a.name for a in ARMS)):
    """Each row on all unseen targets together (the mean of their means) or on each, and how much of the gap to the upper bound it
    closes; where there is none, to the baseline on the source's test studies.  Over the structures that every domain labels."""
    labelled = {d: {r["structure"] for r in rows if r["domain"] == d} for d in {r["domain"] for r in rows}}
    mean = means([r for r in rows if r["structure"] in set.intersection(*labelled.values())])
    names = [name for name, _ in SUMMARY_METRICS.values()]
    lines = ["| target | network | row | " + " | ".join(names) + " | gap closed: " + " | ".join(name.replace(" mm", "") for name in names) + " |", "|" + "---|" * (3 + 2 * len(names))]
    for domain, (network, arm) in ((d, compared) for d in domains for compared in _compared(rows) if compared[1].name in arms):
        values, shares = mean[domain, network, arm.name], []
        best = mean.get((domain, network, UPPER_BOUND), mean[source, network, BASELINE])
        for metric, value in values.items():
            before, ceiling = mean[domain, network, BASELINE][metric], best[metric]
            gap = (ceiling - before) * (1 if metric == "dice" else -1)
            shares.append(f"{(value - before) / (ceiling - before) + 0.0:.0%}" if gap >= SMALLEST_GAP[metric] and arm.name not in (BASELINE, UPPER_BOUND) else "-")
        lines.append(f"| {domain} | {network} | {arm.name} | " + " | ".join([f"{values[m]:.{digits}f}" for m, (_, digits) in SUMMARY_METRICS.items()] + shares) + " |")
    return lines


def _dg_against_controls(rows):
    """A line for each network and control: DG against what generalises without a diffusion model, on the same patients of all targets."""
    penalty, lines = max(r["diagonal_mm"] for r in rows), []
    ran = {(n, a.name) for n, a in _compared(rows)}
    for network, control in ((n, name) for n in _networks(rows) for name in CONTROLS if {(n, name), (n, "DG")} <= ran):
        dice, hd95 = (compare(rows, POOLED, network, "DG", metric, penalty, against=control) for metric in ("dice", "hd95"))
        p = hd95["wilcoxon_p"]
        verdict = f"{control} alone does as well" if p >= 0.01 else "DG is better" if hd95["hodges_lehmann"] < 0 else f"{control} alone is better"
        lines.append(f"- {network}, DG against *{control}* ({CONTROLS[control]}): Dice {dice['mean_difference']:+.3f}, HD95 {hd95['mean_difference']:+.1f} mm, Wilcoxon p {p:.2g} ({hd95['n']} patients): {verdict}.")
    return lines


def _structure_table(rows, domain, structures):
    lines = ["| network | row | " + " | ".join(f"{s} Dice | {s} HD95 mm | {s} ASSD mm" for s in structures) + " |", "|" + "---|" * (2 + 3 * len(structures))]
    for network, name in ((n, a.name) for n, a in _compared(rows) if a.name in (BASELINE, "DA", "DA fixed", "DG", "real + DG")):
        own = [r for r in rows if r["domain"] == domain and r["network"] == network and r["arm"] == name]
        cells = [_cell([r for r in own if r["structure"] == s], m) for s in structures for m in ("dice", "hd95", "assd")]
        lines.append(f"| {network} | {name} | " + " | ".join(cells) + " |")
    return lines


def _test_table(tests):
    lines = ["| target | network | row | metric | n | difference | 95 % BCa | Welch p (Holm) | Wilcoxon p (Holm) |", "|---|---|---|---|---|---|---|---|---|"]
    p = lambda v: "-" if v is None or math.isnan(v) else f"{v:.2g}"
    for t in tests:
        if not t["primary"]:
            continue
        starred = t["n"] >= MINIMUM_PATIENTS and t["wilcoxon_p_holm"] < 0.01
        star = (" * better" if t["hodges_lehmann"] < 0 else " * worse") if starred else ""
        interval = f"{t['bca_low']:+.1f} to {t['bca_high']:+.1f}" if not math.isnan(t["bca_low"]) else f"n < {MINIMUM_PATIENTS}"
        lines.append(f"| {t['domain']} | {t['network']} | {t['arm']} | {t['metric'].upper()} | {t['n']} | {t['mean_difference']:+.2f} mm | {interval} | "
                     f"{p(t['welch_p'])} ({p(t['welch_p_holm'])}) | {p(t['wilcoxon_p'])} ({p(t['wilcoxon_p_holm'])}){star} |")
    return lines


def _choice_table(rows):
    """What cmr.choose predicted and, with the validation labels it did not use, how its choice ranks in hindsight."""
    lines = ["| domain | network | chosen | predicted gain, Dice | error of the prediction | gain in hindsight | best in hindsight | rank | regret, Dice | regret, HD95 mm |", "|" + "---|" * 10]
    for domain, network in dict.fromkeys((r["domain"], r["network"]) for r in rows):
        own = [r for r in rows if (r["domain"], r["network"]) == (domain, network)]
        chosen, past = next(r for r in own if r["chosen"] == "1"), "- | - | - | - | -"
        if all(r["hindsight"] for r in own):
            gain = lambda r, name="hindsight": float(r[name])
            order = sorted(own, key=gain, reverse=True)
            regret = {name: max(gain(r, name) for r in own) - gain(chosen, name) for name in ("hindsight", "hindsight_hd95_mm")}
            past = (f"{gain(chosen):+.3f} | {order[0]['candidate']} ({gain(order[0]):+.3f}) | {order.index(chosen) + 1} of {len(order)} | "
                    f"{regret['hindsight']:.3f} | {regret['hindsight_hd95_mm']:.1f}")
        lines.append(f"| {domain} | {network} | {chosen['candidate']} | {float(chosen['predicted']):+.3f} | {float(chosen['error']):.3f} | {past} |")
    return lines


def _likeness_table(pairs):
    """How many volumes a classifier takes for the source, before and after the projection; pairs: {set: rows of its manifest.csv}."""
    groups = {}
    for name, row in ((name, row) for name, rows in pairs.items() for row in rows if row["of_source_synthetic"]):
        groups.setdefault((name, row["domain"], row["shift"], row["strength"]), []).append(row)
    lines = ["| set | images | look changed before | strength | volumes | taken for the source before | after |", "|---|---|---|---|---|---|---|"]
    for (name, domain, shift, strength), rows in sorted(groups.items()):
        taken = [sum(float(r[f"of_source_{kind}"]) > 0.5 for r in rows) for kind in ("reference", "synthetic")]
        lines.append(f"| {name} | {domain} | {'yes' if float(shift) else 'no'} | {strength} | {len(rows)} | " + " | ".join(f"{n / len(rows):.0%}" for n in taken) + " |")
    return lines


def _figures(out, domain, network, examples, rows):
    """Write the panels (see FIGURES) of the median and the worst case by the baseline's HD95; yield (description, file name)."""
    distance = {}
    for r in rows:
        if (r["domain"], r["network"], r["arm"]) == (domain, network, BASELINE):
            distance.setdefault(f"{r['subject']}_{r['phase']}", []).append(r["hd95"] if r["status"] == "ok" else r["diagonal_mm"] if r["status"] != "absent_both" else np.nan)
    order = sorted(examples, key=lambda e: (np.nan_to_num(np.nanmean(distance[e.case])), e.case))
    for which, e in (("median", order[len(order) // 2]), ("worst", order[-1])):
        filled = np.flatnonzero(e.truth.any((1, 2)))
        panels = [[with_contours(e.image[k]), with_contours(e.translated[k]), difference(e.image[k], e.translated[k]), with_contours(e.image[k], e.truth[k]),
                   *(with_contours(e.image[k], e.found[network, arm][k]) for arm in (BASELINE, *PRIMARY_ARMS) if (network, arm) in e.found)]
                  for k in filled[np.linspace(0, len(filled) - 1, min(3, len(filled))).round().astype(int)]]
        name = f"{which}_{Domain.parse(domain).file_name}.png"
        save_png(out / name, sheet(panels))
        yield f"{domain}, {which} case by the baseline's HD95 ({e.case}, {np.nanmean(distance[e.case]):.1f} mm)", name


def write_report(out, rows, examples, source, run, settings):
    """Write tests.csv, report.md and the figures into `out`; print the main table.

    examples : {domain: list of Example}.
    """
    tests, predicted = all_tests(rows), read_table(run / "choice" / "predicted.csv", ("candidate", "chosen", "hindsight_hd95_mm"))
    write_csv(out / "tests.csv", tests, TEST_COLUMNS)
    domains = list(dict.fromkeys(r["domain"] for r in rows))
    structures, networks = list(dict.fromkeys(r["structure"] for r in rows)), _networks(rows)
    sizes = {d: len({r["subject"] for r in rows if r["domain"] == d}) for d in domains}
    partial = " (the dataset labels no others)" if len(structures) < 3 else ""
    text = [f"# Source {source}, targets {', '.join(d for d in domains if d != source)}", "",
            f"Segmenters: {', '.join(networks)}, one training seed ({settings['seed']}). Structures measured: {', '.join(structures)}{partial}.", READING, ""]
    targets, bounded = [d for d in domains if d != source], any(r["arm"] == UPPER_BOUND for r in rows)
    summary, tables = [*_summary(rows, source), "", *_dg_against_controls(rows)], {d: _table(rows, d) for d in domains}
    text += ["## All unseen targets", "", SUMMARY.format(ceiling=CEILINGS[bounded]), "", *summary, "",
             "The same on each target:", "", *_summary(rows, source, targets, (BASELINE, *PRIMARY_ARMS, UPPER_BOUND)), ""]
    for domain in domains:
        text += [f"## {domain} ({'source test studies' if domain == source else 'unseen target'}, {sizes[domain]} patients)", "", *tables[domain], "",
                 *_structure_table(rows, domain, structures), ""]
    text += ["## How strongly each domain was translated", "", CHOICE, "", *_choice_table(predicted), ""]
    text += ["## Tests against the baseline", "", TESTS, "", *_test_table(tests), "", "## What each row has seen of the target", "",
             "| row | source images | source masks | target images | target masks |", "|---|---|---|---|---|",
             *[f"| {a.name} | {a.source} | {a.source} | {a.access} | {a.target_masks} |" for a in dict.fromkeys(arm for _, arm in _compared(rows))], "", "## Figures", ""]
    penalty = max(r["diagonal_mm"] for r in rows)
    patients = {(n, d): {arm.name: patient_values([r for r in rows if (r["network"], r["domain"], r["arm"]) == (n, d, arm.name)], "hd95", penalty)
                         for network, arm in _compared(rows) if network == n and arm.name in (BASELINE, *PRIMARY_ARMS)} for n in networks for d in domains}
    mean, first = means(rows), networks[0]
    doses = {d: {n: mean[d, first, arm] for n, arm in ((0, BASELINE), *DOSES.items()) if (d, first, arm) in mean} for d in (*targets, POOLED)}
    plots = draw_plots(out, patients, predicted, read_table(run / "choice" / "signs.csv", ("use", "gain", "entropy change")), doses if len(doses[POOLED]) > 1 else {})
    text += [LEFT_OUT, ""] if plots is None else [line for name, caption in plots for line in (caption, "", f"![{name}]({name})", "")]
    text += [FIGURES, ""]
    for domain in domains:
        for what, name in _figures(out, domain, networks[0], examples[domain], rows):
            text += [f"{what}:", "", f"![{what}]({name})", ""]
    pairs = read_table(run / "dg" / "manifest.csv", ("kept", "through_plane_reference", "through_plane_synthetic", "of_source_reference", "of_source_synthetic"))
    excluded = [row["case"] for row in pairs if row["kept"] == "0"]
    correlation = {kind: np.array([float(row[f"through_plane_{kind}"]) for row in pairs]) for kind in ("reference", "synthetic")}
    text += ["## The synthetic training set", "", f"{len(pairs) - len(excluded)} of {len(pairs)} pairs were kept, {len(excluded)} excluded, as they no longer fitted their mask: "
             f"{', '.join(excluded) or 'none'}. The worst by displacement of the boundary (reference and synthetic image, then with the mask on both):", ""]
    for name in ("worst_kept.png", "worst_excluded.png"):
        if (run / "dg" / name).exists():
            shutil.copyfile(run / "dg" / name, out / name)
            text += [f"![{name[:-4].replace('_', ' ')}]({name})", ""]
    shutil.copyfile(run / "dg" / "through_plane.png", out / "through_plane.png")
    text += ["Cuts along the long axis: a source reference, then its synthetic volumes, whose slices share their noise. Correlation of neighbouring slices: "
             + ", ".join(f"{kind} {np.nanmean(r):.3f} ± {np.nanstd(r):.3f}" for kind, r in correlation.items()) + f" ({len(pairs)} pairs).", "",
             "![through-plane continuity](through_plane.png)", ""]
    text += ["## Does it look like the source?", "", LIKENESS, "", *_likeness_table({"DG": pairs, "DA": read_table(run / "da" / "manifest.csv", ("domain", "shift", "strength", "of_source_reference", "of_source_synthetic"))}), ""]
    ratios = np.array([float(row["ratio"]) for row in read_table(run / "diffusion" / "memorisation.csv", ("ratio",))])
    text += [f"Memorisation: an unconditional sample of the SD-DM is {ratios.mean():.2f} times as far from the nearest training slice as from the nearest held-out one "
             f"(least {ratios.min():.2f}; {(ratios < COPIED).sum()} of {len(ratios)} below {COPIED}, copies).", ""]
    sheets = sorted((run / "diffusion").glob("samples_*.png"))
    if sheets:
        shutil.copyfile(sheets[-1], out / "samples.png")
        text += ["Unconditional samples of the SD-DM, always from the same noise:", "", "![samples](samples.png)", ""]
    write_text(out / "report.md", "\n".join(text))
    print("\nall unseen targets\n" + "\n".join(summary))
    for domain in domains:
        print(f"\n{domain} ({sizes[domain]} patients)")
        print("\n".join(tables[domain]))
