"""Checkpoints that are damaged or foreign."""
import json
import os

import numpy as np
import pytest
import torch

from cmr import checkpoint
from cmr.errors import CheckpointError
from cmr.files import sha256


def test_damaged_checkpoints_are_found(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save(path, net={"w": torch.arange(4000.0)}, config={})
    good = path.read_bytes()
    assert torch.equal(checkpoint.load(path)["net"]["w"], torch.arange(4000.0))
    draw = np.random.default_rng(0)
    for _ in range(20):                                           # anywhere in the tensor's bytes
        broken = bytearray(good)
        broken[int(draw.integers(len(good) // 4, len(good) * 3 // 4))] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    for content, words in ((good[:len(good) // 2], "damaged"), (b"", "damaged"), (b"text", "damaged")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(path)
    torch.save({"format": 1, "f": os.system}, path)               # a pickle that would run code
    with pytest.raises(CheckpointError, match="not a plain checkpoint"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")


def test_equal_content_is_equal_bytes_wherever_it_is_written(tmp_path):
    """The hash of the file is what provenance hangs on; torch.save to a path would write the path's name into it."""
    content = {"net": {"w": torch.arange(6.0).reshape(2, 3)}, "config": {"lr": 0.1}, "subjects": ["a", "b"]}
    for name in ("one.pt", "other.pt"):
        checkpoint.save(tmp_path / name, **content)
    assert sha256(tmp_path / "one.pt") == sha256(tmp_path / "other.pt")
    epochs = [{"mean": 0.5}, {"mean": 0.7}]                       # two keys that are one object, and two that are not
    for name, of_run in (("one.pt", epochs), ("other.pt", [json.loads(json.dumps(epoch)) for epoch in epochs])):
        checkpoint.save(tmp_path / name, **content, epochs=of_run)
    assert sha256(tmp_path / "one.pt") == sha256(tmp_path / "other.pt")
    checkpoint.save(tmp_path / "third.pt", **{**content, "net": {"w": content["net"]["w"] + 1}})
    assert sha256(tmp_path / "third.pt") != sha256(tmp_path / "one.pt")


def test_weights_of_another_network_are_refused(tmp_path):
    net = torch.nn.Linear(3, 2)
    for weights in (torch.nn.Linear(4, 2).state_dict(), {"other": torch.zeros(1)}, {}):
        with pytest.raises(CheckpointError, match="a.pt: weights of another network"):
            checkpoint.fill(net, weights, "a.pt")
    checkpoint.fill(net, net.state_dict(), "a.pt")
