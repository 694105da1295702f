"""Choose how strongly to translate each target domain, without its labels: `python -m cmr.choose`.

A translation that helps where the gap is large harms where it is small, and the segmenter's own confidence is fooled: it
likes translated images better while they are worse.  So what a candidate gains is measured where labels are allowed, on
the source's validation patients, as they are and under random changes of appearance (each one a stand-in for an unseen
domain), and a ridge regression learns which label-free *signs* go with a gain.  On a target's validation volumes the
signs alone predict it; `none` is chosen unless some candidate's predicted gain exceeds what the regression errs by for that
candidate on a stand-in it has not seen: the rule of one standard error.  Of fewer than FEWEST patients, of the source or of the
target, no mean is trusted.

Public: `CANDIDATES`, `SIGNS`, `Look`, `signs`, `Calibration`, `pick`.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from cmr import checkpoint
from cmr.audit import Likeness, mean_dice, mean_hd95_mm
from cmr.config import DataConfig, opt, parse, run_script
from cmr.diffusion import estimates, noised
from cmr.metrics import dice
from cmr.parallel import over_volumes
from cmr.segment import Segmenter, softmax
from cmr.shifts import random_shift
from cmr.studies import STRUCTURES, Domain, find, in_role, split_by_subject
from cmr.training import generator, pick_device, rng
from cmr.translate import NONE, SourceModel, Strength, translate
from cmr.volumes import Grid, labels_of, prepare

CANDIDATES = ("t0=100,match=mean_std,steps=4", "t0=300,match=mean_std,guide_mm=20,steps=2", "t0=500,guide_mm=30,steps=2", "t0=500,match=mean_std,guide_mm=30,steps=2",
              "t0=500,match=quantile,guide_mm=30,steps=2", "t0=700,match=mean_std,guide_mm=60,steps=2", "t0=900,match=mean_std,shortest_mm=12,longest_mm=64,guide_mm=40,steps=4")
SIGNS = ("entropy change", "agreement", "volume change", "fragments", "structure kept", "likeness gain", "likeness before", "denoising change")
MARGIN = 0.005                                   # Dice; a smaller gain is not worth a translation
FEWEST = 3                                       # validation patients; the mean over fewer says little about a domain
LARGE = 0.15                                     # Dice; a gain or loss beyond counts as this
RIDGE = 1.0


@dataclass(frozen=True)
class Config(DataConfig):
    target: str    = opt("Vendor=B,C,D", "target domains")
    run: str       = opt("", "folder of the experiment, with diffusion/ and segmenter-*-real/")
    networks: str  = opt("vanilla,nnunet2d,nnunet3d", "which segmenters")
    candidates: str = opt(";".join(CANDIDATES), "strengths to choose from, beside none, separated by ';'")
    shifts: int    = opt(4, "changes of appearance to calibrate on, beside the unchanged source")
    out: str       = opt("runs/choice", "folder of choice.json, predicted.csv and signs.csv")


PRESETS = {"tiny": dict(shifts=1), "demo": {}, "paper": dict(size=128, spacing_mm=1.5, shifts=20)}


def denoising_error(model, image, t=100):
    """Root mean squared error of the SD-DM's clean image from one fixed noise at t: large for what it has never seen."""
    device = next(model.net.parameters()).device
    x_0 = torch.tensor(np.asarray(image), device=device)[:, None]
    z = torch.randn(1, 1, *x_0.shape[2:], generator=generator("denoising error")).to(device)
    with torch.no_grad():
        x_t = noised(model.schedule, x_0, t, z)
        found, _ = estimates(model.schedule, model.parameterisation, model.net(x_t, torch.full((len(x_0),), t, device=device)).float(), x_t, t)
    return float(((found - x_0) ** 2).mean().sqrt())


@dataclass(frozen=True)
class Look:
    """What the signs need of an image, whatever segments it."""
    distance: float                              # from the source, by Likeness
    denoising: float                             # denoising_error of the SD-DM
    edges: np.ndarray                            # gradient magnitude, flat

    @classmethod
    def of(cls, image, likeness, model):
        return cls(likeness.distance(image), denoising_error(model, image), ndimage.gaussian_gradient_magnitude(np.asarray(image, np.float32), (0, 1, 1)).ravel())


def signs(look_before, look_after, logits_before, logits_after):
    """The label-free signs of one candidate on one volume, in the order of SIGNS.

    look_* : of the volume before and after its translation.  logits_* : (4, D, H, W) of the segmenter on each.
    """
    before, after = softmax(logits_before), softmax(logits_after)
    labels_before, labels_after = labels_of(before), labels_of(after)
    overlaps = [dice(labels_before == v, labels_after == v) for v in range(1, 1 + len(STRUCTURES))]
    return np.array([np.log(_entropy(after) / _entropy(before)), np.nanmean(overlaps) if np.isfinite(overlaps).any() else 0.0,
                     abs(np.log(((labels_after > 0).sum() + 1) / ((labels_before > 0).sum() + 1))), _fragments(labels_after) - _fragments(labels_before),
                     np.corrcoef(look_before.edges, look_after.edges)[0, 1], look_before.distance - look_after.distance, look_before.distance,
                     np.log(look_after.denoising / look_before.denoising)])


