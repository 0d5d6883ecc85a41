"""The encoder-decoder transformer of MaskDiT; without a decoder it is DiT (Peebles and Xie 2023).

Shapes: B batch, C channels, H height, W width, L patches, K kept patches, D width of a token, P numbers in a patch.
Parameter names and shapes are those of the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskdit.config.training import Route
from maskdit.model.flops import FREQUENCIES, forward, seen
from maskdit.model.masking import gather, patchify, restore, unpatchify

MLP_RATIO = 4


def positions(side: int, width: int) -> Tensor:
    """Fixed two-dimensional sine-cosine positions (1, side * side, width): half the width for the column, half for the row."""
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # side, width / 2
    column = line[None, :, :].expand(side, side, -1)
    row = line[:, None, :].expand(side, side, -1)
    return torch.cat([column, row], dim=2).reshape(1, side * side, width).float()


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Layer norm without parameters, then scale and shift from the condition."""
    normed = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)
    return normed * (1 + scale_BD.unsqueeze(1)) + shift_BD.unsqueeze(1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def adaptive(condition: int, width: int, parts: int) -> nn.Sequential:
    """SiLU and a linear layer from the condition to `parts` vectors, zero at the start (adaLN-Zero)."""
    return nn.Sequential(nn.SiLU(), zeroed(nn.Linear(condition, parts * width)))


class PatchEmbed(nn.Module):
    """Patches to tokens; the weight is kept as that of a convolution."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, patches_BKP: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # to the (row, column, channel) order of patches
        return F.linear(patches_BKP, weight, self.proj.bias)


class NoiseEmbed(nn.Module):
    """c_noise (B,) to a vector: a sinusoid of 256 numbers, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        for name, parameter in self.mlp.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)

    def forward(self, c_noise_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        omega = torch.exp(-math.log(10000) * torch.arange(half, device=c_noise_B.device, dtype=c_noise_B.dtype) / half)
        angle = c_noise_B[:, None] * omega
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class LabelEmbed(nn.Module):
    """Class numbers (B,) to vectors; the null label -1 gives zero."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Linear(classes, width, bias=False)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels_B: Tensor) -> Tensor:
        rows = F.embedding(labels_B.clamp(min=0), self.embedding_table.weight.T)
        return rows * (labels_B >= 0).unsqueeze(1)


def attend(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
    """Softmax attention by torch's kernel; in bfloat16 on a CPU, for short sequences, by products, which are faster there."""
    if q_BHLD.device.type == "cpu" and q_BHLD.dtype == torch.bfloat16 and q_BHLD.shape[2] <= 512:
        scores = (q_BHLD * q_BHLD.shape[-1] ** -0.5) @ k_BHLD.transpose(-2, -1)
        return scores.softmax(-1).to(v_BHLD.dtype) @ v_BHLD
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD)


class Attention(nn.Module):
    """Self-attention over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(B, L, D))


def gelu(x_BLD: Tensor) -> Tensor:
    """GELU in its tanh form; compiled, by the equal x * sigmoid(2 u), for which an exponential is enough."""
    if torch.compiler.is_compiling():
        return x_BLD * torch.sigmoid(math.sqrt(8 / math.pi) * (x_BLD + 0.044715 * x_BLD * x_BLD * x_BLD))
    return F.gelu(x_BLD, approximate="tanh")


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x_BLD)))


class Block(nn.Module):
    """A transformer block whose norms and residuals are modulated by the condition."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)
        for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.adaLN_modulation = adaptive(condition, width, 6)

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition_BD).chunk(6, dim=1)
        x_BLD = x_BLD + gate1.unsqueeze(1) * self.attn(modulate(x_BLD, shift1, scale1))
        return x_BLD + gate2.unsqueeze(1) * self.mlp(modulate(x_BLD, shift2, scale2))


class Out(nn.Module):
    """A modulated norm and a linear layer, zero at the start: the bridge to the decoder, and the last layer."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(width, out))
        self.adaLN_modulation = adaptive(condition, width, 2)

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition_BD).chunk(2, dim=1)
        return self.linear(modulate(x_BLD, shift, scale))


class Packed(nn.Module):
    """A linear layer, and GELU (tanh) if that is its activation, for bfloat16 inference on a CPU: the weight in oneDNN's order."""

    def __init__(self, layer: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16())
        self.bias = layer.bias.detach().bfloat16()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, self.activation, [], "tanh")


