"""When MaskDiT reaches DiT's quality: against a closed form, with an interval over seeds, and what cannot be said."""

import math

import numpy as np
import pandas as pd
import pytest
from test_report import record, rows_of

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.reporting import Curves
from maskdit.reporting.curve_crossings import crossings, interval, reach, spoken
from maskdit.reporting.curves import curves

SPENT = np.array([1.0, 10.0, 100.0])


def frame(seeds, shift=0.5, noise=0.0):
    """Two models whose quality is 30 - 10 log10 of what was spent, MaskDiT's as if it had spent 1/shift times as much."""
    rows, chance = [], np.random.default_rng(1)
    for model, factor in (("DiT", 1.0), ("MaskDiT", 1 / shift)):
        for seed in range(seeds):
            for point, hours in enumerate(SPENT):
                quality = 30 - 10 * math.log10(hours * factor) + noise * chance.normal()
                rows.append({"series": model, "model": model, "seed": seed, "point": point, "device_hours": hours, "fid": quality})
    return pd.DataFrame(rows)


def test_a_curve_that_is_straight_in_the_logarithm_is_crossed_where_it_says():
    rows = list(crossings(frame(1), ["device_hours"], "fid"))
    assert [row["status"] for row in rows] == ["before the first milestone", "reached", "reached"]
    assert [row["ratio"] for row in rows[1:]] == pytest.approx([0.5, 0.5])
    assert [row["reached"] for row in rows[1:]] == pytest.approx([5, 50])
    assert rows[1]["interval"] == "one seed, no interval"
    assert (rows[1]["low"], rows[1]["high"]) == (None, None)
    assert rows[0]["ratio"] == 1, "no more is known than that the first milestone is better already"
    assert (rows[0]["low"], rows[0]["high"]) == (0, 1)
    assert rows[0]["reads"] == "For a fid of 30 MaskDiT needs at most 1 device-hours, its first milestone: at most 1 times DiT's"
    assert rows[2]["reads"] == "For a fid of 10 MaskDiT needs 50 device-hours: 0.5 times DiT's"


@pytest.mark.parametrize(
    ("axis", "scale", "told"),
    [("steps", 1000, "50,000 training steps"), ("tflop", 1, "50 TFLOP of training"), ("device_hours", 0.01, "0.5 device-hours")],
)
def test_a_sentence_has_the_cost_in_whole_numbers_or_four_digits_and_its_unit(axis, scale, told):
    costs = frame(1).rename(columns={"device_hours": axis})
    costs[axis] *= scale
    assert list(crossings(costs, [axis], "fid"))[-1]["reads"] == f"For a fid of 10 MaskDiT needs {told}: 0.5 times DiT's"


def test_beside_a_ratio_of_times_stand_that_of_the_flops_and_both_mfu():
    hours = frame(1).rename(columns={"device_hours": "seconds"})
    hours["tflop"] = hours["seconds"] * hours["model"].map({"DiT": 2.0, "MaskDiT": 1.5})
    hours["mfu"] = hours["model"].map({"DiT": 0.5, "MaskDiT": 0.4})
    timed, computed = list(crossings(hours, ["seconds", "tflop"], "fid"))[2::3]
    assert timed["flops_ratio"] == pytest.approx(0.375)
    assert (timed["mfu"], timed["baseline_mfu"]) == (0.4, 0.5)
    assert timed["reads"].endswith("0.5 times DiT's; 0.375 times DiT's FLOPs, at an MFU of 0.4 against 0.5")
    assert computed["ratio"] == pytest.approx(0.375)
    assert (computed["flops_ratio"], computed["mfu"]) == (None, None)


def test_what_is_never_reached_is_not_extrapolated():
    rows = list(crossings(frame(1, shift=2.0), ["device_hours"], "fid"))
    assert [row["status"] for row in rows] == ["reached", "reached", "not reached"]
    assert (rows[2]["ratio"], rows[2]["reached"]) == (None, None)
    assert (rows[2]["low"], rows[2]["high"]) == (1, math.inf), "no more is known than that all of its training was not enough"
    assert rows[2]["reads"].endswith("has after 100 device-hours, within 100")
    short = frame(3, shift=2.0)
    short = short[(short["model"] == "DiT") | (short["device_hours"] < 100)]
    assert [row["low"] for row in crossings(short, ["device_hours"], "fid") if row["status"] == "not reached"] == [1, 0.1]