def _entropy(probabilities):
    """Predictive entropy summed over the volume, per voxel of predicted foreground; large for an empty one."""
    total = -(probabilities * np.log(probabilities + 1e-9)).sum()
    return (total + 1) / ((labels_of(probabilities) > 0).sum() + 1)


def _fragments(labels):
    """Share of the foreground outside its largest component; 1 if there is none: a collapse is no success."""
    components, n = ndimage.label(labels > 0)
    return 1 - np.bincount(components.ravel())[1:].max() / (labels > 0).sum() if n else 1.0


@dataclass(frozen=True)
class Calibration:
    """Ridge regression from signs to gain, and how much it errs for each candidate on the mean of a domain it has not seen.

    Gains beyond LARGE count as that, so that one collapse mended does not outweigh many small losses; signs beyond what the
    calibration saw count as its extremes, so that nothing is extrapolated.
    """
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    error: dict                                  # candidate -> root mean squared error of a domain's mean gain, leaving one stand-in out

    @classmethod
    def fit(cls, features, gains, domains, candidates):
        """features : (n, signs).  gains : (n,).  domains, candidates : (n,) names; a stand-in domain is left out at a time."""
        features, gains, domains, candidates = np.asarray(features), np.clip(gains, -LARGE, LARGE), np.asarray(domains), np.asarray(candidates)
        errors = {candidate: [] for candidate in np.unique(candidates)}
        for domain in np.unique(domains):
            seen = domains != domain
            if seen.any() and not seen.all():
                left_out = cls._ridge(features[seen], gains[seen], {})
                for candidate in np.unique(candidates[~seen]):
                    own = ~seen & (candidates == candidate)
                    errors[candidate].append(left_out.predict(features[own]).mean() - gains[own].mean())
        return cls._ridge(features, gains, {c: float(np.sqrt(np.mean(np.square(e)))) if e else np.inf for c, e in errors.items()})

    @classmethod
    def _ridge(cls, features, gains, error):
        centre, scale = features.mean(0), features.std(0) + 1e-6
        z, y = (features - centre) / scale, gains - gains.mean()
        weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ y)
        return cls(features.min(0), features.max(0), centre, scale, weights, float(gains.mean()), error)

    def predict(self, features):
        """Expected gain, (n,), within [-LARGE, LARGE]."""
        seen = np.clip(features, self.low, self.high)
        return np.clip((seen - self.centre) / self.scale @ self.weights + self.intercept, -LARGE, LARGE)


def pick(predicted, error):
    """The candidate of largest predicted gain among those whose gain exceeds its error by MARGIN (one standard error), or `none`.

    predicted : {candidate: mean over a target's volumes, Dice}.  error : {candidate: Calibration.error}.
    """
    clear = {candidate: gain for candidate, gain in predicted.items() if gain - error[candidate] > MARGIN}
    return max(clear, key=clear.get) if clear else NONE


PREDICTED_COLUMNS = ("domain", "network", "candidate", "chosen", "predicted", "error", "hindsight", "hindsight_hd95_mm")
COLUMNS = ("domain", "use", "case", "network", "candidate", "gain", "gain_hd95_mm", *SIGNS)


