"""The graph of a study as SVG: columns are verbs, boxes are artifacts."""

from collections.abc import Mapping, Sequence
from statistics import mean

from markupsafe import Markup, escape

from maskdit.config.graph import COLUMNS, Edges

CENTRE = 7  # the column that is laid out first
STEP, WIDE, ROW, HIGH, TOP = 186, 146, 30, 22, 26  # pixels


def reduced(edges: Edges) -> Edges:
    """The edges without those that others imply, because another input already depends on the artifact."""

    def behind(node: str) -> set[str]:
        return edges[node].union(*(behind(each) for each in edges[node]))

    return {node: before - set().union(*(behind(each) for each in before)) for node, before in edges.items()}


def column_of(node: str) -> int:
    """The column of a node; verbs that COLUMNS lacks are made from evaluations."""
    verb = node.split("/")[0]
    return next((place for place, verbs in enumerate(COLUMNS) if verb in verbs), CENTRE + 1)


def heights(edges: Edges) -> dict[str, float]:
    """The row of each node, from 0: close to the mean of its neighbours, and never shared within a column."""
    columns: list[list[str]] = [[node for node in edges if column_of(node) == place] for place in range(len(COLUMNS))]
    joined = {node: before | {other for other in edges if node in edges[other]} for node, before in edges.items()}
    rows: dict[str, float] = {node: place for place, node in enumerate(columns[CENTRE])}
    for column in [*reversed(columns[:CENTRE]), *columns[CENTRE + 1 :]]:
        wanted = {node: mean([rows[each] for each in joined[node] if each in rows] or [0.0]) for node in column}
        ordered = sorted(column, key=lambda node: wanted[node])
        rows |= zip(ordered, spread([wanted[node] for node in ordered]), strict=True)
    lowest = min(rows.values())
    return {node: row - lowest for node, row in rows.items()}


def spread(wanted: Sequence[float]) -> list[float]:
    """Ascending places at least 1 apart; wanted places that are too close are laid out around their mean."""

    def start(block: list[float]) -> float:
        return mean(block) - (len(block) - 1) / 2

    blocks: list[list[float]] = []
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and start(blocks[-2]) + len(blocks[-2]) > start(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return [start(block) + place for block in blocks for place in range(len(block))]


def draw(edges: Edges, state: Mapping[str, str], bench: str) -> Markup:
    """The graph as SVG, without edges that others imply; the `state` of a node is its tooltip and, up to a colon, its CSS class."""
    edges = reduced(edges)
    rows = heights(edges)
    left = {node: column_of(node) * STEP for node in edges}
    middle = {node: TOP + row * ROW + HIGH / 2 for node, row in rows.items()}
    width, height = (len(COLUMNS) - 1) * STEP + WIDE + 2, TOP + max(rows.values()) * ROW + HIGH + 4
    heads: dict[int, dict[str, None]] = {}  # column -> its verbs, in order
    for node in edges:
        heads.setdefault(column_of(node), {})[node.split("/")[0]] = None
    parts = [f'<text x="{place * STEP}" y="12" class="verb">{", ".join(verbs)}</text>' for place, verbs in sorted(heads.items())]
    for node, before in edges.items():
        for each in sorted(before):
            x, end = left[each] + WIDE, left[node]
            bend = (end - x) / 2 if end > x else 30
            y, down = middle[each], middle[node]
            parts.append(f'<path d="M{x} {y:.1f}C{x + bend:.0f} {y:.1f} {end - bend:.0f} {down:.1f} {end} {down:.1f}"/>')
    for node in edges:
        key = escape(node.split("/")[1].removeprefix(f"{bench}-"))
        box = f'<rect x="{left[node]}" y="{middle[node] - HIGH / 2:.1f}" width="{WIDE}" height="{HIGH}" rx="4"/>'
        text = f'<text x="{left[node] + 7}" y="{middle[node] + 4:.1f}">{key}</text>'
        kind, tip = state[node].split(":")[0].replace(" ", "-"), escape(f"{node}: {state[node]}")
        parts.append(f'<g class="{kind}"><title>{tip}</title>{box}{text}</g>')
    label = f"Graph of {len(edges)} artifacts from images to this report; the Provenance section lists them with their inputs"
    return Markup(
        f'<svg class="graph" role="img" aria-label="{label}" width="{width}" height="{height:.0f}" '
        f'viewBox="-1 0 {width} {height:.0f}">{"".join(parts)}</svg>'
    )
