"""Flow matching against closed forms: the velocity of a Gaussian, the flow that it gives, and its denoiser."""

import numpy as np
import pytest
import torch

from maskdit.model.diffusion import Draw, guided
from maskdit.model.flow import TIMESTEPS, denoise_flow, loss_flow, times, velocity
from maskdit.model.masking import masked, patchify, sample_mask, unpatchify
from maskdit.model.samplers import dpmpp_2m, flow, heun, integrated, sigma_steps

MEAN, DEVIATION = 0.7, 0.4  # of x0, which is normal
NOISE = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(x, c_noise, _labels=None, *_):
    """E[eps - x0 | x_t] of normal x0: both are linear in x_t, by their covariances with it."""
    t = (c_noise / TIMESTEPS).reshape(-1, 1, 1, 1)
    centred = (x - (1 - t) * MEAN) / ((1 - t) ** 2 * DEVIATION**2 + t**2)
    return t * centred - (MEAN + (1 - t) * DEVIATION**2 * centred)


def along(x, t):
    return velocity(exact, x, t, torch.zeros(len(x)))


def by_denoiser(y, sigma):
    return denoise_flow(exact, y, sigma.double(), torch.zeros(len(y)))


def test_the_flow_of_a_gaussian_s_velocity_ends_at_the_gaussian_with_the_order_of_each_solver():
    wanted = MEAN + DEVIATION * NOISE
    for second, order in ((False, 1), (True, 2)):
        coarse, fine = ((flow(along, NOISE, steps, second) - wanted).abs().max().item() for steps in (64, 128))
        assert fine < 0.02
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_the_denoiser_of_a_velocity_is_the_posterior_mean():
    for sigma in (0.01, 0.5, 3.0, 80.0):
        y = MEAN + DEVIATION * NOISE + sigma * NOISE.flip(0)
        wanted = MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (y - MEAN)
        torch.testing.assert_close(by_denoiser(y, torch.full((5,), sigma)), wanted)


def test_the_solvers_of_edm_sample_it_by_its_denoiser():
    sigmas = sigma_steps(160)
    start = MEAN / sigmas[0] + NOISE * (1 + DEVIATION**2 / sigmas[0] ** 2).sqrt()  # of the noisy data at the first level
    for solve in (heun, dpmpp_2m):
        torch.testing.assert_close(solve(by_denoiser, start, sigmas), MEAN + DEVIATION * NOISE, rtol=0, atol=5e-3)


def test_a_step_of_euler_in_t_is_one_in_sigma():
    t = torch.linspace(0.9, 0, 10, dtype=torch.float64)
    sigmas = t / (1 - t)
    by_t = integrated(lambda x, now: along(x, now.expand(5)), NOISE, t, second=False)
    by_sigma = integrated(lambda y, now: (y - by_denoiser(y, now.expand(5))) / now, NOISE / (1 - t[0]), sigmas, second=False)
    torch.testing.assert_close(by_sigma, by_t)


def test_guidance_of_a_velocity_is_guidance_of_its_denoiser():
    def net(x, c_noise, labels, *_):
        return exact(x, c_noise) * (2 + labels.double()).reshape(-1, 1, 1, 1)

    labels, sigma = torch.tensor([0, 1, 2, 1, 0]), torch.full((5,), 1.5, dtype=torch.float64)
    t, y = sigma / (1 + sigma), NOISE * 2
    x = y / 2.5
    by_velocity = x - 0.6 * guided(net, labels, 3.0, ask=velocity)(x, t)
    torch.testing.assert_close(by_velocity, guided(net, labels, 3.0, ask=denoise_flow)(y, sigma))


def drawn(count=6):
    source = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, count, 2, 8, 8, generator=source, dtype=torch.float64)
    scores = torch.rand(count, 16, generator=source)
    return x0, Draw(torch.randn(count, generator=source, dtype=torch.float64), noise, scores, torch.ones(count))


def test_the_loss_is_the_mean_square_from_noise_minus_data_at_the_drawn_time():
    x0, draw = drawn()
    seen = {}

    def net(x, c_noise, labels, kept):
        seen.update(x=x, t=c_noise / TIMESTEPS, kept=kept)
        return torch.ones_like(x)

    matching, mae = loss_flow(net, x0, torch.zeros(6).long(), draw, patch=2, keep=16, mae_weight=0.1, label_dropout=0.1)
    t = seen["t"].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(seen["x"], (1 - t) * x0 + t * draw.noise_BCHW)
    torch.testing.assert_close(matching, (1 - (draw.noise_BCHW - x0)).square().flatten(1).mean(1))
    assert seen["kept"] is None
    assert not mae.any()


def test_the_masked_loss_matches_kept_patches_and_reconstructs_hidden_ones_from_the_noisy_patch():
    x0, draw = drawn()
    hidden = masked(sample_mask(draw.scores_BL, 8), 16)

    def net(x, c_noise, labels, kept):  # right where the patch is kept; where it is hidden, D is the normalised noisy patch
        t = (c_noise / TIMESTEPS).reshape(-1, 1, 1)
        noisy = patchify(x, 2)
        target = (noisy - noisy.mean(-1, keepdim=True)) / (noisy.var(-1, keepdim=True) + 1e-6).sqrt()
        right = patchify(draw.noise_BCHW - x0, 2)
        return unpatchify(torch.where(hidden.unsqueeze(-1), (noisy - target) / t, right), 2, 2)

    options = {"patch": 2, "keep": 8, "mae_weight": 0.1, "label_dropout": 0.1}
    matching, mae = loss_flow(net, x0, torch.zeros(6).long(), draw, **options)
    assert matching.abs().max() < 1e-20
    assert mae.abs().max() < 1e-20
    everywhere, _ = loss_flow(net, x0, torch.zeros(6).long(), draw, **options, dsm="all")
    assert everywhere.min() > 0


def test_times_are_uniform_or_logit_normal():
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(2))
    uniform, bell = times(normal, "uniform"), times(normal, "logit-normal")
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.25, 0.5, 0.9]), [0.1, 0.25, 0.5, 0.9], atol=0.01)
    torch.testing.assert_close(bell.logit(), normal, rtol=1e-3, atol=1e-3)
