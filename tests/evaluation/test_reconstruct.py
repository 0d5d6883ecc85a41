"""Reconstruction: quality by its own formulas, the same however the work is cut, and named as it deserves."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.evaluation import Reconstruct
from maskdit.config.load import load
from maskdit.evaluation import reconstruct
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.metrics import frechet_distance, moments
from maskdit.evaluation.protocol import OFFICIAL, suffix
from maskdit.evaluation.reconstruct import ssim
from maskdit.images.dataset import Images
from maskdit.images.fetch import fetch
from maskdit.latents import autoencoder
from maskdit.latents.autoencoder import psnr
from maskdit.runtime import environment
from maskdit.runtime.random import generator
from project import ROOT
from small import make_vae

SIDE, HELDOUT = 16, np.array([1, 2, 4, 5, 7, 8, 9])  # of ten images


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten images, a small autoencoder with random weights, and MobileNetV2."""
    home = tmp_path_factory.mktemp("made")
    for name in ("images", "extractor"):
        (home / name).mkdir()
    make_vae(home / "vae")
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), np.uint8)
    Images(pixels, np.zeros(10, int), np.isin(np.arange(10), HELDOUT), ("a",)).save(home / "images")
    write_json(home / "images" / "manifest.json", {})
    fetch(load(ROOT / "params.yaml").fetch["demo-features"], out=home / "extractor")
    return home


class Narrow(Network):
    """The network with 32 of its 1280 features: a distance takes seconds in all of them."""

    def extract(self, pixels, rows, batch):
        return {"features": super().extract(pixels, rows, batch)["features"][:, ::40]}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruct, "Network", Narrow)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def run(made, out, **changes):
    entry = {"bench": "toy", "dataset": "toy", "vae": "toy", "extractor": "toy", "posterior": "sample", "batch": 3, "seed": 1}
    config = Reconstruct.model_validate({**entry, "shards": 1, **changes})
    reconstruct.reconstruct(config, images=made / "images", vae=made / "vae", extractor=made / "extractor", out=out)
    environment.tidy()  # as the command does when it has published
    return read_json(out) if out.exists() else None


def by_hand(made, posterior, seed=1):
    """The held-out images and what becomes of them, one by one."""
    net = autoencoder.load(made / "vae", torch.device("cpu"))
    pixels = np.load(made / "images" / "images.npy")
    for row in HELDOUT:
        found = net.encode(torch.from_numpy(pixels[row].transpose(2, 0, 1) / np.float32(127.5) - 1)[None]).latent_dist
        normal = torch.from_numpy(generator(seed, "posterior", index=int(row)).standard_normal(found.mean.shape[1:], np.float32))
        latent = found.mean + (found.std * normal if posterior == "sample" else 0)
        levels = np.rint((net.decode(latent).sample[0].numpy() + 1) * 127.5).clip(0, 255)
        yield pixels[row], levels.astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_the_metrics_are_those_of_images_reconstructed_one_by_one(made, tmp_path, posterior):
    metrics = run(made, tmp_path / "r.json", posterior=posterior)["metrics"]
    real, again = (np.stack(column) for column in zip(*by_hand(made, posterior), strict=True))
    error = np.square(real.astype(float) - again).mean((1, 2, 3))
    assert metrics["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-4)
    assert metrics["ssim"] == pytest.approx(np.mean([structural(*pair) for pair in zip(real, again, strict=True)]), abs=1e-3)
    net = Narrow(made / "extractor")
    features = [net.extract(pixels, np.arange(len(pixels)), 3)["features"] for pixels in (again, real)]
    assert metrics["rfd_mobilenet"] == pytest.approx(frechet_distance(*map(moments, features)), rel=1e-2)
    assert set(metrics) == {"rfd_mobilenet", "psnr", "ssim"}, "nothing here is an rFID"


def structural(one, other):
    """SSIM window by window, as Wang et al. define it: per channel, a Gaussian of 11 pixels and standard deviation 1.5."""
    x = np.arange(11) - 5
    weights = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for channel in range(3):
        for top in range(one.shape[0] - 10):
            for left in range(one.shape[1] - 10):
                a, b = (image[top : top + 11, left : left + 11, channel].astype(float) for image in (one, other))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                both = (weights * (a - ma) * (b - mb)).sum()
                light = (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
                found.append(light * (2 * both + 7.65**2) / (va + vb + 7.65**2))
    return np.mean(found)


def test_ssim_is_its_definition_window_by_window():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (3, 14, 17, 3), np.uint8)
    other = (one + rng.normal(0, 20, one.shape)).clip(0, 255).astype(np.uint8)
    found = ssim(torch.from_numpy(one), torch.from_numpy(other))
    np.testing.assert_allclose(found, [structural(*pair) for pair in zip(one, other, strict=True)], rtol=1e-10)
    np.testing.assert_allclose(ssim(torch.from_numpy(one), torch.from_numpy(one)), 1, rtol=1e-12)


def test_psnr_of_one_wrong_level_everywhere_is_48_decibels():
    one = torch.full((2, 4, 4, 3), 7, dtype=torch.uint8)
    np.testing.assert_allclose(psnr(one, one + 1), [20 * np.log10(255)] * 2, rtol=1e-6)


def test_the_distance_of_two_sets_is_that_of_scipy_s_root():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 5)), rng.normal(0.3, 1.2, size=(60, 5))
    (m1, s1), (m2, s2) = moments(one), moments(other)
    wanted = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    assert frechet_distance((m1, s1), (m2, s2)) == pytest.approx(wanted, rel=1e-6)


