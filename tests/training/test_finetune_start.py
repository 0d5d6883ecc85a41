"""Published weights finetuned on other images: what is kept, what begins anew, and what that is worth."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain, Released
from maskdit.images.imagenet import class_number
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Latents
from maskdit.model import checkpoint
from maskdit.model.diffusion import Draw, loss
from maskdit.model.transformer import LabelEmbed, MaskDiT
from maskdit.sampling.sample import sample
from maskdit.training import train
from maskdit.training.start import TABLE, begun
from maskdit.weights import importing, names
from small import COMMON, SAMPLE, make_run, make_vae

ENCODER, DECODER = {"patch": 2, "depth": 2, "width": 32, "heads": 2}, {"depth": 1, "width": 16, "heads": 2}
LENGTH = {"batch": 32, "lr": 3e-3, "precision": "fp32", "warmup": 10}
DIGITS = load_digits()
KNOWN, OTHERS = ("0", "1", "2", "3", "4"), ("5", "6", "7", "8", "9")


def images_of(classes: tuple[str, ...], heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits and their negatives as latents (N, 2, 8, 8) with a deviation of about 0.5, and their labels."""
    rows = [row for row, digit in enumerate(DIGITS.target) if str(digit) in classes and (row % 5 == 0) == heldout]
    clean = DIGITS.images[rows] / 8 - 1
    return np.stack([clean, -clean], axis=1).astype(np.float32) * 0.7, DIGITS.target[rows] - int(classes[0])


def written(folder: Path, vae: Path, classes: tuple[str, ...]) -> Path:
    """The digits of some classes, in the form of the encode step, in the space of the published models."""
    folder.mkdir()
    clean, labels = images_of(classes, heldout=False)
    moments = np.concatenate([clean / importing.SCALE, np.full_like(clean, -30)], axis=1)[:, None].astype(np.float16)
    np.save(folder / "moments-0000.npy", moments)
    np.save(folder / "labels.npy", labels)
    space = {"channels": 2, "side": 8, "shift": [0.0] * 2, "scale": [importing.SCALE] * 2, "vae": autoencoder.identity(vae)}
    shards = [{"file": "moments-0000.npy", "count": len(labels)}]
    write_json(folder / "index.json", {"shape": moments.shape, "space": {**space, "classes": classes}, "shards": shards})
    return folder


def scratch(patch: pytest.MonkeyPatch, home: Path) -> None:
    patch.setenv("MASKDIT_SCRATCH", str(home / "scratch"))
    patch.setattr(train, "gemm_rate", lambda *_: 1e12)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`run`: weights trained here on five digits, by way of MaskDiT's file; `ema`: without raw ones; `others`: the other digits."""
    home = tmp_path_factory.mktemp("published")
    vae = make_vae(home / "vae")
    with pytest.MonkeyPatch.context() as patch:
        scratch(patch, home)
        entry = {"encoder": ENCODER, "decoder": DECODER, "mask_ratio": 0.5, "milestones": (200,)}
        (home / "trained").mkdir()
        config = Pretrain.model_validate({**COMMON, **LENGTH, **entry})
        train.pretrain(config, latents=written(home / "known", vae, KNOWN), out=home / "trained")
        tree = {
            theirs: names.wrapped(load_file(home / "trained" / f"{kind}-0000200.safetensors"))
            for theirs, kind in {"model": "net", "ema": "ema"}.items()
        }
        for name, parts in {"run": ("model", "ema"), "ema": ("ema",)}.items():
            file = home / f"{name}.pt"
            torch.save({**{part: tree[part] for part in parts}, "args": Namespace(exp="digits")}, file)
            (home / name).mkdir()
            told = {"url": file.as_uri(), "sha256": None, "format": "upstream", "vae": "toy", "dataset": "toy"}
            importing.released(Released.model_validate({**told, "step": 200, "heads": (2, 2)}), vae=vae, out=home / name)
        written(home / "others", vae, OTHERS)
        yield home


def finetune(**changes: object) -> Finetune:
    entry = {"run": "toy", "phase": "released", "mask_ratio": 0.0, "milestones": (40,)}
    return Finetune.model_validate({**COMMON, **LENGTH, **entry, **changes})


def start(home: Path, run: str = "run", **changes: object):
    """The network and the start of a finetuning on the other digits."""
    return begun(finetune(**changes), Latents.load(home / "others"), home / "others", home / run)


