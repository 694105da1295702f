"""Schedules, forward process, loss, steps and whole chains against oracle numbers and closed forms."""
import numpy as np
import pytest
import torch

from cmr.diffusion import (
    Schedule,
    at,
    clean_image,
    ddpm_step,
    denoise,
    diffusion_loss,
    levels,
    loss_weight,
    noised,
    stratified_t,
    target_of,
)

LINEAR, COSINE = Schedule.make("linear"), Schedule.make("cosine")
SCHEDULES = {"linear": LINEAR, "cosine": COSINE}
#           name, t (from 0), beta, abar, beta~, c0, ct, log10 SNR
TABLE = [("linear", 0, 1.00000000e-04, 9.99900000e-01, 0, 1, 0, 3.99995657),
         ("linear", 1, 1.19919920e-04, 9.99780092e-01, 5.45318766e-05, 5.45291500e-01, 4.54708499e-01, 3.65766360),
         ("linear", 10, 2.99199199e-04, 9.97806573e-01, 2.58463620e-04, 1.36277860e-01, 8.63722069e-01, 2.65792308),
         ("linear", 500, 1.00599600e-02, 7.77966584e-02, 1.00513358e-02, 3.05805708e-03, 9.94104351e-01, -1.07386575),
         ("linear", 999, 2.00000000e-02, 4.03582977e-05, 1.99999835e-02, 1.28351487e-04, 9.89948678e-01, -4.39404963),
         ("cosine", 0, 4.12842248e-05, 9.99958716e-01, 0, 1, 0, 4.38419794),
         ("cosine", 1, 4.61417527e-05, 9.99912576e-01, 2.17894961e-05, 5.27781409e-01, 4.72218590e-01, 4.05833100),
         ("cosine", 10, 8.98713625e-05, 9.99278904e-01, 7.86776234e-05, 1.24592236e-01, 8.75407757e-01, 3.14169350),
         ("cosine", 500, 3.15569144e-03, 4.92285172e-01, 3.14600513e-03, 4.36786690e-03, 9.95356279e-01, -0.0134030918),
         ("cosine", 999, 9.99000000e-01, 2.42876691e-09, 9.98997576e-01, 1.55689172e-03, 3.16226999e-02, -8.61461416)]


@pytest.mark.parametrize("name,t,beta,abar,beta_tilde,c0,ct,log_snr", TABLE)
def test_schedule_table(name, t, beta, abar, beta_tilde, c0, ct, log_snr):
    s = SCHEDULES[name]
    assert float(s.beta[t + 1]) == pytest.approx(beta, rel=1e-8)
    assert float(s.abar[t + 1]) == pytest.approx(abar, rel=1e-8)
    assert float(s.snr(t + 1).log10()) == pytest.approx(log_snr, rel=1e-8, abs=1e-9)
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert ddpm_step(s, zero, one, t + 1, t, zero).item() == pytest.approx(c0, rel=1e-8)         # coefficient of x_0
    assert ddpm_step(s, one, zero, t + 1, t, zero).item() == pytest.approx(ct, rel=1e-7)         # of x_t
    assert ddpm_step(s, zero, zero, t + 1, t, one).item() ** 2 == pytest.approx(beta_tilde, rel=1e-7)


def test_schedule_sums_and_clean_entry():
    assert float(LINEAR.beta.sum()) == pytest.approx(10.05) and float(COSINE.beta.sum()) == pytest.approx(12.4414964171)
    assert float(LINEAR.abar[1:].sum()) == pytest.approx(275.5132333968)
    assert float(COSINE.abar[1:].sum()) == pytest.approx(495.5775125825)
    assert LINEAR.abar[0] == COSINE.abar[0] == 1 and float(LINEAR.abar[1]) == 1 - float(LINEAR.beta[1])
    assert float(LINEAR.abar[101]) == pytest.approx(.895141591, rel=1e-8)
    assert float(COSINE.abar[101]) == pytest.approx(.971575682, rel=1e-8)


