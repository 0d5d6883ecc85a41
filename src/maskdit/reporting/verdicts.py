"""The ledger: each claim of the paper, what was measured here, and the verdict, computed from records alone."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import named
from maskdit.config.base import UserError
from maskdit.config.claims import Cell, Claim, Claims, Crossing, Evidence, Metric, Pair, Ratio
from maskdit.reporting.records import COMPARABLE, demand_alike, read, twins
from maskdit.reporting.table_formats import write

NOISE = 0.013  # smaller gaps are a tie: retraining with another seed moves FID by as much (arXiv 2606.20536)
REPRODUCED, TIE, FAILED, SCALED, UNSEEN = "REPRODUCED", "TIE", "NOT REPRODUCED", "SCALED-DOWN ONLY", "NOT RUN"
RANKS = (FAILED, UNSEEN, SCALED, TIE, REPRODUCED)  # from the worst


@dataclass(frozen=True)
class Found:
    """A value with its relative noise (two standard errors), the number of seeds behind it, and the file that it is from."""

    value: float
    noise: float
    seeds: str
    where: str
    low: float = math.nan  # a measured interval, if there is one
    high: float = math.nan

    @property
    def tolerance(self) -> float:
        """The relative gap that means nothing."""
        return max(NOISE, self.noise)

    @property
    def bounds(self) -> tuple[float, float]:
        """What the value may as well be."""
        low, high = self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)
        return (low, high) if math.isnan(self.low) else (min(low, self.low), max(high, self.high))


def values_of(records: dict[str, dict[str, Any]], names: tuple[str, ...], metric: str, lower: bool) -> list[float]:
    """The values of the seeds of one recipe, of several the best; none if one of the evaluations was not run."""
    if not all(name in records for name in names):
        return []
    groups = []
    for group in twins({name: records[name] for name in names}):
        found = [number(records[name], metric) for name in group]
        groups.append([value for value in found if value is not None])
    return [] if not all(groups) else (min if lower else max)(groups, key=statistics.mean)


def number(record: dict[str, Any], metric: str) -> float | None:
    """A metric, or a number of the training's speed."""
    checkpoint = record.get("checkpoint", {})
    return {**(checkpoint.get("speed") or {}), **record["metrics"]}.get(metric)


def files(results: Path, names: tuple[str, ...]) -> str:
    """Where records lie: FOLDER/{ONE,OTHER}.json, as a shell expands it."""
    folders: dict[Path, list[str]] = {}
    for path in named(results, names).values():
        folders.setdefault(path.parent, []).append(path.stem)
    lists = {folder: stems[0] if len(stems) == 1 else f"{{{','.join(stems)}}}" for folder, stems in folders.items()}
    return " ".join(f"{folder}/{stems}.json" for folder, stems in lists.items())


