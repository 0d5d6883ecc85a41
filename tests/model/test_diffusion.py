"""Preconditioning, loss and sampler against plain float64 formulas."""

from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch

from maskdit.model.diffusion import Draw, denoise, denoise_vp, guided, loss, loss_vp, predict_vp, timestep, vp_sigmas
from maskdit.model.masking import sample_mask
from maskdit.model.samplers import ddpm, dpmpp_2m, heun, sigma_steps

B, C, SIDE, PATCH, L = 5, 2, 8, 2, 16


def net(x, c_noise, labels, kept=None):
    """A stand-in network that mixes everything it is given, and is easy to write again in NumPy."""
    hidden = 0.0 if kept is None else kept.double().mean(1).reshape(-1, 1, 1, 1).to(x.dtype)
    return torch.tanh(x) * (1 + c_noise.reshape(-1, 1, 1, 1)) + 0.1 * labels.reshape(-1, 1, 1, 1) + 0.01 * hidden


def draw(seed=0):
    source = np.random.default_rng(seed)
    shapes = {"normal_B": (B,), "noise_BCHW": (B, C, SIDE, SIDE)}
    normal = {name: torch.from_numpy(source.normal(size=shape)) for name, shape in shapes.items()}
    return Draw(**normal, scores_BL=torch.from_numpy(source.random((B, L))), drop_B=torch.from_numpy(source.random(B)))


def oracle(x0, labels, given, keep, mae_weight, dropout, every=False):
    """The loss of the paper, one image and one patch at a time, in float64."""
    terms = []
    for b in range(B):
        sigma = np.exp(-1.2 + 1.2 * given.normal_B[b].item())
        y = x0[b] + sigma * given.noise_BCHW[b].numpy()
        kept = np.sort(np.argsort(given.scores_BL[b].numpy(), kind="stable")[:keep])
        label = -1 if given.drop_B[b].item() < dropout else labels[b]
        hidden = 0.0 if keep == L else kept.mean()
        x = np.float32(y / np.sqrt(sigma**2 + 0.25)).astype(np.float64)
        raw = np.tanh(x) * (1 + np.log(sigma) / 4) + 0.1 * label + 0.01 * hidden
        D = 0.25 / (sigma**2 + 0.25) * y + sigma * 0.5 / np.sqrt(sigma**2 + 0.25) * raw
        dsm, mae = [], []
        for patch in range(L):
            top, left = 2 * (patch // 4), 2 * (patch % 4)
            square = np.s_[:, top : top + 2, left : left + 2]
            if patch in kept or every:
                dsm.append((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * np.mean((D[square] - x0[b][square]) ** 2))
            if patch not in kept:
                target = (y[square] - y[square].mean()) / np.sqrt(y[square].var(ddof=1) + 1e-6)
                mae.append(np.mean((D[square] - target) ** 2))
        terms.append((np.mean(dsm), mae_weight * np.mean(mae) if mae else 0.0))
    return np.array(terms)


@pytest.mark.parametrize(("keep", "dsm"), [(1, "kept"), (8, "kept"), (15, "kept"), (16, "kept"), (8, "all"), (16, "all")])
def test_the_loss_terms_are_the_paper_s_and_those_of_its_ablation(keep, dsm):
    source = np.random.default_rng(1)
    x0, labels, given = source.normal(size=(B, C, SIDE, SIDE)), np.array([0, 1, 2, 0, 1]), draw()
    assert (given.drop_B < 0.4).any()
    assert (given.drop_B >= 0.4).any()
    found = loss(
        net,
        torch.from_numpy(x0),
        torch.from_numpy(labels),
        given,
        patch=PATCH,
        keep=keep,
        mae_weight=0.1,
        label_dropout=0.4,
        dsm=dsm,
    )
    wanted = oracle(x0, labels, given, keep, 0.1, 0.4, every=dsm == "all")
    np.testing.assert_allclose(torch.stack(found, 1).numpy(), wanted, rtol=1e-4)
    if keep == L:
        assert not found[1].any(), "with nothing hidden there is no reconstruction term"


def test_the_loss_of_a_network_that_predicts_noise_is_that_of_ddpm_at_a_uniform_timestep():
    source = np.random.default_rng(1)
    x0, labels, given = source.normal(size=(B, C, SIDE, SIDE)), np.array([0, 1, 2, 0, 1]), draw()
    abar, wanted = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), []
    for b in range(B):
        step = int(1000 * NormalDist().cdf(given.normal_B[b].item()))
        noise = given.noise_BCHW[b].numpy()
        x = np.sqrt(abar[step]) * x0[b] + np.sqrt(1 - abar[step]) * noise
        label = -1 if given.drop_B[b].item() < 0.4 else labels[b]
        wanted.append(np.mean((np.tanh(x) * (1 + step) + 0.1 * label - noise) ** 2))
    found, hidden = loss_vp(net, torch.from_numpy(x0), torch.from_numpy(labels), given, keep=L, label_dropout=0.4)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3)
    assert not hidden.any()


