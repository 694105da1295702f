"""Strengths as text; the sampler with untrained networks: exact return of the reference, guidance, slips."""
from dataclasses import replace

import numpy as np
import pytest
import torch

import train_diffusion
from cmr.diffusion import Schedule, at, levels, noised
from cmr.errors import NumericalError, UsageError
from cmr.guidance import guided_filter, low_pass
from cmr.sampler import GUIDED, NONE, SourceModel, Strength, guided_in, parse_members, project, translate
from cmr.seeds import generator


def test_strength_text():
    s = Strength.parse("t0=700,match=mean_std,low_pass=2,pull=0.1,steps=12,times=uniform")
    assert s == Strength(t0=700, match="mean_std", low_pass=2, pull=0.1, steps=12, times="uniform")
    for strength in (s, Strength(pull=0.04712345678), Strength(guide_mm=1 / 3)):
        assert Strength.parse(str(strength)) == strength
    assert str(Strength(t0=500, steps=2, guide_mm=30.0)) == "t0=500,steps=2,guide_mm=30"
    for text, words in (("t=3", "unknown 't'"), ("t0=x", "must be int"), ("match=linear", "none or mean_std"),
                        ("t0=5,steps=9", "steps=9; use 1 to 5"), ("low_pass=-1", "low_pass=-1; use 0 to 64"),
                        ("times=cubic", "quadratic or uniform"), ("pull=nan", "use 0 to 1"),
                        ("guide_mm=-1", "guide_mm=-1.0; use 0 to 1000")):
        with pytest.raises(UsageError, match=words):
            Strength.parse(text)


def test_a_test_input_has_members():
    assert parse_members("none") == (NONE,)
    members = parse_members("none+t0=500,guide_mm=30,steps=2+t0=300,steps=2")
    assert members == (NONE, Strength(t0=500, guide_mm=30.0, steps=2), Strength(t0=300, steps=2))
    assert parse_members("+".join(map(str, members))) == members
    for text in ("none+", "+none", "raw+none"):
        with pytest.raises(UsageError, match="strength"):
            parse_members(text)


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
    return SourceModel(net, SCHEDULE, np.linspace(-1, 1, 257), 0.0, 0.5, {}, (), "hash")


@pytest.mark.parametrize("low_pass", [0, 2])
@pytest.mark.parametrize("t0,steps", [(1, 1), (200, 20), (1000, 40)])
def test_a_perfect_network_returns_the_reference_exactly(t0, steps, low_pass):
    """Noised at t0 + 1 and denoised from t0, or noise on the last step, would leave noise behind."""
    flat = REFERENCE[:1].repeat(3, 0)
    net = Oracle(torch.from_numpy(flat[:1])[None])
    out, redrawn = translate(model(net), flat, 2.5, Strength(t0=t0, steps=steps, low_pass=low_pass), 0)
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


@pytest.mark.parametrize("low_pass", [0, 4])
def test_the_first_step_is_taken_from_the_level_that_the_reference_was_noised_to(low_pass):
    """The original noises to index N of its times and steps from N - 1: the network is told one level too few."""
    seen = []
    class Spy(Oracle):
        def forward(self, x_t, t):
            seen.append((int(t[0]), x_t.detach().clone()))
            return super().forward(x_t, t)
    strength = Strength(t0=490, steps=25, low_pass=low_pass)
    project(model(Spy(torch.from_numpy(REFERENCE[:1])[None])), REFERENCE, strength, (5,))
    noise = torch.randn(1, 1, 16, 16, generator=generator(5))
    assert [t for t, _ in seen] == levels(490, 25)[:-1]
    assert torch.allclose(seen[0][1], noised(SCHEDULE, torch.from_numpy(REFERENCE)[:, None], 490, noise))


class Scaled(torch.nn.Module):
    """v-network whose clean image is c x_t, so that every number of the sampler is known."""
    def __init__(self, c):
        super().__init__()
        self.c, self.weight = c, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t):
        a, s = at(SCHEDULE.abar.sqrt(), t, x_t), at((1 - SCHEDULE.abar).sqrt(), t, x_t)
        return (a * x_t - self.c * x_t) / s


