"""Floating-point operations of a forward pass, in closed form: for `plan`, which has no network, and for networks."""

FREQUENCIES = 256  # of the noise level's embedding


def forward(tokens: int, kept: int, numbers: int, width: int, depth: int, inner: int, outer: int, decoder_depth: int | None) -> int:
    """Of one image: 2 per multiply-add of a matrix product.

    `kept` of `tokens` patches of `numbers` values come in to `depth` blocks of `width`; `decoder_depth` blocks of `inner` see all
    tokens, if there is a decoder (else `inner` is `width`); `outer` values a patch come out.
    """

    def stack(depth: int, tokens: int, size: int) -> int:  # qkv, projection, MLP; two products of attention; modulation
        return depth * (12 * tokens * size**2 + 2 * tokens**2 * size + 6 * width * size)

    products = (FREQUENCIES + width) * width + kept * numbers * width + stack(depth, kept, width)
    if decoder_depth is not None:
        products += kept * width * inner + 2 * width**2 + stack(decoder_depth, tokens, inner)
    return 2 * (products + tokens * inner * outer + 2 * width * inner)
