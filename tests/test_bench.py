"""The bench still runs: what it measures is for the eye."""
import pytest

from cmr.bench import beside, segmenter_speed
from cmr.segmenter import NETWORKS


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_measured(network):
    step_s, share, peak_mb, volume_s, peer = segmenter_speed(network, threads=1, steps=2)
    assert step_s > 0 and 0 < share < 1 and peak_mb >= 0 and volume_s > 0 and (peer is None or len(peer) == 3)


def test_what_is_compared_is_called_in_turn():
    called = []
    ours_s, theirs_s = beside(lambda: called.append("ours"), lambda: called.append("theirs"), repeats=2)
    assert called == ["ours", "theirs"] * 3 and 0 <= ours_s < 1 and 0 <= theirs_s < 1