def test_the_first_crossing_counts_and_a_milestone_itself_is_exact():
    quality = np.array([9.0, 5.0, 7.0, 3.0])
    assert reach(np.array([1.0, 2, 3, 4]), quality, 5.0) == 2
    assert reach(np.array([1.0, 2, 3, 4]), quality, 9.0) == 1
    assert reach(np.array([1.0, 2, 3, 4]), quality, 2.0) == math.inf


def test_the_interval_over_seeds_holds_the_truth_and_narrows_with_less_noise():
    widths = []
    for noise in (0.6, 0.06):
        row = list(crossings(frame(5, noise=noise), ["device_hours"], "fid"))[1]
        assert row["low"] < 0.5 < row["high"]
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["seeds"] == "5 and 5"
        widths.append(row["high"] - row["low"])
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_of_few_seeds_holds_the_truth_nineteen_times_of_twenty(seeds):
    chance, inside = np.random.default_rng(2), 0
    for _ in range(400):
        pair = []
        for factor in (1.0, 2.0):
            apart = 0.05 * chance.standard_normal((seeds, 1))  # of a seed's distances, relative, at all of its milestones
            pair.append((np.tile(SPENT * factor, (seeds, 1)), 30 * SPENT**-0.5 * np.exp(apart)))
        low, high = interval(pair[1], pair[0], 1)
        inside += low < 2 < high
    assert 0.92 < inside / 400 < 0.98, "a bootstrap would be too narrow"


def test_an_interval_says_whether_trainings_were_repeated_or_samplings_only():
    rows = frame(3, noise=0.1)
    for seeds, kind in ((rows["seed"].astype(str) + "/0", "training"), ("0/" + rows["seed"].astype(str), "sampling only")):
        row = next(crossings(rows.assign(seed=seeds), ["device_hours"], "fid"))
        assert row["interval"] == f"95 % by Student's t over seeds of {kind}"


def test_an_interval_may_be_open_and_needs_two_seeds_of_both():
    spent = np.tile([1.0, 10.0], (3, 1))
    ours = (spent, np.array([[9.0, 4.0], [9.0, 4.0], [9.0, 8.0]]))
    theirs = (spent, np.array([[9.0, 5.0]] * 3))
    low, high = interval(ours, theirs, 1)
    assert low < 1 < high == math.inf
    assert spoken(0.5, high) == "0.5 or more"
    assert (spoken(0.5, 2.0), spoken(0.0, math.inf)) == ("0.5 to 2", "open at both ends")
    assert interval(theirs, (spent, np.zeros((3, 2))), 1) == (math.inf, math.inf), "a distance of 0 is no logarithm"
    assert interval((ours[0][:1], ours[1][:1]), theirs, 1) is None


def test_curves_write_crossings_bands_cost_and_marked_published_points(tmp_path):
    for seed in range(2):
        for step, fid in ((2, 30.0), (4, 20.0)):
            record(
                tmp_path,
                f"dit-{seed}-{step}",
                step=step,
                metrics={"fid": fid + seed},
                run={"decoder": None},
                seed=seed,
                guidance=1.0,
            )
            name = f"mask-{seed}-{step}"
            record(tmp_path, name, "MaskDiT", step=step, metrics={"fid": fid - 5 + seed}, run={}, seed=seed, guidance=1.0)
    evals = tuple(f"{model}-{seed}-{step}" for model in ("dit", "mask") for seed in range(2) for step in (2, 4))
    config = Curves(title="T", published=("in256", "in256-milestones"), price_per_device_hour=3.0, evals=evals)
    curves(config, metrics=tmp_path, out=tmp_path / "c.csv")
    rows = rows_of(tmp_path / "c.csv")
    ours = [row for row in rows if row["phase"] == "pretrain"]
    assert {(row["series"], row["seed"]) for row in ours} == {
        (model, f"{seed}/0") for model in ("DiT", "MaskDiT") for seed in (0, 1)
    }
    assert all(float(row["cost"]) == 3 * float(row["device_hours"]) for row in ours)
    theirs = {(row["eval"], row["steps"]) for row in rows if row["phase"] in ("published", "reported")}
    assert {("DiT-XL/2", "400000.0"), ("DiT-XL/2", "7000000.0"), ("MaskDiT", "2037500.0")} <= theirs
    assert not any(name.endswith("-G") for name, _ in theirs), "of another guidance"
    crossed = rows_of(tmp_path / "c_crossing.csv")
    assert {row["axis"] for row in crossed} == {"steps", "images", "tflop", "device_hours", "cost"}
    assert all(float(row["low"]) <= float(row["ratio"]) <= float(row["high"]) for row in crossed if row["status"] == "reached")
    text = (tmp_path / "c.svg").read_text()
    assert "PolyCollection" in text or "FillBetween" in text