class Choice:
    """The models and the volumes; one volume at a time through all candidates and networks."""

    def __init__(self, c):
        self.c, self.device, run = c, pick_device(c.device), Path(c.run)
        self.candidates = {text: Strength.parse(text) for text in c.candidates.split(";")}
        self.model = SourceModel.load(run / "diffusion" / "final.pt", self.device)
        self.segmenters = {n: Segmenter.load(run / f"segmenter-{n}-real" / "final.pt", self.device) for n in c.networks.split(",")}
        source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        records = split_by_subject(find(c.data, c.use_unlabeled_masks), source)
        volumes = lambda domain, split, labelled: prepare(in_role(records, domain, split, labelled_only=labelled), grid, c.work)
        one_each = lambda workings: list({w.record.subject: w for w in reversed(workings)}.values())[::-1]      # the first phase, ED
        self.likeness = Likeness.of([np.asarray(w.image) for w in volumes(source, "Training", True)])
        self.targets = Domain.parse(c.target).each()
        self.jobs = [("calibration", f"shift {k}" if k else str(source), k, w) for k in range(1 + c.shifts) for w in one_each(volumes(source, "Validation", True))]
        self.jobs += [("target", str(d), 0, w) for d in self.targets for w in one_each(volumes(d, "Validation", False))]

    def volume(self, index):
        """Rows of one volume: every network's signs for every candidate, and where there are labels its gain, in Dice and in mm HD95.

        A target's gains are written down for hindsight; nothing is chosen by them.
        """
        use, domain, shift, working = self.jobs[index]
        reference, spacing_mm = np.asarray(working.image), self.c.spacing_mm
        if shift:                                                               # one key for all patients: the same change, a domain
            reference = random_shift(reference, spacing_mm, rng(self.c.seed, "shift", shift))
        before = {n: s.logits(reference, working.spacing_mm, mirror=False) for n, s in self.segmenters.items()}
        scores = lambda labels: (mean_dice(labels, working.label), -mean_hd95_mm(labels, working.label, working.spacing_mm))
        scores_before = {n: scores(labels_of(logits)) for n, logits in before.items()} if working.label is not None else {}
        look_before, rows = Look.of(reference, self.likeness, self.model), []
        for candidate, strength in self.candidates.items():
            image, _ = translate(self.model, reference, spacing_mm, strength, self.c.seed, working.record.subject, 0)
            look_after = Look.of(image, self.likeness, self.model)
            for network, segmenter in self.segmenters.items():
                after = segmenter.logits(image, working.spacing_mm, mirror=False)
                found = signs(look_before, look_after, before[network], after)
                gains = np.subtract(scores(labels_of(after)), scores_before[network]).tolist() if scores_before else (None, None)
                rows.append({"domain": domain, "use": use, "case": working.record.case, "network": network, "candidate": candidate,
                             **dict(zip(("gain", "gain_hd95_mm"), gains)), **dict(zip(SIGNS, found.tolist()))})
        return rows


def patients(rows, domain):
    """[validation patients of the source, of the domain], one volume of each; of neither may there be fewer than FEWEST."""
    return [len({r["case"] for r in rows if of in (r["use"], r["domain"])}) for of in ("calibration", domain)]


def choose(rows, networks, domains, candidates):
    """({domain: {network: candidate}}, rows of predicted.csv) from the rows of all volumes."""
    choice, predicted_rows = {d: {} for d in domains}, []
    for network in networks:
        own = [r for r in rows if r["network"] == network]
        calibration = [r for r in own if r["use"] == "calibration"]
        features = lambda some: np.array([[r[s] for s in SIGNS] for r in some])
        fitted = Calibration.fit(features(calibration), [r["gain"] for r in calibration], [r["domain"] for r in calibration], [r["candidate"] for r in calibration])
        for domain in domains:
            predicted, hindsight = {}, {}
            for candidate in candidates:
                here = [r for r in own if r["domain"] == domain and r["candidate"] == candidate]
                gains = [(r["gain"], r["gain_hd95_mm"]) for r in here if r["gain"] is not None]
                predicted[candidate], hindsight[candidate] = float(fitted.predict(features(here)).mean()), np.mean(gains, 0).tolist() if gains else (None, None)
            choice[domain][network] = pick(predicted, fitted.error) if min(patients(rows, domain)) >= FEWEST else NONE
            known = {NONE: (0.0, 0.0, 0.0, 0.0), **{c: (predicted[c], fitted.error[c], *hindsight[c]) for c in candidates}}     # `none` changes nothing, surely
            predicted_rows += [{"domain": domain, "network": network, "candidate": candidate, "chosen": int(candidate == choice[domain][network]),
                                **dict(zip(PREDICTED_COLUMNS[4:], values))} for candidate, values in known.items()]
    return choice, predicted_rows


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    out = checkpoint.writable_folder(c.out)
    everything = Choice(c)
    rows = [row for some in over_volumes(everything, Choice, c) for row in some]
    checkpoint.write_csv(out / "signs.csv", rows, COLUMNS)
    choice, predicted = choose(rows, c.networks.split(","), [c.source, *map(str, everything.targets)], everything.candidates)
    checkpoint.write_csv(out / "predicted.csv", predicted, PREDICTED_COLUMNS)
    checkpoint.write_json(out / "choice.json", choice)
    known = [r for r in predicted if r["hindsight"] is not None]
    for network, candidate in dict.fromkeys((r["network"], r["candidate"]) for r in known):
        gains = {r["domain"]: r["hindsight"] for r in known if (r["network"], r["candidate"]) == (network, candidate)}
        print(f"{network} {candidate}: gain in hindsight " + ", ".join(f"{d} {gain:+.3f}" for d, gain in gains.items()))
    for domain, of in choice.items():
        of_source, of_domain = patients(rows, domain)
        if min(of_source, of_domain) < FEWEST:
            print(f"{domain}: {of_source} validation patients of the source and {of_domain} of the domain; nothing is chosen by fewer than {FEWEST}")
        print(f"{domain}: " + "; ".join(f"{network} {candidate}" for network, candidate in of.items()))


if __name__ == "__main__":
    run_script(main)
