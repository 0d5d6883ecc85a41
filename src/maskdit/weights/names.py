"""Tensors under the names of MaskDiT's checkpoints, DiT's, and DiT's in diffusers, and under ours. Shapes: W width, N classes."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskdit.config.base import UserError
from maskdit.model.transformer import positions

Tensors = dict[str, Tensor]

PROJECTION = "x_embedder.proj.weight"  # which every network has
COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}  # of averages: AveragedModel's, and those of EMA classes
TABLE = "y_embedder.embedding_table.weight"
USUAL_HEADS = {1152: 16, 512: 16}  # of the XL encoder and of the decoder; the smaller sizes have 64 channels per head
WRAPPERS = ("_orig_mod", "module")  # inserted anywhere in a name by torch.compile and DistributedDataParallel


def unwrapped(tensors: Tensors) -> Tensors:
    """Tensors without the wrappers in their names. Raises UserError if two get the same name."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        ours = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if ours in found:
            raise UserError(f"{name}: two tensors have this name")
        found[ours] = tensor
    return found


def networks(tensors: Tensors, others: bool = False) -> dict[str, Tensors]:
    """The networks in a state dict, under our names, by what stands before them there: model. in MaskDiT's own.

    Counters of averages are left out, and so are tensors beside the networks if there may be `others`. Raises UserError if there is
    no network, and for an unknown tensor.
    """
    known = {name: tensor for name, tensor in unwrapped(tensors).items() if name not in COUNTERS}
    heads = [name.removesuffix(PROJECTION) for name in known if f".{name}".endswith(f".{PROJECTION}")]
    if not heads:
        raise UserError(
            f"neither MaskDiT nor DiT: has no {PROJECTION} among {', '.join(list(known)[:3])} and {len(known)} tensors in all"
        )
    found: dict[str, Tensors] = {head: {} for head in heads}
    for name, tensor in known.items():
        head = max((head for head in heads if name.startswith(head)), key=len, default=None)
        if head is not None:
            found[head][name.removeprefix(head)] = tensor
        elif not others:
            raise UserError(f"{name} is not a tensor of this network")
    return found


def is_average(head: str) -> bool:
    """Whether weights are averaged, by what stands before their names."""
    return any(word in head for word in ("ema", "average"))


def placed(tensors: Tensors, side: int | None) -> Tensors:
    """Tensors with the fixed positions of encoder and decoder, which are computed where they are missing.

    Each of the two tells the number of tokens; without both, the side of the latents does. Raises UserError without that.
    """
    width, _, patch, _ = shape(tensors, PROJECTION, 4)
    missing = {"pos_embed": width} if "pos_embed" not in tensors else {}
    if "decoder_layer.linear.weight" in tensors and "decoder_pos_embed" not in tensors:
        missing["decoder_pos_embed"] = shape(tensors, "decoder_layer.linear.weight", 2)[0]
    if not missing:
        return tensors
    known = next((shape(tensors, name, 3)[1] for name in ("pos_embed", "decoder_pos_embed") if name in tensors), None)
    if known is None and side is None:
        raise UserError("has no pos_embed, and does not state the side of its latents; set it with --side N (32 for 256 pixels)")
    if known is None and (side or 0) % patch:
        raise UserError(f"x_embedder.proj.weight: a patch of {patch} does not divide a side of {side}; correct --side")
    across = math.isqrt(known) if known else (side or 0) // patch
    return {**tensors, **{name: positions(across, wide) for name, wide in missing.items()}}


def wrapped(tensors: Tensors) -> Tensors:
    """Our tensors under MaskDiT's names."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises UserError if it is missing, empty, or has another number of dimensions."""
    if name not in tensors:
        raise UserError(f"{name}: missing; the weights are neither MaskDiT nor DiT")
    found = tuple(tensors[name].shape)
    if len(found) != dimensions or 0 in found:
        raise UserError(f"{name}: has shape {found}, expected {dimensions} dimensions")
    return found


def depth(tensors: Tensors, stack: str) -> int:
    """Number of blocks of a stack."""
    return len({found[1] for name in tensors if (found := re.match(rf"{stack}\.(\d+)\.", name))})


