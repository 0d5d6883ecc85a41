"""Preconditioning, loss and sampler against plain float64 formulas."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from maskdit.diffusion import Draw, denoise, guided, heun, loss, sigma_steps
from maskdit.masking import sample_mask

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


def oracle(x0, labels, given, keep, mae_weight, dropout):
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
            if patch in kept:
                dsm.append((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * np.mean((D[square] - x0[b][square]) ** 2))
            else:
                target = (y[square] - y[square].mean()) / np.sqrt(y[square].var(ddof=1) + 1e-6)
                mae.append(np.mean((D[square] - target) ** 2))
        terms.append((np.mean(dsm), mae_weight * np.mean(mae) if mae else 0.0))
    return np.array(terms)


@pytest.mark.parametrize("keep", [1, 8, 15, 16])
def test_the_loss_terms_are_the_paper_s(keep):
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
    )
    wanted = oracle(x0, labels, given, keep, 0.1, 0.4)
    np.testing.assert_allclose(torch.stack(found, 1).numpy(), wanted, rtol=1e-4)
    if keep == L:
        assert not found[1].any(), "with nothing hidden there is no reconstruction term"


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

    def counting(x, c_noise, labels, kept=None):
        calls.append(len(x))
        return net(x, c_noise, labels, kept)

    y, sigma, labels = torch.randn(2, C, 4, 4), torch.tensor([0.7, 3.0]), torch.tensor([1, 2])
    plain, null = denoise(net, y, sigma, labels), denoise(net, y, sigma, torch.tensor([-1, -1]))
    assert torch.equal(guided(counting, labels, 1.0)(y, sigma), plain)
    assert calls == [2]
    torch.testing.assert_close(guided(counting, labels, 2.5)(y, sigma), null + 2.5 * (plain - null))
    assert calls == [2, 4]


def test_the_noise_levels_fall_from_80_to_0_002_and_then_0():
    sigmas = sigma_steps(40)
    assert len(sigmas) == 41
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-2] == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert sigmas[20] == pytest.approx((80 ** (1 / 7) + 20 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


def test_heun_integrates_the_closed_form_gaussian_ode_to_its_second_order():
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
        errors.append((heun(denoiser, noise, steps) - exact).abs().max().item())
        assert len(calls) == 2 * steps - 1
    # the last Euler step, from 0.002 to 0, adds an error of its own of order (0.002 / s)^2, so compare above it
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(3.3 < ratio < 5.5 for ratio in ratios), (errors, ratios)


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


def test_a_denoiser_that_knows_the_image_is_believed():
    image = torch.randn(1, 1, 4, 4, dtype=torch.float64)  # dy/dsigma is then constant, and each step exact
    torch.testing.assert_close(heun(lambda y, sigma: image.expand_as(y), torch.randn(2, 1, 4, 4), 7), image.expand(2, -1, -1, -1))


def test_the_sampler_counts_in_float64_and_the_network_in_float32():
    seen = []

    def spy(x, c_noise, labels, kept=None):
        seen.append({x.dtype, c_noise.dtype})
        return torch.zeros_like(x)

    def denoiser(y, sigma):
        assert y.dtype == sigma.dtype == torch.float64
        return guided(spy, torch.zeros(len(y), dtype=torch.long), 2.0)(y, sigma)

    assert heun(denoiser, torch.randn(1, 1, 4, 4), 3).dtype == sigma_steps(3).dtype == torch.float64
    assert seen == [{torch.float32}] * 5
    ramp = sigma_steps(40)[:-1] ** (1 / 7)
    torch.testing.assert_close(ramp.diff(), ramp.diff().mean().expand(39), rtol=1e-10, atol=0)
