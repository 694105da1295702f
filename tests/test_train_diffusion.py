"""What is train_diffusion.py's own: how its learning rate goes."""
import numpy as np

from train_diffusion import Config, learning_rate


def test_the_rate_warms_up_and_falls_to_nothing_or_stays():
    c = Config(lr=1e-3, steps=2000, warmup=100)
    rates = np.array([learning_rate(c, step) for step in range(c.steps)])
    assert abs(rates[0] - 1e-5) < 1e-12 and 99 <= rates.argmax() <= 101 and 0.99e-3 < rates.max() < 1e-3
    assert abs(rates[1000] - 0.5e-3) < 1e-12 and 0 < rates[-1] < 1e-8
    constant = Config(lr=1e-3, steps=2000, warmup=100, decay="constant")
    assert learning_rate(constant, 49) == 0.5e-3 and learning_rate(constant, 1999) == 1e-3
