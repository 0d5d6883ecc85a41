"""What `maskdit score` prints: a table, and why its numbers cannot be compared with published ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskdit.evaluation import metrics, protocol
from maskdit.evaluation.metrics import SPLIT
from maskdit.evaluation.protocol import FULL, SPACES
from maskdit.evaluation.sources import Source

KEPT = 50_000  # images of a set, at most, among which neighbours are looked for and KID and MIND are computed
TENTH = 10_000  # images of ADM's reference batches


def pixels(source: Source) -> str:
    """Width and height of a set's images."""
    return f"{source.size[1]} x {source.size[0]}" if source.size else "of unknown size"


def used(metric: str, mine: Source, real: Source | None) -> dict[str, int | None]:
    """How many images of the samples and of the reference a metric is of; None: of none, or of a number that nobody tells."""
    if not real or metric.startswith("is"):
        return {"images": mine.count, "reference": None}
    if metric.startswith(("fid", "fd", "sf")):
        unknown = SPACES["spatial" if metric.startswith("s") else "features"][0] in real.given and real.shown
        count = min(mine.count, KEPT) if "infinity" in metric else mine.count
        return {"images": count, "reference": None if unknown else real.count or None}  # ADM's statistics are not of its images
    few = min(mine.count, real.count, KEPT)
    mind = metric.startswith("mind")
    return {"images": few if mind else min(mine.count, KEPT), "reference": few if mind else min(real.count, KEPT)}


def described(real: Source | None) -> dict[str, Any]:
    """The reference, and the numbers of the metrics' definitions, as the records of the step `evaluate` name them."""
    told = real and {"path": str(real.path), "images": real.count or None, "statistics": "given" if real.given else "computed"}
    of = {"neighbours": protocol.NEIGHBOURS, "near": metrics.NEAR, "is_split": SPLIT, "is_order": "by name"}
    of |= {"kid_subsets": f"{metrics.SUBSETS} of {metrics.SUBSET}", "mind_directions": metrics.DIRECTIONS, "neighbours_from": KEPT}
    return {"reference": told, "protocol": of}


def remarks(mine: Source, real: Source | None, network: dict[str, Any], mind: bool) -> list[str]:
    """Why these metrics of a set cannot be compared with published numbers, which are ADM's, one sentence each."""
    return [*of_samples(mine, network), *(of_reference(mine, real, mind) if real else ())]


def of_samples(mine: Source, network: dict[str, Any]) -> Iterator[str]:
    """What a network and a set of samples have of their own."""
    if network["family"] != "inception-2015":
        yield f"the features are of {network['family']}, not of Inception of 2015"
    elif network["extractor_sha256"] != protocol.OFFICIAL:
        yield f"the weights are not those of Inception of 2015 (sha256 {network['extractor_sha256'][:8]}...)"
    if mine.count != FULL:
        yield f"{mine.count:,} images, not {FULL:,}: of fewer images a Frechet distance is larger, and recall another"
    if mine.jpeg:
        yield f"{mine.jpeg:,} images are JPEG, whose losses the features see; save samples as PNG"
    if rest := mine.count % SPLIT:
        yield f"the Inception Score is the mean over {SPLIT:,} images at a time, of which the last are {rest:,}"
    if mine.by_class and mine.count > SPLIT:
        yield f"the images come class by class, and of few classes in {SPLIT:,} the Inception Score is too low; shuffle them"


def of_reference(mine: Source, real: Source, mind: bool) -> Iterator[str]:
    """What comes of the reference."""
    if real.given and not real.facts:
        yield "the reference does not say how its images were cropped and resized; published numbers take ADM's file"
    else:
        of = f" {real.count:,}" if real.count else ""
        yield f"mean and covariance of the reference are of{of} images of yours; ADM's are of the whole training set"
    if real.shown and real.count != TENTH:
        yield f"precision, recall, density and coverage have a reference of {real.count:,} images; ADM's has {TENTH:,}"
    if real.jpeg:
        yield f"{real.jpeg:,} images of the reference are JPEG, whose losses the features see"
    if not mine.size or not real.size:
        yield f"the images of the reference must have had {pixels(mine)} pixels, too, which nothing here says"
    if max(mine.count, real.count) > KEPT:
        yield f"precision, recall, KID, density and coverage are of {KEPT:,} images at most"
    if mind and real.shown and real.count != mine.count:
        yield f"MIND is of {min(mine.count, real.count, KEPT):,} images on each side"


def table(rows: Sequence[dict[str, Any]], real: Source | None) -> Iterator[str]:
    """Lines of a table with a column per set and one of the reference's images, and of what cannot be compared."""
    paths = [Path(row["samples"]) for row in rows]
    names = [path.name or str(path) for path in paths]
    names = names if len(set(names)) == len(names) else list(map(str, paths))
    lines = [["", *names, "of reference"], ["images", *(f"{row['images']:,}" for row in rows), number(real.count if real else 0)]]
    for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
        values = [f"{row['metrics'][metric]:.5g}" if metric in row["metrics"] else "-" for row in rows]
        lines.append([metric, *values, number(next(row["used"][metric]["reference"] for row in rows if metric in row["used"]))])
    for line in lines if real else [line[:-1] for line in lines]:
        wide = [max(len(each[column]) for each in lines) for column in range(len(line))]
        yield "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])])
    said = dict.fromkeys(remark for row in rows for remark in row["not_comparable"])
    if said:
        yield ""
        yield "not comparable with published numbers:"
    for remark in said:
        of = [name for name, row in zip(names, rows, strict=True) if remark in row["not_comparable"]]
        yield f"- {remark}" if len(of) == len(rows) else f"- {', '.join(of)}: {remark}"


def number(count: int | None) -> str:
    """A number of images; '-' if there is none."""
    return f"{count:,}" if count else "-"
