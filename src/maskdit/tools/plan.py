"""What is left of a study and what it would cost: jobs, device time and disk of each step, computed from FLOPs."""

from collections.abc import Iterable, Iterator
from typing import Any

from maskdit.artifacts.compute_log import rows as recorded
from maskdit.artifacts.freshness import TRAININGS, Freshness
from maskdit.config.base import UserError
from maskdit.config.graph import ends, study
from maskdit.config.params import Params
from maskdit.config.paths import OUTPUTS, output
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune
from maskdit.runtime.device import system_memory
from maskdit.tools.cost import MEMORY, PEAKS, Costs, Site

DEVICES = 8  # GPUs per training, unless another number is named
RESULTS = {verb for verb, path in OUTPUTS.items() if path.startswith("results/") and not path.endswith(".json")}  # made in seconds
COMPUTING = ("vae", "encode", "pretrain", "finetune", "sample")  # other steps use a CPU where there is a GPU


class Plan:
    """The nodes of a study, each with its cost, and the share that is left of those that an engine will make."""

    def __init__(self, params: Params, bench: str, fresh: Freshness) -> None:
        self.params = params
        self.ends = ends(params, bench)
        behind = {end: study(params, end) for end in self.ends}
        self.costs = Costs(params)
        self.nodes = {node: self.costs.of(node) for end in self.ends for node in behind[end]}
        self.left = to_make(fresh, self.ends)
        inner = {node for end, nodes in behind.items() for node in nodes if node != end}
        self.targets = [output(params, end) for end in self.ends if end in self.left and end not in inner]

    def hours(self, node: str, site: Site) -> float:
        """Device-hours of what is left of a node."""
        return self.left.get(node, 0.0) * site.hours(self.nodes[node])

    def behind(self, node: str) -> dict[str, float]:
        """A node and everything upstream of it, each with the fraction needed: of a training, its steps up to a milestone."""
        found = {node: 1.0}
        for other in self.params.upstream(*node.split("/")):
            found |= self.behind(other)
        entry = self.params.entry(*node.split("/"))
        if isinstance(entry, Sample) and entry.phase != "released" and entry.step != "final":
            last = self.params.entry(entry.phase, entry.run).milestones[-1]
            found[f"{entry.phase}/{entry.run}"] = entry.step / last
        if isinstance(entry, Finetune) and entry.start != "final":
            found[f"pretrain/{entry.run}"] = entry.start / self.params.pretrain[entry.run].milestones[-1]
        return found

    def paid(self, needed: dict[str, float], site: Site) -> float:
        """Device-hours of what is left of nodes, each up to the fraction that is needed."""
        left = {node: share + self.left[node] - 1 for node, share in needed.items() if node in self.left}
        return sum(max(0.0, share) * site.hours(self.nodes[node]) for node, share in left.items())


def to_make(fresh: Freshness, targets: Iterable[str]) -> dict[str, float]:
    """The nodes that an engine makes when it is asked for some, each with the share that is left of it."""
    found: dict[str, float] = {}
    waiting = [node for node in targets if node in fresh.unmade]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = left_of(fresh, node) if fresh.verdict(node).longer else 1.0
            waiting += fresh.edges[node] & fresh.unmade
    return found


def left_of(fresh: Freshness, node: str) -> float:
    """The share that is left of a training with other milestones: what was inserted, from step 0, and what comes after the last."""
    last = fresh.params.entry(*node.split("/")).milestones[-1]
    return max(fresh.inserted(node), default=0) / last + max(0.0, 1 - fresh.done(node)[-1] / last)