def heldout_loss(run: Path) -> float:
    """The denoising loss of a run's last average on digits that no training has seen, at the same noise for all runs."""
    tensors, facts = checkpoint.load(run / read_json(run / "index.json")["milestones"][-1]["file"])
    net = MaskDiT(**facts["architecture"])
    net.load_state_dict(tensors)
    clean, labels = map(torch.from_numpy, images_of(OTHERS, heldout=True))
    source = torch.Generator().manual_seed(0)
    noise = [torch.randn(len(clean), generator=source), torch.randn(clean.shape, generator=source)]
    draw = Draw(*noise, torch.rand(len(clean), 16, generator=source), torch.ones(len(clean)))
    with torch.no_grad():
        return loss(net, clean, labels, draw, patch=2, keep=16, mae_weight=0.0, label_dropout=0.0)[0].mean().item()


def test_other_classes_are_learned_better_from_published_weights_than_from_nothing(home, tmp_path, monkeypatch):
    scratch(monkeypatch, tmp_path)
    ours, nothing = tmp_path / "ours", tmp_path / "nothing"
    for out in (ours, nothing):
        out.mkdir()
    train.finetune(finetune(), latents=home / "others", pretrained=home / "run", out=ours)
    same = finetune().model_dump(exclude={"run", "phase", "classes"})
    config = Pretrain.model_validate({**same, "encoder": ENCODER, "decoder": DECODER})
    train.pretrain(config, latents=home / "others", out=nothing)
    assert heldout_loss(ours) < 0.8 * heldout_loss(nothing), "after the same steps on the same images"
    index, log = read_json(ours / "index.json"), (ours / "log.jsonl").read_text()
    assert index["milestones"][0]["images"] == 40 * 32, "what the published weights have cost is unknown"
    assert '"step": 40' in log
    _, facts = checkpoint.load(ours / "ema-0000040.safetensors")
    assert (facts["phase"], facts["preconditioning"], facts["space"]["classes"]) == ("finetune", "edm", list(OTHERS))
    assert facts["source"]["file"] == "run.pt"


def test_only_the_label_table_begins_anew_and_the_average_begins_from_the_published_one(home):
    method, past = start(home)
    assert method.architecture == {"side": 8, "channels": 2, "classes": 5, "encoder": ENCODER, "decoder": DECODER}
    for kind, tensors in {"net": past.net, "ema": past.ema}.items():
        published = load_file(home / "run" / f"{kind}-0000200.safetensors")
        changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, published[name])}
        assert (changed, tensors.keys()) == ({TABLE}, published.keys())
        torch.manual_seed(COMMON["seed"])
        assert torch.equal(tensors[TABLE], LabelEmbed(5, 32).embedding_table.weight)
    assert not torch.equal(past.net["blocks.0.attn.qkv.weight"], past.ema["blocks.0.attn.qkv.weight"])


def test_weights_without_raw_ones_start_from_their_average(home):
    _, past = start(home, "ema")
    published = load_file(home / "run" / "ema-0000200.safetensors")
    assert all(torch.equal(past.net[name], past.ema[name]) for name in published)
    assert torch.equal(past.net["blocks.0.attn.qkv.weight"], published["blocks.0.attn.qkv.weight"])


def test_a_class_may_start_from_a_published_one(home):
    _, past = start(home, classes={"7": 1, "9": 4})
    _, anew = start(home)
    for kind, tensors, others in (("net", past.net, anew.net), ("ema", past.ema, anew.ema)):
        published = load_file(home / "run" / f"{kind}-0000200.safetensors")[TABLE]
        assert torch.equal(tensors[TABLE][:, [2, 4]], published[:, [1, 4]])
        assert torch.equal(tensors[TABLE][:, [0, 1, 3]], others[TABLE][:, [0, 1, 3]])


REFUSALS = [
    ({"classes": {"seven": 1}}, "finetune.classes.seven: not a class of the images; known: 5, 6, 7, 8, 9"),
    ({"classes": {"7": 5}}, "finetune.classes.7: the weights have the classes 0 to 4, not 5"),
    ({"classes": {"7": "daisy"}}, "finetune.classes.7: names are those of ImageNet, but the weights have 5 classes"),
    ({"mask_ratio": 0.99}, "finetune.mask_ratio: 0.99 keeps none of 16 tokens"),
    ({"mask_ratio": 0.5, "defer": 2}, "finetune.defer: 2 must be less than the encoder's depth of 2"),
]


