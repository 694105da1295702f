"""Choose how strongly to translate each target domain, without its labels: `python -m cmr.choose`.

A translation that helps where the gap is large harms where it is small, and the segmenter's own confidence is fooled:
it likes translated images better while they are worse.  So what a candidate gains is measured where labels are
allowed, on the source's validation patients, as they are and under random changes of appearance (each one a stand-in
for an unseen domain), and a ridge regression learns which label-free *signs* (`cmr.signs`) go with a gain.  On a
target's validation volumes the signs alone predict it.  Gain is weighed against risk: chosen is the candidate with the
largest predicted gain less half of the most it lost on any stand-in, and `none` if that is no gain.  One candidate is
the default, so that the choice is whether to translate; it is averaged with the image as it is, which takes most of the
risk out of it.
Of fewer than FEWEST patients, of the source or of the target, no mean is trusted.

Public: `CANDIDATES`, `Calibration`, `pick`, `choose`.
"""
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.belonging import require_part, require_trained_on
from cmr.domain_likeness import SourceLook
from cmr.errors import run_script
from cmr.files import writable_folder, write_csv, write_json
from cmr.grid import Grid
from cmr.labels import labels_of
from cmr.metrics import mean_dice, mean_hd95_mm
from cmr.prediction import softmax
from cmr.records import Domain
from cmr.rescan import random_shift
from cmr.sampler import translate
from cmr.seeds import rng
from cmr.segmenter import Segmenter
from cmr.settings import FULL_GRID, DataConfig, at_least, given, opt, parse
from cmr.signs import SIGNS, Look, signs
from cmr.source_model import SourceModel
from cmr.strength import DEFAULT_STRENGTH, NONE, parse_members
from cmr.studies import find, in_role, split_by_subject
from cmr.workers import over_volumes, pick_device
from cmr.working import prepare, with_labels

CANDIDATES = (DEFAULT_STRENGTH["da"],)
RISK = 0.5                                       # of the most a candidate lost on a stand-in; settled by regret there
FEWEST = 2                                       # validation patients; one is no mean
LARGE = 0.15                                     # Dice; a gain or loss beyond counts as this
RIDGE = 1.0


@dataclass(frozen=True)
class Config(DataConfig):
    target: str     = opt("Vendor=B,C,D", "target domains")
    run: str        = opt("", "folder of the experiment, with diffusion/ and segmenter-*-real/",
                          given("the folder of an experiment"))
    networks: str   = opt("vanilla,nnunet2d,nnunet3d", "which segmenters")
    candidates: str = opt(";".join(CANDIDATES), "strengths to choose from, beside none, separated by ';'",
                          given("at least one strength, e.g. t0=500,guide_mm=30,steps=2"))
    shifts: int     = opt(8, "changes of appearance to calibrate on, beside the unchanged source",
                          at_least(0))
    out: str        = opt("runs/choice", "folder of choice.json, predicted.csv and signs.csv")


PRESETS = {"tiny": dict(shifts=1), "demo": {}, "lab": FULL_GRID,
           "paper": dict(**FULL_GRID, shifts=20)}
HINDSIGHT = ("hindsight", "hindsight_hd95_mm")
FIGURES = ("predicted", "error", "at_risk", *HINDSIGHT)
PREDICTED_COLUMNS = ("domain", "network", "candidate", "chosen", *FIGURES)
GAINS = ("gain", "gain_hd95_mm")
COLUMNS = ("domain", "use", "case", "network", "candidate", *GAINS, *SIGNS)


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    out = writable_folder(c.out, c.data)
    volumes = Volumes(c)                                          # what is missing is found before the long work
    rows = [row for some in over_volumes(volumes, Volumes, c) for row in some]
    write_csv(out / "signs.csv", rows, COLUMNS)
    domains = [c.source, *map(str, volumes.targets)]
    choice, predicted = choose(rows, c.networks.split(","), domains, volumes.candidates)
    write_csv(out / "predicted.csv", predicted, PREDICTED_COLUMNS)
    write_json(out / "choice.json", choice)
    _print(choice, predicted, rows)


@dataclass(frozen=True)
class Job:
    """One volume to be translated with every candidate."""
    use: str                                     # calibration or target
    domain: str                                  # or the name of a stand-in
    shift: int                                   # which change of look comes first; 0: none
    working: object


