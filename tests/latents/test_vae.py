"""The autoencoder: one that others have published is taken over whole, or refused."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.config.latents import DownloadedVae
from maskdit.config.sampling import Sample
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import identity, load, to_unit
from maskdit.latents.dataset import Latents
from maskdit.latents.vae import vae
from maskdit.sampling.sample import sample
from maskdit.training import train
from small import ENCODER, SAMPLE, encoded, masked, pretrained

ENTRY = DownloadedVae.model_validate({"source": "download", "dataset": "toy", "factor": 8, "latent_channels": 4})
OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}  # in Stability's files


def published(folder, levels, **changes):
    """What fetch makes of an autoencoder of so many levels, as SD's but narrow."""
    torch.manual_seed(0)
    down, up = (f"{name}Block2D" for name in ("DownEncoder", "UpDecoder"))
    shape = {"block_out_channels": (8,) * levels, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    net = AutoencoderKL(down_block_types=(down,) * levels, up_block_types=(up,) * levels, **shape | changes)
    net.save_pretrained(folder)
    describe(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return published(tmp_path / "raw", 4)


def describe(folder):
    write_json(folder / "index.json", {"kind": "autoencoder", "url": "file://somewhere", "sha256": identity(folder)})


def rewrite(folder, change):
    tensors = load_file(folder / VAE_WEIGHTS)
    save_file(change(tensors), folder / VAE_WEIGHTS)
    describe(folder)


def take(folder, out, **changes):
    out.mkdir()
    vae(ENTRY.model_copy(update=changes), images=folder, out=out)


def test_a_published_autoencoder_is_taken_over_as_it_is(folder, tmp_path):
    take(folder, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", VAE_WEIGHTS]
    for name in ("config.json", VAE_WEIGHTS):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_tensors_under_the_old_names_of_attention_are_understood(folder):
    image = torch.randn(1, 3, 16, 16)
    before = load(folder, torch.device("cpu")).encode(image).latent_dist.mean

    def renamed(tensors):
        for new, old in OLD.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        assert sum(".query." in name for name in tensors) == 4
        return tensors

    rewrite(folder, renamed)
    assert torch.equal(load(folder, torch.device("cpu")).encode(image).latent_dist.mean, before)


def test_a_missing_tensor_is_named_and_not_drawn_at_random(folder, tmp_path):
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "encoder.conv_in.weight"})
    with pytest.raises(UserError, match=r"disagrees about encoder\.conv_in\.weight"):
        take(folder, tmp_path / "out")


def test_a_tensor_too_many_is_named(folder, tmp_path):
    rewrite(folder, lambda tensors: tensors | {"loss.perceptual": torch.zeros(1)})
    with pytest.raises(UserError, match=r"disagrees about loss\.perceptual"):
        take(folder, tmp_path / "out")


@pytest.mark.parametrize("fault", ["text", "empty", "other widths"])
def test_weights_that_do_not_load_are_one_line(folder, tmp_path, fault):
    if fault == "other widths":
        rewrite(folder, lambda tensors: {name: tensor[:1].contiguous() for name, tensor in tensors.items()})
    else:
        (folder / VAE_WEIGHTS).write_bytes(b"<html>" if fault == "text" else b"")
        describe(folder)
    with pytest.raises(UserError, match=r"not the weights of the autoencoder in config\.json") as refusal:
        take(folder, tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_weights_that_changed_since_they_were_fetched_are_refused(folder, tmp_path):
    tensors = load_file(folder / VAE_WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / VAE_WEIGHTS)
    with pytest.raises(UserError, match="not the autoencoder that was fetched"):
        take(folder, tmp_path / "out")


PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
OTHERS = {  # side of the images, factor, and what differs from SD's: f8 and 4 channels
    "f4, 3 channels": (64, 4, {"latent_channels": 3}),
    "f8, 16 channels, with a shift": (128, 8, {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, **PLAIN}),
    "f16, 16 channels": (512, 16, {"latent_channels": 16, "scaling_factor": 0.3}),
    "mean and spread of each channel": (64, 8, {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 4.0]}),
    "nothing published": (64, 8, {"scaling_factor": 1.0}),
}


@pytest.mark.parametrize(("side", "factor", "changes"), OTHERS.values(), ids=OTHERS)
def test_latents_of_another_autoencoder_are_an_entry_from_images_to_samples(side, factor, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "gemm_rate", lambda *_: 1e12)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    raw, taken, run = (tmp_path / name for name in ("raw", "taken", "run"))
    published(raw, factor.bit_length(), **changes)
    channels = changes.get("latent_channels", 4)
    take(raw, taken, factor=factor, latent_channels=channels)
    pixels = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    (tmp_path / "images").mkdir()
    Images(pixels, np.zeros(5, np.int64), np.zeros(5, bool), ("all",)).save(tmp_path / "images")
    write_json(tmp_path / "images" / "manifest.json", {})
    encoded(tmp_path / "images", taken, tmp_path / "latents", shards=1, mirror=False)
    latents = Latents.load(tmp_path / "latents")
    assert latents.shape == (5, 1, 2 * channels, side // factor, side // factor)

    found = latents.draw(np.array([0]), np.array([0]), np.zeros((1, channels, side // factor, side // factor), np.float32))
    net = load(taken, torch.device("cpu"))
    with torch.no_grad():
        z = net.encode(to_unit(torch.from_numpy(pixels[:1]))).latent_dist.mode()
    shape = (1, -1, 1, 1)
    mean, spread = (
        torch.tensor(net.config.get(f"latents_{name}") or other).reshape(shape) for name, other in (("mean", 0.0), ("std", 1.0))
    )
    if changes != {"scaling_factor": 1.0}:  # as diffusers' pipelines normalise latents
        wanted = (z - mean - (net.config.shift_factor or 0.0)) * net.config.scaling_factor / spread
        np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-3, atol=2e-3)
    else:
        whole = latents.draw(
            np.arange(5), np.zeros(5, int), np.random.default_rng(0).normal(size=(5, *found.shape[1:])).astype("f4")
        )
        assert np.allclose(whole.mean((0, 2, 3)), 0, atol=0.1)
        assert np.allclose(whole.std((0, 2, 3)), 0.5, atol=0.1)

    pretrained(tmp_path / "latents", "run", masked(1, encoder={**ENCODER, "patch": 4}))
    entry = Sample.model_validate({**SAMPLE, "guidance": 1.0, "images": 2, "solver_steps": 1, "batch": 2})
    (tmp_path / "samples").mkdir()
    sample(entry, run=run, vae=taken, out=tmp_path / "samples")
    assert np.load(tmp_path / "samples" / "images-0000.npy").shape == (2, side, side, 3)


UNLIKE = {
    "another kind": (
        {"_class_name": "AutoencoderDC"},
        "holds AutoencoderDC, which is not supported; use an autoencoder that diffusers",
    ),
    "quantised": ({"_class_name": "VQModel"}, "holds VQModel, which is not supported"),
    "with transparency": ({"in_channels": 4, "out_channels": 4}, "images of 4 channels in and 4 out; use one of RGB images"),
}


@pytest.mark.parametrize(("changes", "told"), UNLIKE.values(), ids=UNLIKE)
def test_an_autoencoder_of_another_kind_is_refused_in_one_line(folder, tmp_path, changes, told):
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    with pytest.raises(UserError, match=told) as refusal:
        take(folder, tmp_path / "out")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("changes", [{"factor": 4}, {"latent_channels": 16}])
def test_an_autoencoder_of_another_geometry_than_declared_is_refused(folder, tmp_path, changes):
    with pytest.raises(UserError, match="8 pixels per latent and 4 channels, vae declares"):
        take(folder, tmp_path / "out", **changes)


def test_pickled_weights_are_never_read(folder):
    tensors = load_file(folder / VAE_WEIGHTS)
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    (folder / VAE_WEIGHTS).unlink()
    with pytest.raises(UserError, match=VAE_WEIGHTS):
        load(folder, torch.device("cpu"))


def test_what_is_no_autoencoder_is_refused(folder, tmp_path):
    write_json(folder / "index.json", read_json(folder / "index.json") | {"kind": "npz"})
    with pytest.raises(UserError, match="fetch it again"):
        take(folder, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["latent_channels"] == 4