def test_the_record_does_not_depend_on_how_the_work_is_cut(made, tmp_path, monkeypatch, scratch):
    whole = run(made, tmp_path / "whole.json")
    assert run(made, tmp_path / "each.json", shards=7) == whole
    for part in ((2, 2), (1, 2)):
        monkeypatch.setattr(environment, "PART", part)
        assert run(made, tmp_path / "parts.json", shards=3) is None, "a part publishes nothing"
    monkeypatch.setattr(environment, "PART", None)
    monkeypatch.setattr(reconstruct, "savez", None)  # nothing is left to make
    assert run(made, tmp_path / "parts.json", shards=3) == whole
    assert not any(scratch.iterdir())


def test_the_record_holds_the_whole_protocol(made, tmp_path):
    protocol = run(made, tmp_path / "r.json")["protocol"]
    assert protocol["vae_sha256"] == autoencoder.identity(made / "vae")
    told = {"images": 7, "resolution": SIDE, "crop": "none", "posterior": "sample", "quantisation": "round", "seed": 1}
    assert {name: protocol[name] for name in told} == told
    assert {"family", "extractor_sha256", "images_sha256", "against"} <= set(protocol)


def test_a_part_that_was_damaged_before_the_parts_are_joined_is_made_again(made, tmp_path, monkeypatch, scratch):
    whole = run(made, tmp_path / "whole.json", shards=3)
    monkeypatch.setattr(environment, "PART", (1, 1))
    run(made, tmp_path / "r.json", shards=3)
    monkeypatch.setattr(environment, "PART", None)
    path = next(scratch.glob("*/part-0001.npz"))
    with np.load(path) as stored:
        np.savez(path, **{name: array[1:] for name, array in stored.items()})
    assert run(made, tmp_path / "r.json", shards=3) == whole


def test_images_of_which_none_are_held_out_are_refused(made, tmp_path):
    (tmp_path / "images").mkdir()
    Images(np.zeros((3, SIDE, SIDE, 3), np.uint8), np.zeros(3, int), np.zeros(3, bool), ("a",)).save(tmp_path / "images")
    (tmp_path / "vae").symlink_to(made / "vae")
    (tmp_path / "extractor").symlink_to(made / "extractor")
    with pytest.raises(UserError, match="holds out 0 images"):
        run(tmp_path, tmp_path / "r.json")


@pytest.mark.parametrize(
    ("family", "sha256", "images", "end"),
    [
        ("inception-2015", OFFICIAL, 50_000, ""),
        ("inception-2015", OFFICIAL, 49_999, "_inception"),
        ("inception-2015", "0" * 64, 50_000, "_inception_00000000"),
        ("mobilenet-v2", "0" * 64, 50_000, "_mobilenet"),
    ],
)
def test_only_official_weights_and_50_000_images_make_an_rfid(family, sha256, images, end):
    assert suffix(family, sha256, images) == end