class Volumes:
    """The models and the volumes; one volume at a time through all candidates and networks."""

    def __init__(self, c):
        self.c, self.device, run = c, pick_device(c.device), Path(c.run)
        self.candidates = {text: parse_members(text) for text in c.candidates.split(";")}
        self.model = SourceModel.load(run / "diffusion" / "final.pt", self.device)
        self.segmenters = {network: Segmenter.load(run / f"segmenter-{network}-real" / "final.pt", self.device)
                           for network in c.networks.split(",")}
        require_part(run / "diffusion" / "final.pt", self.model.settings, c)
        source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        records = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
        workings = lambda domain, split, labelled: prepare(in_role(records, domain, split, labelled), grid, c.work)
        training = workings(source, "Training", True)
        for network, segmenter in self.segmenters.items():
            path = run / f"segmenter-{network}-real" / "final.pt"
            require_part(path, segmenter.settings, c)
            require_trained_on(path, segmenter.data_hash, with_labels(training))
        self.source_look = SourceLook.of([np.asarray(w.image) for w in training])
        self.targets = Domain.parse(c.target).each()
        own = one_volume_each(workings(source, "Validation", True))
        self.jobs = [Job("calibration", str(source), 0, w) for w in own]
        for k in range(1, 1 + c.shifts):
            self.jobs += [Job("calibration", f"shift {k}", k, w) for w in own]
        for target in self.targets:
            unlabelled = one_volume_each(workings(target, "Validation", False))
            self.jobs += [Job("target", str(target), 0, w) for w in unlabelled]

    def volume(self, index):
        """Rows of one volume: every network's signs for every candidate, and where there are labels its gains.

        A target's gains are written down for hindsight; nothing is chosen by them.
        """
        job = self.jobs[index]
        working = job.working
        reference = np.asarray(working.image)
        if job.shift:                                             # one key for all patients: the same change, a domain
            reference = random_shift(reference, self.c.spacing_mm, rng(self.c.seed, "shift", job.shift))
        looks, found = self._seen(reference, working)
        rows = []
        for candidate, members in self.candidates.items():
            for network in self.segmenters:
                before = found[network][NONE]
                after = np.mean([found[network][member] for member in members], 0)
                seen = signs(looks[NONE], [looks[member] for member in members], before, after)
                gains = np.subtract(_scores(after, working), _scores(before, working)).tolist() or [None, None]
                rows.append({"domain": job.domain, "use": job.use, "case": working.record.case, "network": network,
                             "candidate": candidate, **dict(zip(GAINS, gains)), **dict(zip(SIGNS, seen.tolist()))})
        return rows

    def _seen(self, reference, working):
        """({member: Look}, {network: {member: probabilities}}) of all members of the candidates, each made once."""
        spacing_mm, subject = self.c.spacing_mm, working.record.subject
        looks, found = {}, {network: {} for network in self.segmenters}
        for member in dict.fromkeys([NONE, *itertools.chain(*self.candidates.values())]):
            image = reference
            if member != NONE:
                image, _ = translate(self.model, reference, spacing_mm, member, self.c.seed, subject, 0)
            looks[member] = Look.of(image, self.source_look, self.model)
            for network, segmenter in self.segmenters.items():
                found[network][member] = softmax(segmenter.logits(image, working.spacing_mm, mirror=False))
        return looks, found


def one_volume_each(workings):
    """The first volume of every subject, ED, in the given order."""
    first = {}
    for w in workings:
        first.setdefault(w.record.subject, w)
    return list(first.values())


def _scores(probabilities, working):
    """(mean Dice, minus mean HD95 in mm) of a segmentation, larger is better; () where there are no labels."""
    if working.label is None:
        return ()
    labels = labels_of(probabilities)
    return mean_dice(labels, working.label), -mean_hd95_mm(labels, working.label, working.spacing_mm)


@dataclass(frozen=True)
class Calibration:
    """Ridge regression from signs and candidate to gain, its error on a domain it has not seen, and what is at risk.

    Each candidate has an intercept of its own: what it gains on stand-ins whatever the signs.  Gains beyond LARGE count
    as that, so that one collapse mended does not outweigh many small losses; signs beyond what the calibration saw
    count as its extremes, so that nothing is extrapolated.
    """
    names: tuple                                 # of the candidates
    low: np.ndarray                              # of the signs: least, largest, mean, SD
    high: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    columns: np.ndarray                          # mean of each column of the regression
    weights: np.ndarray
    mean_gain: float
    error: dict                                  # candidate -> root mean squared error of a domain's mean, left out
    at_risk: dict                                # candidate -> the most it lost on a stand-in's mean, Dice; 0: nothing

    @classmethod
    def fit(cls, features, gains, domains, candidates):
        """features : (n, signs).  gains : (n,).  domains, candidates : (n,) names; a stand-in is left out at a time."""
        features, gains = np.asarray(features), np.clip(gains, -LARGE, LARGE)
        domains, candidates = np.asarray(domains), np.asarray(candidates)
        errors, lost = ({str(candidate): [] for candidate in np.unique(candidates)} for _ in range(2))
        for domain in np.unique(domains):
            seen = domains != domain
            if not seen.any():
                continue
            without = cls._ridge(features[seen], gains[seen], candidates[seen], {}, {})
            for candidate in np.unique(candidates[~seen]):
                own = ~seen & (candidates == candidate)
                predicted = without.predict(features[own], candidates[own])
                errors[candidate].append(predicted.mean() - gains[own].mean())
                lost[candidate].append(-gains[own].mean())
        rms = {candidate: float(np.sqrt(np.mean(np.square(e)))) if e else np.inf for candidate, e in errors.items()}
        at_risk = {candidate: float(max([0.0, *losses])) if losses else np.inf for candidate, losses in lost.items()}
        return cls._ridge(features, gains, candidates, rms, at_risk)

    @classmethod
    def _ridge(cls, features, gains, candidates, error, at_risk):
        names, centre, scale = tuple(np.unique(candidates)), features.mean(0), features.std(0) + 1e-6
        z = _design(features, candidates, names, centre, scale)
        columns, mean_gain = z.mean(0), gains.mean()
        z = z - columns
        weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (gains - mean_gain))
        return cls(names, features.min(0), features.max(0), centre, scale, columns, weights, float(mean_gain), error,
                   at_risk)

    def predict(self, features, candidates):
        """Expected gain, (n,), within [-LARGE, LARGE].  features : (n, signs).  candidates : (n,) names."""
        seen = np.clip(features, self.low, self.high)
        z = _design(seen, np.asarray(candidates), self.names, self.centre, self.scale) - self.columns
        return np.clip(z @ self.weights + self.mean_gain, -LARGE, LARGE)


