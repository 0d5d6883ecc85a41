"""The ledger: each claim of the paper, the value measured here and the verdict, computed only from records."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from maskdit.artifacts.atomic import named
from maskdit.config.base import UserError
from maskdit.config.claims import Cell, Claim, Claims, Crossing, Evidence, Metric, Pair, Ratio
from maskdit.reporting.records import COMPARABLE, counted, demand_alike, independent, read, seeds, twins
from maskdit.reporting.table_formats import write

NOISE = 0.013  # relative gap that counts as a tie: another training seed changes FID by as much (arXiv 2606.20536)
REPRODUCED, TIE, FAILED, SCALED, UNSEEN = "REPRODUCED", "TIE", "NOT REPRODUCED", "SCALED-DOWN ONLY", "NOT RUN"
UNTESTABLE = "UNTESTABLE HERE"  # scaled-down evidence whose control does not show what is known
SHOWS = {"as claimed": "supports", "opposite": "contradicts", "tie": "tie"}  # direction of scaled-down evidence -> in its verdict
RANKS = (FAILED, UNSEEN, UNTESTABLE, SCALED, TIE, REPRODUCED)  # worst first


@dataclass(frozen=True)
class Found:
    """A value with its relative noise over seeds, their number and the file it comes from."""

    value: float
    noise: float
    seeds: str
    where: str
    low: float = math.nan  # a measured interval, if there is one
    high: float = math.nan

    @property
    def tolerance(self) -> float:
        """The largest relative gap that is a tie."""
        return max(NOISE, self.noise)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval that the value may lie in: its tolerance, widened to the measured interval."""
        low, high = self.value / (1 + self.tolerance), self.value * (1 + self.tolerance)
        return (low, high) if math.isnan(self.low) else (min(low, self.low), max(high, self.high))


class Seeds(NamedTuple):
    """A metric or speed figure of each seed of one recipe: of training; of a single training, of sampling."""

    names: tuple[str, ...]
    values: list[float]
    number: str  # of seeds, in words


def recipes(records: dict[str, dict[str, Any]], names: tuple[str, ...], metric: str) -> list[Seeds]:
    """A metric or speed figure of each recipe; an empty list if an evaluation was not run or lacks the figure."""
    if not all(name in records for name in names):
        return []
    found = []
    for group in twins({name: records[name] for name in names}):
        trainings = [
            [{**(records[name].get("checkpoint", {}).get("speed") or {}), **records[name]["metrics"]} for name in training]
            for training in seeds(records, group)
        ]
        if any(each.get(metric) is None for training in trainings for each in training):
            return []
        values = independent([[each[metric] for each in training] for training in trainings])
        number = "1" if len(values) == 1 else counted(len(trainings), len(values)).removesuffix(" seeds")
        found.append(Seeds(tuple(group), values, number))
    return found


def one_recipe(records: dict[str, dict[str, Any]], names: tuple[str, ...], metric: str) -> list[Seeds]:
    """The only one of `recipes`, or none.

    Raises UserError if there are several: the best of them, chosen by the samples that it reports, would look too good.
    """
    found = recipes(records, names, metric)
    if len(found) > 1:
        one, other = (seeds.names[0] for seeds in found[:2])
        raise UserError(f"{one} and {other} differ in more than the seed: a claim is about one recipe; remove one of them from it")
    return found


def files(results: Path, names: tuple[str, ...]) -> str:
    """The paths of records, in a form that a shell expands: FOLDER/{ONE,OTHER}.json."""
    folders: dict[Path, list[str]] = {}
    for path in named(results, names).values():
        folders.setdefault(path.parent, []).append(path.stem)
    lists = {folder: stems[0] if len(stems) == 1 else f"{{{','.join(stems)}}}" for folder, stems in folders.items()}
    return " ".join(f"{folder}/{stems}.json" for folder, stems in lists.items())


def error(*sides: list[float]) -> tuple[float, int]:
    """The relative standard error of a ratio of means, and its degrees of freedom; 0 and 0 if no side has two seeds.

    The relative spread over seeds is taken to be the same on all sides, so that a side of one seed has it, too.
    """
    free = sum(len(values) - 1 for values in sides)
    if not free:
        return 0.0, 0
    apart = sum((value / statistics.mean(values) - 1) ** 2 for values in sides for value in values)
    return math.sqrt(apart / free * sum(1 / len(values) for values in sides)), free