@pytest.mark.parametrize(("changes", "line"), REFUSALS)
def test_what_does_not_fit_the_published_weights_is_refused_in_one_line(changes, line, home):
    with pytest.raises(UserError) as refusal:
        start(home, **changes)
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize("field", ["vae", "scale", "shift", "side"])
def test_latents_of_another_space_are_refused_by_what_differs(field, home, tmp_path):
    index = read_json(home / "others" / "index.json")
    index["space"][field] = {"vae": "0" * 64, "scale": [0.5] * 2, "shift": [0.1] * 2, "side": 4}[field]
    write_json(tmp_path / "index.json", index)
    for name in ("moments-0000.npy", "labels.npy"):
        (tmp_path / name).symlink_to(home / "others" / name)
    with pytest.raises(UserError, match=rf"not the latents that .*, whose {field} is .*; encode the images at the size") as refusal:
        begun(finetune(), Latents.load(tmp_path), tmp_path, home / "run")
    assert "\n" not in str(refusal.value)


def test_classes_of_imagenet_have_numbers_by_their_names():
    assert (class_number("Daisy"), class_number("tench"), class_number("toilet tissue")) == (985, 0, 999)
    with pytest.raises(UserError, match="'cardigan': ImageNet has the classes 264 and 474 of this name; write one number"):
        class_number("cardigan")
    with pytest.raises(UserError, match="'dasy': not the name of a class of ImageNet; did you mean 'daisy'"):
        class_number("dasy")


# DiT's weights


@pytest.fixture
def dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DiT with random weights that predicts noise and its variance, as a run, and latents of two classes for it."""
    scratch(monkeypatch, tmp_path)
    unknown = dict.fromkeys(("images", "seconds", "device_seconds", "flops"))
    told = {"preconditioning": "vp", "phase": "released", "source": {"file": "dit.pt"}}
    make_run(tmp_path, architecture={"out_channels": 4}, **unknown, **told)
    write_json(tmp_path / "run" / "index.json", {"milestones": [{"step": 3, "file": "ema-0000003.safetensors"}], "final": None})
    written(tmp_path / "latents", tmp_path / "vae", OTHERS)
    index = read_json(tmp_path / "latents" / "index.json")
    space = checkpoint.facts(tmp_path / "run" / "ema-0000003.safetensors")["space"]
    write_json(tmp_path / "latents" / "index.json", {**index, "space": {**space, "classes": OTHERS}})
    return tmp_path


def test_dit_goes_on_by_its_own_objective_without_its_variance(dit):
    tensors, facts = checkpoint.load(dit / "run" / "ema-0000003.safetensors")
    method, past = begun(finetune(), Latents.load(dit / "latents"), dit / "latents", dit / "run")
    architecture = method.architecture
    assert architecture == {name: size for name, size in facts["architecture"].items() if name != "out_channels"} | {"classes": 5}
    assert method.preconditioning == "vp"
    theirs, ours = MaskDiT(**facts["architecture"]), MaskDiT(**architecture)
    theirs.load_state_dict(tensors)
    ours.load_state_dict(past.net)
    x, steps, null = torch.randn(3, 2, 8, 8), torch.tensor([0.0, 400.0, 999.0]), torch.tensor([-1, -1, -1])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, steps, null), theirs(x, steps, null)[:, :2])


def test_dit_finetuned_predicts_noise_and_is_sampled_so(dit):
    (dit / "out").mkdir()
    train.finetune(finetune(milestones=(20,)), latents=dit / "latents", pretrained=dit / "run", out=dit / "out")
    _, facts = checkpoint.load(dit / "out" / "ema-0000020.safetensors")
    assert (facts["model"], facts["preconditioning"]) == ("DiT", "vp")
    first, last = (json.loads(line)["loss"] for line in (dit / "out" / "log.jsonl").read_text().splitlines())
    assert last < first
    (dit / "samples").mkdir()
    config = Sample.model_validate({**SAMPLE, "phase": "finetune"})
    sample(config, run=dit / "out", vae=dit / "vae", out=dit / "samples")
    protocol = read_json(dit / "samples" / "index.json")["protocol"]
    assert protocol["sigma_range"] == pytest.approx((0.01, 157), rel=0.01)


def test_dit_has_no_decoder_for_a_mask(dit):
    with pytest.raises(UserError, match=r"finetune\.mask_ratio: 0\.5 needs a decoder, and the network has none"):
        begun(finetune(mask_ratio=0.5), Latents.load(dit / "latents"), dit / "latents", dit / "run")