def test_preconditioning_at_sigma_data_is_one_half_and_its_root():
    y, sigma, labels = torch.randn(2, 1, 4, 4), torch.full((2,), 0.5), torch.zeros(2, dtype=torch.long)
    seen = []

    def one(x, c_noise, *_):
        seen.append((x, c_noise))
        return torch.ones_like(x)

    out = denoise(one, y, sigma, labels)
    torch.testing.assert_close(out, 0.5 * y + 0.5 / 2**0.5)
    torch.testing.assert_close(seen[0][0], y / 0.5**0.5)
    torch.testing.assert_close(seen[0][1], sigma.log() / 4)


def test_guidance_1_is_the_plain_denoiser_asked_once_and_w_extrapolates():
    calls = []
    y, sigma, labels = torch.randn(2, C, 4, 4), torch.tensor([0.7, 3.0]), torch.tensor([1, 2])
    plain, null = denoise(net, y, sigma, labels), denoise(net, y, sigma, torch.tensor([-1, -1]))
    assert torch.equal(guided(counting(calls), labels, 1.0)(y, sigma), plain)
    assert calls == [2]
    torch.testing.assert_close(guided(counting(calls), labels, 2.5)(y, sigma), null + 2.5 * (plain - null))
    assert calls == [2, 4]


def test_the_noise_levels_fall_from_80_to_0_002_and_then_0():
    sigmas = sigma_steps(40)
    assert len(sigmas) == 41
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-2] == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert sigmas[20] == pytest.approx((80 ** (1 / 7) + 20 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


@pytest.mark.parametrize(("solver", "asked"), [(heun, lambda steps: 2 * steps - 1), (dpmpp_2m, lambda steps: steps)])
def test_a_solver_integrates_the_closed_form_gaussian_ode_to_its_second_order(solver, asked):
    s = 0.5  # data N(0, s^2): D = y s^2 / (s^2 + sigma^2), and y(0) = y(80) s / sqrt(s^2 + 80^2)
    noise = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    exact = noise * 80 * s / (s**2 + 80**2) ** 0.5
    calls = []

    def denoiser(y, sigma):
        calls.append(len(y))
        return y * s**2 / (s**2 + sigma.reshape(-1, 1, 1, 1) ** 2)

    errors = []
    for steps in (32, 64, 128):
        calls.clear()
        errors.append((solver(denoiser, noise, sigma_steps(steps)) - exact).abs().max().item())
        assert len(calls) == asked(steps)
    # the last step, from 0.002 to 0, adds an error of its own of order (0.002 / s)^2, so compare above it
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(3.3 < ratio < 5.5 for ratio in ratios), (errors, ratios)


def test_dpmpp_2m_is_algorithm_2_of_the_paper_in_its_own_vp_coordinates():
    def posterior(y, sigma):
        return np.tanh(y) / (1 + sigma)

    noise, sigmas = np.random.default_rng(3).normal(size=(2, 1, 2, 2)), sigma_steps(9).numpy()
    alpha = 1 / np.sqrt(1 + sigmas**2)  # x = alpha * y, its noise alpha * sigma
    x, lambdas, said = alpha[0] * sigmas[0] * noise, -np.log(sigmas[:-1]), []
    for i in range(1, 9):
        said.append(posterior(x / alpha[i - 1], sigmas[i - 1]))
        h = lambdas[i] - lambdas[i - 1]
        ahead = said[-1]
        if i > 1:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            ahead = (1 + 1 / (2 * r)) * said[-1] - 1 / (2 * r) * said[-2]
        x = alpha[i] * sigmas[i] / (alpha[i - 1] * sigmas[i - 1]) * x - alpha[i] * np.expm1(-h) * ahead
    wanted = posterior(x / alpha[8], sigmas[8])  # the limit of the first-order step to sigma 0

    def denoiser(y, sigma):
        return y.tanh() / (1 + sigma.reshape(-1, 1, 1, 1))

    found = dpmpp_2m(denoiser, torch.from_numpy(noise), sigma_steps(9))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def counting(sizes):
    def network(x, c_noise, labels, kept=None):
        sizes.append(len(x))
        return net(x, c_noise, labels, kept)

    return network


@pytest.mark.parametrize("solver", [heun, dpmpp_2m])
def test_outside_the_interval_the_network_is_asked_with_the_label_only(solver):
    levels, asked, low, high = sigma_steps(12), [], 0.2, 1.6
    labels, noise = torch.tensor([0, 2]), torch.randn(2, C, 4, 4)
    spied = []
    denoiser = guided(counting(asked), labels, 2.0, interval=(low, high))
    solver(lambda y, sigma: (spied.append(sigma[0].item()), denoiser(y, sigma))[1], noise, levels)
    assert asked == [4 if low < sigma <= high else 2 for sigma in spied]
    assert {2, 4} == set(asked)
    everywhere = [
        solver(guided(net, labels, 2.0, interval=interval), noise, levels) for interval in ((0.0, 100.0), None, (low, high))
    ]
    assert torch.equal(everywhere[0], everywhere[1])
    assert not torch.equal(everywhere[1], everywhere[2])


def test_the_interval_is_open_below_and_closed_above():
    asked = []
    denoiser = guided(counting(asked), torch.tensor([1]), 2.0, interval=(0.5, 2.0))
    for sigma in (0.5, 0.75, 2.0, 2.25):
        denoiser(torch.zeros(1, C, 4, 4), torch.tensor([sigma]))
    assert asked == [1, 2, 2, 1]


def test_first3_is_dit_s_guidance_of_eps():
    def four(x, c_noise, labels, kept=None):  # as many channels again for the variance
        return torch.cat([torch.tanh(x), torch.cos(x)], 1) * (1 + 0.1 * labels.reshape(-1, 1, 1, 1)) + c_noise.reshape(-1, 1, 1, 1)

    y, sigma, labels = torch.randn(2, 4, 4, 4), torch.full((2,), 0.8), torch.tensor([1, 2])
    given, null = (predict_vp(four, y, sigma, which) for which in (labels, torch.full_like(labels, -1)))
    wanted = given.clone()
    wanted[:, :3] = null[:, :3] + 4.0 * (given[:, :3] - null[:, :3])
    torch.testing.assert_close(guided(four, labels, 4.0, ask=predict_vp, channels=3)(y, sigma), wanted)
    D = guided(four, labels, 4.0, ask=denoise_vp, channels=3)(y, sigma)
    torch.testing.assert_close(D, y - 0.8 * wanted[:, :4])


S = torch.tensor([0.3, 0.9, 1.5]).reshape(1, 3, 1, 1)  # of Gaussian data, a channel each
MU = torch.tensor([0.5, -0.2, 1.0]).reshape(1, 3, 1, 1)


def gaussian_vp(x, t, labels, kept=None):
    """The exact eps of data N(MU, S^2) at integer timesteps, and the exact posterior variance between DDPM's two bounds."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)[t.round().long()].reshape(-1, 1, 1, 1)
    assert torch.equal(t, t.round()), "DiT was trained at integers"
    eps = (1 - abar).sqrt() * (x - abar.sqrt() * MU) / (abar * S**2 + 1 - abar)
    return torch.cat([eps, torch.zeros_like(eps)], dim=1)


def test_denoise_vp_of_the_exact_gaussian_network_is_the_posterior_mean():
    sigmas = vp_sigmas()
    assert sigmas[0] == pytest.approx(0.01, rel=1e-4)
    assert sigmas[-1] == pytest.approx(157.4, rel=1e-3)
    chosen = torch.tensor([0, 1, 250, 500, 998, 999])
    y = torch.randn(6, 3, 2, 2, dtype=torch.float64) * sigmas[chosen].reshape(-1, 1, 1, 1)
    sigma = sigmas[chosen].reshape(-1, 1, 1, 1)
    wanted = (y * S**2 + sigma**2 * MU) / (S**2 + sigma**2)
    found = denoise_vp(gaussian_vp, y, sigmas[chosen], torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_timestep_is_interpolated_in_the_logarithm_of_sigma():
    sigmas = vp_sigmas()
    torch.testing.assert_close(timestep(sigmas), torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-6)
    assert timestep((sigmas[400:401] * sigmas[401:402]).sqrt()).item() == pytest.approx(400.5)
    assert timestep(torch.tensor([1e-4, 1e4])).tolist() == [0, 999]


def generators(numbers):
    return [torch.Generator().manual_seed(int(number)) for number in numbers]


def test_ddpm_walks_dit_s_250_timesteps():
    asked = []

    def spy(x, t, labels, kept=None):
        asked.append(t[0].item())
        return torch.zeros(1, 2, 1, 1)

    labels = torch.zeros(1, dtype=torch.long)
    ddpm(guided(spy, labels, 1.0, ask=predict_vp), torch.ones(1, 1, 1, 1), 250, generators([0]))
    assert asked == [round(i * 999 / 249) for i in reversed(range(250))]  # guided diffusion's even spacing, both ends included


def test_ddpm_of_gaussian_data_has_its_mean_and_deviation():
    source, many = torch.Generator().manual_seed(0), 8
    noise, labels = torch.randn(many, 3, 24, 24, generator=source), torch.zeros(many, dtype=torch.long)
    found = ddpm(guided(gaussian_vp, labels, 1.0, ask=predict_vp), noise, 250, generators(range(many)))
    count = many * 24 * 24
    deviation, mean = torch.std_mean(found, dim=(0, 2, 3))
    bound = 5 / count**0.5 * S.flatten()
    assert ((mean - MU.flatten()).abs() < bound + 0.01).all(), mean
    assert ((deviation - S.flatten()).abs() < bound + 0.03 * S.flatten()).all(), deviation


def test_ddpm_takes_the_learned_variance_between_its_bounds():
    said = {}
    labels = torch.zeros(1, dtype=torch.long)
    abar = 1 / (1 + vp_sigmas() ** 2)
    ratio = abar[999] / abar[0]
    bounds = {1.0: 1 - ratio, -1.0: (1 - abar[0]) / (1 - abar[999]) * (1 - ratio)}
    for place, variance in bounds.items():

        def fixed(x, t, labels, kept=None, place=place):
            return torch.cat([torch.zeros_like(x), torch.full_like(x, place)], dim=1)

        predict = guided(fixed, labels, 1.0, ask=predict_vp)
        said[place] = ddpm(predict, torch.zeros(1, 1, 64, 64), 2, generators([1]))
        wanted = (variance / abar[0]).sqrt()
        assert said[place].std().item() == pytest.approx(wanted.item(), rel=0.05)


def test_an_image_of_ddpm_does_not_depend_on_its_batch():
    noise = torch.randn(5, 3, 4, 4)

    def drawn(rows):
        labels = torch.zeros(len(rows), dtype=torch.long)
        return ddpm(guided(gaussian_vp, labels, 1.0, ask=predict_vp), noise[rows], 20, generators(rows))

    torch.testing.assert_close(drawn([0, 1, 2, 3, 4])[[1, 3]], drawn([1, 3]))


def test_the_mask_of_the_loss_is_the_sampled_one():
    scores = draw().scores_BL
    seen = []

    def spy(x, c_noise, labels, kept=None):
        seen.append(kept)
        return net(x, c_noise, labels, kept)

    x0 = torch.zeros(B, C, SIDE, SIDE, dtype=torch.float64)
    loss(spy, x0, torch.zeros(B, dtype=torch.long), draw(), patch=PATCH, keep=4, mae_weight=0.1, label_dropout=0.0)
    assert torch.equal(seen[0], sample_mask(scores, 4))


def test_a_flat_patch_has_a_finite_target():
    flat = Draw(torch.zeros(1), torch.ones(1, 1, 4, 4), torch.arange(4.0).reshape(1, 4), torch.ones(1))
    x0, nothing = torch.zeros(1, 1, 4, 4), lambda x, *_: torch.zeros_like(x)
    _, mae = loss(nothing, x0, torch.zeros(1, dtype=torch.long), flat, patch=2, keep=1, mae_weight=1.0, label_dropout=0.0)
    sigma = np.exp(-1.2)
    assert mae.item() == pytest.approx((0.25 * sigma / (sigma**2 + 0.25)) ** 2)  # the target is 0, D is c_skip * y


@pytest.mark.parametrize("solver", [heun, dpmpp_2m])
def test_a_denoiser_that_knows_the_image_is_believed(solver):
    image = torch.randn(1, 1, 4, 4, dtype=torch.float64)  # dy/dsigma is then constant, and each step exact
    found = solver(lambda y, sigma: image.expand_as(y), torch.randn(2, 1, 4, 4), sigma_steps(7))
    torch.testing.assert_close(found, image.expand(2, -1, -1, -1))


def test_the_sampler_counts_in_float64_whatever_the_network_answers():
    seen = []

    def spy(x, c_noise, labels, kept=None):
        seen.append({x.dtype, c_noise.dtype})
        return torch.zeros_like(x)

    def denoiser(y, sigma):
        assert y.dtype == sigma.dtype == torch.float64
        return guided(spy, torch.zeros(len(y), dtype=torch.long), 2.0)(y, sigma)

    assert heun(denoiser, torch.randn(1, 1, 4, 4), sigma_steps(3)).dtype == sigma_steps(3).dtype == torch.float64
    assert seen == [{torch.float64}] * 5
    ramp = sigma_steps(40)[:-1] ** (1 / 7)
    torch.testing.assert_close(ramp.diff(), ramp.diff().mean().expand(39), rtol=1e-10, atol=0)