def noise(*sides: list[float]) -> float:
    """Half the width of the 95 % interval of a ratio of means, relative to it, by Student's t; 0 if no side has two seeds."""
    from scipy.special import stdtrit  # only where there are several seeds

    relative, free = error(*sides)
    return relative * float(stdtrit(free, 0.975)) if free else 0.0


def found(evidence: Evidence | None, results: Path) -> list[Found]:
    """The measured value; of a ratio, one for each recipe in `over`. An empty list if some of the evidence does not exist.

    Raises UserError if the records that are compared have different protocols, or differ in more than the seed outside `over`.
    """
    match evidence:
        case None:
            return []
        case Metric():
            alone = one_recipe(read(results, evidence.evals, COMPARABLE), evidence.evals, evidence.metric)
            return [  # two standard errors of the ratio to the paper's single run: a t of few seeds would make it easy to reproduce
                Found(statistics.mean(values), 2 * error(values, [1.0])[0], number, files(results, names))
                for names, values, number in alone
            ]
        case Ratio():
            every = (*evidence.of, *evidence.over)
            records = read(results, every, (*COMPARABLE, "sampler", "nfe", "guidance"))
            demand_alike(records)
            return [
                Found(
                    statistics.mean(ours.values) / statistics.mean(theirs.values),
                    noise(ours.values, theirs.values),
                    f"{ours.number} against {theirs.number}",
                    files(results, (*ours.names, *theirs.names)),
                )
                for ours in one_recipe(records, evidence.of, evidence.metric)
                for theirs in recipes(records, evidence.over, evidence.metric)
            ]
        case Crossing():
            path = results / f"curves_{evidence.study}_crossing.csv"
            rows = rows_of(path, "axis", evidence.axis, ("at", "ratio", "low", "high"), ("status", "seeds", "model"))
            rows = rows[rows["model"].str.split().str[0] == evidence.model] if len(rows) else rows
            if rows.empty:
                return []
            last = rows.loc[rows["at"].idxmax()]  # at the last milestone of DiT
            if last.status == "not reached":
                return [Found(math.inf, 0.0, last.seeds, str(path), last.low, math.inf)]
            return [Found(last["ratio"], 0.0, last.seeds, str(path), last.low, last.high)]
        case Pair():
            path = results / f"bench_{evidence.bench}.csv"
            rows = rows_of(path, "pair", evidence.pair, ("ratio", "low", "high"))
            return [Found(row.ratio, 0.0, "", str(path), row.low, row.high) for row in rows.head(1).itertuples()]
        case Cell():
            path = results / f"bench_{evidence.bench}_factorial.csv"
            left, right = (
                rows_of(path, "model", model, (evidence.column, "batch"), ("precision", "compile"))
                for model in (evidence.of, evidence.over)
            )
            if left.empty or right.empty:
                return []
            both = left.merge(right, on=["precision", "compile", "batch"])
            ratios = both[f"{evidence.column}_x"] / both[f"{evidence.column}_y"]
            return [Found(ratios.median(), 0.0, "", str(path), ratios.min(), ratios.max())]


