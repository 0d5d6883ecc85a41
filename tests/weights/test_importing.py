"""Weights of others in, ours out: exact, by name, and nothing in a file is executed."""

import csv
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.latents import Vae
from maskdit.config.sampling import Sample
from maskdit.config.training import Released
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT, positions
from maskdit.runtime import environment
from maskdit.sampling.sample import sample, starts
from maskdit.weights import importing, names

UPSTREAM = Path(__file__).parents[1] / "upstream_xl2_256.csv"  # names and shapes of the published checkpoints
ENCODER = {"patch": 2, "depth": 2, "width": 32, "heads": 4}
DECODER = {"depth": 1, "width": 16, "heads": 2}
SMALL = {"side": 8, "channels": 4, "classes": 10, "encoder": ENCODER, "decoder": DECODER}
HEADS = ("--heads", "4", "2")
XL = {
    "side": 32,
    "channels": 4,
    "classes": 1000,
    "encoder": {"patch": 2, "depth": 28, "width": 1152, "heads": 16},
    "decoder": {"depth": 8, "width": 512, "heads": 16},
}


def random_weights(seed: int, architecture=SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = MaskDiT(**architecture)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return net.state_dict()


def upstream(seed: int, architecture=SMALL, name=lambda name: f"model.{name}") -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((name(ours), tensor) for ours, tensor in random_weights(seed, architecture).items())


def refused(capsys, *words: object) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()  # what was said before
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("maskdit: ")
    assert line.count("\n") == 1, line
    return line


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "vae"
    small = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "steps": 1, "batch": 1, "lr": 1.0, "kl_weight": 0.0}
    torch.manual_seed(0)
    entry = Vae.model_validate({**small, "source": "train", "dataset": "toy", "precision": "fp32", "seed": 0})
    autoencoder.build(entry).save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path):
    """A checkpoint as MaskDiT's train.py leaves it, with optimiser and arguments."""
    path = tmp_path / "ckpt.pt"
    opt = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": upstream(1), "ema": upstream(2), "opt": opt, "args": Namespace(exp="x", amp=True)}, path)
    return path


@pytest.fixture
def bring(vae, tmp_path):
    def run(file, *words: object, out="run", code=0) -> Path:
        assert main(["import", str(file), "--vae", str(vae), "--out", str(tmp_path / out), *map(str, words)]) == code
        return tmp_path / out

    return run


def published() -> dict[str, tuple[int, ...]]:
    with UPSTREAM.open() as stream:
        return {row["key"]: tuple(int(size) for size in row["shape"].split("x")) for row in csv.DictReader(stream)}


