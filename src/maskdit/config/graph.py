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
