"""One optimisation step: the gradient of the loss over all ranks, then the weights and their moving averages.

Weights, gradients, moments and averages are flat float32 tensors, so an update takes a few kernels, whatever the number of layers.
The network's parameters are views of the flat weights or, in bf16 and fp16, of a rounded copy. Their gradients are accumulated in
float32 as they arrive and reduced over the ranks while the backward pass continues.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from maskdit.config.base import UserError
from maskdit.config.training import Training
from maskdit.methods.contract import Method
from maskdit.model.ema import decay, warmed
from maskdit.model.transformer import compile_blocks
from maskdit.runtime.device import autocast, half
from maskdit.runtime.process_group import Ranks
from maskdit.training.batches import Batch

BUCKET = 2**24  # maximum number of gradients in one all-reduce
FIRST_SCALE, GROWTH_STEPS = 2.0**16, 2000  # fp16 loss scale: halved when a gradient overflows, doubled after so many good steps

State = dict[str, Tensor]


class Learner:
    """A method's network in training. `net` holds the initial weights, `average` the initial moving average by parameter name."""

    def __init__(self, net: nn.Module, average: State, config: Training, method: Method, where: torch.device, ranks: Ranks) -> None:
        self.net, self.config, self.where, self.ranks = net.to(where), config, where, ranks
        weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        self.fixed = {name: tensor for name, tensor in net.state_dict().items() if name not in weights}
        self.shapes = {name: weight.shape for name, weight in weights.items()}
        self.masters = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights.values()]))
        self.gradient = self.masters.grad = torch.zeros_like(self.masters)
        self.average = torch.cat([average[name].flatten() for name in weights]).to(where)
        self.posthoc = [self.masters.detach().clone() for _ in config.posthoc_ema]
        self.optimizer = torch.optim.AdamW([self.masters], lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
        self.scale = torch.tensor(FIRST_SCALE if config.precision == "fp16" else 1.0, device=where)
        self.good, self.streak, self.skipped, self.norm = torch.zeros(4, device=where).unbind()

        rounded = half(config.precision)
        self.copy = self.masters.detach() if rounded == torch.float32 else self.masters.detach().to(rounded)
        self.buckets = _Buckets(self.gradient, {name: shape.numel() for name, shape in self.shapes.items()}, ranks)
        copies, gradients = self._views(self.copy), self._views(self.gradient)
        for number, (name, weight) in enumerate(weights.items()):
            weight.data = copies[name]
            collector = self._collector(number, gradients[name])
            weight.register_post_accumulate_grad_hook(collector)  # type: ignore[no-untyped-call]
        self.loss = partial(method.loss, net, config)
        if config.compile:
            compile_blocks(net, dynamic=False if config.schedule_steps is None else None)

    def _views(self, flat: Tensor) -> State:
        """The parts of a flat tensor by parameter name; they share its memory."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def _collector(self, number: int, target: Tensor) -> Any:
        learner = weakref.proxy(self)  # the garbage collector cannot see a reference from a hook to the learner

        def collect(weight: Tensor) -> None:
            assert weight.grad is not None
            (target.copy_ if learner.first else target.add_)(weight.grad)
            weight.grad = None
            if learner.last:
                learner.buckets.arrived(number)

        return collect

    def gradients(self, batch: Batch, keep: int) -> Tensor:
        """Gradient of the mean loss, from this rank's share of the batch. Returns the share's part of the two mean terms (2,)."""
        size, terms = int(self.config.micro_batch or len(batch)), torch.zeros(2, device=self.where)
        self.buckets.begin()
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            self.first, self.last = start == 0, start + size >= len(batch)
            with autocast(self.where, self.config.precision):
                pair = self.loss(part.clean, part.labels, part.draw, keep)
            both = torch.stack([term.sum() for term in pair]) / (len(batch) * self.ranks.world)
            torch.autograd.backward(both.sum() * self.scale)
            terms += both.detach()
        self.buckets.finish()
        return terms

    def update(self, step: int) -> float:
        """Update weights and averages without waiting for the device. Returns the learning rate of this step, counted from 0.

        A step whose gradient is not finite changes nothing and is counted.
        """
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / (config.warmup or 1))
        self.norm = torch.linalg.vector_norm(self.gradient) / self.scale
        self.bad = bad = (~self.norm.isfinite()).float()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        if config.precision == "fp16":
            self.optimizer.grad_scale = self.scale  # type: ignore[attr-defined]
        self.optimizer.step()
        weights, moves = self.masters.detach(), 1 - bad
        self.average.lerp_(weights, moves * (1 - warmed(config.ema, step, config.ema_warmup)))
        for width, average in zip(config.posthoc_ema, self.posthoc, strict=True):
            average.lerp_(weights, moves * (1 - decay(width, step + 1)))
        if self.copy.dtype != weights.dtype:
            self.copy.copy_(weights)
        self.skipped = self.skipped + bad
        self.streak = (self.streak + 1) * bad * (self.scale <= 1)  # a large scale explains an overflow
        if config.precision == "fp16":
            self.good = (self.good + 1) * moves
            grown = self.good >= GROWTH_STEPS
            self.scale = (self.scale * torch.where(grown, 2.0, 1.0) * (1 - bad / 2)).clamp(1.0, 2.0**24)
            self.good = self.good * ~grown
        return rate

    def weights(self, flat: Tensor) -> State:
        """A state dict of the network: the parts of a flat tensor by name, and the fixed positions."""
        return self.fixed | self._views(flat)

    def state(self) -> State:
        """Everything that the next step depends on, as tensors that can be restored in place."""
        if not self.optimizer.state:
            fresh = {name: torch.zeros_like(self.gradient) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[self.masters] = {"step": torch.zeros((), device=self.where), **fresh}
        moments = self.optimizer.state[self.masters]
        named = {"masters": self.masters.detach(), "average": self.average, **moments}
        named |= {f"posthoc.{number}": average for number, average in enumerate(self.posthoc)}
        return named | {name: getattr(self, name) for name in ("scale", "good", "streak", "skipped")}

    def restore(self, parts: Sequence[State]) -> None:
        """Restore what `state` returned, with each tensor in parts. Raises KeyError or RuntimeError if it is another network's."""
        for name, tensor in self.state().items():
            pieces = [part[name].flatten() for part in parts]
            for place, piece in zip(torch.split(tensor.view(-1), [len(piece) for piece in pieces]), pieces, strict=True):
                place.copy_(piece)
        self.copy.copy_(self.masters.detach())


class _Buckets:
    """Slices of the gradient, each summed over the ranks once it is complete, in the same order on all ranks."""

    def __init__(self, gradient: Tensor, sizes: dict[str, int], ranks: Ranks) -> None:
        self.ranks, self.names, self.bucket_of, lengths = ranks, list(sizes), list[int](), [0]
        for size in sizes.values():
            if lengths[-1] and lengths[-1] + size > BUCKET:
                lengths.append(0)
            lengths[-1] += size
            self.bucket_of.append(len(lengths) - 1)
        self.parts = torch.split(gradient, lengths)

    def begin(self) -> None:
        self.missing: list[set[int]] = [set() for _ in self.parts]
        for number, bucket in enumerate(self.bucket_of):
            self.missing[bucket].add(number)
        self.works: list[Any] = []

    def arrived(self, number: int) -> None:
        self.missing[self.bucket_of[number]].discard(number)
        while self.ranks.world > 1 and len(self.works) < len(self.parts) and not self.missing[-1 - len(self.works)]:
            part = self.parts[-1 - len(self.works)]  # from the last layer to the first, in the order of the backward pass
            self.works.append(distributed.all_reduce(part, async_op=True))

    def finish(self) -> None:
        for number in sorted(number for numbers in self.missing for number in numbers):
            advice = "a method's network must use all of its parameters in every step, if need be as 0 * parameter"
            raise UserError(f"{self.names[number]} received no gradient: {advice}")
        for work in self.works:
            work.wait()
