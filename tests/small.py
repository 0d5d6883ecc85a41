"""Small data, networks and runs that several files test with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskdit.artifacts.atomic import write_json
from maskdit.config.latents import Encode, Vae
from maskdit.config.training import Pretrain
from maskdit.images.dataset import Images
from maskdit.latents import autoencoder, encode
from maskdit.latents.dataset import Space
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT
from maskdit.runtime import environment
from maskdit.training import train

COMMON = {
    "dataset": "toy",
    "seed": 0,
    "mae_weight": 0.1,
    "batch": 4,
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "warmup": 3,
    "ema": 0.9,
    "ema_warmup": 10,
    "label_dropout": 0.1,
    "precision": "bf16",
}
ENCODER = {"patch": 2, "depth": 1, "width": 16, "heads": 2}


def masked(*milestones: int, **changes: object) -> Pretrain:
    entry = {"encoder": ENCODER, "decoder": {"depth": 1, "width": 8, "heads": 2}, "mask_ratio": 0.5, "milestones": milestones}
    return Pretrain.model_validate({**COMMON, **entry, **changes})


@pytest.fixture
def latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Moments of ten small images in two mirrors, and a scratch folder of the test's own; the machine's speed is not measured."""
    monkeypatch.setattr(train, "gemm_rate", lambda *_: 1e12)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    folder = tmp_path / "latents"
    folder.mkdir()
    source = np.random.default_rng(0)
    moments = source.normal(size=(10, 2, 4, 8, 8)).astype(np.float16)
    np.save(folder / "moments-0000.npy", moments)
    np.save(folder / "labels.npy", np.arange(10) % 3)
    space = {"channels": 2, "side": 8, "shift": [0.0, 0.1], "scale": [0.5, 0.6], "vae": "0" * 64, "classes": ["a", "b", "c"]}
    write_json(
        folder / "index.json", {"shape": moments.shape, "space": space, "shards": [{"file": "moments-0000.npy", "count": 10}]}
    )
    return folder


def weights(run: Path) -> dict[str, str]:
    """sha256 of the tensors of each published checkpoint: the bits, not the clock in the header."""
    return {
        file.name: str([(name, tensor.numpy().tobytes().hex()) for name, tensor in sorted(load_file(file).items())])
        for file in sorted(run.glob("*.safetensors"))
    }


def pretrained(latents: Path, name: str, config: Pretrain) -> Path:
    out = latents.parent / name
    out.mkdir()
    train.pretrain(config, latents=latents, out=out)
    return out


TRAINED = np.setdiff1d(np.arange(23), [0, 5, 22])  # of 23 images


def make_vae(folder):
    """A small autoencoder with random weights: 2 pixels a latent, 2 channels."""
    torch.manual_seed(0)
    small = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 2, "steps": 1, "batch": 1, "lr": 1.0, "kl_weight": 0.0}
    entry = Vae.model_validate({**small, "source": "train", "dataset": "toy", "precision": "fp32", "seed": 0})
    autoencoder.build(entry).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return make_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty-three images of 8 pixels, three of them held out."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), np.uint8)
    heldout = ~np.isin(np.arange(23), TRAINED)
    Images(pixels, np.arange(23) % 3, heldout, ("a", "b", "c")).save(folder)
    write_json(folder / "manifest.json", {"of": "the images"})
    return folder


def encoded(images, vae, out, tidy=True, **changes):
    out.mkdir(exist_ok=True)
    entry = {"dataset": "toy", "vae": "toy", "batch": 4, "mirror": True, "shards": 5}
    encode.encode(Encode.model_validate({**entry, **changes}), images=images, vae=vae, out=out)
    if tidy:
        environment.tidy()  # as the command does when it has published


SAMPLE = {
    "run": "toy",
    "vae": "toy",
    "phase": "pretrain",
    "step": "final",
    "guidance": 2.0,
    "images": 14,
    "labels": "random",
    "solver_steps": 3,
    "batch": 4,
    "shards": 1,
    "precision": "fp32",
    "seed": 5,
}


def make_run(folder, **changes):
    """A run with one milestone and an autoencoder, both with random weights; `changes` are facts of its checkpoint."""
    torch.manual_seed(0)
    small = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 2, "steps": 1, "batch": 1, "lr": 1.0, "kl_weight": 0.0}
    vae = Vae.model_validate({**small, "source": "train", "dataset": "toy", "precision": "fp32", "seed": 0})
    autoencoder.build(vae).save_pretrained(folder / "vae")
    encoder = {"patch": 2, "depth": 1, "width": 16, "heads": 2}
    architecture = {"side": 8, "channels": 2, "classes": 3, "encoder": encoder, "decoder": None, **changes.pop("architecture", {})}
    net = MaskDiT(**architecture)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    space = Space(2, 8, (0.0, 0.1), (0.5, 0.6), autoencoder.identity(folder / "vae"), ("a", "b", "c"))
    spent = {"model": "DiT", "phase": "pretrain", "step": 3, "images": 12, "seconds": 1.0, "flops": 1.0, "parameters": 1}
    facts = {**spent, "precision": "fp32", "architecture": architecture, "space": space.__dict__, **changes}
    (folder / "run").mkdir()
    checkpoint.save(folder / "run" / "ema-0000003.safetensors", net.state_dict(), facts)
    write_json(folder / "run" / "index.json", {"milestones": [{"step": 3, "file": "ema-0000003.safetensors"}]})
    return folder
