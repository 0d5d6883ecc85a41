"""The section of params.yaml about speed benchmarks."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import model_validator

from maskdit.config.base import Count, Fraction, Interval, Key, ListOf, Positive, Precision, Section
from maskdit.config.training import Encoder, Transformer


class Case(Section):
    """One timed case: forward and backward passes of a network, or sampling from it."""

    network: Literal["ours", "plain"]  # plain: eager timm blocks, see benchmark/baseline.py
    side: Count  # of the latent
    encoder: Encoder
    decoder: Transformer | None
    mask_ratio: Fraction
    batch: Count
    precision: Precision
    compile: bool = False
    checkpointing: bool = False
    attention: Literal["chosen", "sdpa"] = "chosen"  # sdpa: PyTorch's kernel everywhere
    update: bool = False  # include optimiser and EMA; plain: PyTorch's default AdamW and an EMA in a Python loop
    sampling: bool = False  # four Heun steps with guidance 1.5
    interval: Interval | None = None  # of sigma, in which guidance is applied


class Pair(Section):
    """Two cases measured alternately, and the expected ratio of their times per image (slow over fast)."""

    slow: Key
    fast: Key
    target: Positive | None = None
    of_flops: bool = False  # the target is a fraction of the ratio of their FLOPs
    memory: bool = False  # the ratio is of peak memory above parameters, optimiser moments and EMA
    mfu: Positive | None = None  # minimum for the fast case


class Factorial(Section):
    """Every combination of these settings, for DiT (no mask, no decoder) and MaskDiT."""

    like: Key  # the case that provides all other settings
    mask_ratios: ListOf[Fraction]
    precisions: ListOf[Precision]
    compile: ListOf[bool]
    batches: ListOf[Count]


class Bench(Section):
    """Training and sampling speed: pairs, a waterfall and a factorial. All values are medians over rounds in one process."""

    rounds: Count
    factorial: Factorial
    cases: dict[Key, Case]
    pairs: dict[Key, Pair]
    waterfall: ListOf[Key]  # cases, each compared with the one before
    ranks: Key  # the case whose gradients are summed over two processes
    update: Key  # the case whose step is split into gradient, update and waiting for data

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = {*self.waterfall, self.ranks, self.update, self.factorial.like}
        named |= {case for pair in self.pairs.values() for case in (pair.slow, pair.fast)}
        if missing := sorted(named - self.cases.keys()):
            raise ValueError(f"cases has no entry '{missing[0]}'")
        return self

    def on(self, native: str) -> Self:
        """A copy with `native` for precision `auto`, without the waterfall cases and pair targets that then compare equals."""
        auto = {"auto": native}
        precisions = {name: auto.get(case.precision, case.precision) for name, case in self.cases.items()}
        cases = {name: case.model_copy(update={"precision": precisions[name]}) for name, case in self.cases.items()}
        pairs = {}
        for name, pair in self.pairs.items():
            differed = self.cases[pair.slow].precision != self.cases[pair.fast].precision
            equal_now = differed and precisions[pair.slow] == precisions[pair.fast]
            pairs[name] = pair.model_copy(update={"target": None}) if equal_now else pair
        chain = [self.waterfall[0], *(name for before, name in pairwise(self.waterfall) if cases[name] != cases[before])]
        levels = tuple(dict.fromkeys(auto.get(each, each) for each in self.factorial.precisions))
        grid = self.factorial.model_copy(update={"precisions": levels})
        return self.model_copy(update={"cases": cases, "pairs": pairs, "waterfall": tuple(chain), "factorial": grid})