def rows(plan: Plan, site: Site) -> Iterator[list[str]]:
    """One line per step: jobs, parts, device time, time of the longest job, disk, note. Then the totals."""
    steps: dict[str, list[str]] = {}
    for node in filter(plan.left.__contains__, plan.nodes):
        verb = node.split("/")[0]
        steps.setdefault("results" if verb in RESULTS else verb, []).append(node)
    results = steps.pop("results")
    for step, nodes in (*steps.items(), ("results", results), ("all", [*plan.left])):
        hours = [plan.hours(node, site) for node in nodes]
        parts, longest = sum(plan.nodes[node].parts for node in nodes), max(hours) / site.devices
        slices = -(-longest // site.limit) if site.limit else 1
        yield [
            step,
            str(len(nodes)),
            f"up to {parts:,}" if parts > len(nodes) and step != "all" else "",
            duration(sum(hours)),
            duration(longest),
            size(sum(plan.left[node] * plan.nodes[node].disk for node in nodes)),
            f"{slices:.0f} slices of {site.limit:g} h" if slices > 1 and step != "all" else "",
        ]


def crowded(plan: Plan, site: Site) -> Iterator[list[str]]:
    """The trainings that choose how many images they take at once, or take more than a device has room for."""
    room = MEMORY.get(site.device) or system_memory(site.devices)[0]
    for node in plan.left:
        if not node.startswith(TRAININGS):
            continue
        entry, memory = plan.params.entry(*node.split("/")), plan.costs.memory(node, site)
        share = max(1, entry.batch // site.devices)
        chosen = entry.micro_batch == "auto"
        once = memory.fitting(share, room) if chosen else min(share, entry.micro_batch or share)
        if (tight := memory.of(once) > room) or chosen:
            advice = f"set {'' if chosen else 'micro_batch: auto, or '}checkpointing: true" if tight else ""
            yield [node, str(share), f"{once}{' (auto)' * chosen}", f"{size(memory.of(once))} of {size(room)}", advice]


def duration(hours: float) -> str:
    """A time in the largest unit of which it is at least one; '' for none."""
    return quantity(hours, {"h": 1, "min": 1 / 60, "s": 1 / 3600})


def size(count: float) -> str:
    """A number of bytes in the largest unit of which it is at least one; '' for none."""
    return quantity(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3})


def quantity(value: float, units: dict[str, float]) -> str:
    """A value in the largest unit of which it is at least one, else in the smallest, in two significant digits or whole numbers."""
    unit, scale = next(((unit, scale) for unit, scale in units.items() if value >= scale), [*units.items()][-1])
    number = value / scale
    text = f"{number:,.0f}" if number >= 99.5 else f"{number:.2g}" if number >= 0.1 else "<0.1"
    return f"{text} {unit}" if value else ""


def affordable(plan: Plan, site: Site, budget: float) -> Iterator[list[str]]:
    """The evaluations to make, cheapest first: device time of each with all that it needs, of all so far, whether these fit."""
    wanted = [node for node in plan.nodes if node in plan.left and node.split("/")[0] in ("evaluate", "reconstruct")]
    alone = {end: plan.paid(plan.behind(end), site) for end in wanted}
    needed: dict[str, float] = {}
    for end in sorted(wanted, key=alone.__getitem__):
        for node, share in plan.behind(end).items():
            needed[node] = max(share, needed.get(node, 0.0))
        together = plan.paid(needed, site)
        yield [end, duration(alone[end]), duration(together), "yes" if together <= budget else "no"]


def show(title: list[str], lines: Iterable[list[str]]) -> None:
    """Print a table. The first and the last column are left-aligned."""
    table = [title, *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *middle, last in table:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())


def device_of(spent: Iterable[dict[str, Any]]) -> str:
    """The kind of device that the last recorded training or the like has computed on; an A100 if none is known."""
    names = [str(row.get("device", "")).lower() for row in spent if row["verb"] in COMPUTING]
    return next((kind for name in reversed(names) for kind in PEAKS if kind in name), "a100")


def plan(
    params: Params, bench: str, device: str | None, mfu: float, devices: int | None, limit: float, budget: float | None
) -> None:
    """`maskdit plan STUDY`: print what each step that is left costs, or with a budget the evaluations that it pays for.

    Without a device: the kind that the last recorded step has computed on. Without a number of devices: 8, or one CPU.
    Raises UserError for an unknown device and for numbers out of range.
    """
    device = device or device_of(recorded())
    devices = (1 if device == "cpu" else DEVICES) if devices is None else devices
    if device not in PEAKS:
        raise UserError(f"--device {device}: unknown; choose one of {', '.join(PEAKS)}")
    if budget is not None and not budget >= 0:
        raise UserError(f"--budget {budget:g}: must be a number of device-hours, 0 or more")
    if not (0 < mfu <= 1 and devices >= 1 and limit >= 0):
        raise UserError("plan: --mfu must be above 0 and at most 1, --devices at least 1, and --limit not negative")
    site, found = Site(device, mfu, devices, limit), Plan(params, bench, Freshness(params))
    if not found.targets:
        print(f"{bench}: everything is made")
        return
    print(f"{bench} on {site}: computed, not measured; the start of a job takes seconds more")
    if budget is None:
        show(["step", "jobs", "parts", "device time", "longest", "disk", ""], rows(found, site))
        if tight := [*crowded(found, site)]:
            show(["training", "images per device", "at once", "memory", ""], tight)
        print(f"{len(found.left)} of {len(found.nodes)} nodes to make: snakemake {' '.join(map(str, found.targets))}")
    else:
        show(["evaluation", "alone", "so far", f"within {budget:g} device-hours"], affordable(found, site, budget))
