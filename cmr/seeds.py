"""Random numbers as a function of a key such as (seed, "step", 5): no random state is global or has to be saved."""
import hashlib
import json

import numpy as np
import torch


def rng(*key):
    """A numpy Generator that depends on `key` (integers and strings) alone."""
    return np.random.default_rng(_seed_sequence(key))


def generator(*key):
    """A torch Generator on the CPU that depends on `key` alone; numbers are drawn there and moved to the device."""
    seed = _seed_sequence(key).generate_state(1, np.uint64)[0] >> 1
    return torch.Generator().manual_seed(int(seed))


def initialised(build, seed):
    """Call build() with torch's global generator seeded by `seed`, and restore the generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _seed_sequence(key):
    """Hash the whole key with SHA-256, because numpy alone ignores zeros at its end, as in ("step", 0)."""
    text = json.dumps([part if isinstance(part, str) else int(part) for part in key])
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
