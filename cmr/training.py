"""What both training scripts share: seeds, device, averaged weights, and a run that survives being killed.

Public: `rng`, `generator`, `initialised`, `pick_device`, `update_ema`, `Run`.
"""
import contextlib
import hashlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cmr import checkpoint
from cmr.config import NumericalError, UsageError


def _entropy(key):
    """Integers for numpy's SeedSequence; text goes through SHA-256, since Python's own hash changes between runs."""
    return [int.from_bytes(hashlib.sha256(str(k).encode()).digest()[:4], "big") if isinstance(k, str) else int(k) for k in key]


def rng(*key):
    """numpy Generator that is a function of `key` (integers and strings) alone."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(key)))


def generator(*key):
    """torch Generator on the CPU that is a function of `key` alone; numbers are drawn there and moved."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(_entropy(key)).generate_state(1, np.uint64)[0] >> 1))


def initialised(build, seed):
    """build() with its initial weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def pick_device(name):
    """torch.device for `auto`, `cpu`, `cuda` or `cuda:N`; raises UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from error


def update_ema(ema, net, decay, step):
    """Exponential moving average of the weights, in place, with the warm-up min(decay, (1 + step) / (10 + step)).

    ema : dict of float32 tensors like net.state_dict().  step : number of updates made before this one.
    Without the warm-up the initial weights stay in the average for thousands of steps.
    """
    d = min(decay, (1 + step) / (10 + step))
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            ema[name].mul_(d).add_(value.float(), alpha=1 - d)
        else:
            ema[name].copy_(value)


class Run:
    """One training run in a folder: resume, log, checkpoint, stop.

        run = Run(out, config, data_hash, net, optimizer)
        for step in run.steps(config.steps):
            with run.waiting():
                batch = ...                         # a function of (seed, step)
            loss = ...
            run.update(loss)                        # backward, clip, optimiser step, averaged weights, log
        run.finish(**extra)

    `state` is a dictionary of plain values that is kept over a kill: what else was learnt on the way.

    `last.pt` (everything) lives only while the run is unfinished; `final.pt` (averaged weights, settings) only after.
    Killed and resumed equals unbroken: nothing random is stored, because everything random is drawn from (seed, step).
    """

    def __init__(self, out, config, data_hash, net, optimizer, ema_decay=None, clip_norm=None):
        self.out, self.config, self.data_hash = Path(out), config, data_hash
        self.net, self.optimizer, self.ema_decay, self.clip_norm = net, optimizer, ema_decay, clip_norm
        self.step, self.stop_signal, self.losses, self.state = 0, None, [], {}
        self.seconds = self.waited = 0.0
        self.last, self.final, self.log = self.out / "last.pt", self.out / "final.pt", self.out / "log.csv"
        self.ema = {k: v.clone() for k, v in net.state_dict().items()}
        if self.last.exists():
            self._resume()
        else:
            checkpoint.write_json(self.out / "config.json", config)
            checkpoint.write_text(self.log, "step,loss,lr,seconds_per_step,waiting_share\n")

    def _resume(self):
        state = checkpoint.load(self.last)
        checkpoint.require_settings(self.last, {**state["config"], "data_hash": state["data_hash"]},
                                    {**self.config, "data_hash": self.data_hash})
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["ema"].items():
            self.ema[name].copy_(value)
        self.step, self.state = state["step"], state["state"]
        rows = self.log.read_text().splitlines()
        whole = [r for r in rows[1:] if r.count(",") == 4]                     # a killed process may leave half a row
        kept = [r for r in whole if int(r.split(",")[0]) <= self.step]         # rows after the last checkpoint come again
        checkpoint.write_text(self.log, "\n".join([rows[0], *kept]) + "\n")
        print(f"{self.out}: going on from step {self.step}", flush=True)

    def steps(self, steps):
        """Yield the number of the step to make, 0 .. steps-1; saves, and stops cleanly on SIGINT or SIGTERM."""
        old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=steps, initial=self.step, disable=not sys.stderr.isatty(), desc=self.out.name)
        try:
            while self.step < steps:
                begin = time.perf_counter()
                yield self.step
                self.step += 1
                self.seconds += time.perf_counter() - begin
                bar.update()
                if self.step % self.config["log_every"] == 0 or self.step == steps:
                    self._log_row(steps, bar)
                if self.stop_signal or self.step % self.config["save_every"] == 0:
                    self._save_last()
                if self.stop_signal:
                    raise KeyboardInterrupt
        finally:
            bar.close()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number, frame):
        if self.stop_signal:
            os._exit(130)                                                      # asked twice: leave at once
        self.stop_signal = number

    @contextlib.contextmanager
    def waiting(self):
        """Counts the time inside as waiting for data; the log shows its share of a step."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def update(self, loss):
        """One optimiser step on `loss`, a scalar tensor.  Raises NumericalError if it is not finite."""
        value = loss.item()
        if not math.isfinite(value):
            raise NumericalError(f"{self.out}: loss is {value} at step {self.step}; the last good state is {self.last}; try a smaller --lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.ema_decay:
            update_ema(self.ema, self.net, self.ema_decay, self.step)
        self.losses.append(value)

    def _log_row(self, steps, bar):
        n = len(self.losses)
        row = dict(loss=sum(self.losses) / n, lr=self.optimizer.param_groups[0]["lr"], seconds=self.seconds / n, waiting=self.waited / self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{self.step},{row['loss']:.6g},{row['lr']:.6g},{row['seconds']:.4f},{row['waiting']:.4f}\n")
        line = f"step {self.step:6d}/{steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['seconds']:.3f} s/step, {row['waiting']:.1%} waiting for data"
        bar.set_postfix_str(line) if not bar.disable else print(f"{self.out.name}  {line}", flush=True)
        self.losses, self.seconds, self.waited = [], 0.0, 0.0

    def _save_last(self):
        checkpoint.save(self.last, step=self.step, state=self.state, net=self.net.state_dict(), ema=self.ema,
                        optimizer=self.optimizer.state_dict(), config=self.config, data_hash=self.data_hash)

    def averaged(self):
        """The weights to use: the moving average if there is one, the raw ones otherwise."""
        return self.ema if self.ema_decay else self.net.state_dict()

    def finish(self, **extra):
        """Write `final.pt` and remove `last.pt`.  `extra` are plain values and tensors kept beside the weights."""
        weights = {k: v.detach().cpu().clone() for k, v in self.averaged().items()}
        broken = [k for k, v in weights.items() if not torch.isfinite(v).all()]
        if broken:
            raise NumericalError(f"{self.out}: weights {broken[0]} are not finite after step {self.step}; final.pt was not written")
        checkpoint.save(self.final, step=self.step, net=weights, config=self.config, data_hash=self.data_hash, **extra)
        self.last.unlink(missing_ok=True)