def rows_of(path: Path, column: str, value: str, numbers: tuple[str, ...], texts: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows of a CSV file that have a value in a column; empty if the file does not exist.

    Raises UserError if it is no table with these columns of numbers and of texts.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        rows = pd.read_csv(path)
        rows = rows[rows[column] == value][[column, *numbers, *texts]]
        return rows.assign(**{name: pd.to_numeric(rows[name]) for name in numbers})
    except (ValueError, KeyError, OSError):
        raise UserError(f"{path}: damaged; delete it and rerun the step that makes it") from None


def beside(value: float, other: float) -> str:
    """How much a value is above or below another, as printed."""
    apart = f"{abs(value / other - 1):.1%}"
    return "equal to" if apart == "0.0%" else f"{apart} {'above' if value > other else 'below'}"


def judged(claim: Claim, seen: Found) -> tuple[str, str]:
    """The verdict on full-size evidence, and the direction of the value in words.

    A metric is reproduced if ours is at least as good within noise. A ratio is a tie if noise explains its distance from 1, and
    reproduced if it is below 1 by more than noise and by as much as claimed.
    """
    low, high, paper = *seen.bounds, claim.paper
    if claim.better == "higher":
        low, high = 1 / high, 1 / low
        paper = paper and 1 / paper
    if isinstance(claim.evidence, Metric) and paper is not None and claim.paper is not None:  # which a metric always has
        return REPRODUCED if low <= paper else FAILED, f"{beside(seen.value, claim.paper)} the paper's"
    if low < 1 < high:
        return TIE, "tie"
    if high < 1 and paper is not None and low > paper:
        return FAILED, "as claimed, but less"
    return (REPRODUCED, "as claimed") if high < 1 else (FAILED, "opposite")


def least(claim: Claim, seen: list[Found]) -> tuple[Found, str, str]:
    """The value that speaks least for a claim, with its verdict and direction: the claim must hold against each alternative."""
    sign = 1 if claim.better == "lower" else -1
    return max(((each, *judged(claim, each)) for each in seen), key=lambda each: (-rank(each[1]), sign * each[0].value))


def direction(claim: Claim, seen: list[Found]) -> tuple[Found, str]:
    """The value that speaks least for a claim, and whether it goes the claimed way: `as claimed`, `opposite` or `tie`."""
    value, _, told = least(claim.model_copy(update={"evidence": claim.scaled, "paper": None}), seen)
    return value, told


def failing(claim: Claim, control: Evidence, results: Path) -> str:
    """How a control fails to show its known direction, in words; '' if it shows it."""
    if not (values := found(control, results)):
        return "the control was not run"
    seen, told = direction(claim, values)
    value = "not reached" if math.isinf(seen.value) else f"{seen.value:.3g}"
    return "" if told == "as claimed" else f"the control shows {'a tie' if told == 'tie' else f'the opposite ({value})'}"


def row_of(name: str, claim: Claim, results: Path) -> dict[str, Any]:
    """One claim as a row of the ledger."""
    seen, verdict, where = None, UNSEEN, ""
    if values := found(claim.evidence, results):
        seen, verdict, where = least(claim, values)
    elif values := found(claim.scaled, results):
        seen, where = direction(claim, values)
        verdict = f"{SCALED}: {SHOWS[where]}"
        if claim.control is not None and (told := failing(claim, claim.control, results)):
            verdict, where = UNTESTABLE, told
    row = {"claim": name, "says": claim.says, "verdict": verdict, "direction": where, "paper": claim.paper}
    if seen is None:
        return {**row, "ours": None, "seeds": None, "tolerance": None, "source": claim.source, "from": None}
    ours = "not reached" if math.isinf(seen.value) else float(f"{seen.value:.4g}")
    measured = {"ours": ours, "seeds": seen.seeds, "tolerance": f"{seen.tolerance:.1%}"}
    return {**row, **measured, "source": claim.source, "from": seen.where}


def rank(verdict: str) -> int:
    """The place of a verdict in RANKS; what scaled-down evidence shows makes no difference."""
    return RANKS.index(verdict.split(":")[0])


def worse(rows: list[dict[str, Any]], against: Path) -> list[str]:
    """The claims whose verdict is worse than in another ledger, or that are gone, in words.

    Raises UserError if `against` is not a ledger.
    """
    try:
        before = pd.read_csv(against).set_index("claim")["verdict"].to_dict()
    except (OSError, KeyError, ValueError):
        raise UserError(f"{against}: not a ledger; pass a claims.csv that this command has written") from None
    if strange := [verdict for verdict in map(str, before.values()) if verdict.split(":")[0] not in RANKS]:
        raise UserError(f"{against}: unknown verdict '{min(strange)}'; known: {', '.join(RANKS)}")
    now = {row["claim"]: row["verdict"] for row in rows}
    return [
        f"{name} ({old}, now {now.get(name, 'gone')})"
        for name, old in before.items()
        if name not in now or rank(now[name]) < rank(old)
    ]


def claims(config: Claims, *, results: Path, against: Path | None = None, out: Path) -> None:
    """Write the verdict on each claim as CSV and Markdown.

    A verdict is REPRODUCED, TIE, NOT REPRODUCED, NOT RUN, or, if only a smaller size was measured, SCALED-DOWN ONLY with what that
    shows: supports, contradicts or tie. UNTESTABLE HERE: the control of the smaller size does not show what is known.
    Raises UserError, naming the claims, if a verdict is worse than in the ledger `against`.
    """
    rows = [row_of(name, claim, results) for name, claim in config.claims.items()]
    if against is not None and (lost := worse(rows, against)):
        raise UserError(f"{against}: has better verdicts for {', '.join(lost)}")
    write(pd.DataFrame(rows, dtype=object), config.title, out)
