"""The memory of a step in closed form: against what autograd keeps, and the sizes of the paper's networks."""

import pytest
import torch

from maskdit.config.load import load
from maskdit.config.training import Pretrain
from maskdit.model import transformer
from maskdit.model.memory import SAVED, Memory, step_memory
from maskdit.model.transformer import Block
from maskdit.runtime.device import autocast
from maskdit.tools.cost import Costs, Site
from project import ROOT
from small import COMMON

CPU = torch.device("cpu")


def kept(block, width, tokens, precision):
    """Bytes that a pass keeps for the backward pass, for each token and unit of width; weights do not count."""
    seen, weights = {}, {weight.untyped_storage().data_ptr() for weight in block.parameters()}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, condition = torch.randn(2, tokens, width, requires_grad=True), torch.randn(2, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(CPU, precision):
        block(x, condition)
    return sum(size for place, size in seen.items() if place not in weights) / (2 * tokens * width)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_block_keeps_as_many_bytes_as_the_formula_says(precision, compiled, monkeypatch):
    monkeypatch.setattr(transformer, "attend", torch.nn.functional.scaled_dot_product_attention)  # as on a GPU
    torch.manual_seed(0)
    block = Block(256, 4, 256).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if compiled:  # what is kept is decided before the code is made
        block.compile(backend="aot_eager_decomp_partition", dynamic=False)
    assert kept(block, 256, 128, precision) == pytest.approx(SAVED[precision == "bf16", compiled], rel=0.02)


def test_short_sequences_in_bf16_on_a_cpu_keep_their_attention_too():
    torch.manual_seed(0)
    block = Block(256, 4, 256).bfloat16()
    config = Pretrain.model_validate(
        {
            **COMMON,
            "encoder": {"patch": 1, "depth": 1, "width": 256, "heads": 4},
            "decoder": None,
            "mask_ratio": 0.0,
            "milestones": (1,),
        }
    )
    plain, explicit = (step_memory(config, True, cpu, 0, [(256, 4, 128)]).image / 4 for cpu in (False, True))
    assert (explicit - plain) / (128 * 256) == pytest.approx(2 * 4 * 128 / 256)
    assert kept(block, 256, 128, "bf16") == pytest.approx(explicit / (128 * 256), rel=0.02)


EXPECTED = [  # GB for a GPU of eight; activations by measured bytes a token, and what is there for a moment in addition
    ("pretrain/in256-maskdit", 128, 40, 46),
    ("pretrain/in256-dit-control", 128, 53, 60),
    ("pretrain/in512-maskdit", 128, 112, 124),
    ("pretrain/in512-dit-control", 128, 170, 187),
    ("finetune/in512-maskdit-open", 64, 175, 196),
]


@pytest.mark.parametrize(("node", "images", "low", "high"), EXPECTED)
def test_the_paper_s_networks_need_what_was_predicted_for_them(node, images, low, high):
    memory = Costs(load(ROOT / "params.yaml")).memory(node, Site("h100", 0.4, 8, 0.0))
    assert low < memory.of(images) / 1e9 < high
    checkpointing = Costs(load(ROOT / "params.yaml"))
    verb, key = node.split("/")
    entries = getattr(checkpointing.params, verb)
    entries[key] = entries[key].model_copy(update={"checkpointing": True})
    assert checkpointing.memory(node, Site("h100", 0.4, 8, 0.0)).image < 0.35 * memory.image


def test_the_largest_divisor_of_the_share_that_fits_with_a_margin_is_taken():
    memory = Memory(10.0, 1.0)
    assert [memory.fitting(12, free) for free in (100, 22 / 0.9, 21.9 / 0.9, 14.1 / 0.9, 1)] == [12, 12, 6, 4, 1]
