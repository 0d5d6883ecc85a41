"""FLOPs of a forward pass in closed form, so that `plan` needs no network."""

from collections.abc import Sequence

FREQUENCIES = 256  # width of the noise level's sinusoidal embedding
Sizes = dict[str, int]  # patch, depth, width and heads of encoder or decoder


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
