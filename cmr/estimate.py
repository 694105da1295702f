"""What an experiment costs on this machine, measured before it starts: `make estimate`, or `python -m cmr.estimate`.

Every training is started with its own command at its true size, as many at a time as will run, watched for some steps
and stopped.  Networks of the same size that have learnt nothing then synthesize and segment a volume or two.
What is multiplied by what stands in the table; how the stages overlap is simulated.
Not measured: the phantom and the check of the dataset, which come before, and what make itself takes.

Public: `Config`, `Stage`, `wall_seconds`.
"""
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmr import checkpoint, ranks, synthesize
from cmr.errors import ResourceError, run_script
from cmr.experiment import ALL_INPUTS_OF, rows_to_measure
from cmr.files import writable_folder, write_text
from cmr.grid import Grid
from cmr.look import intensity_statistics
from cmr.metrics import measure
from cmr.nnunet import plan_for
from cmr.records import VALUES, Domain, labelled
from cmr.sampler import build_denoiser
from cmr.segmenter import NETWORKS, Segmenter, labels_on_original, split_name
from cmr.settings import GRIDS, DataConfig, above, at_least, one_of, opt, parse, without_places
from cmr.studies import in_role, studies_of
from cmr.watched import watch
from cmr.workers import cores, peak_memory_gb, pick_device
from cmr.working import fingerprint, fully_labelled, prepare, slices_mm

SCRIPTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Config(DataConfig):
    experiment: str = opt("demo", "preset of the experiment that is estimated; that of --preset",
                          one_of("tiny", "demo", "small", "lab", "paper"))
    target: str     = opt("Vendor=B,C,D", "target domains")
    segmenters: str = opt("vanilla-real,vanilla-synthetic", "all that are trained, as network-trainingset")
    jobs: int       = opt(1, "stages at a time", at_least(1))
    ranks: int      = opt(1, "ranks that share the work of each training", at_least(1))
    watch_s: float  = opt(20.0, "how long a training is watched after its second step, seconds", above(0))
    tflops: float   = opt(15.0, "what a GPU sustains in bfloat16, 10^12 operations per second: hours there, from the "
                                "operations of the trainings, where none is at hand", above(0))
    out: str        = opt("", "folder for estimate.md; empty: print only")


PRESETS = {preset: dict(**grid, experiment=preset) for preset, grid in GRIDS.items()}


@dataclass(frozen=True)
class Stage:
    """One line of the table."""
    name: str
    count: int                                   # of steps, images or volumes
    unit: str
    seconds: float                               # of the whole stage
    needs: tuple = ()                            # names of stages that must have finished
    memory_gb: float = 0.0
    disk_gb: float = 0.0
    petaflop: float = 0.0                        # of a training: floating-point operations, 10^15


def main(argv=None):
    c = parse(Config, PRESETS, argv, __doc__.splitlines()[0])
    stages = estimated(c)
    report = table(c, stages)
    print(report, flush=True)
    if c.out:
        write_text(writable_folder(c.out, c.data) / "estimate.md", report)
    require_fitting(c, stages)


def estimated(c):
    """Every stage with what it will take."""
    device, data = pick_device(c.device), _Data(c)
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        folder = Path(folder)
        watched = {"diffusion": _training_of(c, folder / "diffusion", "train_diffusion.py")}
        for network in data.networks:
            watched[network] = _training_of(c, folder / network, "train_unet.py", "--network", network)
        data.require_dealable(c, watched)
        trainings = [_diffusion_stage(watched["diffusion"])]
        trainings += [_segmenter_stage(name, watched[split_name(name)[0]], data) for name in c.segmenters.split(",")]
        run = _Untrained(c, folder, watched, data, device)
        return [*trainings, *run.stages()]