def test_names_and_shapes_at_full_size_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        ours = names.wrapped(MaskDiT(**XL).state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == published()
    assert len(ours) == 378
    assert sum(tensor.numel() for tensor in ours.values()) == 730_541_200


def test_the_published_shapes_imply_the_published_network():
    tensors = {name: torch.empty(shape, device="meta") for name, shape in published().items()}
    assert names.architecture(names.networks(tensors)["model."], []) == XL


def test_the_published_names_come_back_byte_by_byte(bring, tmp_path):
    deep = {**SMALL, "encoder": {**ENCODER, "depth": 28}, "decoder": {**DECODER, "depth": 8}}
    state = {"model": upstream(1, deep), "ema": upstream(2, deep), "args": Namespace(step=7)}
    assert state["ema"].keys() == published().keys()
    torch.save(state, tmp_path / "theirs.pt")
    run = bring(tmp_path / "theirs.pt", *HEADS)
    again = tmp_path / "again.pt"
    assert main(["export", str(run), "--format", "upstream", "--weights", "both", "--out", str(again)]) == 0
    ours = torch.load(again, weights_only=True)
    for part in ("model", "ema"):
        assert ours[part].keys() == state[part].keys()
        for name, tensor in state[part].items():
            assert ours[part][name].dtype == tensor.dtype
            assert ours[part][name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert ours["args"]["step"] == 7
    twice = bring(again, *HEADS, out="twice")  # and the file of the way back is read like theirs
    tensors, facts = checkpoint.load(twice / "ema-0000007.safetensors")
    assert facts["step"] == 7
    assert all(torch.equal(tensor, state["ema"][f"model.{name}"]) for name, tensor in tensors.items())


def test_an_imported_run_says_what_it_is_and_leaves_unknown_what_is_unknown(bring, file, vae):
    run = bring(file, *HEADS, "--step", 2075000)
    index = read_json(run / "index.json")
    spent = {"step": 2075000, "images": None, "seconds": None, "device_seconds": None, "flops": None}
    assert index["milestones"] == [{"file": "ema-2075000.safetensors", **spent}]
    assert index["final"] == "net-2075000.safetensors"
    tensors, facts = checkpoint.load(run / "ema-2075000.safetensors")
    assert facts["source"] == {"file": "ckpt.pt", "sha256": sha256(file), "format": "upstream"}
    assert {name: facts[name] for name in spent} == spent
    assert (facts["model"], facts["phase"], facts["preconditioning"]) == ("MaskDiT", "released", "edm")
    assert facts["architecture"] == SMALL
    space = Space.parse(facts["space"])
    assert (space.scale, space.shift, space.vae) == ((0.18215,) * 4, (0.0,) * 4, autoencoder.identity(vae))
    assert space.classes == tuple("0123456789")
    MaskDiT(**facts["architecture"]).load_state_dict(tensors)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.model.{}", "model._orig_mod.{}", "module.model.{}", "module._orig_mod.model.{}", "{}"]
)
def test_the_names_that_compiling_and_ddp_leave_are_read(bring, tmp_path, prefix):
    torch.save({"ema": upstream(2, name=prefix.format)}, tmp_path / "x.pt")
    run = bring(tmp_path / "x.pt", *HEADS, "--step", 1)
    tensors, _ = checkpoint.load(run / "ema-0000001.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in random_weights(2).items())
    assert read_json(run / "index.json")["final"] is None, "there are no raw weights"


class Canary:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_code_is_refused_and_does_not(capsys, tmp_path, vae):
    canary = tmp_path / "canary"
    for place in ("args", "ema"):
        torch.save({"ema": upstream(1), place: Canary(canary)}, tmp_path / "x.pt")
        line = refused(capsys, "import", tmp_path / "x.pt", "--vae", vae, "--out", tmp_path / "run", "--step", 1)
        assert "system, which may run code" in line
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


def damaged(kind: str, file: Path) -> object:
    """A file with one thing wrong."""
    state = {"ema": upstream(1)}
    ema = state["ema"]
    match kind:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-200])
            return None
        case "text":
            file.write_text("<html>no</html>")
            return None
        case "old":
            torch.save(state, file, _use_new_zipfile_serialization=False)
            return None
        case "missing":
            del ema["model.decoder_blocks.0.mlp.fc1.bias"]
        case "unknown":
            ema["model.extra"] = torch.zeros(1)
        case "shape":
            ema["model.blocks.1.attn.proj.bias"] = torch.zeros(31)
        case "type":
            ema["model.mask_token"] = ema["model.mask_token"].half()
        case "infinite":
            ema["model.final_layer.linear.bias"][3] = float("inf")
        case "nan":
            ema["model.final_layer.linear.bias"][3] = float("nan")
        case "value":
            ema["model.mask_token"] = "text"
        case "twins":
            ema["model._orig_mod.mask_token"] = ema["model.mask_token"]
        case "list":
            state = [1, 2]
        case "empty":
            state = {"ema": {}}
        case "places":
            ema["model.pos_embed"] = torch.zeros(1, 15, 32)
        case "dimensions":
            ema["model.x_embedder.proj.weight"] = torch.zeros(3)
    torch.save(state, file)
    return None


