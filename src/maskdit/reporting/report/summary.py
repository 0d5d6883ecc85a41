"""The first screen of the report, which answers whether masking pays off."""

import json
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from maskdit.config.params import Params
from maskdit.config.reporting import Report
from maskdit.methods.dit import Dit
from maskdit.methods.maskdit import MaskDit
from maskdit.reporting.records import COMPARABLE, Records, counted, distance_of, independent, seeds, twins
from maskdit.reporting.report.page import PIECES, picture, rows_of

SHOWN = {"as claimed": "supports", "opposite": "contradicts", "tie": "shows no difference for"}  # direction -> in words


def summary(params: Params, config: Report, bench: str, points: dict[str, Any], records: Records, results: Path) -> Markup:
    """Whether masking pays off: a sentence, four numbers, the curves, samples through training and the verdict counts."""
    crossings = rows_of(results / f"curves_{bench}_crossing.csv") or []
    timed = [row for row in crossings if row.get("axis") == points["hours"][0]]
    trainings = rows_of(results / f"efficiency_{bench}.csv") or []
    caption = f"{points['quality'] or 'Quality'} against the cost of training; the Curves section lists the points"
    judged = rows_of(results / f"{config.ledger}.csv")
    parts: list[Markup] = []
    if not published_alone(params, bench):
        parts += [PIECES.paragraph(answer(timed, untested(judged or [], bench)), "verdict"), cards(trainings, timed, points)]
    parts.append(picture(results / f"curves_{bench}.png", caption, caption))
    if bench in params.strip:
        through = "Samples through training: each row starts from one noise and class, each column is a milestone in training steps"
        parts.append(
            picture(results / f"strip_{bench}.png", f"{through}; the rows of one noise are adjacent, one per model", through)
        )
    if judged is None:
        lines = [f"There are no verdicts on the paper's claims: {config.ledger}.csv does not exist."]
    else:
        lines = verdicts(judged)
    lines = [*best(records), *lines]
    if points["quality"] and not points["quality"].startswith("fid"):
        lines.append(f"{points['quality']} is not FID and cannot be compared with published numbers.")
    return Markup("").join([*parts, PIECES.items(lines)])


def published_alone(params: Params, bench: str) -> bool:
    """Whether all samples of a study are of published weights, finetuned or not: then no two trainings are compared."""
    samples = [params.sample[name] for name in params.of(bench)]
    return {params.finetune[each.run].phase if each.phase == "finetune" else each.phase for each in samples} == {"released"}


def verdicts(judged: list[dict[str, str]]) -> list[str]:
    """How many claims of the paper have each verdict, and what scaled-down evidence shows of which claim."""
    kinds = [row.get("verdict", "").split(":")[0] for row in judged]
    counts = Counter({"": "no verdict", "NOT RUN": "not measured here"}.get(kind, kind) for kind in kinds)
    scaled = [row for row, kind in zip(judged, kinds, strict=True) if kind == "SCALED-DOWN ONLY"]
    told = [f"Of {len(judged)} claims: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}."]
    for way, words in SHOWN.items():
        if names := [row["claim"] for row in scaled if row["direction"] == way]:
            told.append(f"Scaled-down evidence, not of the paper's size, {words}: {', '.join(names)}.")
    return told