class MaskDiT(nn.Module):
    """F(c_in * y; c_noise, label): the raw network inside the preconditioning.

    The encoder sees the kept patches only; the bridge narrows its tokens, the mask token fills the hidden places, and the
    decoder sees them all. With decoder None it is DiT and every patch is kept.
    `encoder` and `decoder` are the dictionaries of params.yaml; `side` is the latent's side in positions. `out_channels` is that of
    the latents if None; the released DiT has twice as many, for it also predicts a variance.
    """

    def __init__(
        self,
        *,
        side: int,
        channels: int,
        classes: int,
        encoder: dict[str, int],
        decoder: dict[str, int] | None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.out_channels = encoder["patch"], out_channels or channels
        width, out = encoder["width"], self.patch**2 * self.out_channels
        tokens = side // self.patch
        self.x_embedder = PatchEmbed(channels, self.patch, width)
        self.t_embedder = NoiseEmbed(width)
        self.y_embedder = LabelEmbed(classes, width)
        self.pos_embed = nn.Parameter(positions(tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, encoder["heads"], width) for _ in range(encoder["depth"]))
        self.decoder_layer: Out | None = None
        if decoder is not None:
            inner = decoder["width"]
            self.decoder_layer = Out(width, inner, width)
            self.mask_token = nn.Parameter(torch.empty(1, 1, inner).normal_(std=0.02))
            self.decoder_pos_embed = nn.Parameter(positions(tokens, inner), requires_grad=False)
            self.decoder_blocks = nn.ModuleList(Block(inner, decoder["heads"], width) for _ in range(decoder["depth"]))
        self.final_layer = Out(width if decoder is None else decoder["width"], out, width)
        self.checkpointing, self.defer = False, 0
        self.route: Route | None = None  # the last two for training only: without a mask and with no token chosen they do nothing

    def stack(self) -> list[nn.Module]:
        """All blocks, the encoder's and the decoder's."""
        return [*self.blocks, *(self.decoder_blocks if self.decoder_layer is not None else ())]

    def forward(
        self, x_BCHW: Tensor, c_noise_B: Tensor, labels_B: Tensor, kept_BK: Tensor | None = None, stay_BK: Tensor | None = None
    ) -> Tensor:
        """Latents (B, C, H, W), noise levels and class numbers (-1: null) to an output of their height and width.

        `kept_BK` are the tokens that the encoder sees after its first `defer` blocks, `stay_BK` those that do not skip `route`.
        """
        places: Tensor = self.pos_embed
        condition = self.t_embedder(c_noise_B.to(places.dtype)) + self.y_embedder(labels_B)
        patches = patchify(x_BCHW.to(places.dtype), self.patch)
        L = patches.shape[1]
        if kept_BK is not None and not self.defer:
            patches, places = gather(patches, kept_BK), gather(places.expand(len(kept_BK), -1, -1), kept_BK)
        x = whole = self.x_embedder(patches) + places
        for number, block in enumerate(self.blocks):
            if kept_BK is not None and number == self.defer > 0:
                x = gather(x, kept_BK)
            if stay_BK is not None and self.route and number == self.route.first:
                whole, x = x, gather(x, stay_BK)
            x = self.through(block, x, condition)
            if stay_BK is not None and self.route and number == self.route.last:
                x = restore(x, stay_BK, L, whole)
        if self.decoder_layer is not None:
            x = self.decoder_layer(x, condition)
            if kept_BK is not None:
                x = restore(x, kept_BK, L, self.mask_token)
            x = x + (self.decoder_pos_embed + 0 * self.mask_token)  # the token has a gradient, if 0, with nothing hidden too
            for block in self.decoder_blocks:
                x = self.through(block, x, condition)
        return unpatchify(self.final_layer(x, condition), self.patch, self.out_channels)

    def through(self, block: nn.Module, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        """A block's output; with `checkpointing` its activations are computed again in the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x_BLD, condition_BD, use_reentrant=False, preserve_rng_state=False)
        return block(x_BLD, condition_BD)

    def flops(self, kept: int) -> int:
        """Floating-point operations of one image's forward pass with `kept` tokens: 2 per multiply-add of a matrix product.

        As in training, where `defer` and `route` are set.
        """
        tokens, width = self.pos_embed.shape[1], self.pos_embed.shape[2]
        inner, outer = self.final_layer.linear.in_features, self.final_layer.linear.out_features
        numbers = self.x_embedder.proj.weight[0].numel()  # of a patch that comes in
        depth = None if self.decoder_layer is None else len(self.decoder_blocks)
        blocks = seen(len(self.blocks), tokens, kept, self.defer, self.route)
        return forward(tokens, kept, numbers, width, blocks, inner, outer, depth)


def for_inference(net: MaskDiT, dtype: torch.dtype) -> MaskDiT:
    """The network, changed in place: the blocks' weights are converted once, for autocast converts frozen ones at every pass.

    Norms and residual sums stay in float32. In bfloat16 on a CPU the layers are also packed, and the first of an MLP computes GELU
    as it writes, by the operators that torch's own compiler uses there.
    """
    packed = dtype == torch.bfloat16 and net.pos_embed.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for block in [module for module in net.modules() if isinstance(module, Block)]:
        block.to(dtype)
        if packed:
            block.attn.register_module("qkv", Packed(block.attn.qkv))
            block.attn.register_module("proj", Packed(block.attn.proj))
            block.register_module("mlp", nn.Sequential(Packed(block.mlp.fc1, "gelu"), Packed(block.mlp.fc2)))
    return net
