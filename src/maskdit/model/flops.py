"""Floating-point operations of a forward pass, in closed form: for `plan`, which has no network, and for networks."""

from collections.abc import Sequence

from maskdit.config.training import Route, kept_tokens

FREQUENCIES = 256  # of the noise level's embedding


def seen(depth: int, tokens: int, kept: int, defer: int, route: Route | None) -> list[int]:
    """How many of the tokens each of the encoder's blocks sees in training."""
    routed = dict.fromkeys(range(route.first, route.last + 1), kept_tokens(tokens, route.ratio)) if route else {}
    return [tokens if block < defer else routed.get(block, kept) for block in range(depth)]


def forward(
    tokens: int, kept: int, numbers: int, width: int, blocks: Sequence[int], inner: int, outer: int, decoder_depth: int | None
) -> int:
    """Of one image: 2 per multiply-add of a matrix product.

    Patches of `numbers` values come in, the encoder's blocks of `width` see so many of the `tokens` each, and `kept` leave them;
    `decoder_depth` blocks of `inner` see all, if there is a decoder (else `inner` is `width`); `outer` values a patch come out.
    """

    def block(tokens: int, size: int) -> int:  # qkv, projection, MLP; two products of attention; modulation
        return 12 * tokens * size**2 + 2 * tokens**2 * size + 6 * width * size

    products = (FREQUENCIES + width) * width + max(kept, blocks[0]) * numbers * width + sum(block(count, width) for count in blocks)
    if decoder_depth is not None:
        products += kept * width * inner + 2 * width**2 + decoder_depth * block(tokens, inner)
    return 2 * (products + tokens * inner * outer + 2 * width * inner)