class _Data:
    """What of the dataset the stages go through."""

    def __init__(self, c):
        source, grid = Domain.parse(c.source), Grid(c.spacing_mm, c.size)
        records = studies_of(c)
        role = lambda domain, split, labelled_only: in_role(records, domain, split, labelled_only)
        targets = Domain.parse(c.target).each()
        self.domains = [source, *targets]
        training_of = lambda domain: fully_labelled(prepare(role(domain, "Training", True), grid, c.work))[0]
        self.own, self.training_of = training_of(source), training_of
        self.structures = labelled(self.own)
        self.frames = prepare(in_role(studies_of(c, all_frames=True), source, "Training"), grid, c.work)
        self.n_test = sum(len(role(domain, "Testing", True)) for domain in self.domains)
        self.networks = list(dict.fromkeys(split_name(name)[0] for name in c.segmenters.split(",")))

    def require_dealable(self, c, watched):
        """Raise UsageError if an upper bound, planned from a target's few studies, has no sample for one of the ranks.

        What is trained on the source has been watched on as many, and would have said so.
        """
        bounds = {domain.file_name: domain for domain in self.domains[1:]}
        for network, trained_on in map(split_name, c.segmenters.split(",")):
            of, plan = watched[network].settings, watched[network].plan
            if plan and trained_on in bounds and c.ranks > 1:
                own = self.training_of(bounds[trained_on])
                batch = plan_for(len(plan["patch"]), own, 1 + len(labelled(own)), of["features"], of["memory_gb"]).batch
                ranks.require_dealable(batch, c.ranks, f"{network}-{trained_on}: ")


def _training_of(c, folder, script, *flags):
    """A training as make starts it, watched: its settings and plan, how long a step took, what it needed."""
    launcher = ["-m", "cmr.ranks", c.ranks] if c.ranks > 1 else []
    places = ["--data", c.data, "--source", c.source, "--work", c.work, "--device", c.device, "--seed", c.seed]
    return watch([*launcher, SCRIPTS / script, "--preset", c.experiment, *places, *flags], folder, c.jobs, c.watch_s)


