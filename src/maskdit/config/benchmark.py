"""What a benchmark of speed measures."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdit.config.base import Count, Fraction, Key, Positive, Precision, Section
from maskdit.config.training import Encoder, Transformer


class Case(Section):
    """One thing whose time is taken: forward and backward passes of a network, or sampling from it."""

    network: Literal["ours", "plain"]  # plain: from timm's blocks, eager, as in benchmark/baseline.py
    side: Count  # of the latent
    encoder: Encoder
    decoder: Transformer | None
    mask_ratio: Fraction
    batch: Count
    precision: Precision
    compile: bool = False
    checkpointing: bool = False
    attention: Literal["chosen", "sdpa"] = "chosen"  # sdpa: torch's kernel everywhere
    update: bool = False  # with optimiser and average; plain: AdamW as torch has it by default, and an average in a loop
    sampling: bool = False  # four Heun steps with guidance 1.5
    interval: Annotated[tuple[float, float], Field(strict=False)] | None = None  # of sigma, that is guided


class Pair(Section):
    """Two cases measured in turn, and what their ratio (time per image of the slow one over the fast one) should be."""

    slow: Key
    fast: Key
    target: Positive | None = None
    of_flops: bool = False  # the target is a share of the ratio of their FLOPs
    memory: bool = False  # the ratio is of peak memory above parameters, moments and average
    mfu: Positive | None = None  # of the fast one, at least


class Factorial(Section):
    """Each combination of these with DiT (nothing hidden, no decoder) and MaskDiT."""

    like: Key  # the case that says the rest
    mask_ratios: Annotated[tuple[Fraction, ...], Field(strict=False)]
    precisions: Annotated[tuple[Precision, ...], Field(strict=False)]
    compile: Annotated[tuple[bool, ...], Field(strict=False)]
    batches: Annotated[tuple[Count, ...], Field(strict=False)]


class Bench(Section):
    """Speed of training and sampling: pairs, the chain of a waterfall, a factorial; all medians over rounds in one process."""

    rounds: Count
    factorial: Factorial
    cases: dict[Key, Case]
    pairs: dict[Key, Pair]
    waterfall: Annotated[tuple[Key, ...], Field(strict=False)]  # cases, each beside the one before
    ranks: Key  # the case whose gradients two processes add up
    update: Key  # the case whose step is taken apart into gradient, update and waiting for data

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = {
            *self.waterfall,
            self.ranks,
            self.update,
            self.factorial.like,
            *(case for pair in self.pairs.values() for case in (pair.slow, pair.fast)),
        }
        if missing := sorted(named - self.cases.keys()):
            raise ValueError(f"cases has no entry '{missing[0]}'")
        return self

    def on(self, native: str) -> Self:
        """The same for a device whose own precision is `native`, which `auto` stands for.

        A waterfall's case that is then the one before it is left out, and so is the target of a pair whose two precisions were to
        differ.
        """

        def settled(precision: str) -> str:
            return native if precision == "auto" else precision

        cases = {name: case.model_copy(update={"precision": settled(case.precision)}) for name, case in self.cases.items()}
        pairs = {}
        for name, pair in self.pairs.items():
            apart, now = (len({group[key].precision for key in (pair.slow, pair.fast)}) for group in (self.cases, cases))
            pairs[name] = pair if now == apart else pair.model_copy(update={"target": None})
        chain = [self.waterfall[0], *(name for before, name in pairwise(self.waterfall) if cases[name] != cases[before])]
        grid = self.factorial.model_copy(update={"precisions": tuple(dict.fromkeys(map(settled, self.factorial.precisions)))})
        return self.model_copy(update={"cases": cases, "pairs": pairs, "waterfall": tuple(chain), "factorial": grid})
