"""FLOPs of a forward pass in closed form, so that `plan` needs no network."""

from collections.abc import Sequence

from maskdit.config.training import Route, kept_tokens

FREQUENCIES = 256  # width of the noise level's sinusoidal embedding


def seen(depth: int, tokens: int, kept: int, defer: int, route: Route | None) -> list[int]:
    """Number of tokens that each encoder block sees in training."""
    routed = dict.fromkeys(range(route.first, route.last + 1), kept_tokens(tokens, route.ratio)) if route else {}
    return [tokens if block < defer else routed.get(block, kept) for block in range(depth)]


def forward(
    tokens: int, kept: int, numbers: int, width: int, blocks: Sequence[int], inner: int, outer: int, decoder_depth: int | None
) -> int:
    """FLOPs of one image: 2 per multiply-add of a matrix product.

    Input patches have `numbers` values, output patches `outer`. Encoder block i (width `width`) sees `blocks[i]` of the `tokens`;
    `kept` tokens leave the encoder. Decoder blocks have width `inner`; without a decoder, `inner` equals `width`.
    """

    def block(tokens: int, size: int) -> int:  # qkv, projection and MLP; the two attention products; modulation
        return 12 * tokens * size**2 + 2 * tokens**2 * size + 6 * width * size

    products = (FREQUENCIES + width) * width + max(kept, blocks[0]) * numbers * width + sum(block(count, width) for count in blocks)
    if decoder_depth is not None:
        products += kept * width * inner + 2 * width**2 + decoder_depth * block(tokens, inner)
    return 2 * (products + tokens * inner * outer + 2 * width * inner)
