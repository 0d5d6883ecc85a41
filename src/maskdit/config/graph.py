"""The graph of a study: its nodes, and the nodes that each one reads."""

from maskdit.config.params import Params

COLUMNS: tuple[tuple[str, ...], ...] = (("fetch",), ("vae",), ("encode",), ("pretrain", "released"), ("finetune",), ("sample",))
COLUMNS += (("features", "reference"), ("evaluate", "rescore", "reconstruct"))
COLUMNS += (("table", "curves", "sweep", "grid", "strip", "recon", "calibrate"), ("report",))
Edges = dict[str, set[str]]  # node -> the nodes that it reads


def study(params: Params, target: str) -> Edges:
    """A node and everything upstream of it, in the order of COLUMNS and of params.yaml."""
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


def nodes_of(params: Params, bench: str) -> list[str]:
    """All nodes of a study, each once."""
    return list(dict.fromkeys(node for end in ends(params, bench) for node in study(params, end)))


def ends(params: Params, bench: str) -> list[str]:
    """The nodes that a study is made for: its tables, curves, pictures, claims and report, or its sweep.

    Raises UserError if it has no table and no sweep.
    """
    if bench in params.sweep:
        return [f"sweep/{bench}"]
    params.entry("table", bench)
    of_key = [
        f"{verb}/{bench}"
        for verb in ("table", "curves", "efficiency", "strip", "recon", "report")
        if bench in getattr(params, verb)
    ]
    grids = [f"grid/{key}" for key, entry in params.grid.items() if params.evaluate[entry.sample].bench == bench]
    return [*of_key, *grids, *(f"claims/{key}" for key, entry in params.claims.items() if entry.study == bench)]
