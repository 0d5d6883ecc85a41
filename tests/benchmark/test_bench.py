"""The benchmark: its yardstick is the same mathematics, and its verdicts are computed."""

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskdit.benchmark import bench, timing
from maskdit.benchmark.baseline import plain_loss
from maskdit.config.benchmark import Bench, Case, Pair
from maskdit.config.load import load
from maskdit.model.diffusion import loss
from project import ROOT

ENCODER, DECODER = {"patch": 2, "depth": 2, "width": 32, "heads": 2}, {"depth": 1, "width": 16, "heads": 2}
CASE = {"network": "ours", "side": 8, "encoder": ENCODER, "decoder": DECODER, "mask_ratio": 0.5, "batch": 3, "precision": "fp32"}


def case(**changes):
    return Case.model_validate({**CASE, **changes})


@pytest.mark.parametrize("mask_ratio", [0.0, 0.25, 0.5, 0.75])
def test_plain_is_the_same_loss_and_the_same_gradients(mask_ratio):
    ours, plain = timing.network(case()), timing.network(case(network="plain"))
    state = plain.state_dict()
    assert state.keys() == ours.state_dict().keys()
    plain.load_state_dict({name: tensor.reshape(state[name].shape) for name, tensor in ours.state_dict().items()})
    keep, given = int(16 * (1 - mask_ratio)), timing.batch_of(case())
    pair = loss(ours, given.clean, given.labels, given.draw, patch=2, keep=keep, mae_weight=0.1, label_dropout=0.4)
    mine, theirs = sum(pair).mean(), plain_loss(plain, given, keep, 0.1, 0.4)
    torch.testing.assert_close(mine, theirs)
    for value in (mine, theirs):
        value.backward()
    gradients = {name: weight.grad for name, weight in plain.named_parameters()}
    for name, weight in ours.named_parameters():
        if weight.requires_grad and gradients[name] is not None:  # an unused mask token has none there
            torch.testing.assert_close(weight.grad, gradients[name].reshape(weight.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", [None, DECODER])
def test_the_formula_of_flops_is_what_torch_counts_in_a_whole_step(decoder):
    ratio = 0.5 if decoder else 0.0
    one = timing.ready(case(decoder=decoder, mask_ratio=ratio, precision="bf16", side=32), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        one.once()
    assert counter.get_total_flops() / 3 == pytest.approx(one.flops, rel=0.01)


def test_a_verdict_compares_the_number_with_its_target():
    assert bench.verdict(1.2, 1.2) == bench.verdict(0.04, 0.05, at_least=False) == "met"
    assert bench.verdict(1.19, 1.2) == bench.verdict(0.06, 0.05, at_least=False) == "missed"
    assert bench.verdict(1.0, None) == ""
    slow = {"seconds": [2.0, 4.0, 9.0], "flops": 2.0, "mfu": 0.5, "memory": 30}
    fast = {"seconds": [1.0, 2.0, 3.0], "flops": 1.0, "mfu": 0.6, "memory": 20}
    row = bench.row_of("one", Pair(slow="a", fast="b", target=1.0, of_flops=True, mfu=0.7), slow, fast)
    assert (row["ratio"], row["low"], row["high"], row["flops_ratio"], row["verdict"]) == (2.0, 2.0, 3.0, 2.0, "missed")
    assert bench.row_of("one", Pair(slow="a", fast="b", target=1.0, of_flops=True), slow, fast)["verdict"] == "met"
    assert bench.row_of("one", Pair(slow="a", fast="b", target=1.6, memory=True), slow, fast)["verdict"] == "missed"


def test_a_small_benchmark_measures_everything_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RANKS_STEPS", 1)
    monkeypatch.setattr(bench, "RANKS_ROUNDS", 1)
    plain = {**CASE, "network": "plain"}
    cases = {
        "a": plain,
        "b": CASE,
        "c": {**CASE, "precision": "tf32"},  # bf16 is emulated on many CPUs
        "d": {**plain, "update": True},
        "e": {**CASE, "update": True},
        "f": {**plain, "sampling": True, "mask_ratio": 0.0},
        "g": {**CASE, "sampling": True, "mask_ratio": 0.0, "precision": "tf32", "interval": [0.19, 1.61]},
    }
    entry = Bench.model_validate(
        {
            "rounds": 2,
            "cases": cases,
            "pairs": {
                "one": {"slow": "a", "fast": "b", "target": 1e9},
                "two": {"slow": "a", "fast": "b", "memory": True},
                "three": {"slow": "d", "fast": "e"},
                "four": {"slow": "f", "fast": "g"},
            },
            "waterfall": ["a", "b", "c"],
            "ranks": "b",
            "update": "b",
            "factorial": {"like": "b", "mask_ratios": [0.5], "precisions": ["fp32"], "compile": [False], "batches": [2]},
        }
    )
    bench.bench(entry, out=tmp_path / "bench_toy.csv")
    rows = pd.read_csv(tmp_path / "bench_toy.csv").set_index("pair")
    assert rows.loc["one", "verdict"] == "missed"
    assert {"share of a step: waiting for data", "overhead of two ranks, 3 images each", "two"} <= set(rows.index)
    assert rows.loc["four", "flops_ratio"] == 14 / 9, "the interval spares five of fourteen passes"
    assert (rows.low <= rows.ratio).all()
    assert (rows.ratio <= rows.high).all()
    chain = pd.read_csv(tmp_path / "bench_toy_waterfall.csv")
    assert list(chain.step) == ["our blocks and flat weights", "precision", "all together"]
    assert len(pd.read_csv(tmp_path / "bench_toy_factorial.csv")) == 2
    assert (tmp_path / "bench_toy.png").stat().st_size > 5000
    assert "Medians of 2 rounds" in (tmp_path / "bench_toy.md").read_text()


def test_one_gpu_is_not_asked_for_a_second(monkeypatch, capsys):
    monkeypatch.setattr(bench, "gpus", lambda: 1)
    monkeypatch.setattr(bench, "launch", None)
    assert bench.ranks_rows(case(), torch.device("cuda", 0)) == []
    assert "because it needs two GPUs" in capsys.readouterr().err


def test_the_benchmark_is_in_the_precision_of_the_cpu_and_asks_nothing_that_this_cannot_give():
    shipped = load(ROOT / "params.yaml").bench["cpu"]
    with_bf16, without = shipped.on("bf16"), shipped.on("fp32")
    assert {case.precision for case in with_bf16.cases.values()} == {"fp32", "bf16"}
    assert {case.precision for case in without.cases.values()} == {"fp32"}
    assert (with_bf16.waterfall, with_bf16.pairs) == (shipped.waterfall, shipped.pairs)
    assert set(shipped.waterfall) - set(without.waterfall) == {"fall-3"}, "the step from fp32 to bf16"
    assert {name for name, pair in shipped.pairs.items() if pair != without.pairs[name]} == {"draw", "draw-interval"}
    assert (with_bf16.factorial.precisions, without.factorial.precisions) == (("fp32", "bf16"), ("fp32",))


def test_a_benchmark_that_names_an_unknown_case_is_refused():
    pairs = {"one": {"slow": "a", "fast": "z"}}
    rest = {"waterfall": ["a"], "ranks": "a", "update": "a"}
    grid = {"like": "a", "mask_ratios": [], "precisions": [], "compile": [], "batches": []}
    with pytest.raises(ValueError, match="cases has no entry 'z'"):
        Bench.model_validate({"rounds": 1, "cases": {"a": CASE}, "pairs": pairs, **rest, "factorial": grid})