def best(records: Records) -> list[str]:
    """The best of all evaluations by the first distance, as a sentence for each protocol; seeds count as their mean."""
    groups: dict[str, Records] = {}
    for name, record in records.items():
        if quality := distance_of(record["metrics"]):
            alike = json.dumps([quality, *(record["protocol"].get(field) for field in COMPARABLE)])
            groups.setdefault(alike, {})[name] = record
    told = []
    for group in groups.values():
        first = next(iter(group.values()))
        quality, samples = distance_of(first["metrics"]), first["protocol"]["images"]
        values: dict[str, float] = {}
        for names in twins(group):
            trainings = seeds(group, names)
            count = sum(map(len, trainings))
            row = names[0] if count == 1 else f"{names[0]} ({counted(len(trainings), count)})"
            row += f" with guidance {group[names[0]]['protocol']['guidance']:g}"
            scored = independent([[group[name]["metrics"][quality] for name in training] for training in trainings])
            values[row] = float(f"{mean(scored):.5g}")  # as the table prints it
        least = min(values.values())
        rows = " and ".join(row for row, value in values.items() if value == least)
        told.append(
            f"The best {quality} of {len(group)} evaluation{'s' * (len(group) > 1)} of {samples:,} samples is {least:g}: {rows}."
        )
    return told


def untested(judged: list[dict[str, str]], bench: str) -> str:
    """Why the crossings of a study's curves cannot test the claim that is judged by them; '' if they can."""
    place = f"curves_{bench}_crossing.csv"
    return next((row["direction"] for row in judged if row["verdict"] == "UNTESTABLE HERE" and place in row.get("from", "")), "")


def answer(timed: list[dict[str, str]], untested: str = "") -> str:
    """Whether the masked model reaches the baseline's final quality at lower cost, from the crossings in one unit of time.

    untested: why this study cannot tell.
    """
    if not timed:
        return "Does masking pay off here? Undecided: the curves of two models are needed."
    masked = [row for row in timed if row.get("model", MaskDit.name).split()[0] == MaskDit.name]
    last = (masked or timed)[-1]
    if untested:
        return f"Does masking pay off? This study cannot tell: {untested}. {last['reads']}."
    if last["status"] == "not reached" and float(last.get("low") or 1) < 1:  # of less time than the baseline's, or of some seeds
        return f"Does masking pay off here? Undecided. {last['reads']}."
    pays = last["status"] != "not reached" and float(last["ratio"]) < 1
    noise = ", by a single seed of each"
    if last.get("high") and not last.get("interval", "").startswith("one seed"):
        noise = "" if (float(last["high"]) < 1 if pays else float(last["low"] or 1) > 1) else ", within the noise of the seeds"
    told = "pays off here" if pays else "does not pay off here"
    return f"{'Masking' if masked else last['model']} {told}{noise}. {last['reads']}."


def cards(trainings: list[dict[str, str]], timed: list[dict[str, str]], points: dict[str, Any]) -> Markup:
    """Training speed, memory, time to equal quality and final quality of the masked model, compared with DiT."""
    models = [row["model"] for row in trainings if row.get("model") not in (None, Dit.name, "not run")]
    model = MaskDit.name if MaskDit.name in models else next(iter(models), "")

    def of(model: str, field: str) -> float | None:
        values = [float(row[field]) for row in trainings if row.get("model") == model and row.get(field)]
        return mean(values) if values else None

    def times(field: str) -> str:
        ours, theirs = of(model, field), of(Dit.name, field)
        return f"{ours / theirs:.2f}x" if ours and theirs else "not run"

    reached = next((row for row in reversed(timed) if row.get("ratio")), None)
    equal = ("not reached", "")
    if reached:
        equal = (f"{float(reached['ratio']):.2f}x", f"of DiT's, at a {points['quality']} of {float(reached['quality']):.4g}")
    ends: dict[str, dict[str, float]] = {}  # series -> seed -> quality of its last point
    for point in points["points"]:
        if point["compared"]:
            ends.setdefault(point["series"], {})[point["seed"]] = float(point["y"])
    last = {series: f"{mean(seeds.values()):.4g}" for series, seeds in ends.items()}
    shown = (
        ("Images per second in training", times("images_per_second"), "of DiT's"),
        ("Memory in training", times("memory_gb"), "of DiT's"),
        ("Time to equal quality", *equal),
        (f"Final {points['quality'] or 'quality'}", " / ".join(last.values()) or "not run", " / ".join(last)),
    )
    return PIECES.cards(shown)