def test_the_chain_of_single_steps_composes_to_the_forward_process():
    for s in SCHEDULES.values():
        mean, variance = 1.0, 0.0
        for t in range(1, s.T + 1):
            beta = float(s.beta[t])
            mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        assert mean == pytest.approx(float(s.abar[-1]) ** 0.5, rel=1e-9)
        assert variance == pytest.approx(1 - float(s.abar[-1]), rel=1e-12)


# Inputs of the step oracles: x, model output e and step noise z, all (1, 1, 4, 4) float64.
I = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
X, E, Z = torch.cos(0.9 * I + 0.1), torch.sin(1.3 * I + 0.2), torch.cos(2.1 * I + 0.5)
DDPM_500_499 = {
    "linear": "1.08593857 0.44662974 -0.32969714 -0.85121967 -0.93102752 -0.11653982 0.78816212 0.90931059 "
              "0.54058884 -0.24891783 -1.04716393 -0.84935312 -0.01039093 0.64525706 1.00618167 0.59002047",
    "cosine": "1.04491956 0.48866991 -0.32598169 -0.89131898 -0.89455518 -0.11387750 0.75369299 0.94519642 "
              "0.53219406 -0.28914489 -1.00130587 -0.84241163 -0.04786771 0.67604017 0.99765607 0.55597045"}


def as_v(schedule, eps, x_t, t):
    """What a network that predicts v says where one that predicts the noise, as the oracles do, says eps."""
    a, s = at(schedule.abar.sqrt(), t, x_t), at((1 - schedule.abar).sqrt(), t, x_t)
    return a * eps - s * (x_t - s * eps) / a


def predicted(s, t=501, clip=False):
    x_0 = clean_image(s, as_v(s, E, X, t), X, t)
    return x_0.clamp(-1, 1) if clip else x_0


def numbers(x):
    return [x.flatten()[0].item(), x.flatten()[10].item(), x.sum().item()]


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_all_values(name):
    s = SCHEDULES[name]
    assert ddpm_step(s, X, predicted(s), 501, 500, Z).flatten().numpy() == pytest.approx(
        np.array(DDPM_500_499[name].split(), float), abs=1e-6
    )


CASES = {  # case: (linear [0], [10], sum), (cosine [0], [10], sum)
    "x0 unclipped": ((2.88332740, -5.43630917, 3.15743136), (1.21637281, -1.95202258, 1.49738587)),
    "ddpm 500->400": ((2.00900192, -2.71431105, 2.38822211), (1.42125626, -1.67128072, 1.85800089)),
    "ddpm 500->400 clip": ((1.47160650, -1.44843862, 1.00991548), (1.33975715, -1.31269131, 1.49070777)),
    "ddpm 500->499 clip": ((1.08017925, -1.03359745, 1.61300765), (1.04397447, -0.99714756, 1.58361694)),
    "last step": ((0.99306713, -0.95369002, 1.53253669), (0.99374817, -0.95154548, 1.53494352)),
    "noised": ((0.46831206, 0.30423759, 1.08799389), (0.83968520, -0.24307354, 1.56874007))}
