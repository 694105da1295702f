"""Shared by all tests.  One thread: the arrays of the tests are small, and results must not depend on how many tests run at a time."""
import pytest
import torch

from cmr.phantom import Config, write_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """A phantom dataset of 18 small studies, one of each target for training, written once."""
    root = tmp_path_factory.mktemp("phantom")
    write_dataset(Config(out=str(root), counts="tiny", frames=2, target_training=1))
    return root
