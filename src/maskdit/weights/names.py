"""The names that others give to the same tensors: MaskDiT's checkpoints, DiT's, and DiT's in diffusers.

Pure functions of dictionaries of tensors. W width of a token, N number of classes.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

from maskdit.config.base import UserError

Tensors = dict[str, Tensor]

TABLE = "y_embedder.embedding_table.weight"
USUAL_HEADS = {1152: 16, 1024: 16, 512: 16}  # by width; S and B have 64 numbers a head
WRAPPERS = ("_orig_mod", "module")  # of torch.compile and DistributedDataParallel, anywhere in a name


def unwrapped(tensors: Tensors) -> Tensors:
    """Our names of a checkpoint's tensors: without wrappers and without the `model.` before all of MaskDiT's.

    Raises UserError if two tensors get one name.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        ours = ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix("model.")
        if ours in found:
            raise UserError(f"{name}: there are two tensors of this name")
        found[ours] = tensor
    return found


def wrapped(tensors: Tensors) -> Tensors:
    """MaskDiT's names of ours."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def is_dit(tensors: Tensors) -> bool:
    """Whether the label table is an embedding (N + 1, W), as in DiT, and not a linear layer (W, N)."""
    return shape(tensors, TABLE, 2)[0] != shape(tensors, "x_embedder.proj.weight", 4)[0]


def shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor; raises UserError if it is missing or has another number of dimensions."""
    if name not in tensors:
        raise UserError(f"{name}: missing; this is no MaskDiT and no DiT")
    found = tuple(tensors[name].shape)
    if len(found) != dimensions or 0 in found:
        raise UserError(f"{name}: has shape {found}, {dimensions} dimensions are wanted")
    return found


def depth(tensors: Tensors, stack: str) -> int:
    """How many blocks of a stack there are."""
    return len({found[1] for name in tensors if (found := re.match(rf"{stack}\.(\d+)\.", name))})


def heads_of(width: int, told: int | None) -> int:
    """Heads of a stack, which no shape shows: as told, else as the published sizes have them.

    Raises UserError if they are not known or do not divide the width.
    """
    heads = told or USUAL_HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if heads is None or width % heads:
        raise UserError(f"heads: {heads or 'unknown'} at width {width}; name them with --heads ENCODER [DECODER]")
    return heads


def architecture(tensors: Tensors, heads: list[int]) -> dict[str, Any]:
    """The network that the shapes imply, as the arguments of MaskDiT; `heads` of encoder and decoder where they are told.

    Raises UserError, naming the tensor, if there is none.
    """
    told = [*heads, None, None]
    width, channels, patch, _ = shape(tensors, "x_embedder.proj.weight", 4)
    tokens = shape(tensors, "pos_embed", 3)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"pos_embed: {tokens} places are no square")
    decoder = None
    if "decoder_layer.linear.weight" in tensors:
        inner = shape(tensors, "decoder_layer.linear.weight", 2)[0]
        decoder = {"depth": depth(tensors, "decoder_blocks"), "width": inner, "heads": heads_of(inner, told[1])}
    found = {
        "side": math.isqrt(tokens) * patch,
        "channels": channels,
        "classes": shape(tensors, TABLE, 2)[1],
        "encoder": {"depth": depth(tensors, "blocks"), "width": width, "heads": heads_of(width, told[0]), "patch": patch},
        "decoder": decoder,
    }
    out = shape(tensors, "final_layer.linear.weight", 2)[0] // patch**2
    return found if out == channels else {**found, "out_channels": out}


def from_dit(tensors: Tensors) -> Tensors:
    """DiT's tensors as ours: the last row of its table is the null class, which for us is the zero vector.

    A condition is time + table[class], so subtracting the null row from each class and adding it to the time's bias changes
    nothing (but the last bit).
    """
    bias = "t_embedder.mlp.2.bias"
    shape(tensors, bias, 1)
    table = tensors[TABLE].double()
    null = table[-1]
    if tensors[bias].shape != null.shape:
        raise UserError(f"{bias}: has shape {tuple(tensors[bias].shape)}, {tuple(null.shape)} is wanted")
    kind = tensors[bias].dtype
    moved = {TABLE: (table[:-1] - null).T.contiguous().to(kind), bias: (tensors[bias].double() + null).to(kind)}
    return {**tensors, **moved}


CONFIG = {  # of DiTTransformer2DModel: what makes it DiT
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
BLOCK = {  # diffusers' names within a block: DiT's
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
EMBEDDERS = {  # a copy in each block
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",  # shift, then scale, as in DiT
    "proj_out_2": "final_layer.linear",
}


def from_diffusers(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The tensors of a DiTTransformer2DModel under DiT's names; its fixed positions are in no file and are missing here.

    The network is computed as it was trained: diffusers' own class spaces the time's frequencies by 127 instead of 128, and has
    an epsilon of 1e-5 in the second norm, so that its outputs differ a little from those of DiT's authors.
    Raises UserError for another kind of network, for an unknown name, and if the blocks' copies of the embedders differ.
    """
    for name, wanted in CONFIG.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"config.json: {name} is {config[name]!r}, DiT has {wanted!r}")
    found: Tensors = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        match = re.match(r"transformer_blocks\.(\d+)\.(.+)", stem)
        inner = match[2] if match else ""
        if stem in ENDS:
            found[f"{ENDS[stem]}.{kind}"] = tensor
        elif match and inner in EMBEDDERS:
            known = found.setdefault(f"{EMBEDDERS[inner]}.{kind}", tensor)
            if not torch.equal(known, tensor):
                raise UserError(f"{name}: differs from that of another block; our network has one for all")
        elif match and inner in BLOCK:
            found[f"blocks.{match[1]}.{BLOCK[inner]}.{kind}"] = tensor
        elif match and inner in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{kind}", {})[inner[-1]] = tensor
        else:
            raise UserError(f"{name}: not a tensor of DiT")
    for name, three in parts.items():
        if set(three) != set("qkv") or len({each.shape[1:] for each in three.values()}) > 1:
            raise UserError(f"{name}: to_q, to_k and to_v do not make one")
        found[name] = torch.cat([three[letter] for letter in "qkv"])
    return found
