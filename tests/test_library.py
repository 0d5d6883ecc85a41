"""The library: what the package exports, how networks are kept, and that it computes what the commands compute."""

import ast
import inspect
import json
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

import maskdit
from maskdit import EMA, DiT, MaskDiT, UserError, decode, draw, kept_tokens, loss, sample
from maskdit.artifacts.atomic import read_json
from maskdit.config.sampling import Sample
from maskdit.latents.dataset import Latents
from maskdit.methods.plugins import of_entry
from maskdit.model import checkpoint
from maskdit.runtime.process_group import Ranks
from maskdit.sampling import sample as step
from maskdit.training.batches import batch_at
from maskdit.training.learner import Learner
from maskdit.weights import pretrained
from maskdit.weights.export import write_folder
from small import ENCODER, SAMPLE, latents, make_run, masked  # noqa: F401, a fixture

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DECODER = {"depth": 1, "width": 8, "heads": 2}


def network(kind=MaskDiT, **changes):
    torch.manual_seed(0)
    sizes = {"side": 8, "channels": 2, "classes": 3, "encoder": ENCODER}
    net = kind(**sizes, **({"decoder": DECODER} if kind is MaskDiT else {}), **changes)
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    return net


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with its autoencoder, and its folder for diffusers."""
    home = make_run(tmp_path_factory.mktemp("made"))
    tensors, facts = checkpoint.load(home / "run" / "ema-0000003.safetensors")
    (home / "hub").mkdir()
    write_folder(home / "hub", tensors, facts, home / "vae", "card")
    return home


def test_the_import_takes_50_ms_at_most_and_waits_for_no_library():
    program = "import sys, time; began = time.perf_counter(); import maskdit; print(time.perf_counter() - began, *sys.modules)"
    found = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in found) <= 0.05
    assert not {"torch", "numpy", "pydantic", "huggingface_hub"} & set(found[0])


def test_each_exported_name_is_documented_and_typed():
    assert sorted(maskdit.__all__) == sorted(set(maskdit.__all__))
    for name in maskdit.__all__:
        thing = getattr(maskdit, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            hints = typing.get_type_hints(thing)
            assert hints.keys() == {*inspect.signature(thing).parameters, "return"}, name


def test_type_checkers_see_the_names_where_they_are_imported_from():
    tree = ast.parse((ROOT / "src" / "maskdit" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        name.name: node.module.removeprefix("maskdit.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == maskdit._HOME
    assert seen.keys() == set(maskdit.__all__)


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(ImportError, match="nothing"):
        from maskdit import nothing  # noqa: F401


@pytest.mark.parametrize("kind", [MaskDiT, DiT])
def test_a_saved_network_comes_back_as_it_was(kind, tmp_path):
    net = network(kind, latent_shift=(0.5, -1.0), latent_scale=(2.0, 3.0), class_names=("a", "b", "c"))
    net.save_pretrained(tmp_path / "net")
    again = kind.from_pretrained(tmp_path / "net")
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in net.state_dict().items()
    }
    assert (again.latent_shift, again.latent_scale, again.class_names) == ((0.5, -1.0), (2.0, 3.0), ("a", "b", "c"))
    assert not again.training
    assert {file.name for file in (tmp_path / "net").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_scaled_latents_are_shifted_then_scaled_and_come_back():
    net, latent = network(latent_shift=(1.0, 2.0), latent_scale=(2.0, 4.0)), torch.full((1, 2, 8, 8), 3.0)
    assert net.scaled(latent)[0, :, 0, 0].tolist() == [4.0, 4.0]
    assert torch.equal(net.unscaled(net.scaled(latent)), latent)


def test_a_maskdit_is_not_opened_as_a_dit(tmp_path):
    network().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a MaskDiT, which has a decoder; open it by MaskDiT"):
        DiT.from_pretrained(tmp_path)


def test_other_tensors_than_those_of_the_config_are_refused_by_name(tmp_path):
    network().save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder": None}))
    with pytest.raises(UserError, match=r"decoder\S+ is not a tensor of this network"):
        MaskDiT.from_pretrained(tmp_path)
    for change in ({"encoder": {"patch": 2}}, {"class_names": ["a"]}, {"latent_shift": [0.0]}, {"side": "8"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=r"config\.json: not as maskdit writes it"):
            MaskDiT.from_pretrained(tmp_path)


def test_weights_that_are_not_safetensors_are_not_read(tmp_path):
    network().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not in the format of safetensors"):
        MaskDiT.from_pretrained(tmp_path)


def test_a_name_that_is_neither_a_folder_nor_a_repository_is_refused_in_one_line(tmp_path):
    for name in (tmp_path / "no", "my/long/name"):
        with pytest.raises(UserError, match="no such folder, and no name of a repository"):
            MaskDiT.from_pretrained(name)
    with pytest.raises(UserError, match=r"config\.json"):
        MaskDiT.from_pretrained(tmp_path)


def test_of_a_repository_only_the_network_s_config_and_safetensors_are_downloaded(made, monkeypatch):
    asked = {}
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name, **words: asked.update(words, name=name) or str(made / "hub"))
    net = MaskDiT.from_pretrained("someone/net", revision="v1", token="secret")
    assert (asked["name"], asked["revision"], asked["token"]) == ("someone/net", "v1", "secret")
    there = ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "config.json", "model.safetensors"]
    others = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "model.bin", "transformer/model.py", "model_index.json"]
    assert list(filter_repo_objects([*there, *others], allow_patterns=asked["allow_patterns"])) == there
    assert net.class_names == ("a", "b", "c")


def test_what_is_pushed_to_the_hub_is_what_is_saved(monkeypatch):
    from huggingface_hub import HfApi

    pushed = {}

    def upload(self, *, folder_path, **words):
        pushed.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()}, repo=words["repo_id"])

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    network().push_to_hub("someone/net")
    assert pushed.pop("repo") == "someone/net"
    assert pushed.keys() == {"README.md", "config.json", "model.safetensors"}
    assert b"library_name: maskdit" in pushed["README.md"]


def test_an_exported_folder_gives_the_pixels_of_the_sample_step(made, tmp_path):
    entry = Sample.model_validate({**SAMPLE, "images": 4, "labels": "balanced", "guidance_interval": (0.3, 5.0)})
    step.sample(entry, run=made / "run", vae=made / "vae", out=tmp_path)
    net = MaskDiT.from_pretrained(made / "hub")
    drawn = sample(net, np.load(tmp_path / "labels.npy").tolist(), seed=5, steps=3, guidance=2.0, interval=(0.3, 5.0), batch=4)
    vae = AutoencoderKL.from_pretrained(made / "hub", subfolder="vae")
    np.testing.assert_array_equal(decode(vae, drawn).numpy(), np.load(tmp_path / "images-0000.npy"))


@pytest.mark.parametrize("solver", ["heun", "dpmpp-2m"])
def test_an_image_depends_on_its_number_alone(solver):
    whole = sample(net := network(), [0, 1, 2, -1], steps=3, solver=solver, guidance=1.5)
    alone = sample(net, [2, -1], first=2, steps=3, solver=solver, guidance=1.5, batch=1)
    torch.testing.assert_close(whole[2:], alone)


@pytest.mark.parametrize(
    "words",
    [
        *({"labels": labels} for labels in ([3], [], [0.5], [True])),
        *({"guidance": 0.5}, {"solver": "ddpm"}, {"steps": 0}, {"first": -1}, {"interval": (2.0, 1.0)}),
    ],
)
def test_what_cannot_be_sampled_is_a_value_error_of_one_line(words):
    with pytest.raises(ValueError, match=rf"^\w*{next(iter(words))}\b[^\n]*$"):
        sample(network(), **{"labels": [0], **words})


def test_the_draw_of_a_step_is_that_of_training(latents):
    data, config = Latents.load(latents), masked(4)
    theirs = batch_at(7, config, data, 16).draw
    ours = draw(config.seed, 7, torch.zeros(2, 2, 8, 8), 16, first=1)
    for name in ("normal_B", "noise_BCHW", "scores_BL", "drop_B"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)[1:3]), name
    assert ours.extra_BN is None
    assert draw(0, 7, torch.zeros(2, 2, 8, 8), 16, extra=16).extra_BN.shape == (2, 16)


def test_a_plain_loop_takes_the_steps_and_the_average_of_training(latents):
    data, config = Latents.load(latents), masked(3, precision="fp32", ema=0.5, ema_warmup=1, warmup=1)
    mine, theirs = network(), network()
    method = of_entry(config, theirs.architecture)
    learner = Learner(theirs, dict(theirs.named_parameters()), config, method, torch.device("cpu"), Ranks(0, 1))
    optimizer = torch.optim.AdamW(
        [each for each in mine.parameters() if each.requires_grad], config.lr, config.betas, weight_decay=0.0
    )
    ema = EMA(mine, config.ema, config.ema_warmup)
    for number in range(3):
        batch = batch_at(number, config, data, 16)
        keep = kept_tokens(mine.tokens, 0.5)
        terms = loss(mine, batch.clean, batch.labels, batch.draw, patch=2, keep=keep, mae_weight=0.1, label_dropout=0.1)
        optimizer.zero_grad()
        sum(term.mean() for term in terms).backward()
        optimizer.step()
        ema.update(mine, number)
        learner.gradients(batch, keep)
        learner.update(number)
    averages = learner.weights(learner.average)
    for name in averages.keys() - {name for name in averages if name.endswith("qkv.bias")}:  # the gradient of a key's bias is 0
        torch.testing.assert_close(ema.net.state_dict()[name], averages[name], rtol=1e-3, atol=1e-5)


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_no_example_is_longer_than_60_lines():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.stem for file in files] == ["sample_exported", "score_folder", "train_masked"]
    assert max(len(file.read_text().splitlines()) for file in files) <= 60


def test_the_example_samples_from_an_exported_folder(made, tmp_path, capsys):
    example("sample_exported")(str(made / "hub"), tmp_path / "out", 1)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["0000-a.png", "0001-b.png", "0002-c.png"]
    with Image.open(tmp_path / "out" / "0000-a.png") as image:
        assert image.size == (16, 16)


def test_the_example_trains_with_a_mask_and_saves_the_average(tmp_path, capsys):
    losses = example("train_masked")(str(tmp_path / "net"), 40)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    net = MaskDiT.from_pretrained(tmp_path / "net")
    assert sample(net, [0, 1], steps=2).shape == (2, 1, 16, 16)


def test_the_example_scores_a_folder_of_other_images_as_farther_than_itself(tmp_path, capsys):
    source = np.random.default_rng(0)
    for name, high in (("one", 256), ("other", 32)):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.fromarray(source.integers(0, high, (32, 32, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    main = example("score_folder")
    same, apart = main(tmp_path / "one", tmp_path / "one"), main(tmp_path / "one", tmp_path / "other")
    assert abs(same["fd_mobilenet"]) < 1e-3 < apart["fd_mobilenet"]
    assert same["precision_mobilenet"] == same["recall_mobilenet"] == 1
    assert all(name.endswith("_mobilenet") for name in same)
