"""Random numbers as a function of a key, such as (seed, "step", 5): nothing random has to be saved, nothing is global.

Public: `rng`, `generator`, `initialised`.
"""
import hashlib
import json

import numpy as np
import torch


def rng(*key):
    """numpy Generator that is a function of `key` (integers and strings) alone."""
    return np.random.default_rng(_seed_sequence(key))


def generator(*key):
    """torch Generator on the CPU that is a function of `key` alone; numbers are drawn there and moved."""
    seed = _seed_sequence(key).generate_state(1, np.uint64)[0] >> 1
    return torch.Generator().manual_seed(int(seed))


def initialised(build, seed):
    """build() with its initial weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _seed_sequence(key):
    """Of a SHA-256 of the whole key: given its numbers, numpy would ignore zeros at the end, as in ("step", 0)."""
    text = json.dumps([part if isinstance(part, str) else int(part) for part in key])
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
