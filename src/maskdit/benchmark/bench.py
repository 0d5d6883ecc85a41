"""Speed, measured in pairs: each side of a ratio runs in turn in one process, and the median of the rounds' ratios counts."""

import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from maskdit.artifacts.atomic import read_json, replacing, write_json
from maskdit.artifacts.provenance import processor
from maskdit.benchmark.timing import CLASSES, batch_of, clock, measure, network, tidy, training
from maskdit.config.benchmark import Bench, Case, Pair
from maskdit.config.training import kept_tokens
from maskdit.latents.dataset import Latents, Space
from maskdit.model.transformer import MaskDiT
from maskdit.reporting.table_formats import markdown
from maskdit.runtime.device import device, native
from maskdit.runtime.process_group import Ranks, launch, together
from maskdit.training.batches import ahead, batch_at
from maskdit.training.learner import Learner

RANKS_STEPS, RANKS_ROUNDS = 4, 5
TICKS = (1, 1.5, 2, 3, 4, 6, 8)


def verdict(value: float, target: float | None, at_least: bool = True) -> str:
    """Whether a target is met; '' where there is none."""
    if target is None:
        return ""
    return "met" if (value >= target if at_least else value <= target) else "missed"


def row_of(name: str, pair: Pair, slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, Any]:
    """A pair as a row: the median and the range of its ratio, its FLOPs' ratio, and the verdict on its target."""
    bound = slow["flops"] / fast["flops"]
    ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"], strict=True)]
    if pair.memory:
        ratios = [slow["memory"] / fast["memory"]]
    ratio = statistics.median(ratios)
    judged = [verdict(ratio / bound if pair.of_flops else ratio, pair.target), verdict(fast["mfu"], pair.mfu)]
    return {
        "pair": name,
        "slow": pair.slow,
        "fast": pair.fast,
        "ratio": ratio,
        "low": min(ratios),
        "high": max(ratios),
        "flops_ratio": bound,
        "share_of_flops": None if pair.memory else ratio / bound,
        "target": f"{pair.target} of FLOPs" if pair.of_flops else pair.target,
        "mfu": fast["mfu"],
        "mfu_target": pair.mfu,
        "verdict": "missed" if "missed" in judged else next((each for each in judged if each), ""),
    }


def update_rows(case: Case, rounds: int, where: torch.device) -> list[dict[str, Any]]:
    """Shares of a training step: optimiser with averages, the whole update, and waiting for data."""
    torch.compiler.reset()
    tidy()
    space = Space(4, case.side, (0.0,) * 4, (1.0,) * 4, "", tuple(map(str, range(CLASSES))))
    moments = np.zeros((256, 1, 8, case.side, case.side), np.float16)
    latents = Latents.of([moments], np.arange(256), space)
    net, config = network(case), training(case)
    assert isinstance(net, MaskDiT)
    learner = Learner(net, net.state_dict(), config, where, Ranks(0, 1))
    tokens = net.pos_embed.shape[1]
    keep = kept_tokens(tokens, case.mask_ratio)
    shares: dict[str, list[float]] = {"optimiser and average": [], "whole update": [], "waiting for data": []}
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
        if step:
            values = (parts / (ended - began), (ended - middle) / (ended - began), waited / whole)
            for name, value in zip(shares, values, strict=True):
                shares[name].append(value)
    targets = {"optimiser and average": 0.05, "whole update": None, "waiting for data": 0.01}
    return [share_row(f"share of a step: {name}", shares[name], targets[name]) for name in shares]


def share_row(name: str, values: list[float], target: float | None) -> dict[str, Any]:
    """A row of a number that should be small."""
    middle = statistics.median(values)
    facts = {"ratio": middle, "low": min(values), "high": max(values)}
    return {"pair": name, **facts, "target": target and f"<= {target}", "verdict": verdict(middle, target, at_least=False)}


def paced(entry: str, out: str, alone: bool) -> None:
    """In one of several processes: the median wall seconds of a case's gradients, with the others or each for itself."""
    case, where = Case.model_validate_json(entry), device()
    with contextlib.nullcontext(Ranks(0, 1)) if alone else together() as ranks:
        net = network(case)
        assert isinstance(net, MaskDiT)
        learner = Learner(net, net.state_dict(), training(case), where, ranks)
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


