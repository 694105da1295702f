"""The sampler with networks that need no training: exact return of the reference, bands, seeds, the published slips."""
import numpy as np
import pytest
import torch

from cmr.bands import Band, band_mask
from cmr.diffusion import Schedule, at, levels
from cmr.errors import NumericalError
from cmr.guided_filter import guided
from cmr.sampler import translate
from cmr.source_model import SourceModel
from cmr.strength import Strength

SCHEDULE = Schedule.make("cosine")
RNG = np.random.default_rng(0)
REFERENCE = np.clip(RNG.normal(0, 0.4, (3, 16, 16)), -1, 1).astype(np.float32)


class Oracle(torch.nn.Module):
    """v-network that knows the clean image: whatever x_t is, its answer means x_0 = clean."""
    def __init__(self, clean=None, mean=0.0, sd=0.0):
        super().__init__()
        self.clean, self.mean, self.sd, self.times = clean, mean, sd, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t):
        self.times.append(int(t[0]))
        a, s = at(SCHEDULE.abar.sqrt(), t, x_t), at((1 - SCHEDULE.abar).sqrt(), t, x_t)
        if self.clean is None:                                    # best guess when every pixel is N(mean, sd^2)
            x_0 = self.mean + a * self.sd ** 2 / (a ** 2 * self.sd ** 2 + s ** 2) * (x_t - a * self.mean)
        else:
            x_0 = self.clean.expand(len(x_t), -1, -1, -1)
        return (a * x_t - x_0) / s


def model(net):
    return SourceModel(net, SCHEDULE, "v", np.linspace(-1, 1, 257), 0.0, 0.5, {}, (), "hash")


@pytest.mark.parametrize("t0,steps,eta", [(1, 1, 1.0), (200, 20, 1.0), (900, 20, 0.0), (1000, 40, 1.0)])
def test_a_perfect_network_returns_the_reference_exactly(t0, steps, eta):
    """Noised at t0 + 1 and denoised from t0, or noise on the last step, would leave noise behind."""
    flat = REFERENCE[:1].repeat(3, 0)
    net = Oracle(torch.from_numpy(flat[:1])[None])
    out, redrawn = translate(model(net), flat, 2.5, Strength(t0=t0, steps=steps, eta=eta), 0)
    assert np.abs(out - flat).max() < 1e-5 and redrawn == 0 and net.times[0] == t0


@pytest.mark.parametrize("t0", [2, 20, 100, 400])
def test_the_reference_is_noised_to_the_level_it_is_denoised_from(t0):
    """Public image-to-image code once noised at t + 1 and denoised from t; at small strength the rest is seen."""
    first = []
    class Spy(Oracle):
        def forward(self, x_t, t):
            first.append(x_t.clone())
            return super().forward(x_t, t)
    reference = np.clip(RNG.normal(0, 0.4, (1, 64, 64)), -1, 1).astype(np.float32)
    translate(model(Spy(torch.from_numpy(reference)[None])), reference, 2.5, Strength(t0=t0, steps=2), 0)
    noise = first[0][0, 0].numpy() - float(SCHEDULE.abar[t0]) ** 0.5 * reference[0]
    assert noise.var() == pytest.approx(1 - float(SCHEDULE.abar[t0]), rel=0.06)


@pytest.mark.parametrize("mode", ["x0", "state"])
@pytest.mark.parametrize("longest", [0.0, 30.0])
def test_the_kept_band_is_the_references_and_the_rest_is_the_models(mode, longest):
    other = torch.from_numpy(np.clip(RNG.normal(0.1, 0.2, (1, 1, 16, 16)), -0.5, 0.5).astype(np.float32))
    reference = REFERENCE * 0.4                                   # small, so that no clamping interferes
    strength = Strength(t0=800, steps=30, shortest_mm=10.0, longest_mm=longest, mode=mode, t_stop=0)
    out, _ = translate(model(Oracle(other)), reference, 2.5, strength, 0)
    phi = Band(band_mask(16, 16, 2.5, 10.0, longest or None))
    kept = lambda x: phi(torch.as_tensor(np.asarray(x), dtype=torch.float64)).numpy()
    assert np.abs(kept(out) - kept(reference)).max() < 2e-5
    assert np.abs((out - kept(out)) - (other[0].numpy() - kept(other[0]))).max() < 2e-5


