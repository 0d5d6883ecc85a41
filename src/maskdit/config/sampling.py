"""The section of params.yaml about samples."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from maskdit.config.base import Count, Key, Positive, Precision, Section, Seed

Phase = Literal["pretrain", "finetune", "released"]
Step = Count | Literal["final"]  # final: the last milestone of the phase


class Sample(Section):
    """Images from one checkpoint: heun asks the denoiser 2 * solver_steps - 1 times, the other solvers solver_steps times."""

    run: Key
    vae: Key
    phase: Phase
    step: Step
    ema_width: Positive | None = None  # relative width of an average made from a run's posthoc_ema; null: its ema
    guidance: Annotated[float, Field(ge=1)]  # 1 is no guidance
    guidance_channels: Literal["all", "first3"] = "all"  # first3 is DiT's
    guidance_interval: Annotated[tuple[float, float], Field(strict=False)] | None = None  # guided where low < sigma <= high
    images: Count
    labels: Literal["random", "balanced"]
    solver: Literal["heun", "dpmpp-2m", "ddpm"] = "heun"
    solver_steps: Count
    batch: Count
    shards: Count
    precision: Precision
    quantisation: Literal["round", "floor"] = "round"  # floor is the published code's of MaskDiT
    seed: Seed

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"an interval goes from a low sigma to a higher one, not {list(interval)}")
        return interval

    @field_validator("solver_steps")
    @classmethod
    def _timesteps(cls, steps: int, info: Any) -> int:
        if info.data.get("solver") == "ddpm" and not 2 <= steps <= 1000:
            raise ValueError("ddpm takes 2 to 1000 steps")
        return steps
