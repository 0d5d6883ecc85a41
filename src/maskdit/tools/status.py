"""What of a study is made, stale, missing, running or failed, why, and what the rest costs."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from maskdit.artifacts.compute_log import rows
from maskdit.artifacts.freshness import Freshness
from maskdit.config.graph import ends, study
from maskdit.config.params import Params
from maskdit.runtime.logs import log_file, runs, sign
from maskdit.tools.plan import PEAKS, Plan, Site, show

STATES = ("current", "stale", "missing", "running", "failed", "stopped", "deleted")
STOPPED = 85  # the exit code of a training that was asked to stop and keeps its state


def status(params: Params, bench: str | None, as_json: bool = False, whole: bool = False) -> None:
    """`maskdit status [STUDY]`: print the state of each node that is not current, or all with `whole`, and a summary by step.

    Without a study: a line for each study. Raises UserError for a study that params.yaml does not have.
    """
    fresh, spent = Freshness(params), {row["node"]: row for row in rows()}
    if bench is None and not as_json:
        studies = {name: states(fresh, name, spent) for name in params.table}
        show(["study", "nodes", *STATES, "to make"], [summary(name, found) for name, found in studies.items()])
        return
    found = {node: told for name in ([bench] if bench else params.table) for node, told in states(fresh, name, spent).items()}
    if as_json:
        print(json.dumps({"study": bench, "nodes": found}, indent=1))
        return
    steps = dict.fromkeys(node.split("/")[0] for node in found)
    lines = [summary(verb, {node: told for node, told in found.items() if node.split("/")[0] == verb}) for verb in steps]
    show(["step", "nodes", *STATES, "to make", "device-hours"], with_hours(lines, found))
    listed = [node for node, told in found.items() if whole or told["state"] != "current"]
    if listed:
        print()
    for node in listed:
        told = found[node]
        cost = f"  ({told['device_hours']:.3g} device-hours)" if told["make"] and told["device_hours"] >= 0.001 else ""
        why = f": {told['why']}" if told["why"] else ""
        print(f"{'>' if told['make'] else ' '} {node}: {told['state']}{cost}{why}")
    print(f"\n{sentence(bench or '', found)}")


def states(fresh: Freshness, bench: str, spent: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a study: the state of each, why, whether an engine will make it, and for how many device-hours."""
    params = fresh.params
    nodes = dict.fromkeys(node for end in ends(params, bench) for node in study(params, end))
    plan, site = Plan(params, bench), Site(device_of(spent.values()), 0.4, 1, 0.0)
    found = {}
    for node in nodes:
        verb, key = node.split("/")
        verdict, make = fresh.verdict(node), node in fresh.unmade
        state, why = str(verdict.state), verdict.why
        last = spent.get(node, {})
        if where := running(node):
            state, why = "running", where
        elif make and last.get("exit", 0) == STOPPED:
            state, why = "stopped", "its state is kept, the same command goes on"
        elif make and last.get("exit", 0):
            state, why = "failed", f"see {log_file(verb, key)}"
        elif state == "missing" and not make:
            state, why = "deleted", "not needed: what was made of it is current"
        elif state == "current" and make:
            why = "what it is made from is made again"
        hours = (
            site.hours(plan.nodes[node]) * (left_of(fresh, node) if verdict.longer else 1.0) if make and node in plan.nodes else 0.0
        )
        found[node] = {"state": state, "why": why, "make": make, "device_hours": hours}
    return found


def device_of(spent: Iterable[dict[str, Any]]) -> str:
    """The kind of device that the last recorded step has computed on; an A100 if none is known."""
    names = [str(row.get("device", "")).lower() for row in spent]
    return next((kind for name in reversed(names) for kind in PEAKS if kind in name), "a100")


def running(node: str) -> str:
    """Where a node, or a part of it, is running; '' if it is not."""
    verb, key = node.split("/")
    signs = [sign(verb, key), *sign(verb, key).parent.glob(f"{key}.*-of-*.json")]
    return next(filter(None, map(runs, signs)), "")


def left_of(fresh: Freshness, node: str) -> float:
    """The share of a longer training that is left; all of it if it starts again."""
    verb, key = node.split("/")
    milestones = fresh.params.entry(verb, key).milestones
    known = fresh.known(node)
    done = known.lineage[node].config["milestones"] if known else []
    before = [step for step in milestones if step not in done and step < max(done, default=0)]
    return 1.0 if before else max(0.0, 1 - max(done, default=0) / milestones[-1])


def summary(name: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """A line of counts."""
    counts = Counter(told["state"] for told in found.values())
    return [
        name,
        str(len(found)),
        *(str(counts[state] or "") for state in STATES),
        str(sum(told["make"] for told in found.values())),
    ]


def with_hours(lines: Iterable[list[str]], found: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """The lines of steps with the device-hours of what is to be made of each."""
    for line in lines:
        hours = sum(told["device_hours"] for node, told in found.items() if node.split("/")[0] == line[0])
        yield [*line, f"{hours:.3g}" if hours >= 0.001 else ""]


def sentence(bench: str, found: dict[str, dict[str, Any]]) -> str:
    """The whole in one line."""
    make = [told for told in found.values() if told["make"]]
    if not make:
        return f"{bench}: everything is made"
    hours = sum(told["device_hours"] for told in make)
    return f"{bench}: {len(make)} of {len(found)} nodes to make (>), about {hours:.3g} device-hours, computed as maskdit plan does"