def test_classic_ilvr_noises_the_reference_to_the_destination_level():
    """With everything copied from the reference, the state after t -> s must have the noise of s, not of t."""
    seen = []
    class Spy(Oracle):
        def forward(self, x_t, t):
            seen.append((int(t[0]), x_t[0].var().item()))
            return super().forward(x_t, t)
    zero = np.zeros((1, 64, 64), np.float32)
    zero[0, 0, 0] = 0.5                                           # not constant
    times = levels(800, 8)
    try:
        strength = Strength(t0=800, steps=8, shortest_mm=5.0, mode="state", t_stop=0)
        translate(model(Spy(mean=0.0, sd=0.3)), zero, 2.5, strength, 1)
    except NumericalError:
        pass  # the image is nearly flat: only the states matter here
    for (t, variance), expected in zip(seen[:8], times[:8]):
        # noised at t instead it would be 2 to 20 times too much
        assert t == expected and variance == pytest.approx(1 - float(SCHEDULE.abar[t]), rel=0.15)


def test_the_result_is_a_function_of_the_seed_and_not_of_the_batch():
    net, s = Oracle(mean=0.2, sd=0.5), Strength(t0=500, steps=10)
    volume = np.concatenate([REFERENCE] * 8)                      # 24 slices: two network calls per step
    full, _ = translate(model(net), volume, 2.5, s, 7, "subject", 0)
    alone, _ = translate(model(net), volume[20:21], 2.5, s, 7, "subject", 0)
    assert np.abs(full[20] - alone[0]).max() < 1e-5
    again, _ = translate(model(net), volume, 2.5, s, 7, "subject", 0)
    other, _ = translate(model(net), volume, 2.5, s, 7, "subject", 1)
    assert (again == full).all() and np.abs(other - full).max() > 0.05


def test_equal_slices_stay_equal():
    """One noise per volume: contrast is coherent along z."""
    out, _ = translate(model(Oracle(mean=0.1, sd=0.4)), REFERENCE[:1].repeat(4, 0), 2.5, Strength(t0=600, steps=8), 3)
    assert np.abs(out - out[:1]).max() < 1e-6


def test_the_global_generators_are_left_alone():
    before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    translate(model(Oracle(mean=0, sd=0.5)), REFERENCE, 2.5, Strength(t0=100, steps=4, shortest_mm=10, mode="state"), 0)
    assert torch.equal(before, torch.random.get_rng_state()) and (before_numpy == np.random.get_state()[1]).all()


def test_flat_output_is_refused_after_three_draws():
    flat = Oracle(torch.zeros(1, 1, 16, 16))
    with pytest.raises(NumericalError, match="three draws"):
        translate(model(flat), REFERENCE, 2.5, Strength(t0=300, steps=4), 0)
    assert len(flat.times) == 12


def test_a_guided_result_has_the_brightness_of_the_model_and_the_edges_of_the_reference():
    y, x = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48), indexing="ij")
    disc = lambda cx: np.where(np.hypot(x - cx, y) < 0.4, 0.5, -0.5).astype(np.float32)[None]
    reference, shading = disc(0.0), (0.25 * x).astype(np.float32)[None]
    strength = Strength(t0=500, steps=2, guide_mm=10)
    shaded = translate(model(Oracle(torch.from_numpy(0.6 * reference + shading))), reference, 2.5, strength, 0)[0]
    assert np.abs(shaded - (0.6 * reference + shading)).mean() < 0.02  # contrast and shading are the model's
    elsewhere = translate(model(Oracle(torch.from_numpy(disc(0.15)))), reference, 2.5, strength, 0)[0]
    edge = lambda a: np.abs(np.diff(a[0], axis=1))[24].argsort()[-2:].tolist()
    # a heart redrawn elsewhere stays where it is
    assert sorted(edge(elsewhere)) == sorted(edge(reference)) != sorted(edge(disc(0.15)))
    assert np.array_equal(guided(reference, reference, 4.0) > 0, reference > 0)