def heads_of(width: int, told: int | None) -> int:
    """Heads of a stack: `told`, or else the published number. Raises UserError if unknown or not a divisor of the width."""
    heads = told or USUAL_HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if heads is None or width % heads:
        raise UserError(f"heads: {heads or 'unknown'} at width {width}; set them with --heads ENCODER [DECODER]")
    return heads


def architecture(tensors: Tensors, heads: Sequence[int]) -> dict[str, Any]:
    """Arguments of MaskDiT, from the shapes and, if given, `heads`. Raises UserError, naming the tensor, if none fit."""
    told = [*heads, None, None]
    width, channels, patch, _ = shape(tensors, PROJECTION, 4)
    tokens = shape(tensors, "pos_embed", 3)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"pos_embed: {tokens} positions do not form a square")
    encoder = {"depth": depth(tensors, "blocks"), "width": width, "heads": heads_of(width, told[0]), "patch": patch}
    decoder = None
    if "decoder_layer.linear.weight" in tensors:
        inner = shape(tensors, "decoder_layer.linear.weight", 2)[0]
        decoder = {"depth": depth(tensors, "decoder_blocks"), "width": inner, "heads": heads_of(inner, told[1])}
    found: dict[str, Any] = {"side": math.isqrt(tokens) * patch, "channels": channels, "classes": shape(tensors, TABLE, 2)[1]}
    found |= {"encoder": encoder, "decoder": decoder}
    out = shape(tensors, "final_layer.linear.weight", 2)[0] // patch**2
    return found if out == channels else {**found, "out_channels": out}


def from_dit(tensors: Tensors) -> Tensors:
    """DiT's tensors as ours. The last row of DiT's table is the null class, which is the zero vector in our network.

    A condition is time + table[class]. Subtracting the null row from each class and adding it to the time's bias therefore changes
    only the last bit. Raises UserError if the bias and the table have different widths.
    """
    bias = "t_embedder.mlp.2.bias"
    shape(tensors, bias, 1)
    table = tensors[TABLE].double()
    null = table[-1]
    if tensors[bias].shape != null.shape:
        raise UserError(f"{bias}: has shape {tuple(tensors[bias].shape)}, expected {tuple(null.shape)}")
    kind = tensors[bias].dtype
    moved = {TABLE: (table[:-1] - null).T.contiguous().to(kind), bias: (tensors[bias].double() + null).to(kind)}
    return {**tensors, **moved}


CONFIG = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
# diffusers' names -> DiT's: within a block, of the embedders (a copy in each block), and outside the blocks
BLOCK = {"norm1.linear": "adaLN_modulation.1", "attn1.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2"}
EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
ENDS = {"pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1", "proj_out_2": "final_layer.linear"}


def from_diffusers(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The tensors of a DiTTransformer2DModel under DiT's names, without the fixed positions, which no file contains.

    Our network computes what DiT's authors trained. Outputs of diffusers' own class differ slightly: it spaces the time's
    frequencies by 127 instead of 128 and uses an epsilon of 1e-5 in the second norm.
    Raises UserError for another network, an unknown name, and copies of the embedders that differ.
    """
    for name, wanted in CONFIG.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"config.json: {name} is {config[name]!r}, DiT has {wanted!r}")
    found: Tensors = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        match = re.match(r"transformer_blocks\.(\d+)\.(.+)", stem)
        block, inner = match.groups() if match else ("", "")
        if stem in ENDS:
            found[f"{ENDS[stem]}.{kind}"] = tensor
        elif inner in EMBEDDERS:
            if not torch.equal(found.setdefault(f"{EMBEDDERS[inner]}.{kind}", tensor), tensor):
                raise UserError(f"{name}: differs between blocks; our network has one embedder for all blocks")
        elif inner in BLOCK:
            found[f"blocks.{block}.{BLOCK[inner]}.{kind}"] = tensor
        elif inner in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            parts.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[inner[-1]] = tensor
        else:
            raise UserError(f"{name}: not a tensor of DiT")
    for name, three in parts.items():
        if set(three) != set("qkv") or len({each.shape[1:] for each in three.values()}) > 1:
            raise UserError(f"{name}: needs to_q, to_k and to_v of matching shapes")
        found[name] = torch.cat([three[letter] for letter in "qkv"])
    return found
