"""The section of params.yaml about samples."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdit.config.base import Count, Interval, Key, Positive, Precision, Section, Seed, new

Phase = Literal["pretrain", "finetune", "released"]
Step = Count | Literal["final"]  # final: the last milestone of the phase


class Sample(Section):
    """Images from one checkpoint. The two Heuns evaluate the network 2 * solver_steps - 1 times, the others solver_steps times."""

    run: Key
    vae: Key
    phase: Phase
    step: Step
    ema_width: Positive | None = None  # relative width of an EMA reconstructed from the run's posthoc_ema; null: the run's own EMA
    guidance: Annotated[float, Field(ge=1)]  # 1: no guidance
    guidance_channels: Literal["all", "first3"] = "all"  # first3: as in DiT's code
    guidance_interval: Interval | None = None  # guided where low < sigma <= high
    images: Count
    labels: Literal["random", "balanced"]
    solver: Literal["heun", "dpmpp-2m", "ddpm", "flow-heun", "flow-euler"] = "heun"  # flow: along t, for a velocity (sit)
    solver_steps: Count
    batch: Count
    shards: Count
    precision: Precision
    quantisation: Literal["round", "floor"] = "round"  # floor: as in MaskDiT's published code
    seed: Seed
    compile: bool | Literal["auto"] = new("auto")  # torch.compile each block; auto: on a GPU, if there is much to draw
    vae_precision: Literal["fp32", "tf32", "bf16"] = new("fp32")  # of the autoencoder that decodes; fp32 in the paper

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.guidance_interval and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise ValueError(f"guidance_interval must be a low and a higher sigma, not {list(self.guidance_interval)}")
        return self
