"""What of a study is made, stale, missing, running or failed, why, and what the rest costs."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from maskdit.artifacts.compute_log import rows
from maskdit.artifacts.freshness import Freshness
from maskdit.config.params import Params
from maskdit.runtime.lock import runs, sign
from maskdit.runtime.logs import log_file
from maskdit.runtime.process_group import STOPPED
from maskdit.tools.cost import MFU, Site
from maskdit.tools.plan import Plan, device_of, duration, show

STATES = ("current", "stale", "missing", "running", "failed", "stopped", "deleted")


def status(params: Params, bench: str | None, as_json: bool = False, whole: bool = False) -> None:
    """`maskdit status [STUDY]`: print the state of each node that is not current, or all with `whole`, and a summary by step.

    Without a study: a line for each study, or with `whole` the nodes of all. Raises UserError for a study that params.yaml does
    not have.
    """
    fresh, ledger = Freshness(params), rows()
    spent, device = {row["node"]: row for row in ledger}, device_of(ledger)
    if bench is None and not as_json and not whole:
        studies = {name: states(fresh, name, spent, device) for name in params.studies}
        show(["study", "nodes", *STATES, "to make"], [summary(name, found) for name, found in studies.items()])
        return
    wanted = params.studies if bench is None else [bench]
    found = {node: told for name in wanted for node, told in states(fresh, name, spent, device).items()}
    if as_json:
        print(json.dumps({"study": bench, "nodes": found}, indent=1))
        return
    steps = dict.fromkeys(node.split("/")[0] for node in found)
    lines = [summary(verb, {node: told for node, told in found.items() if node.split("/")[0] == verb}) for verb in steps]
    show(["step", "nodes", *STATES, "to make", "device time"], with_hours(lines, found))
    listed = [node for node, told in found.items() if whole or told["make"] or told["state"] != "current"]
    if listed:
        print()
    for node in listed:
        told = found[node]
        cost = f"  ({time})" if (time := duration(told["device_hours"])) else ""
        why = f": {told['why']}" if told["why"] else ""
        print(f"{'>' if told['make'] else ' '} {node}: {told['state']}{cost}{why}")
    print(f"\n{sentence(bench or 'all studies', found, device)}")


def states(fresh: Freshness, bench: str, spent: dict[str, Any], device: str) -> dict[str, dict[str, Any]]:
    """The nodes of a study: the state of each, why, whether an engine will make it, and for how many device-hours."""
    plan, site = Plan(fresh.params, bench, fresh), Site(device, MFU, 1, 0.0)
    found = {}
    for node in plan.nodes:
        verb, key = node.split("/")
        verdict, make = fresh.verdict(node), node in plan.left
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
        elif make and (before := sorted(fresh.edges[node] & plan.left.keys())) and not verdict.own:
            why = f"after {' and '.join(before[:2])}{f' and {len(before) - 2} more' if len(before) > 2 else ''}"
        found[node] = {"state": state, "why": why, "make": make, "device_hours": plan.hours(node, site)}
    return found


def running(node: str) -> str:
    """Where a node, or a part of it, is running; '' if it is not."""
    verb, key = node.split("/")
    signs = [sign(verb, key), *sign(verb, key).parent.glob(f"{key}.*-of-*.json")]
    return next(filter(None, map(runs, signs)), "")


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
    """The lines of steps with the device time of what is to be made of each."""
    for line in lines:
        hours = sum(told["device_hours"] for node, told in found.items() if node.split("/")[0] == line[0])
        yield [*line, duration(hours)]


def sentence(bench: str, found: dict[str, dict[str, Any]], device: str) -> str:
    """The whole in one line."""
    make = [told for told in found.values() if told["make"]]
    if not make:
        return f"{bench}: everything is made"
    time = duration(sum(told["device_hours"] for told in make)) or "0 s"
    counts = f"{len(make)} of {len(found)} nodes to make (>)"
    return f"{bench}: {counts}, about {time} of device time, computed as maskdit plan --device {device} does"