COMPUTE = {
    "x0 unclipped": lambda s: predicted(s),
    "ddpm 500->400": lambda s: ddpm_step(s, X, predicted(s), 501, 401, Z),
    "ddpm 500->400 clip": lambda s: ddpm_step(s, X, predicted(s, clip=True), 501, 401, Z),
    "ddpm 500->499 clip": lambda s: ddpm_step(s, X, predicted(s, clip=True), 501, 500, Z),
    "last step": lambda s: ddpm_step(s, X, predicted(s, t=1), 1, 0, Z),
    "noised": lambda s: noised(s, X, 501, E)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("i,name", list(enumerate(SCHEDULES)))
def test_step_cases(case, i, name):
    assert numbers(COMPUTE[case](SCHEDULES[name])) == pytest.approx(CASES[case][i], abs=1e-6)


def test_the_clean_image_is_clamped_before_the_step():
    """One step of `denoise` with a network that returns E; clamping after the step is another number."""
    right = denoise(LINEAR, lambda x, t: as_v(LINEAR, E, x, t), X, [501, 401], [Z])
    assert numbers(right) == pytest.approx(CASES["ddpm 500->400 clip"][0], abs=1e-6)
    assert abs(numbers(right)[0] - CASES["ddpm 500->400"][0][0]) > 0.5


def test_levels_match_the_published_grid():
    grid = lambda *a: [t - 1 for t in levels(*a)][:-1]
    assert grid(1000, 10, "uniform") == list(range(999, 0, -100))
    assert grid(1000, 50, "uniform")[:2] + grid(1000, 50, "uniform")[-2:] == [999, 979, 39, 19]
    assert grid(1000, 7, "uniform") == [999, 856, 713, 570, 428, 285, 142]
    assert levels(505, 50, "uniform")[:3] == [505, 495, 485]      # the 50th of 100 uniform times of 1000 and below


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize(
    "t_start,steps", [(1000, 7), (1000, 10), (1000, 50), (1000, 250), (1000, 1000), (300, 20), (1, 1), (5, 5)]
)
def test_levels_decrease_from_the_start_to_the_clean_image(spacing, t_start, steps):
    t = levels(t_start, steps, spacing)
    assert all(a > b for a, b in zip(t, t[1:])) and t[0] == t_start and t[-1] == 0 and 1 <= t[-2]


def test_conversions_invert_each_other():
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 5, 1, 3, 3, generator=g, dtype=torch.float64)
    t = torch.tensor([1, 2, 300, 700, 990])
    for s in SCHEDULES.values():
        x_t = noised(s, x_0, t, eps)
        assert torch.allclose(clean_image(s, target_of(s, x_0, eps, t), x_t, t), x_0, atol=1e-12)
        assert torch.allclose(as_v(s, eps, x_t, t), target_of(s, x_0, eps, t), atol=1e-8)


def test_the_weight_is_that_of_the_error_of_the_clean_image():
    """min(SNR, 5) of an error of x_0, whatever the network says: here it is asked for v."""
    g = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(6, 1, 4, 4, generator=g, dtype=torch.float64)
    x_0, eps, guess = draw(), draw(), draw()                      # guess: one fixed prediction of the clean image
    t = torch.tensor([1, 50, 200, 500, 800, 950])
    x_t = noised(COSINE, x_0, t, eps)
    a, s = at(COSINE.abar.sqrt(), t, x_t), at((1 - COSINE.abar).sqrt(), t, x_t)
    error = target_of(COSINE, guess, (x_t - a * guess) / s, t) - target_of(COSINE, x_0, eps, t)
    weighted = loss_weight(COSINE, t) * (error ** 2).flatten(1).mean(1)
    expected = COSINE.snr(t).clamp(max=5) * ((guess - x_0) ** 2).flatten(1).mean(1)
    assert torch.allclose(weighted, expected, rtol=1e-8)


def test_min_snr_is_one_for_small_noise_in_x0_units_and_not_inverted():
    w = loss_weight(COSINE, torch.tensor([1, 500, 999]))
    snr = COSINE.snr(torch.tensor([1, 500, 999]))
    assert torch.allclose(w, snr.clamp(max=5) / (snr + 1)) and w[0] < w[1] and w[2] < 1e-4


def test_every_t_is_drawn_and_strata_are_even():
    g = torch.Generator().manual_seed(0)
    t = torch.cat([stratified_t(10, 4, g) for _ in range(300)])
    assert set(t.tolist()) == set(range(1, 11))
    one = stratified_t(1000, 8, g).sort().values
    assert ((one - 1) // 125).tolist() == list(range(8)) or (one.diff() == 125).all()


def gaussian_net(schedule, mean, sd):
    """Exact minimiser of the loss when every pixel of the data is N(mean, sd^2): an oracle that needs no training."""
    def net(x_t, t):
        abar = at(schedule.abar, t, x_t)
        x_0 = (abar.sqrt() * sd ** 2 * x_t + (1 - abar) * mean) / (abar * sd ** 2 + 1 - abar)
        return (abar.sqrt() * x_t - x_0) / (1 - abar).sqrt()
    return net


def chain_moments(schedule, times, mean, sd):
    """Mean and SD after the chain for Gaussian data: each step is affine in x, so moments propagate exactly."""
    m, v = 0.0, 1.0
    for t, s in zip(times[:-1], times[1:]):
        def step(x, z):
            x_t, fresh = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x, z))
            output = gaussian_net(schedule, mean, sd)(x_t, t)
            return float(ddpm_step(schedule, x_t, clean_image(schedule, output, x_t, t), t, s, fresh))
        offset = step(0.0, 0.0)
        slope, noise = step(1.0, 0.0) - offset, step(0.0, 1.0) - offset
        m, v = offset + slope * m, slope ** 2 * v + noise ** 2
    return m, v ** 0.5


