"""The verdict of an experiment in five sentences that are made from its numbers: the gap, DA, DG, controls, harm.

Every sentence is a template for one outcome, so that it is true of its numbers, which `cmr.comparison` computes.
"""
from cmr.comparison import (MARGIN, MINIMUM_PATIENTS, POOLED, against_controls, by_row, distinct, gap_closed, means,
                            of_domain, outcome, select)
from cmr.experiment import BASELINE, CONTROLS, PRIMARY_ARMS, UPPER_BOUND

HARM = {"dice": 0.005, "hd95": 0.5}              # a larger loss on any target is named


def sentences(rows, tests, source):
    """The sentences on the gap, DA, DG, controls and harm; DA and DG are left out where they were not run.

    rows : comparable ones of metrics.csv.  tests : of tests.csv.  source : name of the source domain.
    """
    mean = means(rows)
    ran = [(network, arm) for network, arm in by_row(rows) if arm in PRIMARY_ARMS]
    text = [_gap(rows, mean, source)]
    for arm in PRIMARY_ARMS:
        networks = [network for network, name in ran if name == arm]
        if networks:
            changes = "; ".join(_change(network, arm, mean, tests) for network in networks)
            text.append(f"**{arm}.** Against the baseline, in HD95 on all targets: {changes}.")
    text.append(_controls(rows))
    return [*text, _harm(rows, mean, ran)] if ran else text


def _gap(rows, mean, source):
    """How much worse the baselines are than their upper bounds, and how the source compares with the targets."""
    networks = distinct(rows, "network")
    bounded = [network for network in networks if (POOLED, network, UPPER_BOUND) in mean]
    text = "**The gap.** "
    if bounded:
        lost = [f"{network} {_change_in(mean[POOLED, network, BASELINE], mean[POOLED, network, UPPER_BOUND])}"
                for network in bounded]
        text += ("On unseen targets, against the same network trained on the target's own studies: "
                 f"{'; '.join(lost)}. ")
    reached = [f"{network} {_level(mean[source, network, BASELINE])} on the source, "
               f"{_level(mean[POOLED, network, BASELINE])} on the targets" for network in networks]
    text += f"Trained on real source images and tested on studies that were not trained on: {'; '.join(reached)}."
    if len(bounded) < len(networks):
        without = f" of {_list([name for name in networks if name not in bounded])}" if bounded else ""
        text += (f" These levels do not give the gap{without}, as domains differ in difficulty; an upper bound does "
                 "(UPPER=1, where the targets have labelled studies to train on).")
    return text


def _level(values):
    return f"{values['dice']:.3f} Dice and {values['hd95']:.1f} mm HD95"


def _change_in(values, others):
    return f"{values['dice'] - others['dice']:+z.3f} Dice and {values['hd95'] - others['hd95']:+z.1f} mm HD95"


def _change(network, arm, mean, tests):
    """Say how a row changes a network's HD95 and, with an upper bound, which share of the gap it closes."""
    of_row = {t["metric"]: t for t in select(tests, domain=POOLED, network=network, arm=arm)}
    test, closed, found = of_row["hd95"], "", "no patient is changed"
    if any(t["rank_sum_larger"] or t["rank_sum_smaller"] for t in of_row.values()):
        found = _difference(test, test["wilcoxon_p_holm"])
    if (POOLED, network, UPPER_BOUND) in mean and test["n"] >= MINIMUM_PATIENTS:
        share = gap_closed(mean, POOLED, network, arm, "hd95")
        closed = "there is no gap, " if share is None else f"{_closed(share)}, "
    return f"{network}: {closed}{found}"


def _closed(share):
    """The share of a gap that is closed, in words; a negative share widens it."""
    return f"{share:z.0%} of the gap closed" if share > -0.005 else f"the gap {-share:.0%} wider"