def _diffusion_stage(watched):
    c = watched.settings
    with torch.device("meta"):
        net = build_denoiser(c)
        one = torch.zeros(1, 1, c["size"], c["size"]), torch.zeros(1, dtype=torch.long)
    sheets = max(1, c["steps"] // c["sample_every"]) * c["sheet_steps"] * c["sheet"] / c["batch"] / 3      # in steps
    seconds = watched.start_s + watched.step_s * (c["steps"] + sheets)
    return _training("diffusion", c["steps"], seconds, watched, net, c["batch"] * _operations(net, one))


def _segmenter_stage(name, watched, data):
    network, trained_on = split_name(name)
    c, plan = watched.settings, watched.plan
    with torch.device("meta"):
        net = NETWORKS[network].build(c, 1 + len(data.structures), plan)
        one = torch.zeros(1, 1, *(plan["patch"] if plan else (c["size"], c["size"])))
    # A validation batch of an nnU-Net goes forward only: a third of a step.
    validation = c["validation_batches"] / c["epoch_steps"] / 3 if plan else 0
    seconds = watched.start_s + watched.step_s * c["steps"] * (1 + validation)
    needs = {"synthetic": ("dg",), "both": ("dg",), "shuffled": ("dg",), "shifted": ("shifted",)}.get(trained_on, ())
    batch = plan["batch"] if plan else c["batch"]
    return _training(name, c["steps"], seconds, watched, net, batch * _operations(net, (one,)), needs)


def _training(name, steps, seconds, watched, net, per_step, needs=()):
    disk_gb = 4e-9 * sum(p.numel() for p in net.parameters())
    return Stage(name, steps, "steps", seconds, needs, watched.memory_gb, disk_gb, 1e-15 * steps * per_step)


def _operations(net, one):
    """Of a training step on one sample: forward, and twice as many backward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*one)
    return 3 * counter.get_total_flops()


class _Untrained:
    """An experiment of the right size whose networks have learnt nothing, and what its stages take."""

    def __init__(self, c, folder, watched, data, device):
        self.c, self.folder, self.data, self.device = c, folder, data, device
        self.segmenters = {}
        of_sd_dm = watched["diffusion"].settings
        quantiles, mean, std = intensity_statistics([w.image for w in data.frames])
        self._write("diffusion", build_denoiser(of_sd_dm), of_sd_dm, data.frames,
                    source_quantiles=torch.from_numpy(quantiles), source_mean=float(mean), source_std=float(std))
        for network in data.networks:
            settings, plan = watched[network].settings, watched[network].plan
            net = NETWORKS[network].build(settings, 1 + len(data.structures), plan)
            path = self._write(f"segmenter-{network}-real", net, settings, data.own, plan=plan,
                               structures=list(data.structures), made_by=[], slices_mm=list(slices_mm(data.own)))
            self.segmenters[network] = Segmenter.load(path, device)
        self.auditor = folder / f"segmenter-{data.networks[0]}-real" / "final.pt"
        self.places = dict(data=c.data, source=c.source, work=c.work, seed=c.seed, device=c.device)

    def _write(self, name, net, settings, trained_on, **extra):
        path = self.folder / name / "final.pt"
        checkpoint.save(path, step=0, net=net.state_dict(), config=without_places(settings),
                        data_hash=fingerprint(trained_on), subjects=[], **extra)
        return path

    def stages(self):
        c, data = self.c, self.data
        names = c.segmenters.split(",")
        real = tuple(f"{network}-real" for network in data.networks)
        image_s, image_gb, per_reference = self._image()
        memory = peak_memory_gb(self.device)
        made = lambda name, n, needs: Stage(name, n, "images", n * image_s / c.ranks, needs, memory, n * image_gb)
        stages = [made("dg", len(data.own) * per_reference, ("diffusion", real[0]))]
        if any(split_name(name)[1] == "shifted" for name in names):
            stages.append(made("shifted", len(data.own) * per_reference, ("diffusion", real[0])))
        strengths = synthesize.PRESETS[c.experiment]["da"]["strength"].split(";")
        stages.append(made("da", data.n_test * len(strengths), ("diffusion", real[0])))
        volume_s = self._evaluation()
        everything = (*names, *(stage.name for stage in stages))
        stages.append(Stage("results", data.n_test, "volumes", data.n_test * volume_s / self._at_a_time(1), everything,
                            peak_memory_gb(self.device)))
        return stages

    def _at_a_time(self, jobs):
        """Volumes: one for each core that no other stage has, or for each GPU."""
        return self.c.ranks if self.device.type == "cuda" or self.c.ranks > 1 else max(1, cores() // jobs)

    def _image(self):
        """(seconds, GB on disk, images of each reference) of the DG set."""
        own = synthesize.PRESETS[self.c.experiment]["dg"]
        settings = synthesize.Config(**{**own, **self.places}, diffusion=str(self.folder / "diffusion" / "final.pt"),
                                     segmenter=str(self.auditor), out=str(self.folder / "dg"))
        synthesis = synthesize.Synthesis(settings)
        seconds = _timed(synthesis.volume, len(synthesis.jobs))
        written = sum(path.stat().st_size for path in (self.folder / "dg").rglob("*.nii.gz"))
        images = len(list((self.folder / "dg").rglob("imagesTr/*.nii.gz"))) or 1
        return seconds, 1e-9 * written / images, len(synthesis.jobs) // len(self.data.own)

    def _evaluation(self):
        """Seconds for each test volume: every network on every image once, every row measured."""
        measured = rows_to_measure([split_name(name) for name in self.c.segmenters.split(",")], self.data.domains,
                                   ALL_INPUTS_OF[self.c.experiment].split(","))
        seen = {(network, arm.trained_on, member) for network, arm in measured for member in arm.test_input.split("+")}
        seconds, working = 0.0, self.data.own[len(self.data.own) // 2]
        image, spacing_mm = np.asarray(working.image), working.spacing_mm
        for network, segmenter in self.segmenters.items():
            segment = lambda i: segmenter.logits(image, spacing_mm)
            seconds += _timed(segment, 2) * sum(of == network for of, _, _ in seen)
        logits, truth = segmenter.logits(image, spacing_mm), np.asarray(working.label)
        back = lambda n: _timed(lambda i: labels_on_original([logits] * n, working.geometry), 2)
        moved = np.roll(truth, 1, axis=1)                         # a segmentation that is a pixel off
        score = lambda i: [measure(moved == VALUES[name], truth == VALUES[name], spacing_mm)
                           for name in self.data.structures]
        alone, together, scored = back(1), back(2), _timed(score, 2)
        for _, arm in measured:
            seconds += scored + (together if "+" in arm.test_input else alone)
        return seconds


def _timed(function, n, long_s=10.0):
    """Seconds of function(i): of the second, which nothing has to warm up, or of the first if that was long."""
    for i in range(min(2, n)):
        begin = time.perf_counter()
        function(i)
        seconds = time.perf_counter() - begin
        if seconds > long_s:
            break
    return seconds


def wall_seconds(stages, jobs):
    """Until all have finished, when so many run at a time and each starts as soon as what it needs is there.

    Of those that may start, the longest one does.
    """
    waiting, running, finished, now = list(stages), [], set(), 0.0
    while waiting or running:
        ready = sorted((s for s in waiting if set(s.needs) <= finished), key=lambda s: -s.seconds)
        for stage in ready[:jobs - len(running)]:
            running.append((now + stage.seconds, stage.name))
            waiting.remove(stage)
        if not running:
            raise ValueError(f"{waiting[0].name} needs {waiting[0].needs}")
        now, name = min(running)
        running.remove((now, name))
        finished.add(name)
    return now


def table(c, stages):
    """The estimate as Markdown."""
    device = pick_device(c.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {cores()} cores"
    lines = [f"Estimate for preset {c.experiment} on this machine ({where}), JOBS={c.jobs}, GPUS={c.ranks}:", "",
             "| stage | steps or items | s each | minutes | peak memory GB | disk GB |", "|---|---|---|---|---|---|"]
    row = "| {} | {} | {} | {:.1f} | {:.1f} | {:.2f} |".format
    for s in stages:
        each = f"{s.seconds / s.count:.3g}"
        lines.append(row(s.name, f"{s.count} {s.unit}", each, s.seconds / 60, s.memory_gb, s.disk_gb))
    total, disk_gb = sum(s.seconds for s in stages), sum(s.disk_gb for s in stages)
    # Other numbers of stages at a time are taken to slow each other down no more than this one.
    others = [f"{_duration(wall_seconds(stages, n))} with JOBS={n}" for n in (1, 2, 4) if n != c.jobs]
    lines += [row("all, one after the other", "", "", total / 60, max(s.memory_gb for s in stages), disk_gb), "",
              f"Total: {_duration(wall_seconds(stages, c.jobs))} with JOBS={c.jobs} (on cores or GPUs enough for it: "
              f"{', '.join(others)}); phantom and check come before."]
    if device.type == "cpu":
        petaflop = sum(s.petaflop for s in stages)
        lines.append(f"On one GPU that sustains {c.tflops:g} TFLOP/s the trainings alone ({petaflop:.3g} x 10^15 "
                     f"operations) would take {_duration(1000 * petaflop / c.tflops)}; nothing was measured there.")
    return "\n".join([*lines, ""])


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def require_fitting(c, stages):
    """Raise ResourceError if a stage needs more memory, or all of them more disk, than there is."""
    device = pick_device(c.device)
    if device.type == "cuda":
        there_gb = torch.cuda.get_device_properties(device).total_memory / 2 ** 30
    else:
        there_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 ** 30
    largest = max(stages, key=lambda s: s.memory_gb)
    if largest.memory_gb * c.jobs > there_gb:
        raise ResourceError(f"{largest.name} takes {largest.memory_gb:.1f} GB, {c.jobs} at a time, and there are "
                            f"{there_gb:.1f}; use fewer JOBS or make --batch, --size, --base, --memory-gb smaller")
    free_gb = shutil.disk_usage(c.out or ".").free / 1e9
    needed_gb = sum(s.disk_gb for s in stages)
    if needed_gb > free_gb:
        raise ResourceError(f"{c.out or '.'}: {needed_gb:.1f} GB will be written and {free_gb:.1f} are free; "
                            "choose another folder with RUNS=")


if __name__ == "__main__":
    run_script(main)