def test_finetunings_that_branch_off_at_milestones_are_the_curve_that_is_compared(tmp_path):
    evals = []
    for step, fid in ((10, 30.0), (20, 20.0), (40, 10.0)):  # both halve a distance above 0 with each doubling of the steps
        evals.append(f"dit-{step}")
        record(tmp_path, evals[-1], step=step, metrics={"fid": fid}, run={"decoder": None})
        evals.append(f"mask-{step}")
        record(tmp_path, evals[-1], "MaskDiT", step=step, metrics={"fid": fid + 50}, run={})
    for start, fid in ((10, 30.0), (20, 20.0), (40, 10.0)):
        evals.append(f"open-{start}")
        cost = {"phase": "finetune", "step": start // 10, "start": start, "metrics": {"fid": fid}}
        record(tmp_path, evals[-1], "MaskDiT", run={}, **cost)
    curves(Curves(title="T", evals=tuple(evals)), metrics=tmp_path, out=tmp_path / "c.csv")
    rows = rows_of(tmp_path / "c.csv")
    assert {row["series"] for row in rows} == {"DiT", "MaskDiT", "MaskDiT before finetuning"}
    assert [float(row["steps"]) for row in rows if row["series"] == "MaskDiT"] == [11, 22, 44]
    crossed = [row for row in rows_of(tmp_path / "c_crossing.csv") if row["axis"] == "steps"]
    assert {row["model"] for row in crossed} == {"MaskDiT"}
    assert [float(row["ratio"]) for row in crossed] == pytest.approx([1.1, 1.1, 1.1]), "the finetuning's steps count"


def test_a_dit_whose_tokens_skip_blocks_is_compared_with_dit_as_tread(tmp_path):
    for step, fid in ((10, 30.0), (20, 20.0)):
        record(tmp_path, f"dit-{step}", step=step, metrics={"fid": fid}, run={"decoder": None})
        record(tmp_path, f"tread-{step // 2}", step=step // 2, metrics={"fid": fid}, run={"decoder": None, "route": {"ratio": 0.5}})
    evals = ("dit-10", "dit-20", "tread-5", "tread-10")
    curves(Curves(title="T", evals=evals), metrics=tmp_path, out=tmp_path / "c.csv")
    crossed = [row for row in rows_of(tmp_path / "c_crossing.csv") if row["axis"] == "steps"]
    assert [row["model"] for row in crossed] == ["TREAD", "TREAD"]
    assert [float(row["ratio"]) for row in crossed] == pytest.approx([0.5, 0.5])


def test_finetunings_of_two_published_weights_are_two_curves_and_their_seeds_stay_apart(tmp_path):
    for place, (theirs, seed) in enumerate([("x", 0), ("x", 1), ("y", 0)]):
        record(tmp_path, f"r{place}", "MaskDiT", phase="finetune", run={}, seed=seed)
        tree = read_json(tmp_path / f"r{place}.json")
        lineage = tree["manifest"]["lineage"]
        del lineage[f"pretrain/r{place}"]
        lineage["released/weights"] = {"config": {"url": theirs}, "digest": ""}
        write_json(tmp_path / f"r{place}.json", tree)
    curves(Curves(title="T", evals=("r0", "r1", "r2")), metrics=tmp_path, out=tmp_path / "c.csv")
    rows = {row["eval"]: (row["series"], row["seed"], row["steps"]) for row in rows_of(tmp_path / "c.csv")}
    assert rows == {"r0": ("MaskDiT r0", "7/0", "2"), "r1": ("MaskDiT r0", "8/0", "2"), "r2": ("MaskDiT r2", "7/0", "2")}


def test_two_recipes_of_one_model_are_two_curves(tmp_path):
    for name, ratio in (("half", 0.5), ("more", 0.75)):
        for step in (2, 4):
            record(tmp_path, f"{name}-{step}", "MaskDiT", step=step, run={"mask_ratio": ratio})
    evals = tuple(f"{name}-{step}" for name in ("half", "more") for step in (2, 4))
    curves(Curves(title="T", evals=evals), metrics=tmp_path, out=tmp_path / "c.csv")
    assert {row["series"] for row in rows_of(tmp_path / "c.csv")} == {"MaskDiT half-2", "MaskDiT more-2"}
    assert rows_of(tmp_path / "c_crossing.csv") == [], "there is no DiT"
