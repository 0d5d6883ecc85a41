"""SiT (Ma et al. 2024): DiT's network trained by flow matching, in place of EDM's denoising."""

from typing import TYPE_CHECKING, Literal

from maskdit.config.sampling import Sample
from maskdit.config.training import Training
from maskdit.methods.contract import MethodOptions, State
from maskdit.methods.dit import Dit

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.artifacts.arrays import Array
    from maskdit.model.diffusion import Draw, Network


class FlowOptions(MethodOptions):
    """Options of flow matching."""

    times: Literal["uniform", "logit-normal"] = "uniform"  # how t is drawn in training


class Sit(Dit):
    """The objective. `heun` and `dpmpp-2m` sample it by its denoiser, as any arm, flow-heun and flow-euler by its velocity."""

    name = "SiT"
    Options = FlowOptions
    preconditioning = "flow"

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """The error of the velocity over the kept tokens, and the reconstruction of the hidden ones or zeros."""
        from maskdit.model.flow import loss_flow

        assert isinstance(self.options, FlowOptions)
        return loss_flow(net, x0_BCHW, labels_B, draw, keep=keep, **self.usual(config), sampling=self.options.times)

    def solvers(self) -> tuple[str, ...]:
        """The usual ones, and its own."""
        return (*super().solvers(), "flow-heun", "flow-euler")

    def denoise(self, net: "Network", y_BCHW: "Tensor", sigma_B: "Tensor", labels_B: "Tensor") -> "Tensor":
        """D(y; sigma) = x_t - t * v."""
        from maskdit.model.flow import denoise_flow

        return denoise_flow(net, y_BCHW, sigma_B, labels_B)

    def sampled(self, config: Sample, net: "Network", rows: "Array", noise_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        """In equal steps of t, too, from t = 1."""
        if not config.solver.startswith("flow-"):
            return super().sampled(config, net, rows, noise_BCHW, labels_B)
        from maskdit.model.diffusion import guided
        from maskdit.model.flow import velocity
        from maskdit.model.samplers import flow

        where = self.guidance(config)
        if where["interval"]:
            where["interval"] = tuple(sigma / (1 + sigma) for sigma in where["interval"])
        guide = guided(net, labels_B, config.guidance, ask=velocity, **where)
        return flow(guide, noise_BCHW, config.solver_steps, second=config.solver == "flow-heun")

    def exported(self, tensors: State) -> State:
        """None."""
        raise ValueError("predicts a velocity, which neither format can hold; share the folder of the run")
