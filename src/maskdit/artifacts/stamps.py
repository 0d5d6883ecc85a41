"""What Snakemake plans by: stamps in place of artifacts, so that it has nothing of worth to delete and no times to compare.

A folder or a record stands for itself by .scratch/made/VERB/KEY, which exists while it is current; all stamps have one old time.
A stale table, curve or picture gets an input .scratch/stale/VERB/KEY that is newer than it.
"""

import os
import secrets
import time
from pathlib import Path

from maskdit.artifacts.freshness import PICTURES, Freshness
from maskdit.config.params import Params
from maskdit.config.paths import is_result, output

MADE, STALE = Path(".scratch/made"), Path(".scratch/stale")
OLD = 1  # seconds since 1970: older than any file; 0 would pass for no time


def stamped(params: Params, node: str) -> bool:
    """Whether a node has a stamp, for it publishes a folder or a record; Snakemake knows the files of others by name."""
    return not is_result(output(params, node))


def stamp(params: Params, node: str) -> Path:
    """The file by which Snakemake knows that a node is made."""
    return MADE / node if stamped(params, node) else output(params, node)


def set_stamps(fresh: Freshness) -> None:
    """Make the stamps say what is current, and mark the results that are to be made again."""
    there = {path for folder in (MADE, STALE) for path in folder.glob("*/*")}
    for node in fresh.edges:
        has_stamp, unmade = stamped(fresh.params, node), node in fresh.unmade
        path = (MADE if has_stamp else STALE) / node
        keep = not unmade and fresh.verdict(node).state == "current" if has_stamp else unmade
        if not keep:
            if path in there:
                path.unlink(missing_ok=True)
            if not has_stamp:
                age(output(fresh.params, node), time.time())  # Snakemake fails a job whose input has a date in the future
            continue
        if path not in there:
            path.parent.mkdir(parents=True, exist_ok=True)
        if has_stamp:
            path.touch()
            os.utime(path, (OLD, OLD))
        else:
            path.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")  # equal contents would pass for the same file
            age(output(fresh.params, node), OLD)


def age(out: Path, latest: float) -> None:
    """Make a result old if it is later than this time."""
    if out.exists() and out.stat().st_mtime > latest:
        os.utime(out, (OLD, OLD))


def waits_for(params: Params, node: str, fresh: Freshness | None) -> tuple[list[Path], list[Path]]:
    """The files that a job waits for, and those whose times say nothing; `fresh` is None in a job of its own.

    A node that stays as it is waits for nothing that is made again: a sample for a training that only becomes longer. A picture
    is in no list if it does not exist and will not be drawn.
    """
    upstream = params.upstream(*node.split("/"))
    unmade = fresh.unmade if fresh else {node, *upstream}
    if node not in unmade:
        upstream = upstream - unmade
    kept = [each for each in sorted(upstream) if each in unmade or not each.startswith(PICTURES) or output(params, each).exists()]
    if not fresh:
        kept = [each for each in kept if stamp(params, each).exists()]
    timeless = [] if node in unmade else [each for each in kept if not stamped(params, each)]
    return [stamp(params, each) for each in kept if each not in timeless], [stamp(params, each) for each in timeless]
