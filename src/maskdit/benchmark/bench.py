"""Speed benchmarks. The two cases of a ratio run alternately in one process; the result is the median over the rounds."""

import contextlib
import itertools
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from maskdit.artifacts.atomic import read_json, replacing, write_json
from maskdit.artifacts.provenance import processor
from maskdit.benchmark.timing import CLASSES, batch_of, clock, learner_of, measure, network, tidy, training
from maskdit.config.benchmark import Bench, Case, Pair
from maskdit.config.training import kept_tokens
from maskdit.latents.dataset import Latents, Space
from maskdit.reporting.figures import COLOURS, fitted, save, scaled
from maskdit.reporting.table_formats import markdown, write
from maskdit.runtime.device import device, gpus, native
from maskdit.runtime.process_group import Ranks, launch, together
from maskdit.runtime.progress import say
from maskdit.training.batches import ahead, batch_at

RANKS_STEPS, RANKS_ROUNDS = 4, 5
CHANGES = {"mask_ratio": "masking", "precision": "precision", "network": "our blocks and flat weights"}
CHANGES |= {"attention": "attention kernel", "compile": "compilation", "batch": "batch"}
SHARES = {"optimiser and average": 0.05, "whole update": None, "waiting for data": 0.01}  # of a training step: its largest value


def verdict(value: float, target: float | None, at_least: bool = True) -> str:
    """`met` or `missed`; '' without a target."""
    if target is None:
        return ""
    return "met" if (value >= target if at_least else value <= target) else "missed"


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median and range over the rounds."""
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def row_of(name: str, pair: Pair, slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, Any]:
    """A pair as a row: its ratio, the ratio of its FLOPs, MFU, targets and verdict."""
    bound = slow["flops"] / fast["flops"]
    ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"], strict=True)]
    row: dict[str, Any] = {"pair": name, "slow": pair.slow, "fast": pair.fast}
    row |= spread([slow["memory"] / fast["memory"]] if pair.memory else ratios)
    judged = [verdict(row["ratio"] / bound if pair.of_flops else row["ratio"], pair.target), verdict(fast["mfu"], pair.mfu)]
    row |= {"flops_ratio": bound, "share_of_flops": None if pair.memory else row["ratio"] / bound}
    row |= {"target": f"{pair.target} of FLOPs" if pair.of_flops else pair.target, "mfu": fast["mfu"], "mfu_target": pair.mfu}
    return row | {"verdict": "missed" if "missed" in judged else next((each for each in judged if each), "")}


def update_rows(case: Case, rounds: int, where: torch.device) -> list[dict[str, Any]]:
    """Shares of a training step: the optimiser with the EMA, the whole update, and waiting for data."""
    torch.compiler.reset()
    tidy()
    space = Space(4, case.side, (0.0,) * 4, (1.0,) * 4, "", tuple(map(str, range(CLASSES))))
    latents = Latents.of([np.zeros((256, 1, 8, case.side, case.side), np.float16)], np.arange(256), space)
    net, config = network(case), training(case)
    learner = learner_of(case, net, where)
    tokens = net.pos_embed.shape[1]
    keep = kept_tokens(tokens, case.mask_ratio)
    shares = []
    batches = ahead(lambda step: batch_at(step, config, latents, tokens), 0, rounds + 1)
    for step in range(rounds + 1):
        wall = time.perf_counter()
        batch, waited = next(batches)
        began = clock(where)
        learner.gradients(batch.to(where), keep)
        middle = clock(where)
        learner.update(step)
        ended, whole = clock(where), time.perf_counter() - wall
        learner.optimizer.step()
        learner.average.lerp_(learner.masters.detach(), 1e-4)
        parts = clock(where) - ended
        shares.append((parts / (ended - began), (ended - middle) / (ended - began), waited / whole))
    columns = zip(*shares[1:], strict=True)  # the first step compiles
    return [share_row(f"share of a step: {name}", each, SHARES[name]) for name, each in zip(SHARES, columns, strict=True)]


def share_row(name: str, values: Sequence[float], target: float | None) -> dict[str, Any]:
    """The row of a share that must not be larger than its target."""
    found = spread(values)
    judged = verdict(found["ratio"], target, at_least=False)
    return {"pair": name, **found, "target": target and f"<= {target}", "verdict": judged}


def paced(entry: str, out: str, mode: str) -> None:
    """One of two processes: measure the median wall time (s) of a case's gradients, `alone` or `together` with the other one."""
    case, where = Case.model_validate_json(entry), device()
    with contextlib.nullcontext(Ranks(0, 1)) if mode == "alone" else together() as ranks:
        net = network(case)
        learner = learner_of(case, net, where, ranks)
        given, keep = batch_of(case).to(where), kept_tokens(net.pos_embed.shape[1], case.mask_ratio)
        taken = []
        for _ in range(RANKS_STEPS + 1):
            began = time.perf_counter()
            learner.gradients(given, keep)
            if where.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        if ranks.rank == 0:
            write_json(Path(out), {"seconds": statistics.median(taken[1:])})


def ranks_rows(case: Case, where: torch.device) -> list[dict[str, Any]]:
    """Overhead of summing gradients over two processes, relative to two that do not sum them. None of it if there is one GPU."""
    if where.type == "cuda" and gpus() < 2:
        say("bench: the overhead of two ranks is not measured, because it needs two GPUs")
        return []
    program = "import sys; from maskdit.benchmark.bench import paced; paced(*sys.argv[1:])"
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RANKS_ROUNDS):
            taken = {}
            for mode in ("alone", "together"):
                out = f"{folder}/{mode}.json"
                if launch([sys.executable, "-c", program, case.model_dump_json(), out, mode], 2):
                    raise RuntimeError("a process of the two-rank benchmark failed")
                taken[mode] = read_json(Path(out))["seconds"]
            ratios.append(taken["together"] / taken["alone"] - 1)
    return [share_row(f"overhead of two ranks, {case.batch} images each", ratios, 0.05)]


