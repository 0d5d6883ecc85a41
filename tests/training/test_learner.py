"""One step of optimisation: what micro-batches, checkpointing, precision, ranks and bad gradients do to it, or must not."""

import gc
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import warm
from maskdit.config.training import Pretrain
from maskdit.methods.plugins import of_entry
from maskdit.model import ema
from maskdit.model.diffusion import Draw
from maskdit.model.transformer import MaskDiT
from maskdit.runtime.process_group import Ranks, launch
from maskdit.training.batches import Batch
from maskdit.training.learner import Learner

ENCODER, DECODER = {"patch": 2, "depth": 2, "width": 32, "heads": 2}, {"depth": 1, "width": 16, "heads": 2}
ENTRY = {
    "dataset": "toy",
    "seed": 0,
    "encoder": ENCODER,
    "decoder": DECODER,
    "mask_ratio": 0.5,
    "mae_weight": 0.1,
    "batch": 6,
    "milestones": (1,),
    "lr": 1e-3,
    "betas": (0.9, 0.99),
    "warmup": 0,
    "ema": 0.9,
    "ema_warmup": 1,
    "label_dropout": 0.1,
    "precision": "fp32",
}
ALONE = Ranks(0, 1)


def learner(ranks=ALONE, **changes):
    """A learner of a small network with random weights."""
    torch.manual_seed(0)
    config = Pretrain.model_validate({**ENTRY, **changes})
    method = of_entry(config, {"side": 8, "channels": 4, "classes": 3, "encoder": ENCODER, "decoder": DECODER})
    net = method.network(config)
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return Learner(net, net.state_dict(), config, method, torch.device("cpu"), ranks)


def batch(seed=0, count=6):
    source = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 4, 8, 8, generator=source)
    noise, scores = torch.randn(count, 4, 8, 8, generator=source), torch.rand(count, 16, generator=source)
    draw = Draw(torch.randn(count, generator=source), noise, scores, torch.rand(count, generator=source))
    return Batch(image, torch.arange(count) % 3, draw)


