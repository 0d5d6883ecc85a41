"""The graph of a study: its nodes, and what each is made from."""

from maskdit.config.params import Params

COLUMNS = (
    ("fetch",),
    ("vae",),
    ("encode",),
    ("pretrain",),
    ("finetune", "released"),
    ("sample",),
    ("features", "reference"),
    ("evaluate", "reconstruct"),
    ("table", "curves", "grid", "strip", "recon", "calibrate"),
    ("report",),
)

Edges = dict[str, set[str]]  # node -> the nodes that it is made from


def study(params: Params, target: str) -> Edges:
    """A node and all that it is made from, in the order of the verbs and of params.yaml."""
    found: Edges = {}
    left = [target]
    while left:
        node = left.pop()
        if node not in found:
            found[node] = params.upstream(*node.split("/"))
            left += found[node]
    order = [f"{verb}/{key}" for column in COLUMNS for verb in column for key in getattr(params, verb)]
    rest = sorted(found.keys() - set(order))
    return {node: found[node] for node in [*order, *rest] if node in found}


def ends(params: Params, bench: str) -> list[str]:
    """The nodes that a study is made for: its tables, curves, pictures, claims and report. Raises UserError if it has no table."""
    params.entry("table", bench)
    of_key = [
        f"{verb}/{bench}"
        for verb in ("table", "curves", "efficiency", "strip", "recon", "report")
        if bench in getattr(params, verb)
    ]
    grids = [f"grid/{key}" for key, entry in params.grid.items() if params.evaluate[entry.sample].bench == bench]
    return [*of_key, *grids, *(f"claims/{key}" for key, entry in params.claims.items() if entry.study == bench)]
