"""`maskdit check KEY`: one step of a training's method on random latents, against what the method says of itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maskdit.config.base import UserError
from maskdit.config.errors import nearest
from maskdit.config.params import Params
from maskdit.config.training import Training
from maskdit.methods.contract import Method
from maskdit.methods.entries import of_node

if TYPE_CHECKING:
    from maskdit.training.batches import Batch

COUNT = 2  # images


def trial(params: Params, key: str) -> None:
    """Print what a step of an entry of pretrain computes. Raises UserError that names each part of its method that is not so."""
    if key not in params.pretrain:
        raise UserError(f"pretrain.{key}: no such entry{nearest(key, params.pretrain)}")
    config, method = params.pretrain[key], of_node(params, "pretrain", key)
    import torch

    torch.manual_seed(config.seed)
    net, batch = method.network(config), batch_of(config, method)
    numbers = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    if wrong := [*faults(config, method, net, batch)]:
        raise UserError(f"pretrain.{key}: {'; '.join(wrong)}; correct the class, or see docs/add-a-method.md")
    keeps = {method.kept(config, step) for step in {*range(0, config.milestones[-1], 1 + config.milestones[-1] // 1000)}}
    tokens = " to ".join(f"{keep}" for keep in sorted({min(keeps), max(keeps)}))
    cost = f"{method.flops(config, max(keeps)) / 1e9:.4g} GFLOP for a forward pass of an image, as torch counts"
    print(f"{method.name}: {numbers / 1e6:.4g} million weights that learn; {tokens} of {method.tokens} tokens; {cost}")


def batch_of(config: Training, method: Method) -> "Batch":
    """Two random latents of the method's form, of the class 0, with the random numbers of step 0."""
    import torch

    from maskdit.training.batches import Batch, draws

    side, channels = method.architecture["side"], method.architecture["channels"]
    draw, posterior, _ = draws(config.seed, 0, COUNT, (channels, side, side), method.tokens, extra=method.draws(config))
    return Batch(torch.from_numpy(posterior) / 2, torch.zeros(COUNT, dtype=torch.long), draw)


def faults(config: Training, method: Method, net: Any, batch: "Batch") -> Iterator[str]:
    """What a method says of itself that is not so, in words."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def loss(keep: int, part: "Batch") -> Any:
        with torch.autocast("cpu", torch.bfloat16):  # in bf16 a CPU computes attention by products, which torch counts
            return method.loss(net, config, part.clean, part.labels, part.draw, keep)

    longer = config.model_copy(update={"milestones": (*config.milestones, 2 * config.milestones[-1])})
    steps = sorted({0, config.milestones[-1] // 2, config.milestones[-1] - 1})
    keeps = [method.kept(config, step) for step in steps]
    if keeps != [method.kept(longer, step) for step in steps]:
        yield "kept: depends on milestones, so that a longer training would not go on from a shorter one; take a number of options"
    for keep in sorted(set(keeps)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            loss(keep, batch.part(0, 1))
        if (found := counter.get_total_flops()) != (told := method.flops(config, keep)):
            yield f"flops: says {told:,} for {keep} tokens, torch counts {found:,}"
    sampling = method.network()
    if {*sampling.state_dict()} != {*net.state_dict()}:
        yield "network: has other names of parameters in sampling than in training"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        method.denoise(sampling, batch.clean[:1], torch.ones(1), batch.labels[:1])
    if (found := counter.get_total_flops()) != (told := method.flops(None, method.tokens)):
        yield f"flops: says {told:,} in sampling, torch counts {found:,}"
    pairs = [loss(keeps[0], batch) for _ in range(2)]
    shapes = {tuple(term.shape) for pair in pairs for term in pair}
    if shapes != {(COUNT,)}:
        yield f"loss: has terms of shape {' and '.join(map(str, sorted(shapes)))}, not one number an image"
        return
    if not all(torch.equal(one, other) for one, other in zip(*pairs, strict=True)):
        yield "loss: differs when it is computed again; all random numbers of a step are in draw"
    sum(term.sum() for term in pairs[0]).backward()
    if still := [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None]:
        yield f"loss: gives no gradient to {still[0]}{f' and {len(still) - 1} more' * (len(still) > 1)}; add 0 * it"
