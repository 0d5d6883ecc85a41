"""Samplers: they evaluate a denoiser at a schedule of noise levels to turn noise into latents. Formulas only."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from maskdit.model.diffusion import VP_BETA_MAX, VP_BETA_MIN, VP_STEPS, Denoiser, vp_sigmas

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7


def sigma_steps(steps: int, low: float = SIGMA_MIN, high: float = SIGMA_MAX) -> Tensor:
    """Noise levels (steps + 1,) in float64, from high to low and then 0: EDM eq. 5 with rho 7."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = high ** (1 / RHO), low ** (1 / RHO)
    return torch.cat([(first + ramp * (last - first)) ** RHO, torch.zeros(1, dtype=torch.float64)])


def pairs(sigmas: Tensor, where: torch.device) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Successive noise levels on a device, and whether the second is 0. The device is not asked, as that would wait for it."""
    for (now, following), last in zip(pairwise(sigmas.to(where, non_blocking=True)), (sigmas[1:] == 0).tolist(), strict=True):
        yield now, following, last


def integrated(slope: Denoiser, x_BCHW: Tensor, levels: Tensor, second: bool = True) -> Tensor:
    """Integrate dx/dlevel = slope(x, level) in float64 by Heun, or by Euler, whose step is always the last one."""
    x = x_BCHW
    for now, following, last in pairs(levels, x.device):
        first = slope(x, now)
        euler = x + (following - now) * first
        x = euler if last or not second else x + (following - now) * (first + slope(euler, following)) / 2
    return x


def heun(denoiser: Denoiser, noise_BCHW: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate dy/dsigma = (y - D) / sigma from standard normal noise by Heun (EDM algorithm 1); 2 * steps - 1 evaluations."""

    def slope(at: Tensor, sigma: Tensor) -> Tensor:
        return (at - denoiser(at, sigma.expand(len(at))).double()) / sigma

    return integrated(slope, noise_BCHW.double() * sigmas[0], sigmas)


def flow(velocity: Denoiser, noise_BCHW: Tensor, steps: int, second: bool) -> Tensor:
    """Integrate dx/dt = v(x, t) from standard normal noise at t = 1 to t = 0 in equal steps (SiT, Ma et al. 2024, section 2).

    By Heun in 2 * steps - 1 evaluations, or by Euler in `steps`. Euler's step is also that of `heun` with sigma = t / (1 - t):
    both keep D and eps fixed. Heun's differ, and that of `heun` cannot begin at t = 1, where sigma is infinite.
    """

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return velocity(x, t.expand(len(x))).double()

    return integrated(slope, noise_BCHW.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64), second)


def dpmpp_2m(denoiser: Denoiser, noise_BCHW: Tensor, sigmas: Tensor) -> Tensor:
    """The same by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2; alpha 1, lambda = -ln sigma); first-order at both ends."""
    y = noise_BCHW.double() * sigmas[0]
    before: tuple[Tensor, Tensor] | None = None  # D and h = lambda_i - lambda_{i-1} of the previous step
    for now, following, last in pairs(sigmas, y.device):
        D = denoiser(y, now.expand(len(y))).double()
        if last:
            return D
        h = (now / following).log()
        ahead = D if before is None else D + h / (2 * before[1]) * (D - before[0])
        y, before = following / now * y + (1 - following / now) * ahead, (D, h)
    return y


def ddpm(predict: Denoiser, noise_BCHW: Tensor, steps: int, generators: list[torch.Generator]) -> Tensor:
    """Ancestral sampling (Ho et al. 2020) in float64 on `steps` timesteps evenly spaced from 0 to 999: DiT's published protocol.

    `predict` returns eps and the learned variance's position between its bounds (Nichol and Dhariwal 2021), (B, 2 C, H, W).
    Each image has its own CPU generator, so its noise depends on neither the batch nor the device.
    """
    from diffusers import DDPMScheduler  # a slow import that training does not need

    scheduler = DDPMScheduler(
        VP_STEPS, VP_BETA_MIN, VP_BETA_MAX, "linear", variance_type="learned_range", clip_sample=False, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    sigmas, x = vp_sigmas().to(noise_BCHW.device), noise_BCHW.double()
    for t in scheduler.timesteps:
        sigma = sigmas[t]
        predicted = predict(x * (sigma**2 + 1).sqrt(), sigma.expand(len(x))).double()
        x = scheduler.step(predicted, t, x, generator=generators).prev_sample
    return x
