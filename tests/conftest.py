"""One thread: the arrays of the tests are small, and results must not depend on how many tests run at a time."""
import torch

torch.set_num_threads(1)