@pytest.mark.parametrize("name,expected", [("cosine", (.482437, .467744)), ("linear", (.468219, .444100))])
def test_best_network_gives_the_known_spread(name, expected):
    for steps, sd in zip((100, 50), expected):
        m, got = chain_moments(SCHEDULES[name], levels(1000, steps, "uniform"), 0.3, 0.5)
        assert got == pytest.approx(sd, abs=2e-6) and m == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("steps,kind,expected", [
    (20, "uniform", (.54, .79, .91, .97)), (20, "quadratic", (.80, .87, .91, .96)),
    (40, "quadratic", (.88, .93, .95, .98)), (80, "quadratic", (.92, .96, .98, .99))])
def test_quadratic_grid_keeps_fine_texture(steps, kind, expected):
    """Output SD over true SD for weak modes, partial start at t0 = 400, cosine."""
    for tau, ratio in zip((.03, .1, .3, 1), expected):
        a2 = float(COSINE.abar[400])
        v = a2 * tau ** 2 + 1 - a2                        # the noised reference
        for t, s in zip(levels(400, steps, kind)[:-1], levels(400, steps, kind)[1:]):
            x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            x_0 = clean_image(COSINE, gaussian_net(COSINE, 0.0, tau)(x, t), x, t)
            slope = ddpm_step(COSINE, x, x_0, t, s, 0 * x).item()
            noise = ddpm_step(COSINE, 0 * x, 0 * x, t, s, x).item()
            v = slope ** 2 * v + noise ** 2
        assert v ** 0.5 / tau == pytest.approx(ratio, abs=0.012)


def test_sampler_draws_the_data_it_was_told():
    """Data far inside of [-1, 1], where the clamp does nothing."""
    g = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(4000, 1, 1, 1, generator=g)
    times = levels(1000, 100, "uniform")
    chain = lambda sd: denoise(COSINE, gaussian_net(COSINE, 0.03, sd), noise(), times, [noise() for _ in times])
    x = chain(0.05)
    _, expected = chain_moments(COSINE, times, 0.03, 0.05)
    assert x.mean().item() == pytest.approx(0.03, abs=0.003) and x.std().item() == pytest.approx(expected, rel=0.03)
    assert torch.allclose(chain(0.0), torch.full((4000, 1, 1, 1), 0.03), atol=1e-5)


def test_the_last_step_adds_no_noise():
    for noise in (0.0, 100.0):
        x = denoise(COSINE, lambda x, t: torch.zeros_like(x), 0.5 * X, [1, 0], [torch.full_like(X, noise)])
        assert torch.allclose(x, 0.5 * float(COSINE.abar[1]) ** 0.5 * X)


def test_loss_of_the_perfect_network_is_zero_and_global_generator_is_untouched():
    x_0 = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    def oracle(x_t, t):
        a, s = at(COSINE.abar.sqrt(), t, x_t), at((1 - COSINE.abar).sqrt(), t, x_t)
        return target_of(COSINE, x_0, (x_t - a * x_0) / s, t)
    before = torch.random.get_rng_state()
    assert diffusion_loss(COSINE, oracle, x_0, torch.Generator().manual_seed(0)).item() < 1e-6
    assert torch.equal(before, torch.random.get_rng_state())
