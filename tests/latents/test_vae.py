"""The autoencoder: one that others have published is taken over whole, or refused."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.config.latents import DownloadedVae
from maskdit.latents.autoencoder import identity, load
from maskdit.latents.vae import vae

ENTRY = DownloadedVae.model_validate({"source": "download", "dataset": "toy", "factor": 8, "latent_channels": 4})
OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}  # in Stability's files


@pytest.fixture
def folder(tmp_path):
    """What fetch makes of an autoencoder of SD's shape, but narrow."""
    torch.manual_seed(0)
    down, up = (f"{name}Block2D" for name in ("DownEncoder", "UpDecoder"))
    shape = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    net = AutoencoderKL(down_block_types=(down,) * 4, up_block_types=(up,) * 4, **shape)
    net.save_pretrained(tmp_path / "raw")
    describe(tmp_path / "raw")
    return tmp_path / "raw"


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