REFUSALS = {
    "truncated": "truncated; get it again",
    "text": "a web page, not weights",
    "old": "torch's format before 1.6",
    "missing": "decoder_blocks.0.mlp.fc1.bias is missing",
    "unknown": "extra is not a tensor of this network",
    "shape": "blocks.1.attn.proj.bias is (31,) torch.float32, the network needs (32,) torch.float32",
    "type": "mask_token is (1, 1, 16) torch.float16, the network needs (1, 1, 16) torch.float32",
    "infinite": "final_layer.linear.bias contains a number that is not finite",
    "nan": "final_layer.linear.bias contains a number that is not finite",
    "value": "'model.mask_token', which is not a tensor",
    "twins": "mask_token: two tensors have this name",
    "list": "contains no dictionary of tensors",
    "empty": "ema contains no tensors",
    "places": "pos_embed: 15 positions do not form a square",
    "dimensions": "x_embedder.proj.weight: has shape (3,)",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_not_wholly_the_network_is_refused_by_name(capsys, file, vae, tmp_path, kind):
    damaged(kind, file)
    line = refused(capsys, "import", file, "--vae", vae, "--out", tmp_path / "run", "--step", 1, *HEADS)
    assert str(file) in line
    assert REFUSALS[kind] in line
    assert not (tmp_path / "run").exists()


def test_what_the_file_does_not_tell_is_asked_for(capsys, file, vae, tmp_path):
    words = ("import", file, "--vae", vae, "--out", tmp_path / "run")
    assert "set it with --step N" in refused(capsys, *words)
    assert "set them with --heads" in refused(capsys, *words, "--step", 1)
    assert "heads: 5 at width 32" in refused(capsys, *words, "--step", 1, "--heads", 5, 2)
    assert "in the format upstream, not dit" in refused(capsys, *words, "--step", 1, "--format", "dit")
    (tmp_path / "run").mkdir()
    assert "already exists" in refused(capsys, *words, "--step", 1)


def test_an_autoencoder_with_other_channels_is_refused(capsys, file, vae, tmp_path):
    shutil.copytree(vae, tmp_path / "vae")
    write_json(tmp_path / "vae" / "config.json", {**read_json(vae / "config.json"), "latent_channels": 16})
    line = refused(capsys, "import", file, "--vae", tmp_path / "vae", "--out", tmp_path / "run", "--step", 1, *HEADS)
    assert "16 latent channels, the weights need 4" in line


# DiT, as its authors and as diffusers have it


@pytest.fixture(scope="module")
def dit():
    """A small DiT of diffusers with random weights, on the original's sinusoid.

    diffusers divides the frequencies' exponent by 127, the network was trained with 128: its own pipeline differs by that.
    """
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10}
    net = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, norm_eps=1e-6).eval()
    for block in net.transformer_blocks:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return net


