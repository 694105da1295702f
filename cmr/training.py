"""The training loop of both training scripts: a run that survives being killed, and averaged weights."""
import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from cmr import checkpoint, ranks
from cmr.errors import NumericalError
from cmr.files import write_text
from cmr.settings import deciding
from cmr.workers import peak_memory_gb

LOG_COLUMNS = "step,loss,lr,seconds_per_step,waiting_share,peak_memory_gb"


class Run:
    """One training run in a folder: resume, log, checkpoint, stop.  `train_diffusion.py` shows the order of the calls.

    `last.pt` (whole state) exists only while the run is unfinished, `final.pt` (averaged weights, settings) only after.
    A finished run is never overwritten: with equal settings and data it is `finished`, else CheckpointError is raised.
    A run that was killed and resumed equals an unbroken one: all random numbers are drawn from (seed, step), so none is
    stored.  `state` is a dictionary of plain values, such as an nnU-Net's validation scores, saved with the weights.
    All ranks (`cmr.ranks`) hold the same state and the first writes it, so that their number may change on resuming.
    """

    def __init__(self, out, config, data_hash, net, optimizer, ema_decay=None, clip_norm=None):
        self.out, self.config = Path(out), config
        self.made_of = {"config": deciding(config), "data_hash": data_hash}
        self.net, self.optimizer, self.ema_decay, self.clip_norm = net, optimizer, ema_decay, clip_norm
        self.step, self.stop_signal, self.state = 0, None, {}
        self.rows = []                                            # of the log
        self.losses, self.unread = [], []                         # since the last log row; not yet fetched from the GPU
        self.seconds, self.waited, self.saved_at = 0.0, 0.0, time.monotonic()
        self.last, self.final, self.log = self.out / "last.pt", self.out / "final.pt", self.out / "log.csv"
        self.ema = {k: v.clone() for k, v in net.state_dict().items()}
        self.finished = self.final.exists()
        if self.finished:
            self._load(self.final)
            if ranks.is_first():
                self.last.unlink(missing_ok=True)                 # left if the run was killed just after it finished
                self.final.touch()                                # tells make that it is up to date
            print(f"{self.out}: finished already", flush=True)
        elif self.last.exists():
            self._resume()
        else:
            checkpoint.begin_with(self.out / "config.json", config)

    def _load(self, path):
        """Load a checkpoint of this run; raises CheckpointError if its settings or data differ."""
        saved = checkpoint.load(path)
        as_settings = lambda made_of: {**made_of["config"], "data_hash": made_of["data_hash"]}
        checkpoint.require_settings(path, as_settings(saved), as_settings(self.made_of))
        return saved

    def _resume(self):
        saved = self._load(self.last)
        checkpoint.fill(self.net, saved["net"], self.last)
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["ema"].items():
            self.ema[name].copy_(value)
        self.step, self.state, self.rows = saved["step"], saved["state"], saved["rows"]
        self.losses, self.seconds, self.waited = saved["log_window"]
        print(f"{self.out}: going on from step {self.step}", flush=True)

    def steps(self, steps):
        """Yield the number of each step that is to be made, up to steps - 1.

        The state is saved by the clock, so that a kill loses the same few minutes however long a step takes.  SIGINT
        and SIGTERM stop the run cleanly, all ranks after the same step.  Raises NumericalError if a loss is not finite;
        losses are read only before a log row or a checkpoint, because each reading waits for the GPU.
        """
        old = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=steps, initial=self.step, disable=not sys.stderr.isatty(), desc=self.out.name)
        torch.backends.cudnn.benchmark = True                     # pays off, as all steps have the same shapes
        try:
            while self.step < steps:
                begin = time.perf_counter()
                yield self.step
                self.step += 1
                logging = self.step % self.config["log_every"] == 0 or self.step == steps
                if logging:
                    self._read_losses()
                self.seconds += time.perf_counter() - begin
                bar.update()
                if logging:
                    self._log_row(steps, bar)
                stopping = ranks.any_of(self.stop_signal)
                late = time.monotonic() - self.saved_at >= 60 * self.config["save_minutes"]
                if stopping or late or self.step == steps:        # what follows the last step may be interrupted too
                    self._save_last()
                if stopping:
                    raise KeyboardInterrupt
        finally:
            bar.close()
            torch.backends.cudnn.benchmark = False
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number, frame):
        if self.stop_signal:
            os._exit(130)                                         # a second signal: leave at once
        self.stop_signal = number

    @contextlib.contextmanager
    def waiting(self):
        """Context whose time counts as waiting for data; the log has its share of a step."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def update(self, loss):
        """Make one optimiser step on `loss`, a scalar tensor that is the same on all ranks."""
        self.unread.append(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        (loss * ranks.world()).backward()                         # DistributedDataParallel takes the mean over ranks
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.ema_decay:
            update_ema(self.ema, self.net, self.ema_decay, self.step)

    def _read_losses(self):
        """Fetch the losses of the last steps from the device; raises NumericalError if one is not finite."""
        values = torch.stack(self.unread).tolist() if self.unread else []
        for step, value in enumerate(values, self.step - len(values)):
            if not math.isfinite(value):
                state = f"the last good state is {self.last}" if self.last.exists() else "no state was saved before"
                raise NumericalError(f"{self.out}: loss is {value} at step {step}; {state}; try a smaller --lr")
        self.losses, self.unread = self.losses + values, []

    def _log_row(self, steps, bar):
        n = len(self.losses)
        loss, lr = sum(self.losses) / n, self.optimizer.param_groups[0]["lr"]
        seconds, waiting = self.seconds / n, self.waited / self.seconds
        memory_gb = peak_memory_gb(next(self.net.parameters()).device)
        self.rows.append(f"{self.step},{loss:.6g},{lr:.6g},{seconds:.4f},{waiting:.4f},{memory_gb:.3f}")
        if ranks.is_first():                                      # whole: a killed run may have written later rows
            write_text(self.log, "\n".join([LOG_COLUMNS, *self.rows]) + "\n")
        line = (f"step {self.step:6d}/{steps}  loss {loss:.4f}  lr {lr:.2e}  "
                f"{seconds:.3f} s/step, {waiting:.1%} waiting for data")
        bar.set_postfix_str(line) if not bar.disable else print(f"{self.out.name}  {line}", flush=True)
        self.losses, self.seconds, self.waited = [], 0.0, 0.0

    def _save_last(self):
        self._read_losses()                                       # so that only good states are saved
        if ranks.is_first():
            log_window = [self.losses, self.seconds, self.waited]                    # of the next log row
            checkpoint.save(self.last, step=self.step, state=self.state, rows=self.rows, log_window=log_window,
                            net=self.net.state_dict(), ema=self.ema, optimizer=self.optimizer.state_dict(),
                            **self.made_of)
        self.saved_at = time.monotonic()

    def averaged(self):
        """The weights to use: the moving average if there is one, otherwise the raw weights."""
        return self.ema if self.ema_decay else self.net.state_dict()

    def finish(self, **extra):
        """Write `final.pt` with the weights and `extra`, then remove `last.pt`; only the first rank calls this."""
        weights = {k: v.detach().cpu().clone() for k, v in self.averaged().items()}
        broken = [k for k, v in weights.items() if not torch.isfinite(v).all()]
        if broken:
            raise NumericalError(f"{self.out}: weights {broken[0]} are not finite after step {self.step}; "
                                 "final.pt was not written")
        checkpoint.save(self.final, step=self.step, net=weights, **self.made_of, **extra)
        self.last.unlink(missing_ok=True)


def update_ema(ema, net, decay, step):
    """Exponential moving average of the weights, in place, with the warm-up min(decay, (1 + step) / (10 + step)).

    ema : dict of float32 tensors like net.state_dict().  step : number of updates before this one.
    Without the warm-up the initial weights would stay in the average for thousands of steps.
    """
    d = min(decay, (1 + step) / (10 + step))
    weights = net.state_dict()
    floating = [name for name, weight in weights.items() if weight.is_floating_point()]
    averages = [ema[name] for name in floating]
    torch._foreach_mul_(averages, d)                              # two GPU calls in all, not two per tensor
    torch._foreach_add_(averages, [weights[name] for name in floating], alpha=1 - d)
    for name in weights.keys() - set(floating):                   # integers such as batch counters
        ema[name].copy_(weights[name])
