"""Which artifacts are current: judged by their manifests and by the sizes of their files, never by a file's times."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from maskdit.artifacts.atomic import look
from maskdit.artifacts.manifest import SMALL, Manifest, damage, difference, manifest_file, partly_read, read_manifest
from maskdit.config.base import Section, UserError
from maskdit.config.params import VERBS, Params
from maskdit.config.paths import is_result, output

TRAININGS = ("pretrain", "finetune")
PICTURES = ("grid", "strip")  # which nobody draws samples for again


@dataclass(frozen=True)
class Verdict:
    """What is known of a node; `why` says it in words.

    own: its own numbers or files are at fault, not those that it was made from. longer: only the milestones of a training differ.
    """

    state: Literal["current", "missing", "stale"]
    why: str = ""
    own: bool = False
    longer: bool = False


CURRENT, MISSING = Verdict("current"), Verdict("missing")


class Freshness:
    """Verdicts on the nodes of params.yaml.

    A node is current if its manifest holds today's numbers, of all its ancestors too, and if the artifacts that it was made from,
    where they still exist, are those that it has read. What cannot be looked at, because of permissions or of a link to a disk that
    is not there, is neither missing nor stale: asking for it raises OSError.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.manifests: dict[str, Manifest | str | None] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.differences: dict[tuple[str, str, bool], str] = {}
        self.changed: dict[str, str] = {}

    def manifest(self, node: str) -> Manifest | str | None:
        """The manifest of a node's artifact, None if there is no artifact, or what is wrong with it."""
        if node not in self.manifests:
            self.manifests[node] = self._manifest(output(self.params, node))
        return self.manifests[node]

    def _manifest(self, out: Path) -> Manifest | str | None:
        if not look(out):
            return None
        if not look(manifest_file(out)):
            return f"{out} has no manifest"
        try:
            return read_manifest(out)
        except UserError as error:
            return str(error)

    def known(self, node: str) -> Manifest | None:
        """The manifest of an artifact that exists and has one."""
        found = self.manifest(node)
        return found if isinstance(found, Manifest) else None

    def verdict(self, node: str) -> Verdict:
        """Whether a node's own artifact is current, whatever is to be made of those before it."""
        if node not in self.verdicts:
            self.verdicts[node] = self._verdict(node)
        return self.verdicts[node]

    def _verdict(self, node: str) -> Verdict:
        found = self.manifest(node)
        if found is None:
            return MISSING
        if isinstance(found, str):
            return Verdict("stale", found, own=True)
        if found.node != node or node not in found.lineage:
            return Verdict("stale", f"it holds {found.node}", own=True)
        out = output(self.params, node)
        if why := damage(out, found, SMALL if is_result(out) else 0):
            return Verdict("stale", why, own=True)
        config, inherited = found.lineage[node].config, next(self.inherited(node, found), "")
        why = self.differs(node, config) or self.moved(node)
        longer = bool(why) and not inherited and node.startswith(TRAININGS) and not self.differs(node, config, longer=True)
        if longer and (before := self.inserted(node)):
            why += f"; milestone {before[0]} was not kept: it trains once more up to step {before[-1]}, the others stay as they are"
        return Verdict("stale", why or inherited, own=bool(why), longer=longer) if why or inherited else CURRENT

    def differs(self, node: str, config: dict[str, Any], longer: bool = False) -> str:
        """The first number of a node that is not today's; see `difference`."""
        key = (node, json.dumps(config, sort_keys=True), longer)
        if key not in self.differences:
            self.differences[key] = difference(config, self.entry(node), longer)
        return self.differences[key]

    def moved(self, node: str) -> str:
        """How the user's folder of images has changed since a node was fetched from it; '' for other nodes."""
        if node not in self.changed:
            self.changed[node] = ""
            entry = self.entry(node)
            if getattr(entry, "source", "") == "folder" and self.known(node):
                changes = import_module("maskdit.images.changes").changes  # only who has such a folder waits for it
                if told := changes(entry, output(self.params, node)):
                    self.changed[node] = f"{entry.root} has changed since it was fetched: {told}"  # type: ignore[attr-defined]
        return self.changed[node]

    def moved_sources(self) -> list[str]:
        """A line for each folder of the user's that has changed, with what is made again."""
        lines = []
        for node in (node for node in self.edges if node.startswith("fetch/") and self.moved(node)):
            after = self.with_consumers({node}, set(), set()) & self.unmade
            lines.append(f"{node}: {self.moved(node)}. {len(after)} nodes are made again; maskdit status lists them")
        return lines

    def entry(self, node: str) -> Section:
        """The entry of a node."""
        return self.params.entry(*node.split("/"))

    def inserted(self, node: str) -> list[int]:
        """The milestones that a published training lacks before its last one: up to them it trains once more."""
        done = self.done(node)
        return [step for step in getattr(self.entry(node), "milestones", ()) if step not in done and step < done[-1]]

    def done(self, node: str) -> list[int]:
        """The milestones of a published training."""
        known = self.known(node)
        return known.lineage[node].config["milestones"] if known else [0]

    def inherited(self, node: str, found: Manifest) -> Iterator[str]:
        """What is wrong with the ancestors of an artifact: other numbers, another making, other files."""
        partly = partly_read(found)
        for ancestor, origin in found.lineage.items():
            if ancestor == node:
                continue
            verb, key = ancestor.split("/")
            if verb not in VERBS or key not in getattr(self.params, verb):
                yield f"it was made from {ancestor}, which params.yaml does not have"
            elif verb not in PICTURES and (why := self.differs(ancestor, origin.config, ancestor in partly)):
                yield f"{ancestor} was made with {why}"
            elif (there := self.known(ancestor)) and there.lineage.get(ancestor, origin).digest != origin.digest:
                yield f"it was made from another {ancestor} than the one that is here"
            elif why := self.moved(ancestor):
                yield f"{ancestor}: {why}"
        for reader, origin in found.lineage.items():
            for run, files in origin.read.items():
                yield from self.reread(reader, run, files)
        verb, key = node.split("/")
        beside = self.params.beside(verb, key)
        for before in sorted(self.params.upstream(verb, key) | beside):
            optional = before in beside or before.startswith(PICTURES)
            if before not in found.lineage and (not optional or self.known(before)):
                yield f"it was made without {before}"

    def reread(self, reader: str, run: str, files: dict[str, str]) -> Iterator[str]:
        """Files of a training that a node has read, and would now read otherwise."""
        wanted = self.params.reads(*reader.split("/")).get(run, ())
        if set(wanted) != files.keys():
            yield f"{reader} has read {', '.join(sorted(files))} of {run}, and is now to read {', '.join(wanted)}"
        elif there := self.known(run):
            for name, sha in files.items():
                if name not in there.files or there.files[name].sha256 != sha:
                    yield f"{name} of {run} is not the one that {reader} has read"

    @cached_property
    def edges(self) -> dict[str, set[str]]:
        """Each node, and those that it is made from."""
        nodes = [(verb, key) for verb in VERBS for key in getattr(self.params, verb)]
        return {f"{verb}/{key}": self.params.upstream(verb, key) for verb, key in nodes}

    @cached_property
    def consumers(self) -> dict[str, set[str]]:
        """Each node, and those that are made from it."""
        found: dict[str, set[str]] = {node: set() for node in self.edges}
        for node, before in self.edges.items():
            for other in before:
                found[other].add(node)
        return found

    @cached_property
    def unmade(self) -> set[str]:
        """The nodes that an engine makes when it is asked for everything.

        What is missing or stale and still needed, and all that is made of it. An artifact that was deleted is not needed if
        what was made of it is current; a picture is left as it is if its samples were deleted. Tables and the like are always
        needed, and so are records that are not as they were written.
        """
        bad = {node for node in self.edges if self.verdict(node).state != "current"}
        pictures = {node for node in self.edges if node.startswith(PICTURES)}
        ends = {node for node in bad - pictures if not self.consumers[node] or self.wanted(node)}
        while True:  # for a picture that is drawn makes its report, which may need more, which pictures may show
            found = self.with_consumers(ends, bad, pictures)
            drawn = {node for node in pictures if (node in bad or self.edges[node] & found) and self.drawable(node, found)}
            if (more := ends.union(*(self.consumers[node] for node in drawn))) == ends:
                return found | drawn
            ends = more

    def with_consumers(self, nodes: set[str], bad: set[str], but: set[str]) -> set[str]:
        """Some nodes, those among `bad` that they are made from, and all that is made of either, except those in `but`."""
        found: set[str] = set()
        left = [*nodes]
        while left:
            node = left.pop()
            if node not in found and node not in but:
                found.add(node)
                longer = self.verdict(node).longer
                left += self.edges[node] & bad
                left += [each for each in self.consumers[node] if not (longer and self.verdict(each).state == "current")]
        return found

    def wanted(self, node: str) -> bool:
        """Whether a missing or stale artifact is made again even if nothing else needs it."""
        out = output(self.params, node)
        return is_result(out) or (out.suffix == ".json" and self.verdict(node).state == "stale")

    def drawable(self, picture: str, unmade: set[str]) -> bool:
        """Whether what a picture shows is here, or will be."""
        verb, key = picture.split("/")
        entry = self.params.entry(verb, key)
        names = entry.evals if verb == "strip" else (entry.sample,)
        needed = {f"sample/{name}" for name in names} | (self.edges[picture] if verb == "grid" else set())
        return all(node in unmade or self.known(node) for node in needed)
