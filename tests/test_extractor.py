"""The offline features, and the frozen autoencoder's pixels."""

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.transforms.functional import normalize, to_tensor

from maskdit import extractor
from maskdit.autoencoder import to_pixels, to_unit
from maskdit.config import UserError
from maskdit.fetch import fetch
from maskdit.files import sha256
from maskdit.params import load
from project import ROOT

MOBILENET = load(ROOT / "params.yaml").fetch["demo-features"]
PATH = extractor.packaged("mobilenet-v2")


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
        extractor.Network(folder)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(extractor, "PACKAGES", {"mobilenet-v2": ("no_such_package", "x")})
    with pytest.raises(UserError, match=r"no_such_package is not installed: pip install"):
        extractor.packaged("mobilenet-v2")


def test_features_are_the_same_bits_however_images_are_cut_into_parts(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    net = extractor.Network(folder)
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
    pixels = np.random.default_rng(0).integers(0, 256, (2, extractor.SIDE, extractor.SIDE, 3), np.uint8)
    found = extractor.Network(folder).extract(pixels, np.arange(2), 2)
    net = mobilenet_v2()
    net.load_state_dict(torch.load(PATH, weights_only=True))
    preset = chosen.transforms()
    images = torch.stack([normalize(to_tensor(picture), preset.mean, preset.std) for picture in pixels])
    with torch.inference_mode():
        wanted = net.eval()(images).numpy()
        pooled = adaptive_avg_pool2d(net.features(images), 1).flatten(1).numpy()
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["features"], pooled, rtol=1e-3, atol=1e-4)
