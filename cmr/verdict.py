"""What an experiment says, in five sentences that its numbers make: the gap, DA, DG, controls, harm.

Every sentence is a template for an outcome, so that it is true of the numbers it is given.  The numbers themselves are
`cmr.comparison`'s.

Public: `sentences`.
"""
from cmr.comparison import (MARGIN, POOLED, TESTED_METRICS, against_controls, common_structures, compared_in,
                            gap_closed, means, networks_of, outcome, patient_values, targets_of)
from cmr.experiment import BASELINE, PRIMARY_ARMS, UPPER_BOUND

HARM = {"dice": 0.005, "hd95": 0.5}              # a loss beyond on any target is named


def sentences(rows, tests, source):
    """[the gap, what DA does, what DG does, what a control does as well, where a row harms] from the rows of a table.

    rows : of metrics.csv.  tests : of tests.csv.  source : its domain's name.
    """
    structures = common_structures(rows)
    mean = means([row for row in rows if row["structure"] in structures])
    ran = {arm.name for _, arm in compared_in(rows)}
    arms = [arm for arm in PRIMARY_ARMS if arm in ran]
    return [_gap(mean, networks_of(rows), source),
            *(_closed(rows, mean, tests, arm, source) for arm in arms),
            _controls(against_controls(rows)),
            _harm(mean, networks_of(rows), targets_of(rows), arms)]


def _gap(mean, networks, source):
    """How much worse the baselines are on targets than on the source."""
    parts = []
    for network in networks:
        there, here = mean[POOLED, network, BASELINE], mean[source, network, BASELINE]
        dice, hd95 = here["dice"] - there["dice"], there["hd95"] - here["hd95"]
        parts.append(f"{network} {_lost(dice, hd95)}")
    return ("**The gap.** From the source's own test studies to unseen targets, trained on real source images, "
            f"{'; '.join(parts)}.")


def _lost(dice, hd95):
    """Two losses in words; what is negative is a gain."""
    verbs = ["loses" if amount > 0 else "gains" for amount in (dice, hd95)]
    again = f"{verbs[1]} " if verbs[0] != verbs[1] else ""
    return f"{verbs[0]} {abs(dice):.3f} Dice and {again}{abs(hd95):.1f} mm HD95"


def _closed(rows, mean, tests, arm, source):
    """What a row closes of each network's gap in HD95, and whether the paired test agrees."""
    networks = networks_of(rows)
    bounded = any((POOLED, network, UPPER_BOUND) in mean for network in networks)
    ceiling = "upper bound" if bounded else "network's own level on the source"
    parts = []
    for network in networks:
        share = gap_closed(mean, POOLED, network, arm, "hd95", source)
        change = mean[POOLED, network, arm]["hd95"] - mean[POOLED, network, BASELINE]["hd95"]
        closed = "there is no gap" if share is None else f"{share:.0%} of the gap"
        [test] = [t for t in tests if (t["domain"], t["network"], t["arm"], t["metric"])
                  == (POOLED, network, arm, "hd95")]
        found = f"{change:+.1f} mm, {_words(test)}" if _changes(rows, network, arm) else "no patient is changed"
        parts.append(f"{network}: {closed} ({found})")
    return f"**{arm}.** Towards the {ceiling} in HD95, {arm} closes: {'; '.join(parts)}."


def _changes(rows, network, arm):
    """Whether a row differs from the baseline on any patient of a target: DA does not where nothing is translated."""
    its, baseline = ([row for row in rows if (row["role"], row["network"], row["arm"]) == ("target", network, name)]
                     for name in (arm, BASELINE))
    return any(patient_values(its, metric) != patient_values(baseline, metric) for metric in TESTED_METRICS)


def _words(test):
    """A pooled test of the primary family, in words."""
    p = test["wilcoxon_p_holm"]
    return {"better": f"significantly better, p {p:.2g}", "worse": f"significantly worse, p {p:.2g}",
            "equal": f"as good as the baseline to {MARGIN['hd95']:g} mm",
            "open": f"not significant, p {p:.2g}"}[outcome(test, p)]


def _controls(found):
    """Which controls without a diffusion model do as well as DG."""
    if not found:
        return "**Controls.** None was run, so whether DG needs a diffusion model is not answered here."
    named = lambda kind: [f"*{c['control']}* ({c['network']})" for c in found if c["outcome"] == kind]
    words = {"equal": f"as well as DG, to {MARGIN['hd95']:g} mm HD95", "worse": "better than DG",
             "better": "worse than DG"}
    parts = [f"{_list(named(kind))} {_do(named(kind))} {what}" for kind, what in words.items() if named(kind)]
    if named("open"):
        parts.append(f"between DG and {_list(named('open'))} these patients do not decide")
    return f"**Controls.** Without a diffusion model, {'; '.join(parts)}."


def _harm(mean, networks, targets, arms):
    """The target and network on which a row loses most, if it loses more than HARM."""
    losses = []
    for arm in arms:
        for domain in targets:
            for network in networks:
                its, baseline = mean[domain, network, arm], mean[domain, network, BASELINE]
                dice, hd95 = baseline["dice"] - its["dice"], its["hd95"] - baseline["hd95"]
                if dice > HARM["dice"] or hd95 > HARM["hd95"]:
                    losses.append((dice, f"{arm} costs {network} on {domain} {dice:.3f} Dice and {hd95:+.1f} mm HD95"))
    least = f"{HARM['dice']:g} Dice or {HARM['hd95']:g} mm HD95"
    if not losses:
        return f"**Harm.** On no target and network does {_or(arms)} lose more than {least}."
    worst = "; ".join(text for _, text in sorted(losses, reverse=True)[:3])
    return (f"**Harm.** On {len(losses)} of {len(arms) * len(targets) * len(networks)} targets and networks "
            f"{_or(arms)} loses more than {least}; most: {worst}.")


def _list(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _or(words):
    return " or ".join(words)


def _do(words):
    return "does" if len(words) == 1 else "do"
