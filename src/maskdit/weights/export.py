"""A milestone of a run in the formats of others: MaskDiT's torch file, or a folder that diffusers samples from on its own."""

import re
import shutil
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import torch

from maskdit.artifacts.atomic import read_json, replacing, write_json
from maskdit.artifacts.manifest import Manifest, config_of, inputs_of
from maskdit.artifacts.publish import publishing
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.methods.plugins import of_facts
from maskdit.model import checkpoint
from maskdit.runtime.progress import say
from maskdit.weights.importing import check
from maskdit.weights.names import Tensors, wrapped

METRICS = Path("results/metrics")
ARGS = ("model", "phase", "step", "images", "parameters", "architecture", "space")  # facts in the `args` of MaskDiT's file
PROTOCOL = ("images", "labels", "sampler", "nfe", "guidance", "family", "extractor_sha256", "reference_sha256", "neighbours")
PACKAGE = Path(__file__).parents[1]
IMPORT = re.compile(r"^from maskdit\.([\w.]+) import", re.M)
PREFIX = "maskdit_"  # of our modules in an exported folder, because diffusers copies the files of all folders into one


def weights_of(run: Path, step: int | None, kinds: list[str]) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Weights of a milestone (default: the last one) by kind, ema or net, and the facts stored with them.

    Raises UserError if the run has no such milestone, did not keep its raw weights, or is of a method that neither format can hold.
    """
    index = read_json(run / "index.json", "milestones", "final")
    milestones = {mark["step"]: mark["file"] for mark in index["milestones"]}
    step = max(milestones) if step is None else step
    if step not in milestones:
        raise UserError(f"{run}: has no milestone {step}, only {sorted(milestones)}")
    files = {"ema": milestones[step], "net": f"net-{step:07d}.safetensors"}
    if "net" in kinds and index["final"] != files["net"]:
        raise UserError(f"{run}: has no raw weights of step {step}; use --weights ema")
    found, facts = {}, dict[str, Any]()
    for kind in kinds:
        found[kind], facts = checkpoint.load(run / files[kind])
    try:
        found = {kind: of_facts(facts).exported(tensors) for kind, tensors in found.items()}
    except ValueError as error:
        raise UserError(f"{run}: {error}") from None
    for tensors in found.values():
        check(run, tensors, facts["architecture"])
    return found, facts


def export(run: Path, format: str, out: Path, step: int | None, weights: str, vae: Path | None, metrics: Path | None) -> None:  # noqa: A002, an option
    """`maskdit export`: one milestone of a run to a new file (upstream) or folder (diffusers).

    The model card of a folder lists the records of these weights in `metrics` (default: where the steps write them).
    Raises UserError if `out` exists, or the format cannot hold what is asked for.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; choose a new path")
    [(_, manifest)] = inputs_of(run)
    found, facts = weights_of(run, step, ["ema", "net"] if weights == "both" else [weights])
    if format == "upstream":
        tree = {{"ema": "ema", "net": "model"}[kind]: wrapped(tensors) for kind, tensors in found.items()}
        size = sum(tensor.nbytes for tensors in found.values() for tensor in tensors.values())
        with replacing(out, size) as temporary, temporary.open("wb") as stream:  # given a path, torch hides why a write failed
            torch.save({**tree, "args": {name: facts[name] for name in ARGS}}, stream)
    else:
        if out.suffix:
            raise UserError(f"{out}: has a dot in its name; choose a folder name without one for diffusers")
        if vae is None:
            raise UserError(f"{out}: a folder for diffusers needs --vae FOLDER")
        if weights == "both":
            raise UserError(f"{out}: a folder for diffusers holds one set of weights; use --weights ema or net")
        if metrics and not metrics.is_dir():
            raise UserError(f"{metrics}: no such folder; name one with evaluation records")
        results = measured(metrics or METRICS, manifest, facts) if weights == "ema" else []
        with publishing(out, f"export/{out.name}", {"weights": weights}, manifest.lineage) as place:
            write_folder(place, found[weights], facts, vae, card(facts, pretraining(manifest), results))
    say(f"export: {facts['model']} at step {facts['step']}, {weights} weights, to {out}")


