"""Plots of the report, drawn if matplotlib is installed: the one optional extra.

Public: `draw_plots`.
"""
import numpy as np

from cmr.checkpoint import atomic

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

LEFT_OUT = "Plots were left out: matplotlib is not installed.  Install it, delete the results folder and run the same command again."


def draw_plots(out, patients, predicted, signs, doses):
    """Write paired.png, strength.png, entropy.png and, if there are doses, dose.png into `out`; return [(file name, caption)], or
    None without matplotlib.

    patients : {(network, domain): {arm: {subject: HD95 in mm}}}, failures at their penalty; the arms DG, baseline and DA are drawn.
    predicted, signs : rows of predicted.csv and signs.csv of cmr.choose.
    doses : {domain: {images per reference: {metric: mean over patients}}}, 0 the baseline.
    """
    if Figure is None:
        return None
    return [_paired(out, patients), _strength(out, predicted), _entropy(out, signs), *([_dose(out, doses)] if doses else [])]


def _save(figure, path):
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _paired(out, patients):
    networks, domains = (list(dict.fromkeys(key[i] for key in patients)) for i in (0, 1))
    figure = Figure(figsize=(2.6 * len(domains), 2.4 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), len(domains), sharex=True, sharey=True, squeeze=False)
    arms = ("DG", "baseline", "DA")
    for (network, domain), of in patients.items():
        ax = axes[networks.index(network), domains.index(domain)]
        for subject in of["baseline"]:
            ax.plot(range(3), [of.get(arm, {}).get(subject, np.nan) for arm in arms], color="0.5", marker="o", markersize=2.5, linewidth=0.7)
        ax.plot(range(3), [np.median(list(of[arm].values())) if arm in of else np.nan for arm in arms], color="tab:red", marker="s", markersize=4)
        ax.set(xticks=range(3), xticklabels=arms, yscale="log", title=f"{network}, {domain}")
        ax.title.set_fontsize(8)
    figure.supylabel("HD95, mm")
    _save(figure, out / "paired.png")
    return "paired.png", "HD95 of every patient (one line each; the median red), from the baseline to DG and to DA."


def _strength(out, predicted):
    networks = list(dict.fromkeys(r["network"] for r in predicted))
    figure = Figure(figsize=(3.4 * len(networks), 3.2), layout="constrained")
    for ax, network in zip(figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0], networks):
        for domain in dict.fromkeys(r["domain"] for r in predicted):
            own = [r for r in predicted if (r["network"], r["domain"]) == (network, domain) and r["hindsight"]]
            ax.scatter([float(r["predicted"]) for r in own], [float(r["hindsight"]) for r in own], s=12, label=domain)
        ax.axline((0, 0), slope=1, color="0.7", linewidth=0.7)
        ax.set(title=network, xlabel="predicted gain, Dice")
    ax.legend(fontsize=7)
    figure.supylabel("gain in hindsight, Dice")
    _save(figure, out / "strength.png")
    return "strength.png", "Every candidate of cmr.choose: the gain predicted without the target's labels, against the gain by those labels."


def _entropy(out, signs):
    known = [r for r in signs if r["use"] == "target" and r["gain"]]
    networks, candidates = list(dict.fromkeys(r["network"] for r in signs)), list(dict.fromkeys(r["candidate"] for r in signs))
    figure = Figure(figsize=(3.4 * len(networks), 4.5), layout="constrained")
    axes = figure.subplots(2, len(networks), sharex=True, sharey="row", squeeze=False)
    for column, network in enumerate(networks):
        for domain in dict.fromkeys(r["domain"] for r in known):
            mean = lambda name: [np.mean([float(r[name]) for r in known if (r["network"], r["domain"], r["candidate"]) == (network, domain, c)] or [np.nan]) for c in candidates]
            axes[0, column].plot(range(len(candidates)), mean("gain"), marker="o", markersize=3)
            axes[1, column].plot(range(len(candidates)), mean("entropy change"), marker="o", markersize=3, label=domain)
        axes[0, column].set(title=network)
        for ax in axes[:, column]:
            ax.axhline(0, color="0.7", linewidth=0.7)
        axes[1, column].set_xticks(range(len(candidates)), [n + 1 for n in range(len(candidates))])
    axes[0, 0].set(ylabel="gain in Dice")
    axes[1, 0].set(ylabel="change of log entropy")
    axes[1, -1].legend(fontsize=7)
    figure.supxlabel("strength")
    _save(figure, out / "entropy.png")
    numbered = "; ".join(f"{n} {candidate}" for n, candidate in enumerate(candidates, 1))
    return "entropy.png", ("Each strength on the targets' validation volumes: what it gains by their labels, and how much less the segmenter hesitates (below 0: more confident). "
                           f"Where the two do not mirror each other, confidence is fooled. {numbered}.")


def _dose(out, doses):
    figure = Figure(figsize=(7, 3), layout="constrained")
    for ax, (metric, label) in zip(figure.subplots(1, 2), (("dice", "Dice"), ("hd95", "HD95, mm"))):
        for domain, of in doses.items():
            ax.plot(range(len(of)), [values[metric] for _, values in sorted(of.items())], marker="o", markersize=4, label=domain)
            ax.set_xticks(range(len(of)), [n or "real" for n in sorted(of)])
        ax.set(xlabel="synthetic images per reference", ylabel=label)
    ax.legend(fontsize=7)
    _save(figure, out / "dose.png")
    return "dose.png", "DG against the number of synthetic images per reference, at equal optimiser steps; the first is only projected, every second one has its look changed before."
