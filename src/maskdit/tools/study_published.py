"""The entries of a study that finetunes published weights: `maskdit study --from KEY`."""

from typing import Any

from maskdit.config.training import Released
from maskdit.evaluation.protocol import suffix

Tree = dict[str, Any]

KEPT = ("reference", "features", "evaluate")  # sections whose entries are those of the demo
ENCODED = 16  # images at once, as in512 has it
RECIPE: Tree = {  # for about a thousand images; rate of the paper's pretraining, average over the last few hundred steps
    "mask_ratio": 0.0,
    "mae_weight": 0.1,
    "batch": 32,
    "micro_batch": "auto",
    "milestones": [500, 1000, 2000],
    "lr": 1.0e-4,
    "betas": [0.9, 0.999],
    "warmup": 100,
    "ema": 0.995,
    "ema_warmup": 1,
    "label_dropout": 0.1,
    "precision": "auto",
    "seed": 0,
}
SAMPLED: Tree = {"phase": "finetune", "step": "final", "guidance": 1.0, "solver": "dpmpp-2m", "solver_steps": 20}
GUIDANCE = 1.5


def of_published(demo: Tree, name: str, key: str, theirs: Released, title: str) -> Tree:
    """The entries of a study `name`, from those of the demo under that name; `theirs` is released.KEY.

    Nothing is trained but the finetuning; the images are encoded by the autoencoder of the weights.
    """
    extractor = f"{name}-features"
    judge = demo["fetch"][extractor]
    like = {**next(iter(demo["sample"].values())), "run": name, "vae": theirs.vae, **SAMPLED}
    first, *others, _ = RECIPE["milestones"]
    samples = {f"{name}-{step:04d}": {**like, "step": step} for step in (first, *others)}
    samples |= {f"{name}-plain": like, f"{name}-guided": {**like, "guidance": GUIDANCE}}
    ends = (f"{name}-plain", f"{name}-guided")
    named = suffix(judge["family"], judge["sha256"], like["images"])
    better = {"kind": "ratio", "metric": f"fd{named}" if named else "fid", "of": [ends[0]], "over": [f"{name}-{first:04d}"]}
    claim = {"says": "the last milestone is better than the first", "source": "this study", "evidence": better}
    return {
        "fetch": {extractor: judge},
        "encode": {name: {"dataset": name, "vae": theirs.vae, "batch": ENCODED, "mirror": False, "heldout": 128}},
        "finetune": {name: {"run": key, "phase": "released", "dataset": name, **RECIPE}},
        **{verb: {name: demo[verb][name]} for verb in KEPT},
        "sample": samples,
        "grid": {end: {"dataset": name, "sample": end, "columns": 8} for end in ends},
        "table": {name: {"title": title}},
        "curves": {name: {"title": title, "select": [{"guidance": 1.0}]}},
        "efficiency": {name: {"title": title, "select": [{"step": "final", "guidance": 1.0}]}},
        "strip": {name: {"images": [0, 1, 2, 3], "select": [{"guidance": 1.0}]}},
        "claims": {f"{name}-claims": {"title": "What the finetuning shows", "study": name, "claims": {"longer": claim}}},
        "report": {name: {"grids": [*ends], "ledger": f"{name}-claims", "mixed": False}},
    }
