"""One step of optimisation: the gradient of the loss over all ranks, then the weights and their moving averages.

Weights, gradients, moments and averages are each one flat float32 tensor, so that an update is a few kernels however many layers
there are. The network's parameters are views of the flat weights; in bf16 and fp16 they are views of a rounded copy, their
gradients are added up in float32 as they arrive, and reduced over the ranks while the backward pass goes on.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, distributed, nn

from maskdit.config.training import Training, kept_tokens
from maskdit.model.diffusion import loss
from maskdit.model.ema import decay
from maskdit.model.transformer import MaskDiT
from maskdit.runtime.device import autocast, half
from maskdit.runtime.process_group import Ranks
from maskdit.training.batches import Batch

BUCKET = 2**24  # gradients in one all-reduce
FIRST_SCALE, GROWTH_STEPS = 2.0**16, 2000  # of the loss in fp16: halved when a gradient overflows, doubled after so many good steps

State = dict[str, Tensor]


def trained(net: MaskDiT) -> dict[str, nn.Parameter]:
    """The parameters that the optimiser moves: not the fixed positions."""
    return {name: weight for name, weight in net.named_parameters() if weight.requires_grad}


class Learner:
    """A network in training.

    `net` holds the weights to start from, `average` those of the moving average, by name.
    """

    def __init__(self, net: MaskDiT, average: State, config: Training, where: torch.device, ranks: Ranks) -> None:
        self.net, self.config, self.where, self.ranks = net.to(where), config, where, ranks
        weights = trained(net)
        self.fixed = {name: tensor for name, tensor in net.state_dict().items() if name not in weights}
        ends = torch.tensor([weight.numel() for weight in weights.values()]).cumsum(0).tolist()
        places = [slice(end - weight.numel(), end) for weight, end in zip(weights.values(), ends, strict=True)]
        self.slots = {name: (place, weight.shape) for (name, weight), place in zip(weights.items(), places, strict=True)}
        self.masters = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights.values()]))
        self.masters.grad = torch.zeros_like(self.masters)
        self.gradient = self.masters.grad
        self.average = torch.cat([average[name].flatten() for name in weights]).to(where)
        self.posthoc = [self.masters.detach().clone() for _ in config.posthoc_ema]
        self.optimizer = torch.optim.AdamW([self.masters], lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
        self.scale = torch.tensor(FIRST_SCALE if config.precision == "fp16" else 1.0, device=where)
        self.good, self.streak, self.skipped, self.norm = torch.zeros(4, device=where).unbind()

        rounded = half(config.precision)
        self.copy = self.masters.detach() if rounded == torch.float32 else self.masters.detach().to(rounded)
        self.buckets = _Buckets(self.gradient, places, ranks)
        for number, (name, weight) in enumerate(weights.items()):
            weight.data = self._view(self.copy, name)
            collector = self._collector(number, self._view(self.gradient, name))
            weight.register_post_accumulate_grad_hook(collector)  # type: ignore[no-untyped-call]
        net.checkpointing, net.defer, net.route = config.checkpointing, config.defer, config.route
        self.stay = kept_tokens(net.pos_embed.shape[1], config.route.ratio) if config.route else None
        if config.compile:  # block by block: as fast as the whole network, compiled in a tenth of the time
            for block in net.stack():
                block.compile(dynamic=False if config.schedule_steps is None else None)

    def _view(self, flat: Tensor, name: str) -> Tensor:
        place, shape = self.slots[name]
        return flat[place].view(shape)

    def _collector(self, number: int, target: Tensor) -> Any:
        learner = weakref.proxy(self)  # the collector of garbage does not see that a hook would hold the learner

        def collect(weight: Tensor) -> None:
            assert weight.grad is not None
            (target.copy_ if learner.first else target.add_)(weight.grad)
            weight.grad = None
            if learner.last:
                learner.buckets.arrived(number)

        return collect

    def gradients(self, batch: Batch, keep: int) -> Tensor:
        """Compute the gradient of the mean loss over the global batch, of which `batch` is this rank's share.

        Returns the share's part of the two loss terms (2,): over all ranks they add up to the means.
        """
        config, size = self.config, self.config.micro_batch or len(batch)
        terms = torch.zeros(2, device=self.where)
        self.buckets.begin()
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            self.first, self.last = start == 0, start + size >= len(batch)
            with autocast(self.where, config.precision):
                pair = loss(
                    self.net,
                    part.clean,
                    part.labels,
                    part.draw,
                    patch=self.net.patch,
                    keep=keep,
                    mae_weight=config.mae_weight,
                    label_dropout=config.label_dropout,
                    dsm=config.dsm,
                    stay=self.stay,
                )
            both = torch.stack([term.sum() for term in pair]) / (len(batch) * self.ranks.world)
            torch.autograd.backward(both.sum() * self.scale)
            terms += both.detach()
        self.buckets.finish()
        return terms

    def update(self, step: int) -> float:
        """Move weights and averages; returns the learning rate of this step, counted from 0.

        A step whose gradient is not finite changes nothing and is counted. All on the device: nothing here waits for it.
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
        self.average.lerp_(weights, moves * (1 - min(config.ema, (step + 1) / (step + config.ema_warmup))))
        for width, average in zip(config.posthoc_ema, self.posthoc, strict=True):
            average.lerp_(weights, moves * (1 - decay(width, step + 1)))
        if self.copy.data_ptr() != weights.data_ptr():
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
        """A flat tensor's parts by name, with the fixed positions: a state dict of the network."""
        return self.fixed | {name: self._view(flat, name) for name in self.slots}

    def state(self) -> State:
        """Everything that the next step depends on: tensors to be restored in place."""
        if not self.optimizer.state:
            fresh = {name: torch.zeros_like(self.gradient) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[self.masters] = {"step": torch.zeros((), device=self.where), **fresh}
        moments = self.optimizer.state[self.masters]
        named = {"masters": self.masters.detach(), "average": self.average, **moments}
        named |= {f"posthoc.{number}": average for number, average in enumerate(self.posthoc)}
        return named | {name: getattr(self, name) for name in ("scale", "good", "streak", "skipped")}

    def restore(self, state: State) -> None:
        """Take over what `state` gave; raises KeyError or RuntimeError if it is another network's."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.copy.copy_(self.masters.detach())


class _Buckets:
    """Gradients added up over the ranks in slices, each as soon as its last one has arrived, always in the same order."""

    def __init__(self, gradient: Tensor, places: list[slice], ranks: Ranks) -> None:
        self.gradient, self.ranks = gradient, ranks
        self.bucket_of, self.bounds = [], [0]
        for place in places:
            if place.stop - self.bounds[-1] > BUCKET and place.start > self.bounds[-1]:
                self.bounds.append(place.start)
            self.bucket_of.append(len(self.bounds) - 1)
        self.bounds.append(len(gradient))

    def begin(self) -> None:
        self.missing = [self.bucket_of.count(bucket) for bucket in range(len(self.bounds) - 1)]
        self.works: list[Any] = []

    def arrived(self, number: int) -> None:
        self.missing[self.bucket_of[number]] -= 1
        while self.ranks.world > 1 and len(self.works) < len(self.missing) and not self.missing[-1 - len(self.works)]:
            bucket = len(self.missing) - 1 - len(self.works)  # from the last layer to the first, as the backward pass goes
            part = self.gradient[self.bounds[bucket] : self.bounds[bucket + 1]]
            self.works.append(distributed.all_reduce(part, async_op=True))

    def finish(self) -> None:
        if any(self.missing):
            raise RuntimeError("a parameter got no gradient")
        for work in self.works:
            work.wait()