def waterfall(config: Bench, where: torch.device) -> pd.DataFrame:
    """The steps of the waterfall: what changes from one case to the next, and the speed-up per image."""
    found = measure({name: config.cases[name] for name in config.waterfall}, config.rounds, where)
    ends = (config.waterfall[0], config.waterfall[-1])
    rows = []
    for pair in [*itertools.pairwise(config.waterfall), ends]:
        slow, fast = (found[name] for name in pair)
        old, new = (config.cases[name] for name in pair)
        ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"], strict=True)]
        changed = ", ".join(label for field, label in CHANGES.items() if getattr(old, field) != getattr(new, field))
        row = {"step": "all together" if pair == ends else changed, "from": pair[0], "to": pair[1], **spread(ratios)}
        rows.append({**row, "flops_ratio": slow["flops"] / fast["flops"]})
    return pd.DataFrame(rows)


def draw_waterfall(frame: pd.DataFrame, title: str) -> Figure:
    """The steps as bars on a logarithmic axis, each from the end of the previous one, and their ratios on the right."""
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(frame)), layout="constrained")
    panel = figure.subplots()
    bound, reached = frame.flops_ratio.iloc[0], [1.0]
    for place, row in enumerate(frame.itertuples()):
        left, colour = (1.0, COLOURS["DiT"]) if row.step == "all together" else (reached[-1], COLOURS["MaskDiT"])
        reached.append(left * row.ratio)
        panel.barh(place, reached[-1] - left, left=left, color=colour)
    panel.axvline(bound, color="#2471a3", linestyle=":", label="bound of masking alone: its FLOPs")
    panel.set_yticks(range(len(frame)), [textwrap.fill(step, 28) for step in frame.step])
    panel.invert_yaxis()
    ratios = panel.secondary_yaxis("right")
    ratios.set_yticks(range(len(frame)), [f"x {ratio:.2f}" for ratio in frame.ratio])
    ratios.tick_params(length=0)
    scaled(panel.xaxis, [*reached, bound], logarithmic=True)
    panel.set(
        xlim=(min(*reached, bound) / 1.1, max(*reached, bound) * 1.1), xlabel="times faster per image than plain DiT in float32"
    )
    figure.legend(loc="outside lower center", frameon=False)
    figure.suptitle(fitted(title, figure.get_figwidth()), fontsize="medium")
    return figure


def factorial(config: Bench, where: torch.device) -> Iterable[dict[str, Any]]:
    """Speed, FLOPs, MFU and memory of every combination of model, mask, precision, compiler and batch."""
    grid, like = config.factorial, config.cases[config.factorial.like]
    for precision, compiled, batch in itertools.product(grid.precisions, grid.compile, grid.batches):
        shared = {"precision": precision, "compile": compiled, "batch": batch}
        cases = {"DiT": like.model_copy(update={**shared, "decoder": None, "mask_ratio": 0.0})}
        cases |= {f"MaskDiT {ratio:g}": like.model_copy(update={**shared, "mask_ratio": ratio}) for ratio in grid.mask_ratios}
        for name, facts in measure(cases, config.rounds, where, with_memory=True).items():
            row = {"model": name, **shared, "images_per_second": 1 / statistics.median(facts["seconds"])}
            yield row | {"gflop_per_image": facts["flops"] / 1e9, "mfu": facts["mfu"], "memory_mb": facts["memory"] / 1e6}


def shown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table with three significant digits."""
    return markdown(frame.map(lambda value: f"{value:.3g}" if isinstance(value, float) else value).replace("nan", ""))


def bench(config: Bench, *, out: Path) -> None:
    """Measure the pairs, two ranks unless there is one GPU, the shares of a training step, the waterfall and the factorial.

    Writes the ratios as CSV; the ratios and the waterfall as Markdown; the waterfall as CSV, PNG and SVG; the factorial as CSV.
    """
    where = device()
    config = config.on(native(where))
    rows: list[dict[str, Any]] = []
    for slow in dict.fromkeys(pair.slow for pair in config.pairs.values()):
        group = {name: pair for name, pair in config.pairs.items() if pair.slow == slow}
        names = dict.fromkeys([slow, *(pair.fast for pair in group.values())])
        memory = any(pair.memory for pair in group.values())
        found = measure({name: config.cases[name] for name in names}, config.rounds, where, memory)
        rows += [row_of(name, pair, found[slow], found[pair.fast]) for name, pair in group.items()]
    rows += update_rows(config.cases[config.update], config.rounds, where)
    rows += ranks_rows(config.cases[config.ranks], where)
    chain = waterfall(config, where)
    tidy()
    name = torch.cuda.get_device_name() if where.type == "cuda" else processor()
    named = f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    save(draw_waterfall(chain, named), out, ".png", ".svg", dpi=150)
    frame = pd.DataFrame(rows).assign(machine=named)
    tables = f"{shown(frame.drop(columns=['machine', 'slow', 'fast']))}\n{shown(chain)}"
    write(frame, f"Medians of {config.rounds} rounds in one process; {named}", out, table=tables)
    for name, table in (("waterfall", chain), ("factorial", pd.DataFrame(factorial(config, where)))):
        with replacing(out.with_name(f"{out.stem}_{name}.csv")) as temporary:
            table.to_csv(temporary, index=False)
