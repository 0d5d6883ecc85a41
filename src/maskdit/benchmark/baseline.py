"""The benchmark's baseline: DiT and MaskDiT written with timm's blocks, eager, for PyTorch's own optimiser.

Mathematics, parameter names and shapes are those of `model/transformer.py`; its code and its optimisations are not used.
"""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, PatchEmbed
from torch import Tensor, nn

from maskdit.training.batches import Batch


class PlainBlock(nn.Module):
    """timm's attention and MLP with adaptive layer norm."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        a, b, g, d, e, h = (part.unsqueeze(1) for part in self.adaLN_modulation(c).chunk(6, dim=1))
        x = x + g * self.attn(self.norm1(x) * (1 + b) + a)
        return x + h * self.mlp(self.norm2(x) * (1 + e) + d)


class PlainOut(nn.Module):
    """Adaptive layer norm and a linear layer."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))


class Plain(nn.Module):
    """MaskDiT, or DiT if `decoder` is None. As in MAE, the `keep` patches with the smallest random scores are kept.

    The noise level goes through a sinusoid and two linear layers; a linear layer embeds the labels, and -1 as the zero vector.
    """

    def __init__(self, *, side: int, channels: int, classes: int, encoder: dict[str, int], decoder: dict[str, int] | None) -> None:
        super().__init__()
        width, patch = encoder["width"], encoder["patch"]
        tokens = (side // patch) ** 2
        self.patch, self.channels, self.classes = patch, channels, classes
        self.x_embedder = PatchEmbed(side, patch, channels, width)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Linear(classes, width, bias=False)})
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(PlainBlock(width, encoder["heads"], width) for _ in range(encoder["depth"]))
        inner = width
        if decoder is not None:
            inner = decoder["width"]
            self.decoder_layer = PlainOut(width, inner, width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, inner), requires_grad=False)
            self.decoder_blocks = nn.ModuleList(PlainBlock(inner, decoder["heads"], width) for _ in range(decoder["depth"]))
        self.final_layer = PlainOut(inner, patch**2 * channels, width)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, scores: Tensor | None = None, keep: int = 0) -> Tensor:
        angle = t[:, None].float() * torch.exp(torch.arange(128, device=t.device) * (-torch.log(torch.tensor(10000.0)) / 128))
        one_hot = F.one_hot(labels + 1, self.classes + 1)[:, 1:].float()
        c = self.t_embedder["mlp"](torch.cat([angle.cos(), angle.sin()], dim=-1)) + self.y_embedder["embedding_table"](one_hot)
        h = self.x_embedder(x) + self.pos_embed
        B, L, D = h.shape
        if scores is not None:
            shuffled = scores.argsort(dim=1)
            h = h.gather(1, shuffled[:, :keep, None].repeat(1, 1, D))
        for block in self.blocks:
            h = block(h, c)
        if hasattr(self, "decoder_layer"):
            h = self.decoder_layer(h, c)
            if scores is not None:
                h = torch.cat([h, self.mask_token.repeat(B, L - keep, 1)], dim=1)
                h = h.gather(1, shuffled.argsort(dim=1)[:, :, None].repeat(1, 1, h.shape[2]))
            h = h + self.decoder_pos_embed
            for block in self.decoder_blocks:
                h = block(h, c)
        h = self.final_layer(h, c)
        s, p = int(L**0.5), self.patch
        return torch.einsum("nhwpqc->nchpwq", h.reshape(B, s, s, p, p, self.channels)).reshape(B, self.channels, s * p, s * p)


def plain_denoise(net: Plain, y: Tensor, sigma: Tensor, labels: Tensor, scores: Tensor | None = None, keep: int = 0) -> Tensor:
    """The denoiser with EDM's preconditioning, for sigma_data 0.5."""
    s = sigma.reshape(-1, 1, 1, 1).float()
    root = (s**2 + 0.25).sqrt()
    raw = net(y.float() / root, sigma.float().log() / 4, labels, scores, keep)
    return 0.25 / root**2 * y + 0.5 * s / root * raw.float()


def plain_loss(net: Plain, batch: Batch, keep: int, mae_weight: float, label_dropout: float) -> Tensor:
    """The mean of MaskDiT's loss over the batch."""
    draw, p = batch.draw, net.patch
    sigma = (draw.normal_B * 1.2 - 1.2).exp()
    y = batch.clean + sigma[:, None, None, None] * draw.noise_BCHW
    labels = batch.labels.masked_fill(draw.drop_B < label_dropout, -1)
    L = draw.scores_BL.shape[1]
    D = plain_denoise(net, y, sigma, labels, draw.scores_BL if keep < L else None, keep)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    error = F.avg_pool2d((D - batch.clean).square().mean(1, keepdim=True), p).flatten(1)
    if keep == L:
        return (weight * error.mean(1)).mean()
    hidden = torch.ones_like(draw.scores_BL).scatter(1, draw.scores_BL.argsort(dim=1)[:, :keep], 0.0)
    dsm = weight * (error * (1 - hidden)).sum(1) / (1 - hidden).sum(1)
    found, noisy = (F.unfold(part, p, stride=p).transpose(1, 2) for part in (D, y))
    target = (noisy - noisy.mean(-1, keepdim=True)) / (noisy.var(-1, keepdim=True) + 1e-6).sqrt()
    mae = ((found - target).square().mean(-1) * hidden).sum(1) / hidden.sum(1)
    return (dsm + mae_weight * mae).mean()
