"""Network and loss as the papers write them, in float64 NumPy: shares no code with the package."""

import numpy as np


def network_by_hand(net, x, c_noise, label, kept=None):
    """One image through a network of 4 x 4 patches, two blocks and at most one of a decoder, token by token."""
    w = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}
    kept = list(range(16)) if kept is None else kept

    def linear(name, v):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(v):
        return v / (1 + np.exp(-v))

    def modulated(v, shift, scale):
        return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-6) * (1 + scale) + shift

    def attention(name, v):
        q, k, values = np.split(linear(f"{name}.qkv", v), 3, axis=1)
        heads = []
        for head in np.split(np.arange(q.shape[1]), 2):
            share = np.exp(q[:, head] @ k[:, head].T / np.sqrt(len(head)))
            heads.append(share / share.sum(1, keepdims=True) @ values[:, head])
        return linear(f"{name}.proj", np.concatenate(heads, axis=1))

    def block(name, v):
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(f"{name}.adaLN_modulation.1", silu(condition)), 6)
        v = v + gate1 * attention(f"{name}.attn", modulated(v, shift1, scale1))
        inner = linear(f"{name}.mlp.fc1", modulated(v, shift2, scale2))
        gelu = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        return v + gate2 * linear(f"{name}.mlp.fc2", gelu)

    def out(name, v):
        shift, scale = np.split(linear(f"{name}.adaLN_modulation.1", silu(condition)), 2)
        return linear(f"{name}.linear", modulated(v, shift, scale))

    angles = c_noise * 10000 ** (-np.arange(128) / 128)
    condition = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)]))))
    if label >= 0:
        condition = condition + w["y_embedder.embedding_table.weight"][:, label]
    corners = [(2 * (place // 4), 2 * (place % 4)) for place in range(16)]
    squares = [x[:, top : top + 2, left : left + 2] for top, left in corners]
    kernel, bias = w["x_embedder.proj.weight"], w["x_embedder.proj.bias"]
    v = np.stack([(kernel * squares[place]).sum((1, 2, 3)) + bias + w["pos_embed"][0, place] for place in kept])
    for depth in range(2):
        v = block(f"blocks.{depth}", v)
    if "mask_token" in w:
        narrow = out("decoder_layer", v)
        v = np.repeat(w["mask_token"][0], 16, axis=0)
        v[kept] = narrow
        v = block("decoder_blocks.0", v + w["decoder_pos_embed"][0])
    image = np.empty(x.shape)
    for (top, left), numbers in zip(corners, out("final_layer", v), strict=True):
        image[:, top : top + 2, left : left + 2] = numbers.reshape(2, 2, -1).transpose(2, 0, 1)
    return image


def loss_by_hand(net, x0, label, normal, noise, scores, keep):
    """The two terms of MaskDiT's loss of one image, patch by patch; the second without its factor."""
    sigma = np.exp(-1.2 + 1.2 * normal)
    total = sigma**2 + 0.25
    y = x0 + sigma * noise
    kept = sorted(np.argsort(scores)[:keep].tolist())
    raw = network_by_hand(net, y / np.sqrt(total), np.log(sigma) / 4, label, None if keep == 16 else kept)
    found = 0.25 / total * y + 0.5 * sigma / np.sqrt(total) * raw
    seen, hidden = [], []
    for place in range(16):
        square = np.s_[:, 2 * (place // 4) : 2 * (place // 4) + 2, 2 * (place % 4) : 2 * (place % 4) + 2]
        if place in kept:
            seen.append(total / (0.5 * sigma) ** 2 * np.mean((found[square] - x0[square]) ** 2))
        else:
            target = (y[square] - y[square].mean()) / np.sqrt(y[square].var(ddof=1) + 1e-6)
            hidden.append(np.mean((found[square] - target) ** 2))
    return np.mean(seen), np.mean(hidden) if hidden else 0.0
