"""When one curve reaches another's quality: how much less a model spends, and how sure that is."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Sheet = tuple[NDArray[Any], NDArray[Any]]  # what was spent and the quality, each (seeds, milestones)

DRAWS, SHARE = 1000, 0.95  # bootstrap samples, and the part of them that an interval holds
BEFORE, NEVER = 0.0, math.inf


def reach(spent: NDArray[Any], quality: NDArray[Any], wanted: float) -> float:
    """What a curve has spent when it first is as good as `wanted`, lower being better.

    Between two milestones the logarithm of what was spent is linear in quality. NEVER if no milestone is so good, and BEFORE if the
    first one is better already, for nothing is known of the way there.
    """
    good = np.flatnonzero(quality <= wanted)
    if not len(good):
        return NEVER
    place = int(good[0])
    if place == 0:
        return float(spent[0]) if quality[0] == wanted else BEFORE
    share = (quality[place - 1] - wanted) / (quality[place - 1] - quality[place])
    return float(np.exp((1 - share) * np.log(spent[place - 1]) + share * np.log(spent[place])))


def sheet(rows: pd.DataFrame, axis: str, quality: str) -> Sheet:
    """The points of one curve in the order of what was spent: of those milestones that every seed has."""
    spent = rows.pivot_table(index="seed", columns="point", values=axis).dropna(axis=1)
    good = rows.pivot_table(index="seed", columns="point", values=quality)[spent.columns]
    order = np.argsort(spent.to_numpy().mean(0))
    return spent.to_numpy()[:, order], good.to_numpy()[:, order]


def ratio(ours: Sheet, theirs: Sheet, place: int) -> float:
    """What the mean of our curves has spent when it is as good as the mean of theirs at a milestone, over what they have spent."""
    (spent, good), (other, wanted) = ours, theirs
    return reach(spent.mean(0), good.mean(0), wanted[:, place].mean()) / other[:, place].mean()


def interval(ours: Sheet, theirs: Sheet, place: int) -> tuple[float, float] | None:
    """What the ratio lies between when the seeds of both curves are drawn again; None if either has one seed only."""
    counts = [len(spent) for spent, _ in (ours, theirs)]
    if min(counts) < 2:
        return None
    chance, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        mine, other = (chance.integers(count, size=count) for count in counts)
        found.append(ratio((ours[0][mine], ours[1][mine]), (theirs[0][other], theirs[1][other]), place))
    low, high = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2], method="inverted_cdf")
    return float(low), float(high)


def crossings(frame: pd.DataFrame, axes: Iterable[str], quality: str) -> Iterator[dict[str, Any]]:
    """A row for each axis, milestone of a curve of DiT, and curve of another model: what that has spent when it is as good.

    A seed is that of the training, or TRAINING/SAMPLING.
    """
    models = frame.groupby("series", sort=False)["model"].first()
    trained = frame.assign(seed=frame["seed"].astype(str).str.split("/").str[0]).groupby("series")["seed"].nunique().min()
    kind = "training" if trained > 1 else "sampling only"
    for axis in axes:
        sheets = {series: sheet(rows, axis, quality) for series, rows in frame[frame[axis].notna()].groupby("series", sort=False)}
        for theirs, ours in ((a, b) for a in sheets for b in sheets if models[a] == "DiT" != models[b]):
            for place in range(sheets[theirs][0].shape[1]):
                yield row_of(theirs, ours, axis, sheets[theirs], sheets[ours], place, quality, kind)


def row_of(theirs: str, ours: str, axis: str, other: Sheet, mine: Sheet, place: int, quality: str, kind: str) -> dict[str, Any]:
    """One crossing: where, in what share, in which interval, and as a sentence."""
    at, wanted, share = other[0][:, place].mean(), other[1][:, place].mean(), ratio(mine, other, place)
    bounds, name = interval(mine, other, place), axis.replace("_", "-")
    status = {NEVER: "not reached", BEFORE: "before the first milestone"}.get(share, "reached")
    sure = f"95 % of {DRAWS} bootstrap samples over seeds of {kind}" if bounds else "one seed, no interval"
    reads = f"{ours} did not reach the {quality} of {wanted:.4g} that {theirs} has after {at:.4g} {name}"
    if share == BEFORE:
        share = mine[0][:, 0].mean() / at
        reads = f"{ours} is better than {theirs} after {at:.4g} {name} already at its first milestone, {share:.3g} times as far"
    if status == "reached":
        range_ = f" (95 % interval over seeds: {bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""
        reads = f"For a {quality} of {wanted:.4g} {ours} needs {share * at:.4g} {name}: {share:.3g} times {theirs}'s{range_}"
    return {
        "baseline": theirs,
        "model": ours,
        "axis": axis,
        "at": at,
        "quality": wanted,
        "status": status,
        "reached": None if share == NEVER else share * at,
        "ratio": None if share == NEVER else share,
        "low": bounds[0] if bounds else None,
        "high": bounds[1] if bounds else None,
        "seeds": f"{len(mine[0])} and {len(other[0])}",
        "interval": sure,
        "reads": reads,
    }
