"""What an experiment says, in five sentences that its numbers make: the gap, DA, DG, controls, harm.

Every sentence is a template for an outcome, so that it is true of the numbers it is given.  The numbers themselves are
`cmr.comparison`'s; a sentence with a p prints the difference that was tested.

Public: `sentences`, `control_lines`.
"""
from cmr.comparison import (MARGIN, MINIMUM_PATIENTS, POOLED, TESTED_METRICS, against_controls, compared_in, gap_closed,
                            largest_diagonal_mm, means, networks_of, outcome, patient_values, targets_of)
from cmr.experiment import BASELINE, CONTROLS, PRIMARY_ARMS, UPPER_BOUND

HARM = {"dice": 0.005, "hd95": 0.5}              # a loss beyond on any target is named


def sentences(rows, tests, source, boundable=()):
    """[the gap, what DA does, what DG does, what a control does as well, where a row harms] from the rows of a table.

    rows : of metrics.csv, comparable ones.  tests : of tests.csv.  source : its domain's name.  boundable : names of
    the targets that have labelled studies to train an upper bound on.
    """
    mean = means(rows)
    ran = [(network, arm.name) for network, arm in compared_in(rows) if arm.name in PRIMARY_ARMS]
    arms = [name for name in PRIMARY_ARMS if name in {arm for _, arm in ran}]
    return [_gap(mean, networks_of(rows), source, targets_of(rows), boundable),
            *(_changes_by(arm, [network for network, name in ran if name == arm], rows, mean, tests) for arm in arms),
            _controls(against_controls(rows)),
            *([_harm(rows, mean, ran, arms)] if arms else [])]


def _gap(mean, networks, source, targets, boundable):
    """How much worse the baselines are than their upper bounds; without those, how source and targets compare."""
    bounded = [network for network in networks if (POOLED, network, UPPER_BOUND) in mean]
    text = []
    if bounded:
        lost = [f"{network} {_lost(mean[POOLED, network, UPPER_BOUND], mean[POOLED, network, BASELINE])}"
                for network in bounded]
        text.append("On unseen targets, against the same network trained on the target's own studies, "
                    f"{'; '.join(lost)}.")
    reached = [f"{network} {_level(mean[source, network, BASELINE])} on the source, "
               f"{_level(mean[POOLED, network, BASELINE])} on the targets" for network in networks]
    text.append(f"Trained on real source images and tested on studies that were not trained on: {'; '.join(reached)}.")
    if len(bounded) < len(networks):
        without = "" if not bounded else f" of {_list([name for name in networks if name not in bounded])}"
        text.append(f"Domains differ in difficulty, so the gap{without} cannot be told from that; "
                    f"{_how_to_bound(targets, boundable)}.")
    return f"**The gap.** {' '.join(text)}"


def _how_to_bound(targets, boundable):
    """Whether an upper bound can be had, in words."""
    if len(boundable) == len(targets):
        return "an upper bound can be had with UPPER=1"
    if boundable:
        others = _list([target for target in targets if target not in boundable])
        return (f"an upper bound can be had with UPPER=1 for {_list(list(boundable))} alone, as {others} has no "
                "labelled studies to train on")
    return "the targets have no labelled studies to train an upper bound on"


def _level(values):
    return f"{values['dice']:.3f} Dice and {values['hd95']:.1f} mm HD95"


def _lost(above, below):
    """Two losses in words; what is negative is a gain."""
    dice, hd95 = above["dice"] - below["dice"], below["hd95"] - above["hd95"]
    verbs = ["loses" if amount > 0 else "gains" for amount in (dice, hd95)]
    again = f"{verbs[1]} " if verbs[0] != verbs[1] else ""
    return f"{verbs[0]} {abs(dice):.3f} Dice and {again}{abs(hd95):.1f} mm HD95"


def _changes_by(arm, networks, rows, mean, tests):
    """What a row changes in HD95 for each network that it ran for, the share of the gap where there is a bound."""
    parts = []
    for network in networks:
        [test] = [t for t in tests if (t["domain"], t["network"], t["arm"], t["metric"])
                  == (POOLED, network, arm, "hd95")]
        found = _found(test, test["wilcoxon_p_holm"]) if _differs(rows, network, arm) else "no patient is changed"
        closed = _closed(mean, network, arm) if test["n"] >= MINIMUM_PATIENTS else ""
        parts.append(f"{network}: {closed}{found}")
    return f"**{arm}.** Against the baseline, in HD95 on all targets: {'; '.join(parts)}."