def ranks_row(case: Case) -> dict[str, Any]:
    """What adding up gradients over two processes costs, beside two processes that do not."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(RANKS_ROUNDS):
            taken = []
            for alone in (True, False):
                out = f"{folder}/{alone}.json"
                program = (
                    "import sys; from maskdit.benchmark.bench import paced; paced(sys.argv[1], sys.argv[2], sys.argv[3] == 'True')"
                )
                if launch([sys.executable, "-c", program, case.model_dump_json(), out, str(alone)], 2):
                    raise RuntimeError("a rank of the benchmark failed")
                taken.append(read_json(Path(out))["seconds"])
            ratios.append(taken[1] / taken[0] - 1)
    return share_row(f"overhead of two ranks, {case.batch} images each", ratios, 0.05)


CHANGES = {
    "mask_ratio": "masking",
    "precision": "precision",
    "network": "our blocks and flat weights",
    "attention": "attention kernel",
    "compile": "compilation",
    "batch": "batch",
}


def waterfall(config: Bench, where: torch.device) -> pd.DataFrame:
    """The chain's steps: what changes from each case to the next, and how many times faster that is per image."""
    found = measure({name: config.cases[name] for name in config.waterfall}, config.rounds, where)
    rows = []
    for before, after in [*itertools.pairwise(config.waterfall), (config.waterfall[0], config.waterfall[-1])]:
        ratios = [a / b for a, b in zip(found[before]["seconds"], found[after]["seconds"], strict=True)]
        old, new = config.cases[before], config.cases[after]
        changed = [label for field, label in CHANGES.items() if getattr(old, field) != getattr(new, field)]
        last = (before, after) == (config.waterfall[0], config.waterfall[-1])
        bound = found[before]["flops"] / found[after]["flops"]
        spread = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "flops_ratio": bound}
        rows.append({"step": "all together" if last else ", ".join(changed), "from": before, "to": after, **spread})
    return pd.DataFrame(rows)


def draw_waterfall(frame: pd.DataFrame, title: str, out: Path) -> None:
    """Bars on a logarithmic axis: each step begins where the one before ended."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "maskdit"
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(9, 3.8), layout="constrained")
    reached = 1.0
    for place, row in enumerate(frame.itertuples()):
        left = 1.0 if row.step == "all together" else reached
        panel.barh(place, left * row.ratio - left, left=left, color="#555555" if row.step == "all together" else "#c0392b")
        panel.annotate(f"x {row.ratio:.2f}", (left * row.ratio, place), xytext=(4, 0), textcoords="offset points", va="center")
        reached = left * row.ratio
    panel.axvline(frame.flops_ratio.iloc[0], color="#2471a3", linestyle=":", label="bound of masking alone: its FLOPs")
    panel.set_yticks(range(len(frame)), frame.step)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlim(0.9, max(reached, frame.ratio.max()) * 1.25)
    ticks = [tick for tick in TICKS if tick < panel.get_xlim()[1]]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("times faster per image than plain DiT in float32")
    panel.legend(loc="upper right")
    figure.suptitle(title, fontsize=10)
    for suffix in (".png", ".svg"):
        with replacing(out.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=150, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


def factorial(config: Bench, where: torch.device) -> Iterable[dict[str, Any]]:
    """Every combination of model, mask, precision, compiler and batch: seconds, FLOPs, MFU, memory."""
    grid, like = config.factorial, config.cases[config.factorial.like]
    for precision, compiled, batch in itertools.product(grid.precisions, grid.compile, grid.batches):
        shared = {"precision": precision, "compile": compiled, "batch": batch}
        cases = {"DiT": like.model_copy(update={**shared, "decoder": None, "mask_ratio": 0.0})}
        cases |= {f"MaskDiT {ratio:g}": like.model_copy(update={**shared, "mask_ratio": ratio}) for ratio in grid.mask_ratios}
        for name, facts in measure(cases, config.rounds, where, with_memory=True).items():
            yield {
                "model": name,
                **shared,
                "images_per_second": 1 / statistics.median(facts["seconds"]),
                "gflop_per_image": facts["flops"] / 1e9,
                "mfu": facts["mfu"],
                "memory_mb": facts["memory"] / 1e6,
            }


def machine(where: torch.device) -> str:
    """The device and torch's version, in words."""
    name = torch.cuda.get_device_name() if where.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def bench(config: Bench, *, out: Path) -> None:
    """Measure the pairs, two ranks, the shares of a step, the waterfall and the factorial.

    Writes the ratios as CSV and, with the waterfall, as Markdown; the waterfall as CSV, PNG and SVG; the factorial as CSV.
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
    rows.append(ranks_row(config.cases[config.ranks]))
    chain = waterfall(config, where)
    tidy()
    named = machine(where)
    draw_waterfall(chain, named, out)
    grid = pd.DataFrame(factorial(config, where))
    frame = pd.DataFrame(rows)
    frame["machine"] = named
    shown = frame.drop(columns=["machine", "slow", "fast"]).map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)
    steps = chain.map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)
    with replacing(out.with_suffix(".md")) as temporary:
        about = f"Medians of {config.rounds} rounds in one process; {named}"
        temporary.write_text(f"{about}\n\n{markdown(shown.replace('nan', ''))}\n{markdown(steps)}")
    for name, table in ((out.stem, frame), (f"{out.stem}_waterfall", chain), (f"{out.stem}_factorial", grid)):
        with replacing(out.with_name(f"{name}.csv")) as temporary:
            table.to_csv(temporary, index=False)