def measured(folder: Path, run: Manifest, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Results for a model-index, from records of a run's averaged weights at one step. Raises UserError if a record was changed."""
    found = []
    for path in sorted(path for path in folder.rglob("*.json") if "/." not in f"/{path.relative_to(folder)}"):
        [(_, manifest)] = inputs_of(path)
        record = read_json(path, "metrics", "checkpoint", "protocol")
        drawn, judged, protocol = config_of(record, "sample"), config_of(record, "evaluate"), record["protocol"]
        if manifest.lineage.get(run.node) != run.lineage[run.node] or f"{drawn.get('phase')}/{drawn.get('run')}" != run.node:
            continue
        if record["checkpoint"]["step"] != facts["step"] or protocol["weights"] != "EMA":
            continue
        images = manifest.lineage.get(f"fetch/{judged['dataset']}")
        source = images.config["source"] if images else judged["dataset"]
        told = {"evaluation": path.stem, **{name: protocol[name] for name in PROTOCOL if name in protocol}}
        metrics = [
            {"type": name, "value": value, "name": f"{name}, guidance {protocol['guidance']}", "args": told}
            for name, value in record["metrics"].items()
        ]
        task = {"type": "image-generation", "name": "Class-conditional image generation"}
        dataset = {"type": source, "name": f"{source}, {protocol['resolution']} pixels"}
        found.append({"task": task, "dataset": dataset, "metrics": metrics})
    return found


def write_folder(folder: Path, tensors: Tensors, facts: dict[str, Any], vae: Path, readme: str) -> None:
    """A folder for DiffusionPipeline.from_pretrained, with a `readme`.

    Raises UserError if `vae` is not the autoencoder that made the latents.
    """
    from maskdit.weights.diffusers_network import MaskDiTNetwork

    space = Space.parse(facts["space"])
    autoencoder.demand(vae, space.vae)
    latents = {"latent_shift": list(space.shift), "latent_scale": list(space.scale), "class_names": list(space.classes)}
    net = MaskDiTNetwork(**facts["architecture"], **latents)
    net.net.load_state_dict(tensors)
    net.save_pretrained(folder / "transformer")
    (folder / "vae").mkdir()
    for name in ("config.json", VAE_WEIGHTS):
        shutil.copyfile(vae / name, folder / "vae" / name)
    write_code(folder / "transformer", "weights.diffusers_network", f"{PREFIX}network")
    write_code(folder, "weights.diffusers_pipeline", "pipeline")
    index = {
        "_class_name": ["pipeline", "MaskDiTPipeline"],
        "_diffusers_version": version("diffusers"),
        "transformer": [f"{PREFIX}network", "MaskDiTNetwork"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    [licence] = [path for path in files("maskdit") or () if path.name == "LICENSE"]
    shutil.copyfile(str(licence.locate()), folder / "LICENSE")
    (folder / "README.md").write_text(readme, encoding="utf-8")


def write_code(folder: Path, module: str, name: str) -> None:
    """Copy a module as `name`.py, and next to it those of our modules that it imports, with relative imports."""
    sources: dict[str, str] = {}
    todo = [module]
    while todo:
        each = todo.pop()
        if each not in sources:
            text = PACKAGE.joinpath(*each.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            todo += IMPORT.findall(text)
            sources[each] = IMPORT.sub(lambda found: f"from .{PREFIX}{found[1].replace('.', '_')} import", text)
    main = sources.pop(module)
    for each, text in sorted(sources.items()):
        beside = PREFIX + each.replace(".", "_")
        (folder / f"{beside}.py").write_text(text, encoding="utf-8")
        if f".{beside} import" not in main:
            main += f"\nfrom .{beside} import __name__ as _  # diffusers copies only the files that this one imports\n"
    (folder / f"{name}.py").write_text(main, encoding="utf-8")


def pretraining(run: Manifest) -> int:
    """The steps of the pretraining that a finetuning continues; 0 for other runs, and for one of published weights."""
    if not run.node.startswith("finetune/"):
        return 0
    if (start := run.lineage[run.node].config.get("start", "final")) != "final":
        return int(start)
    return int(next((origin.config["milestones"][-1] for node, origin in run.lineage.items() if node.startswith("pretrain/")), 0))


def card(facts: dict[str, Any], before: int, results: list[dict[str, Any]]) -> str:
    """The README.md of an exported folder: what the model is, its cost, its results, how to use it, and its licence.

    before: steps of the phase before that of `facts`. Like the images, the steps are those of both phases.
    """
    space, architecture, steps = facts["space"], facts["architecture"], before + facts["step"]
    sizes = [
        f"{half} " + ", ".join(f"{name} {value}" for name, value in sorted(architecture[half].items()))
        for half in ("encoder", "decoder")
        if architecture[half]
    ]
    rows = {
        "model": facts["model"],
        "phase": facts["phase"],
        "parameters": f"{facts['parameters']:,}",
        "network": "; ".join(sizes),
        "latents": f"{space['channels']} x {space['side']} x {space['side']}, autoencoder sha256 {space['vae']}",
        "classes": len(space["classes"]),
        "training steps": f"{steps} ({before} of pretraining and {facts['step']} of finetuning)" if before else steps,
        "images seen in training": facts["images"],
        "training seconds": facts["seconds"] and round(facts["seconds"], 1),
        "training FLOPs": facts["flops"],
        "made from": " ".join(str(value) for value in facts.get("source", {}).values()) or "trained by maskdit",
    }
    table = "".join(f"| {name} | {'unknown' if value is None else value} |\n" for name, value in rows.items())
    title = f"{facts['model']}, {steps} training steps"
    index = {"model-index": [{"name": title, "results": results}]} if results else {}
    two = len(space["classes"]) > 1
    call = f"{[0, 1] if two else [0]}, guidance_scale={1.5 if two else 1.0}"
    return CARD.format(call=call, front=yaml_subset.write({"library_name": "diffusers", **index}), title=title, table=table)


CARD = """---
{front}---
# {title}

| | |
| --- | --- |
{table}
```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
images = pipe({call}, num_inference_steps=40).images
```

`trust_remote_code` lets diffusers run `pipeline.py` and `transformer/*.py` of this folder; read them first. The network computes in
float32 and the sampler, EDM's Heun, in float64. A guidance scale of 1 turns guidance off.

The code is licensed under the Apache License 2.0 (`LICENSE`). The weights are under the terms of whoever trained them and of the
training images. Imported weights and the autoencoder in `vae/` keep the licence of their source.
"""
