"""The bench still runs; what it measures is for the eye."""
import re
import time

import pytest
import torch

import bench
from cmr.segmenter import NETWORKS


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_measured(network, capsys, monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda call, repeats=5: (call(), 0.1)[1])
    bench.segmenter_speed(network, torch.device("cpu"))
    shown = re.findall(rf"^{network}, ([a-z]+) .*: (\d+\.\d+)", capsys.readouterr().out, re.MULTILINE)
    assert shown == [("batch", "0.200"), ("segmentation", "0.100")]


def test_the_first_call_only_warms_up():
    called = []
    assert bench.seconds(lambda: time.sleep(0.5 if not called else 0.0) or called.append(1), repeats=2) < 0.4
    assert len(called) == 3
