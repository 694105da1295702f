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


def draw_plots(out, patients, predicted):
    """Write paired.png and strength.png into `out`; return [(file name, caption)], or None without matplotlib.

    patients : {(network, domain): {arm: {subject: HD95 in mm}}}, failures at their penalty; the arms DG, baseline and DA are drawn.
    predicted : rows of predicted.csv of cmr.choose.
    """
    if Figure is None:
        return None
    return [_paired(out, patients), _strength(out, predicted)]


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
