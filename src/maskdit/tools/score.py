"""`maskdit score`: metrics of anybody's images against a reference, without params.yaml."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError, printable
from maskdit.evaluation import protocol, sources
from maskdit.evaluation.metrics import SPLIT, Sums, inception_score
from maskdit.evaluation.protocol import NEIGHBOURS, SPACES, demand_finite, demand_neighbours, scored, suffix, summed
from maskdit.evaluation.sources import PART, Source, opened
from maskdit.runtime import environment
from maskdit.runtime.gpu_leases import leased
from maskdit.runtime.progress import first_rank
from maskdit.runtime.random import generator
from maskdit.runtime.variables import variable
from maskdit.tools.draw import demand_place
from maskdit.tools.score_table import KEPT, described, pixels, remarks, table, used

WEEK = 7 * 24 * 3600.0  # seconds after which features that nobody has used are removed


def score(
    samples: list[Path],
    *,
    reference: Path | None,
    extractor: str,
    weights: Path | None,
    batch: int,
    mind: bool,
    as_json: bool,
    save_features: Path | None,
    save_statistics: Path | None,
) -> None:
    """Print the metrics of sets of images against a reference, and what cannot be compared with published numbers.

    The options are those of the command. Several processes of one group (torchrun) share the work; the first one prints.
    Raises UserError for sets that are no images, or do not fit each other or the network.
    """
    # 1. What there is, before any network is loaded
    mine, real = [opened(path) for path in samples], opened(reference) if reference else None
    demand_fit(mine, real)
    for out in filter(None, (save_features, save_statistics)):
        if len(mine) > 1 or (out == save_features and mine[0].pixels is None):
            raise UserError(f"{out}: is made of the images of one set; name one folder or npz of images as SAMPLES")
        if out.is_dir():
            raise UserError(f"{out}: is a folder; name a file, as {out / 'features.npz'}")
        demand_place(out.parent)

    # 2. Features, and what is computed of them: neither needs a network where features have been saved
    every = [*mine, *filter(None, [real])]
    network, parts = features(every, extractor, weights, batch)
    if not first_rank():
        return
    known = (summary(real, parts) if real.shown else {}) | real.given if real else {}
    if save_features:
        sources.save_features(save_features, parts[mine[0].state], mine[0], network)

    # 3. One row per set
    rows = []
    for each in mine:
        found = summary(each, parts)
        if save_statistics:
            sources.save_statistics(save_statistics, found, each, network)
        name = suffix(network["family"], network["extractor_sha256"], each.count)
        values = scored(found, known, NEIGHBOURS, name, each.path, mind)
        row = {"samples": str(each.path), "images": each.count, "metrics": values}
        row |= {"used": {metric: used(metric, each, real) for metric in values}}
        rows.append(row | {"not_comparable": remarks(each, real, network, mind)})
    if as_json:
        print(json.dumps({"sets": rows, **described(real), "network": network}, indent=2))
    else:
        print("\n".join(map(printable, table(rows, real))))


def demand_fit(mine: Sequence[Source], real: Source | None) -> None:
    """Raise UserError unless all sets have images enough, of one size, and saved features and statistics are of one network."""
    for each in mine:
        if not each.shown:
            raise UserError(f"{each.path}: holds statistics, not images; name it by --reference")
        if real:
            demand_neighbours(each.count, NEIGHBOURS, each.path)
    if real and real.shown:
        demand_neighbours(real.count, NEIGHBOURS, real.path)
    every = [*mine, *filter(None, [real])]
    sized, made = ([each for each in every if getattr(each, name)] for name in ("size", "facts"))
    for each in sized:
        if each.size != sized[0].size:
            sizes = " and ".join(f"{one.path} {pixels(one)}" for one in (sized[0], each))
            advice = "resize the originals of one of them to the size of the other as its images were made"
            raise UserError(f"sizes differ: {sizes} pixels; {advice}")
    for each in made:
        if each.facts["extractor_sha256"] != made[0].facts["extractor_sha256"]:
            names = " and ".join(f"{one.path} ({one.facts['family']})" for one in (made[0], each))
            raise UserError(f"{names} were made with different networks; make both with one")


def features(
    every: Sequence[Source], family: str, weights: Path | None, batch: int
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """The network, as a record describes it, and the files of its outputs for each set of images, by the set's state.

    Each file is of about a thousand images, lies in the user's cache and is kept there for a week, so that a repeated command is
    quick. Of a group of processes each makes its share of the files.
    """
    made = next((each for each in every if each.facts), None)
    drawn = {each.state: each for each in every if each.pixels is not None}
    if not drawn and made:
        return made.facts, {}
    if made and made.facts["family"] != family:
        raise UserError(f"{made.path}: made with other weights, of {made.facts['family']}; set --extractor to that, not {family}")
    with leased(1):
        from maskdit.evaluation.extractors import Extractor
        from maskdit.runtime.process_group import together

        with together() as ranks:
            if ranks.rank == 0:
                forget_old()
            net = Extractor(family, ranks.from_first(lambda: weights or weights_of(family)))
            if made and made.facts["extractor_sha256"] != net.sha256:
                raise UserError(f"{made.path}: made with other weights, of {made.facts['family']}; see --extractor and --weights")
            for each in every:
                demand_width(each, net.family, net.net.WIDTHS)
            environment.PART = (ranks.rank + 1, ranks.world) if ranks.world > 1 else None
            found = {}
            for number, (state, each) in enumerate(drawn.items()):
                work = filled(net, each, batch)
                ranks.exchange(f"score-{number}", "", Event())
                found[state] = [work.home / name for name in work.names]
            return net.protocol(), found


def demand_width(source: Source, family: str, widths: dict[str, int]) -> None:
    """Raise UserError if statistics are of another width than what a network says of images."""
    for space, (mean, _) in SPACES.items():
        if mean in source.given and len(source.given[mean]) != widths.get(space):
            width = f"{mean} has {len(source.given[mean])} numbers, which does not fit {family}"
            raise UserError(f"{source.path}: {width}; use statistics of {family}, or another --extractor")


def filled(net: Any, source: Source, batch: int) -> Shards:
    """The files of a network's outputs for a set of images: those that are missing are made, or this process's share of them."""
    size = batch * max(1, PART // batch)
    names = [f"part-{at:08d}.npz" for at in range(0, source.count, size)]
    work = Shards("score", [net.protocol(), batch, source.state], names, root=cache())
    os.utime(work.home)

    def make(number: int, path: Path) -> None:
        rows = np.arange(number * size, min(source.count, (number + 1) * size))
        savez(path, net.extract(source.pixels, rows, batch))

    work.fill(make)
    return work


def cache() -> Path:
    """The folder of this command's features: maskdit in the user's cache."""
    return Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskdit"


def forget_old() -> None:
    """Remove features that have not been used for a week."""
    for home in cache().glob("score-*"):
        if time.time() - home.stat().st_mtime > WEEK:
            shutil.rmtree(home, ignore_errors=True)


def weights_of(family: str) -> Path:
    """The published weights of a network: from its package, or downloaded once to where torch.hub looks for them."""
    from maskdit.images.download import download, name_of
    from maskdit.images.fetch import packaged

    if family == "mobilenet-v2":
        return packaged(family)
    if family != "inception-2015":
        raise UserError(
            f"--extractor {family}: name its weights by --weights, model.safetensors of timm's vit_large_patch14_dinov2.lvd142m"
        )
    home = Path(variable("TORCH_HOME") or Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch")
    path = home / "hub" / "checkpoints" / name_of(protocol.WEIGHTS)
    try:
        download(protocol.WEIGHTS, path, protocol.OFFICIAL)
    except UserError as error:
        raise UserError(
            f"{error}; or put that file there: {path}, or name it by --weights; --extractor mobilenet-v2 needs none"
        ) from None
    return path


def summary(source: Source, parts: dict[str, list[Path]]) -> dict[str, Array]:
    """Of the features of a set: mean and covariance in each space, the Inception Score, and the features of at most KEPT images.

    One file of features is in memory at a time. Raises UserError for features that are not finite.
    """
    keep = np.zeros(source.count, bool)
    keep[generator(0, "neighbours").permutation(source.count)[:KEPT]] = True
    scores, rest = list[float](), list[Array]()

    def seen(found: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        for part in found:
            demand_finite(part, source.path)
            if "logits" in part:
                logits = np.concatenate([*rest, part["logits"]])
                while len(logits) >= SPLIT:
                    scores.append(inception_score(logits[:SPLIT]))
                    logits = logits[SPLIT:]
                rest[:] = [logits]
            yield part

    files = (read_arrays(path) for path in parts.get(source.state, ()))
    tree = summed(seen(files if source.pixels is not None else source.parts()), keep, statistics=True)
    known = {"features": tree["kept"]}
    for space, names in SPACES.items():
        if f"count_{space}" in tree:
            total = Sums(int(tree[f"count_{space}"]), tree[f"mean_{space}"], tree[f"scatter_{space}"])
            known |= dict(zip(names, total.moments(), strict=True))
    scores += [inception_score(logits) for logits in rest if len(logits)]
    return known | ({"is": np.array(np.mean(scores))} if scores else {})
