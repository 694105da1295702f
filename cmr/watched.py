"""A training that is started as it will be, watched for some steps and stopped: what a step takes.

What is concluded from it is in `cmr.estimate`.

Public: `Watched`, `watch`.
"""
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmr.errors import ResourceError
from cmr.files import read_csv, read_json

STEPS = 12                                       # that are watched; the first of them warms up
PATIENCE_S = 600                                 # for the first step, and as long again for the second


@dataclass(frozen=True)
class Watched:
    """What is known of a training after some steps."""
    settings: dict
    plan: dict                                   # of an nnU-Net, or None
    start_s: float                               # until the first step
    step_s: float
    memory_gb: float


def watch(command, folder, copies, watch_s):
    """Start a training script in so many copies at a time, until the first has made enough steps.

    command : the script and its flags, all but --out.  folder : for what they write.  watch_s : how long after the
    second step, at most.  Raises ResourceError with the script's own words if it does not get to its first step.
    """
    begin, processes = time.monotonic(), []
    for copy in range(copies):
        out = folder / str(copy)
        out.mkdir(parents=True)
        line = [sys.executable, *command, "--log-every", "1", "--save-minutes", "100000", "--out", out]
        with open(out / "stdout", "w") as stdout, open(out / "stderr", "w") as stderr:
            processes.append(subprocess.Popen([*map(str, line)], stdout=stdout, stderr=stderr, start_new_session=True,
                                              cwd=Path(__file__).parent.parent))
    try:
        rows, start_s = first_rows(folder / "0", processes[0], begin, watch_s)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):         # has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk keeps even the killed
                process.wait(PATIENCE_S)
    plan = folder / "0" / "plan.json"
    steps = [float(row["seconds_per_step"]) for row in rows[1:] or rows]
    return Watched(read_json(folder / "0" / "config.json"), read_json(plan) if plan.exists() else None, start_s,
                   float(np.mean(steps)), max(float(row["peak_memory_gb"]) for row in rows))


def first_rows(folder, process, begin, watch_s):
    """(rows of the log, seconds until the first step) of a training that was started at `begin`."""
    log, start_s, second = folder / "log.csv", None, None
    while True:
        ended = process.poll() is not None
        rows = read_csv(log, ()) if log.exists() else []
        now = time.monotonic()
        if rows and start_s is None:
            start_s = now - begin - float(rows[0]["seconds_per_step"])
        if len(rows) > 1 and second is None:
            second = now
        enough = len(rows) > STEPS or second and now - second > watch_s or now - begin > 2 * PATIENCE_S
        if rows and (enough or ended):
            return rows, max(0.0, start_s)
        if not rows and (ended or now - begin > PATIENCE_S):
            said = (folder / "stderr").read_text().strip().splitlines() or [f"no step in {PATIENCE_S} s"]
            raise ResourceError(f"{folder.parent.name}: does not run here: {said[-1].removeprefix('error: ')}")
        time.sleep(0.1)
