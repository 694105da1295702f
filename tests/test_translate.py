"""The sampler with networks that need no training: exact return of the reference, bands, seeds, the published slips."""
import numpy as np
import pytest
import torch
from scipy import ndimage

from cmr.baselines import fda, intensity_statistics, low_pass_swap, match_mean_std, match_quantiles
from cmr.bands import Band, band_mask
from cmr.config import CheckpointError, NumericalError, UsageError
from cmr.diffusion import Schedule, at, levels
from cmr.translate import FLAT, SourceModel, Strength, guided, read_choice, translate

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
    """Public image-to-image code once noised at t + 1 and denoised from t; at small strength the rest of the noise is seen."""
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
        translate(model(Spy(mean=0.0, sd=0.3)), zero, 2.5, Strength(t0=800, steps=8, shortest_mm=5.0, mode="state", t_stop=0), 1)
    except NumericalError:
        pass                                                      # the image is nearly flat: only the states matter here
    for (t, variance), expected in zip(seen[:8], times[:8]):
        assert t == expected and variance == pytest.approx(1 - float(SCHEDULE.abar[t]), rel=0.15)          # noised at t instead it would be 2 to 20 times too much


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


def test_guided_filter_is_a_weighted_least_squares_fit_in_every_window():
    """Brute force: each window's line by solving its normal equations, then the mean of the lines over a pixel's own window."""
    guide, image = REFERENCE[0, :8, :8].astype(float), REFERENCE[1, :8, :8].astype(float)
    impulses = np.eye(64).reshape(64, 8, 8)
    weights = np.stack([ndimage.gaussian_filter(impulse, 1.5, mode="nearest").ravel() for impulse in impulses], 1)       # (pixel, what it sees)
    lines = []
    for w in weights:
        a = np.array([[np.sum(w * guide.ravel() ** 2) + FLAT, np.sum(w * guide.ravel())], [np.sum(w * guide.ravel()), 1]])
        lines.append(np.linalg.solve(a, [np.sum(w * guide.ravel() * image.ravel()), np.sum(w * image.ravel())]))
    slope, offset = (weights @ np.array(lines)).T
    assert np.abs(guided(guide[None], image[None], 1.5).ravel() - (slope * guide.ravel() + offset).clip(-1, 1)).max() < 1e-5


def test_a_guided_result_has_the_brightness_of_the_model_and_the_edges_of_the_reference():
    y, x = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48), indexing="ij")
    disc = lambda cx: np.where(np.hypot(x - cx, y) < 0.4, 0.5, -0.5).astype(np.float32)[None]
    reference, shading = disc(0.0), (0.25 * x).astype(np.float32)[None]
    shaded = translate(model(Oracle(torch.from_numpy(0.6 * reference + shading))), reference, 2.5, Strength(t0=500, steps=2, guide_mm=10), 0)[0]
    assert np.abs(shaded - (0.6 * reference + shading)).mean() < 0.02                        # contrast and shading are the model's
    elsewhere = translate(model(Oracle(torch.from_numpy(disc(0.15)))), reference, 2.5, Strength(t0=500, steps=2, guide_mm=10), 0)[0]
    edge = lambda a: np.abs(np.diff(a[0], axis=1))[24].argsort()[-2:].tolist()
    assert sorted(edge(elsewhere)) == sorted(edge(reference)) != sorted(edge(disc(0.15)))    # a heart redrawn elsewhere stays where it is
    assert np.array_equal(guided(reference, reference, 4.0) > 0, reference > 0)


def test_strength_text():
    s = Strength.parse("t0=700,match=mean_std,shortest_mm=20,steps=12")
    assert s == Strength(t0=700, match="mean_std", shortest_mm=20.0, steps=12) and Strength.parse(str(s)) == s
    for text, words in (("t=3", "unknown 't'"), ("t0=x", "must be int"), ("match=linear", "none, mean_std or quantile"), ("t0=5,steps=9", "1 to t0"),
                        ("shortest_mm=20,longest_mm=10", "must exceed"), ("guide_mm=-1", "guide_mm=-1.0; use 0 or more")):
        with pytest.raises(UsageError, match=words):
            Strength.parse(text)


def test_intensity_matching():
    source = np.clip(RNG.normal(-0.3, 0.3, (6, 20, 20)), -1, 1)
    quantiles, mean, std = intensity_statistics([source])
    volume = np.clip(RNG.normal(0.2, 0.15, (6, 20, 20)), -1, 1)
    linear = match_mean_std(volume, mean, std)
    assert linear.mean() == pytest.approx(mean, abs=0.01) and linear.std() == pytest.approx(std, abs=0.02)
    matched = match_quantiles(volume, quantiles)
    assert np.quantile(matched, [.1, .5, .9]) == pytest.approx(np.quantile(source, [.1, .5, .9]), abs=0.01)
    order = np.argsort(volume.ravel())
    assert (np.diff(matched.ravel()[order]) >= -1e-6).all()       # monotone: no tissue changes places


def test_cheap_baselines_swap_only_what_they_say():
    image, style = REFERENCE[0] * 0.5, REFERENCE[1] * 0.5
    assert np.abs(fda(image, image) - image).max() < 1e-5 and np.abs(low_pass_swap(image, image, 2.5) - image).max() < 1e-6
    swapped = low_pass_swap(image, style, 2.5, shortest_mm=20.0)
    phi = Band(band_mask(16, 16, 2.5, 20.0))
    low = lambda x: phi(torch.from_numpy(np.array(x, np.float64))).numpy()
    assert np.abs(low(swapped) - low(style)).max() < 1e-5 and np.abs((swapped - low(swapped)) - (image - low(image))).max() < 1e-5
    assert fda(image, style).mean() == pytest.approx(abs(style.mean()) * np.sign(image.mean()), abs=1e-5)   # amplitude of style, sign (phase) of image


def test_a_choice_must_cover_what_is_asked_for(tmp_path):
    path = tmp_path / "choice.json"
    with pytest.raises(CheckpointError, match="run cmr.choose again"):
        read_choice(path, ["Vendor=B"])
    path.write_text('{"Vendor=B": {"vanilla": "none", "nnunet2d": "t0=50,steps=2"}}')
    assert read_choice(path, ["Vendor=B"]) == {"Vendor=B": {"vanilla": "none", "nnunet2d": "t0=50,steps=2"}} and read_choice(path, ["Vendor=B"], ["vanilla"]) == {"Vendor=B": {"vanilla": "none"}}
    for domains, networks in ((["Vendor=C"], None), (["Vendor=B"], ["nnunet3d"])):
        with pytest.raises(CheckpointError, match="no choice for these domains and networks"):
            read_choice(path, domains, networks)
