"""DiT as published: a network that predicts noise, and maybe its variance, at 1,000 timesteps (Ho et al. 2020)."""

from typing import TYPE_CHECKING

from maskdit.config.sampling import Sample
from maskdit.config.training import Training
from maskdit.methods.contract import State
from maskdit.methods.dit import Dit
from maskdit.methods.tread import Tread

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.artifacts.arrays import Array
    from maskdit.model.diffusion import Draw, Network


class DitVp(Dit):
    """Published DiT weights, which go on with their objective."""

    preconditioning = "vp"

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """The error of the noise, and zeros."""
        from maskdit.model.diffusion import loss_vp

        stay = self.stay(config) if isinstance(self, Tread) else None
        return loss_vp(net, x0_BCHW, labels_B, draw, keep=keep, label_dropout=config.label_dropout, stay=stay)

    def denoise(self, net: "Network", y_BCHW: "Tensor", sigma_B: "Tensor", labels_B: "Tensor") -> "Tensor":
        """D(y; sigma) = y - sigma * eps."""
        from maskdit.model.diffusion import denoise_vp

        return denoise_vp(net, y_BCHW, sigma_B, labels_B)

    def solvers(self) -> tuple[str, ...]:
        """With a variance also its own."""
        learned = self.architecture.get("out_channels") == 2 * self.architecture["channels"]
        return (*super().solvers(), "ddpm") if learned else super().solvers()

    def sigma_range(self) -> tuple[float, float]:
        """Those of the first and the last timestep."""
        from maskdit.model.diffusion import vp_sigmas

        return vp_sigmas()[0].item(), vp_sigmas()[-1].item()

    def sampled(self, config: Sample, net: "Network", rows: "Array", noise_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        """Ancestral sampling, too, for which each image has a generator of its own."""
        if config.solver != "ddpm":
            return super().sampled(config, net, rows, noise_BCHW, labels_B)
        import torch

        from maskdit.model.diffusion import guided, predict_vp
        from maskdit.model.samplers import ddpm
        from maskdit.runtime.random import generator

        predict = guided(net, labels_B, config.guidance, ask=predict_vp, **self.guidance(config))
        seeds = [int(generator(config.seed, "ddpm", index=int(row)).integers(2**63)) for row in rows]
        return ddpm(predict, noise_BCHW, config.solver_steps, [torch.Generator().manual_seed(seed) for seed in seeds])

    def exported(self, tensors: State) -> State:
        """None."""
        told = "predicts noise, as DiT's own weights do, which neither format can hold"
        raise ValueError(f"{told}; share the original file, or the folder of the run")


class TreadVp(DitVp, Tread):
    """The same with a route in the finetuning."""