def test_the_gradient_does_not_depend_on_the_micro_batch():
    whole, parts = learner(), learner(micro_batch=4)
    terms = [each.gradients(batch(), 8) for each in (whole, parts)]
    torch.testing.assert_close(terms[0], terms[1])
    torch.testing.assert_close(whole.gradient, parts.gradient, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_autograd_on_the_network_alone():
    from maskdit.model.diffusion import loss

    ours, given = learner(), batch()
    ours.gradients(given, 8)
    net = MaskDiT(side=8, channels=4, classes=3, encoder=ENCODER, decoder=DECODER)
    net.load_state_dict(ours.weights(ours.masters.detach()))
    pair = loss(net, given.clean, given.labels, given.draw, patch=2, keep=8, mae_weight=0.1, label_dropout=0.1)
    sum(term.mean() for term in pair).backward()
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(ours.weights(ours.gradient)[name], weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_computing_activations_again_changes_no_bit(precision):
    plain, again = learner(precision=precision), learner(precision=precision, checkpointing=True)
    assert torch.equal(plain.gradients(batch(), 8), again.gradients(batch(), 8))
    assert torch.equal(plain.gradient, again.gradient)


def test_checkpointing_keeps_less_than_half_of_the_activations():
    def kept(checkpointing: bool) -> int:
        seen: dict[int, int] = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        one = learner(checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one.gradients(batch(), 8)
        return sum(seen.values())

    assert kept(True) < 0.5 * kept(False)


def test_an_update_is_adamw_s_and_the_average_s_formula():
    ours = learner(ema=0.9, warmup=4)
    weight = torch.nn.Parameter(ours.masters.detach().clone())
    average = ours.average.clone()
    theirs = torch.optim.AdamW([weight], betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
    for step in range(6):
        ours.gradients(batch(step), 8)
        weight.grad = ours.gradient.clone()
        theirs.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 4)
        theirs.step()
        assert ours.update(step) == pytest.approx(theirs.param_groups[0]["lr"])
        torch.testing.assert_close(ours.masters, weight)
        average = 0.9 * average + 0.1 * weight.detach()
        torch.testing.assert_close(ours.average, average)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_rounds_products_and_keeps_weights_in_float32(precision):
    exact, rounded = learner(), learner(precision=precision)
    for step in range(3):
        for each in (exact, rounded):
            each.gradients(batch(step), 8)
            each.update(step)
    assert rounded.masters.dtype == rounded.gradient.dtype == rounded.average.dtype == torch.float32
    assert all(weight.dtype != torch.float32 for name, weight in rounded.net.named_parameters() if name in rounded.shapes)
    torch.testing.assert_close(rounded.copy, rounded.masters.detach().to(rounded.copy.dtype))
    direction = torch.nn.functional.cosine_similarity(exact.gradient, rounded.gradient / rounded.scale, dim=0)
    assert direction > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(precision):
    ours = learner(precision=precision, posthoc_ema=(0.1,))
    ours.gradients(batch(), 8)
    ours.update(0)
    before = {name: tensor.clone() for name, tensor in ours.state().items()}
    broken = batch(1)
    broken.clean[2, 0, 0, 0] = torch.inf
    for step in (1, 2):
        ours.gradients(broken, 8)
        ours.update(step)
    for name, tensor in ours.state().items():
        if name not in ("streak", "skipped"):
            assert torch.equal(tensor, before[name]), name
    assert ours.streak == ours.skipped == 2
    ours.gradients(batch(2), 8)
    ours.update(3)
    assert (ours.streak, ours.skipped) == (0, 2)
    assert not torch.equal(ours.masters, before["masters"])


def test_fp16_halves_the_scale_of_a_loss_that_overflows_and_doubles_it_after_a_while(monkeypatch):
    monkeypatch.setattr("maskdit.training.learner.GROWTH_STEPS", 2)
    ours = learner(precision="fp16")
    assert ours.scale == 2**16
    good, large = batch(), batch(1)
    large.clean.mul_(1e4)
    ours.gradients(large, 8)
    ours.update(0)
    assert ours.scale == 2**15
    assert ours.streak == 0, "a large scale explains it"
    for step in (1, 2):
        ours.gradients(good, 8)
        ours.update(step)
    assert ours.scale == 2**16


def test_a_state_restored_goes_on_with_the_same_bits():
    first, second = learner(precision="bf16", posthoc_ema=(0.05,)), learner(precision="bf16", posthoc_ema=(0.05,), seed=1)
    for step in range(3):
        first.gradients(batch(step), 8)
        first.update(step)
    second.restore([{name: tensor.flatten().tensor_split(3)[part] for name, tensor in first.state().items()} for part in range(3)])
    for each in (first, second):
        each.gradients(batch(3), 8)
        each.update(3)
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())


def test_a_learner_that_is_let_go_frees_its_memory():
    ours = learner()
    ours.gradients(batch(), 8)
    gone = weakref.ref(ours), weakref.ref(ours.masters), weakref.ref(ours.net)
    del ours
    gc.collect()
    assert [each() for each in gone] == [None] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's compiler, about its own look at gradients
@pytest.mark.parametrize("schedule", [{}, {"mask_schedule": "cosine4", "schedule_steps": 10}])
def test_compiled_blocks_give_the_same_gradient(schedule):
    plain, compiled = learner(**schedule), learner(compile=True, **schedule)
    for keep in (8, 12, 16) if schedule else (8, 16):
        for each in (plain, compiled):
            each.gradients(batch(), keep)
        torch.testing.assert_close(plain.gradient, compiled.gradient, rtol=1e-4, atol=1e-5)


def test_a_power_function_average_is_the_sum_that_defines_it():
    source = np.random.default_rng(0)
    weights = source.normal(size=50)
    for width in (0.05, 0.1, 0.2):
        gamma = ema.exponent(width)
        assert width**2 == pytest.approx((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        running = 0.0
        for step, weight in enumerate(weights, 1):
            kept = ema.decay(width, step)
            running = kept * running + (1 - kept) * weight
        edges = (np.arange(51) / 50) ** (gamma + 1)  # the share of step s is the profile's integral over its interval
        assert running == pytest.approx((np.diff(edges) * weights).sum())


def test_an_average_of_another_width_is_reconstructed_from_the_kept_ones():
    steps = np.arange(1, 4001)
    weights = np.cumsum(np.random.default_rng(1).normal(size=4000)) / 60 + np.log(steps)

    def average(width: float, until: int) -> float:
        edges = (np.arange(until + 1) / until) ** (ema.exponent(width) + 1)
        return float((np.diff(edges) * weights[:until]).sum())

    kept = [(width, until) for width in (0.05, 0.1) for until in range(250, 4001, 250)]
    for width, until in ((0.07, 4000), (0.09, 3000), (0.05, 4000)):
        factors = ema.combination(kept, width, until)
        found = sum(factor * average(*one) for factor, one in zip(factors, kept, strict=True))
        assert found == pytest.approx(average(width, until), abs=2e-3)
        assert factors.sum() == pytest.approx(1, abs=1e-3)


PROGRAM = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_learner import batch, learner as learner_of
from maskdit.training import learner
from maskdit.runtime.process_group import together

learner.BUCKET = 5000
torch.set_num_threads(1)
with together() as ranks:
    ours = learner_of(ranks, micro_batch=2, lr=1e-4)
    share = 6 // ranks.world
    for step in range(40):
        ours.gradients(batch(step).part(ranks.rank * share, (ranks.rank + 1) * share), 8)
        ours.update(step)
    torch.save(ours.state(), f"{sys.argv[2]}/{ranks.world}-{ranks.rank}.pt")
"""


def test_two_ranks_take_the_steps_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for world in (1, 2, 3):
        assert launch(warm.program(PROGRAM, str(Path(__file__).parent), str(tmp_path)), world) == 0
    states = {file.stem: torch.load(file) for file in tmp_path.glob("*.pt")}
    assert len(states) == 6
    for world in (2, 3):
        for rank in range(world):
            assert torch.equal(states[f"{world}-{rank}"]["masters"], states[f"{world}-0"]["masters"]), "ranks agree to the bit"
            torch.testing.assert_close(states[f"{world}-{rank}"]["masters"], states["1-0"]["masters"], rtol=0, atol=1e-5)


def test_a_rank_that_fails_stops_the_others_and_gives_its_exit_code(tmp_path):
    program = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '1' else sys.exit(2)"
    assert launch([sys.executable, "-c", program], 2) == 2
    assert "RANK" not in os.environ