def test_every_step_is_pulled_towards_the_reference_after_it_is_taken():
    """Two steps written out: the gradient at x_t, outside of the noise, of each slice by itself, clamp in the graph."""
    times, pull, g = [300, 76, 0], 0.05, generator(9)
    y_0 = torch.from_numpy(REFERENCE)[:, None].double()
    z = [torch.randn(1, 1, 16, 16, generator=g).double() for _ in times]
    x = noised(SCHEDULE, y_0, 300, z[0])
    phi = low_pass(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16), 2).reshape(256, 256)
    for t, s, noise in ((300, 76, z[1]), (76, 0, z[2])):
        x_0 = (2 * x).clamp(-1, 1)
        inside = ((2 * x).abs() <= 1).double()                    # the clamp passes no gradient beyond [-1, 1]
        assert 0.1 < inside.mean() < 0.9
        abar_t, abar_s = float(SCHEDULE.abar[t]), float(SCHEDULE.abar[s])
        mean = abar_s ** 0.5 * (1 - abar_t / abar_s) * x_0 + (abar_t / abar_s) ** 0.5 * (1 - abar_s) * x
        after = mean / (1 - abar_t) + ((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)) ** 0.5 * noise
        for i in range(len(x)):
            r = (y_0[i] - x_0[i]).flatten() @ phi
            gradient = -2 * inside[i] * (phi @ r / r.norm()).view(1, 16, 16)
            after[i] -= pull * 16 * gradient                      # 16 = sqrt(16 x 16 pixels)
        x = after
    strength = Strength(t0=300, steps=2, low_pass=2, pull=pull)
    found = project(model(Scaled(2.0)), REFERENCE, strength, (9,))
    assert levels(300, 2) == times and np.abs(found - x[:, 0].clamp(-1, 1).numpy()).max() < 1e-4


def test_a_pull_means_the_same_on_every_grid():
    """The published step has a length, so that on a smaller image it moves a pixel further; ours is said per pixel."""
    moved = []
    for size in (16, 64):
        volume = np.full((1, size, size), 0.5, np.float32)
        strength = lambda low_pass: Strength(t0=1, steps=1, low_pass=low_pass)
        one_step = lambda low_pass: project(model(Scaled(0.5)), volume, strength(low_pass), (1,))
        moved.append(np.sqrt(((one_step(2) - one_step(0)) ** 2).mean()))
    assert moved[0] == pytest.approx(moved[1], rel=0.05) and moved[0] == pytest.approx(0.5 * 0.047, rel=0.1)


def test_guidance_keeps_what_the_low_pass_holds_and_frees_the_rest():
    """From t0 = 900 the unguided model forgets the reference; guided, it has its coarse structure again."""
    g = np.random.default_rng(3)
    coarse = np.kron(g.normal(0, 0.4, (1, 4, 4)), np.ones((8, 8))).clip(-1, 1).astype(np.float32)
    free, held = (project(model(Oracle(mean=0.0, sd=0.4)), coarse, Strength(t0=900, steps=40, low_pass=d), (2,))
                  for d in (0, 4))
    near = lambda x: np.corrcoef(low_pass(torch.tensor(x)[:, None], 4).flatten(), coarse.flatten())[0, 1]
    assert near(free) < 0.5 < 0.85 < near(held)


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
    translate(model(Oracle(mean=0, sd=0.5)), REFERENCE, 2.5, Strength(t0=100, steps=4, low_pass=2), 0)
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
    assert np.array_equal(guided_filter(reference, reference, 4.0) > 0, reference > 0)


def test_the_guided_projection_starts_from_the_same_noise_in_every_schedule():
    """t0 = 500 of the linear schedule, whose abar is 0.08, would be six times as noisy as that of the cosine one."""
    for name, T in (("cosine", 1000), ("linear", 1000), ("linear", 4000)):
        schedule = Schedule.make(name, T)
        guided = replace(model(Oracle()), schedule=schedule).guided
        assert float(schedule.abar[guided.t0]) == pytest.approx(0.494, abs=0.003)
    assert GUIDED["demo"].startswith("t0=500,") and GUIDED["paper"].startswith("t0=261,")
    for preset, values in train_diffusion.PRESETS.items():        # the SD-DM of the preset is of that schedule
        assert GUIDED[preset] == guided_in(Schedule.make(values.get("schedule", train_diffusion.Config.schedule)))


def test_a_matched_reference_has_the_mean_and_sd_of_the_source():
    """Denoised from t0 = 1 by a network that finds nothing to change, what comes back is the matched reference."""
    class Trusting(Oracle):
        def forward(self, x_t, t):
            a, s = at(SCHEDULE.abar.sqrt(), t, x_t), at((1 - SCHEDULE.abar).sqrt(), t, x_t)
            return (a * x_t - x_t / a) / s                        # x_0 = x_t / a
    source = replace(model(Trusting()), mean=-0.3, std=0.1)
    for guide_mm in (0, 10):
        strength = Strength(t0=1, steps=1, match="mean_std", guide_mm=guide_mm)
        found, _ = translate(source, REFERENCE, 2.5, strength, 0)
        assert (found.mean(), found.std()) == pytest.approx((-0.3, 0.1), abs=0.02)
        assert np.corrcoef(found.ravel(), REFERENCE.ravel())[0, 1] > 0.97