def error(values: list[float]) -> float:
    """The relative standard error of a mean; 0 for one seed, of which nothing is known."""
    return statistics.stdev(values) / statistics.mean(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def found(evidence: Evidence, results: Path, lower: bool) -> Found | None:
    """What was measured; None if nothing was, or not all of it.

    Raises UserError if records that are compared were measured by different protocols.
    """
    match evidence:
        case Metric():
            records = read(results, evidence.evals, COMPARABLE)
            values = values_of(records, evidence.evals, evidence.metric, lower)
            if not values:
                return None
            noise = 2 * error(values) * math.sqrt(len(values) + 1)  # of a mean beside the paper's one run
            return Found(statistics.mean(values), noise, str(len(values)), files(results, evidence.evals))
        case Ratio():
            names = (*evidence.of, *evidence.over)
            records = read(results, names, (*COMPARABLE, "sampler", "nfe", "guidance"))
            demand_alike(records)
            ours, theirs = (values_of(records, each, evidence.metric, lower) for each in (evidence.of, evidence.over))
            if not ours or not theirs:
                return None
            noise = 2 * math.hypot(error(ours), error(theirs))
            ratio = statistics.mean(ours) / statistics.mean(theirs)
            return Found(ratio, noise, f"{len(ours)} and {len(theirs)}", files(results, names))
        case Crossing():
            return crossed(results / f"curves_{evidence.study}_crossing.csv", evidence.axis)
        case Pair():
            path = results / f"bench_{evidence.bench}.csv"
            rows = rows_of(path, pair=evidence.pair)
            return None if rows is None else Found(rows.ratio.iloc[0], 0.0, "", str(path), rows.low.iloc[0], rows.high.iloc[0])
        case Cell():
            path = results / f"bench_{evidence.bench}_factorial.csv"
            left, right = (rows_of(path, model=model) for model in (evidence.of, evidence.over))
            if left is None or right is None:
                return None
            both = left.merge(right, on=["precision", "compile", "batch"])
            ratios = both[f"{evidence.column}_x"] / both[f"{evidence.column}_y"]
            return Found(ratios.median(), 0.0, "", str(path), ratios.min(), ratios.max())


def rows_of(path: Path, **wanted: str) -> pd.DataFrame | None:
    """The rows of a CSV file with these values; None if there is no such file or row."""
    if not path.exists():
        return None
    rows = pd.read_csv(path)
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows if len(rows) else None


def crossed(path: Path, axis: str) -> Found | None:
    """The crossing at DiT's last milestone; infinite if it was not reached."""
    rows = rows_of(path, axis=axis)
    if rows is None:
        return None
    row = rows.loc[rows["at"].idxmax()]
    if row.status == "not reached":
        return Found(math.inf, 0.0, row.seeds, str(path))
    return Found(row["ratio"], 0.0, row.seeds, str(path), row.low, row.high)


def judged(claim: Claim, seen: Found) -> tuple[str, str]:
    """The verdict on full-size evidence, and in words where the value lies.

    A number is reproduced if ours is as good, or worse by no more than noise. That something is less than something else is
    reproduced if it is less by more than noise, and by as much as claimed; it is a tie if noise would explain the difference.
    """
    low, high, paper = *seen.bounds, claim.paper
    if claim.better == "higher":
        low, high = 1 / high, 1 / low
        paper = paper and 1 / paper
    if isinstance(claim.evidence, Metric):
        assert claim.paper is not None
        assert paper is not None
        return REPRODUCED if low <= paper else FAILED, f"{seen.value / claim.paper - 1:+.1%} of the paper's"
    where = "tie" if low <= 1 <= high else "as claimed" if high < 1 else "opposite"
    if where == "tie":
        return TIE, where
    if where == "as claimed" and paper is not None and low > paper:
        return FAILED, "as claimed, but less"
    return REPRODUCED if where == "as claimed" else FAILED, where


def row_of(name: str, claim: Claim, results: Path) -> dict[str, Any]:
    """One claim as a row of the ledger."""
    lower = claim.better == "lower"
    full, verdict, where = found(claim.evidence, results, lower), UNSEEN, ""
    seen = full
    if full is not None:
        verdict, where = judged(claim, full)
    elif claim.scaled is not None and (seen := found(claim.scaled, results, lower)) is not None:
        verdict = SCALED
        where = judged(claim.model_copy(update={"evidence": claim.scaled, "paper": None}), seen)[1]
    return {
        "claim": name,
        "says": claim.says,
        "verdict": verdict,
        "direction": where,
        "paper": claim.paper,
        "ours": None if seen is None else "not reached" if math.isinf(seen.value) else float(f"{seen.value:.4g}"),
        "seeds": seen and seen.seeds,
        "tolerance": seen and f"{seen.tolerance:.1%}",
        "source": claim.source,
        "from": seen and seen.where,
    }


def worse(rows: list[dict[str, Any]], against: Path) -> list[str]:
    """The claims whose verdict is worse than in another ledger, or that are gone, in words.

    Raises UserError if that is no ledger.
    """
    try:
        before = pd.read_csv(against).set_index("claim")["verdict"].to_dict()
    except (OSError, KeyError, ValueError):
        raise UserError(f"{against}: no ledger; name a claims.csv that this command has written") from None
    if strange := set(before.values()) - set(RANKS):
        raise UserError(f"{against}: no verdict is '{sorted(map(str, strange))[0]}'; known: {', '.join(RANKS)}")
    now = {row["claim"]: row["verdict"] for row in rows}
    return [
        f"{name} ({old}, now {now.get(name, 'gone')})"
        for name, old in before.items()
        if name not in now or RANKS.index(now[name]) < RANKS.index(old)
    ]


def claims(config: Claims, *, results: Path, against: Path | None = None, out: Path) -> None:
    """Write the verdict on each claim as CSV, and as Markdown beside it.

    REPRODUCED, TIE, NOT REPRODUCED; SCALED-DOWN ONLY where only a smaller size was measured, whatever that shows; NOT RUN.
    Raises UserError, naming the claims, if a verdict is worse than in the ledger `against`.
    """
    rows = [row_of(name, claim, results) for name, claim in config.claims.items()]
    if against is not None and (lost := worse(rows, against)):
        raise UserError(f"{against}: worse than there: {', '.join(lost)}")
    write(pd.DataFrame(rows, dtype=object), config.title, out)