def _design(features, candidates, names, centre, scale):
    """(n, signs + candidates): signs in standard units, and 1 in the column of the row's candidate."""
    return np.concatenate([(features - centre) / scale, candidates[:, None] == np.array(names)], 1)


def pick(predicted, at_risk):
    """The candidate whose predicted gain, less RISK times what is at risk, is largest; `none` if that is no gain.

    predicted : {candidate: mean over a target's volumes, Dice}.  at_risk : of Calibration.
    """
    worth = {candidate: gain - RISK * at_risk[candidate] for candidate, gain in predicted.items()}
    best = max(worth, key=worth.get)
    return best if worth[best] > 0 else NONE


def patients(rows, domain):
    """(validation patients of the source, of the domain), one volume of each; there must be FEWEST of both."""
    of_source = {row["case"] for row in rows if row["use"] == "calibration"}
    of_domain = {row["case"] for row in rows if row["domain"] == domain}
    return len(of_source), len(of_domain)


def choose(rows, networks, domains, candidates):
    """({domain: {network: candidate}}, rows of predicted.csv) from the rows of all volumes."""
    choice, predicted_rows = {domain: {} for domain in domains}, []
    for network in networks:
        own = [row for row in rows if row["network"] == network]
        fitted = _calibrated([row for row in own if row["use"] == "calibration"])
        for domain in domains:
            here = [row for row in own if row["domain"] == domain]
            of = {candidate: [row for row in here if row["candidate"] == candidate] for candidate in candidates}
            predicted = {candidate: float(fitted.predict(_features(some), [candidate] * len(some)).mean())
                         for candidate, some in of.items()}
            chosen = pick(predicted, fitted.at_risk) if min(patients(rows, domain)) >= FEWEST else NONE
            choice[domain][network] = chosen
            known = {NONE: (0.0, 0.0, 0.0, 0.0, 0.0)}             # changes nothing, surely
            for candidate, some in of.items():
                expected = predicted[candidate], fitted.error[candidate], fitted.at_risk[candidate]
                known[candidate] = (*expected, *_mean_gains(some))
            for candidate, figures in known.items():
                predicted_rows.append({"domain": domain, "network": network, "candidate": candidate,
                                       "chosen": int(candidate == chosen),
                                       **dict(zip(FIGURES, figures))})
    return choice, predicted_rows


def _features(rows):
    return np.array([[row[sign] for sign in SIGNS] for row in rows])


def _calibrated(rows):
    columns = ([row[name] for row in rows] for name in ("gain", "domain", "candidate"))
    return Calibration.fit(_features(rows), *columns)


def _mean_gains(rows):
    """(Dice, mm HD95) gained on the volumes that have labels; (None, None) if none has."""
    gains = [[row[name] for name in GAINS] for row in rows if row["gain"] is not None]
    return np.mean(gains, 0).tolist() if gains else (None, None)


def _print(choice, predicted, rows):
    """What each candidate gained in hindsight, and what was chosen."""
    known = [row for row in predicted if row["hindsight"] is not None]
    for network, candidate in dict.fromkeys((row["network"], row["candidate"]) for row in known):
        own = [row for row in known if (row["network"], row["candidate"]) == (network, candidate)]
        gains = ", ".join(f"{row['domain']} {row['hindsight']:+.3f}" for row in own)
        print(f"{network} {candidate}: gain in hindsight {gains}")
    for domain, of in choice.items():
        of_source, of_domain = patients(rows, domain)
        if min(of_source, of_domain) < FEWEST:
            print(f"{domain}: {of_source} validation patients of the source and {of_domain} of the domain; "
                  f"nothing is chosen by fewer than {FEWEST}")
        print(f"{domain}: " + "; ".join(f"{network} {candidate}" for network, candidate in of.items()))


if __name__ == "__main__":
    run_script(main)
