"""Weights of others in the formats that they come in: each is read as what it is, or refused as what it is."""

import gzip
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_importing import DECODER, HEADS, SMALL, bring, dit, random_weights, refused, vae  # noqa: F401, fixtures
from torch.optim.swa_utils import AveragedModel

from maskdit.artifacts.atomic import digest, read_json, sha256, write_json
from maskdit.config.base import UserError
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT
from maskdit.tools.doctor import examine
from maskdit.weights.reading import read

RAW, AVERAGED = random_weights(1), random_weights(2)


def under(head: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{head}{name}": tensor for name, tensor in tensors.items()}


def shards(path: Path) -> Path:
    """RAW in two safetensors files, and the index of both."""
    names = sorted(RAW)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, mine in parts.items():
        save_file({name: RAW[name] for name in mine}, path.parent / file)
    index = path.parent / "model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": {name: file for file, mine in parts.items() for name in mine}})
    return index


def saved(path: Path, tree: object) -> Path:
    torch.save(tree, path)
    return path


def averaged(path: Path) -> Path:
    net = MaskDiT(**SMALL)
    net.load_state_dict(AVERAGED)
    return saved(path, AveragedModel(net).state_dict())


LIGHTNING = {"pytorch-lightning_version": "2.5.1", "epoch": 3, "global_step": 70, "callbacks": {}, "optimizer_states": []}
FORMS: dict[str, tuple[Callable[[Path], Path | None], str, int, bool]] = {  # how it is saved, its kind, its step, raw ones beside
    "safetensors": (lambda path: save_file(under("model.", RAW), path), "weights that may be raw or averaged", 5, False),
    "compiled and in parallel": (lambda path: save_file(under("module._orig_mod.", RAW), path), "weights that may be", 5, False),
    "shards": (shards, "weights that may be raw or averaged", 5, False),
    "raw alone": (lambda path: saved(path, {"model": RAW, "step": 70}), "raw weights without EMA", 70, False),
    "EMA alone": (lambda path: saved(path, {"ema": under("module.", AVERAGED)}), "EMA weights alone", 5, False),
    "averaged": (averaged, "averaged weights, as torch's AveragedModel saves them", 5, False),
    "two in one": (
        lambda path: saved(path, {**under("ema_model.", AVERAGED), **under("online_model.", RAW), "initted": torch.ones(1)}),
        "EMA and raw weights",
        5,
        True,
    ),
    "timm's": (lambda path: saved(path, {"state_dict": RAW, "state_dict_ema": AVERAGED}), "EMA and raw weights", 5, True),
    "Lightning": (
        lambda path: saved(path, {**LIGHTNING, "state_dict": {**under("net.", RAW), "vae.conv.bias": torch.ones(3)}}),
        "a Lightning checkpoint: raw weights without EMA",
        70,
        False,
    ),
    "Lightning's averages": (
        lambda path: saved(
            path,
            {
                **LIGHTNING,
                "state_dict": under("net.", AVERAGED),
                "current_model_state": under("net.", RAW),
                "averaging_state": {"n_averaged": torch.ones(())},
            },
        ),
        "a Lightning checkpoint: averaged weights, as torch's AveragedModel saves them",
        70,
        True,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_usual_form_and_named_as_what_they_are(form, bring, tmp_path, capsys):
    save, kind, step, both = FORMS[form]
    path = tmp_path / ("x.safetensors" if form in ("safetensors", "compiled and in parallel") else "x.pt")
    path = save(path) or path
    run = bring(path, *HEADS, *(("--step", 5) if step == 5 else ()))
    assert f"upstream format: {kind}" in capsys.readouterr().err
    wanted = AVERAGED if "EMA" in kind.replace("without EMA", "") or "averaged weights" in kind else RAW
    found, _ = checkpoint.load(run / f"ema-{step:07d}.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (run / f"net-{step:07d}.safetensors").exists() == both
    if both:
        assert torch.equal(checkpoint.load(run / f"net-{step:07d}.safetensors")[0]["mask_token"], RAW["mask_token"])
    files = sorted(tmp_path.glob("model-*")) or [path]
    hashed = digest({file.name: sha256(file) for file in files}) if form == "shards" else sha256(path)
    assert read_json(run / "index.json")["source"]["sha256"] == hashed


def test_what_lies_beside_the_network_of_a_lightning_checkpoint_is_counted(tmp_path, capsys):
    FORMS["Lightning"][0](tmp_path / "x.pt")
    read(tmp_path / "x.pt")
    assert "1 tensors beside the network are left out" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", [SMALL, {**SMALL, "decoder": None}], ids=["MaskDiT", "DiT"])
@pytest.mark.parametrize("told", ["by the file", "by --side", "by the decoder", "not"])
def test_positions_that_are_missing_are_computed(architecture, told, bring, tmp_path, capsys, vae):
    whole = random_weights(1, {**architecture, "decoder": DECODER if told == "by the decoder" else architecture["decoder"]})
    absent = {"pos_embed"} if told == "by the decoder" else {"pos_embed", "decoder_pos_embed"}
    tree = {"ema": {name: tensor for name, tensor in whole.items() if name not in absent}}
    saved(tmp_path / "x.pt", tree | ({"args": Namespace(image_size=64)} if told == "by the file" else {}))
    words = ("--step", 5, *HEADS, *(("--side", 8) if told == "by --side" else ()))
    if told == "not":
        line = refused(capsys, "import", tmp_path / "x.pt", "--vae", vae, "--out", tmp_path / "run", *words)
        assert "x.pt: has no pos_embed, and does not state the side of its latents; set it with --side N" in line
        assert "a patch of 2 does not divide a side of 7" in refused(
            capsys, "import", tmp_path / "x.pt", "--vae", vae, "--out", tmp_path / "run", *words, "--side", 7
        )
        return
    found, facts = checkpoint.load(bring(tmp_path / "x.pt", *words) / "ema-0000005.safetensors")
    assert facts["architecture"]["side"] == 8
    assert all(torch.equal(found[name], whole[name]) for name in whole)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "a page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "a web page, not weights"),
    "old": (
        lambda path: torch.save({"ema": RAW}, path, _use_new_zipfile_serialization=False),
        "torch's format before 1.6, or a plain pickle; load it with torch where you trust it, and save it again",
    ),
    "packed": (lambda path: path.write_bytes(gzip.compress(b"x")), "packed by gzip; unpack it"),
    "empty": (lambda path: path.write_bytes(b""), "empty; get it again"),
    "cut": (lambda path: path.write_bytes(saved(path, {"ema": RAW}).read_bytes()[:-99]), "truncated; get it again"),
    "cut safetensors": (
        lambda path: (save_file(RAW, path), path.write_bytes(path.read_bytes()[:-9])),
        "damaged or truncated (Error while deserializing header",
    ),
    "another network": (
        lambda path: save_file({f"encoder.{n}.weight": torch.ones(2) for n in range(9)}, path),
        "neither MaskDiT nor DiT: has no x_embedder.proj.weight among encoder.0.weight, encoder.1.weight, encoder.2.weight and",
    ),
    "other words": (lambda path: saved(path, {"epoch": 3, "weights": RAW}), "has no weights under ema, model_ema"),
    "ours": (lambda path: checkpoint.save(path, RAW, {"step": 1}), "a checkpoint of maskdit, which needs no import; name its run"),
    "diffusers' file": (lambda path: save_file({"transformer_blocks.0.x": torch.ones(1)}, path), "diffusers' DiT; name its folder"),
    "two networks": (lambda path: saved(path, {**under("a.", RAW), **under("b.", RAW)}), "holds several networks"),
    "another tensor": (lambda path: saved(path, {**under("net.", RAW), "x": torch.ones(1)}), "x is not a tensor of this network"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_imported_is_named_as_what_it_is_and_never_to_be_deleted(kind, tmp_path):
    make, said = REFUSED[kind]
    path = tmp_path / "x.bin"
    make(path)
    for look in (read, lambda path: list(examine(path))):
        if (kind, look) == ("ours", read) or kind != "ours":
            with pytest.raises(UserError) as refusal:
                look(path)
            assert said in str(refusal.value)
            assert "delete" not in str(refusal.value)


def test_a_shard_that_is_missing_is_named(tmp_path):
    index = shards(tmp_path / "x")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: missing, although model\.safetensors\.index\.json"):
        read(index)


def test_a_folder_of_shards_is_read_by_its_index_and_one_of_several_files_must_be_named(tmp_path):
    shards(tmp_path / "x")
    assert torch.equal(read(tmp_path).ema["mask_token"], RAW["mask_token"])
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="several files of weights, model-00001-of-00002"):
        read(tmp_path)


def test_the_doctor_knows_an_autoencoder_our_checkpoints_and_weights_of_others(vae, tmp_path):
    assert next(examine(vae)).text.startswith("an autoencoder: 2 pixels per latent, 4 channels, ")
    shutil.copytree(vae, tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="not the weights of the autoencoder in config"):
        list(examine(tmp_path / "vae"))
    facts = {"model": "MaskDiT", "phase": "pretrain", "step": 3, "parameters": 7}
    checkpoint.save(tmp_path / "x.safetensors", RAW, facts)
    assert next(examine(tmp_path / "x.safetensors")).text == "MaskDiT, pretrain, step 3, 7 parameters"
    found = [finding.text for finding in examine(shards(tmp_path / "x"))]
    assert found[0].startswith("upstream, weights that may be raw or averaged: ")
    infinite = {**RAW, "mask_token": RAW["mask_token"] / 0}
    assert "mask_token and 0 other tensors are not finite" in list(examine(saved(tmp_path / "x.ckpt", infinite)))[1].text


def test_the_doctor_knows_a_pipeline_of_diffusers(dit, tmp_path):
    dit.save_pretrained(tmp_path / "transformer")
    write_json(tmp_path / "model_index.json", {"_class_name": "DiTPipeline"})
    assert next(examine(tmp_path)).text.startswith("diffusers, weights that may be raw or averaged: ")


def test_an_autoencoder_is_no_network(vae):
    with pytest.raises(UserError, match="an autoencoder, AutoencoderKL; name it by --vae"):
        read(vae)
