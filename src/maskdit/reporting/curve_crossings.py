"""The point at which one curve reaches another's quality: the ratio of the costs, with an interval over seeds."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskdit.methods.dit import Dit
from maskdit.reporting.report.report import AXES

Sheet = tuple[NDArray[Any], NDArray[Any]]  # cost and quality, each (seeds, milestones)

DRAWS, SHARE = 10_000, 0.95  # random draws of both curves, and the share of them inside an interval
LEAST, FAR = 1e-12, 100.0  # the least quality, and the greatest change of a logarithm, in a draw
BEFORE, NEVER = 0.0, math.inf
COLUMNS: tuple[str, ...] = (
    "baseline",
    "model",
    "axis",
    "at",
    "quality",
    "status",
    "reached",
    "ratio",
    "low",
    "high",
    "seeds",
    "interval",
)
COLUMNS += ("flops_ratio", "mfu", "baseline_mfu", "reads")  # the first three of a crossing in time
TIMES = ("seconds", "device_hours", "cost")


def reach(spent: NDArray[Any], quality: NDArray[Any], wanted: NDArray[Any] | float) -> NDArray[Any]:
    """The cost at which a curve is first as good as `wanted` (lower is better). Curves are (..., milestones), `wanted` is (...).

    Between two milestones, the logarithm of the cost is linear in quality. NEVER if no milestone is good enough; BEFORE if the
    first one is already better, because the curve before it is unknown.
    """
    wanted = np.asarray(wanted)
    good = quality <= wanted[..., None]
    place = good.argmax(-1)

    def at(values: NDArray[Any], where: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(values, np.maximum(where, 0)[..., None], -1)[..., 0]

    with np.errstate(divide="ignore", invalid="ignore"):  # of curves that begin or end on one side of it
        share = (at(quality, place - 1) - wanted) / (at(quality, place - 1) - at(quality, place))
        crossed = np.exp((1 - share) * np.log(at(spent, place - 1)) + share * np.log(at(spent, place)))
    first = np.where(quality[..., 0] == wanted, spent[..., 0], BEFORE)
    return np.where(good.any(-1), np.where(place == 0, first, crossed), NEVER)


def sheet(rows: pd.DataFrame, axis: str, quality: str) -> Sheet:
    """The points of one curve in order of cost; milestones that some seed lacks are left out."""
    tables = rows.pivot_table(index="seed", columns="point", values=[axis, quality])
    spent = tables[axis].dropna(axis=1)
    order = np.argsort(spent.to_numpy().mean(0))
    return spent.to_numpy()[:, order], tables[quality][spent.columns].to_numpy()[:, order]


def ratio(ours: Sheet, theirs: Sheet, place: int) -> float:
    """Our mean cost at the quality that theirs has at a milestone, divided by their mean cost at that milestone."""
    (spent, good), (other, wanted) = ours, theirs
    return float(reach(spent.mean(0), good.mean(0), wanted[:, place].mean()) / other[:, place].mean())


def interval(ours: Sheet, theirs: Sheet, place: int) -> tuple[float, float] | None:
    """The 95 % interval of the ratio by Student's t over the seeds of both curves; None if either has only one seed.

    Each draw moves the mean cost and quality of a curve, in logarithms, along the differences between its seeds, as far as the
    means of so few seeds may be from the truth. The relative spread is taken to be the same on both sides. A bootstrap
    of two or three seeds would be far too narrow.
    """
    counts = [len(spent) for spent, _ in (ours, theirs)]
    if min(counts) < 2:
        return None
    chance, free = np.random.default_rng(0), sum(counts) - 2
    scale = np.sqrt(free / chance.chisquare(free, (DRAWS, 1)))
    (spent, good), (other, wanted) = (drawn(curve, chance, scale) for curve in (ours, theirs))
    found = reach(spent, good, wanted[:, place]) / other[:, place]
    low, high = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2], method="inverted_cdf")
    return float(low), float(high)


def drawn(curve: Sheet, chance: np.random.Generator, scale: NDArray[Any]) -> list[NDArray[Any]]:
    """Means of cost and quality over seeds, as they might have been: (DRAWS, milestones) each. `scale` makes normal numbers t's."""
    count = len(curve[0])
    along = scale * chance.standard_normal((DRAWS, count)) / math.sqrt(count * (count - 1))

    def moved(values: NDArray[Any]) -> NDArray[Any]:
        values = np.maximum(values, LEAST)
        logs = np.log(values)
        return np.exp(np.log(values.mean(0)) + np.clip(along @ (logs - logs.mean(0)), -FAR, FAR))

    return [moved(values) for values in curve]


