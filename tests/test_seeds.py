"""Random numbers as a function of their key."""
import torch

from cmr.seeds import generator, initialised, rng


def test_random_numbers_are_a_function_of_their_key():
    draw = lambda *key: torch.rand(2, generator=generator(*key)).tolist()
    assert draw(0, "step", 5) == draw(0, "step", 5)
    keys = [(0, 1), (1, 0), (0, "1"), (0, 1, 0), (2 ** 32,), (0, "step"), (0, "step", 0), (0, "step", 0, 0)]
    assert len({tuple(draw(*key)) for key in keys}) == len({rng(*key).random() for key in keys}) == len(keys)
    assert rng(3, "a").random() == rng(3, "a").random() != rng(3, "b").random()
    before = torch.random.get_rng_state()
    initialised(lambda: torch.nn.Linear(3, 3), 7)
    assert torch.equal(before, torch.random.get_rng_state())
