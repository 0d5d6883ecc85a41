"""Where each node's artifact lies, relative to the project: both engines, the commands and the questions agree on it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # no help text waits for it
    from maskdit.config.params import Params

OUTPUTS = {
    "fetch": "artifacts/raw/{key}",
    "vae": "artifacts/vae/{key}",
    "encode": "artifacts/latents/{key}",
    "reference": "artifacts/reference/{key}",
    "pretrain": "artifacts/runs/{key}/pretrain",
    "finetune": "artifacts/runs/{key}/finetune",
    "released": "artifacts/runs/{key}/released",
    "sample": "artifacts/samples/{key}",
    "features": "artifacts/features/{key}",
    "evaluate": "results/metrics/{bench}/{key}.json",
    "rescore": "results/metrics/{bench}/{key}_rescore.json",
    "reconstruct": "results/reconstructions/{bench}/{key}.json",
    "grid": "results/grid_{key}.png",
    "strip": "results/strip_{key}.png",
    "claims": "results/{key}.csv",
    "report": "results/report_{key}.html",
    **{verb: f"results/{verb}_{{key}}.csv" for verb in ("table", "curves", "efficiency", "sweep", "recon", "calibrate", "bench")},
}


def output(params: "Params", node: str) -> Path:
    """The folder or file that a node VERB/KEY publishes."""
    verb, key = node.split("/")
    return Path(OUTPUTS[verb].format(key=key, bench=getattr(params.entry(verb, key), "bench", "")))


def is_result(out: Path) -> bool:
    """Whether an output is a table, picture or page: its manifest lies beside it, and it is made in seconds from records.

    Others are a folder, which holds its manifest as a file, or a record, which holds it as a field.
    """
    return out.suffix not in ("", ".json")


def inputs(params: "Params", verb: str, key: str) -> dict[str, Path]:
    """The inputs of a step by the names of its options: what one node made, or a folder of records."""
    if verb in ("claims", "report", "strip"):
        return {"results": Path("results")}
    if verb in ("table", "curves", "efficiency", "sweep"):
        return {"metrics": Path("results/metrics") / key}
    if verb == "recon":
        return {"metrics": Path("results/reconstructions") / key}
    return {name: output(params, node) for name, node in params.sources(verb, key).items()}


def demand_known(params: "Params", targets: Iterable[str]) -> None:
    """Raise UserError for a target of Snakemake that names no entry, with the nearest known key, or names an artifact by its place.

    A target is a result's file, or the stamp of an artifact.
    """
    from maskdit.config.base import UserError  # no help text waits for pydantic

    stamps = {verb: Path(".scratch/made") / verb / "{key}" for verb in OUTPUTS}
    places = [(verb, Path(pattern)) for verb, pattern in OUTPUTS.items()]
    places.sort(key=lambda place: len(place[1].name), reverse=True)  # claims, which has any name, is the last of the results
    for target in filter(lambda word: Path(word).name, targets):
        for verb, usual in [*stamps.items(), *places]:
            form = re.escape(str(usual.with_suffix(""))).replace(r"\{bench\}", "[^/]+").replace(r"\{key\}", "([a-z0-9-]+)")
            if found := re.fullmatch(form, str(Path(target).with_suffix(""))):
                params.entry(verb, found[1])
                if usual != stamps[verb] and (usual.suffix == ".json" or not usual.suffix):
                    raise UserError(
                        f"{target}: Snakemake does not know this path; ask for {str(stamps[verb]).format(key=found[1])} instead"
                    )
                break