def _closed(mean, network, arm):
    """The share of the gap that a row closes, in words; nothing without an upper bound."""
    if (POOLED, network, UPPER_BOUND) not in mean:
        return ""
    share = gap_closed(mean, POOLED, network, arm, "hd95")
    return "there is no gap, " if share is None else f"{_rounded(share, '.0%')} of the gap closed, "


def _differs(rows, network, arm):
    """Whether a row differs from the baseline on any patient of a target: DA does not where nothing is translated."""
    its, baseline = ([row for row in rows if (row["role"], row["network"], row["arm"]) == ("target", network, name)]
                     for name in (arm, BASELINE))
    penalty_mm = largest_diagonal_mm(rows)
    return any(patient_values(its, metric, penalty_mm) != patient_values(baseline, metric, penalty_mm)
               for metric in TESTED_METRICS)


def _found(test, p):
    """The tested difference in HD95 of all targets together, how many structures were missed, and what the test says.

    p : of the test, corrected.
    """
    before, now = test["n_missed_baseline"], test["n_missed_arm"]
    counted = ""
    if before or now:
        counted = f" (missed: {now} structures against {before})"
    return f"{_rounded(test['mean_difference'], '+.1f')} mm{counted}, {_words(test, p)}"


def _words(test, p):
    """What a test in HD95 says, in words."""
    kind = outcome(test, p)
    contrary = {"better": test["mean_difference"] > 0, "worse": test["mean_difference"] < 0}.get(kind, False)
    by_ranks = " in most patients, though not in the mean" if contrary else ""
    return {"better": f"significantly better{by_ranks}, p {p:.2g}",
            "worse": f"significantly worse{by_ranks}, p {p:.2g}",
            "equal": f"as good to {MARGIN['hd95']:g} mm",
            "open": f"undecided, 90 % interval {test['bca90_low']:+.1f} to {test['bca90_high']:+.1f} mm, p {p:.2g}",
            "few": f"{_few(test['n'])} to decide"}[kind]


def control_lines(rows):
    """A line of Markdown for each network and control of DG."""
    return [f"- {c['network']}, DG against *{c['control']}* ({CONTROLS[c['control']]}): "
            f"Dice {c['dice']['mean_difference']:+.3f}, HD95 {_found(c['hd95'], c['p'])}."
            for c in against_controls(rows)]


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
    if named("few"):
        parts.append(f"{_few(found[0]['hd95']['n'])} to decide between DG and {_list(named('few'))}")
    return f"**Controls.** Without a diffusion model, {'; '.join(parts)}."


def _harm(rows, mean, ran, arms):
    """The targets and networks on which a row loses most, if it loses more than HARM.

    ran : (network, arm) of the rows that are looked at, of the names `arms`.
    """
    losses, targets = [], targets_of(rows)
    for network, arm in ran:
        for domain in targets:
            its, baseline = mean[domain, network, arm], mean[domain, network, BASELINE]
            dice, hd95 = baseline["dice"] - its["dice"], its["hd95"] - baseline["hd95"]
            if dice > HARM["dice"] or hd95 > HARM["hd95"]:
                losses.append((dice, f"{arm} costs {network} on {domain} {dice:.3f} Dice and {hd95:+.1f} mm HD95"
                                     f"{_beside_a_mean(rows, domain)}"))
    least = f"{HARM['dice']:g} Dice or {HARM['hd95']:g} mm HD95"
    if not losses:
        return f"**Harm.** On no target and network does {_or(arms)} lose more than {least}."
    worst = "; ".join(text for _, text in sorted(losses, reverse=True)[:3])
    return (f"**Harm.** In {len(losses)} of {len(ran) * len(targets)} cases, a target and a network each, "
            f"{_or(arms)} loses more than {least}; most: {worst}.")


def _beside_a_mean(rows, domain):
    """What is said beside a domain's mean of too few patients."""
    n = len({row["subject"] for row in rows if row["domain"] == domain})
    return f" ({_few(n)} to decide)" if n < MINIMUM_PATIENTS else ""


def _few(n):
    return f"{n} patients are too few" if n > 1 else "one patient is too few"


def _rounded(value, form):
    """A number as text, without the sign of what is rounded to zero."""
    text = format(value, form)
    return text if any(digit in text for digit in "123456789") else format(0.0, form)


def _list(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _or(words):
    return " or ".join(words)


def _do(words):
    return "does" if len(words) == 1 else "do"
