"""The encoder-decoder transformer of MaskDiT. Without a decoder it is DiT (Peebles and Xie 2023).

Shapes: B batch, C channels, H height, W width, L patches, K kept patches, D width of a token, P numbers in a patch.
Parameter names and shapes are those of the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskdit.config.training import Route
from maskdit.model.flops import FREQUENCIES, Sizes
from maskdit.model.masking import gather, patchify, restore, unpatchify

MLP_RATIO = 4


def positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, side * side, width): the first half encodes the column, the second the row."""
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # side, width / 2
    return torch.cat([line.repeat(side, 1), line.repeat_interleave(side, 0)], dim=1)[None].float()


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Parameter-free layer norm, then scale and shift from the condition."""
    normed = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)
    return normed * (1 + scale_BD.unsqueeze(1)) + shift_BD.unsqueeze(1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Set a layer's weight and bias to 0 and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def adaptive(condition: int, width: int, parts: int) -> nn.Sequential:
    """SiLU and a zero-initialised linear layer from the condition to `parts` vectors (adaLN-Zero)."""
    return nn.Sequential(nn.SiLU(), zeroed(nn.Linear(condition, parts * width)))


class PatchEmbed(nn.Module):
    """Patches to tokens; the weight has the shape of a convolution's, as in the published checkpoints."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)
        assert self.proj.bias is not None
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches_BKP: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # to the (row, column, channel) order of patches
        return F.linear(patches_BKP, weight, self.proj.bias)


class NoiseEmbed(nn.Module):
    """c_noise (B,) to vectors (B, width): a 256-dimensional sinusoidal embedding, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = nn.Linear(FREQUENCIES, width), nn.Linear(width, width)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, c_noise_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        omega = torch.exp(-math.log(10000) * torch.arange(half, device=c_noise_B.device, dtype=c_noise_B.dtype) / half)
        angle = c_noise_B[:, None] * omega
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class LabelEmbed(nn.Module):
    """Class numbers (B,) to vectors (B, width); the null label -1 maps to zero."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Linear(classes, width, bias=False)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels_B: Tensor) -> Tensor:
        rows = F.embedding(labels_B.clamp(min=0), self.embedding_table.weight.T)
        return rows * (labels_B >= 0).unsqueeze(1)


def attend(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
    """Softmax attention. Short bfloat16 sequences on a CPU use explicit products, which are faster there than torch's kernel."""
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


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh form) in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x = self.fc1(x_BLD)
        if torch.compiler.is_compiling():  # the same function as x * sigmoid(2 u), which needs only one exponential
            return self.fc2(x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x)))
        return self.fc2(F.gelu(x, approximate="tanh"))


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
    """A modulated norm and a zero-initialised linear layer: the bridge to the decoder, and the final layer."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(width, out))
        self.adaLN_modulation = adaptive(condition, width, 2)

    def forward(self, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition_BD).chunk(2, dim=1)
        return self.linear(modulate(x_BLD, shift, scale))


class Packed(nn.Module):
    """A linear layer, optionally with GELU (tanh), for bfloat16 inference on a CPU, with its weight in oneDNN's layout."""

    def __init__(self, layer: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16())
        self.bias = layer.bias.detach().bfloat16()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, self.activation, [], "tanh")


class MaskDiT(nn.Module):
    """F(c_in * y; c_noise, label): the raw network inside the preconditioning.

    The encoder sees only the kept patches; the bridge narrows its tokens, the mask token fills the hidden places, and the decoder
    sees all of them. With decoder None this is DiT, which keeps every patch. `side` is the latent's side in positions.
    `out_channels` defaults to `channels`; the released DiT has twice as many because it also predicts a variance.
    """

    def __init__(
        self, *, side: int, channels: int, classes: int, encoder: Sizes, decoder: Sizes | None, out_channels: int | None = None
    ) -> None:
        super().__init__()
        self.patch, self.out_channels = encoder["patch"], out_channels or channels
        width, tokens = encoder["width"], side // self.patch
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
        self.final_layer = Out(width if decoder is None else decoder["width"], self.patch**2 * self.out_channels, width)
        self.checkpointing, self.defer = False, 0
        self.route: Route | None = None  # route and defer are for training only: they do nothing without `stay_BK` and `kept_BK`

    def forward(
        self, x_BCHW: Tensor, c_noise_B: Tensor, labels_B: Tensor, kept_BK: Tensor | None = None, stay_BK: Tensor | None = None
    ) -> Tensor:
        """Latents, noise levels and class numbers (-1: null) to an output (B, out_channels, H, W).

        `kept_BK`: tokens the encoder sees after its first `defer` blocks. `stay_BK`: tokens that do not skip `route`. None: all.
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
            x = x + (self.decoder_pos_embed + 0 * self.mask_token)  # the mask token gets a zero gradient if nothing is hidden
            for block in self.decoder_blocks:
                x = self.through(block, x, condition)
        return unpatchify(self.final_layer(x, condition), self.patch, self.out_channels)

    def through(self, block: nn.Module, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
        """A block's output; with `checkpointing`, its activations are recomputed in the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x_BLD, condition_BD, use_reentrant=False, preserve_rng_state=False)
        return block(x_BLD, condition_BD)


def compile_blocks(net: nn.Module, dynamic: bool | None = False) -> None:
    """Compile each block: as fast as compiling the whole network, in a tenth of the time."""
    for block in net.modules():
        if isinstance(block, Block):
            block.compile(dynamic=dynamic)


def for_inference(net: nn.Module, dtype: torch.dtype, compiled: bool = False) -> nn.Module:
    """Convert the blocks' weights in place, because autocast would convert frozen weights in every pass. Returns the network.

    Norms and residual sums stay in float32. For bfloat16 on a CPU the linear layers are also packed, and the first one of each MLP
    is fused with GELU, by the oneDNN operators that torch's compiler uses; not if the blocks are `compiled`.
    """
    packed = (
        dtype == torch.bfloat16 and next(net.parameters()).device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    packed = packed and not compiled
    for block in [module for module in net.modules() if isinstance(module, Block)]:
        block.to(dtype)
        if packed:
            block.attn.register_module("qkv", Packed(block.attn.qkv))
            block.attn.register_module("proj", Packed(block.attn.proj))
            block.register_module("mlp", nn.Sequential(Packed(block.mlp.fc1, "gelu"), Packed(block.mlp.fc2)))
    return net