def original_names(net) -> dict[str, torch.Tensor]:
    """The tensors as DiT's authors name them, written out here a second time."""
    state = net.state_dict()
    at = "transformer_blocks.0.norm1.emb"
    found = {
        "pos_embed": positions(4, 32),
        "y_embedder.embedding_table.weight": state[f"{at}.class_embedder.embedding_table.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"x_embedder.proj.{kind}"] = state[f"pos_embed.proj.{kind}"]
        found[f"t_embedder.mlp.0.{kind}"] = state[f"{at}.timestep_embedder.linear_1.{kind}"]
        found[f"t_embedder.mlp.2.{kind}"] = state[f"{at}.timestep_embedder.linear_2.{kind}"]
        found[f"final_layer.adaLN_modulation.1.{kind}"] = state[f"proj_out_1.{kind}"]
        found[f"final_layer.linear.{kind}"] = state[f"proj_out_2.{kind}"]
        for n in range(2):
            theirs = f"transformer_blocks.{n}"
            qkv = [state[f"{theirs}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            found[f"blocks.{n}.attn.qkv.{kind}"] = torch.cat(qkv)
            found[f"blocks.{n}.attn.proj.{kind}"] = state[f"{theirs}.attn1.to_out.0.{kind}"]
            found[f"blocks.{n}.mlp.fc1.{kind}"] = state[f"{theirs}.ff.net.0.proj.{kind}"]
            found[f"blocks.{n}.mlp.fc2.{kind}"] = state[f"{theirs}.ff.net.2.{kind}"]
            found[f"blocks.{n}.adaLN_modulation.1.{kind}"] = state[f"{theirs}.norm1.linear.{kind}"]
    return found


def network(run: Path) -> tuple[MaskDiT, dict]:
    tensors, facts = checkpoint.load(run / "ema-0000005.safetensors")
    net = MaskDiT(**facts["architecture"])
    net.load_state_dict(tensors)
    return net.eval(), facts


def outputs(dit, ours: MaskDiT) -> tuple[torch.Tensor, torch.Tensor]:
    """Both networks on the same latents, timesteps and labels; the null class is row 10 of one and -1 of the other."""
    torch.manual_seed(1)
    x, steps, labels = torch.randn(4, 4, 8, 8), torch.tensor([0, 17, 500, 999]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        return dit(x, steps, labels).sample, ours(x, steps.float(), torch.where(labels == 10, -1, labels))


@pytest.mark.parametrize("kind", ["transformer folder", "pipeline folder", "original", "original in a training checkpoint"])
def test_dit_imported_is_the_network_that_diffusers_computes(dit, bring, tmp_path, kind):
    place = tmp_path / "dit"
    if "folder" in kind:
        dit.save_pretrained(place / "transformer")
        source = place if kind == "pipeline folder" else place / "transformer"
    else:
        source = tmp_path / "DiT.pt"
        names = original_names(dit)
        torch.save(names if kind == "original" else {"model": names, "ema": names, "args": Namespace(a=1)}, source)
    run = bring(source, "--step", 5, *(() if "folder" in kind else ("--heads", 4)))
    net, facts = network(run)
    assert (facts["model"], facts["preconditioning"]) == ("DiT", "vp")
    assert facts["architecture"] == {**SMALL, "decoder": None, "out_channels": 8}
    theirs, ours = outputs(dit, net)
    assert ours.shape == (4, 8, 8, 8)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (theirs[0] - theirs[1]).abs().max() > 0.1, "the outputs are no constants"


def test_the_null_class_moves_into_the_time_exactly(dit):
    theirs = original_names(dit)
    ours = names.from_dit(theirs)
    table, bias = theirs["y_embedder.embedding_table.weight"], theirs["t_embedder.mlp.2.bias"]
    moved = ours["y_embedder.embedding_table.weight"].T
    torch.testing.assert_close(moved + ours["t_embedder.mlp.2.bias"], table[:-1] + bias, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours["t_embedder.mlp.2.bias"], table[-1] + bias, atol=0, rtol=0)


FOLDERS = {
    "copies": "differs between blocks",
    "unknown": "extra: not a tensor of DiT",
    "pickle": "only safetensors are read",
    "half": "needs to_q, to_k and to_v of matching shapes",
    "norm": "config.json: norm_type is 'layer_norm', DiT has 'ada_norm_zero'",
    "class": "contains no DiTTransformer2DModel",
    "damaged": "damaged",
    "sizes": "needs sample_size, patch_size and num_attention_heads",
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_not_wholly_dit_is_refused(dit, capsys, tmp_path, vae, kind):
    dit.save_pretrained(tmp_path / "dit")
    weights, config = tmp_path / "dit" / "diffusion_pytorch_model.safetensors", tmp_path / "dit" / "config.json"
    tensors, tree = {name: tensor.clone() for name, tensor in dit.state_dict().items()}, read_json(config)
    match kind:
        case "copies":
            tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
        case "unknown":
            tensors["extra"] = torch.zeros(1)
        case "half":
            del tensors["transformer_blocks.1.attn1.to_k.weight"]
        case "norm":
            tree["norm_type"] = "layer_norm"
        case "class":
            tree["_class_name"] = "UNet2DModel"
        case "sizes":
            del tree["sample_size"]
    save_file(tensors, weights)
    write_json(config, tree)
    if kind == "pickle":
        weights.unlink()
        torch.save(tensors, tmp_path / "dit" / "diffusion_pytorch_model.bin")
    if kind == "damaged":
        weights.write_bytes(weights.read_bytes()[:500])
    line = refused(capsys, "import", tmp_path / "dit", "--vae", vae, "--out", tmp_path / "run", "--step", 1)
    assert FOLDERS[kind] in line


# The way out


def test_an_export_that_the_format_cannot_hold_is_refused(bring, file, capsys, tmp_path, vae, dit):
    run = bring(file, *HEADS, "--step", 3)
    assert "has no milestone 4, only [3]" in refused(
        capsys, "export", run, "--format", "upstream", "--out", tmp_path / "x", "--step", 4
    )
    folder = ("export", run, "--format", "diffusers", "--out")
    assert "needs --vae" in refused(capsys, *folder, tmp_path / "x")
    assert "holds one set of weights; use --weights" in refused(capsys, *folder, tmp_path / "x", "--vae", vae, "--weights", "both")
    assert "already exists" in refused(capsys, *folder, run)
    torch.save({"ema": upstream(1)}, tmp_path / "one.pt")
    one = bring(tmp_path / "one.pt", *HEADS, "--step", 3, out="one")
    words = ("--format", "upstream", "--out", tmp_path / "x")
    assert "has no raw weights of step 3" in refused(capsys, "export", one, *words, "--weights", "net")
    torch.save(original_names(dit), tmp_path / "dit.pt")
    other = bring(tmp_path / "dit.pt", "--heads", 4, "--step", 3, out="dit")
    assert "DiT's own weights" in refused(capsys, "export", other, *words)
    (run / "ema-0000003.safetensors").write_bytes(b"x")
    assert "is not the file that was written: it has 1 bytes" in refused(capsys, "export", run, *words)
    assert not (tmp_path / "x").exists()


ALONE = """
import sys
sys.modules["maskdit"] = None  # the folder must do without
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, noise, labels, out = sys.argv[1:]
latents = torch.from_numpy(np.load(noise))
drawn = []
for how in ({}, {"custom_pipeline": folder}):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **how)
    done = pipe(np.load(labels).tolist(), guidance_scale=2.0, num_inference_steps=3, latents=latents, output_type="np")
    drawn.append((done.images * 255).round().astype(np.uint8))
np.save(out, np.stack(drawn))
names = pipe([pipe.transformer.config.class_names[3]], 1.0, 2, torch.Generator().manual_seed(0)).images
assert names[0].size == (16, 16)
"""


def test_diffusers_draws_from_an_exported_folder_alone_what_sample_draws(bring, file, vae, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    run, folder = bring(file, *HEADS, "--step", 3), tmp_path / "hub"
    assert main(["export", str(run), "--format", "diffusers", "--vae", str(vae), "--out", str(folder)]) == 0
    entry = {"run": "toy", "vae": "toy", "phase": "released", "step": "final", "guidance": 2.0, "images": 6, "labels": "random"}
    config = Sample.model_validate({**entry, "solver_steps": 3, "batch": 6, "shards": 1, "precision": "fp32", "seed": 5})
    (tmp_path / "out").mkdir()
    sample(config, run=run, vae=vae, out=tmp_path / "out")
    ours = np.load(tmp_path / "out" / "images-0000.npy").astype(int)
    _, facts = checkpoint.load(run / "ema-0000003.safetensors")
    noise, labels = starts(config, Space.parse(facts["space"]), np.arange(6))
    np.save(tmp_path / "noise.npy", noise)
    np.save(tmp_path / "labels.npy", labels)
    words = [folder, tmp_path / "noise.npy", tmp_path / "labels.npy", tmp_path / "theirs.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "theirs.npy").astype(int)
    assert theirs.shape == (2, 6, 16, 16, 3), "by the folder's own word, and as a named pipeline"
    assert np.abs(theirs - ours).max() <= 1
    assert len(np.unique(ours, axis=0)) == 6
    card = (folder / "README.md").read_text()
    assert "| training steps | 3 |\n| images seen in training | unknown |" in card
    assert "Apache" in (folder / "LICENSE").read_text()


def test_code_in_an_exported_folder_names_no_package_of_ours(bring, file, vae, tmp_path):
    run, folder = bring(file, *HEADS, "--step", 3), tmp_path / "hub"
    assert main(["export", str(run), "--format", "diffusers", "--vae", str(vae), "--out", str(folder)]) == 0
    texts = [path.read_text() for path in folder.rglob("*.py")]
    assert len(texts) >= 6
    assert not [text for text in texts if "from maskdit" in text or "import maskdit" in text]


# Released weights in the graph


def test_released_weights_are_fetched_checked_and_become_a_run(file, vae, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    entry = {"url": file.as_uri(), "sha256": None, "format": "upstream", "vae": "toy", "dataset": "toy", "step": 9, "heads": [4, 2]}
    (tmp_path / "run").mkdir()
    importing.released(Released.model_validate(entry), vae=vae, out=tmp_path / "run")
    assert f"TRUSTED UNSEEN, because the entry has no sha256; add sha256: {sha256(file)}" in capsys.readouterr().err
    index = read_json(tmp_path / "run" / "index.json")
    assert index["source"] == {"file": "ckpt.pt", "sha256": sha256(file), "url": file.as_uri(), "format": "upstream"}
    assert index["milestones"][0]["step"] == 9
    environment.tidy()  # as the command does when it has published
    assert not list((tmp_path / "scratch").iterdir())
    with pytest.raises(UserError, match=r"has sha256 .*, not 0000"):
        importing.released(Released.model_validate({**entry, "sha256": "0" * 64}), vae=vae, out=tmp_path / "run")


def test_json_of_a_manifest_holds_no_place_of_this_machine(bring, file):
    run = bring(file, *HEADS, "--step", 3)
    texts = json.dumps(read_json(run / "manifest.json")) + json.dumps(checkpoint.load(run / "ema-0000003.safetensors")[1])
    assert str(file.parent) not in texts