def crossings(frame: pd.DataFrame, axes: Iterable[str], quality: str) -> Iterator[dict[str, Any]]:
    """One row per axis, milestone of a DiT curve and curve of another model: the cost at which that model is as good.

    A seed is the training's, or TRAINING/SAMPLING. If each curve has several trainings, these are the seeds, each with the mean
    of its samplings. Beside a ratio of times stand that of the FLOPs and each training's MFU: what the method costs, and what its
    utilisation does.
    """
    models = frame.groupby("series", sort=False)["model"].first()
    trainings = frame["seed"].astype(str).str.split("/").str[0]
    kind = "training" if trainings.groupby(frame["series"]).nunique().min() > 1 else "sampling only"
    if kind == "training":
        frame = frame.assign(seed=trainings)

    def sheets_of(axis: str) -> dict[str, Sheet]:
        known = frame[frame[axis].notna()] if axis in frame else frame[:0]
        return {series: sheet(rows, axis, quality) for series, rows in known.groupby("series", sort=False)}

    computed = sheets_of("tflop")
    busy = frame.groupby("series")["mfu"].median() if "mfu" in frame else None
    for axis in axes:
        sheets = sheets_of(axis)
        for theirs, ours in ((a, b) for a in sheets for b in sheets if models[a] == Dit.name != models[b]):
            for place in range(sheets[theirs][0].shape[1]):
                row = row_of(theirs, ours, axis, sheets[theirs], sheets[ours], place, quality, kind)
                if axis in TIMES and row["status"] == "reached" and {theirs, ours} <= computed.keys():
                    row["flops_ratio"] = ratio(computed[ours], computed[theirs], place)
                    row["reads"] += f"; {row['flops_ratio']:.3g} times {theirs}'s FLOPs"
                    if busy is not None and busy[[ours, theirs]].notna().all():
                        row |= {"mfu": busy[ours], "baseline_mfu": busy[theirs]}
                        row["reads"] += f", at an MFU of {busy[ours]:.2g} against {busy[theirs]:.2g}"
                yield row


def row_of(theirs: str, ours: str, axis: str, other: Sheet, mine: Sheet, place: int, quality: str, kind: str) -> dict[str, Any]:
    """One crossing as a row with COLUMNS; `reads` is a sentence.

    The bounds of what is not reached begin at all that was spent, those of what the first milestone has already end at its cost.
    """
    at, wanted = other[0][:, place].mean(), other[1][:, place].mean()
    unit = AXES[axis][1]
    share: float | None = ratio(mine, other, place)
    bounds = interval(mine, other, place)
    low, high = bounds or (None, None)
    if share == NEVER:
        spent = mine[0][:, -1].mean()
        status, share, low, high = "not reached", None, min(spent / at, NEVER if low is None else low), NEVER
        had = f"{quality} of {wanted:.4g} that {theirs} has after {amount(at)} {unit}"
        reads = f"{ours} did not reach the {had}, within {amount(spent)}"
    elif share == BEFORE:
        first = mine[0][:, 0].mean()
        share = first / at
        status, low, high = "before the first milestone", BEFORE, max(share, high or share)
        most = f"at most {amount(first)} {unit}, its first milestone: at most {share:.3g} times {theirs}'s"
        reads = f"For a {quality} of {wanted:.4g} {ours} needs {most}"
    else:
        status, range_ = "reached", f" (95 % interval over seeds: {spoken(*bounds)})" if bounds else ""
        reads = f"For a {quality} of {wanted:.4g} {ours} needs {amount(share * at)} {unit}: {share:.3g} times {theirs}'s{range_}"
    reached = None if share is None else share * at
    seeds = f"{len(mine[0])} and {len(other[0])}"
    sure = f"95 % by Student's t over seeds of {kind}" if bounds else "one seed, no interval"
    row = (theirs, ours, axis, at, wanted, status, reached, share, low, high, seeds, sure, None, None, None, reads)
    return dict(zip(COLUMNS, row, strict=True))


def amount(cost: float) -> str:
    """A cost in four digits, or as a whole number."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def spoken(low: float, high: float) -> str:
    """An interval in words; an end that no seed bounds is open."""
    if high < NEVER:
        return f"{low:.3g} to {high:.3g}"
    return f"{low:.3g} or more" if low else "open at both ends"