def _difference(test, p):
    """The tested HD95 difference, numbers of missed structures and the test's outcome; p : the corrected p-value."""
    before, now = test["n_missed_baseline"], test["n_missed_arm"]
    missed = f" (structures missed: {now} against {before})" if before or now else ""
    kind, change = outcome(test, p), test["mean_difference"]
    by_ranks = _by_ranks(kind, test)
    words = {"better": f"significantly better{by_ranks}, p {p:.2g}",
             "worse": f"significantly worse{by_ranks}, p {p:.2g}",
             "equal": f"as good to {MARGIN['hd95']:g} mm",
             "open": f"undecided, 90 % interval {test['bca90_low']:+.1f} to {test['bca90_high']:+.1f} mm, p {p:.2g}",
             "few": f"{_few(test['n'])} to decide"}
    return f"{change:+z.1f} mm{missed}, {words[kind]}"


def _by_ranks(kind, test):
    """Words for an outcome of which ranks and mean disagree: many patients lose a little HD95, a few gain much more."""
    change = test["mean_difference"]
    contrary = kind == "better" and change > 0 or kind == "worse" and change < 0
    return " by ranks, though not in the mean" if contrary else ""


def control_lines(rows):
    """One line of Markdown for each network and control of DG."""
    return [f"- {c['network']}, DG against *{c['control']}* ({CONTROLS[c['control']]}): "
            f"Dice {c['dice']['mean_difference']:+.3f}, HD95 {_difference(c['hd95'], c['p'])}."
            for c in against_controls(rows)]


def _controls(rows):
    """Say which controls without a diffusion model do as well as DG."""
    compared = against_controls(rows)
    if not compared:
        ran = [f"*{arm}* ({network})" for network, arm in by_row(rows) if arm in CONTROLS]
        which = f"{_list(ran)} ran without DG of the same network" if ran else "None was run"
        return f"**Controls.** {which}, so whether DG needs a diffusion model is not answered here."
    templates = {"equal": "{which} {do} as well as DG, to {margin:g} mm HD95",
                 "worse": "{which} {do} better than DG{by_ranks}", "better": "{which} {do} worse than DG{by_ranks}",
                 "open": "DG and {which} cannot be told apart on these patients",
                 "few": "{few} to decide between DG and {which}"}
    few, groups = _few(compared[0]["hd95"]["n"]), {}
    for c in compared:
        alike = groups.setdefault((c["outcome"], _by_ranks(c["outcome"], c["hd95"])), [])
        alike.append(f"*{c['control']}* ({c['network']})")
    parts = [template.format(which=_list(named), do="does" if len(named) == 1 else "do", margin=MARGIN["hd95"], few=few,
                             by_ranks=by_ranks)
             for kind, template in templates.items() for (found, by_ranks), named in groups.items() if found == kind]
    return f"**Controls.** Without a diffusion model, {'; '.join(parts)}."


def _harm(rows, mean, ran):
    """Name the targets and networks on which a row loses most, if it loses more than HARM; ran : [(network, row)]."""
    losses, targets = [], distinct(of_domain(rows, POOLED), "domain")
    for network, arm in ran:
        for domain in targets:
            ours, baseline = mean[domain, network, arm], mean[domain, network, BASELINE]
            dice, hd95 = baseline["dice"] - ours["dice"], ours["hd95"] - baseline["hd95"]
            if dice > HARM["dice"] or hd95 > HARM["hd95"]:
                patients = len(distinct(of_domain(rows, domain), "subject"))
                beside = f" ({_few(patients)} to decide)" if patients < MINIMUM_PATIENTS else ""
                changes = f"Dice {-dice:+.3f}, HD95 {hd95:+.1f} mm{beside}"
                harm = max(dice / HARM["dice"], hd95 / HARM["hd95"])
                losses.append((harm, f"{arm}, {network} on {domain}: {changes}"))
    looked_at = " or ".join(arm for arm in PRIMARY_ARMS if arm in {name for _, name in ran})
    least = f"{HARM['dice']:g} Dice or {HARM['hd95']:g} mm HD95"
    if not losses:
        return f"**Harm.** On no target and network does {looked_at} lose more than {least}."
    worst = "; ".join(text for _, text in sorted(losses, reverse=True)[:3])
    return (f"**Harm.** In {len(losses)} of {len(ran) * len(targets)} combinations of a target, a network and a row "
            f"{looked_at} loses more than {least}; most: {worst}.")


def _few(n):
    return f"{n} patients are too few" if n > 1 else "one patient is too few"


def _list(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
