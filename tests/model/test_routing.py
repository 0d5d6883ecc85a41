"""Beyond the paper: tokens that skip blocks of the encoder (TREAD), and a mask that waits for its first blocks."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_transformer import DECODER, given  # noqa: F401, a fixture
from torch.utils.flop_counter import FlopCounterMode

from maskdit.config.training import Pretrain, Route
from maskdit.latents.dataset import Latents
from maskdit.methods.plugins import of_entry
from maskdit.model.diffusion import loss
from maskdit.model.masking import masked as hidden
from maskdit.model.masking import sample_mask
from maskdit.model.transformer import MaskDiT
from maskdit.training import train
from maskdit.training.batches import batch_at
from small import latents, masked, pretrained, weights  # noqa: F401, a fixture

ENCODER = {"patch": 2, "depth": 5, "width": 16, "heads": 2}
STAY = torch.tensor([[0, 3, 7, 15], [1, 2, 9, 15], [4, 5, 6, 8]])
ROUTE = {"first": 1, "last": 3, "ratio": 0.75}


def network(decoder=None, route=None, defer=0):
    """A network of five blocks whose weights are all random, set up for training."""
    torch.manual_seed(0)
    net = MaskDiT(side=8, channels=2, classes=3, encoder=ENCODER, decoder=decoder)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    net.defer, net.route = defer, Route(**route) if route else None
    return net


def routed(*milestones, **changes):
    """A DiT of three blocks in training, half of whose tokens skip the middle one."""
    way = {"mask_ratio": 0.0, "decoder": None, "encoder": {**ENCODER, "depth": 3}, "route": {"first": 1, "last": 1, "ratio": 0.5}}
    return masked(*milestones, **{**way, **changes})


def passing(net, *inputs, **chosen):
    """What goes into each block of the encoder, and what comes out of it, in one pass."""
    seen = []
    hooks = [block.register_forward_hook(lambda _, came, went: seen.append((came[0], went))) for block in net.blocks]
    net(*inputs, **chosen)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("first", "last"), [(1, 3), (0, 2), (2, 4), (0, 4), (2, 2)])
def test_a_token_that_skips_blocks_comes_back_to_its_place_as_it_went(first, last, given):
    seen = passing(network(route={**ROUTE, "first": first, "last": last}), *given, stay_BK=STAY)
    assert [came.shape[1] for came, _ in seen] == [4 if first <= block <= last else 16 for block in range(5)]
    if first > 0 and last < 4:
        before, after, skipped = seen[first - 1][1], seen[last + 1][0], hidden(STAY, 16)
        assert torch.equal(after[skipped], before[skipped])
        assert torch.equal(after[~skipped], seen[last][1].flatten(0, 1))


def test_a_mask_that_waits_hides_tokens_from_the_later_blocks_only(given):
    seen = passing(network(DECODER, defer=2), *given, kept_BK=STAY)
    assert [came.shape[1] for came, _ in seen] == [16, 16, 4, 4, 4]
    assert torch.equal(seen[2][0], seen[1][1][~hidden(STAY, 16)].view(3, 4, 16))


def test_with_every_token_on_its_way_all_networks_are_one(given):
    plain, whole = network(DECODER)(*given), torch.arange(16).expand(3, -1)
    assert torch.equal(network(DECODER, route=ROUTE, defer=2)(*given), plain), "nothing is hidden when it samples"
    assert torch.equal(network(DECODER, route=ROUTE)(*given, stay_BK=whole), plain)
    torch.testing.assert_close(network(DECODER, defer=2)(*given, kept_BK=whole), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("decoder", "switch", "chosen"),
    [
        (None, {"route": ROUTE}, "stay_BK"),
        (DECODER, {"route": {**ROUTE, "first": 0}}, "stay_BK"),
        (DECODER, {"defer": 2}, "kept_BK"),
        (DECODER, {}, "kept_BK"),
    ],
)
def test_the_flops_are_those_that_torch_counts(decoder, switch, chosen, given):
    net = network(decoder, **switch)
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        net(*(part[:1] for part in given), **{chosen: STAY[:1]})
    entry = masked(1, encoder=ENCODER, decoder=decoder, mask_ratio=0.0 if chosen == "stay_BK" else 0.75, **switch)
    method = of_entry(entry, {"side": 8, "channels": 2, "classes": 3, "encoder": ENCODER, "decoder": decoder})
    assert counter.get_total_flops() == method.flops(entry, method.kept(entry, 0))


def test_routing_changes_no_other_draw(latents):
    data = Latents.load(latents)
    plain, ours = (batch_at(3, routed(4), data, 16, extra=extra) for extra in (0, 16))
    for name in ("normal_B", "noise_BCHW", "scores_BL", "drop_B"):
        assert torch.equal(getattr(plain.draw, name), getattr(ours.draw, name))
    assert torch.equal(plain.clean, ours.clean)
    assert plain.draw.extra_BN is None
    assert ours.draw.extra_BN.shape == (4, 16)
    halves = [batch_at(3, routed(4), data, 16, rank, 2, extra=16).draw.extra_BN for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), ours.draw.extra_BN), "for any number of processes"
    assert len(np.unique(torch.cat([ours.draw.extra_BN, batch_at(4, routed(4), data, 16, extra=16).draw.extra_BN]))) == 128


def test_a_routed_loss_is_that_over_all_tokens_and_reaches_every_weight(latents):
    net, batch = network(route=ROUTE), batch_at(0, routed(4), Latents.load(latents), 16, extra=16)
    options = {"patch": 2, "keep": 16, "mae_weight": 0.1, "label_dropout": 0.1}
    denoising, mae = loss(net, batch.clean, batch.labels, batch.draw, **options, stay=4)
    same, _ = loss(net, batch.clean, batch.labels, batch.draw, **options, stay=16)
    assert not mae.any()
    assert not torch.allclose(denoising, same)
    denoising.sum().backward()
    assert all(weight.grad.any() for weight in net.parameters() if weight.requires_grad)
    assert (sample_mask(batch.draw.extra_BN, 4).diff(dim=1) > 0).all()


@pytest.mark.parametrize(
    "switch", [{}, {"mask_ratio": 0.5, "decoder": {"depth": 1, "width": 8, "heads": 2}, "route": None, "defer": 1}]
)
def test_an_interrupted_training_ends_with_the_same_bits(switch, latents, monkeypatch):
    config = routed(6, **switch)
    whole = pretrained(latents, "whole", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)
    real = train.batch_at

    def dying(step, **rest):
        if step == 4:
            raise KeyboardInterrupt
        return real(step, **rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "batch_at", dying)
        pretrained(latents, "cut", config)
    assert weights(pretrained(latents, "resumed", config)) == weights(whole)
    plain = routed(6, **{**switch, "route": None, "defer": 0})
    assert weights(pretrained(latents, "plain", plain)) != weights(whole), "and the switch does something"


@pytest.mark.parametrize(
    ("switch", "line"),
    [
        ({"route": {"first": 2, "last": 1, "ratio": 0.5}}, "last 1 comes before first 2"),
        ({"route": {"first": 0, "last": 1, "ratio": 0.0}}, "greater than 0"),
        ({"route": {"first": 0, "last": 1, "ratio": 1.0}}, "less than 1"),
        ({"mask_ratio": 0.5}, "route cannot be combined with a mask; set mask_ratio: 0.0 and defer: 0"),
        ({"defer": 1}, "route cannot be combined with a mask"),
        ({"route": None, "defer": -1}, "greater than or equal to 0"),
        ({"route": None, "defer": 1}, "defer has no effect without a mask; set a mask_ratio above 0, or defer: 0"),
    ],
)
def test_nonsense_is_refused(switch, line):
    with pytest.raises(ValidationError, match=line):
        Pretrain.model_validate(routed(2).model_dump() | switch)
