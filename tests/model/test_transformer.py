"""The network: what the encoder sees, what the published checkpoints weigh, what a pass costs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskdit.methods.contract import MethodOptions
from maskdit.methods.maskdit import MaskDit
from maskdit.model.diffusion import Draw, loss
from maskdit.model.transformer import MaskDiT, attend, for_inference, positions
from papers import loss_by_hand, network_by_hand

ENCODER = {"patch": 2, "depth": 2, "width": 16, "heads": 2}
DECODER = {"depth": 1, "width": 8, "heads": 2}
XL = {"patch": 2, "depth": 28, "width": 1152, "heads": 16}
PAPER = {"depth": 8, "width": 512, "heads": 16}


def network(decoder=DECODER, **changes):
    """A small network whose weights are all random: adaLN-Zero would hide most mistakes."""
    torch.manual_seed(0)
    net = MaskDiT(**{"side": 8, "channels": 2, "classes": 3, "encoder": ENCODER, "decoder": decoder, **changes})
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def flops(kept, **changes):
    """FLOPs of a forward pass by the closed form."""
    sizes = {"side": 8, "channels": 2, "encoder": ENCODER, "decoder": DECODER, **changes}
    return MaskDit(sizes, MethodOptions(), {}).flops(None, kept)


@pytest.fixture
def given():
    source = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 8, 8, generator=source), torch.tensor([-0.5, 0.1, 0.4]), torch.tensor([0, 2, -1])


def test_keeping_every_token_equals_no_mask(given):
    net = network()
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(net(*given, everything), net(*given), rtol=1e-5, atol=1e-5)


def test_hidden_patches_never_reach_the_encoder(given):
    net, seen = network(), []
    net.blocks[-1].register_forward_hook(lambda _module, _given, out: seen.append(out))
    kept = torch.tensor([[0, 3, 7], [1, 2, 15], [4, 5, 6]])
    x, c_noise, labels = given
    changed = x.clone()
    for row in range(3):
        for patch in set(range(16)) - set(kept[row].tolist()):
            top, left = 2 * (patch // 4), 2 * (patch % 4)
            changed[row, :, top : top + 2, left : left + 2] = 100.0
    outputs = [net(image, c_noise, labels, kept) for image in (x, changed)]
    assert seen[0].shape == (3, 3, 16)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(outputs[0], outputs[1])
    visible = x.clone()
    visible[0, :, :2, :2] += 1
    assert not torch.equal(net(visible, c_noise, labels, kept), outputs[0]), "but a kept patch does"


def test_each_image_is_computed_alone(given):
    net = network()
    whole = net(*given)
    for row in range(3):
        torch.testing.assert_close(net(*(part[row : row + 1] for part in given)), whole[row : row + 1], rtol=1e-4, atol=1e-5)


def test_the_null_label_is_the_zero_vector(given):
    net = network()
    x, c_noise, _ = given
    null = net(x, c_noise, torch.full((3,), -1))
    with torch.no_grad():
        net.y_embedder.embedding_table.weight.zero_()
    torch.testing.assert_close(net(x, c_noise, torch.tensor([0, 1, 2])), null)


def test_label_noise_level_and_place_matter(given):
    net = network(decoder=None)
    x, c_noise, labels = given
    out = net(x, c_noise, labels)
    assert not torch.allclose(net(x, c_noise, (labels + 2) % 3), out)
    assert not torch.allclose(net(x, c_noise + 1, labels), out)
    assert not torch.allclose(net(x.flip(-1), c_noise, labels).flip(-1), out)


def test_a_new_network_answers_zero(given):
    net = MaskDiT(side=8, channels=2, classes=3, encoder=ENCODER, decoder=DECODER)
    assert not net(*given).any()


def test_positions_are_sines_and_cosines_of_column_then_row():
    found = positions(3, 8)[0].numpy()
    for row in range(3):
        for column in range(3):
            omega = np.array([1.0, 10000**-0.5])
            wanted = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
            np.testing.assert_allclose(found[3 * row + column], np.concatenate(wanted), atol=1e-6)


def test_attention_by_products_equals_torch_s_kernel():
    q, k, v = torch.randn(3, 2, 4, 64, 32).to(torch.bfloat16)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(attend(q, k, v).float(), wanted, rtol=0.05, atol=0.02)
    assert torch.equal(attend(q.float(), k.float(), v.float()), wanted)


def test_maskdit_xl_2_has_the_published_parameters():
    with torch.device("meta"):
        net = MaskDiT(side=32, channels=4, classes=1000, encoder=XL, decoder=PAPER)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert sum(weight.numel() for weight in net.parameters()) == 730_541_200
    assert sum(weight.numel() for weight in net.parameters() if weight.requires_grad) == 730_115_216
    assert len(shapes) == 378
    assert shapes["y_embedder.embedding_table.weight"] == (1152, 1000)
    assert shapes["decoder_layer.linear.weight"] == (512, 1152)
    assert shapes["decoder_blocks.7.adaLN_modulation.1.weight"] == (3072, 1152)
    assert shapes["final_layer.linear.weight"] == (16, 512)
    assert shapes["x_embedder.proj.weight"] == (1152, 4, 2, 2)


SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16), "H": (32, 1280, 16)}


def sized(size, patch=2, side=32, decoder=PAPER, **changes):
    depth, width, heads = SIZES[size]
    encoder = {"patch": patch, "depth": depth, "width": width, "heads": heads}
    with torch.device("meta"):
        return MaskDiT(side=side, channels=4, classes=1000, encoder=encoder, decoder=decoder, **changes)


@pytest.mark.parametrize(
    ("size", "side", "decoder", "total", "trained"),
    [
        ("S", 32, PAPER, 68_346_256, 68_116_880),
        ("B", 32, PAPER, 175_909_648, 175_581_968),
        ("L", 32, PAPER, 510_176_272, 509_783_056),
        ("XL", 32, PAPER, 730_541_200, 730_115_216),
        ("XL", 64, PAPER, 731_819_152, 730_115_216),
        ("XL", 32, None, 675_110_032, 674_815_120),
        ("XL", 64, None, 675_994_768, 674_815_120),
        ("S", 64, PAPER, 69_034_384, 68_116_880),
        ("B", 64, PAPER, 176_892_688, 175_581_968),
        ("H", 32, PAPER, 1_010_002_192, 1_009_543_440),
    ],
)
def test_each_size_has_the_parameters_of_the_authors_code(size, side, decoder, total, trained):
    weights = list(sized(size, side=side, decoder=decoder).parameters())
    assert sum(weight.numel() for weight in weights) == total
    assert sum(weight.numel() for weight in weights if weight.requires_grad) == trained


DIT_GFLOPS = {"S": (6.06, 1.41, 0.36), "B": (23.01, 5.56, 1.42), "L": (80.71, 19.70, 5.01), "XL": (118.64, 29.05, 7.39)}


@pytest.mark.parametrize(("size", "place"), [(size, place) for size in DIT_GFLOPS for place in range(3)])
def test_dit_s_multiply_adds_are_those_of_its_paper_s_table_4(size, place):
    depth, width, heads = SIZES[size]
    encoder = {"patch": 2 << place, "depth": depth, "width": width, "heads": heads}
    assert flops((16 >> place) ** 2, side=32, channels=4, encoder=encoder, decoder=None, out_channels=8) / 2e9 == pytest.approx(
        DIT_GFLOPS[size][place], rel=0.01, abs=0.006
    )


@pytest.mark.parametrize(("decoder", "kept", "published"), [(None, 256, 118.64), (PAPER, 256, 125.8), (PAPER, 128, 65.5)])
def test_the_multiply_adds_at_256_pixels_are_the_published_ones(decoder, kept, published):
    assert flops(kept, side=32, channels=4, encoder=XL, decoder=decoder) / 2e9 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("decoder", [None, DECODER])
def test_the_flops_are_those_that_torch_counts(decoder, given):
    net = network(decoder)
    kept = torch.tensor([[1, 5, 9, 10]]) if decoder else None
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        net(*(part[:1] for part in given), kept)
    assert counter.get_total_flops() == flops(4 if decoder else 16, decoder=decoder)


@pytest.mark.parametrize(("decoder", "kept"), [(None, None), (DECODER, None), (DECODER, [1, 4, 10, 15])])
def test_the_network_is_the_papers_written_by_hand(decoder, kept, given):
    net = network(decoder)
    wanted = np.stack([network_by_hand(net, x.double().numpy(), c.item(), y.item(), kept) for x, c, y in zip(*given, strict=True)])
    hidden = None if kept is None else torch.tensor([kept] * 3)
    for precise, tolerance in ((net, 2e-5), (net.double(), 1e-9)):
        found = precise(*given, hidden).detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("mask_ratio", [0, 0.25, 0.5, 0.75])
def test_the_loss_of_the_network_is_the_papers_to_1e_6(mask_ratio):
    net, source = network().double(), np.random.default_rng(2)
    x0, noise = source.normal(size=(2, 3, 2, 8, 8))
    labels, normal, scores = np.array([0, 2, -1]), source.normal(size=3), source.random((3, 16))
    keep = int(16 * (1 - mask_ratio))
    given = Draw(*(torch.from_numpy(part) for part in (normal, noise, scores, np.ones(3))))
    with torch.no_grad():
        options = {"patch": 2, "keep": keep, "mae_weight": 0.1, "label_dropout": 0.1}
        found = loss(net, torch.from_numpy(x0), torch.from_numpy(labels), given, **options)
    wanted = [loss_by_hand(net, *one, keep) for one in zip(x0, labels, normal, noise, scores, strict=True)]
    np.testing.assert_allclose(torch.stack(found, 1).numpy(), np.array(wanted) * [1, 0.1], rtol=1e-6)


def test_a_new_block_passes_its_tokens_on():
    net = MaskDiT(side=8, channels=2, classes=3, encoder=ENCODER, decoder=DECODER)
    x, condition = torch.randn(2, 4, 16), torch.randn(2, 16)
    assert all(torch.equal(block(x, condition), x) for block in net.blocks)


def test_a_network_with_more_output_channels_counts_them_and_keeps_the_first_where_they_were(given):
    twice, once = network(decoder=None, out_channels=4), network(decoder=None)
    out = once.final_layer.linear.out_features
    shared = {name: tensor for name, tensor in twice.state_dict().items() if "final_layer.linear" not in name}
    once.load_state_dict(shared, strict=False)
    for wide, narrow in zip(twice.final_layer.linear.parameters(), once.final_layer.linear.parameters(), strict=True):
        narrow.data = wide.detach().unflatten(0, (4, 4))[:, :2].flatten(0, 1).clone()  # (row, column, channel) of a patch
    both = twice(*given)
    assert both.shape == (3, 4, 8, 8)
    torch.testing.assert_close(both[:, :2], once(*given))
    assert flops(16, decoder=None, out_channels=4) - flops(16, decoder=None) == 2 * 16 * 16 * out


@pytest.mark.parametrize("rows", [1, 3])
def test_a_network_made_for_inference_is_the_same_within_its_precision(given, rows):
    net = network()
    x, c_noise, labels = (each[:rows] for each in given)
    with torch.inference_mode():
        wanted = net(x, c_noise, labels)
        fast = for_inference(network(), torch.bfloat16).eval()
        with torch.autocast("cpu", torch.bfloat16):
            found, plain = fast(x, c_noise, labels).float(), net(x, c_noise, labels).float()

    def error(output):
        return ((output - wanted).norm() / wanted.norm()).item()

    assert 0 < error(found) < 1.5 * error(plain), "no worse than autocast"
