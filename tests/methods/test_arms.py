"""Arms of training: what each one says it computes, that all of it trains, and recipes that are what they were."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskdit.artifacts.atomic import digest, read_json
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Latents
from maskdit.methods.plugins import of_entry, of_facts
from maskdit.model import checkpoint
from maskdit.runtime.process_group import Ranks
from maskdit.sampling.sample import sample
from maskdit.training import train
from maskdit.training.batches import batch_at
from maskdit.training.learner import Learner
from small import COMMON, SAMPLE, latents, make_vae, masked, pretrained, weights  # noqa: F401, a fixture

ROOT = Path(__file__).parents[2]
EXAMPLE = "methods/mixture_of_depths.py:Mixture"
ENCODER = {"patch": 2, "depth": 3, "width": 16, "heads": 2}
DECODER = {"depth": 1, "width": 8, "heads": 2}
ROUTE = {"first": 1, "last": 1, "ratio": 0.5}
DENSE = {"decoder": None, "mask_ratio": 0.0}
ARMS = {
    "dit": DENSE,
    "maskdit": {"decoder": DECODER, "mask_ratio": 0.5},
    "deferred": {"decoder": DECODER, "mask_ratio": 0.5, "defer": 1},
    "tread": {**DENSE, "route": ROUTE},
    "sit": {**DENSE, "method": "sit"},
    "sit, logit-normal": {**DENSE, "method": "sit", "options": {"times": "logit-normal"}},
    "mask-sit": {"decoder": DECODER, "mask_ratio": 0.5, "method": "mask-sit", "defer": 1},
    "example": {**DENSE, "method": EXAMPLE, "options": {"ratio": 0.75}},
}
SPACE = {"side": 8, "channels": 2, "classes": 3}


@pytest.fixture(autouse=True)
def beside(tmp_path, monkeypatch):
    """A project that has the example's file."""
    shutil.copytree(ROOT / "examples" / "methods", tmp_path / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)


def entry(arm, *milestones, **changes):
    return masked(*(milestones or (4,)), **{"encoder": ENCODER, "precision": "fp32", **ARMS[arm], **changes})


def method_of(config):
    return of_entry(config, {**SPACE, "encoder": ENCODER, "decoder": config.decoder and DECODER})


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_computes_the_flops_that_it_says(arm, latents):
    config = entry(arm)
    method, kept = method_of(config), method_of(config).kept(config, 0)
    one = batch_at(0, config, Latents.load(latents), 16, extra=method.draws(config)).part(0, 1)
    for net, spent in ((method.network(config), method.flops(config, kept)), (method.network(), method.flops(None, 16))):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
            if spent == method.flops(config, kept):
                method.loss(net, config, one.clean, one.labels, one.draw, kept)
            else:
                method.denoise(net, one.clean, torch.ones(1), one.labels)
        assert counter.get_total_flops() == spent


@pytest.mark.parametrize("arm", ARMS)
def test_every_weight_of_an_arm_learns(arm, latents):
    config = entry(arm, lr=1e-3, label_dropout=0.0)
    method = method_of(config)
    torch.manual_seed(0)
    net = method.network(config)
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    learner = Learner(net, net.state_dict(), config, method, torch.device("cpu"), Ranks(0, 1))
    batch, losses = batch_at(0, config, Latents.load(latents), 16, extra=method.draws(config)), []
    for step in range(20):
        losses.append(learner.gradients(batch, method.kept(config, step)).sum().item())
        if not step:
            still = {name for name, gradient in learner.weights(learner.gradient).items() if not gradient.any()}
            assert still <= {*learner.fixed}
        learner.update(step)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("arm", ["sit", "mask-sit", "example"])
def test_an_arm_is_trained_resumed_finetuned_and_sampled_without_an_edit_elsewhere(arm, latents, tmp_path, capsys, monkeypatch):
    short = pretrained(latents, "short", entry(arm, 3))
    whole = pretrained(latents, "whole", entry(arm, 3, 5))
    assert "resuming from step 3" in capsys.readouterr().err
    _, facts = checkpoint.load(short / "ema-0000003.safetensors")
    assert facts["model"] == method_of(entry(arm)).name
    assert facts["method"]["name"] == ARMS[arm]["method"]
    assert type(of_facts(facts)).name == facts["model"]
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "other"))
    assert weights(pretrained(latents, "once", entry(arm, 3, 5))) == weights(whole)
    (tmp_path / "tuned").mkdir()
    tuning = {**COMMON, "run": "toy", "mask_ratio": 0.0, "milestones": (2,), "precision": "fp32"}
    train.finetune(Finetune.model_validate(tuning), latents=latents, pretrained=whole, out=tmp_path / "tuned")
    (tmp_path / "vae").mkdir()
    make_vae(tmp_path / "vae")
    tensors, facts = checkpoint.load(tmp_path / "tuned" / "ema-0000002.safetensors")
    assert facts["method"]["options"] == ARMS[arm].get("options", {})
    facts["space"]["vae"] = autoencoder.identity(tmp_path / "vae")
    checkpoint.save(tmp_path / "tuned" / "ema-0000002.safetensors", tensors, facts)
    seen = {}
    for solver in ("heun", *(["flow-heun", "flow-euler"] if "sit" in arm else [])):
        out = tmp_path / solver
        out.mkdir()
        config = Sample.model_validate({**SAMPLE, "images": 4, "solver": solver, "guidance_interval": (0.1, 5.0)})
        sample(config, run=tmp_path / "tuned", vae=tmp_path / "vae", out=out)
        seen[solver] = np.load(out / "images-0000.npy").tobytes()
        told = read_json(out / "index.json")
        assert told["protocol"]["nfe"] == (3 if solver == "flow-euler" else 5)
        assert told["checkpoint"]["forward_flops"] == of_facts(facts).flops(None, 16)
    assert len({*seen.values()}) == len(seen)


WERE = {  # the hash of each recipe before methods had names
    "dit": "d9fc8763008e8ec0",
    "maskdit": "bbdef08a0a13cbd6",
    "tread": "7d3d211bb08f1a6e",
    "deferred": "ede1ba66efc1a273",
    "dsm": "c139b140a7acce54",
}


@pytest.mark.parametrize("arm", WERE)
def test_the_recipes_of_the_first_arms_are_what_they_were_also_where_the_method_is_named(arm):
    fields = {**ARMS["maskdit"], "dsm": "all"} if arm == "dsm" else ARMS[arm]
    whole = {**COMMON, "encoder": ENCODER, "mask_ratio": 0.5, "milestones": (2, 4), **fields}
    for named in ({}, {"method": arm if arm in ("dit", "tread") else "maskdit"}):
        config = Pretrain.model_validate({**whole, **named})
        network = {**SPACE, "encoder": ENCODER, "decoder": fields["decoder"]}
        method = of_entry(config, network)
        recipe = {"phase": "pretrain", **config.recipe(), "architecture": network, **method.named()}
        assert digest({**recipe, "latents": "0" * 64, "past": "0" * 64})[:16] == WERE[arm]
